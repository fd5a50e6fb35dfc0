//! Refresh tables that follow what changed upstream hold what their SQL makes of the whole table: whatever the batches, and
//! whoever else writes.

mod random;
mod world;
