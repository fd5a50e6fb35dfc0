//! Days read from Kafka again: bronze gets back what it lost and what an earlier file could not decode, and nothing that it
//! has is lost. On a real broker; what tables must hold is computed from what was produced.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::shop::day;
use crate::e2e::bronze::delete;
use crate::support::broker::{Broker, Record, broker};
use crate::support::lake::{self, assert_same};
use crate::support::sandbox::{Outcome, Running};
use crate::support::{CONTENT, Sandbox, number};

const FILE: &str = "shop.yaml";
const PARTITIONS: i32 = 2;
const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

/// One record, and where it is.
#[derive(Debug, Clone)]
struct Sale {
    partition: i32,
    offset: i64,
    id: String,
    store: String,
    amount: i64,
    /// Milliseconds; of the event and of the record.
    at: Option<i64>,
    written: i64,
    is_delete: bool,
    /// It has a field that the schema does not know.
    is_odd: bool,
}

impl Sale {
    fn record(&self) -> Record {
        let at = self.at.and_then(DateTime::from_timestamp_millis);
        let at = at.map(|at| at.to_rfc3339_opts(SecondsFormat::Millis, true));
        let op = if self.is_delete { "d" } else { "u" };
        let mut value =
            serde_json::json!({"id": self.id, "store": self.store, "amount": self.amount, "at": at, "op": op});
        if self.is_odd {
            value["note"] = "new".into();
        }
        Record { partition: self.partition, key: None, value: Some(value.to_string().into()), timestamp: self.written }
    }

    fn is_of(&self, number: u32) -> bool {
        let (start, end) = day(number);
        self.at.is_some_and(|at| (start.timestamp_millis()..end.timestamp_millis()).contains(&at))
    }

    /// Its record was written days after it happened.
    fn is_far(&self) -> bool {
        self.at.is_some_and(|at| self.written - at > 24 * HOUR)
    }
}

struct World {
    broker: &'static Broker,
    topic: String,
    sandbox: Sandbox,
    /// Of what is sold. Tests need sales of certain days that were written much later, so it is the same every day.
    random: ChaCha8Rng,
    sales: Vec<Sale>,
    ends: BTreeMap<i32, i64>,
}

impl World {
    /// Six days of sales, read by the live run. `drift` is what the file says of unknown fields.
    fn new(test: &str, sales: usize, drift: &str) -> Option<World> {
        let broker = broker(test)?;
        let topic = format!("{test}.v1");
        broker.create_topic(&topic, PARTITIONS, &[]);
        let sandbox = Sandbox::new(test);
        let source = format!("kafka: {{brokers: \"{}\", topics: [{topic}]}}", broker.address);
        let yaml = include_str!("../backfill.yaml").replace("FACTOR", "1").replace("LEAST", "0");
        let yaml = yaml.replace("files: {path: landing, pattern: \"*.ndjson\"}", &source);
        sandbox.write(FILE, &yaml.replace("schema_drift: ignore", &format!("schema_drift: {drift}")));
        let random = ChaCha8Rng::seed_from_u64(CONTENT);
        let mut world = World { broker, topic, sandbox, random, sales: Vec::new(), ends: BTreeMap::new() };
        world.produce(sales, 15, 21);
        world.live().success();
        Some(world)
    }

    /// Sales from one day to another in the order in which they are written: a little after they happen, some much later.
    fn produce(&mut self, count: usize, from: u32, until: u32) {
        let (first, last) = (day(from).0.timestamp_millis(), day(until).0.timestamp_millis());
        let mut written: Vec<i64> = (0..count).map(|_| self.random.random_range(first..last)).collect();
        written.sort_unstable();
        for written in written {
            let late = match self.random.random_range(0..25) {
                0 => self.random.random_range(26 * HOUR..50 * HOUR),
                _ => self.random.random_range(0..30 * MINUTE),
            };
            let at = (written - late).max(day(15).0.timestamp_millis());
            let partition = self.random.random_range(0..PARTITIONS);
            let end = self.ends.entry(partition).or_default();
            self.sales.push(Sale {
                partition,
                offset: *end,
                id: format!("k-{:03}", self.random.random_range(0..150)),
                store: format!("s-{}", self.random.random_range(0..4)),
                amount: self.random.random_range(-1..30),
                at: (!self.random.random_ratio(1, 40)).then_some(at),
                written,
                is_delete: self.random.random_ratio(1, 10),
                is_odd: self.random.random_ratio(1, 6),
            });
            *end += 1;
        }
        let new = self.sales[self.sales.len() - count..].iter().map(Sale::record);
        self.broker.produce(&self.topic, new.collect::<Vec<_>>());
    }

    fn table(&self, name: &str) -> PathBuf {
        self.sandbox.path().join("lake").join(name)
    }

    fn live(&self) -> Outcome {
        self.sandbox.drain(FILE)
    }

    fn start(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Running {
        let all = ["backfill", FILE, "--source", "kafka", "--output", "json"];
        let all: Vec<&str> = all.iter().chain(arguments).copied().collect();
        let command = self.sandbox.tidegate(&all);
        variables.iter().fold(command, |command, (name, value)| command.env(name, value)).start()
    }

    fn backfill(&self, arguments: &[&str]) -> Outcome {
        self.start(arguments, &[]).finish(Duration::from_secs(300)).expect("it ends")
    }

    fn replace(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.sandbox.path().join(FILE)).expect("the pipeline");
        assert!(text.contains(from), "the pipeline has no {from:?}");
        self.sandbox.write(FILE, &text.replace(from, to));
    }

    /// Which record each row of bronze is of, its batch, and when it came.
    fn came(&self) -> BTreeSet<String> {
        let sql = "SELECT \"_partition\", \"_offset\", \"_batch_id\", \"_ingested_at\", \"_ingest_date\" FROM t";
        lake::lines(&self.table("bronze/sales"), sql).into_iter().collect()
    }

    fn bronze(&self) -> Option<i64> {
        lake::version(&self.table("bronze/sales"))
    }

    /// The live log, as it is on disk.
    fn log(&self) -> Vec<BTreeMap<String, Value>> {
        let log = self.sandbox.path().join("checkpoints/shop");
        ["offsets", "commits"].map(|folder| super::objects(&log.join(folder))).to_vec()
    }

    /// Every table holds what the sales say; those that are `gone` are in none of the tables derived from bronze.
    #[track_caller]
    fn assert_tables(&self, gone: impl Fn(&Sale) -> bool) {
        let (mut bronze, mut log) = (Vec::new(), Vec::new());
        let mut newest: BTreeMap<&str, &Sale> = BTreeMap::new();
        let rank = |sale: &Sale| (sale.at, sale.partition, sale.offset);
        let micros = |sale: &Sale| sale.at.map_or(lake::NULL.to_string(), |at| (at * 1_000).to_string());
        for sale in self.sales.iter().filter(|sale| !gone(sale)) {
            let Sale { partition, offset, id, amount, .. } = sale;
            bronze.push(format!("{partition}|{offset}|{id}|{amount}|{}", micros(sale)));
            if *amount > 0 {
                log.push(format!("{id}|{amount}|{}", micros(sale)));
            }
            if *amount > 0 || sale.is_delete {
                let best = newest.entry(id).or_insert(sale);
                *best = if rank(best) < rank(sale) { sale } else { best };
            }
        }
        let (mut silver, mut groups) = (Vec::new(), BTreeMap::<(Option<i64>, &str), (i64, i64)>::new());
        for sale in newest.values().filter(|sale| !sale.is_delete) {
            silver.push(format!("{}|{}|{}|{}", sale.id, sale.store, sale.amount, micros(sale)));
            let group = groups.entry((sale.at.map(|at| at.div_euclid(24 * HOUR)), &sale.store)).or_default();
            *group = (group.0 + 1, group.1 + sale.amount);
        }
        let show = |day: Option<i64>| day.map_or(lake::NULL.to_string(), |day| day.to_string());
        let daily = groups.iter().map(|((day, store), (n, sum))| format!("{}|{store}|{n}|{sum}", show(*day))).collect();
        let is = |name: &str, sql: &str, mut expected: Vec<String>| {
            expected.sort_unstable();
            assert_same(name, &expected, &lake::lines(&self.table(name), sql));
        };
        is("bronze/sales", "SELECT \"_partition\", \"_offset\", id, amount, at FROM t", bronze);
        is("silver/log", "SELECT id, amount, at FROM t", log);
        is("silver/sales", "SELECT id, store, amount, at FROM t", silver);
        is("gold/daily", "SELECT day, store, sales, total FROM t", daily);
    }
}

/// Times of a day, for SQL.
fn within(number: u32) -> String {
    let (start, end) = day(number);
    let text = |at: DateTime<chrono::Utc>| at.to_rfc3339_opts(SecondsFormat::Secs, true);
    format!("at >= '{}' AND at < '{}'", text(start), text(end))
}

fn nothing(_: &Sale) -> bool {
    false
}

#[test]
fn rows_that_bronze_lost_come_back_and_rows_whose_records_are_elsewhere_stay() {
    let Some(world) = World::new("backfill-kafka", 600, "ignore") else { return };
    world.assert_tables(nothing);
    let (came, log) = (world.came(), world.log());
    let far = world.sales.iter().filter(|sale| sale.is_of(17) && sale.is_far()).count();
    assert!(far > 0, "no row of the day has its record elsewhere");
    // Of the day, rows of all kinds; their records written soon after.
    let is_lost = |sale: &Sale| sale.is_of(17) && !sale.is_far() && sale.amount % 3 == 0;
    let near = world.sales.iter().filter(|sale| is_lost(sale));
    let places: Vec<String> =
        near.map(|s| format!("(\"_partition\" = {} AND \"_offset\" = {})", s.partition, s.offset)).collect();
    delete(&world.table("bronze/sales"), &places.join(" OR "));
    delete(&world.table("silver/log"), &format!("amount % 3 = 0 AND {}", within(17)));
    let left = world.came();
    assert!(left.len() + 5 < came.len());

    let done = world.backfill(&["--date", "2026-03-17"]).success().json();
    assert_eq!((&done["source"], &done["status"]), (&"kafka".into(), &"ok".into()), "{done}");
    assert_eq!(done["intervals"][0]["tables"]["bronze.sales"]["inserted"], places.len(), "{done}");
    world.assert_tables(nothing);
    // What was there is of the batch that it was of; what came back is of none.
    let now = world.came();
    assert!(left.is_subset(&now), "rows of bronze have another batch or time");
    let back: Vec<&String> = now.difference(&left).collect();
    assert!(back.len() == places.len() && back.iter().all(|row| row.contains("|-1|")), "{back:?}");
    assert_eq!(world.log(), log, "the live log was touched");

    // Twice is once.
    let version = world.bronze();
    world.backfill(&["--date", "2026-03-17"]).success();
    assert_eq!(world.bronze(), version, "bronze was written again");
    world.assert_tables(nothing);
    let idle = world.backfill(&["--date", "2026-03-17", "--resume"]).success().json();
    assert_eq!(idle["skipped"], 1, "{idle}");

    // A row whose record is outside of what is read stays lost, until more is read.
    delete(&world.table("bronze/sales"), &within(16));
    delete(&world.table("silver/log"), &within(16));
    world.backfill(&["--date", "2026-03-16"]).success();
    let far: Vec<&Sale> = world.sales.iter().filter(|sale| sale.is_of(16) && sale.is_far()).collect();
    let rows =
        |name: &str| lake::lines(&world.table(name), "SELECT count(*) FROM t")[0].parse::<usize>().expect("a count");
    assert!(!far.is_empty());
    assert_eq!(rows("bronze/sales"), world.sales.len() - far.len());
    world.backfill(&["--date", "2026-03-16", "--slack", "3d"]).success();
    world.assert_tables(nothing);
}

#[test]
fn what_an_earlier_file_could_not_decode_enters_bronze_and_is_there_once() {
    let Some(mut world) = World::new("backfill-kafka-decode", 300, "fail") else { return };
    world.assert_tables(|sale| sale.is_odd);
    // What cannot be decoded is set aside once, however often it is read.
    let letters = || lake::lines(&world.table("dlq/sales"), "SELECT topic, partition, \"offset\", rule, value FROM t");
    let before = letters();
    let new = |done: &Value| done["intervals"][0]["dead_letters"].as_u64();
    assert_eq!(new(&world.backfill(&["--date", "2026-03-17"]).success().json()), Some(0));
    assert_eq!(letters(), before);
    let (start, end) = (day(17).0.timestamp_millis(), day(17).1.timestamp_millis());
    let odd = world.sales.iter().filter(|sale| sale.is_odd && (start..end).contains(&sale.written));
    let odd: Vec<String> =
        odd.map(|s| format!("(\"partition\" = {} AND \"offset\" = {})", s.partition, s.offset)).collect();
    delete(&world.table("dlq/sales"), &format!("stage = 'decode' AND ({})", odd.join(" OR ")));
    assert_eq!(letters().len() + odd.len(), before.len());
    assert_eq!(new(&world.backfill(&["--date", "2026-03-17"]).success().json()), Some(odd.len() as u64));
    assert_eq!(letters(), before, "with the bytes of their records");
    world.replace("schema_drift: fail", "schema_drift: ignore");
    let is_near = |sale: &Sale| (16..19).any(|number| sale.is_of(number)) && !sale.is_far();
    let done = world.backfill(&["--from", "2026-03-16", "--to", "2026-03-19", "--parallel", "2"]).success().json();
    let odd = world.sales.iter().filter(|sale| sale.is_odd && is_near(sale)).count();
    let inserted = done["intervals"].as_array().expect("a list").iter();
    let inserted: u64 = inserted.filter_map(|i| i["tables"]["bronze.sales"]["inserted"].as_u64()).sum();
    // A far record may be near another day that is read.
    assert!(odd > 5 && inserted >= odd as u64, "{odd} {inserted}");
    let bronze = lake::lines(&world.table("bronze/sales"), "SELECT \"_partition\", \"_offset\" FROM t");
    let there: BTreeSet<String> = bronze.iter().cloned().collect();
    assert_eq!(there.len(), bronze.len(), "a record is there twice");
    let is_there = |sale: &Sale| there.contains(&format!("{}|{}", sale.partition, sale.offset));
    assert!(world.sales.iter().filter(|sale| is_near(sale)).all(is_there), "a record is not there");
    world.assert_tables(|sale| !is_there(sale));
    // The letters of those records are not replayed into bronze once more.
    world.sandbox.tidegate(&["dlq", "replay", FILE, "--stage", "decode", "--yes"]).run().success();
    world.assert_tables(nothing);
    world.produce(60, 20, 21);
    world.live().success();
    world.assert_tables(nothing);
}

#[test]
fn a_day_that_kafka_has_let_go_is_refused_before_anything_is_written() {
    let Some(world) = World::new("backfill-kafka-expired", 300, "ignore") else { return };
    let versions =
        || ["bronze/sales", "silver/sales", "silver/log", "gold/daily"].map(|t| lake::version(&world.table(t)));
    let before = versions();
    // One partition begins in the middle of the 17th.
    let noon = day(17).0.timestamp_millis() + 12 * HOUR;
    let first = world.sales.iter().find(|sale| sale.partition == 1 && sale.written >= noon).expect("a sale");
    world.broker.expire(&world.topic, 1, first.offset);
    for days in [&["--date", "2026-03-17"][..], &["--from", "2026-03-16", "--to", "2026-03-20"]] {
        let refused =
            world.backfill(days).code(&[66]).says("no longer has all records of 2026-03-1").says("2026-03-18");
        println!("{}", refused.stderr.trim());
        assert_eq!(refused.json()["error"]["exit_code"], 66);
    }
    world.backfill(&["--date", "2026-03-17", "--dry-run"]).code(&[66]);
    assert_eq!(versions(), before);
    assert!(!world.sandbox.path().join("checkpoints/shop/backfills").exists());
    // The day after it is whole, whatever the one before lacks.
    delete(&world.table("bronze/sales"), &format!("{} AND amount > 20", within(19)));
    world.backfill(&["--date", "2026-03-19"]).success();
    // A partition without a single record left: bronze has the last one, and it is too old to matter.
    let end = world.ends[&1];
    world.broker.expire(&world.topic, 1, end);
    world.backfill(&["--date", "2026-03-19"]).code(&[66]).says("no record is left");
    let last = world.sales.iter().filter(|sale| sale.partition == 1).map(|sale| sale.written).max().expect("a sale");
    assert!(last < day(21).0.timestamp_millis());
    world.backfill(&["--date", "2026-03-23"]).success();
    // From bronze it can be derived all the same.
    let from_bronze = ["backfill", FILE, "--date", "2026-03-17"];
    world.sandbox.tidegate(&from_bronze).run().success();
}

#[test]
fn only_topics_can_be_read_again() {
    let shop = super::shop::Shop::new("backfill-kafka-files", 60);
    let run = shop.backfill(&["--date", "2026-03-17", "--source", "kafka"]).code(&[2]).says("reads files");
    run.says("bronze.sales cannot be read again");
    shop.backfill(&["--date", "2026-03-17", "--source", "kafka", "--mode", "correction"]).code(&[2]).says("correction");
    shop.backfill(&["--date", "2026-03-17", "--source", "kafka", "--slack", "some"]).code(&[2]).says("--slack");
}

#[test]
fn beside_a_live_run_days_are_read_again_and_every_row_is_there_once() {
    let Some(mut world) = World::new("backfill-kafka-beside", 300, "ignore") else { return };
    let live = world.sandbox.tidegate(&["run", FILE, "--trigger", "150ms", "--output", "json"]).start();
    for _ in 0..number("TIDEGATE_BACKFILL_ROUNDS").unwrap_or(1) {
        delete(&world.table("bronze/sales"), &format!("{} AND amount > 15", within(17)));
        let running = world.start(&["--from", "2026-03-15", "--to", "2026-03-21", "--parallel", "3"], &[]);
        let mut rounds = 0;
        // However soon it is done: several batches are live.
        while rounds < 5 || !running.ended() {
            if rounds < 12 {
                world.produce(15, 20, 21);
                rounds += 1;
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        running.finish(Duration::from_secs(300)).expect("it has ended").success();
    }
    live.signal("TERM");
    let live = live.finish(Duration::from_secs(300)).expect("it ends").success().json();
    assert!(live["batch_count"].as_u64() > Some(2), "{live}");
    world.live().success();
    world.backfill(&["--date", "2026-03-17", "--slack", "3d"]).success();
    world.assert_tables(nothing);
}

#[cfg(feature = "failpoints")]
#[test]
fn killed_anywhere_the_same_command_brings_the_rows_back_once() {
    let seed = crate::support::seed();
    println!("TIDEGATE_SEED={seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let kills = number("TIDEGATE_KILLS").unwrap_or(4);
    let Some(mut world) = World::new("backfill-kafka-kill", 240, "ignore") else { return };
    let arguments = ["--from", "2026-03-16", "--to", "2026-03-18", "--slack", "3d"];
    let mut killed = 0;
    for round in 0..kills {
        let some = format!("amount % 4 = {}", round % 4);
        delete(&world.table("bronze/sales"), &format!("{} AND {some}", within(16)));
        delete(&world.table("bronze/sales"), &format!("{} AND {some}", within(17)));
        delete(&world.table("silver/log"), &within(17));
        let order = format!("*@{}=kill", random.random_range(30..700));
        let run =
            world.start(&arguments, &[("TIDEGATE_FAIL", &order)]).finish(Duration::from_secs(300)).expect("it ends");
        let is_killed = run.status.code().is_none();
        println!("{order}: {}", if is_killed { "killed" } else { "survived" });
        killed += usize::from(is_killed);
        world.produce(10, 20, 21);
        world.live().success();
        world.backfill(&arguments).success();
        world.assert_tables(nothing);
    }
    println!("{killed} kills in {kills} rounds; 0 rows lost or doubled");
    assert!(killed > 0);
}
