//! `tidegate checkpoint show`: the log as it is, damaged objects included. Reads only.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::output::{aligned, counted, grouped};
use super::super::{Failure, Outcome, compose};
use super::{positions, state};
use crate::checkpoint::CheckpointLog;
use crate::checkpoint::inspect::Object;
use crate::cli::{CheckpointShowArgs, Global};
use crate::error::{Code, Error, ErrorKind};
use crate::model::batch::{BatchId, BatchPlan, CommitRecord};
use crate::model::letter::{Action, Letters};

/// Batches in the list.
const SHOWN: usize = 10;

pub(in crate::app) async fn show(global: &Global, args: &CheckpointShowArgs) -> Result<Outcome, Failure> {
    let checked = compose::check(global, &args.pipeline.file).await?;
    let spec = &checked.spec;
    let log = compose::open_log(spec)?;
    let (mut identity, mut damaged) = (None, Vec::new());
    let mut plans: BTreeMap<BatchId, BatchPlan> = BTreeMap::new();
    let mut commits: BTreeMap<BatchId, CommitRecord> = BTreeMap::new();
    for entry in log.inspect().await? {
        match entry.object {
            Ok(Object::Identity(found)) => identity = Some(found),
            Ok(Object::Plan(plan)) => drop(plans.insert(plan.batch, *plan)),
            Ok(Object::Commit(commit)) => drop(commits.insert(commit.batch, *commit)),
            Ok(Object::Start(..) | Object::Stray) => {}
            Err(error) => damaged.push((entry.path, error)),
        }
    }
    if let Some(batch) = args.batch {
        return Ok(one(batch, plans.get(&batch), commits.get(&batch))?);
    }
    let mut text = format!("{}: checkpoint at {}\n", spec.name, log.location());
    match &identity {
        Some(identity) => {
            let by = &identity.created_by;
            text.push_str(&format!(
                "  pipeline id {}, created by pid {} on host {}\n",
                identity.pipeline_id, by.pid, by.host
            ));
        }
        None => text.push_str("  no identity: the pipeline never ran, or metadata.json is lost\n"),
    }
    text.push_str(&format!("  {}\n", state(&plans, &commits)));
    for (path, error) in &damaged {
        text.push_str(&format!("  damaged: {path}: {}\n", error.message()));
    }
    let owner = plans.values().next_back().map(|plan| plan.owner.clone());
    if let Some(owner) = &owner {
        let run = &owner.run_id;
        text.push_str(&format!("  last planned by pid {} on host {} (run {run})\n", owner.pid, owner.host));
    }
    let ids: Vec<BatchId> =
        plans.keys().chain(commits.keys()).copied().collect::<std::collections::BTreeSet<_>>().into_iter().collect();
    let newest: Vec<BatchId> = ids.iter().rev().take(SHOWN).copied().collect();
    let rows: Vec<Vec<String>> = newest.iter().map(|batch| row(*batch, plans.get(batch), commits.get(batch))).collect();
    if !rows.is_empty() {
        let kept = counted(ids.len() as u64, "batch", "batches");
        text.push_str(&format!("  {kept} kept, newest first\n"));
        text.push_str(&aligned(&["batch", "what", "planned", "committed", "rows", "dead letters"], &rows, 4));
    }
    let offsets = commits.values().next_back().map(|commit| commit.offsets.clone()).unwrap_or_default();
    if !offsets.is_empty() {
        text.push_str(&aligned(&["source", "partition", "next offset"], &positions(&offsets), 2));
    }
    let json = json!({
        "version": 1, "status": "ok", "pipeline": spec.name, "checkpoint": log.location(),
        "identity": identity, "state": state(&plans, &commits), "owner": owner,
        "damaged": damaged.iter().map(|(path, error)| json!({"object": path, "why": error.message()})).collect::<Vec<_>>(),
        "batches": newest.iter().map(|batch| json!({
            "batch": batch, "plan": plans.get(batch), "commit": commits.get(batch),
        })).collect::<Vec<Value>>(),
        "offsets": offsets,
    });
    Ok(Outcome { text, json, code: 0 })
}

fn row(batch: BatchId, plan: Option<&BatchPlan>, commit: Option<&CommitRecord>) -> Vec<String> {
    let time = |time: chrono::DateTime<chrono::Utc>| time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    let what = match (plan, commit) {
        (Some(plan), _) if plan.is_move() => "offsets moved",
        (Some(plan), _) if plan.forget.is_some() => "a key forgotten",
        (Some(BatchPlan { letters: Some(Letters { action: Action::Replay, .. }), .. }), _) => "letters replayed",
        (Some(BatchPlan { letters: Some(_), .. }), _) => "letters discarded",
        (_, None) => "not finished",
        _ => "batch",
    };
    let number = |value: Option<u64>| value.map_or("-".to_string(), grouped);
    vec![
        batch.to_string(),
        what.to_string(),
        plan.map_or("-".to_string(), |plan| time(plan.batch_time)),
        commit.map_or("-".to_string(), |commit| time(commit.committed_at)),
        number(commit.map(|commit| commit.input_rows)),
        number(commit.map(|commit| commit.dead_letters)),
    ]
}

/// One batch whole: the objects as they are.
fn one(batch: BatchId, plan: Option<&BatchPlan>, commit: Option<&CommitRecord>) -> Result<Outcome, Error> {
    if plan.is_none() && commit.is_none() {
        return Err(Error::new(ErrorKind::Usage, format!("the checkpoint holds no batch {batch}"))
            .coded(Code::NoSuchBatch)
            .help("the batches that are kept: tidegate checkpoint show FILE"));
    }
    let json = json!({ "version": 1, "status": "ok", "batch": batch, "plan": plan, "commit": commit });
    let text = format!("{:#}\n", json!({ "plan": plan, "commit": commit }));
    Ok(Outcome { text, json, code: 0 })
}
