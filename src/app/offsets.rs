//! `tidegate offsets`: where a pipeline has read up to, and moving it by hand. Without `--yes` everything is said and
//! nothing is done.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::output::{aligned, counted, file_argument, grouped, quoted};
use super::{Failure, Outcome, compose};
use crate::checkpoint::CheckpointLog;
use crate::cli::{Global, MovingArgs, OffsetsRewindArgs, OffsetsSetArgs, PipelineArgs};
use crate::config::spec::{PipelineSpec, WriteSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::model::batch::BatchId;
use crate::model::offset::{OffsetRanges, Offsets, Partition};
use crate::model::relocate::{self, Extent, passed_over, reread};
use crate::runner::Runner;
use crate::runner::event::Event;
use crate::runner::relocate::Effect;
use crate::source::Source;

pub(super) async fn show(global: &Global, args: &PipelineArgs) -> Result<Outcome, Failure> {
    let checked = compose::check(global, &args.file).await?;
    let spec = &checked.spec;
    let log = compose::open_log(spec)?;
    compose::known_identity(spec, &log).await?;
    let head = log.head().await?;
    let pending = head
        .plan
        .as_ref()
        .map(|plan| plan.batch)
        .filter(|batch| head.commit.as_ref().is_none_or(|commit| commit.batch < *batch));
    let position = head.commit.map(|commit| commit.offsets).unwrap_or_default();
    let (mut rows, mut entries) = (Vec::new(), Vec::new());
    for (name, mut source) in compose::open_sources(spec)? {
        let at = match position.get(&name) {
            Some(at) => at.clone(),
            None => log.start(&name).await?.unwrap_or_default().offsets,
        };
        let extent = Extent { at, earliest: source.earliest().await?, end: source.end().await?, ..Extent::default() };
        for partition in extent.at.0.keys().chain(extent.end.0.keys()).collect::<std::collections::BTreeSet<_>>() {
            let look = |offsets: &Offsets| offsets.0.get(partition).copied();
            let (at, earliest, end) = (look(&extent.at), look(&extent.earliest), look(&extent.end));
            let lag = end.map(|end| end - at.or(earliest).unwrap_or(end));
            let shown = |value: Option<i64>| value.map_or("-".to_string(), grouped);
            rows.push(vec![name.clone(), partition.to_string(), shown(at), shown(earliest), shown(end), shown(lag)]);
            entries.push(json!({
                "source": name, "topic": partition.topic, "partition": partition.partition,
                "checkpoint": at, "earliest": earliest, "end": end, "lag": lag,
            }));
        }
    }
    let mut text = aligned(&["source", "partition", "checkpoint", "earliest", "end", "lag"], &rows, 2);
    if let Some(batch) = pending {
        text.push_str(&format!("  batch {batch} was begun and is not counted: the next run finishes it\n"));
    }
    let json = json!({
        "version": 1, "status": "ok", "pipeline": spec.name, "pending_batch": pending, "offsets": entries,
    });
    Ok(Outcome { text, json, code: 0 })
}

pub(super) async fn set(global: &Global, args: &OffsetsSetArgs) -> Result<Outcome, Failure> {
    let mut target = Offsets::default();
    for text in &args.positions {
        let (partition, offset) = parse_position(text)?;
        if target.0.insert(partition.clone(), offset).is_some() {
            return Err(Error::new(ErrorKind::Usage, format!("{partition} is named twice")).into());
        }
    }
    let positions = args.positions.iter().map(|position| quoted(position)).collect::<Vec<_>>().join(" ");
    let typed = format!("set {} {positions}", file_argument(global, &args.pipeline.file));
    relocate(global, &args.pipeline, &args.moving, &typed, Where::Offsets(target)).await
}

pub(super) async fn rewind(global: &Global, args: &OffsetsRewindArgs) -> Result<Outcome, Failure> {
    let typed = format!("rewind {} --to {}", file_argument(global, &args.pipeline.file), quoted(&args.to));
    relocate(global, &args.pipeline, &args.moving, &typed, parse_where(&args.to)?).await
}

/// Where a position is to go.
enum Where {
    Offsets(Offsets),
    Batch(BatchId),
    Time(DateTime<Utc>),
    Earliest,
}

/// `topic:partition=offset`; topics and files may have colons and equals signs of their own.
fn parse_position(text: &str) -> Result<(Partition, i64)> {
    let parts = text.rsplit_once('=').and_then(|(place, offset)| {
        let (topic, partition) = place.rsplit_once(':')?;
        let offset: i64 = offset.replace('_', "").parse().ok().filter(|offset| *offset >= 0)?;
        Some((Partition::new(topic, partition.parse().ok()?), offset))
    });
    parts.ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("`{text}` is not a position"))
            .help("write topic:partition=offset, such as orders.v1:0=1500; files are partition 0, offsets are lines")
    })
}

fn parse_where(text: &str) -> Result<Where> {
    if text == "earliest" {
        return Ok(Where::Earliest);
    }
    if let Some(batch) = text.strip_prefix("batch:").and_then(|number| number.parse().ok()) {
        return Ok(Where::Batch(batch));
    }
    DateTime::parse_from_rfc3339(text).map(|time| Where::Time(time.to_utc())).map_err(|_| {
        Error::new(ErrorKind::Usage, format!("--to `{text}` is not a place to go to"))
            .help("write batch:N, earliest, or a time such as 2026-03-17T12:00:00Z")
    })
}

/// The source that is meant: the one named, or the only one.
fn source_name(spec: &PipelineSpec, asked: Option<&String>) -> Result<String> {
    let names: Vec<&String> = spec.sources.keys().collect();
    let listed = || names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    match (asked, names.as_slice()) {
        (Some(name), _) if spec.sources.contains_key(name) => Ok(name.clone()),
        (Some(name), _) => Err(Error::new(ErrorKind::Usage, format!("there is no source `{name}`"))
            .help(format!("sources of this pipeline: {}", listed()))),
        (None, [only]) => Ok((*only).clone()),
        (None, _) => Err(Error::new(ErrorKind::Usage, "the pipeline has several sources: say which one is moved")
            .help(format!("--source NAME, one of: {}", listed()))),
    }
}

async fn relocate(
    global: &Global,
    pipeline: &PipelineArgs,
    how: &MovingArgs,
    typed: &str,
    place: Where,
) -> Result<Outcome, Failure> {
    let typed = &match &how.source {
        Some(name) => format!("{typed} --source {}", quoted(name)),
        None => typed.to_string(),
    };
    let checked = compose::check(global, &pipeline.file).await?;
    let spec = checked.spec.clone();
    let source_name = source_name(&spec, how.source.as_ref())?;
    let owner = compose::owner();
    let log = compose::open_log(&spec)?;
    let _lock = if how.yes { compose::lock(&spec, &log, &owner)? } else { None };
    let Some(identity) = compose::known_identity(&spec, &log).await? else {
        return Err(Error::new(ErrorKind::Usage, "the pipeline never ran: there is no position to move")
            .with("checkpoint", log.location())
            .help("where a first run starts is said by `start:` of the source")
            .help("were there runs? the checkpoint is lost then: tidegate checkpoint rebuild FILE")
            .into());
    };
    let history = match place {
        Where::Batch(_) => log.history(usize::MAX).await?,
        _ => Vec::new(),
    };
    let parts = compose::parts(checked, &identity, owner, Box::new(log), Box::new(|_: &Event| {}))?;
    let mut runner = Runner::new(parts);
    let stand = runner.standing().await?;
    let last = stand.last;
    let mut source = crate::source::open(&source_name, &spec.sources[&source_name])?;
    // The ids are asked first: a topic that is made again in between is noticed by the run that reads it.
    let incarnations = source.incarnations().await?;
    let extent = Extent {
        at: stand.offsets.get(&source_name).cloned().unwrap_or_default(),
        earliest: source.earliest().await?,
        end: source.end().await?,
        known: stand.incarnations.get(&source_name).cloned().unwrap_or_default(),
        incarnations,
    };
    let is_rewind = !matches!(place, Where::Offsets(_));
    let target = match place {
        Where::Offsets(target) => target,
        Where::Earliest => known(&extent, &extent.earliest),
        Where::Time(time) => known(&extent, &at(&mut *source, time).await?),
        Where::Batch(batch) => relocate::after(&history, batch, &source_name, &extent)
            .ok_or_else(|| no_such_batch(batch, last, history.iter().map(|record| record.batch).min()))?,
    };
    let moved = relocate::moves(&extent, &target)
        .and_then(|moved| if is_rewind { relocate::only_back(&moved).map(|()| moved) } else { Ok(moved) })
        .map_err(|why| refused(&why, &extent))?;
    if moved.0.is_empty() {
        let text = format!("{}: already there, nothing to move\n", spec.name);
        let json = json!({ "version": 1, "status": "no_change", "pipeline": spec.name });
        return Ok(Outcome { text, json, code: 0 });
    }
    let by_source = BTreeMap::from([(source_name.clone(), moved.clone())]);
    let effects = runner.effects(&by_source).await?;
    let rebuilt = runner.rebuilt_by(&by_source)?;
    let doubled: Vec<&String> = effects.iter().filter(|(_, e)| **e == Effect::Doubles).map(|(name, _)| name).collect();
    if !doubled.is_empty() && !how.accept_duplicates {
        return Err(doubles(&doubled, typed).into());
    }
    let mut text = account(&spec, &source_name, &moved, &effects);
    let since = runner.since_moved(&rebuilt, &by_source).await?;
    for table in &rebuilt {
        text.push_str(&format!("  {table}: computed again now from the rows that stay; then it goes on\n"));
        if !spec.tables.iter().any(|other| other.name == *table && other.has_windows()) {
            continue;
        }
        text.push_str(match since.contains_key(table) {
            true => "    windows that ended before the oldest of these stay as they are\n",
            false => "    its upstream does not reach back that far: all windows go, and come back with the rows that are read\n",
        });
    }
    let mut batch = None;
    if how.yes {
        let record = runner.relocate(by_source).await?;
        batch = Some(record.batch);
        text.push_str(&format!(
            "done: batch {} carries the move; the next run reads on from there: tidegate run {}\n",
            record.batch,
            file_argument(global, &pipeline.file)
        ));
    } else {
        let mut command = format!("tidegate offsets {typed}");
        if how.accept_duplicates {
            command.push_str(" --accept-duplicates");
        }
        text.push_str(&format!("nothing was written (the last batch is {last}); to do it:\n  {command} --yes\n"));
    }
    Ok(Outcome { text, json: report(&spec, how, batch, &source_name, &moved, &effects), code: 0 })
}

/// `target` for the partitions that the checkpoint knows: others are new and start at their beginning anyway.
fn known(extent: &Extent, target: &Offsets) -> Offsets {
    let known = target.0.iter().filter(|(partition, _)| extent.at.0.contains_key(*partition));
    Offsets(known.map(|(partition, &offset)| (partition.clone(), offset)).collect())
}

async fn at(source: &mut dyn Source, time: DateTime<Utc>) -> Result<Offsets> {
    source.at(time).await
}

fn no_such_batch(batch: BatchId, newest: BatchId, oldest: Option<BatchId>) -> Error {
    let text = match batch > newest || batch < 0 {
        true => format!("there is no batch {batch}; the newest is {newest}"),
        false => format!("the checkpoint no longer holds batch {batch}"),
    };
    let oldest = oldest.unwrap_or(newest);
    Error::new(ErrorKind::Usage, text)
        .help(format!("it holds batches {oldest} to {newest}: tidegate checkpoint show FILE"))
}

fn refused(why: &relocate::Refused, extent: &Extent) -> Error {
    if let relocate::Refused::Recreated(loss) = why {
        return crate::source::loss::error(loss);
    }
    let error = Error::new(ErrorKind::Usage, why.to_string()).help("nothing was changed");
    match why {
        relocate::Refused::Unknown { .. } => {
            let known: Vec<String> =
                extent.at.0.keys().take(20).map(|p| format!("{}:{}", p.topic, p.partition)).collect();
            error.help(format!("it knows: {}", known.join(", ")))
        }
        relocate::Refused::Expired { .. } => error.help("as far back as there are records: --to earliest"),
        relocate::Refused::PastEnd { .. } | relocate::Refused::Gone { .. } | relocate::Refused::Recreated(_) => {
            error.help("what there is: tidegate offsets show FILE")
        }
        relocate::Refused::Forward { partition, asked, .. } => {
            let position = quoted(&format!("{}:{}={asked}", partition.topic, partition.partition));
            error
                .help("to undo a rewind nothing is moved: the records are read again by tidegate run FILE")
                .help(format!("to skip them on purpose: tidegate offsets set FILE {position} --yes"))
        }
    }
}

fn doubles(tables: &[&String], typed: &str) -> Error {
    let names = tables.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    Error::new(
        ErrorKind::Usage,
        format!(
            "{names} would hold rows twice: append tables without source coordinates cannot tell which rows come again"
        ),
    )
    .help("nothing was changed")
    .help("let their SQL pass _topic, _partition and _offset of batch through unchanged (in a join with their qualifier), and new tables can be moved back")
    .help(format!("if the repeated rows are wanted: tidegate offsets {typed} --accept-duplicates"))
}

/// What happens, in plain words.
fn account(spec: &PipelineSpec, source: &str, moved: &OffsetRanges, effects: &BTreeMap<String, Effect>) -> String {
    let rows: Vec<Vec<String>> = moved
        .0
        .iter()
        .map(|(partition, range)| {
            let (again, never) = ((range.from - range.until).max(0), (range.until - range.from).max(0));
            vec![partition.to_string(), grouped(range.from), grouped(range.until), grouped(again), grouped(never)]
        })
        .collect();
    let mut text = format!("{}: moving source `{source}`\n", spec.name);
    text.push_str(&aligned(&["partition", "from", "to", "read again", "never read"], &rows, 1));
    let (again, never) = (reread(moved).values().sum::<i64>(), passed_over(moved).values().sum::<i64>());
    if never > 0 {
        let records = counted(never.unsigned_abs(), "record", "records");
        text.push_str(&format!("  {records} will never be read; the plan of the batch keeps which\n"));
    }
    if again == 0 {
        return text;
    }
    for (table, effect) in effects {
        text.push_str(&match effect {
            Effect::Removes(rows) => {
                let rows = counted(*rows, "row", "rows");
                format!("  {table}: {rows} at or after the new position removed now; added again when they are read\n")
            }
            Effect::Doubles => format!("  {table}: nothing is removed; rows that are read again are added once more\n"),
        });
    }
    for table in &spec.tables {
        match &table.write {
            WriteSpec::Upsert { order_by, .. } => {
                let order = match order_by.is_empty() {
                    true => "source order".to_string(),
                    false => format!("{} and source order", order_by.join(", ")),
                };
                text.push_str(&format!(
                    "  {}: stays as it is; a row read again loses to a newer one by {order}, and replaces itself, so \
                     that changed SQL takes effect; rows that the SQL now leaves out stay\n",
                    table.name
                ));
            }
            WriteSpec::Refresh { by } => text.push_str(&format!(
                "  {}: groups ({}) of removed rows are recomputed now, and again as rows come back\n",
                table.name,
                by.join(", ")
            )),
            WriteSpec::Append | WriteSpec::Windows { .. } => {}
        }
    }
    text
}

fn report(
    spec: &PipelineSpec,
    how: &MovingArgs,
    batch: Option<BatchId>,
    source: &str,
    moved: &OffsetRanges,
    effects: &BTreeMap<String, Effect>,
) -> Value {
    let partitions = moved.0.iter().map(|(partition, range)| {
        json!({
            "topic": partition.topic, "partition": partition.partition, "was": range.from, "now": range.until,
            "read_again": (range.from - range.until).max(0), "never_read": (range.until - range.from).max(0),
        })
    });
    let tables = effects.iter().map(|(name, effect)| match effect {
        Effect::Removes(rows) => json!({ "name": name, "removes": rows }),
        Effect::Doubles => json!({ "name": name, "doubles": true }),
    });
    json!({
        "version": 1, "status": if how.yes { "ok" } else { "dry_run" }, "pipeline": spec.name, "source": source,
        "batch": batch, "moved": partitions.collect::<Vec<_>>(), "tables": tables.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_from_the_right() {
        assert_eq!(parse_position("orders.v1:3=1_500").expect("a position"), (Partition::new("orders.v1", 3), 1500));
        assert_eq!(parse_position("a:b=c.ndjson:0=7").expect("a position"), (Partition::new("a:b=c.ndjson", 0), 7));
        for wrong in ["orders.v1=5", "orders.v1:x=5", "orders.v1:0", "orders.v1:0=-1", ""] {
            assert_eq!(parse_position(wrong).expect_err("refused").kind(), ErrorKind::Usage, "{wrong}");
        }
    }
}
