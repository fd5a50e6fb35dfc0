//! Deduplication: of the rows that repeat each other, the first one that arrives goes on.
//!
//! # Which row is a repetition
//!
//! A row repeats another one if their keys are equal, that other one went on, and their event times are less than `within`
//! apart. So a third row that is near to a repetition only, and not to the row that went on, goes on. In a batch the order
//! of arrival decides. Repetitions are counted (`duplicate`).
//!
//! # What is remembered, and for how long
//!
//! A row is late once its event time is `within` or more behind the watermark: `t + within <= watermark`. A row that went on
//! at `k` can still be repeated by one at `t < k + within` that is not late, so it is remembered until
//! `k + 2 * within <= watermark`: then every row less than `within` from it is late. Thus which rows go on does not depend
//! on when anything is forgotten, nor on where the rows were cut into batches, but for which of them are late. (Spark's
//! `dropDuplicatesWithinWatermark` forgets at `k + delay <= watermark` and takes a row as late at `t <= watermark`; here a
//! row may be `within` behind the watermark, because `delay` is 0 unless the file says more.)
//!
//! # Rows without a key
//!
//! A null in the key sets the row aside (`null_key`), as in an upsert. For Spark null equals null, so that all events of
//! unknown order would be one; and if none were equal, repetitions would pass unseen. Neither can be mended later. Where
//! null means something, `COALESCE` in the table before says what.

mod memory;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int32Array, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimestampMicrosecondType};
use chrono_tz::Tz;

use self::memory::{Memory, Seen};
use super::Stage;
use super::arriving::{FORMAT, FORMAT_COLUMN, GONE, Judge, column, saved_columns, times_of};
use super::stateful::{Size, Stateful, Step};
use super::types::timestamp;
use super::window::keys::{Keys, batch};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::model::window::{EventTime, Late, Micros};

/// The column of saved event times.
const EVENT_TIME: &str = "_event_time";
/// Entries of one batch of saved ones.
const ROWS: usize = 1 << 17;

/// What is told apart by what.
#[derive(Debug, Clone)]
pub struct Deduplication {
    /// Columns of the key, with their stored types.
    pub key: Vec<Field>,
    /// The column that says when a row happened.
    pub event_time: String,
    /// Rows of one key less than this apart are the same.
    pub within: Micros,
    /// What becomes of late rows.
    pub late: Late,
    /// Columns of the rows. Others that come with them stay.
    pub rows: SchemaRef,
}

/// See the module.
pub struct Dedupe {
    what: Deduplication,
    timezone: Tz,
    keys: Keys,
    memory: Memory,
    saved: SchemaRef,
}

impl Dedupe {
    /// Nothing seen yet. Dates begin at midnight of the timezone.
    pub fn new(what: Deduplication, timezone: Tz) -> Result<Dedupe> {
        let taken = what.key.iter().find(|field| [EVENT_TIME, GONE, FORMAT_COLUMN].contains(&field.name().as_str()));
        if let Some(field) = taken {
            return Err(Error::config(format!("what is remembered has a column `{}` of its own", field.name()))
                .help("give the column of `key` another name in the table before"));
        }
        let mut fields: Vec<Field> = what.key.iter().map(|field| field.clone().with_nullable(true)).collect();
        fields.push(Field::new(EVENT_TIME, timestamp(), false));
        fields.push(Field::new(GONE, DataType::Boolean, false));
        fields.push(Field::new(FORMAT_COLUMN, DataType::Int32, false));
        Ok(Dedupe {
            keys: Keys::new(&what.key)?,
            memory: Memory::new(what.within),
            saved: Arc::new(Schema::new(fields)),
            timezone,
            what,
        })
    }

    /// Which rows of a batch go on; `first` is the number of its first row among all that arrive.
    fn judge(&mut self, rows: &RecordBatch, first: usize, judge: &Judge, step: &mut Step) -> Result<BooleanArray> {
        let times = times_of(rows, &self.what.event_time, self.timezone)?;
        let key: Vec<ArrayRef> = self.what.key.iter().map(|field| column(rows, field)).collect::<Result<_>>()?;
        let keys = self.keys.encode(&key)?;
        let mut goes_on = Vec::with_capacity(rows.num_rows());
        for (row, time) in times.into_iter().enumerate() {
            let number = first + row;
            let Some(time) = judge.believed(number, time, step) else {
                goes_on.push(false);
                continue;
            };
            if let Some(at) = key.iter().position(|column| column.is_null(row)) {
                let error = format!("key column {} is null", self.what.key[at].name());
                judge.set_aside(number, Stage::Key, "null_key", error, step);
                goes_on.push(false);
                continue;
            }
            if !judge.in_time(number, time, step) {
                goes_on.push(false);
                continue;
            }
            let is_new = self.memory.is_new(keys.of(row), time);
            if !is_new {
                *step.counts.entry("duplicate").or_default() += 1;
            }
            goes_on.push(is_new);
        }
        Ok(BooleanArray::from(goes_on))
    }

    fn entries(&self, seen: &[Seen]) -> Result<Vec<RecordBatch>> {
        seen.chunks(ROWS)
            .map(|seen| {
                let mut columns = self.keys.decode(seen.iter().map(|(key, _)| key.as_ref()))?;
                columns.push(instants(seen.iter().map(|(_, time)| *time)));
                self.finish(columns, seen.len(), false)
            })
            .collect()
    }

    fn finish(&self, mut columns: Vec<ArrayRef>, rows: usize, gone: bool) -> Result<RecordBatch> {
        columns.push(Arc::new(BooleanArray::from(vec![gone; rows])));
        columns.push(Arc::new(Int32Array::from(vec![FORMAT; rows])));
        batch(&self.saved, columns, rows)
    }
}

fn instants(times: impl Iterator<Item = Micros>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
}

impl Stateful for Dedupe {
    fn step(&mut self, arrivals: &[Vec<RecordBatch>], time: &EventTime) -> Result<Step> {
        let [arrivals] = arrivals else { return Err(Error::failed("deduplication has one input")) };
        let judge = Judge::new(0, self.what.within, self.what.late, time);
        let (mut step, mut first) = (Step::default(), 0);
        for rows in arrivals {
            let goes_on = self.judge(rows, first, &judge, &mut step)?;
            first += rows.num_rows();
            if goes_on.true_count() > 0 {
                let kept = filter_record_batch(rows, &goes_on);
                step.rows.push(kept.context(ErrorKind::Failed, "leaving out repetitions")?);
            }
        }
        if let Some(next) = time.next {
            self.memory.forget(next);
        }
        Ok(step)
    }

    fn changes(&mut self) -> Result<Vec<RecordBatch>> {
        let (added, forgotten) = self.memory.take_changes();
        let mut saved = Vec::new();
        if let Some(watermark) = forgotten {
            let key = self.what.key.iter().map(|field| arrow::array::new_null_array(field.data_type(), 1));
            let columns = key.chain([instants(std::iter::once(watermark))]).collect();
            saved.push(self.finish(columns, 1, true)?);
        }
        saved.extend(self.entries(&added)?);
        Ok(saved)
    }

    fn whole(&mut self) -> Result<Vec<RecordBatch>> {
        self.memory.take_changes();
        self.entries(&self.memory.all())
    }

    fn load(&mut self, saved: &[RecordBatch]) -> Result<()> {
        let width = self.what.key.len();
        for rows in saved {
            let columns = saved_columns("deduplication", self.saved.fields().iter(), rows)?;
            let keys = self.keys.encode(&columns[..width])?;
            let times = columns[width].as_primitive::<TimestampMicrosecondType>();
            let gone = columns[width + 1].as_boolean();
            for row in 0..rows.num_rows() {
                match gone.value(row) {
                    true => self.memory.forget(times.value(row)),
                    false => self.memory.remember(keys.of(row), times.value(row)),
                }
            }
        }
        self.memory.take_changes();
        Ok(())
    }

    fn saved(&self) -> SchemaRef {
        self.saved.clone()
    }

    fn output(&self) -> SchemaRef {
        self.what.rows.clone()
    }

    fn replaces(&self) -> Vec<String> {
        Vec::new()
    }

    fn due(&self) -> Option<(Micros, Micros)> {
        None
    }

    fn size(&self) -> Size {
        self.memory.size()
    }
}
