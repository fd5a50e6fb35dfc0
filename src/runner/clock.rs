//! The only place that asks what time it is.

use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};

/// Time as the runner sees it; tests bring their own.
pub trait Clock: Send + Sync {
    /// Now, in whole microseconds (what plans and tables store).
    fn now(&self) -> DateTime<Utc>;
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the seam")]
    fn now(&self) -> DateTime<Utc> {
        Utc::now().trunc_subsecs(6)
    }
}

/// Time from `now` until `then`; zero when it has passed.
pub fn until(now: DateTime<Utc>, then: DateTime<Utc>) -> Duration {
    (then - now).to_std().unwrap_or(Duration::ZERO)
}
