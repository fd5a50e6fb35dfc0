//! Keys as bytes: equal where the values are, in the order of the values, and back.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float32Array, Float64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type};
use arrow::row::{RowConverter, Rows, SortField};

use super::misfit;
use crate::error::{Error, Result};
use crate::model::window::Micros;

/// Bytes that a start takes at the end of a key.
const START: usize = size_of::<Micros>();

/// Encodes and decodes the columns of `by`. The bytes live in memory only; saved keys are columns.
pub(in crate::transform) struct Keys {
    /// `None` without columns: there is one key.
    converter: Option<RowConverter>,
}

/// The keys of some rows.
pub(in crate::transform) struct Encoded(Option<Rows>);

impl Encoded {
    pub(in crate::transform) fn of(&self, row: usize) -> &[u8] {
        match &self.0 {
            Some(rows) => rows.row(row).data(),
            None => &[],
        }
    }
}

impl Keys {
    pub(in crate::transform) fn new(by: &[Field]) -> Result<Keys> {
        let fields: Vec<SortField> = by.iter().map(|field| SortField::new(field.data_type().clone())).collect();
        let converter = match fields.is_empty() {
            true => None,
            false => Some(RowConverter::new(fields).map_err(broken)?),
        };
        Ok(Keys { converter })
    }

    pub(in crate::transform) fn encode(&self, columns: &[ArrayRef]) -> Result<Encoded> {
        let Some(converter) = &self.converter else { return Ok(Encoded(None)) };
        let columns: Vec<ArrayRef> = columns.iter().map(one_zero).collect();
        Ok(Encoded(Some(converter.convert_columns(&columns).map_err(broken)?)))
    }

    pub(in crate::transform) fn decode<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>> {
        let Some(converter) = &self.converter else { return Ok(Vec::new()) };
        let parser = converter.parser();
        let keys: Vec<&[u8]> = keys.collect();
        converter.convert_rows(keys.iter().map(|key| parser.parse(key))).map_err(broken)
    }
}

fn broken(error: arrow::error::ArrowError) -> Error {
    misfit("a key cannot be read").caused_by(error)
}

/// A zero has no sign, and there is one not-a-number.
fn one_zero(column: &ArrayRef) -> ArrayRef {
    match column.data_type() {
        DataType::Float64 => {
            let floats: &Float64Array = column.as_primitive::<Float64Type>();
            Arc::new(floats.unary::<_, Float64Type>(|value| if value.is_nan() { f64::NAN } else { value + 0.0 }))
        }
        DataType::Float32 => {
            let floats: &Float32Array = column.as_primitive::<Float32Type>();
            Arc::new(floats.unary::<_, Float32Type>(|value| if value.is_nan() { f32::NAN } else { value + 0.0 }))
        }
        _ => column.clone(),
    }
}

/// A key and the start of a window, in bytes that sort by key and then by start.
pub(in crate::transform) fn at(key: &[u8], start: Micros) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(key.len() + START);
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(&(start ^ Micros::MIN).to_be_bytes());
    bytes
}

/// The key of what [`at`] gave.
pub(in crate::transform) fn key(at: &[u8]) -> &[u8] {
    &at[..at.len().saturating_sub(START)]
}

/// The start of what [`at`] gave.
pub(in crate::transform) fn start(at: &[u8]) -> Micros {
    at.last_chunk::<START>().map_or(0, |bytes| Micros::from_be_bytes(*bytes) ^ Micros::MIN)
}

/// Rows of columns that may be none.
pub(in crate::transform) fn batch(
    schema: &arrow::datatypes::SchemaRef,
    columns: Vec<ArrayRef>,
    rows: usize,
) -> Result<RecordBatch> {
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options)
        .map_err(|error| misfit("rows that are remembered do not fit their columns").caused_by(error))
}
