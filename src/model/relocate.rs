//! Moving a position by hand: what is asked for against what there is. Pure; the runner carries it out.

use std::collections::BTreeMap;
use std::fmt;

use super::batch::{BatchId, CommitRecord};
use super::loss::Loss;
use super::offset::{Incarnations, Offset, OffsetRanges, Offsets, Partition, Range};

/// What one source looks like to somebody who wants to move its position.
#[derive(Debug, Clone, Default)]
pub struct Extent {
    /// The checkpoint's position.
    pub at: Offsets,
    /// The earliest readable offsets.
    pub earliest: Offsets,
    /// The ends.
    pub end: Offsets,
    /// The topics that the position belongs to.
    pub known: Incarnations,
    /// The topics that are there now.
    pub incarnations: Incarnations,
}

/// Why a position cannot be moved there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The checkpoint has no position in this partition.
    Unknown {
        /// What was asked for.
        partition: Partition,
    },
    /// The source no longer has the records.
    Expired {
        /// Where.
        partition: Partition,
        /// What was asked for.
        asked: Offset,
        /// The earliest record that is left.
        earliest: Offset,
    },
    /// The source does not reach that far.
    PastEnd {
        /// Where.
        partition: Partition,
        /// What was asked for.
        asked: Offset,
        /// Where the partition ends.
        end: Offset,
    },
    /// The partition is gone from the source.
    Gone {
        /// Where.
        partition: Partition,
    },
    /// The topic was deleted and made again: rows of the old one would go, and come back from nowhere.
    Recreated(Loss),
    /// A rewind that would lead forward.
    Forward {
        /// Where.
        partition: Partition,
        /// The position.
        at: Offset,
        /// What was asked for.
        asked: Offset,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Unknown { partition } => write!(f, "the checkpoint has no position in {partition}"),
            Refused::Expired { partition, asked, earliest } => {
                write!(
                    f,
                    "{partition} cannot go back to {asked}: its earliest record is {earliest}, and rows would be removed \
                     from tables that could never be read again"
                )
            }
            Refused::PastEnd { partition, asked, end } => {
                write!(f, "{partition} cannot go to {asked}: it ends at {end}")
            }
            Refused::Gone { partition } => write!(f, "{partition} is no longer there: nothing can be read from it"),
            Refused::Recreated(loss) => f.write_str(&loss.message()),
            Refused::Forward { partition, at, asked } => write!(
                f,
                "a rewind goes back, and {partition} would go forward from {at} to {asked}: the records between would \
                 never be read"
            ),
        }
    }
}

/// The moves that lead from the position to `target`; partitions that stay are left out.
pub fn moves(extent: &Extent, target: &Offsets) -> Result<OffsetRanges, Refused> {
    let mut moved = BTreeMap::new();
    for (partition, &now) in &target.0 {
        let Some(&was) = extent.at.0.get(partition) else {
            return Err(Refused::Unknown { partition: partition.clone() });
        };
        if now == was {
            continue;
        }
        if let Some(loss) = recreated(extent, partition, was) {
            return Err(Refused::Recreated(loss));
        }
        let (Some(&earliest), Some(&end)) = (extent.earliest.0.get(partition), extent.end.0.get(partition)) else {
            return Err(Refused::Gone { partition: partition.clone() });
        };
        if now < earliest {
            return Err(Refused::Expired { partition: partition.clone(), asked: now, earliest });
        }
        if now > end {
            return Err(Refused::PastEnd { partition: partition.clone(), asked: now, end });
        }
        moved.insert(partition.clone(), Range { from: was, until: now });
    }
    Ok(OffsetRanges(moved))
}

/// That the position is one in a topic which is no longer the one of that name. Where ids are not known, nothing is said.
fn recreated(extent: &Extent, partition: &Partition, at: Offset) -> Option<Loss> {
    let (was, now) = extent.known.get(&partition.topic).zip(extent.incarnations.get(&partition.topic))?;
    (was != now).then(|| Loss::Recreated { partition: partition.clone(), at, was: was.clone(), now: now.clone() })
}

/// A rewind never skips: the first partition that would go forward refuses all of it.
pub fn only_back(moved: &OffsetRanges) -> Result<(), Refused> {
    match moved.0.iter().find(|(_, range)| range.until > range.from) {
        Some((partition, range)) => {
            Err(Refused::Forward { partition: partition.clone(), at: range.from, asked: range.until })
        }
        None => Ok(()),
    }
}

/// The position of `source` right after `batch`, for every partition it has now: one that appeared later had not been
/// read then, so it goes back to its first record. `None` = the log no longer has that batch.
pub fn after(history: &[CommitRecord], batch: BatchId, source: &str, extent: &Extent) -> Option<Offsets> {
    let record = history.iter().find(|record| record.batch == batch)?;
    let then = record.offsets.get(source).cloned().unwrap_or_default();
    let position = extent.at.0.iter().map(|(partition, &now)| {
        let first = extent.earliest.0.get(partition).copied().unwrap_or(now);
        (partition.clone(), then.0.get(partition).copied().unwrap_or(first))
    });
    Some(Offsets(position.collect()))
}

/// Records that will be read again, by partition.
pub fn reread(moved: &OffsetRanges) -> BTreeMap<Partition, i64> {
    let back = moved.0.iter().filter(|(_, range)| range.until < range.from);
    back.map(|(partition, range)| (partition.clone(), range.from - range.until)).collect()
}

/// Records that will never be read, by partition.
pub fn passed_over(moved: &OffsetRanges) -> BTreeMap<Partition, i64> {
    let forward = moved.0.iter().filter(|(_, range)| range.until > range.from);
    forward.map(|(partition, range)| (partition.clone(), range.until - range.from)).collect()
}

/// The positions from which on rows are removed, where the move goes back.
pub fn trims(moved: &OffsetRanges) -> Offsets {
    let back = moved.0.iter().filter(|(_, range)| range.until < range.from);
    Offsets(back.map(|(partition, range)| (partition.clone(), range.until)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(values: &[i64]) -> Offsets {
        Offsets(values.iter().enumerate().map(|(i, &v)| (Partition::new("t", i as i32), v)).collect())
    }

    fn extent() -> Extent {
        Extent { at: offsets(&[50, 50]), earliest: offsets(&[10, 0]), end: offsets(&[100, 60]), ..Extent::default() }
    }

    #[test]
    fn a_position_in_a_topic_that_was_made_again_moves_nowhere() {
        let id = |id: &str| Incarnations::from([("t".to_string(), id.to_string())]);
        let other = Extent { known: id("a"), incarnations: id("b"), ..extent() };
        for target in [[20, 50], [50, 60]] {
            let refused = moves(&other, &offsets(&target));
            assert!(matches!(refused, Err(Refused::Recreated(Loss::Recreated { at: 50, .. }))), "{refused:?}");
        }
        for known in [id("b"), Incarnations::new()] {
            assert!(moves(&Extent { known, ..other.clone() }, &offsets(&[20, 50])).is_ok());
        }
    }

    #[test]
    fn a_rewind_that_would_skip_in_any_partition_is_refused() {
        let both = moves(&extent(), &offsets(&[20, 60])).expect("inside");
        let refused = only_back(&both).expect_err("partition 1 goes forward");
        assert_eq!(refused, Refused::Forward { partition: Partition::new("t", 1), at: 50, asked: 60 });
        assert_eq!(only_back(&moves(&extent(), &offsets(&[20, 40])).expect("inside")), Ok(()));
    }

    #[test]
    fn moves_name_only_what_moves_and_stay_inside_the_source() {
        let moved = moves(&extent(), &offsets(&[20, 50])).expect("inside");
        assert_eq!(moved.0.len(), 1);
        assert_eq!(reread(&moved).values().sum::<i64>(), 30);
        assert_eq!(trims(&moved), offsets(&[20]));
        let forward = moves(&extent(), &offsets(&[50, 60])).expect("inside");
        assert_eq!((passed_over(&forward).values().sum::<i64>(), trims(&forward).0.len()), (10, 0));
        assert!(matches!(moves(&extent(), &offsets(&[9])), Err(Refused::Expired { earliest: 10, .. })));
        assert!(matches!(moves(&extent(), &offsets(&[50, 61])), Err(Refused::PastEnd { end: 60, .. })));
        assert!(matches!(moves(&extent(), &offsets(&[50, 50, 1])), Err(Refused::Unknown { .. })));
    }

    #[test]
    fn a_partition_that_appeared_after_the_batch_goes_back_to_its_first_record() {
        let record = CommitRecord {
            version: 2,
            batch: 3,
            pipeline: "orders".into(),
            offsets: BTreeMap::from([("source".to_string(), offsets(&[30]))]),
            incarnations: BTreeMap::new(),
            lost: BTreeMap::new(),
            next_watermarks: BTreeMap::new(),
            tables: BTreeMap::new(),
            input_rows: 0,
            input_bytes: 0,
            dead_letters: 0,
            replayed_from: None,
            finished_by: None,
            expectations: BTreeMap::new(),
            duration_ms: BTreeMap::new(),
            committed_at: chrono::DateTime::UNIX_EPOCH,
        };
        assert_eq!(after(std::slice::from_ref(&record), 3, "source", &extent()), Some(offsets(&[30, 0])));
        assert_eq!(after(&[record], 2, "source", &extent()), None);
    }
}
