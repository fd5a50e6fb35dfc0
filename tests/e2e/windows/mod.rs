//! Event time, judged from outside: the real binary works files through windows of every kind, is killed, restarted,
//! flushed and made to compute again, and its tables must hold what [`oracle`] says from the input alone.
//!
//! `TIDEGATE_WINDOW_CASES` (default 40) and `TIDEGATE_SEED` make the random histories more or different;
//! `TIDEGATE_WINDOW_CASE=N` runs the Nth alone.

mod aside;
mod contract;
#[cfg(feature = "failpoints")]
mod history;
mod oracle;
mod world;
