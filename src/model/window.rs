//! Windows of event time, and the rule for what is late.
//!
//! A window is half-open, `[start, end)`. Tumbling and sliding windows start at multiples of their step since the epoch
//! (Spark's rule); calendar windows start at midnight of the pipeline's timezone, so that a day has 23 or 25 hours where
//! the clocks change; a session starts with its first event and ends `gap` after its last.
//!
//! The watermark is a promise about the past: no more rows at or before it are expected. A window is closed once
//! `end <= watermark`; a row is late once every window that it belongs to is closed.

use std::fmt;

/// Microseconds since the epoch, or a length in microseconds.
pub type Micros = i64;

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
    /// Per key, events that follow each other by less than the gap.
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
