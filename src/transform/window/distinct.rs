//! `count(distinct x)`: the values themselves.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, ListArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field};

use super::misfit;
use super::sketch::Sketch;
use super::value::{Reader, Value, column};
use crate::arrow_bridge::LIST_ELEMENT;
use crate::error::Result;

/// A set of values.
#[derive(Default)]
pub(super) struct Distinct {
    values: HashSet<Value>,
    heap: usize,
}

impl Distinct {
    fn insert(&mut self, value: Value) {
        let heap = value.heap();
        if self.values.insert(value) {
            self.heap += heap;
        }
    }
}

fn element(argument: &DataType) -> Arc<Field> {
    Arc::new(Field::new(LIST_ELEMENT, argument.clone(), true))
}

impl Sketch for Distinct {
    const SAVED: &'static str = "values";

    fn add(&mut self, values: &Reader<'_>, row: usize) {
        self.insert(values.get(row));
    }

    fn merge(&mut self, other: &Self) {
        for value in &other.values {
            self.insert(value.clone());
        }
    }

    fn heap(&self) -> usize {
        // A table that is full to seven eighths, with a byte of control each.
        size_of::<Self>() + self.heap + self.values.capacity() * (size_of::<Value>() + 1) * 8 / 7
    }

    fn results(sketches: &[Option<&Self>], _: f64) -> ArrayRef {
        let count = |sketch: &Option<&Self>| sketch.map_or(0, |sketch| sketch.values.len() as i64);
        Arc::new(Int64Array::from_iter_values(sketches.iter().map(count)))
    }

    fn saved(argument: &DataType) -> DataType {
        DataType::List(element(argument))
    }

    fn save(sketches: &[Option<&Self>], argument: &DataType) -> Result<ArrayRef> {
        let mut all: Vec<&Value> = Vec::new();
        let mut lengths = Vec::with_capacity(sketches.len());
        for sketch in sketches {
            let start = all.len();
            all.extend(sketch.iter().flat_map(|sketch| &sketch.values));
            all[start..].sort_unstable();
            lengths.push(all.len() - start);
        }
        let nulls = NullBuffer::from_iter(sketches.iter().map(Option::is_some));
        let values = column(argument, all.into_iter())?;
        let list = ListArray::try_new(element(argument), OffsetBuffer::from_lengths(lengths), values, Some(nulls));
        Ok(Arc::new(list.map_err(|error| misfit(error.to_string()))?))
    }

    fn load(saved: &ArrayRef, row: usize) -> Result<Self> {
        let values = saved.as_list::<i32>().value(row);
        let reader = Reader::new(&values)?;
        let mut set = Distinct::default();
        for row in 0..values.len() {
            set.insert(reader.get(row));
        }
        Ok(set)
    }
}
