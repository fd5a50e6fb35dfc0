//! Maintenance: small files are merged and old ones deleted, and no row is any the wiser, whoever writes meanwhile.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use serde_json::Value;
use tidegate::table::maintain::{Compacted, Compaction, Depth, Vacuum, Vacuumed};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn order(depth: Depth) -> Compaction {
    Compaction { depth, target_bytes: 128_000_000, max_bytes: u64::MAX, until: None, dry_run: false }
}

async fn merge(table: &mut Box<dyn Table>) -> Compacted {
    table.compact(&order(Depth::Everything)).await.unwrap()
}

fn now() -> DateTime<Utc> {
    SystemTime::now().into()
}

fn week() -> Vacuum {
    Vacuum {
        now: now(),
        retain: 7 * DAY,
        force: false,
        every: None,
        app_id: txn(0).app_id,
        keep_versions: Vec::new(),
        dry_run: false,
        until: None,
    }
}

/// Every action of the log, with its version, read as any JSON.
fn log(table: &Path) -> Vec<(i64, Value)> {
    let mut actions = Vec::new();
    for entry in std::fs::read_dir(table.join("_delta_log")).unwrap() {
        let path = entry.unwrap().path();
        let Some(version) = path.file_name().unwrap().to_str().unwrap().strip_suffix(".json") else { continue };
        let version: i64 = version.parse().unwrap();
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            actions.push((version, serde_json::from_str(line).unwrap()));
        }
    }
    actions.sort_by_key(|(version, _)| *version);
    actions
}

/// Live files, from the log alone.
fn live(table: &Path) -> BTreeSet<String> {
    let mut live = BTreeSet::new();
    for (_, action) in log(table) {
        if let Some(path) = action["remove"]["path"].as_str() {
            live.remove(path);
        }
        if let Some(path) = action["add"]["path"].as_str() {
            live.insert(path.to_owned());
        }
    }
    live
}

/// Data files in the folder, relative to it.
fn stored(table: &Path) -> BTreeSet<String> {
    fn walk(folder: &Path, table: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, table, found);
            } else if path.extension().is_some_and(|extension| extension == "parquet") {
                found.insert(path.strip_prefix(table).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(table).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        match path.is_dir() {
            true if name != "_delta_log" => walk(&path, table, &mut found),
            false if name.ends_with(".parquet") => drop(found.insert(name)),
            _ => {}
        }
    }
    found
}

/// Data files that no commit names. For tables whose partition values need no escapes.
fn orphans(table: &Path) -> Vec<String> {
    let named: BTreeSet<String> =
        log(table).iter().filter_map(|(_, action)| action["add"]["path"].as_str().map(str::to_owned)).collect();
    stored(table).difference(&named).cloned().collect()
}

/// The rows as another reader sees them; a row that is there twice is two rows.
async fn rows(lake: &Lake) -> Vec<String> {
    let found = lake.sql("SELECT order_id, city, amount, _partition, _offset FROM t").await;
    let mut lines = Vec::new();
    for batch in &found {
        let shown = arrow::util::pretty::pretty_format_batches(std::slice::from_ref(batch)).unwrap().to_string();
        lines.extend(shown.lines().skip(3).filter(|line| line.starts_with('|')).map(squeeze));
    }
    lines.sort();
    lines
}

/// Without the padding that depends on a batch's widest value.
fn squeeze(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn append(table: &mut Box<dyn Table>, number: i64, city: &str) {
    let rows = [Row { city: Some(city.to_owned()), ..row(&format!("k{number}"), number, number, number) }];
    table.apply(Change::Rows(vec![batch(&rows)]), &txn(number)).await.unwrap();
}

fn by_city(write: WriteMode) -> TableDefinition {
    TableDefinition { partition_by: vec!["city".to_owned()], ..definition(write) }
}

#[tokio::test(flavor = "multi_thread")]
async fn merging_small_files_changes_no_row_no_batch_number_and_no_older_version() {
    let lake = Lake::new();
    let mut table = lake.open(by_city(WriteMode::Append));
    for number in 0..30 {
        append(&mut table, number, ["oslo", "rome", "lima"][number as usize % 3]).await;
    }
    let (before, version) = (rows(&lake).await, table.observe(&txn(0).app_id).await.unwrap().version.unwrap());
    assert_eq!(live(&lake.path()).len(), 30);
    let dry = table.compact(&Compaction { dry_run: true, ..order(Depth::Everything) }).await.unwrap();
    assert_eq!((dry.files_removed, dry.files_added), (30, 0));
    assert_eq!(live(&lake.path()).len(), 30, "a dry run changes nothing");

    let done = merge(&mut table).await;
    assert_eq!((done.files_before, done.files_removed, done.files_added, done.files_after), (30, 30, 3, 3));
    assert_eq!(rows(&lake).await, before);
    assert_eq!(live(&lake.path()).len(), 3, "one file per partition");
    let commit: Vec<Value> = log(&lake.path()).into_iter().filter(|(v, _)| *v == version + 1).map(|(_, a)| a).collect();
    for action in &commit {
        assert!(action["txn"].is_null(), "maintenance is no batch: {action}");
        for change in [&action["add"], &action["remove"]] {
            assert!(change.is_null() || change["dataChange"] == false, "{change}");
        }
    }
    let info = commit.iter().find(|action| !action["commitInfo"].is_null()).unwrap();
    assert_eq!(info["commitInfo"]["operation"], "OPTIMIZE");
    assert_eq!(info["commitInfo"]["operationMetrics"]["numRemovedFiles"], "30");

    // What recovery and refresh tables ask, by the process that merged and by one that starts anew.
    for mut table in [table, lake.open(by_city(WriteMode::Append))] {
        let state = table.observe(&txn(0).app_id).await.unwrap();
        assert_eq!((state.applied, state.restored, state.version), (Some(29), false, Some(version + 1)));
        let touched = table.touched(&["city".to_owned()], &txn(29)).await.unwrap();
        assert_eq!(strings(&touched), [Some("lima".to_owned())]);
        assert_eq!(merge(&mut table).await.files_removed, 0, "there is nothing left to merge");
    }
    let mut old = lookup::open("old", &LookupSpec::Delta(lake.path().to_str().unwrap().to_owned())).unwrap();
    old.latest().await.unwrap();
    let rows: usize = old.load(Some(version)).await.unwrap().iter().map(RecordBatch::num_rows).sum();
    assert_eq!(rows, 30, "the version before can still be read");
    assert!(orphans(&lake.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn between_batches_files_stay_few() {
    let lake = Lake::new();
    let mut table = lake.open(definition(WriteMode::Append));
    let mut most = 0;
    for number in 0..100 {
        append(&mut table, number, "oslo").await;
        table.compact(&order(Depth::Tiered)).await.unwrap();
        most = most.max(live(&lake.path()).len());
    }
    assert!(most <= 24, "{most} live files");
    assert_eq!(lake.count().await, 100);
    let passes = log(&lake.path()).iter().filter(|(_, a)| a["commitInfo"]["operation"] == "OPTIMIZE").count();
    assert!((4..=12).contains(&passes), "{passes} passes for 100 batches");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_merge_the_same_files_the_second_leaves_no_trace() {
    let lake = Lake::new();
    let mut first = lake.open(by_city(WriteMode::Append));
    for number in 0..20 {
        append(&mut first, number, "oslo").await;
    }
    let mut second = lake.open(by_city(WriteMode::Append));
    second.observe(&txn(0).app_id).await.unwrap();
    assert_eq!(merge(&mut first).await.files_removed, 20);
    // Still on the version before: it reads and writes the same files, and comes too late.
    let late = merge(&mut second).await;
    assert_eq!((late.files_removed, late.files_added, late.lost), (0, 0, 1));
    assert_eq!(lake.count().await, 20, "no row twice");
    assert_eq!(orphans(&lake.path()), Vec::<String>::new());
    // And deltalake's own OPTIMIZE, which does not look whom it races with.
    for number in 20..40 {
        append(&mut first, number, "oslo").await;
    }
    second.observe(&txn(0).app_id).await.unwrap();
    let url = url::Url::from_directory_path(lake.path()).unwrap();
    deltalake::open_table(url).await.unwrap().optimize().await.unwrap();
    let late = merge(&mut second).await;
    assert_eq!((late.files_removed, late.lost), (0, 1));
    assert_eq!(lake.count().await, 40, "no row twice");
    append(&mut first, 40, "oslo").await;
    assert_eq!(lake.count().await, 41);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_comes_first_costs_only_the_files_that_it_changed() {
    let lake = Lake::new();
    let mut writer = lake.open(by_city(upsert()));
    for number in 0..12 {
        append(&mut writer, number, ["oslo", "rome"][number as usize % 2]).await;
    }
    let mut other = lake.open(by_city(upsert()));
    other.observe(&txn(0).app_id).await.unwrap();
    // k0 lies in oslo: its file is rewritten before the other commits. Rome's files are not.
    let newer = Row { amount: 777, ..row("k0", 100, 100, 0) };
    writer.apply(Change::Rows(vec![batch(&[newer])]), &txn(12)).await.unwrap();
    let done = merge(&mut other).await;
    assert_eq!((done.files_removed, done.files_added, done.lost), (6, 1, 1));
    assert_eq!(orphans(&lake.path()), Vec::<String>::new());
    let found = contents(&mut lake.open(by_city(upsert()))).await;
    assert_eq!((found.len(), found["k0"].0), (12, 777));
    // The batches' own view was left behind on purpose: it still notices what others did, and goes on.
    append(&mut writer, 13, "oslo").await;
    assert_eq!(lake.count().await, 13);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_leaves_the_files_alone_does_not_stop_the_merging() {
    let lake = Lake::new();
    let mut writer = lake.open(definition(WriteMode::Append));
    for number in 0..10 {
        append(&mut writer, number, "oslo").await;
    }
    let mut other = lake.open(definition(WriteMode::Append));
    other.observe(&txn(0).app_id).await.unwrap();
    append(&mut writer, 10, "oslo").await;
    let done = merge(&mut other).await;
    assert_eq!((done.files_removed, done.lost), (10, 0));
    assert_eq!((live(&lake.path()).len(), lake.count().await), (2, 11));
    // Its view of the batches is the one from before, so that the newcomer's batch is still noticed as such.
    let error = other.apply(Change::Rows(vec![]), &txn(10)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_column_that_comes_first_drops_everything() {
    let lake = Lake::new();
    let mut writer = lake.open(definition(WriteMode::Append));
    for number in 0..10 {
        append(&mut writer, number, "oslo").await;
    }
    let mut other = lake.open(definition(WriteMode::Append));
    other.observe(&txn(0).app_id).await.unwrap();
    let mut fields = stored_fields();
    fields.push(Field::new("note", DataType::Utf8, true));
    let wider = TableDefinition { schema: Arc::new(Schema::new(fields)), ..definition(WriteMode::Append) };
    append(&mut lake.open(wider), 10, "oslo").await;
    let done = merge(&mut other).await;
    assert_eq!((done.files_removed, done.lost), (0, 1));
    assert_eq!((live(&lake.path()).len(), lake.count().await), (11, 11));
    assert_eq!(orphans(&lake.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_features_that_a_rewrite_would_break_is_left_alone() {
    let lake = Lake::new();
    let mut table = lake.open(definition(WriteMode::Append));
    for number in 0..10 {
        append(&mut table, number, "oslo").await;
    }
    let url = url::Url::from_directory_path(lake.path()).unwrap();
    let set = deltalake::open_table(url).await.unwrap().set_tbl_properties();
    set.with_properties(HashMap::from([("delta.enableChangeDataFeed".to_owned(), "true".to_owned())])).await.unwrap();
    let mut table = lake.open(definition(WriteMode::Append));
    let done = merge(&mut table).await;
    assert!(done.skipped.as_ref().is_some_and(|why| why.contains("change data feed")), "{done:?}");
    assert_eq!(live(&lake.path()).len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_deletes_is_merged_too_and_forgets_nothing() {
    let lake = Lake::new();
    let mut table = lake.open(definition(upsert()));
    for number in 0..12 {
        let rows = [delete(&format!("k{number}"), 10, number)];
        table.apply(Change::Rows(vec![batch(&rows)]), &txn(number)).await.unwrap();
    }
    let memory = lake.folder.path().join("_tidegate/deletes/silver/orders");
    assert_eq!(live(&memory).len(), 12);
    merge(&mut table).await;
    assert_eq!(live(&memory).len(), 1);
    for mut table in [table, lake.open(definition(upsert()))] {
        table.observe(&txn(0).app_id).await.unwrap();
        let late: Vec<Row> = (0..12).map(|number| row(&format!("k{number}"), 9, 100 + number, 1)).collect();
        let next = table.observe(&txn(0).app_id).await.unwrap().applied.unwrap() + 1;
        let receipt = table.apply(Change::Rows(vec![batch(&late)]), &txn(next)).await.unwrap();
        assert_eq!((receipt.superseded, receipt.inserted), (12, 0));
    }
}

/// Batches, merging by two maintainers and a stranger, restarts and vacuums in any order: the newest row of each key.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_maintained_when_the_newest_row_of_each_key_remains() {
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    for partition_by in [vec![], vec!["city".to_owned()]] {
        let lake = Lake::new();
        let of = || TableDefinition { partition_by: partition_by.clone(), ..definition(upsert()) };
        let (mut table, mut other) = (lake.open(of()), lake.open(of()));
        let rows = random_rows(&mut random, 250, 100);
        let (mut at, mut number, mut merged) = (0, 0, 0);
        while at < rows.len() {
            match random.random_range(0..10) {
                0..5 => {
                    let until = (at + random.random_range(1..12)).min(rows.len());
                    table.apply(Change::Rows(vec![batch(&rows[at..until])]), &txn(number)).await.unwrap();
                    (at, number) = (until, number + 1);
                }
                5 => merged += table.compact(&order(Depth::Tiered)).await.unwrap().files_removed,
                6 => merged += merge(&mut table).await.files_removed,
                // Often from a version that is long gone.
                7 => merged += merge(&mut other).await.files_removed,
                8 => {
                    table = lake.open(of());
                    let applied = table.observe(&txn(0).app_id).await.unwrap().applied;
                    assert_eq!(applied, (number > 0).then(|| number - 1));
                }
                _ if number > 0 => {
                    let far = Vacuum { now: now() + chrono::Duration::days(30), ..week() };
                    table.vacuum(&far).await.unwrap().unwrap();
                    // Thirty days later nobody holds a view from before.
                    table.observe(&txn(0).app_id).await.unwrap();
                    other = lake.open(of());
                }
                _ => {}
            }
            assert_eq!(contents(&mut lake.open(of())).await, oracle(&rows[..at]), "after batch {number}");
        }
        assert!(merged > 0);
        assert_eq!(lake.count().await, oracle(&rows).len() as i64);
    }
}

fn age(table: &Path, file: &str, days: u32) {
    let file = std::fs::File::options().append(true).open(table.join(file)).unwrap();
    file.set_modified(SystemTime::now() - days * DAY).unwrap();
}

async fn clean(table: &mut Box<dyn Table>, order: Vacuum) -> Vacuumed {
    table.vacuum(&order).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn vacuum_deletes_exactly_what_no_version_within_the_retention_needs() {
    let lake = Lake::new();
    let mut table = lake.open(by_city(WriteMode::Append));
    // Names that mean something else when they are read once too often, or once too few.
    for (number, city) in ["oslo", "a b", "50%", "x=y", "ä/ö", "%2F", "a+b", "C:\\"].iter().enumerate() {
        append(&mut table, 2 * number as i64, city).await;
        append(&mut table, 2 * number as i64 + 1, city).await;
    }
    let before = rows(&lake).await;
    let version = table.observe(&txn(0).app_id).await.unwrap().version.unwrap();
    let files = stored(&lake.path());
    assert_eq!(files.len(), 16);
    assert_eq!(merge(&mut table).await.files_removed, 16);
    let fresh = stored(&lake.path());
    assert_eq!(fresh.len(), 24);
    for file in &fresh {
        age(&lake.path(), file, 100);
    }
    // What crashes leave behind, what another writer may be about to commit, and what is none of our business.
    for (name, days) in [("city=oslo/crash.parquet", 8), ("crash2.parquet", 30), ("city=oslo/pending.parquet", 6)] {
        std::fs::write(lake.path().join(name), "?").unwrap();
        age(&lake.path(), name, days);
    }
    for name in ["README.txt", ".hidden.parquet", "_other.parquet"] {
        std::fs::write(lake.path().join(name), "?").unwrap();
        age(&lake.path(), name, 100);
    }
    let plan = clean(&mut table, Vacuum { dry_run: true, ..week() }).await;
    assert_eq!((plan.expired, plan.orphans), (0, 2), "{plan:?}");
    assert_eq!(stored(&lake.path()).len(), 29);
    let done = clean(&mut table, week()).await;
    assert_eq!((done.paths.clone(), done.bytes), (plan.paths, 2));
    assert_eq!(done.paths, ["city=oslo/crash.parquet", "crash2.parquet"]);
    assert_eq!(rows(&lake).await, before);
    let url = url::Url::from_directory_path(lake.path()).unwrap();
    let old = deltalake::DeltaTableBuilder::from_url(url).unwrap().with_version(version as u64).load().await.unwrap();
    let context = SessionContext::new();
    context.register_table("t", old.table_provider().await.unwrap()).unwrap();
    let found = context.sql("SELECT count(amount) AS n FROM t").await.unwrap().collect().await.unwrap();
    assert_eq!(found[0].column(0).as_primitive::<Int64Type>().value(0), 16, "time travel within the retention");

    // A week and an hour later the merged files are out of reach; the last batch's file stays, a replay reads it.
    let later = || now() + chrono::Duration::hours(7 * 24 + 1);
    let done = clean(&mut table, Vacuum { now: later(), ..week() }).await;
    assert_eq!((done.expired, done.orphans), (15, 1), "{:?}", done.paths);
    assert_eq!(rows(&lake).await, before);
    let touched = lake.open(by_city(WriteMode::Append)).touched(&["city".to_owned()], &txn(15)).await.unwrap();
    assert_eq!(strings(&touched), [Some("C:\\".to_owned())]);
    let again = clean(&mut table, Vacuum { now: later(), ..week() }).await;
    assert_eq!((again.expired, again.orphans), (0, 0));
    for name in ["README.txt", ".hidden.parquet", "_other.parquet"] {
        assert!(lake.path().join(name).exists(), "{name}");
    }
    assert!(lake.path().join("_delta_log/00000000000000000000.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn vacuum_keeps_versions_asked_for_young_orphans_and_a_longer_retention_of_the_table() {
    let lake = Lake::new();
    let mut table = lake.open(definition(WriteMode::Append));
    for number in 0..4 {
        append(&mut table, number, "oslo").await;
    }
    merge(&mut table).await;
    append(&mut table, 4, "oslo").await;
    std::fs::write(lake.path().join("pending.parquet"), "?").unwrap();
    // Versions 1 to 4 hold the four files; none of them is the last batch's.
    let short = || Vacuum { retain: Duration::ZERO, force: true, now: now() + chrono::Duration::hours(1), ..week() };
    let kept = clean(&mut table, Vacuum { keep_versions: vec![3], ..short() }).await;
    assert_eq!((kept.expired, kept.orphans), (1, 0), "the fourth file, and nobody's pending file");
    let month = HashMap::from([("delta.deletedFileRetentionDuration".to_owned(), "interval 30 days".to_owned())]);
    let url = url::Url::from_directory_path(lake.path()).unwrap();
    deltalake::open_table(url).await.unwrap().set_tbl_properties().with_properties(month).await.unwrap();
    let after = |days| Vacuum { now: now() + chrono::Duration::days(days), ..week() };
    let held = clean(&mut table, after(20)).await;
    assert_eq!((held.expired, held.retain), (0, 30 * DAY));
    // Longer than the table remembers what was removed: the commits tell.
    let longer = Vacuum { retain: 60 * DAY, ..after(40) };
    assert_eq!(clean(&mut table, longer).await.expired, 0);
    assert_eq!(clean(&mut table, after(31)).await.expired, 3);
    assert_eq!(lake.count().await, 5);
    assert!(table.vacuum(&Vacuum { every: Some(DAY), ..after(31) }).await.unwrap().is_none(), "once a day");
    let mut restarted = lake.open(definition(WriteMode::Append));
    assert!(restarted.vacuum(&Vacuum { every: Some(DAY), ..after(31) }).await.unwrap().is_none());
    assert!(restarted.vacuum(&Vacuum { every: Some(DAY), ..after(33) }).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn vacuum_deletes_nothing_when_a_live_file_is_not_where_it_should_be() {
    let lake = Lake::new();
    let mut table = lake.open(definition(WriteMode::Append));
    for number in 0..4 {
        append(&mut table, number, "oslo").await;
    }
    let file = live(&lake.path()).into_iter().next().unwrap();
    std::fs::rename(lake.path().join(&file), lake.path().join("moved.parquet")).unwrap();
    age(&lake.path(), "moved.parquet", 100);
    let done = clean(&mut table, Vacuum { retain: Duration::ZERO, force: true, ..week() }).await;
    assert!(done.skipped.as_ref().is_some_and(|why| why.contains(&file)), "{done:?}");
    assert!(lake.path().join("moved.parquet").exists());
}
