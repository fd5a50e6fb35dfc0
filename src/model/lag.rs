//! How far a position is behind the end of its source, and how long until the source forgets what was not read. Pure: the
//! adapters say what there is, the caller says what time it is.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};

use super::offset::{Offset, Offsets, Partition};

/// When the first record at or after an offset was written, by partition: `None` = there is none, an absent partition =
/// not known.
pub type Times = BTreeMap<Partition, Option<DateTime<Utc>>>;

/// How long a topic keeps records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Old records are deleted; a topic that is only compacted keeps the newest of each key for ever.
    pub deletes: bool,
    /// Records older than this go.
    pub age: Option<TimeDelta>,
    /// The oldest records go when a partition is larger than this.
    pub bytes: Option<u64>,
}

/// What there is to say about one source.
#[derive(Debug, Clone, Default)]
pub struct Sighting {
    /// The next offsets to read.
    pub at: Offsets,
    /// The oldest records kept.
    pub earliest: Offsets,
    /// The ends.
    pub end: Offsets,
    /// When the oldest unread records were written.
    pub unread: Times,
    /// When the oldest records kept were written.
    pub oldest: Times,
    /// How long records are kept, by topic, as far as the source says.
    pub retention: BTreeMap<String, Retention>,
}

/// How long until unread records are deleted, at the earliest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Headroom {
    /// Nothing is unread.
    CaughtUp,
    /// The source never deletes them.
    Forever,
    /// So long; zero or less = any moment.
    Left(TimeDelta, Because),
    /// The source has deleted some of them.
    Lost,
    /// Nobody knows.
    Unknown,
}

/// What tells how long records stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// `retention.ms`: no record goes before it is that old.
    Age,
    /// `retention.bytes`, at the pace at which the partition grew: an estimate.
    Size,
    /// The source does not say: what it has deleted so far tells how long it keeps records. An estimate.
    Observed,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lag {
    /// Which.
    pub partition: Partition,
    /// The next offset to read; `None` = the partition is new, and is read from its earliest record on.
    pub at: Option<Offset>,
    /// The oldest record kept; `None` = there is no such partition any more.
    pub earliest: Option<Offset>,
    /// Its end.
    pub end: Option<Offset>,
    /// Unread offsets: an upper bound on unread records.
    pub records: i64,
    /// Age of the oldest unread record, zero when there is none; `None` = not known.
    pub age: Option<TimeDelta>,
    /// How long until it is deleted.
    pub headroom: Headroom,
}

/// Where reading would go on, for every partition in which anything is unread.
pub fn unread(at: &Offsets, earliest: &Offsets, end: &Offsets) -> Offsets {
    let from = |partition: &Partition, end: Offset| {
        let first = earliest.0.get(partition).copied().unwrap_or_default();
        let from = at.0.get(partition).copied().unwrap_or(first).max(first);
        (from < end).then_some(from)
    };
    let unread = end.0.iter().filter_map(|(partition, &end)| Some((partition.clone(), from(partition, end)?)));
    Offsets(unread.collect())
}

/// Every partition that is there or was read.
pub fn measure(seen: &Sighting, now: DateTime<Utc>) -> Vec<Lag> {
    let partitions: BTreeSet<&Partition> = seen.at.0.keys().chain(seen.end.0.keys()).collect();
    partitions.into_iter().map(|partition| of(seen, partition, now)).collect()
}

fn of(seen: &Sighting, partition: &Partition, now: DateTime<Utc>) -> Lag {
    let look = |offsets: &Offsets| offsets.0.get(partition).copied();
    let (at, earliest, end) = (look(&seen.at), look(&seen.earliest), look(&seen.end));
    let first = earliest.unwrap_or_default();
    let records = end.map_or(0, |end| (end - at.unwrap_or(first)).max(0));
    let written = seen.unread.get(partition).copied();
    let age = match (records, written) {
        (0, _) | (_, Some(None)) => Some(TimeDelta::zero()),
        (_, Some(Some(written))) => Some((now - written).max(TimeDelta::zero())),
        (_, None) => None,
    };
    let headroom = match (at, records) {
        (_, 0) => Headroom::CaughtUp,
        (Some(at), _) if at < first => Headroom::Lost,
        _ => {
            let oldest = seen.oldest.get(partition).copied().flatten();
            let span = Span { first, from: at.unwrap_or(first), end: end.unwrap_or_default(), oldest, now };
            headroom(seen.retention.get(&partition.topic), written.flatten(), &span)
        }
    };
    Lag { partition: partition.clone(), at, earliest, end, records, age, headroom }
}

/// What a partition holds, and where reading stands in it.
struct Span {
    first: Offset,
    from: Offset,
    end: Offset,
    oldest: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
}

impl Span {
    /// Time until as much is appended as lies between the oldest record and the position, at the pace of what is kept.
    fn until_pushed_out(&self) -> Option<TimeDelta> {
        let kept = (self.now - self.oldest?).num_milliseconds();
        // Before anything was deleted there is room of unknown size.
        let is_full = self.first > 0 && self.end > self.first && kept > 0;
        let milliseconds =
            i128::from(self.from - self.first) * i128::from(kept) / i128::from(self.end - self.first).max(1);
        is_full.then(|| TimeDelta::milliseconds(i64::try_from(milliseconds).unwrap_or(i64::MAX / 2)))
    }
}

fn headroom(retention: Option<&Retention>, written: Option<DateTime<Utc>>, span: &Span) -> Headroom {
    let Some(retention) = retention else {
        let observed = written.zip(span.oldest).filter(|_| span.first > 0).map(|(written, oldest)| written - oldest);
        return observed.map_or(Headroom::Unknown, |left| Headroom::Left(left, Because::Observed));
    };
    if !retention.deletes || (retention.age.is_none() && retention.bytes.is_none()) {
        return Headroom::Forever;
    }
    let by_age = retention.age.zip(written).and_then(|(age, written)| {
        let goes = written.checked_add_signed(age)?;
        Some((goes - span.now, Because::Age))
    });
    let by_size = retention.bytes.and_then(|_| Some((span.until_pushed_out()?, Because::Size)));
    let first = by_age.into_iter().chain(by_size).min_by_key(|(left, _)| *left);
    first.map_or(Headroom::Unknown, |(left, because)| Headroom::Left(left, because))
}

impl Headroom {
    /// How long at least; `None` = there is nothing to fear, or nothing is known.
    pub fn left(&self) -> Option<TimeDelta> {
        match self {
            Headroom::Left(left, _) => Some((*left).max(TimeDelta::zero())),
            Headroom::Lost => Some(TimeDelta::zero()),
            Headroom::CaughtUp | Headroom::Forever | Headroom::Unknown => None,
        }
    }
}

/// Less headroom than this is worth a warning, unless somebody says otherwise: enough for a person to act, and on topics
/// that keep records for less than a day, a quarter of what they keep.
pub fn worth_a_warning(retention: Option<&Retention>) -> TimeDelta {
    let quarter = retention.and_then(|retention| retention.age).map_or(TimeDelta::MAX, |age| age / 4);
    quarter.min(TimeDelta::hours(6))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    fn one(offset: i64) -> Offsets {
        Offsets([(Partition::new("t", 0), offset)].into())
    }

    fn time(seconds: i64) -> Times {
        [(Partition::new("t", 0), Some(at(seconds)))].into()
    }

    fn seen(position: i64, earliest: i64, end: i64) -> Sighting {
        let (at, earliest, end) = (one(position), one(earliest), one(end));
        Sighting { at, earliest, end, ..Sighting::default() }
    }

    fn kept(age: Option<i64>, bytes: Option<u64>) -> BTreeMap<String, Retention> {
        let retention = Retention { deletes: true, age: age.map(TimeDelta::seconds), bytes };
        [("t".to_string(), retention)].into()
    }

    fn lag(seen: Sighting, now: i64) -> Lag {
        measure(&seen, at(now)).remove(0)
    }

    #[test]
    fn a_position_at_the_end_has_nothing_to_lose() {
        let lag = lag(Sighting { retention: kept(Some(1), None), ..seen(10, 5, 10) }, 1_000);
        assert_eq!((lag.records, lag.age, lag.headroom), (0, Some(TimeDelta::zero()), Headroom::CaughtUp));
        assert_eq!(unread(&one(10), &one(5), &one(10)), Offsets::default());
    }

    #[test]
    fn the_lag_in_seconds_is_the_age_of_the_oldest_unread_record() {
        let lag = lag(Sighting { unread: time(400), ..seen(10, 0, 30) }, 1_000);
        assert_eq!((lag.records, lag.age), (20, Some(TimeDelta::seconds(600))));
        assert_eq!(lag.headroom, Headroom::Unknown);
        let holes = Sighting { unread: [(Partition::new("t", 0), None)].into(), ..seen(10, 0, 11) };
        assert_eq!(measure(&holes, at(1_000))[0].age, Some(TimeDelta::zero()), "a control record is nobody's backlog");
        assert_eq!(measure(&seen(10, 0, 11), at(1_000))[0].age, None);
    }

    #[test]
    fn a_new_partition_is_read_from_its_earliest_record_and_one_that_is_gone_has_no_end() {
        let new = Sighting { at: Offsets::default(), ..seen(0, 7, 9) };
        assert_eq!(measure(&new, at(0))[0].records, 2);
        assert_eq!(unread(&Offsets::default(), &one(7), &one(9)), one(7));
        let gone = Sighting { end: Offsets::default(), earliest: Offsets::default(), ..seen(3, 0, 0) };
        let lag = lag(gone, 0);
        assert_eq!((lag.records, lag.end, lag.headroom), (0, None, Headroom::CaughtUp));
    }

    #[test]
    fn a_record_stays_until_it_is_as_old_as_the_retention_and_size_may_come_first() {
        let unread = || time(900);
        let by_age = Sighting { unread: unread(), retention: kept(Some(600), None), ..seen(10, 0, 30) };
        assert_eq!(lag(by_age, 1_000).headroom, Headroom::Left(TimeDelta::seconds(500), Because::Age));
        // 100 to 200 in 1000 s: ten seconds a record, and 30 records lie before the position.
        let by_size = Sighting { unread: unread(), oldest: time(0), ..seen(130, 100, 200) };
        let by_size = |age| Sighting { retention: kept(age, Some(1)), ..by_size.clone() };
        assert_eq!(lag(by_size(None), 1_000).headroom, Headroom::Left(TimeDelta::seconds(300), Because::Size));
        assert_eq!(lag(by_size(Some(150)), 1_000).headroom, Headroom::Left(TimeDelta::seconds(50), Because::Age));
        let not_full =
            Sighting { unread: unread(), oldest: time(0), retention: kept(None, Some(1)), ..seen(30, 0, 99) };
        assert_eq!(lag(not_full, 1_000).headroom, Headroom::Unknown);
        let late = Sighting { unread: unread(), retention: kept(Some(10), None), ..seen(10, 0, 30) };
        assert_eq!(lag(late, 1_000).headroom.left(), Some(TimeDelta::zero()), "any moment");
    }

    #[test]
    fn what_a_topic_has_deleted_tells_how_long_it_keeps_records_when_it_does_not_say() {
        let observed = Sighting { unread: time(900), oldest: time(200), ..seen(130, 100, 200) };
        assert_eq!(lag(observed, 1_000).headroom, Headroom::Left(TimeDelta::seconds(700), Because::Observed));
        let kept_for_ever = Sighting { unread: time(900), retention: kept(None, None), ..seen(130, 100, 200) };
        assert_eq!(lag(kept_for_ever, 1_000).headroom, Headroom::Forever);
        assert_eq!(lag(seen(50, 100, 200), 1_000).headroom, Headroom::Lost);
    }

    #[test]
    fn short_retentions_are_warned_of_later() {
        let keeps = |seconds| Retention { deletes: true, age: Some(TimeDelta::seconds(seconds)), bytes: None };
        assert_eq!(worth_a_warning(Some(&keeps(7 * 86_400))), TimeDelta::hours(6));
        assert_eq!(worth_a_warning(Some(&keeps(3_600))), TimeDelta::minutes(15));
        assert_eq!(worth_a_warning(None), TimeDelta::hours(6));
    }
}
