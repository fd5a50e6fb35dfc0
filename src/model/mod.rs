//! The mind of tidegate: what progress is, what a batch is, and what to do after any crash. Pure: no I/O, no async, no
//! clock, no data frames.

pub mod backfill;
pub mod batch;
pub mod cron;
pub mod forget;
pub mod inconsistency;
pub mod interval;
pub mod lag;
pub mod letter;
pub mod loss;
pub mod note;
pub mod offset;
pub mod rebuild;
pub mod recover;
pub mod relocate;
pub mod supervise;
pub mod trigger;
pub mod verify;
pub mod watermark;
pub mod window;
