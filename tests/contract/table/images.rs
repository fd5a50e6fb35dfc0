//! What a batch did to the rows of a table: its rows before, without those that went and with those that came, are its rows
//! after it. And whether anybody has changed a row since a version.

use tidegate::table::maintain::{Compaction, Depth};

use super::*;

const COLUMNS: [&str; 3] = ["order_id", "city", "amount"];

fn imaged(write: WriteMode) -> TableDefinition {
    let imaged = ["amount", "order_id", "updated_at", "city"].map(String::from).to_vec();
    TableDefinition { imaged, partition_by: vec!["city".into()], ..definition(write) }
}

fn columns() -> Vec<String> {
    COLUMNS.map(String::from).to_vec()
}

/// Rows as a multiset.
fn tally(batches: &[RecordBatch]) -> BTreeMap<String, i64> {
    let mut rows = BTreeMap::new();
    for batch in batches {
        assert_eq!(batch.schema().fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>(), COLUMNS);
        for at in 0..batch.num_rows() {
            let text = |column: usize| arrow::util::display::array_value_to_string(batch.column(column), at).unwrap();
            *rows.entry(format!("{}|{}|{}", text(0), text(1), text(2))).or_insert(0) += 1;
        }
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rows_before_and_the_images_are_the_rows_after() {
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    for write in [upsert(), WriteMode::Append] {
        let lake = Lake::new();
        let mut table = lake.open(imaged(write));
        let mut before = BTreeMap::new();
        for number in 0..12 {
            let rows = random_rows(&mut random, 40, 60);
            table.apply(Change::Rows(vec![batch(&rows)]), &txn(number)).await.unwrap();
            let images = table.images(&columns(), &txn(number)).expect("the batch was applied here");
            for (row, count) in tally(&images.came) {
                *before.entry(row).or_insert(0) += count;
            }
            for (row, count) in tally(&images.gone) {
                *before.entry(row).or_insert(0) -= count;
            }
            before.retain(|_, count| *count != 0);
            let after = lake.open(imaged(upsert())).read(&columns(), None).await.unwrap();
            assert_eq!(before, tally(&after), "batch {number}");
        }
        assert!(table.images(&columns(), &txn(3)).is_none(), "only of the last batch");
        assert!(table.images(&["_topic".to_owned()], &txn(11)).is_none(), "a column that nobody asked for");
        let mut other = lake.open(imaged(upsert()));
        other.observe(&txn(11).app_id).await.unwrap();
        assert!(other.images(&columns(), &txn(11)).is_none(), "somebody else applied it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_that_are_replaced_have_images_too() {
    let lake = Lake::new();
    let mut table = lake.open(imaged(refresh()));
    let schema = Arc::new(Schema::new(vec![Field::new("city", DataType::Utf8, true)]));
    let oslo = RecordBatch::try_new(schema, vec![Arc::new(StringArray::from(vec!["oslo"]))]).unwrap();
    for amount in [1, 2] {
        let change = Change::Groups { groups: oslo.clone(), rows: vec![batch(&[row("a", 1, 1, amount)])] };
        table.apply(change, &txn(amount)).await.unwrap();
    }
    let images = table.images(&columns(), &txn(2)).unwrap();
    assert_eq!(tally(&images.gone).into_keys().collect::<Vec<_>>(), ["a|oslo|1"]);
    assert_eq!(tally(&images.came).into_keys().collect::<Vec<_>>(), ["a|oslo|2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_commits_that_change_a_row_change_the_table() {
    let lake = Lake::new();
    let mut table = lake.open(definition(upsert()));
    let mut versions = Vec::new();
    for number in 0..3 {
        let rows = vec![batch(&[row(&format!("k{number}"), 1, number, 1)])];
        versions.push(table.apply(Change::Rows(rows), &txn(number)).await.unwrap().delta_version);
    }
    assert!(table.is_unchanged(versions[2], None).await.unwrap());
    assert!(table.is_unchanged(versions[1], Some(versions[1])).await.unwrap());
    assert!(!table.is_unchanged(versions[1], Some(versions[2])).await.unwrap(), "a batch of this very process counts");
    assert!(!table.is_unchanged(versions[2], Some(versions[1])).await.unwrap(), "a table that went back");
    // The same rows in other files, and a batch without a row.
    let order =
        Compaction { depth: Depth::Everything, target_bytes: 1 << 30, max_bytes: 1 << 30, until: None, dry_run: false };
    table.compact(&order).await.unwrap();
    let nothing = table.apply(Change::Rows(Vec::new()), &txn(3)).await.unwrap().delta_version;
    assert!(nothing > versions[2] + 1, "there was something to merge");
    assert!(table.is_unchanged(versions[2], None).await.unwrap());
    lake.restore(versions[1]).await;
    assert!(!table.is_unchanged(versions[2], None).await.unwrap());
}
