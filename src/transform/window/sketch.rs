//! Functions that keep more than a few bytes for a window: sets and sketches.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::{DataType, Field};

use super::kept::{Kept, NOWHERE, Slot};
use super::value::Reader;
use crate::error::Result;
use crate::model::window::Micros;

/// What is kept for one window.
pub(super) trait Sketch: Default + Send + Sync {
    /// Ends the name of the column it is saved in.
    const SAVED: &'static str;

    /// Takes in the value in a row, which is not null.
    fn add(&mut self, values: &Reader<'_>, row: usize);

    /// Takes in all that another holds.
    fn merge(&mut self, other: &Self);

    /// Bytes that it takes.
    fn heap(&self) -> usize;

    /// The results of sketches, `None` for those that saw no value. `share` is that of a quantile.
    fn results(sketches: &[Option<&Self>], share: f64) -> ArrayRef;

    /// The type of the saved column.
    fn saved(argument: &DataType) -> DataType;

    /// The saved column.
    fn save(sketches: &[Option<&Self>], argument: &DataType) -> Result<ArrayRef>;

    /// What is saved in a row, which is not null.
    fn load(saved: &ArrayRef, row: usize) -> Result<Self>;
}

/// The sketches of one function.
pub(super) struct Sketches<S> {
    name: String,
    argument: DataType,
    share: f64,
    sketches: Vec<Option<Box<S>>>,
    heap: usize,
}

impl<S: Sketch> Sketches<S> {
    pub(super) fn new(name: String, argument: DataType, share: f64) -> Self {
        Sketches { name, argument, share, sketches: Vec::new(), heap: 0 }
    }

    fn of(&self, slots: &[Slot]) -> Vec<Option<&S>> {
        slots.iter().map(|slot| self.sketches[*slot as usize].as_deref()).collect()
    }

    fn change(&mut self, slot: Slot, change: impl FnOnce(&mut S)) {
        let before = self.sketches[slot as usize].as_ref().map_or(0, |sketch| sketch.heap());
        let sketch = self.sketches[slot as usize].get_or_insert_default();
        change(sketch);
        self.heap = (self.heap + sketch.heap()).saturating_sub(before);
    }
}

impl<S: Sketch> Kept for Sketches<S> {
    fn grow(&mut self, slots: usize) {
        self.sketches.resize_with(slots, || None);
    }

    fn clear(&mut self, slot: Slot) {
        if let Some(sketch) = self.sketches[slot as usize].take() {
            self.heap = self.heap.saturating_sub(sketch.heap());
        }
    }

    fn update(&mut self, slots: &[Slot], values: Option<&ArrayRef>, _: &[Micros]) -> Result<()> {
        let Some(values) = values else { return Ok(()) };
        let reader = Reader::new(values)?;
        for (row, slot) in slots.iter().enumerate().filter(|(row, slot)| **slot != NOWHERE && values.is_valid(*row)) {
            self.change(*slot, |sketch| sketch.add(&reader, row));
        }
        Ok(())
    }

    fn merge(&mut self, into: Slot, from: Slot) -> Result<()> {
        if let Some(other) = self.sketches[from as usize].take() {
            self.change(into, |sketch| sketch.merge(&other));
            self.sketches[from as usize] = Some(other);
        }
        Ok(())
    }

    fn results(&self, slots: &[Slot]) -> Result<ArrayRef> {
        Ok(S::results(&self.of(slots), self.share))
    }

    fn saved(&self) -> Vec<Field> {
        vec![Field::new(format!("{}_{}", self.name, S::SAVED), S::saved(&self.argument), true)]
    }

    fn save(&self, slots: &[Slot]) -> Result<Vec<ArrayRef>> {
        Ok(vec![S::save(&self.of(slots), &self.argument)?])
    }

    fn load(&mut self, slots: &[Slot], columns: &[ArrayRef]) -> Result<()> {
        let saved = &columns[0];
        for (row, slot) in slots.iter().enumerate().filter(|(row, slot)| **slot != NOWHERE && saved.is_valid(*row)) {
            let sketch = S::load(saved, row)?;
            self.change(*slot, |empty| *empty = sketch);
        }
        Ok(())
    }

    fn width(&self) -> usize {
        size_of::<Option<Box<S>>>()
    }

    fn heap(&self) -> usize {
        self.heap
    }
}

/// A column of bytes.
pub(super) fn binary(values: impl Iterator<Item = Option<Vec<u8>>>) -> ArrayRef {
    Arc::new(values.collect::<arrow::array::BinaryArray>())
}
