//! On the demo's pipeline: a generated source, so that every number is known, and no service.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{golden, masked};
use crate::e2e::examples::examples;
use crate::support::{Sandbox, lake};

const FILE: &str = "pipelines/orders.yaml";

/// Three batches: 200, 200 and 100 rows.
const SMALL: [(&str, &str); 1] = [("ROWS", "500")];

/// The demo with 500 rows in three batches.
fn three_batches(test: &str) -> Sandbox {
    let sandbox = examples(test);
    let small = std::fs::read_to_string(sandbox.path().join(FILE)).expect("the demo");
    sandbox.write(FILE, &small.replace("max_rows: 25_000", "max_rows: 200"));
    let run = look(&sandbox, &["run", FILE, "--output", "json"]);
    assert_eq!(run.batches(), [200, 200, 100], "{}", run.report());
    sandbox
}

fn look(sandbox: &Sandbox, words: &[&str]) -> crate::support::sandbox::Outcome {
    let run = SMALL.iter().fold(sandbox.tidegate(words), |run, (name, value)| run.env(name, value));
    run.run().success()
}

fn fails(sandbox: &Sandbox, words: &[&str], code: i32) -> crate::support::sandbox::Outcome {
    let run = SMALL.iter().fold(sandbox.tidegate(words), |run, (name, value)| run.env(name, value));
    run.run().code(&[code])
}

/// One row of a query as text, in one line.
fn ask(sandbox: &Sandbox, words: &[&str]) -> String {
    let words = [&["query", FILE, "-o", "csv"], words].concat();
    look(sandbox, &words).stdout.lines().skip(1).collect::<Vec<_>>().join(" ")
}

/// One number of a table, by another reader.
fn count(sandbox: &Sandbox, table: &str, sql: &str) -> i64 {
    let path = sandbox.path().join("lake").join(table.replace('.', "/"));
    lake::lines(&path, sql)[0].parse().expect("a number")
}

#[test]
fn status_tells_one_pipeline_at_length_and_a_folder_in_a_table() {
    let sandbox = three_batches("look-status");
    golden("status.txt", &masked(&look(&sandbox, &["status", FILE]).stdout, &sandbox));
    golden("status-folder.txt", &masked(&look(&sandbox, &["status", "pipelines"]).stdout, &sandbox));
    let json = look(&sandbox, &["status", FILE, "--output", "json"]).json();
    let dead = count(&sandbox, "dlq.orders", "SELECT count(*) FROM t");
    assert!(dead > 0);
    assert_eq!((&json["state"], &json["dead_letters_today"]), (&json!("idle"), &json!(dead)));
    assert_eq!((&json["lag"]["records"], &json["running"]), (&json!(0), &Value::Null));
    assert_eq!(json["last_commit"]["batch_id"], 2);
    let all = look(&sandbox, &["status", "pipelines", "--output", "json"]).json();
    let states: Vec<&str> =
        all["pipelines"].as_array().expect("a list").iter().filter_map(|p| p["state"].as_str()).collect();
    assert_eq!(states, ["never_ran", "never_ran", "never_ran", "never_ran", "idle"], "{all}");
}

#[test]
fn a_file_that_is_wrong_does_not_hide_the_others() {
    let sandbox = three_batches("look-wrong");
    sandbox.write("pipelines/broken.yaml", "version: 1\nname: broken\n");
    let status = look(&sandbox, &["status", "pipelines", "--offline"]);
    assert!(status.stdout.contains("unreadable") && status.stdout.contains("tidegate validate"), "{}", status.report());
    assert!(status.stdout.contains("  orders "), "{}", status.report());
    fails(&sandbox, &["status", "pipelines/broken.yaml"], 78);
}

#[test]
fn status_says_who_runs_a_pipeline_and_stops_nobody_from_running_it() {
    let sandbox = three_batches("look-running");
    let words = ["run", FILE, "--trigger", "1s"];
    let run = SMALL.iter().fold(sandbox.tidegate(&words), |run, (name, value)| run.env(name, value)).start();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let json = look(&sandbox, &["status", FILE, "--offline", "--output", "json"]).json();
        // Between taking the lock and writing its name into it a runner has none.
        if json["running"]["pid"] == run.pid() {
            assert_eq!(json["state"], "running", "{json}");
            break;
        }
        assert!(Instant::now() < deadline && !run.ended(), "nobody runs: {json}\n{}", run.stderr());
    }
    run.signal("TERM");
    run.end(Duration::from_secs(60)).success();
    assert_eq!(look(&sandbox, &["status", FILE, "--output", "json"]).json()["state"], "idle");
}

#[test]
fn watch_looks_again_until_it_is_interrupted() {
    let sandbox = three_batches("look-watch");
    let words = ["status", FILE, "--watch=10ms", "--output", "json"];
    let run = SMALL.iter().fold(sandbox.tidegate(&words), |run, (name, value)| run.env(name, value)).start();
    let deadline = Instant::now() + Duration::from_secs(60);
    let looks = |text: String| text.lines().filter(|line| line.contains("\"state\":\"idle\"")).count();
    while looks(run.stdout()) < 2 {
        assert!(Instant::now() < deadline && !run.ended(), "one look only\n{}", run.stderr());
        std::thread::sleep(Duration::from_millis(20));
    }
    run.signal("INT");
    run.end(Duration::from_secs(60)).success();
}

#[test]
fn history_lists_the_batches_and_tells_one_in_detail() {
    let sandbox = three_batches("look-history");
    golden("history.txt", &masked(&look(&sandbox, &["history", FILE]).stdout, &sandbox));
    golden("history-batch.txt", &masked(&look(&sandbox, &["history", FILE, "--batch", "1"]).stdout, &sandbox));
    let json = look(&sandbox, &["history", FILE, "--limit", "2", "--output", "json"]).json();
    let batches: Vec<i64> =
        json["batches"].as_array().expect("a list").iter().filter_map(|batch| batch["batch"].as_i64()).collect();
    assert_eq!(batches, [2, 1]);
    assert_eq!(json["batches"][0]["commit"]["input_rows"], 100);
    let smooth = look(&sandbox, &["history", FILE, "--failed"]).stdout;
    assert!(smooth.contains("went smoothly"), "{smooth}");
    fails(&sandbox, &["history", FILE, "--batch", "9"], 2).says("the checkpoint holds no batch 9");
}

#[test]
fn a_batch_that_another_run_finished_says_so() {
    let sandbox = three_batches("look-finished");
    // As a crash between the last table and the commit record leaves it.
    sandbox.remove("checkpoints/orders/commits/00000000000000000002.json");
    let pending = look(&sandbox, &["history", FILE, "--failed"]).stdout;
    assert!(pending.contains("not finished"), "{pending}");
    let status = look(&sandbox, &["status", FILE, "--output", "json"]).json();
    assert_eq!((&status["state"], &status["pending"]["batch"]), (&json!("pending"), &json!(2)), "{status}");
    look(&sandbox, &["run", FILE]);
    let failed = look(&sandbox, &["history", FILE, "--failed", "--output", "json"]).json();
    let batches = failed["batches"].as_array().expect("a list");
    assert_eq!(batches.len(), 1, "{failed}");
    let (planned, finished) = (&batches[0]["plan"]["owner"]["run_id"], &batches[0]["commit"]["finished_by"]["run_id"]);
    assert!(finished.is_string() && planned != finished, "{failed}");
}

#[test]
fn a_query_sees_what_another_reader_sees() {
    let sandbox = three_batches("look-query");
    let silver = count(&sandbox, "silver.orders", "SELECT count(*) FROM t");
    assert_eq!(ask(&sandbox, &["SELECT count(*) FROM silver.orders"]), silver.to_string());
    let expected =
        lake::lines(&sandbox.path().join("lake/silver/orders"), "SELECT order_id, amount FROM t ORDER BY 1 LIMIT 3");
    let sql = "SELECT order_id, amount FROM silver.orders ORDER BY order_id LIMIT 3";
    let rows = look(&sandbox, &["query", FILE, sql, "--output", "json"]).json();
    let cents = |row: &Value| {
        let amount = row["amount"].as_str().map_or("∅".to_string(), |text| text.replace('.', ""));
        format!("{}|{}", row["order_id"].as_str().expect("text"), amount.trim_start_matches('0'))
    };
    let found: Vec<String> = rows["rows"].as_array().expect("rows").iter().map(cents).collect();
    assert_eq!(found, expected, "decimals are exact text");
    // Lookups, dead letters, joins over layers.
    assert_eq!(ask(&sandbox, &["SELECT count(DISTINCT city) > 5 FROM stores"]), "true");
    let dead = count(&sandbox, "dlq.orders", "SELECT count(*) FROM t WHERE stage = 'decode'");
    assert_eq!(ask(&sandbox, &["SELECT count(*) FROM dlq.orders WHERE stage = 'decode'"]), dead.to_string());
    let lines = look(&sandbox, &["query", FILE, "-o", "ndjson", "SELECT order_id FROM silver.orders"]).stdout;
    assert_eq!(lines.lines().count() as i64, silver);
    assert!(lines.lines().all(|line| serde_json::from_str::<Value>(line).is_ok_and(|row| row["order_id"].is_string())));
    let array = look(&sandbox, &["query", FILE, "-o", "json", "SELECT order_id FROM silver.orders"]).stdout;
    assert_eq!(serde_json::from_str::<Vec<Value>>(&array).expect("an array").len() as i64, silver);
    let empty = look(&sandbox, &["query", FILE, "-o", "json", "SELECT order_id FROM silver.orders WHERE false"]).stdout;
    assert_eq!(empty, "[]\n");
}

#[test]
fn a_query_as_of_a_batch_sees_all_tables_as_that_batch_left_them() {
    let sandbox = three_batches("look-at-batch");
    // Versions are not batches: maintenance makes one, too.
    look(&sandbox, &["optimize", FILE]);
    let consistent = "SELECT (SELECT count(*) FROM bronze.orders) AS b, (SELECT sum(orders) FROM gold.daily_revenue) AS g, \
                      (SELECT count(*) FROM silver.orders WHERE status <> 'cancelled') AS s";
    let mut seen = Vec::new();
    for batch in 0..3_u64 {
        let row = ask(&sandbox, &["--at-batch", &batch.to_string(), consistent]);
        let numbers: Vec<i64> = row.split(',').map(|number| number.parse().expect("a number")).collect();
        assert_eq!(numbers[1], numbers[2], "gold and silver of batch {batch} agree");
        let rows = format!("SELECT count(*) FROM t WHERE _batch_id <= {batch}");
        assert_eq!(numbers[0], count(&sandbox, "bronze.orders", &rows), "bronze of batch {batch}");
        seen.push(numbers);
    }
    assert!(seen[0][0] < seen[1][0] && seen[1][0] < seen[2][0], "{seen:?}");
    // By time: the commit record of batch 1 says when it was done.
    let history = look(&sandbox, &["history", FILE, "--batch", "1", "--output", "json"]).json();
    let done = history["batch"]["commit"]["committed_at"].as_str().expect("a time").to_string();
    let at = ask(&sandbox, &["--at", &done, "SELECT count(*) FROM bronze.orders"]);
    assert_eq!(at, seen[1][0].to_string());
    fails(&sandbox, &["query", FILE, "--at-batch", "9", "SELECT 1"], 2)
        .says("batch 9 is not done")
        .says(&format!("tidegate history {FILE} --limit 200"));
    fails(&sandbox, &["query", FILE, "--at", "2020-01-01T00:00:00Z", "SELECT 1"], 2)
        .says("no batch that the checkpoint");
}

#[test]
fn a_lake_without_a_pipeline_can_be_asked_too() {
    let sandbox = three_batches("look-lake");
    let tables = look(&sandbox, &["query", "--lake", "lake", "--tables", "--output", "json"]).json();
    let names: Vec<&str> =
        tables["tables"].as_array().expect("a list").iter().filter_map(|t| t["name"].as_str()).collect();
    assert_eq!(names, ["bronze.orders", "dlq.orders", "gold.daily_revenue", "silver.orders"]);
    let ask = |words: &[&str]| {
        let words = [&["query", "--lake", "lake", "-o", "csv"], words].concat();
        look(&sandbox, &words).stdout.lines().nth(1).map(str::to_string)
    };
    let count = |sql: &str| count(&sandbox, "bronze.orders", sql).to_string();
    let first = count("SELECT count(*) FROM t WHERE _batch_id = 0");
    assert_eq!(ask(&["--at-version", "bronze.orders=1", "SELECT count(*) FROM bronze.orders"]), Some(first));
    assert_eq!(ask(&["SELECT count(*) FROM bronze.orders"]), Some(count("SELECT count(*) FROM t")));
    let none = ["query", "--lake", "lake", "--at", "2020-01-01T00:00:00Z", "SELECT count(*) FROM bronze.orders"];
    fails(&sandbox, &none, 2).says("no version of 2020");
    fails(
        &sandbox,
        &["query", "--lake", "lake", "--at-version", "bronze.orders=99", "SELECT count(*) FROM bronze.orders"],
        2,
    )
    .says("no version 99");
    fails(&sandbox, &["query", "--lake", "pipelines", "SELECT 1"], 2).says("no Delta table");
}

#[test]
fn a_query_changes_nothing_and_says_what_is_wrong() {
    let sandbox = three_batches("look-refused");
    let versions = || crate::support::oracle::versions(&sandbox.path().join("lake"));
    let before = versions();
    let outside = sandbox.path().join("stolen.csv").display().to_string();
    let copy = format!("COPY (SELECT 1) TO '{outside}'");
    let read = format!("CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '{outside}'");
    let writes = [
        "DELETE FROM silver.orders",
        "INSERT INTO silver.orders SELECT * FROM silver.orders",
        "DROP TABLE silver.orders",
        "CREATE TABLE x AS SELECT 1",
        "UPDATE silver.orders SET status = 'x'",
        &copy,
        &read,
        "SET datafusion.execution.batch_size = 1",
    ];
    for sql in writes {
        let refused = fails(&sandbox, &["query", FILE, sql], 2);
        assert!(refused.stderr.contains("this is not a query"), "{sql}\n{}", refused.report());
    }
    assert_eq!(versions(), before);
    assert!(!std::path::Path::new(&outside).exists());
    fails(&sandbox, &["query", FILE, "SELECT amout FROM silver.orders"], 78).says("amout").says("silver.orders");
    fails(&sandbox, &["query", FILE, "SELECT * FROM silver.ordrs"], 78)
        .says("silver.ordrs")
        .says("tables: bronze.orders");
    fails(&sandbox, &["query", FILE, "SELECT FROM WHERE"], 78);
    fails(&sandbox, &["query", FILE], 2).says("the query is missing");
}

#[test]
fn a_table_for_people_stops_at_its_limit_and_says_so() {
    let sandbox = three_batches("look-limit");
    let sql = "SELECT order_id FROM silver.orders";
    let shown = look(&sandbox, &["query", FILE, sql]).stdout;
    assert_eq!(shown.lines().count(), 102, "a header, 100 rows and a note");
    assert!(shown.ends_with("(the first 100 rows; --limit shows more)\n"), "{shown}");
    let shown = look(&sandbox, &["query", FILE, sql, "--limit", "2"]).stdout;
    assert_eq!(shown.lines().count(), 4);
    let all = look(&sandbox, &["query", FILE, sql, "-o", "csv"]).stdout;
    assert_eq!(all.lines().count() as i64, 1 + count(&sandbox, "silver.orders", "SELECT count(*) FROM t"));
    let keys = look(&sandbox, &["query", FILE, "SELECT _key FROM bronze.orders LIMIT 1"]).stdout;
    assert!(keys.contains("o-0"), "keys that are text are shown as text: {keys}");
}

#[test]
fn graphs_show_what_is_read_and_written() {
    let sandbox = examples("look-graph");
    for (format, name) in [("mermaid", "graph.mmd"), ("dot", "graph.dot"), ("json", "graph.json")] {
        let graph = sandbox.tidegate(&["graph", FILE, "--format", format]).run().success();
        golden(name, &graph.stdout);
    }
    let json = sandbox.tidegate(&["graph", "pipelines/orders-kafka.yaml", "--output", "json"]).run().success().json();
    let edges: Vec<(&str, &str)> = json["edges"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|edge| edge["how"] == "rows")
        .map(|edge| (edge["from"].as_str().expect("text"), edge["to"].as_str().expect("text")))
        .collect();
    let expected = [
        ("source:source", "table:bronze.orders"),
        ("table:bronze.orders", "table:silver.orders"),
        ("table:silver.orders", "table:gold.daily_revenue"),
    ];
    assert_eq!(edges, expected);
}
