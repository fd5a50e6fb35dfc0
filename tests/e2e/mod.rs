//! End to end: the real binary on real services.

mod kafka;
