//! Apache Kafka. This folder is the only place that names the client library.
//!
//! Two clients: one for questions (cheap to open and to close; an idle run needs no more) and one that reads, made when
//! the first range is read and kept assigned, so that the next batch is fetched while this one is written.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use chrono::{DateTime, Utc};

use self::client::Admin;
use self::reader::Reader;
use super::{Limits, Source, blocking, loss};
use crate::config::spec::{KafkaSpec, OnDataLoss, StartPosition, TopicSelection};
use crate::error::Result;
use crate::model::offset::{OffsetRanges, Offsets, Partition};

mod client;
mod reader;

/// How long an unreachable broker is tried, unless a test has less time.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long the list of partitions is believed: `end` and `earliest` of one batch ask once.
const FRESH: Duration = Duration::from_secs(1);

/// Topics of one cluster as a source.
pub struct KafkaSource {
    state: Arc<Mutex<State>>,
    description: String,
}

impl KafkaSource {
    /// The topics of `spec`. Nothing is connected yet; `patience` is how long brokers are tried before a failure.
    pub fn new(spec: KafkaSpec, patience: Duration) -> Self {
        let topics = match &spec.topics {
            TopicSelection::Names(names) => names.join(","),
            TopicSelection::Pattern(pattern) => format!("/{pattern}/"),
        };
        let state = State { spec, patience, admin: None, reader: None, partitions: None, kept: None };
        KafkaSource { state: Arc::new(Mutex::new(state)), description: format!("kafka[{topics}]") }
    }

    async fn with<T: Send + 'static>(&self, work: impl FnOnce(&mut State) -> Result<T> + Send + 'static) -> Result<T> {
        let state = self.state.clone();
        blocking(move || work(&mut lock(&state))).await
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Source for KafkaSource {
    fn description(&self) -> String {
        self.description.clone()
    }

    async fn start(&mut self) -> Result<Offsets> {
        self.with(|state| match state.spec.start {
            StartPosition::Earliest => state.ask(Admin::earliest),
            StartPosition::Latest => state.ask(Admin::end),
            StartPosition::At(time) => state.ask(|admin, all| admin.at(all, time.timestamp_millis())),
        })
        .await
    }

    async fn end(&mut self) -> Result<Offsets> {
        self.with(|state| state.ask(Admin::end)).await
    }

    async fn earliest(&mut self) -> Result<Offsets> {
        self.with(|state| state.ask(Admin::earliest)).await
    }

    async fn at(&mut self, time: DateTime<Utc>) -> Result<Offsets> {
        // Brokers know milliseconds: a time between two of them means the later one.
        let millis = time.timestamp_micros().saturating_add(999).div_euclid(1000);
        self.with(move |state| state.ask(|admin, all| admin.at(all, millis))).await
    }

    async fn bound(&mut self, from: &Offsets, end: &Offsets, limits: Limits) -> Result<OffsetRanges> {
        let (from, end) = (from.clone(), end.clone());
        self.with(move |state| state.bound(&from, &end, limits)).await
    }

    async fn read(&mut self, ranges: &OffsetRanges) -> Result<Vec<RecordBatch>> {
        let ranges = ranges.clone();
        self.with(move |state| state.read(&ranges)).await
    }

    async fn acknowledge(&mut self, offsets: &Offsets) {
        let offsets = offsets.clone();
        let commit = self.with(move |state| {
            if let Some(reader) = &state.reader {
                reader.commit(&offsets);
            }
            Ok(())
        });
        if let Err(error) = commit.await {
            tracing::debug!(%error, "offsets were not copied to the consumer group");
        }
    }
}

struct State {
    spec: KafkaSpec,
    patience: Duration,
    admin: Option<Admin>,
    reader: Option<Reader>,
    partitions: Option<(Instant, Vec<Partition>)>,
    /// What `bound` read ahead, for the `read` that follows.
    kept: Option<(OffsetRanges, Vec<RecordBatch>)>,
}

impl State {
    /// The client for questions, connected at the first one.
    fn admin(&mut self) -> Result<&Admin> {
        let admin = match self.admin.take() {
            Some(admin) => admin,
            None => Admin::new(&self.spec, self.patience)?,
        };
        Ok(self.admin.insert(admin))
    }

    fn partitions(&mut self) -> Result<Vec<Partition>> {
        if let Some((at, partitions)) = &self.partitions
            && at.elapsed() < FRESH
        {
            return Ok(partitions.clone());
        }
        let partitions = self.admin()?.partitions()?;
        self.partitions = Some((Instant::now(), partitions.clone()));
        Ok(partitions)
    }

    /// Asks about these partitions too, for a while: a plan may name a topic that the pipeline no longer selects.
    fn include<'a>(&mut self, planned: impl Iterator<Item = &'a Partition>) -> Result<()> {
        let mut partitions = self.partitions()?;
        let unknown: Vec<Partition> = planned.filter(|partition| !partitions.contains(partition)).cloned().collect();
        for partition in unknown {
            if self.admin()?.exists(&partition)? {
                partitions.push(partition);
            }
        }
        self.partitions = Some((Instant::now(), partitions));
        Ok(())
    }

    fn ask(&mut self, question: impl FnOnce(&Admin, &[Partition]) -> Result<Offsets>) -> Result<Offsets> {
        let partitions = self.partitions()?;
        question(self.admin()?, &partitions)
    }

    /// `from` without what is lost, if the user accepts losses; `end` is the partitions' end, now or pinned.
    fn check(&mut self, from: &Offsets, end: &Offsets) -> Result<Offsets> {
        let earliest = self.ask(Admin::earliest)?;
        let losses = loss::find(from, &earliest, end);
        if self.spec.on_data_loss == OnDataLoss::Fail
            && let Some(lost) = losses.first()
        {
            return Err(lost.error().with("partitions affected", losses.len()));
        }
        for lost in &losses {
            tracing::warn!("{}: going on from the earliest record, as `on_data_loss: skip` says", lost.message());
        }
        Ok(loss::skip(from, &earliest, &losses))
    }

    fn bound(&mut self, from: &Offsets, end: &Offsets, limits: Limits) -> Result<OffsetRanges> {
        self.kept = None;
        let from = self.check(from, end)?;
        let ranges = from.ranges_to(end).prorate(limits.max_rows.max(1));
        let (ranges, batches) = self.fetch(&ranges, limits.max_bytes)?;
        self.kept = Some((ranges.clone(), batches));
        Ok(ranges)
    }

    fn read(&mut self, ranges: &OffsetRanges) -> Result<Vec<RecordBatch>> {
        if let Some((_, batches)) = self.kept.take_if(|(kept, _)| kept == ranges) {
            return Ok(batches);
        }
        // A replay: the plan is fixed, so all that can be wrong is that the records are gone.
        let mut wanted = ranges.clone();
        wanted.0.retain(|_, range| !range.is_empty());
        self.include(wanted.0.keys())?;
        let end = self.ask(Admin::end)?;
        let from = self.check(&loss::starts(&wanted), &end)?;
        let tails = Offsets(wanted.0.iter().map(|(partition, range)| (partition.clone(), range.until)).collect());
        let tails = self.check(&tails, &end)?;
        wanted = loss::restart(&wanted, &from);
        for (partition, range) in &mut wanted.0 {
            range.until = range.until.min(tails.0.get(partition).copied().unwrap_or(range.from)).max(range.from);
        }
        Ok(self.fetch(&wanted, u64::MAX)?.1)
    }

    fn fetch(&mut self, ranges: &OffsetRanges, max_bytes: u64) -> Result<(OffsetRanges, Vec<RecordBatch>)> {
        if ranges.is_empty() {
            return Ok((ranges.clone(), Vec::new()));
        }
        // A reader that failed, or stands elsewhere (a replay, a new partition), is dropped.
        let mut reader = match self.reader.take_if(|reader| reader.continues(ranges)) {
            Some(reader) => reader,
            None => Reader::new(&self.spec, ranges, self.patience)?,
        };
        self.reader = None;
        let read = reader.read(self.admin()?, ranges, max_bytes)?;
        self.reader = Some(reader);
        Ok(read)
    }
}
