//! Forgetting by hand (`tidegate forget`): a batch that reads nothing and takes rows out of every table that has the key's
//! columns, like any other batch: planned, carried through table by table, and finished by the next run after a crash.
//! Tables that are recomputed follow from what went upstream of them.
//!
//! The key itself is not in the plan. It is kept beside it, and deleted when the commit record and the receipt are there.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int32Type, Int64Type};
use serde_json::{Value, json};
use tracing::warn;

use super::event::Event;
use super::step::{Phases, blocking, taken};
use super::{Runner, meaning, recipe};
use crate::checkpoint::Claim;
use crate::config::spec::{SHORTEST_RETENTION, WriteSpec};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fail;
use crate::model::batch::{BatchId, BatchPlan, CommitRecord, FORMAT_VERSION};
use crate::model::forget::{Counted, Forget, Key, Still};
use crate::model::offset::{Offset, Offsets, Partition};
use crate::source::{Limits, column};
use crate::table::{Change, Held, Removal};
use crate::transform::forget::{self, Found, Typed, Values};
use crate::transform::{BatchContext, letter};

/// Columns of dead letters in which a key is looked for.
const SEARCHED: [&str; 6] = ["value", "key", "row_json", "headers", "error", "note"];

/// What one table has to do with a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Share {
    /// It has the columns.
    Holds(Held),
    /// It lacks columns: those that it has, and those that it lacks.
    Lacks(Vec<String>, Vec<String>),
    /// A value that none of its rows can have, and why.
    Never(String),
    /// There is no such table yet.
    Absent,
    /// Dead letters: those that have the key, and those that merely contain its values.
    Letters(u64, u64),
}

impl Runner {
    /// What each table has to do with `key`; the tables have been observed. Writes nothing.
    pub async fn shares(&mut self, key: &Key) -> Result<BTreeMap<String, Share>> {
        let names: Vec<String> = self.parts.spec.tables.iter().map(|table| table.name.clone()).collect();
        let mut shares = BTreeMap::new();
        for name in names {
            let share = match self.typed(&name, &key.values).await? {
                None => Share::Absent,
                Some(Typed::Lacks(has, lacks)) => Share::Lacks(has, lacks),
                Some(Typed::Never(why)) => Share::Never(why),
                Some(Typed::Row(rows)) => {
                    let removal = Removal { rows, records: coordinates(&key.records)? };
                    Share::Holds(self.table(&name)?.count_held(&removal).await?)
                }
            };
            shares.insert(name, share);
        }
        if let Some(name) = self.parts.spec.dead_letters.as_ref().map(|dead_letters| dead_letters.table.clone()) {
            let share = match self.table(&name)?.stored().await? {
                None => Share::Absent,
                Some(_) => {
                    let (_, has, contain) = self.letters_of(&key.values, false).await?;
                    Share::Letters(has, contain)
                }
            };
            shares.insert(name, share);
        }
        Ok(shares)
    }

    /// The records that rows of the key came from, as far as tables that only add rows tell.
    pub async fn records_in_tables(&mut self, key: &Key) -> Result<Vec<(Partition, Vec<Offset>)>> {
        let appends = self.parts.spec.tables.iter().filter(|table| table.write == WriteSpec::Append);
        let names: Vec<String> = appends.map(|table| table.name.clone()).collect();
        let columns = [column::TOPIC, column::PARTITION, column::OFFSET].map(str::to_string);
        let mut records: BTreeMap<Partition, BTreeSet<Offset>> = BTreeMap::new();
        for name in names {
            if !self.parts.transform.keeps_coordinates(&name) {
                continue;
            }
            let Some(Typed::Row(row)) = self.typed(&name, &key.values).await? else { continue };
            for rows in self.table(&name)?.read(&columns, Some(&row)).await? {
                for (partition, offset) in places(&rows)? {
                    records.entry(partition).or_default().insert(offset);
                }
            }
        }
        Ok(records.into_iter().map(|(partition, offsets)| (partition, offsets.into_iter().collect())).collect())
    }

    /// Every column that a table has, but for dead letters.
    pub async fn columns(&mut self) -> Result<BTreeSet<String>> {
        let names: Vec<String> = self.parts.spec.tables.iter().map(|table| table.name.clone()).collect();
        let mut columns = BTreeSet::new();
        for name in names {
            let schema = self.table(&name)?.stored().await?;
            columns.extend(schema.iter().flat_map(|schema| schema.fields()).map(|field| field.name().clone()));
        }
        Ok(columns)
    }

    /// The key as a row of a table; `None` = there is no table.
    async fn typed(&mut self, table: &str, values: &Values) -> Result<Option<Typed>> {
        let Some(schema) = self.table(table)?.stored().await? else { return Ok(None) };
        forget::typed(&schema, values).map(Some)
    }

    /// Dead letters of the key, as rows that they are found by; how many have it, and how many merely contain its values.
    /// Those are among the rows only if `containing`.
    async fn letters_of(&mut self, values: &Values, containing: bool) -> Result<(Option<RecordBatch>, u64, u64)> {
        let Some(dead_letters) = self.parts.spec.dead_letters.clone() else { return Ok((None, 0, 0)) };
        let table = self.table(&dead_letters.table)?;
        let day = ["failed_date".to_string()];
        let days = table.groups(&day).await?;
        let (mut has, mut contain, mut ids) = (0, 0, Vec::new());
        // One day at a time: with their bytes, all letters of a table may be more than memory holds.
        for at in 0..days.num_rows() {
            for rows in table.read(&letter::columns(), Some(&days.slice(at, 1))).await? {
                let found = forget::find(&rows, &SEARCHED, values);
                has += found.iter().filter(|found| **found == Found::Has).count() as u64;
                contain += found.iter().filter(|found| **found == Found::Contains).count() as u64;
                let least = if containing { Found::Contains } else { Found::Has };
                let goes: BooleanArray = found.iter().map(|found| Some(*found >= least)).collect();
                let rows =
                    filter_record_batch(&rows, &goes).context(ErrorKind::Failed, "letters could not be picked")?;
                if rows.num_rows() > 0 {
                    ids.push(identities(&rows)?);
                }
            }
        }
        let ids = match ids.first() {
            Some(first) => {
                let schema = first.schema();
                Some(arrow::compute::concat_batches(&schema, &ids).context(ErrorKind::Failed, "ids cannot be joined")?)
            }
            None => None,
        };
        Ok((ids, has, contain))
    }

    /// Records of the key that the sources still hold, by source; sources whose columns cannot tell are not in the answer.
    pub async fn still_in_sources(&mut self, key: &Key) -> Result<BTreeMap<String, Vec<Still>>> {
        let names: Vec<String> = self.parts.sources.keys().cloned().collect();
        let mut all = BTreeMap::new();
        for name in names {
            let found = self.still_in(&name, &key.values).await;
            let found = found.map_err(|error| {
                error.with("source", &name).help("nothing was changed; to leave the sources out: --offline")
            })?;
            all.insert(name, found);
        }
        Ok(all)
    }

    async fn still_in(&mut self, name: &str, values: &Values) -> Result<Vec<Still>> {
        let limits = Limits { max_rows: self.parts.spec.max_rows, max_bytes: self.parts.spec.max_bytes };
        let context = BatchContext {
            pipeline: self.parts.spec.name.clone(),
            batch: 0,
            batch_time: self.parts.clock.now(),
            interval: None,
        };
        let transform = self.parts.transform.clone();
        let Some(source) = self.parts.sources.get_mut(name) else { return Ok(Vec::new()) };
        let topics = source.incarnations().await?;
        let end = source.end().await?;
        let mut at = source.earliest().await?;
        at.0.retain(|partition, _| end.0.contains_key(partition));
        let mut still = BTreeMap::new();
        loop {
            let ranges = source.bound(&at, &topics, &end, limits).await?.ranges;
            if ranges.is_empty() {
                break;
            }
            let records = source.read(&ranges, &topics).await?.batches;
            let (transform, context) = (transform.clone(), context.clone());
            let (source_name, values) = (name.to_string(), values.clone());
            let found = blocking(move || {
                let decoded = transform.decode(&source_name, &records, &context)?;
                let dead = decoded.dead.into_iter().filter_map(|dead| dead.coordinates);
                let dead = dead.map(|at| (Partition::new(at.topic, at.partition), at.offset)).collect();
                records_of(&decoded.rows, &records, &dead, &values)
            });
            for (partition, offset) in found.await? {
                let new = Still { partition: partition.clone(), records: 0, first: offset, last: offset };
                let entry = still.entry(partition).or_insert(new);
                entry.records += 1;
                entry.first = entry.first.min(offset);
                entry.last = entry.last.max(offset);
            }
            let read = ranges.0.iter().map(|(partition, range)| (partition.clone(), range.until));
            at.0.extend(Offsets(read.collect()).0);
        }
        source.rest().await;
        Ok(still.into_values().collect())
    }

    /// Forgets: keeps the key, plans the batch that names it, and carries it through.
    pub async fn forget(&mut self, key: &Key, what: Forget) -> Result<CommitRecord> {
        let started = Instant::now();
        let last = self.standing().await?.last;
        self.ensure_observed().await?;
        let mut pinned = BTreeMap::new();
        for (name, lookup) in &mut self.parts.lookups {
            if let Some(version) = lookup.latest().await? {
                pinned.insert(name.clone(), version);
            }
        }
        let plan = BatchPlan {
            version: FORMAT_VERSION,
            batch: last + 1,
            pipeline: self.parts.spec.name.clone(),
            batch_time: self.parts.clock.now(),
            sources: BTreeMap::new(),
            skipped: BTreeMap::new(),
            moved: BTreeMap::new(),
            letters: None,
            forget: Some(what),
            lost: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            watermarks: BTreeMap::new(),
            pinned,
            meaning: meaning(&self.parts.spec),
            recipe: recipe(&self.parts.spec),
            owner: self.parts.owner.clone(),
        };
        // What an attempt that died before its plan has left; nothing is pending.
        self.parts.log.forget_keys().await?;
        self.parts.log.keep_key(key).await?;
        fail::hit(fail::PLAN)?;
        match self.parts.log.plan(&plan).await? {
            Claim::Claimed => {}
            Claim::Taken(winner) if winner.owner.run_id == plan.owner.run_id => {}
            Claim::Taken(winner) => return Err(taken(&winner)),
        }
        self.emit(Event::Planned(Box::new(plan.clone())));
        self.carry_through(plan, false, Phases::default(), started, &BTreeMap::new()).await
    }

    /// The key of a batch that forgets. Without it (a checkpoint that was rebuilt from its tables has none) the batch ends
    /// as one that changes nothing more: nobody can do the rest but whoever knows the key.
    pub(super) async fn key_of(&mut self, plan: &BatchPlan) -> Result<Option<Key>> {
        let Some(what) = &plan.forget else { return Ok(None) };
        let key = self.parts.log.key(&what.digest).await?;
        if key.is_none() {
            warn!(
                batch = plan.batch,
                "the key that this batch forgets is gone: tables that lack the batch keep their rows; type the command \
                 again: tidegate forget FILE --key … --yes"
            );
        }
        Ok(key)
    }

    /// What a batch that forgets changes in a table.
    pub(super) async fn removal(&mut self, table: &str, plan: &BatchPlan, key: Option<&Key>) -> Result<Change> {
        let nothing = Change::Rows(Vec::new());
        let is_chosen = plan.forget.as_ref().is_some_and(|what| what.tables.contains_key(table));
        let Some(key) = key.filter(|_| is_chosen && !self.carries(table, plan)) else { return Ok(nothing) };
        let is_dead_letters = self.parts.spec.dead_letters.as_ref().is_some_and(|dead| dead.table == table);
        let rows = match is_dead_letters {
            true => self.letters_of(&key.values, key.containing).await?.0,
            false => match self.typed(table, &key.values).await? {
                Some(Typed::Row(row)) => Some(row),
                _ => None,
            },
        };
        let records = if is_dead_letters { None } else { coordinates(&key.records)? };
        Ok(rows.map_or(nothing, |rows| Change::Remove(Removal { rows, records })))
    }

    /// After a batch that forgets is done: its receipt, and then the key goes. Again at the next start if a crash came
    /// first.
    pub(super) async fn close_forget(&mut self, plan: &BatchPlan, record: &CommitRecord) -> Result<()> {
        let Some(what) = &plan.forget else { return Ok(()) };
        if let Some(key) = self.parts.log.key(&what.digest).await? {
            let receipt = self.receipt(plan, what, &key, record);
            self.parts.log.keep_receipt(&receipt_name(plan.batch), &receipt).await?;
            self.parts.log.forget_keys().await?;
        }
        Ok(())
    }

    fn receipt(&self, plan: &BatchPlan, what: &Forget, key: &Key, record: &CommitRecord) -> Value {
        let tables = what.tables.iter().map(|(name, counted)| {
            let receipt = record.tables.get(name).cloned().unwrap_or_default();
            // A table that had the batch before a crash does not say again how many rows went.
            let rows = if receipt.already_applied { counted.rows } else { receipt.deleted };
            let retain = self.parts.spec.maintain.of(name).vacuum;
            let leaves = record.committed_at + retain.unwrap_or(SHORTEST_RETENTION).max(SHORTEST_RETENTION);
            json!({
                "name": name,
                "rows": rows,
                "remembered_deletes": counted.remembered,
                "version": receipt.delta_version,
                "files_leave_after": leaves.to_rfc3339(),
                "files_leave_by": if retain.is_some() { "a run" } else { "tidegate vacuum FILE --yes" },
            })
        });
        let is_recomputed = |write: &WriteSpec| matches!(write, WriteSpec::Refresh { .. });
        let recomputed = self.parts.spec.tables.iter().filter(|table| is_recomputed(&table.write)).map(|table| {
            let receipt = record.tables.get(&table.name).cloned().unwrap_or_default();
            json!({
                "name": table.name, "rows_before": receipt.deleted, "rows_after": receipt.inserted,
                "version": receipt.delta_version,
            })
        });
        json!({
            "version": FORMAT_VERSION,
            "pipeline": plan.pipeline,
            "batch": plan.batch,
            "asked_at": plan.batch_time,
            "forgotten_at": record.committed_at,
            "asked_by": plan.owner,
            "finished_by": record.finished_by,
            "key": {
                "columns": what.columns, "salt": key.salt, "sha256": what.digest,
                "how": "SHA-256 over the salt, then column and value of each column in order, each with its length in front \
                        as 8 bytes, big endian",
            },
            "tables": tables.collect::<Vec<_>>(),
            "recomputed": recomputed.collect::<Vec<_>>(),
            "sources": what.sources,
            "notes": [
                "records that a source still holds bring the rows back if they are read again: offsets rewind, backfill --source kafka",
                "a record that arrives later is a new row",
                "statistics in _delta_log of versions before may name single values until the log is cleaned (30 days)",
            ],
        })
    }
}

/// The name of a batch's receipt.
pub fn receipt_name(batch: BatchId) -> String {
    format!("{batch:020}")
}

/// What the counts of a share are to a plan; `None` = the table is left as it is.
pub fn counted(share: &Share, containing: bool) -> Option<Counted> {
    match share {
        Share::Holds(held) => Some(Counted { rows: held.rows, remembered: held.remembered }),
        Share::Letters(has, contain) => {
            let rows = if containing { has + contain } else { *has };
            Some(Counted { rows, remembered: 0 })
        }
        Share::Lacks(..) | Share::Never(_) | Share::Absent => None,
    }
}

/// Records as rows of their coordinates; none at all = `None`.
fn coordinates(records: &[(Partition, Vec<Offset>)]) -> Result<Option<RecordBatch>> {
    let all = || records.iter().flat_map(|(partition, offsets)| offsets.iter().map(move |offset| (partition, *offset)));
    let topics: StringArray = all().map(|(partition, _)| Some(partition.topic.as_str())).collect();
    let partitions: Int32Array = all().map(|(partition, _)| Some(partition.partition)).collect();
    let offsets: Int64Array = all().map(|(_, offset)| Some(offset)).collect();
    if offsets.is_empty() {
        return Ok(None);
    }
    let columns: [(&str, ArrayRef); 3] = [
        (column::TOPIC, Arc::new(topics)),
        (column::PARTITION, Arc::new(partitions)),
        (column::OFFSET, Arc::new(offsets)),
    ];
    RecordBatch::try_from_iter(columns).map(Some).context(ErrorKind::Failed, "coordinates are columns")
}

/// What letters are found by.
fn identities(rows: &RecordBatch) -> Result<RecordBatch> {
    let column = |name: &'static str| -> Result<(&str, ArrayRef)> {
        let column = rows.column_by_name(name);
        Ok((name, column.ok_or_else(|| Error::failed(format!("the dead letters have no column {name}")))?.clone()))
    };
    RecordBatch::try_from_iter([column("dlq_id")?, column("batch_id")?]).context(ErrorKind::Failed, "ids are columns")
}

/// Where the records of a key lie: decoded ones by their columns, those that cannot be decoded by their bytes.
fn records_of(
    decoded: &[RecordBatch],
    records: &[RecordBatch],
    dead: &HashSet<(Partition, i64)>,
    values: &Values,
) -> Result<Vec<(Partition, i64)>> {
    let mut found = Vec::new();
    for rows in decoded {
        let Typed::Row(row) = forget::typed(&rows.schema(), values)? else { continue };
        let mask = forget::mask(rows, &row)?;
        let places = places(rows)?;
        found.extend(mask.values().set_indices().map(|at| places[at].clone()));
    }
    if dead.is_empty() {
        return Ok(found);
    }
    for rows in records {
        let has = forget::find(rows, &[column::VALUE, column::KEY], values);
        let both = places(rows)?.into_iter().zip(has);
        found.extend(both.filter(|(at, has)| *has == Found::Has && dead.contains(at)).map(|(at, _)| at));
    }
    Ok(found)
}

/// The coordinates of rows.
fn places(rows: &RecordBatch) -> Result<Vec<(Partition, i64)>> {
    let odd = || Error::failed("records have no coordinates");
    let column = |name: &str| rows.column_by_name(name).ok_or_else(odd);
    let topics = column(column::TOPIC)?.as_string_opt::<i32>().ok_or_else(odd)?;
    let partitions = column(column::PARTITION)?.as_primitive_opt::<Int32Type>().ok_or_else(odd)?;
    let offsets = column(column::OFFSET)?.as_primitive_opt::<Int64Type>().ok_or_else(odd)?;
    let place = |at: usize| (Partition::new(topics.value(at), partitions.value(at)), offsets.value(at));
    Ok((0..rows.num_rows()).map(place).collect())
}
