//! What Kafka still holds of a person is counted exactly, and said to be the way back.

use crate::e2e::kafka::{World, order};
use crate::support::broker::Record;
use crate::support::lake;
use crate::support::pipeline::FILE;

use super::*;

const KEY: &str = "order_id=ada-4711";

/// Orders of many, every seventh of the person, and two of hers that no schema lets in; on two partitions.
fn records() -> Vec<Record> {
    let record = |number: i32| {
        let id = if number % 7 == 3 { PERSON.to_string() } else { format!("o-{number}") };
        Record { partition: number % 2, ..Record::of(order(&id, 1, &format!("2026-03-02T10:00:{:02}Z", number % 60))) }
    };
    let mut all: Vec<Record> = (0..100).map(record).collect();
    // A dead letter that has the field, and one that cannot be read at all.
    all.push(Record { partition: 1, ..Record::of(format!(r#"{{"order_id":"{PERSON}","quantity":"many"}}"#)) });
    all.push(Record { partition: 0, ..Record::of(format!(r#"{{"order_id":"{PERSON}","quantity":"#)) });
    all
}

/// By partition: how many have the field, the first offset and the last.
fn expected(broker: &[crate::support::oracle::Stored]) -> BTreeMap<i32, (u64, i64, i64)> {
    let mut found: BTreeMap<i32, (u64, i64, i64)> = BTreeMap::new();
    for stored in broker {
        let value = stored.record.value.clone().unwrap_or_default();
        if serde_json::from_slice::<Value>(&value).is_ok_and(|json| json["order_id"] == PERSON) {
            let at = found.entry(stored.record.partition).or_insert((0, stored.offset, stored.offset));
            *at = (at.0 + 1, at.1.min(stored.offset), at.2.max(stored.offset));
        }
    }
    found
}

#[test]
fn records_that_kafka_still_holds_are_counted_and_bring_rows_back_when_read_again() {
    let Some(world) = World::with_topic("forget", 2, &[]) else { return };
    // Read in many bites.
    world.pipeline(Some(20));
    world.produce(&records());
    // In doubt until the end of its transaction, and then not there at all.
    let producer = world.broker.transactions("forget-aborted");
    producer.abort(&world.topic, [Record::of(order(PERSON, 1, "2026-03-02T11:00:00Z"))]);
    // No longer there: the first records of a partition.
    world.broker.expire(&world.topic, 1, 5);
    world.sandbox.drain(FILE).success();
    let expected = expected(&world.broker.read_back(&world.topic, 2));
    assert_eq!(expected.len(), 2, "{expected:?}");

    let forget = |more: &[&str]| {
        let all: Vec<&str> = ["forget", FILE, "--key", KEY].iter().chain(more).copied().collect();
        world.sandbox.tidegate(&all).run()
    };
    let text = forget(&[]).success().stdout;
    println!("{text}");
    let json = forget(&["--output", "json"]).success().json();
    let found: BTreeMap<i32, (u64, i64, i64)> = json["sources"]["source"]
        .as_array()
        .expect("asked")
        .iter()
        .map(|still| {
            assert_eq!(still["partition"]["topic"], json!(world.topic), "{still}");
            let number = |name: &str| still[name].as_i64().expect("a number");
            let partition = i32::try_from(still["partition"]["partition"].as_i64().expect("a number")).expect("small");
            (partition, (number("records").unsigned_abs(), number("first"), number("last")))
        })
        .collect();
    assert_eq!(found, expected, "{json}");
    let total: u64 = expected.values().map(|(count, _, _)| count).sum();
    assert!(text.contains(&format!("source `source` still holds {total} records; they are not touched")), "{text}");
    assert!(!text.contains("nothing to remove"), "{text}");

    let done = forget(&["--yes", "--output", "json"]).success().json();
    println!("{:#}", done["receipt"]);
    assert_eq!(done["receipt"]["sources"], json["sources"]);
    let names = |table: &str| {
        let sql = format!("SELECT order_id FROM t WHERE order_id = '{PERSON}'");
        lake::lines(&world.lake().join(table), &sql).len()
    };
    assert_eq!((names("bronze/orders"), names("silver/orders")), (0, 0));
    // The position did not go back. The marker of an aborted transaction may come after the transaction's end was told.
    assert_eq!(world.sandbox.drain(FILE).success().json()["input_rows"], 0);

    world.sandbox.tidegate(&["offsets", "rewind", FILE, "--to", "earliest", "--yes"]).run().success();
    world.sandbox.drain(FILE).success();
    // One of the records is a dead letter.
    assert_eq!((names("bronze/orders") as u64, names("silver/orders")), (total - 1, 1), "as it was said");
    forget(&["--yes", "--offline"]).success();
    assert_eq!((names("bronze/orders"), names("silver/orders")), (0, 0));
}
