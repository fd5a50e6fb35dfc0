//! End to end: the real binary on real services.

mod examples;
mod kafka;
mod maintain;
mod kafka_edges;
mod kafka_losses;
mod repair;
