//! Dates and times as text: RFC 3339 to UTC microseconds, calendar dates to days. Nothing is guessed: a time without an
//! offset names no instant.

const MICROS_PER_SECOND: i64 = 1_000_000;

/// 0001-01-01T00:00:00Z and 10000-01-01T00:00:00Z: what every reader of Delta tables can print.
pub(super) const FIRST_MICROS: i64 = -62_135_596_800 * MICROS_PER_SECOND;
pub(super) const END_MICROS: i64 = 253_402_300_800 * MICROS_PER_SECOND;

/// Why a text is not a time.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum TimeFault {
    /// Another shape.
    Shape,
    /// A date without a time.
    DateOnly,
    /// No offset.
    NoOffset,
    /// No such moment, such as 30 February or second 60.
    NoSuchMoment,
}

/// `2026-03-17T12:00:00[.123456789](Z|+02:00)` as UTC microseconds. Digits beyond microseconds are cut off, as Spark and
/// Delta do. A blank or `t` for `T`, and offsets `+0200` and `+02`, are understood: they are unambiguous and common.
pub(super) fn timestamp(text: &[u8]) -> Result<i64, TimeFault> {
    let (days, rest) = calendar(text)?;
    let rest = match rest.split_first() {
        None => return Err(TimeFault::DateOnly),
        Some((b'T' | b't' | b' ', rest)) => rest,
        Some(_) => return Err(TimeFault::Shape),
    };
    let [h1, h2, b':', m1, m2, b':', s1, s2, rest @ ..] = rest else { return Err(TimeFault::Shape) };
    let (hour, minute, second) = (two(*h1, *h2)?, two(*m1, *m2)?, two(*s1, *s2)?);
    if hour > 23 || minute > 59 || second > 59 {
        return Err(TimeFault::NoSuchMoment);
    }
    let (micros, rest) = fraction(rest)?;
    let offset = offset_minutes(rest)?;
    let minutes = (days * 24 + hour) * 60 + minute - offset;
    let instant = (minutes * 60 + second) * MICROS_PER_SECOND + micros;
    if (FIRST_MICROS..END_MICROS).contains(&instant) { Ok(instant) } else { Err(TimeFault::NoSuchMoment) }
}

/// `2026-03-17` as days since 1970.
pub(super) fn date(text: &[u8]) -> Result<i32, TimeFault> {
    match calendar(text)? {
        (days, []) => i32::try_from(days).map_err(|_| TimeFault::NoSuchMoment),
        _ => Err(TimeFault::Shape),
    }
}

fn calendar(text: &[u8]) -> Result<(i64, &[u8]), TimeFault> {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, rest @ ..] = text else { return Err(TimeFault::Shape) };
    let year = two(*y1, *y2)? * 100 + two(*y3, *y4)?;
    let (month, day) = (two(*m1, *m2)?, two(*d1, *d2)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last = match month {
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => 31,
    };
    if year == 0 || !(1..=12).contains(&month) || !(1..=last).contains(&day) {
        return Err(TimeFault::NoSuchMoment);
    }
    // Days from civil (Hinnant): years start in March, so that the leap day is the last of its year.
    let shifted = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (shifted / 400, shifted % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Ok((era * 146_097 + day_of_era - 719_468, rest))
}

fn fraction(text: &[u8]) -> Result<(i64, &[u8]), TimeFault> {
    let Some((b'.', digits)) = text.split_first() else { return Ok((0, text)) };
    let len = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    if !(1..=9).contains(&len) {
        return Err(TimeFault::Shape);
    }
    let kept = len.min(6);
    let value = digits[..kept].iter().fold(0i64, |value, d| value * 10 + i64::from(d - b'0'));
    let missing = u32::try_from(6 - kept).unwrap_or(0);
    Ok((value * 10i64.pow(missing), &digits[len..]))
}

fn offset_minutes(text: &[u8]) -> Result<i64, TimeFault> {
    let (sign, hours, minutes) = match text {
        [] => return Err(TimeFault::NoOffset),
        [b'Z' | b'z'] => return Ok(0),
        [sign, h1, h2, b':', m1, m2] | [sign, h1, h2, m1, m2] => (sign, two(*h1, *h2)?, two(*m1, *m2)?),
        [sign, h1, h2] => (sign, two(*h1, *h2)?, 0),
        _ => return Err(TimeFault::Shape),
    };
    if hours > 23 || minutes > 59 {
        return Err(TimeFault::NoSuchMoment);
    }
    match sign {
        b'+' => Ok(hours * 60 + minutes),
        b'-' => Ok(-(hours * 60 + minutes)),
        _ => Err(TimeFault::Shape),
    }
}

fn two(tens: u8, ones: u8) -> Result<i64, TimeFault> {
    if tens.is_ascii_digit() && ones.is_ascii_digit() {
        Ok(i64::from(tens - b'0') * 10 + i64::from(ones - b'0'))
    } else {
        Err(TimeFault::Shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{DateTime, NaiveDate};
    use proptest::prelude::*;

    #[test]
    fn offsets_become_utc() {
        let noon = timestamp(b"2026-03-17T12:00:00Z");
        assert!(noon.is_ok());
        for same in [
            "2026-03-17T14:00:00+02:00",
            "2026-03-17T14:00:00+0200",
            "2026-03-17 14:00:00+02",
            "2026-03-17t12:00:00.000000999z",
            "2026-03-17T12:00:00-00:00",
        ] {
            assert_eq!(timestamp(same.as_bytes()), noon, "{same}");
        }
    }

    #[test]
    fn nothing_is_guessed() {
        let cases = [
            ("2026-03-17", TimeFault::DateOnly),
            ("2026-03-17T12:00:00", TimeFault::NoOffset),
            ("2026-03-17T12:00:00.5", TimeFault::NoOffset),
            ("2026-02-29T12:00:00Z", TimeFault::NoSuchMoment),
            ("2026-03-17T23:59:60Z", TimeFault::NoSuchMoment),
            ("2026-03-17T24:00:00Z", TimeFault::NoSuchMoment),
            ("0000-01-01T00:00:00Z", TimeFault::NoSuchMoment),
            ("0001-01-01T00:00:00+01:00", TimeFault::NoSuchMoment),
            ("2026-03-17T12:00:00.1234567890Z", TimeFault::Shape),
            ("2026-03-17T12:00:00.Z", TimeFault::Shape),
            ("2026-03-17T12:00Z", TimeFault::Shape),
            ("2026-03-17T12:00:00Zx", TimeFault::Shape),
            ("1773748800", TimeFault::Shape),
            ("", TimeFault::Shape),
            ("２０２６-03-17T12:00:00Z", TimeFault::Shape),
        ];
        for (text, why) in cases {
            assert_eq!(timestamp(text.as_bytes()), Err(why), "{text}");
        }
        assert_eq!(date(b"2026-03-17T00:00:00Z"), Err(TimeFault::Shape));
        assert_eq!(date(b"2026-13-01"), Err(TimeFault::NoSuchMoment));
    }

    proptest! {
        #[test]
        fn times_are_what_chrono_says(seconds in -62_135_596_800i64..253_402_300_800, nanos in 0u32..1_000_000_000) {
            let when = DateTime::from_timestamp(seconds, nanos).expect("in range");
            let text = when.format("%Y-%m-%dT%H:%M:%S%.9fZ").to_string();
            prop_assert_eq!(timestamp(text.as_bytes()), Ok(when.timestamp_micros()));
            let day = when.date_naive();
            let days = day.signed_duration_since(NaiveDate::default()).num_days();
            prop_assert_eq!(date(day.to_string().as_bytes()).map(i64::from), Ok(days));
        }
    }
}
