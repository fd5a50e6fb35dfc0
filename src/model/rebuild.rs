//! A lost checkpoint from what the tables say about themselves. Pure: facts in, the objects to write or the reason why
//! not out.
//!
//! Every table carries its last batch in its log, together with a [`Note`] of what that batch read. After any crash the
//! tables are at batch N or N-1. If all are at N, the log ends with N done. If some lack it, the log ends with N planned
//! and N-1 done, so that the next run does N again for the tables that lack it: with the same ranges, clock and recipe.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Utc};

use super::batch::{BatchId, BatchPlan, CommitRecord, FORMAT_VERSION, Owner, Receipt};
use super::note::{Note, digest};
use super::offset::Offsets;

/// What one table says.
#[derive(Debug, Clone, Default)]
pub struct TableTrace {
    /// (pipeline, pipeline id) of whoever made it; `None` = not tidegate.
    pub made_by: Option<(String, String)>,
    /// Last batch applied.
    pub applied: Option<BatchId>,
    /// It was restored to a version before that batch.
    pub restored: bool,
    /// Version of its memory of deletes.
    pub memory: Option<i64>,
    /// Others restored or changed it.
    pub memory_harmed: bool,
    /// Its newest commits that carry a batch, newest first: Delta version, batch, note.
    pub carriers: Vec<(i64, BatchId, Option<Note>)>,
}

impl TableTrace {
    /// How far the memory of deletes had come, as the newest commits tell; `None` = they do not.
    pub fn noted_memory(&self) -> Option<i64> {
        self.carriers.iter().filter_map(|(_, _, note)| note.as_ref()?.memory).max()
    }
}

/// Everything that a rebuild may look at.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Pipeline name.
    pub pipeline: String,
    /// What gives each table of the configuration its meaning.
    pub meaning: BTreeMap<String, String>,
    /// Recipe of the configuration.
    pub recipe: String,
    /// Every table of the configuration, dead letters included; `None` = there is no such table.
    pub tables: BTreeMap<String, Option<TableTrace>>,
    /// Who rebuilds.
    pub owner: Owner,
    /// When.
    pub now: DateTime<Utc>,
}

/// The head of a log as the tables tell it.
#[derive(Debug, Clone, PartialEq)]
pub struct Rebuilt {
    /// Identity of the log that wrote the tables.
    pub pipeline_id: String,
    /// The newest batch that any table carries.
    pub batch: BatchId,
    /// Tables that still lack it; empty = the batch is done.
    pub lacking: Vec<String>,
    /// First offsets, where batch 0 itself is pending.
    pub starts: BTreeMap<String, Offsets>,
    /// Plans to write, oldest first.
    pub plans: Vec<BatchPlan>,
    /// Commit records to write, oldest first.
    pub commits: Vec<CommitRecord>,
    /// The batch is half done, and the configuration is not the one that it was begun with.
    pub changed_midway: bool,
}

impl Rebuilt {
    /// Where the pipeline stands after the last batch that is done.
    pub fn position(&self) -> &BTreeMap<String, Offsets> {
        self.commits.last().map_or(&self.starts, |commit| &commit.offsets)
    }
}

/// Why the tables cannot tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No table of the pipeline exists.
    NoTables,
    /// The tables exist and never took a batch.
    NoBatches,
    /// A table was made by another pipeline, or by another tool.
    Foreign {
        /// The table.
        table: String,
        /// Its maker.
        made_by: Option<String>,
    },
    /// Two tables were made under different checkpoints.
    TwoIdentities {
        /// A table and its pipeline id.
        one: (String, String),
        /// Another table and its pipeline id.
        other: (String, String),
    },
    /// A table was restored to an older version.
    Restored {
        /// The table.
        table: String,
    },
    /// A table's memory of deletes is gone, or is not what its last batch left.
    MemoryLost {
        /// The table.
        table: String,
        /// The version of the memory now.
        found: Option<i64>,
        /// What the table's newest commit says, if it does.
        was: Option<i64>,
    },
    /// A table lacks more than the last batch.
    Lags {
        /// The table.
        table: String,
        /// What it holds.
        applied: BatchId,
        /// What others hold.
        newest: BatchId,
    },
    /// A table that took part in the last batches is gone.
    Missing {
        /// The table.
        table: String,
        /// The newest batch.
        newest: BatchId,
    },
    /// The commit that carries a batch does not say enough about it.
    NoNote {
        /// The table.
        table: String,
        /// The batch.
        batch: BatchId,
    },
    /// Two tables tell different stories about the same batch.
    Disagree {
        /// The batch.
        batch: BatchId,
        /// The tables.
        tables: (String, String),
    },
    /// The configuration gives a table's rows another meaning than they were written with.
    MeaningChanged {
        /// The table.
        table: String,
        /// What the configuration says.
        now: String,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NoTables => write!(f, "none of the pipeline's tables exists: there is nothing to rebuild from"),
            Refusal::NoBatches => write!(f, "the pipeline's tables exist, but no batch was ever applied to them"),
            Refusal::Foreign { table, made_by: Some(pipeline) } => {
                write!(f, "table {table} was made by pipeline `{pipeline}`")
            }
            Refusal::Foreign { table, made_by: None } => write!(f, "table {table} was not made by tidegate"),
            Refusal::TwoIdentities { one, other } => write!(
                f,
                "the tables were written under different checkpoints: {} under {}, {} under {}",
                one.0, one.1, other.0, other.1
            ),
            Refusal::Restored { table } => {
                write!(f, "table {table} was restored to an older version: rows of its last batch are missing")
            }
            Refusal::MemoryLost { table, found, was } => {
                let at = |version: &Option<i64>| version.map_or("gone".to_string(), |v| format!("at version {v}"));
                write!(f, "the memory of deletes of {table} (<lake>/_tidegate/deletes) is {}, ", at(found))?;
                match was.filter(|was| *found < Some(*was)) {
                    Some(was) => write!(f, "and the table's newest batch left it at version {was}")?,
                    None => write!(f, "and others restored or changed it")?,
                }
                write!(f, ": late rows would revive deleted keys")
            }
            Refusal::Lags { table, applied, newest } => write!(
                f,
                "table {table} holds batch {applied} only, others hold batch {newest}: one crash does not leave that"
            ),
            Refusal::Missing { table, newest } => {
                write!(f, "table {table} took part in batch {newest} or the one before it, and is gone")
            }
            Refusal::NoNote { table, batch } => {
                write!(f, "the commit of batch {batch} in table {table} does not say what the batch read")
            }
            Refusal::Disagree { batch, tables: (one, other) } => {
                write!(f, "tables {one} and {other} tell different stories about batch {batch}")
            }
            Refusal::MeaningChanged { table, now } => write!(
                f,
                "the rows of {table} were written with another meaning than the configuration gives them now: [{now}]"
            ),
        }
    }
}

impl Refusal {
    /// What to do about it.
    pub fn help(&self) -> Vec<String> {
        let backup = "bring the checkpoint folder back from a backup";
        let lines: &[&str] = match self {
            Refusal::NoTables => &["is `lake` right? if nothing was ever written, just run: tidegate run FILE"],
            Refusal::NoBatches => &["nothing is in them: remove their folders, then start over: tidegate run FILE"],
            Refusal::Foreign { .. } => &["point `lake` and `name` at this pipeline's own tables"],
            Refusal::TwoIdentities { .. } => &[
                backup,
                "or take the tables of the other checkpoint out of the pipeline file, rebuild, and give them new names",
            ],
            Refusal::Restored { .. } => {
                &["undo the restore (RESTORE TABLE to the version before it), then rebuild again", backup]
            }
            Refusal::MemoryLost { .. } => &[
                "bring its folder back from a backup, or undo the change: RESTORE it to the version before that",
                "or give the pipeline a new `name` and a new `lake` to rebuild every table from the source",
            ],
            Refusal::Lags { .. } => &[
                "was it left out of the pipeline file for a while? take it out again, rebuild, and give it a new name",
                "was the table's folder replaced by an older copy? bring the newest one back",
            ],
            Refusal::Missing { .. } => &[
                "bring the table's folder back from a backup",
                "or take it out of the pipeline file, rebuild, and give it a new name: it starts with the next batch",
            ],
            Refusal::NoNote { .. } => {
                &[backup, "the entry was cleaned from the table's log, or an older tidegate wrote it"]
            }
            Refusal::Disagree { .. } => &[backup],
            Refusal::MeaningChanged { .. } => &["undo the change in the pipeline file, then rebuild again"],
        };
        lines.iter().map(|line| line.to_string()).collect()
    }
}

/// The head of the log, or why the tables cannot tell it.
pub fn rebuild(facts: &Facts) -> Result<Rebuilt, Refusal> {
    let present: BTreeMap<&String, &TableTrace> =
        facts.tables.iter().filter_map(|(name, trace)| Some((name, trace.as_ref()?))).collect();
    let pipeline_id = identity(facts, &present)?;
    if let Some((table, _)) = present.iter().find(|(_, trace)| trace.restored) {
        return Err(Refusal::Restored { table: table.to_string() });
    }
    check_memory(&present)?;
    let newest = present.values().filter_map(|trace| trace.applied).max().ok_or(Refusal::NoBatches)?;
    let note = agreed(&present, newest)?;
    let earlier = match newest {
        0 => None,
        _ => agreed(&present, newest - 1).ok(),
    };
    let mut lacking = Vec::new();
    for (table, trace) in &facts.tables {
        let applied = trace.as_ref().and_then(|trace| trace.applied);
        let took_part = |note: &&Note| note.tables.contains(table);
        match applied {
            Some(applied) if applied == newest => {}
            Some(applied) if applied == newest - 1 => lacking.push(table.clone()),
            Some(applied) => return Err(Refusal::Lags { table: table.clone(), applied, newest }),
            // A table that the batch did not know joins with the next one.
            None if !took_part(&&note) => {}
            // One that the batch before did not know joined with this one, and the crash came first.
            None if newest == 0 || earlier.as_ref().is_some_and(|earlier| !took_part(&earlier)) => {
                lacking.push(table.clone());
            }
            None => return Err(Refusal::Missing { table: table.clone(), newest }),
        }
    }
    check_meaning(facts, &present)?;
    check_continuity(&present, newest, &note, earlier.as_ref())?;
    let mut rebuilt = Rebuilt {
        pipeline_id,
        batch: newest,
        starts: BTreeMap::new(),
        plans: vec![plan(facts, &note)],
        commits: Vec::new(),
        changed_midway: !lacking.is_empty() && note.recipe != facts.recipe,
        lacking,
    };
    if rebuilt.lacking.is_empty() {
        rebuilt.commits.push(commit(facts, newest, note.after(), &present, &note));
    } else if newest == 0 {
        rebuilt.starts = note.before();
    } else {
        rebuilt.commits.push(commit(facts, newest - 1, note.before(), &present, &note));
        if let Some(earlier) = &earlier {
            rebuilt.plans.insert(0, plan(facts, earlier));
        }
    }
    Ok(rebuilt)
}

/// Every table must have been made by this pipeline, under one checkpoint.
fn identity(facts: &Facts, present: &BTreeMap<&String, &TableTrace>) -> Result<String, Refusal> {
    let mut known: Option<(String, String)> = None;
    for (table, trace) in present {
        let id = match &trace.made_by {
            Some((pipeline, id)) if *pipeline == facts.pipeline => id.clone(),
            made_by => {
                let made_by = made_by.as_ref().map(|(pipeline, _)| pipeline.clone());
                return Err(Refusal::Foreign { table: table.to_string(), made_by });
            }
        };
        match &known {
            Some(one) if one.1 != id => {
                return Err(Refusal::TwoIdentities { one: one.clone(), other: (table.to_string(), id) });
            }
            Some(_) => {}
            None => known = Some((table.to_string(), id)),
        }
    }
    known.map(|(_, id)| id).ok_or(Refusal::NoTables)
}

/// What all tables that carry `batch` say about it.
fn agreed(present: &BTreeMap<&String, &TableTrace>, batch: BatchId) -> Result<Note, Refusal> {
    let mut known: Option<(&String, Note)> = None;
    for (table, trace) in present {
        let Some((_, _, note)) = trace.carriers.iter().find(|(_, carried, _)| *carried == batch) else {
            if trace.applied == Some(batch) {
                return Err(Refusal::NoNote { table: table.to_string(), batch });
            }
            continue;
        };
        let sufficient = note.as_ref().filter(|note| note.batch == batch && !note.recipe.is_empty());
        let Some(note) = sufficient else {
            return Err(Refusal::NoNote { table: table.to_string(), batch });
        };
        let note = Note { meaning: None, memory: None, state: None, ..note.clone() };
        match &known {
            Some((other, story)) if *story != note => {
                return Err(Refusal::Disagree { batch, tables: (other.to_string(), table.to_string()) });
            }
            Some(_) => {}
            None => known = Some((table, note)),
        }
    }
    // Nobody carries it: only asked for the batch before, which then nobody needs.
    known.map(|(_, note)| note).ok_or(Refusal::NoBatches)
}

/// The memory of deletes must still be what the table's newest batches counted on: the rebuilt receipts could not say.
fn check_memory(present: &BTreeMap<&String, &TableTrace>) -> Result<(), Refusal> {
    for (table, trace) in present {
        let was = trace.noted_memory();
        if trace.memory_harmed || trace.memory.unwrap_or(-1) < was.unwrap_or(-1) {
            return Err(Refusal::MemoryLost { table: table.to_string(), found: trace.memory, was });
        }
    }
    Ok(())
}

fn check_meaning(facts: &Facts, present: &BTreeMap<&String, &TableTrace>) -> Result<(), Refusal> {
    for (table, trace) in present {
        let was = trace.carriers.first().and_then(|(_, _, note)| note.as_ref()?.meaning.as_ref());
        if let (Some(was), Some(now)) = (was, facts.meaning.get(*table))
            && *was != digest(now)
        {
            return Err(Refusal::MeaningChanged { table: table.to_string(), now: now.clone() });
        }
    }
    Ok(())
}

/// The batch before must have ended where this one starts.
fn check_continuity(
    present: &BTreeMap<&String, &TableTrace>,
    newest: BatchId,
    note: &Note,
    earlier: Option<&Note>,
) -> Result<(), Refusal> {
    let Some(earlier) = earlier else { return Ok(()) };
    let before = note.before();
    for (source, offsets) in earlier.after() {
        let Some(start) = before.get(&source) else { continue };
        if offsets.0.iter().any(|(partition, at)| start.0.get(partition).is_some_and(|start| start != at)) {
            let carries = |batch: BatchId| {
                let found = present.iter().find(|(_, trace)| trace.carriers.iter().any(|(_, b, _)| *b == batch));
                found.map(|(table, _)| table.to_string()).unwrap_or_default()
            };
            return Err(Refusal::Disagree { batch: newest, tables: (carries(newest - 1), carries(newest)) });
        }
    }
    Ok(())
}

fn plan(facts: &Facts, note: &Note) -> BatchPlan {
    let took_part = |(table, _): &(&String, &String)| note.tables.contains(table);
    BatchPlan {
        version: FORMAT_VERSION,
        batch: note.batch,
        pipeline: facts.pipeline.clone(),
        batch_time: note.batch_time,
        sources: note.sources.clone(),
        skipped: note.skipped.clone(),
        moved: note.moved.clone(),
        letters: note.letters.clone(),
        rebuild: note.rebuild.clone(),
        since: note.since.clone(),
        forget: note.forget.clone(),
        // Losses that moved a position show in `skipped`; why they did is not in the tables.
        lost: BTreeMap::new(),
        incarnations: note.incarnations.clone(),
        watermarks: note.watermarks.clone(),
        pinned: note.pinned.clone(),
        // The digests agree, so these are the words that the plan had.
        meaning: facts.meaning.iter().filter(took_part).map(|(table, words)| (table.clone(), words.clone())).collect(),
        recipe: note.recipe.clone(),
        owner: facts.owner.clone(),
    }
}

/// Counters and timings are not known any more; where the tables stand is.
fn commit(
    facts: &Facts,
    batch: BatchId,
    offsets: BTreeMap<String, Offsets>,
    present: &BTreeMap<&String, &TableTrace>,
    note: &Note,
) -> CommitRecord {
    let receipt = |(table, trace): (&&String, &&TableTrace)| {
        let (version, _, own) = trace.carriers.iter().find(|(_, carried, _)| *carried == batch)?;
        let receipt = Receipt {
            state: own.as_ref().and_then(|note| note.state.clone()),
            delta_version: *version,
            already_applied: true,
            memory_version: trace.memory,
            ..Receipt::default()
        };
        Some((table.to_string(), receipt))
    };
    CommitRecord {
        version: FORMAT_VERSION,
        batch,
        pipeline: facts.pipeline.clone(),
        offsets,
        incarnations: note.incarnations.clone(),
        lost: BTreeMap::new(),
        next_watermarks: note.watermarks.clone(),
        tables: present.iter().filter_map(receipt).collect(),
        input_rows: 0,
        input_bytes: 0,
        dead_letters: 0,
        replayed_from: None,
        finished_by: None,
        expectations: BTreeMap::new(),
        duration_ms: BTreeMap::new(),
        committed_at: facts.now,
    }
}

#[cfg(test)]
#[path = "rebuild_tests.rs"]
mod tests;
