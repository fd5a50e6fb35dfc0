//! Windows of event time, and the rule for what is late.
//!
//! A window is half-open, `[start, end)`. Tumbling and sliding windows start at multiples of their step since the epoch
//! (Spark's rule); calendar windows start at midnight of the pipeline's timezone, so that a day has 23 or 25 hours where
//! the clocks change; a session starts with its first event and ends `gap` after its last. Two events of a key that are
//! exactly `gap` apart are of one session, as in Spark (its sessions merge where one starts at or before another's end).
//!
//! The watermark is a promise about the past: no more rows at or before it are expected. A window is closed once
//! `end <= watermark`; a row is late once every window that it belongs to is closed.

use std::fmt;

use chrono::{DateTime, Datelike, Days, Months, NaiveDate};
use chrono_tz::Tz;

use super::interval::midnight;

/// Microseconds since the epoch, or a length in microseconds.
pub type Micros = i64;

const DAY: Micros = 86_400_000_000;

/// A row in more windows than this costs more than anybody can have meant.
pub const MOST_WINDOWS_A_ROW: i64 = 10_000;

/// How event time is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// Windows of one size, each starting where the one before ends.
    Tumbling {
        /// Length.
        size: Micros,
    },
    /// Windows of one size, a new one every so often.
    Sliding {
        /// Length.
        size: Micros,
        /// From start to start; not longer than `size`.
        every: Micros,
    },
    /// Per key, events that follow each other by the gap or less.
    Session {
        /// Length of silence that ends a session.
        gap: Micros,
    },
    /// Days, weeks (from Monday) or months in a timezone.
    Calendar {
        /// Which.
        unit: CalendarUnit,
        /// Where.
        timezone: chrono_tz::Tz,
    },
}

/// Stretches of the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CalendarUnit {
    /// From midnight to midnight.
    Day,
    /// From Monday to Monday (ISO 8601).
    Week,
    /// From the first to the first.
    Month,
}

/// A length of time as it is written in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Length(pub Micros);

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(Micros, &str); 5] =
            [(86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "m"), (1_000_000, "s"), (1_000, "ms")];
        let fits = UNITS.iter().find(|(unit, _)| self.0 % unit == 0 && self.0 != 0);
        match fits {
            Some((unit, name)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}us", self.0),
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Window::Tumbling { size } => write!(f, "tumbling {}", Length(*size)),
            Window::Sliding { size, every } => write!(f, "sliding {} every {}", Length(*size), Length(*every)),
            Window::Session { gap } => write!(f, "session {}", Length(*gap)),
            Window::Calendar { unit, timezone } => write!(f, "calendar {unit:?} in {timezone}"),
        }
    }
}

/// What time it is for one batch of a table that keeps state. All of it follows from the plan and the rows, never from a
/// clock, so that a replay sees the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventTime {
    /// The watermark that the rows of the batch are judged by, fixed in the plan; `None` = nothing is late yet.
    pub watermark: Option<Micros>,
    /// The watermark after the rows of the batch, never lower: what it passes is closed once the rows are in.
    pub next: Option<Micros>,
    /// Rows with an event time after this are not believed: the batch's time and `max_ahead`.
    pub latest: Micros,
}

/// What becomes of late rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// Counted and left out.
    Drop,
    /// Counted and set aside in the dead-letter table.
    Quarantine,
    /// Counted and worked in, as long as the window closed no longer ago than `keep`; after that, as `Quarantine`.
    Update {
        /// How long the state of a closed window is kept, in event time.
        keep: Micros,
    },
}

/// When rows of windows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emit {
    /// The rows of every window that a batch touched, in place of those before.
    Update,
    /// Once, when the window is closed.
    Final,
    /// As `Update`, and nothing is ever closed.
    Complete,
}

/// Why a window cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// Which length: `size`, `every` or `gap`.
    pub field: &'static str,
    /// What is wrong; lowercase, no full stop.
    pub message: String,
    /// What to write instead.
    pub mend: String,
}

impl Window {
    /// What is wrong with its lengths.
    pub fn misfit(&self) -> Option<Misfit> {
        let misfit = |field, message: &str, mend: String| Some(Misfit { field, message: message.to_string(), mend });
        match *self {
            Window::Tumbling { size } if size <= 0 => {
                misfit("size", "a window must be longer than nothing", "write a length, such as `1h`".into())
            }
            Window::Tumbling { size } => uneven("size", size),
            Window::Sliding { size, .. } if size <= 0 => {
                misfit("size", "a window must be longer than nothing", "write a length, such as `1h`".into())
            }
            Window::Sliding { every, .. } if every <= 0 => misfit(
                "every",
                "windows must be some time apart",
                "write a length from start to start, such as `5m`".into(),
            ),
            Window::Sliding { size, every } if every > size => misfit(
                "every",
                "between two windows there is time that belongs to none: its rows would vanish",
                "write an `every` that is not longer than the window; `tumbling` windows start where the one before ends".into(),
            ),
            Window::Sliding { size, every } if (size - 1) / every >= MOST_WINDOWS_A_ROW => misfit(
                "every",
                &format!("each row would be in {} windows", (size - 1) / every + 1),
                format!("write a longer `every`; {MOST_WINDOWS_A_ROW} windows a row is the most"),
            ),
            Window::Sliding { every, .. } => uneven("every", every),
            Window::Session { gap } if gap <= 0 => {
                misfit("gap", "a session must end after some silence", "write a length, such as `30m`".into())
            }
            Window::Session { .. } | Window::Calendar { .. } => None,
        }
    }

    /// Puts the starts of the windows that hold a time into `starts`, in order. For a session it is the event alone.
    pub fn starts(&self, at: Micros, starts: &mut Vec<Micros>) {
        starts.clear();
        match *self {
            Window::Tumbling { size } => starts.push(floor(at, size)),
            Window::Sliding { size, every } => {
                let last = floor(at, every);
                let more = (i128::from(size) - 1 - (i128::from(at) - i128::from(last))).max(0) / i128::from(every);
                let back = |steps: i128| {
                    let start = i128::from(last) - steps * i128::from(every);
                    Micros::try_from(start).ok()
                };
                starts.extend((0..=more).rev().filter_map(back));
            }
            Window::Session { .. } => starts.push(at),
            Window::Calendar { unit, timezone } => starts.push(stretch(at, unit, timezone).0),
        }
    }

    /// The end of the window that starts at `start`; of a session with one event, at `start`.
    pub fn end(&self, start: Micros) -> Micros {
        match *self {
            Window::Tumbling { size } | Window::Sliding { size, .. } => start.saturating_add(size),
            Window::Session { gap } => start.saturating_add(gap),
            Window::Calendar { unit, timezone } => stretch(start, unit, timezone).1,
        }
    }

    /// The longest stretches that no window divides: every window is a row of them. `None` = each window stands alone.
    pub fn pane(&self) -> Option<Micros> {
        match *self {
            Window::Sliding { size, every } => Some(common_measure(size, every)),
            _ => None,
        }
    }
}

/// Windows start at the same times of every day, or at midnights (of UTC).
fn uneven(field: &'static str, step: Micros) -> Option<Misfit> {
    let (message, mend) = match step < DAY {
        true if DAY % step != 0 => (
            "a day is not a whole number of these: windows would start at other times each day",
            "write a length that divides 24 hours, such as `5m`, `15m`, `1h`, `6h`",
        ),
        false if step % DAY != 0 => (
            "longer than a day, and not whole days: windows would start at other times each day",
            "write whole days, such as `48h` or `7d`, or a `calendar` window",
        ),
        _ => return None,
    };
    Some(Misfit { field, message: message.to_string(), mend: mend.to_string() })
}

/// The multiple of `step` at or before `at`, also before the epoch.
pub fn floor(at: Micros, step: Micros) -> Micros {
    at.saturating_sub(at.rem_euclid(step.max(1)))
}

fn common_measure(a: Micros, b: Micros) -> Micros {
    match b {
        0 => a.max(1),
        _ => common_measure(b, a % b),
    }
}

/// The day, week or month that holds a time. Times outside of the years that dates can say belong to the first or the last.
fn stretch(at: Micros, unit: CalendarUnit, timezone: Tz) -> (Micros, Micros) {
    let instant = DateTime::from_timestamp_micros(at.clamp(-MOST_DISTANT, MOST_DISTANT)).unwrap_or_default();
    let mut day = instant.with_timezone(&timezone).date_naive();
    // Where clocks go back over midnight a date comes twice: the first midnight parts the days.
    if midnight(day, timezone) > instant {
        day = day.pred_opt().unwrap_or(day);
    } else {
        while let Some(next) = day.succ_opt().filter(|next| midnight(*next, timezone) <= instant) {
            day = next;
        }
    }
    let first = first_day(day, unit);
    let next = match unit {
        CalendarUnit::Day => first.checked_add_days(Days::new(1)),
        CalendarUnit::Week => first.checked_add_days(Days::new(7)),
        CalendarUnit::Month => first.checked_add_months(Months::new(1)),
    };
    let micros = |date: NaiveDate| midnight(date, timezone).timestamp_micros();
    (micros(first), micros(next.unwrap_or(first)))
}

/// A hundred thousand years each way.
const MOST_DISTANT: Micros = 100_000 * 365 * DAY;

fn first_day(day: NaiveDate, unit: CalendarUnit) -> NaiveDate {
    let back = match unit {
        CalendarUnit::Day => 0,
        CalendarUnit::Week => day.weekday().num_days_from_monday(),
        CalendarUnit::Month => day.day0(),
    };
    day.checked_sub_days(Days::new(u64::from(back))).unwrap_or(day)
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
