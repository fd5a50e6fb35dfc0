//! Traps that once doubled, lost or revived rows; each test would fail without its fix.

use arrow::array::Decimal128Array;

use super::*;

fn in_city(key: &str, city: Option<&str>, time: i64) -> Row {
    Row { city: city.map(str::to_owned), ..row(key, time, time, 1) }
}

fn cities(names: &[Option<&str>]) -> RecordBatch {
    let schema = Arc::new(Schema::new(vec![Field::new("city", DataType::Utf8, true)]));
    RecordBatch::try_new(schema, vec![Arc::new(StringArray::from(names.to_vec()))]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decimal_key_longer_than_a_float_is_found_again() {
    let lake = Lake::new();
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Decimal128(20, 0), false),
        Field::new("seen", DataType::Int64, true),
    ]));
    let write = WriteMode::Upsert { key: vec!["id".into()], order_by: vec!["seen".into()], delete_flag: None };
    let definition = TableDefinition { schema: schema.clone(), watched: vec![], ..definition(write) };
    let mut table = lake.open(definition);
    for seen in 0..3 {
        let id = Decimal128Array::from(vec![1_234_567_890_123_456_789_i128]).with_precision_and_scale(20, 0).unwrap();
        let columns: Vec<ArrayRef> = vec![Arc::new(id), Arc::new(Int64Array::from(vec![seen]))];
        let rows = RecordBatch::try_new(schema.clone(), columns).unwrap();
        let receipt = table.apply(Change::Rows(vec![rows]), &txn(seen)).await.unwrap();
        assert_eq!((receipt.inserted, receipt.updated), if seen == 0 { (1, 0) } else { (0, 1) });
    }
    assert_eq!(lake.count().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn refresh_refuses_rows_of_groups_that_it_was_not_asked_for() {
    let lake = Lake::new();
    let mut table = lake.open(definition(refresh()));
    let start = vec![batch(&[in_city("a", Some("oslo"), 1), in_city("b", None, 1)])];
    let groups = cities(&[Some("oslo"), None]);
    table.apply(Change::Groups { groups, rows: start }, &txn(0)).await.unwrap();
    for (asked, strange, shown) in [
        (Some("oslo"), Some("OSLO"), "city = OSLO"),
        (None, Some("none"), "city = none"),
        (Some("oslo"), None, "city = null"),
    ] {
        let rows = vec![batch(&[in_city("c", asked, 2), in_city("d", strange, 2)])];
        let change = Change::Groups { groups: cities(&[asked]), rows };
        let error = table.apply(change, &txn(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(error.message().contains(TABLE) && error.report().contains(shown), "{}", error.report());
    }
    assert_eq!(table.observe(&txn(0).app_id).await.unwrap().applied, Some(0));
    assert_eq!(lake.count().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_an_upsert_is_accounted_for() {
    let lake = Lake::new();
    let mut table = lake.open(definition(upsert()));
    let rows = [row("a", 1, 0, 1), row("a", 2, 1, 1), delete("ghost", 5, 2)];
    let receipt = table.apply(Change::Rows(vec![batch(&rows)]), &txn(0)).await.unwrap();
    assert_eq!((receipt.inserted, receipt.superseded, receipt.remembered, receipt.deleted), (1, 1, 1, 0));
    let rows = [row("ghost", 4, 3, 1), delete("a", 3, 4)];
    let receipt = table.apply(Change::Rows(vec![batch(&rows)]), &txn(1)).await.unwrap();
    assert_eq!((receipt.inserted, receipt.superseded, receipt.remembered, receipt.deleted), (0, 1, 0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn deletes_that_another_checkpoint_remembers_are_refused() {
    let lake = Lake::new();
    let mut table = lake.open(definition(upsert()));
    let rows = [row("a", 1, 0, 1), delete("b", 9, 1)];
    table.apply(Change::Rows(vec![batch(&rows)]), &txn(0)).await.unwrap();
    // The table and the checkpoint are dropped; what was remembered beside the table is overlooked.
    std::fs::remove_dir_all(lake.path()).unwrap();
    let anew = Maker { pipeline_id: "p-2".into(), ..maker() };
    let mut table = lake.open(TableDefinition { maker: anew, ..definition(upsert()) });
    let txn = Txn { app_id: "tidegate:p-2:silver.orders".into(), ..txn(0) };
    let error = table.apply(Change::Rows(vec![batch(&[row("b", 3, 0, 1)])]), &txn).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.message().contains("belongs to another checkpoint"), "{error}");
    assert!(error.report().contains("_tidegate/deletes/silver/orders"), "{}", error.report());
    std::fs::remove_dir_all(lake.folder.path().join("_tidegate/deletes/silver/orders")).unwrap();
    table.apply(Change::Rows(vec![batch(&[row("b", 3, 0, 1)])]), &txn).await.unwrap();
    assert_eq!(lake.count().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_noticed_and_its_undoing_too() {
    let lake = Lake::new();
    let mut table = lake.open(definition(upsert()));
    for number in 0..3 {
        table.apply(Change::Rows(vec![batch(&[row("a", number, number, number)])]), &txn(number)).await.unwrap();
    }
    let app_id = txn(0).app_id;
    let before = table.observe(&app_id).await.unwrap();
    assert!(!before.restored);
    lake.restore(before.version.unwrap() - 1).await;
    let after = lake.open(definition(upsert())).observe(&app_id).await.unwrap();
    assert_eq!((after.applied, after.restored), (Some(2), true), "the batch number alone does not tell");
    // A run in the middle of its work sees it at its next batch.
    let error = table.apply(Change::Rows(vec![batch(&[row("a", 9, 9, 9)])]), &txn(3)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.message().contains("was restored"), "{error}");
    lake.restore(before.version.unwrap()).await;
    assert!(!table.observe(&app_id).await.unwrap().restored);
    table.apply(Change::Rows(vec![batch(&[row("a", 9, 9, 9)])]), &txn(3)).await.unwrap();
    assert_eq!(contents(&mut table).await["a"], (9, 9));
    assert!(!table.observe(&app_id).await.unwrap().restored);
}
