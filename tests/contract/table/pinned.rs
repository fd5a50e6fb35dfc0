//! Changes that were computed from what a table held: written only while it still does. Rows by their time.

use chrono::{DateTime, NaiveDate};
use tidegate::model::interval::Interval;
use tidegate::table::Span;

use super::*;

const DAY: i64 = 86_400_000_000;

fn span(from: i64, until: i64) -> Span {
    let at = |micros: i64| DateTime::from_timestamp_micros(micros).unwrap();
    let date = |micros: i64| at(micros).date_naive();
    let interval = Interval { start: at(from), end: at(until) };
    Span { column: "updated_at".into(), interval, dates: (date(from), date(until)) }
}

fn beside(batch: i64) -> Txn {
    Txn { app_id: "tidegate:p-1:silver.orders:backfill:x".into(), batch, ..txn(batch) }
}

async fn amounts(lake: &Lake) -> Vec<i64> {
    let rows = lake.sql("SELECT amount FROM t ORDER BY amount").await;
    rows.iter().flat_map(|rows| rows.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_span_are_replaced_and_no_others() {
    let lake = Lake::new();
    let mut table = lake.open(definition(WriteMode::Append));
    let times = [0, DAY - 1, DAY, DAY + 1, 2 * DAY - 1, 2 * DAY, 5 * DAY];
    for (number, time) in times.iter().enumerate() {
        let number = i64::try_from(number).unwrap();
        table.apply(Change::Rows(vec![batch(&[row("a", *time, number, number)])]), &txn(number)).await.unwrap();
    }
    let live = &txn(0).app_id;
    let found = table.read_span(&["amount".into()], &span(DAY, 2 * DAY)).await.unwrap();
    assert_eq!(found.iter().map(RecordBatch::num_rows).sum::<usize>(), 3, "half-open");
    assert_eq!(table.first_time("updated_at").await.unwrap(), DateTime::from_timestamp_micros(0));
    let change = || Change::Replace { span: span(DAY, 2 * DAY), rows: vec![batch(&[row("n", DAY + 5, 9, 100)])] };
    let pin = table.pin(live).await.unwrap();
    assert_eq!(pin.applied, Some(6));
    let receipt = table.apply_at(change(), &beside(0), &pin).await.unwrap().expect("nobody else was there");
    assert_eq!((receipt.inserted, receipt.deleted), (1, 3));
    assert_eq!(amounts(&lake).await, [0, 1, 5, 6, 100]);
    // The live pipeline's batch number is where it was, and the same run is not done twice.
    let pin = table.pin(live).await.unwrap();
    assert_eq!(pin.applied, Some(6));
    assert!(table.apply_at(change(), &beside(0), &pin).await.unwrap().unwrap().already_applied);
    let outside = Change::Replace { span: span(DAY, 2 * DAY), rows: vec![batch(&[row("n", 2 * DAY, 9, 100)])] };
    let error = table.apply_at(outside, &beside(1), &pin).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert_eq!(amounts(&lake).await, [0, 1, 5, 6, 100]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_for_a_table_that_moved_on_is_not_written() {
    let lake = Lake::new();
    let (mut live, mut other) = (lake.open(definition(refresh())), lake.open(definition(refresh())));
    let schema = Arc::new(Schema::new(vec![Field::new("city", DataType::Utf8, true)]));
    let oslo = RecordBatch::try_new(schema, vec![Arc::new(StringArray::from(vec!["oslo"]))]).unwrap();
    let change = |amount: i64| Change::Groups { groups: oslo.clone(), rows: vec![batch(&[row("a", 1, 1, amount)])] };
    let nothing = live.pin(&txn(0).app_id).await.unwrap();
    assert_eq!((nothing.version, nothing.applied), (None, None));
    assert!(live.apply_at(change(1), &txn(0), &nothing).await.unwrap().is_some(), "a table that it makes itself");
    let stale = other.pin(&txn(0).app_id).await.unwrap();
    let pin = live.pin(&txn(0).app_id).await.unwrap();
    assert!(live.apply_at(change(2), &txn(1), &pin).await.unwrap().is_some());
    assert!(other.apply_at(change(0), &beside(0), &stale).await.unwrap().is_none(), "stale rows");
    assert_eq!(amounts(&lake).await, [2]);
    let fresh = other.pin(&txn(0).app_id).await.unwrap();
    assert_eq!(fresh.applied, Some(1));
    assert!(other.apply_at(change(3), &beside(0), &fresh).await.unwrap().is_some());
    // And the live run, which knows the table from before.
    assert!(live.apply_at(change(4), &txn(2), &pin).await.unwrap().is_none());
    let pin = live.pin(&txn(0).app_id).await.unwrap();
    assert!(live.apply_at(change(4), &txn(2), &pin).await.unwrap().is_some());
    assert_eq!(amounts(&lake).await, [4]);
    assert_eq!(live.observe(&txn(0).app_id).await.unwrap().foreign, [], "a backfill is no stranger");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_added_where_their_id_is_missing() {
    let lake = Lake::new();
    let mut table = lake.open(definition(WriteMode::Append));
    table.apply(Change::Rows(vec![batch(&[row("a", 1, 1, 1), row("b", 2, 2, 2)])]), &txn(0)).await.unwrap();
    let rows = || vec![batch(&[row("b", 3, 3, 3), row("c", 4, 4, 4)])];
    let unless = |city: &str| {
        let except = ("city".to_owned(), city.to_owned());
        Change::Missing { column: "order_id".into(), except, rows: rows() }
    };
    let change = || unless("nowhere");
    let receipt = table.apply(change(), &beside(0)).await.unwrap();
    assert_eq!(receipt.inserted, 1);
    assert_eq!(table.apply(change(), &beside(1)).await.unwrap().inserted, 0);
    assert_eq!(amounts(&lake).await, [1, 2, 4]);
    assert_eq!(table.apply(unless("oslo"), &beside(2)).await.unwrap().inserted, 2, "rows of oslo do not count");
}

#[tokio::test(flavor = "multi_thread")]
async fn dates_are_in_the_span_of_their_days() {
    let lake = Lake::new();
    let schema = Arc::new(Schema::new(vec![Field::new("updated_at", DataType::Date32, true)]));
    let definition = TableDefinition { schema: schema.clone(), watched: vec![], ..definition(WriteMode::Append) };
    let mut table = lake.open(definition);
    let days: ArrayRef = Arc::new(arrow::array::Date32Array::from(vec![Some(0), Some(1), Some(2), None]));
    let rows = RecordBatch::try_new(schema, vec![days]).unwrap();
    table.apply(Change::Rows(vec![rows]), &txn(0)).await.unwrap();
    let one =
        Span { dates: (NaiveDate::from_epoch_days(1).unwrap(), NaiveDate::from_epoch_days(2).unwrap()), ..span(0, 1) };
    let found = table.read_span(&[], &one).await.unwrap();
    assert_eq!(found.iter().map(RecordBatch::num_rows).sum::<usize>(), 1);
}
