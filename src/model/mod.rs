//! The mind of tidegate: what progress is, what a batch is, and what to do after any crash. Pure: no I/O, no async, no
//! clock, no data frames.

pub mod batch;
pub mod offset;
pub mod recover;
pub mod trigger;
