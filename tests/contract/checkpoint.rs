//! The contract of `src/checkpoint/mod.rs`, against the log on a local folder.

use std::collections::BTreeMap;

use chrono::DateTime;
use tidegate::checkpoint::log::ObjectLog;
use tidegate::checkpoint::{CheckpointLog, Claim, Head, Identity};
use tidegate::error::ErrorKind;
use tidegate::model::batch::{BatchId, BatchPlan, CommitRecord, FORMAT_VERSION, Owner, Start};
use tidegate::model::offset::{OffsetRanges, Offsets, Partition, Range};
use tidegate::storage;

fn owner(run_id: &str) -> Owner {
    Owner { run_id: run_id.into(), host: "h".into(), pid: 1 }
}

fn plan(batch: BatchId, run_id: &str) -> BatchPlan {
    let range = Range { from: batch * 10, until: batch * 10 + 10 };
    BatchPlan {
        version: FORMAT_VERSION,
        batch,
        pipeline: "orders".into(),
        batch_time: DateTime::UNIX_EPOCH,
        sources: BTreeMap::from([(
            "source".to_string(),
            OffsetRanges(BTreeMap::from([(Partition::new("t", 0), range)])),
        )]),
        skipped: BTreeMap::new(),
        moved: BTreeMap::new(),
        letters: None,
        rebuild: Vec::new(),
        since: BTreeMap::new(),
        forget: None,
        lost: BTreeMap::new(),
        incarnations: BTreeMap::new(),
        watermarks: BTreeMap::new(),
        pinned: BTreeMap::from([("stores".to_string(), 3)]),
        meaning: BTreeMap::new(),
        recipe: "recipe".into(),
        owner: owner(run_id),
    }
}

fn record(batch: BatchId) -> CommitRecord {
    CommitRecord {
        version: FORMAT_VERSION,
        batch,
        pipeline: "orders".into(),
        offsets: BTreeMap::from([(
            "source".to_string(),
            Offsets(BTreeMap::from([(Partition::new("t", 0), batch * 10 + 10)])),
        )]),
        incarnations: BTreeMap::new(),
        lost: BTreeMap::new(),
        next_watermarks: BTreeMap::new(),
        tables: BTreeMap::new(),
        input_rows: 10,
        input_bytes: 100,
        dead_letters: 0,
        replayed_from: None,
        finished_by: None,
        expectations: BTreeMap::new(),
        duration_ms: BTreeMap::new(),
        committed_at: DateTime::UNIX_EPOCH,
    }
}

fn log(folder: &tempfile::TempDir) -> ObjectLog {
    ObjectLog::new(storage::open(&folder.path().join("orders").to_string_lossy()).expect("a local folder opens"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_does_not_exist_has_no_head_and_reading_it_creates_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let log = log(&folder);
    assert_eq!(log.identity().await.expect("reads"), None);
    assert_eq!(log.head().await.expect("reads"), Head::default());
    assert!(!folder.path().join("orders").exists(), "reading must not create the folder");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_head_is_the_newest_plan_and_the_newest_commit_record() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let log = log(&folder);
    for batch in 0..12 {
        assert_eq!(log.plan(&plan(batch, "a")).await.expect("plans"), Claim::Claimed);
        if batch < 11 {
            log.commit(&record(batch)).await.expect("commits");
        }
    }
    let head = log.head().await.expect("reads");
    assert_eq!(head.plan, Some(plan(11, "a")));
    assert_eq!(head.commit, Some(record(10)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_planner_of_a_batch_is_told_who_won_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (first, second) = (log(&folder), log(&folder));
    assert_eq!(first.plan(&plan(0, "first")).await.expect("plans"), Claim::Claimed);
    let claim = second.plan(&plan(0, "second")).await.expect("plans");
    assert_eq!(claim, Claim::Taken(Box::new(plan(0, "first"))));
    assert_eq!(first.head().await.expect("reads").plan, Some(plan(0, "first")));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_planners_at_once_exactly_one_wins() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for batch in 0..20 {
        let planners = (0..8).map(|i| {
            let log = log(&folder);
            tokio::spawn(async move { log.plan(&plan(batch, &i.to_string())).await.expect("plans") })
        });
        let claims = futures::future::try_join_all(planners).await.expect("no planner panics");
        assert_eq!(claims.iter().filter(|claim| **claim == Claim::Claimed).count(), 1, "batch {batch}: {claims:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_position_is_recorded_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let log = log(&folder);
    let at = |offset| Start {
        version: FORMAT_VERSION,
        source: Some("source".to_string()),
        offsets: Offsets(BTreeMap::from([(Partition::new("t", 0), offset)])),
        incarnations: BTreeMap::from([("t".to_string(), "id".to_string())]),
    };
    assert_eq!(log.start("source").await.expect("reads"), None);
    assert_eq!(log.record_start("source", &at(5)).await.expect("writes"), at(5));
    assert_eq!(log.record_start("source", &at(9)).await.expect("writes"), at(5), "the first one stays");
    let identity = |id: &str| Identity {
        version: FORMAT_VERSION,
        pipeline_id: id.into(),
        pipeline: "orders".into(),
        created_by: owner("a"),
    };
    assert_eq!(log.create(&identity("one")).await.expect("writes"), identity("one"));
    assert_eq!(log.create(&identity("two")).await.expect("writes"), identity("one"), "the first one stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn pruning_keeps_the_newest_batches_and_the_head() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let log = log(&folder);
    for batch in 0..10 {
        log.plan(&plan(batch, "a")).await.expect("plans");
        log.commit(&record(batch)).await.expect("commits");
    }
    log.prune(4).await.expect("prunes");
    let kept: Vec<BatchId> = log.history(100).await.expect("reads").iter().map(|record| record.batch).collect();
    assert_eq!(kept, [9, 8, 7, 6]);
    assert_eq!(log.head().await.expect("reads").commit, Some(record(9)));
}

#[allow(clippy::disallowed_methods, reason = "the test does the damage")]
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_object_is_named_and_never_taken_for_an_empty_log() {
    for (damage, expected) in [
        ("", "it is empty"),
        ("{\"version\": 1, \"bat", "is damaged"),
        ("{\"version\": 99}", "format version 99"),
        ("{\"version\": 1}", "missing field"),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = log(&folder);
        log.plan(&plan(0, "a")).await.expect("plans");
        let object = folder.path().join("orders/offsets/00000000000000000000.json");
        std::fs::write(&object, damage).expect("the object exists");
        let error = log.head().await.expect_err("a damaged object is refused");
        assert_eq!(error.kind(), ErrorKind::Config);
        let text = error.report();
        assert!(text.contains(expected) && text.contains("offsets/00000000000000000000.json"), "{text}");
    }
}

/// The bytes that each version writes; a change here breaks every checkpoint in the field. The checksums of version 2 were
/// computed by another program.
#[allow(clippy::disallowed_methods, reason = "the test lays out what an older tidegate wrote")]
#[tokio::test(flavor = "multi_thread")]
async fn records_of_every_version_in_the_field_stay_readable() {
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for version in [1, 2] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let number = "00000000000000000004.json";
        for (object, name) in [
            ("metadata", "metadata.json".to_string()),
            ("start", "sources/source.json".to_string()),
            ("plan", format!("offsets/{number}")),
            ("commit", format!("commits/{number}")),
        ] {
            let path = folder.path().join("orders").join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("creates");
            std::fs::copy(golden.join(format!("{object}-v{version}.json")), path).expect("a golden file");
        }
        let log = log(&folder);
        let identity = log.identity().await.expect("reads").expect("there");
        assert_eq!((identity.pipeline_id.as_str(), identity.created_by), ("one", owner("a")));
        let start = log.start("source").await.expect("reads").expect("there");
        assert_eq!(start.offsets, Offsets(BTreeMap::from([(Partition::new("t", 0), 5)])));
        let head = log.head().await.expect("reads");
        assert_eq!(head.plan, Some(BatchPlan { version, ..plan(4, "a") }));
        assert_eq!(head.commit, Some(CommitRecord { version, ..record(4) }));
    }
}
