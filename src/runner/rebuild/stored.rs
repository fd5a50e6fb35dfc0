//! What an upstream holds, in the order in which it came: its rows by their batches, and those that a backfill brought back
//! at the places where they were read at first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, filter_record_batch, take_record_batch};
use arrow::datatypes::{Int32Type, Int64Type, SchemaRef, TimestampMicrosecondType};

use super::super::Runner;
use super::super::relocate::reads;
use crate::config::spec::{From, TableSpec};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::model::batch::BatchId;
use crate::model::letter::BACKFILLED;
use crate::model::offset::{Offset, OffsetRanges, Partition};
use crate::model::relocate;
use crate::model::window::Micros;
use crate::source::column;
use crate::table::Table;
use crate::transform::decode::added::{BATCH_ID, INGESTED_AT};
use crate::transform::expect::in_source_order;
use crate::transform::stateful::{conform, event_times};
use crate::transform::window::WINDOW_END;

/// Batches of the upstream are read together as long as they have fewer rows than this.
const ROWS_AT_ONCE: usize = 250_000;
/// The most batches that are read together.
const BATCHES_AT_ONCE: usize = 256;

/// No row has this event time.
const NEVER: Micros = Micros::MAX;

/// The batches of an upstream that are not read yet.
pub(super) struct Stored {
    ids: VecDeque<BatchId>,
    at_once: usize,
}

impl Stored {
    /// All batches that came before `before`.
    pub async fn of(table: &mut dyn Table, before: BatchId) -> Result<Stored> {
        let ids = table.groups(&[BATCH_ID.to_string()]).await?;
        let ids: BTreeSet<BatchId> = ids.column(0).as_primitive::<Int64Type>().iter().flatten().collect();
        let ids = ids.into_iter().filter(|id| *id != BACKFILLED && *id < before).collect();
        Ok(Stored { ids, at_once: 1 })
    }

    /// Some batches and their rows, oldest first.
    pub async fn next(
        &mut self,
        table: &mut dyn Table,
        columns: &[String],
    ) -> Result<Option<(Vec<BatchId>, Vec<RecordBatch>)>> {
        let some: Vec<BatchId> = self.ids.drain(..self.at_once.min(self.ids.len())).collect();
        if some.is_empty() {
            return Ok(None);
        }
        let rows = table.read(columns, Some(&of_batches(&some)?)).await?;
        let count: usize = rows.iter().map(RecordBatch::num_rows).sum();
        self.at_once = match count < ROWS_AT_ONCE / 2 {
            true => (2 * self.at_once).min(BATCHES_AT_ONCE),
            false => (self.at_once / 2).max(1),
        };
        Ok(Some((some, rows)))
    }
}

fn of_batches(ids: &[BatchId]) -> Result<RecordBatch> {
    let ids = Arc::new(Int64Array::from(ids.to_vec())) as ArrayRef;
    RecordBatch::try_from_iter([(BATCH_ID, ids)]).context(ErrorKind::Failed, "batch numbers are a column")
}

/// Rows that a backfill has brought back. They do not say which batch read them; of those that are there, it was the first
/// with a later record of their partition.
pub(super) struct Restored {
    schema: SchemaRef,
    rows: RecordBatch,
    /// By partition, in the order of the records: offset and row.
    waiting: BTreeMap<(String, i32), VecDeque<(i64, u32)>>,
}

impl Restored {
    /// The rows of a batch, with those that came back to it.
    pub fn joined_to(&mut self, rows: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
        if self.waiting.is_empty() {
            return Ok(rows);
        }
        let mut reached: BTreeMap<(String, i32), i64> = BTreeMap::new();
        for batch in &rows {
            for (partition, offset) in places(batch)? {
                let newest = reached.entry(partition).or_insert(offset);
                *newest = offset.max(*newest);
            }
        }
        let mut back = Vec::new();
        for (partition, newest) in reached {
            let Some(waiting) = self.waiting.get_mut(&partition) else { continue };
            let count = waiting.partition_point(|(offset, _)| *offset < newest);
            back.extend(waiting.drain(..count).map(|(_, row)| row));
        }
        if back.is_empty() {
            return Ok(rows);
        }
        let mut rows = rows;
        rows.push(self.take(back)?);
        in_source_order(&self.schema, rows)
    }

    /// What no batch has room for: it was read after all that are there.
    pub fn rest(mut self) -> Result<Vec<RecordBatch>> {
        let rest: Vec<u32> = self.waiting.values_mut().flat_map(|rows| rows.drain(..)).map(|(_, row)| row).collect();
        match rest.is_empty() {
            true => Ok(Vec::new()),
            false => in_source_order(&self.schema, vec![self.take(rest)?]),
        }
    }

    fn take(&self, rows: Vec<u32>) -> Result<RecordBatch> {
        take_record_batch(&self.rows, &UInt32Array::from(rows)).context(ErrorKind::Failed, "rows could not be picked")
    }
}

/// The oldest that a table has.
#[derive(Clone, Default)]
struct First {
    time: Option<Micros>,
    offsets: BTreeMap<Partition, Offset>,
}

impl First {
    /// Whether it has the records from all of these positions on: rows go oldest first.
    fn reaches(&self, positions: &[(Partition, Offset)]) -> bool {
        positions.iter().all(|(partition, position)| self.offsets.get(partition).is_some_and(|first| first <= position))
    }
}

/// The partition and the offset of each row.
fn places(rows: &RecordBatch) -> Result<Vec<((String, i32), i64)>> {
    let missing = || Error::failed("stored rows do not say which record they came from");
    let column = |name: &str| rows.column_by_name(name).ok_or_else(missing);
    let topics = column(column::TOPIC)?.as_string_opt::<i32>().ok_or_else(missing)?;
    let partitions = column(column::PARTITION)?.as_primitive_opt::<Int32Type>().ok_or_else(missing)?;
    let offsets = column(column::OFFSET)?.as_primitive_opt::<Int64Type>().ok_or_else(missing)?;
    let place = |row: usize| ((topics.value(row).to_string(), partitions.value(row)), offsets.value(row));
    Ok((0..rows.num_rows()).map(place).collect())
}

impl Runner {
    /// Rows of an upstream that a backfill has brought back.
    pub(super) async fn restored(
        &mut self,
        upstream: &str,
        schema: &SchemaRef,
        columns: &[String],
    ) -> Result<Restored> {
        let rows = self.table(upstream)?.read(columns, Some(&of_batches(&[BACKFILLED])?)).await?;
        let rows = conform(&rows, schema)?;
        let rows = concat_batches(schema, &rows).context(ErrorKind::Failed, "joining rows")?;
        let mut waiting: BTreeMap<(String, i32), VecDeque<(i64, u32)>> = BTreeMap::new();
        for (row, (partition, offset)) in places(&rows)?.into_iter().enumerate() {
            waiting.entry(partition).or_default().push_back((offset, row as u32));
        }
        waiting.values_mut().for_each(|rows| rows.make_contiguous().sort_unstable());
        Ok(Restored { schema: schema.clone(), rows, waiting })
    }

    /// The first event time that the upstream of each of these tables has rows of, or [`NEVER`]. Where it has let go of its
    /// oldest rows, windows that ended before cannot be computed any more.
    pub(in crate::runner) async fn since(&mut self, tables: &[String]) -> Result<BTreeMap<String, Micros>> {
        let firsts = self.firsts(tables).await?;
        // Without a single row there is nothing to compute any window from: all of them stay.
        Ok(firsts.into_iter().map(|(table, first)| (table, first.time.unwrap_or(NEVER))).collect())
    }

    /// The same where positions move back. Only tables whose upstream has all that is read again are among them: of any other
    /// no window stays, because rows of it may be among those.
    pub async fn since_moved(
        &mut self,
        tables: &[String],
        moved: &BTreeMap<String, OffsetRanges>,
    ) -> Result<BTreeMap<String, Micros>> {
        let mut firsts = self.firsts(tables).await?;
        let spec = self.parts.spec.clone();
        for table in &spec.tables {
            let back = moved.iter().filter(|(source, _)| reads(&spec, table, source));
            let back: Vec<_> = back.flat_map(|(_, ranges)| relocate::trims(ranges).0).collect();
            if firsts.get(&table.name).is_some_and(|first| !first.reaches(&back)) {
                firsts.remove(&table.name);
            }
        }
        Ok(firsts.into_iter().filter_map(|(table, first)| Some((table, first.time?))).collect())
    }

    async fn firsts(&mut self, tables: &[String]) -> Result<BTreeMap<String, First>> {
        let spec = self.parts.spec.clone();
        let timezone = self.parts.transform.timezone();
        let mut firsts = BTreeMap::new();
        let mut known: BTreeMap<(&String, &String), First> = BTreeMap::new();
        for table in spec.tables.iter().filter(|table| tables.contains(&table.name)) {
            let (Some(keeps), From::Table(upstream)) = (&table.keeps, &table.from) else { continue };
            let Some(time) = keeps.watermark.columns.first().filter(|column| !column.is_empty()) else { continue };
            // A table that is not there yet has no windows that could stay.
            if self.table(&table.name)?.stored().await?.is_none() {
                continue;
            }
            if let Some(first) = known.get(&(upstream, time)) {
                firsts.insert(table.name.clone(), first.clone());
                continue;
            }
            let columns = [time, BATCH_ID, column::TOPIC, column::PARTITION, column::OFFSET].map(str::to_string);
            let mut stored = Stored { ids: VecDeque::new(), at_once: 1 };
            if self.table(upstream)?.stored().await?.is_some() {
                stored = Stored::of(&mut **self.table(upstream)?, BatchId::MAX).await?;
                stored.ids.push_front(BACKFILLED);
            }
            let mut first = First::default();
            while let Some((_, rows)) = stored.next(&mut **self.table(upstream)?, &columns).await? {
                for rows in rows {
                    let Some(column) = rows.column_by_name(time) else { continue };
                    let least = event_times(time, column, timezone)?.into_iter().flatten().min();
                    first.time = first.time.into_iter().chain(least).min();
                    for ((topic, partition), offset) in places(&rows)? {
                        let least = first.offsets.entry(Partition::new(&topic, partition)).or_insert(offset);
                        *least = offset.min(*least);
                    }
                }
            }
            known.insert((upstream, time), first.clone());
            firsts.insert(table.name.clone(), first);
        }
        Ok(firsts)
    }

    /// The windows of a table that are computed again: of those that are stored, all that did not end before `since`.
    pub(super) async fn stored_windows(
        &mut self,
        table: &TableSpec,
        by: &[String],
        since: Option<Micros>,
    ) -> Result<RecordBatch> {
        if since == Some(NEVER) {
            return Ok(self.table(&table.name)?.groups(by).await?.slice(0, 0));
        }
        let says_its_end = match self.table(&table.name)?.stored().await? {
            Some(schema) => schema.column_with_name(WINDOW_END).is_some(),
            None => false,
        };
        let Some(since) = since.filter(|_| says_its_end) else { return self.table(&table.name)?.groups(by).await };
        let columns: Vec<String> = by.iter().cloned().chain([WINDOW_END.to_string()]).collect();
        let windows = self.table(&table.name)?.groups(&columns).await?;
        let ends = windows.column_by_name(WINDOW_END);
        let ends = ends.and_then(|ends| ends.as_primitive_opt::<TimestampMicrosecondType>());
        let ends = ends.ok_or_else(|| Error::failed(format!("windows of {} have no end", table.name)))?;
        let goes: BooleanArray = ends.iter().map(|end| Some(end.is_none_or(|end| end > since))).collect();
        let keys =
            windows.project(&(0..by.len()).collect::<Vec<_>>()).context(ErrorKind::Failed, "keys are columns")?;
        filter_record_batch(&keys, &goes).context(ErrorKind::Failed, "windows could not be picked")
    }
}

/// Stored rows by their batch, each with the batch's time and in the order of the records.
pub(super) fn by_batch(
    schema: &SchemaRef,
    rows: Vec<RecordBatch>,
) -> Result<BTreeMap<BatchId, (Micros, Vec<RecordBatch>)>> {
    let rows = conform(&rows, schema)?;
    let whole = concat_batches(schema, &rows).context(ErrorKind::Failed, "joining batches")?;
    let unknown = || Error::failed("stored rows do not say which batch brought them");
    let ids = whole.column_by_name(BATCH_ID).and_then(|ids| ids.as_primitive_opt::<Int64Type>()).ok_or_else(unknown)?;
    let times =
        whole.column_by_name(INGESTED_AT).and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>());
    let times = times.ok_or_else(unknown)?;
    let mut places: BTreeMap<BatchId, Vec<u32>> = BTreeMap::new();
    for (row, id) in ids.iter().enumerate() {
        if let Some(id) = id {
            places.entry(id).or_default().push(row as u32);
        }
    }
    let mut found = BTreeMap::new();
    for (id, places) in places {
        let time =
            places.iter().filter(|row| times.is_valid(**row as usize)).map(|row| times.value(*row as usize)).max();
        let picked = take_record_batch(&whole, &UInt32Array::from(places));
        let picked = picked.context(ErrorKind::Failed, "rows could not be picked")?;
        found.insert(id, (time.unwrap_or_default(), in_source_order(schema, vec![picked])?));
    }
    Ok(found)
}
