//! What is known of every pipeline, for metrics, for the result, and for whoever reads the log.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::worker::{SharedStats, Stats, with};
use crate::app::logging::tell;
use crate::app::output::{aligned, counted, duration, error_json, grouped, report_json};
use crate::app::{Failure, Outcome};
use crate::cli::{Global, LogFormat, Progress};
use crate::model::supervise::Supervisor;
use crate::runner::clock::{Clock, SystemClock};

/// One pipeline.
#[derive(Clone)]
pub(super) struct Seen {
    pub name: String,
    pub stats: SharedStats,
    pub state: &'static str,
    pub runs: u64,
    pub missed: u64,
}

impl Seen {
    /// Its numbers as they are now.
    pub fn now(&self) -> Stats {
        with(&self.stats, |stats| stats.clone())
    }

    /// It stands still because of a failure, or goes on in spite of one.
    fn status(&self) -> &'static str {
        if self.now().last_error.is_some() { "failed" } else { "ok" }
    }
}

#[derive(Default)]
struct Seats {
    /// By file.
    pipelines: BTreeMap<String, Seen>,
    /// Files that cannot be used and of which nothing runs, and why.
    broken: BTreeMap<String, Value>,
}

/// Shared by the supervisor, which writes it, and the endpoint, which reads it.
#[derive(Clone, Default)]
pub(super) struct Board(Arc<Mutex<Seats>>);

impl Board {
    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every pipeline.
    pub fn pipelines(&self) -> Vec<Seen> {
        self.seats().pipelines.values().cloned().collect()
    }

    /// Files that cannot be used as they are now.
    pub fn broken_files(&self) -> Vec<String> {
        self.seats().broken.keys().cloned().collect()
    }

    /// A sound file was read: what was counted for its pipeline goes on.
    pub fn enter(&self, key: &str, name: &str) {
        let mut seats = self.seats();
        seats.broken.remove(key);
        let new = || Seen { name: name.into(), stats: SharedStats::default(), state: "waiting", runs: 0, missed: 0 };
        seats.pipelines.entry(key.to_string()).or_insert_with(new).name = name.to_string();
    }

    /// A file cannot be used as it is now, though an older version of it may go on: a restart would find this one.
    pub fn broken(&self, key: &str, why: Value) {
        self.seats().broken.insert(key.to_string(), why);
    }

    /// All files were read again: these are there.
    pub fn retain_broken(&self, is_there: impl Fn(&String) -> bool) {
        self.seats().broken.retain(|key, _| is_there(key));
    }

    /// A pipeline is gone; its name.
    pub fn remove(&self, key: &str) -> Option<String> {
        self.seats().pipelines.remove(key).map(|seen| seen.name)
    }

    /// Another file than `key` whose pipeline has the name.
    pub fn other_of(&self, name: &str, key: &str) -> Option<String> {
        let seats = self.seats();
        let mut others = seats.pipelines.iter().filter(|(file, seen)| seen.name == name && *file != key);
        others.next().map(|(file, _)| file.clone())
    }

    /// The numbers of a pipeline.
    pub fn stats(&self, key: &str) -> SharedStats {
        self.seats().pipelines.get(key).map(|seen| seen.stats.clone()).unwrap_or_default()
    }

    /// A run ended as it should; whether the one before had failed.
    pub fn succeeded(&self, key: &str) -> bool {
        with(&self.stats(key), |stats| {
            stats.last_success = Some(SystemClock.now());
            stats.last_error.take().is_some()
        })
    }

    /// A run failed; the pipeline's name.
    pub fn failed(&self, key: &str, why: Value) -> String {
        with(&self.stats(key), |stats| (stats.failures, stats.last_error) = (stats.failures + 1, Some(why)));
        self.seats().pipelines.get(key).map_or(key.to_string(), |seen| seen.name.clone())
    }

    /// What the supervisor has decided.
    pub fn show(&self, supervisor: &Supervisor) {
        let mut seats = self.seats();
        for (key, pipeline) in supervisor.pipelines() {
            if let Some(seen) = seats.pipelines.get_mut(key) {
                (seen.state, seen.runs, seen.missed) = (pipeline.state.as_str(), pipeline.runs, pipeline.missed);
            }
        }
    }

    /// The result of the process.
    pub fn outcome(&self, milliseconds: u64) -> Outcome {
        let seats = self.seats();
        let (mut rows, mut pipelines) = (Vec::new(), serde_json::Map::new());
        for seen in seats.pipelines.values() {
            let stats = seen.now();
            let numbers =
                [seen.runs, stats.batches, stats.rows, stats.dead_letters, stats.failures, seen.missed].map(grouped);
            rows.push([seen.name.clone(), seen.status().to_string()].into_iter().chain(numbers).collect());
            let json = json!({
                "status": seen.status(),
                "runs": seen.runs,
                "batch_count": stats.batches,
                "input_rows": stats.rows,
                "dead_letters": stats.dead_letters,
                "failures": stats.failures,
                "missed_ticks": seen.missed,
                "last_success": stats.last_success,
                "error": stats.last_error,
            });
            pipelines.insert(seen.name.clone(), json);
        }
        let count = counted(seats.pipelines.len() as u64, "pipeline", "pipelines");
        let header = ["pipeline", "status", "runs", "batches", "rows", "dead letters", "failures", "missed ticks"];
        let mut text = format!("served {count} for {}\n{}", duration(milliseconds), aligned(&header, &rows, 2));
        for file in seats.broken.keys() {
            text.push_str(&format!("  {file} could not be used\n"));
        }
        let json = json!({
            "version": 1,
            "status": "ok",
            "duration_ms": milliseconds,
            "pipelines": pipelines,
            "broken_files": seats.broken,
        });
        Outcome { text, json, code: 0 }
    }
}

/// Says on stderr what happens.
pub(super) struct Speaker {
    pub progress: Progress,
    log_format: LogFormat,
}

impl Speaker {
    /// As the command line wants it.
    pub fn new(global: &Global) -> Self {
        let progress = if global.quiet { Progress::None } else { global.progress };
        Speaker { progress, log_format: global.log_format }
    }

    /// Something went as it should.
    pub fn say(&self, text: &str) {
        if self.progress != Progress::None {
            tell(text);
        }
    }

    /// A failure of one pipeline, for people or for programs.
    pub fn tell(&self, pipeline: &str, failure: &Failure, next: &str) {
        match self.log_format {
            LogFormat::Json => tracing::error!(pipeline, error = %json_of(failure), "{next}"),
            LogFormat::Text => {
                let report = match failure {
                    Failure::Report(report) => report.render(),
                    Failure::Error(error) => error.report(),
                };
                tell(format_args!("{pipeline}: failed; {next}\n{}", report.trim_end()));
            }
        }
    }
}

/// A failure as the result and the log have it.
pub(super) fn json_of(failure: &Failure) -> Value {
    match failure {
        Failure::Report(report) => report_json(report),
        Failure::Error(error) => error_json(error),
    }
}
