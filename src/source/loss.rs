//! Whether the records after a position still exist. Pure: the adapters ask, this module answers in one voice.

use crate::error::{Error, ErrorKind};
use crate::model::offset::{Offset, OffsetRanges, Offsets, Partition, Range};

/// Records that a position counts on and the source no longer has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loss {
    /// The oldest record kept is newer than the position.
    Expired {
        /// Where.
        partition: Partition,
        /// The position.
        at: Offset,
        /// The oldest record kept.
        earliest: Offset,
    },
    /// The partition ends before the position: deleted and made anew, or cut.
    Shrunk {
        /// Where.
        partition: Partition,
        /// The position.
        at: Offset,
        /// Where the partition ends now.
        end: Offset,
    },
    /// There is no such partition any more.
    Gone {
        /// Where.
        partition: Partition,
        /// The position.
        at: Offset,
    },
}

impl Loss {
    /// Where.
    pub fn partition(&self) -> &Partition {
        match self {
            Loss::Expired { partition, .. } | Loss::Shrunk { partition, .. } | Loss::Gone { partition, .. } => {
                partition
            }
        }
    }

    /// One sentence with the numbers.
    pub fn message(&self) -> String {
        match self {
            Loss::Expired { partition, at, earliest } => format!(
                "{} records of {partition} have expired: the checkpoint stands at {at}, the earliest is {earliest}",
                earliest - at
            ),
            Loss::Shrunk { partition, at, end } => format!(
                "{partition} ends at {end} but the checkpoint stands at {at}: it was deleted and made anew, or truncated"
            ),
            Loss::Gone { partition, at } => {
                format!("{partition} no longer exists, the checkpoint stands at {at} in it")
            }
        }
    }

    /// The error that stops a pipeline.
    pub fn error(&self) -> Error {
        let error = Error::new(ErrorKind::OffsetsLost, self.message())
            .help("nothing was read or written, and the checkpoint has not moved");
        match self {
            Loss::Expired { .. } => error.help(
                "to go on without them: set `on_data_loss: skip` in the source; the next batch starts at the earliest, \
                 and its plan keeps what was skipped",
            ),
            Loss::Shrunk { .. } => error
                .help("if the new records are other data, give the pipeline a new name or a new checkpoint folder")
                .help("to read what is there now from its earliest record: set `on_data_loss: skip` in the source"),
            Loss::Gone { .. } => error
                .help("if it was removed by mistake, restore it and start again: the run goes on where it stood")
                .help("to go on without it: set `on_data_loss: skip` in the source"),
        }
    }
}

/// The losses of a position, given what the source has now. Only partitions that `from` names are looked at.
pub fn find(from: &Offsets, earliest: &Offsets, end: &Offsets) -> Vec<Loss> {
    let check = |(partition, &at): (&Partition, &Offset)| {
        let partition = partition.clone();
        match (earliest.0.get(&partition), end.0.get(&partition)) {
            (Some(&earliest), _) if at < earliest => Some(Loss::Expired { partition, at, earliest }),
            (Some(_), Some(&end)) if at > end => Some(Loss::Shrunk { partition, at, end }),
            (None, _) => Some(Loss::Gone { partition, at }),
            // An end pinned before the partition appeared says nothing about it.
            _ => None,
        }
    };
    from.0.iter().filter_map(check).collect()
}

/// Where a reader that accepts `losses` stands: at the earliest record that is left, or nowhere in a lost partition.
pub fn skip(from: &Offsets, earliest: &Offsets, losses: &[Loss]) -> Offsets {
    let mut from = from.clone();
    for loss in losses {
        let partition = loss.partition();
        match earliest.0.get(partition) {
            Some(&offset) => from.0.insert(partition.clone(), offset),
            None => from.0.remove(partition),
        };
    }
    from
}

/// Where each range starts.
pub fn starts(ranges: &OffsetRanges) -> Offsets {
    Offsets(ranges.0.iter().map(|(partition, range)| (partition.clone(), range.from)).collect())
}

/// `ranges` with their starts moved to `from`; ranges of partitions that `from` does not name are left out.
pub fn restart(ranges: &OffsetRanges, from: &Offsets) -> OffsetRanges {
    let cut = ranges.0.iter().filter_map(|(partition, range)| {
        let from = *from.0.get(partition)?;
        Some((partition.clone(), Range { from, until: range.until.max(from) }))
    });
    OffsetRanges(cut.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(values: &[(i32, i64)]) -> Offsets {
        Offsets(values.iter().map(|&(p, o)| (Partition::new("t", p), o)).collect())
    }

    #[test]
    fn each_kind_of_loss_is_told_apart() {
        let from = offsets(&[(0, 5), (1, 5), (2, 5), (3, 5), (4, 5)]);
        let earliest = offsets(&[(0, 0), (1, 7), (2, 0), (4, 5)]);
        let end = offsets(&[(0, 9), (1, 9), (2, 3), (4, 5)]);
        let losses = find(&from, &earliest, &end);
        let texts: Vec<String> = losses.iter().map(Loss::message).collect();
        assert_eq!(
            texts,
            [
                "2 records of t/1 have expired: the checkpoint stands at 5, the earliest is 7",
                "t/2 ends at 3 but the checkpoint stands at 5: it was deleted and made anew, or truncated",
                "t/3 no longer exists, the checkpoint stands at 5 in it",
            ]
        );
        assert!(losses.iter().all(|l| l.error().kind() == ErrorKind::OffsetsLost && l.error().help_lines().len() >= 2));
        assert_eq!(skip(&from, &earliest, &losses), offsets(&[(0, 5), (1, 7), (2, 0), (4, 5)]));
    }
}
