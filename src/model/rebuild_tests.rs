//! What the tables may look like after a crash and the loss of the log, and what must come of it.

use super::*;
use crate::model::offset::{OffsetRanges, Partition, Range};
use crate::model::recover::{self, Decision, TableFact};

const TABLES: [&str; 3] = ["bronze", "silver", "dlq"];

fn note(batch: BatchId, table: &str) -> Note {
    let range = Range { from: batch * 10, until: batch * 10 + 10 };
    let ranges = OffsetRanges(BTreeMap::from([(Partition::new("t", 0), range)]));
    Note {
        pipeline: "orders".into(),
        pipeline_id: "id".into(),
        batch,
        batch_time: DateTime::UNIX_EPOCH,
        sources: BTreeMap::from([("source".to_string(), ranges)]),
        recipe: "recipe".into(),
        meaning: (table != "dlq").then(|| digest(&format!("words of {table}"))),
        tables: TABLES.map(str::to_string).to_vec(),
        ..Note::default()
    }
}

/// A table that carries `batch`, and the one before it.
fn table(name: &str, batch: BatchId) -> TableTrace {
    let carrier = |batch: BatchId| (batch + 1, batch, Some(note(batch, name)));
    TableTrace {
        made_by: Some(("orders".to_string(), "id".to_string())),
        applied: Some(batch),
        carriers: (0..=batch).rev().take(2).map(carrier).collect(),
        ..TableTrace::default()
    }
}

fn facts(batches: [Option<BatchId>; 3]) -> Facts {
    let tables = TABLES.iter().zip(batches).map(|(name, batch)| (name.to_string(), batch.map(|b| table(name, b))));
    Facts {
        pipeline: "orders".into(),
        meaning: ["bronze", "silver"].map(|name| (name.to_string(), format!("words of {name}"))).into(),
        recipe: "recipe".into(),
        tables: tables.collect(),
        owner: Owner { run_id: "r".into(), host: "h".into(), pid: 1 },
        now: DateTime::UNIX_EPOCH,
    }
}

/// What a run would do with the rebuilt log and these tables.
fn decision(facts: &Facts, rebuilt: &Rebuilt) -> Decision {
    let tables = facts.tables.iter().map(|(name, trace)| {
        let fact = trace.as_ref().map(|trace| TableFact {
            version: trace.carriers.first().map(|carrier| carrier.0),
            applied: trace.applied,
            made_by: trace.made_by.clone(),
            ..TableFact::default()
        });
        (name.clone(), fact.unwrap_or_default())
    });
    recover::recover(&recover::Facts {
        pipeline: "orders".into(),
        pipeline_id: rebuilt.pipeline_id.clone(),
        meaning: facts.meaning.clone(),
        recipe: facts.recipe.clone(),
        plan: rebuilt.plans.last().cloned(),
        commit: rebuilt.commits.last().cloned(),
        tables: tables.collect(),
    })
}

fn at(offset: i64) -> BTreeMap<String, Offsets> {
    BTreeMap::from([("source".to_string(), Offsets(BTreeMap::from([(Partition::new("t", 0), offset)])))])
}

#[test]
fn a_batch_that_every_table_has_is_done_and_the_next_one_follows() {
    let facts = facts([Some(4); 3]);
    let rebuilt = rebuild(&facts).expect("rebuilds");
    assert_eq!((rebuilt.batch, rebuilt.position()), (4, &at(50)));
    assert_eq!(decision(&facts, &rebuilt), Decision::Plan { batch: 5 });
}

#[test]
fn a_batch_that_some_tables_lack_is_replayed_with_its_own_ranges() {
    for lacking in [[Some(4), Some(4), Some(3)], [Some(4), Some(3), Some(3)]] {
        let facts = facts(lacking);
        let rebuilt = rebuild(&facts).expect("rebuilds");
        assert_eq!(rebuilt.position(), &at(40));
        assert_eq!(decision(&facts, &rebuilt), Decision::Replay(Box::new(rebuilt.plans[1].clone())));
        assert_eq!(rebuilt.plans[1].sources["source"].len(), 10);
    }
}

#[test]
fn a_first_batch_that_is_half_done_is_replayed_from_the_first_offsets() {
    let facts = facts([Some(0), None, None]);
    let rebuilt = rebuild(&facts).expect("rebuilds");
    assert_eq!((rebuilt.starts.clone(), rebuilt.commits.len()), (at(0), 0));
    assert!(matches!(decision(&facts, &rebuilt), Decision::Replay(_)));
}

#[test]
fn a_pipeline_file_that_changed_midway_still_halts_the_run() {
    let mut facts = facts([Some(4), Some(3), Some(3)]);
    facts.recipe = "another".into();
    let rebuilt = rebuild(&facts).expect("rebuilds");
    assert!(rebuilt.changed_midway);
    let halted = decision(&facts, &rebuilt);
    assert!(
        matches!(halted, Decision::Halt(crate::model::inconsistency::Inconsistency::ChangedMidway { .. })),
        "{halted:?}"
    );
}

#[test]
fn what_no_single_crash_leaves_is_refused() {
    assert_eq!(rebuild(&facts([None; 3])), Err(Refusal::NoTables));
    assert!(matches!(rebuild(&facts([Some(4), Some(4), Some(2)])), Err(Refusal::Lags { applied: 2, .. })));
    assert!(matches!(rebuild(&facts([Some(4), None, Some(4)])), Err(Refusal::Missing { .. })));
    let refusal = |change: &dyn Fn(&mut TableTrace)| {
        let mut facts = facts([Some(4); 3]);
        if let Some(Some(silver)) = facts.tables.get_mut("silver") {
            change(silver);
        }
        rebuild(&facts).expect_err("refused")
    };
    assert!(matches!(refusal(&|t| t.restored = true), Refusal::Restored { .. }));
    assert!(matches!(refusal(&|t| t.made_by = None), Refusal::Foreign { made_by: None, .. }));
    let other = |pipeline: &str, id: &str| Some((pipeline.to_string(), id.to_string()));
    assert!(matches!(refusal(&|t| t.made_by = other("billing", "id")), Refusal::Foreign { made_by: Some(_), .. }));
    assert!(matches!(refusal(&|t| t.made_by = other("orders", "x")), Refusal::TwoIdentities { .. }));
    assert!(matches!(refusal(&|t| t.carriers[0].2 = None), Refusal::NoNote { .. }));
    assert!(matches!(refusal(&|t| t.carriers.clear()), Refusal::NoNote { .. }));
    let digest_of_others = |t: &mut TableTrace| t.carriers[0].2.as_mut().expect("a note").meaning = Some("x".into());
    assert!(matches!(refusal(&digest_of_others), Refusal::MeaningChanged { .. }));
    let other_story = |t: &mut TableTrace| t.carriers[0].2.as_mut().expect("a note").recipe = "x".into();
    assert!(matches!(refusal(&other_story), Refusal::Disagree { batch: 4, .. }));
}

#[test]
fn a_memory_of_deletes_that_is_not_what_the_newest_note_says_is_refused() {
    let rebuilt = |found: Option<i64>, noted: [Option<i64>; 2], harmed: bool| {
        let mut facts = facts([Some(4); 3]);
        let silver = facts.tables.get_mut("silver").and_then(Option::as_mut).expect("there");
        (silver.memory, silver.memory_harmed) = (found, harmed);
        for (carrier, memory) in silver.carriers.iter_mut().zip(noted) {
            carrier.2.as_mut().expect("a note").memory = memory;
        }
        rebuild(&facts)
    };
    let lost = |found, noted, harmed| match rebuilt(found, noted, harmed) {
        Err(Refusal::MemoryLost { table, .. }) => table == "silver",
        other => other.map(|_| false).expect("rebuilds"),
    };
    assert!(lost(None, [Some(3), Some(2)], false), "gone");
    assert!(lost(None, [Some(0), Some(-1)], false), "gone after its first deletes");
    assert!(lost(Some(2), [Some(3), Some(2)], false), "an older copy");
    assert!(lost(Some(9), [Some(3), Some(2)], true), "restored");
    for (found, noted) in [(Some(3), Some(3)), (Some(7), Some(3)), (None, Some(-1)), (None, None), (Some(3), None)] {
        assert!(!lost(found, [noted, None], false), "{found:?} {noted:?}");
    }
}

#[test]
fn two_batches_that_do_not_follow_each_other_are_refused() {
    let mut facts = facts([Some(4), Some(3), Some(3)]);
    if let Some(Some(bronze)) = facts.tables.get_mut("bronze") {
        bronze.carriers.truncate(1);
        bronze.carriers[0].2 = Some(Note { batch: 4, ..note(7, "bronze") });
    }
    assert!(matches!(rebuild(&facts), Err(Refusal::Disagree { batch: 4, .. })));
}

#[test]
fn a_table_that_joins_is_new_until_a_batch_names_it() {
    let mut joining = facts([Some(4); 3]);
    joining.tables.insert("gold".into(), None);
    assert!(rebuild(&joining).expect("rebuilds").lacking.is_empty());
    // It joined in batch 4, which bronze already has.
    let mut facts = facts([Some(4), Some(3), Some(3)]);
    facts.tables.insert("gold".into(), None);
    if let Some(Some(bronze)) = facts.tables.get_mut("bronze") {
        bronze.carriers[0].2.as_mut().expect("a note").tables.push("gold".into());
    }
    assert_eq!(rebuild(&facts).expect("rebuilds").lacking, ["dlq", "gold", "silver"]);
}
