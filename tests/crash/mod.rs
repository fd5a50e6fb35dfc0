//! The promise under crashes, on the real binary.

mod power;
