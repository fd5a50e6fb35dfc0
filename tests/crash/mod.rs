//! The promise, attacked: the real binary is killed, the power is cut, its storage fails, a second runner works beside it.
//! Afterwards one clean run must leave every table equal to the oracle's, the log dense, and a further run nothing to do.
//!
//! `make test` tries a sample that depends on the seed (`TIDEGATE_SEED`, printed), with every fail point in it at least
//! once. `make crash` (`TIDEGATE_CRASH=all`) tries every point at every hit.

mod faults;
mod matrix;
mod power;
mod twins;
mod world;
