//! The data set is fixed for ever, and its oddities come in the shares that were asked for.

use std::collections::{BTreeMap, HashSet};

use super::*;

fn spec() -> GenerateSpec {
    GenerateSpec {
        dataset: "orders".into(),
        rows: Some(100_000),
        partitions: 4,
        rate: None,
        seed: 7,
        dirty: 0.0,
        late: 0.0,
        duplicates: 0.0,
        out_of_order: 0.0,
    }
}

fn records(spec: &GenerateSpec, partition: u64, until: u64) -> Vec<String> {
    let data = Orders::new(spec);
    let (mut key, mut value) = (Vec::new(), Vec::new());
    let text = |offset| {
        data.write(partition, offset, &mut key, &mut value);
        String::from_utf8_lossy(&value).into_owned()
    };
    (0..until).map(text).collect()
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).expect("json")
}

/// Replays of stored checkpoints depend on these very bytes.
#[test]
fn the_first_record_is_what_it_always_was() {
    let odd = GenerateSpec { dirty: 0.1, late: 0.1, duplicates: 0.1, out_of_order: 0.1, ..spec() };
    assert_eq!(records(&spec(), 1, 1)[0], GOLDEN);
    assert_eq!(records(&odd, 1, 500), records(&odd, 1, 500));
}

const GOLDEN: &str = concat!(
    r#"{"order_id":"o-00000002","store_id":"s-001","customer_id":"c-04261","amount":"277.85","quantity":2,"#,
    r#""status":"placed","updated_at":"2026-03-01T00:00:04.320Z","op":"u"}"#
);

#[test]
fn an_order_is_placed_then_paid_then_shipped_or_cancelled_in_its_partition() {
    let mut orders: BTreeMap<String, Vec<serde_json::Value>> = BTreeMap::new();
    for text in records(&spec(), 2, 3 * UNDER_WAY * 10) {
        let record = json(&text);
        orders.entry(record["order_id"].as_str().expect("id").into()).or_default().push(record);
    }
    assert_eq!(orders.len() as u64, UNDER_WAY * 10);
    for updates in orders.values() {
        let statuses: Vec<&str> = updates.iter().map(|u| u["status"].as_str().expect("status")).collect();
        assert!(matches!(statuses[..], ["placed", "paid", "shipped" | "cancelled"]), "{statuses:?}");
        assert!(updates.windows(2).all(|w| w[0]["updated_at"].as_str() < w[1]["updated_at"].as_str()));
        assert!(updates.iter().all(|u| u["amount"] == updates[0]["amount"]));
    }
    let deletes = orders.values().flatten().filter(|u| u["op"] == "d").count();
    assert!((5..40).contains(&deletes), "{deletes} of 1920 are deletes");
}

#[test]
fn the_data_set_spans_five_days() {
    let data = Orders::new(&spec());
    assert_eq!((0..4).map(|p| data.len(p)).sum::<i64>(), 100_000);
    let days = (data.event_ms(3, 24_999) - EPOCH_MS) as f64 / 86_400_000.0;
    assert!((4.99..5.0).contains(&days), "{days}");
    assert!(records(&spec(), 0, 1)[0].contains("\"updated_at\":\"2026-03-01T00:00:00.000Z\""));
}

#[test]
fn the_shares_are_about_what_was_asked_for() {
    let plain = records(&spec(), 0, 10_000);
    let share = |odd: GenerateSpec| {
        let odd = records(&odd, 0, 10_000);
        odd.iter().zip(&plain).filter(|(a, b)| a != b).count() as f64 / 10_000.0
    };
    for (name, share) in [
        ("dirty", share(GenerateSpec { dirty: 0.05, ..spec() })),
        ("late", share(GenerateSpec { late: 0.05, ..spec() })),
        ("duplicates", share(GenerateSpec { duplicates: 0.05, ..spec() })),
        ("out_of_order", share(GenerateSpec { out_of_order: 0.05, ..spec() })),
    ] {
        assert!((0.03..0.07).contains(&share), "{name}: {share}");
    }
}

#[test]
fn a_duplicate_repeats_an_earlier_payload_and_a_swap_loses_none() {
    let odd = GenerateSpec { duplicates: 0.1, out_of_order: 0.2, ..spec() };
    let mut seen = HashSet::new();
    let repeats = records(&odd, 0, 10_000).into_iter().filter(|text| !seen.insert(text.clone())).count();
    assert!((800..1200).contains(&repeats), "{repeats}");
    let sorted = |mut texts: Vec<String>| {
        texts.sort();
        texts
    };
    let swapped = GenerateSpec { out_of_order: 0.2, ..spec() };
    assert_eq!(sorted(records(&swapped, 0, 10_000)), sorted(records(&spec(), 0, 10_000)));
}

#[test]
fn dirty_records_are_of_every_kind() {
    let texts = records(&GenerateSpec { dirty: 1.0, ..spec() }, 0, 200);
    let parsed: Vec<Option<serde_json::Value>> = texts.iter().map(|t| serde_json::from_str(t).ok()).collect();
    assert!(parsed.iter().any(Option::is_none));
    let any = |test: fn(&serde_json::Value) -> bool| parsed.iter().flatten().any(test);
    assert!(any(|v| v.get("order_id").is_none()));
    assert!(any(|v| v["quantity"] == 0) && any(|v| v["quantity"].as_i64() < Some(0)));
    assert!(any(|v| v["amount"].as_str().is_some_and(|a| a.parse::<f64>().is_err())));
}
