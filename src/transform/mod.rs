//! The transform port: from undecoded records to the rows of every table.
//!
//! # Contract
//!
//! A transform is a deterministic function of (rows, [`BatchContext`]): no clock, no randomness, no files, no network.
//! Every input row comes out as a row, as a dead letter, or in a count of a rule the user wrote; none vanishes.

mod analysis;
mod arriving;
pub mod compile;
pub mod datafusion_engine;
pub mod dead_letter;
pub mod decode;
pub mod dedupe;
pub mod definitions;
pub mod engine;
pub mod expect;
pub mod fold;
pub mod forget;
pub mod join;
mod keeps;
pub mod letter;
pub mod polars_engine;
pub mod polars_functions;
pub mod problems;
pub mod rewrite;
pub mod row_json;
mod run;
pub mod stateful;
pub mod tally;
pub mod types;
pub mod window;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, Utc};

use crate::error::Result;
use crate::model::batch::{BatchId, BatchPlan};
use crate::model::interval::Interval;
use tally::Tally;

/// What a transform may know besides its rows: the plan's facts, never the wall clock.
#[derive(Debug, Clone)]
pub struct BatchContext {
    /// Pipeline name.
    pub pipeline: String,
    /// The batch.
    pub batch: BatchId,
    /// The plan's clock; `:batch_time` in SQL, `_ingested_at` in bronze.
    pub batch_time: DateTime<Utc>,
    /// The stretch of event time that is derived again; `None` = a live batch.
    pub interval: Option<Interval>,
}

impl BatchContext {
    /// Of a batch of the live pipeline.
    pub fn live(plan: &BatchPlan) -> BatchContext {
        let BatchPlan { pipeline, batch, batch_time, .. } = plan;
        BatchContext { pipeline: pipeline.clone(), batch: *batch, batch_time: *batch_time, interval: None }
    }
}

/// Where a record came from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Coordinates {
    /// Topic, or file.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
}

/// Which step set a row aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The record could not be read as the schema says.
    Decode,
    /// An expectation with `else: quarantine`.
    Expect,
    /// A null key in an upsert.
    Key,
    /// Its time: too late for its windows, none, or too far ahead.
    Late,
}

impl Stage {
    /// The word stored in the dead-letter table.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Decode => "decode",
            Stage::Expect => "expect",
            Stage::Key => "key",
            Stage::Late => "late",
        }
    }
}

/// One row set aside. Original bytes are added from the batch's records when the table is written.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Source name for decode, table name otherwise.
    pub table: String,
    /// Which step.
    pub stage: Stage,
    /// Which rule of that step, such as the expectation's name or `malformed`.
    pub rule: String,
    /// What was wrong, for a person; never a whole payload.
    pub error: String,
    /// The record it came from; `None` when the SQL aggregates records.
    pub coordinates: Option<Coordinates>,
    /// The row as JSON where the record was decoded.
    pub row_json: Option<String>,
}

/// Outcome of decoding.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Typed rows with the metadata columns, in source order.
    pub rows: Vec<RecordBatch>,
    /// Records that could not be decoded.
    pub dead: Vec<DeadLetter>,
}

/// Outcome of shaping one table's rows.
#[derive(Debug, Default)]
pub struct Shaped {
    /// Rows in the table's schema (plus the delete flag and source coordinates for upserts), in source order.
    pub rows: Vec<RecordBatch>,
    /// Rows set aside.
    pub dead: Vec<DeadLetter>,
    /// Rows that broke each expectation, by its name, whatever its action (zero is listed too).
    pub broken: BTreeMap<String, u64>,
    /// Rows removed by `else: drop`.
    pub dropped: u64,
}

/// What a table's SQL reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reads {
    /// The rows of this micro-batch.
    pub batch: bool,
    /// Whole tables of the pipeline, with the columns needed.
    pub tables: BTreeMap<String, Vec<String>>,
    /// Lookups.
    pub lookups: Vec<String>,
}

/// Rows handed to one table's SQL.
#[derive(Debug, Default, Clone)]
pub struct Inputs {
    /// The rows of this micro-batch from the table's `from`.
    pub batch: Arc<Vec<RecordBatch>>,
    /// Whole tables, by name.
    pub tables: HashMap<String, Arc<Vec<RecordBatch>>>,
    /// Lookups, by name.
    pub lookups: HashMap<String, Arc<Vec<RecordBatch>>>,
}

/// From undecoded records to table rows. See the module for the contract. Synchronous and CPU-bound: callers run it on
/// a blocking thread.
pub trait Transform: Send + Sync {
    /// Decodes records (batches of [`crate::source::envelope`]) of one source.
    fn decode(&self, source: &str, records: &[RecordBatch], context: &BatchContext) -> Result<Decoded>;

    /// Whether the rows that a batch added to `table`, read back and put into the order of their source coordinates, are
    /// the rows that were shaped for it: it appends, and keeps the coordinates and the batch of each row.
    fn reads_back(&self, table: &str) -> bool;

    /// Whether the columns `_topic`, `_partition` and `_offset` that `table` stores are those of the records its rows came
    /// from: no SQL on the way computed anything else under their names.
    fn keeps_coordinates(&self, table: &str) -> bool;

    /// Whether the column `column` of `table` is the source's column of that name: no SQL on the way computed anything else
    /// under it.
    fn passes(&self, table: &str, column: &str) -> bool;

    /// Whether the column `column` of `table` is the column of that name in the pairs of the join that its rows come from: no
    /// SQL on the way computed anything else under it.
    fn pairs_on(&self, table: &str, column: &str) -> bool;

    /// What `table` remembers between batches, empty as before the first; `None` = it remembers nothing.
    fn remembers(&self, table: &str) -> Result<Option<Box<dyn stateful::Stateful>>>;

    /// Rows of the input of that number (the first is `from`) as what `table` remembers takes them. Its SQL then gets as
    /// `batch` what that makes of them.
    fn arrivals(&self, table: &str, input: usize, inputs: &Inputs, context: &BatchContext) -> Result<Vec<RecordBatch>>;

    /// Where the pipeline's days start.
    fn timezone(&self) -> chrono_tz::Tz;

    /// What `table` needs as input.
    fn reads(&self, table: &str) -> &Reads;

    /// What the columns of the refresh table `table` are, where it can be kept by what changed upstream; `None` = its groups
    /// are computed from all of their rows.
    fn tally(&self, table: &str) -> Option<&Tally>;

    /// Computes one table's rows.
    fn shape(&self, table: &str, inputs: &Inputs, context: &BatchContext) -> Result<Shaped>;

    /// The record that each row came from which the SQL of `table` computes, before any rule; `None` = its rows do not say.
    fn origins(&self, table: &str, inputs: &Inputs, context: &BatchContext) -> Result<Option<Vec<Coordinates>>>;

    /// The stored schema of `table`, dead letters included.
    fn schema(&self, table: &str) -> SchemaRef;
}

#[cfg(test)]
mod tests;
