//! The rows of a batch, as columns.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, TimestampMicrosecondArray, new_empty_array};
use arrow::datatypes::{DataType, TimestampMicrosecondType};

use super::function::argument_column;
use super::keys::{Encoded, Keys};
use super::{Aggregation, EVENT_TIME, misfit};
use crate::error::Result;
use crate::model::window::Micros;
use crate::transform::types::timestamp;

/// All rows that arrive with one batch.
pub(super) struct Arrivals {
    pub(super) keys: Encoded,
    /// By function.
    pub(super) arguments: Vec<Option<ArrayRef>>,
    times: TimestampMicrosecondArray,
}

impl Arrivals {
    pub(super) fn new(aggregation: &Aggregation, keys: &Keys, batches: &[RecordBatch]) -> Result<Arrivals> {
        let by: Vec<ArrayRef> = aggregation
            .by
            .iter()
            .map(|field| column(batches, field.name(), field.data_type()))
            .collect::<Result<_>>()?;
        let arguments = aggregation.functions.iter().map(|function| {
            let Some((number, data_type)) = function.argument.zip(function.argument_type.as_ref()) else {
                return Ok(None);
            };
            column(batches, &argument_column(number), data_type).map(Some)
        });
        let arguments = arguments.collect::<Result<_>>()?;
        let times = column(batches, EVENT_TIME, &timestamp())?.as_primitive::<TimestampMicrosecondType>().clone();
        Ok(Arrivals { keys: keys.encode(&by)?, arguments, times })
    }

    pub(super) fn len(&self) -> usize {
        self.times.len()
    }

    pub(super) fn time(&self, row: usize) -> Option<Micros> {
        self.times.is_valid(row).then(|| self.times.value(row))
    }

    /// The times of all rows; where there is none, any.
    pub(super) fn times(&self) -> &[Micros] {
        self.times.values()
    }
}

fn column(batches: &[RecordBatch], name: &str, data_type: &DataType) -> Result<ArrayRef> {
    let mut parts = Vec::with_capacity(batches.len());
    for batch in batches {
        let Some(part) = batch.column_by_name(name).filter(|part| part.data_type() == data_type) else {
            return Err(misfit(format!("rows for windows arrive without a column {name} of type {data_type}")));
        };
        parts.push(part.as_ref());
    }
    match parts.as_slice() {
        [] => Ok(new_empty_array(data_type)),
        parts => arrow::compute::concat(parts)
            .map_err(|error| misfit("the rows of a batch cannot be put together").caused_by(error)),
    }
}
