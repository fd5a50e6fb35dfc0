//! Moving positions by hand (`tidegate offsets`): a batch that reads nothing, carried through every table like any other,
//! so that a crash anywhere is finished by the next run.
//!
//! Where a position goes back, the tables that only add rows lose those at or after it, in the same commit that carries
//! the batch: read again, they are there once. Upserts need nothing: a row that is read again meets itself and wins.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use arrow::record_batch::RecordBatch;

use super::rebuild::obstacle;
use super::{Runner, halted};
use crate::config::spec::{From, PipelineSpec, TableSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::model::batch::{BatchId, BatchPlan, CommitRecord};
use crate::model::offset::{Incarnations, OffsetRanges, Offsets, Range};
use crate::model::recover::{self, Decision};
use crate::model::relocate;
use crate::source::column;
use crate::table::{Change, Trim, WriteMode};
use crate::transform::Transform;

/// Where a pipeline stands that has nothing pending.
#[derive(Debug, Clone)]
pub struct Stand {
    /// The last batch.
    pub last: BatchId,
    /// The position after it, by source.
    pub offsets: BTreeMap<String, Offsets>,
    /// The topics that it is a position in, by source.
    pub incarnations: BTreeMap<String, Incarnations>,
}

/// What a move does to one table that only adds rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// So many rows go, to be read again.
    Removes(u64),
    /// Its rows do not say which record they came from: what is read again is added once more.
    Doubles,
}

impl Runner {
    /// The last batch and the position after it. Writes nothing; refuses while a batch is pending.
    pub async fn standing(&mut self) -> Result<Stand> {
        let facts = self.observe().await?;
        match recover::recover(&facts) {
            Decision::Halt(why) => Err(halted(&why, &*self.parts.log)),
            Decision::Begin => {
                Err(Error::new(ErrorKind::Usage, "nothing was read yet: there is nothing to move or replay")
                    .help("where a first run starts is said by `start:` of the source"))
            }
            Decision::Replay(plan) => Err(Error::new(
                ErrorKind::Config,
                format!(
                    "batch {} was begun and is not finished: nothing can be moved, replayed or forgotten under it",
                    plan.batch
                ),
            )
            .help("nothing was changed; finish it first: tidegate run FILE --trigger once")),
            Decision::Plan { batch } => {
                let (offsets, incarnations) =
                    facts.commit.map(|commit| (commit.offsets, commit.incarnations)).unwrap_or_default();
                Ok(Stand { last: batch - 1, offsets, incarnations })
            }
        }
    }

    /// What `moved` does to the tables that only add rows.
    pub async fn effects(&mut self, moved: &BTreeMap<String, OffsetRanges>) -> Result<BTreeMap<String, Effect>> {
        let mut effects = BTreeMap::new();
        let spec = self.parts.spec.clone();
        let rebuilt = self.rebuilt_by(moved)?;
        for table in &mut self.parts.tables {
            let definition = table.definition().clone();
            let trim = trim(&spec, &definition.name, moved, Vec::new());
            let is_rebuilt = rebuilt.contains(&definition.name);
            if definition.write != WriteMode::Append || trim.from.0.is_empty() || is_rebuilt {
                continue;
            }
            let effect = match coordinates(&spec, &*self.parts.transform, &definition.name) {
                Some(columns) => Effect::Removes(table.count_after(&Trim { columns, ..trim }).await?),
                None => Effect::Doubles,
            };
            effects.insert(definition.name, effect);
        }
        Ok(effects)
    }

    /// Tables that remember rows which are read again: they are computed again from what stays.
    pub fn rebuilt_by(&self, moved: &BTreeMap<String, OffsetRanges>) -> Result<Vec<String>> {
        let is_back = |ranges: &OffsetRanges| ranges.0.values().any(|range| range.until < range.from);
        let goes_back: Vec<&String> =
            moved.iter().filter(|(_, ranges)| is_back(ranges)).map(|(name, _)| name).collect();
        let spec = &self.parts.spec;
        let reads_again =
            |table: &&TableSpec| table.keeps.is_some() && goes_back.iter().any(|source| reads(spec, table, source));
        let remembering: Vec<_> = spec.tables.iter().filter(reads_again).collect();
        let obstacles: Vec<String> =
            remembering.iter().filter_map(|table| obstacle(table, &*self.parts.transform)).collect();
        if obstacles.is_empty() {
            return Ok(remembering.into_iter().map(|table| table.name.clone()).collect());
        }
        let text = "a table remembers rows that would be read again, and would take them twice or for repetitions";
        let error = Error::new(ErrorKind::Usage, text).help("nothing was changed");
        let error = obstacles.into_iter().fold(error, |error, why| error.with("why", why));
        Err(error.help("to read everything again, give the pipeline a new `name` and a new `lake`"))
    }

    /// Moves the positions: plans the batch that says so, and carries it through.
    pub async fn relocate(&mut self, moved: BTreeMap<String, OffsetRanges>) -> Result<CommitRecord> {
        let started = Instant::now();
        let Stand { last, .. } = self.standing().await?;
        self.ensure_observed().await?;
        let rebuild = self.rebuilt_by(&moved)?;
        let stay = |ranges: &OffsetRanges| {
            let stays = |range: &Range| Range { from: range.until, until: range.until };
            OffsetRanges(ranges.0.iter().map(|(partition, range)| (partition.clone(), stays(range))).collect())
        };
        let sources = moved.iter().map(|(name, ranges)| (name.clone(), stay(ranges))).collect();
        self.ensure_keeping(&rebuild, None).await?;
        let since = self.since_moved(&rebuild, &moved).await?;
        let plan = BatchPlan { sources, moved, rebuild, since, ..self.empty_plan(last + 1).await? };
        let record = self.carry_by_hand(plan, started).await?;
        self.acknowledge().await;
        Ok(record)
    }

    /// The change of an ordinary table: `rows`, and in a batch that moves a position back, without what is read again.
    pub(super) fn without_rows_after(&self, name: &str, plan: &BatchPlan, rows: Vec<RecordBatch>) -> Change {
        let definition = self.parts.tables.iter().map(|table| table.definition()).find(|table| table.name == name);
        if !definition.is_some_and(|table| plan.is_move() && table.write == WriteMode::Append) {
            return Change::Rows(rows);
        }
        let trim = trim(&self.parts.spec, name, &plan.moved, rows);
        match coordinates(&self.parts.spec, &*self.parts.transform, name) {
            Some(columns) if !trim.from.0.is_empty() => Change::Trim(Trim { columns, ..trim }),
            _ => Change::Rows(trim.rows),
        }
    }
}

/// The columns that say which record a row came from (topic, partition, offset); `None` = its rows do not tell, whatever
/// its columns are called.
fn coordinates(spec: &PipelineSpec, transform: &dyn Transform, table: &str) -> Option<[String; 3]> {
    let names = match is_dead_letters(spec, table) {
        true => ["topic", "partition", "offset"],
        false if transform.keeps_coordinates(table) => [column::TOPIC, column::PARTITION, column::OFFSET],
        false => return None,
    };
    Some(names.map(str::to_string))
}

fn is_dead_letters(spec: &PipelineSpec, table: &str) -> bool {
    spec.dead_letters.as_ref().is_some_and(|dead_letters| dead_letters.table == table)
}

/// The rows of `table` that moves back make superfluous. Only sources that it comes from count; the dead letters come
/// from all of them, and name the table or source that each row was set aside for.
fn trim(spec: &PipelineSpec, table: &str, moved: &BTreeMap<String, OffsetRanges>, rows: Vec<RecordBatch>) -> Trim {
    let is_dead_letters = is_dead_letters(spec, table);
    let mut from = Offsets::default();
    let mut only = BTreeSet::new();
    for (source, ranges) in moved {
        if is_dead_letters || source_of(spec, table) == Some(source.as_str()) {
            from.0.extend(relocate::trims(ranges).0);
            only.insert(source.clone());
            let below = spec.tables.iter().filter(|t| source_of(spec, &t.name) == Some(source.as_str()));
            only.extend(below.map(|table| table.name.clone()));
        }
    }
    // However many sources the file has now: letters of one that was taken out are not read again.
    let only = is_dead_letters.then(|| ("table".to_string(), only));
    Trim { columns: Default::default(), from, only, rows }
}

/// Whether rows of a source have a part in the rows of a table.
pub(super) fn reads(spec: &PipelineSpec, table: &TableSpec, source: &str) -> bool {
    table.inputs().into_iter().any(|from| match from {
        From::Source(name) => name == source,
        From::Table(name) => {
            spec.tables.iter().find(|table| table.name == *name).is_some_and(|table| reads(spec, table, source))
        }
    })
}

/// The source at the root of a table.
fn source_of<'a>(spec: &'a PipelineSpec, table: &str) -> Option<&'a str> {
    let mut name = table;
    // As many steps as there are tables: a cycle was refused long ago.
    for _ in 0..=spec.tables.len() {
        match &spec.tables.iter().find(|table| table.name == name)?.from {
            From::Source(source) => return Some(source),
            From::Table(upstream) => name = upstream,
        }
    }
    None
}
