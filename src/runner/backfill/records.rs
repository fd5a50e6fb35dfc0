//! Rows as records: where the record of a row is, when the row came, and whether two rows say the same.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Date32Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, new_null_array,
};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Date32Type, FieldRef, Int64Type, Schema, SchemaRef, TimestampMicrosecondType};
use arrow::row::{RowConverter, Rows as Encoded, SortField};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::model::offset::{OffsetRanges, Range};
use crate::source::column;
use crate::table::Span;
use crate::transform::Coordinates;
use crate::transform::decode::added;
use crate::transform::expect::coordinates;

/// Columns that say when a row came, not what its record says.
pub(super) const ADDED: [&str; 3] = [added::BATCH_ID, added::INGESTED_AT, added::INGEST_DATE];

/// A record: where it is and, where bronze keeps it, its time. A topic that was made again has other records in its places.
pub(super) type Key = (Coordinates, Option<i64>);

/// A bronze table and where its rows come from.
pub(super) struct Origin {
    pub bronze: String,
    pub source: String,
    pub event_time: String,
    pub keeps_time: bool,
}

/// When a stored row came.
#[derive(Clone, Copy)]
pub(super) struct Came {
    batch: Option<i64>,
    at: Option<i64>,
    date: Option<i32>,
}

pub(super) fn micros(span: &Span) -> std::ops::Range<i64> {
    span.interval.start.timestamp_micros()..span.interval.end.timestamp_micros()
}

/// Which rows have their event time in the span.
pub(super) fn within(batch: &RecordBatch, span: &Span) -> Result<Vec<bool>> {
    let odd = || Error::failed(format!("the rows have no time in `{}`", span.column));
    let times = batch.column_by_name(&span.column).ok_or_else(odd)?;
    Ok(match times.data_type() {
        DataType::Date32 => {
            let day = |date: chrono::NaiveDate| date.signed_duration_since(chrono::NaiveDate::default()).num_days();
            let days = day(span.dates.0)..day(span.dates.1);
            let times = times.as_primitive::<Date32Type>();
            times.iter().map(|at| at.is_some_and(|at| days.contains(&i64::from(at)))).collect()
        }
        _ => {
            let times = times.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(odd)?;
            times.iter().map(|at| at.is_some_and(|at| micros(span).contains(&at))).collect()
        }
    })
}

pub(super) fn key_columns(origin: &Origin) -> Vec<String> {
    let mut names = vec![column::TOPIC, column::PARTITION, column::OFFSET];
    names.extend(origin.keeps_time.then_some(column::TIMESTAMP));
    names.into_iter().map(str::to_string).collect()
}

/// The record of each row.
pub(super) fn keys(batch: &RecordBatch, origin: &Origin) -> Vec<Option<Key>> {
    let times = batch.column_by_name(column::TIMESTAMP).filter(|_| origin.keeps_time);
    let times = times.and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>());
    let time = |row: usize| times.filter(|times| times.is_valid(row)).map(|times| times.value(row));
    (0..batch.num_rows()).map(|row| Some((coordinates(batch, row)?, time(row)))).collect()
}

pub(super) fn place_rows<'a>(
    places: impl Iterator<Item = &'a Coordinates> + Clone,
    names: [&str; 3],
) -> Result<RecordBatch> {
    let columns: [ArrayRef; 3] = [
        Arc::new(places.clone().map(|at| Some(at.topic.as_str())).collect::<StringArray>()),
        Arc::new(places.clone().map(|at| Some(at.partition)).collect::<Int32Array>()),
        Arc::new(places.map(|at| Some(at.offset)).collect::<Int64Array>()),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(names.into_iter().zip(columns).map(|(n, c)| (n, c, true)));
    batch.context(ErrorKind::Failed, "places of records are columns")
}

pub(super) fn key_rows(keys: &[&Key], origin: &Origin) -> Result<RecordBatch> {
    let names = [column::TOPIC, column::PARTITION, column::OFFSET];
    let places = place_rows(keys.iter().map(|(at, _)| at), names)?;
    if !origin.keeps_time {
        return Ok(places);
    }
    let times = keys.iter().map(|(_, time)| *time).collect::<TimestampMicrosecondArray>().with_timezone("UTC");
    let mut fields: Vec<FieldRef> = places.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(arrow::datatypes::Field::new(column::TIMESTAMP, times.data_type().clone(), true)));
    let mut columns = places.columns().to_vec();
    columns.push(Arc::new(times));
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns);
    batch.context(ErrorKind::Failed, "places of records are columns")
}

pub(super) fn push(to: &mut Vec<RecordBatch>, batch: &RecordBatch, mask: &BooleanArray) -> Result<()> {
    if mask.true_count() > 0 {
        to.push(filter_record_batch(batch, mask).context(ErrorKind::Failed, "rows could not be filtered")?);
    }
    Ok(())
}

/// What is left of ranges after a piece of them.
pub(super) fn rest(ranges: &OffsetRanges, piece: &OffsetRanges) -> OffsetRanges {
    let after = |(partition, range): (&crate::model::offset::Partition, &Range)| {
        let from = piece.0.get(partition).map_or(range.from, |piece| piece.until);
        (from < range.until).then(|| (partition.clone(), Range { from, until: range.until }))
    };
    OffsetRanges(ranges.0.iter().filter_map(after).collect())
}

/// Rows of several reads with the same columns: `schema_drift: evolve` adds columns as they come.
pub(super) fn alike(rows: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
    let mut fields: Vec<FieldRef> = Vec::new();
    for field in rows.iter().flat_map(|batch| batch.schema().fields().to_vec()) {
        if !fields.iter().any(|known| known.name() == field.name()) {
            fields.push(field);
        }
    }
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    let widened = |batch: RecordBatch| {
        let column = |field: &FieldRef| {
            let column = batch.column_by_name(field.name()).cloned();
            column.unwrap_or_else(|| new_null_array(field.data_type(), batch.num_rows()))
        };
        let columns = schema.fields().iter().map(column).collect();
        RecordBatch::try_new(schema.clone(), columns).context(ErrorKind::Failed, "rows do not fit together")
    };
    rows.into_iter().map(widened).collect()
}

pub(super) fn arrival(batch: &RecordBatch, row: usize) -> Came {
    let column = |name: &str| batch.column_by_name(name).filter(|column| column.is_valid(row));
    Came {
        batch: column(added::BATCH_ID).and_then(|c| Some(c.as_primitive_opt::<Int64Type>()?.value(row))),
        at: column(added::INGESTED_AT).and_then(|c| Some(c.as_primitive_opt::<TimestampMicrosecondType>()?.value(row))),
        date: column(added::INGEST_DATE).and_then(|c| Some(c.as_primitive_opt::<Date32Type>()?.value(row))),
    }
}

/// The rows with the batch and the time that those which they replace came with.
pub(super) fn as_it_came(batch: &RecordBatch, keys: &[&Key], came: &HashMap<Key, Came>) -> Result<RecordBatch> {
    let known: Vec<Option<&Came>> = keys.iter().map(|key| came.get(*key)).collect();
    let mut columns = batch.columns().to_vec();
    for (column, field) in columns.iter_mut().zip(batch.schema().fields()) {
        let new: ArrayRef = match (field.name().as_str(), column.data_type()) {
            (added::BATCH_ID, DataType::Int64) => {
                let now = column.as_primitive::<Int64Type>().iter();
                Arc::new(now.zip(&known).map(|(now, came)| came.map_or(now, |came| came.batch)).collect::<Int64Array>())
            }
            (added::INGESTED_AT, DataType::Timestamp(..)) => {
                let Some(now) = column.as_primitive_opt::<TimestampMicrosecondType>() else { continue };
                let times = now.iter().zip(&known).map(|(now, came)| came.map_or(now, |came| came.at));
                Arc::new(times.collect::<TimestampMicrosecondArray>().with_data_type(column.data_type().clone()))
            }
            (added::INGEST_DATE, DataType::Date32) => {
                let now = column.as_primitive::<Date32Type>().iter();
                Arc::new(now.zip(&known).map(|(now, came)| came.map_or(now, |came| came.date)).collect::<Date32Array>())
            }
            _ => continue,
        };
        *column = new;
    }
    RecordBatch::try_new(batch.schema(), columns).context(ErrorKind::Failed, "rows do not fit their columns")
}

/// New rows and stored ones, encoded so that what their records say can be compared.
pub(super) struct Comparison {
    new: Vec<Encoded>,
    stored: Vec<Encoded>,
}

impl Comparison {
    /// `None` = these columns cannot be compared; then all count as different.
    pub fn of(new: &[RecordBatch], stored: &[RecordBatch]) -> Option<Comparison> {
        let schema = new.first()?.schema();
        let compared: Vec<FieldRef> =
            schema.fields().iter().filter(|field| !ADDED.contains(&field.name().as_str())).cloned().collect();
        let sort = compared.iter().map(|field| SortField::new(field.data_type().clone())).collect();
        let converter = RowConverter::new(sort).ok()?;
        let encode = |batch: &RecordBatch| {
            let column = |field: &FieldRef| match batch.column_by_name(field.name()) {
                Some(column) if column.data_type() == field.data_type() => Some(column.clone()),
                Some(column) => cast(column, field.data_type()).ok(),
                None => Some(new_null_array(field.data_type(), batch.num_rows())),
            };
            let columns: Vec<ArrayRef> = compared.iter().map(column).collect::<Option<_>>()?;
            converter.convert_columns(&columns).ok()
        };
        Some(Comparison {
            new: new.iter().map(encode).collect::<Option<_>>()?,
            stored: stored.iter().map(encode).collect::<Option<_>>()?,
        })
    }

    pub fn same(&self, new: &[(usize, usize)], stored: &[(usize, usize)]) -> bool {
        fn sorted<'a>(rows: &'a [Encoded], at: &[(usize, usize)]) -> Vec<arrow::row::Row<'a>> {
            let mut found: Vec<_> = at.iter().map(|(batch, row)| rows[*batch].row(*row)).collect();
            found.sort_unstable();
            found
        }
        new.len() == stored.len() && sorted(&self.new, new) == sorted(&self.stored, stored)
    }
}
