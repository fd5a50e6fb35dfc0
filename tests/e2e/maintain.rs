//! Maintenance in the running pipeline, and the commands `optimize` and `vacuum`: files stay few, batches stay quick, and
//! the tables are those of one large batch that nobody ever maintained.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::examples::examples;
use crate::support::{Sandbox, lake};

const FILE: &str = "pipelines/orders.yaml";

/// Records in one batch.
const ROWS: u64 = 20;

/// What is compared of each table: everything that does not depend on how the rows were cut into batches.
const TABLES: [(&str, &str); 4] = [
    ("bronze/orders", "SELECT order_id, amount, status, _partition, _offset FROM t"),
    ("silver/orders", "SELECT order_id, store_id, city, amount, status, updated_at, order_date FROM t"),
    ("gold/daily_revenue", "SELECT order_date, store_id, orders, revenue FROM t"),
    ("dlq/orders", "SELECT stage, t.\"partition\", t.\"offset\" FROM t"),
];

/// The demo in batches of `rows`, in the folder `lake`, maintained as `maintain` says.
fn pipeline(sandbox: &Sandbox, name: &str, rows: u64, maintain: &str) -> String {
    let text = std::fs::read_to_string(sandbox.path().join(FILE)).expect("the demo");
    let text = text
        .replace("max_rows: 25_000", &format!("max_rows: {rows}"))
        // Of a handful of rows, two bad ones are many.
        .replace(", fail_above: 10%", "")
        .replace("${LAKE:-./lake}", &format!("./{name}/lake"))
        .replace("${CHECKPOINTS:-./checkpoints}", &format!("./{name}/checkpoints"))
        .replace("version: 1\n", &format!("version: 1\nmaintain: {maintain}\n"));
    let file = format!("pipelines/{name}.yaml");
    sandbox.write(&file, &text);
    file
}

fn read(sandbox: &Sandbox, name: &str) -> Vec<(&'static str, Vec<String>)> {
    let folder = sandbox.path().join(name).join("lake");
    TABLES.iter().map(|(table, sql)| (*table, lake::lines(&folder.join(table), sql))).collect()
}

#[track_caller]
fn assert_equal(sandbox: &Sandbox, expected: &str, actual: &str) {
    for ((table, expected), (_, actual)) in read(sandbox, expected).iter().zip(&read(sandbox, actual)) {
        lake::assert_same(table, expected, actual);
    }
}

/// Live files of a table, from its log alone.
pub(super) fn live(table: &Path) -> BTreeSet<String> {
    let mut live = BTreeSet::new();
    for version in 0..=lake::version(table).unwrap_or(-1) {
        let text = std::fs::read_to_string(table.join(format!("_delta_log/{version:020}.json"))).expect("a commit");
        for line in text.lines() {
            let action: Value = serde_json::from_str(line).expect("JSON");
            if let Some(path) = action["remove"]["path"].as_str() {
                live.remove(path);
            }
            if let Some(path) = action["add"]["path"].as_str() {
                live.insert(path.to_owned());
            }
        }
    }
    live
}

/// The most live files of one partition.
fn fullest(files: &BTreeSet<String>) -> usize {
    let folder = |path: &String| path.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_owned());
    let folders: BTreeSet<String> = files.iter().map(folder).collect();
    folders.iter().map(|one| files.iter().filter(|path| folder(path) == *one).count()).max().unwrap_or(0)
}

fn median(mut numbers: Vec<u64>) -> u64 {
    numbers.sort_unstable();
    numbers.get(numbers.len() / 2).copied().unwrap_or(0)
}

/// An hour of a pipeline with a trigger of one second is 3,600 batches: all of them with `TIDEGATE_HOUR=1`.
#[test]
fn after_an_hour_of_small_batches_files_are_few_and_batches_as_quick_as_at_the_start() {
    let whole_hour = std::env::var_os("TIDEGATE_HOUR").is_some();
    let batches: u64 = if whole_hour { 3_600 } else { 300 };
    let sandbox = examples("hour");
    let total = (batches * ROWS).to_string();
    let once = pipeline(&sandbox, "once", 500_000, "{compact: off}");
    sandbox.tidegate(&["run", &once, "--output", "json"]).env("ROWS", &total).run().success();
    let often = pipeline(&sandbox, "often", ROWS, "{compact: auto}");
    let arguments = ["run", &often, "--output", "json", "--log", "tidegate=info", "--log-format", "json"];
    let running = sandbox.tidegate(&arguments).env("ROWS", &total).start();
    let run = running.finish(Duration::from_secs(3_600)).expect("an hour's batches within an hour").success();
    let events = run.stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let progress = events.filter_map(|event| serde_json::from_str::<Value>(event["progress"].as_str()?).ok());
    let times: Vec<u64> = progress.filter_map(|progress| progress["batchDuration"].as_u64()).collect();
    assert!(times.len() as u64 >= batches, "{} batches", times.len());
    let sample = times.len() / 10;
    let (first, last) = (median(times[..sample].to_vec()), median(times[times.len() - sample..].to_vec()));
    let merges = run.stderr.matches("small files merged").count();
    let outside = run.took.as_millis() as u64 - times.iter().sum::<u64>();
    println!(
        "{} batches: median {first} ms at the start, {last} ms at the end, slowest {} ms; {merges} merges; {outside} ms \
         outside batches ({} ms each)",
        times.len(),
        times.iter().max().unwrap_or(&0),
        outside / times.len() as u64
    );
    assert_equal(&sandbox, "once", "often");
    for (table, _) in TABLES {
        let files = live(&sandbox.path().join("often/lake").join(table));
        println!("  {table}: {} live files, {} in the fullest partition", files.len(), fullest(&files));
        assert!(fullest(&files) <= 40, "{table}: {} files in one partition", fullest(&files));
    }
    // Beside the rest of the suite the clock tells how loaded the machine is; alone it tells about batches.
    assert!(!whole_hour || last < 3 * first + 50, "batches slowed down from {first} ms to {last} ms");
}

#[test]
fn optimize_from_another_process_beside_a_running_pipeline_doubles_and_loses_no_row() {
    let sandbox = examples("beside");
    let total = (60 * ROWS).to_string();
    let once = pipeline(&sandbox, "once", 500_000, "{compact: off}");
    sandbox.tidegate(&["run", &once, "--output", "json"]).env("ROWS", &total).run().success();
    let live = pipeline(&sandbox, "live", ROWS, "{compact: auto}");
    let mut running = Some(sandbox.tidegate(&["run", &live, "--output", "json"]).env("ROWS", &total).start());
    let (mut merged, mut rounds) = (0, 0);
    while let Some(run) = running.take() {
        let done = sandbox.tidegate(&["optimize", &live, "--output", "json"]).env("ROWS", &total).run().success();
        let tables = done.json()["tables"].as_array().cloned().unwrap_or_default();
        merged += tables.iter().filter_map(|table| table["files_removed"].as_u64()).sum::<u64>();
        rounds += 1;
        running = match run.ended() {
            true => {
                run.finish(Duration::from_secs(1)).expect("it has ended").success();
                None
            }
            false => Some(run),
        };
    }
    println!("{merged} files merged in {rounds} rounds beside the run");
    assert!(merged > 0);
    assert_equal(&sandbox, "once", "live");
}

/// As the client of an object store does when a reply was lost. The answer to the second is "exists already".
#[test]
#[cfg(feature = "failpoints")]
fn a_merge_whose_commit_was_sent_twice_is_there_with_its_files() {
    let sandbox = examples("resent");
    let total = (12 * ROWS).to_string();
    let file = pipeline(&sandbox, "resent", ROWS, "{compact: off}");
    sandbox.tidegate(&["run", &file]).env("ROWS", &total).run().success();
    let before = read(&sandbox, "resent");
    let optimize = sandbox.tidegate(&["optimize", &file, "--output", "json"]).env("ROWS", &total);
    let done = optimize.env("TIDEGATE_FAIL", "log.put@*=resent").env("TIDEGATE_FAIL_REMOTE", "1").run().success();
    let tables = done.json()["tables"].as_array().expect("tables").clone();
    assert!(tables.iter().any(|table| table["files_removed"].as_u64() > Some(1)), "{}", done.report());
    assert_eq!(read(&sandbox, "resent"), before);
    let again = sandbox.tidegate(&["optimize", &file, "--output", "json"]).env("ROWS", &total).run().success().json();
    let tables = again["tables"].as_array().expect("tables");
    assert!(tables.iter().all(|table| table["files_removed"] == 0), "what was merged is merged: {again}");
    let more = (13 * ROWS).to_string();
    sandbox.tidegate(&["run", &file]).env("ROWS", &more).run().success();
}

#[test]
fn optimize_and_vacuum_say_what_they_would_do_and_do_it_when_told() {
    let sandbox = examples("by-hand");
    let total = (12 * ROWS).to_string();
    let file = pipeline(&sandbox, "hand", ROWS, "{compact: off}");
    let tidegate = |arguments: &[&str]| {
        let all = [arguments, &["--output", "json"]].concat();
        sandbox.tidegate(&all).env("ROWS", &total).run()
    };
    let never = tidegate(&["optimize", &file]).success();
    assert_eq!(never.json()["tables"], serde_json::json!([]));
    tidegate(&["run", &file]).success();
    let before = read(&sandbox, "hand");
    let silver = sandbox.path().join("hand/lake/silver/orders");
    let count = live(&silver).len() as u64;

    let table = |outcome: &Value| outcome["tables"].as_array().expect("tables")[0].clone();
    let only = ["--tables", "silver.orders"];
    let dry = tidegate(&[&["optimize", file.as_str(), "--dry-run"], &only[..]].concat()).success().json();
    assert_eq!((dry["dry_run"].as_bool(), table(&dry)["files_before"].as_u64()), (Some(true), Some(count)));
    assert_eq!(live(&silver).len() as u64, count);
    let done = tidegate(&[&["optimize", file.as_str()], &only[..]].concat()).success().json();
    assert_eq!(table(&done)["files_removed"], table(&dry)["files_removed"]);
    assert_eq!(table(&done)["files_after"].as_u64(), Some(live(&silver).len() as u64));
    assert_eq!(fullest(&live(&silver)), 1, "one file per day");

    let usage = tidegate(&["vacuum", &file, "--retain", "1h", "--yes"]).code(&[2]);
    usage.says("shorter than 7d").says("--force");
    tidegate(&["optimize", &file, "--tables", "silver.order"]).code(&[2]).says("silver.orders");
    tidegate(&["vacuum", &file, "--retain", "soon"]).code(&[2]);
    let young = tidegate(&[&["vacuum", file.as_str(), "--yes"], &only[..]].concat()).success().json();
    assert_eq!(table(&young)["expired"], 0, "nothing is a week old");
    let short = ["vacuum", file.as_str(), "--tables", "silver.orders", "--retain", "0s", "--force"];
    let dry = tidegate(&short).success().json();
    let would = table(&dry)["expired"].as_u64().expect("a number");
    assert!(would > 0 && dry["dry_run"] == true);
    let listed = || {
        let days = std::fs::read_dir(&silver).expect("the table").flatten().map(|day| day.path());
        days.filter_map(|day| Some(std::fs::read_dir(day).ok()?.flatten().count())).sum::<usize>()
    };
    let there = listed();
    let done = tidegate(&[&short[..], &["--yes"]].concat()).success().json();
    assert_eq!(table(&done)["expired"].as_u64(), Some(would));
    assert_eq!(there - listed(), would as usize);
    assert_eq!(read(&sandbox, "hand"), before);
    let more = (13 * ROWS).to_string();
    sandbox.tidegate(&["run", &file]).env("ROWS", &more).run().success();
}
