//! tidegate: a micro-batch ETL job runner with a lakehouse sink.
//!
//! Kafka in, Polars in the middle, Delta tables out, every batch exactly once. The promise:
//!
//! > Each table commit carries (pipeline, batch id). A batch is planned before it is read, and is done when every table
//! > carries it and the commit record exists. Whatever is killed, wherever: no row lost, none doubled, none changed,
//! > progress never goes back, and the next start finishes what was begun.
//!
//! # The walk of one micro-batch
//!
//! ```text
//! observe   checkpoint log + each table's last applied batch            facts only
//! decide    model::recover(facts)                                       pure: Begin | Plan | Replay(plan) | Halt(why)
//! bound     ranges = source.bound(from, end, limits)                    no durable effect; skipped on Replay
//! plan      put-if-absent offsets/N                                     the intent is durable
//! read      rows of exactly [from, until)                               same ranges => same rows, same order
//! shape     decode -> expectations -> SQL per table                     deterministic function of (rows, plan); tables
//!           that remember: (state N-1, rows, plan) -> (rows, state N)   the file of state N is there before the commit
//! apply     dead letters, then per table in graph order: one Delta commit with txn N   atomic; skipped where txn >= N
//! commit    put-if-absent commits/N                                     the batch is done
//! ack       copy offsets to the Kafka consumer group                    best effort, for lag tools; never read back
//! ```
//!
//! # The house
//!
//! | module | what it is | may import |
//! |---|---|---|
//! | [`model`] | the mind: offsets, plans, recovery, triggers; pure | nothing of the crate |
//! | [`error`], [`units`], [`fail`] | failures with exit codes; durations and sizes; fail points of test builds | [`model`] |
//! | [`config`] | YAML to [`config::spec::PipelineSpec`], every problem at once | [`model`], [`error`], [`units`] |
//! | [`source`], [`transform`], [`table`], [`checkpoint`] | the four ports, each with its adapters | the above, [`storage`], [`arrow_bridge`] |
//! | [`runner`] | the heart: the walk; sees ports only | ports, [`model`], [`error`] |
//! | [`app`], [`cli`] | where everything is joined; one function a subcommand | everything |

pub mod app;
pub mod arrow_bridge;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod error;
pub mod fail;
pub mod model;
pub mod runner;
pub mod source;
pub mod storage;
pub mod table;
pub mod transform;
pub mod units;
