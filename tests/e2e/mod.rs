//! End to end: the real binary on real services.

mod bronze;
mod examples;
mod foreign;
mod kafka;
mod maintain;
mod repair;
