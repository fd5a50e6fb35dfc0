//! End to end: the real binary on real services.

mod examples;
mod kafka;
mod maintain;
mod repair;
