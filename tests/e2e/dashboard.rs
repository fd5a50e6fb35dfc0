//! The operations dashboard: cancellations per store over fifteen minutes, every two minutes anew, from live traffic.
//!
//! Small by default; `make dashboard` sends 10,000 events a second for five minutes and prints how old a row is when a reader
//! can see it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::kafka::World;
use crate::support::broker::Record;
use crate::support::{lake, number, seed};

const PARTITIONS: i32 = 4;
const STORES: u32 = 50;
const MINUTE: i64 = 60_000_000;
/// Rows may be this much out of order, which is less than the pipeline waits.
const JITTER: i64 = 20_000_000;
const BEAT: Duration = Duration::from_millis(50);

const PIPELINE: &str = r#"
version: 1
name: dashboard
source:
  kafka: {brokers: BROKERS, topics: [TOPIC]}
  schema: {store_id: string not null, status: string, at: timestamp, sent: {type: timestamp, unit: us}}
  event_time: at
trigger: {processing_time: TRIGGER}
tables:
  bronze.events: {from: source}
  gold.cancellations:
    from: bronze.events
    watermark: {delay: 1m}
    aggregate:
      window: {sliding: 15m, every: 2m}
      by: store_id
      measures:
        events: count(*)
        cancelled: count(*) filter (where status = 'cancelled')
        rate: count(*) filter (where status = 'cancelled') * 1.0 / count(*)
"#;

/// Events and cancellations of a store's window.
type Expected = BTreeMap<(String, i64), (i64, i64)>;

#[allow(clippy::disallowed_methods, reason = "events are of now")]
fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_micros()).expect("not that far")
}

#[test]
fn a_dashboard_over_live_traffic_is_right_and_fresh() {
    let Some(world) = World::with_topic("dashboard", PARTITIONS as u32, &[]) else { return };
    let seconds = number("TIDEGATE_DASHBOARD_SECONDS").unwrap_or(8);
    let rate = number("TIDEGATE_DASHBOARD_RATE").unwrap_or(2_000);
    let trigger = if seconds >= 60 { "5s" } else { "1s" };
    let seed = seed();
    println!(
        "TIDEGATE_SEED={seed} TIDEGATE_DASHBOARD_SECONDS={seconds} TIDEGATE_DASHBOARD_RATE={rate} trigger {trigger}"
    );
    let yaml = PIPELINE.replace("BROKERS", &world.broker.address).replace("TOPIC", &world.topic);
    world.sandbox.write("dashboard.yaml", &yaml.replace("TRIGGER", trigger));
    let running = world.sandbox.tidegate(&["run", "dashboard.yaml"]).start();
    let (expected, sent) = traffic(&world, &mut ChaCha8Rng::seed_from_u64(seed), rate, Duration::from_secs(seconds));
    // Two triggers and the batch in between: then everything was read, or the test says so below.
    let all = sent;
    let deadline = Instant::now() + Duration::from_secs(60);
    let bronze = world.lake().join("bronze/events");
    let arrived = || match lake::version(&bronze) {
        Some(_) => lake::lines(&bronze, "SELECT count(*) FROM t")[0].parse::<u64>().expect("a count"),
        None => 0,
    };
    while arrived() < all && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(500));
    }
    running.signal("TERM");
    let outcome = running.end(Duration::from_secs(60));
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert_eq!(arrived(), all, "rows in bronze");
    let gold = world.lake().join("gold/cancellations");
    let sql = "SELECT store_id, window_start, window_end, events, cancelled, rate FROM t";
    let expected: Vec<String> = {
        let line = |((store, start), (events, cancelled)): (&(String, i64), &(i64, i64))| {
            let share = *cancelled as f64 / *events as f64;
            format!("{store}|{start}|{}|{events}|{cancelled}|{share}", start + 15 * MINUTE)
        };
        let mut lines: Vec<String> = expected.iter().map(line).collect();
        lines.sort_unstable();
        lines
    };
    lake::assert_same("gold.cancellations", &expected, &lake::lines(&gold, sql));
    report(&bronze, &gold);
}

/// Sends events at a pace; returns what every window must hold, and how many events there were.
fn traffic(world: &World, random: &mut ChaCha8Rng, rate: u64, lasting: Duration) -> (Expected, u64) {
    let producer = world.broker.stream();
    let started = Instant::now();
    let (mut expected, mut sent) = (Expected::new(), 0u64);
    while started.elapsed() < lasting {
        let due = (started.elapsed().as_secs_f64() * rate as f64) as u64;
        let mut records = Vec::new();
        while sent < due {
            let (at, moment) = (now() - random.random_range(0..JITTER), now());
            let store = format!("s-{}", random.random_range(0..STORES));
            let is_cancelled = random.random_ratio(1, 12);
            let status = if is_cancelled { "cancelled" } else { "paid" };
            let time = chrono::DateTime::from_timestamp_micros(at).expect("a time").to_rfc3339();
            let mut value = String::new();
            let _ = write!(value, r#"{{"store_id":"{store}","status":"{status}","at":"{time}","sent":{moment}}}"#);
            records.push(Record {
                partition: random.random_range(0..PARTITIONS),
                key: Some(store.clone().into_bytes()),
                value: Some(value.into_bytes()),
                timestamp: moment / 1000,
            });
            // Every window of fifteen minutes that starts at an even minute and holds the event.
            let last = at.div_euclid(2 * MINUTE) * 2 * MINUTE;
            let mut start = last;
            while start + 15 * MINUTE > at {
                let window = expected.entry((store.clone(), start)).or_default();
                window.0 += 1;
                window.1 += i64::from(is_cancelled);
                start -= 2 * MINUTE;
            }
            sent += 1;
        }
        producer.send(&world.topic, records);
        std::thread::sleep(BEAT);
    }
    producer.done();
    (expected, sent)
}

/// How old events were when a reader could see them in gold: from the producer's clock to the commit of the batch.
fn report(bronze: &Path, gold: &Path) {
    let commits = commits(gold);
    let mut ages: Vec<(i64, f64)> = Vec::new();
    for line in lake::lines(bronze, "SELECT _batch_id, sent FROM t") {
        let (batch, sent) = line.split_once('|').expect("two columns");
        let sent: i64 = sent.parse().expect("a time");
        if let Some(seen) = commits.get(&batch.parse().expect("a batch")) {
            ages.push((sent, (seen - sent) as f64 / 1e6));
        }
    }
    assert!(!ages.is_empty(), "no batch of gold brought any event");
    let (first, last) = (ages.iter().map(|a| a.0).min().expect("some"), ages.iter().map(|a| a.0).max().expect("some"));
    let fifth = (last - first) / 5 + 1;
    let quantiles = |ages: &mut Vec<f64>| {
        ages.sort_unstable_by(f64::total_cmp);
        let at = |q: f64| ages[((ages.len() - 1) as f64 * q) as usize];
        (at(0.5), at(0.99), at(1.0))
    };
    let (p50, p99, most) = quantiles(&mut ages.iter().map(|a| a.1).collect());
    println!(
        "{} events in {} batches: event to row p50 {p50:.2} s, p99 {p99:.2} s, most {most:.2} s",
        ages.len(),
        commits.len()
    );
    for part in 0..5 {
        let within = |sent: i64| (sent - first) / fifth == part;
        let mut some: Vec<f64> = ages.iter().filter(|(sent, _)| within(*sent)).map(|a| a.1).collect();
        if !some.is_empty() {
            let (p50, p99, _) = quantiles(&mut some);
            println!("  fifth {}: p50 {p50:.2} s, p99 {p99:.2} s", part + 1);
        }
    }
}

/// When the commit of each batch could be seen: the time of its file, in microseconds.
fn commits(table: &Path) -> HashMap<i64, i64> {
    let mut commits = HashMap::new();
    for entry in fs::read_dir(table.join("_delta_log")).expect("a log") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let modified = fs::metadata(&path).and_then(|data| data.modified()).expect("a time");
        let modified = modified.duration_since(UNIX_EPOCH).expect("after 1970").as_micros();
        for line in fs::read_to_string(&path).expect("text").lines() {
            let action: serde_json::Value = serde_json::from_str(line).expect("an action");
            if let Some(batch) = action.pointer("/txn/version").and_then(serde_json::Value::as_i64) {
                commits.insert(batch, i64::try_from(modified).expect("not that far"));
            }
        }
    }
    commits
}
