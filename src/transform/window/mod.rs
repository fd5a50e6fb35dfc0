//! Windows of event time: aggregates that are kept from batch to batch.
//!
//! An [`Aggregation`] says what is kept: per key (`by`) and window, the states of some functions. [`Windows`] works batches of
//! rows into it. Arrivals have the columns of `by`, [`EVENT_TIME`], and `_arg0`, `_arg1`, … in any order.
//!
//! # Which rows count
//!
//! A row without a time is set aside (`null_event_time`), and so is one that is too far ahead (`ahead`). A row is late once
//! every window that holds it is closed; a session that it would make alone stands for its session. If some are closed and
//! others open, the row counts in the open ones (`partly_late`). With [`Late::Update`] a window takes rows until `keep`
//! after its end. A session that is closed takes no more rows: one that comes within its gap and is not late starts another.
//!
//! Every batch's watermark must be at least the `next` of the batch before: a window that was let go of would come again.
//!
//! # The same result however the rows were cut into batches
//!
//! Counts, exact sums, `min`, `max`, `first`, `last`, sets and sketches do not depend on the cuts; sums of floats do in their
//! last digits only. Ties of `first` and `last` go by arrival.

mod arrivals;
mod distinct;
mod entries;
pub mod function;
mod hll;
mod judge;
mod kept;
pub(super) mod keys;
pub mod measures;
mod panes;
mod picked;
mod quantile;
mod saved;
mod sessions;
mod sketch;
mod state;
mod sum;
mod value;

#[cfg(test)]
mod tests;

use arrow::datatypes::Field;

use crate::error::Error;
use crate::model::window::{Emit, Late, Window};

pub use function::{Function, Kind};
pub use state::Windows;

/// The column of arrivals that says when the row happened.
pub const EVENT_TIME: &str = "_event_time";
/// The first moment of a window.
pub const WINDOW_START: &str = "window_start";
/// The first moment after it.
pub const WINDOW_END: &str = "window_end";

/// What is aggregated, by what, over which windows.
#[derive(Debug, Clone)]
pub struct Aggregation {
    /// Columns of the key, with their stored types.
    pub by: Vec<Field>,
    /// How time is cut; `None` = totals per key that go on for ever.
    pub window: Option<Window>,
    /// `_agg0`, `_agg1`, …
    pub functions: Vec<Function>,
    /// When rows are written.
    pub emit: Emit,
    /// What becomes of late rows.
    pub late: Late,
}

/// What the configuration lets nobody write.
fn misfit(message: impl Into<String>) -> Error {
    Error::failed(message)
}
