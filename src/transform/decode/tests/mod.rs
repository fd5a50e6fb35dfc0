//! Each trap by name, an independent oracle over random mixtures, and a measurement.

mod bench;
mod oracle;
mod traps;

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray, new_null_array,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use arrow::record_batch::RecordBatch;
use chrono::DateTime;

use super::*;
use crate::config::spec::{ColumnSpec, EpochUnit, FilesSpec, SourceKind};

pub(super) fn column(name: &str, data_type: DataType) -> ColumnSpec {
    ColumnSpec { name: name.into(), data_type, nullable: true, unit: None }
}

pub(super) fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

pub(super) fn spec(columns: Vec<ColumnSpec>) -> SourceSpec {
    SourceSpec {
        kind: SourceKind::Files(FilesSpec { path: "landing".into(), pattern: "*".into() }),
        format: Format::Json,
        columns,
        event_time: None,
        schema_drift: SchemaDrift::Rescue,
        tombstones: Tombstones::Quarantine,
    }
}

/// One column of each kind; `id` is required.
pub(super) fn every_type() -> Vec<ColumnSpec> {
    let inner = Fields::from(vec![Field::new("city", DataType::Utf8, true), Field::new("zip", DataType::Int32, false)]);
    let element = |t| DataType::List(Arc::new(Field::new("element", t, true)));
    let mut columns = vec![
        column("id", DataType::Utf8),
        column("amount", DataType::Decimal128(10, 2)),
        column("tiny", DataType::Int8),
        column("small", DataType::Int16),
        column("int", DataType::Int32),
        column("long", DataType::Int64),
        column("float", DataType::Float32),
        column("double", DataType::Float64),
        column("flag", DataType::Boolean),
        column("day", DataType::Date32),
        column("at", timestamp()),
        column("epoch", timestamp()),
        column("raw", DataType::Binary),
        column("address", DataType::Struct(inner.clone())),
        column("tags", element(DataType::Utf8)),
        column("items", element(DataType::Struct(inner))),
    ];
    columns[0].nullable = false;
    columns[11].unit = Some(EpochUnit::Millis);
    columns
}

pub(super) fn context() -> BatchContext {
    let batch_time = DateTime::parse_from_rfc3339("2026-03-17T23:30:00Z").expect("valid").to_utc();
    BatchContext { pipeline: "orders".into(), batch: 7, batch_time, interval: None }
}

/// Records with offsets from `first`; keys are `k<offset>`.
pub(super) fn records(first: i64, values: &[Option<&[u8]>]) -> RecordBatch {
    let len = values.len();
    let offsets: Vec<i64> = (first..).take(len).collect();
    let keys: Vec<String> = offsets.iter().map(|o| format!("k{o}")).collect();
    let times = TimestampMicrosecondArray::from(vec![1_000_000; len]).with_timezone("UTC");
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec!["t"; len])),
        Arc::new(Int32Array::from(vec![0; len])),
        Arc::new(Int64Array::from(offsets)),
        Arc::new(times),
        Arc::new(BinaryArray::from_iter_values(keys)),
        Arc::new(BinaryArray::from_iter(values.iter().copied())),
        new_null_array(source::envelope().field(6).data_type(), len),
    ];
    RecordBatch::try_new(source::envelope(), columns).expect("an envelope")
}

pub(super) fn decode(spec: &SourceSpec, values: &[&str]) -> Decoded {
    let values: Vec<_> = values.iter().map(|v| Some(v.as_bytes())).collect();
    decode_records(spec, &[records(0, &values)])
}

pub(super) fn decode_records(spec: &SourceSpec, records: &[RecordBatch]) -> Decoded {
    let decoder = Decoder::new("source", spec, chrono_tz::Europe::Berlin).expect("decodable types");
    decoder.decode(records, &context()).expect("decoded")
}

/// All rows in one batch.
pub(super) fn joined(spec: &SourceSpec, decoded: &Decoded) -> RecordBatch {
    let schema = decoded.rows.first().map_or_else(|| row_schema(spec), |b| b.schema());
    concat_batches(&schema, &decoded.rows).expect("one schema")
}

/// The rows as JSON, the metadata columns left out.
pub(super) fn shown(spec: &SourceSpec, decoded: &Decoded) -> Vec<String> {
    let batch = joined(spec, decoded);
    let payload: Vec<usize> = (0..batch.num_columns())
        .filter(|i| {
            !batch.schema_ref().field(*i).name().starts_with('_') || batch.schema_ref().field(*i).name() == "_rescued"
        })
        .collect();
    let batch = batch.project(&payload).expect("columns");
    (0..batch.num_rows()).map(|row| crate::transform::row_json::row_json(&batch, row)).collect()
}

pub(super) fn rules(decoded: &Decoded) -> Vec<(i64, &str)> {
    decoded.dead.iter().map(|d| (d.coordinates.as_ref().map_or(-1, |c| c.offset), d.rule.as_str())).collect()
}
