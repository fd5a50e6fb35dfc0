//! Windows of event time: aggregates that are kept from batch to batch.

pub mod function;
pub mod measures;
mod stub;
pub use stub::{Aggregation, Windows};
