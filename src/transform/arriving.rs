//! Rows as they arrive at deduplication and joins: whole, with their event time in a column of their own. Which of them
//! count, and what is said of the others.

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{Field, FieldRef, Int32Type};
use chrono::{DateTime, SecondsFormat};
use chrono_tz::Tz;

use super::Stage;
use super::stateful::{Aside, Step, event_times};
use crate::error::{Error, Result};
use crate::model::window::{EventTime, Late, Length, Micros};

/// What the columns of saved entries mean. A release that means something else by them counts on.
pub(super) const FORMAT: i32 = 1;
/// The column of [`FORMAT`].
pub(super) const FORMAT_COLUMN: &str = "_format";
/// The column that is true where the row is no entry: entries whose time is up by its watermark are gone.
pub(super) const GONE: &str = "_gone";

/// The rules of one batch, for one input.
pub(super) struct Judge {
    input: usize,
    watermark: Option<Micros>,
    /// How far behind the watermark a row may be.
    reach: Micros,
    late: Late,
    latest: Micros,
}

impl Judge {
    pub(super) fn new(input: usize, reach: Micros, late: Late, time: &EventTime) -> Judge {
        Judge { input, watermark: time.watermark, reach, late, latest: time.latest }
    }

    /// The event time of a row that is believed; without one, the row is set aside.
    pub(super) fn believed(&self, row: usize, time: Option<Micros>, step: &mut Step) -> Option<Micros> {
        match time {
            None => self.set_aside(row, Stage::Late, "null_event_time", "the event time is null".into(), step),
            Some(time) if time > self.latest => {
                let error = format!("the event time {} is too far ahead: after {}", show(time), show(self.latest));
                self.set_aside(row, Stage::Late, "ahead", error, step);
            }
            Some(_) => {}
        }
        time.filter(|time| *time <= self.latest)
    }

    /// Whether a row comes in time; if not, it is counted, and set aside unless late rows are dropped.
    pub(super) fn in_time(&self, row: usize, time: Micros, step: &mut Step) -> bool {
        let Some(watermark) = self.watermark.filter(|watermark| time.saturating_add(self.reach) <= *watermark) else {
            return true;
        };
        *step.counts.entry("late").or_default() += 1;
        if self.late != Late::Drop {
            let behind = match self.reach {
                0 => String::from("is not after"),
                reach => format!("is {} or more behind", Length(reach)),
            };
            let error = format!("late: the event time {} {behind} the watermark {}", show(time), show(watermark));
            self.set_aside(row, Stage::Late, "late", error, step);
        }
        false
    }

    pub(super) fn set_aside(&self, row: usize, stage: Stage, rule: &'static str, error: String, step: &mut Step) {
        step.aside.push(Aside { input: self.input, row, stage, rule, error });
    }
}

/// A time for people.
fn show(time: Micros) -> String {
    match DateTime::from_timestamp_micros(time) {
        Some(time) => time.to_rfc3339_opts(SecondsFormat::AutoSi, true),
        None => format!("{time} µs"),
    }
}

/// Event times of rows.
pub(super) fn times_of(rows: &RecordBatch, event_time: &str, timezone: Tz) -> Result<Vec<Option<Micros>>> {
    let column = rows.column_by_name(event_time);
    let missing = || Error::failed(format!("rows arrive without their event time `{event_time}`"));
    event_times(event_time, column.ok_or_else(missing)?, timezone)
}

/// A column of arriving rows, of the type that it was compiled with.
pub(super) fn column(rows: &RecordBatch, field: &Field) -> Result<ArrayRef> {
    let fits = |column: &&ArrayRef| column.data_type() == field.data_type();
    rows.column_by_name(field.name()).filter(fits).cloned().ok_or_else(|| {
        Error::failed(format!("rows arrive without a column `{}` of type {}", field.name(), field.data_type()))
    })
}

/// Saved columns in the order of `fields`, without which nobody can tell what the entries are. They have the format that
/// this release writes.
pub(super) fn saved_columns<'a>(
    what: &str,
    fields: impl Iterator<Item = &'a FieldRef>,
    saved: &RecordBatch,
) -> Result<Vec<ArrayRef>> {
    let formats = saved.column_by_name(FORMAT_COLUMN).and_then(|column| column.as_primitive_opt::<Int32Type>());
    if !formats.is_some_and(|formats| formats.iter().all(|format| format == Some(FORMAT))) {
        return Err(Error::config(format!("the saved state of {what} has another format than {FORMAT}"))
            .help("run the release of tidegate that wrote it, or start the table anew"));
    }
    let column = |field: &FieldRef| {
        let fits = |column: &&ArrayRef| column.data_type() == field.data_type();
        saved.column_by_name(field.name()).filter(fits).cloned().ok_or_else(|| {
            let text =
                format!("the saved state of {what} has no column `{}` of type {}", field.name(), field.data_type());
            Error::config(text)
                .help("nothing was read or written; cast the column back to the type it had, in the table before")
                .help("or give the table a new name: it starts with the rows to come, and remembers nothing of earlier ones")
        })
    };
    fields.map(column).collect()
}
