//! Apache Kafka. This folder is the only place that names the client library.
//!
//! Two clients: one for questions (cheap to open and to close; an idle run needs no more) and one that reads, made when
//! the first range is read and kept assigned, so that the next batch is fetched while this one is written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use chrono::{DateTime, Utc};

use self::client::Admin;
pub use self::client::share_questions;
use self::reader::Reader;
use super::loss::{self, Now};
use super::{Bounded, Limits, Read, Source, blocking};
use crate::config::spec::{KafkaSpec, OnDataLoss, StartPosition, TopicSelection};
use crate::error::{ErrorKind, Result};
use crate::model::lag::{Retention, Times};
use crate::model::loss::Loss;
use crate::model::offset::{Incarnations, OffsetRanges, Offsets, Partition};

mod client;
mod peek;
mod reader;
mod topic_id;

/// How long an unreachable broker is tried, unless a test has less time.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long the list of partitions and the ids of topics are believed: `end` and `earliest` of one batch ask once.
const FRESH: Duration = Duration::from_secs(1);

/// How often, and with which pauses, one asks again for a partition that is said to be gone: a broker that has just
/// started may not know its topics yet, and a pipeline must neither stop nor go on because of that.
const DOUBTS: u32 = 4;
const DOUBT: Duration = Duration::from_millis(500);

/// How long a run waits for the consumer group when it has read nothing, and so has no consumer at hand.
const ACKNOWLEDGE: Duration = Duration::from_secs(3);

/// How often a batch is bounded or read again when its topics changed while it was read.
const CHANGES: u32 = 3;

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
        let state = State::new(spec, patience);
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
        self.with(|state| {
            state.require_topics(&Offsets::default())?;
            match state.spec.start {
                StartPosition::Earliest => state.ask(Admin::earliest),
                StartPosition::Latest => state.ask(Admin::end),
                StartPosition::At(time) => state.ask(|admin, all| admin.at(all, time.timestamp_millis())),
            }
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

    async fn times(&mut self, at: &Offsets) -> Result<Times> {
        let at = at.clone();
        self.with(move |state| peek::times(&state.spec, &at, state.patience)).await
    }

    async fn retention(&mut self) -> Result<BTreeMap<String, Retention>> {
        self.with(|state| {
            let topics: BTreeSet<String> = state.partitions()?.into_iter().map(|partition| partition.topic).collect();
            Ok(peek::retention(&state.spec, &topics, state.patience))
        })
        .await
    }

    async fn incarnations(&mut self) -> Result<Incarnations> {
        self.with(State::incarnations).await
    }

    async fn bound(&mut self, from: &Offsets, known: &Incarnations, end: &Offsets, limits: Limits) -> Result<Bounded> {
        let (from, known, end) = (from.clone(), known.clone(), end.clone());
        self.with(move |state| state.bound(&from, &known, &end, limits)).await
    }

    async fn read(&mut self, ranges: &OffsetRanges, known: &Incarnations) -> Result<Read> {
        let (ranges, known) = (ranges.clone(), known.clone());
        self.with(move |state| state.read(&ranges, &known)).await
    }

    async fn acknowledge(&mut self, offsets: &Offsets) {
        let offsets = offsets.clone();
        let commit = self.with(move |state| match &state.reader {
            Some(reader) => reader.commit(&offsets),
            None => peek::commit(&state.spec, &offsets),
        });
        // A group that nobody coordinates must not hold up a run.
        let outcome = tokio::time::timeout(ACKNOWLEDGE, commit).await;
        if let Some(error) =
            outcome.map_or_else(|late| Some(late.to_string()), |done| done.err().map(|e| e.to_string()))
        {
            tracing::debug!(error, "offsets were not copied to the consumer group");
        }
    }

    async fn rest(&mut self) {
        // Held by an acknowledgement that nobody waits for any more: then there is no reader, and nobody waits here either.
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        state.kept = None;
        if let Some(reader) = state.reader.take() {
            // A consumer takes its time to close; nobody has to wait for it.
            drop(tokio::task::spawn_blocking(move || drop(reader)));
        }
    }
}

struct State {
    spec: KafkaSpec,
    patience: Duration,
    admin: Option<Admin>,
    reader: Option<Reader>,
    partitions: Option<(Instant, Vec<Partition>)>,
    incarnations: Option<(Instant, Incarnations)>,
    /// What `bound` read ahead, for the `read` that follows.
    kept: Option<(OffsetRanges, Vec<RecordBatch>)>,
    /// Losses that were logged already; a partition that is gone stays gone.
    told: Vec<Loss>,
    /// Partitions whose end was pinned before they lost records: where they end is asked anew.
    cut: BTreeSet<Partition>,
}

impl State {
    fn new(spec: KafkaSpec, patience: Duration) -> Self {
        State {
            spec,
            patience,
            admin: None,
            reader: None,
            partitions: None,
            incarnations: None,
            kept: None,
            told: Vec::new(),
            cut: BTreeSet::new(),
        }
    }

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

    /// Fails when a selected topic does not exist, unless `from` stands in it: then its end is a loss.
    fn require_topics(&mut self, from: &Offsets) -> Result<()> {
        let found = self.partitions()?;
        self.admin()?.require(&found, from)
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

    /// Which topics there are, as of a moment ago.
    fn incarnations(&mut self) -> Result<Incarnations> {
        match &self.incarnations {
            Some((at, incarnations)) if at.elapsed() < FRESH => Ok(incarnations.clone()),
            _ => self.incarnations_now(),
        }
    }

    fn incarnations_now(&mut self) -> Result<Incarnations> {
        let topics: BTreeSet<String> = self.partitions()?.into_iter().map(|partition| partition.topic).collect();
        let topics: Vec<String> = topics.into_iter().collect();
        let incarnations = self.admin()?.incarnations(&topics)?;
        self.incarnations = Some((Instant::now(), incarnations.clone()));
        Ok(incarnations)
    }

    /// Forgets what was believed for a while.
    fn forget(&mut self) {
        (self.partitions, self.incarnations) = (None, None);
    }

    /// What there is now; `end` is where partitions end, if that was pinned.
    fn now(&mut self, end: Option<&Offsets>) -> Result<Now> {
        let incarnations = self.incarnations()?;
        let earliest = self.ask(Admin::earliest)?;
        let mut now = Now { earliest, end: Offsets::default(), incarnations };
        now.end = match end {
            Some(end) if self.cut.is_empty() => end.clone(),
            Some(end) => {
                let mut end = end.clone();
                for (partition, is) in self.ask(Admin::end)?.0 {
                    if let Some(pinned) = end.0.get_mut(&partition).filter(|_| self.cut.contains(&partition)) {
                        *pinned = is.min(*pinned);
                    }
                }
                end
            }
            None => self.ask(Admin::end)?,
        };
        Ok(now)
    }

    /// What `judge` finds lost. What is said to be gone is asked for again before it is believed.
    fn judge<T>(
        &mut self,
        end: Option<&Offsets>,
        judge: impl Fn(&Now) -> (T, Vec<Loss>),
    ) -> Result<(Now, T, Vec<Loss>)> {
        let mut doubts = 0;
        loop {
            let now = self.now(end)?;
            let (found, losses) = judge(&now);
            let is_news = losses.iter().any(|loss| loss.is_gone() && !self.told.contains(loss));
            if !is_news || doubts == DOUBTS {
                self.accept(&losses)?;
                return Ok((now, found, losses));
            }
            doubts += 1;
            std::thread::sleep(DOUBT);
            self.forget();
        }
    }

    /// Fails because of a loss, unless the user accepts losses: then they are logged.
    fn accept(&mut self, losses: &[Loss]) -> Result<()> {
        let Some(first) = losses.first() else {
            self.told.clear();
            return Ok(());
        };
        // What was fetched ahead belongs to another position, perhaps to another topic.
        self.reader = None;
        if self.spec.on_data_loss == OnDataLoss::Fail {
            return Err(loss::error(first).with("partitions affected", losses.len()));
        }
        for lost in losses.iter().filter(|lost| !self.told.contains(lost)) {
            tracing::warn!("{}: going on without, as `on_data_loss: skip` says", lost.message());
        }
        self.told = losses.to_vec();
        self.cut.extend(losses.iter().map(|lost| lost.partition().clone()));
        Ok(())
    }

    fn bound(&mut self, from: &Offsets, known: &Incarnations, end: &Offsets, limits: Limits) -> Result<Bounded> {
        self.kept = None;
        let selects = self.admin()?.selects()?;
        // A topic that the user took out of the file is not lost; its position is kept for the day it comes back.
        let from = &Offsets(from.0.iter().filter(|(p, _)| selects(&p.topic)).map(|(p, &at)| (p.clone(), at)).collect());
        self.require_topics(from)?;
        for _ in 0..CHANGES {
            let (now, from, lost) = self.judge(Some(end), |now| {
                let losses = loss::find(from, known, now);
                (loss::skip(from, now, &losses), losses)
            })?;
            let mut ranges = from.ranges_to(&now.end);
            for partition in lost.iter().map(Loss::partition) {
                // An end that was pinned before the topic was made again may not name it; its position moves all the same.
                if let Some(&at) = from.0.get(partition) {
                    ranges.0.entry(partition.clone()).or_insert((at, at).into());
                }
            }
            let ranges = ranges.prorate(limits.max_rows.max(1));
            let Some((ranges, batches)) = self.fetch(&ranges, limits.max_bytes, &now)? else { continue };
            self.kept = Some((ranges.clone(), batches));
            return Ok(Bounded { ranges, lost, incarnations: now.incarnations, is_refused: false });
        }
        Err(self.restless())
    }

    fn read(&mut self, ranges: &OffsetRanges, known: &Incarnations) -> Result<Read> {
        if let Some((_, batches)) = self.kept.take_if(|(kept, _)| kept == ranges) {
            return Ok(batches.into());
        }
        // A replay: the plan is fixed, so all that can be wrong is that the records are gone.
        let mut wanted = ranges.clone();
        wanted.0.retain(|_, range| !range.is_empty());
        for _ in 0..CHANGES {
            self.forget();
            self.include(wanted.0.keys())?;
            let (now, (left, lost), _) = self.judge(None, |now| {
                let (left, lost) = loss::salvage(&wanted, known, now);
                let losses = lost.iter().map(|lost| lost.loss.clone()).collect();
                ((left, lost), losses)
            })?;
            let Some((_, batches)) = self.fetch(&left, u64::MAX, &now)? else { continue };
            return Ok(Read { batches, lost });
        }
        Err(self.restless())
    }

    fn restless(&self) -> crate::error::Error {
        crate::error::Error::new(
            ErrorKind::Unavailable,
            "topics were deleted and created again faster than they could be read",
        )
        .help("nothing was lost: the next start goes on where this one stopped")
    }

    /// The records of `ranges`, which were found in the topics of `now`; `None` when those topics lost records or became
    /// others meanwhile, so that one has to look again.
    fn fetch(
        &mut self,
        ranges: &OffsetRanges,
        max_bytes: u64,
        now: &Now,
    ) -> Result<Option<(OffsetRanges, Vec<RecordBatch>)>> {
        if ranges.is_empty() {
            return Ok(Some((ranges.clone(), Vec::new())));
        }
        // A reader that failed, or stands elsewhere (a replay, a new partition), is dropped.
        let mut reader = match self.reader.take_if(|reader| reader.continues(ranges)) {
            Some(reader) => reader,
            None => Reader::new(&self.spec, ranges, self.patience)?,
        };
        self.reader = None;
        let read = match reader.read(self.admin()?, ranges, max_bytes) {
            Err(error) if error.kind() == ErrorKind::OffsetsLost => {
                tracing::debug!(%error, "looking again");
                self.forget();
                return Ok(None);
            }
            read => read?,
        };
        // Asked after the records came: they are the records of these topics, and of no later ones.
        let after = self.incarnations_now()?;
        let mut topics = ranges.0.iter().filter(|(_, range)| !range.is_empty()).map(|(partition, _)| &partition.topic);
        let has_changed = topics.any(|topic| {
            now.incarnations.get(topic).zip(after.get(topic)).is_some_and(|(before, after)| before != after)
        });
        if has_changed {
            self.forget();
            return Ok(None);
        }
        self.reader = Some(reader);
        Ok(Some(read))
    }
}
