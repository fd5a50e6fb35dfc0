//! One row as JSON text, for dead letters and error messages: exact (decimals as text, times as RFC 3339, bytes as
//! base64), nulls shown.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{
    DataType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimeUnit, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use serde_json::{Map, Number, Value};

/// Row `row` of `batch` as one JSON object, fields in the order of the columns.
pub fn row_json(batch: &RecordBatch, row: usize) -> String {
    // Not a serde_json map at the top: it would sort the columns.
    let mut text = String::from("{");
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&Value::from(field.name().as_str()).to_string());
        text.push(':');
        text.push_str(&value(column, row).to_string());
    }
    text.push('}');
    text
}

fn value(array: &ArrayRef, row: usize) -> Value {
    if row >= array.len() || array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int8 => array.as_primitive::<Int8Type>().value(row).into(),
        DataType::Int16 => array.as_primitive::<Int16Type>().value(row).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::UInt8 => array.as_primitive::<UInt8Type>().value(row).into(),
        DataType::UInt16 => array.as_primitive::<UInt16Type>().value(row).into(),
        DataType::UInt32 => array.as_primitive::<UInt32Type>().value(row).into(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().value(row).into(),
        DataType::Float16 => float(array.as_primitive::<Float16Type>().value(row).to_f64()),
        // The shortest decimal that reads back as the same 32 bits, not the 64-bit neighbour.
        DataType::Float32 => {
            let single = array.as_primitive::<Float32Type>().value(row);
            float(single.to_string().parse().unwrap_or(f64::from(single)))
        }
        DataType::Float64 => float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(row).into(),
        DataType::Utf8View => array.as_string_view().value(row).into(),
        DataType::Binary => base64(array.as_binary::<i32>().value(row)).into(),
        DataType::LargeBinary => base64(array.as_binary::<i64>().value(row)).into(),
        DataType::BinaryView => base64(array.as_binary_view().value(row)).into(),
        DataType::List(_) => elements(&array.as_list::<i32>().value(row)),
        DataType::LargeList(_) => elements(&array.as_list::<i64>().value(row)),
        DataType::FixedSizeList(_, _) => elements(&array.as_fixed_size_list().value(row)),
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns();
            let pairs = fields.iter().zip(columns).map(|(f, column)| (f.name().clone(), value(column, row)));
            Value::Object(pairs.collect::<Map<_, _>>())
        }
        DataType::Timestamp(unit, zone) => formatted(array, row, time_format(*unit, zone.is_some())),
        // Decimals, dates, and whatever else: their exact text.
        _ => formatted(array, row, ""),
    }
}

fn elements(array: &ArrayRef) -> Value {
    (0..array.len()).map(|row| value(array, row)).collect()
}

/// JSON has no NaN and no infinity; their names are text.
fn float(value: f64) -> Value {
    Number::from_f64(value).map_or_else(|| value.to_string().into(), Value::Number)
}

/// RFC 3339 in the array's own zone (UTC for every column that tidegate makes).
fn time_format(unit: TimeUnit, zoned: bool) -> &'static str {
    match (unit, zoned) {
        (TimeUnit::Second, true) => "%Y-%m-%dT%H:%M:%S%:z",
        (TimeUnit::Millisecond, true) => "%Y-%m-%dT%H:%M:%S%.3f%:z",
        (TimeUnit::Microsecond, true) => "%Y-%m-%dT%H:%M:%S%.6f%:z",
        (TimeUnit::Nanosecond, true) => "%Y-%m-%dT%H:%M:%S%.9f%:z",
        (TimeUnit::Second, false) => "%Y-%m-%dT%H:%M:%S",
        (TimeUnit::Millisecond, false) => "%Y-%m-%dT%H:%M:%S%.3f",
        (TimeUnit::Microsecond, false) => "%Y-%m-%dT%H:%M:%S%.6f",
        (TimeUnit::Nanosecond, false) => "%Y-%m-%dT%H:%M:%S%.9f",
    }
}

fn formatted(array: &ArrayRef, row: usize, time: &'static str) -> Value {
    let mut options = FormatOptions::default();
    if !time.is_empty() {
        options = options.with_timestamp_format(Some(time)).with_timestamp_tz_format(Some(time));
    }
    match ArrayFormatter::try_new(array.as_ref(), &options).map(|f| f.value(row).try_to_string()) {
        Ok(Ok(text)) => match text.strip_suffix("+00:00") {
            Some(utc) if !time.is_empty() => format!("{utc}Z").into(),
            _ => text.into(),
        },
        Ok(Err(error)) | Err(error) => format!("(cannot be shown: {error})").into(),
    }
}

/// Standard alphabet, padded.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            let index = (bits >> (18 - 6 * place)) & 63;
            let shown = place <= group.len();
            text.push(if shown { ALPHABET[index as usize] as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{
        BinaryArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int32Array, ListArray, StringArray,
        StructArray, TimestampMicrosecondArray,
    };
    use arrow::datatypes::{Field, Fields, Schema};
    use std::sync::Arc;

    #[test]
    fn a_row_is_exact() {
        let decimal = Decimal128Array::from(vec![1230]).with_precision_and_scale(18, 2).expect("valid");
        let time = TimestampMicrosecondArray::from(vec![1_773_748_800_000_001]).with_timezone("UTC");
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1), None])]);
        let inner = Fields::from(vec![Field::new("z", DataType::Utf8, true)]);
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("z_first", Arc::new(StringArray::from(vec!["a\"\n"]))),
            ("amount", Arc::new(decimal)),
            ("at", Arc::new(time)),
            ("day", Arc::new(Date32Array::from(vec![20529]))),
            ("raw", Arc::new(BinaryArray::from(vec![b"foob".as_slice()]))),
            ("f", Arc::new(Float32Array::from(vec![0.1]))),
            ("nan", Arc::new(Float64Array::from(vec![f64::NAN]))),
            ("none", Arc::new(Int32Array::from(vec![None]))),
            ("list", Arc::new(list)),
            ("struct", Arc::new(StructArray::new(inner, vec![Arc::new(StringArray::from(vec!["x"]))], None))),
        ];
        let fields: Vec<Field> = columns.iter().map(|(n, c)| Field::new(*n, c.data_type().clone(), true)).collect();
        let arrays = columns.into_iter().map(|(_, c)| c).collect();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).expect("valid");
        assert_eq!(
            row_json(&batch, 0),
            r#"{"z_first":"a\"\n","amount":"12.30","at":"2026-03-17T12:00:00.000001Z","day":"2026-03-17","raw":"Zm9vYg==","f":0.1,"nan":"NaN","none":null,"list":[1,null],"struct":{"z":"x"}}"#
        );
    }
}
