//! Numbers as text: JSON's grammar, and exact values without floating point.

/// Length of the JSON number at the start of `text`, and whether it has neither fraction nor exponent; `None` when there
/// is no such number there.
pub(super) fn scan(text: &[u8]) -> Option<(usize, bool)> {
    let digits = |mut at: usize| {
        while text.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        at
    };
    let start = usize::from(text.first() == Some(&b'-'));
    let mut at = digits(start);
    // JSON knows no leading zeros: 007 may be a code that a number would change.
    if at == start || (at - start > 1 && text[start] == b'0') {
        return None;
    }
    let mut integer = true;
    if text.get(at) == Some(&b'.') {
        let end = digits(at + 1);
        if end == at + 1 {
            return None;
        }
        at = end;
        integer = false;
    }
    if matches!(text.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
        let end = digits(at + 1 + sign);
        if end == at + 1 + sign {
            return None;
        }
        at = end;
        integer = false;
    }
    Some((at, integer))
}

/// Whether all of `text` is one JSON number; `Some(true)` for plain integers.
pub(super) fn whole_text(text: &[u8]) -> Option<bool> {
    scan(text).and_then(|(len, integer)| (len == text.len()).then_some(integer))
}

/// A plain integer (see [`scan`]) of up to 18 digits; `None` when longer.
pub(super) fn short_integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first() {
        Some((b'-', digits)) => (true, digits),
        _ => (false, text),
    };
    if digits.len() > 18 {
        return None;
    }
    let value = digits.iter().fold(0i64, |value, d| value * 10 + i64::from(d - b'0'));
    Some(if negative { -value } else { value })
}

/// A number in units of `10^-scale`.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) struct Units {
    /// Rounded towards zero.
    pub units: i128,
    /// Something was cut off.
    pub inexact: bool,
}

impl Units {
    /// Rounded down, so that cutting digits never moves a time before 1970 forwards.
    pub fn floor(self, text: &[u8]) -> i128 {
        self.units - i128::from(self.inexact && text.first() == Some(&b'-'))
    }
}

/// The value of the JSON number `text` in units of `10^-scale`; `None` at 10^38 units and above.
pub(super) fn units(text: &[u8], scale: i8) -> Option<Units> {
    let (negative, body) = match text.split_first() {
        Some((b'-', body)) => (true, body),
        _ => (false, text),
    };
    // value = mantissa * 10^exponent; the first 38 significant digits are kept, the rest only counted.
    let mut mantissa: u128 = 0;
    let mut significant = 0u32;
    let mut exponent: i64 = 0;
    let mut lost = false;
    let mut fraction = false;
    let mut rest = body.iter();
    while let Some(&byte) = rest.next() {
        match byte {
            b'.' => fraction = true,
            b'e' | b'E' => {
                exponent = exponent.saturating_add(exponent_value(rest.as_slice()));
                break;
            }
            digit => {
                let digit = digit - b'0';
                if significant < 38 {
                    mantissa = mantissa * 10 + u128::from(digit);
                    significant += u32::from(mantissa != 0);
                    exponent -= i64::from(fraction);
                } else {
                    lost |= digit != 0;
                    exponent += i64::from(!fraction);
                }
            }
        }
    }
    if mantissa == 0 {
        return Some(Units { units: 0, inexact: false });
    }
    let shift = exponent.saturating_add(i64::from(scale));
    let (units, inexact) = match u32::try_from(shift.unsigned_abs()) {
        Ok(places) if places <= 38 => {
            let power = 10u128.pow(places);
            if shift >= 0 {
                (mantissa.checked_mul(power)?, lost)
            } else {
                (mantissa / power, lost || !mantissa.is_multiple_of(power))
            }
        }
        _ if shift > 0 => return None,
        _ => (0, true),
    };
    if units >= 10u128.pow(38) {
        return None;
    }
    let units = i128::try_from(units).ok()?;
    Some(Units { units: if negative { -units } else { units }, inexact })
}

fn exponent_value(text: &[u8]) -> i64 {
    let (negative, digits) = match text.split_first() {
        Some((b'-', digits)) => (true, digits),
        Some((b'+', digits)) => (false, digits),
        _ => (false, text),
    };
    let value = digits.iter().fold(0i64, |v, d| v.saturating_mul(10).saturating_add(i64::from(d - b'0')));
    if negative { -value } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_json() {
        for good in ["0", "-0", "10", "1.5", "-1.50", "1e5", "1E+5", "1.2e-3"] {
            assert!(whole_text(good.as_bytes()).is_some(), "{good}");
        }
        for bad in ["", "-", "01", "-01", "1.", ".5", "+1", "1e", "1e+", "0x1", "NaN", "Infinity", "1 ", "1_000"] {
            assert!(whole_text(bad.as_bytes()).is_none(), "{bad}");
        }
        assert_eq!(scan(b"12,"), Some((2, true)));
    }

    #[test]
    fn decimals_are_exact() {
        let exact = |text: &str, scale| units(text.as_bytes(), scale).map(|u| (u.units, u.inexact));
        assert_eq!(exact("12.30", 2), Some((1230, false)));
        assert_eq!(exact("1e2", 2), Some((10000, false)));
        assert_eq!(exact("12.3000", 2), Some((1230, false)));
        assert_eq!(exact("12.345", 2), Some((1234, true)));
        assert_eq!(exact("-0.01", 2), Some((-1, false)));
        assert_eq!(exact("0.1", 0), Some((0, true)));
        assert_eq!(exact("100000e-5", 0), Some((1, false)));
        assert_eq!(exact("0e999999999999999999999", 2), Some((0, false)));
        assert_eq!(exact("1e999999999999999999999", 2), None);
        assert_eq!(exact("1e-99999999999999999999", 2), Some((0, true)));
        let nines = "9".repeat(38);
        assert_eq!(exact(&nines, 0), Some((10i128.pow(38) - 1, false)));
        assert_eq!(exact(&format!("{nines}.0000"), 0), Some((10i128.pow(38) - 1, false)));
        assert_eq!(exact(&format!("{nines}.0001"), 0), Some((10i128.pow(38) - 1, true)));
        assert_eq!(exact(&format!("{nines}9"), 0), None);
        assert_eq!(exact(&format!("1{}", "0".repeat(38)), 0), None);
        assert_eq!(exact(&format!("0.{}1", "0".repeat(50)), 10), Some((0, true)));
        // 39 digits whose value is small again through the exponent.
        assert_eq!(exact(&format!("1{}e-38", "0".repeat(38)), 0), Some((1, false)));
        assert_eq!(exact(&format!("1{}1e-39", "0".repeat(38)), 0), Some((1, true)));
    }

    #[test]
    fn floor_moves_times_back_never_forwards() {
        assert_eq!(units(b"-1.5", 0).map(|u| u.floor(b"-1.5")), Some(-2));
        assert_eq!(units(b"1.5", 0).map(|u| u.floor(b"1.5")), Some(1));
        assert_eq!(units(b"-1.0", 0).map(|u| u.floor(b"-1.0")), Some(-1));
    }
}
