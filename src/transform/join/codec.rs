//! Rows as bytes and back, value by value as they were.

use arrow::array::ArrayRef;
use arrow::datatypes::Field;
use arrow::row::{RowConverter, Rows, SortField};

use crate::error::{Error, Result};

/// Encodes some columns.
pub(super) struct Codec {
    /// `None` without columns.
    converter: Option<RowConverter>,
}

/// Encoded rows.
pub(super) struct Encoded(Option<Rows>);

impl Encoded {
    pub(super) fn of(&self, row: usize) -> &[u8] {
        self.0.as_ref().map_or(&[], |rows| rows.row(row).data())
    }
}

impl Codec {
    pub(super) fn new(fields: &[Field]) -> Result<Codec> {
        let fields: Vec<SortField> = fields.iter().map(|field| SortField::new(field.data_type().clone())).collect();
        let converter = match fields.is_empty() {
            true => None,
            false => Some(RowConverter::new(fields).map_err(broken)?),
        };
        Ok(Codec { converter })
    }

    pub(super) fn encode(&self, columns: &[ArrayRef]) -> Result<Encoded> {
        let rows = self.converter.as_ref().map(|converter| converter.convert_columns(columns).map_err(broken));
        Ok(Encoded(rows.transpose()?))
    }

    pub(super) fn decode<'a>(&self, rows: impl Iterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>> {
        let Some(converter) = &self.converter else { return Ok(Vec::new()) };
        let parser = converter.parser();
        converter.convert_rows(rows.map(|row| parser.parse(row))).map_err(broken)
    }
}

fn broken(error: arrow::error::ArrowError) -> Error {
    Error::failed("rows of a join cannot wait: their columns have no encoding").caused_by(error)
}
