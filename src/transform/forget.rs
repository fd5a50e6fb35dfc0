//! Finding what is to be forgotten: by typed columns where rows were decoded, in the original bytes where they were not.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::kernels::cmp::eq;
use arrow::compute::{CastOptions, and, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use chrono::{DateTime, NaiveDate};
use serde_json::Value;

use crate::error::{Context, ErrorKind, Result};

/// Column → value, as it was typed.
pub type Values = BTreeMap<String, String>;

/// A key as values of the columns of one schema.
#[derive(Debug, Clone, PartialEq)]
pub enum Typed {
    /// One row of the key's columns.
    Row(RecordBatch),
    /// Not all columns are there: those that are, and those that are not.
    Lacks(Vec<String>, Vec<String>),
    /// A value that no row can have there, and why.
    Never(String),
}

/// The key as a row of `schema`.
pub fn typed(schema: &Schema, values: &Values) -> Result<Typed> {
    let (has, lacks): (Vec<&String>, Vec<&String>) =
        values.keys().partition(|name| schema.column_with_name(name).is_some());
    if !lacks.is_empty() {
        let owned = |names: Vec<&String>| names.into_iter().cloned().collect();
        return Ok(Typed::Lacks(owned(has), owned(lacks)));
    }
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (name, text) in values {
        let field = schema.field_with_name(name).context(ErrorKind::Failed, "a column was there a moment ago")?;
        match value(text, field.data_type()) {
            Ok(column) => columns.push(column),
            Err(why) => return Ok(Typed::Never(format!("`{name}`: {why}"))),
        }
        fields.push(Field::new(name, field.data_type().clone(), true));
    }
    let row = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns);
    Ok(Typed::Row(row.context(ErrorKind::Failed, "a key is a row")?))
}

/// One value of a column, from its text; the error says why no row has it.
fn value(text: &str, to: &DataType) -> Result<ArrayRef, String> {
    let named = |what: &str| format!("`{text}` is not {what}");
    let cast = |text: &str, what: &str| -> Result<ArrayRef, String> {
        let strict = CastOptions { safe: false, ..CastOptions::default() };
        cast_with_options(&StringArray::from(vec![text]), to, &strict).map_err(|_| named(what))
    };
    match to {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => cast(text, "text"),
        DataType::Boolean => match text {
            "true" | "false" => cast(text, "a boolean"),
            _ => Err(named("true or false")),
        },
        to if to.is_integer() => match text.parse::<i128>() {
            Ok(number) => cast(&number.to_string(), "an integer of the column's size"),
            Err(_) => Err(named("an integer")),
        },
        DataType::Decimal128(_, scale) => {
            let plain = plain_number(text).ok_or_else(|| named("a number"))?;
            let fraction = plain.split_once('.').map_or(0, |(_, fraction)| fraction.len());
            // A cast would round, and find another value.
            match fraction <= usize::try_from(*scale).unwrap_or_default() {
                true => cast(&plain, "a number that fits the column"),
                false => Err(format!("`{text}` has more digits than the column keeps")),
            }
        }
        DataType::Date32 => match NaiveDate::parse_from_str(text, "%Y-%m-%d") {
            Ok(date) => cast(&date.to_string(), "a date"),
            Err(_) => Err(named("a date such as 2026-03-17")),
        },
        DataType::Timestamp(TimeUnit::Microsecond, zone) => match DateTime::parse_from_rfc3339(text) {
            Ok(time) => {
                let times = TimestampMicrosecondArray::from(vec![time.timestamp_micros()]);
                Ok(Arc::new(times.with_timezone_opt(zone.clone())))
            }
            Err(_) => Err(named("a time such as 2026-03-17T12:00:00Z")),
        },
        other => Err(format!("a column of type {other} cannot be searched for a value")),
    }
}

/// A decimal number without what does not count: `+042.50` is `42.5`. `None` = not one.
fn plain_number(text: &str) -> Option<String> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || !whole.chars().chain(fraction.chars()).all(|c| c.is_ascii_digit()) {
        return None;
    }
    let whole = match whole.trim_start_matches('0') {
        "" => "0",
        whole => whole,
    };
    Some(match fraction.trim_end_matches('0') {
        "" if whole == "0" => "0".to_string(),
        "" => format!("{sign}{whole}"),
        fraction => format!("{sign}{whole}.{fraction}"),
    })
}

/// Which rows have the values of `row`, a batch of one row; columns are found by name.
pub fn mask(rows: &RecordBatch, row: &RecordBatch) -> Result<BooleanArray> {
    let mut mask = BooleanArray::from(vec![true; rows.num_rows()]);
    for (field, value) in row.schema().fields().iter().zip(row.columns()) {
        let Some(column) = rows.column_by_name(field.name()) else {
            return Ok(BooleanArray::from(vec![false; rows.num_rows()]));
        };
        let scalar = arrow::array::Scalar::new(value.clone());
        let equal = eq(column, &scalar).context(ErrorKind::Failed, "values cannot be compared")?;
        // Null is nobody's value.
        let equal: BooleanArray = equal.iter().map(|equal| Some(equal == Some(true))).collect();
        mask = and(&mask, &equal).context(ErrorKind::Failed, "masks cannot be joined")?;
    }
    Ok(mask)
}

/// How a dead letter, or a record that cannot be decoded, has to do with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Found {
    /// Not at all.
    No,
    /// The values stand somewhere in its bytes.
    Contains,
    /// An object of its JSON has the key's fields with the key's values.
    Has,
}

/// For each row, how the bytes and texts in `columns` have to do with the key.
pub fn find(rows: &RecordBatch, columns: &[&str], values: &Values) -> Vec<Found> {
    let columns: Vec<&ArrayRef> = columns.iter().filter_map(|name| rows.column_by_name(name)).collect();
    let found = |row: usize| {
        let mut text = String::new();
        for column in &columns {
            let Some(bytes) = bytes_of(column, row) else { continue };
            if serde_json::from_slice::<Value>(&bytes).is_ok_and(|json| json_has(&json, values)) {
                return Found::Has;
            }
            text.push_str(&String::from_utf8_lossy(&bytes));
            text.push('\n');
        }
        // Fields may stand in one column and be named in another: a key in the message's key, say.
        match values.values().all(|value| contains_word(&text, value)) {
            true => Found::Contains,
            false => Found::No,
        }
    };
    (0..rows.num_rows()).map(found).collect()
}

/// The bytes of texts, bytes, and of lists of named bytes (headers), one after the other.
fn bytes_of(column: &ArrayRef, row: usize) -> Option<Vec<u8>> {
    if column.is_null(row) {
        return None;
    }
    match column.data_type() {
        DataType::Utf8 => Some(column.as_string::<i32>().value(row).as_bytes().to_vec()),
        DataType::Binary => Some(column.as_binary::<i32>().value(row).to_vec()),
        DataType::List(_) => {
            let list = column.as_list::<i32>().value(row);
            let parts = list.as_struct_opt()?.columns();
            let mut bytes = Vec::new();
            for at in 0..list.len() {
                for part in parts.iter().filter_map(|part| bytes_of(part, at)) {
                    bytes.extend(part);
                    bytes.push(b'\n');
                }
            }
            Some(bytes)
        }
        _ => None,
    }
}

/// Whether an object, at any depth, has all fields of the key with its values.
fn json_has(json: &Value, values: &Values) -> bool {
    match json {
        Value::Object(object) => {
            values.iter().all(|(name, text)| object.get(name).is_some_and(|found| is_same(found, text)))
                || object.values().any(|inner| json_has(inner, values))
        }
        Value::Array(items) => items.iter().any(|inner| json_has(inner, values)),
        _ => false,
    }
}

fn is_same(json: &Value, text: &str) -> bool {
    match json {
        Value::String(found) => found == text,
        Value::Number(found) => {
            let found = found.to_string();
            found == text || plain_number(&found).is_some_and(|found| Some(found) == plain_number(text))
        }
        Value::Bool(found) => found.to_string() == text,
        _ => false,
    }
}

/// Whether `word` stands in `text` on its own: no letter or digit before it or after it.
fn contains_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, found)| {
        let joins = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        !joins(text[..at].chars().next_back()) && !joins(text[at + found.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{BinaryArray, Date32Array, Decimal128Array, Int64Array};

    fn values(pairs: &[(&str, &str)]) -> Values {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    fn one(name: &str, data_type: DataType, text: &str) -> Typed {
        typed(&Schema::new(vec![Field::new(name, data_type, true)]), &values(&[(name, text)])).expect("answered")
    }

    #[test]
    fn a_value_is_of_the_columns_type_or_of_no_row() {
        let decimal = || DataType::Decimal128(18, 2);
        let time = || DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        for (data_type, text) in [
            (DataType::Int32, "42.5"),
            (DataType::Int32, "abc"),
            (DataType::Int32, "99999999999"),
            (decimal(), "1.005"),
            (decimal(), "1e3"),
            (decimal(), "x"),
            (DataType::Date32, "2026-3"),
            (DataType::Date32, "17.03.2026"),
            (time(), "2026-03-17"),
            (DataType::Boolean, "yes"),
            (DataType::Float64, "1"),
            (DataType::Binary, "1"),
        ] {
            assert!(matches!(one("c", data_type.clone(), text), Typed::Never(_)), "{data_type} {text}");
        }
        for (data_type, text) in [
            (DataType::Utf8, ""),
            (DataType::Int64, "-42"),
            (DataType::Int64, "042"),
            (decimal(), "1.500"),
            (decimal(), "-7"),
            (DataType::Date32, "2026-03-17"),
            (time(), "2026-03-17T12:00:00+02:00"),
            (DataType::Boolean, "true"),
        ] {
            assert!(matches!(one("c", data_type.clone(), text), Typed::Row(_)), "{data_type} {text}");
        }
        let schema = Schema::new(vec![Field::new("a", DataType::Utf8, true)]);
        let partly = typed(&schema, &values(&[("a", "1"), ("b", "2")])).expect("answered");
        assert_eq!(partly, Typed::Lacks(vec!["a".into()], vec!["b".into()]));
    }

    #[test]
    fn rows_are_found_by_value_and_never_by_null() {
        let decimals = Decimal128Array::from(vec![Some(700), None, Some(701)]).with_precision_and_scale(18, 2);
        let rows = RecordBatch::try_from_iter([
            ("id", Arc::new(Int64Array::from(vec![Some(42), None, Some(42)])) as ArrayRef),
            ("amount", Arc::new(decimals.expect("fits")) as ArrayRef),
            ("day", Arc::new(Date32Array::from(vec![0, 0, 0])) as ArrayRef),
        ])
        .expect("rows");
        let found = |key: &[(&str, &str)]| -> Vec<bool> {
            let Typed::Row(row) = typed(&rows.schema(), &values(key)).expect("answered") else { panic!("{key:?}") };
            mask(&rows, &row).expect("compared").iter().map(|found| found.expect("never null")).collect()
        };
        assert_eq!(found(&[("id", "42")]), [true, false, true]);
        assert_eq!(found(&[("id", "42"), ("amount", "7")]), [true, false, false]);
        assert_eq!(found(&[("day", "1970-01-01"), ("amount", "7.01")]), [false, false, true]);
    }

    #[test]
    fn a_letter_has_the_field_or_merely_contains_the_value() {
        let cases: &[(&str, Found)] = &[
            (r#"{"id": 42}"#, Found::Has),
            (r#"{"id": "42", "x": 1}"#, Found::Has),
            (r#"{"id": 42.0}"#, Found::Has),
            (r#"{"after": [{"id": 42}]}"#, Found::Has),
            (r#"{"id": 421}"#, Found::No),
            (r#"{"other": 42}"#, Found::Contains),
            (r#"{"id": 42, "broken"#, Found::Contains),
            ("x,42,y", Found::Contains),
            ("x142y", Found::No),
            ("", Found::No),
        ];
        let bytes: BinaryArray = cases.iter().map(|(text, _)| Some(text.as_bytes())).collect();
        let rows = RecordBatch::try_from_iter([("value", Arc::new(bytes) as ArrayRef)]).expect("rows");
        let found = find(&rows, &["value", "absent"], &values(&[("id", "42")]));
        for ((text, expected), found) in cases.iter().zip(found) {
            assert_eq!(found, *expected, "{text}");
        }
        let both = values(&[("id", "42"), ("land", "se")]);
        let bytes = BinaryArray::from_vec(vec![br#"{"id":42,"land":"se"}"#, br#"{"id":42,"in":{"land":"se"}}"#]);
        let rows = RecordBatch::try_from_iter([("value", Arc::new(bytes) as ArrayRef)]).expect("rows");
        assert_eq!(find(&rows, &["value"], &both), [Found::Has, Found::Contains]);
    }
}
