//! What `tidegate forget` says: the account, and what came of it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::Outcome;
use super::super::output::{aligned, counted, file_argument, grouped, quoted};
use super::{Account, Done};
use crate::cli::{ForgetArgs, Global};
use crate::config::spec::{PipelineSpec, SHORTEST_RETENTION};
use crate::model::batch::{BatchId, FORMAT_VERSION};
use crate::model::forget::Still;
use crate::runner::forget::Share;
use crate::table::maintain::Vacuumed;

pub(super) fn never_ran(spec: &PipelineSpec) -> Outcome {
    let text = format!("{}: never ran, there is nothing to forget\n", spec.name);
    let json = json!({ "version": 1, "status": "no_change", "pipeline": spec.name });
    Outcome { text, json, code: 0 }
}

pub(super) fn dry_run(global: &Global, args: &ForgetArgs, account: &Account) -> Outcome {
    let mut text = what_there_is(account);
    let command = command(global, args);
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
    let mut text = what_there_is(account);
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

fn what_there_is(account: &Account) -> String {
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
    text.push_str(&sources(account));
    text
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
        Share::Holds(_) if account.recomputed.contains(name) => RECOMPUTED.to_string(),
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
            format!("{what}; {letters} the values as words: kept unless --containing")
        }
        Share::Never(why) => format!("stays: {why}"),
        Share::Absent => "not written yet".to_string(),
        Share::Lacks(has, lacks) => format!("{}: {}", lacking(has, lacks), consequence(account, name)),
    }
}

const RECOMPUTED: &str = "recomputed for the groups that are touched";

fn lacking(has: &[String], lacks: &[String]) -> String {
    match has.is_empty() {
        true => format!("no column {}", lacks.join(", ")),
        false => format!("column {}, but no {}", has.join(", "), lacks.join(", ")),
    }
}

fn consequence(account: &Account, name: &str) -> &'static str {
    if account.recomputed.contains(name) {
        return RECOMPUTED;
    }
    "stays, its rows cannot be told apart; a PROBLEM if another column names the person"
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
        text.push_str("  read again (offsets rewind, backfill --source kafka), they bring the rows back\n");
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
    format!(
        "{table}  files of a batch that was never committed stay for a day: tidegate vacuum deletes them then\n  statistics \
         in old commits (_delta_log) may name single values until the log is cleaned\n"
    )
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
        "recomputed": account.recomputed, "sources": account.sources, "sources_without_column": account.mute,
        "batch": done.batch, "receipt": done.receipt, "receipt_at": done.kept_at,
        "vacuumed": done.vacuumed.as_ref().map(vacuumed_json),
    })
}
