//! Tables computed again, whole, from what they read (`tidegate rebuild`), and tables that remember and join a pipeline
//! later: the stored rows of the upstream are worked in batch by batch, as they came, so that the same rows are late.
//!
//! It is a batch of the pipeline's own log that reads nothing from a source: killed anywhere, the next run finishes it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, filter_record_batch, take_record_batch};
use arrow::datatypes::{Int64Type, SchemaRef, TimestampMicrosecondType};
use arrow::row::{OwnedRow, RowConverter, SortField};
use chrono::DateTime;

use super::Runner;
use super::keeping::Stepped;
use super::shaping::{Rows, Shaping};
use super::step::{Phases, blocking};

use crate::config::spec::{From, OperatorSpec, TableSpec, WriteSpec};
use crate::error::{Code, Context, Error, ErrorKind, Result};
use crate::model::batch::{BatchId, BatchPlan, CommitRecord};
use crate::model::window::Micros;
use crate::table::Change;
use crate::transform::decode::added::{BATCH_ID, INGESTED_AT};
use crate::transform::expect::in_source_order;
use crate::transform::stateful::conform;
use crate::transform::{BatchContext, DeadLetter, Inputs, Transform};

/// Batches of the upstream are read together as long as they have fewer rows than this.
const ROWS_AT_ONCE: usize = 250_000;
/// The most batches that are read together.
const BATCHES_AT_ONCE: usize = 256;

/// Replaced rows are held up to this many.
const FEW_ROWS: usize = 100_000;

/// Why a table cannot be computed again from what is stored; `None` = it can.
pub fn obstacle(table: &TableSpec, transform: &dyn Transform) -> Option<String> {
    let name = &table.name;
    if matches!(table.write, WriteSpec::Refresh { .. }) {
        return None;
    }
    let Some(keeps) = &table.keeps else {
        return Some(format!(
            "{name} neither remembers anything nor is refreshed: its rows follow from each batch alone"
        ));
    };
    if !matches!(keeps.operator, OperatorSpec::Aggregate(_)) {
        return Some(format!("{name} is no aggregate: only those can be computed again"));
    }
    match &table.from {
        From::Source(source) => {
            Some(format!("{name} reads the source `{source}` itself: no table has the rows that it was made from"))
        }
        From::Table(upstream) if !transform.reads_back(upstream) => Some(format!(
            "{upstream} does not keep rows as they came: it must append, and keep _batch_id, _topic, _partition and _offset"
        )),
        From::Table(upstream) if transform.schema(upstream).column_with_name(INGESTED_AT).is_none() => {
            Some(format!("{upstream} does not keep {INGESTED_AT}, the time of each batch"))
        }
        From::Table(_) => None,
    }
}

/// Stored rows worked into a state that was empty.
struct Folded {
    /// The newest row of every key, as the operator gives them.
    rows: Vec<RecordBatch>,
    dead: Vec<DeadLetter>,
}

impl Runner {
    /// Computes tables again: plans the batch that says so, and carries it through. A change of what they mean takes effect.
    pub async fn rebuild(&mut self, tables: Vec<String>) -> Result<CommitRecord> {
        let started = Instant::now();
        let last = self.standing_for(&tables).await?;
        let plan = self.rebuild_plan(last + 1, tables).await?;
        self.carry_through(plan, false, Phases::default(), started, &BTreeMap::new()).await
    }

    /// Tables that remember, have joined a pipeline that has run, and can catch up from what is stored.
    pub(super) fn newcomers(&mut self) -> Vec<String> {
        let has_run = self.position.as_ref().is_some_and(|position| position.last.is_some());
        let Some(keeping) = self.keeping.as_ref().filter(|_| has_run) else { return Vec::new() };
        let tables = self.parts.spec.tables.iter();
        let is_new = |table: &&TableSpec| {
            table.keeps.is_some() && keeping.is_new(&table.name) && obstacle(table, &*self.parts.transform).is_none()
        };
        tables.filter(is_new).map(|table| table.name.clone()).collect()
    }

    /// Plans a batch that computes tables again.
    pub(super) async fn rebuild_plan(&mut self, batch: BatchId, tables: Vec<String>) -> Result<BatchPlan> {
        let plan = BatchPlan { rebuild: tables, ..self.empty_plan(batch).await? };
        self.claim(plan).await
    }

    /// The whole content of a table that is computed again, in place of what it held.
    pub(super) async fn computed_again(
        &mut self,
        table: &TableSpec,
        plan: &BatchPlan,
        shaping: &mut Shaping,
        lookups: &HashMap<String, Rows>,
    ) -> Result<Change> {
        let From::Table(upstream) = &table.from else {
            return Err(Error::failed(format!("{} cannot be computed again", table.name)));
        };
        let Folded { rows, dead } = self.fold(table, upstream, plan, shaping, lookups).await?;
        let (spec, transform) = (self.parts.spec.clone(), self.parts.transform.clone());
        let inputs = Inputs { batch: Arc::new(rows), tables: HashMap::new(), lookups: lookups.clone() };
        let name = table.name.clone();
        let nothing = Shaping::empty(&shaping.context);
        let mut taken = std::mem::replace(shaping, nothing);
        let (back, outcome) = blocking(move || {
            let outcome = taken.accept_again(&spec, &*transform, &name, &inputs, dead);
            Ok((taken, outcome))
        })
        .await?;
        *shaping = back;
        outcome?;
        let rows = shaping.rows_of(&table.name);
        let Some(OperatorSpec::Aggregate(aggregate)) = table.keeps.as_ref().map(|keeps| &keeps.operator) else {
            return Err(Error::failed(format!("{} is no aggregate", table.name)));
        };
        let start = aggregate.window.map(|_| "window_start".to_string());
        let by: Vec<String> = aggregate.by.iter().cloned().chain(start).collect();
        let stored = self.table(&table.name)?.groups(&by).await?;
        let schema = stored.schema();
        let mut keys = vec![stored];
        keys.extend(conform(&rows, &schema)?);
        let groups = distinct(&schema, keys)?;
        Ok(Change::Groups { groups, rows })
    }

    /// Works the stored rows of the upstream into the table's state, in the order of their batches.
    async fn fold(
        &mut self,
        table: &TableSpec,
        upstream: &str,
        plan: &BatchPlan,
        shaping: &mut Shaping,
        lookups: &HashMap<String, Rows>,
    ) -> Result<Folded> {
        let closings = shaping.keeping.restart(&table.name, &*self.parts.transform)?;
        let schema = self.parts.transform.schema(upstream);
        let columns: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        let ids = self.table(upstream)?.groups(&[BATCH_ID.to_string()]).await?;
        let ids: BTreeSet<BatchId> = ids.column(0).as_primitive::<Int64Type>().iter().flatten().collect();
        let ids: Vec<BatchId> = ids.into_iter().filter(|id| *id < plan.batch).collect();
        let mut newest = Newest::default();
        let mut dead = Vec::new();
        let mut closings = closings.into_iter().peekable();
        let (mut read, mut at_once) = (0, 1);
        while read < ids.len() {
            let some = &ids[read..(read + at_once).min(ids.len())];
            read += some.len();
            let wanted = Arc::new(Int64Array::from(some.to_vec())) as arrow::array::ArrayRef;
            let wanted = RecordBatch::try_from_iter([(BATCH_ID, wanted)]);
            let wanted = wanted.context(ErrorKind::Failed, "batch numbers are a column")?;
            let rows = self.table(upstream)?.read(&columns, Some(&wanted)).await?;
            let count: usize = rows.iter().map(RecordBatch::num_rows).sum();
            at_once = if count < ROWS_AT_ONCE / 2 { (2 * at_once).min(BATCHES_AT_ONCE) } else { (at_once / 2).max(1) };
            let mut by_batch = by_batch(&schema, rows)?;
            for id in some {
                let Some((batch_time, rows)) = by_batch.remove(id) else { continue };
                while let Some((batch, closed)) = closings.next_if(|(batch, _)| batch < id) {
                    let past = Past { batch, batch_time: None, closed: Some(closed), rows: Vec::new() };
                    newest.take(self.step_again(table, upstream, past, shaping, lookups, &mut dead).await?)?;
                }
                let closed = closings.next_if(|(batch, _)| batch == id).map(|(_, closed)| closed);
                let past = Past { batch: *id, batch_time: Some(batch_time), closed, rows };
                newest.take(self.step_again(table, upstream, past, shaping, lookups, &mut dead).await?)?;
            }
        }
        for (batch, closed) in closings {
            let past = Past { batch, batch_time: None, closed: Some(closed), rows: Vec::new() };
            newest.take(self.step_again(table, upstream, past, shaping, lookups, &mut dead).await?)?;
        }
        shaping.keeping.settle(&table.name, plan.batch)?;
        Ok(Folded { rows: newest.rows()?, dead })
    }

    async fn step_again(
        &mut self,
        table: &TableSpec,
        upstream: &str,
        past: Past,
        shaping: &mut Shaping,
        lookups: &HashMap<String, Rows>,
        dead: &mut Vec<DeadLetter>,
    ) -> Result<Stepped> {
        let (spec, transform) = (table.clone(), self.parts.transform.clone());
        let (lookups, upstream) = (lookups.clone(), upstream.to_string());
        let context = &shaping.context;
        let batch_time = past.batch_time.or(shaping.keeping.last_rows(&table.name)?);
        let batch_time = batch_time.and_then(DateTime::from_timestamp_micros).unwrap_or(context.batch_time);
        let then = BatchContext { batch: past.batch, batch_time, ..context.clone() };
        let mut scratch = Shaping::empty(&then);
        std::mem::swap(&mut scratch.keeping, &mut shaping.keeping);
        let (mut scratch, stepped, mut set_aside) = blocking(move || {
            let mut dead = Vec::new();
            scratch.give(&upstream, past.rows);
            let stepped = scratch.step_again(&spec, &*transform, &lookups, past.closed, &mut dead)?;
            Ok((scratch, stepped, dead))
        })
        .await?;
        std::mem::swap(&mut scratch.keeping, &mut shaping.keeping);
        dead.append(&mut set_aside);
        Ok(stepped)
    }

    /// The last batch that is done, where the pipeline may go on but for the meaning of `tables`.
    async fn standing_for(&mut self, tables: &[String]) -> Result<BatchId> {
        self.forgive = tables.to_vec();
        let standing = self.standing().await;
        let observed = match standing {
            Ok(_) => self.ensure_observed().await,
            Err(_) => Ok(()),
        };
        self.forgive.clear();
        observed?;
        Ok(standing?.last)
    }
}

/// One batch of the past.
struct Past {
    batch: BatchId,
    /// `None` = it had no rows.
    batch_time: Option<Micros>,
    /// The watermark that the batch set without rows to do so.
    closed: Option<Micros>,
    rows: Vec<RecordBatch>,
}

/// The newest row of every key.
#[derive(Default)]
struct Newest {
    converter: Option<(RowConverter, Vec<String>)>,
    rows: Vec<RecordBatch>,
    /// Where the row of a key is; rows that are never replaced have none.
    at: HashMap<OwnedRow, (usize, u32)>,
    /// How many rows are held, replaced ones included.
    count: usize,
    /// Rows that are never replaced.
    finals: Vec<RecordBatch>,
}

impl Newest {
    fn take(&mut self, stepped: Stepped) -> Result<()> {
        let Some(replaced) = stepped.replaced else {
            self.finals.extend(stepped.rows);
            return Ok(());
        };
        if self.converter.is_none() {
            let fields = replaced.schema_ref().fields().iter().map(|field| SortField::new(field.data_type().clone()));
            let converter =
                RowConverter::new(fields.collect()).context(ErrorKind::Failed, "keys cannot be compared")?;
            let names = replaced.schema_ref().fields().iter().map(|field| field.name().clone()).collect();
            self.converter = Some((converter, names));
        }
        let Some((converter, names)) = &self.converter else { return Ok(()) };
        let keys =
            converter.convert_columns(replaced.columns()).context(ErrorKind::Failed, "keys cannot be compared")?;
        for key in &keys {
            self.at.remove(&key.owned());
        }
        for rows in stepped.rows {
            let columns: Vec<_> = names.iter().filter_map(|name| rows.column_by_name(name).cloned()).collect();
            let keys = converter.convert_columns(&columns).context(ErrorKind::Failed, "keys cannot be compared")?;
            for (row, key) in keys.iter().enumerate() {
                self.at.insert(key.owned(), (self.rows.len(), row as u32));
            }
            self.count += rows.num_rows();
            self.rows.push(rows);
        }
        match self.count > 2 * self.at.len() + FEW_ROWS {
            true => self.let_go(),
            false => Ok(()),
        }
    }

    /// Lets go of rows that were replaced.
    fn let_go(&mut self) -> Result<()> {
        let mut wanted: BTreeMap<usize, Vec<(OwnedRow, u32)>> = BTreeMap::new();
        for (key, (batch, row)) in self.at.drain() {
            wanted.entry(batch).or_default().push((key, row));
        }
        let mut rows = Vec::with_capacity(wanted.len());
        for (batch, places) in wanted {
            let numbers: UInt32Array = places.iter().map(|(_, row)| *row).collect();
            let picked = take_record_batch(&self.rows[batch], &numbers);
            for (row, (key, _)) in places.into_iter().enumerate() {
                self.at.insert(key, (rows.len(), row as u32));
            }
            rows.push(picked.context(ErrorKind::Failed, "rows could not be picked")?);
        }
        (self.rows, self.count) = (rows, self.at.len());
        Ok(())
    }

    fn rows(self) -> Result<Vec<RecordBatch>> {
        let mut wanted: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for (batch, row) in self.at.into_values() {
            wanted.entry(batch).or_default().push(row);
        }
        let mut rows = self.finals;
        for (batch, mut numbers) in wanted {
            numbers.sort_unstable();
            let picked = take_record_batch(&self.rows[batch], &UInt32Array::from(numbers));
            rows.push(picked.context(ErrorKind::Failed, "rows could not be picked")?);
        }
        Ok(rows)
    }
}

/// Stored rows by their batch, each with the batch's time and in the order of the records.
fn by_batch(schema: &SchemaRef, rows: Vec<RecordBatch>) -> Result<BTreeMap<BatchId, (Micros, Vec<RecordBatch>)>> {
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

/// Distinct rows.
pub(super) fn distinct(schema: &SchemaRef, rows: Vec<RecordBatch>) -> Result<RecordBatch> {
    let whole = concat_batches(schema, &rows).context(ErrorKind::Failed, "joining keys")?;
    let fields = schema.fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
    let converter = RowConverter::new(fields).context(ErrorKind::Failed, "keys cannot be compared")?;
    let keys = converter.convert_columns(whole.columns()).context(ErrorKind::Failed, "keys cannot be compared")?;
    let mut seen = std::collections::HashSet::new();
    let keep: arrow::array::BooleanArray = keys.iter().map(|key| Some(seen.insert(key.owned()))).collect();
    filter_record_batch(&whole, &keep).context(ErrorKind::Failed, "keys could not be picked")
}

/// The error for tables that cannot be computed again.
pub fn refuse(obstacles: Vec<String>) -> Error {
    let mut error = Error::new(ErrorKind::Usage, "a table cannot be computed again").coded(Code::Usage);
    for why in obstacles {
        error = error.with("why", why);
    }
    error.help("nothing was read or written")
}
