//! Progress through a source. One representation only: half-open ranges, a value is the next offset to read.
//!
//! There are no `+1` adapters in the program: a consumer that has read message 41 stands at 42, a plan that ends at 42
//! excludes it, and the next plan starts there.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The next offset to read in a partition (Kafka's convention for positions and committed offsets).
pub type Offset = i64;

/// Which topic a name stands for, by topic: Kafka gives every topic it creates an id of its own. Topics whose id is not
/// known (old brokers, other sources) are left out.
pub type Incarnations = BTreeMap<String, String>;

/// One ordered log inside a source: a Kafka topic-partition, a file of a folder, a partition of a generator.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Partition {
    /// Topic, file path relative to the source folder, or data set name.
    pub topic: String,
    /// Partition number; 0 for a file.
    pub partition: i32,
}

impl Partition {
    /// A partition by name and number.
    pub fn new(topic: impl Into<String>, partition: i32) -> Self {
        Partition { topic: topic.into(), partition }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// A half-open range of offsets, `[from, until)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(Offset, Offset)", into = "(Offset, Offset)")]
pub struct Range {
    /// First offset of the range.
    pub from: Offset,
    /// First offset after the range.
    pub until: Offset,
}

impl From<(Offset, Offset)> for Range {
    fn from((from, until): (Offset, Offset)) -> Self {
        Range { from, until }
    }
}

impl From<Range> for (Offset, Offset) {
    fn from(range: Range) -> Self {
        (range.from, range.until)
    }
}

impl Range {
    /// How many offsets the range spans: an upper bound on its rows (transactions and compaction leave holes).
    pub fn len(&self) -> i64 {
        (self.until - self.from).max(0)
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.until <= self.from
    }
}

/// On disk: `{"orders.v1": {"0": …, "1": …}}`, the shape Spark uses, so that people can read it.
type ByTopic<T> = BTreeMap<String, BTreeMap<i32, T>>;

fn to_topics<T: Clone>(map: &BTreeMap<Partition, T>) -> ByTopic<T> {
    let mut topics: ByTopic<T> = BTreeMap::new();
    for (partition, value) in map {
        topics.entry(partition.topic.clone()).or_default().insert(partition.partition, value.clone());
    }
    topics
}

fn from_topics<T>(topics: ByTopic<T>) -> BTreeMap<Partition, T> {
    let mut map = BTreeMap::new();
    for (topic, partitions) in topics {
        for (partition, value) in partitions {
            map.insert(Partition::new(topic.clone(), partition), value);
        }
    }
    map
}

/// A position in every known partition of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "ByTopic<Offset>", into = "ByTopic<Offset>")]
pub struct Offsets(pub BTreeMap<Partition, Offset>);

impl From<ByTopic<Offset>> for Offsets {
    fn from(topics: ByTopic<Offset>) -> Self {
        Offsets(from_topics(topics))
    }
}

impl From<Offsets> for ByTopic<Offset> {
    fn from(offsets: Offsets) -> Self {
        to_topics(&offsets.0)
    }
}

/// Why a set of ranges does not continue a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discontinuity {
    /// The range starts after the position: rows would be lost.
    Gap {
        /// Where.
        partition: Partition,
        /// The position.
        at: Offset,
        /// Where the range starts.
        from: Offset,
    },
    /// The range starts before the position: rows would be read twice.
    Overlap {
        /// Where.
        partition: Partition,
        /// The position.
        at: Offset,
        /// Where the range starts.
        from: Offset,
    },
}

impl fmt::Display for Discontinuity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Discontinuity::Gap { partition, at, from } => {
                write!(
                    f,
                    "{partition} stands at {at} but the range starts at {from}: {} offsets would be lost",
                    from - at
                )
            }
            Discontinuity::Overlap { partition, at, from } => {
                write!(
                    f,
                    "{partition} stands at {at} but the range starts at {from}: {} offsets would be read twice",
                    at - from
                )
            }
        }
    }
}

impl Offsets {
    /// The position after `ranges`, which must start exactly where this position stands. Partitions unknown to this
    /// position are new and start wherever their range says.
    pub fn advance(&self, ranges: &OffsetRanges) -> Result<Offsets, Discontinuity> {
        let mut next = self.0.clone();
        for (partition, range) in &ranges.0 {
            if let Some(&at) = self.0.get(partition) {
                let partition = partition.clone();
                if range.from > at {
                    return Err(Discontinuity::Gap { partition, at, from: range.from });
                }
                if range.from < at {
                    return Err(Discontinuity::Overlap { partition, at, from: range.from });
                }
            }
            next.insert(partition.clone(), range.until.max(range.from));
        }
        Ok(Offsets(next))
    }

    /// The ranges from here to `end`, for the partitions that `end` names; a partition that does not move has an empty
    /// range, one that is unknown here is left out (the caller decides where new partitions start).
    pub fn ranges_to(&self, end: &Offsets) -> OffsetRanges {
        let ranges = end.0.iter().filter_map(|(partition, &until)| {
            self.0.get(partition).map(|&from| (partition.clone(), Range { from, until: until.max(from) }))
        });
        OffsetRanges(ranges.collect())
    }
}

/// What one batch reads from one source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "ByTopic<Range>", into = "ByTopic<Range>")]
pub struct OffsetRanges(pub BTreeMap<Partition, Range>);

impl From<ByTopic<Range>> for OffsetRanges {
    fn from(topics: ByTopic<Range>) -> Self {
        OffsetRanges(from_topics(topics))
    }
}

impl From<OffsetRanges> for ByTopic<Range> {
    fn from(ranges: OffsetRanges) -> Self {
        to_topics(&ranges.0)
    }
}

impl OffsetRanges {
    /// How many offsets are spanned over all partitions.
    pub fn len(&self) -> i64 {
        self.0.values().map(Range::len).sum()
    }

    /// Whether there is nothing to read in any partition.
    pub fn is_empty(&self) -> bool {
        self.0.values().all(Range::is_empty)
    }

    /// Cuts the ranges to about `max_rows` offsets, each partition in proportion to its backlog, at least one offset
    /// for each partition that has any (Spark's `maxOffsetsPerTrigger` rule, `KafkaMicroBatchStream.rateLimit`). What
    /// rounding down left over is handed out too, or a backlog of ten batches would take eleven.
    pub fn prorate(&self, max_rows: u64) -> OffsetRanges {
        let total = self.len();
        if total <= 0 || total as u64 <= max_rows {
            return self.clone();
        }
        let share = max_rows as f64 / total as f64;
        let cut = self.0.iter().map(|(partition, range)| {
            let rows = range.len() as f64 * share;
            let rows = if rows < 1.0 { rows.ceil() } else { rows.floor() } as i64;
            (partition.clone(), Range { from: range.from, until: (range.from + rows).min(range.until) })
        });
        let mut cut = OffsetRanges(cut.collect());
        let mut left = (max_rows as i64 - cut.len()).max(0);
        for (partition, range) in &mut cut.0 {
            let room = self.0.get(partition).map_or(0, |whole| whole.until - range.until).min(left);
            range.until += room;
            left -= room;
        }
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offsets(values: &[i64]) -> Offsets {
        Offsets(values.iter().enumerate().map(|(i, &v)| (Partition::new("t", i as i32), v)).collect())
    }

    fn ranges(values: &[(i64, i64)]) -> OffsetRanges {
        OffsetRanges(values.iter().enumerate().map(|(i, &r)| (Partition::new("t", i as i32), Range::from(r))).collect())
    }

    proptest! {
        #[test]
        fn advancing_by_the_ranges_to_an_end_arrives_at_that_end(
            pairs in prop::collection::vec((0i64..1000, 0i64..1000), 1..6)
        ) {
            let from = offsets(&pairs.iter().map(|p| p.0).collect::<Vec<_>>());
            let end = offsets(&pairs.iter().map(|p| p.0 + p.1).collect::<Vec<_>>());
            prop_assert_eq!(from.advance(&from.ranges_to(&end)).expect("contiguous"), end);
        }

        #[test]
        fn cut_ranges_never_pass_the_backlog_and_always_move(
            pairs in prop::collection::vec((0i64..1000, 0i64..1000), 1..6), limit in 1u64..500
        ) {
            let whole = ranges(&pairs.iter().map(|p| (p.0, p.0 + p.1)).collect::<Vec<_>>());
            let cut = whole.prorate(limit);
            for (partition, range) in &cut.0 {
                prop_assert!(range.until <= whole.0[partition].until);
                prop_assert_eq!(range.is_empty(), whole.0[partition].is_empty());
            }
            prop_assert!(cut.len() as u64 <= limit + pairs.len() as u64);
        }

        #[test]
        fn reading_in_cut_steps_reads_every_offset_exactly_once(
            pairs in prop::collection::vec((0i64..100, 0i64..100), 1..4), limit in 1u64..50
        ) {
            let end = offsets(&pairs.iter().map(|p| p.0 + p.1).collect::<Vec<_>>());
            let mut at = offsets(&pairs.iter().map(|p| p.0).collect::<Vec<_>>());
            let mut read = 0;
            while at != end {
                let step = at.ranges_to(&end).prorate(limit);
                read += step.len();
                at = at.advance(&step).expect("contiguous");
            }
            prop_assert_eq!(read, pairs.iter().map(|p| p.1).sum::<i64>());
        }
    }

    #[test]
    fn a_range_that_skips_offsets_is_a_gap_and_one_that_rereads_is_an_overlap() {
        assert!(matches!(offsets(&[5]).advance(&ranges(&[(6, 9)])), Err(Discontinuity::Gap { at: 5, from: 6, .. })));
        assert!(matches!(
            offsets(&[5]).advance(&ranges(&[(4, 9)])),
            Err(Discontinuity::Overlap { at: 5, from: 4, .. })
        ));
    }

    #[test]
    fn spark_scenario_k1_limit_10_over_101_11_1_rows_is_8_1_1() {
        let cut = ranges(&[(0, 101), (0, 11), (0, 1)]).prorate(10);
        assert_eq!(cut, ranges(&[(0, 8), (0, 1), (0, 1)]));
    }

    #[test]
    fn the_json_form_is_topic_then_partition() {
        let json = serde_json::to_string(&ranges(&[(1, 2), (3, 4)])).expect("serialises");
        assert_eq!(json, r#"{"t":{"0":[1,2],"1":[3,4]}}"#);
        assert_eq!(serde_json::from_str::<OffsetRanges>(&json).expect("parses"), ranges(&[(1, 2), (3, 4)]));
    }
}
