//! One row as JSON text, for dead letters and messages.

use arrow::record_batch::RecordBatch;

/// The row as one JSON object.
pub fn row_json(batch: &RecordBatch, row: usize) -> String {
    let mut text = Vec::new();
    let mut writer = arrow::json::LineDelimitedWriter::new(&mut text);
    let written = writer.write(&batch.slice(row, 1)).and_then(|()| writer.finish());
    drop(writer);
    match written {
        Ok(()) => String::from_utf8_lossy(&text).trim_end().to_string(),
        Err(_) => String::from("{}"),
    }
}
