//! A Delta table at one version, read only: for lookups.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use deltalake::table::state::DeltaTableState;

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
}
