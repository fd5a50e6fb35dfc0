//! End to end: the real binary on real services.

mod backfill;
mod bronze;
mod dashboard;
mod dlq;
pub(crate) mod examples;
mod foreign;
mod forget;
mod init;
mod joins;
pub(crate) mod kafka;
mod kafka_edges;
mod kafka_losses;
mod maintain;
mod repair;
mod serve;
mod soak;
#[cfg_attr(not(feature = "failpoints"), allow(dead_code, reason = "most of its tests kill at fail points"))]
mod windows;
