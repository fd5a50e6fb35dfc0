//! What of a topic an interval is in, and whether it is still there.

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use super::Backfill;
use super::lineage::origin;
use crate::config::spec::{KafkaSpec, PipelineSpec, SourceKind, TopicSelection};
use crate::error::{Code, Error, ErrorKind, Result};
use crate::model::backfill::{Decision, Request, Reread};
use crate::model::interval::{Interval, midnight};
use crate::model::loss::Loss;
use crate::model::offset::{Incarnations, OffsetRanges, Offsets, Partition, Range};
use crate::source::{column, loss};

/// A partition that may have lost records of the interval, and when the first that is left was written.
type Doubt = (Partition, Option<DateTime<Utc>>);

impl Backfill {
    /// Whether the topics have the interval: false = nothing of it will be read. Fails where they do not have it any more.
    pub async fn is_there(&mut self, request: &Request) -> Result<bool> {
        let head = self.parts.log.head().await?;
        match self.decide(request, &head).await? {
            Decision::Begin { tables, .. } => self.ranges(&tables, request).await.map(|ranges| ranges.is_some()),
            Decision::Skip | Decision::Replay(_) => Ok(false),
        }
    }

    /// The ranges of the records that may hold events of the interval, up to where the live run has finished reading.
    pub(super) async fn ranges(&mut self, tables: &[String], request: &Request) -> Result<Option<Reread>> {
        let Some(slack) = request.slack else { return Ok(None) };
        let head = self.parts.live.head().await?;
        let (position, known) = head.commit.map(|commit| (commit.offsets, commit.incarnations)).unwrap_or_default();
        let mut reread = Reread { slack_ms: slack.num_milliseconds(), ..Reread::default() };
        for table in tables {
            let (spec, transform) = (self.parts.spec.clone(), self.parts.transform.clone());
            let Some((source, _)) = origin(&spec, &*transform, table) else { continue };
            if reread.sources.contains_key(&source) {
                continue;
            }
            let at = position.get(&source).cloned().unwrap_or_default();
            let known = known.get(&source).cloned().unwrap_or_default();
            let ranges = self.ranges_of(&source, table, &at, &known, slack).await?;
            reread.sources.insert(source.clone(), ranges);
            reread.incarnations.insert(source, known);
        }
        Ok(Some(reread))
    }

    async fn ranges_of(
        &mut self,
        name: &str,
        bronze: &str,
        position: &Offsets,
        known: &Incarnations,
        slack: TimeDelta,
    ) -> Result<OffsetRanges> {
        let (needed, last) = (self.interval.start - slack, self.interval.end + slack);
        let spec = self.parts.spec.clone();
        let source = self.source(name)?;
        let now = source.incarnations().await?;
        let earliest = source.earliest().await?;
        let (from, until) = (source.at(needed).await?, source.at(last).await?);
        let mut ranges = OffsetRanges::default();
        let mut doubtful = Offsets::default();
        for (partition, &at) in position.0.iter().filter(|(partition, _)| selects(&spec, name, &partition.topic)) {
            let ids = known.get(&partition.topic).zip(now.get(&partition.topic)).filter(|(was, now)| was != now);
            if let Some((was, now)) = ids {
                let (was, now, partition) = (was.clone(), now.clone(), partition.clone());
                return Err(loss::error(&Loss::Recreated { partition, at, was, now }));
            }
            let (Some(&from), Some(&until), Some(&first)) =
                (from.0.get(partition), until.0.get(partition), earliest.0.get(partition))
            else {
                return Err(loss::error(&Loss::PartitionGone { partition: partition.clone(), at }));
            };
            ranges.0.insert(partition.clone(), Range { from, until: until.min(at).max(from) });
            // Where a record from before the interval is left, none of it was deleted.
            if first > 0 && from <= first {
                doubtful.0.insert(partition.clone(), first);
            }
        }
        let times = source.times(&doubtful).await?;
        let mut lost: Vec<Doubt> = Vec::new();
        for (partition, &first) in &doubtful.0 {
            if !self.is_older(bronze, partition, first - 1, needed).await? {
                lost.push((partition.clone(), times.get(partition).copied().flatten()));
            }
        }
        match lost.is_empty() {
            true => Ok(ranges),
            false => Err(expired(&spec, &self.interval, slack, &lost)),
        }
    }

    /// Whether bronze shows that a record which its topic has deleted is older than `needed`.
    async fn is_older(&mut self, bronze: &str, at: &Partition, offset: i64, needed: DateTime<Utc>) -> Result<bool> {
        if !self.parts.transform.passes(bronze, column::TIMESTAMP) {
            return Ok(false);
        }
        let place = crate::transform::Coordinates { topic: at.topic.clone(), partition: at.partition, offset };
        let groups =
            super::records::place_rows(std::iter::once(&place), [column::TOPIC, column::PARTITION, column::OFFSET])?;
        let rows = self.table(bronze)?.read_newest(&[column::TIMESTAMP.to_string()], Some(&groups)).await?;
        let is_older = |batch: &RecordBatch| {
            let times = batch.column(0).as_primitive_opt::<TimestampMicrosecondType>();
            times.is_some_and(|times| times.iter().all(|at| at.is_some_and(|at| at < needed.timestamp_micros())))
        };
        Ok(rows.iter().any(|batch| batch.num_rows() > 0)
            && rows.iter().filter(|batch| batch.num_rows() > 0).all(is_older))
    }
}

/// Whether a topic is one of those that the file names: a position in others is kept for the day they come back.
fn selects(spec: &PipelineSpec, source: &str, topic: &str) -> bool {
    let kind = spec.sources.get(source).map(|source| &source.kind);
    match kind {
        Some(SourceKind::Kafka(KafkaSpec { topics: TopicSelection::Names(names), .. })) => {
            names.iter().any(|name| name == topic)
        }
        Some(SourceKind::Kafka(KafkaSpec { topics: TopicSelection::Pattern(pattern), .. })) => {
            regex::Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(topic))
        }
        _ => true,
    }
}

/// The error that says what is gone, and since when everything is there.
fn expired(spec: &PipelineSpec, interval: &Interval, slack: TimeDelta, lost: &[Doubt]) -> Error {
    let show = |at: DateTime<Utc>| at.with_timezone(&spec.timezone).to_rfc3339_opts(SecondsFormat::Secs, true);
    // The last of the partitions to begin decides.
    let worst = lost.iter().max_by_key(|(_, first)| first.unwrap_or(DateTime::<Utc>::MAX_UTC));
    let (partition, first) = worst.map_or_else(|| ("-".to_string(), None), |(at, first)| (at.to_string(), *first));
    let what = match first {
        Some(first) => format!("the first record left in {partition} is of {}", show(first)),
        None => format!("no record is left in {partition}"),
    };
    let text = format!("Kafka no longer has all records of {}: {what}", interval.label(spec.timezone));
    let error = Error::new(ErrorKind::OffsetsLost, text)
        .coded(Code::Expired)
        .with("needed from", show(interval.start - slack))
        .with("partitions affected", lost.len())
        .help("nothing was read or written");
    let error = match first {
        Some(first) => {
            let from = first + slack;
            let date = from.with_timezone(&spec.timezone).date_naive();
            let day = if midnight(date, spec.timezone) >= from { date } else { date.succ_opt().unwrap_or(date) };
            error.help(format!("the first day that it has whole, with that slack, is {day}"))
        }
        None => error,
    };
    error.help("what bronze has of it can be derived again: leave out --source kafka")
}
