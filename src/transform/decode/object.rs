//! One JSON record straight into typed columns, in one pass and without a tree.

use std::fmt::Write;

use arrow::datatypes::DataType;

use super::column::{Column, Shape, Values};
use super::fault::{Fault, Outcome, Path, Rule, excerpt, fault};
use super::json::Cursor;
use super::scalar::{self, Misfit};
use crate::config::spec::SchemaDrift;

/// Fields of one record that the schema does not name; kept until the record is known to be good.
#[derive(Debug, Default)]
pub(super) struct Unknown {
    /// The members of the JSON object for `_rescued`, joined by commas, each value in its exact original text.
    pub rescued: String,
    /// New columns and their values.
    pub evolved: Vec<(String, String)>,
}

impl Unknown {
    /// Before the next record.
    pub fn clear(&mut self) {
        self.rescued.clear();
        self.evolved.clear();
    }
}

/// Appends one record to `record`; on a fault the caller truncates.
pub(super) fn read_record(
    text: &str,
    shape: &Shape,
    record: &mut Column,
    drift: SchemaDrift,
    unknown: &mut Unknown,
) -> Outcome<()> {
    unknown.clear();
    let mut reader = Reader { cursor: Cursor::new(text), drift, unknown };
    match reader.cursor.peek() {
        None => return fault(Rule::Empty, "the value holds nothing but white space"),
        Some(b'{') => reader.object(shape, record, &Path::ROOT, 0)?,
        Some(0) => return fault(Rule::Malformed, CONFLUENT_HINT),
        Some(_) => {
            let value = reader.cursor.skip(0)?;
            return fault(Rule::NotAnObject, format!("expected a JSON object, found `{}`", excerpt(value)));
        }
    }
    if reader.cursor.peek().is_some() {
        let start = reader.cursor.position();
        let rest = text.get(start..).unwrap_or_default();
        return fault(Rule::TrailingData, format!("the record ends at byte {start}, then follows `{}`", excerpt(rest)));
    }
    Ok(())
}

/// Appends one JSON value that stands alone, such as a CSV field of a nested column. There is no `_rescued` to keep
/// unknown fields of its structs, so they are refused.
pub(super) fn read_cell(
    text: &str,
    shape: &Shape,
    column: &mut Column,
    path: &Path<'_>,
    unknown: &mut Unknown,
) -> Outcome<()> {
    let mut reader = Reader { cursor: Cursor::new(text), drift: SchemaDrift::Fail, unknown };
    reader.value(shape, column, path, 0)?;
    match reader.cursor.peek() {
        None => Ok(()),
        Some(_) => fault(Rule::TrailingData, format!("{path}: more than one value: `{}`", excerpt(text))),
    }
}

const CONFLUENT_HINT: &str = "not JSON: the value starts with byte 0x00, as the Schema Registry's wire format does (Avro, Protobuf, JSON Schema)";

struct Reader<'a, 'u> {
    cursor: Cursor<'a>,
    drift: SchemaDrift,
    unknown: &'u mut Unknown,
}

impl<'a> Reader<'a, '_> {
    fn value(&mut self, shape: &Shape, column: &mut Column, path: &Path<'_>, depth: usize) -> Outcome<()> {
        let Some(first) = self.cursor.peek() else { return self.cursor.malformed("expected a value") };
        let start = self.cursor.position();
        let fitted = match first {
            b'"' => {
                let text = self.cursor.string()?;
                scalar::text(shape, column, &text)
            }
            b'-' | b'0'..=b'9' => {
                let (text, integer) = self.cursor.number()?;
                scalar::number(shape, column, text.as_bytes(), integer)
            }
            b'n' => {
                self.cursor.word("null")?;
                if !shape.nullable {
                    return fault(Rule::MissingRequired, format!("{path}: null, but the column is not null"));
                }
                column.push_null();
                Ok(())
            }
            b't' => {
                self.cursor.word("true")?;
                scalar::boolean(column, true)
            }
            b'f' => {
                self.cursor.word("false")?;
                scalar::boolean(column, false)
            }
            b'{' if matches!(shape.data_type, DataType::Struct(_)) => return self.object(shape, column, path, depth),
            b'[' if matches!(shape.data_type, DataType::List(_)) => return self.list(shape, column, path, depth),
            b'{' | b'[' => {
                self.cursor.skip(depth)?;
                let reason = if first == b'{' { "an object" } else { "an array" };
                Err(Misfit { rule: Rule::TypeMismatch, reason })
            }
            _ => return self.cursor.malformed("expected a value"),
        };
        fitted.map_err(|misfit| described(misfit, shape, path, self.cursor.since(start)))
    }

    fn list(&mut self, shape: &Shape, column: &mut Column, path: &Path<'_>, depth: usize) -> Outcome<()> {
        let (Values::List { ends, element }, Some(inner)) = (&mut column.values, shape.children.first()) else {
            return self.cursor.malformed("unexpected array");
        };
        self.cursor.open(depth)?;
        let mut more = self.cursor.not_closed(b']');
        let mut index = 0;
        while more {
            self.value(inner, element, &path.index(index), depth + 1)?;
            index += 1;
            more = self.cursor.another(b']')?;
        }
        ends.push(element.len() as i32);
        column.mark_valid();
        Ok(())
    }

    fn object(&mut self, shape: &Shape, column: &mut Column, path: &Path<'_>, depth: usize) -> Outcome<()> {
        let row = column.len();
        let Values::Struct { children, order } = &mut column.values else {
            return self.cursor.malformed("unexpected object");
        };
        self.cursor.open(depth)?;
        let mut more = self.cursor.not_closed(b'}');
        let mut place = 0;
        while more {
            let key = self.cursor.key()?;
            match field(shape, order, place, &key) {
                Some(index) => {
                    let (child, inner) = (&mut children[index], &shape.children[index]);
                    let path = path.field(&inner.name);
                    if child.len() > row {
                        return fault(Rule::DuplicateField, format!("{path}: given twice"));
                    }
                    self.value(inner, child, &path, depth + 1)?;
                    place += 1;
                }
                None => self.unknown_field(&key, path, depth + 1)?,
            }
            more = self.cursor.another(b'}')?;
        }
        if place < children.len() {
            fill(shape, children, row, path)?;
        }
        column.mark_valid();
        Ok(())
    }

    fn unknown_field(&mut self, key: &str, parent: &Path<'_>, depth: usize) -> Outcome<()> {
        let value = self.cursor.skip(depth)?;
        let path = parent.field(key);
        match self.drift {
            SchemaDrift::Ignore => Ok(()),
            SchemaDrift::Rescue => {
                let rescued = &mut self.unknown.rescued;
                if !rescued.is_empty() {
                    rescued.push(',');
                }
                quote(&path.to_string(), rescued);
                rescued.push(':');
                rescued.push_str(value);
                Ok(())
            }
            SchemaDrift::Fail => fault(
                Rule::UnknownField,
                format!("{}: the schema has no such field (schema_drift: fail)", short(&path)),
            ),
            SchemaDrift::Evolve if !parent.is_root() => fault(
                Rule::UnknownField,
                format!("{}: schema_drift: evolve adds fields of the record, not of a struct in it", short(&path)),
            ),
            // A field that is only ever null says nothing about a column.
            SchemaDrift::Evolve if value == "null" => Ok(()),
            SchemaDrift::Evolve => {
                if self.unknown.evolved.iter().any(|(name, _)| name == key) {
                    return fault(Rule::DuplicateField, format!("{}: given twice", short(&path)));
                }
                let text =
                    if value.starts_with('"') { Cursor::new(value).string()?.into_owned() } else { value.into() };
                self.unknown.evolved.push((key.to_string(), text));
                Ok(())
            }
        }
    }
}

/// The index of the field `key`: producers write fields in the same order record after record, so the one that stood at
/// this place last time is tried before the map.
#[inline]
fn field(shape: &Shape, order: &mut Vec<usize>, place: usize, key: &str) -> Option<usize> {
    if let Some(&guess) = order.get(place)
        && shape.children.get(guess).is_some_and(|child| child.name == key)
    {
        return Some(guess);
    }
    let index = shape.child(key)?;
    if place < order.len() {
        order[place] = index;
    } else if place == order.len() && place < shape.children.len() {
        order.push(index);
    }
    Some(index)
}

/// Nulls for the fields that the object at `path` did not have.
pub(super) fn fill(shape: &Shape, children: &mut [Column], row: usize, path: &Path<'_>) -> Outcome<()> {
    for (child, inner) in children.iter_mut().zip(&shape.children) {
        if child.len() > row {
            continue;
        }
        if !inner.nullable {
            let path = path.field(&inner.name);
            return fault(Rule::MissingRequired, format!("{path}: missing, but the column is not null"));
        }
        child.push_null();
    }
    Ok(())
}

/// A misfit as a sentence: `amount: expected decimal(18,2), has too many digits: 12345…`.
#[cold]
pub(super) fn described(misfit: Misfit, shape: &Shape, path: &Path<'_>, value: &str) -> Box<Fault> {
    let Misfit { rule, reason } = misfit;
    let value = excerpt(value);
    let error = match rule {
        Rule::OutOfRange => format!("{path}: `{value}` is out of range for {}: {reason}", shape.type_name()),
        _ => format!("{path}: expected {}, found `{value}` ({reason})", shape.type_name()),
    };
    Box::new(Fault { rule, error })
}

fn short(path: &Path<'_>) -> String {
    excerpt(&path.to_string())
}

/// Appends `text` as a JSON string.
pub(super) fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
