//! `tidegate status`: where a pipeline stands. Reads only.

use serde_json::{Value, json};

use super::output::{aligned, foreign, grouped, losses, losses_json};
use super::{Failure, Outcome, compose};
use crate::checkpoint::CheckpointLog;
use crate::cli::{Global, StatusArgs};
use crate::error::Result;
use crate::model::offset::Offsets;
use crate::model::recover::{Decision, recover};
use crate::runner::Runner;
use crate::runner::event::Event;
use crate::{storage, table};

/// Batches whose losses are shown.
const RECENT: usize = 10;

pub(super) async fn status(global: &Global, args: &StatusArgs) -> Result<Outcome, Failure> {
    let checked = compose::check(global, &args.pipeline.file).await?;
    let spec = checked.spec.clone();
    let owner = compose::owner();
    let log = compose::open_log(&spec)?;
    let location = log.location();
    let identity = compose::known_identity(&spec, &log).await?;
    let mut text = format!("{}: {}\n", spec.name, spec.file.display());
    let Some(identity) = identity else {
        compose::check_never_ran(&checked, &log).await?;
        text.push_str(&format!("  never ran: no checkpoint at {location}\n"));
        let json = json!({ "version": 1, "status": "ok", "pipeline": spec.name, "state": "never_ran" });
        return Ok(Outcome { text, json, code: 0 });
    };
    let recent = log.history(RECENT).await?;
    let parts = compose::parts(checked, &identity, owner, Box::new(log), Box::new(|_: &Event| {}))?;
    let mut runner = Runner::new(parts);
    let facts = runner.observe().await?;
    let state = match recover(&facts) {
        Decision::Begin => "no batch yet".to_string(),
        Decision::Plan { batch } => format!("batch {} is done", batch - 1),
        Decision::Replay(plan) => format!("batch {} was begun and not finished; the next run finishes it", plan.batch),
        Decision::Halt(why) => format!("halted: {why}"),
    };
    text.push_str(&format!("  {state}"));
    if let Some(commit) = &facts.commit {
        let at = commit.committed_at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        text.push_str(&format!(", last commit {at} ({} rows)", grouped(commit.input_rows)));
    }
    text.push_str(&format!("\n  checkpoint {location}\n"));
    for record in &recent {
        for (_, lost) in losses(record) {
            let unread = lost.unread.map(|range| format!(" (offsets {} to {} were planned)", range.from, range.until));
            let (batch, why) = (record.batch, lost.loss.message());
            text.push_str(&format!("  batch {batch} went without: {why}{}\n", unread.unwrap_or_default()));
        }
    }

    for (name, fact) in facts.tables.iter().filter(|(_, fact)| !fact.foreign.is_empty()) {
        text.push_str(&format!("  {name} was changed by others since its last batch: {}\n", foreign(&fact.foreign)));
    }

    let mut backlog: Option<i64> = None;
    if !args.offline {
        let position = facts.commit.as_ref().map(|commit| commit.offsets.clone()).unwrap_or_default();
        let left = |(name, end): (&String, &Offsets)| {
            let from = position.get(name).cloned().unwrap_or_default();
            let new: i64 = end.0.iter().filter(|(p, _)| !from.0.contains_key(p)).map(|(_, &until)| until).sum();
            from.ranges_to(end).len() + new
        };
        match runner.ends().await {
            Ok(ends) => {
                let left: i64 = ends.iter().map(left).sum();
                text.push_str(&format!("  backlog {} offsets\n", grouped(left)));
                backlog = Some(left);
            }
            // The tables are worth a look all the same.
            Err(error) => text.push_str(&format!("  backlog unknown: {error}\n")),
        }
    }

    let lake = storage::open(&spec.lake)?;
    let (mut rows, mut previews, mut tables) = (Vec::new(), String::new(), Vec::<Value>::new());
    for name in facts.tables.keys() {
        let glance = table::glance::glance(&lake, name, args.rows).await?;
        let Some(glance) = glance else {
            rows.push(vec![name.clone(), "-".into(), "-".into(), "-".into(), "-".into(), "-".into()]);
            tables.push(json!({ "name": name, "version": null }));
            continue;
        };
        let fact = facts.tables.get(name);
        let applied = fact.and_then(|fact| fact.applied);
        rows.push(vec![
            name.clone(),
            glance.version.to_string(),
            applied.map_or("-".to_string(), |batch| batch.to_string()),
            grouped(glance.rows),
            grouped(glance.files),
            grouped(glance.bytes),
        ]);
        if args.rows > 0 {
            previews.push_str(&format!("\n{name}\n{}", sample(&glance.columns, &glance.sample)));
        }
        tables.push(json!({
            "name": name, "version": glance.version, "batch": applied, "rows": glance.rows,
            "files": glance.files, "bytes": glance.bytes, "foreign": fact.map(|fact| &fact.foreign),
        }));
    }
    text.push_str(&aligned(&["table", "version", "batch", "rows", "files", "bytes"], &rows, 1));
    text.push_str(&previews);
    let json = json!({
        "version": 1,
        "status": "ok",
        "pipeline": spec.name,
        "state": state,
        "last_commit": facts.commit.as_ref().map(super::output::batch_json),
        "backlog": backlog,
        "losses": losses_json(&recent),
        "tables": tables,
    });
    Ok(Outcome { text, json, code: 0 })
}

/// Wider than this and a value is cut: the sample is for a glance, not for copying.
const SAMPLE_WIDTH: usize = 24;

/// Sample rows, without the columns that are empty in all of them.
fn sample(columns: &[String], rows: &[Vec<String>]) -> String {
    let shown: Vec<usize> = (0..columns.len()).filter(|&at| rows.iter().any(|row| !row[at].is_empty())).collect();
    let cut = |text: &String| match text.char_indices().nth(SAMPLE_WIDTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.clone(),
    };
    let header: Vec<&str> = shown.iter().map(|&at| columns[at].as_str()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| shown.iter().map(|&at| cut(&row[at])).collect()).collect();
    match rows.is_empty() {
        true => "  no rows\n".to_string(),
        false => aligned(&header, &rows, header.len()),
    }
}
