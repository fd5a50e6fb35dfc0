//! Functions whose result is one of the values: `min`, `max`, `first` and `last`.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Field, TimestampMicrosecondType};

use super::function::Kind;
use super::kept::{Kept, NOWHERE, Slot};
use super::value::{Reader, Value, column};
use crate::error::Result;
use crate::model::window::Micros;
use crate::transform::types::timestamp;

/// The value picked so far; for `first` and `last` with its time.
pub(super) struct Picked {
    name: String,
    kind: Kind,
    argument: DataType,
    values: Vec<Value>,
    /// Empty for `min` and `max`.
    times: Vec<Micros>,
    heap: usize,
}

impl Picked {
    pub(super) fn new(name: String, kind: Kind, argument: DataType) -> Picked {
        Picked { name, kind, argument, values: Vec::new(), times: Vec::new(), heap: 0 }
    }

    fn timed(&self) -> bool {
        matches!(self.kind, Kind::First | Kind::Last)
    }

    /// Whether a value that arrives after the one in `slot` takes its place.
    fn wins(&self, slot: usize, value: &Value, time: Micros) -> bool {
        let held = &self.values[slot];
        held.is_null()
            || match self.kind {
                Kind::Min => value < held,
                Kind::Max => value > held,
                Kind::First => time < self.times[slot],
                _ => time >= self.times[slot],
            }
    }

    fn offer(&mut self, slot: usize, value: Value, time: Micros) {
        if value.is_null() || !self.wins(slot, &value, time) {
            return;
        }
        self.heap = (self.heap + value.heap()).saturating_sub(self.values[slot].heap());
        self.values[slot] = value;
        if self.timed() {
            self.times[slot] = time;
        }
    }
}

impl Kept for Picked {
    fn grow(&mut self, slots: usize) {
        self.values.resize(slots, Value::Null);
        if self.timed() {
            self.times.resize(slots, 0);
        }
    }

    fn clear(&mut self, slot: Slot) {
        let held = std::mem::take(&mut self.values[slot as usize]);
        self.heap = self.heap.saturating_sub(held.heap());
    }

    fn update(&mut self, slots: &[Slot], values: Option<&ArrayRef>, times: &[Micros]) -> Result<()> {
        let Some(values) = values else { return Ok(()) };
        let reader = Reader::new(values)?;
        for (row, slot) in slots.iter().enumerate().filter(|(_, slot)| **slot != NOWHERE) {
            self.offer(*slot as usize, reader.get(row), times[row]);
        }
        Ok(())
    }

    fn merge(&mut self, into: Slot, from: Slot) -> Result<()> {
        let value = self.values[from as usize].clone();
        let time = self.times.get(from as usize).copied().unwrap_or_default();
        self.offer(into as usize, value, time);
        Ok(())
    }

    fn results(&self, slots: &[Slot]) -> Result<ArrayRef> {
        column(&self.argument, slots.iter().map(|slot| &self.values[*slot as usize]))
    }

    fn saved(&self) -> Vec<Field> {
        let value = Field::new(format!("{}_{}", self.name, self.kind.name()), self.argument.clone(), true);
        let time = || Field::new(format!("{}_time", self.name), timestamp(), true);
        std::iter::once(value).chain(self.timed().then(time)).collect()
    }

    fn save(&self, slots: &[Slot]) -> Result<Vec<ArrayRef>> {
        let mut columns = vec![self.results(slots)?];
        if self.timed() {
            let time = |slot: &Slot| match self.values[*slot as usize].is_null() {
                true => Value::Null,
                false => Value::Int(self.times[*slot as usize]),
            };
            let times: Vec<Value> = slots.iter().map(time).collect();
            columns.push(column(&timestamp(), times.iter())?);
        }
        Ok(columns)
    }

    fn load(&mut self, slots: &[Slot], columns: &[ArrayRef]) -> Result<()> {
        let reader = Reader::new(&columns[0])?;
        let times = columns.get(1).map(|times| times.as_primitive::<TimestampMicrosecondType>());
        for (row, slot) in slots.iter().enumerate().filter(|(_, slot)| **slot != NOWHERE) {
            let time = times.filter(|times| times.is_valid(row)).map_or(0, |times| times.value(row));
            self.offer(*slot as usize, reader.get(row), time);
        }
        Ok(())
    }

    fn width(&self) -> usize {
        size_of::<Value>() + if self.timed() { size_of::<Micros>() } else { 0 }
    }

    fn heap(&self) -> usize {
        self.heap
    }
}
