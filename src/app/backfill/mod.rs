//! `tidegate backfill`: intervals of event time derived again, one after the other or several at once.

mod range;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow::datatypes::DataType;
use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt;
use tokio::sync::watch;
use tracing::warn;

pub(super) use self::range::typed;
use self::report::{Progress, Status};
use super::compose::{self, Checked};
use super::output::file_argument;
use super::{Failure, Outcome, run};
use crate::checkpoint::CheckpointLog;
use crate::checkpoint::backfills::Backfills;
use crate::checkpoint::lock;
use crate::cli::{BackfillArgs, BackfillMode, BackfillSource, Global, HistoryArgs, PipelineArgs};
use crate::config::spec::PipelineSpec;
use crate::error::{Error, ErrorKind, Result};
use crate::model::backfill::{Decision, Gap, IntervalHead, Mode, Request, gaps};
use crate::model::batch::Owner;
use crate::model::inconsistency::Inconsistency;
use crate::model::interval::{Interval, midnight};
use crate::model::recover::{Decision as Live, recover};
use crate::runner::backfill::{Backfill, Done, Parts, Turns, choose, choose_from_topics, lineage};
use crate::runner::clock::{Clock, SystemClock};
use crate::runner::event::Event;
use crate::runner::{Runner, halted, recipe};
use crate::storage;
use crate::table::{self, Maker, Table};
use crate::transform::Transform;
use crate::transform::compile::CompiledPipeline;
use crate::transform::definitions::table_definitions;
use crate::units;

/// A live run moves on while it is looked at: what looks like damage is looked at again.
const LOOKS: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// What every interval of the command shares.
struct Shop {
    spec: Arc<PipelineSpec>,
    compiled: Arc<CompiledPipeline>,
    pipeline_id: String,
    owner: Owner,
    backfills: Backfills,
    turns: Arc<Turns>,
    reads_topics: bool,
}

pub(super) async fn backfill(global: &Global, args: &BackfillArgs) -> Result<Outcome, Failure> {
    let started = Instant::now();
    let stop = run::stop_signal()?;
    let checked = compose::check(global, &args.pipeline.file).await?;
    let (spec, compiled) = (Arc::new(checked.spec.clone()), checked.compiled.clone());
    let now = SystemClock.now();
    let slack = slack(args)?;
    let tables = match slack {
        Some(_) => choose_from_topics(&spec, &*compiled, &args.tables)?,
        None => choose(&spec, &*compiled, &args.tables)?,
    };
    // What was typed is judged before anything is looked at.
    let typed = match args.date.is_some() || args.from.is_some() {
        true => range::intervals(args, spec.timezone, now)?,
        false => Vec::new(),
    };
    let owner = compose::owner();
    let log = compose::open_log(&spec)?;
    let Some(identity) = compose::known_identity(&spec, &log).await? else {
        compose::check_never_ran(&checked, &log).await?;
        return Ok(report::never_ran(&spec, args));
    };
    let backfills = Backfills::new(&log_folder(&spec)?, &identity.pipeline_id)?;
    check_live(checked, &log, &owner).await?;
    let names = spec.tables.iter().map(|table| table.name.as_str());
    let turns = Turns::of(names.chain(spec.dead_letters.iter().map(|dead| dead.table.as_str())));
    let pipeline_id = identity.pipeline_id;
    let shop =
        Shop { spec, compiled, pipeline_id, owner, backfills, turns: Arc::new(turns), reads_topics: slack.is_some() };
    let request = Request {
        mode: match args.mode {
            BackfillMode::Full => Mode::Full,
            BackfillMode::Correction => Mode::Correction,
        },
        resume: args.resume,
        slack,
        tables,
        recipe: recipe(&shop.spec),
    };
    let first = match (slack, shop.first_row(&request.tables).await?) {
        (None, None) => return Ok(report::never_ran(&shop.spec, args)),
        // What topics have may be older than what is left in bronze.
        (Some(_), _) => DateTime::<Utc>::MIN_UTC,
        (None, Some(first)) => first,
    };
    if args.gaps {
        let intervals = match typed.is_empty() {
            true => range::everything(first, args, shop.spec.timezone, now),
            false => typed.into_iter().filter(|interval| interval.end > first).collect(),
        };
        let ledger = shop.backfills.ledger().await?;
        let found = gaps(&intervals, &ledger, &request.tables, &request.recipe);
        let file = file_argument(global, &args.pipeline.file);
        return Ok(report::gaps(&shop.spec, &file, &intervals, &found, &ledger));
    }
    if let Some(last) = typed.last().filter(|last| last.end <= first) {
        let first = first.with_timezone(&shop.spec.timezone);
        let text = format!("there is no row as old as {}: the first one is of {first}", last.label(shop.spec.timezone));
        return Err(range::usage(text).into());
    }
    if args.dry_run {
        return Ok(shop.preview(&typed, &request).await?);
    }
    if slack.is_some() {
        shop.check_topics(&typed, &request).await?;
        if log.has_forgotten().await? {
            warn!("rows of this pipeline were forgotten: those whose records the topics still have come back");
        }
    }
    let _lock = only_one(&shop)?;
    shop.tell_unfinished(&typed).await?;
    let progress = Progress::new(global, &shop.spec, typed.len());
    let done = shop.run(&typed, &request, usize::from(args.parallel), &stop, &progress).await?;
    let milliseconds = started.elapsed().as_millis() as u64;
    Ok(report::outcome(&shop.spec, &shop.owner, &request, &done, args.no_data_exit_code, milliseconds))
}

/// How far the times of records and events may be apart, where topics are read again.
fn slack(args: &BackfillArgs) -> Result<Option<TimeDelta>> {
    let usage = |text: &str| Error::new(ErrorKind::Usage, text).help("nothing was read or written");
    match (args.source, args.mode) {
        (BackfillSource::Bronze, _) => Ok(None),
        (BackfillSource::Kafka, BackfillMode::Correction) => {
            Err(usage("--mode correction takes what has arrived in bronze since: it cannot be read from Kafka"))
        }
        (BackfillSource::Kafka, BackfillMode::Full) => {
            let slack = units::duration(&args.slack).map_err(|why| usage(&format!("--slack {why}")))?;
            let slack = TimeDelta::from_std(slack).ok().filter(|slack| *slack <= TimeDelta::days(3650));
            slack.map(Some).ok_or_else(|| usage("--slack is longer than ten years"))
        }
    }
}

/// `tidegate history --gaps`.
pub(super) async fn list_gaps(global: &Global, args: &HistoryArgs) -> Result<Outcome, Failure> {
    let args = BackfillArgs {
        pipeline: PipelineArgs { file: args.pipeline.file.clone() },
        date: None,
        from: args.from.clone(),
        to: args.to.clone(),
        by: args.by,
        tables: args.tables.clone(),
        mode: BackfillMode::Full,
        source: BackfillSource::Bronze,
        slack: String::new(),
        parallel: 1,
        resume: false,
        dry_run: false,
        gaps: true,
        no_data_exit_code: None,
    };
    backfill(global, &args).await
}

pub(super) fn log_folder(spec: &PipelineSpec) -> Result<storage::Storage> {
    storage::open(&format!("{}/{}", spec.checkpoints.trim_end_matches('/'), spec.name))
}

/// One backfill of a pipeline at a time, where there is something on this host to lock.
fn only_one(shop: &Shop) -> Result<Option<lock::Lock>> {
    let location = shop.backfills.location();
    let folder = Path::new(&location);
    let taken =
        format!("another backfill of pipeline `{}` is at work, or a replay of its dead letters", shop.spec.name);
    folder.is_absolute().then(|| lock::acquire_or(folder, &taken, &shop.owner)).transpose()
}

/// Refuses where a live run would refuse: what is wrong with log or tables would only be buried.
async fn check_live(checked: Checked, log: &dyn CheckpointLog, owner: &Owner) -> Result<()> {
    let spec = checked.spec.clone();
    let live = compose::open_log(&spec)?;
    let Some(identity) = compose::known_identity(&spec, &live).await? else { return Ok(()) };
    let parts = compose::parts(checked, &identity, owner.clone(), Box::new(live), Box::new(|_: &Event| {}))?;
    let mut runner = Runner::new(parts);
    let mut looks = 0;
    loop {
        match runner.observe().await.map(|facts| recover(&facts)) {
            // Who derives days again by new rules may do so while a batch is finished by the old ones.
            Ok(Live::Halt(Inconsistency::ChangedMidway { .. })) => return Ok(()),
            Ok(Live::Halt(why)) if looks == LOOKS => return Err(halted(&why, log)),
            Ok(Live::Halt(_)) => {}
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Busy && looks < LOOKS => {}
            Err(error) => return Err(error),
        }
        looks += 1;
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

impl Shop {
    fn tables(&self) -> Result<Vec<Box<dyn Table>>> {
        let lake = storage::open(&self.spec.lake)?;
        let maker = Maker { pipeline: self.spec.name.clone(), pipeline_id: self.pipeline_id.clone() };
        let definitions = table_definitions(&self.compiled, &maker).into_iter();
        definitions.map(|definition| table::delta::open(&lake, definition)).collect()
    }

    /// One interval with handles of its own.
    fn interval(&self, interval: Interval) -> Result<Backfill> {
        let lookups = self.spec.lookups.iter();
        let lookups = lookups.map(|(name, spec)| Ok((name.clone(), table::lookup::open(name, spec)?)));
        let parts = Parts {
            spec: self.spec.clone(),
            pipeline_id: self.pipeline_id.clone(),
            owner: self.owner.clone(),
            transform: self.compiled.clone(),
            tables: self.tables()?,
            sources: if self.reads_topics { compose::open_sources(&self.spec)? } else { BTreeMap::new() },
            lookups: lookups.collect::<Result<_>>()?,
            live: Box::new(compose::open_log(&self.spec)?),
            log: self.backfills.of(&interval)?,
            clock: Arc::new(SystemClock),
            turns: self.turns.clone(),
            is_alive: lock::may_be_alive,
        };
        Ok(Backfill::new(parts, interval))
    }

    /// The event time of the oldest row that the tables come from.
    async fn first_row(&self, names: &[String]) -> Result<Option<DateTime<Utc>>> {
        let mut roots: BTreeSet<(String, String)> = BTreeSet::new();
        for table in self.spec.tables.iter().filter(|table| names.contains(&table.name)) {
            if let Ok(lineage) = lineage(&self.spec, &*self.compiled, table) {
                roots.insert((lineage.bronze, lineage.event_time));
            }
        }
        let mut first: Option<DateTime<Utc>> = None;
        for mut table in self.tables()? {
            let name = table.definition().name.clone();
            for (_, column) in roots.iter().filter(|(bronze, _)| *bronze == name) {
                let Some(found) = table.first_time(column).await? else { continue };
                let schema = self.compiled.schema(&name);
                let is_date = schema.field_with_name(column).is_ok_and(|field| *field.data_type() == DataType::Date32);
                let found = if is_date { midnight(found.date_naive(), self.spec.timezone) } else { found };
                first = Some(first.map_or(found, |first| first.min(found)));
            }
        }
        Ok(first)
    }

    /// The oldest interval that is to be read again must be in the topics; then the later ones are.
    async fn check_topics(&self, intervals: &[Interval], request: &Request) -> Result<()> {
        for interval in intervals {
            if self.interval(*interval)?.is_there(request).await? {
                break;
            }
        }
        Ok(())
    }

    async fn preview(&self, intervals: &[Interval], request: &Request) -> Result<Outcome> {
        let mut previews = Vec::new();
        for interval in intervals {
            previews.push((*interval, self.interval(*interval)?.preview(request).await?));
        }
        Ok(report::preview(&self.spec, request, &previews))
    }

    /// Runs that nobody finished leave tables downstream as they were: whoever may have forgotten is told.
    async fn tell_unfinished(&self, intervals: &[Interval]) -> Result<()> {
        let ledger = self.backfills.ledger().await?;
        let days: Vec<Interval> = ledger.iter().filter_map(IntervalHead::pending).map(|plan| plan.interval).collect();
        for (interval, why) in gaps(&days, &ledger, &[], "") {
            if why == Gap::Unfinished && !intervals.contains(&interval) {
                let name = interval.label(self.spec.timezone);
                warn!("a backfill of {name} was begun and is not finished: run it again to finish it");
            }
        }
        Ok(())
    }

    /// Up to `parallel` intervals at once. After a failure, or when a stop is asked for, what was begun is finished and
    /// nothing else is started.
    async fn run(
        &self,
        intervals: &[Interval],
        request: &Request,
        parallel: usize,
        stop: &watch::Receiver<bool>,
        progress: &Progress,
    ) -> Result<Vec<(Interval, Status)>> {
        let has_failed = AtomicBool::new(false);
        let one = |interval: Interval| {
            let has_failed = &has_failed;
            async move {
                if *stop.borrow() || has_failed.load(Ordering::Relaxed) {
                    return Ok((interval, Status::NotStarted));
                }
                let started = Instant::now();
                let done = async { self.interval(interval)?.run(request).await }.await;
                match done {
                    Ok(done) => {
                        let status = Status::from(done);
                        progress.finished(&interval, &status, started.elapsed());
                        Ok((interval, status))
                    }
                    Err(error) => {
                        has_failed.store(true, Ordering::Relaxed);
                        Err(self.explain(error, &interval, intervals.len()))
                    }
                }
            }
        };
        let all: Vec<Result<(Interval, Status)>> =
            futures::stream::iter(intervals.iter().copied()).map(one).buffered(parallel).collect().await;
        all.into_iter().collect()
    }

    fn explain(&self, error: Error, interval: &Interval, count: usize) -> Error {
        let error = error.with("interval", interval.label(self.spec.timezone));
        match count {
            1 => error.help("the same command finishes what was begun"),
            _ => error.help("intervals that are done stay done; the same command with --resume goes on from here"),
        }
    }
}

/// What a decision means, in a word.
fn word(decision: &Decision) -> &'static str {
    match decision {
        Decision::Skip => "skip",
        Decision::Replay(_) => "finish",
        Decision::Begin { since: Some(_), .. } => "correct",
        Decision::Begin { .. } => "derive",
    }
}

impl From<Done> for Status {
    fn from(done: Done) -> Status {
        match done {
            Done::Skipped => Status::Skipped,
            Done::Unchanged => Status::Unchanged,
            Done::Ran(record) => Status::Ran(record),
        }
    }
}
