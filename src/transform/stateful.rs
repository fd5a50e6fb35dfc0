//! Transforms that remember: windows, deduplication, joins of streams.
//!
//! # Contract
//!
//! 1. `step` is a deterministic function of (state, rows, [`EventTime`]): the same state, rows and time give the same
//!    output and the same state.
//! 2. Every arriving row is worked into the state or the output, set aside, or counted.
//! 3. `load` of everything that `changes` gave since `whole` (or since the beginning), in order, gives a state that behaves
//!    as the one that they were taken from. A state that has failed in `step` is thrown away and loaded again.
//! 4. The state is bounded by the watermark: what can no longer change the output is let go of.

use std::collections::BTreeMap;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Date32Type, Int32Type, SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, Days, NaiveDate};
use chrono_tz::Tz;

use super::Stage;
use super::window::WINDOW_END;
pub use crate::arrow_bridge::conform;
use crate::error::{Error, Result};
use crate::model::interval::midnight;
use crate::model::offset::Partition;
use crate::model::window::{EventTime, Micros};
use crate::source::column;

/// What one batch made of the state.
#[derive(Debug, Default)]
pub struct Step {
    /// Rows of the result: the new rows of touched windows, closed windows, survivors, joined rows.
    pub rows: Vec<RecordBatch>,
    /// Where rows replace earlier ones: the keys of all rows, old and new, that the batch touched, in the columns of
    /// [`Stateful::replaces`].
    pub replaced: Option<RecordBatch>,
    /// Rows that go to the dead letters.
    pub aside: Vec<Aside>,
    /// Rows counted, by rule: `late`, `partly_late`, `duplicate`…
    pub counts: BTreeMap<&'static str, u64>,
}

/// A row that is set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// Which input it came by.
    pub input: usize,
    /// Its number among all arriving rows of that input, from 0.
    pub row: usize,
    /// Which step set it aside.
    pub stage: Stage,
    /// Which rule, such as `late`, `null_event_time` or `ahead`.
    pub rule: &'static str,
    /// What was wrong, for a person.
    pub error: String,
}

/// How much a state holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Entries: open windows per key, remembered keys, waiting rows.
    pub rows: u64,
    /// Bytes of memory, estimated.
    pub bytes: u64,
}

/// A transform that remembers. See the module for the contract. Synchronous and CPU-bound.
pub trait Stateful: Send + Sync {
    /// Works one batch into the state. `arrivals` has one element per input; its rows are in source order.
    fn step(&mut self, arrivals: &[Vec<RecordBatch>], time: &EventTime) -> Result<Step>;

    /// Entries that are new, changed or gone since the last call (or since `load`, or the beginning).
    fn changes(&mut self) -> Result<Vec<RecordBatch>>;

    /// All entries; `changes` starts from here.
    fn whole(&mut self) -> Result<Vec<RecordBatch>>;

    /// Takes in what `whole` or `changes` gave, oldest first.
    fn load(&mut self, saved: &[RecordBatch]) -> Result<()>;

    /// Columns of what `whole` and `changes` give. Readable by people: one row an entry.
    fn saved(&self) -> SchemaRef;

    /// The columns of [`Stateful::saved`] that keep the input column `name`, of any input.
    fn holds(&self, name: &str) -> Vec<String> {
        vec![name.to_string()]
    }

    /// Columns of [`Step::rows`].
    fn output(&self) -> SchemaRef;

    /// Columns of [`Step::replaced`]; empty where rows are only ever added.
    fn replaces(&self) -> Vec<String>;

    /// The first and the last watermark at which something would be emitted; `None` = nothing waits for time to pass.
    fn due(&self) -> Option<(Micros, Micros)>;

    /// How much it holds.
    fn size(&self) -> Size;
}

/// Event times of rows: of a timestamp column as it is, of a date the midnight in the timezone. The time of a window is its
/// last instant, a microsecond before its end, as in Spark: the hour before midnight is of the day that it ends.
pub fn event_times(name: &str, column: &ArrayRef, timezone: Tz) -> Result<Vec<Option<Micros>>> {
    let instant = Micros::from(name == WINDOW_END);
    match column.data_type() {
        DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, _) => {
            let times = column.as_primitive::<TimestampMicrosecondType>().iter();
            Ok(times.map(|time| time.map(|time| time.saturating_sub(instant))).collect())
        }
        DataType::Date32 => {
            let micros = |days: i32| {
                let epoch = DateTime::UNIX_EPOCH.date_naive();
                let date: NaiveDate = match days < 0 {
                    true => epoch.checked_sub_days(Days::new(days.unsigned_abs().into()))?,
                    false => epoch.checked_add_days(Days::new(days.unsigned_abs().into()))?,
                };
                Some(midnight(date, timezone).timestamp_micros())
            };
            Ok(column.as_primitive::<Date32Type>().iter().map(|days| days.and_then(micros)).collect())
        }
        other => Err(Error::failed(format!("event times are timestamps or dates, not {other}"))),
    }
}

/// Whether a column can hold event times.
pub fn is_event_time(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, _) | DataType::Date32)
}

/// The newest event time of each partition, of those that are believed. Rows that do not say where they came from count as
/// one partition.
pub fn newest_by_partition(
    rows: &[RecordBatch],
    event_time: &str,
    latest: Micros,
    timezone: Tz,
) -> Result<Vec<(Partition, Micros)>> {
    let mut newest: BTreeMap<(String, i32), Micros> = BTreeMap::new();
    for batch in rows {
        let Some(times) = batch.column_by_name(event_time) else {
            return Err(Error::failed(format!("the rows have no column `{event_time}` to tell the time by")));
        };
        let times = event_times(event_time, times, timezone)?;
        let topics = batch.column_by_name(column::TOPIC).and_then(|topics| topics.as_string_opt::<i32>());
        let partitions =
            batch.column_by_name(column::PARTITION).and_then(|numbers| numbers.as_primitive_opt::<Int32Type>());
        // Rows of one partition stand together.
        let mut current: Option<((&str, i32), Micros)> = None;
        let mut put = |place: (&str, i32), time: Micros| {
            let entry = newest.entry((place.0.to_string(), place.1)).or_insert(time);
            *entry = (*entry).max(time);
        };
        for (row, time) in times.into_iter().enumerate() {
            let Some(time) = time.filter(|time| *time <= latest) else { continue };
            let place = match (topics, partitions) {
                (Some(topics), Some(partitions)) if topics.is_valid(row) && partitions.is_valid(row) => {
                    (topics.value(row), partitions.value(row))
                }
                _ => ("", 0),
            };
            current = match current {
                Some((known, newest)) if known == place => Some((known, newest.max(time))),
                Some((known, newest)) => {
                    put(known, newest);
                    Some((place, time))
                }
                None => Some((place, time)),
            };
        }
        if let Some((place, time)) = current {
            put(place, time);
        }
    }
    Ok(newest.into_iter().map(|((topic, number), time)| (Partition::new(topic, number), time)).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Date32Array, TimestampMicrosecondArray};

    use super::*;

    #[test]
    fn the_time_of_a_window_is_its_last_instant() {
        let midnight = 1_773_792_000_000_000;
        let ends: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![Some(midnight), None]).with_timezone("UTC"));
        assert_eq!(event_times(WINDOW_END, &ends, chrono_tz::UTC).unwrap(), [Some(midnight - 1), None]);
        assert_eq!(event_times("at", &ends, chrono_tz::UTC).unwrap(), [Some(midnight), None]);
    }

    #[test]
    fn the_time_of_a_date_is_its_midnight_where_the_pipeline_is() {
        let dates: ArrayRef = Arc::new(Date32Array::from(vec![Some(0), Some(-1), None]));
        let berlin = event_times("day", &dates, chrono_tz::Europe::Berlin).unwrap();
        assert_eq!(berlin, [Some(-3_600_000_000), Some(-90_000_000_000), None]);
    }

    #[test]
    fn the_newest_time_of_each_partition_is_of_rows_that_are_believed() {
        let rows = RecordBatch::try_from_iter([
            ("_topic", Arc::new(arrow::array::StringArray::from(vec!["t", "t", "t", "t"])) as ArrayRef),
            ("_partition", Arc::new(arrow::array::Int32Array::from(vec![0, 0, 1, 1])) as ArrayRef),
            ("at", Arc::new(TimestampMicrosecondArray::from(vec![Some(5), Some(3), Some(99), None])) as ArrayRef),
        ]);
        let found = newest_by_partition(&[rows.unwrap()], "at", 50, chrono_tz::UTC).unwrap();
        assert_eq!(found, [(Partition::new("t", 0), 5)]);
    }
}
