//! The pipelines that ship, run as they are: a newcomer who copies one gets what it says.

use std::collections::HashMap;
use std::path::Path;

use crate::support::broker::{Record, broker};
use crate::support::{Sandbox, lake};

/// A sandbox with a copy of `pipelines/` in it.
pub(crate) fn examples(test: &str) -> Sandbox {
    fn copy(from: &Path, below: &str, sandbox: &Sandbox) {
        for entry in std::fs::read_dir(from).expect("pipelines/ is readable") {
            let path = entry.expect("pipelines/ is readable").path();
            let name = format!("{below}/{}", path.file_name().expect("a name").to_string_lossy());
            match path.is_dir() {
                true => copy(&path, &name, sandbox),
                false => drop(sandbox.write(&name, &std::fs::read_to_string(&path).expect("text"))),
            }
        }
    }
    let sandbox = Sandbox::new(test);
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines"), "pipelines", &sandbox);
    sandbox
}

fn one(sandbox: &Sandbox, table: &str, sql: &str) -> i64 {
    let lines = lake::lines(&sandbox.path().join("lake").join(table.replace('.', "/")), sql);
    lines.first().and_then(|line| line.parse().ok()).expect("one number")
}

#[test]
fn the_demo_accounts_for_every_row_continues_where_it_stopped_and_reads_only_new_rows() {
    let sandbox = examples("demo");
    let file = "pipelines/orders.yaml";
    let rows = |n: &str| sandbox.tidegate(&["run", file, "--output", "json"]).env("ROWS", n).run().success();
    let first = rows("20_000");
    assert_eq!(first.batches().iter().sum::<u64>(), 20_000);
    let count = |table: &str, what: &str| one(&sandbox, table, &format!("SELECT count(*) FROM t {what}"));
    let (bronze, undecoded) = (count("bronze.orders", ""), count("dlq.orders", "WHERE stage = 'decode'"));
    assert_eq!(bronze + undecoded, 20_000, "every row is in bronze or in the dead letters");
    assert!(undecoded > 100, "the demo shows dead letters");

    let versions = || {
        ["bronze", "silver", "dlq"].map(|layer| lake::version(&sandbox.path().join("lake").join(layer).join("orders")))
    };
    let before = versions();
    let idle = rows("20_000");
    assert_eq!(idle.json()["status"], "no_data");
    idle.says("continues after batch");
    assert_eq!(versions(), before, "a run with nothing to do changes no table");

    assert_eq!(rows("21_000").batches().iter().sum::<u64>(), 1_000, "only the new rows are read");
    // Gold, from an independent computation over bronze: newest update of each order by (time, partition, offset).
    let newest = lake::lines(
        &sandbox.path().join("lake/silver/orders"),
        "SELECT count(*), sum(CASE WHEN status <> 'cancelled' THEN amount END) FROM t",
    );
    let gold = lake::lines(&sandbox.path().join("lake/gold/daily_revenue"), "SELECT sum(revenue) FROM t");
    let revenue = newest[0].split('|').nth(1).expect("two columns").to_string();
    assert_eq!(gold, [revenue]);
}

#[test]
fn clicks_from_a_folder_are_flattened_and_new_files_are_picked_up() {
    let sandbox = examples("clicks");
    let file = "pipelines/clickstream.yaml";
    let good = |name: &str| {
        let text =
            std::fs::read_to_string(sandbox.path().join("pipelines/data/clicks").join(name)).expect("a data file");
        let events = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        // One line has words where a time belongs.
        let has_time = |event: &serde_json::Value| {
            event["at"].as_str().is_some_and(|at| chrono::DateTime::parse_from_rfc3339(at).is_ok())
        };
        events.filter(has_time).collect::<Vec<_>>()
    };
    let mut events: Vec<serde_json::Value> = good("2026-03-16.ndjson");
    events.extend(good("2026-03-17.ndjson"));
    sandbox.drain(file).success();
    let bronze = || one(&sandbox, "clicks_bronze.events", "SELECT count(*) FROM t");
    assert_eq!(bronze(), events.len() as i64);
    assert_eq!(one(&sandbox, "dlq.clickstream", "SELECT count(*) FROM t WHERE stage = 'decode'"), 1);

    sandbox.write(
        "pipelines/data/clicks/2026-03-18.ndjson",
        "{\"event_id\":\"n-1\",\"user_id\":\"u-1\",\"at\":\"2026-03-17T23:30:00Z\",\"page\":{\"url\":\"/new\",\"load_ms\":5},\"tags\":[\"a\",\"b\"]}\n",
    );
    let next = sandbox.drain(file).success();
    assert_eq!(next.batches(), [1], "only the new file is read");
    assert_eq!(bronze(), events.len() as i64 + 1);
    let silver = lake::lines(
        &sandbox.path().join("lake/clicks_silver/events"),
        "SELECT url, referrer, tag_count FROM t WHERE event_id = 'n-1'",
    );
    assert_eq!(silver, ["/new|direct|2"]);

    let mut clicks: HashMap<(String, String), i64> = HashMap::new();
    let with_page = events.iter().filter(|event| event["page"]["url"].is_string());
    for event in with_page {
        let day = event["at"].as_str().expect("a time")[..10].to_string();
        *clicks.entry((day, event["page"]["url"].as_str().expect("a page").to_string())).or_default() += 1;
    }
    *clicks.entry(("2026-03-17".into(), "/new".into())).or_default() += 1;
    let mut expected: Vec<String> = clicks.into_iter().map(|((day, url), n)| format!("{day}|{url}|{n}")).collect();
    expected.sort_unstable();
    let gold =
        lake::lines(&sandbox.path().join("lake/clicks_gold/pages"), "SELECT CAST(day AS VARCHAR), url, clicks FROM t");
    lake::assert_same("clicks_gold.pages", &expected, &gold);
}

#[test]
fn a_tombstone_in_a_compacted_topic_deletes_the_customer() {
    let Some(broker) = broker("customers") else { return };
    broker.create_topic("customers.v1", 1, &[]);
    let sandbox = examples("customers");
    let keyed = |key: &str, at: i64, value: Option<String>| Record {
        partition: 0,
        key: Some(key.as_bytes().to_vec()),
        value: value.map(String::into_bytes),
        timestamp: 1_772_323_200_000 + at,
    };
    let customer = |id: &str, at: &str, country: &str| {
        format!(
            "{{\"customer_id\":\"{id}\",\"name\":\"N\",\"email\":\"N@X.org\",\"country\":\"{country}\",\"updated_at\":\"{at}\"}}"
        )
    };
    let run = || {
        let arguments = ["run", "pipelines/customers.yaml", "--trigger", "available_now", "--output", "json"];
        sandbox.tidegate(&arguments).env("KAFKA_BROKERS", &broker.address).run().success()
    };
    let silver = || {
        let table = sandbox.path().join("lake/customers_silver/customers");
        lake::lines(&table, "SELECT customer_id, email, country FROM t")
    };
    broker.produce(
        "customers.v1",
        [
            keyed("c-1", 0, Some(customer("c-1", "2026-03-01T00:00:00Z", "de"))),
            keyed("c-2", 0, Some(customer("c-2", "2026-03-01T00:00:00Z", "ch"))),
        ],
    );
    run();
    assert_eq!(silver(), ["c-1|n@x.org|DE", "c-2|n@x.org|CH"]);
    broker.produce("customers.v1", [keyed("c-1", 60_000, None)]);
    run();
    assert_eq!(silver(), ["c-2|n@x.org|CH"]);
    // Older than the delete: it must not come back.
    broker.produce("customers.v1", [keyed("c-1", 70_000, Some(customer("c-1", "2026-03-01T00:00:30Z", "fr")))]);
    run();
    assert_eq!(silver(), ["c-2|n@x.org|CH"]);
}

#[test]
fn init_writes_a_folder_that_runs_as_it_is_and_keeps_what_is_there() {
    let sandbox = Sandbox::new("init");
    sandbox.tidegate(&["init", "shop", "--name", "shop"]).run().success();
    sandbox.tidegate(&["validate", "shop/pipelines"]).run().success();
    let run = sandbox.tidegate(&["run", "shop/pipelines/shop.yaml", "--output", "json"]).env("ROWS", "500").run();
    let run = run.success();
    assert_eq!((run.batches(), run.json()["pipeline"].as_str()), (vec![500], Some("shop")));
    assert!(sandbox.path().join("shop/lake/silver/orders/_delta_log").is_dir(), "paths start at the project");
    sandbox.write("shop/pipelines/shop.yaml", "mine");
    sandbox.tidegate(&["init", "shop", "--name", "shop"]).run().success();
    let kept = std::fs::read_to_string(sandbox.path().join("shop/pipelines/shop.yaml")).expect("the file");
    assert_eq!(kept, "mine");
}

#[test]
fn a_plan_shows_ranges_and_tables_and_writes_nothing() {
    let sandbox = examples("plan");
    let planned = sandbox.tidegate(&["plan", "pipelines/orders.yaml", "--output", "json"]).run().success();
    let json = planned.json();
    assert_eq!(json["sources"][0]["backlog"], 100_000);
    assert!(json["tables"][0]["ddl"].as_str().is_some_and(|ddl| ddl.contains("amount DECIMAL(18,2)")), "{json}");
    assert!(!sandbox.path().join("lake").exists() && !sandbox.path().join("checkpoints").exists());
}
