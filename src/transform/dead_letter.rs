//! The rows of the dead-letter table: what was set aside, why, and the original bytes to replay it from.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Date32Array, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray, new_null_array,
};
use arrow::compute::interleave;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;
use sha2::{Digest, Sha256};

use super::{BatchContext, DeadLetter};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::model::letter::Status;
use crate::source::{self, column};

/// Columns copied from the envelope: name there, name here.
pub(super) const COPIED: [(&str, &str); 4] =
    [(column::TIMESTAMP, "timestamp"), (column::KEY, "key"), (column::VALUE, "value"), (column::HEADERS, "headers")];

/// Bytes of keys and values in one batch of dead letters, below the 2 GiB that a column can hold.
const MAX_BYTES: usize = 1 << 30;

/// The columns of the dead-letter table.
pub fn schema() -> SchemaRef {
    let text = |name: &str, nullable| Field::new(name, DataType::Utf8, nullable);
    let mut fields = vec![
        text("dlq_id", false),
        text("pipeline", false),
        text("table", false),
        text("stage", false),
        text("rule", false),
        text("error", false),
        text("topic", true),
        Field::new("partition", DataType::Int32, true),
        Field::new("offset", DataType::Int64, true),
    ];
    let envelope = source::envelope();
    for (from, to) in COPIED {
        if let Ok(field) = envelope.field_with_name(from) {
            fields.push(field.clone().with_name(to).with_nullable(true));
        }
    }
    fields.push(text("row_json", true));
    fields.push(Field::new("batch_id", DataType::Int64, false));
    fields.push(Field::new("failed_at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false));
    fields.push(Field::new("failed_date", DataType::Date32, false));
    // What became of it; tables from before these columns get them with the next batch, null means open.
    fields.push(text("status", true));
    fields.push(Field::new("attempts", DataType::Int32, true));
    fields.push(Field::new("status_batch", DataType::Int64, true));
    fields.push(Field::new("status_at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true));
    fields.push(text("note", true));
    Arc::new(Schema::new(fields))
}

/// Dead letters as rows, the original key, value, headers and timestamp looked up in `records` (batches of the
/// envelope) by coordinates. Sorted by coordinates, table, stage and rule, so that a replay writes the same rows in the
/// same order, however its rows were computed.
pub fn rows(dead: &[DeadLetter], records: &[RecordBatch], context: &BatchContext) -> Result<RecordBatch> {
    let mut dead: Vec<&DeadLetter> = dead.iter().collect();
    dead.sort_by(|a, b| order(a).cmp(&order(b)));
    let found = locate(&dead, records)?;

    let texts = |get: &dyn Fn(&DeadLetter) -> String| -> ArrayRef {
        Arc::new(dead.iter().map(|d| Some(get(d))).collect::<StringArray>())
    };
    let place = |d: &DeadLetter| d.coordinates.clone();
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(ids(&dead, context))),
        texts(&|_| context.pipeline.clone()),
        texts(&|d| d.table.clone()),
        texts(&|d| d.stage.as_str().to_string()),
        texts(&|d| d.rule.clone()),
        texts(&|d| d.error.clone()),
        Arc::new(dead.iter().map(|d| place(d).map(|c| c.topic)).collect::<StringArray>()),
        Arc::new(dead.iter().map(|d| place(d).map(|c| c.partition)).collect::<Int32Array>()),
        Arc::new(dead.iter().map(|d| place(d).map(|c| c.offset)).collect::<Int64Array>()),
    ];
    for (name, _) in COPIED {
        columns.push(copied(name, &found, records)?);
    }
    columns.push(Arc::new(dead.iter().map(|d| d.row_json.clone()).collect::<StringArray>()));
    let micros = context.batch_time.timestamp_micros();
    let day = i32::try_from(micros.div_euclid(86_400_000_000)).unwrap_or_default();
    columns.push(Arc::new(Int64Array::from(vec![context.batch; dead.len()])));
    columns.push(Arc::new(TimestampMicrosecondArray::from(vec![micros; dead.len()]).with_timezone("UTC")));
    columns.push(Arc::new(Date32Array::from(vec![day; dead.len()])));
    let schema = schema();
    columns.push(Arc::new(StringArray::from(vec![Status::Open.as_str(); dead.len()])));
    columns.push(Arc::new(Int32Array::from(vec![0; dead.len()])));
    columns.extend(schema.fields()[columns.len()..].iter().map(|field| new_null_array(field.data_type(), dead.len())));
    RecordBatch::try_new(schema, columns).context(ErrorKind::Failed, "dead letters do not fit their schema")
}

/// What dead letters are sorted by; rows without coordinates come first.
fn order(dead: &DeadLetter) -> impl Ord + '_ {
    (&dead.coordinates, &dead.table, dead.stage.as_str(), &dead.rule, &dead.row_json, &dead.error)
}

/// One id per dead letter: a hash of what it is about, the same in every run. Two rows that one record was exploded
/// into may break the same rule; the second and later ones also count their place.
fn ids(dead: &[&DeadLetter], context: &BatchContext) -> Vec<String> {
    let mut seen: HashMap<[u8; 32], u64> = HashMap::new();
    let mut ids = Vec::with_capacity(dead.len());
    for letter in dead {
        let mut hasher = Sha256::new();
        // Lengths go in front, so that no two lists of parts read the same.
        let mut part = |bytes: &[u8]| {
            hasher.update((bytes.len() as u64).to_be_bytes());
            hasher.update(bytes);
        };
        for text in [&context.pipeline, &letter.table, letter.stage.as_str(), &letter.rule] {
            part(text.as_bytes());
        }
        match &letter.coordinates {
            Some(at) => {
                part(at.topic.as_bytes());
                part(&at.partition.to_be_bytes());
                part(&at.offset.to_be_bytes());
            }
            // Without a record the batch is part of the identity: the same aggregate may fail again tomorrow.
            None => {
                part(&context.batch.to_be_bytes());
                part(letter.row_json.as_deref().unwrap_or_default().as_bytes());
            }
        }
        let first: [u8; 32] = hasher.finalize().into();
        let repeats = seen.entry(first).or_insert(0);
        let id = match *repeats {
            0 => first,
            n => Sha256::new().chain_update(first).chain_update(n.to_be_bytes()).finalize().into(),
        };
        *repeats += 1;
        ids.push(id.iter().map(|byte| format!("{byte:02x}")).collect());
    }
    ids
}

/// Where each dead letter's record is: batch and row in `records`.
fn locate(dead: &[&DeadLetter], records: &[RecordBatch]) -> Result<Vec<Option<(usize, usize)>>> {
    let mut found = vec![None; dead.len()];
    // By numbers first: hashing the topic of every record would cost more than the few dead letters are worth.
    let mut wanted: HashMap<(i32, i64), Vec<usize>> = HashMap::new();
    for (index, letter) in dead.iter().enumerate() {
        if let Some(at) = &letter.coordinates {
            wanted.entry((at.partition, at.offset)).or_default().push(index);
        }
    }
    if wanted.is_empty() {
        return Ok(found);
    }
    for (number, batch) in records.iter().enumerate() {
        let topics: &StringArray = envelope_column(batch, column::TOPIC)?;
        let partitions: &Int32Array = envelope_column(batch, column::PARTITION)?;
        let offsets: &Int64Array = envelope_column(batch, column::OFFSET)?;
        for row in 0..batch.num_rows() {
            for &index in wanted.get(&(partitions.value(row), offsets.value(row))).into_iter().flatten() {
                if dead[index].coordinates.as_ref().is_some_and(|at| at.topic == topics.value(row)) {
                    found[index] = Some((number, row));
                }
            }
        }
    }
    Ok(found)
}

fn envelope_column<'a, T: 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a T> {
    batch
        .column_by_name(name)
        .and_then(|column| column.as_any().downcast_ref())
        .ok_or_else(|| Error::failed("records lack an envelope column").with("column", name))
}

/// One envelope column for the dead letters: null where there is no record.
fn copied(name: &str, found: &[Option<(usize, usize)>], records: &[RecordBatch]) -> Result<ArrayRef> {
    let envelope = source::envelope();
    let field = envelope.field_with_name(name).context(ErrorKind::Failed, "no such envelope column")?;
    let none = new_null_array(field.data_type(), 1);
    let mut arrays: Vec<&dyn Array> = vec![none.as_ref()];
    for batch in records {
        let column = batch.column_by_name(name);
        arrays.push(
            column.ok_or_else(|| Error::failed("records lack an envelope column").with("column", name))?.as_ref(),
        );
    }
    let picks: Vec<(usize, usize)> =
        found.iter().map(|place| place.map_or((0, 0), |(batch, row)| (batch + 1, row))).collect();
    let bytes: usize = picks.iter().map(|&(array, row)| byte_length(arrays[array], row)).sum();
    if bytes > MAX_BYTES {
        return Err(Error::new(ErrorKind::Data, "the dead letters of one batch are larger than 1 GiB")
            .with("bytes", bytes)
            .help("make batches smaller (batch.max_bytes), or repair the rule that sets every row aside"));
    }
    interleave(&arrays, &picks).context(ErrorKind::Failed, "cannot copy the original records")
}

fn byte_length(array: &dyn Array, row: usize) -> usize {
    match array.as_any().downcast_ref::<arrow::array::BinaryArray>() {
        Some(values) if values.is_valid(row) => values.value(row).len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::{Coordinates, Stage};
    use arrow::array::{AsArray, BinaryArray};
    use arrow::datatypes::Int64Type;
    use chrono::DateTime;
    use std::collections::HashSet;

    fn records(topic: &str, first: i64, values: &[Option<&[u8]>]) -> RecordBatch {
        let len = values.len();
        let times = TimestampMicrosecondArray::from(vec![Some(5); len]).with_timezone("UTC");
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec![topic; len])),
            Arc::new(Int32Array::from(vec![0; len])),
            Arc::new((first..).take(len).collect::<Int64Array>()),
            Arc::new(times),
            Arc::new(BinaryArray::from_iter_values(vec![b"key"; len])),
            Arc::new(BinaryArray::from_iter(values.iter().copied())),
            new_null_array(source::envelope().field(6).data_type(), len),
        ];
        RecordBatch::try_new(source::envelope(), columns).expect("an envelope")
    }

    fn letter(topic: &str, offset: i64, rule: &str) -> DeadLetter {
        DeadLetter {
            table: "source".into(),
            stage: Stage::Decode,
            rule: rule.into(),
            error: "bad".into(),
            coordinates: Some(Coordinates { topic: topic.into(), partition: 0, offset }),
            row_json: None,
        }
    }

    fn context() -> BatchContext {
        let batch_time = DateTime::parse_from_rfc3339("2026-03-17T23:30:00Z").expect("valid").to_utc();
        BatchContext { pipeline: "orders".into(), batch: 7, batch_time, interval: None }
    }

    fn ids_of(batch: &RecordBatch) -> Vec<String> {
        batch.column(0).as_string::<i32>().iter().flatten().map(str::to_string).collect()
    }

    #[test]
    fn original_bytes_come_back_by_coordinates_in_any_order_of_input() {
        let records = [records("a", 0, &[Some(b"\xff"), None]), records("b", 0, &[Some(b"b0"), Some(b"b1")])];
        let aggregate = DeadLetter { coordinates: None, row_json: Some("{}".into()), ..letter("", 0, "sum") };
        let mut dead =
            vec![letter("b", 1, "x"), letter("a", 1, "x"), aggregate, letter("a", 0, "x"), letter("a", 99, "x")];
        let batch = rows(&dead, &records, &context()).expect("rows");
        assert_eq!(batch.schema(), schema());
        let values = batch.column_by_name("value").expect("present").as_binary::<i32>().clone();
        let expected: Vec<Option<&[u8]>> = vec![None, Some(b"\xff"), None, None, Some(b"b1")];
        assert_eq!(values.iter().collect::<Vec<_>>(), expected);
        let offsets = batch.column_by_name("offset").expect("present").as_primitive::<Int64Type>().clone();
        assert_eq!(offsets.iter().collect::<Vec<_>>(), [None, Some(0), Some(1), Some(99), Some(1)]);
        let keys = batch.column_by_name("key").expect("present").as_binary::<i32>().clone();
        assert_eq!(keys.iter().map(|k| k.is_some()).collect::<Vec<_>>(), [false, true, true, false, true]);

        dead.reverse();
        assert_eq!(rows(&dead, &records, &context()).expect("rows"), batch);
        assert_eq!(ids_of(&batch).iter().collect::<HashSet<_>>().len(), 5);
        assert!(ids_of(&batch).iter().all(|id| id.len() == 64));
    }

    #[test]
    fn rows_exploded_from_one_record_have_ids_of_their_own() {
        let twin = |json: &str| DeadLetter { row_json: Some(json.into()), ..letter("a", 0, "positive") };
        let batch = rows(&[twin("1"), twin("2"), twin("2")], &[], &context()).expect("rows");
        assert_eq!(ids_of(&batch).iter().collect::<HashSet<_>>().len(), 3);
        let again = rows(&[twin("2"), twin("1"), twin("2")], &[], &context()).expect("rows");
        assert_eq!(again, batch);
    }

    #[test]
    fn no_dead_letters_are_an_empty_batch() {
        assert_eq!(rows(&[], &[], &context()).expect("rows").num_rows(), 0);
    }

    #[test]
    fn an_id_never_changes_between_releases() {
        let batch = rows(&[letter("a", 0, "malformed")], &[], &context()).expect("rows");
        assert_eq!(ids_of(&batch), ["2ebe452e6547c5cd84acabae33c881989dfdf6191e7c1267514e64f5dfb709a4"]);
    }
}
