//! A cursor over one record's JSON: strict RFC 8259, no recursion without a limit, no panic on any input.

use std::borrow::Cow;

use super::fault::{Outcome, Rule, excerpt, fault};
use super::number;

/// Levels of nesting. Real payloads stay below 10; a stack frame per level makes an unlimited depth a crash.
pub(super) const MAX_DEPTH: usize = 64;

/// Reads one text from front to back.
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(text: &'a str) -> Self {
        Cursor { text, at: 0 }
    }

    /// Where the cursor stands.
    pub fn position(&self) -> usize {
        self.at
    }

    /// The text from `start` to the cursor.
    pub fn since(&self, start: usize) -> &'a str {
        self.text.get(start..self.at).unwrap_or_default()
    }

    /// Skips white space and looks at the next byte.
    #[inline]
    pub fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(byte) = bytes.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }

    /// Skips white space and takes `byte`.
    #[inline]
    pub fn expect(&mut self, byte: u8) -> Outcome<()> {
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        self.malformed(&format!("expected `{}`", byte as char))
    }

    /// After a member or element: true when another follows, false at `close`.
    #[inline]
    pub fn another(&mut self, close: u8) -> Outcome<bool> {
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            _ => self.malformed(&format!("expected `,` or `{}`", close as char)),
        }
    }

    /// A syntax error here.
    #[cold]
    pub fn malformed<T>(&self, what: &str) -> Outcome<T> {
        let found = match self.text.get(self.at..) {
            Some("") | None => "the end of the record".to_string(),
            Some(rest) => format!("`{}`", excerpt(rest)),
        };
        fault(Rule::Malformed, format!("{what} at byte {}, found {found}", self.at))
    }

    /// The string at the cursor (which stands on its quote), unescaped.
    #[inline]
    pub fn string(&mut self) -> Outcome<Cow<'a, str>> {
        let bytes = self.text.as_bytes();
        let start = self.at + 1;
        let mut at = plain(bytes, start);
        if bytes.get(at) == Some(&b'"') {
            self.at = at + 1;
            return Ok(Cow::Borrowed(&self.text[start..at]));
        }
        let mut out = String::new();
        let mut copied = start;
        loop {
            match bytes.get(at) {
                Some(b'"') => {
                    out.push_str(&self.text[copied..at]);
                    self.at = at + 1;
                    return Ok(Cow::Owned(out));
                }
                Some(b'\\') => {
                    out.push_str(&self.text[copied..at]);
                    self.at = at;
                    out.push(self.escape()?);
                    copied = self.at;
                    at = plain(bytes, copied);
                }
                None => {
                    self.at = at;
                    return self.malformed("expected the closing quote of a string");
                }
                Some(_) => {
                    self.at = at;
                    return self.malformed("control characters in strings must be escaped");
                }
            }
        }
    }

    /// The character that the escape at the cursor stands for.
    fn escape(&mut self) -> Outcome<char> {
        let bytes = self.text.as_bytes();
        let c = match bytes.get(self.at + 1) {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(),
            _ => return self.malformed("unknown escape"),
        };
        self.at += 2;
        Ok(c)
    }

    fn unicode_escape(&mut self) -> Outcome<char> {
        let bytes = self.text.as_bytes();
        let hex = |at: usize| -> Option<u32> {
            bytes.get(at..at + 4)?.iter().try_fold(0u32, |v, b| Some(v * 16 + char::from(*b).to_digit(16)?))
        };
        let unit = hex(self.at + 2);
        let (code, len) = match unit {
            Some(high @ 0xd800..=0xdbff) if bytes.get(self.at + 6..self.at + 8) == Some(b"\\u") => {
                match hex(self.at + 8) {
                    Some(low @ 0xdc00..=0xdfff) => (Some(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)), 12),
                    _ => (None, 6),
                }
            }
            unit => (unit, 6),
        };
        // A lone surrogate is no character: storing a replacement would change the data.
        match code.and_then(char::from_u32) {
            Some(c) => {
                self.at += len;
                Ok(c)
            }
            None => self.malformed("invalid unicode escape"),
        }
    }

    /// The number at the cursor, and whether it is a plain integer.
    #[inline]
    pub fn number(&mut self) -> Outcome<(&'a str, bool)> {
        let start = self.at;
        let Some((len, integer)) = self.text.as_bytes().get(start..).and_then(number::scan) else {
            return self.malformed("expected a number");
        };
        self.at += len;
        Ok((&self.text[start..self.at], integer))
    }

    /// Takes the bare word `word`.
    #[inline]
    pub fn word(&mut self, word: &str) -> Outcome<()> {
        if self.text.as_bytes().get(self.at..self.at + word.len()) == Some(word.as_bytes()) {
            self.at += word.len();
            return Ok(());
        }
        self.malformed("expected a value")
    }

    /// Moves past one value of any kind, checking its syntax; returns its exact text.
    pub fn skip(&mut self, depth: usize) -> Outcome<&'a str> {
        let first = self.peek();
        let start = self.at;
        match first {
            Some(b'"') => {
                self.string()?;
            }
            Some(b'-' | b'0'..=b'9') => {
                self.number()?;
            }
            Some(b't') => self.word("true")?,
            Some(b'f') => self.word("false")?,
            Some(b'n') => self.word("null")?,
            Some(b'[') => {
                self.open(depth)?;
                let mut more = self.not_closed(b']');
                while more {
                    self.skip(depth + 1)?;
                    more = self.another(b']')?;
                }
            }
            Some(b'{') => {
                self.open(depth)?;
                let mut more = self.not_closed(b'}');
                while more {
                    self.key()?;
                    self.skip(depth + 1)?;
                    more = self.another(b'}')?;
                }
            }
            _ => return self.malformed("expected a value"),
        }
        Ok(self.since(start))
    }

    /// Steps into an object or array that is the `depth`th level, counted from 0.
    #[inline]
    pub fn open(&mut self, depth: usize) -> Outcome<()> {
        if depth >= MAX_DEPTH {
            return fault(Rule::TooDeep, format!("nested deeper than {MAX_DEPTH} levels at byte {}", self.at));
        }
        self.at += 1;
        Ok(())
    }

    /// After [`Cursor::open`]: false (and past it) when `close` follows at once.
    #[inline]
    pub fn not_closed(&mut self, close: u8) -> bool {
        let empty = self.peek() == Some(close);
        self.at += usize::from(empty);
        !empty
    }

    /// A member's key and the colon after it.
    #[inline]
    pub fn key(&mut self) -> Outcome<Cow<'a, str>> {
        if self.peek() != Some(b'"') {
            return self.malformed("expected a field name in quotes");
        }
        let key = self.string()?;
        self.expect(b':')?;
        Ok(key)
    }
}

/// The first position from `at` on that ends a run of plain string bytes: a quote, a backslash, a control character, or
/// the end.
#[inline]
fn plain(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = 0x8080_8080_8080_8080;
    // Eight bytes at a time: the classic "has a zero byte" test, which may only err by flagging too much after a hit.
    while let Some(Ok(eight)) = bytes.get(at..at + 8).map(<[u8; 8]>::try_from) {
        let word = u64::from_le_bytes(eight);
        let zero = |x: u64| x.wrapping_sub(ONES) & !x & TOPS;
        let control = word.wrapping_sub(ONES * 0x20) & !word & TOPS;
        let hit = zero(word ^ (ONES * u64::from(b'"'))) | zero(word ^ (ONES * u64::from(b'\\'))) | control;
        if hit != 0 {
            return at + (hit.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while let Some(byte) = bytes.get(at) {
        if matches!(byte, b'"' | b'\\' | 0..=0x1f) {
            break;
        }
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_is_read_as_serde_json_reads_it(text in "[\\[\\]{}:,\"\\\\a0-9.eE+ntrufls\u{e9}\n -]{0,24}") {
            let mut cursor = Cursor::new(&text);
            let ours = cursor.skip(0).is_ok() && cursor.peek().is_none();
            let theirs = serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok();
            prop_assert_eq!(ours, theirs, "{}", text);
        }

        #[test]
        fn any_string_comes_back(value in any::<String>()) {
            let text = serde_json::to_string(&value).expect("strings are JSON");
            let mut cursor = Cursor::new(&text);
            prop_assert_eq!(cursor.string().expect("valid").into_owned(), value);
        }

        #[test]
        fn plain_stops_where_a_simple_loop_stops(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let simple = bytes.iter().position(|b| matches!(b, b'"' | b'\\' | 0..=0x1f)).unwrap_or(bytes.len());
            prop_assert_eq!(plain(&bytes, 0), simple);
        }
    }

    #[test]
    fn escapes() {
        let read = |text: &str| Cursor::new(text).string().map(Cow::into_owned);
        assert_eq!(read(r#""a\u00e9\n\ud83d\ude00/\/""#).expect("valid"), "aé\n😀//");
        for bad in
            [r#""\ud800""#, r#""\udc00x""#, r#""\ud800\u0041""#, r#""\x""#, r#""\u12""#, r#""\"#, "\"a\nb\"", "\"a"]
        {
            assert_eq!(read(bad).expect_err("refused").rule, Rule::Malformed, "{bad}");
        }
    }
}
