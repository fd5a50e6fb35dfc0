//! What a test expects of one cell, read once by the column's type, so that `"7.00"` is the decimal 7 and times are
//! compared as instants.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float64Type, Int64Type, TimeUnit, TimestampMicrosecondType,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::{DateTime, NaiveDate, NaiveDateTime};
use serde_json::Value as Json;

use crate::config::report::{Span, closest};
use crate::config::tests::json_text;
use crate::config::yaml::{Node, Value};

/// Floats that differ by less than this share of themselves are the same: sums depend on the order of rows.
const FLOAT_TOLERANCE: f64 = 1e-9;

/// An expected value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Want {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// Unscaled digits and scale, without trailing zeros.
    Decimal(i128, i8),
    Text(String),
    /// A text column that holds JSON, expected as a mapping or list.
    Json(Json),
    Bytes(Vec<u8>),
    /// Days since the epoch.
    Date(i32),
    /// Microseconds since the epoch.
    Time(i64),
    /// The listed fields.
    Struct(Vec<(String, Want)>),
    List(Vec<Want>),
}

/// Why a text cannot be a value of the column.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub span: Span,
    pub message: String,
    pub label: String,
}

/// The value that `node` means in a column of this type.
pub(super) fn want(node: &Node, data_type: &DataType) -> Result<Want, Refusal> {
    if node.is_null() {
        return Ok(Want::Null);
    }
    match (data_type, &node.value) {
        (DataType::Struct(fields), Value::Mapping(entries)) => {
            let mut wants = Vec::new();
            for entry in entries {
                let names = || fields.iter().map(|field| field.name().as_str());
                let Some(field) = fields.iter().find(|field| *field.name() == entry.key) else {
                    let label = closest(&entry.key, names()).map(|near| format!("did you mean `{near}`?"));
                    return Err(Refusal {
                        span: entry.key_span,
                        message: format!("the struct has no field `{}`", entry.key),
                        label: label
                            .unwrap_or_else(|| format!("its fields: {}", names().collect::<Vec<_>>().join(", "))),
                    });
                };
                wants.push((entry.key.clone(), want(&entry.value, field.data_type())?));
            }
            Ok(Want::Struct(wants))
        }
        (DataType::List(element), Value::Sequence(items)) => {
            items.iter().map(|item| want(item, element.data_type())).collect::<Result<_, _>>().map(Want::List)
        }
        (DataType::Utf8, Value::Mapping(_) | Value::Sequence(_)) => {
            Ok(Want::Json(serde_json::from_str(&json_text(node)).unwrap_or(Json::Null)))
        }
        (_, Value::Scalar(scalar)) => scalar_want(&scalar.text, data_type).ok_or_else(|| refuse(node, data_type)),
        _ => Err(refuse(node, data_type)),
    }
}

fn refuse(node: &Node, data_type: &DataType) -> Refusal {
    let (kind, example) = match data_type {
        DataType::Boolean => ("a boolean", "write true or false"),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => ("a whole number", "write it like 7"),
        DataType::Float32 | DataType::Float64 => ("a number", "write it like 7.5"),
        DataType::Decimal128(..) => ("a decimal", "write it like \"7.00\""),
        DataType::Date32 => ("a date", "write it like 2026-03-17"),
        DataType::Timestamp(..) => ("a time", "write it like 2026-03-17T12:00:00Z"),
        DataType::Struct(_) => ("a mapping", "the column is a struct"),
        DataType::List(_) => ("a list", "the column is a list"),
        DataType::Utf8 | DataType::Binary => ("a text", "put it in quotes"),
        _ => ("a value that a test can compare", "leave the column out"),
    };
    let shown = node.text().map_or_else(|| "this".to_string(), |text| format!("`{text}`"));
    Refusal { span: node.span, message: format!("{shown} is not {kind}"), label: example.to_string() }
}

/// A type as it is written in a pipeline file.
pub(super) fn type_name(data_type: &DataType) -> String {
    let name = match data_type {
        DataType::Utf8 => "string",
        DataType::Binary => "binary",
        DataType::Boolean => "boolean",
        DataType::Int8 => "byte",
        DataType::Int16 => "short",
        DataType::Int32 => "int",
        DataType::Int64 => "long",
        DataType::Float32 => "float",
        DataType::Float64 => "double",
        DataType::Date32 => "date",
        DataType::Timestamp(..) => "timestamp",
        DataType::Decimal128(precision, scale) => return format!("decimal({precision},{scale})"),
        DataType::List(element) => return format!("array<{}>", type_name(element.data_type())),
        DataType::Struct(_) => "a struct",
        other => return other.to_string(),
    };
    name.to_string()
}

fn scalar_want(text: &str, data_type: &DataType) -> Option<Want> {
    Some(match data_type {
        DataType::Boolean => Want::Bool(text.to_ascii_lowercase().parse().ok()?),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => Want::Int(text.parse().ok()?),
        DataType::Float32 | DataType::Float64 => Want::Float(text.parse().ok()?),
        DataType::Decimal128(..) => decimal(text)?,
        DataType::Utf8 => Want::Text(text.to_owned()),
        DataType::Binary => Want::Bytes(text.as_bytes().to_vec()),
        DataType::Date32 => Want::Date(date(text)?),
        DataType::Timestamp(..) => Want::Time(micros(text)?),
        _ => return None,
    })
}

fn decimal(text: &str) -> Option<Want> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let numeric = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !numeric(whole) || !numeric(fraction) {
        return None;
    }
    let scale = i8::try_from(fraction.len()).ok()?;
    let unscaled: i128 = format!("{whole}{fraction}").parse().ok()?;
    Some(plain_decimal(sign * unscaled, scale))
}

/// 7.00 and 7 are the same.
fn plain_decimal(mut unscaled: i128, mut scale: i8) -> Want {
    while scale > 0 && unscaled % 10 == 0 {
        (unscaled, scale) = (unscaled / 10, scale - 1);
    }
    Want::Decimal(unscaled, scale)
}

fn date(text: &str) -> Option<i32> {
    let day = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    i32::try_from(day.signed_duration_since(NaiveDate::default()).num_days()).ok()
}

/// A time without a zone is UTC, a date is its midnight.
pub(super) fn micros(text: &str) -> Option<i64> {
    let zoned = || DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_micros());
    let plain = |format| NaiveDateTime::parse_from_str(text, format).ok().map(|time| time.and_utc().timestamp_micros());
    let midnight = || date(text).map(|days| i64::from(days) * 86_400_000_000);
    zoned().or_else(|| plain("%Y-%m-%d %H:%M:%S%.f")).or_else(|| plain("%Y-%m-%dT%H:%M:%S%.f")).or_else(midnight)
}

impl Want {
    /// Whether the cell holds this.
    pub fn holds(&self, column: &ArrayRef, row: usize) -> bool {
        if column.is_null(row) || *column.data_type() == DataType::Null {
            return *self == Want::Null;
        }
        let as_type =
            |data_type: &DataType| cast(&column.slice(row, 1), data_type).ok().filter(|cell| cell.is_valid(0));
        let time = DataType::Timestamp(TimeUnit::Microsecond, None);
        match (self, column.data_type()) {
            (Want::Null, _) => false,
            (Want::Bool(want), DataType::Boolean) => column.as_boolean().value(row) == *want,
            (Want::Int(want), data_type) if data_type.is_integer() => {
                as_type(&DataType::Int64).is_some_and(|cell| cell.as_primitive::<Int64Type>().value(0) == *want)
            }
            (Want::Float(want), data_type) if data_type.is_floating() => as_type(&DataType::Float64)
                .is_some_and(|cell| near(*want, cell.as_primitive::<Float64Type>().value(0), data_type)),
            (Want::Decimal(..), DataType::Decimal128(_, scale)) => {
                *self == plain_decimal(column.as_primitive::<Decimal128Type>().value(row), *scale)
            }
            (Want::Text(want), _) => {
                as_type(&DataType::Utf8).is_some_and(|cell| cell.as_string::<i32>().value(0) == want)
            }
            (Want::Json(want), _) => as_type(&DataType::Utf8).is_some_and(|cell| {
                serde_json::from_str::<Json>(cell.as_string::<i32>().value(0)).is_ok_and(|found| found == *want)
            }),
            (Want::Bytes(want), _) => {
                as_type(&DataType::Binary).is_some_and(|cell| cell.as_binary::<i32>().value(0) == want.as_slice())
            }
            (Want::Date(want), DataType::Date32) => column.as_primitive::<Date32Type>().value(row) == *want,
            (Want::Time(want), DataType::Timestamp(..)) => {
                as_type(&time).is_some_and(|cell| cell.as_primitive::<TimestampMicrosecondType>().value(0) == *want)
            }
            (Want::Struct(fields), DataType::Struct(_)) => fields.iter().all(|(name, want)| {
                column.as_struct().column_by_name(name).is_some_and(|column| want.holds(column, row))
            }),
            (Want::List(items), DataType::List(_)) => {
                let found = column.as_list::<i32>().value(row);
                found.len() == items.len() && items.iter().enumerate().all(|(index, want)| want.holds(&found, index))
            }
            _ => false,
        }
    }
}

fn near(want: f64, found: f64, data_type: &DataType) -> bool {
    let tolerance = if *data_type == DataType::Float32 { 1e-6 } else { FLOAT_TOLERANCE };
    want == found
        || (want.is_nan() && found.is_nan())
        || (want - found).abs() <= tolerance * want.abs().max(found.abs())
}

/// Whether two cells of one column hold the same, floats within their tolerance.
pub(super) fn same(left: &ArrayRef, left_row: usize, right: &ArrayRef, right_row: usize) -> bool {
    if left.is_null(left_row) || right.is_null(right_row) {
        return left.is_null(left_row) && right.is_null(right_row);
    }
    if let (true, Some(left), Some(right)) =
        (left.data_type().is_floating(), number(left, left_row), number(right, right_row))
    {
        return near(left, right, &DataType::Float64);
    }
    left.slice(left_row, 1).to_data() == right.slice(right_row, 1).to_data()
}

fn number(column: &ArrayRef, row: usize) -> Option<f64> {
    let cell = cast(&column.slice(row, 1), &DataType::Float64).ok()?;
    cell.is_valid(0).then(|| cell.as_primitive::<Float64Type>().value(0))
}

/// A cell as people read it.
pub(super) fn shown(column: &ArrayRef, row: usize) -> String {
    if column.is_null(row) {
        return "null".to_string();
    }
    if *column.data_type() == DataType::Binary
        && let Ok(text) = std::str::from_utf8(column.as_binary::<i32>().value(row))
    {
        return one_line(text);
    }
    let options = FormatOptions::default().with_null("null");
    match ArrayFormatter::try_new(column.as_ref(), &options) {
        Ok(formatter) => one_line(&formatter.value(row).to_string()),
        Err(_) => "?".to_string(),
    }
}

/// An expected cell as it was written.
pub(super) fn written(node: &Node) -> String {
    match &node.value {
        Value::Scalar(_) if node.is_null() => "null".to_string(),
        Value::Scalar(scalar) => one_line(&scalar.text),
        _ => json_text(node),
    }
}

/// Line ends and tabs would break the columns of a diff.
fn one_line(text: &str) -> String {
    text.replace('\n', "\\n").replace('\t', "\\t").replace('\r', "\\r")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::yaml::parse;
    use arrow::array::{
        BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int32Array, StringArray,
        TimestampMicrosecondArray,
    };
    use std::sync::Arc;

    fn holds(text: &str, column: ArrayRef) -> bool {
        let node = parse(text).0.expect("a value");
        want(&node, column.data_type()).expect("a value of the type").holds(&column, 0)
    }

    #[test]
    fn values_are_compared_by_the_columns_type() {
        let decimal = || Arc::new(Decimal128Array::from(vec![700]).with_precision_and_scale(18, 2).expect("fits"));
        let time = || Arc::new(TimestampMicrosecondArray::from(vec![1_773_748_800_000_000]).with_timezone("UTC"));
        let text = |text: &str| Arc::new(StringArray::from(vec![text]));
        let cases: Vec<(&str, ArrayRef, bool)> = vec![
            ("\"7.00\"", decimal(), true),
            ("7", decimal(), true),
            ("7.01", decimal(), false),
            ("-7", decimal(), false),
            ("2026-03-17T12:00:00Z", time(), true),
            ("2026-03-17T13:00:00+01:00", time(), true),
            ("2026-03-17 12:00:00", time(), true),
            ("2026-03-17T12:00:00.000001Z", time(), false),
            ("2026-03-17", Arc::new(Date32Array::from(vec![20_529])), true),
            ("2026-03-18", Arc::new(Date32Array::from(vec![20_529])), false),
            ("0.3", Arc::new(Float64Array::from(vec![0.1 + 0.2])), true),
            ("0.3001", Arc::new(Float64Array::from(vec![0.1 + 0.2])), false),
            ("\"5\"", Arc::new(Int32Array::from(vec![5])), true),
            ("6", Arc::new(Int32Array::from(vec![5])), false),
            ("true", Arc::new(BooleanArray::from(vec![true])), true),
            ("false", Arc::new(BooleanArray::from(vec![true])), false),
            ("1.10", text("1.10"), true),
            ("1.1", text("1.10"), false),
            ("007", text("007"), true),
            ("{b: 1, a: [x]}", text("{\"a\":[\"x\"],\"b\":1}"), true),
            ("{b: 2}", text("{\"b\":1}"), false),
            ("x", Arc::new(BinaryArray::from(vec![b"x".as_slice()])), true),
            ("null", Arc::new(StringArray::from(vec![None::<&str>])), true),
            ("\"null\"", Arc::new(StringArray::from(vec![None::<&str>])), false),
            ("null", text("x"), false),
            ("~", Arc::new(Int32Array::from(vec![0])), false),
        ];
        for (written, column, expected) in cases {
            assert_eq!(holds(written, column.clone()), expected, "{written} against {column:?}");
        }
    }

    #[test]
    fn what_cannot_be_a_value_of_the_column_is_refused() {
        for (text, data_type, message) in [
            ("abc", DataType::Int32, "`abc` is not a whole number"),
            ("1.5", DataType::Int64, "`1.5` is not a whole number"),
            ("1e3", DataType::Decimal128(18, 2), "`1e3` is not a decimal"),
            ("yes", DataType::Boolean, "`yes` is not a boolean"),
            ("17.3.2026", DataType::Date32, "`17.3.2026` is not a date"),
            ("[1]", DataType::Int32, "this is not a whole number"),
        ] {
            let node = parse(text).0.expect("a value");
            assert_eq!(want(&node, &data_type).expect_err(text).message, message);
        }
    }

    #[test]
    fn a_date_is_days_since_the_epoch() {
        assert_eq!((date("1970-01-02"), date("1969-12-31"), date("2026-3-17x")), (Some(1), Some(-1), None));
    }
}
