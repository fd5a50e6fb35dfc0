//! What `tidegate forget` says: the account, and what came of it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::Outcome;
use super::super::output::{aligned, counted, file_argument, grouped, quoted};
use super::{Account, Done};
use crate::cli::{ForgetArgs, Global};
use crate::config::spec::{From, PipelineSpec, SHORTEST_RETENTION};
use crate::error::{Error, ErrorKind};
use crate::model::batch::{BatchId, FORMAT_VERSION};
use crate::model::forget::Still;
use crate::runner::forget::Share;
use crate::table::Traces;
use crate::table::maintain::Vacuumed;

pub(super) fn never_ran(spec: &PipelineSpec) -> Outcome {
    let text = format!("{}: never ran, there is nothing to forget\n", spec.name);
    let json = json!({ "version": 1, "status": "no_change", "pipeline": spec.name });
    Outcome { text, json, code: 0 }
}

pub(super) fn dry_run(global: &Global, args: &ForgetArgs, account: &Account) -> Outcome {
    let mut text = what_there_is(args, account);
    let command = command(global, args);
    if account.is_deriving {
        text.push_str(&format!("{}; until then nothing is forgotten\n", DERIVING));
    }
    if account.is_empty() {
        text.push_str("nothing was written: no table holds a row of this key any more\n");
        text.push_str(&format!(
            "old files may: to delete those of these tables at once:\n  {command} --vacuum --yes\n"
        ));
    } else {
        text.push_str(&format!(
            "nothing was written (the last batch is {}); to do it:\n  {command} --yes\n",
            account.last
        ));
        if !args.vacuum {
            text.push_str(
                "old files keep the rows until a vacuum; with --vacuum they go at once, and older versions of these tables \
                 cannot be read any more\n",
            );
        }
    }
    Outcome { text, json: report(account, "dry_run", &Done::default()), code: 0 }
}

pub(super) fn done(global: &Global, args: &ForgetArgs, account: &Account, done: &Done) -> Outcome {
    let mut text = what_there_is(args, account);
    match done.batch {
        Some(batch) => text.push_str(&format!("done: batch {batch} took them out of every table\n")),
        None => text.push_str("nothing left to do: no table holds a row of this key\n"),
    }
    if let Some(at) = &done.kept_at {
        text.push_str(&format!("receipt: {at}\n"));
    }
    match &done.vacuumed {
        Some(vacuumed) => text.push_str(&deleted(vacuumed)),
        None if done.batch.is_some() => text.push_str(&format!(
            "old files still hold them: {}; to delete them now:\n  {} --vacuum --yes\n",
            until(account, &file_argument(global, &args.pipeline.file)),
            command(global, args)
        )),
        None => {}
    }
    if let Some(until) = logs_until(&done.receipt) {
        let day = until.split('T').next().unwrap_or(until);
        text.push_str(&format!("their _delta_log names values of the key until {day} at the earliest (`log` below)\n"));
    }
    if done.batch.is_some() {
        text.push_str(&format!("{:#}\n", done.receipt));
    }
    let status = if done.batch.is_some() { "ok" } else { "no_change" };
    Outcome { text, json: report(account, status, done), code: 0 }
}

/// The command as it was typed, without what makes it act.
fn command(global: &Global, args: &ForgetArgs) -> String {
    let mut command = format!("tidegate forget {}", file_argument(global, &args.pipeline.file));
    for key in &args.keys {
        command.push_str(&format!(" --key {}", quoted(key)));
    }
    if !args.tables.is_empty() {
        command.push_str(&format!(" --tables {}", quoted(&args.tables.join(","))));
    }
    for (is_asked, flag) in [(args.containing, "--containing"), (args.offline, "--offline")] {
        if is_asked {
            command.push_str(&format!(" {flag}"));
        }
    }
    command
}

const DERIVING: &str = "a backfill was begun and is not finished: it has read rows, and needs old files to finish";

/// Refused while a backfill is in the middle of its work.
pub(super) fn deriving(file: &str) -> Error {
    Error::new(ErrorKind::Busy, DERIVING)
        .help("nothing was changed")
        .help(format!("finish it, then forget; which days: tidegate backfill {file} --gaps"))
}

fn what_there_is(args: &ForgetArgs, account: &Account) -> String {
    let mut text = format!("{}: rows where {}\n", account.spec.name, condition(account));
    let mut rows = Vec::new();
    for (name, share) in &account.shares {
        let (count, remembered) = match share {
            Share::Holds(held) => (grouped(held.rows), grouped(held.remembered)),
            Share::Letters(has, contain) => {
                let count = if account.key.containing { has + contain } else { *has };
                (grouped(count), "-".to_string())
            }
            _ => ("-".to_string(), "-".to_string()),
        };
        rows.push(vec![name.clone(), count, remembered, verdict(account, name, share)]);
    }
    text.push_str(&worded(&rows));
    for (name, rows) in &account.left_out {
        let rows = counted(*rows, "row", "rows");
        text.push_str(&format!("{name} is left out by --tables and keeps {rows}: {}\n", way_back(account, name)));
    }
    text.push_str(&remembered(account));
    text.push_str(&sources(account));
    if args.vacuum || !account.is_empty() {
        text.push_str(&logs(account));
    }
    for owed in &account.owed {
        let tables = owed.tables.join(", ");
        text.push_str(&format!(
            "the --vacuum of batch {} was cut short: with --yes the old files of {tables} are deleted, too\n",
            owed.batch
        ));
    }
    text
}

/// What brings rows back out of a table that keeps them.
fn way_back(account: &Account, name: &str) -> &'static str {
    let is_upstream = account.spec.tables.iter().any(|table| table.from == From::Table(name.to_string()));
    let is_dead_letters = account.spec.dead_letters.as_ref().is_some_and(|dead_letters| dead_letters.table == name);
    match (is_upstream, is_dead_letters) {
        (true, _) => "a backfill derives rows of other tables from them again",
        (_, true) => "dlq replay makes rows of other tables of them again",
        _ => "nothing is derived from them",
    }
}

/// What no vacuum takes out of the logs of tables, and for how long.
fn logs(account: &Account) -> String {
    let named = account.traces.iter().filter(|(_, traces)| !traces.is_nothing());
    let row = |(name, traces): (&String, &Traces)| {
        let days = counted(traces.retention.as_secs().div_ceil(86_400), "day", "days");
        let (statistics, partitions) = (traces.statistics.join(", "), traces.partitions.join(", "));
        let versions = format!("{days}, and {} newer versions", grouped(traces.newer));
        vec![name.clone(), or_none(statistics), or_none(partitions), versions]
    };
    let rows: Vec<Vec<String>> = named.map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    let table = aligned(&["table", "in statistics", "as partitions", "until runs clean it after"], &rows, 4);
    format!(
        "_delta_log keeps values of rows that went (of a file the smallest and the largest), vacuum or not:\n{table}"
    )
}

fn or_none(text: String) -> String {
    if text.is_empty() { "-".to_string() } else { text }
}

/// The moment before which the logs surely name values still, by what the receipt says.
fn logs_until(receipt: &Value) -> Option<&str> {
    let tables = ["tables", "recomputed"].into_iter().filter_map(|list| receipt[list].as_array()).flatten();
    tables.filter_map(|table| table["log"]["leaves_after"].as_str()).max()
}

/// Numbers to the right, and the words after them to the left.
fn worded(rows: &[Vec<String>]) -> String {
    let numbers: Vec<Vec<String>> = rows.iter().map(|row| row[..3].to_vec()).collect();
    let numbers = aligned(&["table", "rows", "remembered deletes"], &numbers, 1);
    let width = numbers.lines().map(|line| line.chars().count()).max().unwrap_or_default();
    let words = std::iter::once("what happens").chain(rows.iter().map(|row| row[3].as_str()));
    numbers.lines().zip(words).map(|(line, words)| format!("{line:width$}  {words}\n")).collect()
}

fn condition(account: &Account) -> String {
    let equal = account.key.values.iter().map(|(column, value)| format!("{column} = {value}"));
    equal.collect::<Vec<_>>().join(" and ")
}

/// What happens to one table, and why it matters where nothing does.
fn verdict(account: &Account, name: &str, share: &Share) -> String {
    match share {
        Share::Holds(_) if account.recomputed.contains(name) => recomputed(account, name).to_string(),
        Share::Holds(_) if !account.tables.contains_key(name) => {
            "stays: it is computed from tables without the column; forget by a column that they have".to_string()
        }
        Share::Holds(held) => {
            let what = if held.rows + held.remembered == 0 { "nothing to remove" } else { "removed" };
            let mute = "; deletes are remembered by other columns: those of records in bronze are found, others stay";
            format!("{what}{}", if held.is_mute { mute } else { "" })
        }
        Share::Letters(0, 0) => "nothing to remove".to_string(),
        Share::Letters(_, 0) => "removed".to_string(),
        Share::Letters(_, contain) if account.key.containing => {
            format!("removed, {} of them because they contain the values", grouped(*contain))
        }
        Share::Letters(has, contain) => {
            let what = if *has == 0 { "nothing to remove" } else { "removed" };
            let letters = counted(*contain, "letter that contains", "letters that contain");
            format!("{what}; {letters} the values as words: kept, for replays too, unless --containing")
        }
        Share::Never(why) => format!("stays: {why}"),
        Share::Absent => "not written yet".to_string(),
        Share::Lacks(has, lacks) => format!("{}: {}", lacking(has, lacks), consequence(account, name)),
    }
}

fn recomputed(account: &Account, name: &str) -> &'static str {
    match account.spec.tables.iter().any(|table| table.name == name && table.keeps.is_some()) {
        true => "computed again from the rows that stay, as far back as they go",
        false => "recomputed for the groups that are touched",
    }
}

fn lacking(has: &[String], lacks: &[String]) -> String {
    match has.is_empty() {
        true => format!("no column {}", lacks.join(", ")),
        false => format!("column {}, but no {}", has.join(", "), lacks.join(", ")),
    }
}

fn consequence(account: &Account, name: &str) -> &'static str {
    if account.recomputed.contains(name) {
        return recomputed(account, name);
    }
    if account.follows.contains(name) {
        return "computed from tables that have no such row any more";
    }
    "stays, its rows cannot be told apart; a PROBLEM if another column names the person"
}

/// What tables remember beside their rows, and nobody computes again.
fn remembered(account: &Account) -> String {
    let has = account.states.iter().filter(|(_, entries)| **entries > 0);
    let line = |(name, entries): (&String, &u64)| {
        format!("what {name} remembers between batches loses {}\n", counted(*entries, "entry", "entries"))
    };
    let dim = account.dim.iter().map(|name| {
        format!(
            "what {name} remembers between batches cannot be told apart by {}: it stays until time lets go of it, and rows \
             that repeat remembered ones are repetitions\n",
            account.key.columns().join(", ")
        )
    });
    let otherwise = account.otherwise.iter().map(|(name, (columns, rows))| {
        let keys = columns.iter().zip(account.key.values.values());
        let keys: String =
            keys.map(|(column, value)| format!(" --key {}", quoted(&format!("{column}={value}")))).collect();
        let rows = counted(*rows, "row", "rows");
        format!(
            "{name} names them on the right side of its pairs, too, in {rows}, which stay: to take those out:{keys}\n"
        )
    });
    has.map(line).chain(dim).chain(otherwise).collect()
}

fn sources(account: &Account) -> String {
    let Some(sources) = &account.sources else {
        return "sources were not asked (--offline): records that they still hold bring the rows back if they are read \
                again\n"
            .to_string();
    };
    let mut text = String::new();
    for (name, still) in sources {
        let records: u64 = still.iter().map(|still| still.records).sum();
        if account.mute.contains(name) {
            text.push_str(&format!(
                "source `{name}`: its schema lacks the columns, its records cannot be told apart\n"
            ));
        }
        if records == 0 {
            continue;
        }
        let counted = counted(records, "record", "records");
        text.push_str(&format!("source `{name}` still holds {counted}; they are not touched:\n"));
        let row = |still: &Still| {
            let numbers = [still.records.to_string(), still.first.to_string(), still.last.to_string()];
            std::iter::once(still.partition.to_string()).chain(numbers).collect::<Vec<_>>()
        };
        let rows: Vec<Vec<String>> = still.iter().map(row).collect();
        text.push_str(&aligned(&["partition", "records", "first offset", "last offset"], &rows, 1));
        text.push_str("  read again (offsets rewind, a backfill from the source), they bring the rows back\n");
    }
    text.push_str("a record that arrives later is a new row\n");
    text
}

fn deleted(vacuumed: &BTreeMap<String, Vacuumed>) -> String {
    let row = |(name, done): (&String, &Vacuumed)| {
        let what = done.skipped.clone().map_or(String::new(), |why| format!(" (left alone: {why})"));
        vec![format!("{name}{what}"), grouped(done.expired + done.orphans), grouped(done.bytes)]
    };
    let rows: Vec<Vec<String>> = vacuumed.iter().map(row).collect();
    let table = aligned(&["old files of", "deleted", "bytes"], &rows, 1);
    format!("{table}  files of a batch that was never committed stay for a day: tidegate vacuum deletes them then\n")
}

/// When old files leave by themselves.
fn until(account: &Account, file: &str) -> String {
    let by_itself = account.tables.keys().all(|name| account.spec.maintain.of(name).vacuum.is_some());
    let retain = account.tables.keys().filter_map(|name| account.spec.maintain.of(name).vacuum).max();
    let days = retain.unwrap_or(SHORTEST_RETENTION).max(SHORTEST_RETENTION).as_secs().div_ceil(86_400);
    match by_itself {
        true => format!("runs delete them after {days} days"),
        false => format!("after {days} days `tidegate vacuum {file} --yes` deletes them"),
    }
}

/// The receipt of the deleted files.
pub(super) fn files(spec: &PipelineSpec, batch: Option<BatchId>, vacuumed: &BTreeMap<String, Vacuumed>) -> Value {
    json!({ "version": FORMAT_VERSION, "pipeline": spec.name, "batch": batch, "tables": vacuumed_json(vacuumed) })
}

fn vacuumed_json(vacuumed: &BTreeMap<String, Vacuumed>) -> Vec<Value> {
    let entry = |(name, done): (&String, &Vacuumed)| {
        json!({
            "name": name, "files": done.expired + done.orphans, "bytes": done.bytes, "skipped": done.skipped,
            "paths": done.paths,
        })
    };
    vacuumed.iter().map(entry).collect()
}

fn report(account: &Account, status: &str, done: &Done) -> Value {
    let table = |(name, share): &(String, Share)| {
        let mut entry = json!({ "name": name, "what": verdict(account, name, share) });
        if let Some(traces) = account.traces.get(name).filter(|traces| !traces.is_nothing()) {
            entry["log"] = json!({
                "statistics": traces.statistics, "partitions": traces.partitions,
                "retention_days": traces.retention.as_secs().div_ceil(86_400), "and_after_commits": traces.newer,
            });
        }
        match share {
            Share::Holds(held) => {
                entry["rows"] = held.rows.into();
                entry["remembered_deletes"] = held.remembered.into();
            }
            Share::Letters(has, contain) => {
                entry["rows"] = (*has).into();
                entry["containing"] = (*contain).into();
            }
            Share::Lacks(has, lacks) => {
                entry["has"] = json!(has);
                entry["lacks"] = json!(lacks);
            }
            Share::Never(_) | Share::Absent => {}
        }
        entry
    };
    json!({
        "version": 1, "status": status, "pipeline": account.spec.name, "columns": account.key.columns(),
        "tables": account.shares.iter().map(table).collect::<Vec<_>>(),
        "recomputed": account.recomputed, "states": account.states, "states_without_column": account.dim,
        "named_otherwise": account.otherwise, "sources": account.sources, "sources_without_column": account.mute,
        "left_out": account.left_out, "owed": account.owed, "unfinished_backfill": account.is_deriving,
        "batch": done.batch, "receipt": done.receipt, "receipt_at": done.kept_at,
        "vacuumed": done.vacuumed.as_ref().map(vacuumed_json),
    })
}
