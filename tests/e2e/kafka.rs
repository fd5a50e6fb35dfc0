//! The promise, end to end: the real binary on a real Apache Kafka against the oracle.
//!
//! `TIDEGATE_E2E_ROWS` (default 100 000), `TIDEGATE_KILLS` (default 5) and `TIDEGATE_SEED` make the same tests longer or
//! different. Every number that a random choice hangs on is printed.

use std::path::PathBuf;
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::support::broker::{Broker, Record, broker, free_port};
use crate::support::lake;
use crate::support::oracle::{Stored, Tables, stored, versions};
use crate::support::orders::Orders;
use crate::support::pipeline::{FILE, Pipeline};
use crate::support::{Sandbox, number, seed};

const PARTITIONS: u32 = 4;

/// A sandbox whose pipeline reads a topic of its own.
pub(crate) struct World {
    pub(crate) sandbox: Sandbox,
    pub(crate) broker: &'static Broker,
    pub(crate) topic: String,
}

impl World {
    /// An empty topic named after the test; `None` where there is no broker.
    pub(crate) fn new(test: &str) -> Option<Self> {
        Self::with_topic(test, PARTITIONS, &[])
    }

    pub(crate) fn with_topic(test: &str, partitions: u32, settings: &[(&str, &str)]) -> Option<Self> {
        let broker = broker(test)?;
        let topic = format!("{test}.v1");
        broker.create_topic(&topic, i32::try_from(partitions).expect("few"), settings);
        let world = World { sandbox: Sandbox::new(test), broker, topic };
        world.pipeline(None);
        Some(world)
    }

    pub(crate) fn pipeline(&self, max_rows: Option<u64>) {
        Pipeline { brokers: &self.broker.address, topic: &self.topic, max_rows }.write(&self.sandbox);
    }

    pub(crate) fn lake(&self) -> PathBuf {
        self.sandbox.path().join("lake")
    }

    pub(crate) fn produce(&self, records: &[Record]) {
        self.broker.produce(&self.topic, records.iter().cloned());
    }

    /// A new lake and a new checkpoint.
    fn forget(&self) {
        self.sandbox.remove("lake");
        self.sandbox.remove("checkpoints");
    }

    #[track_caller]
    pub(crate) fn assert_tables(&self, records: &[Stored]) {
        Tables::expected(&self.topic, records).assert_in(&self.lake());
    }
}

fn rows() -> u64 {
    number("TIDEGATE_E2E_ROWS").unwrap_or(100_000)
}

/// Orders of this run's seed.
pub(crate) fn orders(rows: u64) -> Orders {
    let seed = seed();
    println!("TIDEGATE_SEED={seed} TIDEGATE_E2E_ROWS={rows}");
    Orders::new(seed, rows, PARTITIONS)
}

pub(crate) fn take(orders: &mut Orders, count: u64) -> Vec<Record> {
    orders.take(usize::try_from(count).expect("a count of rows")).map(Record::from).collect()
}

/// One good order that no generator makes.
pub(crate) fn order(id: &str, quantity: i64, updated_at: &str) -> Vec<u8> {
    format!(
        r#"{{"order_id":"{id}","store_id":"s-01","amount":"10.00","quantity":{quantity},"status":"PAID","updated_at":"{updated_at}","op":"u"}}"#
    )
    .into_bytes()
}

/// `count` orders in partition `partition`, named after `prefix`.
pub(crate) fn named(prefix: &str, partition: i32, count: usize) -> Vec<Record> {
    let record =
        |n: usize| Record { partition, ..Record::of(order(&format!("{prefix}-{n}"), 1, "2026-03-02T10:00:00Z")) };
    (0..count).map(record).collect()
}

#[test]
fn all_four_tables_equal_the_oracle_and_only_new_rows_are_read_next() {
    let Some(world) = World::new("oracle") else { return };
    let rows = rows();
    let mut stream = orders(rows);
    let mut records = take(&mut stream, rows);
    world.produce(&records);
    if rows <= 200_000 {
        // Several batches even in a short test; the long one shows the default settings.
        world.pipeline(Some(rows / 5));
    }

    let first = world.sandbox.drain(FILE).success();
    assert_eq!(first.json()["status"], "ok", "{}", first.report());
    assert_eq!(first.batches().iter().sum::<u64>(), rows, "{}", first.report());
    world.assert_tables(&stored(records.clone()));

    let before = versions(&world.lake());
    let idle = world.sandbox.drain(FILE).success();
    assert_eq!(idle.json()["status"], "no_data", "{}", idle.report());
    assert_eq!(versions(&world.lake()), before, "a run with nothing to do committed something\n{}", idle.report());

    let more = take(&mut stream, rows / 10);
    world.produce(&more);
    let next = world.sandbox.drain(FILE).success();
    assert_eq!(next.batches().iter().sum::<u64>(), rows / 10, "{}", next.report());
    records.extend(more);
    world.assert_tables(&stored(records));
}

#[test]
fn one_batch_seven_and_fifty_give_the_same_silver_and_gold() {
    let Some(world) = World::new("batches") else { return };
    let rows = rows();
    let records = take(&mut orders(rows), rows);
    world.produce(&records);
    let expected = Tables::expected(&world.topic, &stored(records));
    for batches in [1, 7, 50] {
        world.forget();
        world.pipeline(Some(rows.div_ceil(batches)));
        let run = world.sandbox.drain(FILE).success();
        let made = run.batches().len() as u64;
        // Shares of partitions are whole rows, so that the last batch may be a crumb.
        assert!((batches..=batches + 2).contains(&made), "{made} batches instead of {batches}\n{}", run.report());
        expected.assert_in(&world.lake());
    }
}

#[test]
fn killed_at_random_moments_and_restarted_the_tables_equal_the_oracle() {
    let Some(world) = World::new("killed") else { return };
    let (rows, kills) = (rows(), number("TIDEGATE_KILLS").unwrap_or(5));
    let records = take(&mut orders(rows), rows);
    world.produce(&records);
    let expected = Tables::expected(&world.topic, &stored(records));
    world.pipeline(Some(rows / 20));
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let arguments = ["run", FILE, "--trigger", "available_now", "--output", "json"];
    let (mut killed, mut completed) = (0, 0);
    while killed < kills {
        let patience = Duration::from_millis(random.random_range(20..1_500));
        match world.sandbox.tidegate(&arguments).start().finish(patience) {
            None => {
                killed += 1;
                println!("kill {killed} after {patience:?}, versions {:?}", versions(&world.lake()));
            }
            // The load was over before enough kills: it is checked, and another one begins.
            Some(run) => {
                completed += 1;
                run.success();
                expected.assert_in(&world.lake());
                world.forget();
            }
        }
    }
    world.sandbox.drain(FILE).success();
    expected.assert_in(&world.lake());
    println!("{killed} kills during {} loads", completed + 1);
    let before = versions(&world.lake());
    world.sandbox.drain(FILE).success();
    assert_eq!(versions(&world.lake()), before, "a run after recovery committed something");
}

#[test]
fn a_termination_signal_ends_the_run_after_its_batch() {
    let Some(world) = World::new("terminated") else { return };
    let records = take(&mut orders(50_000), 50_000);
    world.produce(&records);
    world.pipeline(Some(1_000));
    let run = world.sandbox.tidegate(&["run", FILE, "--trigger", "available_now", "--output", "json"]).start();
    let bronze = world.lake().join("bronze/orders");
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while lake::version(&bronze).is_none_or(|version| version < 2) {
        assert!(std::time::Instant::now() < deadline, "no batch within a minute\n{}", run.stderr());
        std::thread::sleep(Duration::from_millis(5));
    }
    run.signal("TERM");
    let ended = run.finish(Duration::from_secs(60)).expect("a minute is enough for a batch of 1 000 rows").success();
    let done: u64 = ended.batches().iter().sum();
    assert!(done < 50_000, "the signal came too late to prove anything\n{}", ended.report());
    let rest = world.sandbox.drain(FILE).success();
    assert_eq!(done + rest.batches().iter().sum::<u64>(), 50_000, "{}", rest.report());
    world.assert_tables(&stored(records));
}

#[test]
fn rows_of_aborted_transactions_never_appear_and_the_run_ends() {
    let Some(world) = World::with_topic("aborted", 2, &[]) else { return };
    let producer = world.broker.transactions("tidegate-test");
    let both = |prefix: &str, count: usize| [named(prefix, 0, count), named(prefix, 1, count)].concat();
    producer.commit(&world.topic, both("first", 50));
    producer.abort(&world.topic, both("aborted", 300));
    producer.commit(&world.topic, both("second", 10));
    // Nothing but holes between the last visible row and the end of both partitions.
    producer.abort(&world.topic, both("trailing", 40));
    // A marker that comes after the first run has looked for the end would be news to the second.
    world.broker.settle("tidegate-test");
    for max_rows in [None, Some(30)] {
        world.forget();
        world.pipeline(max_rows);
        world.sandbox.drain(FILE).success();
        // Named the same in both partitions: one row per key.
        let silver = lake::lines(&world.lake().join("silver/orders"), "SELECT order_id FROM t");
        assert_eq!(silver.len(), 60, "{silver:?}");
        assert!(!silver.iter().any(|id| id.starts_with("aborted") || id.starts_with("trailing")), "{silver:?}");
        let bronze = lake::lines(&world.lake().join("bronze/orders"), "SELECT count(*) FROM t");
        assert_eq!(bronze, ["120"]);
        let before = versions(&world.lake());
        let idle = world.sandbox.drain(FILE).success();
        assert_eq!(idle.json()["status"], "no_data", "holes are not data\n{}", idle.report());
        assert_eq!(versions(&world.lake()), before);
    }
}

#[test]
fn an_open_transaction_is_waited_for_by_a_later_run() {
    let Some(world) = World::with_topic("open", 1, &[]) else { return };
    let producer = world.broker.transactions("tidegate-open");
    producer.commit(&world.topic, named("first", 0, 5));
    producer.begin();
    producer.send(&world.topic, named("open", 0, 5)).done();
    let first = world.sandbox.drain(FILE).success();
    let count = || lake::lines(&world.lake().join("silver/orders"), "SELECT count(*) FROM t");
    assert_eq!(count(), ["5"], "{}", first.report());
    producer.finish();
    world.broker.settle("tidegate-open");
    world.sandbox.drain(FILE).success();
    assert_eq!(count(), ["10"]);
}

#[test]
fn holes_that_compaction_left_do_not_stop_a_run() {
    let settings = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.001"),
        ("delete.retention.ms", "0"),
    ];
    let Some(world) = World::with_topic("compacted", 1, &settings) else { return };
    // Segments roll by the time in the records, so it goes on from one round to the next.
    let keyed = |n: usize| {
        let record = Record::of(order("compacted", 1, &format!("2026-03-02T10:00:{:02}Z", n % 60)));
        Record { key: Some(b"the same".to_vec()), timestamp: record.timestamp + n as i64 * 1_000, ..record }
    };
    let produced = 60;
    // The active segment is never compacted.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let mut sent = 0;
    let left = loop {
        world.produce(&(sent..sent + produced).map(keyed).collect::<Vec<_>>());
        sent += produced;
        std::thread::sleep(Duration::from_millis(700));
        world.forget();
        let run = world.sandbox.drain(FILE).success();
        let left = run.batches().iter().sum::<u64>() as usize;
        let rows = lake::lines(&world.lake().join("bronze/orders"), "SELECT count(*) FROM t");
        let (_, end) = world.broker.watermarks(&world.topic, 0);
        assert_eq!(end, sent as i64);
        if rows != [sent.to_string()] {
            break (left, rows);
        }
        assert!(std::time::Instant::now() < deadline, "the broker compacted nothing within a minute");
    };
    println!("{sent} produced, {left:?} left by compaction");
    let silver = lake::lines(&world.lake().join("silver/orders"), "SELECT order_id, updated_at FROM t");
    assert_eq!(silver, ["compacted|1772445659000000"]);
}

#[test]
fn a_broker_that_is_down_is_named_and_the_exit_code_says_retry() {
    let sandbox = Sandbox::new("down");
    // Nobody listens there, and no outgoing connection of a test is given it.
    let address = format!("127.0.0.1:{}", free_port(8));
    Pipeline { brokers: &address, topic: "orders.v1", max_rows: None }.write(&sandbox);
    sandbox.drain(FILE).code(&[69]).says(&address);
    assert!(!sandbox.path().join("lake").join("bronze").exists(), "a table was made without a row to put in it");
}

#[test]
fn a_missing_topic_is_named_beside_the_ones_that_exist() {
    let Some(world) = World::new("missing") else { return };
    Pipeline { brokers: &world.broker.address, topic: "mising.v1", max_rows: None }.write(&world.sandbox);
    world.sandbox.drain(FILE).code(&[69, 78]).says("mising.v1").says(&world.topic);
}

#[test]
fn expired_offsets_stop_the_run_and_change_nothing() {
    let Some(world) = World::with_topic("expired", 1, &[]) else { return };
    world.produce(&named("read", 0, 100));
    world.sandbox.drain(FILE).success();
    world.produce(&named("lost", 0, 100));
    world.broker.expire(&world.topic, 0, 150);
    let before = versions(&world.lake());
    world.sandbox.drain(FILE).code(&[66]).says(&world.topic);
    assert_eq!(versions(&world.lake()), before);
}

#[test]
fn a_topic_that_was_created_again_stops_the_run_and_changes_nothing() {
    let Some(world) = World::with_topic("recreated", 1, &[]) else { return };
    world.produce(&named("old", 0, 100));
    world.sandbox.drain(FILE).success();
    world.broker.delete_topic(&world.topic);
    world.broker.create_topic(&world.topic, 1, &[]);
    world.produce(&named("new", 0, 10));
    let before = versions(&world.lake());
    world.sandbox.drain(FILE).code(&[66]).says(&world.topic);
    assert_eq!(versions(&world.lake()), before);
}

#[test]
fn each_bad_record_is_one_dead_letter_with_its_original_bytes() {
    let Some(world) = World::with_topic("bad", 1, &[]) else { return };
    let unterminated = |size: usize| format!("{{\"order_id\":\"{}", "x".repeat(size)).into_bytes();
    let deep = |open: &str, close: &str, depth: usize| {
        let nested = format!("{}1{}", open.repeat(depth), close.repeat(depth));
        format!(r#"{{"order_id":"deep","quantity":1,"updated_at":"2026-03-02T10:00:00Z","deep":{nested}}}"#)
            .into_bytes()
    };
    let mut invalid = order("utf-8", 1, "2026-03-02T10:00:00Z");
    invalid[15] = 0xff;
    let bad: Vec<Vec<u8>> = vec![
        unterminated(20_000_000),
        invalid,
        deep("[", "]", 100_000),
        deep("{\"a\":", "}", 100_000),
        order("too-large", 99_999_999_999_999, "2026-03-02T10:00:00Z"),
        order("float", 1, "2026-03-02T10:00:00Z").iter().map(|b| if *b == b'1' { b'e' } else { *b }).collect(),
        Vec::new(),
        b"{".to_vec(),
        b"null".to_vec(),
        [order("two", 1, "2026-03-02T10:00:00Z"), order("objects", 1, "2026-03-02T10:00:00Z")].concat(),
    ];
    // A good record after each bad one: a bad one must not cost its neighbour.
    let good = |n: usize| Record::of(order(&format!("good-{n}"), 1, "2026-03-02T10:00:00Z"));
    let records: Vec<Record> = bad.iter().enumerate().flat_map(|(n, bad)| [Record::of(bad.clone()), good(n)]).collect();
    world.produce(&records);
    world.sandbox.drain(FILE).success();
    let tables = Tables::expected(&world.topic, &stored(records));
    assert_eq!((tables.dead.len(), tables.silver.len()), (bad.len(), bad.len()), "the oracle itself");
    tables.assert_in(&world.lake());
}
