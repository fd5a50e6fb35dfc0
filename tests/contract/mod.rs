//! One suite per port, run against every adapter.

mod source;
//! The ports' contracts: one suite per port, for every adapter.

mod table;
