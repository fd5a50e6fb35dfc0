//! What `status` has seen, for people and for programs.

use std::path::PathBuf;

use chrono::SecondsFormat;
use serde_json::{Value, json};

use super::super::Failure;
use super::super::lag::{Total, warning};
use super::super::output::{aligned, batch_json, foreign, grouped, losses, losses_json, span};
use super::sight::{Sight, State};
use crate::checkpoint::lock::Holder;
use crate::model::batch::Owner;

/// Wider than this and a value is cut: the sample is for a glance, not for copying.
const SAMPLE_WIDTH: usize = 24;

/// One word for tables and programs.
fn word(sight: &Sight) -> &'static str {
    match (&sight.runs, &sight.state) {
        (Some(_), _) => "running",
        (None, State::NeverRan) => "never_ran",
        (None, State::NoBatch | State::Done { .. }) => "idle",
        (None, State::Pending { .. }) => "pending",
        (None, State::Halted { .. }) => "halted",
    }
}

/// One sentence.
fn sentence(sight: &Sight) -> String {
    match (&sight.state, &sight.runs) {
        (State::NeverRan, _) => format!("never ran: no checkpoint at {}", sight.location),
        (State::NoBatch, _) => "no batch yet".to_string(),
        (State::Done { batch }, _) => format!("batch {batch} is done"),
        (State::Pending { batch, since, .. }, Some(_)) => {
            format!("batch {batch} is under way for {}", span(sight.now - *since))
        }
        (State::Pending { batch, since, by }, None) => format!(
            "batch {batch} was begun and not finished; the next run finishes it (begun {} ago by {})",
            span(sight.now - *since),
            owned(by)
        ),
        // A look between two steps of another process sees things that do not fit.
        (State::Halted { .. }, Some(_)) => "its tables change while they are looked at; look again".to_string(),
        (State::Halted { why, .. }, None) => format!("halted: {why}"),
    }
}

fn owned(owner: &Owner) -> String {
    format!("pid {} on host {}", owner.pid, owner.host)
}

fn runner(holder: &Holder) -> String {
    match holder {
        Holder::Known(owner) => owned(owner),
        Holder::Unknown => "another process".to_string(),
    }
}

/// One pipeline at length.
pub(super) fn detail(sight: &Sight) -> String {
    let mut text = format!("{}: {}\n  {}", sight.name, sight.file.display(), sentence(sight));
    if let Some(last) = sight.last() {
        let at = last.committed_at.to_rfc3339_opts(SecondsFormat::Secs, true);
        let ago = span(sight.now - last.committed_at);
        text.push_str(&format!(", last commit {at} ({} rows), {ago} ago", grouped(last.input_rows)));
    }
    text.push('\n');
    if let Some(holder) = &sight.runs {
        text.push_str(&format!("  running: {}\n", runner(holder)));
    }
    if sight.state == State::NeverRan {
        return text;
    }
    text.push_str(&format!("  checkpoint {}\n", sight.location));
    if let (State::Halted { help, .. }, None) = (&sight.state, &sight.runs) {
        help.iter().for_each(|line| text.push_str(&format!("  help: {line}\n")));
    }
    text.push_str(&notes(sight));
    match &sight.lag {
        None => {}
        Some(Ok(partitions)) => {
            text.push_str(&format!("  lag: {}\n", Total::of(partitions).text()));
            let warnings = partitions.iter().filter_map(|behind| warning(behind, None));
            warnings.for_each(|warning| text.push_str(&format!("  warning: {warning}\n")));
        }
        Some(Err(why)) => text.push_str(&format!("  lag unknown: {why}\n")),
    }
    if let Some(last) = sight.last() {
        for (source, at) in &last.next_watermarks {
            let behind = span(sight.now - *at);
            let at = at.to_rfc3339_opts(SecondsFormat::Secs, true);
            text.push_str(&format!("  watermark of {source}: {at} ({behind} ago)\n"));
        }
    }
    if let Some(dead) = sight.dead_today {
        text.push_str(&format!("  dead letters today: {}\n", grouped(dead)));
    }
    text.push_str(&tables(sight));
    text
}

/// What went wrong and is over, and what others did.
fn notes(sight: &Sight) -> String {
    let mut text = String::new();
    for record in &sight.recent {
        for (_, lost) in losses(record) {
            let unread = lost.unread.map(|range| format!(" (offsets {} to {} were planned)", range.from, range.until));
            let (batch, why) = (record.batch, lost.loss.message());
            text.push_str(&format!("  batch {batch} went without: {why}{}\n", unread.unwrap_or_default()));
        }
    }
    for table in sight.tables.iter().filter(|table| !table.foreign.is_empty()) {
        let writes = foreign(&table.foreign);
        text.push_str(&format!("  {} was changed by others since its last batch: {writes}\n", table.name));
    }
    text
}

fn tables(sight: &Sight) -> String {
    let (mut rows, mut samples) = (Vec::new(), String::new());
    for table in &sight.tables {
        let Some(glance) = &table.glance else {
            rows.push([table.name.as_str(), "-", "-", "-", "-", "-"].map(str::to_string).to_vec());
            continue;
        };
        rows.push(vec![
            table.name.clone(),
            glance.version.to_string(),
            table.applied.map_or("-".to_string(), |batch| batch.to_string()),
            grouped(glance.rows),
            grouped(glance.files),
            grouped(glance.bytes),
        ]);
        if !glance.sample.is_empty() {
            samples.push_str(&format!("\n{}\n{}", table.name, sample(&glance.columns, &glance.sample)));
        }
    }
    aligned(&["table", "version", "batch", "rows", "files", "bytes"], &rows, 1) + &samples
}

/// Sample rows, without the columns that are empty in all of them.
fn sample(columns: &[String], rows: &[Vec<String>]) -> String {
    let shown: Vec<usize> = (0..columns.len()).filter(|&at| rows.iter().any(|row| !row[at].is_empty())).collect();
    let cut = |text: &String| match text.char_indices().nth(SAMPLE_WIDTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.clone(),
    };
    let header: Vec<&str> = shown.iter().map(|&at| columns[at].as_str()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| shown.iter().map(|&at| cut(&row[at])).collect()).collect();
    aligned(&header, &rows, header.len())
}

/// A pipeline that could not be looked at.
pub(super) struct Unreadable {
    message: String,
    json: Value,
}

/// Why a pipeline could not be looked at.
pub(super) fn unreadable(failure: &Failure) -> Unreadable {
    match failure {
        Failure::Report(report) => {
            let count = report.problems().len();
            let first = report.problems().first().map(|problem| problem.message.clone()).unwrap_or_default();
            let more = if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() };
            Unreadable {
                message: format!("{first}{more}: tidegate validate {}", report.file()),
                json: report.to_json(),
            }
        }
        Failure::Error(error) => {
            Unreadable { message: error.to_string(), json: super::super::output::error_json(error) }
        }
    }
}

/// One of many.
pub(super) type Entry = (PathBuf, Result<Sight, Unreadable>);

/// Many pipelines, a line each; what needs a person comes below.
pub(super) fn overview(seen: &[Entry]) -> String {
    let (mut rows, mut below) = (Vec::new(), String::new());
    for (file, sight) in seen {
        match sight {
            Ok(sight) => {
                rows.push(row(sight));
                below.push_str(&attention(sight));
            }
            Err(unreadable) => {
                let name = file.display().to_string();
                below.push_str(&format!("{name}: {}\n", unreadable.message));
                rows.push([name.as_str(), "unreadable", "-", "-", "-", "-", "-", "-"].map(str::to_string).to_vec());
            }
        }
    }
    let header = ["pipeline", "state", "batch", "ago", "rows", "unread", "behind", "dead letters today"];
    let table = aligned(&header, &rows, 2);
    if below.is_empty() { table } else { format!("{table}\n{below}") }
}

fn row(sight: &Sight) -> Vec<String> {
    let dash = || "-".to_string();
    let last = sight.last();
    let total = sight.lag.as_ref().and_then(|lag| lag.as_ref().ok()).map(|partitions| Total::of(partitions));
    let behind = total.as_ref().and_then(|total| total.age).map_or_else(dash, span);
    vec![
        sight.name.clone(),
        word(sight).replace('_', " "),
        last.map_or_else(dash, |last| last.batch.to_string()),
        last.map_or_else(dash, |last| span(sight.now - last.committed_at)),
        last.map_or_else(dash, |last| grouped(last.input_rows)),
        total.map_or_else(dash, |total| grouped(total.records)),
        behind,
        sight.dead_today.map_or_else(dash, grouped),
    ]
}

/// What a person should know beyond the line.
fn attention(sight: &Sight) -> String {
    let mut lines = Vec::new();
    if sight.runs.is_none() && matches!(sight.state, State::Halted { .. } | State::Pending { .. }) {
        lines.push(sentence(sight));
    }
    match &sight.lag {
        Some(Err(why)) => lines.push(format!("lag unknown: {why}")),
        Some(Ok(partitions)) => lines.extend(partitions.iter().filter_map(|behind| warning(behind, None))),
        None => {}
    }
    lines.extend(notes(sight).lines().map(|line| line.trim().to_string()));
    lines.into_iter().map(|line| format!("{}: {line}\n", sight.name)).collect()
}

/// One pipeline for programs.
pub(super) fn json(sight: &Sight) -> Value {
    let lag = sight.lag.as_ref().and_then(|lag| lag.as_ref().ok()).map(|partitions| Total::of(partitions));
    let unknown = sight.lag.as_ref().and_then(|lag| lag.as_ref().err());
    let pending = match &sight.state {
        State::Pending { batch, since, by } => Some(json!({ "batch": batch, "since": since, "owner": by })),
        _ => None,
    };
    let running = sight.runs.as_ref().map(|holder| match holder {
        Holder::Known(owner) => json!(owner),
        Holder::Unknown => json!({}),
    });
    let tables = sight.tables.iter().map(|table| match &table.glance {
        None => json!({ "name": table.name, "version": null }),
        Some(glance) => json!({
            "name": table.name, "version": glance.version, "batch": table.applied, "rows": glance.rows,
            "files": glance.files, "bytes": glance.bytes, "foreign": table.foreign,
        }),
    });
    json!({
        "pipeline": sight.name,
        "file": sight.file,
        "state": word(sight),
        "detail": sentence(sight),
        "running": running,
        "pending": pending,
        "checkpoint": sight.location,
        "last_commit": sight.last().map(batch_json),
        "seconds_since_last_commit": sight.last().map(|last| (sight.now - last.committed_at).num_seconds()),
        "backlog": lag.as_ref().map(|lag| lag.records),
        "lag": lag.as_ref().map(Total::json),
        "lag_unknown": unknown,
        "watermarks": sight.last().map(|last| &last.next_watermarks),
        "dead_letters_today": sight.dead_today,
        "losses": losses_json(&sight.recent),
        "tables": tables.collect::<Vec<_>>(),
    })
}

/// Many for programs.
pub(super) fn all_json(seen: &[Entry]) -> Vec<Value> {
    let entry = |(file, sight): &Entry| match sight {
        Ok(sight) => json(sight),
        Err(unreadable) => {
            json!({ "file": file, "state": "unreadable", "detail": unreadable.message, "error": unreadable.json })
        }
    };
    seen.iter().map(entry).collect()
}
