//! Rows that replace earlier ones, batch after batch: the newest of every key.

use std::collections::{BTreeMap, HashMap};

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::row::{OwnedRow, RowConverter, SortField};

use super::super::keeping::Stepped;
use crate::error::{Context, ErrorKind, Result};

/// Replaced rows are held up to this many.
const FEW_ROWS: usize = 100_000;

/// The newest row of every key.
#[derive(Default)]
pub(super) struct Newest {
    converter: Option<(RowConverter, Vec<String>)>,
    rows: Vec<RecordBatch>,
    /// Where the row of a key is; rows that are never replaced have none.
    at: HashMap<OwnedRow, (usize, u32)>,
    /// How many rows are held, replaced ones included.
    count: usize,
    /// Rows that are never replaced.
    finals: Vec<RecordBatch>,
}

impl Newest {
    pub fn take(&mut self, stepped: Stepped) -> Result<()> {
        let Some(replaced) = stepped.replaced else {
            self.finals.extend(stepped.rows);
            return Ok(());
        };
        if self.converter.is_none() {
            let fields = replaced.schema_ref().fields().iter().map(|field| SortField::new(field.data_type().clone()));
            let converter =
                RowConverter::new(fields.collect()).context(ErrorKind::Failed, "keys cannot be compared")?;
            let names = replaced.schema_ref().fields().iter().map(|field| field.name().clone()).collect();
            self.converter = Some((converter, names));
        }
        let Some((converter, names)) = &self.converter else { return Ok(()) };
        let keys =
            converter.convert_columns(replaced.columns()).context(ErrorKind::Failed, "keys cannot be compared")?;
        for key in &keys {
            self.at.remove(&key.owned());
        }
        for rows in stepped.rows {
            let columns: Vec<_> = names.iter().filter_map(|name| rows.column_by_name(name).cloned()).collect();
            let keys = converter.convert_columns(&columns).context(ErrorKind::Failed, "keys cannot be compared")?;
            for (row, key) in keys.iter().enumerate() {
                self.at.insert(key.owned(), (self.rows.len(), row as u32));
            }
            self.count += rows.num_rows();
            self.rows.push(rows);
        }
        match self.count > 2 * self.at.len() + FEW_ROWS {
            true => self.let_go(),
            false => Ok(()),
        }
    }

    /// Lets go of rows that were replaced.
    fn let_go(&mut self) -> Result<()> {
        let mut wanted: BTreeMap<usize, Vec<(OwnedRow, u32)>> = BTreeMap::new();
        for (key, (batch, row)) in self.at.drain() {
            wanted.entry(batch).or_default().push((key, row));
        }
        let mut rows = Vec::with_capacity(wanted.len());
        for (batch, places) in wanted {
            let numbers: UInt32Array = places.iter().map(|(_, row)| *row).collect();
            let picked = take_record_batch(&self.rows[batch], &numbers);
            for (row, (key, _)) in places.into_iter().enumerate() {
                self.at.insert(key, (rows.len(), row as u32));
            }
            rows.push(picked.context(ErrorKind::Failed, "rows could not be picked")?);
        }
        (self.rows, self.count) = (rows, self.at.len());
        Ok(())
    }

    pub fn rows(self) -> Result<Vec<RecordBatch>> {
        let mut wanted: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for (batch, row) in self.at.into_values() {
            wanted.entry(batch).or_default().push(row);
        }
        let mut rows = self.finals;
        for (batch, mut numbers) in wanted {
            numbers.sort_unstable();
            let picked = take_record_batch(&self.rows[batch], &UInt32Array::from(numbers));
            rows.push(picked.context(ErrorKind::Failed, "rows could not be picked")?);
        }
        Ok(rows)
    }
}
