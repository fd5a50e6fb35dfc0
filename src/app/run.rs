//! `tidegate run`: until the trigger is satisfied or a signal asks to stop.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::logging::tell;
use super::output::{aligned, batch_json, counted, duration, grouped};
use super::progress::Display;
use super::{Failure, Outcome, compose};
use crate::cli::{Global, RunArgs};
use crate::config::spec::PipelineSpec;
use crate::error::{Error, ErrorKind, Result};
use crate::model::batch::Receipt;
use crate::model::cron::Cron;
use crate::model::trigger::{Schedule, Trigger};
use crate::runner::clock::{self, Clock, SystemClock};
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
    if args.flush && trigger != Trigger::AvailableNow.into() {
        return Err(Error::new(ErrorKind::Usage, "--flush goes with a run that ends when everything is read")
            .help("nothing was read or written; add --trigger available_now")
            .into());
    }
    let owner = compose::owner();
    let log = compose::open_log(&spec)?;
    let _lock = compose::lock(&spec, &log, &owner)?;
    let identity = compose::identity(&checked, &log, &owner).await?;
    let display = Display::new(global, &spec.name, &identity.pipeline_id, &owner);
    let run_id = owner.run_id.clone();
    let parts = compose::parts(checked, &identity, owner, Box::new(log), Box::new(display))?;
    let mut runner = Runner::new(parts);
    if args.flush {
        runner.flush_at_end();
    }
    let ended = match &trigger {
        Schedule::Trigger(trigger) => runner.run(trigger, stop).await,
        Schedule::Cron(cron) => at_ticks(&mut runner, cron, spec.timezone, stop).await,
    };
    let is_left_open = match &ended {
        // Closing a Kafka client takes longer than an idle run. Nothing is under way: the end of the process closes it.
        Ok(summary) => summary.batch_count == 0,
        // It waits for answers before it closes, and a broker that is away gives none; the next run is due long before.
        Err(error) => error.kind() == ErrorKind::Unavailable,
    };
    if is_left_open {
        std::mem::forget(runner);
    }
    let summary = ended?;
    Ok(outcome(&spec, &run_id, &summary, args.no_data_exit_code, started.elapsed().as_millis() as u64))
}

fn parse_trigger(text: &str) -> Result<Schedule> {
    match text {
        "once" => return Ok(Trigger::Once.into()),
        "available_now" | "availableNow" | "available-now" => return Ok(Trigger::AvailableNow.into()),
        _ => {}
    }
    if text.starts_with('@') || text.contains(char::is_whitespace) {
        return Cron::parse(text).map(Schedule::Cron).map_err(|refusal| {
            let marker = format!("{}{}", " ".repeat(refusal.at.start), "^".repeat(refusal.at.len().max(1)));
            Error::new(ErrorKind::Usage, format!("--trigger: {}", refusal.message))
                .with("trigger", format!("{text}\n           {marker}"))
                .help(refusal.help)
        });
    }
    units::duration(text).map(|interval| Trigger::ProcessingTime(interval).into()).map_err(|_| {
        Error::new(ErrorKind::Usage, format!("--trigger `{text}` is not a trigger")).help(
            "write once, available_now, an interval such as 30s, or a crontab expression such as \"*/15 * * * *\"",
        )
    })
}

/// Sleeps no longer than this at a time: the clock on the wall may be set, and a machine may be asleep.
const NAP: Duration = Duration::from_secs(15);

/// An available_now run at each tick, until asked to stop. Ticks that pass during a run are one run after it.
async fn at_ticks(
    runner: &mut Runner,
    cron: &Cron,
    timezone: chrono_tz::Tz,
    mut stop: watch::Receiver<bool>,
) -> Result<Summary> {
    let mut summary = Summary::default();
    let mut last = SystemClock.now();
    while let Some(tick) = cron.next_after(last, timezone) {
        loop {
            if *stop.borrow() {
                return Ok(summary);
            }
            let left = clock::until(SystemClock.now(), tick);
            if left.is_zero() {
                break;
            }
            tokio::select! {
                _ = tokio::time::sleep(left.min(NAP)) => {}
                changed = stop.changed() => if changed.is_err() { return Ok(summary) },
            }
        }
        last = SystemClock.now();
        add(&mut summary, runner.run(&Trigger::AvailableNow, stop.clone()).await?);
    }
    Ok(summary)
}

/// Adds what one run of many did; of the batches themselves, the last ones are kept.
pub(super) fn add(total: &mut Summary, run: Summary) {
    total.batch_count += run.batch_count;
    total.input_rows += run.input_rows;
    total.interrupted |= run.interrupted;
    total.batches.extend(run.batches);
    let surplus = total.batches.len().saturating_sub(100);
    total.batches.drain(..surplus);
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
            tell("stopping: the batch that was begun is finished first; a second signal stops at once");
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
