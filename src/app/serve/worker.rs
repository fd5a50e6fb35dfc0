//! One pipeline under the supervisor: opened when it runs, kept open while it runs often.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::watch;
use tracing::{Instrument, error_span};

use super::gate::{Gate, Room};
use crate::app::progress::Display;
use crate::app::{Failure, compose};
use crate::checkpoint::lock::Lock;
use crate::cli::Progress;
use crate::config::Loaded;
use crate::error::ErrorKind;
use crate::model::supervise::Ending;
use crate::model::trigger::Trigger;
use crate::runner::event::{Event, Observer};
use crate::runner::{Runner, Summary};

/// Until the next tick: from here on the readers are closed meanwhile, and from there on everything, lock included.
const READERS_REST: Duration = Duration::from_secs(10);
const ALL_REST: Duration = Duration::from_secs(60);

/// With more pipelines than this, readers fetch nothing ahead between batches: their queues would add up.
const FEW: usize = 16;

/// What a pipeline has done since the process started.
#[derive(Debug, Clone, Default)]
pub(super) struct Stats {
    pub batches: u64,
    pub rows: u64,
    pub dead_letters: u64,
    pub lag: i64,
    pub seconds: f64,
    pub failures: u64,
    /// The end of the last run that did not fail.
    pub last_success: Option<DateTime<Utc>>,
    pub last_error: Option<serde_json::Value>,
}

/// Shared by a pipeline's runs and whoever looks at them.
pub(super) type SharedStats = Arc<Mutex<Stats>>;

/// Looks at the numbers of a pipeline, or changes them.
pub(super) fn with<T>(stats: &SharedStats, look: impl FnOnce(&mut Stats) -> T) -> T {
    look(&mut stats.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Shows the batches and counts them.
struct Counting {
    display: Display,
    stats: SharedStats,
}

impl Observer for Counting {
    fn on_event(&mut self, event: &Event) {
        self.display.on_event(event);
        if matches!(event, Event::Idle) {
            with(&self.stats, |stats| stats.lag = 0);
        }
        if let Event::Committed(finished) = event {
            with(&self.stats, |stats| {
                stats.batches += 1;
                stats.rows += finished.record.input_rows;
                stats.dead_letters += finished.record.dead_letters;
                stats.lag = finished.lag.values().sum();
                let milliseconds = finished.record.duration_ms.get("triggerExecution").copied().unwrap_or_default();
                stats.seconds += milliseconds as f64 / 1000.0;
            });
        }
    }
}

/// What a run needs to know.
pub(super) struct Job {
    pub loaded: Arc<Loaded>,
    pub trigger: Trigger,
    pub room: Room,
    pub stop: watch::Receiver<bool>,
    pub stats: SharedStats,
    pub progress: Progress,
}

/// A pipeline with its lock and clients, between two runs.
pub(super) struct Opened {
    runner: Runner,
    gate: Gate,
    _lock: Option<Lock>,
}

/// How a run ended: what can be used again, and what was done.
pub(super) struct Ran {
    pub opened: Option<Opened>,
    pub outcome: Result<Summary, Failure>,
    /// It read something.
    pub had_news: bool,
}

/// Runs a pipeline once, opening it if need be. After a failure nothing is kept: the next run looks at storage anew.
pub(super) async fn run(opened: Option<Opened>, job: Job) -> Ran {
    let span = error_span!("pipeline", pipeline = %job.loaded.spec.name);
    let run = async {
        let mut opened = match opened {
            Some(opened) => opened,
            None => open(&job).await?,
        };
        match opened.runner.run(&job.trigger, job.stop.clone()).await {
            Ok(summary) => Ok((opened, summary)),
            Err(error) => {
                opened.close();
                Err(error.into())
            }
        }
    };
    match run.instrument(span).await {
        Ok((opened, summary)) => {
            let had_news = opened.gate.leave();
            Ran { opened: Some(opened), outcome: Ok(summary), had_news }
        }
        Err(failure) => Ran { opened: None, outcome: Err(failure), had_news: false },
    }
}

async fn open(job: &Job) -> Result<Opened, Failure> {
    let checked = compose::check_loaded((*job.loaded).clone()).await?;
    let spec = checked.spec.clone();
    let owner = compose::owner();
    let log = compose::open_log(&spec)?;
    let lock = compose::lock(&spec, &log, &owner)?;
    let tables = compose::table_names(&checked);
    let identity = compose::identity_over(&spec, tables, &log, &owner).await?;
    let display = Display::among_many(job.progress, &spec.name, &identity.pipeline_id, &owner);
    let observer = Counting { display, stats: job.stats.clone() };
    let mut parts = compose::parts(checked, &identity, owner, Box::new(log), Box::new(observer))?;
    let mut gate = Gate::new(job.room.clone(), job.stop.clone());
    parts.sources = gate.guard(parts.sources);
    Ok(Opened { runner: Runner::new(parts), gate, _lock: lock })
}

impl Opened {
    /// What stays open until the next run: idle pipelines hold neither threads nor fetched records, and one that runs
    /// rarely leaves its lock to whoever wants to repair something meanwhile.
    pub async fn rest(self, pause: Duration, had_news: bool, pipelines: usize) -> Option<Self> {
        if pause >= ALL_REST {
            self.close();
            return None;
        }
        if pause >= READERS_REST || !had_news || pipelines > FEW {
            self.gate.rest().await;
        }
        Some(self)
    }

    /// Closes everything, clients on a thread of their own: the next run of the pipeline finds room and lock free.
    pub fn close(self) {
        let Opened { runner, gate, _lock: lock } = self;
        gate.leave();
        drop(lock);
        tokio::task::spawn_blocking(move || drop((runner, gate)));
    }
}

/// What the supervisor makes of a failure.
pub(super) fn ending(failure: &Failure) -> Ending {
    match failure {
        Failure::Report(_) => Ending::Permanent,
        Failure::Error(error) => match error.kind() {
            ErrorKind::Failed | ErrorKind::Unavailable | ErrorKind::Busy => Ending::Retryable,
            ErrorKind::Usage | ErrorKind::Data | ErrorKind::OffsetsLost | ErrorKind::Config => Ending::Permanent,
        },
    }
}
