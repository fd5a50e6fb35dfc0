//! `tidegate run`: until the trigger is satisfied or a signal asks to stop.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::output::{aligned, batch_json, counted, duration, grouped};
use super::progress::Display;
use super::{Failure, Outcome, compose};
use crate::cli::{Global, RunArgs};
use crate::config::spec::PipelineSpec;
use crate::error::{Error, ErrorKind, Result};
use crate::model::batch::Receipt;
use crate::model::trigger::Trigger;
use crate::runner::{Runner, Summary};
use crate::units;

pub(super) async fn run(global: &Global, args: &RunArgs) -> Result<Outcome, Failure> {
    let started = Instant::now();
    // First of all: a signal that comes before it is heard would end the process as a crash does.
    let stop = stop_signal()?;
    let checked = compose::check(global, &args.pipeline.file).await?;
    let spec = checked.spec.clone();
    let trigger = match &args.trigger {
        Some(text) => parse_trigger(text)?,
        None => spec.trigger.clone(),
    };
    let owner = compose::owner();
    let log = compose::open_log(&spec)?;
    let _lock = compose::lock(&spec, &log, &owner)?;
    let identity = compose::identity(&checked, &log, &owner).await?;
    let display = Display::new(global, &spec.name, &identity.pipeline_id, &owner);
    let run_id = owner.run_id.clone();
    let parts = compose::parts(checked, &identity, owner, Box::new(log), Box::new(display))?;
    let mut runner = Runner::new(parts);
    let summary = runner.run(&trigger, stop).await?;
    if summary.batch_count == 0 {
        // Closing a Kafka client takes longer than an idle run. Nothing is under way: the end of the process closes it.
        std::mem::forget(runner);
    }
    Ok(outcome(&spec, &run_id, &summary, args.no_data_exit_code, started.elapsed().as_millis() as u64))
}

fn parse_trigger(text: &str) -> Result<Trigger> {
    match text {
        "once" => Ok(Trigger::Once),
        "available_now" | "availableNow" | "available-now" => Ok(Trigger::AvailableNow),
        interval => units::duration(interval).map(Trigger::ProcessingTime).map_err(|_| {
            Error::new(ErrorKind::Usage, format!("--trigger `{interval}` is not a trigger"))
                .help("write once, available_now, or an interval such as 30s")
        }),
    }
}

/// Turns true at the first SIGTERM or SIGINT; the second one ends the process at once, which is only a crash.
pub(super) fn stop_signal() -> Result<watch::Receiver<bool>> {
    let (sender, receiver) = watch::channel(false);
    let install =
        |kind| signal(kind).map_err(|error| Error::failed("a signal handler could not be installed").caused_by(error));
    let (mut terminate, mut interrupt) = (install(SignalKind::terminate())?, install(SignalKind::interrupt())?);
    tokio::spawn(async move {
        for exit_code in [None, Some(143)] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if let Some(code) = exit_code {
                std::process::exit(code);
            }
            eprintln!("stopping: the batch that was begun is finished first; a second signal stops at once");
            let _ = sender.send(true);
        }
    });
    Ok(receiver)
}

/// What each table did over all batches of the run.
fn totals(summary: &Summary) -> BTreeMap<&str, Receipt> {
    let mut totals: BTreeMap<&str, Receipt> = BTreeMap::new();
    for (name, receipt) in summary.batches.iter().flat_map(|record| &record.tables) {
        let total = totals.entry(name).or_default();
        total.delta_version = receipt.delta_version;
        total.inserted += receipt.inserted;
        total.updated += receipt.updated;
        total.deleted += receipt.deleted;
        total.superseded += receipt.superseded;
        total.remembered += receipt.remembered;
    }
    totals
}

fn outcome(
    spec: &PipelineSpec,
    run_id: &str,
    summary: &Summary,
    no_data_exit_code: Option<u8>,
    milliseconds: u64,
) -> Outcome {
    let status = match (summary.interrupted, summary.batch_count) {
        (true, _) => "interrupted",
        (false, 0) => "no_data",
        (false, _) => "ok",
    };
    let code = if status == "no_data" { no_data_exit_code.unwrap_or(0) } else { 0 };
    let json = json!({
        "version": 1,
        "status": status,
        "pipeline": spec.name,
        "run_id": run_id,
        "duration_ms": milliseconds,
        "batch_count": summary.batch_count,
        "input_rows": summary.input_rows,
        "batches": summary.batches.iter().map(batch_json).collect::<Vec<_>>(),
    });
    Outcome { text: text(spec, summary, milliseconds), json, code }
}

fn text(spec: &PipelineSpec, summary: &Summary, milliseconds: u64) -> String {
    if summary.batch_count == 0 {
        return format!("{}: nothing to read, no table changed ({})\n", spec.name, duration(milliseconds));
    }
    let mut text = format!(
        "{}: {}, {} in {} ({} rows/s)\n",
        spec.name,
        counted(summary.batch_count, "batch", "batches"),
        counted(summary.input_rows, "row", "rows"),
        duration(milliseconds),
        grouped(summary.input_rows * 1000 / milliseconds.max(1))
    );
    let rows: Vec<Vec<String>> = totals(summary)
        .into_iter()
        .map(|(name, t)| {
            let numbers = [t.inserted, t.updated, t.deleted, t.superseded, t.remembered];
            let mut row = vec![name.to_string(), t.delta_version.to_string()];
            row.extend(numbers.iter().map(|&n| grouped(n)));
            row
        })
        .collect();
    text.push_str(&aligned(
        &["table", "version", "inserted", "updated", "deleted", "superseded", "remembered"],
        &rows,
        1,
    ));
    let mut rules: BTreeMap<&str, u64> = BTreeMap::new();
    for (rule, count) in summary.batches.iter().flat_map(|record| &record.expectations) {
        *rules.entry(rule).or_default() += count;
    }
    for (rule, count) in rules.into_iter().filter(|(_, count)| *count > 0) {
        text.push_str(&format!("  rule {rule}: broken by {}\n", counted(count, "row", "rows")));
    }
    text
}
