//! Why recovery refuses to go on, in words for the person who has to decide what is right.

use std::fmt;

use super::batch::BatchId;

/// Why recovery refuses to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inconsistency {
    /// Plans and commit records do not follow each other.
    LogGap {
        /// Newest plan.
        plan: Option<BatchId>,
        /// Newest commit record.
        commit: Option<BatchId>,
    },
    /// The log belongs to another pipeline.
    OtherPipeline {
        /// Name in the log.
        found: String,
    },
    /// Tables hold batches but the log is empty.
    CheckpointLost {
        /// A table that shows it.
        table: String,
    },
    /// The folder of a table holds a table that this pipeline did not make.
    ForeignTable {
        /// The table.
        table: String,
        /// The pipeline that made it, if one did.
        made_by: Option<String>,
    },
    /// A table holds a batch that the log has not planned.
    TableAhead {
        /// The table.
        table: String,
        /// What it holds.
        applied: BatchId,
        /// The newest batch in the log.
        log: BatchId,
    },
    /// Somebody replaced a table that carried batches: it is no longer the one that this pipeline made.
    TableReplaced {
        /// The table.
        table: String,
        /// Its version now.
        version: i64,
        /// Its version when the last batch was committed, as far as it is known.
        was: Option<i64>,
    },
    /// A table lacks batches that the log says are done.
    TableBehind {
        /// The table.
        table: String,
        /// What it holds.
        applied: BatchId,
        /// The newest batch that is done.
        log: BatchId,
    },
    /// A table that carried batches is gone or was made anew.
    TableLost {
        /// The table.
        table: String,
        /// The newest batch that is done.
        log: BatchId,
    },
    /// A table's memory of deletes is gone or went back: late rows would revive deleted keys.
    MemoryLost {
        /// The table.
        table: String,
    },
    /// A table went back to an earlier version.
    TableRestored {
        /// The table.
        table: String,
        /// Its version now.
        version: i64,
        /// Its version when the last batch was committed.
        was: i64,
    },
    /// A table carries a batch of this number, but not the one that this log has planned.
    OtherPlan {
        /// The batch.
        batch: BatchId,
        /// The table.
        table: String,
    },
    /// A batch is in some tables and not in others, and the configuration was changed in between.
    ChangedMidway {
        /// The batch.
        batch: BatchId,
        /// A table that has it.
        table: String,
    },
    /// The configuration gives stored rows another meaning than they had when they were written.
    MeaningChanged {
        /// The table.
        table: String,
        /// What the log says.
        was: String,
        /// What the configuration says.
        now: String,
    },
}

impl fmt::Display for Inconsistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Inconsistency::LogGap { plan, commit } => {
                let show = |id: &Option<BatchId>| id.map_or("none".to_string(), |id| id.to_string());
                write!(f, "the checkpoint log has a gap: newest plan {}, newest commit {}", show(plan), show(commit))
            }
            Inconsistency::OtherPipeline { found } => {
                write!(f, "the checkpoint log belongs to pipeline `{found}`")
            }
            Inconsistency::CheckpointLost { table } => {
                write!(
                    f,
                    "the checkpoint was lost: table {table} holds batches of this pipeline, but the log is empty or new"
                )
            }
            Inconsistency::ForeignTable { table, made_by: Some(pipeline) } => {
                write!(f, "table {table} exists and belongs to pipeline `{pipeline}`")
            }
            Inconsistency::ForeignTable { table, made_by: None } => {
                write!(f, "table {table} exists and was not made by tidegate")
            }
            Inconsistency::TableAhead { table, applied, log } => {
                write!(f, "table {table} holds batch {applied}, but the log ends at batch {log}")
            }
            Inconsistency::TableBehind { table, applied, log } => {
                write!(f, "table {table} holds batch {applied} only, but the log says batch {log} is done")
            }
            Inconsistency::TableLost { table, log } => {
                write!(
                    f,
                    "table {table} was dropped or made anew: it no longer holds batch {log}, which the log says is done"
                )
            }
            Inconsistency::TableReplaced { table, version, .. } => {
                write!(
                    f,
                    "table {table} was replaced by something else (version {version}): it no longer has the properties tidegate.* of this pipeline's table"
                )
            }
            Inconsistency::TableRestored { table, version, was } => {
                write!(
                    f,
                    "table {table} was restored to an older version: it is at version {version}, the last batch left it at {was}"
                )
            }
            Inconsistency::MemoryLost { table } => {
                write!(
                    f,
                    "the memory of deletes of {table} (<lake>/_tidegate/deletes) was dropped, restored or changed by others: late rows would revive deleted keys"
                )
            }
            Inconsistency::OtherPlan { batch, table } => {
                write!(
                    f,
                    "table {table} carries another batch {batch} than the one in this checkpoint: two checkpoints are in use for one lake"
                )
            }
            Inconsistency::ChangedMidway { batch, table } => {
                write!(
                    f,
                    "the pipeline file was changed while batch {batch} was half done: {table} has it, other tables do not"
                )
            }
            Inconsistency::MeaningChanged { table, was, now } => {
                write!(
                    f,
                    "the configuration gives the rows of {table} another meaning: they were written with [{was}], now it says [{now}]"
                )
            }
        }
    }
}

const VERIFY: &str = "what the log and the tables hold: tidegate checkpoint verify FILE";
const START_OVER: &str = "or give the pipeline a new `name` and a new `lake` to rebuild every table from the source";

impl Inconsistency {
    /// What to do about it.
    pub fn help(&self) -> Vec<String> {
        let lines: &[&str] = match self {
            Inconsistency::LogGap { .. } => &[
                "an object of the log was deleted or copied by hand; restore the folder from a backup",
                "or let the tables say where it stood: tidegate checkpoint verify FILE names what is wrong, \
                 tidegate checkpoint rebuild FILE shows what it would write",
            ],
            Inconsistency::OtherPipeline { .. } => {
                &["point `checkpoints` at this pipeline's own folder, or restore the pipeline's `name`"]
            }
            Inconsistency::CheckpointLost { .. } => &[
                "restore the checkpoint folder from a backup: starting over would read rows twice",
                "or rebuild it from the tables, which know their last batch: tidegate checkpoint rebuild FILE",
            ],
            Inconsistency::ForeignTable { .. } => {
                &["choose another table name or another `lake`; tidegate never writes into a table that is not its own"]
            }
            Inconsistency::TableAhead { .. } => &[
                "the checkpoint folder is older than the tables: restore its newest copy",
                "is another runner using the same lake with another checkpoint folder?",
                "if there is no newer copy: move the folder away, then tidegate checkpoint rebuild FILE",
            ],
            Inconsistency::TableBehind { .. } => &[
                "was its folder replaced by an older copy, or its newest commit deleted? bring the newest copy back",
                "was it left out of the pipeline file for a while? then give it a new name: it starts with the next batch",
                VERIFY,
                START_OVER,
            ],
            Inconsistency::TableRestored { was, .. } => {
                return vec![
                    format!(
                        "undo it: RESTORE TABLE … TO VERSION AS OF {was} in Spark, DeltaTable(…).restore({was}) in Python"
                    ),
                    VERIFY.to_string(),
                    START_OVER.to_string(),
                ];
            }
            Inconsistency::TableReplaced { was, .. } => {
                let back = was.map_or_else(
                    || "bring the table's folder back from a backup".to_string(),
                    |was| format!("bring it back: RESTORE TABLE … TO VERSION AS OF {was}, or its folder from a backup"),
                );
                return vec![back, VERIFY.to_string(), START_OVER.to_string()];
            }
            Inconsistency::OtherPlan { .. } => &[
                "is another runner using the same lake with a copy of the checkpoint folder? stop one of the two, and keep the folder that is further",
                "or move this folder away and rebuild it from the tables: tidegate checkpoint rebuild FILE",
            ],
            Inconsistency::TableLost { .. } => &["bring the table's folder back from a backup", VERIFY, START_OVER],
            Inconsistency::MemoryLost { .. } => &[
                "bring its folder back from a backup, or undo the change: RESTORE it to the version before that",
                VERIFY,
                START_OVER,
            ],
            Inconsistency::ChangedMidway { .. } => {
                &["put the file back as it was (git stash), run once to finish the batch, then change it"]
            }
            Inconsistency::MeaningChanged { .. } => &[
                "undo the change in the pipeline file",
                "or write to a new table: rename it in the file, and it starts with the next batch",
            ],
        };
        let mut lines: Vec<String> = lines.iter().map(|line| line.to_string()).collect();
        if let Inconsistency::MeaningChanged { table, now, .. } = self
            && [": refresh ", " aggregate "].iter().any(|kind| now.contains(kind))
        {
            lines.push(format!(
                "or compute all of it again by the new rules: tidegate rebuild FILE --table {table} (of several changed tables, \
                 all in one command: --table A --table B)"
            ));
        }
        lines
    }
}
