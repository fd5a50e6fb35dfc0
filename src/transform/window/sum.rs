//! Counts, sums and averages.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Decimal128Array, Float64Array, Int64Array};
use arrow::datatypes::{DataType, Decimal128Type, Field, Float64Type, Int64Type, i256};

use super::function::{Function, Kind};
use super::kept::{Kept, NOWHERE, Slot};
use super::misfit;
use super::value::Reader;
use crate::error::{Error, ErrorKind, Result};
use crate::model::window::Micros;

/// `count(*)` and `count(x)`.
pub(super) struct Count {
    name: String,
    counts: Vec<i64>,
}

impl Count {
    pub(super) fn new(name: String) -> Count {
        Count { name, counts: Vec::new() }
    }
}

fn ints(slots: &[Slot], values: &[i64]) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(slots.iter().map(|slot| values[*slot as usize])))
}

/// Rows of `slots` that go somewhere and are not null.
fn taken<'a>(slots: &'a [Slot], values: Option<&'a ArrayRef>) -> impl Iterator<Item = (usize, usize)> + 'a {
    let valid = move |row: usize| values.is_none_or(|values| values.is_valid(row));
    let rows = slots.iter().enumerate().filter(move |(row, slot)| **slot != NOWHERE && valid(*row));
    rows.map(|(row, slot)| (row, *slot as usize))
}

impl Kept for Count {
    fn grow(&mut self, slots: usize) {
        self.counts.resize(slots, 0);
    }

    fn clear(&mut self, slot: Slot) {
        self.counts[slot as usize] = 0;
    }

    fn update(&mut self, slots: &[Slot], values: Option<&ArrayRef>, _: &[Micros]) -> Result<()> {
        for (_, slot) in taken(slots, values) {
            self.counts[slot] += 1;
        }
        Ok(())
    }

    fn merge(&mut self, into: Slot, from: Slot) -> Result<()> {
        self.counts[into as usize] += self.counts[from as usize];
        Ok(())
    }

    fn results(&self, slots: &[Slot]) -> Result<ArrayRef> {
        Ok(ints(slots, &self.counts))
    }

    fn saved(&self) -> Vec<Field> {
        vec![Field::new(format!("{}_count", self.name), DataType::Int64, true)]
    }

    fn save(&self, slots: &[Slot]) -> Result<Vec<ArrayRef>> {
        Ok(vec![ints(slots, &self.counts)])
    }

    fn load(&mut self, slots: &[Slot], columns: &[ArrayRef]) -> Result<()> {
        let counts = columns[0].as_primitive::<Int64Type>();
        for (row, slot) in taken(slots, Some(&columns[0])) {
            self.counts[slot] = counts.value(row);
        }
        Ok(())
    }

    fn width(&self) -> usize {
        size_of::<i64>()
    }

    fn heap(&self) -> usize {
        0
    }
}

/// `sum` and `avg` of integers and decimals: the total is exact.
pub(super) struct ExactSum {
    name: String,
    kind: Kind,
    measure: String,
    scale: i8,
    result: DataType,
    totals: Vec<i128>,
    counts: Vec<i64>,
}

impl ExactSum {
    pub(super) fn new(name: String, function: &Function, argument: DataType, result: Field) -> ExactSum {
        let scale = match argument {
            DataType::Decimal128(_, scale) => scale,
            _ => 0,
        };
        let (kind, measure, result) = (function.kind, function.measure.clone(), result.data_type().clone());
        ExactSum { name, kind, measure, scale, result, totals: Vec::new(), counts: Vec::new() }
    }

    fn overflow(&self, what: &str) -> Error {
        Error::new(ErrorKind::Data, format!("measure `{}`: the {} does not fit {what}", self.measure, self.kind.name()))
            .help("its argument must be cast to what the results need: a decimal with room for them, or DOUBLE")
    }

    fn add(&mut self, slot: usize, value: i128, count: i64) -> Result<()> {
        let Some(total) = self.totals[slot].checked_add(value) else { return Err(self.overflow("38 digits")) };
        self.totals[slot] = total;
        self.counts[slot] += count;
        Ok(())
    }

    fn result<T>(&self, slot: Slot, of: impl Fn(i128, i64) -> Result<T>) -> Result<Option<T>> {
        match self.counts[slot as usize] {
            0 => Ok(None),
            count => of(self.totals[slot as usize], count).map(Some),
        }
    }

    /// Total over count with `scale` digits after the point, a half rounded away from zero.
    fn average(&self, total: i128, count: i64, scale: i8) -> Result<i128> {
        let more = i256::from_i128(10).checked_pow((scale - self.scale).max(0) as u32);
        let count = i256::from_i128(i128::from(count));
        let two = i256::from_i128(2);
        let average = more.and_then(|more| i256::from_i128(total).checked_mul(more)).and_then(|total| {
            let doubled = total.checked_mul(two)?;
            let half = if total < i256::ZERO { i256::ZERO.checked_sub(count)? } else { count };
            doubled.checked_add(half)?.checked_div(count.checked_mul(two)?)?.to_i128()
        });
        average.ok_or_else(|| self.overflow("38 digits"))
    }
}

impl Kept for ExactSum {
    fn grow(&mut self, slots: usize) {
        self.totals.resize(slots, 0);
        self.counts.resize(slots, 0);
    }

    fn clear(&mut self, slot: Slot) {
        self.totals[slot as usize] = 0;
        self.counts[slot as usize] = 0;
    }

    fn update(&mut self, slots: &[Slot], values: Option<&ArrayRef>, _: &[Micros]) -> Result<()> {
        let Some(values) = values else { return Ok(()) };
        let reader = Reader::new(values)?;
        for (row, slot) in taken(slots, Some(values)) {
            self.add(slot, reader.integer(row).unwrap_or_default(), 1)?;
        }
        Ok(())
    }

    fn merge(&mut self, into: Slot, from: Slot) -> Result<()> {
        self.add(into as usize, self.totals[from as usize], self.counts[from as usize])
    }

    fn results(&self, slots: &[Slot]) -> Result<ArrayRef> {
        match (&self.result, self.kind) {
            (DataType::Decimal128(precision, scale), kind) => {
                let digits = |total: i128, count: i64| {
                    let value = match kind {
                        Kind::Avg => self.average(total, count, *scale)?,
                        _ => total,
                    };
                    let fits = value.unsigned_abs() < 10u128.pow(u32::from(*precision));
                    fits.then_some(value).ok_or_else(|| self.overflow(&format!("decimal({precision}, {scale})")))
                };
                let values =
                    slots.iter().map(|slot| self.result(*slot, digits)).collect::<Result<Decimal128Array>>()?;
                let values = values.with_precision_and_scale(*precision, *scale);
                Ok(Arc::new(values.map_err(|error| misfit(error.to_string()))?))
            }
            (_, Kind::Avg) => {
                let average = |total: i128, count: i64| Ok(total as f64 / count as f64);
                Ok(Arc::new(slots.iter().map(|slot| self.result(*slot, average)).collect::<Result<Float64Array>>()?))
            }
            _ => {
                let long = |total: i128, _: i64| i64::try_from(total).map_err(|_| self.overflow("bigint"));
                Ok(Arc::new(slots.iter().map(|slot| self.result(*slot, long)).collect::<Result<Int64Array>>()?))
            }
        }
    }

    fn saved(&self) -> Vec<Field> {
        vec![
            Field::new(format!("{}_sum", self.name), DataType::Decimal128(38, self.scale), true),
            Field::new(format!("{}_count", self.name), DataType::Int64, true),
        ]
    }

    fn save(&self, slots: &[Slot]) -> Result<Vec<ArrayRef>> {
        let most = 10i128.pow(38);
        if slots.iter().any(|slot| self.totals[*slot as usize].abs() >= most) {
            return Err(self.overflow("38 digits"));
        }
        let totals = Decimal128Array::from_iter_values(slots.iter().map(|slot| self.totals[*slot as usize]));
        let totals = totals.with_precision_and_scale(38, self.scale).map_err(|error| misfit(error.to_string()))?;
        Ok(vec![Arc::new(totals), ints(slots, &self.counts)])
    }

    fn load(&mut self, slots: &[Slot], columns: &[ArrayRef]) -> Result<()> {
        let (totals, counts) = (columns[0].as_primitive::<Decimal128Type>(), columns[1].as_primitive::<Int64Type>());
        for (row, slot) in taken(slots, Some(&columns[1])) {
            (self.totals[slot], self.counts[slot]) = (totals.value(row), counts.value(row));
        }
        Ok(())
    }

    fn width(&self) -> usize {
        size_of::<i128>() + size_of::<i64>()
    }

    fn heap(&self) -> usize {
        0
    }
}

/// `sum` and `avg` of floats. What is lost by rounding is summed beside (Neumaier 1974, "Rundungsfehleranalyse einiger
/// Verfahren zur Summation endlicher Summen"), so that the order of rows hardly matters.
pub(super) struct FloatSum {
    name: String,
    kind: Kind,
    sums: Vec<f64>,
    lost: Vec<f64>,
    counts: Vec<i64>,
}

impl FloatSum {
    pub(super) fn new(name: String, kind: Kind) -> FloatSum {
        FloatSum { name, kind, sums: Vec::new(), lost: Vec::new(), counts: Vec::new() }
    }

    fn add(&mut self, slot: usize, value: f64) {
        let sum = self.sums[slot];
        let total = sum + value;
        self.lost[slot] += match sum.abs() >= value.abs() {
            true => (sum - total) + value,
            false => (value - total) + sum,
        };
        self.sums[slot] = total;
    }
}

fn doubles(slots: &[Slot], values: &[f64]) -> ArrayRef {
    Arc::new(Float64Array::from_iter_values(slots.iter().map(|slot| values[*slot as usize])))
}

impl Kept for FloatSum {
    fn grow(&mut self, slots: usize) {
        self.sums.resize(slots, 0.0);
        self.lost.resize(slots, 0.0);
        self.counts.resize(slots, 0);
    }

    fn clear(&mut self, slot: Slot) {
        let slot = slot as usize;
        (self.sums[slot], self.lost[slot], self.counts[slot]) = (0.0, 0.0, 0);
    }

    fn update(&mut self, slots: &[Slot], values: Option<&ArrayRef>, _: &[Micros]) -> Result<()> {
        let Some(values) = values else { return Ok(()) };
        let reader = Reader::new(values)?;
        for (row, slot) in taken(slots, Some(values)) {
            self.add(slot, reader.double(row).unwrap_or_default());
            self.counts[slot] += 1;
        }
        Ok(())
    }

    fn merge(&mut self, into: Slot, from: Slot) -> Result<()> {
        let (into, from) = (into as usize, from as usize);
        self.add(into, self.sums[from]);
        self.lost[into] += self.lost[from];
        self.counts[into] += self.counts[from];
        Ok(())
    }

    fn results(&self, slots: &[Slot]) -> Result<ArrayRef> {
        let result = |slot: &Slot| {
            let slot = *slot as usize;
            // Beside an infinity nothing is lost that could be added.
            let sum = match self.sums[slot].is_finite() {
                true => self.sums[slot] + self.lost[slot],
                false => self.sums[slot],
            };
            match (self.counts[slot], self.kind) {
                (0, _) => None,
                (count, Kind::Avg) => Some(sum / count as f64),
                _ => Some(sum),
            }
        };
        Ok(Arc::new(slots.iter().map(result).collect::<Float64Array>()))
    }

    fn saved(&self) -> Vec<Field> {
        vec![
            Field::new(format!("{}_sum", self.name), DataType::Float64, true),
            Field::new(format!("{}_rounding", self.name), DataType::Float64, true),
            Field::new(format!("{}_count", self.name), DataType::Int64, true),
        ]
    }

    fn save(&self, slots: &[Slot]) -> Result<Vec<ArrayRef>> {
        Ok(vec![doubles(slots, &self.sums), doubles(slots, &self.lost), ints(slots, &self.counts)])
    }

    fn load(&mut self, slots: &[Slot], columns: &[ArrayRef]) -> Result<()> {
        let (sums, lost) = (columns[0].as_primitive::<Float64Type>(), columns[1].as_primitive::<Float64Type>());
        let counts = columns[2].as_primitive::<Int64Type>();
        for (row, slot) in taken(slots, Some(&columns[2])) {
            (self.sums[slot], self.lost[slot], self.counts[slot]) =
                (sums.value(row), lost.value(row), counts.value(row));
        }
        Ok(())
    }

    fn width(&self) -> usize {
        2 * size_of::<f64>() + size_of::<i64>()
    }

    fn heap(&self) -> usize {
        0
    }
}
