//! Whether the records after a position still exist. Pure: the adapters ask, this module answers in one voice.

use crate::error::{Code, Error, ErrorKind};
use crate::model::loss::{Loss, Lost};
use crate::model::offset::{Incarnations, Offset, OffsetRanges, Offsets, Partition, Range};

/// The error that stops a pipeline.
pub fn error(loss: &Loss) -> Error {
    let error = Error::new(ErrorKind::OffsetsLost, loss.message())
        .coded(code(loss))
        .help("this attempt wrote nothing: the checkpoint stands where the last finished batch left it");
    match loss {
        Loss::Expired { .. } => error.help(
            "to go on without them: set `on_data_loss: skip` in the source; the next batch starts at the earliest, \
             and its plan keeps what was skipped",
        ),
        Loss::Shrunk { .. } => error
            .help("if the new records are other data, give the pipeline a new name or a new checkpoint folder")
            .help("to read what is there now from its earliest record: set `on_data_loss: skip` in the source"),
        Loss::Truncated { .. } => error
            .help(
                "a broker lost its newest records (an unclean leader election, a disk restored from a copy): the tables \
                 hold rows that the topic no longer has; ask whoever runs the cluster, and the producers to send again",
            )
            .help(
                "to go on at the end of what is there now: set `on_data_loss: skip` in the source; nothing is read twice, \
                 and what was written to the partition since it was cut is not read at all",
            ),
        Loss::Recreated { .. } => error
            .help("if the new topic holds other data, give the pipeline a new name or a new checkpoint folder")
            .help(
                "to read the new topic from its earliest record into the same tables: set `on_data_loss: skip` in the \
                 source; records of the old one that had not been read are lost",
            )
            .help("an upsert table without `order_by` ranks by offset: there the new topic's records lose against stored ones"),
        Loss::PartitionGone { .. } => error
            .help("if it was removed by mistake, restore it and start again: the run goes on where it stood")
            .help("to go on without it: set `on_data_loss: skip` in the source"),
        Loss::TopicGone { .. } => error
            .help("if it was removed for good, take it out of the source's `topics`, or set `on_data_loss: skip`")
            .help("if it was removed by mistake, it cannot come back: a topic of the same name is another one"),
    }
}

fn code(loss: &Loss) -> Code {
    match loss {
        Loss::Expired { .. } => Code::Expired,
        Loss::Shrunk { .. } => Code::Shrunk,
        Loss::Truncated { .. } => Code::Truncated,
        Loss::Recreated { .. } => Code::Recreated,
        Loss::PartitionGone { .. } => Code::PartitionGone,
        Loss::TopicGone { .. } => Code::TopicGone,
    }
}

/// What a source has now.
#[derive(Debug, Clone, Default)]
pub struct Now {
    /// The oldest record kept of every partition there is.
    pub earliest: Offsets,
    /// The end of partitions, now or pinned earlier.
    pub end: Offsets,
    /// Which topics they are.
    pub incarnations: Incarnations,
}

impl Now {
    /// A source that has nothing to say about what its topics are.
    pub fn anonymous(earliest: Offsets, end: Offsets) -> Self {
        Now { earliest, end, incarnations: Incarnations::new() }
    }

    /// The id that a topic had and the one it has, where both are known.
    fn ids<'a>(&'a self, known: &'a Incarnations, topic: &str) -> Option<(&'a String, &'a String)> {
        known.get(topic).zip(self.incarnations.get(topic))
    }

    fn missing(&self, partition: Partition, at: Offset) -> Loss {
        let has_topic = self.earliest.0.keys().any(|there| there.topic == partition.topic);
        if has_topic { Loss::PartitionGone { partition, at } } else { Loss::TopicGone { partition, at } }
    }

    /// What is wrong with counting on the records from `at`, if anything is.
    fn judge(&self, known: &Incarnations, partition: &Partition, at: Offset) -> Option<Loss> {
        let ids = self.ids(known, &partition.topic);
        let name = partition.clone();
        match (self.earliest.0.get(partition), self.end.0.get(partition)) {
            // At 0 nothing was read of the old one, so nothing can be missed in the new one.
            _ if at > 0 && ids.is_some_and(|(was, now)| was != now) => {
                let (was, now) = ids.map(|(was, now)| (was.clone(), now.clone())).unwrap_or_default();
                Some(Loss::Recreated { partition: name, at, was, now })
            }
            (Some(&earliest), _) if at < earliest => Some(Loss::Expired { partition: name, at, earliest }),
            (Some(_), Some(&end)) if at > end && ids.is_some() => Some(Loss::Truncated { partition: name, at, end }),
            (Some(_), Some(&end)) if at > end => Some(Loss::Shrunk { partition: name, at, end }),
            (None, _) => Some(self.missing(name, at)),
            // An end pinned before the partition appeared says nothing about it.
            _ => None,
        }
    }
}

/// The losses of a position in the topics `known`. Only partitions that `from` names are looked at.
pub fn find(from: &Offsets, known: &Incarnations, now: &Now) -> Vec<Loss> {
    from.0.iter().filter_map(|(partition, &at)| now.judge(known, partition, at)).collect()
}

/// Where a reader that accepts `losses` stands: at the first record that it has not read and that is left, or nowhere in
/// a partition that is gone.
pub fn skip(from: &Offsets, now: &Now, losses: &[Loss]) -> Offsets {
    let mut from = from.clone();
    for loss in losses {
        let partition = loss.partition();
        let next = match loss {
            // What is left was read already.
            Loss::Truncated { end, .. } => Some(end),
            _ => now.earliest.0.get(partition),
        };
        match next {
            Some(&offset) => from.0.insert(partition.clone(), offset),
            None => from.0.remove(partition),
        };
    }
    from
}

/// What is left of planned ranges, whose records and no others must be read, and what is not.
pub fn salvage(ranges: &OffsetRanges, known: &Incarnations, now: &Now) -> (OffsetRanges, Vec<Lost>) {
    let mut left = OffsetRanges::default();
    let mut lost = Vec::new();
    for (partition, &range) in ranges.0.iter().filter(|(_, range)| !range.is_empty()) {
        let mut lose = |loss: Option<Loss>, from: Offset, until: Offset| {
            if let Some(loss) = loss.filter(|_| from < until) {
                lost.push(Lost { loss, unread: Some(Range { from, until }) });
            }
        };
        let (start, tail) = (now.judge(known, partition, range.from), now.judge(known, partition, range.until));
        let Range { from, until } = match (&start, &tail) {
            (_, None | Some(Loss::Expired { .. })) => range,
            (None | Some(Loss::Expired { .. }), Some(Loss::Truncated { end, .. })) => {
                Range { from: range.from, until: *end }
            }
            // Nothing that is there now can be told to belong to the range.
            (_, Some(_)) => Range { from: range.until, until: range.until },
        };
        let first = match &start {
            Some(Loss::Expired { earliest, .. }) => from.max(*earliest).min(until),
            _ => from,
        };
        // A range that begins at 0 has no bad start even in another topic; its tail says what became of it.
        lose(start.or_else(|| tail.clone()), range.from, first);
        lose(tail, until.max(first), range.until);
        left.0.insert(partition.clone(), Range { from: first, until: until.max(first) });
    }
    (left, lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(values: &[(i32, i64)]) -> Offsets {
        Offsets(values.iter().map(|&(p, o)| (Partition::new("t", p), o)).collect())
    }

    fn id(id: &str) -> Incarnations {
        Incarnations::from([("t".to_string(), id.to_string())])
    }

    fn now(earliest: &[(i32, i64)], end: &[(i32, i64)], id_now: Option<&str>) -> Now {
        let incarnations = id_now.map(id).unwrap_or_default();
        Now { earliest: offsets(earliest), end: offsets(end), incarnations }
    }

    #[test]
    fn each_kind_of_loss_is_told_apart() {
        let from = offsets(&[(0, 5), (1, 5), (2, 5), (3, 5), (4, 5)]);
        let now = now(&[(0, 0), (1, 7), (2, 0), (4, 5)], &[(0, 9), (1, 9), (2, 3), (4, 5)], None);
        let losses = find(&from, &Incarnations::new(), &now);
        let texts: Vec<String> = losses.iter().map(Loss::message).collect();
        assert_eq!(
            texts,
            [
                "2 records of t/1 have expired: the checkpoint stands at 5, the earliest is 7",
                "t/2 ends at 3 but the checkpoint stands at 5: it was deleted and made anew, or truncated",
                "t/3 no longer exists, the checkpoint stands at 5 in it",
            ]
        );
        assert!(losses.iter().all(|l| error(l).kind() == ErrorKind::OffsetsLost && error(l).help_lines().len() >= 2));
        assert_eq!(skip(&from, &now, &losses), offsets(&[(0, 5), (1, 7), (2, 0), (4, 5)]));
        let nothing = Now::default();
        let texts: Vec<String> = find(&offsets(&[(0, 5)]), &id("a"), &nothing).iter().map(Loss::message).collect();
        assert_eq!(texts, ["topic t no longer exists, the checkpoint stands at 5 of t/0"]);
    }

    #[test]
    fn another_topic_of_the_same_name_is_a_loss_however_many_records_it_has() {
        let from = offsets(&[(0, 5)]);
        for end in [3, 5, 9] {
            let now = now(&[(0, 0)], &[(0, end)], Some("b"));
            let losses = find(&from, &id("a"), &now);
            assert!(matches!(&losses[..], [Loss::Recreated { at: 5, was, now, .. }] if was == "a" && now == "b"));
            assert_eq!(skip(&from, &now, &losses), offsets(&[(0, 0)]));
        }
        let now = now(&[(0, 0)], &[(0, 9)], Some("b"));
        assert_eq!(find(&offsets(&[(0, 0)]), &id("a"), &now), [], "nothing had been read");
        assert_eq!(find(&from, &Incarnations::new(), &now), [], "nobody knows what it was");
        assert_eq!(find(&from, &id("b"), &now), []);
    }

    #[test]
    fn the_same_topic_that_ends_early_was_truncated_and_what_is_left_is_not_read_again() {
        let from = offsets(&[(0, 5)]);
        let now = now(&[(0, 0)], &[(0, 3)], Some("a"));
        let losses = find(&from, &id("a"), &now);
        assert!(matches!(&losses[..], [Loss::Truncated { at: 5, end: 3, .. }]));
        assert_eq!(skip(&from, &now, &losses), offsets(&[(0, 3)]));
    }

    #[test]
    fn of_a_planned_range_only_its_own_records_are_read() {
        let ranges = |from, until| OffsetRanges([(Partition::new("t", 0), Range { from, until })].into());
        // (planned, earliest, end, id now) -> (left, lost)
        #[allow(clippy::type_complexity, reason = "a table of cases")]
        let cases: &[((i64, i64), i64, i64, Option<&str>, (i64, i64), &[(&str, i64, i64)])] = &[
            ((5, 9), 0, 20, Some("a"), (5, 9), &[]),
            ((5, 9), 7, 20, Some("a"), (7, 9), &[("expired", 5, 7)]),
            ((5, 9), 12, 20, Some("a"), (9, 9), &[("expired", 5, 9)]),
            ((5, 9), 0, 7, Some("a"), (5, 7), &[("truncated", 7, 9)]),
            ((5, 9), 0, 3, Some("a"), (9, 9), &[("truncated", 5, 9)]),
            ((5, 9), 0, 3, None, (9, 9), &[("shrunk", 5, 9)]),
            ((5, 9), 0, 7, None, (9, 9), &[("shrunk", 5, 9)]),
            ((5, 9), 0, 20, Some("b"), (9, 9), &[("recreated", 5, 9)]),
            // The first records of a topic that was never read before: not a loss to begin at, but not to be read either.
            ((0, 9), 0, 20, Some("b"), (9, 9), &[("recreated", 0, 9)]),
        ];
        for (planned, earliest, end, id_now, expected, lost_expected) in cases {
            let now = now(&[(0, *earliest)], &[(0, *end)], *id_now);
            let (left, lost) = salvage(&ranges(planned.0, planned.1), &id("a"), &now);
            assert_eq!(left, ranges(expected.0, expected.1), "{planned:?} {earliest} {end} {id_now:?}: {lost:?}");
            let lost: Vec<(String, i64, i64)> = lost
                .iter()
                .map(|lost| {
                    let unread = lost.unread.expect("a range");
                    let class = serde_json::to_value(&lost.loss).expect("JSON")["class"].clone();
                    (class.as_str().expect("a word").to_string(), unread.from, unread.until)
                })
                .collect();
            let wanted: Vec<_> = lost_expected.iter().map(|(c, f, u)| (c.to_string(), *f, *u)).collect();
            assert_eq!(lost, wanted, "{planned:?} {earliest} {end} {id_now:?}");
        }
    }
}
