//! Records that Kafka no longer has: each class of loss stops the run with exit code 66 and a message of its own, before
//! anything is written; with `on_data_loss: skip` the run goes on, and what it went without is on record.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::kafka::{World, named};
use crate::support::Sandbox;
use crate::support::broker::{OwnBroker, Record, free_port};
use crate::support::lake;
use crate::support::oracle::{Stored, Tables, stored, versions};
use crate::support::pipeline::{FILE, Pipeline};

/// The pipeline of `world` with `on_data_loss: skip`, and with another selection of topics if one is given.
fn accept_losses(world: &World, topics: Option<&str>) {
    let pipeline = Pipeline { brokers: &world.broker.address, topic: &world.topic, max_rows: None };
    let yaml = pipeline.yaml().replace("    start: earliest\n", "    start: earliest\n    on_data_loss: skip\n");
    let own = format!("topics: [{}]", world.topic);
    world.sandbox.write(FILE, &yaml.replace(&own, topics.unwrap_or(&own)));
}

fn object(sandbox: &Sandbox, kind: &str, batch: i64) -> PathBuf {
    sandbox.path().join(format!("checkpoints/orders/{kind}/{batch:020}.json"))
}

fn json(sandbox: &Sandbox, kind: &str, batch: i64) -> Value {
    let path = object(sandbox, kind, batch);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()));
    serde_json::from_str(&text).expect("a checkpoint object is JSON")
}

/// Numbers of the batches that have a plan or a commit record.
fn batches(sandbox: &Sandbox, kind: &str) -> Vec<i64> {
    let entries = std::fs::read_dir(sandbox.path().join(format!("checkpoints/orders/{kind}"))).into_iter().flatten();
    let number = |name: String| name.strip_suffix(".json").and_then(|digits| digits.parse().ok());
    let mut batches: Vec<i64> =
        entries.flatten().filter_map(|entry| number(entry.file_name().to_string_lossy().into_owned())).collect();
    batches.sort_unstable();
    batches
}

/// Runs until the batch has a plan and dies there: no table has the batch yet.
#[cfg(feature = "failpoints")]
fn leave_pending(sandbox: &Sandbox) -> i64 {
    let before = versions(&sandbox.path().join("lake"));
    let next = batches(sandbox, "offsets").last().map_or(0, |last| last + 1);
    let command = sandbox.tidegate(&["run", FILE, "--trigger", "available_now"]);
    let run = command.env("TIDEGATE_FAIL", "shape@1=kill").run();
    assert_eq!(run.status.code(), None, "{}", run.report());
    assert!(object(sandbox, "offsets", next).exists(), "it died before it had a plan\n{}", run.report());
    assert!(!object(sandbox, "commits", next).exists(), "the kill came too late to leave a batch pending");
    assert_eq!(versions(&sandbox.path().join("lake")), before, "the kill came too late: a table has the batch");
    next
}

/// Rows of a batch that is left pending.
#[cfg(feature = "failpoints")]
const MANY: usize = 20_000;

/// Requires exit code 66, this message and no change to any table.
#[track_caller]
fn refuses(world: &World, message: &str) {
    let before = versions(&world.lake());
    let plans = batches(&world.sandbox, "offsets");
    let run = world.sandbox.drain(FILE).code(&[66]).says(message).says("on_data_loss: skip");
    println!("{}", run.stderr);
    assert_eq!(run.json()["error"]["kind"], "offsets_lost", "{}", run.report());
    assert_eq!(versions(&world.lake()), before, "a refused run changed a table");
    assert_eq!(batches(&world.sandbox, "offsets"), plans, "a refused run planned a batch");
}

/// The classes of loss in the newest commit record, in order, each once.
fn recorded(sandbox: &Sandbox) -> Vec<String> {
    let last = *batches(sandbox, "commits").last().expect("a batch is done");
    let lost = json(sandbox, "commits", last)["lost"]["source"].clone();
    let lost = lost.as_array().cloned().unwrap_or_default();
    let mut classes: Vec<String> = lost.iter().map(|lost| lost["class"].as_str().unwrap_or("?").to_string()).collect();
    classes.dedup();
    classes
}

fn at(records: Vec<Record>, first: i64) -> Vec<Stored> {
    stored(records).into_iter().map(|s| Stored { offset: s.offset + first, ..s }).collect()
}

#[test]
fn records_that_expired_between_runs_stop_the_run_and_skip_goes_on_at_the_earliest() {
    let Some(world) = World::with_topic("expired-between", 1, &[]) else { return };
    world.produce(&named("read", 0, 100));
    world.sandbox.drain(FILE).success();
    world.produce(&named("later", 0, 100));
    world.broker.expire(&world.topic, 0, 150);
    refuses(
        &world,
        "50 records of expired-between.v1/0 have expired: the checkpoint stands at 100, the earliest is 150",
    );
    accept_losses(&world, None);
    let run = world.sandbox.drain(FILE).success().says("50 records of expired-between.v1/0 have expired");
    assert_eq!(run.batches(), [50], "{}", run.report());
    assert_eq!(recorded(&world.sandbox), ["expired"]);
    let plan = json(&world.sandbox, "offsets", 1);
    assert_eq!(plan["skipped"]["source"]["expired-between.v1"]["0"], serde_json::json!([100, 150]));
    let kept = [at(named("read", 0, 100), 0), at(named("later", 0, 100).split_off(50), 150)];
    // `named` counts from 0 per call, so the rows of the second half are those numbered 50 to 99.
    let records: Vec<Stored> = kept.into_iter().flatten().collect();
    world.assert_tables(&records);
    let status = world.sandbox.tidegate(&["status", FILE]).run().success();
    assert!(status.stdout.contains("batch 1 went without: 50 records"), "{}", status.stdout);
    let status = world.sandbox.tidegate(&["status", FILE, "--output", "json"]).run().success();
    assert_eq!(status.json()["losses"][0]["class"], "expired", "{}", status.report());
}

#[cfg(feature = "failpoints")]
#[test]
fn records_that_expired_while_a_batch_was_pending_stop_it_and_skip_finishes_it_without_them() {
    let Some(world) = World::with_topic("expired-pending", 1, &[]) else { return };
    world.produce(&named("read", 0, 100));
    world.sandbox.drain(FILE).success();
    world.produce(&named("pending", 0, MANY));
    let pending = leave_pending(&world.sandbox);
    world.broker.expire(&world.topic, 0, 5_100);
    refuses(&world, "5000 records of expired-pending.v1/0 have expired: the checkpoint stands at 100");
    accept_losses(&world, None);
    world.sandbox.drain(FILE).success();
    assert_eq!(recorded(&world.sandbox), ["expired"]);
    let lost = json(&world.sandbox, "commits", pending)["lost"]["source"][0].clone();
    assert_eq!(lost["unread"], serde_json::json!([100, 5_100]), "{lost}");
    let left = at(named("pending", 0, MANY).split_off(5_000), 5_100);
    world.assert_tables(&[at(named("read", 0, 100), 0), left].into_iter().flatten().collect::<Vec<_>>());
    let status = world.sandbox.tidegate(&["status", FILE]).run().success();
    assert!(status.stdout.contains("(offsets 100 to 5100 were planned)"), "{}", status.stdout);
}

#[test]
fn a_topic_that_was_read_and_is_deleted_stops_the_run_and_skip_goes_on_with_the_others() {
    let Some(world) = World::with_topic("deleted", 2, &[]) else { return };
    world.produce(&[named("a", 0, 50), named("b", 1, 50)].concat());
    world.sandbox.drain(FILE).success();
    world.broker.delete_topic(&world.topic);
    refuses(&world, "topic deleted.v1 no longer exists, the checkpoint stands at 50 of deleted.v1/0");
    accept_losses(&world, None);
    let idle = world.sandbox.drain(FILE).success().says("topic deleted.v1 no longer exists");
    assert_eq!(idle.json()["status"], "no_data", "{}", idle.report());
    // Another topic joins: its batch records what it went without, and the lost topic's position is kept.
    world.broker.create_topic("deleted.v2", 1, &[]);
    world.broker.produce("deleted.v2", named("c", 0, 30));
    accept_losses(&world, Some("topics: [deleted.v1, deleted.v2]"));
    let run = world.sandbox.drain(FILE).success();
    assert_eq!(run.batches(), [30], "{}", run.report());
    assert_eq!(recorded(&world.sandbox), ["topic_gone"]);
    let commit = json(&world.sandbox, "commits", 1);
    assert_eq!(commit["offsets"]["source"]["deleted.v1"], serde_json::json!({"0": 50, "1": 50}), "{commit}");
    // A topic of the old name is another topic: all of it is read.
    world.broker.create_topic(&world.topic, 1, &[]);
    world.produce(&named("d", 0, 80));
    let run = world.sandbox.drain(FILE).success();
    assert_eq!(run.batches(), [80], "{}", run.report());
    assert_eq!(recorded(&world.sandbox), ["recreated"]);
    assert_eq!(lake::lines(&world.lake().join("silver/orders"), "SELECT count(*) FROM t"), ["210"]);
    assert_eq!(lake::lines(&world.lake().join("bronze/orders"), "SELECT count(*) FROM t"), ["210"]);
    // Its second partition is not there, and no position in one is left for the day on which it is added.
    let last = *batches(&world.sandbox, "commits").last().expect("a batch is done");
    let offsets = json(&world.sandbox, "commits", last)["offsets"]["source"]["deleted.v1"].clone();
    assert_eq!(offsets, serde_json::json!({"0": 80}));
}

#[test]
fn a_named_topic_that_was_never_read_and_is_missing_is_a_mistake_in_the_file() {
    let Some(world) = World::with_topic("never-read", 1, &[]) else { return };
    world.produce(&named("a", 0, 10));
    world.sandbox.drain(FILE).success();
    accept_losses(&world, Some("topics: [never-read.v1, never-raed.v2]"));
    world.sandbox.drain(FILE).code(&[78]).says("topic `never-raed.v2` does not exist").says("did you mean");
}

/// What a recreated topic holds decides nothing: it is another topic.
fn recreated(test: &str, records: usize) {
    let Some(world) = World::with_topic(test, 1, &[]) else { return };
    world.produce(&named("old", 0, 100));
    world.sandbox.drain(FILE).success();
    world.broker.delete_topic(&world.topic);
    world.broker.create_topic(&world.topic, 1, &[]);
    world.produce(&named("new", 0, records));
    let message = format!(
        "topic {0} was deleted and created again: the checkpoint stands at 100 of {0}/0 in the old one",
        world.topic
    );
    refuses(&world, &message);
    accept_losses(&world, None);
    let run = world.sandbox.drain(FILE).success().says(&message);
    assert_eq!(run.batches(), [records as u64], "{}", run.report());
    assert_eq!(recorded(&world.sandbox), ["recreated"]);
    let plan = json(&world.sandbox, "offsets", 1);
    assert_eq!(plan["skipped"]["source"][&world.topic]["0"], serde_json::json!([100, 0]), "{plan}");
    let both: Vec<Stored> =
        [at(named("old", 0, 100), 0), at(named("new", 0, records), 0)].into_iter().flatten().collect();
    world.assert_tables(&both);
    let before = versions(&world.lake());
    assert_eq!(world.sandbox.drain(FILE).success().json()["status"], "no_data");
    assert_eq!(versions(&world.lake()), before);
}

#[test]
fn a_topic_created_again_with_fewer_records_is_another_topic() {
    recreated("recreated-fewer", 10);
}

#[test]
fn a_topic_created_again_with_exactly_as_many_records_is_another_topic() {
    recreated("recreated-equal", 100);
}

#[test]
fn a_topic_created_again_with_more_records_is_another_topic() {
    recreated("recreated-more", 250);
}

#[test]
fn a_position_in_a_topic_that_was_created_again_is_not_moved_by_hand() {
    let Some(world) = World::with_topic("recreated-moved", 1, &[]) else { return };
    world.produce(&named("old", 0, 50));
    world.sandbox.drain(FILE).success();
    world.broker.delete_topic(&world.topic);
    world.broker.create_topic(&world.topic, 1, &[]);
    world.produce(&named("new", 0, 80));
    let message = "topic recreated-moved.v1 was deleted and created again";
    let (tables, plans) = (versions(&world.lake()), batches(&world.sandbox, "offsets"));
    let position = format!("{}:0=60", world.topic);
    for place in [&["rewind", FILE, "--to", "earliest"][..], &["set", FILE, &position]] {
        let moved = [&["offsets"], place].concat();
        world.sandbox.tidegate(&moved).run().code(&[66]).says(message);
        world.sandbox.tidegate(&[&moved[..], &["--yes"]].concat()).run().code(&[66]).says(message);
    }
    assert_eq!((versions(&world.lake()), batches(&world.sandbox, "offsets")), (tables, plans));
    refuses(&world, message);
}

#[test]
fn a_topic_created_again_before_the_first_batch_is_another_topic() {
    let Some(world) = World::with_topic("recreated-start", 1, &[]) else { return };
    world.produce(&named("old", 0, 100));
    let latest = Pipeline { brokers: &world.broker.address, topic: &world.topic, max_rows: None };
    world.sandbox.write(FILE, &latest.yaml().replace("start: earliest", "start: latest"));
    assert_eq!(world.sandbox.drain(FILE).success().json()["status"], "no_data");
    world.broker.delete_topic(&world.topic);
    world.broker.create_topic(&world.topic, 1, &[]);
    world.produce(&named("new", 0, 150));
    refuses(&world, "topic recreated-start.v1 was deleted and created again");
}

#[cfg(feature = "failpoints")]
#[test]
fn a_pending_batch_never_takes_its_records_from_a_topic_that_was_created_again() {
    let Some(world) = World::with_topic("recreated-pending", 1, &[]) else { return };
    world.produce(&named("read", 0, 100));
    world.sandbox.drain(FILE).success();
    world.produce(&named("pending", 0, MANY));
    let pending = leave_pending(&world.sandbox);
    world.broker.delete_topic(&world.topic);
    world.broker.create_topic(&world.topic, 1, &[]);
    // More than the old one had: by its offsets alone, the planned range could be read.
    world.produce(&named("new", 0, MANY + 500));
    refuses(&world, "topic recreated-pending.v1 was deleted and created again");
    accept_losses(&world, None);
    let run = world.sandbox.drain(FILE).success();
    let rows = run.batches();
    assert_eq!((rows[0], rows.iter().sum::<u64>()), (0, MANY as u64 + 500), "{}", run.report());
    let lost = json(&world.sandbox, "commits", pending)["lost"]["source"][0].clone();
    assert_eq!(
        (&lost["class"], &lost["unread"]),
        (&"recreated".into(), &serde_json::json!([100, MANY + 100])),
        "{lost}"
    );
    let read = [at(named("read", 0, 100), 0), at(named("new", 0, MANY + 500), 0)];
    world.assert_tables(&read.into_iter().flatten().collect::<Vec<_>>());
}

#[test]
fn a_partition_whose_disk_was_lost_is_told_from_a_topic_that_was_created_again() {
    let Some(own) = OwnBroker::start("disk-lost", free_port(1), None) else { return };
    let sandbox = Sandbox::new("disk-lost");
    let topic = "disk-lost.v1";
    own.broker.create_topic(topic, 1, &[]);
    own.broker.produce(topic, named("read", 0, 100));
    let pipeline = Pipeline { brokers: &own.broker.address, topic, max_rows: None };
    pipeline.write(&sandbox);
    sandbox.drain(FILE).success();
    own.down();
    own.lose(topic, 0);
    own.up();
    own.broker.await_leaders(topic, 1);
    own.broker.produce(topic, named("new", 0, 30));
    let before = versions(&sandbox.path().join("lake"));
    let run = sandbox.drain(FILE).code(&[66]);
    let run =
        run.says("disk-lost.v1/0 was truncated: it ends at 30 but the checkpoint stands at 100, in the same topic");
    println!("{}", run.stderr);
    assert_eq!(versions(&sandbox.path().join("lake")), before);
    let skip = pipeline.yaml().replace("    start: earliest\n", "    start: earliest\n    on_data_loss: skip\n");
    sandbox.write(FILE, &skip);
    assert_eq!(sandbox.drain(FILE).success().batches(), [0], "nothing is read twice, and the new position is durable");
    assert_eq!(recorded(&sandbox), ["truncated"]);
    own.broker.produce(topic, named("newer", 0, 20));
    assert_eq!(sandbox.drain(FILE).success().batches(), [20]);
    let records: Vec<Stored> =
        [at(named("read", 0, 100), 0), at(named("newer", 0, 20), 30)].into_iter().flatten().collect();
    Tables::expected(topic, &records).assert_in(&sandbox.path().join("lake"));
}

#[test]
fn what_is_deleted_while_a_run_reads_is_either_in_the_tables_or_on_record() {
    let Some(world) = World::with_topic("deleted-meanwhile", 1, &[]) else { return };
    // So many batches that the deletion comes in the middle of them.
    let rows = 10_000_i64;
    world.produce(&named("r", 0, rows as usize));
    let pipeline = Pipeline { brokers: &world.broker.address, topic: &world.topic, max_rows: Some(100) };
    let skip = pipeline.yaml().replace("    start: earliest\n", "    start: earliest\n    on_data_loss: skip\n");
    world.sandbox.write(FILE, &skip);
    let run = world.sandbox.tidegate(&["run", FILE, "--trigger", "available_now", "--output", "json"]).start();
    let deadline = Instant::now() + Duration::from_secs(60);
    while batches(&world.sandbox, "commits").len() < 2 {
        assert!(Instant::now() < deadline, "no batch within a minute\n{}", run.stderr());
        std::thread::sleep(Duration::from_millis(2));
    }
    world.broker.expire(&world.topic, 0, 7_000);
    run.finish(Duration::from_secs(300)).expect("it ends").success();
    // The oracle is arithmetic: offsets in bronze and offsets on record as lost are all offsets, each once.
    let mut seen: Vec<i64> = lake::lines(&world.lake().join("bronze/orders"), "SELECT _offset FROM t")
        .iter()
        .map(|line| line.parse().expect("an offset"))
        .collect();
    let in_bronze = seen.len();
    for batch in batches(&world.sandbox, "offsets") {
        let skipped = json(&world.sandbox, "offsets", batch)["skipped"]["source"][&world.topic]["0"].clone();
        if let Some(range) = skipped.as_array() {
            seen.extend(range[0].as_i64().expect("an offset")..range[1].as_i64().expect("an offset"));
        }
        for lost in json(&world.sandbox, "commits", batch)["lost"]["source"].as_array().into_iter().flatten() {
            if let Some(range) = lost["unread"].as_array() {
                seen.extend(range[0].as_i64().expect("an offset")..range[1].as_i64().expect("an offset"));
            }
        }
    }
    seen.sort_unstable();
    println!("{in_bronze} of {rows} in bronze, the others on record as lost");
    assert!(in_bronze < rows as usize, "the deletion came too late to prove anything");
    assert!(seen == (0..rows).collect::<Vec<_>>(), "{} offsets accounted for, of {rows}", seen.len());
}
