//! Dead letters read back from their table: what each is about, the record it was made of, and what becomes of it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::{SortColumn, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use chrono::{DateTime, Utc};

use super::Coordinates;
use super::dead_letter::{COPIED, schema};
use crate::arrow_bridge::conform;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::model::batch::BatchId;
use crate::model::letter::Status;
use crate::source::{self, column};

/// Columns that can be large; a list of letters does without them.
pub const HEAVY: [&str; 4] = ["key", "value", "headers", "row_json"];

/// Bytes of keys and values that are replayed in one batch, below the 2 GiB that a column can hold.
const MAX_BYTES: usize = 1 << 30;

/// One dead letter, without its record.
#[derive(Debug, Clone, PartialEq)]
pub struct Letter {
    /// `dlq_id`.
    pub id: String,
    /// The batch that set it aside.
    pub batch: BatchId,
    /// Source name for decode, table name otherwise.
    pub table: String,
    /// `decode`, `expect`, `key` or `late`.
    pub stage: String,
    /// Which rule.
    pub rule: String,
    /// What was wrong.
    pub error: String,
    /// The record it came from.
    pub coordinates: Option<Coordinates>,
    /// When it was set aside.
    pub failed_at: DateTime<Utc>,
    /// What became of it.
    pub status: Status,
    /// How often it was replayed.
    pub attempts: i32,
    /// The batch that changed its status or tried to.
    pub status_batch: Option<BatchId>,
    /// When that was.
    pub status_at: Option<DateTime<Utc>>,
    /// Why it fails again, or why it was given up.
    pub note: Option<String>,
}

/// Names of all columns.
pub fn columns() -> Vec<String> {
    schema().fields().iter().map(|field| field.name().clone()).collect()
}

/// Names of the columns that [`read`] needs.
pub fn light_columns() -> Vec<String> {
    columns().into_iter().filter(|name| !HEAVY.contains(&name.as_str())).collect()
}

/// The letters of some rows, in their order; the rows have at least [`light_columns`].
pub fn read(rows: &[RecordBatch]) -> Result<Vec<Letter>> {
    let mut letters = Vec::with_capacity(rows.iter().map(RecordBatch::num_rows).sum());
    for batch in rows {
        let view = View(batch);
        for row in 0..batch.num_rows() {
            letters.push(view.letter(row)?);
        }
    }
    Ok(letters)
}

/// Columns of a batch by name, as the dead-letter table has them.
struct View<'a>(&'a RecordBatch);

impl View<'_> {
    fn letter(&self, row: usize) -> Result<Letter> {
        let required = |name: &str| self.text(name, row).ok_or_else(|| odd(name));
        let coordinates = match (self.text("topic", row), self.int32("partition", row), self.int64("offset", row)) {
            (Some(topic), Some(partition), Some(offset)) => Some(Coordinates { topic, partition, offset }),
            _ => None,
        };
        let status = self.text("status", row);
        Ok(Letter {
            id: required("dlq_id")?,
            batch: self.int64("batch_id", row).ok_or_else(|| odd("batch_id"))?,
            table: required("table")?,
            stage: required("stage")?,
            rule: required("rule")?,
            error: required("error")?,
            coordinates,
            failed_at: self.time("failed_at", row).ok_or_else(|| odd("failed_at"))?,
            status: Status::read(status.as_deref()).ok_or_else(|| odd("status"))?,
            attempts: self.int32("attempts", row).unwrap_or_default(),
            status_batch: self.int64("status_batch", row),
            status_at: self.time("status_at", row),
            note: self.text("note", row),
        })
    }

    fn text(&self, name: &str, row: usize) -> Option<String> {
        let column = self.0.column_by_name(name)?.as_string_opt::<i32>()?;
        column.is_valid(row).then(|| column.value(row).to_string())
    }

    fn int32(&self, name: &str, row: usize) -> Option<i32> {
        let column = self.0.column_by_name(name)?.as_primitive_opt::<Int32Type>()?;
        column.is_valid(row).then(|| column.value(row))
    }

    fn int64(&self, name: &str, row: usize) -> Option<i64> {
        let column = self.0.column_by_name(name)?.as_primitive_opt::<Int64Type>()?;
        column.is_valid(row).then(|| column.value(row))
    }

    fn time(&self, name: &str, row: usize) -> Option<DateTime<Utc>> {
        let column = self.0.column_by_name(name)?.as_primitive_opt::<TimestampMicrosecondType>()?;
        column.is_valid(row).then(|| DateTime::from_timestamp_micros(column.value(row))).flatten()
    }
}

fn odd(column: &str) -> Error {
    Error::config(format!("a row of the dead-letter table has no valid `{column}`"))
        .help("nothing was changed; somebody else wrote to the table: restore it, or delete that row")
}

/// The rows of the table that letters are found by: `dlq_id` and `batch_id`.
pub fn keys(ids: &BTreeMap<BatchId, Vec<String>>) -> Result<RecordBatch> {
    let all = || ids.iter().flat_map(|(batch, ids)| ids.iter().map(move |id| (*batch, id)));
    let batches: Int64Array = all().map(|(batch, _)| Some(batch)).collect();
    let ids: StringArray = all().map(|(_, id)| Some(id)).collect();
    RecordBatch::try_from_iter([("dlq_id", Arc::new(ids) as ArrayRef), ("batch_id", Arc::new(batches) as ArrayRef)])
        .context(ErrorKind::Failed, "ids are columns")
}

/// Whether the record that a letter was made of is kept with it. Tables that read whole tables are shaped when the records
/// of the batch are no longer at hand; their letters have coordinates and nothing else.
pub fn keeps_record(batch: &RecordBatch, row: usize) -> bool {
    let has = |name: &str| batch.column_by_name(name).is_some_and(|column| column.is_valid(row));
    has("topic") && has("partition") && has("offset") && (has("value") || has("timestamp"))
}

/// The records of the chosen rows as a source would deliver them: each once, in order.
pub fn records(rows: &[RecordBatch], chosen: impl Fn(usize) -> bool) -> Result<Vec<RecordBatch>> {
    let envelope = source::envelope();
    let coordinates = [(column::TOPIC, "topic"), (column::PARTITION, "partition"), (column::OFFSET, "offset")];
    let (mut seen, mut records, mut first, mut bytes) = (HashSet::new(), Vec::new(), 0, 0);
    for batch in rows {
        let view = View(batch);
        let mut picks: Vec<u32> = Vec::new();
        for row in (0..batch.num_rows()).filter(|row| chosen(first + row)) {
            if let Some(at) = view.letter(row)?.coordinates
                && seen.insert(at)
            {
                bytes += length(batch, "key", row) + length(batch, "value", row);
                picks.push(row as u32);
            }
        }
        first += batch.num_rows();
        let found = take_record_batch(batch, &UInt32Array::from(picks));
        let found = found.context(ErrorKind::Failed, "dead letters could not be picked")?;
        let named = coordinates.iter().chain(&COPIED).map(|(to, from)| {
            let column = found.column_by_name(from).ok_or_else(|| odd(from))?;
            Ok((*to, column.clone(), true))
        });
        let named = named.collect::<Result<Vec<_>>>()?;
        let renamed = RecordBatch::try_from_iter_with_nullable(named);
        let renamed = renamed.context(ErrorKind::Failed, "dead letters do not form records")?;
        records.extend(conform(&[renamed], &envelope)?);
    }
    if bytes > MAX_BYTES {
        return Err(Error::new(ErrorKind::Usage, "the records of these dead letters are larger than 1 GiB")
            .with("bytes", bytes)
            .help("nothing was changed; replay fewer at a time: --limit"));
    }
    let all = arrow::compute::concat_batches(&envelope, &records).context(ErrorKind::Failed, "joining records")?;
    let by = |index: usize| SortColumn { values: all.column(index).clone(), options: None };
    let order = lexsort_to_indices(&[by(0), by(1), by(2)], None).context(ErrorKind::Failed, "sorting records")?;
    let sorted = take_record_batch(&all, &order).context(ErrorKind::Failed, "sorting records")?;
    Ok(if sorted.num_rows() == 0 { Vec::new() } else { vec![sorted] })
}

fn length(batch: &RecordBatch, name: &str, row: usize) -> usize {
    let column = batch.column_by_name(name).and_then(|column| column.as_binary_opt::<i32>());
    column.filter(|column| column.is_valid(row)).map_or(0, |column| column.value(row).len())
}

/// What a batch makes of one letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// What becomes of it.
    pub status: Status,
    /// Whether it was replayed, with whatever result.
    pub is_attempt: bool,
    /// Why.
    pub note: Option<String>,
}

/// The rows as `batch` leaves them: `marks` in the order of the rows, everything else as it was.
pub fn marked(rows: &[RecordBatch], marks: &[Mark], batch: BatchId, at: DateTime<Utc>) -> Result<Vec<RecordBatch>> {
    let mut first = 0;
    let mut marked = Vec::with_capacity(rows.len());
    for rows in rows {
        let count = rows.num_rows();
        let marks = marks.get(first..first + count).ok_or_else(|| Error::failed("letters without a mark"))?;
        first += count;
        let view = View(rows);
        let attempts = |(row, mark): (usize, &Mark)| {
            Some(view.int32("attempts", row).unwrap_or_default().saturating_add(i32::from(mark.is_attempt)))
        };
        let columns: [(&str, ArrayRef); 5] = [
            ("status", Arc::new(marks.iter().map(|mark| Some(mark.status.as_str())).collect::<StringArray>())),
            ("attempts", Arc::new(marks.iter().enumerate().map(attempts).collect::<Int32Array>())),
            ("status_batch", Arc::new(Int64Array::from(vec![batch; count]))),
            (
                "status_at",
                Arc::new(TimestampMicrosecondArray::from(vec![at.timestamp_micros(); count]).with_timezone("UTC")),
            ),
            ("note", Arc::new(marks.iter().map(|mark| mark.note.as_deref()).collect::<StringArray>())),
        ];
        let column = |(field, old): (&Arc<arrow::datatypes::Field>, &ArrayRef)| {
            columns.iter().find(|(name, _)| name == field.name()).map_or_else(|| old.clone(), |(_, new)| new.clone())
        };
        let fields = rows.schema();
        let new = fields.fields().iter().zip(rows.columns()).map(column).collect();
        let new = RecordBatch::try_new(rows.schema(), new);
        marked.push(new.context(ErrorKind::Failed, "dead letters could not be marked")?);
    }
    Ok(marked)
}
