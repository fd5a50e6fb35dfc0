//! Windows by hand, by a walk over every hour of the calendar, and at the ends of time.

use rand::{Rng as _, SeedableRng as _};

use super::*;
use chrono::{TimeDelta, Timelike, Utc};

fn at(text: &str) -> Micros {
    DateTime::parse_from_rfc3339(text).expect("a time").timestamp_micros()
}

fn starts(window: Window, at: Micros) -> Vec<Micros> {
    let mut starts = vec![99];
    window.starts(at, &mut starts);
    starts
}

const MINUTE: Micros = 60_000_000;

#[test]
fn tumbling_windows_start_at_multiples_of_their_size_also_before_the_epoch() {
    let window = Window::Tumbling { size: 10 };
    for (at, start) in [(0, 0), (9, 0), (10, 10), (-1, -10), (-10, -10), (-11, -20)] {
        assert_eq!(starts(window, at), [start], "{at}");
    }
    assert_eq!(window.end(-10), 0);
}

#[test]
fn a_row_is_in_every_sliding_window_that_holds_it() {
    let window = Window::Sliding { size: 10, every: 4 };
    assert_eq!(starts(window, 0), [-8, -4, 0]);
    assert_eq!(starts(window, 1), [-8, -4, 0]);
    assert_eq!(starts(window, 2), [-4, 0]);
    assert_eq!(starts(window, -1), [-8, -4]);
    assert_eq!(window.pane(), Some(2));
    let mut random = rand::rngs::SmallRng::seed_from_u64(7);
    for _ in 0..2_000 {
        let every = random.random_range(1..20);
        let size = every + random.random_range(0..40);
        let at = random.random_range(-200..200);
        let expected: Vec<Micros> = (-400..=at).filter(|s| s % every == 0 && *s + size > at).collect();
        assert_eq!(starts(Window::Sliding { size, every }, at), expected, "{at} in {size} every {every}");
    }
}

#[test]
fn the_ends_of_time_are_windows_too() {
    for at in [Micros::MIN, Micros::MIN + 1, Micros::MAX - 1, Micros::MAX] {
        for unit in [CalendarUnit::Day, CalendarUnit::Week, CalendarUnit::Month] {
            let window = Window::Calendar { unit, timezone: chrono_tz::Europe::Berlin };
            let start = starts(window, at)[0];
            assert!(window.end(start) > start);
        }
        for window in [
            Window::Tumbling { size: DAY },
            Window::Sliding { size: DAY, every: MINUTE * 60 },
            Window::Session { gap: DAY },
        ] {
            for start in starts(window, at) {
                assert!(start <= at && window.end(start) >= at, "{window:?} {at}");
            }
        }
    }
}

#[test]
fn days_weeks_and_months_follow_the_clock_on_the_wall() {
    let berlin = |unit| Window::Calendar { unit, timezone: chrono_tz::Europe::Berlin };
    let check = |unit, time, start, end| {
        let window = berlin(unit);
        let found = starts(window, at(time))[0];
        assert_eq!((found, window.end(found)), (at(start), at(end)), "{unit:?} of {time}");
    };
    check(CalendarUnit::Day, "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z");
    check(CalendarUnit::Day, "2026-10-25T22:59:59Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z");
    check(CalendarUnit::Week, "2026-11-22T22:00:00Z", "2026-11-15T23:00:00Z", "2026-11-22T23:00:00Z");
    check(CalendarUnit::Month, "2026-03-31T22:30:00Z", "2026-03-31T22:00:00Z", "2026-04-30T22:00:00Z");
    check(CalendarUnit::Month, "1969-12-31T22:59:59Z", "1969-11-30T23:00:00Z", "1969-12-31T23:00:00Z");
}

/// Walks the instants between and says where the date on the wall becomes a later one than ever before.
fn day_starts(timezone: Tz, from: &str, to: &str) -> Vec<(Micros, NaiveDate)> {
    let (mut instant, to) = (DateTime::from_timestamp_micros(at(from)).expect("a time"), at(to));
    let mut latest = instant.with_timezone(&timezone).date_naive();
    let mut found = Vec::new();
    while instant.timestamp_micros() < to {
        instant += TimeDelta::minutes(1);
        let date = instant.with_timezone(&timezone).date_naive();
        if date > latest {
            latest = date;
            found.push((instant.timestamp_micros(), date));
        }
    }
    found
}

#[test]
fn a_walk_over_every_minute_finds_the_same_days_weeks_and_months() {
    use chrono_tz::{Africa, America, Asia, Australia, Europe, Pacific};
    for (timezone, from, to) in [
        (Europe::Berlin, "2026-03-20T00:00:00Z", "2026-04-10T00:00:00Z"),
        (Europe::Berlin, "2026-10-20T00:00:00Z", "2026-11-10T00:00:00Z"),
        // No midnight.
        (America::Sao_Paulo, "2018-10-25T00:00:00Z", "2018-11-12T00:00:00Z"),
        (Africa::Cairo, "2023-04-20T00:00:00Z", "2023-05-08T00:00:00Z"),
        (Asia::Beirut, "2022-03-20T00:00:00Z", "2022-04-04T00:00:00Z"),
        // Midnight twice, or 23 o'clock twice.
        (America::Sao_Paulo, "2018-02-10T00:00:00Z", "2018-03-05T00:00:00Z"),
        (America::Havana, "2022-10-25T00:00:00Z", "2022-11-14T00:00:00Z"),
        (America::St_Johns, "2006-10-20T00:00:00Z", "2006-11-05T00:00:00Z"),
        // A day that never was.
        (Pacific::Apia, "2011-12-20T00:00:00Z", "2012-01-10T00:00:00Z"),
        (Australia::Lord_Howe, "2026-03-25T00:00:00Z", "2026-04-14T00:00:00Z"),
        (Asia::Kolkata, "2026-01-20T00:00:00Z", "2026-02-10T00:00:00Z"),
    ] {
        let days = day_starts(timezone, from, to);
        let weeks = |date: NaiveDate| (date.iso_week().year(), date.iso_week().week());
        let months = |date: NaiveDate| (date.year(), date.month());
        let firsts = |same: &dyn Fn(NaiveDate) -> (i32, u32)| -> Vec<Micros> {
            days.windows(2).filter(|pair| same(pair[0].1) != same(pair[1].1)).map(|pair| pair[1].0).collect()
        };
        let all: Vec<Micros> = days.iter().map(|day| day.0).collect();
        for (unit, expected) in
            [(CalendarUnit::Day, all), (CalendarUnit::Week, firsts(&weeks)), (CalendarUnit::Month, firsts(&months))]
        {
            let window = Window::Calendar { unit, timezone };
            assert!(!expected.is_empty(), "{unit:?} in {timezone}: the walk is too short");
            for first in &expected {
                let before = starts(window, first - 1)[0];
                assert_eq!(
                    (starts(window, *first), window.end(before)),
                    (vec![*first], *first),
                    "{unit:?} in {timezone}"
                );
            }
            for pair in expected.windows(2) {
                assert_eq!(window.end(pair[0]), pair[1], "{unit:?} in {timezone}");
                // Where clocks go back, that happens within hours of midnight.
                let early = (0..180).step_by(7).map(|minute| pair[0] + minute * MINUTE);
                for instant in early.chain([pair[0] + 1, pair[1] - MINUTE, pair[1] - 1]) {
                    assert_eq!(starts(window, instant), [pair[0]], "{unit:?} in {timezone} of {instant}");
                }
            }
        }
    }
}

#[test]
fn every_timezone_is_cut_without_a_gap() {
    let seed = rand::random::<u64>();
    let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
    for timezone in chrono_tz::TZ_VARIANTS {
        for unit in [CalendarUnit::Day, CalendarUnit::Week, CalendarUnit::Month] {
            let window = Window::Calendar { unit, timezone };
            let time = random.random_range(at("1950-01-01T00:00:00Z")..at("2037-01-01T00:00:00Z"));
            let start = starts(window, time)[0];
            let end = window.end(start);
            assert!(start <= time && time < end, "{unit:?} in {timezone} of {time}, seed {seed}");
            assert_eq!(starts(window, end - 1), [start], "{unit:?} in {timezone} of {time}, seed {seed}");
            assert_eq!(starts(window, end), [end], "{unit:?} in {timezone} of {time}, seed {seed}");
            assert!(DateTime::<Utc>::from_timestamp_micros(start).is_some_and(|start| start.nanosecond() == 0));
        }
    }
}

#[test]
fn lengths_that_cannot_be_meant_are_refused() {
    let field = |window: Window| window.misfit().map(|misfit| misfit.field);
    for size in [0, -1, 7 * MINUTE, DAY + 1, 36 * 60 * MINUTE] {
        assert_eq!(field(Window::Tumbling { size }), Some("size"), "{size}");
    }
    for size in [1, MINUTE, 15 * MINUTE, 60 * MINUTE, DAY, 7 * DAY] {
        assert_eq!(field(Window::Tumbling { size }), None, "{size}");
    }
    assert_eq!(field(Window::Sliding { size: 0, every: 1 }), Some("size"));
    assert_eq!(field(Window::Sliding { size: DAY, every: 0 }), Some("every"));
    assert_eq!(field(Window::Sliding { size: MINUTE, every: 5 * MINUTE }), Some("every"));
    assert_eq!(field(Window::Sliding { size: 60 * MINUTE, every: 7 * MINUTE }), Some("every"));
    assert_eq!(field(Window::Sliding { size: 7 * MINUTE, every: 5 * MINUTE }), None);
    assert_eq!(field(Window::Sliding { size: 10_001, every: 1 }), Some("every"));
    assert_eq!(field(Window::Sliding { size: 10_000, every: 1 }), None);
    assert_eq!(field(Window::Session { gap: 0 }), Some("gap"));
    assert_eq!(field(Window::Session { gap: 7 }), None);
}
