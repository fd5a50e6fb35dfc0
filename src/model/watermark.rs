//! Where event time stands: what each partition has shown so far, and the watermark that follows from it.
//!
//! # The rule
//!
//! A partition's clock is the newest event time that it has shown. The watermark is the slowest clock less the delay, over
//! the partitions that are not idle: one is idle when it has had no rows for `idle` in the time of the batches, and holds
//! nothing back then. Where all are idle, the ones seen last count. The watermark never goes back.
//!
//! It is a function of the rows of earlier batches, their batch times, and the time of the batch that is planned: how often
//! the pipeline looked and found nothing does not matter. So it can be computed again from rows that are stored with their
//! batch.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::offset::Partition;
use super::window::Micros;

/// What a partition has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(Micros, Micros)", into = "(Micros, Micros)")]
pub struct Seen {
    /// Newest event time.
    pub newest: Micros,
    /// Time of the batch that brought its last rows.
    pub at: Micros,
}

impl From<(Micros, Micros)> for Seen {
    fn from((newest, at): (Micros, Micros)) -> Seen {
        Seen { newest, at }
    }
}

impl From<Seen> for (Micros, Micros) {
    fn from(seen: Seen) -> (Micros, Micros) {
        (seen.newest, seen.at)
    }
}

/// The clocks of everything that a table reads: by input, topic and partition number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// Time of the first batch with rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first: Option<Micros>,
    inputs: BTreeMap<usize, BTreeMap<String, BTreeMap<i32, Seen>>>,
}

/// How much is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How much rows may be out of order.
    pub delay: Micros,
    /// How long a partition without rows holds the watermark back.
    pub idle: Micros,
    /// How many inputs there are; one that has shown nothing yet holds the watermark back until it is idle.
    pub inputs: usize,
}

impl Clocks {
    /// Rows of a partition came in the batch of that time, the newest of them that old.
    pub fn observe(&mut self, input: usize, partition: &Partition, newest: Micros, batch_time: Micros) {
        self.first = Some(self.first.map_or(batch_time, |first| first.min(batch_time)));
        let topic = self.inputs.entry(input).or_default().entry(partition.topic.clone()).or_default();
        let seen = topic.entry(partition.partition).or_insert(Seen { newest, at: batch_time });
        seen.newest = seen.newest.max(newest);
        seen.at = seen.at.max(batch_time);
    }

    /// The watermark at `now`, the time of a batch; `None` = nothing can be late yet.
    pub fn watermark(&self, patience: Patience, now: Micros) -> Option<Micros> {
        let all = || self.inputs.values().flat_map(BTreeMap::values).flat_map(BTreeMap::values);
        let last = all().map(|seen| seen.at).max()?;
        let is_fresh = |at: Micros| now.saturating_sub(at) < patience.idle;
        let waits_for_input = self.inputs.len() < patience.inputs && self.first.is_some_and(is_fresh);
        if waits_for_input {
            return None;
        }
        let counts = |seen: &&Seen| if is_fresh(last) { is_fresh(seen.at) } else { seen.at == last };
        all().filter(counts).map(|seen| seen.newest).min().map(|newest| newest.saturating_sub(patience.delay))
    }

    /// Time of the last batch with rows.
    pub fn last(&self) -> Option<Micros> {
        self.inputs.values().flat_map(BTreeMap::values).flat_map(BTreeMap::values).map(|seen| seen.at).max()
    }

    /// The newest event time of all.
    pub fn newest(&self) -> Option<Micros> {
        self.inputs.values().flat_map(BTreeMap::values).flat_map(BTreeMap::values).map(|seen| seen.newest).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { delay: 10, idle: 100, inputs: 1 };

    fn clocks(seen: &[(i32, Micros, Micros)]) -> Clocks {
        let mut clocks = Clocks::default();
        for (partition, newest, at) in seen {
            clocks.observe(0, &Partition::new("t", *partition), *newest, *at);
        }
        clocks
    }

    #[test]
    fn the_slowest_partition_that_is_not_idle_decides() {
        assert_eq!(Clocks::default().watermark(PATIENCE, 0), None);
        let both = clocks(&[(0, 1_000, 0), (1, 500, 50)]);
        assert_eq!(both.watermark(PATIENCE, 60), Some(490));
        // The faster one goes idle first, which changes nothing; then all are, and the one seen last counts.
        assert_eq!(both.watermark(PATIENCE, 120), Some(490));
        assert_eq!(both.watermark(PATIENCE, 500), Some(490));
        let behind = clocks(&[(0, 1_000, 50), (1, 500, 0)]);
        assert_eq!(behind.watermark(PATIENCE, 60), Some(490));
        assert_eq!(behind.watermark(PATIENCE, 100), Some(990));
        assert_eq!(behind.watermark(PATIENCE, 500), Some(990));
    }

    #[test]
    fn older_rows_do_not_turn_a_clock_back() {
        assert_eq!(clocks(&[(0, 1_000, 0), (0, 5, 1)]).watermark(PATIENCE, 1), Some(990));
    }

    #[test]
    fn an_input_that_has_shown_nothing_is_waited_for_until_it_is_idle() {
        let two = Patience { inputs: 2, ..PATIENCE };
        let one = clocks(&[(0, 1_000, 0)]);
        assert_eq!(one.watermark(two, 99), None);
        assert_eq!(one.watermark(two, 100), Some(990));
    }

    #[test]
    fn looking_in_between_does_not_matter() {
        // The largest of all earlier looks is never above a later one without new rows.
        let seen = clocks(&[(0, 1_000, 50), (1, 500, 0), (2, 700, 170)]);
        let mut highest = None;
        for now in 170..600 {
            let at = seen.watermark(PATIENCE, now);
            assert!(at >= highest, "at {now}");
            highest = at;
        }
    }
}
