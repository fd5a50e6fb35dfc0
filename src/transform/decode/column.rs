//! Growing columns that can step back: arrow-rs builders cannot forget a value, and a record that turns out bad halfway
//! must leave nothing behind. A column here is plain vectors; `truncate` undoes a record.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int8Array,
    Int16Array, Int32Array, Int64Array, ListArray, StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, FieldRef, Fields, TimeUnit};

use crate::config::spec::{ColumnSpec, EpochUnit};
use crate::error::{Context, Error, ErrorKind, Result};

/// What a value must look like; never changes while decoding.
#[derive(Debug)]
pub(super) struct Shape {
    pub name: String,
    pub data_type: DataType,
    pub nullable: bool,
    pub unit: Option<EpochUnit>,
    /// Fields of a struct; the element of a list.
    pub children: Vec<Shape>,
    by_name: HashMap<String, usize>,
}

impl Shape {
    /// The shape of one payload column, or an error for a type that no column here can hold.
    pub fn column(spec: &ColumnSpec) -> Result<Shape> {
        Shape::new(&spec.name, &spec.data_type, spec.nullable, spec.unit)
    }

    /// A record: one struct of all payload columns.
    pub fn record(columns: &[ColumnSpec]) -> Result<Shape> {
        let children = columns.iter().map(Shape::column).collect::<Result<Vec<_>>>()?;
        Ok(Shape::parent("", DataType::Struct(Fields::empty()), false, children))
    }

    fn new(name: &str, data_type: &DataType, nullable: bool, unit: Option<EpochUnit>) -> Result<Shape> {
        let child = |f: &FieldRef| Shape::new(f.name(), f.data_type(), f.is_nullable(), unit);
        let children = match data_type {
            DataType::Struct(fields) => fields.iter().map(child).collect::<Result<Vec<_>>>()?,
            DataType::List(element) => vec![child(element)?],
            DataType::Boolean
            | DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::Float32
            | DataType::Float64
            | DataType::Date32
            | DataType::Decimal128(_, _)
            | DataType::Utf8
            | DataType::Binary => Vec::new(),
            DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) if zone.as_ref() == "UTC" => Vec::new(),
            other => {
                return Err(Error::config(format!("a column of type {other} cannot be decoded")).with("column", name));
            }
        };
        let mut shape = Shape::parent(name, data_type.clone(), nullable, children);
        shape.unit = unit;
        Ok(shape)
    }

    fn parent(name: &str, data_type: DataType, nullable: bool, children: Vec<Shape>) -> Shape {
        let by_name = children.iter().enumerate().map(|(i, c)| (c.name.clone(), i)).collect();
        Shape { name: name.to_string(), data_type, nullable, unit: None, children, by_name }
    }

    /// The index of a struct's field.
    pub fn child(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The type as people write it in the pipeline file.
    pub fn type_name(&self) -> String {
        match &self.data_type {
            DataType::Boolean => "boolean".into(),
            DataType::Int8 => "tinyint".into(),
            DataType::Int16 => "smallint".into(),
            DataType::Int32 => "int".into(),
            DataType::Int64 => "long".into(),
            DataType::Float32 => "float".into(),
            DataType::Float64 => "double".into(),
            DataType::Date32 => "date".into(),
            DataType::Timestamp(_, _) => "timestamp".into(),
            DataType::Decimal128(precision, scale) => format!("decimal({precision},{scale})"),
            DataType::Utf8 => "string".into(),
            DataType::Binary => "binary".into(),
            DataType::Struct(_) => "struct".into(),
            DataType::List(_) => "array".into(),
            other => other.to_string(),
        }
    }
}

/// Variable-length values: where each ends, and all their bytes.
#[derive(Debug, Default)]
pub(super) struct Spans {
    ends: Vec<i32>,
    data: Vec<u8>,
}

impl Spans {
    /// Appends one value. Chunks are bounded far below the 2 GiB that an offset can say.
    pub fn push(&mut self, value: &[u8]) {
        self.data.extend_from_slice(value);
        self.ends.push(self.data.len() as i32);
    }

    fn truncate(&mut self, len: usize) {
        self.ends.truncate(len);
        self.data.truncate(self.ends.last().map_or(0, |end| *end as usize));
    }

    fn finish(self) -> (OffsetBuffer<i32>, Buffer) {
        (offsets(self.ends), Buffer::from_vec(self.data))
    }
}

/// The values of a column. Integers, dates and times share 64 bits and are narrowed at the end, after their range was
/// checked at the start.
#[derive(Debug)]
pub(super) enum Values {
    Flag(Vec<bool>),
    Whole(Vec<i64>),
    Real(Vec<f64>),
    Decimal(Vec<i128>),
    Bytes(Spans),
    Struct { children: Vec<Column>, order: Vec<usize> },
    List { ends: Vec<i32>, element: Box<Column> },
}

/// One growing column.
#[derive(Debug)]
pub(super) struct Column {
    valid: Vec<bool>,
    pub values: Values,
}

impl Column {
    /// An empty column of `shape`.
    pub fn new(shape: &Shape) -> Column {
        let values = match &shape.data_type {
            DataType::Boolean => Values::Flag(Vec::new()),
            DataType::Float32 | DataType::Float64 => Values::Real(Vec::new()),
            DataType::Decimal128(_, _) => Values::Decimal(Vec::new()),
            DataType::Utf8 | DataType::Binary => Values::Bytes(Spans::default()),
            DataType::Struct(_) => {
                Values::Struct { children: shape.children.iter().map(Column::new).collect(), order: Vec::new() }
            }
            DataType::List(_) => {
                let element = shape.children.first().map_or_else(Column::none, Column::new);
                Values::List { ends: Vec::new(), element: Box::new(element) }
            }
            _ => Values::Whole(Vec::new()),
        };
        Column { valid: Vec::new(), values }
    }

    fn none() -> Column {
        Column { valid: Vec::new(), values: Values::Flag(Vec::new()) }
    }

    /// Values so far, nulls included.
    pub fn len(&self) -> usize {
        self.valid.len()
    }

    /// Marks the value just pushed into `values` as present.
    pub fn mark_valid(&mut self) {
        self.valid.push(true);
    }

    /// Appends a null; below a null struct every field is null, `not null` ones too (they are masked).
    pub fn push_null(&mut self) {
        self.valid.push(false);
        match &mut self.values {
            Values::Flag(v) => v.push(false),
            Values::Whole(v) => v.push(0),
            Values::Real(v) => v.push(0.0),
            Values::Decimal(v) => v.push(0),
            Values::Bytes(v) => v.push(&[]),
            Values::Struct { children, .. } => children.iter_mut().for_each(Column::push_null),
            Values::List { ends, element } => ends.push(element.len() as i32),
        }
    }

    /// Forgets everything from row `len` on, half-written values included.
    pub fn truncate(&mut self, len: usize) {
        self.valid.truncate(len);
        match &mut self.values {
            Values::Flag(v) => v.truncate(len),
            Values::Whole(v) => v.truncate(len),
            Values::Real(v) => v.truncate(len),
            Values::Decimal(v) => v.truncate(len),
            Values::Bytes(v) => v.truncate(len),
            Values::Struct { children, order } => {
                children.iter_mut().for_each(|child| child.truncate(len));
                order.clear();
            }
            Values::List { ends, element } => {
                ends.truncate(len);
                element.truncate(ends.last().map_or(0, |end| *end as usize));
            }
        }
    }

    /// The columns of a finished record shape.
    pub fn into_arrays(self, shape: &Shape) -> Result<Vec<ArrayRef>> {
        match self.values {
            Values::Struct { children, .. } => finish_all(children, &shape.children),
            _ => Ok(Vec::new()),
        }
    }

    fn finish(self, shape: &Shape) -> Result<ArrayRef> {
        let nulls = self.valid.contains(&false).then(|| NullBuffer::from(self.valid.as_slice()));
        let lost = || Error::failed("decoding mixed up its columns").with("column", &shape.name);
        let context = |e| Error::failed("decoded column is inconsistent").with("column", &shape.name).caused_by(e);
        let array: ArrayRef = match (self.values, &shape.data_type) {
            (Values::Flag(v), DataType::Boolean) => Arc::new(BooleanArray::new(v.into(), nulls)),
            (Values::Real(v), DataType::Float64) => Arc::new(Float64Array::new(v.into(), nulls)),
            (Values::Real(v), DataType::Float32) => {
                Arc::new(Float32Array::new(v.into_iter().map(|x| x as f32).collect(), nulls))
            }
            (Values::Decimal(v), DataType::Decimal128(precision, scale)) => Arc::new(
                Decimal128Array::new(v.into(), nulls)
                    .with_precision_and_scale(*precision, *scale)
                    .context(ErrorKind::Config, format!("column {}: invalid decimal type", shape.name))?,
            ),
            (Values::Whole(v), DataType::Int64) => Arc::new(Int64Array::new(v.into(), nulls)),
            (Values::Whole(v), DataType::Timestamp(_, _)) => {
                Arc::new(TimestampMicrosecondArray::new(v.into(), nulls).with_timezone("UTC"))
            }
            (Values::Whole(v), DataType::Int8) => Arc::new(Int8Array::new(narrow(v, |x| x as i8), nulls)),
            (Values::Whole(v), DataType::Int16) => Arc::new(Int16Array::new(narrow(v, |x| x as i16), nulls)),
            (Values::Whole(v), DataType::Int32) => Arc::new(Int32Array::new(narrow(v, |x| x as i32), nulls)),
            (Values::Whole(v), DataType::Date32) => Arc::new(Date32Array::new(narrow(v, |x| x as i32), nulls)),
            (Values::Bytes(v), DataType::Utf8) => {
                let (offsets, data) = v.finish();
                Arc::new(StringArray::try_new(offsets, data, nulls).map_err(context)?)
            }
            (Values::Bytes(v), DataType::Binary) => {
                let (offsets, data) = v.finish();
                Arc::new(BinaryArray::try_new(offsets, data, nulls).map_err(context)?)
            }
            (Values::Struct { children, .. }, DataType::Struct(fields)) => {
                let len = self.valid.len();
                let arrays = finish_all(children, &shape.children)?;
                Arc::new(StructArray::try_new_with_length(fields.clone(), arrays, nulls, len).map_err(context)?)
            }
            (Values::List { ends, element }, DataType::List(field)) => {
                let values = element.finish(shape.children.first().ok_or_else(lost)?)?;
                Arc::new(ListArray::try_new(field.clone(), offsets(ends), values, nulls).map_err(context)?)
            }
            _ => return Err(lost()),
        };
        Ok(array)
    }
}

fn finish_all(columns: Vec<Column>, shapes: &[Shape]) -> Result<Vec<ArrayRef>> {
    columns.into_iter().zip(shapes).map(|(column, shape)| column.finish(shape)).collect()
}

fn narrow<T: arrow::datatypes::ArrowNativeType>(values: Vec<i64>, to: impl Fn(i64) -> T) -> ScalarBuffer<T> {
    values.into_iter().map(to).collect()
}

fn offsets(ends: Vec<i32>) -> OffsetBuffer<i32> {
    let mut all = Vec::with_capacity(ends.len() + 1);
    all.push(0);
    all.extend(ends);
    OffsetBuffer::new(all.into())
}
