//! The meaning of crontab as a table that was worked out by hand with calendars, and against a walk over every minute.

use rand::{Rng as _, SeedableRng as _};

use super::*;

fn next(text: &str, zone: &str, now: &str) -> String {
    let zone: Tz = zone.parse().expect("a timezone");
    let now = DateTime::parse_from_rfc3339(now).expect("a time").to_utc();
    let tick = Cron::parse(text).unwrap_or_else(|refusal| panic!("{refusal:?}")).next_after(now, zone);
    tick.expect("a tick").with_timezone(&zone).to_rfc3339()
}

#[test]
fn expressions_mean_what_crontab_means() {
    let berlin = "Europe/Berlin";
    let table = [
        ("*/15 * * * *", "UTC", "2026-11-21T14:00:00Z", "2026-11-21T14:15:00+00:00"),
        ("*/15 * * * *", "UTC", "2026-11-21T14:59:59Z", "2026-11-21T15:00:00+00:00"),
        ("0 3 * * *", berlin, "2026-11-21T14:00:00Z", "2026-11-22T03:00:00+01:00"),
        ("5,10 9-17/4 * * *", "UTC", "2026-11-21T09:10:00Z", "2026-11-21T13:05:00+00:00"),
        ("0 0 1 JAN *", "UTC", "2026-11-21T00:00:00Z", "2027-01-01T00:00:00+00:00"),
        // 2026-11-21 is a Saturday. Sunday is 0, 7 and sun.
        ("0 6 * * 0", "UTC", "2026-11-21T00:00:00Z", "2026-11-22T06:00:00+00:00"),
        ("0 6 * * 7", "UTC", "2026-11-21T00:00:00Z", "2026-11-22T06:00:00+00:00"),
        ("0 6 * * Sun", "UTC", "2026-11-21T00:00:00Z", "2026-11-22T06:00:00+00:00"),
        ("0 6 * * 1", "UTC", "2026-11-21T00:00:00Z", "2026-11-23T06:00:00+00:00"),
        ("0 6 * * 5-7", "UTC", "2026-11-21T07:00:00Z", "2026-11-22T06:00:00+00:00"),
        ("0 6 * * mon-fri", "UTC", "2026-11-20T07:00:00Z", "2026-11-23T06:00:00+00:00"),
        // Either day field suffices when both are restricted; both must match when one starts with `*`.
        ("0 0 13 * 5", "UTC", "2026-11-21T00:00:00Z", "2026-11-27T00:00:00+00:00"),
        ("0 0 13 * 5", "UTC", "2026-12-11T00:00:00Z", "2026-12-13T00:00:00+00:00"),
        ("0 0 13 * *", "UTC", "2026-11-21T00:00:00Z", "2026-12-13T00:00:00+00:00"),
        ("0 0 */2 * 1", "UTC", "2026-11-21T00:00:00Z", "2026-11-23T00:00:00+00:00"),
        // Leap days, over 2100 which has none.
        ("0 0 29 2 *", "UTC", "2026-11-21T00:00:00Z", "2028-02-29T00:00:00+00:00"),
        ("0 0 29 2 *", "UTC", "2096-03-01T00:00:00Z", "2104-02-29T00:00:00+00:00"),
        ("0 0 31 * *", "UTC", "2026-11-21T00:00:00Z", "2026-12-31T00:00:00+00:00"),
        // 2026-03-29 02:00 becomes 03:00 in Berlin: once, right after the gap.
        ("30 2 * * *", berlin, "2026-03-29T00:00:00Z", "2026-03-29T03:00:00+02:00"),
        ("30 2 * * *", berlin, "2026-03-29T01:00:00Z", "2026-03-30T02:30:00+02:00"),
        ("*/20 2 * * *", berlin, "2026-03-29T01:00:00Z", "2026-03-30T02:00:00+02:00"),
        ("30 * * * *", berlin, "2026-03-29T00:30:00Z", "2026-03-29T03:30:00+02:00"),
        ("*/15 * * * *", berlin, "2026-03-29T00:45:00Z", "2026-03-29T03:00:00+02:00"),
        // 2026-10-25 03:00 becomes 02:00: fixed hours in the first pass only, `*` in both.
        ("30 2 * * *", berlin, "2026-10-24T22:00:00Z", "2026-10-25T02:30:00+02:00"),
        ("30 2 * * *", berlin, "2026-10-25T00:30:00Z", "2026-10-26T02:30:00+01:00"),
        ("30 * * * *", berlin, "2026-10-25T00:30:00Z", "2026-10-25T02:30:00+01:00"),
        ("*/15 * * * *", berlin, "2026-10-25T00:45:00Z", "2026-10-25T02:00:00+01:00"),
        // A gap at midnight, and the day that Samoa never had.
        ("0 0 * * *", "America/Sao_Paulo", "2018-11-03T12:00:00Z", "2018-11-04T01:00:00-02:00"),
        ("0 12 * * *", "Pacific/Apia", "2011-12-30T01:00:00Z", "2011-12-31T00:00:00+14:00"),
        // Nicknames.
        ("@hourly", "UTC", "2026-11-21T14:00:00Z", "2026-11-21T15:00:00+00:00"),
        ("@daily", berlin, "2026-11-21T14:00:00Z", "2026-11-22T00:00:00+01:00"),
        ("@weekly", "UTC", "2026-11-21T14:00:00Z", "2026-11-22T00:00:00+00:00"),
        ("@monthly", "UTC", "2026-11-21T14:00:00Z", "2026-12-01T00:00:00+00:00"),
        ("@yearly", "UTC", "2026-11-21T14:00:00Z", "2027-01-01T00:00:00+00:00"),
    ];
    let wrong: Vec<String> = table
        .iter()
        .map(|(text, zone, now, expected)| (text, zone, now, expected, next(text, zone, now)))
        .filter(|(.., expected, seen)| **expected != seen)
        .map(|(text, zone, now, expected, seen)| format!("{text} in {zone} after {now}: {expected}, not {seen}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_refusal_names_the_field_and_what_is_meant() {
    let table = [
        ("61 * * * *", "minute 61 is not 0-59", 0..2),
        ("0 24 * * *", "hour 24 is not 0-23", 2..4),
        ("0 0 0 * *", "day of month 0 is not 1-31", 4..5),
        ("0 0 1 foo *", "month foo is not 1-12 or jan-dec", 6..9),
        ("0 0 * * 8", "day of week 8 is not 0-7 or sun-sat", 8..9),
        ("*/0 * * * *", "the step of `*/0` is not a number above zero", 0..3),
        ("40-10 * * * *", "the range 40-10 of field minute runs backwards", 0..5),
        ("5/15 * * * *", "a step needs `*` or a range before it: `5-59/15`, not `5/15`", 0..4),
        ("0 0 L * *", "day of month L is not 1-31", 4..5),
        ("0 */15 * * * *", "seconds are not part of crontab", 0..14),
        ("* * *", "`* * *` has 3 of the five fields of crontab", 0..5),
        ("0 0 31 2 *", "`0 0 31 2 *` never comes", 0..10),
        ("0 0 30 2 *", "`0 0 30 2 *` never comes", 0..10),
        ("@reboot", "`@reboot` is not a schedule", 0..7),
    ];
    for (text, message, at) in table {
        let refusal = Cron::parse(text).expect_err(text);
        assert_eq!((refusal.message.as_str(), refusal.at), (message, at), "{text}");
    }
    let help = Cron::parse("0 */15 * * * *").expect_err("six fields").help;
    assert!(help.starts_with("did you mean `*/15 * * * *`?"), "{help}");
}

/// Every minute of the days around both changes of the clock, by the definition: a minute is a tick if the wall shows one.
#[test]
fn ticks_agree_with_a_walk_over_every_minute() {
    let seed = std::env::var("TIDEGATE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7_u64);
    println!("TIDEGATE_SEED={seed}");
    let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
    let zone = Tz::Europe__Berlin;
    for start in ["2026-03-28T00:00:00Z", "2026-10-24T00:00:00Z", "2026-11-21T00:00:00Z"] {
        let start = DateTime::parse_from_rfc3339(start).expect("a time").to_utc();
        for _ in 0..15 {
            let (step, offset) = (random.random_range(1..60), random.random_range(0..60));
            let weekday = random.random_range(0..7);
            let text = format!("{offset}-59/{step} * * * {weekday}");
            let cron = Cron::parse(&text).expect("sound");
            let is_tick = |time: DateTime<Utc>| {
                let wall = time.with_timezone(&zone);
                let minute = wall.format("%M").to_string().parse::<u32>().expect("digits");
                let day = wall.format("%w").to_string().parse::<u32>().expect("digits");
                minute >= offset && (minute - offset) % step == 0 && day == weekday
            };
            let expected: Vec<DateTime<Utc>> =
                (1..=4320).map(|minute| start + TimeDelta::minutes(minute)).filter(|time| is_tick(*time)).collect();
            let mut seen = Vec::new();
            let mut now = start;
            while let Some(tick) = cron.next_after(now, zone).filter(|tick| *tick <= start + TimeDelta::minutes(4320)) {
                seen.push(tick);
                now = tick;
            }
            assert_eq!(seen, expected, "{text} from {start}");
        }
    }
}
