//! Rows as bytes: keys to look up, orders to compare, groups to count once. The encoding is arrow's row format, in which
//! comparing bytes compares rows (nulls lowest).

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::row::{Row, RowConverter, Rows, SortField};

use super::schema::conform_array;
use crate::error::{Context, ErrorKind, Result};

/// Encodes chosen columns of any batch.
#[derive(Debug, Clone)]
pub(super) struct Encoder {
    schema: SchemaRef,
    converter: Arc<RowConverter>,
}

impl Encoder {
    /// For the columns `names`, in that order, with their types in `schema`.
    pub(super) fn new(schema: &Schema, names: &[String]) -> Result<Encoder> {
        let field = |name: &String| -> Result<Field> {
            let field =
                schema.field_with_name(name).context(ErrorKind::Config, format!("there is no column `{name}`"))?;
            Ok(Field::new(name, field.data_type().clone(), true))
        };
        let fields = names.iter().map(field).collect::<Result<Vec<_>>>()?;
        let sort = fields.iter().map(|f| SortField::new(f.data_type().clone())).collect();
        let converter = RowConverter::new(sort).context(ErrorKind::Config, "these columns cannot be compared")?;
        Ok(Encoder { schema: Arc::new(Schema::new(fields)), converter: Arc::new(converter) })
    }

    /// The encoded columns, all nullable.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.schema.fields().iter().map(|f| f.name())
    }

    /// The encoded columns of `batch`, found by name and cast where needed.
    pub(super) fn columns(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let column = |field: &Arc<Field>| -> Result<ArrayRef> {
            let name = field.name();
            let array = batch.column_by_name(name);
            let array =
                array.ok_or_else(|| crate::error::Error::failed(format!("the rows have no column `{name}`")))?;
            conform_array(array, field.data_type(), name)
        };
        self.schema.fields().iter().map(column).collect()
    }

    pub(super) fn encode(&self, batch: &RecordBatch) -> Result<Rows> {
        let columns = self.columns(batch)?;
        self.converter.convert_columns(&columns).context(ErrorKind::Failed, "rows could not be encoded")
    }

    pub(super) fn encode_arrays(&self, columns: &[ArrayRef]) -> Result<Rows> {
        self.converter.convert_columns(columns).context(ErrorKind::Failed, "rows could not be encoded")
    }

    /// Back from bytes to columns.
    pub(super) fn decode<'a>(&self, rows: impl IntoIterator<Item = &'a [u8]>) -> Result<RecordBatch> {
        let parser = self.converter.parser();
        let rows: Vec<&[u8]> = rows.into_iter().collect();
        let parsed: Vec<Row<'_>> = rows.iter().map(|bytes| parser.parse(bytes)).collect();
        let columns = self.converter.convert_rows(parsed).context(ErrorKind::Failed, "rows could not be decoded")?;
        RecordBatch::try_new(self.schema.clone(), columns).context(ErrorKind::Failed, "rows could not be decoded")
    }
}

/// Distinct rows, numbered from 0 in order of arrival. Open addressing over one buffer: a map of owned keys would cost
/// an allocation per row.
#[derive(Debug)]
pub(super) struct Index {
    rows: Rows,
    slots: Vec<u32>,
}

const FREE: u32 = u32::MAX;

impl Index {
    pub(super) fn new(encoder: &Encoder, capacity: usize) -> Index {
        let size = (capacity.max(8) * 2).next_power_of_two();
        Index { rows: encoder.converter.empty_rows(0, 0), slots: vec![FREE; size] }
    }

    /// An index of all rows of `batch`.
    pub(super) fn of(encoder: &Encoder, batch: &RecordBatch) -> Result<Index> {
        let mut index = Index::new(encoder, batch.num_rows());
        for row in &encoder.encode(batch)? {
            index.insert(row);
        }
        Ok(index)
    }

    pub(super) fn len(&self) -> usize {
        self.rows.num_rows()
    }

    pub(super) fn find(&self, row: Row<'_>) -> Option<u32> {
        match self.slots[self.probe(row)] {
            FREE => None,
            number => Some(number),
        }
    }

    /// The row's number, and whether it is new.
    pub(super) fn insert(&mut self, row: Row<'_>) -> (u32, bool) {
        if (self.len() + 1) * 2 > self.slots.len() {
            self.grow();
        }
        let slot = self.probe(row);
        if self.slots[slot] != FREE {
            return (self.slots[slot], false);
        }
        // A batch holds far fewer rows than 2^32: the source numbers them in memory.
        let number = u32::try_from(self.len()).unwrap_or(FREE - 1);
        self.rows.push(row);
        self.slots[slot] = number;
        (number, true)
    }

    fn probe(&self, row: Row<'_>) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = hash(row.as_ref()) & mask;
        while self.slots[slot] != FREE && self.rows.row(self.slots[slot] as usize) != row {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        self.slots = vec![FREE; self.slots.len() * 2];
        let mask = self.slots.len() - 1;
        for (number, row) in self.rows.iter().enumerate() {
            let mut slot = hash(row.as_ref()) & mask;
            while self.slots[slot] != FREE {
                slot = (slot + 1) & mask;
            }
            self.slots[slot] = number as u32;
        }
    }
}

/// Fast and good enough for a table that lives for one batch; keys come from the user's own topic.
fn hash(bytes: &[u8]) -> usize {
    const K: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut state: u64 = K ^ bytes.len() as u64;
    let mut mix = |word: u64| {
        let wide = u128::from(state ^ word) * u128::from(K | 1);
        state = (wide as u64) ^ ((wide >> 64) as u64) ^ state.rotate_left(23);
    };
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let mut word = [0u8; 8];
        word.copy_from_slice(chunk);
        mix(u64::from_le_bytes(word));
    }
    let mut word = [0u8; 8];
    word[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    mix(u64::from_le_bytes(word));
    (state ^ (state >> 32)) as usize
}

/// The distinct values of some columns over all rows shown to it.
#[derive(Debug, Clone)]
pub(super) struct Distinct {
    encoder: Encoder,
    seen: HashSet<Box<[u8]>>,
}

impl Distinct {
    pub(super) fn new(schema: &Schema, by: &[String]) -> Result<Distinct> {
        Ok(Distinct { encoder: Encoder::new(schema, by)?, seen: HashSet::new() })
    }

    /// The same columns, nothing seen yet.
    pub(super) fn emptied(&self) -> Distinct {
        Distinct { encoder: self.encoder.clone(), seen: HashSet::new() }
    }

    pub(super) fn is_over(&self, by: &[String]) -> bool {
        self.encoder.names().eq(by.iter())
    }

    pub(super) fn columns(&self) -> impl Iterator<Item = &String> {
        self.encoder.names()
    }

    pub(super) fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        for row in &self.encoder.encode(batch)? {
            if !self.seen.contains(row.as_ref()) {
                self.seen.insert(row.as_ref().into());
            }
        }
        Ok(())
    }

    pub(super) fn merge(&mut self, other: Distinct) {
        self.seen.extend(other.seen);
    }

    /// Sorted, so that equal sets are equal batches.
    pub(super) fn rows(&self) -> Result<RecordBatch> {
        let mut rows: Vec<&[u8]> = self.seen.iter().map(AsRef::as_ref).collect();
        rows.sort_unstable();
        self.encoder.decode(rows)
    }
}
