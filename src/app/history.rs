//! `tidegate history`: the batches that the log keeps, and one of them in detail. Reads only the checkpoint.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use super::output::{aligned, counted, duration, foreign, grouped, losses};
use super::{Failure, Outcome, compose};
use crate::checkpoint::CheckpointLog;
use crate::checkpoint::inspect::Batch;
use crate::cli::{Global, HistoryArgs};
use crate::error::{Code, Error, ErrorKind, Result};
use crate::model::batch::{CommitRecord, Owner};
use crate::model::offset::OffsetRanges;

pub(super) async fn history(global: &Global, args: &HistoryArgs) -> Result<Outcome, Failure> {
    if args.gaps {
        return super::backfill::list_gaps(global, args).await;
    }
    let spec = compose::load(global, &args.pipeline.file)?;
    let log = compose::open_log(&spec)?;
    compose::known_identity(&spec, &log).await?;
    if let Some(number) = args.batch {
        let batch = log.batch(number).await?.ok_or_else(|| no_such_batch(number))?;
        let json = json!({ "version": 1, "status": "ok", "pipeline": spec.name, "batch": batch_json(&batch) });
        return Ok(Outcome { text: detail(&spec.name, &batch), json, code: 0 });
    }
    // What did not go smoothly may be further back than the newest few.
    let mut batches = log.batches(if args.failed { usize::MAX } else { args.limit }).await?;
    batches.retain(|batch| !args.failed || !troubles(batch).is_empty());
    batches.truncate(args.limit);
    let text = match (batches.is_empty(), args.failed) {
        (true, true) => format!("{}: every batch that the log keeps went smoothly\n", spec.name),
        (true, false) => format!("{}: no batch yet, checkpoint {}\n", spec.name, log.location()),
        (false, _) => format!("{}\n{}", spec.name, table(&batches)),
    };
    let batches: Vec<Value> = batches.iter().map(batch_json).collect();
    let json = json!({ "version": 1, "status": "ok", "pipeline": spec.name, "batches": batches });
    Ok(Outcome { text, json, code: 0 })
}

fn no_such_batch(number: i64) -> Error {
    Error::new(ErrorKind::Usage, format!("the checkpoint holds no batch {number}"))
        .coded(Code::NoSuchBatch)
        .help("the batches that are kept: tidegate history FILE --limit 200")
}

/// What was out of the ordinary, in words.
fn troubles(batch: &Batch) -> Vec<String> {
    let Some(commit) = &batch.commit else { return vec!["not finished".to_string()] };
    let mut troubles = Vec::new();
    if let Some(owner) = &commit.finished_by {
        troubles.push(format!("finished by another run ({})", owned(owner)));
    }
    if commit.replayed_from.is_some() {
        troubles.push("finished from Bronze".to_string());
    }
    if !commit.lost.is_empty() {
        troubles.push(format!("went without {}", counted(losses(commit).count() as u64, "loss", "losses")));
    }
    troubles
}

fn kind(batch: &Batch) -> String {
    let troubles = troubles(batch);
    let by_hand = match &batch.plan {
        Some(plan) if plan.is_move() => Some("offsets moved"),
        Some(plan) if plan.forget.is_some() => Some("a key forgotten"),
        _ => None,
    };
    match (by_hand, troubles.is_empty()) {
        (Some(what), true) => what.to_string(),
        (Some(what), false) => format!("{what}, {}", troubles.join(", ")),
        (None, true) => "done".to_string(),
        (None, false) => troubles.join(", "),
    }
}

fn table(batches: &[Batch]) -> String {
    let row = |batch: &Batch| {
        let commit = batch.commit.as_ref();
        let number = |value: Option<u64>| value.map_or("-".to_string(), grouped);
        let sum =
            |of: fn(&crate::model::batch::Receipt) -> u64| commit.map(|commit| commit.tables.values().map(of).sum());
        vec![
            batch.id.to_string(),
            kind(batch),
            batch.plan.as_ref().map_or("-".to_string(), |plan| time(plan.batch_time)),
            commit.and_then(took).map_or("-".to_string(), duration),
            number(commit.map(|commit| commit.input_rows)),
            number(sum(|receipt| receipt.inserted)),
            number(sum(|receipt| receipt.updated)),
            number(sum(|receipt| receipt.deleted)),
            number(commit.map(|commit| commit.dead_letters)),
        ]
    };
    let header = ["batch", "what", "planned", "took", "rows", "inserted", "updated", "deleted", "dead letters"];
    aligned(&header, &batches.iter().map(row).collect::<Vec<_>>(), 3)
}

fn detail(pipeline: &str, batch: &Batch) -> String {
    let mut text = format!("{pipeline} batch {}: {}\n", batch.id, kind(batch));
    if let Some(plan) = &batch.plan {
        text.push_str(&format!("  planned {} by {}\n", time(plan.batch_time), owned(&plan.owner)));
    }
    if let Some(commit) = &batch.commit {
        text.push_str(&outcome(commit));
    }
    if let Some(plan) = &batch.plan {
        let rows: Vec<Vec<String>> = plan.sources.iter().flat_map(|(name, ranges)| rows_of(name, ranges)).collect();
        text.push_str(&aligned(&["source", "partition", "from", "until", "offsets"], &rows, 2));
        for (name, ranges) in plan.skipped.iter().chain(&plan.moved) {
            for (partition, range) in &ranges.0 {
                text.push_str(&format!("  {name}: {partition} was moved from {} to {}\n", range.from, range.until));
            }
        }
        for (name, version) in &plan.pinned {
            text.push_str(&format!("  lookup {name} at version {version}\n"));
        }
    }
    if let Some(commit) = &batch.commit {
        text.push_str(&receipts(commit));
    }
    text
}

fn outcome(commit: &CommitRecord) -> String {
    let took = took(commit).map_or(String::new(), |took| format!(", took {}", duration(took)));
    let mut text = format!(
        "  committed {}{took}: {}, {} bytes, {}\n",
        time(commit.committed_at),
        counted(commit.input_rows, "row", "rows"),
        grouped(commit.input_bytes),
        counted(commit.dead_letters, "dead letter", "dead letters")
    );
    let phases = commit.duration_ms.iter().filter(|(phase, _)| *phase != TOTAL);
    let phases: Vec<String> = phases.map(|(phase, time)| format!("{phase} {}", duration(*time))).collect();
    if !phases.is_empty() {
        text.push_str(&format!("  phases: {}\n", phases.join(", ")));
    }
    for (source, at) in &commit.next_watermarks {
        text.push_str(&format!("  watermark of {source} after it: {}\n", time(*at)));
    }
    for (_, lost) in losses(commit) {
        text.push_str(&format!("  went without: {}\n", lost.loss.message()));
    }
    for (rule, count) in commit.expectations.iter().filter(|(_, count)| **count > 0) {
        text.push_str(&format!("  rule {rule}: broken by {}\n", counted(*count, "row", "rows")));
    }
    text
}

fn receipts(commit: &CommitRecord) -> String {
    let rows: Vec<Vec<String>> = commit
        .tables
        .iter()
        .map(|(name, r)| {
            let counts = [r.inserted, r.updated, r.deleted, r.superseded, r.remembered, r.files_added, r.files_removed];
            let had_it = if r.already_applied { " (had it)" } else { "" };
            let first = [format!("{name}{had_it}"), r.delta_version.to_string()];
            first.into_iter().chain(counts.into_iter().map(grouped)).collect()
        })
        .collect();
    let header =
        ["table", "version", "inserted", "updated", "deleted", "superseded", "remembered", "files added", "removed"];
    let mut text = aligned(&header, &rows, 1);
    for (name, receipt) in commit.tables.iter().filter(|(_, receipt)| !receipt.foreign.is_empty()) {
        text.push_str(&format!("  {name} was changed by others before it: {}\n", foreign(&receipt.foreign)));
    }
    text
}

fn rows_of(source: &str, ranges: &OffsetRanges) -> Vec<Vec<String>> {
    let row = |(partition, range): (&crate::model::offset::Partition, &crate::model::offset::Range)| {
        let numbers = [range.from, range.until, range.len()].map(grouped);
        [source.to_string(), partition.to_string()].into_iter().chain(numbers).collect()
    };
    ranges.0.iter().map(row).collect()
}

/// The phase that is all of them.
const TOTAL: &str = "triggerExecution";

fn took(commit: &CommitRecord) -> Option<u64> {
    commit.duration_ms.get(TOTAL).copied()
}

fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn owned(owner: &Owner) -> String {
    format!("pid {} on host {}", owner.pid, owner.host)
}

fn batch_json(batch: &Batch) -> Value {
    json!({ "batch": batch.id, "what": kind(batch), "troubles": troubles(batch), "plan": batch.plan, "commit": batch.commit })
}
