//! What the documents say of event time, worked out row by row from the lines of the input and from the plans (offset
//! ranges and batch times). Shares no code with tidegate, and does not read the watermarks of the plans: it tells them.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Datelike, NaiveDate};

pub const SECOND: i64 = 1_000_000;
pub const MINUTE: i64 = 60 * SECOND;
pub const HOUR: i64 = 60 * MINUTE;
pub const DAY: i64 = 24 * HOUR;

/// One line of a file.
#[derive(Debug, Clone, Default)]
pub struct Event {
    pub k: Option<String>,
    pub s: Option<String>,
    pub v: Option<i64>,
    /// `amount`, in hundredths.
    pub cents: Option<i64>,
    pub t: Option<i64>,
}

/// The files, by name, line by line; `None` = a line that is no record.
pub type Files = BTreeMap<String, Vec<Option<Event>>>;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cut {
    None,
    Tumbling(i64),
    Sliding(i64, i64),
    Session(i64),
    Day,
    Week,
    Month,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Emit {
    Update,
    Final,
    Complete,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Late {
    Drop,
    Quarantine,
    Update(i64),
}

/// One aggregate table.
#[derive(Debug, Clone)]
pub struct Rules {
    pub name: String,
    /// Reads the source, not bronze.
    pub from_source: bool,
    /// `sql` keeps only rows with `v >= 0`.
    pub filtered: bool,
    pub cut: Cut,
    pub emit: Emit,
    pub late: Late,
    pub delay: i64,
    pub idle: i64,
    pub idle_after: Option<i64>,
    pub max_ahead: i64,
    /// Of `k` and `s`.
    pub by: Vec<&'static str>,
}

/// What a plan says, but for its watermarks.
#[derive(Debug, Clone)]
pub struct Plan {
    pub batch: i64,
    pub time: i64,
    /// First line and the one after the last, by file.
    pub ranges: BTreeMap<String, (u64, u64)>,
}

/// A row that was set aside: rule, file, line.
pub type Letter = (&'static str, String, u64);

type Key = Vec<Option<String>>;

/// An event that counts, with its place among all arrivals.
#[derive(Debug, Clone)]
struct Taken {
    event: Event,
    time: i64,
    arrival: usize,
}

#[derive(Debug, Clone)]
struct Pane {
    key: Key,
    start: i64,
    end: i64,
    rows: Vec<Taken>,
}

/// What a table must hold.
#[derive(Debug, Clone)]
pub struct Table {
    pub rules: Rules,
    clocks: BTreeMap<String, (i64, i64)>,
    watermark: Option<i64>,
    /// Windows that can still change the table.
    open: Vec<Pane>,
    /// Rows of windows that nothing changes any more.
    done: Vec<String>,
    arrivals: usize,
    pub letters: Vec<Letter>,
    /// `late` and `partly_late` of every batch.
    pub counts: BTreeMap<i64, (u64, u64)>,
}

impl Table {
    pub fn new(rules: Rules) -> Table {
        Table {
            rules,
            clocks: BTreeMap::new(),
            watermark: None,
            open: Vec::new(),
            done: Vec::new(),
            arrivals: 0,
            letters: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    fn ever_closes(&self) -> bool {
        self.rules.cut != Cut::None && self.rules.emit != Emit::Complete
    }

    fn keep(&self) -> i64 {
        match self.rules.late {
            Late::Update(keep) => keep,
            Late::Drop | Late::Quarantine => 0,
        }
    }

    /// The slowest clock less the delay, over those that are not idle; all idle: over those seen last.
    fn slowest(&self, now: i64) -> Option<i64> {
        let last = self.clocks.values().map(|(_, at)| *at).max()?;
        let awake: Vec<i64> = match now - last < self.rules.idle {
            true => {
                self.clocks.values().filter(|(_, at)| now - at < self.rules.idle).map(|(newest, _)| *newest).collect()
            }
            false => self.clocks.values().filter(|(_, at)| *at == last).map(|(newest, _)| *newest).collect(),
        };
        awake.into_iter().min().map(|newest| newest - self.rules.delay)
    }

    /// The watermark of a batch that is planned at `now`.
    pub fn in_force(&self, now: i64, flush: bool, closings: bool) -> Option<i64> {
        let flowed = self.watermark.max(self.slowest(now));
        let quiet_since = self.clocks.values().map(|(_, at)| *at).max();
        let is_quiet = self.rules.idle_after.zip(quiet_since).is_some_and(|(idle, last)| now - last >= idle);
        let closes = closings && self.rules.emit == Emit::Final && (is_quiet || flush);
        flowed.max(self.open.iter().map(|pane| pane.end).max().filter(|_| closes))
    }

    /// Whether a batch at `now` would write something without any rows.
    pub fn is_due(&self, now: i64, flush: bool) -> bool {
        let watermark = self.in_force(now, flush, true);
        let closes = |pane: &Pane| watermark.is_some_and(|watermark| pane.end <= watermark);
        self.rules.emit == Emit::Final && self.open.iter().any(closes)
    }

    /// Works a batch in. `closings` = what was closed by hand or for want of rows is closed.
    pub fn work(&mut self, plan: &Plan, files: &Files, flush: bool, closings: bool) {
        // What comes with rows is not closed by hand: they would be late.
        let in_force = self.in_force(plan.time, flush, closings && plan.ranges.is_empty());
        self.close(in_force);
        let latest = plan.time + self.rules.max_ahead;
        let judged = in_force.filter(|_| self.ever_closes());
        let (mut late, mut partly) = (0, 0);
        for (file, (from, until)) in &plan.ranges {
            for line in *from..*until {
                let Some(event) = &files[file][line as usize] else { continue };
                if let Some(time) = event.t.filter(|time| *time <= latest) {
                    let clock = self.clocks.entry(file.clone()).or_insert((time, plan.time));
                    *clock = (clock.0.max(time), plan.time);
                }
                if self.rules.filtered && event.v.is_none_or(|v| v < 0) {
                    continue;
                }
                self.arrivals += 1;
                let letter = |rule| (rule, file.clone(), line);
                let Some(time) = event.t else {
                    self.letters.push(letter("null_event_time"));
                    continue;
                };
                if time > latest {
                    self.letters.push(letter("ahead"));
                    continue;
                }
                let windows = windows(self.rules.cut, time);
                let is_open = |end: i64| judged.is_none_or(|watermark| end > watermark);
                let is_kept = |end: i64| judged.is_none_or(|watermark| end + self.keep() > watermark);
                let takers: Vec<(i64, i64)> = windows.iter().copied().filter(|(_, end)| is_kept(*end)).collect();
                let is_late = !windows.iter().any(|(_, end)| is_open(*end));
                late += u64::from(is_late);
                partly += u64::from(!is_late && takers.len() < windows.len());
                if takers.is_empty() && self.rules.late != Late::Drop {
                    self.letters.push(letter("late"));
                }
                let taken = Taken { event: event.clone(), time, arrival: self.arrivals };
                for (start, end) in takers {
                    self.take(&taken, start, end);
                }
            }
        }
        self.counts.insert(plan.batch, (late, partly));
        self.watermark = in_force.max(self.slowest(plan.time));
        self.close(self.watermark);
    }

    fn take(&mut self, taken: &Taken, start: i64, end: i64) {
        let key: Key = self.rules.by.iter().map(|by| text(&taken.event, by)).collect();
        let is_session = matches!(self.rules.cut, Cut::Session(_));
        let meets = |pane: &Pane| match is_session {
            true => pane.start <= end && start <= pane.end,
            false => pane.start == start,
        };
        let (met, others) = self.open.drain(..).partition(|pane| pane.key == key && meets(pane));
        self.open = others;
        let met: Vec<Pane> = met;
        let mut pane = Pane { key, start, end, rows: vec![taken.clone()] };
        for other in met {
            pane.start = pane.start.min(other.start);
            pane.end = pane.end.max(other.end);
            pane.rows.extend(other.rows);
        }
        self.open.push(pane);
    }

    /// Windows that ended and are kept no longer never change again.
    fn close(&mut self, watermark: Option<i64>) {
        let Some(watermark) = watermark.filter(|_| self.ever_closes()) else { return };
        let keep = self.keep();
        let (over, open): (Vec<Pane>, Vec<Pane>) = self.open.drain(..).partition(|pane| pane.end + keep <= watermark);
        self.open = open;
        self.done.extend(over.iter().map(|pane| self.rules.line(pane)));
    }

    /// The rows of the table, as `support::lake::lines` writes them.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = self.done.clone();
        if self.rules.emit != Emit::Final {
            lines.extend(self.open.iter().map(|pane| self.rules.line(pane)));
        }
        lines.sort_unstable();
        lines
    }

    /// How many windows are waiting for their end.
    pub fn waiting(&self) -> usize {
        self.open.len()
    }
}

fn text(event: &Event, column: &str) -> Option<String> {
    match column {
        "k" => event.k.clone(),
        _ => event.s.clone(),
    }
}

/// The measures of every table, by name.
pub const MEASURES: &[(&str, &str)] = &[
    ("n", "count(*)"),
    ("filled", "count(v)"),
    ("total", "sum(v)"),
    ("lowest", "min(v)"),
    ("highest", "max(s)"),
    ("mean", "avg(v)"),
    ("kinds", "count(distinct s)"),
    ("opening", "first(v)"),
    ("closing", "last(v)"),
    ("money", "sum(amount)"),
    ("fair", "avg(amount)"),
    ("big", "count(*) filter (where v > 3)"),
];

impl Rules {
    /// The query that gives the columns of a line.
    pub fn sql(&self) -> String {
        let mut columns: Vec<&str> = self.by.clone();
        if self.cut != Cut::None {
            columns.extend(["window_start", "window_end"]);
        }
        columns.extend(MEASURES.iter().map(|(name, _)| *name));
        format!("SELECT {} FROM t", columns.join(", "))
    }

    fn line(&self, pane: &Pane) -> String {
        const NULL: &str = "∅";
        let number = |number: Option<i128>| number.map_or(NULL.to_string(), |number| number.to_string());
        let mut cells: Vec<String> = pane.key.iter().map(|part| part.clone().unwrap_or(NULL.into())).collect();
        if self.cut != Cut::None {
            cells.extend([pane.start.to_string(), pane.end.to_string()]);
        }
        let mut rows: Vec<&Taken> = pane.rows.iter().collect();
        rows.sort_by_key(|taken| (taken.time, taken.arrival));
        let values: Vec<i128> = rows.iter().filter_map(|taken| taken.event.v).map(i128::from).collect();
        let cents: Vec<i128> = rows.iter().filter_map(|taken| taken.event.cents).map(i128::from).collect();
        let kinds: BTreeSet<&String> = rows.iter().filter_map(|taken| taken.event.s.as_ref()).collect();
        let sum = |values: &[i128]| (!values.is_empty()).then(|| values.iter().sum::<i128>());
        // The earliest; of several, the one that arrived first.
        let valued = || rows.iter().filter(|taken| taken.event.v.is_some());
        let opening = valued().min_by_key(|taken| (taken.time, taken.arrival)).and_then(|taken| taken.event.v);
        let closing = valued().max_by_key(|taken| (taken.time, taken.arrival)).and_then(|taken| taken.event.v);
        cells.push(rows.len().to_string());
        cells.push(values.len().to_string());
        cells.push(number(sum(&values)));
        cells.push(number(values.iter().min().copied()));
        cells.push(kinds.last().map_or(NULL.into(), |text| text.to_string()));
        cells.push(sum(&values).map_or(NULL.into(), |sum| format!("{}", sum as f64 / values.len() as f64)));
        cells.push(kinds.len().to_string());
        cells.push(number(opening.map(i128::from)));
        cells.push(number(closing.map(i128::from)));
        cells.push(number(sum(&cents)));
        cells.push(number(sum(&cents).map(|sum| half_up(sum * 10_000, cents.len() as i128))));
        cells.push(values.iter().filter(|value| **value > 3).count().to_string());
        cells.join("|")
    }
}

/// Away from zero where it is exactly between.
fn half_up(value: i128, by: i128) -> i128 {
    let magnitude = (2 * value.abs() + by) / (2 * by);
    magnitude * value.signum()
}

/// The windows that hold a time; of a session, what the event would make alone.
pub fn windows(cut: Cut, time: i64) -> Vec<(i64, i64)> {
    match cut {
        Cut::None => vec![(0, i64::MAX / 2)],
        Cut::Tumbling(size) => vec![(time.div_euclid(size) * size, time.div_euclid(size) * size + size)],
        Cut::Sliding(size, every) => {
            let first = (time - size).div_euclid(every) + 1;
            let last = time.div_euclid(every);
            (first..=last).map(|n| (n * every, n * every + size)).collect()
        }
        Cut::Session(gap) => vec![(time, time + gap)],
        Cut::Day | Cut::Week | Cut::Month => {
            // The local date: the one whose midnight is the last before.
            let mut date =
                DateTime::from_timestamp_micros(time).expect("a time").date_naive().succ_opt().expect("a date");
            while midnight(date) > time {
                date = date.pred_opt().expect("a date");
            }
            let first = match cut {
                Cut::Week => date - chrono::Days::new(u64::from(date.weekday().num_days_from_monday())),
                Cut::Month => date.with_day(1).expect("the first"),
                _ => date,
            };
            let next = match cut {
                Cut::Week => first + chrono::Days::new(7),
                Cut::Month => first + chrono::Months::new(1),
                _ => first + chrono::Days::new(1),
            };
            vec![(midnight(first), midnight(next))]
        }
    }
}

/// The zone of [`midnight`].
pub const TIMEZONE: &str = "Europe/Berlin";

/// Midnight in Berlin in 2026: summer time from 29 March to 25 October, changed after midnight.
fn midnight(date: NaiveDate) -> i64 {
    let day = |month, day| NaiveDate::from_ymd_opt(2026, month, day).expect("a date");
    let is_summer = date > day(3, 29) && date <= day(10, 25);
    let utc = date.and_hms_opt(0, 0, 0).expect("midnight").and_utc().timestamp_micros();
    utc - if is_summer { 2 * HOUR } else { HOUR }
}

#[test]
fn days_of_a_clock_change_have_23_and_25_hours() {
    let at = |text: &str| DateTime::parse_from_rfc3339(text).expect("a time").timestamp_micros();
    assert_eq!(
        windows(Cut::Day, at("2026-03-29T12:00:00Z")),
        [(at("2026-03-28T23:00:00Z"), at("2026-03-29T22:00:00Z"))]
    );
    assert_eq!(
        windows(Cut::Day, at("2026-10-25T22:59:59Z")),
        [(at("2026-10-24T22:00:00Z"), at("2026-10-25T23:00:00Z"))]
    );
    assert_eq!(
        windows(Cut::Week, at("2026-03-29T21:59:59Z")),
        [(at("2026-03-22T23:00:00Z"), at("2026-03-29T22:00:00Z"))]
    );
    assert_eq!(windows(Cut::Sliding(5, 2), 4), [(0, 5), (2, 7), (4, 9)]);
    assert_eq!(half_up(-5, 2), -3);
}
