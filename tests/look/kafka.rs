//! On a real Kafka: lag and headroom of known offsets and times, and the consumer group as Kafka's own tool shows it.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use crate::e2e::kafka::{World, named};
use crate::support::broker::Record;
use crate::support::pipeline::FILE;

const HOUR: i64 = 3_600_000;

/// Records that say they were written so long ago.
fn aged(prefix: &str, partition: i32, count: usize, age_ms: i64) -> Vec<Record> {
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_millis();
    let timestamp = i64::try_from(now).expect("this millennium") - age_ms;
    named(prefix, partition, count).into_iter().map(|record| Record { timestamp, ..record }).collect()
}

/// What `kafka-consumer-groups.sh --describe` shows: current offset, end and lag by partition.
fn described(world: &World) -> BTreeMap<i32, (i64, i64, i64)> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kafka/kafka.sh");
    let tool = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    let group = ["--describe", "--group", "tidegate-orders"];
    // It gives up after five seconds by itself, and has then found nothing.
    let patience = ["--timeout", "60000"];
    let words = ["tool", "--", tool, "--bootstrap-server", &world.broker.address];
    let words = words.into_iter().chain(group).chain(patience);
    let output = Command::new(script).args(words).output().expect("kafka.sh runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let group: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let mine = group.iter().filter(|words| words.len() > 5 && words[1] == world.topic);
    let number = |text: &str| text.parse::<i64>().unwrap_or(-1);
    let found = mine.map(|w| (number(w[2]) as i32, (number(w[3]), number(w[4]), number(w[5])))).collect();
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    found
}

/// Waits until the tool shows this.
#[track_caller]
fn await_described(world: &World, wanted: &[(i32, (i64, i64, i64))]) {
    let wanted: BTreeMap<i32, (i64, i64, i64)> = wanted.iter().copied().collect();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let found = described(world);
        if found == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "Kafka's tool shows {found:?}, not {wanted:?}");
    }
}

#[test]
fn lag_is_told_by_partition_in_records_and_seconds_and_serves_as_a_probe() {
    let retention = (10 * HOUR).to_string();
    let Some(world) = World::with_topic("lag", 3, &[("retention.ms", &retention)]) else { return };
    world.produce(&[named("read", 0, 100), named("read", 1, 40)].concat().into_iter().map(fresh).collect::<Vec<_>>());
    world.sandbox.drain(FILE).success();
    // Partition 0: 50 unread, the oldest nine hours old. Partition 1: 30, an hour. Partition 2: nothing, ever.
    let unread = [aged("a", 0, 20, 9 * HOUR), aged("b", 0, 30, 8 * HOUR), aged("c", 1, 30, HOUR)].concat();
    world.produce(&unread);
    let run = |words: &[&str]| world.sandbox.tidegate(&[&["lag", FILE], words].concat()).run();
    let json = run(&["--output", "json"]).success().json();
    let seen = json["pipelines"][0]["partitions"].as_array().expect("partitions").clone();
    let numbers = |key: &str| seen.iter().map(|partition| partition[key].as_i64()).collect::<Vec<_>>();
    assert_eq!(numbers("checkpoint"), [Some(100), Some(40), Some(0)], "{json}");
    assert_eq!(numbers("end"), [Some(150), Some(70), Some(0)], "{json}");
    assert_eq!(numbers("records"), [Some(50), Some(30), Some(0)], "{json}");
    let about = |found: Option<i64>, hours: i64| found.is_some_and(|found| (found - hours * 3600).abs() < 300);
    let (age, left) = (numbers("seconds"), numbers("headroom_seconds"));
    assert!(about(age[0], 9) && about(age[1], 1) && age[2] == Some(0), "{json}");
    assert!(about(left[0], 1) && about(left[1], 9) && left[2].is_none(), "{json}");
    assert_eq!(json["pipelines"][0]["lag"]["records"], 80);
    // Ten hours of retention: under 2.5 h is worth a warning, an hour is less and nine hours are not.
    assert_eq!(json["pipelines"][0]["warnings"].as_array().map(Vec::len), Some(1), "{json}");
    let quiet = run(&["--warn-headroom", "30m", "--output", "json"]).success().json();
    assert_eq!(quiet["pipelines"][0]["warnings"].as_array().map(Vec::len), Some(0), "{quiet}");
    let text = run(&[]).success().stdout;
    assert!(text.contains("lag.v1/0") && text.contains("80 records") && text.contains("warning: "), "{text}");

    run(&["--fail-above", "80"]).success();
    run(&["--fail-above", "79"]).code(&[1]);
    run(&["--fail-above", "10h"]).success();
    let above = run(&["--fail-above", "8h", "--output", "json"]).code(&[1]).json();
    assert_eq!(above["status"], "above", "{above}");
    run(&["--fail-above", "soon"]).code(&[2]).says("neither a time nor a number of records");

    let status = world.sandbox.tidegate(&["status", FILE]).run().success().stdout;
    assert!(
        status.contains("lag: 80 records, the oldest is 9 h") && status.contains("warning: 50 records"),
        "{status}"
    );
}

/// Written just now.
fn fresh(record: Record) -> Record {
    aged("", record.partition, 1, 0)
        .pop()
        .map(|now| Record { timestamp: now.timestamp, ..record.clone() })
        .unwrap_or(record)
}

#[test]
fn a_run_that_is_far_behind_warns_before_records_are_deleted() {
    let retention = (10 * HOUR).to_string();
    let Some(world) = World::with_topic("headroom", 1, &[("retention.ms", &retention)]) else { return };
    world.pipeline(Some(20));
    world.produce(&aged("old", 0, 100, 9 * HOUR));
    let run = world.sandbox.drain(FILE).success();
    assert_eq!(run.batches(), [20; 5], "{}", run.report());
    let warnings = run.stderr.matches("the topic deletes the oldest of them in").count();
    assert_eq!(warnings, 1, "once in ten minutes\n{}", run.report());
    world.produce(&aged("new", 0, 100, HOUR));
    let run = world.sandbox.drain(FILE).success();
    assert!(!run.stderr.contains("the topic deletes"), "nine hours are enough\n{}", run.report());
}

#[test]
fn records_that_are_kept_for_ever_need_no_headroom_and_size_is_judged_by_the_pace() {
    let Some(world) = World::with_topic("keeps", 1, &[("retention.ms", "-1")]) else { return };
    world.produce(&aged("a", 0, 10, 1_000 * HOUR));
    let lag = |world: &World| {
        let json = world.sandbox.tidegate(&["lag", FILE, "--output", "json"]).run().success().json();
        json["pipelines"][0]["partitions"][0].clone()
    };
    assert_eq!(lag(&world)["headroom"], "kept for ever", "never ran: counted from where a first run starts");
    assert_eq!(lag(&world)["records"], 10);

    let settings = [("retention.ms", "-1"), ("retention.bytes", "100000000")];
    let Some(world) = World::with_topic("pushed-out", 1, &settings) else { return };
    // An hour a record: at 10..100, with 10 deleted, the position 40 is 30 records from being pushed out.
    let records = (0..100).flat_map(|n| aged(&format!("r{n}"), 0, 1, (100 - n) * HOUR)).collect::<Vec<_>>();
    world.produce(&records[..40]);
    world.sandbox.drain(FILE).success();
    world.produce(&records[40..]);
    world.broker.expire(&world.topic, 0, 10);
    let seen = lag(&world);
    let left = seen["headroom_seconds"].as_i64().expect("an estimate");
    assert!((left - 30 * 3600).abs() < 3600, "{seen}");
    assert!(seen["headroom"].as_str().is_some_and(|text| text.starts_with("about 1 d")), "{seen}");
}

#[test]
fn kafkas_own_tool_sees_the_group_move_after_every_batch_of_a_long_run_and_never_back() {
    let Some(world) = World::with_topic("group", 2, &[]) else { return };
    world.produce(&[named("a", 0, 30), named("b", 1, 10)].concat());
    let run = world.sandbox.tidegate(&["run", FILE, "--trigger", "200ms"]).start();
    await_described(&world, &[(0, (30, 30, 0)), (1, (10, 10, 0))]);
    world.produce(&named("c", 0, 5));
    await_described(&world, &[(0, (35, 35, 0)), (1, (10, 10, 0))]);
    assert!(!run.ended(), "it is still running: {}", run.stderr());
    run.signal("TERM");
    run.end(Duration::from_secs(60)).success();
    // Behind, then killed in the middle of the batch: the group stays where the checkpoint stands, then follows it.
    world.produce(&named("d", 1, 20_000));
    assert_eq!(described(&world)[&1], (10, 20_010, 20_000));
    #[cfg(feature = "failpoints")]
    {
        let died = world.sandbox.tidegate(&["run", FILE, "--trigger", "available_now"]);
        let died = died.env("TIDEGATE_FAIL", "shape@1=kill").run();
        assert_eq!(died.status.code(), None, "{}", died.report());
        let plan = world.sandbox.path().join("checkpoints/orders/offsets/00000000000000000002.json");
        assert!(plan.exists(), "it died before it had a plan\n{}", died.report());
        assert_eq!(described(&world)[&1], (10, 20_010, 20_000), "what is not committed is not told");
    }
    world.sandbox.drain(FILE).success();
    await_described(&world, &[(0, (35, 35, 0)), (1, (20_010, 20_010, 0))]);
    // An operator goes back: so does the group, for it tells where reading goes on.
    let back = format!("{}:0=20", world.topic);
    world.sandbox.tidegate(&["offsets", "set", FILE, &back, "--yes"]).run().success();
    await_described(&world, &[(0, (20, 35, 15)), (1, (20_010, 20_010, 0))]);
    world.sandbox.drain(FILE).success();
    await_described(&world, &[(0, (35, 35, 0)), (1, (20_010, 20_010, 0))]);
}

#[cfg(feature = "failpoints")]
#[test]
fn a_run_that_died_before_it_told_the_group_is_made_good_by_one_that_finds_nothing_to_read() {
    let Some(world) = World::with_topic("group-late", 1, &[]) else { return };
    world.produce(&named("a", 0, 30));
    let died = world.sandbox.tidegate(&["run", FILE]).env("TIDEGATE_FAIL", "ack@1=kill").run();
    assert!(!died.status.success(), "{}", died.report());
    assert_eq!(described(&world), BTreeMap::new(), "the group knows nothing yet");
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let idle = world.sandbox.drain(FILE).success();
        assert_eq!(idle.json()["status"], "no_data", "{}", idle.report());
        println!("an idle run that tells the group: {:?}", idle.took);
        // A run waits a few seconds for the group and no longer: on a busy broker it may take another one.
        let found = described(&world);
        if found == [(0, (30, 30, 0))].into() {
            break;
        }
        assert!(Instant::now() < deadline, "no idle run tells the group: {found:?}\n{}", idle.report());
    }
}

#[test]
fn what_kafka_lacks_has_a_code() {
    let Some(world) = World::new("codes") else { return };
    world.produce(&named("a", 0, 100));
    world.sandbox.drain(FILE).success();
    world.broker.expire(&world.topic, 0, 100);
    world.produce(&named("b", 0, 100));
    world.broker.expire(&world.topic, 0, 150);
    let lost = world.sandbox.drain(FILE).code(&[66]).says("error[TG0401]: 50 records of codes.v1/0 have expired");
    assert_eq!(lost.json()["error"]["code"], "TG0401");
    let lag = world.sandbox.tidegate(&["lag", FILE]).run().success().stdout;
    assert!(lag.contains("lost") && lag.contains("were deleted before they were read"), "{lag}");
    let other = std::fs::read_to_string(world.sandbox.path().join(FILE)).expect("the pipeline");
    world.sandbox.write("other.yaml", &other.replace("codes.v1", "codes.v2").replace("name: orders", "name: other"));
    let missing = world.sandbox.tidegate(&["run", "other.yaml"]).env("LAKE", "./other").run();
    missing.code(&[78]).says("error[TG0410]: topic `codes.v2` does not exist");
}
