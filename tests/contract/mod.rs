//! The ports' contracts: one suite per port, for every adapter.

mod checkpoint;
mod source;
mod table;
