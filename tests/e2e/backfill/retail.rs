//! The retail medallion on a real topic: days of orders, one store that comes late, each day derived again.

use chrono::{NaiveDate, TimeDelta};
use serde_json::Value;

use crate::support::broker::{Record, broker};
use crate::support::oracle::{Tables, stored};
use crate::support::orders::Orders;
use crate::support::pipeline::{FILE, Pipeline};
use crate::support::sandbox::Outcome;
use crate::support::{Sandbox, lake, number, seed};

#[test]
fn days_of_orders_and_a_store_that_is_late_are_the_oracles_after_full_runs_and_corrections_each_twice() {
    let Some(broker) = broker("backfill-retail") else { return };
    let topic = "backfill-retail.v1";
    broker.create_topic(topic, 3, &[]);
    let sandbox = Sandbox::new("backfill-retail");
    Pipeline { brokers: &broker.address, topic, max_rows: Some(300) }.write(&sandbox);
    println!("TIDEGATE_SEED={}", seed());
    let rows = number("TIDEGATE_E2E_ROWS").unwrap_or(900).min(20_000);
    let records = Orders::new(seed(), rows, 3).take(rows as usize).map(Record::from);
    let is_late = |record: &Record| {
        let text = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned();
        text.contains("\"store_id\":\"s-03\"")
    };
    let (late, early): (Vec<Record>, Vec<Record>) = records.partition(is_late);
    assert!(!late.is_empty(), "no such store");

    broker.produce(topic, early.iter().cloned());
    sandbox.drain(FILE).success();
    let expected = Tables::expected(topic, &stored(early.clone()));
    let bronze = sandbox.path().join("lake/bronze/orders");
    let days = lake::lines(&bronze, "SELECT CAST(min(updated_at) AS DATE), CAST(max(updated_at) AS DATE) FROM t");
    let epoch = NaiveDate::default();
    let day = |text: &str| epoch + TimeDelta::days(text.parse().expect("days since the epoch"));
    let (first, last) = days[0].split_once('|').expect("two columns");
    let (from, to) = (day(first).to_string(), (day(last) + TimeDelta::days(1)).to_string());
    let backfill = |mode: &str| -> Outcome {
        let arguments = ["backfill", FILE, "--from", &from, "--to", &to, "--mode", mode, "--output", "json"];
        sandbox.tidegate(&arguments).run().success()
    };
    for _ in 0..2 {
        let done = backfill("full").json();
        assert!(done["done"].as_u64() >= Some(5), "{done}");
        expected.assert_in(&sandbox.path().join("lake"));
    }
    let through = checkpoint(&sandbox);

    broker.produce(topic, late.iter().cloned());
    sandbox.drain(FILE).success();
    let all: Vec<Record> = early.into_iter().chain(late).collect();
    let expected = Tables::expected(topic, &stored(all));
    let corrected = backfill("correction").json();
    expected.assert_in(&sandbox.path().join("lake"));
    assert!(corrected["input_rows"].as_u64() > Some(0), "{corrected}");
    let again = backfill("correction").json();
    assert_eq!(again["unchanged"], again["interval_count"], "{again}");
    assert_eq!(again["done"], 0);
    backfill("full");
    expected.assert_in(&sandbox.path().join("lake"));
    assert!(checkpoint(&sandbox) > through, "the live run has read what came late");
    println!("{} rows corrected in {} days", corrected["input_rows"], corrected["interval_count"]);
}

/// The newest batch of the live log.
fn checkpoint(sandbox: &Sandbox) -> i64 {
    let commits = super::objects(&sandbox.path().join("checkpoints/orders/commits"));
    commits.values().filter_map(|record: &Value| record["batch"].as_i64()).max().expect("a batch")
}
