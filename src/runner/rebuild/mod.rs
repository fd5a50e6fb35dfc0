//! Tables computed again, whole, from what they read (`tidegate rebuild`), and tables that remember and join a pipeline
//! later: the stored rows of the upstream are worked in batch by batch, as they came, so that the same rows are late.
//!
//! It is a batch of the pipeline's own log that reads nothing from a source: killed anywhere, the next run finishes it.

mod newest;
mod stored;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::RecordBatch;
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, SortField};
use chrono::DateTime;

use self::newest::Newest;
use self::stored::{Stored, by_batch};
use super::keeping::Stepped;
use super::shaping::{Rows, Shaping};
use super::step::{Phases, blocking};
use super::{Runner, Summary};
use crate::config::spec::{From, OperatorSpec, TableSpec, WriteSpec};
use crate::error::{Code, Context, Error, ErrorKind, Result};
use crate::model::batch::{BatchId, BatchPlan, CommitRecord};
use crate::model::window::Micros;
use crate::table::{Change, Removal};
use crate::transform::decode::added::INGESTED_AT;
use crate::transform::stateful::conform;
use crate::transform::{BatchContext, DeadLetter, Inputs, Transform};

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
        (self.forgive, self.left_out) = (tables.clone(), tables.clone());
        let last = self.last_done().await;
        (self.forgive, self.left_out) = (Vec::new(), Vec::new());
        let batch = last?;
        // Before anything is planned: another table's state may be gone.
        self.ensure_keeping(&tables, None).await?;
        let plan = self.rebuild_plan(batch, tables).await?;
        self.carry_through(plan, false, Phases::default(), started, &BTreeMap::new()).await
    }

    /// The batch after the last one that is done. A pending one is finished first, without the tables that are computed
    /// again: what they remember may be why it was not.
    async fn last_done(&mut self) -> Result<BatchId> {
        self.finish_pending(&mut Summary::default()).await?;
        Ok(self.standing().await?.last + 1)
    }

    /// Tables that remember, have joined a pipeline that has run, and can catch up from what is stored.
    pub(super) fn newcomers(&self) -> Vec<String> {
        let has_run = self.position.as_ref().is_some_and(|position| position.last.is_some());
        let Some(keeping) = self.keeping.as_ref().filter(|_| has_run) else { return Vec::new() };
        let tables = self.parts.spec.tables.iter();
        let is_new = |table: &&TableSpec| {
            table.keeps.is_some() && keeping.is_new(&table.name) && obstacle(table, &*self.parts.transform).is_none()
        };
        tables.filter(is_new).map(|table| table.name.clone()).collect()
    }

    /// Tables that remember and are computed from what is stored once the batch is done: those that were not in the file when
    /// it was planned, new ones in a batch that an operator made, and those that are to be computed again.
    pub(super) fn passed_by(&self, plan: &BatchPlan) -> Vec<String> {
        let newcomers = if plan.is_by_hand() { self.newcomers() } else { Vec::new() };
        let was_there = |name: &String| plan.meaning.is_empty() || plan.meaning.contains_key(name);
        let is_passed_by = |table: &&TableSpec| {
            table.keeps.is_some()
                && !plan.rebuild.contains(&table.name)
                && (!was_there(&table.name) || newcomers.contains(&table.name) || self.left_out.contains(&table.name))
                && obstacle(table, &*self.parts.transform).is_none()
        };
        self.parts.spec.tables.iter().filter(is_passed_by).map(|table| table.name.clone()).collect()
    }

    /// Plans a batch that computes tables again.
    pub(super) async fn rebuild_plan(&mut self, batch: BatchId, tables: Vec<String>) -> Result<BatchPlan> {
        let since = self.since(&tables).await?;
        let plan = BatchPlan { rebuild: tables, since, ..self.empty_plan(batch).await? };
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
        let stored = self.stored_windows(table, &by, plan.since.get(&table.name).copied()).await?;
        let schema = stored.schema();
        let mut keys = vec![stored];
        keys.extend(conform(&rows, &schema)?);
        // Windows of whoever is forgotten go, also those that stay otherwise.
        if plan.forget.is_some() {
            let key = self.key_of(plan).await?;
            if let Change::Remove(Removal { rows: row, .. }) = self.removal(&table.name, plan, key.as_ref()).await? {
                keys.extend(conform(&self.table(&table.name)?.read(&by, Some(&row)).await?, &schema)?);
            }
        }
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
        let mut restored = self.restored(upstream, &schema, &columns).await?;
        let mut stored = Stored::of(&mut **self.table(upstream)?, plan.batch).await?;
        let mut newest = Newest::default();
        let mut dead = Vec::new();
        let mut closings = closings.into_iter().peekable();
        let mut last = None;
        while let Some((some, rows)) = stored.next(&mut **self.table(upstream)?, &columns).await? {
            let mut by_batch = by_batch(&schema, rows)?;
            for id in some {
                let Some((batch_time, rows)) = by_batch.remove(&id) else { continue };
                while let Some((batch, closed)) = closings.next_if(|(batch, _)| *batch < id) {
                    let past = Past::closing(batch, closed);
                    newest.take(self.step_again(table, upstream, past, shaping, lookups, &mut dead).await?)?;
                }
                let closed = closings.next_if(|(batch, _)| *batch == id).map(|(_, closed)| closed);
                let rows = restored.joined_to(rows)?;
                let past = Past { batch: id, batch_time: Some(batch_time), closed, rows };
                newest.take(self.step_again(table, upstream, past, shaping, lookups, &mut dead).await?)?;
                last = Some(id);
            }
        }
        let rows = restored.rest()?;
        if !rows.is_empty() {
            let past = Past { batch: last.unwrap_or_default(), batch_time: None, closed: None, rows };
            newest.take(self.step_again(table, upstream, past, shaping, lookups, &mut dead).await?)?;
        }
        // Of batches that are to be read again, what was closed after them is open, or their rows would be late.
        for (batch, closed) in closings.filter(|_| !plan.is_move()) {
            let past = Past::closing(batch, closed);
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

impl Past {
    /// A batch that brought no rows and closed something.
    fn closing(batch: BatchId, closed: Micros) -> Past {
        Past { batch, batch_time: None, closed: Some(closed), rows: Vec::new() }
    }
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
