//! The heart: observes, decides, and walks batches. Sees ports only.
//!
//! [`Runner::run`] is trigger × step × shutdown; [`Runner::step`] is one walk (`step.rs`). After any failure the runner
//! forgets what it knew: the next step observes storage again, so there is exactly one way to recover.

mod above;
pub mod backfill;
mod beside;
mod bronze;
mod claim;
pub mod clock;
pub mod event;
pub mod forget;
mod keeping;
pub mod letters;
mod maintain;
mod meaning;
pub mod rebuild;
mod refresh;
pub mod relocate;
mod shaping;
mod step;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::checkpoint::CheckpointLog;
use crate::checkpoint::states::States;
use crate::config::spec::PipelineSpec;
use crate::error::{Certainty, Code, Error, ErrorKind, Result};
use crate::fail;
use crate::model::batch::{BatchId, CommitRecord, FORMAT_VERSION, ForeignWrite, Owner, Start};
use crate::model::forget::Key;
use crate::model::inconsistency::Inconsistency;
use crate::model::note::Note;
use crate::model::offset::{Incarnations, Offsets};
use crate::model::recover::{self, Decision, Facts, TableFact};
use crate::model::trigger::{Trigger, next_tick};
use crate::source::Source;
use crate::table::{Lookup, Table};
use crate::transform::Transform;
use beside::Beside;
use clock::Clock;
use event::{Event, Next, Observer};
use keeping::Keeping;

pub use meaning::{meaning, recipe, remembered};
use refresh::Followed;
pub use shaping::remembering;

/// Name of a table's Delta application id: stable over restarts, new for every new checkpoint log.
pub fn app_id(pipeline_id: &str, table: &str) -> String {
    format!("tidegate:{pipeline_id}:{table}")
}

/// How often a step whose outcome is unknown is looked at again before the run gives up.
const MAX_LOOKS: u32 = 3;

/// The pause before whoever only looks looks again.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// Plans and commit records that are kept, and how many batches pass between clean-ups.
const KEEP_BATCHES: usize = 100;
const PRUNE_EVERY: BatchId = 50;

/// What a runner is made of: components, never settings (those are in `spec`).
pub struct Parts {
    /// The pipeline.
    pub spec: PipelineSpec,
    /// Identity of the log.
    pub pipeline_id: String,
    /// This process.
    pub owner: Owner,
    /// Adapters by source name.
    pub sources: BTreeMap<String, Box<dyn Source>>,
    /// Rows in, rows out.
    pub transform: Arc<dyn Transform>,
    /// In graph order, dead letters last.
    pub tables: Vec<Box<dyn Table>>,
    /// By lookup name.
    pub lookups: BTreeMap<String, Box<dyn Lookup>>,
    /// The log.
    pub log: Box<dyn CheckpointLog>,
    /// What tables remember between batches.
    pub states: States,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Who listens.
    pub observer: Box<dyn Observer>,
}

/// Where the pipeline stands; valid from one observation to the next failure.
struct Position {
    decision: Decision,
    /// The next offset to read, by source.
    offsets: BTreeMap<String, Offsets>,
    /// Which topics the offsets belong to, by source.
    incarnations: BTreeMap<String, Incarnations>,
    /// The newest commit record.
    last: Option<CommitRecord>,
    /// Last batch applied, by table.
    applied: BTreeMap<String, TableFact>,
}

/// What the log did while the facts were gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Log {
    StoodStill,
    KeptMoving,
}

/// The next offset to read and the topics that it belongs to, by source.
type Standing = (BTreeMap<String, Offsets>, BTreeMap<String, Incarnations>);

/// Runs one pipeline.
pub struct Runner {
    parts: Parts,
    position: Option<Position>,
    /// Which table is looked after first.
    turn: usize,
    /// The newest commit of others that this run has told of, by table.
    told: BTreeMap<String, i64>,
    beside: Beside,
    /// What tables remember, while the position is known.
    keeping: Option<Keeping>,
    /// Whatever is open is closed by the next batch.
    flush: bool,
    /// Whatever is open is closed once everything is read.
    flush_at_end: bool,
    /// Tables whose meaning may have changed, because they are computed again.
    forgive: Vec<String>,
    /// Tables that a pending batch passes by, because they are computed again right after it.
    left_out: Vec<String>,
    /// The key that this process forgets.
    forgetting: Option<Key>,
    /// Refresh tables that this run keeps by what changes upstream.
    followed: BTreeMap<String, Followed>,
}

/// What one step did.
#[derive(Debug)]
pub enum Stepped {
    /// Nothing to read.
    Idle,
    /// A batch is done.
    Ran(Box<CommitRecord>),
}

/// Outcome of a run.
#[derive(Debug, Default)]
pub struct Summary {
    /// Finished batches, oldest first; only the last [`KEEP_BATCHES`] of a continuous run.
    pub batches: Vec<CommitRecord>,
    /// How many batches there were in all.
    pub batch_count: u64,
    /// Rows read.
    pub input_rows: u64,
    /// A stop was asked for before the trigger was satisfied.
    pub interrupted: bool,
}

impl Summary {
    fn add(&mut self, record: CommitRecord) {
        self.batch_count += 1;
        self.input_rows += record.input_rows;
        if self.batches.len() == KEEP_BATCHES {
            self.batches.remove(0);
        }
        self.batches.push(record);
    }
}

impl Runner {
    /// A runner that has not looked at anything yet.
    pub fn new(parts: Parts) -> Self {
        Runner {
            parts,
            position: None,
            turn: 0,
            told: BTreeMap::new(),
            beside: Beside::default(),
            keeping: None,
            flush: false,
            flush_at_end: false,
            forgive: Vec::new(),
            left_out: Vec::new(),
            forgetting: None,
            followed: BTreeMap::new(),
        }
    }

    /// The next run that reads everything then closes what is still open.
    pub fn flush_at_end(&mut self) {
        self.flush_at_end = true;
    }

    /// Runs until the trigger is satisfied or `stop` turns true; a batch that was begun is always finished.
    pub async fn run(&mut self, trigger: &Trigger, stop: watch::Receiver<bool>) -> Result<Summary> {
        let mut summary = Summary::default();
        match trigger {
            Trigger::Once => self.run_once(&mut summary, &stop).await?,
            Trigger::AvailableNow => self.run_available(&mut summary, &stop).await?,
            Trigger::ProcessingTime(interval) => self.run_ticks(*interval, &mut summary, stop).await?,
        }
        Ok(summary)
    }

    /// Finishes a pending batch, then runs one.
    async fn run_once(&mut self, summary: &mut Summary, stop: &watch::Receiver<bool>) -> Result<()> {
        self.finish_pending(summary).await?;
        if *stop.borrow() {
            summary.interrupted = true;
            return Ok(());
        }
        let ends = self.ends().await?;
        // The wait for them may have been long.
        if *stop.borrow() {
            summary.interrupted = true;
            return Ok(());
        }
        if let Stepped::Ran(record) = self.step(&ends).await? {
            self.maintain(&record, Duration::ZERO).await;
            summary.add(*record);
        }
        Ok(())
    }

    /// Finishes a pending batch, pins the end, then runs batches until it is reached.
    async fn run_available(&mut self, summary: &mut Summary, stop: &watch::Receiver<bool>) -> Result<()> {
        self.finish_pending(summary).await?;
        self.flush = false;
        let ends = self.ends().await?;
        loop {
            if *stop.borrow() {
                summary.interrupted = true;
                return Ok(());
            }
            match self.step(&ends).await? {
                Stepped::Ran(record) => {
                    self.maintain(&record, Duration::ZERO).await;
                    summary.add(*record);
                }
                // What one table closes may be what another one waits for: again, until nothing is open.
                Stepped::Idle if std::mem::take(&mut self.flush_at_end) => self.flush = true,
                Stepped::Idle => {
                    self.flush = false;
                    return Ok(());
                }
            }
        }
    }

    /// Runs a batch at each tick that finds data. An overrun starts the next batch at once; missed ticks are not queued.
    async fn run_ticks(
        &mut self,
        interval: Duration,
        summary: &mut Summary,
        mut stop: watch::Receiver<bool>,
    ) -> Result<()> {
        self.finish_pending(summary).await?;
        loop {
            if *stop.borrow() {
                return Ok(());
            }
            let started = self.parts.clock.now();
            let ends = self.ends().await?;
            if *stop.borrow() {
                return Ok(());
            }
            if let Stepped::Ran(record) = self.step(&ends).await? {
                if !*stop.borrow() {
                    let idle = clock::until(self.parts.clock.now(), next_tick(started, interval));
                    self.maintain(&record, idle).await;
                }
                summary.add(*record);
            }
            let pause = clock::until(self.parts.clock.now(), next_tick(started, interval));
            if pause.is_zero() {
                continue;
            }
            tokio::select! {
                _ = tokio::time::sleep(pause) => {}
                changed = stop.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    }

    /// Does again whatever batch has a plan and no commit record, and says what else was begun.
    async fn finish_pending(&mut self, summary: &mut Summary) -> Result<()> {
        self.ensure_observed().await?;
        let pending = matches!(self.position, Some(Position { decision: Decision::Replay(_), .. }));
        if pending && let Stepped::Ran(record) = self.step(&BTreeMap::new()).await? {
            summary.add(*record);
        }
        self.tell_owed_files().await
    }

    /// One walk, from observation to commit record. Looks again after a failure that may have been applied.
    pub async fn step(&mut self, ends: &BTreeMap<String, Offsets>) -> Result<Stepped> {
        let mut looks = 0;
        loop {
            self.ensure_observed().await?;
            self.watch_headroom(ends).await;
            match self.walk(ends).await {
                Ok(stepped) => {
                    self.acknowledge().await;
                    return Ok(stepped);
                }
                Err(error) => {
                    self.position = None;
                    self.keeping = None;
                    looks += 1;
                    if error.certainty() == Certainty::NotApplied || looks >= MAX_LOOKS {
                        return Err(error);
                    }
                    self.emit(Event::Retrying { error: error.to_string() });
                }
            }
        }
    }

    /// The current end of every source.
    pub async fn ends(&mut self) -> Result<BTreeMap<String, Offsets>> {
        let mut ends = BTreeMap::new();
        for (name, source) in &mut self.parts.sources {
            ends.insert(name.clone(), source.end().await?);
        }
        Ok(ends)
    }

    /// Reads the log and every table, decides, and halts where going on could break the promise.
    async fn ensure_observed(&mut self) -> Result<()> {
        if self.position.is_some() {
            return Ok(());
        }
        fail::hit(fail::OBSERVE)?;
        // Whatever happened meanwhile: groups are computed from all of their rows before they follow anything again.
        self.followed.clear();
        let (facts, log) = self.gather().await?;
        let decision = recover::recover(&facts);
        let next = match &decision {
            // Facts from different moments; going on is safe all the same, for whoever comes second loses at its plan.
            Decision::Halt(_) if log == Log::KeptMoving => return Err(self.overtaken()),
            Decision::Halt(why) => return Err(halted(why, &*self.parts.log)),
            Decision::Begin => Next::Begin,
            Decision::Plan { batch } => Next::Continue { after: batch - 1 },
            Decision::Replay(plan) => Next::Replay { batch: plan.batch },
        };
        for (table, fact) in &facts.tables {
            self.tell_foreign(table, &fact.foreign);
        }
        self.close_earlier(&decision, facts.plan.as_ref(), facts.commit.as_ref()).await?;
        let (offsets, incarnations) = self.first_offsets(facts.commit.as_ref()).await?;
        self.position = Some(Position { decision, offsets, incarnations, last: facts.commit, applied: facts.tables });
        self.emit(Event::Recovered { next });
        Ok(())
    }

    /// The facts as they are now. Facts from different moments that look like damage are none: looked at again, and
    /// [`ErrorKind::Busy`] where the log never stands still.
    pub async fn observe(&mut self) -> Result<Facts> {
        for _ in 0..MAX_LOOKS {
            let (facts, log) = self.gather().await?;
            if log == Log::StoodStill || !matches!(recover::recover(&facts), Decision::Halt(_)) {
                return Ok(facts);
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        Err(self.overtaken())
    }

    /// The facts that recovery decides on. Another runner may be at work while they are gathered, and a log from before
    /// its batch beside tables from after it would look like damage: if the log moved, everything is looked at again.
    async fn gather(&mut self) -> Result<(Facts, Log)> {
        let mut facts = self.look().await?;
        for _ in 0..MAX_LOOKS {
            let head = self.parts.log.head().await?;
            if (&head.plan, &head.commit) == (&facts.plan, &facts.commit) {
                return Ok((facts, Log::StoodStill));
            }
            facts = self.look().await?;
        }
        Ok((facts, Log::KeptMoving))
    }

    /// The log first, then the tables: beside a look at the log, a table could be read before a batch and the log after
    /// it, and no second look at the log would tell.
    async fn look(&mut self) -> Result<Facts> {
        let parts = &mut self.parts;
        let head = parts.log.head().await?;
        let mut meaning = meaning(&parts.spec);
        for table in &self.forgive {
            if let Some(was) = head.plan.as_ref().and_then(|plan| plan.meaning.get(table)) {
                meaning.insert(table.clone(), was.clone());
            }
        }
        let pipeline_id = parts.pipeline_id.clone();
        let done = head.commit.as_ref().map(|record| record.batch);
        let pending = head.plan.as_ref().map(|plan| plan.batch).filter(|batch| done.is_none_or(|done| done < *batch));
        let tables = parts.tables.iter_mut().map(|table| {
            let name = table.definition().name.clone();
            let app_id = app_id(&pipeline_id, &name);
            async move {
                let state = table.observe(&app_id).await?;
                let note = match pending.filter(|batch| state.applied == Some(*batch)) {
                    Some(batch) => table.note(&app_id, batch).await?.and_then(|note| Note::read(&note)),
                    None => None,
                };
                let made_by = state.made_by.map(|maker| (maker.pipeline, maker.pipeline_id));
                let fact = TableFact {
                    version: state.version,
                    applied: state.applied,
                    memory: state.memory,
                    memory_harmed: state.memory_harmed,
                    made_by,
                    restored: state.restored,
                    note,
                    foreign: state.foreign,
                };
                Ok::<_, Error>((name, fact))
            }
        });
        // All are waited for, also when one fails: dropped halfway, the reader of a log panics.
        let tables = futures::future::join_all(tables).await;
        let tables = tables.into_iter().collect::<Result<BTreeMap<_, _>>>()?;
        Ok(Facts {
            pipeline: parts.spec.name.clone(),
            pipeline_id,
            meaning,
            recipe: recipe(&parts.spec),
            plan: head.plan,
            commit: head.commit,
            tables,
        })
    }

    fn overtaken(&self) -> Error {
        let text = format!("another runner works on pipeline `{}`: its log moved at every look", self.parts.spec.name);
        Error::new(ErrorKind::Busy, text)
            .with("checkpoint", self.parts.log.location())
            .help("this runner wrote nothing; stop one of the two, or let the other finish and run again")
    }

    /// Where each source continues: after the last commit, or where a first run starts. A first position is recorded
    /// before it is used, so that `latest` means the same moment whatever crashes.
    async fn first_offsets(&mut self, last: Option<&CommitRecord>) -> Result<Standing> {
        // A source that is not in the file now may come back: its position is kept.
        let mut offsets = last.map(|record| record.offsets.clone()).unwrap_or_default();
        let mut incarnations = last.map(|record| record.incarnations.clone()).unwrap_or_default();
        for (name, source) in &mut self.parts.sources {
            let known = last.and_then(|record| record.offsets.get(name));
            if known.is_some() {
                continue;
            }
            let start = match self.parts.log.start(name).await? {
                Some(start) => start,
                None => {
                    // Asked first: a topic that is made again in between is noticed, not mistaken for the other.
                    let incarnations = source.incarnations().await?;
                    let offsets = source.start().await?;
                    fail::hit(fail::FIRST_OFFSETS)?;
                    let start = Start { version: FORMAT_VERSION, source: Some(name.clone()), offsets, incarnations };
                    self.parts.log.record_start(name, &start).await?
                }
            };
            offsets.insert(name.clone(), start.offsets);
            incarnations.insert(name.clone(), start.incarnations);
        }
        Ok((offsets, incarnations))
    }

    /// Rows that others changed in a table are never passed over in silence, nor told twice in one run.
    fn tell_foreign(&mut self, table: &str, writes: &[ForeignWrite]) {
        let told = self.told.entry(table.to_string()).or_insert(-1);
        let writes: Vec<ForeignWrite> = writes.iter().filter(|write| write.version > *told).cloned().collect();
        let Some(newest) = writes.iter().map(|write| write.version).max() else { return };
        *told = newest;
        self.emit(Event::ForeignWrites { table: table.to_string(), writes });
    }

    fn emit(&mut self, event: Event) {
        self.parts.observer.on_event(&event);
    }
}

/// The code of a reason to halt.
pub fn code(why: &Inconsistency) -> Code {
    use Inconsistency as Why;
    match why {
        Why::LogGap { .. } => Code::LogGap,
        Why::OtherPipeline { .. } => Code::OtherPipeline,
        Why::CheckpointLost { .. } => Code::CheckpointLost,
        Why::ForeignTable { .. } => Code::ForeignTable,
        Why::TableAhead { .. } => Code::TableAhead,
        Why::TableReplaced { .. } => Code::TableReplaced,
        Why::TableBehind { .. } => Code::TableBehind,
        Why::TableLost { .. } => Code::TableLost,
        Why::MemoryLost { .. } => Code::MemoryLost,
        Why::TableRestored { .. } => Code::TableRestored,
        Why::OtherPlan { .. } => Code::OtherPlan,
        Why::ChangedMidway { .. } => Code::ChangedMidway,
        Why::MeaningChanged { .. } => Code::MeaningChanged,
    }
}

/// The error of a pipeline that must not go on.
pub fn halted(why: &Inconsistency, log: &dyn CheckpointLog) -> Error {
    let error = Error::new(ErrorKind::Config, why.to_string())
        .coded(code(why))
        .with("checkpoint", log.location())
        .help("nothing was read or written");
    why.help().into_iter().fold(error, Error::help)
}
