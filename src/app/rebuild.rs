//! `tidegate rebuild`: tables computed again, whole, from the stored rows that they were made from. Without `--yes`
//! everything is said and nothing is done.

use serde_json::json;

use super::output::{aligned, file_argument, grouped, quoted};
use super::{Failure, Outcome, compose};
use crate::cli::{Global, RebuildArgs};
use crate::config::spec::{From, PipelineSpec, TableSpec, WriteSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::runner::Runner;
use crate::runner::event::Event;
use crate::runner::rebuild::{obstacle, refuse};
use crate::storage;
use crate::table::glance;
use crate::transform::problems::suggest;

pub(super) async fn rebuild(global: &Global, args: &RebuildArgs) -> Result<Outcome, Failure> {
    let checked = compose::check(global, &args.pipeline.file).await?;
    let spec = checked.spec.clone();
    let tables = chosen(&spec, &args.tables)?;
    let obstacles: Vec<String> = tables.iter().filter_map(|table| obstacle(table, &*checked.compiled)).collect();
    if !obstacles.is_empty() {
        return Err(refuse(obstacles).into());
    }
    let owner = compose::owner();
    let log = compose::open_log(&spec)?;
    let _lock = if args.yes { compose::lock(&spec, &log, &owner)? } else { None };
    let Some(identity) = compose::known_identity(&spec, &log).await? else {
        return Err(Error::new(ErrorKind::Usage, "the pipeline never ran: there is nothing to compute again").into());
    };
    let names: Vec<String> = tables.iter().map(|table| table.name.clone()).collect();
    let parts = compose::parts(checked, &identity, owner, Box::new(log), Box::new(|_: &Event| {}))?;
    let mut runner = Runner::new(parts);
    let mut text = String::new();
    for table in &tables {
        let (From::Table(from) | From::Source(from)) = &table.from;
        text.push_str(&format!(
            "{}: all rows are computed again from those in {from}, by the file as it is now\n",
            table.name
        ));
        if table.has_windows() {
            text.push_str(&format!(
                "  windows that ended before the oldest row that {from} still has stay as they are; of one that it has in \
                 part, that part counts\n"
            ));
        } else if table.keeps.is_some() {
            text.push_str(&format!("  rows that {from} has let go of do not count any more\n"));
        }
    }
    for table in &tables {
        for below in stays(&spec, &table.name, &names) {
            text.push_str(&format!("  {below} keeps what it has taken from {}; it does not follow\n", table.name));
        }
    }
    let typed = names.iter().map(|name| format!(" --table {}", quoted(name))).collect::<String>();
    let lake = storage::open(&spec.lake)?;
    let mut batch = None;
    let mut counts = Vec::new();
    if args.yes {
        let record = runner.rebuild(names.clone()).await?;
        batch = Some(record.batch);
        let mut rows = Vec::new();
        for name in &names {
            let Some(receipt) = record.tables.get(name) else { continue };
            let held = glance::at(&lake, name, Some(receipt.delta_version)).await?.map(|glance| glance.rows);
            rows.push(vec![name.clone(), receipt.delta_version.to_string(), held.map_or("-".into(), grouped)]);
            counts.push(json!({
                "table": name, "delta_version": receipt.delta_version, "rows": held, "state": receipt.state,
            }));
        }
        text.push_str(&aligned(&["table", "version", "rows"], &rows, 1));
        text.push_str(&format!("done: batch {} carries it\n", record.batch));
    } else {
        let file = file_argument(global, &args.pipeline.file);
        text.push_str(&format!("nothing was written; to do it:\n  tidegate rebuild {file}{typed} --yes\n"));
    }
    let json = json!({
        "version": 1, "status": if args.yes { "ok" } else { "dry_run" }, "pipeline": spec.name, "tables": names,
        "batch": batch, "computed": counts,
    });
    Ok(Outcome { text, json, code: 0 })
}

/// Tables fed by this one that only add what comes: they do not follow.
fn stays<'a>(spec: &'a PipelineSpec, table: &str, rebuilt: &[String]) -> Vec<&'a str> {
    let from = From::Table(table.to_string());
    let follows = |below: &TableSpec| matches!(below.write, WriteSpec::Refresh { .. }) || rebuilt.contains(&below.name);
    let below = spec.tables.iter().filter(|below| below.inputs().contains(&&from) && !follows(below));
    below.map(|below| below.name.as_str()).collect()
}

fn chosen<'a>(spec: &'a PipelineSpec, names: &[String]) -> Result<Vec<&'a TableSpec>> {
    let can = |table: &&TableSpec| table.keeps.is_some() || matches!(table.write, WriteSpec::Refresh { .. });
    let find = |name: &String| {
        spec.tables.iter().find(|table| table.name == *name).ok_or_else(|| {
            let known = spec.tables.iter().filter(can).map(|table| table.name.as_str());
            let error = Error::new(ErrorKind::Usage, format!("--table: the pipeline has no table `{name}`"));
            error.help(suggest(name, known, "tables").unwrap_or_default())
        })
    };
    // In graph order, each once.
    for name in names {
        find(name)?;
    }
    Ok(spec.tables.iter().filter(|table| names.contains(&table.name)).collect())
}
