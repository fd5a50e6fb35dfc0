//! One scalar into one column, exactly or not at all.
//!
//! | column | takes |
//! |---|---|
//! | string | text, nothing else: a number that became text could not be told from one that always was |
//! | integers | numbers whose value is integral (`3`, `3.0`, `3e0`) and in range; never text |
//! | float, double | numbers, rounded to the nearest as JSON means them; what overflows is refused |
//! | decimal(p,s) | numbers and numbers in quotes, exact; digits beyond the scale must be zeros |
//! | boolean | `true`, `false` |
//! | date | `YYYY-MM-DD` |
//! | timestamp | RFC 3339 with an offset; numbers only where the column has a `unit` |
//! | binary | base64 text, standard alphabet, padded or not |

use arrow::datatypes::DataType;

use super::column::{Column, Shape, Values};
use super::fault::Rule;
use super::{number, time};
use crate::config::spec::EpochUnit;

/// Why a value does not fit its column.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) struct Misfit {
    pub rule: Rule,
    pub reason: &'static str,
}

const fn mismatch(reason: &'static str) -> Misfit {
    Misfit { rule: Rule::TypeMismatch, reason }
}

const fn range(reason: &'static str) -> Misfit {
    Misfit { rule: Rule::OutOfRange, reason }
}

/// Appends the JSON number `text`; `integer` as [`number::scan`] says.
pub(super) fn number(shape: &Shape, column: &mut Column, text: &[u8], integer: bool) -> Result<(), Misfit> {
    match (&mut column.values, &shape.data_type) {
        (Values::Whole(values), DataType::Timestamp(_, _)) => {
            let unit = shape.unit.ok_or(mismatch("a number is a time only where the column has a unit"))?;
            values.push(epoch(text, unit)?);
        }
        (Values::Whole(_), DataType::Date32) => return Err(mismatch("a date is text like 2026-03-17")),
        (Values::Whole(values), data_type) => values.push(whole(text, integer, data_type)?),
        (Values::Real(values), data_type) => values.push(real(text, data_type)?),
        (Values::Decimal(values), DataType::Decimal128(precision, scale)) => {
            values.push(decimal(text, *precision, *scale)?);
        }
        _ => return Err(mismatch("a number")),
    }
    column.mark_valid();
    Ok(())
}

/// Appends a text.
#[inline]
pub(super) fn text(shape: &Shape, column: &mut Column, text: &str) -> Result<(), Misfit> {
    match (&mut column.values, &shape.data_type) {
        (Values::Bytes(values), DataType::Utf8) => values.push(text.as_bytes()),
        (Values::Bytes(values), _) => {
            values.push(&base64(text.as_bytes()).ok_or(mismatch("not base64"))?);
        }
        (Values::Whole(values), DataType::Timestamp(_, _)) => {
            values.push(time::timestamp(text.as_bytes()).map_err(time_misfit)?);
        }
        (Values::Whole(values), DataType::Date32) => {
            values.push(i64::from(time::date(text.as_bytes()).map_err(date_misfit)?));
        }
        (Values::Decimal(values), DataType::Decimal128(precision, scale)) => {
            number::whole_text(text.as_bytes()).ok_or(mismatch("text that is not a number"))?;
            values.push(decimal(text.as_bytes(), *precision, *scale)?);
        }
        _ => return Err(mismatch("a text")),
    }
    column.mark_valid();
    Ok(())
}

/// Appends a truth value.
pub(super) fn boolean(column: &mut Column, value: bool) -> Result<(), Misfit> {
    let Values::Flag(values) = &mut column.values else { return Err(mismatch("a boolean")) };
    values.push(value);
    column.mark_valid();
    Ok(())
}

/// Appends a value that has no type of its own (a CSV field, a record key), read as the column's type.
pub(super) fn untyped(shape: &Shape, column: &mut Column, value: &str) -> Result<(), Misfit> {
    let numeric = match &shape.data_type {
        DataType::Boolean => {
            return match value {
                "true" => boolean(column, true),
                "false" => boolean(column, false),
                _ => Err(mismatch("neither true nor false")),
            };
        }
        DataType::Utf8 | DataType::Binary | DataType::Date32 => false,
        DataType::Timestamp(_, _) => shape.unit.is_some() && number::whole_text(value.as_bytes()).is_some(),
        _ => true,
    };
    if !numeric {
        return text(shape, column, value);
    }
    let integer = number::whole_text(value.as_bytes()).ok_or(mismatch("not a number"))?;
    number(shape, column, value.as_bytes(), integer)
}

fn whole(text: &[u8], integer: bool, data_type: &DataType) -> Result<i64, Misfit> {
    let value = match integer.then(|| number::short_integer(text)).flatten() {
        Some(value) => value,
        None => match number::units(text, 0) {
            Some(units) if units.inexact => return Err(range("not a whole number")),
            Some(units) => i64::try_from(units.units).map_err(|_| range("does not fit"))?,
            None => return Err(range("does not fit")),
        },
    };
    let fits = match data_type {
        DataType::Int8 => i8::try_from(value).is_ok(),
        DataType::Int16 => i16::try_from(value).is_ok(),
        DataType::Int32 => i32::try_from(value).is_ok(),
        _ => true,
    };
    if fits { Ok(value) } else { Err(range("does not fit")) }
}

fn real(text: &[u8], data_type: &DataType) -> Result<f64, Misfit> {
    let text = std::str::from_utf8(text).map_err(|_| mismatch("not a number"))?;
    // Straight to 32 bits for `float`: by way of 64 it would be rounded twice.
    let value = match data_type {
        DataType::Float32 => text.parse::<f32>().map(f64::from),
        _ => text.parse::<f64>(),
    };
    match value {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(_) => Err(range("does not fit")),
        Err(_) => Err(mismatch("not a number")),
    }
}

fn decimal(text: &[u8], precision: u8, scale: i8) -> Result<i128, Misfit> {
    let units = number::units(text, scale).ok_or(range("has too many digits"))?;
    if units.inexact {
        return Err(range("has more decimals than the column"));
    }
    if units.units.unsigned_abs() >= 10u128.pow(u32::from(precision.min(38))) {
        return Err(range("has too many digits"));
    }
    Ok(units.units)
}

/// Digits beyond microseconds are cut off, as in text.
fn epoch(text: &[u8], unit: EpochUnit) -> Result<i64, Misfit> {
    let scale = match unit {
        EpochUnit::Seconds => 6,
        EpochUnit::Millis => 3,
        EpochUnit::Micros => 0,
    };
    number::units(text, scale)
        .and_then(|units| i64::try_from(units.floor(text)).ok())
        .filter(|micros| (time::FIRST_MICROS..time::END_MICROS).contains(micros))
        .ok_or(range("is outside the years 1 to 9999; is the column's unit right?"))
}

fn time_misfit(why: time::TimeFault) -> Misfit {
    match why {
        time::TimeFault::Shape => mismatch("not an RFC 3339 time"),
        time::TimeFault::DateOnly => mismatch("a date without a time"),
        time::TimeFault::NoOffset => mismatch("a time without an offset (Z or +00:00)"),
        time::TimeFault::NoSuchMoment => range("no such moment"),
    }
}

fn date_misfit(why: time::TimeFault) -> Misfit {
    match why {
        time::TimeFault::NoSuchMoment => range("no such day"),
        _ => mismatch("not a date like 2026-03-17"),
    }
}

/// Standard base64; padding may be left out, but bits that would be lost must be zero.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let body = match text {
        [body @ .., b'=', b'='] if text.len().is_multiple_of(4) => body,
        [body @ .., b'='] if text.len().is_multiple_of(4) => body,
        _ => text,
    };
    let mut out = Vec::with_capacity(body.len() / 4 * 3 + 2);
    for group in body.chunks(4) {
        let mut bits = 0u32;
        for &byte in group {
            bits = bits << 6 | u32::from(sextet(byte)?);
        }
        match group.len() {
            4 => out.extend_from_slice(&bits.to_be_bytes()[1..]),
            3 if bits & 0b11 == 0 => out.extend_from_slice(&(bits >> 2).to_be_bytes()[2..]),
            2 if bits & 0b1111 == 0 => out.extend_from_slice(&(bits >> 4).to_be_bytes()[3..]),
            _ => return None,
        }
    }
    Some(out)
}

fn sextet(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_exactly() {
        let cases = [
            ("", ""),
            ("Zg==", "f"),
            ("Zg", "f"),
            ("Zm8=", "fo"),
            ("Zm8", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg==", "foob"),
        ];
        for (text, bytes) in cases {
            assert_eq!(base64(text.as_bytes()).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        assert_eq!(base64(b"//79"), Some(vec![0xff, 0xfe, 0xfd]));
        for bad in ["Z", "Zh==", "Zg=", "Z===", "====", "Zm9v!", "Zm 9v", "-_==", "=Zg="] {
            assert_eq!(base64(bad.as_bytes()), None, "{bad}");
        }
    }
}
