//! Which type a computed column is stored as.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

use crate::arrow_bridge::{LIST_ELEMENT, plain};

/// UTC with microseconds: the only timestamp there is.
pub fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The stored type for what an engine computes, or why there is none.
///
/// Unsigned integers grow to the next signed type (`u64` becomes long, checked row by row). Timestamps become UTC
/// microseconds; one without a time zone is read as UTC, because no other reading is stable from machine to machine.
pub fn stored_type(data_type: &DataType) -> Result<DataType, String> {
    Ok(match plain(data_type) {
        DataType::UInt8 | DataType::UInt16 => DataType::Int32,
        DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::Float16 => DataType::Float32,
        DataType::Date64 => DataType::Date32,
        DataType::Timestamp(_, _) => timestamp(),
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
            DataType::Decimal128(precision, scale)
        }
        DataType::List(item) => {
            DataType::List(Arc::new(Field::new(LIST_ELEMENT, stored_type(item.data_type())?, item.is_nullable())))
        }
        DataType::Struct(fields) => {
            let mut stored = Vec::with_capacity(fields.len());
            for field in fields.iter() {
                stored.push(Field::new(field.name(), stored_type(field.data_type())?, field.is_nullable()));
            }
            DataType::Struct(stored.into())
        }
        DataType::Null => {
            return Err("has no type: it is null in every row; cast it, such as CAST(NULL AS STRING)".into());
        }
        DataType::Duration(_) | DataType::Interval(_) => {
            return Err("is an interval, which Delta cannot store; compare timestamps, or take a number of it with \
                        EXTRACT or CAST(… AS BIGINT)"
                .into());
        }
        DataType::Time32(_) | DataType::Time64(_) => {
            return Err("is a time of day, which Delta cannot store; CAST it AS STRING, or keep the timestamp".into());
        }
        plain @ (DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Float32
        | DataType::Float64
        | DataType::Utf8
        | DataType::Binary
        | DataType::Date32
        | DataType::Decimal128(_, _)) => plain,
        DataType::Decimal256(_, _) => {
            return Err("has more than 38 digits; CAST it AS DECIMAL(38, s)".into());
        }
        other => return Err(format!("has the type {other}, which Delta cannot store; cast it")),
    })
}

/// The stored schema of a query's columns: everything nullable, because engines lose nullability on the way. Returns a
/// message for each column that cannot be stored.
pub fn stored_schema(computed: &Schema) -> Result<SchemaRef, Vec<(String, String)>> {
    let mut fields = Vec::new();
    let mut problems = Vec::new();
    for field in computed.fields() {
        match stored_type(field.data_type()) {
            Ok(data_type) => fields.push(Field::new(field.name(), data_type, true)),
            Err(why) => problems.push((field.name().clone(), format!("column `{}` {why}", field.name()))),
        }
    }
    match problems.is_empty() {
        true => Ok(Arc::new(Schema::new(fields))),
        false => Err(problems),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_types_become_delta_types() {
        let cases = [
            (DataType::UInt8, DataType::Int32),
            (DataType::UInt32, DataType::Int64),
            (DataType::UInt64, DataType::Int64),
            (DataType::Utf8View, DataType::Utf8),
            (DataType::Timestamp(TimeUnit::Nanosecond, None), timestamp()),
            (DataType::Decimal128(38, 2), DataType::Decimal128(38, 2)),
        ];
        for (computed, stored) in cases {
            assert_eq!(stored_type(&computed).unwrap(), stored);
        }
        for computed in
            [DataType::Null, DataType::Duration(TimeUnit::Microsecond), DataType::Time64(TimeUnit::Nanosecond)]
        {
            assert!(stored_type(&computed).is_err());
        }
    }
}
