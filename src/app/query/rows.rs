//! Rows on stdout: a table for people, or a stream for programs.

use std::io::{BufWriter, Write};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatchOptions, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::json::writer::{LineDelimited, WriterBuilder};
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;
use serde_json::{Value, json};

use super::super::Outcome;
use super::super::output::{aligned, counted, grouped};
use super::{Answer, collected};
use crate::cli::RowFormat;
use crate::error::{Context, ErrorKind, Result};

/// What null looks like to people; text that is empty looks empty.
const NULL: &str = "null";

/// A table of at most `shown` rows.
pub(super) async fn table(answer: Answer, shown: usize) -> Result<Outcome> {
    let schema = answer.schema.clone();
    let header: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let mut rows: Vec<Vec<String>> = Vec::new();
    for batch in collected(answer).await? {
        rows.extend(cells(&readable(&batch)?, NULL)?);
    }
    let has_more = rows.len() > shown;
    rows.truncate(shown);
    let mut text = if header.is_empty() { String::new() } else { unindented(&aligned(&header, &rows, header.len())) };
    text.push_str(&match has_more {
        true => format!("(the first {} rows; --limit shows more)\n", grouped(shown as u64)),
        false => format!("({})\n", counted(rows.len() as u64, "row", "rows")),
    });
    Ok(Outcome { text, json: json!({ "version": 1, "status": "ok", "row_count": rows.len() }), code: 0 })
}

fn unindented(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", line.strip_prefix("  ").unwrap_or(line))).collect()
}

/// The result of `--output json`: one object with every row.
pub(super) async fn whole(answer: Answer) -> Result<Outcome> {
    let columns: Vec<Value> = answer
        .schema
        .fields()
        .iter()
        .map(|field| json!({ "name": field.name(), "type": field.data_type().to_string() }))
        .collect();
    let mut rows: Vec<Value> = Vec::new();
    for batch in collected(answer).await? {
        let lines = json_lines(&batch)?;
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            rows.push(serde_json::from_slice(line).context(ErrorKind::Failed, "a row is not JSON")?);
        }
    }
    let json = json!({ "version": 1, "status": "ok", "columns": columns, "rows": rows });
    Ok(Outcome { text: String::new(), json, code: 0 })
}

/// Writes rows to stdout as they come.
pub(super) async fn stream(mut answer: Answer, format: RowFormat) -> Result<Outcome> {
    let mut out = BufWriter::new(std::io::stdout());
    if format == RowFormat::Csv {
        let header: Vec<String> = answer.schema.fields().iter().map(|field| csv_cell(field.name())).collect();
        if write(&mut out, format!("{}\n", header.join(",")).as_bytes()).is_break() {
            return Ok(done(0));
        }
    }
    let (mut is_first, mut count) = (true, 0);
    while let Some(batch) = answer.rows.try_next().await? {
        let bytes = match format {
            RowFormat::Csv => csv(&batch)?,
            RowFormat::Json => json_array(&json_lines(&batch)?, &mut is_first),
            RowFormat::Ndjson | RowFormat::Table => json_lines(&batch)?,
        };
        if write(&mut out, &bytes).is_break() {
            return Ok(done(count));
        }
        count += batch.num_rows();
    }
    if format == RowFormat::Json {
        let end: &[u8] = if is_first { b"[]\n" } else { b"\n]\n" };
        let _ = write(&mut out, end);
    }
    let _ = out.flush();
    Ok(done(count))
}

/// The rows are out; what is left to say is how many.
fn done(count: usize) -> Outcome {
    Outcome { text: String::new(), json: json!({ "version": 1, "status": "ok", "row_count": count }), code: 0 }
}

/// A closed pipe (`| head`) ends the query, and is no error.
fn write(out: &mut impl Write, bytes: &[u8]) -> std::ops::ControlFlow<()> {
    match out.write_all(bytes) {
        Ok(()) => std::ops::ControlFlow::Continue(()),
        Err(_) => std::ops::ControlFlow::Break(()),
    }
}

/// Bytes that are text, as keys and values usually are, shown as text; others as `0x…`. For people only: a program could
/// not tell them apart.
fn readable(batch: &RecordBatch) -> Result<RecordBatch> {
    let text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_string(),
        _ => bytes.iter().fold("0x".to_string(), |text, byte| format!("{text}{byte:02x}")),
    };
    replaced(batch, |column| {
        let bytes = match column.data_type() {
            DataType::Binary | DataType::BinaryView | DataType::LargeBinary => cast(column, &DataType::Binary).ok()?,
            _ => return None,
        };
        Some(Arc::new(bytes.as_binary::<i32>().iter().map(|bytes| bytes.map(text)).collect::<StringArray>()))
    })
}

/// Decimals as text: readers of JSON would take them for floats.
fn exact(batch: &RecordBatch) -> Result<RecordBatch> {
    replaced(batch, |column| column.data_type().is_decimal().then(|| cast(column, &DataType::Utf8).ok()).flatten())
}

/// The batch with some columns replaced.
fn replaced(batch: &RecordBatch, other: impl Fn(&ArrayRef) -> Option<ArrayRef>) -> Result<RecordBatch> {
    let columns: Vec<ArrayRef> =
        batch.columns().iter().map(|column| other(column).unwrap_or_else(|| column.clone())).collect();
    let schema = batch.schema();
    let fields = schema.fields().iter().zip(&columns);
    let fields: Vec<Field> =
        fields.map(|(field, column)| Field::new(field.name(), column.data_type().clone(), true)).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
        .context(ErrorKind::Failed, "the rows cannot be shown")
}

fn json_lines(batch: &RecordBatch) -> Result<Vec<u8>> {
    let batch = &exact(batch)?;
    let mut bytes = Vec::new();
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut bytes);
    writer
        .write(batch)
        .and_then(|()| writer.finish())
        .context(ErrorKind::Failed, "the rows cannot be written as JSON")?;
    drop(writer);
    Ok(bytes)
}

/// Lines as elements of one array.
fn json_array(lines: &[u8], is_first: &mut bool) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(lines.len() + 16);
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        bytes.extend_from_slice(if std::mem::take(is_first) { b"[\n  " } else { b",\n  " });
        bytes.extend_from_slice(line);
    }
    bytes
}

fn csv(batch: &RecordBatch) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for row in cells(batch, "")? {
        let row: Vec<String> = row.iter().map(|cell| csv_cell(cell)).collect();
        bytes.extend_from_slice(row.join(",").as_bytes());
        bytes.push(b'\n');
    }
    Ok(bytes)
}

fn csv_cell(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_string(),
    }
}

/// Every value as text.
fn cells(batch: &RecordBatch, null: &str) -> Result<Vec<Vec<String>>> {
    let options = FormatOptions::default().with_null(null);
    let formatters = batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options));
    let formatters = formatters
        .collect::<std::result::Result<Vec<_>, _>>()
        .context(ErrorKind::Failed, "a column cannot be shown")?;
    let row = |row: usize| formatters.iter().map(|formatter| formatter.value(row).to_string()).collect();
    Ok((0..batch.num_rows()).map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_quotes_what_would_break_a_line_or_a_cell() {
        assert_eq!(csv_cell("plain"), "plain");
        assert_eq!(csv_cell("a,b"), "\"a,b\"");
        assert_eq!(csv_cell("say \"hi\"\n"), "\"say \"\"hi\"\"\n\"");
    }

    #[test]
    fn an_array_of_lines_is_json() {
        let mut is_first = true;
        let mut bytes = json_array(b"{\"a\":1}\n{\"a\":2}\n", &mut is_first);
        bytes.extend(json_array(b"{\"a\":3}\n", &mut is_first));
        bytes.extend_from_slice(b"\n]\n");
        let parsed: Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!(parsed, json!([{"a": 1}, {"a": 2}, {"a": 3}]));
    }
}
