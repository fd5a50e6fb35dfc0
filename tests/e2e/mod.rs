//! End to end: the real binary on real services.

mod backfill;
mod bronze;
mod dlq;
mod examples;
mod foreign;
mod init;
mod kafka;
mod kafka_edges;
mod kafka_losses;
mod maintain;
mod repair;
mod serve;
mod soak;
