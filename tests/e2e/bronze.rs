//! A batch that was begun and whose records the source has let go is finished from the tables that hold them, exactly, or
//! refused with the reason. The real binary, on a real Kafka where retention is the subject.
//!
//! A crash between two tables is made by taking away what comes after it: the commit record and the newest commits of the
//! later tables. `TIDEGATE_KILLS` (default 4) and `TIDEGATE_SEED` make the random test longer or different.

#![allow(clippy::disallowed_methods, reason = "tests break files on purpose")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use crate::support::broker::{Broker, Record, broker};
use crate::support::lake;
use crate::support::oracle::{Tables, stored, versions};
use crate::support::orders::Orders;
use crate::support::pipeline::{FILE, Pipeline};
use crate::support::{Sandbox, number, seed};

const PARTITIONS: u32 = 3;
const BRONZE: &str = "bronze/orders";
const SILVER: &str = "silver/orders";
const GOLD: &str = "gold/daily_revenue";
const DEAD: &str = "dlq/orders";

/// A sandbox whose pipeline reads a topic of its own.
struct World {
    sandbox: Sandbox,
    broker: &'static Broker,
    topic: String,
    records: Vec<Record>,
}

impl World {
    /// A topic with `rows` orders, in batches of `max_rows`; `None` where there is no broker.
    fn new(test: &str, rows: u64, max_rows: u64) -> Option<Self> {
        let broker = broker(test)?;
        let topic = format!("{test}.v1");
        broker.create_topic(&topic, PARTITIONS as i32, &[]);
        let sandbox = Sandbox::new(test);
        Pipeline { brokers: &broker.address, topic: &topic, max_rows: Some(max_rows) }.write(&sandbox);
        println!("TIDEGATE_SEED={}", seed());
        let records: Vec<Record> =
            Orders::new(seed(), rows, PARTITIONS).take(rows as usize).map(Record::from).collect();
        broker.produce(&topic, records.iter().cloned());
        Some(World { sandbox, broker, topic, records })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sandbox.path().join(name)
    }

    fn lake(&self) -> PathBuf {
        self.path("lake")
    }

    /// Retention takes every record that any plan has named.
    fn expire(&self) {
        let plan = object(&self.sandbox, "offsets").expect("a plan").1;
        for (partition, range) in plan["sources"]["source"][&self.topic].as_object().expect("partitions") {
            let until = range[1].as_i64().expect("an offset");
            self.broker.expire(&self.topic, partition.parse().expect("a number"), until);
        }
    }

    fn skip_lost(&self) {
        let text = fs::read_to_string(self.path(FILE)).expect("the pipeline");
        self.sandbox.write(FILE, &text.replace("start: earliest", "start: earliest\n    on_data_loss: skip"));
    }

    #[track_caller]
    fn assert_tables(&self) {
        Tables::expected(&self.topic, &stored(self.records.clone())).assert_in(&self.lake());
    }
}

/// The newest object of a kind in the checkpoint log, with its path.
fn object(sandbox: &Sandbox, kind: &str) -> Option<(PathBuf, Value)> {
    let folder = sandbox.path().join("checkpoints/orders").join(kind);
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    let newest = paths.into_iter().max()?;
    let text = fs::read_to_string(&newest).expect("readable");
    Some((newest, serde_json::from_str(&text).expect("JSON")))
}

/// Takes back the end of the newest batch: its commit record, and the commits of these tables. Returns the record.
fn undo(sandbox: &Sandbox, tables: &[&str]) -> Value {
    let (path, record) = object(sandbox, "commits").expect("a commit record");
    fs::remove_file(path).expect("deletable");
    for table in tables {
        let folder = sandbox.path().join("lake").join(table);
        let version = lake::version(&folder).expect("a table");
        let commit = folder.join("_delta_log").join(format!("{version:020}.json"));
        let text = fs::read_to_string(&commit).expect("readable");
        let txn = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let carried: Vec<Value> = txn.filter_map(|action| Some(action.get("txn")?["version"].clone())).collect();
        assert_eq!(carried, [record["batch"].clone()], "the newest commit of {table} carries another batch");
        fs::remove_file(commit).expect("deletable");
    }
    record
}

#[test]
fn a_batch_that_kafka_has_expired_is_finished_from_bronze_wherever_it_was_interrupted() {
    let Some(mut world) = World::new("from-bronze", 1_200, 400) else { return };
    world.sandbox.drain(FILE).success();
    world.assert_tables();
    for interrupted in [vec![SILVER, GOLD], vec![GOLD], vec![]] {
        let was = undo(&world.sandbox, &interrupted);
        world.expire();
        let run = world.sandbox.drain(FILE).success().says("finished from Bronze");
        assert_eq!(run.batches(), [was["input_rows"].as_u64().expect("a number")], "{}", run.report());
        world.assert_tables();
        let now = object(&world.sandbox, "commits").expect("the batch is done").1;
        assert_eq!(now["replayed_from"], "bronze");
        for known in ["batch", "offsets", "input_rows", "dead_letters"] {
            assert_eq!(now[known], was[known], "{known} without {interrupted:?}");
        }
        for (rule, count) in was["expectations"].as_object().expect("rules").iter() {
            assert_eq!(now["expectations"][rule], *count, "{rule} without {interrupted:?}");
        }
    }
    // And on from there.
    let more: Vec<Record> = Orders::new(seed() + 1, 300, PARTITIONS).take(300).map(Record::from).collect();
    world.broker.produce(&world.topic, more.iter().cloned());
    world.records.extend(more);
    world.sandbox.drain(FILE).success();
    world.assert_tables();
}

#[test]
fn killed_when_the_first_batch_is_in_bronze_only_the_next_run_makes_silver_of_bronze() {
    let rows = 30_000;
    let Some(world) = World::new("bronze-only", rows, rows) else { return };
    let arguments = ["run", FILE, "--trigger", "available_now", "--output", "json"];
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let run = world.sandbox.tidegate(&arguments).start();
        while lake::version(&world.lake().join(BRONZE)).is_none_or(|version| version < 1) {
            assert!(Instant::now() < deadline, "no batch within two minutes\n{}", run.stderr());
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(run);
        let made = versions(&world.lake());
        assert_eq!(made[DEAD], Some(1), "what is set aside goes first");
        if made[SILVER].is_none_or(|version| version < 1) {
            break;
        }
        // It was too fast: once more from the start.
        world.sandbox.remove("lake");
        world.sandbox.remove("checkpoints");
    }
    world.expire();
    world.sandbox.drain(FILE).success().says("finished from Bronze");
    world.assert_tables();
}

#[test]
fn what_bronze_cannot_tell_exactly_is_refused_with_the_reason_and_nothing_changes() {
    let Some(world) = World::new("refused", 600, 300) else { return };
    world.sandbox.drain(FILE).success();
    let refused = |reasons: &[&str]| {
        world.expire();
        let before = versions(&world.lake());
        let mut run = world.sandbox.drain(FILE).code(&[66]).says("have expired");
        for reason in reasons {
            run = run.says(reason);
        }
        assert_eq!(versions(&world.lake()), before, "{}", run.report());
        run
    };
    undo(&world.sandbox, &[SILVER, GOLD, DEAD]);
    refused(&["dlq.orders does not have batch 1 yet", "only in the source"]);
    // What is set aside goes first, so that a crash never leaves this behind; an older release could.
    let bronze = world.lake().join(BRONZE);
    let version = lake::version(&bronze).expect("a table");
    fs::remove_file(bronze.join("_delta_log").join(format!("{version:020}.json"))).expect("deletable");
    let ordinary = refused(&[]);
    assert!(!ordinary.stderr.contains("the batch was begun"), "no table has it\n{}", ordinary.report());
    world.skip_lost();
    world.sandbox.drain(FILE).success();
}

#[test]
fn rows_that_others_took_out_of_bronze_are_not_passed_on_as_the_batch() {
    let Some(world) = World::new("tampered", 600, 300) else { return };
    world.sandbox.drain(FILE).success();
    undo(&world.sandbox, &[SILVER, GOLD]);
    delete(&world.lake().join(BRONZE), "_batch_id = 1 AND _partition = 0");
    world.expire();
    let before = versions(&world.lake());
    let run =
        world.sandbox.drain(FILE).code(&[66]).says("the batch was begun").says("bronze.orders was changed by others");
    assert_eq!(versions(&world.lake()), before, "{}", run.report());
    // Those who accept losses go on with what is left.
    world.skip_lost();
    world.sandbox.drain(FILE).success();
}

#[test]
fn to_skip_what_is_lost_does_not_cost_rows_that_bronze_has() {
    let Some(world) = World::new("skip-bronze", 600, 300) else { return };
    world.skip_lost();
    world.sandbox.drain(FILE).success();
    undo(&world.sandbox, &[SILVER, GOLD]);
    world.expire();
    world.sandbox.drain(FILE).success().says("finished from Bronze");
    world.assert_tables();
}

#[test]
fn retention_that_passes_while_a_batch_is_read_again_costs_nothing() {
    let Some(world) = World::new("passing", 60_000, 60_000) else { return };
    world.sandbox.drain(FILE).success();
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let (mut from_bronze, mut rounds, mut gone) = (0, 0, 0);
    let ends: Vec<i64> = (0..PARTITIONS as i32).map(|p| world.broker.watermarks(&world.topic, p).1).collect();
    while gone < 100 {
        undo(&world.sandbox, &[SILVER, GOLD]);
        let run = world.sandbox.tidegate(&["run", FILE, "--trigger", "available_now", "--output", "json"]).start();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !run.stderr().contains("begun by an earlier run") {
            assert!(Instant::now() < deadline, "it does not begin\n{}", run.stderr());
            std::thread::sleep(Duration::from_millis(1));
        }
        // From here on it reads.
        std::thread::sleep(Duration::from_millis(random.random_range(0..200)));
        gone += 20;
        for (partition, end) in ends.iter().enumerate() {
            world.broker.expire(&world.topic, partition as i32, end * gone / 100);
        }
        let run = run.finish(Duration::from_secs(120)).expect("it ends").success();
        from_bronze += u32::from(run.stderr.contains("finished from Bronze"));
        rounds += 1;
        world.assert_tables();
    }
    println!("{from_bronze} of {rounds} runs finished from Bronze");
    assert!(from_bronze > 0, "the last rounds began when records were gone");
}

#[test]
fn killed_at_random_moments_with_kafka_forgetting_what_bronze_holds_the_tables_equal_the_oracle() {
    let rows = 20_000;
    let Some(world) = World::new("forgetful", rows, rows / 40) else { return };
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let kills = number("TIDEGATE_KILLS").unwrap_or(4);
    let arguments = ["run", FILE, "--trigger", "available_now", "--output", "json"];
    let (mut killed, mut half_done, mut ended) = (0, 0, false);
    while killed < kills && !ended {
        let patience = Duration::from_millis(random.random_range(150..900));
        match world.sandbox.tidegate(&arguments).start().finish(patience) {
            None => killed += 1,
            Some(run) => {
                run.success();
                ended = true;
            }
        }
        let planned = object(&world.sandbox, "offsets").map(|(_, plan)| plan["batch"].as_i64());
        let done = object(&world.sandbox, "commits").map(|(_, record)| record["batch"].as_i64());
        if let Some(Some(planned)) = planned.filter(|planned| Some(*planned) != done)
            && [BRONZE, DEAD].iter().all(|table| carries(&world.lake().join(table), planned))
        {
            half_done += 1;
            world.expire();
        }
    }
    world.sandbox.drain(FILE).success();
    world.assert_tables();
    println!("{killed} kills, {half_done} of them in the middle of a batch that Kafka forgot");
}

/// The newest commit of the table carries the batch.
fn carries(table: &Path, batch: i64) -> bool {
    let Some(version) = lake::version(table) else { return false };
    let text = fs::read_to_string(table.join("_delta_log").join(format!("{version:020}.json"))).expect("readable");
    let actions = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    actions.into_iter().any(|action| action["txn"]["version"] == batch)
}

/// What somebody does by hand, with another library.
pub fn delete(table: &Path, predicate: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let url = url::Url::from_directory_path(table).expect("absolute");
        let table = deltalake::open_table(url).await.expect("a table");
        let (_, metrics) = table.delete().with_predicate(predicate).await.expect("deletable");
        assert_ne!(metrics.num_deleted_rows, Some(0), "nothing was deleted by {predicate}");
    });
}

/// Bronze of the file pipeline below.
struct Files {
    sandbox: Sandbox,
}

impl Files {
    /// Two files, two batches: the second has a column that the first lacks, a row that breaks a rule, and bad JSON.
    fn new(test: &str, bronze: &str) -> Files {
        let sandbox = Sandbox::new(test);
        sandbox.write("orders.yaml", &include_str!("bronze_files.yaml").replace("#BRONZE", bronze));
        sandbox.write("landing/a.ndjson", "{\"id\":\"a\",\"amount\":1,\"early\":\"x\"}\n{\"id\":\"b\",\"amount\":2}\n");
        sandbox.drain("orders.yaml").success();
        let second = "{\"id\":\"b\",\"amount\":3,\"extra\":\"y\"}\nnot json\n{\"id\":\"c\",\"amount\":-1}\n{\"id\":\"d\",\"amount\":5}\n";
        sandbox.write("landing/b.ndjson", second);
        sandbox.drain("orders.yaml").success();
        Files { sandbox }
    }

    fn contents(&self) -> Vec<Vec<String>> {
        let lines = |name: &str, sql: &str| lake::lines(&self.sandbox.path().join("lake").join(name), sql);
        vec![
            lines("bronze/orders", "SELECT id, amount, _batch_id FROM t"),
            lines("silver/orders", "SELECT id, amount FROM t"),
            lines("silver/copy", "SELECT id, amount, extra, early, _batch_id, _offset FROM t"),
            lines("dlq/orders", "SELECT stage, rule, batch_id, value FROM t"),
        ]
    }
}

#[test]
fn a_file_that_was_deleted_too_early_is_finished_from_bronze_with_its_new_columns() {
    let files = Files::new("files-bronze", "schema_drift: evolve");
    let before = files.contents();
    assert_eq!(before[1], ["a|1", "b|3", "d|5"]);
    undo(&files.sandbox, &["silver/copy", "silver/orders"]);
    files.sandbox.remove("landing/b.ndjson");
    // Files have no retention: the next batch asks for the file again.
    files.sandbox.drain("orders.yaml").code(&[66]).says("finished from Bronze").says("put the file back");
    assert_eq!(files.contents(), before);
}

#[test]
fn a_bronze_that_drops_the_batch_of_its_rows_cannot_feed_silver_but_needs_not_to_when_all_tables_are_done() {
    let sql = "schema_drift: ignore #";
    let files = Files::new("no-batch-id", sql);
    let text = fs::read_to_string(files.sandbox.path().join("orders.yaml")).expect("the pipeline");
    drop(files);
    let sandbox = Sandbox::new("no-batch-id-2");
    let plain = "from: source\n    sql: SELECT id, amount, _topic, _partition, _offset FROM batch\n    write: append";
    let text = text.replacen("from: source\n    write: append", plain, 1);
    let copy = text.find("  silver.copy").expect("it has one");
    let rest = text.find("  silver.orders").expect("it has it");
    sandbox.write("orders.yaml", &format!("{}{}", &text[..copy], &text[rest..]));
    sandbox.write("landing/a.ndjson", "{\"id\":\"a\",\"amount\":1}\n");
    sandbox.drain("orders.yaml").success();
    undo(&sandbox, &["silver/orders"]);
    sandbox.remove("landing/a.ndjson");
    sandbox.drain("orders.yaml").code(&[66]).says("bronze.orders does not keep its rows as they came");
    sandbox.write("landing/a.ndjson", "{\"id\":\"a\",\"amount\":1}\n");
    sandbox.drain("orders.yaml").success();
    undo(&sandbox, &[]);
    sandbox.remove("landing/a.ndjson");
    sandbox.drain("orders.yaml").code(&[66]).says("finished from Bronze");
    assert_eq!(lake::lines(&sandbox.path().join("lake/silver/orders"), "SELECT id, amount FROM t"), ["a|1"]);
}

/// Orders on the left, payments on the right, of files each; #RIGHT is what stands between.
const JOINED: &str = r#"version: 1
name: orders
lake: ./lake
checkpoints: ./checkpoints
sources:
  orders:
    files: {path: orders, pattern: "*.ndjson"}
    format: json
    schema: {order_id: string, at: timestamp, n: long}
    event_time: at
  payments:
    files: {path: payments, pattern: "*.ndjson"}
    format: json
    schema: {order_id: string, at: timestamp, n: long}
    event_time: at
tables:
  bronze.orders:
    from: orders
    write: append
  bronze.payments:
    from: payments
    sql: SELECT order_id, at, n#COORDINATES FROM batch
    write: append
  silver.matches:
    join: {left: bronze.orders, right: #RIGHT, on: order_id, within: 10m}
    watermark: {delay: 5m}
    sql: SELECT order_id, n, payments_n FROM batch
    write: append
dead_letters: {table: dlq.orders}
"#;

/// Two batches; the payment of the second is of an order of the first, its order waits.
struct Sides {
    sandbox: Sandbox,
}

impl Sides {
    fn new(test: &str, right: &str, coordinates: &str) -> Sides {
        let sandbox = Sandbox::new(test);
        sandbox.write("orders.yaml", &JOINED.replace("#RIGHT", right).replace("#COORDINATES", coordinates));
        let sides = Sides { sandbox };
        sides.land("orders/a", "one", 0, 1);
        sides.land("payments/a", "none", 0, 2);
        sides.sandbox.drain("orders.yaml").success();
        sides.land("orders/b", "two", 1, 3);
        sides.land("payments/b", "one", 1, 4);
        sides.sandbox.drain("orders.yaml").success();
        assert_eq!(sides.matches(), ["one|1|4"]);
        sides
    }

    fn land(&self, file: &str, order: &str, minute: u32, n: u32) {
        let line = format!("{{\"order_id\":\"{order}\",\"at\":\"2026-03-17T00:{minute:02}:00Z\",\"n\":{n}}}\n");
        self.sandbox.write(&format!("{file}.ndjson"), &line);
    }

    fn matches(&self) -> Vec<String> {
        lake::lines(&self.sandbox.path().join("lake/silver/matches"), "SELECT order_id, n, payments_n FROM t")
    }

    /// The payments of the second batch are gone, and without them it cannot be done; with them nothing is missing.
    fn refused_until_they_are_back(&self, reason: &str) {
        self.sandbox.remove("payments/b.ndjson");
        let run = self.sandbox.drain("orders.yaml").code(&[66]).says("the batch was begun").says(reason);
        assert!(self.matches().is_empty(), "{}", run.report());
        self.land("payments/b", "one", 1, 4);
        self.sandbox.drain("orders.yaml").success();
        assert_eq!(self.matches(), ["one|1|4"]);
    }

    /// A payment for the order of the second batch, an order for its payment.
    fn go_on(&self) {
        self.land("orders/c", "one", 2, 5);
        self.land("payments/c", "two", 2, 6);
        self.sandbox.drain("orders.yaml").success();
        assert_eq!(self.matches(), ["one|1|4", "one|5|4", "two|3|6"]);
    }
}

#[test]
fn a_join_without_the_batch_is_not_finished_without_the_records_of_its_right_side() {
    let sides = Sides::new("join-right", "payments", "");
    undo(&sides.sandbox, &["silver/matches"]);
    sides.refused_until_they_are_back("silver.matches does not have batch 1 yet");
    sides.go_on();
}

#[test]
fn a_join_without_the_batch_needs_the_rows_of_its_right_side_from_the_table_that_has_them() {
    let sides = Sides::new("join-right-table", "bronze.payments", "");
    undo(&sides.sandbox, &["silver/matches"]);
    sides.refused_until_they_are_back("bronze.payments does not keep its rows as they came");
    sides.go_on();
    let kept = Sides::new("join-right-kept", "bronze.payments", ", _topic, _partition, _offset, _batch_id");
    undo(&kept.sandbox, &["silver/matches"]);
    kept.sandbox.remove("payments/b.ndjson");
    kept.sandbox.drain("orders.yaml").code(&[66]).says("finished from Bronze").says("put the file back");
    assert_eq!(kept.matches(), ["one|1|4"]);
    kept.land("payments/b", "one", 1, 4);
    kept.go_on();
}

#[test]
fn a_join_that_has_the_batch_remembers_the_rows_of_a_side_that_nobody_can_give_back() {
    for (test, right) in [("join-done", "payments"), ("join-done-table", "bronze.payments")] {
        let sides = Sides::new(test, right, "");
        undo(&sides.sandbox, &[]);
        sides.sandbox.remove("payments/b.ndjson");
        sides.sandbox.drain("orders.yaml").code(&[66]).says("finished from Bronze").says("put the file back");
        assert_eq!(sides.matches(), ["one|1|4"]);
        sides.land("payments/b", "one", 1, 4);
        sides.go_on();
    }
}
