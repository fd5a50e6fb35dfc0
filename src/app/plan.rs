//! `tidegate plan`: what the next batch would read and write. Writes nothing, anywhere.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, Field, Schema};
use serde_json::{Value, json};

use super::output::{aligned, grouped};
use super::{Failure, Outcome, compose};
use crate::checkpoint::CheckpointLog;
use crate::cli::{Global, PipelineArgs};
use crate::error::{Error, ErrorKind, Result};
use crate::model::offset::{OffsetRanges, Offsets};
use crate::model::recover::{Decision, Facts, recover};
use crate::runner::event::Event;
use crate::runner::{Runner, code};
use crate::source::Source;
use crate::table::{Table, TableDefinition, WriteMode};

pub(super) async fn plan(global: &Global, args: &PipelineArgs) -> Result<Outcome, Failure> {
    let checked = compose::check(global, &args.file).await?;
    let spec = checked.spec.clone();
    let owner = compose::owner();
    let log = compose::open_log(&spec)?;
    let identity = match compose::known_identity(&spec, &log).await? {
        Some(identity) => identity,
        None => compose::new_identity(&spec, &owner),
    };
    let described = |table: Box<dyn Table>| {
        let definition = table.definition();
        (definition.clone(), mode(definition, checked.compiled.upkeep(&definition.name)))
    };
    let tables: Vec<(TableDefinition, String)> =
        compose::open_tables(&checked, &identity)?.into_iter().map(described).collect();
    let mut starts = BTreeMap::new();
    for name in spec.sources.keys() {
        starts.insert(name.clone(), log.start(name).await?.map(|start| start.offsets));
    }
    let mut sources = compose::open_sources(&spec)?;
    let location = log.location();
    let parts = compose::parts(checked, &identity, owner, Box::new(log), Box::new(|_: &Event| {}))?;
    let facts = Runner::new(parts).observe().await?;

    let (next, sources) = match recover(&facts) {
        Decision::Halt(why) => {
            let error = Error::new(ErrorKind::Config, why.to_string()).coded(code(&why)).with("checkpoint", location);
            return Err(why.help().into_iter().fold(error, Error::help).into());
        }
        Decision::Replay(plan) => {
            let text = format!(
                "batch {} was begun and not finished; it would be finished first, with the same rows",
                plan.batch
            );
            let ranges = plan.sources.iter().map(|(name, ranges)| (name.clone(), (ranges.clone(), 0))).collect();
            (text, ranges)
        }
        Decision::Begin => {
            ("batch 0, the first".to_string(), ranges(&facts, &starts, &mut sources, spec.max_rows).await?)
        }
        Decision::Plan { batch } => {
            (format!("batch {batch}"), ranges(&facts, &starts, &mut sources, spec.max_rows).await?)
        }
    };
    Ok(outcome(&spec.name, &next, &sources, &facts, &tables))
}

type Planned = BTreeMap<String, (OffsetRanges, i64)>;

/// What the next batch would read by rows (`max_bytes` may cut it further), and how much there is in all.
async fn ranges(
    facts: &Facts,
    starts: &BTreeMap<String, Option<Offsets>>,
    sources: &mut BTreeMap<String, Box<dyn Source>>,
    max_rows: u64,
) -> Result<Planned> {
    let mut planned = Planned::new();
    for (name, source) in sources {
        let committed = facts.commit.as_ref().and_then(|commit| commit.offsets.get(name).cloned());
        let mut from = match committed.or_else(|| starts.get(name).cloned().flatten()) {
            Some(offsets) => offsets,
            None => source.start().await?,
        };
        let end = source.end().await?;
        if end.0.keys().any(|partition| !from.0.contains_key(partition)) {
            for (partition, offset) in source.earliest().await?.0 {
                from.0.entry(partition).or_insert(offset);
            }
        }
        let all = from.ranges_to(&end);
        planned.insert(name.clone(), (all.prorate(max_rows), all.len()));
    }
    Ok(planned)
}

fn outcome(
    pipeline: &str,
    next: &str,
    sources: &Planned,
    facts: &Facts,
    tables: &[(TableDefinition, String)],
) -> Outcome {
    let mut text = format!("{pipeline}: {next}\n\n");
    let mut rows = Vec::new();
    for (name, (ranges, backlog)) in sources {
        for (partition, range) in ranges.0.iter().filter(|(_, range)| !range.is_empty()) {
            rows.push(vec![
                name.clone(),
                partition.to_string(),
                range.from.to_string(),
                range.until.to_string(),
                grouped(range.len()),
            ]);
        }
        if ranges.is_empty() {
            text.push_str(&format!("source {name}: nothing to read\n"));
        } else if *backlog > ranges.len() {
            let left = grouped(backlog - ranges.len());
            text.push_str(&format!("source {name}: {left} more offsets would follow in later batches\n"));
        }
    }
    if !rows.is_empty() {
        text.push_str(&aligned(&["source", "partition", "from", "until", "offsets"], &rows, 2));
    }
    text.push('\n');
    for (table, mode) in tables {
        let version = facts.tables.get(&table.name).and_then(|fact| fact.version);
        match version {
            Some(version) => text.push_str(&format!("-- {}: exists at version {version}, {mode}\n", table.name)),
            None => text.push_str(&format!("-- {}: would be created, {mode}\n{}\n", table.name, ddl(table))),
        }
    }
    text.push_str("\nnothing was read or written\n");
    let json = json!({
        "version": 1,
        "status": "ok",
        "pipeline": pipeline,
        "next": next,
        "sources": sources.iter().map(|(name, (ranges, backlog))| {
            json!({ "name": name, "ranges": ranges, "backlog": backlog })
        }).collect::<Vec<Value>>(),
        "tables": tables.iter().map(|(table, mode)| {
            let version = facts.tables.get(&table.name).and_then(|fact| fact.version);
            json!({ "name": table.name, "version": version, "write": mode, "ddl": ddl(table) })
        }).collect::<Vec<Value>>(),
    });
    Outcome { text, json, code: 0 }
}

fn mode(table: &TableDefinition, upkeep: Option<String>) -> String {
    match &table.write {
        WriteMode::Append => "append".to_string(),
        WriteMode::Upsert { key, order_by, .. } if order_by.is_empty() => format!("upsert by {}", key.join(", ")),
        WriteMode::Upsert { key, order_by, .. } => {
            format!("upsert by {}, newest {} wins", key.join(", "), order_by.join(", "))
        }
        WriteMode::Refresh { by } => {
            let upkeep = upkeep.map(|how| format!(", {how}")).unwrap_or_default();
            format!("refresh by {}{upkeep}", by.join(", "))
        }
    }
}

/// The `CREATE TABLE` that Spark would need for the same table.
fn ddl(table: &TableDefinition) -> String {
    let columns: Vec<String> = columns(&table.schema).iter().map(|column| format!("  {column}")).collect();
    let partitions = match table.partition_by.as_slice() {
        [] => String::new(),
        names => format!(" PARTITIONED BY ({})", names.join(", ")),
    };
    format!("CREATE TABLE {} (\n{}\n) USING DELTA{partitions};", table.name, columns.join(",\n"))
}

fn columns(schema: &Schema) -> Vec<String> {
    let column = |field: &std::sync::Arc<Field>| {
        let required = if field.is_nullable() { "" } else { " NOT NULL" };
        format!("{} {}{required}", field.name(), sql_type(field.data_type()))
    };
    schema.fields().iter().map(column).collect()
}

fn sql_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "STRING".into(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "BINARY".into(),
        DataType::Boolean => "BOOLEAN".into(),
        DataType::Int8 => "TINYINT".into(),
        DataType::Int16 => "SMALLINT".into(),
        DataType::Int32 => "INT".into(),
        DataType::Int64 => "BIGINT".into(),
        DataType::Float32 => "FLOAT".into(),
        DataType::Float64 => "DOUBLE".into(),
        DataType::Date32 => "DATE".into(),
        DataType::Timestamp(_, Some(_)) => "TIMESTAMP".into(),
        DataType::Timestamp(_, None) => "TIMESTAMP_NTZ".into(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision},{scale})"),
        DataType::List(element) | DataType::LargeList(element) => format!("ARRAY<{}>", sql_type(element.data_type())),
        DataType::Struct(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|f| format!("{}: {}", f.name(), sql_type(f.data_type()))).collect();
            format!("STRUCT<{}>", fields.join(", "))
        }
        other => other.to_string(),
    }
}
