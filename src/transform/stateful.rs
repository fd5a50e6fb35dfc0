//! Transforms that remember: windows, deduplication, joins of streams.
//!
//! # Contract
//!
//! 1. `step` is a deterministic function of (state, rows, [`EventTime`]): the same state, rows and time give the same
//!    output and the same state.
//! 2. Every arriving row is worked into the state or the output, set aside, or counted.
//! 3. `load` of everything that `changes` gave since `whole` (or since the beginning), in order, gives a state that behaves
//!    as the one that they were taken from. A state that has failed in `step` is thrown away and loaded again.
//! 4. The state is bounded by the watermark: what can no longer change the output is let go of.

use std::collections::BTreeMap;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;

use super::Stage;
use crate::error::Result;
use crate::model::window::{EventTime, Micros};

/// What one batch made of the state.
#[derive(Debug, Default)]
pub struct Step {
    /// Rows of the result: the new rows of touched windows, closed windows, survivors, joined rows.
    pub rows: Vec<RecordBatch>,
    /// Where rows replace earlier ones: the keys of all rows, old and new, that the batch touched, in the columns of
    /// [`Stateful::replaces`].
    pub replaced: Option<RecordBatch>,
    /// Rows that go to the dead letters.
    pub aside: Vec<Aside>,
    /// Rows counted, by rule: `late`, `partly_late`, `duplicate`…
    pub counts: BTreeMap<&'static str, u64>,
}

/// A row that is set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// Which input it came by.
    pub input: usize,
    /// Its number among all arriving rows of that input, from 0.
    pub row: usize,
    /// Which step set it aside.
    pub stage: Stage,
    /// Which rule, such as `late`, `null_event_time` or `ahead`.
    pub rule: &'static str,
    /// What was wrong, for a person.
    pub error: String,
}

/// How much a state holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Entries: open windows per key, remembered keys, waiting rows.
    pub rows: u64,
    /// Bytes of memory, estimated.
    pub bytes: u64,
}

/// A transform that remembers. See the module for the contract. Synchronous and CPU-bound.
pub trait Stateful: Send {
    /// Works one batch into the state. `arrivals` has one element per input; its rows are in source order.
    fn step(&mut self, arrivals: &[Vec<RecordBatch>], time: &EventTime) -> Result<Step>;

    /// Entries that are new, changed or gone since the last call (or since `load`, or the beginning).
    fn changes(&mut self) -> Result<Vec<RecordBatch>>;

    /// All entries; `changes` starts from here.
    fn whole(&mut self) -> Result<Vec<RecordBatch>>;

    /// Takes in what `whole` or `changes` gave, oldest first.
    fn load(&mut self, saved: &[RecordBatch]) -> Result<()>;

    /// Columns of what `whole` and `changes` give. Readable by people: one row an entry.
    fn saved(&self) -> SchemaRef;

    /// Columns of [`Step::rows`].
    fn output(&self) -> SchemaRef;

    /// Columns of [`Step::replaced`]; empty where rows are only ever added.
    fn replaces(&self) -> Vec<String>;

    /// The first and the last watermark at which something would be emitted; `None` = nothing waits for time to pass.
    fn due(&self) -> Option<(Micros, Micros)>;

    /// How much it holds.
    fn size(&self) -> Size;
}
