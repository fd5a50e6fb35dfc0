//! Why one record was set aside: a rule from a small set, and a sentence for a person.

use std::fmt::{self, Display, Write};

/// Characters of an offending value shown in an error; enough to recognise it, too few to leak a payload.
const EXCERPT_CHARS: usize = 80;

/// The decode rules, as stored in the column `rule` of the dead-letter table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Not JSON or CSV: a syntax error, a truncated value, a lone surrogate.
    Malformed,
    /// Valid JSON, but not an object.
    NotAnObject,
    /// Bytes that are not UTF-8.
    InvalidUtf8,
    /// No bytes, or only white space.
    Empty,
    /// A null value while `tombstones: quarantine`, or a tombstone that cannot fill its row.
    Tombstone,
    /// A value of another type than the column's.
    TypeMismatch,
    /// The right type, but the column cannot hold exactly this value.
    OutOfRange,
    /// A `not null` field that is absent or null.
    MissingRequired,
    /// Nested deeper than 64 levels.
    TooDeep,
    /// A value above 16 MiB.
    TooLarge,
    /// A field the schema does not name, where `schema_drift` cannot keep it.
    UnknownField,
    /// Anything after the record's end, such as a second record in the same message.
    TrailingData,
    /// A field given twice.
    DuplicateField,
    /// A CSV line with another number of fields than the schema has columns.
    FieldCount,
}

impl Rule {
    /// The stored word.
    pub fn as_str(self) -> &'static str {
        match self {
            Rule::Malformed => "malformed",
            Rule::NotAnObject => "not_an_object",
            Rule::InvalidUtf8 => "invalid_utf8",
            Rule::Empty => "empty",
            Rule::Tombstone => "tombstone",
            Rule::TypeMismatch => "type_mismatch",
            Rule::OutOfRange => "out_of_range",
            Rule::MissingRequired => "missing_required",
            Rule::TooDeep => "too_deep",
            Rule::TooLarge => "too_large",
            Rule::UnknownField => "unknown_field",
            Rule::TrailingData => "trailing_data",
            Rule::DuplicateField => "duplicate_field",
            Rule::FieldCount => "field_count",
        }
    }
}

/// One record's failure. Boxed in results, so that the path of good records stays narrow.
#[derive(Debug)]
pub(super) struct Fault {
    pub rule: Rule,
    pub error: String,
}

/// A step of decoding one record.
pub(super) type Outcome<T> = Result<T, Box<Fault>>;

/// A failed step.
pub(super) fn fault<T>(rule: Rule, error: impl Into<String>) -> Outcome<T> {
    Err(Box::new(Fault { rule, error: error.into() }))
}

/// Where in a record a value stands; a chain on the stack, turned into text only when something is wrong or rescued.
#[derive(Clone, Copy)]
pub(super) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
}

impl<'a> Path<'a> {
    pub const ROOT: Path<'static> = Path { parent: None, step: Step::Root };

    pub fn field(&'a self, name: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Field(name) }
    }

    pub fn index(&'a self, index: usize) -> Path<'a> {
        Path { parent: Some(self), step: Step::Index(index) }
    }

    pub fn is_root(&self) -> bool {
        matches!(self.step, Step::Root)
    }
}

impl Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Field(name) if self.parent.is_some_and(|p| !p.is_root()) => write!(f, ".{name}"),
            Step::Field(name) => f.write_str(name),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// The start of `text` on one line, at most 80 characters.
pub(super) fn excerpt(text: &str) -> String {
    let mut out = String::new();
    let mut shown = 0;
    for c in text.chars() {
        let shape: String = if c.is_control() { c.escape_default().collect() } else { c.to_string() };
        let width = shape.chars().count();
        // One place is kept for the ellipsis.
        if shown + width > EXCERPT_CHARS - 1 {
            out.push('…');
            return out;
        }
        shown += width;
        let _ = out.write_str(&shape);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_short_and_stays_on_one_line() {
        assert_eq!(excerpt("plain"), "plain");
        assert_eq!(excerpt("a\nb"), "a\\nb");
        assert_eq!(excerpt(&"é".repeat(500)).chars().count(), 80);
        assert_eq!(excerpt(&"\u{0}".repeat(500)).chars().filter(|c| c.is_control()).count(), 0);
        assert!(excerpt(&"\u{0}".repeat(500)).chars().count() <= 80);
    }

    #[test]
    fn paths_read_like_code() {
        let root = Path::ROOT;
        let items = root.field("items");
        let third = items.index(2);
        assert_eq!(third.field("sku").to_string(), "items[2].sku");
        assert_eq!(root.field("a").to_string(), "a");
    }
}
