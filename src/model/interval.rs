//! Stretches of event time: days and hours of a timezone, as half-open ranges of instants. A day of a clock change has 23
//! or 25 hours; hours are absolute.

use std::fmt;

use chrono::{DateTime, Days, NaiveDate, NaiveTime, SecondsFormat, TimeDelta, TimeZone, Timelike, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

/// `[start, end)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Interval {
    /// First instant.
    pub start: DateTime<Utc>,
    /// First instant after it.
    pub end: DateTime<Utc>,
}

/// What a range of time is cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Calendar days of the timezone.
    Day,
    /// Hours.
    Hour,
}

/// One end of a range, as a person writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The first instant of a date.
    Date(NaiveDate),
    /// An instant.
    Time(DateTime<Utc>),
}

/// Why a range cannot be cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misfit {
    /// Its two ends are the same.
    Empty,
    /// It ends before it starts.
    Reversed,
    /// An end lies inside a day or hour.
    Uneven(DateTime<Utc>),
}

impl Interval {
    /// Whether the instant lies in it.
    pub fn contains(&self, at: DateTime<Utc>) -> bool {
        (self.start..self.end).contains(&at)
    }

    /// Names the interval in paths and application ids: the same for the same instants, whatever the timezone.
    pub fn key(&self) -> String {
        let name = |at: DateTime<Utc>| at.format("%Y%m%dT%H%M%SZ").to_string();
        format!("{}-{}", name(self.start), name(self.end))
    }

    /// The dates that it is made of, half-open; `None` = an end of it lies within a day.
    pub fn dates(&self, timezone: Tz) -> Option<(NaiveDate, NaiveDate)> {
        let is_even = is_even(self.start, By::Day, timezone) && is_even(self.end, By::Day, timezone);
        let date = |at: DateTime<Utc>| at.with_timezone(&timezone).date_naive();
        is_even.then(|| (date(self.start), date(self.end)))
    }

    /// As a person would say it: `2026-03-17`, or both ends.
    pub fn label(&self, timezone: Tz) -> String {
        let date = self.start.with_timezone(&timezone).date_naive();
        match *self == day(date, timezone) {
            true => date.to_string(),
            false => {
                let show = |at: DateTime<Utc>| at.with_timezone(&timezone).to_rfc3339_opts(SecondsFormat::Secs, true);
                format!("{} to {}", show(self.start), show(self.end))
            }
        }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Secs, true);
        write!(f, "{} to {}", show(self.start), show(self.end))
    }
}

impl Bound {
    /// Reads a date (`2026-03-17`) or an RFC 3339 time.
    pub fn parse(text: &str) -> Option<Bound> {
        match NaiveDate::parse_from_str(text, "%Y-%m-%d") {
            Ok(date) => Some(Bound::Date(date)),
            Err(_) => DateTime::parse_from_rfc3339(text).ok().map(|time| Bound::Time(time.to_utc())),
        }
    }

    /// The instant.
    pub fn instant(self, timezone: Tz) -> DateTime<Utc> {
        match self {
            Bound::Date(date) => midnight(date, timezone),
            Bound::Time(time) => time,
        }
    }
}

/// The first instant of a date. Where clocks skip midnight it is the instant at which they do.
pub fn midnight(date: NaiveDate, timezone: Tz) -> DateTime<Utc> {
    let mut local = date.and_time(NaiveTime::MIN);
    // No clock was ever set forward by more than a day.
    for _ in 0..=24 * 60 {
        if let Some(found) = timezone.from_local_datetime(&local).earliest() {
            return found.to_utc();
        }
        local += TimeDelta::minutes(1);
    }
    date.and_time(NaiveTime::MIN).and_utc()
}

/// A calendar day.
pub fn day(date: NaiveDate, timezone: Tz) -> Interval {
    let next = date.checked_add_days(Days::new(1)).unwrap_or(date);
    Interval { start: midnight(date, timezone), end: midnight(next, timezone) }
}

/// Cuts `[from, to)` into days or hours.
pub fn split(from: DateTime<Utc>, to: DateTime<Utc>, by: By, timezone: Tz) -> Result<Vec<Interval>, Misfit> {
    match from.cmp(&to) {
        std::cmp::Ordering::Equal => return Err(Misfit::Empty),
        std::cmp::Ordering::Greater => return Err(Misfit::Reversed),
        std::cmp::Ordering::Less => {}
    }
    if let Some(uneven) = [from, to].into_iter().find(|at| !is_even(*at, by, timezone)) {
        return Err(Misfit::Uneven(uneven));
    }
    let mut intervals = Vec::new();
    let mut start = from;
    while start < to {
        let end = match by {
            By::Day => day(start.with_timezone(&timezone).date_naive(), timezone).end,
            By::Hour => start + TimeDelta::hours(1),
        };
        // A clock that moves by half an hour leaves a short hour at the end.
        intervals.push(Interval { start, end: end.min(to) });
        start = end;
    }
    Ok(intervals)
}

fn is_even(at: DateTime<Utc>, by: By, timezone: Tz) -> bool {
    let local = at.with_timezone(&timezone);
    match by {
        By::Day => midnight(local.date_naive(), timezone) == at,
        By::Hour => (local.minute(), local.second(), local.nanosecond()) == (0, 0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono_tz::{Africa, America, Asia, Europe, UTC};

    fn date(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    fn at(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).unwrap().to_utc()
    }

    #[test]
    fn days_of_a_clock_change_have_23_and_25_hours() {
        let hours = |day: Interval| (day.end - day.start).num_hours();
        let spring = day(date("2026-03-29"), Europe::Berlin);
        assert_eq!(spring, Interval { start: at("2026-03-28T23:00:00Z"), end: at("2026-03-29T22:00:00Z") });
        assert_eq!(hours(spring), 23);
        assert_eq!(hours(day(date("2026-10-25"), Europe::Berlin)), 25);
        assert_eq!(hours(day(date("2026-10-26"), Europe::Berlin)), 24);
        let by_hour = split(spring.start, spring.end, By::Hour, Europe::Berlin).unwrap();
        assert_eq!(by_hour.len(), 23);
        assert!(by_hour.windows(2).all(|pair| pair[0].end == pair[1].start));
    }

    #[test]
    fn a_day_whose_midnight_is_skipped_starts_when_clocks_jump() {
        // Egypt's clocks went from 00:00 to 01:00 on 2023-04-28.
        let day = day(date("2023-04-28"), Africa::Cairo);
        assert_eq!((day.start, day.end), (at("2023-04-27T22:00:00Z"), at("2023-04-28T21:00:00Z")));
    }

    #[test]
    fn days_follow_each_other_without_a_gap_in_every_timezone() {
        for timezone in chrono_tz::TZ_VARIANTS {
            let from = midnight(date("2025-12-30"), timezone);
            let days = split(from, midnight(date("2027-01-03"), timezone), By::Day, timezone).unwrap();
            assert!(days.windows(2).all(|pair| pair[0].end == pair[1].start), "{timezone}");
            assert_eq!(days.first().unwrap().start, from, "{timezone}");
        }
    }

    #[test]
    fn a_range_that_is_empty_reversed_or_uneven_is_refused() {
        let (a, b) = (at("2026-03-17T00:00:00Z"), at("2026-03-18T00:00:00Z"));
        assert_eq!(split(a, a, By::Day, UTC), Err(Misfit::Empty));
        assert_eq!(split(b, a, By::Day, UTC), Err(Misfit::Reversed));
        let half = at("2026-03-17T10:30:00Z");
        assert_eq!(split(half, b, By::Hour, UTC), Err(Misfit::Uneven(half)));
        // Half past in UTC is the full hour in Kolkata.
        assert_eq!(split(half, half + TimeDelta::hours(2), By::Hour, Asia::Kolkata).unwrap().len(), 2);
        assert_eq!(split(a, b, By::Day, America::New_York), Err(Misfit::Uneven(a)));
    }

    #[test]
    fn days_are_made_of_dates_wherever_midnight_is_skipped_and_hours_are_not() {
        for (timezone, text) in [(Africa::Cairo, "2023-04-28"), (America::Santiago, "2023-09-03"), (UTC, "2023-04-28")]
        {
            let date = date(text);
            let (day, next) = (day(date, timezone), date.succ_opt().unwrap());
            assert_eq!(day.dates(timezone), Some((date, next)), "{timezone}");
            let hours = split(day.start, day.end, By::Hour, timezone).unwrap();
            assert!(hours.iter().all(|hour| hour.dates(timezone).is_none()), "{timezone}");
        }
    }

    #[test]
    fn the_key_names_the_instants_and_the_label_the_day() {
        let day = day(date("2026-03-29"), Europe::Berlin);
        assert_eq!(day.key(), "20260328T230000Z-20260329T220000Z");
        assert_eq!(day.label(Europe::Berlin), "2026-03-29");
        assert_eq!(day.label(UTC), "2026-03-28T23:00:00Z to 2026-03-29T22:00:00Z");
    }

    #[test]
    fn bounds_are_dates_or_times() {
        assert_eq!(Bound::parse("2026-03-17"), Some(Bound::Date(date("2026-03-17"))));
        assert_eq!(
            Bound::parse("2026-03-17T01:00:00+01:00").map(|bound| bound.instant(Europe::Berlin)),
            Some(at("2026-03-17T00:00:00Z"))
        );
        assert_eq!(Bound::parse("17.3.2026"), None);
    }
}
