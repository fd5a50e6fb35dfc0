//! What brokers, networks and producers do all day: transactions, restarts, slow links, new partitions and topics, odd
//! records. The tables equal the oracle's all the same.
//!
//! `TIDEGATE_STEADY_SECONDS` (default 20) makes the run under steady load longer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::DateTime;
use serde_json::Value;

use super::kafka::{World, named, order, orders, take};
use crate::support::broker::{OwnBroker, Record, free_port};
use crate::support::oracle::{Stored, Tables, stored};
use crate::support::pipeline::{FILE, Pipeline};
use crate::support::proxy::Proxy;
use crate::support::sandbox::Running;
use crate::support::{Sandbox, lake, number};

/// Waits for something that a run under way does.
#[track_caller]
fn wait(run: &Running, what: &str, patience: Duration, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < deadline, "no {what} within {patience:?}\n{}", run.stderr());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Objects of one kind in the checkpoint log, oldest first.
fn log(sandbox: &Sandbox, pipeline: &str, kind: &str) -> Vec<Value> {
    let folder = sandbox.path().join(format!("checkpoints/{pipeline}/{kind}"));
    let mut paths: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    let text = paths.iter().map(|path| std::fs::read_to_string(path).expect("never deleted so early"));
    text.map(|text| serde_json::from_str(&text).expect("a checkpoint object is JSON")).collect()
}

/// The position of the newest commit record in `topic`, by partition.
fn position(sandbox: &Sandbox, topic: &str) -> BTreeMap<i32, i64> {
    let last = log(sandbox, "orders", "commits").pop().unwrap_or_default();
    let partitions = last["offsets"]["source"][topic].as_object().cloned().unwrap_or_default();
    let pair = |(partition, offset): (String, Value)| Some((partition.parse().ok()?, offset.as_i64()?));
    partitions.into_iter().filter_map(pair).collect()
}

fn ticks(sandbox: &Sandbox, interval: &str) -> Running {
    sandbox.tidegate(&["run", FILE, "--trigger", interval, "--output", "json"]).start()
}

fn count(world: &World, table: &str) -> String {
    lake::lines(&world.lake().join(table), "SELECT count(*) FROM t").concat()
}

#[test]
fn a_transaction_left_open_and_then_aborted_is_waited_for_and_never_seen() {
    let Some(world) = World::with_topic("open-aborted", 1, &[]) else { return };
    let (open, other) =
        (world.broker.transactions("tidegate-open-aborted"), world.broker.transactions("tidegate-other"));
    open.begin();
    open.send(&world.topic, named("open", 0, 20)).done();
    other.commit(&world.topic, named("behind", 0, 10));
    let first = world.sandbox.drain(FILE).success();
    assert_eq!(first.json()["status"], "no_data", "what lies behind an open transaction waits\n{}", first.report());
    open.give_up();
    for id in ["tidegate-open-aborted", "tidegate-other"] {
        world.broker.settle(id);
    }
    world.sandbox.drain(FILE).success();
    let silver = lake::lines(&world.lake().join("silver/orders"), "SELECT order_id FROM t");
    assert_eq!(silver.len(), 10, "{silver:?}");
    assert!(silver.iter().all(|id| id.starts_with("behind")), "{silver:?}");
}

#[test]
fn empty_keys_empty_values_and_tombstones_arrive_as_they_were() {
    let Some(world) = World::with_topic("empty", 1, &[]) else { return };
    let key = |key: Option<&[u8]>, record: Record| Record { key: key.map(<[u8]>::to_vec), ..record };
    let good = |id: &str| Record::of(order(id, 1, "2026-03-02T10:00:00Z"));
    let records = vec![
        key(Some(b""), good("empty-key")),
        key(None, good("no-key")),
        key(Some(b"k"), Record::of(Vec::new())),
        key(Some(b"k"), Record { value: None, ..Record::of(Vec::new()) }),
        key(None, Record { value: None, ..Record::of(Vec::new()) }),
        key(Some(b""), Record::of(Vec::new())),
        key(Some(&[0, 255, 254]), good("binary-key")),
    ];
    world.produce(&records);
    world.sandbox.drain(FILE).success();
    let tables = Tables::expected(&world.topic, &stored(records));
    assert_eq!((tables.bronze.len(), tables.dead.len()), (3, 4), "the oracle itself");
    tables.assert_in(&world.lake());
}

#[test]
fn tombstones_of_a_compacted_topic_are_dead_letters_and_what_compaction_removed_is_a_hole() {
    let settings = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.001"),
        ("delete.retention.ms", "0"),
    ];
    let Some(world) = World::with_topic("tombstones", 1, &settings) else { return };
    let record = |n: i64, value: Option<Vec<u8>>| Record {
        key: Some(format!("k-{}", n % 5).into_bytes()),
        value,
        timestamp: 1_772_323_200_000 + n * 1_000,
        partition: 0,
    };
    let mut sent = 0;
    let deadline = Instant::now() + Duration::from_secs(60);
    // Orders, then a tombstone for every key, round after round; until the broker has compacted some away.
    loop {
        let orders = (sent..sent + 20).map(|n| record(n, Some(order(&format!("o-{n}"), 1, "2026-03-02T10:00:00Z"))));
        world.produce(&orders.chain((sent + 20..sent + 25).map(|n| record(n, None))).collect::<Vec<_>>());
        sent += 25;
        std::thread::sleep(Duration::from_millis(700));
        world.sandbox.remove("lake");
        world.sandbox.remove("checkpoints");
        let run = world.sandbox.drain(FILE).success();
        let left: u64 = run.batches().iter().sum();
        let found = [count(&world, "bronze/orders"), count(&world, "dlq/orders")];
        let found: u64 = found.iter().map(|count| count.parse::<u64>().expect("a count")).sum();
        assert_eq!(found, left, "every record that is left is in bronze or a dead letter\n{}", run.report());
        assert_eq!(position(&world.sandbox, &world.topic)[&0], sent, "the position is past every hole");
        if left < sent as u64 {
            println!("{sent} produced, {left} left by compaction");
            break;
        }
        assert!(Instant::now() < deadline, "the broker compacted nothing within a minute");
    }
}

#[test]
fn partitions_that_are_added_under_a_run_are_read_from_their_first_record() {
    let Some(world) = World::with_topic("added", 2, &[]) else { return };
    let mut records = [named("a", 0, 40), named("b", 1, 40)].concat();
    world.produce(&records);
    let run = ticks(&world.sandbox, "1s");
    let minute = Duration::from_secs(60);
    wait(&run, "first batch", minute, || position(&world.sandbox, &world.topic).len() == 2);
    world.broker.add_partitions(&world.topic, 5);
    let more = [named("c", 2, 30), named("d", 3, 20), named("e", 0, 5)].concat();
    world.produce(&more);
    records.extend(more);
    let all = BTreeMap::from([(0, 45), (1, 40), (2, 30), (3, 20), (4, 0)]);
    wait(&run, "batch with the new partitions", minute, || position(&world.sandbox, &world.topic) == all);
    run.signal("TERM");
    run.finish(minute).expect("it ends").success();
    world.assert_tables(&stored(records));
}

#[test]
fn a_topic_that_appears_under_a_pattern_is_read_from_its_first_record() {
    let Some(world) = World::with_topic("pattern", 1, &[]) else { return };
    let pipeline = Pipeline { brokers: &world.broker.address, topic: &world.topic, max_rows: None };
    world.sandbox.write(FILE, &pipeline.yaml().replace("topics: [pattern.v1]", r#"pattern: "^pattern\\.""#));
    world.produce(&named("a", 0, 40));
    assert_eq!(world.sandbox.drain(FILE).success().batches(), [40]);
    world.broker.create_topic("pattern.v2", 2, &[]);
    world.broker.create_topic("other-pattern.v2", 1, &[]);
    world.broker.produce("pattern.v2", [named("b", 0, 10), named("c", 1, 10)].concat());
    world.broker.produce("other-pattern.v2", named("x", 0, 10));
    world.produce(&named("d", 0, 5));
    let run = world.sandbox.drain(FILE).success();
    assert_eq!(run.batches(), [25], "{}", run.report());
    let topics = lake::lines(&world.lake().join("bronze/orders"), "SELECT _topic, count(*) FROM t GROUP BY _topic");
    assert_eq!(topics, ["pattern.v1|45", "pattern.v2|20"]);
    assert_eq!(count(&world, "silver/orders"), "65");
    // A topic that is taken out of the selection is not lost, and goes on where it stood when it is put back.
    world.sandbox.write(FILE, &pipeline.yaml().replace("topics: [pattern.v1]", "topics: [pattern.v2]"));
    world.produce(&named("e", 0, 7));
    world.broker.produce("pattern.v2", named("f", 0, 3));
    assert_eq!(world.sandbox.drain(FILE).success().batches(), [3]);
    world.pipeline(None);
    assert_eq!(world.sandbox.drain(FILE).success().batches(), [7]);
}

#[test]
fn a_topic_of_64_partitions_most_of_them_empty_is_read_whole() {
    let Some(world) = World::with_topic("wide", 64, &[]) else { return };
    let filled = [0, 7, 31, 63];
    let records: Vec<Record> = filled.iter().flat_map(|&p| named(&format!("p{p}"), p, 25)).collect();
    world.produce(&records);
    let run = world.sandbox.drain(FILE).success();
    assert_eq!(run.batches(), [100], "{}", run.report());
    assert!(run.took < Duration::from_secs(60), "{:?}", run.took);
    assert_eq!(position(&world.sandbox, &world.topic).len(), 64);
    world.assert_tables(&stored(records.clone()));
    let more = named("later", 40, 10);
    world.produce(&more);
    assert_eq!(world.sandbox.drain(FILE).success().batches(), [10]);
    world.assert_tables(&stored([records, more].concat()));
}

#[test]
fn records_at_every_size_limit_are_read() {
    let limit = 3_000_000;
    let Some(world) = World::with_topic("large", 1, &[("max.message.bytes", &limit.to_string())]) else { return };
    let pipeline = Pipeline { brokers: &world.broker.address, topic: &world.topic, max_rows: None };
    // Far less than one record, in every place where there is a limit.
    let yaml = pipeline.yaml().replace("    start: earliest\n", concat!(
        "    start: earliest\n",
        "    options: {fetch.message.max.bytes: \"1024\", fetch.max.bytes: \"4096\", message.max.bytes: \"4096\"}\n",
    ));
    world.sandbox.write(FILE, &yaml.replace("lookups:\n", "batch: {max_rows: 1000, max_bytes: 100KB}\nlookups:\n"));
    let large = |id: &str, size: usize| {
        let mut value = order(id, 1, "2026-03-02T10:00:00Z");
        value.pop();
        value.extend_from_slice(b",\"padding\":\"");
        value.resize(size - 2, b'x');
        value.extend_from_slice(b"\"}");
        Record::of(value)
    };
    // The broker counts the record's frame as well.
    let mut records = vec![large("first", limit - 200)];
    records.extend(named("small", 0, 20));
    records.extend([large("middle", 99_999), large("over", 100_001), large("last", limit - 200)]);
    world.produce(&records);
    let run = world.sandbox.drain(FILE).success();
    println!("batches of {:?} rows", run.batches());
    assert_eq!(run.batches().iter().sum::<u64>(), 24, "{}", run.report());
    assert!(run.batches().len() >= 4, "each record above batch.max_bytes has a batch of its own: {:?}", run.batches());
    world.assert_tables(&stored(records));
}

#[test]
fn two_pipelines_that_read_one_topic_do_not_know_of_each_other() {
    let Some(world) = World::with_topic("shared", 2, &[]) else { return };
    let pipeline = Pipeline { brokers: &world.broker.address, topic: &world.topic, max_rows: Some(100) };
    world
        .sandbox
        .write("twin.yaml", &pipeline.yaml().replace("name: orders", "name: twin").replace("./lake", "./twin"));
    let mut records = [named("a", 0, 300), named("b", 1, 200)].concat();
    world.produce(&records);
    let twin = world.sandbox.tidegate(&["run", "twin.yaml", "--trigger", "available_now", "--output", "json"]).start();
    world.sandbox.drain(FILE).success();
    let twin = twin.finish(Duration::from_secs(120)).expect("it ends").success();
    assert_eq!(twin.batches().iter().sum::<u64>(), 500, "{}", twin.report());
    let more = named("c", 0, 50);
    world.produce(&more);
    records.extend(more);
    // One of them falls behind and catches up.
    world.sandbox.drain(FILE).success();
    let expected = Tables::expected(&world.topic, &stored(records));
    expected.assert_in(&world.lake());
    assert_eq!(world.sandbox.drain("twin.yaml").success().batches(), [50]);
    expected.assert_in(&world.sandbox.path().join("twin"));
}

#[test]
fn a_broker_that_restarts_in_the_middle_of_a_run_costs_no_row() {
    let Some(own) = OwnBroker::start("restart", free_port(2), None) else { return };
    let sandbox = Sandbox::new("restart");
    let topic = "restart.v1";
    own.broker.create_topic(topic, 4, &[]);
    let records = take(&mut orders(20_000), 20_000);
    own.broker.produce(topic, records.clone());
    Pipeline { brokers: &own.broker.address, topic, max_rows: Some(500) }.write(&sandbox);
    let run = sandbox.tidegate(&["run", FILE, "--trigger", "available_now", "--output", "json"]).start();
    wait(&run, "second batch", Duration::from_secs(60), || log(&sandbox, "orders", "commits").len() >= 2);
    own.down();
    let done = log(&sandbox, "orders", "commits").len();
    own.up();
    let first = run.finish(Duration::from_secs(180)).expect("it ends").code(&[0, 69]);
    println!("down after {done} batches, the run ended with {:?} after {:?}", first.status.code(), first.took);
    if first.status.code() == Some(69) {
        println!("{}", first.stderr);
    }
    assert!(done < 40, "the restart came too late to prove anything");
    sandbox.drain(FILE).success();
    Tables::expected(topic, &stored(records)).assert_in(&sandbox.path().join("lake"));
}

#[test]
fn a_network_that_is_slow_or_hangs_delays_a_run_or_ends_it_with_69_and_costs_no_row() {
    let (port, entrance) = (free_port(4), free_port(6));
    let proxy = Proxy::start(entrance, port);
    let Some(own) = OwnBroker::start("slow", port, Some(entrance)) else { return };
    let sandbox = Sandbox::new("slow");
    let topic = "slow.v1";
    own.broker.create_topic(topic, 4, &[]);
    let records = take(&mut orders(10_000), 10_000);
    own.broker.produce(topic, records.clone());
    Pipeline { brokers: &own.broker.address, topic, max_rows: Some(2_500) }.write(&sandbox);
    let expected = Tables::expected(topic, &stored(records));
    // A million bytes a second, and 20 ms more for each piece.
    proxy.delay(Duration::from_millis(20));
    proxy.throttle(1_000_000);
    let before = proxy.passed();
    let run = sandbox.tidegate(&["run", FILE, "--trigger", "available_now", "--output", "json"]).start();
    // Hung in the middle of a batch, until patience ends.
    wait(&run, "batch", Duration::from_secs(60), || !log(&sandbox, "orders", "commits").is_empty());
    proxy.stall(true);
    let hung = run.finish(Duration::from_secs(120)).expect("it ends").code(&[0, 69]);
    println!("{}", hung.stderr);
    assert_eq!(hung.status.code(), Some(69), "all was read before the network hung\n{}", hung.report());
    let hung = hung.says("nothing was lost: the next start goes on where this one stopped").says(&own.broker.address);
    println!("hung: ended after {:?}, {} bytes had passed", hung.took, proxy.passed() - before);
    proxy.stall(false);
    // Still slow, and completes.
    let slow = sandbox.drain(FILE).success();
    println!("slow: {:?} for {:?} rows", slow.took, slow.batches());
    expected.assert_in(&sandbox.path().join("lake"));
}

/// Peak and present memory of a process, in kB.
fn memory(process: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    (field("VmHWM:"), field("VmRSS:"))
}

#[test]
fn under_steady_load_batches_start_at_aligned_ticks_lag_stays_bounded_and_memory_does_not_grow() {
    let Some(world) = World::new("steady") else { return };
    let seconds = number("TIDEGATE_STEADY_SECONDS").unwrap_or(20);
    let tick = Duration::from_secs(2);
    let mut stream = orders(seconds * 400);
    let mut records = Vec::new();
    let mut produce = |count: u64| {
        let more = take(&mut stream, count);
        world.produce(&more);
        records.extend(more);
    };
    produce(100);
    let run = ticks(&world.sandbox, "2s");
    wait(&run, "first batch", Duration::from_secs(60), || !position(&world.sandbox, &world.topic).is_empty());
    let started = Instant::now();
    let mut halfway = 0;
    while started.elapsed() < Duration::from_secs(seconds) {
        produce(100);
        if halfway == 0 && started.elapsed().as_secs() >= seconds / 2 {
            halfway = memory(run.id()).0;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    let all: i64 = (0..4).map(|partition| world.broker.watermarks(&world.topic, partition).1).sum();
    let left = all - position(&world.sandbox, &world.topic).values().sum::<i64>();
    let at_end = || position(&world.sandbox, &world.topic).values().sum::<i64>() == all;
    let stopped = Instant::now();
    wait(&run, "end of the backlog", Duration::from_secs(30), at_end);
    let (peak, now) = memory(run.id());
    println!(
        "{all} rows in {seconds} s; {left} to go when producing ended, none {:?} later; peak memory {halfway} kB \
         halfway, {peak} kB in the end ({now} kB now)",
        stopped.elapsed()
    );
    run.signal("TERM");
    let ended = run.finish(Duration::from_secs(60)).expect("it ends").success();
    assert!(peak < halfway + 100_000, "memory grew from {halfway} kB to {peak} kB");
    world.assert_tables(&stored(records));
    // A batch starts at a tick, or at once when the one before took longer than a tick.
    let commits = log(&world.sandbox, "orders", "commits");
    let committed = |batch: &Value| {
        let text = batch["committed_at"].as_str().expect("a time");
        DateTime::parse_from_rfc3339(text).expect("RFC 3339").timestamp_millis()
    };
    let (mut aligned, mut overrun) = (0, 0);
    for pair in commits.windows(2) {
        let [before, batch] = pair else { unreachable!("windows of two") };
        // Its plan has a later time: bounding a batch reads it.
        let starts = committed(batch) - batch["duration_ms"]["triggerExecution"].as_i64().expect("milliseconds");
        if starts.rem_euclid(tick.as_millis() as i64) < 1_000 {
            aligned += 1;
        } else if starts - committed(before) < 1_000 {
            overrun += 1;
        } else {
            panic!("batch {} started at {starts} ms, which is no tick\n{}", batch["batch"], ended.report());
        }
    }
    println!("{} batches: {aligned} at a tick, {overrun} at once after an overrun", commits.len());
    assert!(commits.len() as u64 >= seconds / 8, "{} batches in {seconds} s", commits.len());
}

#[test]
fn an_aborted_transaction_between_committed_ones_leaves_the_committed_ones_in_order() {
    let Some(world) = World::with_topic("interleaved", 1, &[]) else { return };
    let producer = world.broker.transactions("tidegate-interleaved");
    let mut expected = Vec::new();
    let mut offset = 0;
    for round in 0..6 {
        let records = named(&format!("r{round}"), 0, 20);
        if round % 2 == 0 {
            producer.commit(&world.topic, records.clone());
            let place = |(n, record): (usize, Record)| Stored { partition: 0, offset: offset + n as i64, record };
            expected.extend(records.into_iter().enumerate().map(place));
        } else {
            producer.abort(&world.topic, records);
        }
        // Twenty records and the marker that ends the transaction.
        offset += 21;
    }
    world.pipeline(Some(7));
    world.sandbox.drain(FILE).success();
    world.assert_tables(&expected);
}
