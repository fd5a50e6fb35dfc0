//! Whether the batches of a log follow each other. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::batch::{BatchId, BatchPlan, CommitRecord};

/// Something about a log that is worth saying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A run would stop at it, or could lose or double rows; otherwise it is only history that is missing.
    pub broken: bool,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub mend: Vec<String>,
}

impl Finding {
    /// Something that must be mended.
    pub fn broken(what: impl Into<String>, mend: impl IntoIterator<Item = impl Into<String>>) -> Finding {
        Finding { broken: true, what: what.into(), mend: mend.into_iter().map(Into::into).collect() }
    }

    /// Something to know.
    pub fn note(what: impl Into<String>) -> Finding {
        Finding { broken: false, what: what.into(), mend: Vec::new() }
    }
}

const REBUILD: &str = "restore the object from a backup, or: tidegate checkpoint rebuild FILE";

/// Holes and jumps in the objects that a log holds, by batch.
pub fn chain(plans: &BTreeMap<BatchId, BatchPlan>, commits: &BTreeMap<BatchId, CommitRecord>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let newest = plans.keys().chain(commits.keys()).max().copied();
    let oldest = plans.keys().chain(commits.keys()).min().copied();
    let (Some(newest), Some(oldest)) = (newest, oldest) else { return findings };
    let missing = |what: &str, batch: BatchId, matters: bool| match matters {
        true => Finding::broken(format!("the {what} of batch {batch} is missing"), [REBUILD]),
        false => {
            Finding::note(format!("the {what} of batch {batch} is missing: its history is lost, runs do not need it"))
        }
    };
    for batch in oldest..=newest {
        if !plans.contains_key(&batch) && batch > oldest {
            findings.push(missing("plan", batch, batch == newest));
        }
        // The newest batch may be pending.
        if !commits.contains_key(&batch) && batch < newest {
            // Clean-up takes plans first: below the oldest commit record nothing is expected.
            let begun = commits.keys().next().is_some_and(|first| *first < batch);
            // A pending batch starts from the record before it; a newest batch that is done stands for itself.
            let matters = batch + 1 == newest && !commits.contains_key(&newest);
            if begun || matters {
                findings.push(missing("commit record", batch, matters));
            }
        }
    }
    for (batch, plan) in plans {
        let (Some(before), after) = (commits.get(&(batch - 1)), commits.get(batch)) else { continue };
        match plan.advance(&before.offsets) {
            Err(why) => {
                let what = format!("batch {batch} does not continue batch {}: {why}", batch - 1);
                findings.push(Finding::broken(what, [REBUILD]));
            }
            Ok(offsets) => {
                // Partitions and sources may join in a later batch, so only what both know is compared.
                let moved = after.iter().flat_map(|after| &after.offsets).filter(|(name, found)| {
                    offsets.get(*name).is_some_and(|expected| {
                        expected.0.iter().any(|(at, offset)| found.0.get(at).is_some_and(|found| found != offset))
                    })
                });
                let sources: BTreeSet<&str> = moved.map(|(name, _)| name.as_str()).collect();
                if !sources.is_empty() {
                    let names = sources.into_iter().collect::<Vec<_>>().join(", ");
                    let what = format!("the commit record of batch {batch} does not end where its plan does ({names})");
                    findings.push(Finding::broken(what, [REBUILD]));
                }
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::batch::Owner;
    use crate::model::offset::{OffsetRanges, Offsets, Partition, Range};

    fn at(offset: i64) -> BTreeMap<String, Offsets> {
        BTreeMap::from([("source".to_string(), Offsets(BTreeMap::from([(Partition::new("t", 0), offset)])))])
    }

    fn plan(batch: BatchId) -> (BatchId, BatchPlan) {
        let range = Range { from: batch * 10, until: batch * 10 + 10 };
        let sources =
            BTreeMap::from([("source".to_string(), OffsetRanges(BTreeMap::from([(Partition::new("t", 0), range)])))]);
        let plan = BatchPlan {
            version: 2,
            batch,
            pipeline: "orders".into(),
            batch_time: chrono::DateTime::UNIX_EPOCH,
            sources,
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
            meaning: BTreeMap::new(),
            recipe: String::new(),
            owner: Owner { run_id: "r".into(), host: "h".into(), pid: 1 },
        };
        (batch, plan)
    }

    fn commit(batch: BatchId) -> (BatchId, CommitRecord) {
        let record = CommitRecord {
            version: 2,
            batch,
            pipeline: "orders".into(),
            offsets: at(batch * 10 + 10),
            incarnations: BTreeMap::new(),
            lost: BTreeMap::new(),
            next_watermarks: BTreeMap::new(),
            tables: BTreeMap::new(),
            input_rows: 0,
            input_bytes: 0,
            dead_letters: 0,
            replayed_from: None,
            finished_by: None,
            expectations: BTreeMap::new(),
            duration_ms: BTreeMap::new(),
            committed_at: chrono::DateTime::UNIX_EPOCH,
        };
        (batch, record)
    }

    fn broken(findings: &[Finding]) -> Vec<&str> {
        findings.iter().filter(|finding| finding.broken).map(|finding| finding.what.as_str()).collect()
    }

    #[test]
    fn a_dense_log_has_nothing_to_say_and_a_pending_batch_is_no_fault() {
        assert_eq!(chain(&(3..8).map(plan).collect(), &(3..8).map(commit).collect()), []);
        assert_eq!(chain(&(3..9).map(plan).collect(), &(3..8).map(commit).collect()), []);
        assert_eq!(chain(&(4..8).map(plan).collect(), &(3..8).map(commit).collect()), [], "clean-up died in between");
    }

    #[test]
    fn holes_at_the_head_are_broken_and_older_ones_are_history() {
        let without = |hole: BatchId| (0..8).filter(|batch| *batch != hole).map(plan).collect();
        assert_eq!(broken(&chain(&without(7), &(0..8).map(commit).collect())), ["the plan of batch 7 is missing"]);
        let old = chain(&without(4), &(0..8).map(commit).collect());
        assert_eq!((old.len(), broken(&old).len()), (1, 0));
        let commits = (0..6).map(commit).collect();
        assert_eq!(broken(&chain(&(0..8).map(plan).collect(), &commits)), ["the commit record of batch 6 is missing"]);
    }

    #[test]
    fn a_newest_batch_that_is_done_needs_nothing_below_it() {
        let commits = (0..6).chain([7]).map(commit).collect();
        let findings = chain(&(0..8).map(plan).collect(), &commits);
        assert_eq!((findings.len(), broken(&findings).len()), (1, 0), "{findings:?}");
        // An older copy of the folder, and a head that was rebuilt from the tables.
        let findings = chain(&(0..4).chain([7]).map(plan).collect(), &(0..4).chain([7]).map(commit).collect());
        assert_eq!((findings.len(), broken(&findings).len()), (6, 0), "{findings:?}");
    }

    #[test]
    fn a_jump_between_two_batches_is_broken() {
        let mut plans: BTreeMap<BatchId, BatchPlan> = (0..4).map(plan).collect();
        let commits: BTreeMap<BatchId, CommitRecord> = (0..4).map(commit).collect();
        plans.insert(2, BatchPlan { batch: 2, ..plan(3).1 });
        let findings = chain(&plans, &commits);
        assert!(broken(&findings)[0].contains("batch 2 does not continue batch 1"), "{findings:?}");
        let mut commits = commits;
        commits.insert(3, CommitRecord { batch: 3, ..commit(4).1 });
        let findings = chain(&(0..4).map(plan).collect(), &commits);
        assert!(broken(&findings)[0].contains("does not end where its plan does"), "{findings:?}");
    }
}
