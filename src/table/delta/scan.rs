//! Reading data files: only the columns asked for, cast to today's schema, partition columns filled in.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, StringArray, new_null_array};
use arrow::compute::{cast, filter_record_batch, take};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::ObjectStore;
use parquet::arrow::ProjectionMask;
// Deprecated in favour of writing one's own; this one does what is needed here.
#[allow(deprecated)]
use parquet::arrow::async_reader::ParquetObjectReader;
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;

use super::files::DataFile;
use super::handle::explain;
use super::rows::{Encoder, Index};
use super::schema::conform_array;
use crate::error::{Context, Error, ErrorKind, Result};

/// Large enough that per-batch work vanishes, small enough that a wide file costs a few megabytes.
const BATCH_ROWS: usize = 16_384;

/// Files read at the same time: decoding is processor work.
pub(super) fn parallelism() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8))
}

/// Where files are and what their rows look like.
#[derive(Clone)]
pub(super) struct Reader {
    pub(super) store: Arc<dyn ObjectStore>,
    /// For messages.
    pub(super) location: String,
    pub(super) partition_by: Arc<Vec<String>>,
}

impl Reader {
    #[allow(deprecated)]
    /// The rows of one file in file order, with exactly the columns of `schema`.
    pub(super) async fn open(
        &self,
        file: &DataFile,
        schema: SchemaRef,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let at = format!("{}/{}", self.location.trim_end_matches('/'), file.path);
        let mut input = ParquetObjectReader::new(self.store.clone(), file.location());
        if file.size > 0 {
            input = input.with_file_size(file.size);
        }
        let failed = |cause| explain(cause, "read a data file", &at);
        let builder = ParquetRecordBatchStreamBuilder::new(input).await.map_err(failed)?;
        let stored = builder.schema().clone();
        let wanted = stored.fields().iter().enumerate().filter(|(_, field)| {
            schema.column_with_name(field.name()).is_some() && !self.partition_by.contains(field.name())
        });
        let mask = ProjectionMask::roots(builder.parquet_schema(), wanted.map(|(at, _)| at));
        let stream = builder.with_projection(mask).with_batch_size(BATCH_ROWS).build().map_err(failed)?;
        let constants = self.constants(file, &schema)?;
        let rows = stream.map(move |batch| {
            let batch = batch.map_err(|cause| explain(cause, "read a data file", &at))?;
            fill_in(&batch, &schema, &constants)
        });
        Ok(rows.boxed())
    }

    /// All rows of some files, several files at a time; `keep` filters each batch.
    pub(super) async fn read(
        &self,
        files: Vec<DataFile>,
        schema: SchemaRef,
        keep: Option<Arc<Semi>>,
    ) -> Result<Vec<RecordBatch>> {
        let tasks = files.into_iter().map(|file| {
            let (reader, schema, keep) = (self.clone(), schema.clone(), keep.clone());
            let task = tokio::spawn(async move {
                let mut rows = reader.open(&file, schema).await?;
                let mut kept = Vec::new();
                while let Some(batch) = rows.try_next().await? {
                    let batch = match &keep {
                        Some(semi) => semi.filter(&batch)?,
                        None => batch,
                    };
                    if batch.num_rows() > 0 {
                        kept.push(batch);
                    }
                }
                Ok::<_, Error>(kept)
            });
            async move { task.await.context(ErrorKind::Failed, "a reader died")? }
        });
        let parts: Vec<Vec<RecordBatch>> = spawn_bounded(tasks).try_collect().await?;
        Ok(parts.into_iter().flatten().collect())
    }

    /// Values of the partition columns of `schema` that this file stands for, one row each.
    fn constants(&self, file: &DataFile, schema: &Schema) -> Result<Vec<(String, ArrayRef)>> {
        let partition = self.partition_by.iter().filter_map(|name| schema.field_with_name(name).ok());
        partition
            .map(|field| {
                let text = file.partition.get(field.name()).cloned().flatten();
                Ok((field.name().clone(), partition_value(text.as_deref(), field.data_type())?))
            })
            .collect()
    }
}

/// Runs the futures in order of arrival, a bounded number at a time, keeping their order.
fn spawn_bounded<F, T>(tasks: impl Iterator<Item = F>) -> impl futures::Stream<Item = T>
where
    F: Future<Output = T>,
{
    // `map` is lazy: a task is spawned when the buffer has room for it.
    futures::stream::iter(tasks).buffered(parallelism())
}

/// A partition value from the log's text. Empty text is null, as the protocol says.
pub(super) fn partition_value(text: Option<&str>, data_type: &DataType) -> Result<ArrayRef> {
    match text {
        None | Some("") => Ok(new_null_array(data_type, 1)),
        Some(text) => {
            let text = StringArray::from(vec![text]);
            cast(&text, data_type).context(ErrorKind::Failed, format!("a partition value is not a {data_type}"))
        }
    }
}

fn fill_in(batch: &RecordBatch, schema: &SchemaRef, constants: &[(String, ArrayRef)]) -> Result<RecordBatch> {
    let count = batch.num_rows();
    let mut columns = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let column = if let Some((_, value)) = constants.iter().find(|(name, _)| name == field.name()) {
            let first = arrow::array::UInt32Array::from(vec![0u32; count]);
            take(value, &first, None).context(ErrorKind::Failed, "a partition value could not be repeated")?
        } else if let Some(column) = batch.column_by_name(field.name()) {
            conform_array(column, field.data_type(), field.name())?
        } else {
            new_null_array(field.data_type(), count)
        };
        columns.push(column);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(count));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options)
        .context(ErrorKind::Failed, "a data file does not fit the table's schema")
}

/// A set of rows over some columns; null equals null.
pub(super) struct Semi {
    encoder: Encoder,
    index: Index,
}

impl Semi {
    /// The rows of `groups`, with the columns' types in `schema`.
    pub(super) fn new(groups: &RecordBatch, schema: &Schema) -> Result<Semi> {
        let names: Vec<String> = groups.schema().fields().iter().map(|f| f.name().clone()).collect();
        let encoder = Encoder::new(schema, &names)?;
        let index = Index::of(&encoder, groups)?;
        Ok(Semi { encoder, index })
    }

    pub(super) fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// Which rows of `batch` are in the set.
    pub(super) fn mask(&self, batch: &RecordBatch) -> Result<BooleanArray> {
        let rows = self.encoder.encode(batch)?;
        Ok(rows.iter().map(|row| Some(self.index.find(row).is_some())).collect())
    }

    fn filter(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        filter_record_batch(batch, &self.mask(batch)?).context(ErrorKind::Failed, "rows could not be filtered")
    }
}

/// Whether any partition value or statistic rules a file out.
pub(super) struct Pruner {
    columns: Vec<PruneColumn>,
    partition_by: Arc<Vec<String>>,
}

struct PruneColumn {
    name: String,
    data_type: DataType,
    encoder: Encoder,
    rows: arrow::row::Rows,
    /// Row numbers in ascending order of value.
    sorted: Vec<u32>,
    has_null: bool,
}

impl Pruner {
    /// For files that may hold one of the rows of `wanted`, over the columns of `encoder`.
    pub(super) fn new(encoder: &Encoder, wanted: &RecordBatch, reader: &Reader) -> Result<Pruner> {
        let arrays = encoder.columns(wanted)?;
        let columns = encoder.schema().fields().iter().zip(arrays).map(|(field, array)| {
            let name = field.name().clone();
            let encoder = Encoder::new(encoder.schema(), std::slice::from_ref(&name))?;
            let has_null = array.logical_null_count() > 0;
            let rows = encoder.encode_arrays(&[array])?;
            let mut sorted: Vec<u32> = (0..rows.num_rows() as u32).collect();
            sorted.sort_unstable_by(|a, b| rows.row(*a as usize).cmp(&rows.row(*b as usize)));
            Ok(PruneColumn { name, data_type: field.data_type().clone(), encoder, rows, sorted, has_null })
        });
        Ok(Pruner { columns: columns.collect::<Result<_>>()?, partition_by: reader.partition_by.clone() })
    }

    /// False only when the file certainly holds none of the rows.
    pub(super) fn may_hold(&self, file: &DataFile) -> Result<bool> {
        let stats = match file.view() {
            Some(view) => view.stats().and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok()),
            None => None,
        };
        for column in &self.columns {
            let holds = if self.partition_by.contains(&column.name) {
                let text = file.partition.get(&column.name).cloned().flatten();
                let value = partition_value(text.as_deref(), &column.data_type)?;
                column.any_between(&value, &value)?
            } else {
                column.may_be_in(stats.as_ref())?
            };
            if !holds {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl PruneColumn {
    fn may_be_in(&self, stats: Option<&serde_json::Value>) -> Result<bool> {
        if self.has_null || !prunable(&self.data_type) {
            return Ok(true);
        }
        let bound = |which: &str| stats.and_then(|s| s.get(which)).and_then(|v| v.get(&self.name));
        match (bound("minValues"), bound("maxValues")) {
            (Some(low), Some(high)) => match (self.stat(low), self.stat(high)) {
                (Some(low), Some(high)) => self.any_between(&low, &round_up(high)),
                _ => Ok(true),
            },
            _ => Ok(true),
        }
    }

    fn stat(&self, value: &serde_json::Value) -> Option<ArrayRef> {
        let text = match value {
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Null => return None,
            other => other.to_string(),
        };
        // Binary statistics are written in more than one way; long text is cut in more than one way.
        if matches!(self.data_type, DataType::Binary) || text.len() >= 32 && self.data_type == DataType::Utf8 {
            return None;
        }
        let cast = cast(&StringArray::from(vec![text]), &self.data_type).ok()?;
        (cast.logical_null_count() == 0).then_some(cast)
    }

    fn any_between(&self, low: &ArrayRef, high: &ArrayRef) -> Result<bool> {
        let low = self.encoder.encode_arrays(std::slice::from_ref(low))?;
        let high = self.encoder.encode_arrays(std::slice::from_ref(high))?;
        let at = self.sorted.partition_point(|number| self.rows.row(*number as usize) < low.row(0));
        Ok(self.sorted.get(at).is_some_and(|number| self.rows.row(*number as usize) <= high.row(0)))
    }
}

/// Whether the smallest and largest value that the log tells can rule a file out. Statistics leave nulls out, NaN breaks
/// the ranges of floats, and the bounds of decimals went through a float when they were written: rounded, they may lie
/// inside the file's true range.
fn prunable(data_type: &DataType) -> bool {
    let is_decimal = matches!(
        data_type,
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..)
    );
    !is_decimal && !data_type.is_floating() && !data_type.is_nested()
}

/// Time stamps in statistics are cut to milliseconds, so the upper bound moves up by one.
fn round_up(high: ArrayRef) -> ArrayRef {
    use arrow::datatypes::{TimeUnit, TimestampMicrosecondType};
    match high.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let micros = high.as_primitive::<TimestampMicrosecondType>();
            let data_type = high.data_type().clone();
            Arc::new(micros.unary::<_, TimestampMicrosecondType>(|v| v.saturating_add(1_000)).with_data_type(data_type))
        }
        _ => high,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Decimal128Array, Int64Array};
    use arrow::datatypes::Field;

    fn column(array: ArrayRef) -> PruneColumn {
        let data_type = array.data_type().clone();
        let name = "id".to_owned();
        let schema = Schema::new(vec![Field::new(&name, data_type.clone(), true)]);
        let encoder = Encoder::new(&schema, std::slice::from_ref(&name)).unwrap();
        let rows = encoder.encode_arrays(&[array]).unwrap();
        PruneColumn { name, data_type, encoder, sorted: (0..rows.num_rows() as u32).collect(), rows, has_null: false }
    }

    #[test]
    fn bounds_rule_out_integers_but_never_decimals() {
        // What delta-rs writes for a file that holds nothing but 1234567890123456789.
        let stats = serde_json::json!({
            "minValues": {"id": 1_234_567_890_123_456_800_f64},
            "maxValues": {"id": 1_234_567_890_123_456_800_f64},
        });
        let wide = Decimal128Array::from(vec![1_234_567_890_123_456_789_i128]).with_precision_and_scale(20, 0).unwrap();
        assert!(column(Arc::new(wide)).may_be_in(Some(&stats)).unwrap());
        let stats = serde_json::json!({"minValues": {"id": 5}, "maxValues": {"id": 7}});
        let narrow = Decimal128Array::from(vec![9_i128]).with_precision_and_scale(10, 0).unwrap();
        assert!(column(Arc::new(narrow)).may_be_in(Some(&stats)).unwrap());
        assert!(!column(Arc::new(Int64Array::from(vec![9]))).may_be_in(Some(&stats)).unwrap());
        assert!(column(Arc::new(Int64Array::from(vec![6]))).may_be_in(Some(&stats)).unwrap());
    }
}
