//! The ports' contracts: one suite per port, for every adapter.

mod table;
