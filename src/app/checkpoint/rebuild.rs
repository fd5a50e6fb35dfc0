//! `tidegate checkpoint rebuild`: a lost or damaged log from what the tables say.
//!
//! Objects are written identity first: with the right identity and anything less than the whole head, a run finds tables
//! ahead of the log, or a gap in it, and stops. Without an identity, or with a new one, it could not tell. Every write
//! is put-if-absent and says the same when it is done again, so a crash in the middle is mended by repeating the command.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::super::output::{aligned, file_argument};
use super::super::{Failure, Outcome, compose};
use super::positions;
use crate::checkpoint::inspect::{Entry, Object};
use crate::checkpoint::log::ObjectLog;
use crate::checkpoint::{CheckpointLog, Claim, Identity};
use crate::cli::{CheckpointRebuildArgs, Global};
use crate::config::spec::{PipelineSpec, TableSpec, WriteSpec};
use crate::error::{Error, Result};
use crate::model::batch::{FORMAT_VERSION, Owner, Start};
use crate::model::inconsistency::Inconsistency;
use crate::model::note::Note;
use crate::model::rebuild::{self as model, Facts, Rebuilt, TableTrace};
use crate::model::recover::{Decision, recover};
use crate::runner::clock::{Clock, SystemClock};
use crate::runner::event::Event;
use crate::runner::{Runner, app_id, meaning, recipe};
use crate::{storage, table};

/// What is done to the folder.
#[derive(Default)]
struct Work {
    /// Objects that cannot stay.
    aside: Vec<(String, String)>,
    /// Objects that are intact and stay.
    kept: BTreeSet<String>,
}

pub(in crate::app) async fn rebuild(global: &Global, args: &CheckpointRebuildArgs) -> Result<Outcome, Failure> {
    let checked = compose::check(global, &args.pipeline.file).await?;
    let spec = checked.spec.clone();
    let owner = compose::owner();
    let log = compose::open_log(&spec)?;
    let _lock = if args.yes { compose::lock(&spec, &log, &owner)? } else { None };
    let facts = look(&spec, &compose::table_names(&checked), &owner).await?;
    let rebuilt = model::rebuild(&facts).map_err(|why| {
        let error = Error::config(format!("the checkpoint cannot be rebuilt: {why}"));
        let error = error.with("checkpoint", log.location()).help("nothing was written");
        why.help().into_iter().fold(error, Error::help)
    })?;
    let work = inspect(&log, &spec, &rebuilt).await?;
    if work.aside.is_empty() && objects(&rebuilt).iter().all(|object| work.kept.contains(object)) {
        return Err(intact(checked, log, owner).await?.into());
    }
    let location = log.location();
    let mut moved_to = None;
    if args.yes {
        let time = facts.now.format("%Y%m%dT%H%M%SZ").to_string();
        let paths: Vec<String> = work.aside.iter().map(|(path, _)| path.clone()).collect();
        if !paths.is_empty() {
            moved_to = Some(log.move_aside(&paths, &time).await?);
        }
        // A fresh look: this one knows the folder by what was just moved away.
        write(&compose::open_log(&spec)?, &spec, &rebuilt, &owner).await?;
    }
    Ok(outcome(global, args, &spec, &location, &facts, &rebuilt, &work, moved_to))
}

/// Asks every table of the pipeline.
async fn look(spec: &PipelineSpec, tables: &[String], owner: &Owner) -> Result<Facts> {
    let lake = storage::open(&spec.lake)?;
    let mut traces = BTreeMap::new();
    for name in tables {
        let trace = table::trace::trace(&lake, name, |id| app_id(id, name)).await?;
        let trace = trace.map(|trace| TableTrace {
            made_by: trace.maker.map(|maker| (maker.pipeline, maker.pipeline_id)),
            applied: trace.applied,
            restored: trace.restored,
            memory: trace.memory,
            memory_harmed: trace.memory_harmed,
            carriers: trace
                .carriers
                .into_iter()
                .map(|carrier| (carrier.version, carrier.batch, carrier.note.as_deref().and_then(Note::read)))
                .collect(),
        });
        traces.insert(name.clone(), trace);
    }
    Ok(Facts {
        pipeline: spec.name.clone(),
        meaning: meaning(spec),
        recipe: recipe(spec),
        tables: traces,
        owner: owner.clone(),
        now: SystemClock.now(),
    })
}

/// Names of the objects that make up the rebuilt head.
fn objects(rebuilt: &Rebuilt) -> Vec<String> {
    let mut names = vec!["metadata.json".to_string()];
    names.extend(rebuilt.starts.keys().map(|source| format!("sources/{source}.json")));
    names.extend(rebuilt.plans.iter().map(|plan| format!("offsets/{:020}.json", plan.batch)));
    names.extend(rebuilt.commits.iter().map(|commit| format!("commits/{:020}.json", commit.batch)));
    names
}

/// What is in the folder, and what of it can stay.
async fn inspect(log: &ObjectLog, spec: &PipelineSpec, rebuilt: &Rebuilt) -> Result<Work> {
    let entries = log.inspect().await?;
    let found = entries.iter().find_map(|entry| match &entry.object {
        Ok(Object::Identity(identity)) => Some(identity.clone()),
        _ => None,
    });
    let refuse = |why: String| {
        Error::config(format!("the checkpoint cannot be rebuilt: {why}"))
            .with("checkpoint", log.location())
            .help("nothing was written")
    };
    if let Some(identity) = &found
        && (identity.pipeline != spec.name || identity.pipeline_id != rebuilt.pipeline_id)
    {
        let batches = entries.iter().any(|e| matches!(e.object, Ok(Object::Plan(_) | Object::Commit(_))));
        if identity.pipeline != spec.name || batches {
            let whose = format!("pipeline `{}` ({})", identity.pipeline, identity.pipeline_id);
            return Err(refuse(format!(
                "this folder is the log of {whose}, and the tables were written under {}",
                rebuilt.pipeline_id
            ))
            .help("point `checkpoints` and `lake` at folders that belong together")
            .help("or move this folder away, and rebuild again"));
        }
    }
    // Again through the eyes of the log that wrote the tables: an identity that a later run made anew is not its own.
    let log = compose::open_log(spec)?;
    log.expect(&rebuilt.pipeline_id);
    let mut work = Work::default();
    for Entry { path, object } in log.inspect().await? {
        let later = |batch: i64| {
            refuse(format!("its {path} says batch {batch}, but no table holds more than batch {}", rebuilt.batch))
                .help("the tables went back, or `lake` is another one: bring the tables back from a backup")
        };
        match object {
            // A plan of the next batch that no table has yet is as good as any.
            Ok(Object::Plan(plan)) if plan.batch > rebuilt.batch + i64::from(rebuilt.lacking.is_empty()) => {
                return Err(later(plan.batch));
            }
            Ok(Object::Commit(commit)) if commit.batch > rebuilt.batch => return Err(later(commit.batch)),
            Ok(Object::Stray) => {}
            Ok(_) => drop(work.kept.insert(path)),
            Err(error) => work.aside.push((path, error.message().to_string())),
        }
    }
    Ok(work)
}

/// Every object of the head is there: what else may be wrong is not the checkpoint's.
async fn intact(checked: compose::Checked, log: ObjectLog, owner: Owner) -> Result<Error> {
    let location = log.location();
    let error = Error::config("there is nothing to rebuild: the checkpoint is intact").with("checkpoint", &location);
    let Some(identity) = log.identity().await? else { return Ok(error) };
    let parts = compose::parts(checked, &identity, owner, Box::new(log), Box::new(|_: &Event| {}))?;
    let facts = Runner::new(parts).observe().await?;
    Ok(match recover(&facts) {
        Decision::Halt(why @ Inconsistency::TableAhead { .. }) => error
            .with("but", &why)
            .help("nothing was written; it is older than the tables: restore its newest copy")
            .help(format!("or move {location} away, then: tidegate checkpoint rebuild FILE")),
        Decision::Halt(why) => {
            let error = error.with("but", &why).help("nothing was written");
            why.help().into_iter().fold(error, Error::help)
        }
        _ => error.help("nothing was written; just run: tidegate run FILE"),
    })
}

async fn write(log: &ObjectLog, spec: &PipelineSpec, rebuilt: &Rebuilt, owner: &Owner) -> Result<()> {
    let identity = Identity {
        version: FORMAT_VERSION,
        pipeline_id: rebuilt.pipeline_id.clone(),
        pipeline: spec.name.clone(),
        created_by: owner.clone(),
    };
    let there = log.create(&identity).await?;
    if there.pipeline_id != rebuilt.pipeline_id {
        return Err(Error::config("another process made a new checkpoint meanwhile").with("its id", there.pipeline_id));
    }
    for (source, start) in &rebuilt.starts {
        let (source_name, offsets) = (Some(source.clone()), start.clone());
        let start = Start { version: FORMAT_VERSION, source: source_name, offsets, ..Start::default() };
        log.record_start(source, &start).await?;
    }
    for plan in &rebuilt.plans {
        // One that is intact stays: it says the same, and more.
        match log.plan(plan).await? {
            Claim::Claimed | Claim::Taken(_) => {}
        }
    }
    for commit in &rebuilt.commits {
        log.commit(commit).await?;
    }
    Ok(())
}

/// Tables that remember deletes, and whose commits do not say how far their memory had come.
fn untold<'a>(spec: &'a PipelineSpec, facts: &'a Facts) -> impl Iterator<Item = &'a str> {
    let remembers = |table: &&TableSpec| matches!(table.write, WriteSpec::Upsert { delete_when: Some(_), .. });
    let is_silent = |table: &&TableSpec| {
        let trace = facts.tables.get(&table.name).and_then(Option::as_ref);
        trace.is_some_and(|trace| trace.applied.is_some() && trace.noted_memory().is_none())
    };
    spec.tables.iter().filter(remembers).filter(is_silent).map(|table| table.name.as_str())
}

#[allow(clippy::too_many_arguments)] // All that there is to tell, once.
fn outcome(
    global: &Global,
    args: &CheckpointRebuildArgs,
    spec: &PipelineSpec,
    location: &str,
    facts: &Facts,
    rebuilt: &Rebuilt,
    work: &Work,
    moved_to: Option<String>,
) -> Outcome {
    let file = file_argument(global, &args.pipeline.file);
    let Rebuilt { batch, lacking, .. } = rebuilt;
    let written: Vec<String> = objects(rebuilt).into_iter().filter(|object| !work.kept.contains(object)).collect();
    let verb = if args.yes { "was rebuilt" } else { "can be rebuilt" };
    let mut text = format!("{}: the checkpoint at {location} {verb} from the tables\n", facts.pipeline);
    text.push_str(&format!("  pipeline id {}\n", rebuilt.pipeline_id));
    let rows = facts.tables.iter().map(|(name, trace)| {
        let newest = trace.as_ref().and_then(|trace| trace.carriers.first());
        let number = |value: Option<i64>| value.map_or("-".to_string(), |value| value.to_string());
        vec![name.clone(), number(newest.map(|carrier| carrier.0)), number(newest.map(|carrier| carrier.1))]
    });
    text.push_str(&aligned(&["table", "version", "batch"], &rows.collect::<Vec<_>>(), 1));
    match lacking.is_empty() {
        true => text.push_str(&format!("  batch {batch} is in every table: the next run continues after it\n")),
        false => text.push_str(&format!(
            "  batch {batch} is half done, {} lack it: the next run finishes it, with the same rows\n",
            lacking.join(", ")
        )),
    }
    if rebuilt.changed_midway {
        text.push_str(
            "  the pipeline file is not the one that the batch was begun with: put it back before that run\n",
        );
    }
    text.push_str(&aligned(&["source", "partition", "next offset"], &positions(rebuilt.position()), 2));
    for (path, why) in &work.aside {
        let place = moved_to.as_deref().unwrap_or("damaged-<time>");
        text.push_str(&format!("  {} to {place}/: {path} ({why})\n", if args.yes { "moved" } else { "moves" }));
    }
    for object in &written {
        text.push_str(&format!("  {}: {object}\n", if args.yes { "wrote" } else { "writes" }));
    }
    let mut unknown = vec![
        "batches before these: their history is lost, and `offsets rewind --to batch:N` cannot name them".to_string(),
        "counters and timings of the rebuilt batches (rows, dead letters, expectations): they read 0".to_string(),
        "sources and partitions that no batch has named".to_string(),
    ];
    unknown.extend(untold(spec, facts).map(|table| {
        format!("whether the memory of deletes of {table} is whole: its newest commits do not say, an older tidegate wrote them")
    }));
    unknown.iter().for_each(|line| text.push_str(&format!("  not known any more: {line}\n")));
    text.push_str(&match args.yes {
        true => format!("  next: tidegate run {file}\n"),
        false => format!("  nothing was written; to do it: tidegate checkpoint rebuild {file} --yes\n"),
    });
    let aside = work.aside.iter().map(|(path, why)| json!({"object": path, "why": why}));
    let json = json!({
        "version": 1, "status": if args.yes { "ok" } else { "dry_run" }, "pipeline": facts.pipeline,
        "checkpoint": location, "pipeline_id": rebuilt.pipeline_id, "batch": batch, "lacking": lacking,
        "changed_midway": rebuilt.changed_midway, "offsets": rebuilt.position(),
        "moved_aside": aside.collect::<Vec<_>>(), "moved_to": moved_to, "objects": written, "not_known": unknown,
    });
    Outcome { text, json, code: 0 }
}
