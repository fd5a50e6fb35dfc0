//! The harness: a sandbox per test, the real binary, a real broker, seeded orders, and an oracle that shares no code with
//! tidegate.
#![allow(dead_code, reason = "a harness is larger than any one test's use of it")]

pub mod broker;
pub mod lake;
pub mod oracle;
pub mod orders;
pub mod pipeline;
pub mod proxy;
pub mod sandbox;
pub mod traffic;

pub use sandbox::Sandbox;

/// The seed of every random choice in a test: `TIDEGATE_SEED`, or today's.
pub fn seed() -> u64 {
    number("TIDEGATE_SEED").unwrap_or_else(|| {
        let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        now / 86_400
    })
}

/// The seed of worlds whose tests name what is in them: a person with a row left, a sale that came days late, an hour that
/// has one. Not every day's has all that, and a test is not to fail for a whole day because of it.
pub const CONTENT: u64 = 20_779;

/// A number from the environment.
pub fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.replace('_', "").parse().unwrap_or_else(|_| panic!("{variable}={text}: not a number")))
}
