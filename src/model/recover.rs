//! What to do after any crash: facts in, one decision out. The only recovery path of the program, used at start, after
//! every failed step, and by the tests that search for schedules which break the promise.

use std::collections::BTreeMap;

use super::batch::{BatchId, BatchPlan, CommitRecord, ForeignWrite, Receipt};
use super::inconsistency::Inconsistency;
use super::note::Note;

/// What storage says about one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableFact {
    /// Delta version; `None` = there is no table.
    pub version: Option<i64>,
    /// Last batch applied by this pipeline's log.
    pub applied: Option<BatchId>,
    /// Version of its memory of deletes; `None` = it has none.
    pub memory: Option<i64>,
    /// Others restored or changed its memory of deletes.
    pub memory_harmed: bool,
    /// (pipeline, pipeline id) of whoever created it; `None` = not tidegate.
    pub made_by: Option<(String, String)>,
    /// Somebody restored the table to a version before the one that carries `applied`.
    pub restored: bool,
    /// What the commit that carries `applied` says of that batch; only asked while the batch is not done.
    pub note: Option<Note>,
    /// What others changed in it since.
    pub foreign: Vec<ForeignWrite>,
}

/// Everything that recovery may look at.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Pipeline name.
    pub pipeline: String,
    /// Identity of the log.
    pub pipeline_id: String,
    /// What gives each table of the configuration its meaning, by table name.
    pub meaning: BTreeMap<String, String>,
    /// Hash of everything else that turns rows into tables, of the configuration.
    pub recipe: String,
    /// Newest plan in the log.
    pub plan: Option<BatchPlan>,
    /// Newest commit record in the log.
    pub commit: Option<CommitRecord>,
    /// The tables of the configuration, dead letters included.
    pub tables: BTreeMap<String, TableFact>,
}

/// What happens next.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Nothing has ever been planned: batch 0, from the recorded first offsets.
    Begin,
    /// The last batch is done: plan the one after it.
    Plan {
        /// The batch to plan.
        batch: BatchId,
    },
    /// The last plan has no commit record: do exactly that batch again.
    Replay(Box<BatchPlan>),
    /// Going on could lose, double or change rows.
    Halt(Inconsistency),
}

/// Decides what happens next. Total: every combination of facts has an answer.
pub fn recover(facts: &Facts) -> Decision {
    match inspect(facts) {
        Ok(decision) => decision,
        Err(inconsistency) => Decision::Halt(inconsistency),
    }
}

fn inspect(facts: &Facts) -> Result<Decision, Inconsistency> {
    let planned = facts.plan.as_ref().map(|p| p.batch);
    let done = facts.commit.as_ref().map(|c| c.batch);
    let decision = match (&facts.plan, done) {
        (None, None) => Decision::Begin,
        (Some(plan), None) if plan.batch == 0 => Decision::Replay(Box::new(plan.clone())),
        (Some(plan), Some(done)) if plan.batch == done => Decision::Plan { batch: done + 1 },
        (Some(plan), Some(done)) if plan.batch == done + 1 => Decision::Replay(Box::new(plan.clone())),
        _ => return Err(Inconsistency::LogGap { plan: planned, commit: done }),
    };
    for found in
        [facts.plan.as_ref().map(|p| &p.pipeline), facts.commit.as_ref().map(|c| &c.pipeline)].into_iter().flatten()
    {
        if *found != facts.pipeline {
            return Err(Inconsistency::OtherPipeline { found: found.clone() });
        }
    }
    check_meaning(facts)?;
    for (table, fact) in &facts.tables {
        check_table(facts, table, fact, planned, done)?;
    }
    check_note(facts, &decision)?;
    check_recipe(facts, &decision)?;
    Ok(decision)
}

/// A table that both the log and the configuration know must mean the same; new tables may appear, old ones may go.
fn check_meaning(facts: &Facts) -> Result<(), Inconsistency> {
    let Some(plan) = &facts.plan else { return Ok(()) };
    for (table, was) in &plan.meaning {
        if let Some(now) = facts.meaning.get(table).filter(|now| *now != was) {
            return Err(Inconsistency::MeaningChanged { table: table.clone(), was: was.clone(), now: now.clone() });
        }
    }
    Ok(())
}

/// A pending batch that a table has already must be the one that was planned: beside a copy of the log, another runner may
/// have planned other rows under its number, and what this log planned would be taken for done.
fn check_note(facts: &Facts, decision: &Decision) -> Result<(), Inconsistency> {
    let Decision::Replay(plan) = decision else { return Ok(()) };
    for (table, fact) in facts.tables.iter().filter(|(_, fact)| fact.applied == Some(plan.batch)) {
        let is_same = |note: &Note| {
            note.batch != plan.batch
                || (&note.sources, &note.moved, &note.letters, &note.forget, &note.rebuild, note.batch_time)
                    == (&plan.sources, &plan.moved, &plan.letters, &plan.forget, &plan.rebuild, plan.batch_time)
        };
        if !fact.note.as_ref().is_none_or(is_same) {
            return Err(Inconsistency::OtherPlan { batch: plan.batch, table: table.clone() });
        }
    }
    Ok(())
}

/// A batch that no table has yet may be done by new rules; one that was half applied may not, or a row could be set aside
/// by the old rules in one table and be taken by the new ones in none.
fn check_recipe(facts: &Facts, decision: &Decision) -> Result<(), Inconsistency> {
    let Decision::Replay(plan) = decision else { return Ok(()) };
    let has_it = facts.tables.iter().find(|(_, fact)| fact.applied == Some(plan.batch));
    match has_it {
        Some((table, _)) if plan.recipe != facts.recipe => {
            Err(Inconsistency::ChangedMidway { batch: plan.batch, table: table.clone() })
        }
        _ => Ok(()),
    }
}

fn check_table(
    facts: &Facts,
    table: &str,
    fact: &TableFact,
    planned: Option<BatchId>,
    done: Option<BatchId>,
) -> Result<(), Inconsistency> {
    let name = || table.to_string();
    let receipt = facts.commit.as_ref().and_then(|c| c.tables.get(table));
    match (fact.applied, planned) {
        (Some(_), None) => return Err(Inconsistency::CheckpointLost { table: name() }),
        (Some(applied), Some(log)) if applied > log => {
            return Err(Inconsistency::TableAhead { table: name(), applied, log });
        }
        (Some(applied), Some(_)) => {
            if let Some(log) = done.filter(|done| applied < *done) {
                return Err(Inconsistency::TableBehind { table: name(), applied, log });
            }
        }
        (None, _) if receipt.is_some() => {
            return Err(Inconsistency::TableLost { table: name(), log: done.unwrap_or_default() });
        }
        (None, _) => check_unused_table(facts, table, fact, planned)?,
    }
    let is_ours = |(_, id): &(String, String)| *id == facts.pipeline_id;
    if let (Some(_), Some(version), false) = (fact.applied, fact.version, fact.made_by.as_ref().is_some_and(is_ours)) {
        let was = receipt.map(|receipt| receipt.delta_version);
        return Err(Inconsistency::TableReplaced { table: name(), version, was });
    }
    if let (true, Some(version)) = (fact.restored, fact.version) {
        // A pending batch has no receipt yet: then the restore follows the version that carries it.
        let receipt = receipt.filter(|_| fact.applied == done);
        let was = receipt.map_or(version - 1, |receipt| receipt.delta_version);
        return Err(Inconsistency::TableRestored { table: name(), version, was });
    }
    let went_back = |receipt: &Receipt| receipt.memory_version.is_some() && fact.memory < receipt.memory_version;
    if fact.memory_harmed || receipt.is_some_and(went_back) {
        return Err(Inconsistency::MemoryLost { table: name() });
    }
    match (receipt, fact.version) {
        (Some(receipt), Some(version)) if version < receipt.delta_version => {
            Err(Inconsistency::TableRestored { table: name(), version, was: receipt.delta_version })
        }
        _ => Ok(()),
    }
}

/// A table without our batches is fine when it does not exist, or when a crash fell between its creation and its first
/// batch.
fn check_unused_table(
    facts: &Facts,
    table: &str,
    fact: &TableFact,
    planned: Option<BatchId>,
) -> Result<(), Inconsistency> {
    if fact.version.is_none() {
        return Ok(());
    }
    match &fact.made_by {
        Some((_, id)) if *id == facts.pipeline_id && planned.is_some() => Ok(()),
        Some((pipeline, _)) if *pipeline == facts.pipeline => {
            Err(Inconsistency::CheckpointLost { table: table.to_string() })
        }
        made_by => Err(Inconsistency::ForeignTable {
            table: table.to_string(),
            made_by: made_by.as_ref().map(|(pipeline, _)| pipeline.clone()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::batch::{FORMAT_VERSION, Owner};
    use chrono::DateTime;

    fn plan(batch: BatchId) -> BatchPlan {
        BatchPlan {
            version: FORMAT_VERSION,
            batch,
            pipeline: "orders".into(),
            batch_time: DateTime::UNIX_EPOCH,
            sources: BTreeMap::new(),
            skipped: BTreeMap::new(),
            moved: BTreeMap::new(),
            letters: None,
            rebuild: Vec::new(),
            since: BTreeMap::new(),
            forget: None,
            lost: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            watermarks: BTreeMap::new(),
            pinned: BTreeMap::new(),
            meaning: BTreeMap::from([("silver".to_string(), "upsert key=id".to_string())]),
            recipe: "recipe".into(),
            owner: Owner { run_id: "r".into(), host: "h".into(), pid: 1 },
        }
    }

    fn commit(batch: BatchId) -> CommitRecord {
        CommitRecord {
            version: FORMAT_VERSION,
            batch,
            pipeline: "orders".into(),
            offsets: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            lost: BTreeMap::new(),
            next_watermarks: BTreeMap::new(),
            tables: BTreeMap::from([("silver".to_string(), Receipt { delta_version: 7, ..Receipt::default() })]),
            input_rows: 0,
            input_bytes: 0,
            dead_letters: 0,
            expectations: BTreeMap::new(),
            replayed_from: None,
            finished_by: None,
            duration_ms: BTreeMap::new(),
            committed_at: DateTime::UNIX_EPOCH,
        }
    }

    fn facts(planned: Option<BatchId>, done: Option<BatchId>, applied: Option<BatchId>) -> Facts {
        let version = applied.map(|_| 7);
        let made_by = applied.map(|_| ("orders".to_string(), "id".to_string()));
        Facts {
            pipeline: "orders".into(),
            pipeline_id: "id".into(),
            meaning: BTreeMap::from([("silver".to_string(), "upsert key=id".to_string())]),
            recipe: "recipe".into(),
            plan: planned.map(plan),
            commit: done.map(commit),
            tables: BTreeMap::from([(
                "silver".to_string(),
                TableFact { version, applied, made_by, ..TableFact::default() },
            )]),
        }
    }

    fn halts(facts: &Facts) -> Inconsistency {
        match recover(facts) {
            Decision::Halt(why) => why,
            other => panic!("expected a halt, got {other:?}"),
        }
    }

    #[test]
    fn an_empty_log_and_no_tables_begin_at_batch_0() {
        assert_eq!(recover(&facts(None, None, None)), Decision::Begin);
    }

    #[test]
    fn a_plan_without_a_commit_record_is_replayed_whether_or_not_the_table_has_it() {
        assert_eq!(recover(&facts(Some(0), None, None)), Decision::Replay(Box::new(plan(0))));
        assert_eq!(recover(&facts(Some(0), None, Some(0))), Decision::Replay(Box::new(plan(0))));
        assert_eq!(recover(&facts(Some(4), Some(3), Some(3))), Decision::Replay(Box::new(plan(4))));
        assert_eq!(recover(&facts(Some(4), Some(3), Some(4))), Decision::Replay(Box::new(plan(4))));
    }

    #[test]
    fn a_finished_batch_is_followed_by_the_next_one() {
        assert_eq!(recover(&facts(Some(3), Some(3), Some(3))), Decision::Plan { batch: 4 });
    }

    #[test]
    fn a_log_that_skips_a_batch_halts() {
        assert!(matches!(halts(&facts(Some(5), Some(3), Some(3))), Inconsistency::LogGap { .. }));
        assert!(matches!(halts(&facts(None, Some(3), Some(3))), Inconsistency::LogGap { .. }));
        assert!(matches!(halts(&facts(Some(1), None, Some(0))), Inconsistency::LogGap { .. }));
    }

    #[test]
    fn a_table_ahead_of_the_log_halts() {
        assert!(matches!(
            halts(&facts(Some(3), Some(3), Some(4))),
            Inconsistency::TableAhead { applied: 4, log: 3, .. }
        ));
    }

    #[test]
    fn a_table_behind_a_finished_batch_halts() {
        assert!(matches!(halts(&facts(Some(3), Some(3), Some(2))), Inconsistency::TableBehind { .. }));
    }

    #[test]
    fn a_table_that_vanished_or_was_made_anew_halts() {
        assert!(matches!(halts(&facts(Some(3), Some(3), None)), Inconsistency::TableLost { .. }));
    }

    #[test]
    fn a_table_with_batches_but_no_log_is_a_lost_checkpoint() {
        assert!(matches!(halts(&facts(None, None, Some(3))), Inconsistency::CheckpointLost { .. }));
        let mut new_log = facts(None, None, None);
        let made_by = Some(("orders".to_string(), "an earlier id".to_string()));
        new_log
            .tables
            .insert("silver".into(), TableFact { version: Some(7), applied: None, made_by, ..TableFact::default() });
        assert!(matches!(halts(&new_log), Inconsistency::CheckpointLost { .. }));
    }

    #[test]
    fn somebody_elses_table_halts() {
        let mut foreign = facts(None, None, None);
        foreign.tables.insert("silver".into(), TableFact { version: Some(7), ..TableFact::default() });
        assert!(matches!(halts(&foreign), Inconsistency::ForeignTable { made_by: None, .. }));
        let made_by = Some(("billing".to_string(), "x".to_string()));
        foreign
            .tables
            .insert("silver".into(), TableFact { version: Some(7), applied: None, made_by, ..TableFact::default() });
        assert!(matches!(halts(&foreign), Inconsistency::ForeignTable { made_by: Some(_), .. }));
    }

    #[test]
    fn a_table_created_but_not_written_when_the_runner_died_is_ours() {
        let mut crashed = facts(Some(0), None, None);
        let made_by = Some(("orders".to_string(), "id".to_string()));
        crashed
            .tables
            .insert("silver".into(), TableFact { version: Some(0), applied: None, made_by, ..TableFact::default() });
        assert_eq!(recover(&crashed), Decision::Replay(Box::new(plan(0))));
    }

    #[test]
    fn a_restored_table_halts() {
        let mut restored = facts(Some(3), Some(3), Some(3));
        restored.tables.get_mut("silver").expect("there").version = Some(5);
        assert!(matches!(halts(&restored), Inconsistency::TableRestored { version: 5, was: 7, .. }));
    }

    #[test]
    fn a_table_that_carries_batches_but_is_no_longer_ours_halts() {
        let mut replaced = facts(Some(3), Some(3), Some(3));
        let fact = replaced.tables.get_mut("silver").expect("there");
        for made_by in [None, Some(("billing".to_string(), "x".to_string()))] {
            (fact.version, fact.made_by) = (Some(8), made_by);
            let facts = Facts {
                tables: BTreeMap::from([("silver".to_string(), fact.clone())]),
                ..facts(Some(3), Some(3), None)
            };
            assert!(matches!(halts(&facts), Inconsistency::TableReplaced { version: 8, was: Some(7), .. }));
        }
    }

    #[test]
    fn a_restore_that_made_a_newer_version_halts() {
        let mut restored = facts(Some(3), Some(3), Some(3));
        let fact = restored.tables.get_mut("silver").expect("there");
        (fact.version, fact.restored) = (Some(9), true);
        assert!(matches!(halts(&restored), Inconsistency::TableRestored { version: 9, was: 7, .. }));
        let mut pending = facts(Some(4), Some(3), Some(4));
        let fact = pending.tables.get_mut("silver").expect("there");
        (fact.version, fact.restored) = (Some(9), true);
        assert!(matches!(halts(&pending), Inconsistency::TableRestored { version: 9, was: 8, .. }));
    }

    #[test]
    fn a_memory_of_deletes_that_is_gone_or_went_back_halts() {
        let mut facts = facts(Some(3), Some(3), Some(3));
        let receipt = facts.commit.as_mut().and_then(|commit| commit.tables.get_mut("silver")).expect("there");
        receipt.memory_version = Some(4);
        for (memory, halted) in [(None, true), (Some(3), true), (Some(4), false), (Some(5), false)] {
            facts.tables.get_mut("silver").expect("there").memory = memory;
            let is_lost = matches!(recover(&facts), Decision::Halt(Inconsistency::MemoryLost { .. }));
            assert_eq!(is_lost, halted, "{memory:?}");
        }
        // A restore makes a newer version, and may come before the first receipt that names the memory.
        facts.tables.get_mut("silver").expect("there").memory_harmed = true;
        assert!(matches!(halts(&facts), Inconsistency::MemoryLost { .. }));
        facts.commit.as_mut().and_then(|commit| commit.tables.get_mut("silver")).expect("there").memory_version = None;
        assert!(matches!(halts(&facts), Inconsistency::MemoryLost { .. }));
    }

    #[test]
    fn a_changed_key_halts_but_a_new_table_does_not() {
        let mut changed = facts(Some(3), Some(3), Some(3));
        changed.meaning.insert("gold".into(), "append".into());
        changed.tables.insert("gold".into(), TableFact::default());
        assert_eq!(recover(&changed), Decision::Plan { batch: 4 });
        changed.meaning.insert("silver".into(), "upsert key=other".into());
        assert!(matches!(halts(&changed), Inconsistency::MeaningChanged { .. }));
    }

    #[test]
    fn a_changed_rule_halts_only_a_batch_that_is_half_done() {
        let mut changed = facts(Some(4), Some(3), Some(3));
        changed.recipe = "another".into();
        assert_eq!(recover(&changed), Decision::Replay(Box::new(plan(4))), "no table has it yet");
        let mut half_done = facts(Some(4), Some(3), Some(4));
        half_done.recipe = "another".into();
        assert!(matches!(halts(&half_done), Inconsistency::ChangedMidway { batch: 4, .. }));
        let mut done = facts(Some(3), Some(3), Some(3));
        done.recipe = "another".into();
        assert_eq!(recover(&done), Decision::Plan { batch: 4 });
    }

    #[test]
    fn a_pending_batch_that_a_table_carries_must_be_the_planned_one() {
        let mut pending = facts(Some(4), Some(3), Some(4));
        let note = |seconds| Note {
            batch: 4,
            batch_time: DateTime::from_timestamp(seconds, 0).expect("in range"),
            ..Note::default()
        };
        pending.tables.get_mut("silver").expect("there").note = Some(note(0));
        assert_eq!(recover(&pending), Decision::Replay(Box::new(plan(4))), "it is this log's own");
        pending.tables.get_mut("silver").expect("there").note = Some(note(1));
        assert!(matches!(halts(&pending), Inconsistency::OtherPlan { batch: 4, .. }));
    }

    #[test]
    fn a_log_copied_from_another_pipeline_halts() {
        let mut copied = facts(Some(3), Some(3), Some(3));
        copied.pipeline = "billing".into();
        assert!(matches!(halts(&copied), Inconsistency::OtherPipeline { .. }));
    }
}
