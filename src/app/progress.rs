//! Progress on stderr: a bar on a terminal, one line a batch elsewhere, and one log event a batch with Spark's names.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use tracing::{info, warn};

use super::logging::tell;
use super::output::{self, duration, foreign, grouped};
use crate::cli::{Global, Progress};
use crate::model::batch::Owner;
use crate::runner::event::{Event, Finished, Next, Observer};

/// Shows a run as it happens.
pub(super) struct Display {
    form: Form,
    pipeline: String,
    pipeline_id: String,
    owner: Owner,
}

enum Form {
    Bar(ProgressBar),
    Lines,
    None,
}

impl Display {
    /// The form that fits where stderr goes.
    pub fn new(global: &Global, pipeline: &str, pipeline_id: &str, owner: &Owner) -> Self {
        let form = match global.progress {
            _ if global.quiet => Form::None,
            Progress::None => Form::None,
            Progress::Lines => Form::Lines,
            Progress::Bar => Form::Bar(bar(pipeline)),
            Progress::Auto if std::io::stderr().is_terminal() => Form::Bar(bar(pipeline)),
            Progress::Auto => Form::Lines,
        };
        Display { form, pipeline: pipeline.to_string(), pipeline_id: pipeline_id.to_string(), owner: owner.clone() }
    }

    /// One of many: lines, because bars would fight for the same place.
    pub fn among_many(progress: Progress, pipeline: &str, pipeline_id: &str, owner: &Owner) -> Self {
        let form = if progress == Progress::None { Form::None } else { Form::Lines };
        Display { form, pipeline: pipeline.to_string(), pipeline_id: pipeline_id.to_string(), owner: owner.clone() }
    }

    fn line(&self, text: String) {
        match &self.form {
            Form::Bar(bar) => bar.println(text),
            Form::Lines => tell(text),
            Form::None => {}
        }
    }

    fn finished(&self, finished: &Finished) {
        let record = &finished.record;
        let milliseconds = record.duration_ms.get("triggerExecution").copied().unwrap_or_default();
        let rate = record.input_rows * 1000 / milliseconds.max(1);
        let lag: i64 = finished.lag.values().sum();
        let mut text = format!(
            "{} batch {}: {} rows in {} ({} rows/s), {} dead letters",
            self.pipeline,
            record.batch,
            grouped(record.input_rows),
            duration(milliseconds),
            grouped(rate),
            grouped(record.dead_letters)
        );
        if record.replayed_from.is_some() {
            text.push_str(", begun by an earlier run, finished from Bronze");
        } else if finished.replayed {
            text.push_str(", begun by an earlier run");
        } else if lag > 0 {
            text.push_str(&format!(", {} to go", grouped(lag)));
        }
        if let Form::Bar(bar) = &self.form {
            bar.inc(record.input_rows);
            bar.set_length(bar.position() + lag.unsigned_abs());
        }
        self.line(text);
        let progress = output::progress_json(&finished.plan, record, &self.pipeline_id, &self.owner);
        info!(pipeline = self.pipeline, progress = %progress, "batch finished");
    }
}

fn bar(pipeline: &str) -> ProgressBar {
    // The template is a constant that indicatif accepts; a plain bar serves if it ever does not.
    let template = "{prefix} [{bar:30}] {human_pos}/{human_len} rows, {per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style).with_prefix(pipeline.to_string())
}

impl Observer for Display {
    fn on_event(&mut self, event: &Event) {
        match event {
            Event::Recovered { next: Next::Begin } => self.line(format!("{}: first run", self.pipeline)),
            Event::Recovered { next: Next::Continue { after } } => {
                self.line(format!("{}: continues after batch {after}", self.pipeline));
            }
            Event::Recovered { next: Next::Replay { batch } } => self.line(format!(
                "{}: batch {batch} was begun by an earlier run and not finished; finishing it with the same rows",
                self.pipeline
            )),
            Event::Planned(plan) => {
                let offsets: i64 = plan.sources.values().map(|ranges| ranges.len()).sum();
                info!(pipeline = self.pipeline, batch = plan.batch, offsets, "batch planned");
                if let Form::Bar(bar) = &self.form {
                    bar.set_length(bar.length().unwrap_or_default().max(bar.position() + offsets.unsigned_abs()));
                }
            }
            Event::Committed(finished) => self.finished(finished),
            Event::ForeignWrites { table, writes } => {
                warn!(
                    pipeline = self.pipeline,
                    table,
                    "others changed rows of this table, and the pipeline goes on with what they left: {}; tables \
                     downstream follow at the next batch that touches the same keys or groups",
                    foreign(writes)
                );
            }
            Event::FromBronze { batch, loss } => warn!(
                pipeline = self.pipeline,
                batch,
                "the source no longer has the records of this batch; it is finished from the tables that hold them: {loss}"
            ),
            Event::HeadroomLow(lag) => warn!(
                pipeline = self.pipeline,
                partition = %lag.partition,
                "{}",
                output::headroom_warning(lag)
            ),
            Event::Idle => info!(pipeline = self.pipeline, "nothing to read"),
            Event::Retrying { error } => {
                warn!(pipeline = self.pipeline, %error, "a step failed and may have been applied; looking again");
            }
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Form::Bar(bar) = &self.form {
            bar.finish_and_clear();
        }
    }
}
