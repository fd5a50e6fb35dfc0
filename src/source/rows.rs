//! Records on their way into [`envelope`] batches: one builder per partition, columns appended without an allocation a
//! record, constant columns filled once a batch.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{
    ArrayBuilder, ArrayRef, BinaryBuilder, Int32Array, Int64Array, Int64Builder, ListBuilder, StringArray,
    StringBuilder, StructBuilder, TimestampMicrosecondBuilder, new_null_array,
};
use arrow::datatypes::{DataType, FieldRef};
use arrow::record_batch::RecordBatch;

use super::{column, envelope};
use crate::error::{Context, ErrorKind, Result};
use crate::model::offset::{Offset, Partition};

/// Rows of one batch: small enough to stay in cache while it is decoded, large enough to make calls rare.
pub const BATCH_ROWS: usize = 65_536;

/// Bytes of keys and values of one batch; Arrow's 32-bit offsets end at 2 GiB.
const BATCH_BYTES: usize = 64 << 20;

/// Headers of one record, in order.
pub type Headers<'a> = Vec<(&'a str, Option<&'a [u8]>)>;

/// Rows of one partition, offset ascending.
pub struct Rows {
    partition: Partition,
    offsets: Int64Builder,
    timestamps: TimestampMicrosecondBuilder,
    keys: BinaryBuilder,
    values: BinaryBuilder,
    headers: Option<ListBuilder<StructBuilder>>,
    open_bytes: usize,
    done: VecDeque<RecordBatch>,
}

impl Rows {
    /// No rows of `partition` yet.
    pub fn new(partition: Partition) -> Self {
        Rows {
            partition,
            offsets: Int64Builder::new(),
            timestamps: TimestampMicrosecondBuilder::new(),
            keys: BinaryBuilder::new(),
            values: BinaryBuilder::new(),
            headers: None,
            open_bytes: 0,
            done: VecDeque::new(),
        }
    }

    /// Appends one record; offsets must ascend. `timestamp` is UTC microseconds.
    pub fn push(
        &mut self,
        offset: Offset,
        timestamp: Option<i64>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: Option<Headers<'_>>,
    ) -> Result<()> {
        let bytes = key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
        if self.offsets.len() >= BATCH_ROWS || (self.open_bytes > 0 && self.open_bytes + bytes > BATCH_BYTES) {
            self.close()?;
        }
        self.open_bytes += bytes;
        self.push_headers(headers);
        self.offsets.append_value(offset);
        self.timestamps.append_option(timestamp);
        self.keys.append_option(key);
        self.values.append_option(value);
        Ok(())
    }

    /// Most topics have no headers: the builder exists from the first record that has some.
    fn push_headers(&mut self, headers: Option<Headers<'_>>) {
        if self.headers.is_none() && headers.is_some() {
            let mut builder = header_builder();
            (0..self.offsets.len()).for_each(|_| builder.append(false));
            self.headers = Some(builder);
        }
        let Some(builder) = &mut self.headers else { return };
        for (key, value) in headers.iter().flatten() {
            let entry = builder.values();
            if let Some(keys) = entry.field_builder::<StringBuilder>(0) {
                keys.append_value(key);
            }
            if let Some(values) = entry.field_builder::<BinaryBuilder>(1) {
                values.append_option(*value);
            }
            entry.append(true);
        }
        builder.append(headers.is_some());
    }

    /// Whether there is nothing here.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty() && self.offsets.is_empty()
    }

    /// All rows, in batches.
    pub fn finish(mut self) -> Result<Vec<RecordBatch>> {
        self.close()?;
        Ok(self.done.into())
    }

    fn close(&mut self) -> Result<()> {
        let rows = self.offsets.len();
        if rows == 0 {
            return Ok(());
        }
        self.open_bytes = 0;
        let schema = envelope();
        let headers: ArrayRef = match self.headers.take() {
            Some(mut builder) => Arc::new(builder.finish()),
            None => new_null_array(schema.field(6).data_type(), rows),
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(&self.partition.topic, rows))),
            Arc::new(Int32Array::from_value(self.partition.partition, rows)),
            Arc::new(self.offsets.finish()),
            Arc::new(self.timestamps.finish().with_timezone("UTC")),
            Arc::new(self.keys.finish()),
            Arc::new(self.values.finish()),
            headers,
        ];
        let batch = RecordBatch::try_new(schema, columns)
            .context(ErrorKind::Failed, format!("records of {} do not form a batch", self.partition))?;
        self.done.push_back(batch);
        Ok(())
    }
}

/// A builder whose field names and nullability are those of the envelope: Arrow compares them.
fn header_builder() -> ListBuilder<StructBuilder> {
    let schema = envelope();
    let element: Option<FieldRef> = match schema.field(6).data_type() {
        DataType::List(element) => Some(element.clone()),
        _ => None,
    };
    let fields = match element.as_ref().map(|e| e.data_type()) {
        Some(DataType::Struct(fields)) => fields.clone(),
        _ => Default::default(),
    };
    let columns: Vec<Box<dyn ArrayBuilder>> = vec![Box::new(StringBuilder::new()), Box::new(BinaryBuilder::new())];
    let builder = ListBuilder::new(StructBuilder::new(fields, columns));
    match element {
        Some(element) => builder.with_field(element),
        None => builder,
    }
}

/// The offsets of an envelope batch.
pub fn offsets_of(batch: &RecordBatch) -> Option<&Int64Array> {
    batch.column_by_name(column::OFFSET)?.as_any().downcast_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Array, AsArray, ListArray};

    #[test]
    fn headers_start_late_and_earlier_rows_have_null() {
        let mut rows = Rows::new(Partition::new("t", 3));
        rows.push(5, None, None, Some(b"a"), None).expect("row");
        rows.push(7, Some(1), Some(b"k"), None, Some(vec![("h", Some(b"1".as_slice())), ("h", None)])).expect("row");
        rows.push(9, Some(2), None, Some(b"b"), None).expect("row");
        let batches = rows.finish().expect("batches");
        assert_eq!(batches.len(), 1);
        let headers: &ListArray = batches[0].column(6).as_list();
        assert_eq!((headers.is_null(0), headers.is_null(1), headers.is_null(2)), (true, false, true));
        assert_eq!(headers.value(1).len(), 2);
        assert_eq!(offsets_of(&batches[0]).expect("offsets").values(), &[5, 7, 9]);
        assert!(batches[0].column(5).is_null(1) && batches[0].column(3).is_null(0));
    }

    #[test]
    fn a_batch_ends_at_its_row_limit() {
        let mut rows = Rows::new(Partition::new("t", 0));
        for offset in 0..(BATCH_ROWS as i64 + 1) {
            rows.push(offset, None, None, Some(b"v"), None).expect("row");
        }
        let sizes: Vec<usize> = rows.finish().expect("batches").iter().map(RecordBatch::num_rows).collect();
        assert_eq!(sizes, [BATCH_ROWS, 1]);
    }
}
