//! The newest row of each key in a batch: upsert's first step, and the reason why the order of arrival and the cutting
//! into batches do not matter.

use std::cmp::Ordering;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::Schema;
use arrow::row::{Row, Rows};

use super::rows::{Encoder, Index};
use crate::error::{Context, ErrorKind, Result};
use crate::source::column;

/// Source coordinates: what breaks ties between equal `order_by` values.
pub(super) const COORDINATES: [&str; 3] = [column::TOPIC, column::PARTITION, column::OFFSET];

/// Column names that rank rows of one key: `order_by`, then the coordinates that `schema` has.
pub(super) fn ranking(order_by: &[String], schema: &Schema) -> Vec<String> {
    let mut names: Vec<String> = order_by.iter().filter(|n| schema.column_with_name(n).is_some()).cloned().collect();
    for name in COORDINATES {
        if schema.column_with_name(name).is_some() && !names.iter().any(|n| n == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// One row per key.
pub(super) struct Winners {
    /// The winning rows with all their columns; row `i` belongs to key `i` of `keys`.
    pub(super) rows: RecordBatch,
    /// Numbers the keys.
    pub(super) keys: Index,
    /// Rank of row `i` by `order_by` and all coordinates that the rows carry.
    pub(super) ranks: Rows,
    /// Row `i` is a delete.
    pub(super) deletes: Vec<bool>,
    /// Rows that lost inside the batch.
    pub(super) lost: u64,
}

impl Winners {
    /// Picks the winner of each key. The highest rank wins (nulls lowest); then a delete wins over a row; then the
    /// larger row, all columns compared in order, so that the winner never depends on the order of arrival.
    pub(super) fn pick(
        batches: &[RecordBatch],
        key: &Encoder,
        rank: &Encoder,
        delete_flag: Option<&str>,
    ) -> Result<Option<Winners>> {
        let Some(first) = batches.first() else { return Ok(None) };
        let all =
            concat_batches(&first.schema(), batches).context(ErrorKind::Failed, "the batch does not hold together")?;
        if all.num_rows() == 0 {
            return Ok(None);
        }
        let deletes = delete_marks(&all, delete_flag)?;
        let keys = key.encode(&all)?;
        let ranks = rank.encode(&all)?;
        let mut index = Index::new(key, all.num_rows());
        let mut best: Vec<u32> = Vec::new();
        let mut whole: Option<Rows> = None;
        for (at, row) in keys.iter().enumerate() {
            let (number, is_new) = index.insert(row);
            if is_new {
                best.push(at as u32);
                continue;
            }
            let rival = best[number as usize] as usize;
            let order = ranks.row(at).cmp(&ranks.row(rival)).then(deletes[at].cmp(&deletes[rival]));
            let order = match order {
                Ordering::Equal => {
                    let rows = match &mut whole {
                        Some(rows) => rows,
                        empty => empty.insert(whole_rows(&all)?),
                    };
                    rows.row(at).cmp(&rows.row(rival))
                }
                decided => decided,
            };
            if order == Ordering::Greater {
                best[number as usize] = at as u32;
            }
        }
        let lost = (all.num_rows() - best.len()) as u64;
        let picked = arrow::array::UInt32Array::from(best.clone());
        let rows = take_record_batch(&all, &picked).context(ErrorKind::Failed, "rows could not be picked")?;
        let ranks = rank.encode(&rows)?;
        let deletes = best.iter().map(|at| deletes[*at as usize]).collect();
        Ok(Some(Winners { rows, keys: index, ranks, deletes, lost }))
    }

    pub(super) fn len(&self) -> usize {
        self.rows.num_rows()
    }

    /// The key number of a row.
    pub(super) fn find(&self, key: Row<'_>) -> Option<usize> {
        self.keys.find(key).map(|number| number as usize)
    }
}

fn delete_marks(batch: &RecordBatch, flag: Option<&str>) -> Result<Vec<bool>> {
    let Some(flag) = flag else { return Ok(vec![false; batch.num_rows()]) };
    let array = batch.column_by_name(flag).and_then(|column| column.as_boolean_opt().cloned());
    let array = array.ok_or_else(|| {
        crate::error::Error::failed(format!("the rows have no boolean column `{flag}` to mark deletes"))
    })?;
    // `delete_when` that is null is not true.
    Ok((0..array.len()).map(|at| array.is_valid(at) && array.value(at)).collect())
}

fn whole_rows(batch: &RecordBatch) -> Result<Rows> {
    let schema = batch.schema();
    let comparable = |name: &String| {
        let field = schema.field_with_name(name);
        field.is_ok_and(|f| {
            arrow::row::RowConverter::supports_fields(&[arrow::row::SortField::new(f.data_type().clone())])
        })
    };
    let names: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).filter(comparable).collect();
    Encoder::new(&schema, &names)?.encode(batch)
}
