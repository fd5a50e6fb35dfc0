//! Polars frames to Arrow record batches and back, over the C Data Interface.
//!
//! Polars has its own copy of Arrow, so the same memory has two Rust types. Both sides implement the C Data Interface
//! with `repr(C)` structs of the specified layout; moving one into the other is a transmute, and whoever holds the
//! struct releases the memory. Numbers, decimals, dates and timestamps are not copied; text and bytes are copied into
//! Polars' view layout on the way in, and into Delta's plain layout on the way out.

// One of the two files with unsafe code (the other is source/kafka/topic_id.rs): two foreign libraries meet in a C struct, and no safe function joins them.
#![allow(unsafe_code)]

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, StructArray, make_array, new_empty_array,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi, to_ffi};
use polars::prelude as pl;
use polars_arrow::ffi::{
    ArrowArray, ArrowSchema, export_array_to_c, export_field_to_c, import_array_from_c, import_field_from_c,
};

use crate::error::{Context, Error, ErrorKind, Result};

const _: () = {
    assert!(size_of::<FFI_ArrowArray>() == size_of::<ArrowArray>());
    assert!(align_of::<FFI_ArrowArray>() == align_of::<ArrowArray>());
    assert!(size_of::<FFI_ArrowSchema>() == size_of::<ArrowSchema>());
    assert!(align_of::<FFI_ArrowSchema>() == align_of::<ArrowSchema>());
};

/// Name of a list's element field in Delta.
pub const LIST_ELEMENT: &str = "element";

fn into_polars_array(array: FFI_ArrowArray) -> ArrowArray {
    // SAFETY: both are `repr(C)` structs of the C Data Interface (sizes asserted above); the value is moved, so exactly
    // one side calls `release`.
    unsafe { std::mem::transmute::<FFI_ArrowArray, ArrowArray>(array) }
}

fn into_polars_schema(schema: FFI_ArrowSchema) -> ArrowSchema {
    // SAFETY: as above.
    unsafe { std::mem::transmute::<FFI_ArrowSchema, ArrowSchema>(schema) }
}

fn into_arrow_array(array: ArrowArray) -> FFI_ArrowArray {
    // SAFETY: as above.
    unsafe { std::mem::transmute::<ArrowArray, FFI_ArrowArray>(array) }
}

fn into_arrow_schema(schema: ArrowSchema) -> FFI_ArrowSchema {
    // SAFETY: as above.
    unsafe { std::mem::transmute::<ArrowSchema, FFI_ArrowSchema>(schema) }
}

/// A Polars series of one column's chunks; with no chunk, an empty series of the type.
fn series(name: &str, data_type: &DataType, chunks: &[ArrayRef]) -> Result<pl::Series> {
    let empty = [new_empty_array(data_type)];
    let chunks = if chunks.is_empty() { &empty[..] } else { chunks };
    let mut imported = Vec::with_capacity(chunks.len());
    let mut field = None;
    for chunk in chunks {
        let (array, schema) = to_ffi(&chunk.to_data()).context(ErrorKind::Failed, "exporting a column to Polars")?;
        let (array, schema) = (into_polars_array(array), into_polars_schema(schema));
        // SAFETY: `schema` and `array` were made by arrow-rs for each other, and both live until they are imported.
        let imported_field =
            unsafe { import_field_from_c(&schema) }.map_err(|cause| unusable(name, data_type).caused_by(cause))?;
        // SAFETY: as above; the array's memory is owned by `array`, which the import takes.
        let imported_array = unsafe { import_array_from_c(array, imported_field.dtype().clone()) }
            .map_err(|cause| unusable(name, data_type).caused_by(cause))?;
        imported.push(imported_array);
        field.get_or_insert(imported_field);
    }
    let Some(mut field) = field else {
        return Err(unusable(name, data_type));
    };
    field.name = name.into();
    pl::Series::try_from((&field, imported)).map_err(|cause| unusable(name, data_type).caused_by(cause))
}

fn unusable(name: &str, data_type: &DataType) -> Error {
    Error::config(format!("column {name} of type {data_type} cannot be read by Polars"))
}

/// Record batches as one Polars frame with the columns of `schema`; batches have that schema. Each batch stays a chunk.
pub fn to_polars(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<pl::DataFrame> {
    let height = batches.iter().map(RecordBatch::num_rows).sum();
    let mut columns = Vec::with_capacity(schema.fields().len());
    for (index, field) in schema.fields().iter().enumerate() {
        let chunks: Vec<ArrayRef> =
            batches.iter().filter(|batch| batch.num_rows() > 0).map(|batch| batch.column(index).clone()).collect();
        columns.push(pl::Column::from(series(field.name(), field.data_type(), &chunks)?));
    }
    pl::DataFrame::new(height, columns).context(ErrorKind::Failed, "building a Polars frame")
}

/// A Polars frame as record batches of exactly the schema `target`: columns by name, types cast without loss (a value
/// that does not fit is an error), and no null where the target says `not null`.
pub fn from_polars(frame: pl::DataFrame, target: &SchemaRef) -> Result<Vec<RecordBatch>> {
    let height = frame.height();
    let mut arrays = Vec::with_capacity(target.fields().len());
    for field in target.fields() {
        let column = frame.column(field.name()).map_err(|cause| {
            Error::failed(format!("the query result has no column {}", field.name())).caused_by(cause)
        })?;
        arrays.push(conform_array(field, &export(column.as_materialized_series().rechunk())?)?);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(height));
    let batch = RecordBatch::try_new_with_options(target.clone(), arrays, &options)
        .context(ErrorKind::Failed, "building a record batch")?;
    Ok(vec![batch])
}

fn export(series: pl::Series) -> Result<ArrayRef> {
    let field = series.field().to_arrow(pl::CompatLevel::newest());
    let schema = into_arrow_schema(export_field_to_c(&field));
    let array = into_arrow_array(export_array_to_c(series.to_arrow(0, pl::CompatLevel::newest())));
    // SAFETY: Polars made the two for each other; ownership of the memory moves into the result.
    let data = unsafe { from_ffi(array, &schema) }.context(ErrorKind::Failed, "importing a column from Polars")?;
    Ok(make_array(data))
}

/// The batches with exactly the schema `target`, columns found by name. See [`from_polars`].
pub fn conform(batches: &[RecordBatch], target: &SchemaRef) -> Result<Vec<RecordBatch>> {
    let mut conformed = Vec::with_capacity(batches.len());
    for batch in batches {
        if batch.schema_ref() == target {
            conformed.push(batch.clone());
            continue;
        }
        let mut arrays = Vec::with_capacity(target.fields().len());
        for field in target.fields() {
            let column = batch
                .column_by_name(field.name())
                .ok_or_else(|| Error::failed(format!("the rows have no column {}", field.name())))?;
            arrays.push(conform_array(field, column)?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let batch = RecordBatch::try_new_with_options(target.clone(), arrays, &options)
            .context(ErrorKind::Failed, "building a record batch")?;
        conformed.push(batch);
    }
    Ok(conformed)
}

fn conform_array(field: &Field, array: &ArrayRef) -> Result<ArrayRef> {
    if !field.is_nullable() && array.null_count() > 0 {
        return Err(Error::new(ErrorKind::Data, format!("column {} is `not null` but has nulls", field.name()))
            .with("column", field.name())
            .with("nulls", array.null_count())
            .help("filter the nulls out in SQL, or add an expectation with `else: quarantine`"));
    }
    cast(array, field.data_type()).map_err(|cause| {
        Error::new(ErrorKind::Data, format!("a value of column {} does not fit its type", field.name()))
            .with("column", field.name())
            .with("type", field.data_type())
            .with("computed as", array.data_type())
            .caused_by(cause)
    })
}

/// Like arrow's cast, but values that do not fit are errors, and struct fields are matched by name.
fn cast(array: &ArrayRef, target: &DataType) -> std::result::Result<ArrayRef, arrow::error::ArrowError> {
    if array.data_type() == target {
        return Ok(array.clone());
    }
    if let (DataType::Struct(_), DataType::Struct(wanted)) = (array.data_type(), target) {
        let source = array.as_struct();
        let mut children = Vec::with_capacity(wanted.len());
        for field in wanted {
            let child = source.column_by_name(field.name()).ok_or_else(|| {
                arrow::error::ArrowError::CastError(format!("the struct has no field {}", field.name()))
            })?;
            children.push(cast(child, field.data_type())?);
        }
        return Ok(Arc::new(StructArray::try_new_with_length(
            wanted.clone(),
            children,
            source.nulls().cloned(),
            source.len(),
        )?));
    }
    cast_with_options(array, target, &CastOptions { safe: false, ..CastOptions::default() })
}

/// The Polars type of an Arrow field.
pub fn field_to_polars(field: &Field) -> Result<pl::DataType> {
    Ok(series(field.name(), field.data_type(), &[])?.dtype().clone())
}

/// An empty Polars frame with the columns of `schema`.
pub fn empty_frame(schema: &SchemaRef) -> Result<pl::DataFrame> {
    to_polars(schema, &[])
}

/// The Arrow type of a Polars type, in the plain layouts that tables use (`Utf8`, `Binary`, `List` of `element`).
pub fn dtype_to_arrow(name: &str, dtype: &pl::DataType) -> Result<DataType> {
    let refused = || Error::config(format!("column {name} has the Polars type {dtype}, which no table can hold"));
    match dtype {
        // Their Arrow layouts are Polars' own extensions.
        pl::DataType::Int128 | pl::DataType::Unknown(_) => return Err(refused()),
        _ => {}
    }
    let field = pl::Field::new(name.into(), dtype.clone()).to_arrow(pl::CompatLevel::newest());
    let schema = into_arrow_schema(export_field_to_c(&field));
    let data_type = DataType::try_from(&schema).map_err(|cause| refused().caused_by(cause))?;
    Ok(plain(&data_type))
}

/// The type with views, large offsets and dictionaries replaced by the plain layouts.
pub fn plain(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary | DataType::FixedSizeBinary(_) => DataType::Binary,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            DataType::List(Arc::new(Field::new(LIST_ELEMENT, plain(item.data_type()), item.is_nullable())))
        }
        DataType::Struct(fields) => DataType::Struct(
            fields
                .iter()
                .map(|field| Field::new(field.name(), plain(field.data_type()), field.is_nullable()))
                .collect::<Fields>(),
        ),
        DataType::Dictionary(_, value) => plain(value),
        other => other.clone(),
    }
}

/// The columns of `schema` named by `keep`, in schema order.
pub fn project(schema: &Schema, keep: impl Fn(&str) -> bool) -> SchemaRef {
    Arc::new(Schema::new(schema.fields().iter().filter(|field| keep(field.name())).cloned().collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::*;
    use arrow::datatypes::{Int32Type, TimeUnit};
    use proptest::prelude::*;

    fn schema() -> SchemaRef {
        let item = Arc::new(Field::new(LIST_ELEMENT, DataType::Int32, true));
        let inner = Fields::from(vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Utf8, true)]);
        Arc::new(Schema::new(vec![
            Field::new("i8", DataType::Int8, true),
            Field::new("i16", DataType::Int16, true),
            Field::new("i32", DataType::Int32, true),
            Field::new("i64", DataType::Int64, true),
            Field::new("f32", DataType::Float32, true),
            Field::new("f64", DataType::Float64, true),
            Field::new("flag", DataType::Boolean, true),
            Field::new("text", DataType::Utf8, true),
            Field::new("bytes", DataType::Binary, true),
            Field::new("day", DataType::Date32, true),
            Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
            Field::new("money", DataType::Decimal128(18, 2), true),
            Field::new("numbers", DataType::List(item), true),
            Field::new("nested", DataType::Struct(inner), true),
        ]))
    }

    fn rows(values: &[Option<i32>]) -> RecordBatch {
        let schema = schema();
        let inner = match schema.field_with_name("nested").unwrap().data_type() {
            DataType::Struct(fields) => fields.clone(),
            _ => unreachable!(),
        };
        let text = |v: &Option<i32>| v.map(|v| format!("value {v} with a tail that does not fit a view"));
        let lists = values.iter().map(|v| v.map(|v| vec![Some(v), None, Some(v.wrapping_add(1))]));
        let item = Arc::new(Field::new(LIST_ELEMENT, DataType::Int32, true));
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>(lists);
        let (_, offsets, child, nulls) = list.into_parts();
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(values.iter().map(|v| v.map(|v| v as i8)).collect::<Int8Array>()),
            Arc::new(values.iter().map(|v| v.map(|v| v as i16)).collect::<Int16Array>()),
            Arc::new(values.iter().copied().collect::<Int32Array>()),
            Arc::new(values.iter().map(|v| v.map(i64::from)).collect::<Int64Array>()),
            Arc::new(values.iter().map(|v| v.map(|v| v as f32)).collect::<Float32Array>()),
            Arc::new(values.iter().map(|v| v.map(f64::from)).collect::<Float64Array>()),
            Arc::new(values.iter().map(|v| v.map(|v| v % 2 == 0)).collect::<BooleanArray>()),
            Arc::new(values.iter().map(text).collect::<StringArray>()),
            Arc::new(values.iter().map(|v| text(v).map(String::into_bytes)).collect::<BinaryArray>()),
            Arc::new(values.iter().copied().collect::<Date32Array>()),
            Arc::new(
                values.iter().map(|v| v.map(i64::from)).collect::<TimestampMicrosecondArray>().with_timezone("UTC"),
            ),
            Arc::new(
                values
                    .iter()
                    .map(|v| v.map(i128::from))
                    .collect::<Decimal128Array>()
                    .with_precision_and_scale(18, 2)
                    .unwrap(),
            ),
            Arc::new(ListArray::new(item, offsets, child, nulls)),
            Arc::new(StructArray::new(
                inner,
                vec![
                    Arc::new(values.iter().map(|v| v.map(i64::from)).collect::<Int64Array>()) as ArrayRef,
                    Arc::new(values.iter().map(text).collect::<StringArray>()),
                ],
                None,
            )),
        ];
        RecordBatch::try_new(schema, arrays).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_type_survives_the_round_trip(
            values in prop::collection::vec(prop::option::of(any::<i32>()), 0..40),
            cut in 0usize..40,
            skip in 0usize..5,
        ) {
            let whole = rows(&values);
            let skip = skip.min(values.len());
            let whole = whole.slice(skip, values.len() - skip); // sliced buffers and bitmaps are where bridges break
            let cut = cut.min(whole.num_rows());
            let pieces = [whole.slice(0, cut), whole.slice(cut, whole.num_rows() - cut)];
            let frame = to_polars(&schema(), &pieces).unwrap();
            prop_assert_eq!(frame.height(), whole.num_rows());
            let back = from_polars(frame, &schema()).unwrap();
            prop_assert_eq!(back.len(), 1);
            prop_assert_eq!(&back[0], &whole);
        }
    }

    #[test]
    fn types_have_one_arrow_form() {
        for field in schema().fields() {
            let dtype = field_to_polars(field).unwrap();
            assert_eq!(&dtype_to_arrow(field.name(), &dtype).unwrap(), field.data_type());
        }
    }

    #[test]
    fn nulls_in_a_not_null_column_are_named() {
        let batch = rows(&[Some(1), None, None]);
        let frame = to_polars(&schema(), &[batch]).unwrap();
        let target = Arc::new(Schema::new(vec![Field::new("i32", DataType::Int32, false)]));
        let error = from_polars(frame, &target).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert_eq!(error.to_string(), "column i32 is `not null` but has nulls, column: i32, nulls: 2");
    }

    #[test]
    fn unsigned_becomes_signed_and_is_checked() {
        let source = Arc::new(Schema::new(vec![Field::new("n", DataType::UInt64, true)]));
        let target = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        let batch = |value: u64| RecordBatch::try_new(source.clone(), vec![Arc::new(UInt64Array::from(vec![value]))]);
        let frame = |value| to_polars(&source, &[batch(value).unwrap()]).unwrap();
        let fits = from_polars(frame(7), &target).unwrap();
        assert_eq!(fits[0].column(0).as_ref(), &Int64Array::from(vec![7]) as &dyn Array);
        let error = from_polars(frame(u64::MAX), &target).unwrap_err();
        assert!(error.to_string().contains("a value of column n does not fit its type"), "{error}");
    }

    #[test]
    fn a_frame_without_columns_keeps_its_height() {
        let target: SchemaRef = Arc::new(Schema::empty());
        let frame = pl::DataFrame::new(3, vec![]).unwrap();
        assert_eq!(from_polars(frame, &target).unwrap()[0].num_rows(), 3);
    }
}
