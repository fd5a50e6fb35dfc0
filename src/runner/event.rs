//! The one vocabulary of what happened: progress bar, log lines and JSON are folds over it.

use std::collections::BTreeMap;

use crate::model::batch::{BatchId, BatchPlan, CommitRecord, ForeignWrite};
use crate::model::lag::Lag;

/// Something happened in a run.
#[derive(Debug, Clone)]
pub enum Event {
    /// The log and the tables were looked at.
    Recovered {
        /// What will happen.
        next: Next,
    },
    /// A batch has a durable plan.
    Planned(Box<BatchPlan>),
    /// A batch is done.
    Committed(Box<Finished>),
    /// Somebody else changed rows of a table; each commit is told once a run.
    ForeignWrites {
        /// The table.
        table: String,
        /// The commits, oldest first.
        writes: Vec<ForeignWrite>,
    },
    /// The source no longer has the records of a half-done batch; tables that do finish it.
    FromBronze {
        /// The batch.
        batch: BatchId,
        /// What the source says.
        loss: String,
    },
    /// The source is about to delete records that are not read yet.
    HeadroomLow(Box<Lag>),
    /// There was nothing to read.
    Idle,
    /// A step failed in a way that may have been applied; the runner looks again.
    Retrying {
        /// The failure.
        error: String,
    },
}

/// What recovery decided, in a form for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// A first run.
    Begin,
    /// Continues after a finished batch.
    Continue {
        /// The finished batch.
        after: BatchId,
    },
    /// Finishes a batch that was begun.
    Replay {
        /// The batch.
        batch: BatchId,
    },
}

/// A finished batch.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Its plan.
    pub plan: BatchPlan,
    /// Its outcome.
    pub record: CommitRecord,
    /// It was begun by an earlier run.
    pub replayed: bool,
    /// Offsets that remain to the end known when it was bounded, by source.
    pub lag: BTreeMap<String, i64>,
}

/// Listens to a run.
pub trait Observer: Send {
    /// Called in order, between steps; must not block.
    fn on_event(&mut self, event: &Event);
}

impl<F: FnMut(&Event) + Send> Observer for F {
    fn on_event(&mut self, event: &Event) {
        self(event)
    }
}
