//! What every table promises (see `tidegate::table`), proven on Delta tables in local folders against an oracle that
//! knows nothing of Delta: a hash map. Random tests print their seed and take it from `TIDEGATE_SEED`.

// Tests break files on purpose, and a panic is how they fail.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod forget;
mod images;
mod maintain;
mod others;
mod pinned;
mod traps;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use deltalake::datafusion::prelude::SessionContext;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;
use tidegate::config::spec::LookupSpec;
use tidegate::error::ErrorKind;
use tidegate::storage::{self, Storage};
use tidegate::table::{Change, Maker, Table, TableDefinition, Txn, WriteMode, delta, lookup};

const TABLE: &str = "silver.orders";

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    updated_at: i64,
    partition: i32,
    offset: i64,
    delete: bool,
    key: String,
    city: Option<String>,
    amount: i64,
}

fn time() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

fn stored_fields() -> Vec<Field> {
    vec![
        Field::new("order_id", DataType::Utf8, false),
        Field::new("city", DataType::Utf8, true),
        Field::new("amount", DataType::Int64, true),
        Field::new("updated_at", time(), true),
        Field::new("_topic", DataType::Utf8, true),
        Field::new("_partition", DataType::Int32, true),
        Field::new("_offset", DataType::Int64, true),
    ]
}

fn stored() -> SchemaRef {
    Arc::new(Schema::new(stored_fields()))
}

fn batch(rows: &[Row]) -> RecordBatch {
    let mut fields = stored_fields();
    fields.push(Field::new("_delete", DataType::Boolean, true));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.key))),
        Arc::new(StringArray::from_iter(rows.iter().map(|r| r.city.as_ref()))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.amount))),
        Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| r.updated_at)).with_timezone("UTC")),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|_| "orders"))),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.partition))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.offset))),
        Arc::new(BooleanArray::from_iter(rows.iter().map(|r| Some(r.delete)))),
    ];
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

fn row(key: &str, updated_at: i64, offset: i64, amount: i64) -> Row {
    let city = Some("oslo".to_owned());
    Row { updated_at, partition: 0, offset, delete: false, key: key.to_owned(), city, amount }
}

fn delete(key: &str, updated_at: i64, offset: i64) -> Row {
    Row { delete: true, ..row(key, updated_at, offset, 0) }
}

fn maker() -> Maker {
    Maker { pipeline: "orders".into(), pipeline_id: "p-1".into() }
}

fn definition(write: WriteMode) -> TableDefinition {
    TableDefinition {
        name: TABLE.into(),
        schema: stored(),
        partition_by: Vec::new(),
        write,
        watched: vec![vec!["city".into()]],
        imaged: Vec::new(),
        maker: maker(),
    }
}

fn upsert() -> WriteMode {
    WriteMode::Upsert {
        key: vec!["order_id".into()],
        order_by: vec!["updated_at".into()],
        delete_flag: Some("_delete".into()),
    }
}

fn refresh() -> WriteMode {
    WriteMode::Refresh { by: vec!["city".into()] }
}

fn txn(batch: i64) -> Txn {
    let user_metadata = format!("{{\"batch\":{batch}}}");
    Txn { app_id: "tidegate:p-1:silver.orders".into(), batch, user_metadata }
}

struct Lake {
    folder: TempDir,
    storage: Storage,
}

impl Lake {
    fn new() -> Lake {
        let folder = tempfile::tempdir().unwrap();
        let storage = storage::open(folder.path().to_str().unwrap()).unwrap();
        Lake { folder, storage }
    }

    fn open(&self, definition: TableDefinition) -> Box<dyn Table> {
        delta::open(&self.storage, definition).unwrap()
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("silver/orders")
    }

    /// Through deltalake's own reader and DataFusion: nothing of ours takes part.
    async fn sql(&self, query: &str) -> Vec<RecordBatch> {
        let url = url::Url::from_directory_path(self.path()).unwrap();
        let table = deltalake::open_table(url).await.unwrap();
        let context = SessionContext::new();
        context.register_table("t", table.table_provider().await.unwrap()).unwrap();
        context.sql(query).await.unwrap().collect().await.unwrap()
    }

    /// What somebody does by hand.
    async fn restore(&self, version: i64) {
        let url = url::Url::from_directory_path(self.path()).unwrap();
        let table = deltalake::open_table(url).await.unwrap();
        table.restore().with_version_to_restore(version as u64).await.unwrap();
    }

    async fn count(&self) -> i64 {
        let rows = self.sql("SELECT count(*) AS n FROM t").await;
        rows[0].column(0).as_primitive::<Int64Type>().value(0)
    }
}

/// (key → (amount, updated_at)) of a table.
async fn contents(table: &mut Box<dyn Table>) -> BTreeMap<String, (i64, i64)> {
    let columns = ["order_id", "amount", "updated_at"].map(String::from);
    let mut found = BTreeMap::new();
    for batch in table.read(&columns, None).await.unwrap() {
        for at in 0..batch.num_rows() {
            let key = batch.column(0).as_string::<i32>().value(at).to_owned();
            let amount = batch.column(1).as_primitive::<Int64Type>().value(at);
            let time = batch.column(2).as_primitive::<arrow::datatypes::TimestampMicrosecondType>().value(at);
            assert!(found.insert(key.clone(), (amount, time)).is_none(), "key {key} twice");
        }
    }
    found
}

fn strings(batch: &RecordBatch) -> Vec<Option<String>> {
    let column = batch.column(0).as_string::<i32>();
    let mut values: Vec<_> = column.iter().map(|v| v.map(str::to_owned)).collect();
    values.sort();
    values
}

/// The newest row of every key, however the rows were cut.
fn oracle(rows: &[Row]) -> BTreeMap<String, (i64, i64)> {
    let mut newest: HashMap<&str, &Row> = HashMap::new();
    for row in rows {
        let best = newest.entry(&row.key).or_insert(row);
        if row > *best {
            *best = row;
        }
    }
    newest.into_values().filter(|r| !r.delete).map(|r| (r.key.clone(), (r.amount, r.updated_at))).collect()
}

fn seed() -> u64 {
    let seed = std::env::var("TIDEGATE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand_seed);
    eprintln!("TIDEGATE_SEED={seed}");
    seed
}

fn rand_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

fn random_rows(random: &mut ChaCha8Rng, count: usize, keys: usize) -> Vec<Row> {
    let mut offsets = [0i64; 3];
    let cities = [None, Some("oslo"), Some("rome"), Some("lima")];
    (0..count)
        .map(|_| {
            let partition = random.random_range(0..3usize);
            offsets[partition] += 1;
            Row {
                // Few distinct times: ties and late rows are the rule.
                updated_at: random.random_range(0..20),
                partition: partition as i32,
                offset: offsets[partition],
                delete: random.random_bool(0.2),
                key: format!("k{}", random.random_range(0..keys)),
                city: cities[random.random_range(0..4)].map(str::to_owned),
                amount: random.random_range(0..1000),
            }
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_row_of_each_key_remains_however_the_rows_are_cut() {
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let rows = random_rows(&mut random, 600, 80);
    let expected = oracle(&rows);
    for (pieces, partition_by) in [(1, vec![]), (7, vec!["city".to_owned()]), (50, vec![])] {
        let lake = Lake::new();
        let mut table = lake.open(TableDefinition { partition_by, ..definition(upsert()) });
        let mut cuts: Vec<usize> = (1..pieces).map(|_| random.random_range(0..=rows.len())).collect();
        cuts.extend([0, rows.len()]);
        cuts.sort_unstable();
        let mut receipts = (0, 0, 0);
        for (number, cut) in cuts.windows(2).enumerate() {
            let change = Change::Rows(vec![batch(&rows[cut[0]..cut[1]])]);
            let receipt = table.apply(change, &txn(number as i64)).await.unwrap();
            assert!(!receipt.already_applied);
            let kept = receipt.inserted + receipt.updated + receipt.deleted;
            let given = (cut[1] - cut[0]) as u64;
            assert_eq!(
                kept + receipt.superseded + receipt.remembered,
                given,
                "every row is accounted for: {receipt:?}"
            );
            receipts = (receipts.0 + receipt.inserted, receipts.1 + receipt.updated, receipts.2 + receipt.deleted);
        }
        assert_eq!(contents(&mut table).await, expected, "{pieces} pieces");
        assert_eq!(lake.count().await, expected.len() as i64);
        assert_eq!(receipts.0 - receipts.2, expected.len() as u64, "inserted - deleted = rows there");
        let state = table.observe(&txn(0).app_id).await.unwrap();
        assert_eq!(state.applied, Some(pieces as i64 - 1));
        assert_eq!(state.made_by, Some(maker()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_applied_once() {
    let lake = Lake::new();
    for write in [WriteMode::Append, upsert()] {
        let mut table = lake
            .open(TableDefinition { name: format!("x.{}", matches!(write, WriteMode::Append)), ..definition(write) });
        let change = || Change::Rows(vec![batch(&[row("a", 1, 0, 1), row("b", 1, 1, 2)])]);
        let first = table.apply(change(), &txn(4)).await.unwrap();
        assert_eq!((first.inserted, first.already_applied), (2, false));
        for batch in [4, 3] {
            let again = table.apply(change(), &txn(batch)).await.unwrap();
            assert!(again.already_applied);
            assert_eq!((again.inserted, again.delta_version), (0, first.delta_version));
        }
        assert_eq!(contents(&mut table).await.len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_without_effect_is_recorded() {
    let lake = Lake::new();
    let mut table = lake.open(definition(upsert()));
    table.apply(Change::Rows(vec![batch(&[row("a", 5, 0, 1)])]), &txn(0)).await.unwrap();
    let late = table.apply(Change::Rows(vec![batch(&[row("a", 3, 1, 9)])]), &txn(1)).await.unwrap();
    assert_eq!((late.superseded, late.updated, late.files_added), (1, 0, 0));
    let empty = table.apply(Change::Rows(vec![]), &txn(2)).await.unwrap();
    assert_eq!(empty.files_added, 0);
    assert_eq!(table.observe(&txn(0).app_id).await.unwrap().applied, Some(2));
    assert_eq!(contents(&mut table).await["a"], (1, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_row_does_not_revive_a_deleted_key() {
    let lake = Lake::new();
    let mut table = lake.open(definition(upsert()));
    let mut at = 0;
    #[allow(clippy::explicit_counter_loop, reason = "a batch number, of the type that batches have")]
    for (rows, expected) in [
        (vec![row("a", 5, 0, 1)], Some(1)),
        (vec![delete("a", 7, 1)], None),
        (vec![row("a", 6, 2, 2)], None),
        (vec![delete("ghost", 9, 3)], None),
        (vec![row("ghost", 8, 4, 3)], None),
        (vec![row("a", 8, 5, 4)], Some(4)),
        (vec![delete("a", 7, 6)], Some(4)),
    ] {
        table.apply(Change::Rows(vec![batch(&rows)]), &txn(at)).await.unwrap();
        let found = contents(&mut table).await;
        assert_eq!(found.get("a").map(|(amount, _)| *amount), expected, "batch {at}");
        assert!(!found.contains_key("ghost"));
        at += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_the_memory_of_deletes_and_the_table_is_repaired_by_the_replay() {
    let lake = Lake::new();
    let mut table = lake.open(definition(upsert()));
    table.apply(Change::Rows(vec![batch(&[row("a", 1, 0, 1), row("b", 1, 1, 1)])]), &txn(0)).await.unwrap();
    let before = std::fs::read_dir(lake.path().join("_delta_log")).unwrap().count();
    let change = || Change::Rows(vec![batch(&[delete("a", 2, 2), row("b", 2, 3, 5)])]);
    table.apply(change(), &txn(1)).await.unwrap();
    // Undo the table's commit: what a crash before it leaves behind.
    let log = lake.path().join("_delta_log");
    assert_eq!(std::fs::read_dir(&log).unwrap().count(), before + 1);
    std::fs::remove_file(log.join(format!("{:020}.json", before))).unwrap();
    let mut table = lake.open(definition(upsert()));
    assert_eq!(table.observe(&txn(0).app_id).await.unwrap().applied, Some(0));
    assert_eq!(contents(&mut table).await.len(), 2);
    let receipt = table.apply(change(), &txn(1)).await.unwrap();
    assert_eq!((receipt.deleted, receipt.updated), (1, 1));
    assert_eq!(contents(&mut table).await, BTreeMap::from([("b".to_owned(), (5, 2))]));
}

#[tokio::test(flavor = "multi_thread")]
async fn refresh_replaces_whole_groups_and_lets_empty_ones_vanish() {
    let lake = Lake::new();
    for partition_by in [vec![], vec!["city".to_owned()]] {
        let name = format!("gold.t{}", partition_by.len());
        let mut table = lake.open(TableDefinition { name, partition_by, ..definition(refresh()) });
        let in_city =
            |key: &str, city: Option<&str>, amount| Row { city: city.map(str::to_owned), ..row(key, 1, 0, amount) };
        let groups = |cities: &[Option<&str>]| {
            let schema = Arc::new(Schema::new(vec![Field::new("city", DataType::Utf8, true)]));
            RecordBatch::try_new(schema, vec![Arc::new(StringArray::from(cities.to_vec()))]).unwrap()
        };
        let rows = vec![batch(&[in_city("a", Some("oslo"), 1), in_city("b", Some("rome"), 2), in_city("c", None, 3)])];
        let cities = groups(&[Some("oslo"), Some("rome"), None]);
        table.apply(Change::Groups { groups: cities, rows }, &txn(0)).await.unwrap();
        let rows = vec![batch(&[in_city("d", Some("oslo"), 4), in_city("e", Some("oslo"), 5)])];
        let receipt =
            table.apply(Change::Groups { groups: groups(&[Some("oslo"), None]), rows }, &txn(1)).await.unwrap();
        assert_eq!((receipt.inserted, receipt.deleted), (2, 2));
        let found: Vec<_> = contents(&mut table).await.into_keys().collect();
        assert_eq!(found, ["b", "d", "e"]);
        let touched = table.touched(&["city".to_owned()], &txn(1)).await.unwrap();
        assert_eq!(strings(&touched), [None, Some("oslo".to_owned())]);
        let only = table.read(&["order_id".to_owned()], Some(&groups(&[Some("rome"), Some("lima")]))).await.unwrap();
        assert_eq!(only.iter().flat_map(strings).collect::<Vec<_>>(), [Some("b".to_owned())]);
        assert_eq!(only[0].num_columns(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn touched_names_old_and_new_groups_and_never_too_few_after_a_crash() {
    let lake = Lake::new();
    let mut table = lake.open(definition(upsert()));
    let in_city = |key: &str, city: &str, time| Row { city: Some(city.to_owned()), ..row(key, time, time, 1) };
    let start = [in_city("a", "oslo", 1), in_city("b", "rome", 1), in_city("c", "lima", 1)];
    table.apply(Change::Rows(vec![batch(&start)]), &txn(0)).await.unwrap();
    let moves = [in_city("a", "bern", 2), Row { delete: true, ..in_city("b", "paris", 2) }, in_city("c", "kyiv", 0)];
    table.apply(Change::Rows(vec![batch(&moves)]), &txn(1)).await.unwrap();
    let by = ["city".to_owned()];
    let exact = strings(&table.touched(&by, &txn(1)).await.unwrap());
    assert_eq!(exact, ["bern", "oslo", "rome"].map(|c| Some(c.to_owned())));
    let mut other = lake.open(definition(upsert()));
    let from_log = strings(&other.touched(&by, &txn(1)).await.unwrap());
    assert!(exact.iter().all(|city| from_log.contains(city)), "{from_log:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_columns_are_added_and_changed_types_are_refused() {
    let lake = Lake::new();
    let mut table = lake.open(definition(WriteMode::Append));
    let narrow = batch(&[row("a", 1, 0, 1)]);
    let stored: Vec<usize> =
        (0..narrow.num_columns()).filter(|&at| narrow.schema().field(at).name() != "_delete").collect();
    table.apply(Change::Rows(vec![narrow.project(&stored).unwrap()]), &txn(0)).await.unwrap();

    let mut fields = stored_fields();
    fields.push(Field::new("_delete", DataType::Boolean, true));
    let wider = Arc::new(Schema::new(fields));
    let mut table = lake.open(TableDefinition { schema: wider, ..definition(WriteMode::Append) });
    table.apply(Change::Rows(vec![batch(&[row("b", 1, 1, 1)])]), &txn(1)).await.unwrap();
    let rows = lake.sql("SELECT order_id FROM t WHERE _delete IS NULL").await;
    assert_eq!(rows.iter().flat_map(strings_any).collect::<Vec<_>>(), ["a"]);
    assert_eq!(table.read(&["_delete".to_owned()], None).await.unwrap().iter().map(|b| b.num_rows()).sum::<usize>(), 2);

    let mut fields = stored_fields();
    fields[2] = Field::new("amount", DataType::Utf8, true);
    let changed = Arc::new(Schema::new(fields));
    let mut table = lake.open(TableDefinition { schema: changed, ..definition(WriteMode::Append) });
    let error = table.apply(Change::Rows(vec![batch(&[row("c", 1, 2, 1)])]), &txn(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.report().contains("amount: table has Int64, pipeline wants Utf8"), "{}", error.report());
    // Before a batch begins, too: half of the tables must not have it when it is found.
    let error = table.observe(&txn(0).app_id).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let mut as_it_was = lake.open(definition(WriteMode::Append));
    assert_eq!(as_it_was.observe(&txn(0).app_id).await.unwrap().applied, Some(1));
}

fn strings_any(batch: &RecordBatch) -> Vec<String> {
    let column = arrow::compute::cast(batch.column(0), &DataType::Utf8).unwrap();
    column.as_string::<i32>().iter().map(|v| v.unwrap_or("").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nulls_are_refused_where_the_table_forbids_them() {
    let lake = Lake::new();
    let mut table = lake.open(definition(WriteMode::Append));
    let whole = batch(&[row("a", 1, 0, 1)]);
    let schema: Vec<Field> = whole.schema().fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
    let mut columns = whole.columns().to_vec();
    columns[0] = Arc::new(StringArray::from(vec![None::<&str>]));
    let holed = RecordBatch::try_new(Arc::new(Schema::new(schema)), columns).unwrap();
    let error = table.apply(Change::Rows(vec![holed]), &txn(0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert_eq!(table.observe(&txn(0).app_id).await.unwrap().applied, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loser_of_two_runs_is_told_and_changes_nothing() {
    for write in [WriteMode::Append, upsert()] {
        let lake = Lake::new();
        let mut first = lake.open(definition(write.clone()));
        first.apply(Change::Rows(vec![batch(&[row("a", 1, 0, 1)])]), &txn(0)).await.unwrap();
        let mut zombie = lake.open(definition(write));
        assert_eq!(zombie.observe(&txn(0).app_id).await.unwrap().applied, Some(0));
        first.apply(Change::Rows(vec![batch(&[row("a", 2, 1, 2)])]), &txn(1)).await.unwrap();
        let expected = lake.count().await;
        let error = zombie.apply(Change::Rows(vec![batch(&[row("z", 9, 1, 9)])]), &txn(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        assert_eq!(lake.count().await, expected);
        // A new look at the table settles it.
        zombie.observe(&txn(0).app_id).await.unwrap();
        assert!(zombie.apply(Change::Rows(vec![]), &txn(1)).await.unwrap().already_applied);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_runs_at_once_leave_one_of_each_batch() {
    let lake = Lake::new();
    let mut first = lake.open(definition(upsert()));
    let mut second = lake.open(definition(upsert()));
    let change = || Change::Rows(vec![batch(&[row("a", 1, 0, 1), delete("b", 1, 1)])]);
    let zero = txn(0);
    let (one, two) = tokio::join!(first.apply(change(), &zero), second.apply(change(), &zero));
    let won = [&one, &two].into_iter().filter(|r| r.as_ref().is_ok_and(|r| !r.already_applied)).count();
    assert_eq!(won, 1, "{one:?} {two:?}");
    for lost in [one, two] {
        assert!(lost.is_ok() || lost.is_err_and(|e| e.kind() == ErrorKind::Busy));
    }
    assert_eq!(lake.count().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_somebody_else_made_is_left_alone() {
    let lake = Lake::new();
    let schema: deltalake::kernel::StructType = {
        use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
        stored().as_ref().try_into_kernel().unwrap()
    };
    std::fs::create_dir_all(lake.path()).unwrap();
    let url = url::Url::from_directory_path(lake.path()).unwrap();
    let foreign = deltalake::DeltaTable::try_from_url(url).await.unwrap();
    foreign.create().with_columns(schema.fields().cloned()).await.unwrap();
    let mut table = lake.open(definition(upsert()));
    let state = table.observe(&txn(0).app_id).await.unwrap();
    assert_eq!((state.version, state.made_by), (Some(0), None));
    let error = table.apply(Change::Rows(vec![batch(&[row("a", 1, 0, 1)])]), &txn(0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);

    let lake = Lake::new();
    lake.open(definition(upsert())).apply(Change::Rows(vec![]), &txn(0)).await.unwrap();
    let stranger = Maker { pipeline: "other".into(), pipeline_id: "p-2".into() };
    let mut table = lake.open(TableDefinition { maker: stranger, ..definition(upsert()) });
    let other = Txn { app_id: "tidegate:p-2:silver.orders".into(), ..txn(0) };
    let error = table.apply(Change::Rows(vec![batch(&[row("a", 1, 0, 1)])]), &other).await.unwrap_err();
    assert!(error.message().contains("belongs to the pipeline `orders`"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_table_has_no_rows_and_a_look_creates_nothing() {
    let lake = Lake::new();
    let mut table = lake.open(definition(upsert()));
    assert_eq!(table.observe(&txn(0).app_id).await.unwrap(), Default::default());
    assert!(table.read(&["order_id".to_owned()], None).await.unwrap().is_empty());
    assert!(!lake.path().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_log_gets_checkpoints_and_keeps_its_batches() {
    let lake = Lake::new();
    let mut table = lake.open(definition(WriteMode::Append));
    for number in 0..60 {
        table.apply(Change::Rows(vec![batch(&[row("a", 1, number, 1)])]), &txn(number)).await.unwrap();
        assert!(!lake.path().join("_delta_log/_last_checkpoint").exists(), "not within a batch");
    }
    table.tidy_log(std::time::SystemTime::now().into()).await;
    assert!(lake.path().join("_delta_log/_last_checkpoint").exists());
    let mut fresh = lake.open(definition(WriteMode::Append));
    assert_eq!(fresh.observe(&txn(0).app_id).await.unwrap().applied, Some(59));
    assert_eq!(lake.count().await, 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn lookups_are_pinned_and_files_are_typed() {
    let lake = Lake::new();
    let mut table = lake.open(definition(WriteMode::Append));
    table.apply(Change::Rows(vec![batch(&[row("a", 1, 0, 1)])]), &txn(0)).await.unwrap();
    let mut stores = lookup::open("stores", &LookupSpec::Delta(lake.path().to_str().unwrap().to_owned())).unwrap();
    let pinned = stores.latest().await.unwrap();
    table.apply(Change::Rows(vec![batch(&[row("b", 1, 1, 1)])]), &txn(1)).await.unwrap();
    let rows = |batches: Arc<Vec<RecordBatch>>| batches.iter().map(RecordBatch::num_rows).sum::<usize>();
    assert_eq!(rows(stores.load(pinned).await.unwrap()), 1);
    assert_eq!(stores.latest().await.unwrap(), pinned.map(|v| v + 1));
    assert_eq!(rows(stores.load(pinned.map(|v| v + 1)).await.unwrap()), 2);

    let file = lake.folder.path().join("x.csv");
    std::fs::write(&file, "id,price,open,day,at,name\n1,2.5,true,2026-01-02,2026-01-02T03:04:05Z,x\n2,3,false,2026-01-03,2026-01-02T03:04:06Z,7\n").unwrap();
    let mut csv = lookup::open("x", &LookupSpec::Csv(file.to_str().unwrap().to_owned())).unwrap();
    let types: Vec<DataType> = csv.schema().await.unwrap().fields().iter().map(|f| f.data_type().clone()).collect();
    assert_eq!(
        types,
        [DataType::Int64, DataType::Float64, DataType::Boolean, DataType::Date32, time(), DataType::Utf8]
    );
    assert_eq!(rows(csv.load(None).await.unwrap()), 2);

    for spec in [
        LookupSpec::Csv("/nowhere/x.csv".into()),
        LookupSpec::Parquet("/nowhere/x".into()),
        LookupSpec::Delta("/nowhere/d".into()),
    ] {
        let error = lookup::open("gone", &spec).unwrap().schema().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("/nowhere"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_written_is_named_and_nothing_is_half_done() {
    let lake = Lake::new();
    // A file where the table's folder should be: no permission bits, so that it also fails for root.
    std::fs::write(lake.folder.path().join("silver"), "in the way").unwrap();
    let mut table = lake.open(definition(upsert()));
    let error = table.apply(Change::Rows(vec![batch(&[row("a", 1, 0, 1)])]), &txn(0)).await.unwrap_err();
    assert!(error.to_string().contains("silver"), "{error}");
}

/// `cargo test --release --test it -- --ignored --nocapture speed`: figures for the README.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn speed() {
    let lake = Lake::new();
    let mut table = lake.open(TableDefinition { watched: vec![], ..definition(upsert()) });
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let started = std::time::Instant::now();
    for number in 0..10i64 {
        let rows: Vec<Row> = (0..500_000)
            .map(|at| {
                row(
                    &format!("order-{:016x}", (number * 500_000 + at) as u64 * 0x9E37_79B9_7F4A_7C15 % (1 << 60)),
                    1,
                    at,
                    at,
                )
            })
            .collect();
        let rows = batch(&rows);
        let at = std::time::Instant::now();
        table.apply(Change::Rows(vec![rows]), &txn(number)).await.unwrap();
        eprintln!("insert 500k: {:?}", at.elapsed());
    }
    eprintln!("5M rows in {:?}", started.elapsed());
    for (number, size) in [(10i64, 10_000usize), (11, 100_000), (12, 500_000)] {
        let rows: Vec<Row> = (0..size)
            .map(|at| {
                let pick: u64 = random.random_range(0..5_000_000);
                row(&format!("order-{:016x}", pick.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (1 << 60)), 2, at as i64, 7)
            })
            .collect();
        let rows = batch(&rows);
        let at = std::time::Instant::now();
        let receipt = table.apply(Change::Rows(vec![rows]), &txn(number)).await.unwrap();
        eprintln!("upsert {size} random keys into 5M rows: {:?} {receipt:?}", at.elapsed());
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    eprintln!("{:?}", status.lines().find(|l| l.starts_with("VmHWM")));
}
