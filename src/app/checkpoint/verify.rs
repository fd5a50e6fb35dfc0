//! `tidegate checkpoint verify`: is everything there that the next run counts on? Reads only.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::output::file_argument;
use super::super::{Failure, Outcome, compose};
use super::state;
use crate::checkpoint::CheckpointLog;
use crate::checkpoint::inspect::Object;
use crate::cli::{CheckpointVerifyArgs, Global};
use crate::error::{Error, ErrorKind, Result};
use crate::model::batch::{BatchId, BatchPlan, CommitRecord};
use crate::model::offset::{Incarnations, Offsets};
use crate::model::recover::{Decision, recover};
use crate::model::verify::{Finding, chain};
use crate::runner::Runner;
use crate::runner::event::Event;
use crate::source::{Source, loss};

pub(in crate::app) async fn verify(global: &Global, args: &CheckpointVerifyArgs) -> Result<Outcome, Failure> {
    let checked = compose::check(global, &args.pipeline.file).await?;
    let spec = checked.spec.clone();
    let log = compose::open_log(&spec)?;
    let location = log.location();
    let mut plans: BTreeMap<BatchId, BatchPlan> = BTreeMap::new();
    let mut commits: BTreeMap<BatchId, CommitRecord> = BTreeMap::new();
    let (mut findings, mut identity, mut objects, mut damaged) = (Vec::new(), None, 0, false);
    for entry in log.inspect().await? {
        objects += 1;
        match entry.object {
            Ok(Object::Identity(found)) => identity = Some(found),
            Ok(Object::Plan(plan)) => drop(plans.insert(plan.batch, *plan)),
            Ok(Object::Commit(commit)) => drop(commits.insert(commit.batch, *commit)),
            Ok(Object::Start(..)) => {}
            Ok(Object::Stray) => {
                findings.push(Finding::note(format!("{} is not part of a log; it is ignored", entry.path)))
            }
            Err(error) => {
                damaged = true;
                findings.push(of(&error));
            }
        }
    }
    findings.extend(chain(&plans, &commits));
    match identity {
        Some(identity) if identity.pipeline != spec.name => findings.push(Finding::broken(
            format!("the log belongs to pipeline `{}`", identity.pipeline),
            ["point `checkpoints` at this pipeline's own folder, or restore the pipeline's `name`"],
        )),
        // What is damaged is named above; with the rest alone nothing can be said about the tables.
        Some(_) if damaged => findings.push(Finding::note("the tables were not compared: the log is damaged")),
        Some(identity) => {
            let parts = compose::parts(checked, &identity, compose::owner(), Box::new(log), Box::new(|_: &Event| {}))?;
            let mut runner = Runner::new(parts);
            match runner.observe().await {
                Ok(facts) => {
                    if let Decision::Halt(why) = recover(&facts) {
                        findings.push(Finding::broken(why.to_string(), why.help()));
                    }
                }
                Err(error) if error.kind() == ErrorKind::Config => findings.push(of(&error)),
                Err(error) => return Err(error.into()),
            }
        }
        None if objects > 0 && !damaged => findings.push(Finding::broken(
            "metadata.json is missing",
            ["restore it from a backup, or: tidegate checkpoint rebuild FILE"],
        )),
        None if objects > 0 => {}
        None => {
            for table in compose::table_names(&checked) {
                let lake = crate::storage::open(&spec.lake)?;
                let maker = crate::table::trace::maker(&lake, &table).await?;
                if maker.is_some_and(|maker| maker.pipeline == spec.name) {
                    let why = crate::model::inconsistency::Inconsistency::CheckpointLost { table };
                    findings.push(Finding::broken(why.to_string(), why.help()));
                    break;
                }
            }
        }
    }
    if let (false, Some(newest)) = (args.offline, commits.values().next_back()) {
        for (name, mut source) in compose::open_sources(&spec)? {
            let Some(position) = newest.offsets.get(&name) else { continue };
            let known = newest.incarnations.get(&name).cloned().unwrap_or_default();
            findings.extend(lost(&mut *source, position, &known).await?);
        }
    }
    let broken = findings.iter().filter(|finding| finding.broken).count();
    let file = file_argument(global, &args.pipeline.file);
    for line in findings.iter_mut().flat_map(|finding| &mut finding.mend) {
        *line = line.replace(" FILE", &format!(" {file}"));
    }
    let mut text =
        format!("{}: checkpoint at {location}\n  {objects} objects, {}\n", spec.name, state(&plans, &commits));
    for finding in &findings {
        text.push_str(&format!("  {}: {}\n", if finding.broken { "broken" } else { "note" }, finding.what));
        finding.mend.iter().for_each(|line| text.push_str(&format!("    help: {line}\n")));
    }
    text.push_str(match broken {
        0 => "  everything that the next run counts on is there\n",
        _ => "  the next run would stop, or must not be started, until this is mended\n",
    });
    let shown = |finding: &Finding| json!({"broken": finding.broken, "what": finding.what, "mend": finding.mend});
    let json = json!({
        "version": 1, "status": if broken == 0 { "ok" } else { "failed" }, "pipeline": spec.name,
        "checkpoint": location, "objects": objects,
        "findings": findings.iter().map(shown).collect::<Vec<Value>>(),
    });
    Ok(Outcome { text, json, code: if broken == 0 { 0 } else { ErrorKind::Config.exit_code() } })
}

fn of(error: &Error) -> Finding {
    Finding::broken(error.message(), error.help_lines().iter().filter(|line| !line.starts_with("nothing was")).cloned())
}

/// Positions that the source can no longer continue.
async fn lost(source: &mut dyn Source, position: &Offsets, known: &Incarnations) -> Result<Vec<Finding>> {
    let (earliest, end) = (source.earliest().await?, source.end().await?);
    let now = loss::Now { earliest, end, incarnations: source.incarnations().await? };
    Ok(loss::find(position, known, &now).iter().map(|loss| of(&loss::error(loss))).collect())
}
