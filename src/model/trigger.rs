//! When batches run: a pure schedule.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;

use super::cron::Cron;

/// When batches run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trigger {
    /// At multiples of the interval since the epoch (Spark's `ProcessingTime`).
    ProcessingTime(Duration),
    /// A pending batch, then one batch, then exit.
    Once,
    /// A pending batch, then as many batches as it takes to reach the end that was pinned at the start, then exit.
    AvailableNow,
}

impl Trigger {
    /// The word for messages and JSON.
    pub fn as_str(&self) -> &'static str {
        match self {
            Trigger::ProcessingTime(_) => "processing_time",
            Trigger::Once => "once",
            Trigger::AvailableNow => "available_now",
        }
    }
}

/// What starts runs: a trigger that a runner keeps by itself, or the ticks of a crontab expression, each of which is an
/// `available_now` run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    /// One run.
    Trigger(Trigger),
    /// A run at each tick, in the pipeline's timezone.
    Cron(Cron),
}

impl Schedule {
    /// The word for messages and JSON.
    pub fn as_str(&self) -> &'static str {
        match self {
            Schedule::Trigger(trigger) => trigger.as_str(),
            Schedule::Cron(_) => "cron",
        }
    }

    /// The first tick strictly after `now`; `None` where there are no ticks.
    pub fn next_after(&self, now: DateTime<Utc>, zone: Tz) -> Option<DateTime<Utc>> {
        match self {
            Schedule::Trigger(Trigger::ProcessingTime(interval)) => Some(next_tick(now, *interval)),
            Schedule::Trigger(Trigger::Once | Trigger::AvailableNow) => None,
            Schedule::Cron(cron) => cron.next_after(now, zone),
        }
    }

    /// What one tick runs: whatever there is, but for `once`, and for the one batch of an interval's tick.
    pub fn of_tick(&self) -> Trigger {
        match self {
            Schedule::Trigger(Trigger::Once | Trigger::ProcessingTime(_)) => Trigger::Once,
            Schedule::Trigger(Trigger::AvailableNow) | Schedule::Cron(_) => Trigger::AvailableNow,
        }
    }
}

impl From<Trigger> for Schedule {
    fn from(trigger: Trigger) -> Self {
        Schedule::Trigger(trigger)
    }
}

/// The next multiple of `interval` since the epoch that is strictly after `now`. Ticks missed while a batch overran are
/// not queued: the caller runs the next batch at once when the tick it waited for has passed (Spark's
/// `ProcessingTimeExecutor.nextBatchTime`). An interval of zero fires at once.
pub fn next_tick(now: DateTime<Utc>, interval: Duration) -> DateTime<Utc> {
    let interval = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX);
    if interval == 0 {
        return now;
    }
    let millis = now.timestamp_millis();
    let next = millis.div_euclid(interval).saturating_add(1).saturating_mul(interval);
    now.checked_add_signed(TimeDelta::milliseconds(next - millis))
        .map_or(now, |tick| DateTime::from_timestamp_millis(tick.timestamp_millis()).unwrap_or(tick))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(millis).expect("in range")
    }

    #[test]
    fn ticks_are_multiples_of_the_interval_since_the_epoch() {
        // Spark's ProcessingTimeExecutorSuite "nextBatchTime"
        let interval = Duration::from_millis(100);
        for (now, next) in [(0, 100), (1, 100), (99, 100), (100, 200), (101, 200), (199, 200)] {
            assert_eq!(next_tick(at(now), interval), at(next), "after {now}");
        }
    }

    #[test]
    fn an_interval_of_zero_fires_at_once() {
        assert_eq!(next_tick(at(7), Duration::ZERO), at(7));
    }
}
