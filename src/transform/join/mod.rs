//! Joins of two streams: rows that arrive at different times find each other while they wait.
//!
//! # Which rows are a pair
//!
//! A left and a right row whose columns `on` are equal (null equals nothing) and whose event times are at most `within`
//! apart. Every pair comes out once, in the batch in which the later of its rows arrives; within a batch by the arrival of
//! the left row, then of the right one. So the pairs do not depend on how rows were cut into batches, but for which of them
//! are late.
//!
//! # Late rows, and how long rows wait
//!
//! A row is late once `t <= watermark`. One side's row at `t` can therefore still find a row of the other side that is
//! after the watermark and at or before `t + within`. There is such a time as long as `t + within > watermark`, so the row
//! waits until `t + within <= watermark`: with equality already, the only time left is the watermark itself, and rows of
//! that time are late. Nothing is let go of that could still find a partner, and nothing waits that could not.
//!
//! # Left rows without a match
//!
//! With `outer` a left row that has found no partner comes out once, with nulls for the right side, in the batch that ends
//! its wait; its rows of the right side may be in that same batch, which come first. A left row with a null in `on` has no
//! match and comes out at once. A late left row is late and nothing else: set aside or counted, and not in the result, for
//! its partner may have been let go of. Where only matches are wanted, and on the right side, rows with a null in `on` are
//! counted (`null_key`): they could only wait in vain.
//!
//! # Columns
//!
//! [`Columns`] are fixed when the pipeline is compiled: what `schema_drift: evolve` brings later is left out of pairs. Rows
//! that wait since before a column was added to the pipeline have null there.
//!
//! The coordinates `_topic`, `_partition`, `_offset` (and `_batch_id`, `_ingested_at`) are those of the left row, whose
//! stream the pairs belong to. An upsert of pairs is ranked by them where `order_by` leaves a tie, so of several partners of
//! one left row the first to come out stays: where the newest one should, `order_by` must name a column of the right side.

mod codec;
pub mod columns;
mod side;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, UInt32Array, new_null_array,
};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimestampMicrosecondType};
use chrono_tz::Tz;

use self::codec::Codec;
pub use self::columns::Columns;
use self::columns::OWN;
use self::side::{At, Side};
use super::arriving::{FORMAT, FORMAT_COLUMN, GONE, Judge, column, saved_columns, times_of};
use super::stateful::{Size, Stateful, Step};
use super::types::timestamp;
use super::window::keys::batch;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::model::window::{EventTime, Late, Micros};

/// Rows of one batch of pairs, or of saved rows.
const ROWS: usize = 1 << 16;
/// The names of the sides in saved rows.
const SIDES: [&str; 2] = ["left", "right"];

/// What is joined.
#[derive(Debug, Clone)]
pub struct Joining {
    /// Of both sides, and of pairs.
    pub columns: Columns,
    /// The columns that say when rows happened, left and right.
    pub event_times: [String; 2],
    /// How far apart rows of a pair may be.
    pub within: Micros,
    /// Left rows without a match come out, too.
    pub outer: bool,
    /// What becomes of late rows.
    pub late: Late,
}

/// See the module.
pub struct Join {
    what: Joining,
    timezone: Tz,
    key: Codec,
    /// What rows have besides the key, left and right.
    rest: [Codec; 2],
    sides: [Side; 2],
    saved: SchemaRef,
}

/// A pair, ordered by the numbers of its rows.
type Pair = ((u64, u64), At, At);

/// What one batch has found so far.
#[derive(Default)]
struct Found {
    step: Step,
    pairs: Vec<Pair>,
    /// Left rows that cannot have a match.
    alone: Vec<RecordBatch>,
}

impl Join {
    /// Nothing waits yet. Dates begin at midnight of the timezone.
    pub fn new(what: Joining, timezone: Tz) -> Result<Join> {
        let mut fields = vec![
            Field::new(OWN[0], DataType::Utf8, true),
            Field::new(OWN[1], DataType::Int64, true),
            Field::new(OWN[2], timestamp(), false),
            Field::new(OWN[3], DataType::Boolean, true),
        ];
        fields.extend(what.columns.pairs.fields().iter().map(|field| field.as_ref().clone()));
        fields.push(Field::new(GONE, DataType::Boolean, false));
        fields.push(Field::new(FORMAT_COLUMN, DataType::Int32, false));
        Ok(Join {
            key: Codec::new(&what.columns.on)?,
            rest: [Codec::new(&what.columns.left)?, Codec::new(&what.columns.right)?],
            sides: [Side::new(what.within), Side::new(what.within)],
            saved: Arc::new(Schema::new(fields)),
            timezone,
            what,
        })
    }

    fn own_columns(&self, side: usize) -> &[Field] {
        if side == 0 { &self.what.columns.left } else { &self.what.columns.right }
    }

    /// Lets the rows of one side meet those that wait on the other, and wait themselves.
    fn take_in(&mut self, side: usize, arrivals: &[RecordBatch], time: &EventTime, found: &mut Found) -> Result<()> {
        let judge = Judge::new(side, 0, self.what.late, time);
        let mut first = 0;
        for rows in arrivals {
            let times = times_of(rows, &self.what.event_times[side], self.timezone)?;
            let on: Vec<ArrayRef> =
                self.what.columns.on.iter().map(|field| column(rows, field)).collect::<Result<_>>()?;
            let own: Vec<ArrayRef> =
                self.own_columns(side).iter().map(|field| column(rows, field)).collect::<Result<_>>()?;
            let (keys, rest) = (self.key.encode(&on)?, self.rest[side].encode(&own)?);
            let mut unmatchable = Vec::new();
            for (row, time) in times.into_iter().enumerate() {
                let Some(time) = judge.believed(first + row, time, &mut found.step) else { continue };
                if !judge.in_time(first + row, time, &mut found.step) {
                    continue;
                }
                if on.iter().any(|column| column.is_null(row)) {
                    match self.what.outer && side == 0 {
                        true => unmatchable.push(row as u32),
                        false => *found.step.counts.entry("null_key").or_default() += 1,
                    }
                    continue;
                }
                self.meet(side, keys.of(row), rest.of(row), time, &mut found.pairs);
            }
            if !unmatchable.is_empty() {
                found.alone.push(self.unmatched(&on, &own, &UInt32Array::from(unmatchable))?);
            }
            first += rows.num_rows();
        }
        Ok(())
    }

    fn meet(&mut self, side: usize, key: &[u8], rest: &[u8], time: Micros, pairs: &mut Vec<Pair>) {
        let [left, right] = &mut self.sides;
        let mut partners = Vec::new();
        let mut pair = |left: &mut Side, right: &Side, ours: At, theirs: At| {
            pairs.push(((left.facts(ours).1, right.facts(theirs).1), ours, theirs));
            if self.what.outer {
                left.mark(ours);
            }
        };
        match side {
            0 => {
                right.partners(key, time, &mut partners);
                let at = left.add(key, rest, time);
                partners.into_iter().for_each(|partner| pair(left, right, at, partner));
            }
            _ => {
                left.partners(key, time, &mut partners);
                let at = right.add(key, rest, time);
                partners.into_iter().for_each(|partner| pair(left, right, partner, at));
            }
        }
    }

    /// Rows of arrays, with nothing on the right.
    fn unmatched(&self, on: &[ArrayRef], own: &[ArrayRef], rows: &UInt32Array) -> Result<RecordBatch> {
        let picked = on.iter().chain(own).map(|column| take(column, rows, None));
        let mut columns: Vec<ArrayRef> =
            picked.collect::<std::result::Result<_, _>>().context(ErrorKind::Failed, "picking rows without a match")?;
        columns.extend(self.nothing(1, rows.len()));
        batch(&self.what.columns.pairs, columns, rows.len())
    }

    /// Nulls for a side's own columns.
    fn nothing(&self, side: usize, rows: usize) -> Vec<ArrayRef> {
        self.own_columns(side).iter().map(|field| new_null_array(field.data_type(), rows)).collect()
    }

    /// The columns of waiting rows: those of `on`, then the side's own.
    fn decoded(&self, side: usize, rows: &[At]) -> Result<(Vec<ArrayRef>, Vec<ArrayRef>)> {
        let waiting = &self.sides[side];
        let key = self.key.decode(rows.iter().map(|at| waiting.key(*at)))?;
        Ok((key, self.rest[side].decode(rows.iter().map(|at| waiting.rest(*at)))?))
    }

    fn joined(&self, pairs: &[Pair]) -> Result<RecordBatch> {
        let (left, right): (Vec<At>, Vec<At>) = pairs.iter().map(|(_, left, right)| (*left, *right)).unzip();
        let (mut columns, own) = self.decoded(0, &left)?;
        columns.extend(own);
        columns.extend(self.rest[1].decode(right.iter().map(|at| self.sides[1].rest(*at)))?);
        batch(&self.what.columns.pairs, columns, pairs.len())
    }

    fn left_alone(&self, rows: &[At]) -> Result<RecordBatch> {
        let (mut columns, own) = self.decoded(0, rows)?;
        columns.extend(own);
        columns.extend(self.nothing(1, rows.len()));
        batch(&self.what.columns.pairs, columns, rows.len())
    }

    /// Lets time pass on both sides; the left rows that have found no partner and wait no more.
    fn pass(&mut self, watermark: Micros) -> Vec<At> {
        self.sides[1].pass(watermark);
        self.sides[0].pass(watermark)
    }

    fn let_go(&mut self) {
        self.sides.iter_mut().for_each(Side::let_go);
    }

    /// Waiting rows of one side, as they are saved.
    fn entries(&self, side: usize, rows: &[At]) -> Result<Vec<RecordBatch>> {
        let entries = |rows: &[At]| {
            let facts: Vec<(Micros, u64, bool)> = rows.iter().map(|at| self.sides[side].facts(*at)).collect();
            let matched = facts.iter().map(|(_, _, matched)| (self.what.outer && side == 0).then_some(*matched));
            let mut columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from(vec![SIDES[side]; rows.len()])),
                Arc::new(Int64Array::from_iter_values(facts.iter().map(|(_, number, _)| *number as i64))),
                instants(facts.iter().map(|(time, _, _)| *time)),
                Arc::new(matched.collect::<BooleanArray>()),
            ];
            let (key, own) = self.decoded(side, rows)?;
            columns.extend(key);
            match side {
                0 => columns.extend(own.into_iter().chain(self.nothing(1, rows.len()))),
                _ => columns.extend(self.nothing(0, rows.len()).into_iter().chain(own)),
            }
            self.finish(columns, rows.len(), false)
        };
        rows.chunks(ROWS).map(entries).collect()
    }

    fn finish(&self, mut columns: Vec<ArrayRef>, rows: usize, gone: bool) -> Result<RecordBatch> {
        columns.push(Arc::new(BooleanArray::from(vec![gone; rows])));
        columns.push(Arc::new(Int32Array::from(vec![FORMAT; rows])));
        batch(&self.saved, columns, rows)
    }

    /// That time has passed: whatever waited for no longer than until then is gone.
    fn passed(&self) -> Result<Option<RecordBatch>> {
        let Some(watermark) = self.sides[0].passed() else { return Ok(None) };
        let null = |field: &Arc<Field>| new_null_array(field.data_type(), 1);
        let fields = self.saved.fields();
        let mut columns: Vec<ArrayRef> = fields.iter().take(fields.len() - 2).map(null).collect();
        columns[2] = instants(std::iter::once(watermark));
        self.finish(columns, 1, true).map(Some)
    }

    /// A side's own columns of saved rows, as far as its rows have them: null in a column that is new since then. One that
    /// is gone is left out. Rows of the other side have anything there.
    fn carried(&self, side: usize, sides: &StringArray, saved: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let has_values = |column: &&ArrayRef| {
            (0..saved.num_rows())
                .any(|row| column.is_valid(row) && sides.is_valid(row) && sides.value(row) == SIDES[side])
        };
        let found = |name: &str| saved.column_by_name(name).filter(has_values);
        let columns = &self.what.columns;
        let carried = |(field, in_pairs): (&Field, &str)| {
            // On the right it had another name if the left side has got a column of its name since, or has lost it.
            let other = Some(columns.other_name(field.name(), in_pairs)).filter(|other| {
                side == 1
                    && saved.column_by_name(field.name()).is_some()
                    && !columns.right_names().any(|name| name == other)
            });
            match found(in_pairs).or_else(|| found(&other?)) {
                None => Ok(new_null_array(field.data_type(), saved.num_rows())),
                Some(column) if column.data_type() == field.data_type() => Ok(column.clone()),
                Some(column) => Err(Error::config(format!(
                    "rows that wait in the join have `{}` as {}, and it is {} now",
                    field.name(),
                    column.data_type(),
                    field.data_type()
                ))
                .help("nothing was read or written; cast the column back to the type it had, in the table before")
                .help("or give it another name there: a column that is new is null in the rows that wait")),
            }
        };
        match side {
            0 => columns.left.iter().map(|field| carried((field, field.name()))).collect(),
            _ => columns.right.iter().zip(columns.right_names()).map(carried).collect(),
        }
    }

    fn load_rows(&mut self, rows: &RecordBatch) -> Result<()> {
        // What rows carry besides may have changed since; what they are found by may not.
        let (fields, on) = (self.saved.fields(), OWN.len() + self.what.columns.on.len());
        let needed = fields.iter().take(on).chain(&fields[fields.len() - 2..]);
        let columns = saved_columns("the join", needed, rows)?;
        let sides = columns[0].as_string::<i32>();
        let numbers = columns[1].as_primitive::<Int64Type>();
        let times = columns[2].as_primitive::<TimestampMicrosecondType>();
        let (matched, gone) = (columns[3].as_boolean(), columns[on].as_boolean());
        let (on, left, right) = (&columns[OWN.len()..on], self.carried(0, sides, rows)?, self.carried(1, sides, rows)?);
        let keys = self.key.encode(on)?;
        let rest = [self.rest[0].encode(&left)?, self.rest[1].encode(&right)?];
        for row in 0..rows.num_rows() {
            if gone.value(row) {
                self.pass(times.value(row));
                self.let_go();
                continue;
            }
            let side = usize::from(sides.value(row) == SIDES[1]);
            let is_matched = matched.is_valid(row) && matched.value(row);
            let number = u64::try_from(numbers.value(row)).unwrap_or_default();
            self.sides[side].load(keys.of(row), rest[side].of(row), times.value(row), number, is_matched);
        }
        Ok(())
    }
}

fn instants(times: impl Iterator<Item = Micros>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
}

impl Stateful for Join {
    fn step(&mut self, arrivals: &[Vec<RecordBatch>], time: &EventTime) -> Result<Step> {
        let [left, right] = arrivals else { return Err(Error::failed("a join has two inputs")) };
        let mut found = Found::default();
        // The right rows of the batch meet its left ones, too; those have not met them.
        self.take_in(0, left, time, &mut found)?;
        self.take_in(1, right, time, &mut found)?;
        let Found { mut step, mut pairs, alone } = found;
        pairs.sort_unstable_by_key(|(numbers, _, _)| *numbers);
        step.rows = pairs.chunks(ROWS).map(|pairs| self.joined(pairs)).collect::<Result<_>>()?;
        step.rows.extend(alone);
        if let Some(next) = time.next {
            let alone = self.pass(next);
            if self.what.outer {
                let rows = alone.chunks(ROWS).map(|rows| self.left_alone(rows));
                step.rows.extend(rows.collect::<Result<Vec<_>>>()?);
            }
            self.let_go();
        }
        Ok(step)
    }

    fn changes(&mut self) -> Result<Vec<RecordBatch>> {
        let mut saved: Vec<RecordBatch> = self.passed()?.into_iter().collect();
        for side in [0, 1] {
            let changed = self.sides[side].take_changes();
            saved.extend(self.entries(side, &changed)?);
        }
        Ok(saved)
    }

    fn whole(&mut self) -> Result<Vec<RecordBatch>> {
        let mut saved = Vec::new();
        for side in [0, 1] {
            self.sides[side].take_changes();
            saved.extend(self.entries(side, &self.sides[side].all())?);
        }
        Ok(saved)
    }

    fn load(&mut self, saved: &[RecordBatch]) -> Result<()> {
        for rows in saved {
            self.load_rows(rows)?;
        }
        self.sides.iter_mut().for_each(|side| {
            side.take_changes();
        });
        Ok(())
    }

    fn saved(&self) -> SchemaRef {
        self.saved.clone()
    }

    fn holds(&self, name: &str) -> Vec<String> {
        self.what.columns.made_from(name)
    }

    fn output(&self) -> SchemaRef {
        self.what.columns.pairs.clone()
    }

    fn replaces(&self) -> Vec<String> {
        Vec::new()
    }

    fn due(&self) -> Option<(Micros, Micros)> {
        self.sides[0].ends().filter(|_| self.what.outer)
    }

    fn size(&self) -> Size {
        let [left, right] = self.sides.each_ref().map(Side::size);
        Size { rows: (left.0 + right.0) as u64, bytes: (left.1 + right.1) as u64 }
    }
}
