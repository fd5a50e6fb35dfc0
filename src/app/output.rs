//! Numbers, tables and JSON as people and programs read them.

use std::path::Path;

use chrono::TimeDelta;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde_json::{Value, json};

use crate::cli::Global;
use crate::config::report::Report;
use crate::error::{Error, ErrorKind};
use crate::model::batch::{BatchPlan, CommitRecord, ForeignWrite, Owner, Receipt};
use crate::model::lag::{Because, Headroom, Lag};
use crate::model::loss::Lost;

/// The pipeline file as it stands in commands to type, with the target that goes with it.
pub(super) fn file_argument(global: &Global, file: &Path) -> String {
    file_of(file, global.target.as_deref())
}

/// The same where there is no command line at hand.
pub(super) fn file_of(file: &Path, target: Option<&str>) -> String {
    let file = quoted(&file.display().to_string());
    match target {
        Some(target) => format!("{file} --target {}", quoted(target)),
        None => file,
    }
}

/// One word of a command, for a POSIX shell.
pub(super) fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "_-./:=@%+,".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// The `error` member of a result.
pub(super) fn error_json(error: &Error) -> Value {
    json!({
        "code": error.code().to_string(),
        "kind": error.kind().as_str(),
        "exit_code": error.kind().exit_code(),
        "message": error.to_string(),
        "help": error.help_lines(),
    })
}

/// The same for a file with problems: the first one speaks for all, which are in `problems`.
pub(super) fn report_json(report: &Report) -> Value {
    let problems = report.to_json();
    let first = |member: &str| problems.get(0).and_then(|problem| problem.get(member)).cloned().unwrap_or_default();
    let kind = ErrorKind::Config;
    json!({
        "code": first("code"),
        "kind": kind.as_str(),
        "exit_code": kind.exit_code(),
        "message": first("message"),
        "help": first("help"),
        "file": first("file"),
        "line": first("line"),
        "column": first("column"),
        "problems": problems,
    })
}

/// What batches went without, one entry per partition and reason.
pub(super) fn losses_json(records: &[CommitRecord]) -> Vec<Value> {
    let entry = |record: &CommitRecord, source: &String, lost: &Lost| {
        let mut json = json!({ "batch_id": record.batch, "source": source, "message": lost.loss.message() });
        if let (Value::Object(entry), Ok(Value::Object(fields))) = (&mut json, serde_json::to_value(lost)) {
            entry.extend(fields);
        }
        json
    };
    let of = |record| losses(record).map(move |(source, lost)| entry(record, source, lost));
    records.iter().flat_map(of).collect()
}

/// What a batch went without, with the source's name.
pub(super) fn losses(record: &CommitRecord) -> impl Iterator<Item = (&String, &Lost)> {
    record.lost.iter().flat_map(|(source, lost)| lost.iter().map(move |lost| (source, lost)))
}

/// A finished batch in a result.
pub(super) fn batch_json(record: &CommitRecord) -> Value {
    json!({
        "batch_id": record.batch,
        "input_rows": record.input_rows,
        "input_bytes": record.input_bytes,
        "offsets": record.offsets,
        "dead_letters": record.dead_letters,
        "expectations": record.expectations,
        "replayed_from": record.replayed_from,
        "duration_ms": record.duration_ms,
        "tables": record.tables,
        "lost": record.lost,
        "committed_at": record.committed_at,
    })
}

/// One batch with the field names of Spark's `StreamingQueryProgress` (`progress.scala`), for dashboards that know them.
pub(super) fn progress_json(plan: &BatchPlan, record: &CommitRecord, pipeline_id: &str, owner: &Owner) -> Value {
    let total = record.duration_ms.get("triggerExecution").copied().unwrap_or_default();
    let rate = record.input_rows as f64 * 1000.0 / total.max(1) as f64;
    let sources: Vec<Value> = plan
        .sources
        .iter()
        .map(|(name, ranges)| {
            let mut start = std::collections::BTreeMap::new();
            let mut end = std::collections::BTreeMap::new();
            for (partition, range) in &ranges.0 {
                start.insert(partition.clone(), range.from);
                end.insert(partition.clone(), range.until);
            }
            json!({
                "description": name,
                "startOffset": crate::model::offset::Offsets(start),
                "endOffset": crate::model::offset::Offsets(end),
                "numInputRows": record.input_rows,
            })
        })
        .collect();
    let written: u64 = record.tables.values().map(|receipt| receipt.inserted + receipt.updated).sum();
    json!({
        "id": pipeline_id,
        "runId": owner.run_id,
        "name": plan.pipeline,
        "timestamp": plan.batch_time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        "batchId": record.batch,
        "batchDuration": total,
        "numInputRows": record.input_rows,
        "processedRowsPerSecond": (rate * 10.0).round() / 10.0,
        "durationMs": record.duration_ms,
        "eventTime": event_time(record),
        "stateOperators": state_operators(record),
        "sources": sources,
        "sink": { "description": "Delta", "numOutputRows": written },
    })
}

/// Spark's `eventTime`: the watermark of the table that is furthest behind.
fn event_time(record: &CommitRecord) -> Value {
    match record.next_watermarks.values().min() {
        Some(watermark) => {
            json!({ "watermark": watermark.to_rfc3339_opts(chrono::SecondsFormat::Millis, true) })
        }
        None => json!({}),
    }
}

/// Spark's `stateOperators`: one a table that remembers something.
fn state_operators(record: &CommitRecord) -> Vec<Value> {
    let remembers = |(table, receipt): (&String, &Receipt)| {
        let (entries, bytes) = receipt.state_size?;
        let late = record.expectations.get(&format!("{table}.late")).copied().unwrap_or_default();
        let watermark = record.next_watermarks.get(table);
        Some(json!({
            "operatorName": table,
            "numRowsTotal": entries,
            "memoryUsedBytes": bytes,
            "numRowsDroppedByWatermark": late,
            "watermark": watermark.map(|at| at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)),
        }))
    };
    record.tables.iter().filter_map(remembers).collect()
}

/// Commits of others: the newest few by name, the others by number.
pub(super) fn foreign(writes: &[ForeignWrite]) -> String {
    const SHOWN: usize = 5;
    let older = writes.len().saturating_sub(SHOWN);
    let mut texts: Vec<String> = writes[older..].iter().map(ForeignWrite::to_string).collect();
    if older > 0 {
        texts.insert(0, format!("{older} older commits"));
    }
    texts.join(", ")
}

/// `1234567` as `1,234,567`.
pub(super) fn grouped(number: impl TryInto<i128>) -> String {
    let Ok(number) = number.try_into() else { return "?".to_string() };
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0 { format!("-{text}") } else { text }
}

/// `1 batch`, `2 batches`.
pub(super) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(number), if number == 1 { one } else { many })
}

/// Milliseconds as `870 ms` or `1.9 s`.
pub(super) fn duration(milliseconds: u64) -> String {
    match milliseconds {
        0..=999 => format!("{milliseconds} ms"),
        1_000..=119_999 => format!("{:.1} s", milliseconds as f64 / 1000.0),
        _ => format!("{} min {} s", milliseconds / 60_000, milliseconds / 1000 % 60),
    }
}

/// `3 h 10 m`: the two largest units, for times that people wait for.
pub(super) fn span(time: TimeDelta) -> String {
    let seconds = time.num_seconds().max(0);
    let two = |large: i64, large_unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{large} {large_unit}"),
        _ => format!("{large} {large_unit} {small} {small_unit}"),
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => two(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

/// How long unread records stay.
pub(super) fn headroom(headroom: &Headroom) -> String {
    match headroom {
        Headroom::CaughtUp => "nothing unread".to_string(),
        Headroom::Forever => "kept for ever".to_string(),
        Headroom::Lost => "lost".to_string(),
        Headroom::Unknown => "?".to_string(),
        Headroom::Left(left, _) if *left <= TimeDelta::zero() => "any moment".to_string(),
        Headroom::Left(left, Because::Age) => span(*left),
        Headroom::Left(left, Because::Size | Because::Observed) => format!("about {}", span(*left)),
    }
}

/// What is about to be lost, and what to do.
pub(super) fn headroom_warning(lag: &Lag) -> String {
    let (partition, unread) = (&lag.partition, grouped(lag.records));
    if lag.headroom == Headroom::Lost {
        return format!(
            "records of {partition} were deleted before they were read: tidegate run says what can be done"
        );
    }
    let when = match &lag.headroom {
        Headroom::Left(left, _) if *left > TimeDelta::zero() => format!("in {}", headroom(&lag.headroom)),
        _ => "any moment".to_string(),
    };
    let why = match &lag.headroom {
        Headroom::Left(_, Because::Age) => "they will be as old as its retention.ms",
        Headroom::Left(_, Because::Size) => "retention.bytes pushes them out at the pace of the topic",
        _ => "it keeps records for about as long as they have been waiting",
    };
    format!(
        "{unread} records of {partition} are not read yet, and the topic deletes the oldest of them {when}: {why}; let the \
         pipeline catch up, or raise the topic's retention"
    )
}

/// Columns aligned with spaces: the first `left` columns to the left, the others (numbers) to the right.
pub(super) fn aligned(header: &[&str], rows: &[Vec<String>], left: usize) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row.clone());
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if index == 0 { 2 } else { 1 }, 1));
        column.set_cell_alignment(if index < left { CellAlignment::Left } else { CellAlignment::Right });
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_string()).collect();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [(0i64, "0"), (999, "999"), (1000, "1,000"), (-1234567, "-1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn spans_have_two_units_at_most() {
        let texts =
            [(0, "0 s"), (59, "59 s"), (61, "1 m 1 s"), (11_400, "3 h 10 m"), (86_400, "1 d"), (180_000, "2 d 2 h")];
        for (seconds, text) in texts {
            assert_eq!(span(TimeDelta::seconds(seconds)), text);
        }
        assert_eq!(headroom(&Headroom::Left(TimeDelta::seconds(-5), Because::Age)), "any moment");
        assert_eq!(headroom(&Headroom::Left(TimeDelta::seconds(11_400), Because::Size)), "about 3 h 10 m");
    }

    #[test]
    fn durations_change_their_unit() {
        assert_eq!(
            (duration(870), duration(1900), duration(125_000)),
            ("870 ms".into(), "1.9 s".into(), "2 min 5 s".into())
        );
    }
}
