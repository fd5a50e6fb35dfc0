//! How windows are saved: one row each, in columns that people and later releases can read.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int32Array, RecordBatch, new_null_array};
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef, TimestampMicrosecondType};

use super::entries::{Entries, Place};
use super::kept::{Kept, NOWHERE, Slot};
use super::keys::{self, Keys, batch};
use super::state::times;
use super::{Aggregation, WINDOW_END, WINDOW_START, misfit};
use crate::error::{Error, Result};
use crate::model::window::Micros;
use crate::transform::types::timestamp;

/// What the columns mean. A release that means something else by them counts on.
pub(super) const FORMAT: i32 = 1;
/// The column of [`FORMAT`].
const FORMAT_COLUMN: &str = "_format";
/// The column that is true for a window that was let go of.
const GONE: &str = "_gone";
/// Rows of one batch of saved windows.
const ROWS: usize = 1 << 17;

/// The columns of saved windows.
pub(super) fn schema(aggregation: &Aggregation, kept: &[Box<dyn Kept>]) -> SchemaRef {
    let mut fields = aggregation.by.clone();
    if aggregation.window.is_some() {
        fields.extend([WINDOW_START, WINDOW_END].map(|name| Field::new(name, timestamp(), true)));
    }
    fields.extend(kept.iter().flat_map(|kept| kept.saved()));
    fields.push(Field::new(GONE, DataType::Boolean, false));
    fields.push(Field::new(FORMAT_COLUMN, DataType::Int32, false));
    Arc::new(Schema::new(fields))
}

/// Windows as rows.
pub(super) fn windows(schema: &SchemaRef, keys: &Keys, entries: &Entries, slots: &[Slot]) -> Result<Vec<RecordBatch>> {
    slots.chunks(ROWS).map(|slots| live(schema, keys, entries, slots)).collect()
}

fn live(schema: &SchemaRef, keys: &Keys, entries: &Entries, slots: &[Slot]) -> Result<RecordBatch> {
    let places: Vec<Place> = slots.iter().map(|slot| entries.place(*slot)).collect();
    let mut columns = keys.decode(places.iter().map(|place| keys::key(place)))?;
    if schema.column_with_name(WINDOW_START).is_some() {
        columns.push(times(slots.iter().map(|slot| entries.start(*slot))));
        columns.push(times(slots.iter().map(|slot| entries.end(*slot))));
    }
    for kept in entries.kept() {
        columns.extend(kept.save(slots)?);
    }
    finish(schema, columns, slots.len(), false)
}

/// Windows that went, as rows.
pub(super) fn gone(schema: &SchemaRef, keys: &Keys, gone: &BTreeMap<Place, Micros>) -> Result<Vec<RecordBatch>> {
    if gone.is_empty() {
        return Ok(Vec::new());
    }
    let mut columns = keys.decode(gone.keys().map(|place| keys::key(place)))?;
    if schema.column_with_name(WINDOW_START).is_some() {
        columns.push(times(gone.keys().map(|place| keys::start(place))));
        columns.push(times(gone.values().copied()));
    }
    let states = &schema.fields()[columns.len()..schema.fields().len() - 2];
    columns.extend(states.iter().map(|field| new_null_array(field.data_type(), gone.len())));
    Ok(vec![finish(schema, columns, gone.len(), true)?])
}

fn finish(schema: &SchemaRef, mut columns: Vec<ArrayRef>, rows: usize, gone: bool) -> Result<RecordBatch> {
    columns.push(Arc::new(BooleanArray::from(vec![gone; rows])));
    columns.push(Arc::new(Int32Array::from(vec![FORMAT; rows])));
    batch(schema, columns, rows)
}

/// Takes saved rows in.
pub(super) fn load(
    schema: &SchemaRef,
    keys: &Keys,
    entries: &mut Entries,
    saved: &RecordBatch,
    by: usize,
) -> Result<()> {
    let columns = matching(schema, saved)?;
    let key = keys.encode(&columns[..by])?;
    let timed = schema.column_with_name(WINDOW_START).is_some();
    let time = |column: usize, row: usize, otherwise: Micros| match timed {
        true => columns[by + column].as_primitive::<TimestampMicrosecondType>().value(row),
        false => otherwise,
    };
    let is_gone = columns[columns.len() - 2].as_boolean();
    let mut slots = vec![NOWHERE; saved.num_rows()];
    // Rows of several saves may come in one batch: of each window the last row counts.
    let mut latest: HashMap<Slot, usize> = HashMap::new();
    for row in 0..saved.num_rows() {
        let (start, end) = (time(0, row, 0), time(1, row, Micros::MAX));
        let known = entries.find(key.of(row), start);
        if let Some(before) = known.and_then(|known| latest.remove(&known)) {
            slots[before] = NOWHERE;
        }
        if is_gone.value(row) {
            known.map(|known| entries.remove(known));
            continue;
        }
        let slot = match known {
            Some(known) => {
                entries.clear(known);
                entries.stretch(known, start, end);
                known
            }
            None => {
                let slot = entries.allocate();
                entries.insert(slot, key.of(row), start, end);
                slot
            }
        };
        slots[row] = slot;
        latest.insert(slot, row);
    }
    let first = by + if timed { 2 } else { 0 };
    entries.load(&slots, &columns[first..columns.len() - 2])
}

/// The saved columns in the order of the schema.
fn matching(schema: &SchemaRef, saved: &RecordBatch) -> Result<Vec<ArrayRef>> {
    let format = saved.column_by_name(FORMAT_COLUMN).and_then(|column| column.as_primitive_opt::<Int32Type>());
    let other = match format {
        None => Some("an unknown format".to_string()),
        Some(format) => {
            let other = format.values().iter().find(|format| **format != FORMAT);
            other.map(|other| format!("format {other}; this release reads format {FORMAT}"))
        }
    };
    if let Some(other) = other {
        return Err(Error::config(format!("the saved state of windows has {other}"))
            .help("run the release of tidegate that wrote it, or start the table anew"));
    }
    let column = |field: &Arc<Field>| {
        let found = saved.column_by_name(field.name());
        let fits = found.filter(|column| column.data_type() == field.data_type());
        fits.cloned().ok_or_else(|| {
            let there = found.map_or("is missing".to_string(), |column| format!("is {}", column.data_type()));
            Error::config(format!(
                "the saved state of windows is that of other measures: column `{}` should be {} and {there}",
                field.name(),
                field.data_type()
            ))
            .help("what a window aggregates cannot be changed while its windows are open; start the table anew")
        })
    };
    let columns: Vec<ArrayRef> = schema.fields().iter().map(column).collect::<Result<_>>()?;
    match columns.last().is_none_or(|format| format.null_count() == 0) {
        true => Ok(columns),
        false => Err(misfit("the saved state of windows has rows without a format")),
    }
}
