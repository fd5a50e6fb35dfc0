//! Crontab: five fields that mean what `crontab(5)` means, in a timezone; pure.
//!
//! Sunday is 0 or 7. When both day fields are restricted, either of them suffices (the rule that surprises everybody, and
//! that everybody's crontab rests on). A tick in an hour that daylight saving skips runs once, right after the gap; one in
//! the repeated hour runs in its first pass only. Where the hours are `*`, ticks simply go on with real time.
//!
//! Written out here: the crate `cron` counts seconds first and Sunday as 1, and does not know the rule of the two day fields,
//! so each expression would have to be read here anyway to be translated for it.

use std::fmt;
use std::ops::Range;

use chrono::{DateTime, Datelike, MappedLocalTime, NaiveDate, NaiveDateTime, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;

/// 29 February on a given weekday comes round within 40 years, also across a century without a leap day.
const HORIZON_DAYS: i64 = 40 * 366;

/// No clock is ever set back by more than this.
const LONGEST_OVERLAP: TimeDelta = TimeDelta::hours(3);

/// A parsed expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cron {
    text: String,
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Hours go on with real time when the clock is changed.
    every_hour: bool,
    /// One of the day fields starts with `*`: then both must match, not either.
    both_days: bool,
}

/// Why a text is no crontab expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: String,
    /// Which bytes of the text.
    pub at: Range<usize>,
}

/// One of the five fields.
struct Field {
    name: &'static str,
    low: u64,
    high: u64,
    /// Names of the values from `first` on.
    names: &'static [&'static str],
    first: u64,
}

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

const FIELDS: [Field; 5] = [
    Field { name: "minute", low: 0, high: 59, names: &[], first: 0 },
    Field { name: "hour", low: 0, high: 23, names: &[], first: 0 },
    Field { name: "day of month", low: 1, high: 31, names: &[], first: 0 },
    Field { name: "month", low: 1, high: 12, names: MONTHS, first: 1 },
    Field { name: "day of week", low: 0, high: 7, names: WEEKDAYS, first: 0 },
];

const SHAPE: &str =
    "five fields: minute 0-59, hour 0-23, day of month 1-31, month 1-12, day of week 0-7 (Sunday is 0 or 7)";

/// Every value of a field.
fn all(field: &Field) -> u64 {
    (field.low..=field.high).fold(0, |mask, value| mask | 1 << value)
}

impl Field {
    fn range(&self) -> String {
        match self.names {
            [] => format!("{}-{}", self.low, self.high),
            [first, .., last] => format!("{}-{} or {first}-{last}", self.low, self.high),
            [only] => (*only).to_string(),
        }
    }

    fn value(&self, text: &str) -> Result<u64, String> {
        let lower = text.to_ascii_lowercase();
        if let Some(index) = self.names.iter().position(|name| *name == lower) {
            return Ok(self.first + index as u64);
        }
        match text.parse::<u64>() {
            Ok(value) if text.bytes().all(|b| b.is_ascii_digit()) && (self.low..=self.high).contains(&value) => {
                Ok(value)
            }
            _ => Err(format!("{} {text} is not {}", self.name, self.range())),
        }
    }

    /// `*`, `5`, `1-5`, `*/15`, `10-40/10`.
    fn item(&self, text: &str) -> Result<u64, String> {
        let (span, step) = match text.split_once('/') {
            Some((span, step)) => (span, Some(step)),
            None => (text, None),
        };
        let (low, high) = match span.split_once('-') {
            _ if span == "*" => (self.low, self.high),
            Some((low, high)) => (self.value(low)?, self.value(high)?),
            None => {
                let value = self.value(span)?;
                if step.is_some() {
                    let spelled = format!("{span}-{}/{}", self.high, step.unwrap_or_default());
                    return Err(format!("a step needs `*` or a range before it: `{spelled}`, not `{text}`"));
                }
                (value, value)
            }
        };
        if low > high {
            return Err(format!("the range {span} of field {} runs backwards", self.name));
        }
        let step = match step.map(str::parse::<usize>) {
            None => 1,
            Some(Ok(step)) if step > 0 => step,
            Some(_) => return Err(format!("the step of `{text}` is not a number above zero")),
        };
        Ok((low..=high).step_by(step).fold(0, |mask, value| mask | 1 << value))
    }

    fn mask(&self, text: &str) -> Result<u64, String> {
        text.split(',').try_fold(0, |mask, item| Ok(mask | self.item(item)?))
    }
}

/// The expression that a nickname stands for.
fn nickname(text: &str) -> Option<&'static str> {
    Some(match text.to_ascii_lowercase().as_str() {
        "@hourly" => "0 * * * *",
        "@daily" | "@midnight" => "0 0 * * *",
        "@weekly" => "0 0 * * 0",
        "@monthly" => "0 0 1 * *",
        "@yearly" | "@annually" => "0 0 1 1 *",
        _ => return None,
    })
}

impl Cron {
    /// Reads an expression or one of the nicknames.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let refuse = |message: String, help: &str, at| Err(Refusal { message, help: help.to_string(), at });
        let whole = 0..text.len();
        if text.starts_with('@') && nickname(text).is_none() {
            let help = "the nicknames are @hourly, @daily, @weekly, @monthly and @yearly";
            return refuse(format!("`{text}` is not a schedule"), help, whole);
        }
        let spelled = nickname(text).unwrap_or(text);
        let start = |word: &str| word.as_ptr() as usize - spelled.as_ptr() as usize;
        let words: Vec<&str> = spelled.split_ascii_whitespace().collect();
        match words.len() {
            5 => {}
            6 | 7 => {
                let meant = words[1..6].join(" ");
                let message = "seconds are not part of crontab".to_string();
                return refuse(message, &format!("did you mean `{meant}`? {SHAPE}"), whole);
            }
            count => return refuse(format!("`{text}` has {count} of the five fields of crontab"), SHAPE, whole),
        }
        let mut masks = [0; 5];
        for ((field, word), mask) in FIELDS.iter().zip(&words).zip(&mut masks) {
            *mask = match field.mask(word) {
                Ok(found) => found,
                Err(message) => return refuse(message, SHAPE, start(word)..start(word) + word.len()),
            };
        }
        let [minutes, hours, days, months, weekdays] = masks;
        let sunday = u64::from(weekdays & (1 << 7) != 0);
        let cron = Cron {
            text: text.to_string(),
            minutes,
            hours,
            days,
            months,
            weekdays: weekdays | sunday,
            every_hour: words[1].starts_with('*') || hours == all(&FIELDS[1]),
            both_days: words[2].starts_with('*') || words[4].starts_with('*'),
        };
        // Any start will do: what has a day at all has one within the horizon.
        if cron.next_after(DateTime::UNIX_EPOCH, Tz::UTC).is_none() {
            let help = "there is no such date in any year; check day of month and month";
            return refuse(format!("`{text}` never comes"), help, whole);
        }
        Ok(cron)
    }

    /// The first tick strictly after `now`.
    pub fn next_after(&self, now: DateTime<Utc>, zone: Tz) -> Option<DateTime<Utc>> {
        let local = now.with_timezone(&zone).naive_local();
        let mut day = local.date().pred_opt()?;
        for _ in 0..HORIZON_DAYS {
            if self.is_on(day)
                && let Some(tick) = self.first_on(day, now, local, zone)
            {
                return Some(tick);
            }
            day = day.succ_opt()?;
        }
        None
    }

    fn is_on(&self, day: NaiveDate) -> bool {
        let has = |mask: u64, value: u32| mask & (1 << value) != 0;
        let (of_month, of_week) = (has(self.days, day.day()), has(self.weekdays, day.weekday().num_days_from_sunday()));
        has(self.months, day.month()) && if self.both_days { of_month && of_week } else { of_month || of_week }
    }

    fn first_on(&self, day: NaiveDate, now: DateTime<Utc>, local: NaiveDateTime, zone: Tz) -> Option<DateTime<Utc>> {
        let in_mask = |mask: u64, count: u32| (0..count).filter(move |value| mask & (1 << value) != 0);
        let times =
            in_mask(self.hours, 24).flat_map(|hour| in_mask(self.minutes, 60).map(move |minute| (hour, minute)));
        let times = times.filter_map(|(hour, minute)| day.and_hms_opt(hour, minute, 0));
        let near = times.filter(|time| *time + LONGEST_OVERLAP >= local);
        near.flat_map(|time| self.instants(time, zone)).filter(|tick| *tick > now).min()
    }

    /// When a time on the wall is a tick: usually once, twice or never where the clock is changed.
    fn instants(&self, wall: NaiveDateTime, zone: Tz) -> impl Iterator<Item = DateTime<Utc>> + use<> {
        let (first, second) = match zone.from_local_datetime(&wall) {
            MappedLocalTime::Single(time) => (Some(time), None),
            MappedLocalTime::Ambiguous(first, second) => (Some(first), self.every_hour.then_some(second)),
            MappedLocalTime::None if self.every_hour => (None, None),
            MappedLocalTime::None => (after_gap(wall, zone), None),
        };
        first.into_iter().chain(second).map(|time| time.to_utc())
    }
}

/// The first moment after a time that the clock skips; whole days were skipped at the date line.
fn after_gap(wall: NaiveDateTime, zone: Tz) -> Option<DateTime<Tz>> {
    (1..=25 * 60).find_map(|minutes| zone.from_local_datetime(&(wall + TimeDelta::minutes(minutes))).earliest())
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
#[path = "cron_tests.rs"]
mod tests;
