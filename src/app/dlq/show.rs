//! `tidegate dlq show`: everything about one dead letter.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use chrono::DateTime;
use serde_json::{Value, json};

use super::super::output::{counted, file_argument};
use super::super::{Failure, Outcome, compose};
use super::select::Selection;
use super::{letter_json, open, ran_before, short, table_name, time};
use crate::cli::{DlqShowArgs, Global, LetterArgs};
use crate::error::{Error, ErrorKind, Result};
use crate::model::letter::Status;
use crate::transform::letter::{self, Letter};

/// Bytes of a value that the text shows; JSON output has all.
const SHOWN: usize = 64 << 10;

/// Ids that an ambiguous one is told from.
const CANDIDATES: usize = 5;

pub(super) async fn show(global: &Global, args: &DlqShowArgs) -> Result<Outcome, Failure> {
    let checked = compose::check(global, &args.pipeline.file).await?;
    let spec = &checked.spec;
    let name = table_name(spec)?;
    let Some((_, identity)) = ran_before(&checked).await? else { return Err(unknown(&args.id, &name).into()) };
    let mut table = open(&checked, &identity)?;
    let wanted = LetterArgs { ids: vec![args.id.clone()], ..LetterArgs::default() };
    let found = Selection::new(&wanted, &Status::ALL, spec)?.letters(&mut *table, None).await?;
    // The newest, where a record was read again and set aside again.
    let Some(newest) = found.last() else { return Err(unknown(&args.id, &name).into()) };
    let mut ids: Vec<&str> = found.iter().map(|letter| letter.id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.len() > 1 {
        let listed = ids.iter().take(CANDIDATES).map(|id| short(id)).collect::<Vec<_>>().join(", ");
        let what = counted(ids.len() as u64, "dead letter starts", "dead letters start");
        let error = Error::new(ErrorKind::Usage, format!("{what} with `{}`", args.id));
        return Err(error.help(format!("write more of the id: {listed}")).into());
    }
    let keys = letter::keys(&[(newest.batch, vec![newest.id.clone()])].into())?;
    let rows = table.read(&letter::columns(), Some(&keys)).await?;
    // One that was replayed and set aside again has several rows of one name.
    let is_newest = |letter: &Letter| letter.failed_at == newest.failed_at;
    let Some(number) = letter::read(&rows)?.iter().position(is_newest) else {
        return Err(unknown(&args.id, &name).into());
    };
    let mut rows = rows.iter().flat_map(|batch| (0..batch.num_rows()).map(|row| batch.slice(row, 1)));
    let Some(row) = rows.nth(number) else { return Err(unknown(&args.id, &name).into()) };
    let record = Record::of(&row);
    let file = file_argument(global, &args.pipeline.file);
    let hint = hint(newest);
    let next = next(newest, &file);
    let mut json = letter_json(newest);
    json["pipeline"] = spec.name.clone().into();
    json["record"] = record.json();
    json["hint"] = hint.into();
    json["next"] = next.iter().map(|(command, _)| command.as_str()).collect::<Vec<_>>().into();
    let json = json!({ "version": 1, "status": "ok", "pipeline": spec.name, "letter": json });
    Ok(Outcome { text: text(newest, &record, hint, &next), json, code: 0 })
}

fn unknown(id: &str, table: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("no dead letter in {table} has an id that starts with `{id}`"))
        .help("their ids: tidegate dlq ls FILE --rows")
}

/// The record that a letter was made of, as far as it is kept.
struct Record {
    timestamp: Option<String>,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
    row_json: Option<String>,
    is_kept: bool,
}

impl Record {
    fn of(row: &RecordBatch) -> Record {
        let bytes = |name: &str| {
            let column = row.column_by_name(name)?.as_binary_opt::<i32>()?;
            column.is_valid(0).then(|| column.value(0).to_vec())
        };
        let timestamp = row.column_by_name("timestamp").and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
        let timestamp = timestamp.filter(|column| column.is_valid(0)).map(|column| column.value(0));
        let row_json = row.column_by_name("row_json").and_then(|c| c.as_string_opt::<i32>());
        Record {
            timestamp: timestamp.and_then(DateTime::from_timestamp_micros).map(|at| at.to_rfc3339()),
            key: bytes("key"),
            value: bytes("value"),
            headers: row.column_by_name("headers").map(headers).unwrap_or_default(),
            row_json: row_json.filter(|column| column.is_valid(0)).map(|column| column.value(0).to_string()),
            is_kept: letter::keeps_record(row, 0),
        }
    }

    fn json(&self) -> Value {
        let headers = self.headers.iter().map(|(key, value)| json!({ "key": key, "value": bytes_json(value) }));
        json!({
            "kept": self.is_kept, "timestamp": self.timestamp, "key": bytes_json(&self.key),
            "value": bytes_json(&self.value), "headers": headers.collect::<Vec<_>>(), "row": self.row_json,
        })
    }
}

fn headers(column: &ArrayRef) -> Vec<(String, Option<Vec<u8>>)> {
    let Some(lists) = column.as_list_opt::<i32>().filter(|lists| lists.is_valid(0)) else { return Vec::new() };
    let entries = lists.value(0);
    let Some(entries) = entries.as_struct_opt() else { return Vec::new() };
    let keys = entries.column_by_name("key").and_then(|column| column.as_string_opt::<i32>());
    let values = entries.column_by_name("value").and_then(|column| column.as_binary_opt::<i32>());
    let (Some(keys), Some(values)) = (keys, values) else { return Vec::new() };
    let entry = |row| (keys.value(row).to_string(), values.is_valid(row).then(|| values.value(row).to_vec()));
    (0..keys.len()).map(entry).collect()
}

/// Text where the bytes are text, hexadecimal otherwise: either gives back every byte.
fn bytes_json(bytes: &Option<Vec<u8>>) -> Value {
    match bytes.as_deref().map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => Value::Null,
        Some((bytes, Ok(text))) => json!({ "bytes": bytes.len(), "text": text }),
        Some((bytes, Err(_))) => json!({ "bytes": bytes.len(), "hex": hex(bytes) }),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(letter: &Letter, record: &Record, hint: &str, next: &[(String, &str)]) -> String {
    let attempts = counted(letter.attempts.unsigned_abs().into(), "replay", "replays");
    let mut status = letter.status.as_str().to_string();
    if let (Some(batch), Some(at)) = (letter.status_batch, letter.status_at) {
        status.push_str(&format!(" since batch {batch} ({}), {attempts}", time(at)));
    }
    let place = match &letter.coordinates {
        Some(at) => format!("topic {}, partition {}, offset {}", at.topic, at.partition, at.offset),
        None => "none: the SQL makes rows of many records".to_string(),
    };
    let mut lines = vec![
        ("status", status),
        ("of", format!("{}, stage {}, rule {}", letter.table, letter.stage, letter.rule)),
        ("error", printable(&letter.error)),
        ("hint", hint.to_string()),
        ("set aside", format!("batch {}, {}", letter.batch, time(letter.failed_at))),
        ("record", place),
    ];
    lines.extend(letter.note.iter().map(|note| ("note", printable(note))));
    lines.extend(record.timestamp.iter().map(|at| ("timestamp", at.clone())));
    let mut text = format!("dead letter {}\n", letter.id);
    for (name, value) in lines {
        text.push_str(&format!("  {name:<10} {value}\n"));
    }
    match record.is_kept {
        true => {
            text.push_str(&block("key", record.key.as_deref()));
            text.push_str(&block("value", record.value.as_deref()));
        }
        false => text.push_str("  its record was not kept\n"),
    }
    for (key, value) in &record.headers {
        text.push_str(&block(&format!("header {}", printable(key)), value.as_deref()));
    }
    if let Some(row) = &record.row_json {
        text.push_str(&block("row", Some(row.as_bytes())));
    }
    for (command, what) in next {
        text.push_str(&format!("{what}\n  {command}\n"));
    }
    text
}

/// Bytes under a heading that says how they are shown.
fn block(name: &str, bytes: Option<&[u8]>) -> String {
    let Some(bytes) = bytes else { return format!("  {name:<10} null\n") };
    let size = counted(bytes.len() as u64, "byte", "bytes");
    let cut = &bytes[..bytes.len().min(SHOWN)];
    let (form, shown) = match std::str::from_utf8(bytes) {
        Ok(text) if !text.trim().is_empty() && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() => {
            ("JSON", pretty(text))
        }
        Ok(text) => ("text", text.split('\n').map(printable).collect::<Vec<_>>().join("\n")),
        Err(_) => ("hexadecimal", lines_of_hex(cut)),
    };
    let mut end = shown.len().min(SHOWN * 4);
    while !shown.is_char_boundary(end) {
        end -= 1;
    }
    let more = if end < shown.len() || cut.len() < bytes.len() { "\n…: --output json has all of it" } else { "" };
    let body: String = format!("{}{more}", &shown[..end]).lines().map(|line| format!("    {line}\n")).collect();
    format!("  {name:<10} {size}, {form}\n{body}")
}

/// Control characters escaped: what a stranger wrote must not steer the terminal.
fn printable(text: &str) -> String {
    let escaped = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escaped).collect()
}

fn lines_of_hex(bytes: &[u8]) -> String {
    let readable = |byte: &u8| if byte.is_ascii_graphic() || *byte == b' ' { *byte as char } else { '.' };
    let line = |(number, chunk): (usize, &[u8])| {
        let pairs = chunk.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
        format!("{:08x}  {pairs:<47}  {}", number * 16, chunk.iter().map(readable).collect::<String>())
    };
    bytes.chunks(16).enumerate().map(line).collect::<Vec<_>>().join("\n")
}

/// JSON with line breaks; every token stays as it was written, numbers and the order of fields too.
fn pretty(json: &str) -> String {
    let mut text = String::with_capacity(json.len() * 2);
    let (mut depth, mut is_string, mut is_escaped) = (0usize, false, false);
    let mut characters = json.trim().chars().peekable();
    let line = |text: &mut String, depth: usize| {
        text.push('\n');
        text.push_str(&"  ".repeat(depth));
    };
    while let Some(c) = characters.next() {
        if is_string {
            text.push(c);
            is_string = is_escaped || c != '"';
            is_escaped = c == '\\' && !is_escaped;
            continue;
        }
        match c {
            '"' => {
                is_string = true;
                text.push(c);
            }
            '{' | '[' => {
                text.push(c);
                while characters.peek().is_some_and(|next| next.is_whitespace()) {
                    characters.next();
                }
                match characters.peek() {
                    Some('}' | ']') => text.extend(characters.next()),
                    _ => {
                        depth += 1;
                        line(&mut text, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut text, depth);
                text.push(c);
            }
            ',' => {
                text.push(c);
                line(&mut text, depth);
            }
            ':' => text.push_str(": "),
            c if c.is_whitespace() => {}
            c => text.push(c),
        }
    }
    text
}

/// What usually helps.
fn hint(letter: &Letter) -> &'static str {
    match (letter.status, letter.stage.as_str(), letter.rule.as_str()) {
        (Status::Replayed, ..) => "nothing is left to do: its record is in the tables",
        (_, "decode", "type_mismatch" | "out_of_range") => {
            "if the value is right, the column needs another type: numbers for a timestamp need `unit`; other stored types \
             do not change in place, so read it into a column of a new name"
        }
        (_, "decode", "missing_required") => {
            "have the producer send the field; `not null` can be left out under `schema` where no table stores it so"
        }
        (_, "decode", "unknown_field") => "name the field under `schema`, or say `schema_drift: rescue`",
        (_, "decode", "tombstone") => "say under the source's `tombstones` what a record without a value means",
        (_, "decode", _) => "the record is not what `format` says: no change of the file reads it but another format",
        (_, "expect", _) => "mend the row in `sql`, or change the expectation, if the row is right",
        (_, "key", "null_key") => "the row has no key: have `sql` make one, or filter such rows out",
        (_, "key", _) => "the value cannot name a folder: have `sql` make another one of it",
        _ => "see the error",
    }
}

/// Commands, and what they do.
fn next(letter: &Letter, file: &str) -> Vec<(String, &'static str)> {
    let id = short(&letter.id);
    let replay = (format!("tidegate dlq replay {file} --id {id}"), "what the file makes of it now:");
    let again = (
        format!("tidegate dlq replay {file} --id {id} --status discarded"),
        "it was given up; what the file makes of it now:",
    );
    let discard =
        (format!("tidegate dlq discard {file} --id {id} --reason '…'"), "to give it up (it stays in the table):");
    match letter.status {
        Status::Open => vec![replay, discard],
        Status::Discarded => vec![again],
        Status::Replayed => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_laid_out_and_not_changed() {
        let written = r#"{"b":1.10,"a":[ ],"c":{"x":"a,{\"b\":}","y":[1, 2e999]}, "b":null}"#;
        let shown = pretty(written);
        let expected = "{\n  \"b\": 1.10,\n  \"a\": [],\n  \"c\": {\n    \"x\": \"a,{\\\"b\\\":}\",\n    \"y\": [\n      1,\n      \
                        2e999\n    ]\n  },\n  \"b\": null\n}";
        assert_eq!(shown, expected);
    }

    #[test]
    fn bytes_cannot_steer_the_terminal() {
        let shown = block("value", Some(b"red \x1b[31m\ttab"));
        assert!(shown.contains("text") && shown.contains("\\u{1b}[31m\\ttab"), "{shown}");
        let shown = block("value", Some(b"\xff\x00AB"));
        assert!(shown.contains("4 bytes, hexadecimal") && shown.contains("ff 00 41 42"), "{shown}");
        assert!(shown.ends_with("..AB\n"), "{shown}");
    }
}
