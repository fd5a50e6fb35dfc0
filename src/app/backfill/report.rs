//! What a backfill says: a line an interval, a table for people, one line of JSON.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::range::typed;
use super::word;
use crate::app::Outcome;
use crate::app::logging::tell;
use crate::app::output::{aligned, counted, duration, grouped};
use crate::cli::{self, BackfillArgs, Global};
use crate::config::spec::PipelineSpec;
use crate::model::backfill::{BackfillRecord, Decision, Gap, IntervalHead, Mode, Request, Reread, begun as unfinished};
use crate::model::batch::Owner;
use crate::model::interval::Interval;
use crate::model::offset::OffsetRanges;
use crate::runner::backfill::{Preview, totals};

/// What became of an interval.
pub(super) enum Status {
    Ran(Box<BackfillRecord>),
    Skipped,
    Unchanged,
    NotStarted,
}

impl Status {
    fn record(&self) -> Option<&BackfillRecord> {
        match self {
            Status::Ran(record) => Some(record),
            _ => None,
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Status::Ran(record) if record.input_rows == 0 => "no_data",
            Status::Ran(_) => "done",
            Status::Skipped => "skipped",
            Status::Unchanged => "unchanged",
            Status::NotStarted => "not_started",
        }
    }
}

/// One line an interval on stderr.
pub(super) struct Progress {
    pipeline: String,
    timezone: chrono_tz::Tz,
    is_on: bool,
    count: usize,
    finished: AtomicUsize,
}

impl Progress {
    pub(super) fn new(global: &Global, spec: &PipelineSpec, count: usize) -> Progress {
        let is_on = global.progress != cli::Progress::None && !global.quiet;
        Progress { pipeline: spec.name.clone(), timezone: spec.timezone, is_on, count, finished: AtomicUsize::new(0) }
    }

    pub(super) fn finished(&self, interval: &Interval, status: &Status, took: Duration) {
        let number = self.finished.fetch_add(1, Ordering::Relaxed) + 1;
        if !self.is_on {
            return;
        }
        let what = match status {
            Status::Ran(record) if record.input_rows == 0 => "no rows".to_string(),
            Status::Ran(record) => {
                let (inserted, updated, deleted) = totals(&record.receipts);
                let rows = counted(record.input_rows, "row", "rows");
                let (inserted, updated, deleted) = (grouped(inserted), grouped(updated), grouped(deleted));
                format!("{rows}; inserted {inserted}, updated {updated}, removed {deleted}")
            }
            Status::Skipped => "done already".to_string(),
            Status::Unchanged => "nothing arrived since".to_string(),
            Status::NotStarted => "not started".to_string(),
        };
        let (label, took) = (interval.label(self.timezone), duration(took.as_millis() as u64));
        tell(format_args!("{}: {label} ({number}/{}): {what} ({took})", self.pipeline, self.count));
    }
}

fn interval_json(spec: &PipelineSpec, interval: &Interval) -> Value {
    json!({ "interval": interval.label(spec.timezone), "start": interval.start, "end": interval.end })
}

fn with(mut object: Value, more: Value) -> Value {
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more);
    }
    object
}

/// The result of a run.
pub(super) fn outcome(
    spec: &PipelineSpec,
    owner: &Owner,
    request: &Request,
    done: &[(Interval, Status)],
    no_data_exit_code: Option<u8>,
    milliseconds: u64,
) -> Outcome {
    let is_interrupted = done.iter().any(|(_, status)| matches!(status, Status::NotStarted));
    let input_rows: u64 = done.iter().filter_map(|(_, status)| status.record()).map(|record| record.input_rows).sum();
    let status = match (is_interrupted, input_rows) {
        (true, _) => "interrupted",
        (false, 0) => "no_data",
        (false, _) => "ok",
    };
    let code = if status == "no_data" { no_data_exit_code.unwrap_or(0) } else { 0 };
    let count = |word: &str| done.iter().filter(|(_, status)| status.word() == word).count();
    let intervals: Vec<Value> = done
        .iter()
        .map(|(interval, status)| {
            let common = with(interval_json(spec, interval), json!({ "status": status.word() }));
            match status.record() {
                None => common,
                Some(record) => with(
                    common,
                    json!({
                        "run": record.run,
                        "input_rows": record.input_rows,
                        "dead_letters": record.dead_letters,
                        "letters_settled": record.settled_letters,
                        "expectations": record.expectations,
                        "through_batch": record.through,
                        "offsets_read": record.reread.as_ref().map(offsets),
                        "tables": record.receipts,
                    }),
                ),
            }
        })
        .collect();
    let json = json!({
        "version": 1,
        "status": status,
        "pipeline": spec.name,
        "run_id": owner.run_id,
        "mode": mode(request.mode),
        "source": source(request),
        "tables": request.tables,
        "duration_ms": milliseconds,
        "interval_count": done.len(),
        "done": count("done"),
        "no_data": count("no_data"),
        "skipped": count("skipped"),
        "unchanged": count("unchanged"),
        "not_started": count("not_started"),
        "input_rows": input_rows,
        "intervals": intervals,
    });
    let mut text = format!(
        "{}: {} of {}, {} in {}\n",
        spec.name,
        counted((count("done") + count("no_data")) as u64, "interval", "intervals"),
        done.len(),
        counted(input_rows, "row", "rows"),
        duration(milliseconds)
    );
    let rows: Vec<Vec<String>> = done.iter().map(|(interval, status)| row(spec, interval, status)).collect();
    text.push_str(&aligned(&["interval", "", "rows", "inserted", "updated", "removed", "dead letters"], &rows, 2));
    Outcome { text, json, code }
}

fn row(spec: &PipelineSpec, interval: &Interval, status: &Status) -> Vec<String> {
    let mut row = vec![interval.label(spec.timezone), status.word().replace('_', " ")];
    match status.record() {
        Some(record) => {
            let (inserted, updated, deleted) = totals(&record.receipts);
            row.extend([record.input_rows, inserted, updated, deleted, record.dead_letters].map(grouped));
        }
        None => row.extend(std::iter::repeat_n("-".to_string(), 5)),
    }
    row
}

fn offsets(reread: &Reread) -> i64 {
    reread.sources.values().map(OffsetRanges::len).sum()
}

fn source(request: &Request) -> &'static str {
    if request.slack.is_some() { "kafka" } else { "bronze" }
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Full => "full",
        Mode::Correction => "correction",
    }
}

/// The result of a dry run.
pub(super) fn preview(spec: &PipelineSpec, request: &Request, previews: &[(Interval, Preview)]) -> Outcome {
    let tables = |preview: &Preview| match &preview.decision {
        Decision::Skip => Vec::new(),
        Decision::Replay(plan) => plan.tables.clone(),
        Decision::Begin { tables, .. } => tables.clone(),
    };
    let mut rows = Vec::new();
    let mut list = Vec::new();
    for (interval, preview) in previews {
        let (what, tables) = (word(&preview.decision), tables(preview));
        rows.push(vec![interval.label(spec.timezone), what.to_string(), tables.join(", "), grouped(preview.rows)]);
        let more = json!({
            "action": what, "input_rows": preview.rows, "offsets_to_read": preview.offsets, "tables": tables,
        });
        list.push(with(interval_json(spec, interval), more));
    }
    let text = format!(
        "{}: would derive again; nothing was changed\n{}",
        spec.name,
        aligned(&["interval", "action", "tables", "rows"], &rows, 3)
    );
    let json = json!({
        "version": 1, "status": "ok", "pipeline": spec.name, "dry_run": true, "mode": mode(request.mode),
        "tables": request.tables, "interval_count": previews.len(), "intervals": list,
    });
    Outcome { text, json, code: 0 }
}

/// The intervals that are missing or outdated.
pub(super) fn gaps(
    spec: &PipelineSpec,
    file: &str,
    intervals: &[Interval],
    gaps: &[(Interval, Gap)],
    ledger: &[IntervalHead],
) -> Outcome {
    let word = |gap: &Gap| match gap {
        Gap::Missing => "missing",
        Gap::Outdated => "outdated",
        Gap::Unfinished => "unfinished",
    };
    let rows: Vec<Vec<String>> =
        gaps.iter().map(|(interval, gap)| vec![interval.label(spec.timezone), word(gap).to_string()]).collect();
    let count = counted(intervals.len() as u64, "interval", "intervals");
    // Hours that were begun are finished as hours: of their day, another run may be done.
    let mut begun: BTreeMap<Interval, String> = BTreeMap::new();
    for plan in gaps.iter().flat_map(|(interval, _)| unfinished(interval, ledger)) {
        let command = format!("tidegate backfill {file} {} --resume", typed(spec.timezone, plan));
        begun.insert(plan.interval, command);
    }
    let mut text = match gaps.is_empty() {
        true => format!("{}: no gap in {count}\n", spec.name),
        false => format!(
            "{}: {} in {count}\n{}",
            spec.name,
            counted(gaps.len() as u64, "gap", "gaps"),
            aligned(&["interval", "why"], &rows, 2)
        ),
    };
    if !begun.is_empty() {
        text.push_str("to finish what was begun:\n");
        begun.values().for_each(|command| text.push_str(&format!("  {command}\n")));
    }
    if gaps.iter().any(|(_, gap)| *gap != Gap::Unfinished) {
        let which = if begun.is_empty() { "them" } else { "the others" };
        text.push_str(&format!("to close {which}: tidegate backfill {file} --from A --to B --resume\n"));
    }
    let list = gaps.iter().map(|(interval, gap)| with(interval_json(spec, interval), json!({ "why": word(gap) })));
    let json = json!({
        "version": 1, "status": "ok", "pipeline": spec.name, "interval_count": intervals.len(),
        "gaps": list.collect::<Vec<_>>(), "to_finish": begun.values().collect::<Vec<_>>(),
    });
    Outcome { text, json, code: 0 }
}

/// The result where no row was ever ingested.
pub(super) fn never_ran(spec: &PipelineSpec, args: &BackfillArgs) -> Outcome {
    let text = format!("{}: there is no row to derive from, no table changed\n", spec.name);
    let json = json!({
        "version": 1, "status": "no_data", "pipeline": spec.name, "interval_count": 0, "input_rows": 0,
        "intervals": [],
    });
    Outcome { text, json, code: args.no_data_exit_code.unwrap_or(0) }
}
