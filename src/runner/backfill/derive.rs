//! An interval's rows on their way from bronze to a table: read once, shaped by the same code as live batches.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use chrono::{DateTime, Utc};

use super::Backfill;
use super::lineage::{Lineage, find, lineage};
use super::reread::{Fresh, Homeless};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::model::backfill::BackfillPlan;
use crate::model::batch::BatchId;
use crate::model::interval::midnight;
use crate::model::letter::BACKFILLED;
use crate::runner::bronze::without_later_columns;
use crate::runner::shaping::Rows;
use crate::runner::step::blocking;
use crate::source;
use crate::table::Span;
use crate::transform::decode::added::{BATCH_ID, INGESTED_AT};
use crate::transform::expect::in_source_order;
use crate::transform::{BatchContext, DeadLetter, Inputs};

/// Which live batches take part: later than the first, up to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Window {
    pub since: Option<BatchId>,
    /// With `since`: rows that a backfill brought back after this take part, too.
    pub after: Option<DateTime<Utc>>,
    pub upto: Option<BatchId>,
}

impl Window {
    /// Every batch, of those that a plan takes.
    pub fn all(plan: &BackfillPlan) -> Window {
        Window { since: plan.since, after: plan.since_time, upto: Some(BatchId::MAX) }
    }

    /// Whether a row takes part that came with batch `id`, `at` that time in microseconds.
    fn takes(self, id: BatchId, at: Option<i64>) -> bool {
        let is_back = |after: DateTime<Utc>| id == BACKFILLED && at.is_none_or(|at| at > after.timestamp_micros());
        let is_new = self.since.is_none_or(|since| id > since || self.after.is_some_and(is_back));
        is_new && self.upto.is_some_and(|upto| id <= upto)
    }

    /// Which rows take part; the batch has at least the column of batch numbers.
    pub fn mask(self, batch: &RecordBatch) -> Result<BooleanArray> {
        let ids = batch.column_by_name(BATCH_ID).and_then(|ids| ids.as_primitive_opt::<Int64Type>());
        let ids = ids.ok_or_else(|| Error::failed(format!("bronze has no column {BATCH_ID} of batch numbers")))?;
        let times = batch.column_by_name(INGESTED_AT);
        let times = times.and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>());
        let at = |row: usize| times.filter(|times| times.is_valid(row)).map(|times| times.value(row));
        Ok(ids.iter().enumerate().map(|(row, id)| Some(id.is_some_and(|id| self.takes(id, at(row))))).collect())
    }
}

/// What was derived for one table.
#[derive(Default)]
pub(super) struct Derived {
    pub rows: Rows,
    pub dead: Vec<DeadLetter>,
    pub broken: BTreeMap<String, u64>,
}

/// The interval's rows of one bronze table, all live batches up to `upto`.
struct Held {
    upto: Option<BatchId>,
    rows: Rows,
}

/// What was read and computed for an interval so far.
#[derive(Default)]
pub(super) struct Cache {
    /// What the topics say, by bronze table.
    pub fresh: HashMap<String, Arc<Fresh>>,
    /// Letters of records that were read again and are nowhere.
    pub homeless: Homeless,
    bronze: HashMap<String, Held>,
    derived: HashMap<(String, Window), Arc<Derived>>,
}

impl Backfill {
    pub(super) fn lineage(&self, table: &str) -> Result<Lineage> {
        let spec = find(&self.parts.spec, table).ok_or_else(|| Error::failed(format!("there is no table {table}")))?;
        lineage(&self.parts.spec, &*self.parts.transform, spec)
            .map_err(|why| Error::new(ErrorKind::Usage, format!("{table} cannot be derived again: {why}")))
    }

    /// The rows of this interval, by a column.
    pub(super) fn span(&self, column: &str) -> Span {
        let timezone = self.parts.spec.timezone;
        // A date belongs to where its first instant is.
        let date = |at: chrono::DateTime<chrono::Utc>| {
            let date = at.with_timezone(&timezone).date_naive();
            if midnight(date, timezone) >= at { date } else { date.succ_opt().unwrap_or(date) }
        };
        let dates = (date(self.interval.start), date(self.interval.end));
        Span { column: column.to_string(), interval: self.interval, dates }
    }

    /// The interval's rows in a bronze table that came with the batches of the window, in source order.
    pub(super) async fn bronze_rows(&mut self, lineage: &Lineage, window: Window) -> Result<Rows> {
        let held = self.cache.bronze.get(&lineage.bronze);
        if held.is_none_or(|held| held.upto < window.upto) {
            let span = self.span(&lineage.event_time);
            let app_id = self.live_app_id(&lineage.bronze);
            let known = self.parts.transform.schema(&lineage.bronze);
            let table = self.table(&lineage.bronze)?;
            // Pinned before it is read: up to this batch all rows are there.
            let upto = table.pin(&app_id).await?.applied;
            let rows = table.read_span(&[], &span).await?;
            let rows = match rows.first() {
                Some(first) => without_later_columns(in_source_order(&first.schema(), rows)?, &known)?,
                None => rows,
            };
            if upto < window.upto {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!("table {} lacks batches that others have", lineage.bronze),
                )
                .help("what the log and the tables hold: tidegate checkpoint verify FILE"));
            }
            self.cache.bronze.insert(lineage.bronze.clone(), Held { upto, rows: Arc::new(rows) });
        }
        let held = self.cache.bronze.get(&lineage.bronze).map(|held| held.rows.clone()).unwrap_or_default();
        let rows = held.iter().map(|batch| of_window(batch, window)).collect::<Result<Vec<_>>>()?;
        Ok(Arc::new(rows.into_iter().filter(|batch| batch.num_rows() > 0).collect()))
    }

    /// The rows of a table as the live pipeline would shape them, from the interval's rows in bronze.
    pub(super) async fn derive(&mut self, table: &str, window: Window, plan: &BackfillPlan) -> Result<Arc<Derived>> {
        let lineage = self.lineage(table)?;
        let mut derived = Arc::new(Derived { rows: self.bronze_rows(&lineage, window).await?, ..Derived::default() });
        for name in &lineage.chain {
            let key = (name.clone(), window);
            if let Some(known) = self.cache.derived.get(&key) {
                derived = known.clone();
                continue;
            }
            let mut inputs =
                Inputs { batch: derived.rows.clone(), lookups: self.lookups(plan).await?, ..Inputs::default() };
            let reads = self.parts.transform.reads(name).tables.clone();
            for (read, columns) in &reads {
                let rows = self.table(read)?.read_newest(columns, None).await?;
                inputs.tables.insert(read.clone(), Arc::new(rows));
            }
            derived = Arc::new(self.shape(name, inputs, plan).await?);
            // What other tables hold changes; what the interval's rows say does not.
            if reads.is_empty() {
                self.cache.derived.insert(key, derived.clone());
            }
        }
        Ok(derived)
    }

    pub(super) async fn shape(&self, table: &str, inputs: Inputs, plan: &BackfillPlan) -> Result<Derived> {
        let (transform, name, context) = (self.parts.transform.clone(), table.to_string(), self.context(plan));
        let shaped = blocking(move || transform.shape(&name, &inputs, &context)).await?;
        Ok(Derived { rows: Arc::new(shaped.rows), dead: shaped.dead, broken: shaped.broken })
    }

    pub(super) fn context(&self, plan: &BackfillPlan) -> BatchContext {
        BatchContext {
            pipeline: plan.pipeline.clone(),
            batch: BACKFILLED,
            batch_time: plan.batch_time,
            interval: Some(self.interval),
        }
    }

    pub(super) async fn lookups(&mut self, plan: &BackfillPlan) -> Result<HashMap<String, Rows>> {
        let mut rows = HashMap::new();
        for (name, lookup) in &mut self.parts.lookups {
            rows.insert(name.clone(), lookup.load(plan.pinned.get(name).copied()).await?);
        }
        Ok(rows)
    }
}

/// The rows of a window's batches.
fn of_window(batch: &RecordBatch, window: Window) -> Result<RecordBatch> {
    filter_record_batch(batch, &window.mask(batch)?).context(ErrorKind::Failed, "rows could not be filtered")
}

/// Bronze rows as records: what they keep of key, time stamp and headers. The value itself is in the source only.
pub(super) fn as_records(rows: &[RecordBatch]) -> Result<Vec<RecordBatch>> {
    let envelope = source::envelope();
    let record = |batch: &RecordBatch| {
        let column = |field: &arrow::datatypes::FieldRef| -> ArrayRef {
            let kept = batch.column_by_name(field.name()).filter(|column| column.data_type() == field.data_type());
            let is_value = field.name() == source::column::VALUE;
            match kept.filter(|_| !is_value) {
                Some(kept) => kept.clone(),
                None => new_null_array(field.data_type(), batch.num_rows()),
            }
        };
        let columns: Vec<ArrayRef> = envelope.fields().iter().map(column).collect();
        RecordBatch::try_new(envelope.clone(), columns).context(ErrorKind::Failed, "bronze rows are no records")
    };
    rows.iter().map(record).collect()
}
