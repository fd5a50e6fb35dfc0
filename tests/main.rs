//! One integration binary; each module says what it proves.

// The import rules of the house.
mod architecture;
mod config;
mod contract;
