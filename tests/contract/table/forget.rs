//! Rows that an operator wants forgotten.

use tidegate::table::{Held, Removal};

use super::*;

fn removal(column: &str, values: ArrayRef) -> Removal {
    Removal { rows: RecordBatch::try_from_iter([(column, values)]).unwrap(), records: None }
}

fn by_key(key: &str) -> Removal {
    removal("order_id", Arc::new(StringArray::from(vec![key])))
}

#[tokio::test(flavor = "multi_thread")]
async fn forgotten_rows_and_their_remembered_deletes_go_once_and_come_back_as_new() {
    let lake = Lake::new();
    let mut table = lake.open(definition(upsert()));
    let rows = [row("a", 1, 0, 10), row("b", 1, 1, 20), row("c", 1, 2, 30), delete("b", 5, 3)];
    table.apply(Change::Rows(vec![batch(&rows)]), &txn(0)).await.unwrap();
    let held = |rows, remembered, is_mute| Held { rows, remembered, is_mute };
    assert_eq!(table.count_held(&by_key("a")).await.unwrap(), held(1, 0, false));
    assert_eq!(table.count_held(&by_key("b")).await.unwrap(), held(0, 1, false));
    for (number, key) in [(1, "a"), (2, "b")] {
        let receipt = table.apply(Change::Remove(by_key(key)), &txn(number)).await.unwrap();
        assert_eq!((receipt.deleted, receipt.already_applied), (u64::from(key == "a"), false));
        let mut restarted = lake.open(definition(upsert()));
        assert!(restarted.apply(Change::Remove(by_key(key)), &txn(number)).await.unwrap().already_applied);
        assert_eq!(table.count_held(&by_key(key)).await.unwrap(), held(0, 0, false));
    }
    let kept = BTreeMap::from([("c".to_owned(), (30, 1))]);
    assert_eq!(contents(&mut table).await, kept);
    // Older than the delete that nobody remembers any more.
    table.apply(Change::Rows(vec![batch(&[row("b", 3, 4, 7)])]), &txn(3)).await.unwrap();
    assert_eq!(contents(&mut table).await.get("b"), Some(&(7, 3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn deletes_that_are_remembered_by_other_columns_are_found_by_their_records() {
    let lake = Lake::new();
    let mut table = lake.open(definition(upsert()));
    let rows = [row("a", 1, 0, 10), row("b", 1, 1, 10), delete("a", 5, 2), delete("b", 5, 3)];
    table.apply(Change::Rows(vec![batch(&rows)]), &txn(0)).await.unwrap();
    let by_amount = removal("amount", Arc::new(Int64Array::from(vec![10])));
    let unknown = table.count_held(&by_amount).await.unwrap();
    assert_eq!((unknown.remembered, unknown.is_mute), (0, true), "nothing tells whose they are");
    let columns: [(&str, ArrayRef); 3] = [
        ("_topic", Arc::new(StringArray::from(vec!["orders"]))),
        ("_partition", Arc::new(Int32Array::from(vec![0]))),
        ("_offset", Arc::new(Int64Array::from(vec![2]))),
    ];
    let known = Removal { records: Some(RecordBatch::try_from_iter(columns).unwrap()), ..by_amount };
    assert_eq!(table.count_held(&known).await.unwrap().remembered, 1);
    table.apply(Change::Remove(known), &txn(1)).await.unwrap();
    table.apply(Change::Rows(vec![batch(&[row("a", 3, 4, 7), row("b", 3, 5, 7)])]), &txn(2)).await.unwrap();
    assert_eq!(contents(&mut table).await, BTreeMap::from([("a".to_owned(), (7, 3))]), "b is still deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn forgotten_rows_go_from_tables_of_every_kind_and_their_groups_are_touched() {
    for write in [WriteMode::Append, refresh(), upsert()] {
        let lake = Lake::new();
        let mut table = lake.open(definition(write.clone()));
        let bergen = Row { city: Some("bergen".to_owned()), ..row("x", 1, 1, 2) };
        let rows = batch(&[row("a", 1, 0, 1), bergen]);
        let change = match write {
            WriteMode::Refresh { .. } => {
                let cities: ArrayRef = Arc::new(StringArray::from(vec!["oslo", "bergen"]));
                Change::Groups { groups: RecordBatch::try_from_iter([("city", cities)]).unwrap(), rows: vec![rows] }
            }
            _ => Change::Rows(vec![rows]),
        };
        table.apply(change, &txn(0)).await.unwrap();
        table.apply(Change::Remove(by_key("x")), &txn(1)).await.unwrap();
        assert_eq!(lake.count().await, 1, "{write:?}");
        let touched = table.touched(&["city".into()], &txn(1)).await.unwrap();
        assert_eq!(strings(&touched), [Some("bergen".to_owned())], "{write:?}");
    }
}
