//! One value out of a column: read, compared, hashed, and put into a column again.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::*;

use super::misfit;
use crate::error::Result;

/// A value that is not null, or `Null`. Dates, timestamps and booleans are `Int`. A zero has no sign, and there is one
/// not-a-number, which is greater than every number (as in Spark).
#[derive(Debug, Clone, Default)]
pub(super) enum Value {
    #[default]
    Null,
    Int(i64),
    /// Of an `i128`, in parts so that a value fits into 24 bytes.
    Wide([u8; 16]),
    Float(f64),
    Text(Box<str>),
    Bytes(Box<[u8]>),
}

impl Value {
    pub(super) fn float(value: f64) -> Value {
        match value.is_nan() {
            true => Value::Float(f64::NAN),
            false => Value::Float(value + 0.0),
        }
    }

    pub(super) fn wide(value: i128) -> Value {
        Value::Wide(value.to_ne_bytes())
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// Bytes outside of the value itself.
    pub(super) fn heap(&self) -> usize {
        match self {
            Value::Text(text) => text.len() + ALLOCATION,
            Value::Bytes(bytes) => bytes.len() + ALLOCATION,
            _ => 0,
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Value::Null => 0,
            Value::Int(_) => 1,
            Value::Wide(_) => 2,
            Value::Float(_) => 3,
            Value::Text(_) => 4,
            Value::Bytes(_) => 5,
        }
    }

    /// A hash that is the same in every release: it is part of saved sketches. FNV-1a, then the finaliser of SplitMix64, which
    /// spreads it over all bits.
    pub(super) fn stable_hash(&self) -> u64 {
        let number;
        let bytes: &[u8] = match self {
            Value::Null => &[],
            Value::Int(value) => {
                number = i128::from(*value).to_le_bytes();
                &number
            }
            Value::Wide(value) => {
                number = i128::from_ne_bytes(*value).to_le_bytes();
                &number
            }
            Value::Float(value) => {
                number = u128::from(value.to_bits()).to_le_bytes();
                &number
            }
            Value::Text(text) => text.as_bytes(),
            Value::Bytes(bytes) => bytes,
        };
        let start = 0xcbf2_9ce4_8422_2325_u64 ^ bytes.len() as u64;
        let fnv = bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
        let mut mixed = fnv.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// What an allocation costs beside its bytes, roughly.
pub(super) const ALLOCATION: usize = 8;

impl Ord for Value {
    fn cmp(&self, other: &Value) -> Ordering {
        match (self, other) {
            (Value::Int(a), Value::Int(b)) => a.cmp(b),
            (Value::Wide(a), Value::Wide(b)) => i128::from_ne_bytes(*a).cmp(&i128::from_ne_bytes(*b)),
            (Value::Float(a), Value::Float(b)) => a.total_cmp(b),
            (Value::Text(a), Value::Text(b)) => a.cmp(b),
            (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Value) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Value) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Value {}

impl Hash for Value {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Value::Null => {}
            Value::Int(value) => value.hash(state),
            Value::Wide(value) => value.hash(state),
            Value::Float(value) => value.to_bits().hash(state),
            Value::Text(value) => value.hash(state),
            Value::Bytes(value) => value.hash(state),
        }
    }
}

/// A column whose type is known.
pub(super) enum Reader<'a> {
    Int8(&'a Int8Array),
    Int16(&'a Int16Array),
    Int32(&'a Int32Array),
    Int64(&'a Int64Array),
    Date(&'a Date32Array),
    Time(&'a TimestampMicrosecondArray),
    Bool(&'a BooleanArray),
    Wide(&'a Decimal128Array),
    Float32(&'a Float32Array),
    Float64(&'a Float64Array),
    Text(&'a StringArray),
    Bytes(&'a BinaryArray),
}

impl<'a> Reader<'a> {
    pub(super) fn new(array: &'a ArrayRef) -> Result<Reader<'a>> {
        Ok(match array.data_type() {
            DataType::Int8 => Reader::Int8(array.as_primitive()),
            DataType::Int16 => Reader::Int16(array.as_primitive()),
            DataType::Int32 => Reader::Int32(array.as_primitive()),
            DataType::Int64 => Reader::Int64(array.as_primitive()),
            DataType::Date32 => Reader::Date(array.as_primitive()),
            DataType::Timestamp(TimeUnit::Microsecond, _) => Reader::Time(array.as_primitive()),
            DataType::Boolean => Reader::Bool(array.as_boolean()),
            DataType::Decimal128(_, _) => Reader::Wide(array.as_primitive()),
            DataType::Float32 => Reader::Float32(array.as_primitive()),
            DataType::Float64 => Reader::Float64(array.as_primitive()),
            DataType::Utf8 => Reader::Text(array.as_string()),
            DataType::Binary => Reader::Bytes(array.as_binary()),
            other => return Err(misfit(format!("no aggregate takes values of type {other}"))),
        })
    }

    pub(super) fn get(&self, row: usize) -> Value {
        macro_rules! read {
            ($array:expr, $value:expr) => {
                match $array.is_null(row) {
                    true => Value::Null,
                    false => $value($array.value(row)),
                }
            };
        }
        match self {
            Reader::Int8(array) => read!(array, |value| Value::Int(i64::from(value))),
            Reader::Int16(array) => read!(array, |value| Value::Int(i64::from(value))),
            Reader::Int32(array) => read!(array, |value| Value::Int(i64::from(value))),
            Reader::Int64(array) => read!(array, Value::Int),
            Reader::Date(array) => read!(array, |value| Value::Int(i64::from(value))),
            Reader::Time(array) => read!(array, Value::Int),
            Reader::Bool(array) => read!(array, |value| Value::Int(i64::from(value))),
            Reader::Wide(array) => read!(array, Value::wide),
            Reader::Float32(array) => read!(array, |value| Value::float(f64::from(value))),
            Reader::Float64(array) => read!(array, Value::float),
            Reader::Text(array) => read!(array, |value: &str| Value::Text(value.into())),
            Reader::Bytes(array) => read!(array, |value: &[u8]| Value::Bytes(value.into())),
        }
    }

    /// A number as a double; `scale` is that of a decimal.
    pub(super) fn double(&self, row: usize) -> Option<f64> {
        match self {
            Reader::Wide(array) if array.is_valid(row) => {
                let unit = 10f64.powi(i32::from(array.scale()));
                Some(array.value(row) as f64 / unit)
            }
            _ => match self.get(row) {
                Value::Int(value) => Some(value as f64),
                Value::Float(value) => Some(value),
                _ => None,
            },
        }
    }

    /// An integer, or a decimal's digits.
    pub(super) fn integer(&self, row: usize) -> Option<i128> {
        match self.get(row) {
            Value::Int(value) => Some(i128::from(value)),
            Value::Wide(value) => Some(i128::from_ne_bytes(value)),
            _ => None,
        }
    }
}

/// A column of values of one type.
pub(super) fn column<'a>(data_type: &DataType, values: impl Iterator<Item = &'a Value>) -> Result<ArrayRef> {
    let int = |value: &Value| match value {
        Value::Int(value) => Some(*value),
        _ => None,
    };
    let double = |value: &Value| match value {
        Value::Float(value) => Some(*value),
        _ => None,
    };
    Ok(match data_type {
        // What came out of a narrow column goes back into it.
        DataType::Int8 => Arc::new(values.map(|value| int(value).map(|v| v as i8)).collect::<Int8Array>()),
        DataType::Int16 => Arc::new(values.map(|value| int(value).map(|v| v as i16)).collect::<Int16Array>()),
        DataType::Int32 => Arc::new(values.map(|value| int(value).map(|v| v as i32)).collect::<Int32Array>()),
        DataType::Int64 => Arc::new(values.map(int).collect::<Int64Array>()),
        DataType::Date32 => Arc::new(values.map(|value| int(value).map(|v| v as i32)).collect::<Date32Array>()),
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let times = values.map(int).collect::<TimestampMicrosecondArray>();
            Arc::new(times.with_timezone_opt(zone.clone()))
        }
        DataType::Boolean => Arc::new(values.map(|value| int(value).map(|v| v != 0)).collect::<BooleanArray>()),
        DataType::Decimal128(precision, scale) => {
            let wide = |value: &Value| match value {
                Value::Wide(value) => Some(i128::from_ne_bytes(*value)),
                _ => None,
            };
            let digits = values.map(wide).collect::<Decimal128Array>();
            Arc::new(digits.with_precision_and_scale(*precision, *scale).map_err(|e| misfit(e.to_string()))?)
        }
        DataType::Float32 => Arc::new(values.map(|value| double(value).map(|v| v as f32)).collect::<Float32Array>()),
        DataType::Float64 => Arc::new(values.map(double).collect::<Float64Array>()),
        DataType::Utf8 => {
            let text = |value: &'a Value| match value {
                Value::Text(value) => Some(value.as_ref()),
                _ => None,
            };
            Arc::new(values.map(text).collect::<StringArray>())
        }
        DataType::Binary => {
            let bytes = |value: &'a Value| match value {
                Value::Bytes(value) => Some(value.as_ref()),
                _ => None,
            };
            Arc::new(values.map(bytes).collect::<BinaryArray>())
        }
        other => return Err(misfit(format!("no aggregate gives values of type {other}"))),
    })
}
