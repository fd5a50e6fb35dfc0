//! What windows mean, by brute force: every row that was ever taken is kept, and each window is worked out from its rows
//! each time. Shares no code with the engine but the words of the configuration.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Datelike, Days, Months, NaiveTime, TimeZone};

use super::super::Kind;
use crate::model::window::{CalendarUnit, Emit, EventTime, Late, Window};

/// A value of any type; dates, times and booleans are `Int`, decimals their digits.
#[derive(Debug, Clone, PartialEq, PartialOrd)]
pub enum Cell {
    Null,
    Int(i128),
    Float(f64),
    Text(String),
}

/// A part of a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Null,
    Int(i64),
    Text(String),
}

#[derive(Debug, Clone)]
pub struct Row {
    pub key: Vec<Part>,
    pub time: Option<i64>,
    pub arguments: Vec<Cell>,
}

/// A function: `decimals` is the scale of a decimal argument.
#[derive(Debug, Clone)]
pub struct Call {
    pub kind: Kind,
    pub argument: usize,
    pub decimals: Option<i32>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    Exactly(Cell),
    Near { value: f64, error: f64 },
}

impl Expected {
    pub fn fits(&self, found: &Cell) -> bool {
        match (self, found) {
            (Expected::Exactly(Cell::Float(a)), Cell::Float(b)) => a == b || (a.is_nan() && b.is_nan()),
            (Expected::Exactly(cell), found) => cell == found,
            (Expected::Near { value, .. }, Cell::Float(found)) if value.is_nan() => found.is_nan(),
            (Expected::Near { value, error }, Cell::Float(found)) => (value - found).abs() <= *error,
            _ => false,
        }
    }
}

/// Start and key of a window.
type Place = (i64, Vec<Part>);
/// Windows, with their ends and rows.
type Held = BTreeMap<Place, (i64, Vec<Row>)>;

#[derive(Debug, Clone)]
pub struct Line {
    pub start: i64,
    pub end: i64,
    pub key: Vec<Part>,
    pub values: Vec<Expected>,
}

#[derive(Debug, Default)]
pub struct Outcome {
    pub lines: Vec<Line>,
    pub replaced: BTreeSet<Place>,
    pub aside: Vec<(usize, &'static str)>,
    pub counts: BTreeMap<&'static str, u64>,
}

pub struct Oracle {
    pub window: Option<Window>,
    pub emit: Emit,
    pub late: Late,
    pub calls: Vec<Call>,
    /// Per window, the rows that it took, in order of arrival. For sessions this is made anew from `events`.
    windows: Held,
    events: Vec<Row>,
}

impl Oracle {
    pub fn new(window: Option<Window>, emit: Emit, late: Late, calls: Vec<Call>) -> Oracle {
        Oracle { window, emit, late, calls, windows: BTreeMap::new(), events: Vec::new() }
    }

    pub fn open(&self) -> usize {
        self.windows.len()
    }

    pub fn ends(&self) -> Option<(i64, i64)> {
        let ends: Vec<i64> = self.windows.values().map(|(end, _)| *end).collect();
        Some((*ends.iter().min()?, *ends.iter().max()?))
    }

    pub fn step(&mut self, rows: &[Row], time: &EventTime) -> Outcome {
        let mut outcome = Outcome::default();
        let ends_ever = self.window.is_some() && self.emit != Emit::Complete;
        let watermark = if ends_ever { time.watermark } else { None };
        let grace = if let Late::Update { keep } = self.late { keep } else { 0 };
        self.close(watermark, &mut outcome);
        let before: BTreeSet<Place> = self.windows.keys().cloned().collect();
        let mut hit: BTreeSet<Place> = BTreeSet::new();
        let mut new_events = Vec::new();
        for (number, row) in rows.iter().enumerate() {
            let Some(at) = row.time else {
                outcome.aside.push((number, "null_event_time"));
                continue;
            };
            if at > time.latest {
                outcome.aside.push((number, "ahead"));
                continue;
            }
            let holding = holding(self.window, at);
            let closed = holding.iter().filter(|(_, end)| watermark.is_some_and(|mark| *end <= mark)).count();
            let taking: Vec<(i64, i64)> = holding
                .iter()
                .copied()
                .filter(|(_, end)| watermark.is_none_or(|mark| end - mark + grace > 0))
                .collect();
            let late = closed == holding.len();
            if late {
                *outcome.counts.entry("late").or_default() += 1;
                if taking.is_empty() && self.late != Late::Drop {
                    outcome.aside.push((number, "late"));
                }
            } else if taking.len() < holding.len() {
                *outcome.counts.entry("partly_late").or_default() += 1;
            }
            if matches!(self.window, Some(Window::Session { .. })) {
                if !taking.is_empty() {
                    self.events.push(row.clone());
                    new_events.push((row.key.clone(), at));
                }
            } else {
                for (start, end) in taking {
                    let place = (start, row.key.clone());
                    hit.insert(place.clone());
                    self.windows.entry(place).or_insert((end, Vec::new())).1.push(row.clone());
                }
            }
        }
        if let Some(Window::Session { gap }) = self.window {
            self.windows = sessions(&self.events, gap);
            for ((start, key), (end, _)) in &self.windows {
                if new_events.iter().any(|(other, at)| other == key && start <= at && *at <= end - gap) {
                    hit.insert((*start, key.clone()));
                }
            }
            hit.extend(before.into_iter().filter(|place| !self.windows.contains_key(place)));
        }
        if self.emit != Emit::Final {
            outcome.lines = self.lines(|place, _| hit.contains(place));
            outcome.replaced = hit;
        }
        self.close(time.next, &mut outcome);
        outcome
    }

    /// Windows that the watermark has passed are over.
    fn close(&mut self, watermark: Option<i64>, outcome: &mut Outcome) {
        let ends_ever = self.window.is_some() && self.emit != Emit::Complete;
        let grace = if let Late::Update { keep } = self.late { keep } else { 0 };
        let Some(watermark) = watermark.filter(|_| ends_ever) else { return };
        if self.emit == Emit::Final {
            outcome.lines.extend(self.lines(|_, end| end <= watermark));
        }
        self.windows.retain(|_, (end, _)| *end + grace > watermark);
        if matches!(self.window, Some(Window::Session { .. })) {
            self.events.retain(|event| {
                let at = event.time.unwrap();
                self.windows.iter().any(|((start, key), (end, _))| *key == event.key && *start <= at && at < *end)
            });
        }
    }

    fn lines(&self, wanted: impl Fn(&Place, i64) -> bool) -> Vec<Line> {
        let mut lines = Vec::new();
        for (place, (end, rows)) in self.windows.iter().filter(|(place, (end, _))| wanted(place, *end)) {
            let values = self.calls.iter().map(|call| value(call, rows)).collect();
            lines.push(Line { start: place.0, end: *end, key: place.1.clone(), values });
        }
        lines
    }
}

/// All windows that hold a time, by trying.
fn holding(window: Option<Window>, at: i64) -> Vec<(i64, i64)> {
    let starts = |size: i64, every: i64| {
        let candidates = (at - size + 1..=at).filter(|start| start.rem_euclid(every) == 0);
        candidates.map(|start| (start, start + size)).collect()
    };
    match window {
        None => vec![(0, i64::MAX / 2)],
        Some(Window::Tumbling { size }) => starts(size, size),
        Some(Window::Sliding { size, every }) => starts(size, every),
        Some(Window::Session { gap }) => vec![(at, at + gap)],
        Some(Window::Calendar { unit, timezone }) => {
            let date = DateTime::from_timestamp_micros(at).unwrap().with_timezone(&timezone).date_naive();
            let (from, to) = match unit {
                CalendarUnit::Day => (date, date + Days::new(1)),
                CalendarUnit::Week => {
                    let monday = date.week(chrono::Weekday::Mon).first_day();
                    (monday, monday + Days::new(7))
                }
                CalendarUnit::Month => {
                    let first = date.with_day(1).unwrap();
                    (first, first + Months::new(1))
                }
            };
            let micros = |date: chrono::NaiveDate| {
                timezone.from_local_datetime(&date.and_time(NaiveTime::MIN)).unwrap().timestamp_micros()
            };
            vec![(micros(from), micros(to))]
        }
    }
}

fn sessions(events: &[Row], gap: i64) -> Held {
    let mut found = BTreeMap::new();
    let keys: BTreeSet<&Vec<Part>> = events.iter().map(|event| &event.key).collect();
    for key in keys {
        let mut times: Vec<i64> =
            events.iter().filter(|event| event.key == *key).filter_map(|event| event.time).collect();
        times.sort_unstable();
        let mut start = times[0];
        for (number, time) in times.iter().enumerate() {
            if times.get(number + 1).is_none_or(|next| next - time > gap) {
                let within =
                    |event: &&Row| event.key == *key && event.time.is_some_and(|at| start <= at && at <= *time);
                let rows = events.iter().filter(within).cloned().collect();
                found.insert((start, key.clone()), (time + gap, rows));
                start = times.get(number + 1).copied().unwrap_or_default();
            }
        }
    }
    found
}

/// A function over rows in order of arrival.
fn value(call: &Call, rows: &[Row]) -> Expected {
    let cell = |row: &Row| row.arguments[call.argument].clone();
    let seen: Vec<(i64, Cell)> =
        rows.iter().map(|row| (row.time.unwrap(), cell(row))).filter(|(_, cell)| *cell != Cell::Null).collect();
    let distinct = || {
        let name = |cell: &Cell| match cell {
            Cell::Float(float) if *float == 0.0 => "zero".to_string(),
            other => format!("{other:?}"),
        };
        seen.iter().map(|(_, cell)| name(cell)).collect::<BTreeSet<_>>().len()
    };
    let number = |cell: &Cell| match cell {
        Cell::Int(int) => *int as f64 / 10f64.powi(call.decimals.unwrap_or(0)),
        Cell::Float(float) => *float,
        _ => unreachable!("not a number"),
    };
    let floats = seen.iter().any(|(_, cell)| matches!(cell, Cell::Float(_)));
    let whole: i128 = seen.iter().map(|(_, cell)| if let Cell::Int(int) = cell { *int } else { 0 }).sum();
    let count = |count: usize| Expected::Exactly(Cell::Int(count as i128));
    match call.kind {
        Kind::CountAll => return count(rows.len()),
        Kind::Count => return count(seen.len()),
        Kind::CountDistinct | Kind::ApproxCountDistinct => return count(distinct()),
        _ if seen.is_empty() => return Expected::Exactly(Cell::Null),
        _ => {}
    }
    match call.kind {
        Kind::Sum | Kind::Avg if floats => {
            // The test's doubles are quarters, so that their sum can be had exactly.
            let quarters: Option<i128> = seen
                .iter()
                .map(|(_, cell)| Some(number(cell)).filter(|float| !float.is_nan()).map(|float| (float * 4.0) as i128))
                .sum();
            let sum = quarters.map_or(f64::NAN, |quarters| quarters as f64 / 4.0);
            let value = if call.kind == Kind::Avg { sum / seen.len() as f64 } else { sum };
            Expected::Near { value, error: value.abs() * 1e-14 }
        }
        Kind::Sum => Expected::Exactly(Cell::Int(whole)),
        Kind::Avg if call.decimals.is_some() => {
            let (twice, count) = (whole.abs() * 20_000, seen.len() as i128);
            Expected::Exactly(Cell::Int(whole.signum() * ((twice + count) / (2 * count))))
        }
        Kind::Avg => {
            let value = whole as f64 / seen.len() as f64;
            Expected::Near { value, error: value.abs() * 1e-15 }
        }
        Kind::Min | Kind::Max => {
            let order = |a: &Cell, b: &Cell| match (a, b) {
                (Cell::Float(a), Cell::Float(b)) if a.is_nan() || b.is_nan() => a.is_nan().cmp(&b.is_nan()),
                _ => a.partial_cmp(b).expect("one type"),
            };
            let mut values: Vec<Cell> = seen.into_iter().map(|(_, cell)| cell).collect();
            values.sort_by(order);
            let picked = if call.kind == Kind::Min { values.first() } else { values.last() };
            Expected::Exactly(picked.expect("there is one").clone())
        }
        Kind::First => {
            let earliest = seen.iter().map(|(time, _)| *time).min().expect("there is one");
            Expected::Exactly(seen.into_iter().find(|(time, _)| *time == earliest).expect("it is there").1)
        }
        Kind::Last => {
            let latest = seen.iter().map(|(time, _)| *time).max().expect("there is one");
            Expected::Exactly(seen.into_iter().rev().find(|(time, _)| *time == latest).expect("it is there").1)
        }
        Kind::ApproxQuantile(share) => {
            let mut values: Vec<f64> =
                seen.iter().map(|(_, cell)| number(cell)).filter(|float| !float.is_nan()).collect();
            values.sort_by(f64::total_cmp);
            match values.len() {
                0 => Expected::Exactly(Cell::Null),
                count => {
                    let value = values[(share * (count - 1) as f64).floor() as usize];
                    Expected::Near { value, error: value.abs() * 0.010_000_1 }
                }
            }
        }
        Kind::CountAll | Kind::Count | Kind::CountDistinct | Kind::ApproxCountDistinct => unreachable!("above"),
    }
}
