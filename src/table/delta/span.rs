//! Rows by the time in one of their columns: reading them, and finding those that are to be replaced.

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Date32Type, SchemaRef, TimeUnit, TimestampMicrosecondType};
use chrono::{DateTime, NaiveDate, Utc};
use futures::stream::{StreamExt, TryStreamExt};

use super::files::DataFile;
use super::first_columns;
use super::scan::{Reader, parallelism, partition_value};
use super::schema::project;
use super::write::Rewrite;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::table::Span;

const DAY: i64 = 86_400_000_000;

/// Statistics cut times to milliseconds.
const CUT: i64 = 1_000;

/// A column as numbers: microseconds or days since the epoch.
#[derive(Clone)]
struct Column {
    name: String,
    data_type: DataType,
}

impl Column {
    fn new(name: &str, schema: &SchemaRef) -> Result<Column> {
        let field = schema.field_with_name(name).context(ErrorKind::Config, format!("there is no column `{name}`"))?;
        match field.data_type() {
            DataType::Date32 | DataType::Timestamp(TimeUnit::Microsecond, _) => {
                Ok(Column { name: name.to_owned(), data_type: field.data_type().clone() })
            }
            other => Err(Error::config(format!("column `{name}` is {other}, neither a timestamp nor a date"))),
        }
    }

    fn bounds(&self, span: &Span) -> (i64, i64) {
        match self.data_type {
            DataType::Date32 => (days(span.dates.0), days(span.dates.1)),
            _ => (span.interval.start.timestamp_micros(), span.interval.end.timestamp_micros()),
        }
    }

    fn values(&self, array: &ArrayRef) -> Result<Vec<Option<i64>>> {
        let odd = || Error::failed(format!("column `{}` has another type than its table says", self.name));
        match self.data_type {
            DataType::Date32 => {
                Ok(array.as_primitive_opt::<Date32Type>().ok_or_else(odd)?.iter().map(|v| v.map(i64::from)).collect())
            }
            _ => Ok(array.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(odd)?.iter().collect()),
        }
    }

    /// Smallest and largest value that a file may hold, from its partition or its statistics.
    fn range_in(&self, file: &DataFile, reader: &Reader) -> Option<(i64, i64)> {
        if reader.partition_by.contains(&self.name) {
            let text = file.partition.get(&self.name).cloned().flatten();
            let value = partition_value(text.as_deref(), &self.data_type).ok()?;
            let value = self.values(&value).ok()?.first().copied().flatten()?;
            return Some((value, value));
        }
        let stats: serde_json::Value = serde_json::from_str(&file.view()?.stats()?).ok()?;
        let bound = |which: &str| {
            let text = StringArray::from(vec![stats.get(which)?.get(&self.name)?.as_str()?]);
            self.values(&cast(&text, &self.data_type).ok()?).ok()?.first().copied().flatten()
        };
        let cut = if self.data_type == DataType::Date32 { 0 } else { CUT };
        Some((bound("minValues")?, bound("maxValues")?.saturating_add(cut)))
    }

    /// False only when the file certainly holds no row of the span.
    fn may_hold(&self, file: &DataFile, reader: &Reader, span: &Span) -> bool {
        let (start, end) = self.bounds(span);
        self.range_in(file, reader).is_none_or(|(low, high)| low < end && high >= start)
    }

    fn mask(&self, batch: &RecordBatch, span: &Span) -> Result<BooleanArray> {
        let array = batch.column_by_name(&self.name);
        let array = array.ok_or_else(|| Error::failed(format!("the rows have no column `{}`", self.name)))?;
        let (start, end) = self.bounds(span);
        let inside = |value: Option<i64>| Some(value.is_some_and(|value| (start..end).contains(&value)));
        Ok(self.values(array)?.into_iter().map(inside).collect())
    }

    fn time(&self, value: i64) -> Option<DateTime<Utc>> {
        let micros = if self.data_type == DataType::Date32 { value.saturating_mul(DAY) } else { value };
        DateTime::from_timestamp_micros(micros)
    }
}

fn days(date: NaiveDate) -> i64 {
    date.signed_duration_since(NaiveDate::default()).num_days()
}

/// The rows of the span with `columns`.
pub(super) async fn read(
    reader: &Reader,
    mut files: Vec<DataFile>,
    schema: &SchemaRef,
    columns: &[String],
    span: &Span,
) -> Result<Vec<RecordBatch>> {
    let column = Column::new(&span.column, schema)?;
    files.retain(|file| column.may_hold(file, reader, span));
    let mut names = columns.to_vec();
    if !names.contains(&span.column) {
        names.push(span.column.clone());
    }
    let wanted = project(schema, &names, &reader.location)?;
    let count = columns.len();
    let tasks = files.into_iter().map(|file| {
        let (reader, wanted, column, span) = (reader.clone(), wanted.clone(), column.clone(), span.clone());
        let task = tokio::spawn(async move {
            let mut rows = reader.open(&file, wanted).await?;
            let mut kept = Vec::new();
            while let Some(batch) = rows.try_next().await? {
                let inside = filter_record_batch(&batch, &column.mask(&batch, &span)?);
                let inside = inside.context(ErrorKind::Failed, "rows could not be filtered")?;
                if inside.num_rows() > 0 {
                    kept.push(first_columns(&inside, count)?);
                }
            }
            Ok::<_, Error>(kept)
        });
        async move { task.await.context(ErrorKind::Failed, "a reader died")? }
    });
    let parts: Vec<Vec<RecordBatch>> = futures::stream::iter(tasks).buffered(parallelism()).try_collect().await?;
    Ok(parts.into_iter().flatten().collect())
}

/// The files that hold rows of the span, and which rows those are.
pub(super) async fn find(
    reader: &Reader,
    mut files: Vec<DataFile>,
    schema: &SchemaRef,
    span: &Span,
) -> Result<Vec<Rewrite>> {
    let column = Column::new(&span.column, schema)?;
    files.retain(|file| column.may_hold(file, reader, span));
    let wanted = project(schema, std::slice::from_ref(&span.column), &reader.location)?;
    let tasks = files.into_iter().map(|file| {
        let (reader, wanted, column, span) = (reader.clone(), wanted.clone(), column.clone(), span.clone());
        let task = tokio::spawn(async move {
            let mut rows = reader.open(&file, wanted).await?;
            let mut rewrite = Rewrite { file, rows: 0, gone: Vec::new() };
            while let Some(batch) = rows.try_next().await? {
                let mask = column.mask(&batch, &span)?;
                rewrite.gone.extend(mask.values().set_indices().map(|at| (rewrite.rows + at as u64) as u32));
                rewrite.rows += batch.num_rows() as u64;
            }
            Ok::<_, Error>(rewrite)
        });
        async move { task.await.context(ErrorKind::Failed, "a reader died")? }
    });
    let found: Vec<Rewrite> = futures::stream::iter(tasks).buffered(parallelism()).try_collect().await?;
    Ok(found.into_iter().filter(|rewrite| !rewrite.gone.is_empty()).collect())
}

/// Refuses rows outside of the span: the next replacement would not find them, and add them once more.
pub(super) fn check_inside(rows: &[RecordBatch], span: &Span, table: &str) -> Result<()> {
    let mut outside = 0;
    for batch in rows {
        let mask = Column::new(&span.column, &batch.schema())?.mask(batch, span)?;
        outside += mask.len() - mask.true_count();
    }
    if outside == 0 {
        return Ok(());
    }
    let text = format!("{outside} rows computed for table {table} lie outside of the interval they were computed from");
    Err(Error::new(ErrorKind::Data, text)
        .with("column", &span.column)
        .with("interval", span.interval)
        .help(format!("nothing was written to it; `sql` must pass `{}` through unchanged", span.column)))
}

/// The smallest value of a column. Files that tell by their statistics are not read.
pub(super) async fn first(
    reader: &Reader,
    files: Vec<DataFile>,
    schema: &SchemaRef,
    name: &str,
) -> Result<Option<DateTime<Utc>>> {
    let column = Column::new(name, schema)?;
    let mut first: Option<i64> = None;
    let mut unknown = Vec::new();
    for file in files {
        match column.range_in(&file, reader) {
            Some((low, _)) => first = Some(first.map_or(low, |first| first.min(low))),
            None => unknown.push(file),
        }
    }
    let wanted = project(schema, &[name.to_owned()], &reader.location)?;
    for batch in reader.read(unknown, wanted, None).await? {
        let low = column.values(batch.column(0))?.into_iter().flatten().min();
        first = [first, low].into_iter().flatten().min();
    }
    Ok(first.and_then(|value| column.time(value)))
}
