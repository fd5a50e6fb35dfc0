//! Durations, sizes, counts, percents and rates as people write them. The field decides what a text means, so `500_000`
//! and `256MB` need no quotes, and every refusal shows an example.

use std::time::Duration;

/// Why a text is not the unit it should be: a sentence with an example.
pub type Refusal = String;

/// `30s`, `5m`, `1h30m`, `7d`, `250ms`.
pub fn duration(text: &str) -> Result<Duration, Refusal> {
    let refuse = || format!("`{text}` is not a duration; write it like 30s, 5m, 1h30m or 7d");
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(refuse());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(refuse)?;
        let number: u64 = rest[..digits].parse().map_err(|_| refuse())?;
        let after = &rest[digits..];
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let millis: u64 = match &after[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(refuse()),
        };
        let part = number.checked_mul(millis).ok_or_else(refuse)?;
        total = total.checked_add(Duration::from_millis(part)).ok_or_else(refuse)?;
        rest = &after[letters..];
    }
    Ok(total)
}

/// `256MB` (decimal), `64MiB` (binary), `1048576`.
pub fn size(text: &str) -> Result<u64, Refusal> {
    let refuse = || format!("`{text}` is not a size; write it like 256MB, 64MiB or 1GB");
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let number = digits_of(&text[..digits]).ok_or_else(refuse)?;
    let factor: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(refuse()),
    };
    number.checked_mul(factor).ok_or_else(refuse)
}

/// `500_000`, `500000`.
pub fn count(text: &str) -> Result<u64, Refusal> {
    digits_of(text.trim()).ok_or_else(|| format!("`{text}` is not a count; write it like 500_000"))
}

/// `1%`, `0.5%`: the share, 0..=1. A bare number is refused, because `1` may mean one percent or all.
pub fn percent(text: &str) -> Result<f64, Refusal> {
    let refuse = || format!("`{text}` is not a percentage; write it like 1% or 0.5%");
    let trimmed = text.trim();
    let number = match trimmed.strip_suffix('%') {
        Some(number) => number.trim_end(),
        None if trimmed == "0" => "0",
        None => return Err(refuse()),
    };
    let percent = decimal(number).ok_or_else(refuse)?;
    if percent > 100.0 {
        return Err(format!("`{text}` is more than 100%"));
    }
    Ok(percent / 100.0)
}

/// `5000/s`, `300/m`: per second.
pub fn rate(text: &str) -> Result<f64, Refusal> {
    let refuse = || format!("`{text}` is not a rate; write it like 5000/s or 300/m");
    let (number, per) = text.trim().split_once('/').ok_or_else(refuse)?;
    let number = decimal(&number.trim_end().replace('_', "")).ok_or_else(refuse)?;
    let seconds = match per.trim() {
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(refuse()),
    };
    if number <= 0.0 {
        return Err(format!("the rate `{text}` must be above zero"));
    }
    Ok(number / seconds)
}

/// Digits with single underscores between them.
fn digits_of(text: &str) -> Option<u64> {
    let tidy = !text.starts_with('_') && !text.ends_with('_') && !text.contains("__");
    let digits = text.chars().all(|c| c.is_ascii_digit() || c == '_');
    if !tidy || !digits {
        return None;
    }
    text.replace('_', "").parse().ok()
}

/// Digits with at most one point: no sign, no exponent, no `inf`.
fn decimal(text: &str) -> Option<f64> {
    let shape = text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(|c| c.is_ascii_digit() || c == '.');
    if shape { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_up() {
        for (text, millis) in
            [("30s", 30_000), ("5m", 300_000), ("1h30m", 5_400_000), ("7d", 604_800_000), ("250ms", 250)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "30", "s", "5 m", "1w", "-1s", "1.5h", "99999999999999999999s", "9999999999999999999d", "ü"] {
            let refusal = duration(text).expect_err(text);
            assert!(refusal.contains("1h30m"), "{refusal}");
        }
    }

    #[test]
    fn sizes_tell_decimal_from_binary() {
        for (text, bytes) in [("256MB", 256_000_000), ("64MiB", 64 << 20), ("1_000", 1_000), ("2 gb", 2_000_000_000)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MB", "1.5GB", "1XB", "99999999TB", "_1"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn counts_take_underscores_between_digits() {
        assert_eq!(count("500_000"), Ok(500_000));
        for text in ["", "_5", "5_", "5__0", "5e3", "-1", "five"] {
            assert!(count(text).is_err(), "{text}");
        }
    }

    #[test]
    fn percents_need_the_sign() {
        assert_eq!(percent("1%"), Ok(0.01));
        assert_eq!(percent("0.5%"), Ok(0.005));
        assert_eq!(percent("0"), Ok(0.0));
        for text in ["1", "0.5", "101%", "-1%", "%", "nan%", "inf%"] {
            assert!(percent(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_are_per_second() {
        assert_eq!(rate("5000/s"), Ok(5000.0));
        assert_eq!(rate("5_000/s"), Ok(5000.0));
        assert_eq!(rate("300/m"), Ok(5.0));
        for text in ["5000", "0/s", "/s", "5/d", "inf/s"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
