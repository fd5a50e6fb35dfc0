//! A Delta table at one version, read only: for lookups.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use deltalake::table::state::DeltaTableState;
use futures::TryStreamExt;

use super::files::DataFile;
use super::handle::{Handle, signed};
use super::scan::Reader;
use super::schema::arrow_schema;
use crate::error::{Error, Result};
use crate::storage::Storage;

/// One version of a table.
pub(in crate::table) struct Snapshot {
    state: DeltaTableState,
    files: Vec<DataFile>,
    reader: Reader,
}

/// Loads a version (`None` = the newest); `None` = there is no table.
pub(in crate::table) async fn load(storage: &Storage, version: Option<i64>) -> Result<Option<Snapshot>> {
    let mut handle = Handle::new(storage.clone());
    if !handle.load_version(version).await? {
        return Ok(None);
    }
    let Some(state) = handle.state().cloned() else { return Ok(None) };
    let location = handle.location();
    let files = handle.files()?;
    if state.metadata().configuration().get("delta.columnMapping.mode").is_some_and(|mode| mode != "none") {
        return Err(Error::config("tables with column mapping cannot be looked up").with("at", location));
    }
    if files.iter().any(DataFile::has_deletion_vector) {
        return Err(Error::config("tables with deletion vectors cannot be looked up")
            .with("at", location)
            .help("purge them (REORG TABLE … APPLY (PURGE)), or copy the table to a Parquet file"));
    }
    let partition_by = Arc::new(state.metadata().partition_columns().to_vec());
    let reader = Reader { store: handle.store(), location, partition_by };
    Ok(Some(Snapshot { state, files, reader }))
}

impl Snapshot {
    pub(in crate::table) fn version(&self) -> i64 {
        signed(self.state.version())
    }

    pub(in crate::table) fn schema(&self) -> SchemaRef {
        arrow_schema(&self.state)
    }

    /// All rows.
    pub(in crate::table) async fn rows(&self) -> Result<Vec<RecordBatch>> {
        self.reader.read(self.files.clone(), self.schema(), None).await
    }

    /// Files, bytes and rows; the rows are those that the files' statistics count.
    pub(in crate::table) fn size(&self) -> (u64, u64, u64) {
        let rows = |file: &DataFile| file.view().and_then(|view| view.num_records()).unwrap_or_default() as u64;
        let bytes = self.files.iter().map(|file| file.size).sum();
        (self.files.len() as u64, bytes, self.files.iter().map(rows).sum())
    }

    /// The first rows of the first file that has any.
    pub(in crate::table) async fn head(&self, count: usize) -> Result<Vec<RecordBatch>> {
        let mut head = Vec::new();
        let mut missing = count;
        for file in &self.files {
            let mut batches = self.reader.open(file, self.schema()).await?;
            while missing > 0
                && let Some(batch) = batches.try_next().await?
            {
                let batch = batch.slice(0, batch.num_rows().min(missing));
                missing -= batch.num_rows();
                head.push(batch);
            }
            if missing == 0 {
                break;
            }
        }
        Ok(head)
    }
}
