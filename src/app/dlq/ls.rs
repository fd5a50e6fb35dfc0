//! `tidegate dlq ls`: what was set aside, and why.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::super::output::{aligned, counted, file_argument, grouped};
use super::super::{Failure, Outcome, compose};
use super::select::Selection;
use super::{letter_json, open, ran_before, short, table_name, time, without_values};
use crate::cli::{DlqLsArgs, Global};
use crate::error::Result;
use crate::model::letter::Status;
use crate::transform::letter::Letter;

/// Groups and letters that are shown unless a limit says otherwise.
const SHOWN: usize = 50;

/// Letters that have the same cause.
struct Group<'a> {
    count: u64,
    first: DateTime<Utc>,
    last: DateTime<Utc>,
    example: &'a Letter,
}

impl Group<'_> {
    /// What is wrong; a single letter's error is shown whole.
    fn error<'a>(&'a self, alike: &'a str) -> &'a str {
        if self.count == 1 { &self.example.error } else { alike }
    }
}

/// Table, stage, rule, error, status.
type Cause<'a> = (&'a str, &'a str, &'a str, String, Status);

pub(super) async fn ls(global: &Global, args: &DlqLsArgs) -> Result<Outcome, Failure> {
    let checked = compose::check(global, &args.pipeline.file).await?;
    let spec = &checked.spec;
    let name = table_name(spec)?;
    let selection = Selection::new(&args.letters, &Status::ALL, spec)?;
    let letters = match ran_before(&checked).await? {
        Some((_, identity)) => selection.letters(&mut *open(&checked, &identity)?, None).await?,
        None => {
            selection.check_tables(&[])?;
            Vec::new()
        }
    };
    let open = letters.iter().filter(|letter| letter.status == Status::Open).count();
    let total = counted(letters.len() as u64, "dead letter", "dead letters");
    let mut text = format!("{}: {total} in {name}, {} open\n", spec.name, grouped(open as u64));
    let limit = args.letters.limit.unwrap_or(if args.rows { SHOWN } else { usize::MAX });
    let mut json = json!({
        "version": 1, "status": "ok", "pipeline": spec.name, "table": name, "letters": letters.len(), "open": open,
    });
    if args.rows {
        // Everything in JSON, unless a limit was asked for.
        let listed = args.letters.limit.unwrap_or(usize::MAX);
        json["rows"] = letters.iter().take(listed).map(letter_json).collect::<Vec<_>>().into();
        text.push_str(&rows(&letters, limit));
    } else {
        let (listing, groups) = groups(&letters, limit);
        json["groups"] = groups.into();
        text.push_str(&listing);
    }
    if open > 0 {
        let file = file_argument(global, &args.pipeline.file);
        text.push_str(&format!(
            "one of them whole: tidegate dlq show {file} ID\nafter mending the file: tidegate dlq replay {file}\n"
        ));
    }
    Ok(Outcome { text, json, code: 0 })
}

fn groups(letters: &[Letter], limit: usize) -> (String, Vec<Value>) {
    let mut groups: BTreeMap<Cause<'_>, Group<'_>> = BTreeMap::new();
    for letter in letters {
        let alike = without_values(&letter.stage, &letter.error);
        let cause = (letter.table.as_str(), letter.stage.as_str(), letter.rule.as_str(), alike, letter.status);
        // Letters come oldest first.
        let new = Group { count: 0, first: letter.failed_at, last: letter.failed_at, example: letter };
        let group = groups.entry(cause).or_insert(new);
        group.count += 1;
        group.last = letter.failed_at;
    }
    let mut groups: Vec<(Cause<'_>, Group<'_>)> = groups.into_iter().collect();
    groups.sort_by(|(a_cause, a), (b_cause, b)| (b.count, a_cause).cmp(&(a.count, b_cause)));
    let shown = groups.len().min(limit);
    let row = |((table, stage, rule, error, status), group): &(Cause<'_>, Group<'_>)| {
        let first_line = group.error(error).lines().next().unwrap_or_default();
        vec![
            table.to_string(),
            stage.to_string(),
            rule.to_string(),
            first_line.to_string(),
            status.as_str().to_string(),
            time(group.first),
            time(group.last),
            short(&group.example.id).to_string(),
            grouped(group.count),
        ]
    };
    let header = ["table", "stage", "rule", "error", "status", "first", "last", "such as", "letters"];
    let mut text = match shown {
        0 => String::new(),
        _ => aligned(&header, &groups[..shown].iter().take(SHOWN).map(row).collect::<Vec<_>>(), 8),
    };
    text.push_str(&and_more(groups.len(), shown.min(SHOWN)));
    let json = |((table, stage, rule, error, status), group): &(Cause<'_>, Group<'_>)| {
        json!({
            "table": table, "stage": stage, "rule": rule, "error": group.error(error), "status": status.as_str(),
            "letters": group.count, "first": group.first, "last": group.last, "example": group.example.id,
        })
    };
    (text, groups[..shown].iter().map(json).collect())
}

fn rows(letters: &[Letter], limit: usize) -> String {
    let row = |letter: &Letter| {
        let place = letter.coordinates.as_ref();
        let place = place.map_or("-".to_string(), |at| format!("{}:{}={}", at.topic, at.partition, at.offset));
        vec![
            short(&letter.id).to_string(),
            letter.status.as_str().to_string(),
            letter.table.clone(),
            letter.stage.clone(),
            letter.rule.clone(),
            place,
            time(letter.failed_at),
            letter.batch.to_string(),
            letter.attempts.to_string(),
        ]
    };
    let shown = letters.len().min(limit);
    let header = ["id", "status", "table", "stage", "rule", "record", "set aside", "batch", "attempts"];
    let mut text = match shown {
        0 => String::new(),
        _ => aligned(&header, &letters[..shown].iter().map(row).collect::<Vec<_>>(), 7),
    };
    text.push_str(&and_more(letters.len(), shown));
    text
}

fn and_more(all: usize, shown: usize) -> String {
    match all - shown {
        0 => String::new(),
        more => format!("  and {} more; narrow them down, or --limit\n", grouped(more as u64)),
    }
}
