//! What others did to a table since the last batch, and rows of a batch read back.

use super::*;

/// What somebody does with another library.
async fn delete_rows(lake: &Lake, predicate: &str) {
    let url = url::Url::from_directory_path(lake.path()).unwrap();
    let table = deltalake::open_table(url).await.unwrap();
    table.delete().with_predicate(predicate).await.unwrap();
}

fn bronze() -> TableDefinition {
    let mut fields = stored_fields();
    fields.push(Field::new("_batch_id", DataType::Int64, true));
    TableDefinition { schema: Arc::new(Schema::new(fields)), watched: vec![], ..definition(WriteMode::Append) }
}

/// Rows of one batch, as bronze keeps them.
fn of_batch(number: i64, rows: &[Row]) -> Change {
    let plain = batch(rows);
    let mut columns = plain.columns()[..7].to_vec();
    columns.push(Arc::new(Int64Array::from(vec![number; rows.len()])));
    Change::Rows(vec![RecordBatch::try_new(bronze().schema, columns).unwrap()])
}

async fn count_added(table: &mut Box<dyn Table>, batch: i64) -> usize {
    table.added(&txn(batch), "_batch_id").await.unwrap().iter().map(RecordBatch::num_rows).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_read_back_whole_from_wherever_its_rows_were_moved_to() {
    let lake = Lake::new();
    let mut table = lake.open(bronze());
    for number in 0..3 {
        let rows = [row("a", number, 2 * number, 1), row("b", number, 2 * number + 1, 1)];
        table.apply(of_batch(number, &rows), &txn(number)).await.unwrap();
    }
    table.observe(&txn(0).app_id).await.unwrap();
    assert_eq!(count_added(&mut table, 2).await, 2);
    let url = url::Url::from_directory_path(lake.path()).unwrap();
    deltalake::open_table(url).await.unwrap().optimize().await.unwrap();
    let mut table = lake.open(bronze());
    assert!(table.observe(&txn(0).app_id).await.unwrap().foreign.is_empty(), "the same rows in one file");
    let rows = table.added(&txn(2), "_batch_id").await.unwrap();
    let offsets: Vec<i64> =
        rows.iter().flat_map(|rows| rows["_offset"].as_primitive::<Int64Type>().values().to_vec()).collect();
    assert_eq!(offsets, [4, 5]);
    assert_eq!(rows[0].num_columns(), 8, "every column");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_rows_may_have_been_changed_is_not_read_back() {
    let lake = Lake::new();
    let mut table = lake.open(bronze());
    let rows = [row("a", 1, 0, 1), row("b", 1, 1, 1)];
    table.apply(of_batch(0, &rows), &txn(0)).await.unwrap();
    delete_rows(&lake, "order_id = 'a'").await;
    let state = table.observe(&txn(0).app_id).await.unwrap();
    let [write] = state.foreign.as_slice() else { panic!("{:?}", state.foreign) };
    assert_eq!((write.version, write.operation.as_str(), write.rows), (2, "DELETE", Some(1)));
    let error = table.added(&txn(0), "_batch_id").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.message().contains("changed by others since batch 0 (version 2: DELETE"), "{error}");

    // Rows that carry another number than their batch are fewer than were written.
    let lake = Lake::new();
    let mut table = lake.open(bronze());
    table.apply(of_batch(7, &rows), &txn(0)).await.unwrap();
    let error = table.added(&txn(0), "_batch_id").await.unwrap_err();
    assert!(error.message().contains("has 0 rows of batch 0, and 2 were written"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_changed_is_in_the_receipt_of_the_next_batch_and_only_there() {
    for write in [WriteMode::Append, upsert()] {
        let lake = Lake::new();
        let mut table = lake.open(definition(write));
        let rows = |n: i64| Change::Rows(vec![batch(&[row(&format!("k{n}"), n, n, 1)])]);
        table.apply(rows(0), &txn(0)).await.unwrap();
        table.observe(&txn(0).app_id).await.unwrap();
        // In the middle of a run: nobody looks before the next batch is applied.
        delete_rows(&lake, "order_id = 'k0'").await;
        let receipt = table.apply(rows(1), &txn(1)).await.unwrap();
        assert_eq!(receipt.foreign.iter().map(|write| write.version).collect::<Vec<_>>(), [2]);
        // Between two runs.
        delete_rows(&lake, "order_id = 'k1'").await;
        let mut table = lake.open(table.definition().clone());
        assert_eq!(table.observe(&txn(0).app_id).await.unwrap().foreign.len(), 1);
        assert_eq!(table.apply(rows(2), &txn(2)).await.unwrap().foreign.len(), 1);
        assert_eq!(table.apply(rows(3), &txn(3)).await.unwrap().foreign, []);
        assert_eq!(lake.count().await, 2);
    }
}

/// The memory of deletes, as another library sees it.
async fn memory_of(lake: &Lake) -> deltalake::DeltaTable {
    let below = format!("_tidegate/deletes/{}", TABLE.replace('.', "/"));
    let url = url::Url::from_directory_path(lake.folder.path().join(below)).unwrap();
    deltalake::open_table(url).await.unwrap()
}

async fn restore_memory(lake: &Lake, version: u64) {
    memory_of(lake).await.restore().with_version_to_restore(version).await.unwrap();
}

/// Two deletes, each in a batch of its own: the memory is at version 2.
async fn two_deletes(lake: &Lake) -> Box<dyn Table> {
    let mut table = lake.open(definition(upsert()));
    for (number, key) in [(0, "a"), (1, "b")] {
        let rows = [row(key, 1, 2 * number, 1), delete(key, 5, 2 * number + 1)];
        table.apply(Change::Rows(vec![batch(&rows)]), &txn(number)).await.unwrap();
    }
    assert_eq!(memory_of(lake).await.version(), Some(2));
    table
}

fn late(number: i64) -> Change {
    Change::Rows(vec![batch(&[row("b", 4, 10 + number, 1), delete("c", 1, 20 + number)])])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_of_deletes_that_others_restored_or_changed_is_noticed_until_that_is_undone() {
    let lake = Lake::new();
    two_deletes(&lake).await;
    let harmed = async || {
        let state = lake.open(definition(upsert())).observe(&txn(0).app_id).await.unwrap();
        assert!(state.memory >= Some(2), "{state:?}");
        state.memory_harmed
    };
    assert!(!harmed().await);
    memory_of(&lake).await.optimize().await.unwrap();
    assert!(!harmed().await, "the same deletes in one file");
    restore_memory(&lake, 1).await;
    assert!(harmed().await, "the delete of b is gone");
    memory_of(&lake).await.optimize().await.unwrap();
    assert!(harmed().await, "a restore, then compacted");
    restore_memory(&lake, 2).await;
    assert!(!harmed().await, "undone");
    let before = memory_of(&lake).await.version().unwrap();
    memory_of(&lake).await.delete().with_predicate("order_id = 'a'").await.unwrap();
    assert!(harmed().await, "a delete was deleted");
    restore_memory(&lake, before).await;
    assert!(!harmed().await, "undone");
    let mut table = lake.open(definition(upsert()));
    table.apply(late(2), &txn(2)).await.unwrap();
    assert_eq!(contents(&mut table).await.len(), 0, "nobody came back");
    assert!(!harmed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_of_deletes_that_is_restored_while_a_run_works_stops_it_before_a_row_is_written() {
    let lake = Lake::new();
    let mut table = two_deletes(&lake).await;
    restore_memory(&lake, 1).await;
    for _ in 0..2 {
        let error = table.apply(late(2), &txn(2)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.message().contains("memory of deletes of silver.orders was restored"), "{error}");
    }
    assert_eq!(contents(&mut table).await.len(), 0, "b was not revived");
    restore_memory(&lake, 2).await;
    table.apply(late(2), &txn(2)).await.unwrap();
    assert_eq!(contents(&mut table).await.len(), 0);
}

/// As a copy of yesterday does, or whoever deletes an entry of the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_put_back_while_a_run_works_stops_it_before_a_row_is_written() {
    let put_back = |folder: &std::path::Path| {
        let entries = std::fs::read_dir(folder.join("_delta_log")).unwrap().map(|entry| entry.unwrap().path());
        let newest = entries.filter(|path| path.extension().is_some_and(|extension| extension == "json")).max();
        std::fs::remove_file(newest.unwrap()).unwrap();
    };
    let key = |number: i64| ["a", "b", "c", "d"][number as usize];
    let rows = |number: i64| Change::Rows(vec![batch(&[row(key(number), number, number, 1)])]);
    let lake = Lake::new();
    let mut table = lake.open(definition(WriteMode::Append));
    for number in 0..3 {
        table.apply(rows(number), &txn(number)).await.unwrap();
    }
    put_back(&lake.path());
    let error = table.apply(rows(3), &txn(3)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert_eq!(contents(&mut lake.open(definition(WriteMode::Append))).await.len(), 2, "what the copy has");

    let lake = Lake::new();
    let mut table = two_deletes(&lake).await;
    put_back(&lake.folder.path().join("_tidegate/deletes").join(TABLE.replace('.', "/")));
    let error = table.apply(late(2), &txn(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert_eq!(contents(&mut table).await.len(), 0, "b was not revived");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_noticed_however_much_was_committed_after_it() {
    let lake = Lake::new();
    let mut table = lake.open(definition(WriteMode::Append));
    for number in 0..2 {
        let rows = Change::Rows(vec![batch(&[row("a", number, number, 1)])]);
        table.apply(rows, &txn(number)).await.unwrap();
    }
    let url = url::Url::from_directory_path(lake.path()).unwrap();
    let other = deltalake::open_table(url).await.unwrap();
    let (other, _) = other.restore().with_version_to_restore(1).await.unwrap();
    let restored = other.version().unwrap();
    // Another program's commits that change nothing.
    for version in restored + 1..=restored + 300 {
        let entry = lake.path().join(format!("_delta_log/{version:020}.json"));
        std::fs::write(entry, "{\"commitInfo\":{\"operation\":\"SET TBLPROPERTIES\"}}").unwrap();
    }
    let mut table = lake.open(definition(WriteMode::Append));
    let state = table.observe(&txn(0).app_id).await.unwrap();
    assert_eq!((state.version, state.restored), (Some(restored as i64 + 300), true));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_table_would_refuse_are_found_before_anything_is_written() {
    let lake = Lake::new();
    let mut table = lake.open(definition(upsert()));
    table.apply(Change::Rows(vec![batch(&[row("a", 1, 0, 1)])]), &txn(0)).await.unwrap();
    // The pipeline file no longer says `not null`, the table still does.
    let relaxed: Vec<Field> = stored_fields().into_iter().map(|field| field.with_nullable(true)).collect();
    let mut table = lake.open(TableDefinition { schema: Arc::new(Schema::new(relaxed)), ..definition(upsert()) });
    table.observe(&txn(0).app_id).await.unwrap();
    let nulled = |delete: bool| {
        let whole = batch(&[Row { delete, ..row("b", 2, 1, 1) }]);
        let fields: Vec<Field> =
            whole.schema().fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
        let mut columns = whole.columns().to_vec();
        columns[0] = Arc::new(StringArray::from(vec![None::<&str>]));
        Change::Rows(vec![RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()])
    };
    assert_eq!(table.check(&nulled(false)).await.unwrap_err().kind(), ErrorKind::Data);
    table.check(&nulled(true)).await.unwrap();
    table.check(&Change::Rows(vec![batch(&[row("c", 3, 2, 1)])])).await.unwrap();
}
