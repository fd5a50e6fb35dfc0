//! One CSV line per record, columns in schema order, RFC 4180 quotes. An empty field is null, `""` is the empty text.
//! Fields are not trimmed; the line may end with a line break. A struct or array field holds JSON.

use super::column::{Column, Shape, Values};
use super::fault::{Outcome, Path, Rule, excerpt, fault};
use super::object::{Unknown, described, read_cell};
use super::scalar;
use arrow::datatypes::DataType;
use std::borrow::Cow;

/// Appends one line to `record`; on a fault the caller truncates.
pub(super) fn read_line(text: &str, shape: &Shape, record: &mut Column, unknown: &mut Unknown) -> Outcome<()> {
    let line = text.strip_suffix('\n').unwrap_or(text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    let Values::Struct { children, .. } = &mut record.values else {
        return fault(Rule::Malformed, "unexpected line");
    };
    let mut rest = Some(line);
    let mut count = 0;
    while let Some(text) = rest {
        let (field, after) = split(text)?;
        rest = after;
        if let (Some(child), Some(inner)) = (children.get_mut(count), shape.children.get(count)) {
            value(inner, child, &field, unknown)?;
        }
        count += 1;
    }
    if count != shape.children.len() {
        let expected = shape.children.len();
        return fault(Rule::FieldCount, format!("expected {expected} fields, found {count}: `{}`", excerpt(line)));
    }
    record.mark_valid();
    Ok(())
}

fn value(shape: &Shape, column: &mut Column, field: &Field<'_>, unknown: &mut Unknown) -> Outcome<()> {
    let path = Path::ROOT;
    let path = path.field(&shape.name);
    if field.text.is_empty() && !field.quoted {
        if !shape.nullable {
            return fault(Rule::MissingRequired, format!("{path}: empty, but the column is not null"));
        }
        column.push_null();
        return Ok(());
    }
    match shape.data_type {
        DataType::Struct(_) | DataType::List(_) => read_cell(&field.text, shape, column, &path, unknown),
        _ => scalar::untyped(shape, column, &field.text).map_err(|m| described(m, shape, &path, &field.text)),
    }
}

struct Field<'a> {
    text: Cow<'a, str>,
    quoted: bool,
}

/// The first field of `text`, and what follows its comma.
fn split(text: &str) -> Outcome<(Field<'_>, Option<&str>)> {
    let Some(body) = text.strip_prefix('"') else {
        let (field, after) = match text.split_once(',') {
            Some((field, after)) => (field, Some(after)),
            None => (text, None),
        };
        if field.contains(['\n', '\r']) {
            return fault(Rule::TrailingData, format!("a second line in one record: `{}`", excerpt(field)));
        }
        if field.contains('"') {
            return fault(Rule::Malformed, format!("a quote inside a field without quotes: `{}`", excerpt(field)));
        }
        return Ok((Field { text: Cow::Borrowed(field), quoted: false }, after));
    };
    let mut from = 0;
    let mut doubled = false;
    loop {
        let Some(at) = body[from..].find('"').map(|at| at + from) else {
            return fault(Rule::Malformed, format!("a quoted field does not end: `{}`", excerpt(text)));
        };
        if body[at + 1..].starts_with('"') {
            doubled = true;
            from = at + 2;
            continue;
        }
        let inner = &body[..at];
        let field = if doubled { Cow::Owned(inner.replace("\"\"", "\"")) } else { Cow::Borrowed(inner) };
        let after = &body[at + 1..];
        let after = match after.strip_prefix(',') {
            Some(after) => Some(after),
            None if after.is_empty() => None,
            None if after.starts_with(['\n', '\r']) => {
                return fault(Rule::TrailingData, format!("a second line in one record: `{}`", excerpt(after)));
            }
            None => return fault(Rule::Malformed, format!("text after a closing quote: `{}`", excerpt(after))),
        };
        return Ok((Field { text: field, quoted: true }, after));
    }
}
