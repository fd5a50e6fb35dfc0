//! From undecoded records to typed rows, record by record: a bad record costs one dead letter, never the batch.
//!
//! A hand-written reader goes over each record once and writes straight into columns that can step back (`column`), so
//! a record that turns out bad halfway leaves nothing behind and its neighbours never see it. Nothing is silently null,
//! and nothing is changed: what a column cannot hold exactly is a dead letter (`scalar` has the table of what fits).
//!
//! | module | what it is |
//! |---|---|
//! | [`fault`] | the rules, and errors for people |
//! | `json`, `object` | the cursor over one record; the walk of one object into columns |
//! | `csv` | the same for one line |
//! | `number`, `time`, `scalar` | exact numbers and times; one scalar into one column |
//! | `column` | columns that can step back |
//! | `chunk` | some records of one batch, decoded on one core |

mod chunk;
mod column;
mod csv;
mod fault;
mod json;
mod number;
mod object;
mod scalar;
#[cfg(test)]
mod tests;
mod time;

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, StringArray, new_null_array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;
use rayon::prelude::*;

use crate::config::spec::{Format, SchemaDrift, SourceSpec, Tombstones, payload_schema};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::source::{self, column as envelope_column};
use crate::transform::{BatchContext, Decoded};

use chunk::{Chunk, Piece};
pub use fault::Rule;

/// Columns that decoding adds to the payload.
pub mod added {
    /// Fields the schema does not name, as one JSON object (text); null when there are none.
    pub const RESCUED: &str = "_rescued";
    /// True for a row made from a tombstone.
    pub const TOMBSTONE: &str = "_tombstone";
    /// The batch that wrote the row.
    pub const BATCH_ID: &str = "_batch_id";
    /// The plan's batch time.
    pub const INGESTED_AT: &str = "_ingested_at";
    /// Date of the batch time in the pipeline's timezone.
    pub const INGEST_DATE: &str = "_ingest_date";
}

/// The columns of a source's decoded rows: payload, `_rescued` (with `schema_drift: rescue`), `_tombstone` (with
/// `tombstones: row`), then `_key _topic _partition _offset _timestamp _headers _batch_id _ingested_at _ingest_date`.
pub fn row_schema(source: &SourceSpec) -> SchemaRef {
    let mut fields: Vec<Field> = Vec::new();
    match source.format {
        Format::Raw => fields.push(Field::new("value", DataType::Binary, true)),
        Format::Json | Format::Csv => {
            fields.extend(payload_schema(&source.columns).fields().iter().map(|f| f.as_ref().clone()));
        }
    }
    if source.format == Format::Json && source.schema_drift == SchemaDrift::Rescue {
        fields.push(Field::new(added::RESCUED, DataType::Utf8, true));
    }
    if matches!(source.tombstones, Tombstones::Row { .. }) {
        fields.push(Field::new(added::TOMBSTONE, DataType::Boolean, false));
    }
    let envelope = source::envelope();
    for name in ENVELOPE_ORDER {
        if let Ok(field) = envelope.field_with_name(name) {
            fields.push(field.clone());
        }
    }
    let timestamp = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    fields.push(Field::new(added::BATCH_ID, DataType::Int64, false));
    fields.push(Field::new(added::INGESTED_AT, timestamp, false));
    fields.push(Field::new(added::INGEST_DATE, DataType::Date32, false));
    Arc::new(Schema::new(fields))
}

/// Envelope columns in the order in which rows carry them.
const ENVELOPE_ORDER: [&str; 6] = [
    envelope_column::KEY,
    envelope_column::TOPIC,
    envelope_column::PARTITION,
    envelope_column::OFFSET,
    envelope_column::TIMESTAMP,
    envelope_column::HEADERS,
];

/// The largest value that is decoded: a record above this is set aside, so that one runaway message cannot fill the
/// memory of a batch.
pub const MAX_VALUE_BYTES: usize = 16 << 20;

/// Records per chunk: enough to pay for the columns, few enough to keep every core busy at the default batch size.
const CHUNK_ROWS: usize = 16_384;

/// Bytes of values after which a chunk is cut; with [`MAX_VALUE_BYTES`] it keeps every column far from 2 GiB.
const CHUNK_BYTES: usize = 64 << 20;

/// New columns in one batch under `schema_drift: evolve`; more is a payload with data in its field names.
const MAX_EVOLVED: usize = 256;

/// Decodes the records of one source.
#[derive(Debug)]
pub struct Decoder {
    name: String,
    format: Format,
    drift: SchemaDrift,
    tombstones: Tombstones,
    event_time: Option<String>,
    timezone: chrono_tz::Tz,
    shape: column::Shape,
    schema: SchemaRef,
}

impl Decoder {
    /// A decoder for the source `name`; `timezone` is the pipeline's, for `_ingest_date`. Fails for a column type that
    /// cannot be decoded.
    pub fn new(name: &str, source: &SourceSpec, timezone: chrono_tz::Tz) -> Result<Decoder> {
        let columns = if source.format == Format::Raw { &[] } else { source.columns.as_slice() };
        Ok(Decoder {
            name: name.to_string(),
            format: source.format,
            drift: source.schema_drift,
            tombstones: source.tombstones.clone(),
            event_time: source.event_time.clone(),
            timezone,
            shape: column::Shape::record(columns).map_err(|e| e.with("source", name))?,
            schema: row_schema(source),
        })
    }

    /// The columns of the rows: [`row_schema`]; under `schema_drift: evolve` new string columns follow them, sorted by
    /// name, in those batches that have any.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// Decodes batches of [`crate::source::envelope`]. Rows and dead letters come in the order of the records; together
    /// they are as many as the records.
    pub fn decode(&self, records: &[RecordBatch], context: &BatchContext) -> Result<Decoded> {
        let mut chunks = Vec::new();
        for batch in records {
            cut(batch, &mut chunks)?;
        }
        let pieces = chunks.par_iter().map(|chunk| self.decode_chunk(chunk, context)).collect::<Result<Vec<_>>>()?;
        self.join(pieces)
    }

    /// Puts the pieces together: one schema for all of them, new columns included.
    fn join(&self, pieces: Vec<Piece>) -> Result<Decoded> {
        let names: BTreeSet<String> = pieces.iter().flat_map(|piece| piece.evolved.keys().cloned()).collect();
        if names.len() > MAX_EVOLVED {
            return Err(Error::new(ErrorKind::Data, format!("more than {MAX_EVOLVED} new fields in one batch"))
                .with("source", &self.name)
                .with("found", names.len())
                .help("keep unknown fields as JSON text instead: schema_drift: rescue"));
        }
        let mut fields = self.schema.fields().to_vec();
        fields.extend(names.iter().map(|name| Arc::new(Field::new(name, DataType::Utf8, true))));
        let schema = Arc::new(Schema::new(fields));
        let mut decoded = Decoded::default();
        for mut piece in pieces {
            decoded.dead.extend(piece.dead);
            if piece.len == 0 {
                continue;
            }
            for name in &names {
                let column = match piece.evolved.remove(name) {
                    Some(values) => sparse(&values, piece.len),
                    None => new_null_array(&DataType::Utf8, piece.len),
                };
                piece.columns.push(column);
            }
            let batch = RecordBatch::try_new(schema.clone(), piece.columns)
                .context(ErrorKind::Failed, format!("decoded rows of {} do not fit their schema", self.name))?;
            decoded.rows.push(batch);
        }
        Ok(decoded)
    }
}

/// A column that has the given values and is null elsewhere; rows ascend.
fn sparse(values: &[(usize, String)], len: usize) -> ArrayRef {
    let mut all: Vec<Option<&str>> = vec![None; len];
    for (row, value) in values {
        if let Some(slot) = all.get_mut(*row) {
            *slot = Some(value);
        }
    }
    Arc::new(StringArray::from(all))
}

/// Cuts a batch into chunks of bounded rows and bytes.
fn cut(batch: &RecordBatch, chunks: &mut Vec<Chunk>) -> Result<()> {
    if batch.schema_ref().fields() != source::envelope().fields() {
        return Err(Error::failed("records are not in the envelope's schema"));
    }
    let values: &BinaryArray = chunk::typed(batch, envelope_column::VALUE)?;
    let (mut start, mut bytes) = (0, 0);
    for row in 0..batch.num_rows() {
        let len = usize::try_from(values.value_length(row)).unwrap_or(0);
        // Values above the limit are never copied.
        bytes += if len > MAX_VALUE_BYTES { 0 } else { len };
        if bytes >= CHUNK_BYTES || row + 1 - start >= CHUNK_ROWS {
            chunks.push(Chunk(batch.slice(start, row + 1 - start)));
            (start, bytes) = (row + 1, 0);
        }
    }
    if start < batch.num_rows() {
        chunks.push(Chunk(batch.slice(start, batch.num_rows() - start)));
    }
    Ok(())
}
