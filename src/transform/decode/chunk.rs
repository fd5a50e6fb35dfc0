//! Some records of one batch, decoded on one core.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Date32Array, Int32Array, Int64Array, StringArray, StringBuilder,
    TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::take;
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, NaiveDate, Utc};

use super::column::{Column, Values};
use super::fault::{Outcome, Path, Rule, excerpt, fault};
use super::object::{Unknown, described, fill, read_record};
use super::{Decoder, ENVELOPE_ORDER, MAX_VALUE_BYTES, csv, envelope_column, scalar};
use crate::config::spec::{Format, SchemaDrift, Tombstones};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::transform::{BatchContext, Coordinates, DeadLetter, Stage};

/// A slice of one envelope batch.
pub(super) struct Chunk(pub RecordBatch);

/// A decoded chunk.
pub(super) struct Piece {
    /// Rows.
    pub len: usize,
    /// In the order of the decoder's schema.
    pub columns: Vec<ArrayRef>,
    /// New columns: values by row.
    pub evolved: BTreeMap<String, Vec<(usize, String)>>,
    /// Records set aside.
    pub dead: Vec<DeadLetter>,
}

/// A column of the envelope.
pub(super) fn typed<'a, T: 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a T> {
    batch
        .column_by_name(name)
        .and_then(|column| column.as_any().downcast_ref())
        .ok_or_else(|| Error::failed("records lack an envelope column").with("column", name))
}

/// What the records of a chunk become, as it grows.
struct Growing {
    record: Column,
    unknown: Unknown,
    rescued: StringBuilder,
    evolved: BTreeMap<String, Vec<(usize, String)>>,
    tombstones: Vec<bool>,
}

impl Decoder {
    /// Decodes one chunk. Every record becomes a row or a dead letter.
    pub(super) fn decode_chunk(&self, chunk: &Chunk, context: &BatchContext) -> Result<Piece> {
        let batch = &chunk.0;
        let values: &BinaryArray = typed(batch, envelope_column::VALUE)?;
        let mut growing = Growing {
            record: Column::new(&self.shape),
            unknown: Unknown::default(),
            rescued: StringBuilder::new(),
            evolved: BTreeMap::new(),
            tombstones: Vec::new(),
        };
        let mut kept: Vec<u32> = Vec::with_capacity(batch.num_rows());
        let mut dead = Vec::new();
        for row in 0..batch.num_rows() {
            let outcome = if values.is_null(row) {
                self.tombstone(batch, row, &mut growing.record)
            } else {
                self.read(values.value(row), &mut growing)
            };
            match outcome {
                Ok(()) => {
                    self.keep(&mut growing, kept.len(), values.is_null(row));
                    kept.push(row as u32);
                }
                Err(found) => {
                    growing.record.truncate(kept.len());
                    growing.unknown.clear();
                    dead.push(DeadLetter {
                        table: self.name.clone(),
                        stage: Stage::Decode,
                        rule: found.rule.as_str().to_string(),
                        error: found.error,
                        coordinates: Some(coordinates(batch, row)?),
                        row_json: None,
                    });
                }
            }
        }
        let evolved = std::mem::take(&mut growing.evolved);
        let columns = self.columns(batch, growing, &kept, context)?;
        Ok(Piece { len: kept.len(), columns, evolved, dead })
    }

    fn read(&self, value: &[u8], growing: &mut Growing) -> Outcome<()> {
        if self.format == Format::Raw {
            growing.record.mark_valid();
            return Ok(());
        }
        if value.is_empty() {
            return fault(Rule::Empty, "the value is empty");
        }
        if value.len() > MAX_VALUE_BYTES {
            let len = value.len();
            return fault(Rule::TooLarge, format!("the value has {len} bytes, the limit is {MAX_VALUE_BYTES}"));
        }
        let text = match std::str::from_utf8(value) {
            Ok(text) => text,
            Err(error) => {
                let at = error.valid_up_to();
                let byte = value.get(at).copied().unwrap_or_default();
                return fault(Rule::InvalidUtf8, format!("byte 0x{byte:02x} at position {at} is not UTF-8"));
            }
        };
        match self.format {
            Format::Csv => csv::read_line(text, &self.shape, &mut growing.record, &mut growing.unknown),
            _ => {
                read_record(text, &self.shape, &mut growing.record, self.drift, &mut growing.unknown)?;
                self.storable(&growing.unknown)
            }
        }
    }

    /// Whether new fields can be columns of a Delta table beside those that are there.
    fn storable(&self, unknown: &Unknown) -> Outcome<()> {
        for (name, _) in &unknown.evolved {
            // Delta's names differ in more than case, and Parquet refuses these characters.
            let taken = self.schema.fields().iter().any(|f| f.name().to_lowercase() == name.to_lowercase());
            let why = if taken {
                "a column of this name exists (case does not count)"
            } else if name.is_empty() || name.contains([' ', ',', ';', '{', '}', '(', ')', '\n', '\t', '=', '.', '`']) {
                "a column cannot have this name"
            } else if name.len() > 255 {
                "the name is too long for a column"
            } else {
                continue;
            };
            return fault(
                Rule::UnknownField,
                format!("`{}`: schema_drift: evolve cannot add it: {why}", excerpt(name)),
            );
        }
        Ok(())
    }

    /// A row from a record without a value; see [`Tombstones`].
    fn tombstone(&self, batch: &RecordBatch, row: usize, record: &mut Column) -> Outcome<()> {
        let Tombstones::Row { key } = &self.tombstones else {
            return fault(Rule::Tombstone, "the record has no value (tombstones: quarantine)");
        };
        let start = record.len();
        if let Values::Struct { children, .. } = &mut record.values {
            for (child, shape) in children.iter_mut().zip(&self.shape.children) {
                let path = Path::ROOT;
                let path = path.field(&shape.name);
                if shape.name == *key {
                    let text = key_text(batch, row)?;
                    scalar::untyped(shape, child, text).map_err(|m| described(m, shape, &path, text))?;
                } else if self.event_time.as_deref() == Some(shape.name.as_str())
                    && let Some(when) = record_time(batch, row)
                {
                    match (&mut child.values, &shape.data_type) {
                        (Values::Whole(v), DataType::Timestamp(_, _)) => v.push(when.timestamp_micros()),
                        (Values::Whole(v), DataType::Date32) => v.push(i64::from(days(self.local_date(when)))),
                        _ => {
                            let name = shape.type_name();
                            return fault(Rule::Tombstone, format!("{path}: a {name} cannot hold the record's time"));
                        }
                    }
                    child.mark_valid();
                }
            }
            fill(&self.shape, children, start, &Path::ROOT)?;
        }
        record.mark_valid();
        Ok(())
    }

    /// Takes over what a good record had besides its columns.
    fn keep(&self, growing: &mut Growing, row: usize, tombstone: bool) {
        if self.drift == SchemaDrift::Rescue {
            match growing.unknown.rescued.as_str() {
                "" => growing.rescued.append_null(),
                members => growing.rescued.append_value(format!("{{{members}}}")),
            }
        }
        for (name, value) in growing.unknown.evolved.drain(..) {
            growing.evolved.entry(name).or_default().push((row, value));
        }
        growing.unknown.clear();
        growing.tombstones.push(tombstone);
    }

    fn columns(
        &self,
        batch: &RecordBatch,
        mut growing: Growing,
        kept: &[u32],
        context: &BatchContext,
    ) -> Result<Vec<ArrayRef>> {
        let len = kept.len();
        let indices = (len < batch.num_rows()).then(|| UInt32Array::from(kept.to_vec()));
        let survivors = |name: &str| -> Result<ArrayRef> {
            let column = batch
                .column_by_name(name)
                .ok_or_else(|| Error::failed("records lack an envelope column").with("column", name))?;
            match &indices {
                None => Ok(column.clone()),
                Some(indices) => take(column, indices, None).context(ErrorKind::Failed, "cannot select the good rows"),
            }
        };
        let mut columns: Vec<ArrayRef> = match self.format {
            Format::Raw => vec![survivors(envelope_column::VALUE)?],
            Format::Json | Format::Csv => growing.record.into_arrays(&self.shape)?,
        };
        if self.format == Format::Json && self.drift == SchemaDrift::Rescue {
            columns.push(Arc::new(growing.rescued.finish()));
        }
        if matches!(self.tombstones, Tombstones::Row { .. }) {
            columns.push(Arc::new(BooleanArray::from(growing.tombstones)));
        }
        for name in ENVELOPE_ORDER {
            columns.push(survivors(name)?);
        }
        columns.push(Arc::new(Int64Array::from(vec![context.batch; len])));
        let now = TimestampMicrosecondArray::from(vec![context.batch_time.timestamp_micros(); len]);
        columns.push(Arc::new(now.with_timezone("UTC")));
        columns.push(Arc::new(Date32Array::from(vec![days(self.local_date(context.batch_time)); len])));
        Ok(columns)
    }

    fn local_date(&self, when: DateTime<Utc>) -> NaiveDate {
        when.with_timezone(&self.timezone).date_naive()
    }
}

/// Days since 1970.
fn days(date: NaiveDate) -> i32 {
    let days = date.signed_duration_since(NaiveDate::default()).num_days();
    i32::try_from(days).unwrap_or_default()
}

fn coordinates(batch: &RecordBatch, row: usize) -> Result<Coordinates> {
    Ok(Coordinates {
        topic: typed::<StringArray>(batch, envelope_column::TOPIC)?.value(row).to_string(),
        partition: typed::<Int32Array>(batch, envelope_column::PARTITION)?.value(row),
        offset: typed::<Int64Array>(batch, envelope_column::OFFSET)?.value(row),
    })
}

fn key_text(batch: &RecordBatch, row: usize) -> Outcome<&str> {
    let keys = typed::<BinaryArray>(batch, envelope_column::KEY).ok();
    let Some(key) = keys.filter(|keys| keys.is_valid(row)).map(|keys| keys.value(row)) else {
        return fault(Rule::Tombstone, "the record has neither a value nor a key");
    };
    match std::str::from_utf8(key) {
        Ok(text) => Ok(text),
        Err(_) => fault(Rule::InvalidUtf8, "the record has no value, and its key is not UTF-8"),
    }
}

fn record_time(batch: &RecordBatch, row: usize) -> Option<DateTime<Utc>> {
    let times = typed::<TimestampMicrosecondArray>(batch, envelope_column::TIMESTAMP).ok()?;
    times.is_valid(row).then(|| DateTime::from_timestamp_micros(times.value(row))).flatten()
}
