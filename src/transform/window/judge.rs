//! Which rows count: those that have a time, are believed, and are not late.

use chrono::{DateTime, SecondsFormat};

use super::Aggregation;
use super::arrivals::Arrivals;
use crate::model::window::{Emit, EventTime, Late, Micros};
use crate::transform::Stage;
use crate::transform::stateful::{Aside, Step};

/// The rules of one batch.
pub(super) struct Judge {
    /// `None` = nothing is closed.
    watermark: Option<Micros>,
    keep: Micros,
    late: Late,
    latest: Micros,
}

/// Whether windows are ever closed.
pub(super) fn closes(aggregation: &Aggregation) -> bool {
    aggregation.window.is_some() && aggregation.emit != Emit::Complete
}

/// How long a closed window takes late rows.
pub(super) fn keep(late: Late) -> Micros {
    match late {
        Late::Update { keep } => keep.max(0),
        Late::Drop | Late::Quarantine => 0,
    }
}

impl Judge {
    pub(super) fn new(aggregation: &Aggregation, time: &EventTime) -> Judge {
        let watermark = time.watermark.filter(|_| closes(aggregation));
        Judge { watermark, keep: keep(aggregation.late), late: aggregation.late, latest: time.latest }
    }

    /// Whether a window with this end is still open.
    pub(super) fn open(&self, end: Micros) -> bool {
        self.watermark.is_none_or(|watermark| end > watermark)
    }

    /// Whether a window with this end still takes rows.
    pub(super) fn takes(&self, end: Micros) -> bool {
        self.watermark.is_none_or(|watermark| end.saturating_add(self.keep) > watermark)
    }

    /// The rows that have a time and are believed, with it; the others are set aside.
    pub(super) fn believed(&self, rows: &Arrivals, step: &mut Step) -> Vec<(usize, Micros)> {
        let mut believed = Vec::with_capacity(rows.len());
        for row in 0..rows.len() {
            match rows.time(row) {
                None => step.aside.push(aside(row, "null_event_time", "the event time is null".to_string())),
                Some(time) if time > self.latest => {
                    let error = format!("the event time {} is too far ahead: after {}", show(time), show(self.latest));
                    step.aside.push(aside(row, "ahead", error));
                }
                Some(time) => believed.push((row, time)),
            }
        }
        believed
    }

    /// A row that no window takes; the last of those that hold it ended at `end`.
    pub(super) fn refuse(&self, row: usize, end: Micros, step: &mut Step) {
        *step.counts.entry("late").or_default() += 1;
        if self.late != Late::Drop {
            let watermark = self.watermark.unwrap_or(end);
            let error = format!("late: its window ended at {}, and the watermark is {}", show(end), show(watermark));
            step.aside.push(aside(row, "late", error));
        }
    }
}

fn aside(row: usize, rule: &'static str, error: String) -> Aside {
    Aside { input: 0, row, stage: Stage::Late, rule, error }
}

/// A time for people.
fn show(time: Micros) -> String {
    match DateTime::from_timestamp_micros(time) {
        Some(time) => time.to_rfc3339_opts(SecondsFormat::AutoSi, true),
        None => format!("{time} µs"),
    }
}
