//! `tidegate optimize` and `tidegate vacuum`: the tables of one pipeline, by hand.

use std::time::Duration;

use serde_json::{Value, json};

use super::compose::{self, Checked};
use super::output::{aligned, counted, grouped};
use super::{Failure, Outcome};
use crate::checkpoint::log::ObjectLog;
use crate::checkpoint::{CheckpointLog, Identity};
use crate::cli::{Global, OptimizeArgs, VacuumArgs};
use crate::config::spec::{LookupSpec, PipelineSpec, SHORTEST_RETENTION};
use crate::error::{Error, ErrorKind, Result};
use crate::runner::app_id;
use crate::runner::clock::{Clock, SystemClock};
use crate::table::Table;
use crate::table::maintain::{Compacted, Compaction, Depth, Vacuum};
use crate::{storage, units};

/// Bytes that go into one commit. A running pipeline reads its table again after each commit of another, so they are few.
const COMMIT_BYTES: u64 = 4_000_000_000;

/// Passes over one table: a busy pipeline changes files as fast as they are merged, and enough is enough.
const PASSES: usize = 50;

/// Paths that the text shows of each table.
const SHOWN: usize = 5;

pub(super) async fn optimize(global: &Global, args: &OptimizeArgs) -> Result<Outcome, Failure> {
    let target = args.target_size.as_deref().map(target_size).transpose()?;
    let checked = compose::check(global, &args.pipeline.file).await?;
    let spec = checked.spec.clone();
    let Some((_, identity)) = ran_before(&checked).await? else { return Ok(never_ran(&spec)) };
    let (mut rows, mut list, mut notes) = (Vec::new(), Vec::<Value>::new(), String::new());
    for mut table in chosen(&checked, &identity, &args.tables)? {
        let name = table.definition().name.clone();
        table.observe(&app_id(&identity.pipeline_id, &name)).await?;
        let order = Compaction {
            depth: Depth::Everything,
            target_bytes: target.unwrap_or(spec.maintain.of(&name).target_bytes),
            max_bytes: if args.dry_run { u64::MAX } else { COMMIT_BYTES },
            until: None,
            dry_run: args.dry_run,
        };
        let done = merge_all(&mut *table, &identity, &order).await.map_err(|error| error.with("table", &name))?;
        if let Some(why) = &done.skipped {
            notes.push_str(&format!("  {name} was left alone: {why}\n"));
        }
        if done.more {
            notes.push_str(&format!("  {name}: others change its files too fast for some of them; run again later\n"));
        }
        let after = match args.dry_run {
            true => "-".to_string(),
            false => grouped(done.files_after),
        };
        let numbers = [done.files_removed, done.files_added, done.bytes_removed];
        let mut row = vec![name.clone(), grouped(done.files_before), after];
        row.extend(numbers.iter().map(|&n| grouped(n)));
        rows.push(row);
        list.push(json!({
            "name": name, "files_before": done.files_before, "files_after": done.files_after,
            "files_removed": done.files_removed, "files_added": done.files_added,
            "bytes_removed": done.bytes_removed, "bytes_added": done.bytes_added,
            "more": done.more, "skipped": done.skipped,
        }));
    }
    let what = if args.dry_run { "would be merged; nothing was changed" } else { "small files merged" };
    let header = ["table", "files before", "after", "merged", "into", "bytes merged"];
    let text = format!("{}: {what}\n{}{notes}", spec.name, aligned(&header, &rows, 1));
    Ok(Outcome { text, json: result(&spec, args.dry_run, list), code: 0 })
}

fn target_size(text: &str) -> Result<u64> {
    let usage = |why: String| Error::new(ErrorKind::Usage, format!("--target-size: {why}"));
    match units::size(text) {
        Ok(bytes) if bytes >= 1_000_000 => Ok(bytes),
        Ok(_) => {
            Err(usage(format!("`{text}` is too small for a data file")).help("write at least 1MB; 128MB is usual"))
        }
        Err(why) => Err(usage(why)),
    }
}

/// Pass after pass, until there is nothing more to do, or others undo it as fast.
async fn merge_all(table: &mut dyn Table, identity: &Identity, order: &Compaction) -> Result<Compacted> {
    let mut done = table.compact(order).await?;
    for _ in 1..PASSES {
        if !done.more {
            break;
        }
        let app_id = app_id(&identity.pipeline_id, &table.definition().name);
        table.observe(&app_id).await?;
        done.then(table.compact(order).await?);
    }
    Ok(done)
}

pub(super) async fn vacuum(global: &Global, args: &VacuumArgs) -> Result<Outcome, Failure> {
    let asked = args.retain.as_deref().map(|text| retention(text, args.force)).transpose()?;
    let checked = compose::check(global, &args.pipeline.file).await?;
    let spec = checked.spec.clone();
    let Some((log, identity)) = ran_before(&checked).await? else { return Ok(never_ran(&spec)) };
    // With a short retention, what a batch or a backfill reads could be deleted under it.
    let is_short = args.force && args.yes;
    let _locks = is_short.then(|| compose::lock_all(&spec, &log, &compose::owner())).transpose()?;
    let (mut rows, mut list, mut notes) = (Vec::new(), Vec::<Value>::new(), String::new());
    let keeps_last = !is_forgotten(&log).await?;
    let (mut files, mut bytes) = (0, 0);
    for mut table in chosen(&checked, &identity, &args.tables)? {
        let name = table.definition().name.clone();
        let order = Vacuum {
            now: SystemClock.now(),
            retain: asked.or(spec.maintain.of(&name).vacuum).unwrap_or(SHORTEST_RETENTION),
            force: args.force,
            every: None,
            app_id: if keeps_last { app_id(&identity.pipeline_id, &name) } else { String::new() },
            keep_versions: pinned(&spec, &log, &name).await?,
            dry_run: !args.yes,
            until: None,
        };
        let done = table.vacuum(&order).await.map_err(|error| error.with("table", &name))?.unwrap_or_default();
        if let Some(why) = &done.skipped {
            notes.push_str(&format!("  {name} was left alone: {why}\n"));
        }
        for path in done.paths.iter().take(SHOWN) {
            notes.push_str(&format!("  {name}: {path}\n"));
        }
        if done.paths.len() > SHOWN {
            let more = done.paths.len() - SHOWN;
            notes.push_str(&format!("  {name}: and {}\n", counted(more as u64, "file more", "files more")));
        }
        files += done.expired + done.orphans;
        bytes += done.bytes;
        let numbers = [done.expired, done.orphans, done.bytes];
        let mut row = vec![name.clone(), days(done.retain)];
        row.extend(numbers.iter().map(|&n| grouped(n)));
        rows.push(row);
        list.push(json!({
            "name": name, "retain_seconds": done.retain.as_secs(), "expired": done.expired, "orphans": done.orphans,
            "bytes": done.bytes, "paths": done.paths, "skipped": done.skipped,
        }));
    }
    let count = counted(files, "file", "files");
    let what = match args.yes {
        true => format!("{count} deleted, {} bytes", grouped(bytes)),
        false => format!("{count} would be deleted, {} bytes; nothing was deleted, add --yes to do it", grouped(bytes)),
    };
    let header = ["table", "retained", "taken out", "never committed", "bytes"];
    let text = format!("{}: {what}\n{}{notes}", spec.name, aligned(&header, &rows, 1));
    Ok(Outcome { text, json: result(&spec, !args.yes, list), code: 0 })
}

/// Whether the last batch is done and forgot something: what it took out is not kept for a replay that will never be.
async fn is_forgotten(log: &ObjectLog) -> Result<bool> {
    let head = log.head().await?;
    let plan = head.plan.filter(|plan| head.commit.as_ref().is_some_and(|done| done.batch == plan.batch));
    Ok(plan.is_some_and(|plan| plan.forget.is_some()))
}

fn retention(text: &str, force: bool) -> Result<Duration> {
    let retain = units::duration(text).map_err(|why| Error::new(ErrorKind::Usage, format!("--retain: {why}")))?;
    if retain >= SHORTEST_RETENTION || force {
        return Ok(retain);
    }
    Err(Error::new(ErrorKind::Usage, format!("a retention of {text} is shorter than 7d"))
        .help("nothing was deleted")
        .help("queries that read older versions would fail, and time travel would end there")
        .help("if that is what you want, stop the pipeline and add --force"))
}

/// Versions of the table that a batch which was begun and not finished reads as a lookup.
async fn pinned(spec: &PipelineSpec, log: &ObjectLog, table: &str) -> Result<Vec<i64>> {
    let head = log.head().await?;
    let Some(plan) = head.plan.filter(|plan| head.commit.as_ref().is_none_or(|done| done.batch < plan.batch)) else {
        return Ok(Vec::new());
    };
    let here = storage::open(&spec.lake)?.join(&table.replace('.', "/"))?.url;
    let mut versions = Vec::new();
    for (name, version) in plan.pinned {
        if let Some(LookupSpec::Delta(location)) = spec.lookups.get(&name)
            && storage::open(location)?.url == here
        {
            versions.push(version);
        }
    }
    Ok(versions)
}

async fn ran_before(checked: &Checked) -> Result<Option<(ObjectLog, Identity)>> {
    let log = compose::open_log(&checked.spec)?;
    let identity = compose::known_identity(&checked.spec, &log).await?;
    if identity.is_none() {
        compose::check_never_ran(checked, &log).await?;
    }
    Ok(identity.map(|identity| (log, identity)))
}

fn never_ran(spec: &PipelineSpec) -> Outcome {
    let text = format!("{}: never ran, there is no table to look after\n", spec.name);
    Outcome { text, json: result(spec, false, Vec::new()), code: 0 }
}

/// The tables asked for; all of them when none is named.
fn chosen(checked: &Checked, identity: &Identity, names: &[String]) -> Result<Vec<Box<dyn Table>>> {
    let tables = compose::open_tables(checked, identity)?;
    let known: Vec<String> = tables.iter().map(|table| table.definition().name.clone()).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        let text = format!("--tables: the pipeline has no table `{unknown}`");
        return Err(Error::new(ErrorKind::Usage, text).help(format!("its tables: {}", known.join(", "))));
    }
    Ok(tables.into_iter().filter(|table| names.is_empty() || names.contains(&table.definition().name)).collect())
}

fn result(spec: &PipelineSpec, dry_run: bool, tables: Vec<Value>) -> Value {
    json!({ "version": 1, "status": "ok", "pipeline": spec.name, "dry_run": dry_run, "tables": tables })
}

fn days(retain: Duration) -> String {
    match retain.as_secs() {
        seconds if seconds % 86_400 == 0 => format!("{}d", seconds / 86_400),
        seconds if seconds % 3_600 == 0 => format!("{}h", seconds / 3_600),
        seconds => format!("{seconds}s"),
    }
}
