//! What a test gives: YAML rows on their way to records of a source, rows of a table, rows of a lookup.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, Utc};

use super::value::micros;
use crate::config::report::{Problem, Report, closest};
use crate::config::spec::{
    ColumnSpec, FilesSpec, Format, PipelineSpec, SchemaDrift, SourceKind, SourceSpec, Tombstones, TopicSelection,
};
use crate::config::tests::json_text;
use crate::config::yaml::{Entry, Node, Value};
use crate::error::{Context, ErrorKind, Result};
use crate::model::offset::{Offset, Partition};
use crate::source::memory::Record;
use crate::source::rows::Rows;
use crate::table::lookup;
use crate::transform::BatchContext;
use crate::transform::decode::{Decoder, row_schema};

/// Keys of the long form of a record.
const ENVELOPE: [&str; 7] = ["value", "key", "headers", "timestamp", "topic", "partition", "offset"];

/// Turns the rows of a test into records, counting offsets.
pub(super) struct Records<'a> {
    spec: &'a PipelineSpec,
    now: DateTime<Utc>,
    next: BTreeMap<(String, Partition), Offset>,
}

impl<'a> Records<'a> {
    pub fn new(spec: &'a PipelineSpec, now: DateTime<Utc>) -> Self {
        Records { spec, now, next: BTreeMap::new() }
    }

    /// The record that a row means; `None` = reported.
    pub fn record(&mut self, source_name: &str, row: &Node, report: &mut Report) -> Option<Record> {
        let source = self.spec.sources.get(source_name)?;
        let before = report.problems().len();
        let mut record = Record {
            partition: Partition::new(topic(source_name, source), 0),
            offset: 0,
            timestamp: Some(self.now.timestamp_micros()),
            key: None,
            value: None,
            headers: None,
        };
        let mut offset = None;
        match &row.value {
            Value::Mapping(entries) if is_envelope(entries, source) => {
                for entry in entries {
                    self.envelope(entry, source, &mut record, &mut offset, report);
                }
            }
            _ => record.value = payload(row, source),
        }
        let next = self.next.entry((source_name.to_owned(), record.partition.clone())).or_default();
        record.offset = offset.unwrap_or(*next);
        if record.offset < *next {
            let problem =
                Problem::in_test(row.span, format!("offset {} comes after offset {}", record.offset, *next - 1));
            report.add(problem.label("the offsets of a partition ascend"));
        }
        *next = record.offset.max(*next) + 1;
        (report.problems().len() == before).then_some(record)
    }

    fn envelope(
        &self,
        entry: &Entry,
        source: &SourceSpec,
        record: &mut Record,
        offset: &mut Option<Offset>,
        report: &mut Report,
    ) {
        let text = entry.value.text().unwrap_or_default();
        let mut refuse = |what: &str| {
            report.add(Problem::in_test(entry.value.span, format!("`{}` must be {what}", entry.key)));
        };
        match entry.key.as_str() {
            "value" => record.value = payload(&entry.value, source),
            "key" => record.key = bytes(&entry.value),
            "topic" => record.partition.topic = text.to_owned(),
            "partition" => match text.parse() {
                Ok(number) if number >= 0 => record.partition.partition = number,
                _ => refuse("a partition number"),
            },
            "offset" => match text.parse() {
                Ok(number) if number >= 0 => *offset = Some(number),
                _ => refuse("an offset"),
            },
            "timestamp" if entry.value.is_null() => record.timestamp = None,
            "timestamp" => match micros(text) {
                Some(time) => record.timestamp = Some(time),
                None => refuse("a time such as 2026-03-17T12:00:00Z"),
            },
            _ => match &entry.value.value {
                Value::Mapping(headers) => {
                    let header = |header: &Entry| (header.key.clone(), bytes(&header.value));
                    record.headers = Some(headers.iter().map(header).collect());
                }
                _ if entry.value.is_null() => record.headers = None,
                _ => refuse("a mapping of header names and values"),
            },
        }
    }
}

/// What `_topic` says: the first topic by name, else the source's name.
fn topic(name: &str, source: &SourceSpec) -> String {
    match &source.kind {
        SourceKind::Kafka(kafka) => match &kafka.topics {
            TopicSelection::Names(names) => names.first().cloned().unwrap_or_else(|| name.to_owned()),
            TopicSelection::Pattern(_) => name.to_owned(),
        },
        SourceKind::Generate(generate) => generate.dataset.clone(),
        SourceKind::Files(_) => name.to_owned(),
    }
}

/// `{value: …, key: …}` is a record with its envelope, unless every key is a column of the payload.
fn is_envelope(entries: &[Entry], source: &SourceSpec) -> bool {
    let is_column = |key: &str| source.columns.iter().any(|column| column.name == key);
    entries.iter().any(|entry| entry.key == "value")
        && entries.iter().all(|entry| ENVELOPE.contains(&entry.key.as_str()))
        && !entries.iter().all(|entry| is_column(&entry.key))
}

/// A mapping is encoded as the source's format says; a text is bytes as they are.
fn payload(node: &Node, source: &SourceSpec) -> Option<Vec<u8>> {
    match &node.value {
        Value::Mapping(_) if source.format == Format::Csv => {
            let field = |column: &ColumnSpec| csv_field(node.get(&column.name));
            Some(source.columns.iter().map(field).collect::<Vec<_>>().join(",").into_bytes())
        }
        _ => bytes(node),
    }
}

fn bytes(node: &Node) -> Option<Vec<u8>> {
    match &node.value {
        _ if node.is_null() => None,
        Value::Scalar(scalar) => Some(scalar.text.clone().into_bytes()),
        _ => Some(json_text(node).into_bytes()),
    }
}

fn csv_field(node: Option<&Node>) -> String {
    let Some(node) = node.filter(|node| !node.is_null()) else { return String::new() };
    let text = node.text().map_or_else(|| json_text(node), str::to_owned);
    let plain = !text.is_empty() && !text.contains([',', '"', '\n', '\r']) && text.trim() == text;
    if plain { text } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}

/// Rows of a table or lookup in its schema, with the coordinates and metadata that decoding adds; `None` = reported.
pub(super) fn typed_rows(
    what: &str,
    rows: &[Node],
    schema: &SchemaRef,
    now: DateTime<Utc>,
    report: &mut Report,
) -> Result<Option<Vec<RecordBatch>>> {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let mut sound = true;
    for entry in rows.iter().filter_map(mapping).flatten() {
        if !names.contains(&entry.key.as_str()) {
            report.add(unknown_column(entry, what, &names));
            sound = false;
        }
    }
    let source = table_source(schema);
    let mut records = Rows::new(Partition::new("", 0));
    for (index, row) in rows.iter().enumerate() {
        records.push(index as Offset, Some(now.timestamp_micros()), None, Some(json_text(row).as_bytes()), None)?;
    }
    let context = BatchContext { pipeline: String::new(), batch: 0, batch_time: now, interval: None };
    let decoded = Decoder::new(what, &source, chrono_tz::UTC)?.decode(&records.finish()?, &context)?;
    for dead in &decoded.dead {
        let row = dead.coordinates.as_ref().and_then(|at| rows.get(at.offset as usize));
        let span = row.map(|row| row.span).unwrap_or_default();
        report.add(Problem::in_test(span, format!("a row that {what} cannot hold: {}", dead.error)));
        sound = false;
    }
    Ok(sound.then_some(decoded.rows))
}

/// A source whose payload is the table's columns; those that decoding adds anyway are left to it.
fn table_source(schema: &SchemaRef) -> SourceSpec {
    let nothing = SourceSpec {
        kind: SourceKind::Files(FilesSpec { path: Default::default(), pattern: String::new() }),
        format: Format::Json,
        columns: Vec::new(),
        event_time: None,
        schema_drift: SchemaDrift::Ignore,
        tombstones: Tombstones::Quarantine,
    };
    let added = row_schema(&nothing);
    let columns = schema.fields().iter().filter(|field| added.field_with_name(field.name()).is_err());
    let column = |field: &Arc<arrow::datatypes::Field>| ColumnSpec {
        name: field.name().clone(),
        data_type: field.data_type().clone(),
        nullable: field.is_nullable(),
        unit: None,
    };
    SourceSpec { columns: columns.map(column).collect(), ..nothing }
}

/// The columns of `schema`, in its order.
pub(super) fn in_schema(rows: &[RecordBatch], schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
    let why = "given rows do not fit the schema";
    let project = |batch: &RecordBatch| {
        let columns = schema.fields().iter().map(|field| {
            let known = batch.column_by_name(field.name()).cloned();
            known.unwrap_or_else(|| arrow::array::new_null_array(field.data_type(), batch.num_rows()))
        });
        RecordBatch::try_new(schema.clone(), columns.collect()).context(ErrorKind::Failed, why)
    };
    rows.iter().map(project).collect()
}

/// Rows of a lookup that cannot be opened here: types are inferred as for a CSV file.
pub(super) fn inferred_rows(rows: &[Node]) -> Result<(SchemaRef, Vec<RecordBatch>)> {
    let mut names: Vec<&str> = Vec::new();
    for entry in rows.iter().filter_map(mapping).flatten() {
        if !names.contains(&entry.key.as_str()) {
            names.push(&entry.key);
        }
    }
    let mut text = names.join(",") + "\n";
    for row in rows {
        text += &names.iter().map(|name| csv_field(row.get(name))).collect::<Vec<_>>().join(",");
        text.push('\n');
    }
    lookup::csv_rows(text)
}

/// The cells of a row.
pub(super) fn mapping(row: &Node) -> Option<&[Entry]> {
    match &row.value {
        Value::Mapping(entries) => Some(entries),
        _ => None,
    }
}

/// A cell of a column that is not there.
pub(super) fn unknown_column(entry: &Entry, what: &str, names: &[&str]) -> Problem {
    let problem = Problem::in_test(entry.key_span, format!("{what} has no column `{}`", entry.key));
    let problem = match closest(&entry.key, names.iter().copied()) {
        Some(near) => problem.label(format!("did you mean `{near}`?")),
        None => problem,
    };
    problem.help(format!("columns of {what}: {}", names.join(", ")))
}
