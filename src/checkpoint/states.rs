//! What tables remember between batches (open windows, keys, waiting rows), as files in the lake.
//!
//! ```text
//! <lake>/_tidegate/state/<table>/00000000000000000042-1f0c….parquet
//! ```
//!
//! A file holds all entries, or those that one batch changed on top of the files that it names. It is written before the
//! table's commit of that batch, whose note names it, and so does the commit record: which file counts is decided there,
//! never by a listing. Files of attempts that came to nothing are deleted some batches later.

use std::collections::{BTreeMap, BTreeSet};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore as _, ObjectStoreExt, PutPayload};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use serde::{Deserialize, Serialize};

use crate::error::{Code, Context, Error, ErrorKind, Result};
use crate::model::batch::BatchId;
use crate::model::watermark::Clocks;
use crate::model::window::Micros;
use crate::storage::{self, Storage};

/// Version of the files that this build writes.
pub const STATE_VERSION: u32 = 1;

/// Folder of all states in a lake.
pub const FOLDER: &str = "_tidegate/state";

/// What to do about a file that cannot be read; whoever knows the table adds what else there is.
const RESTORE: &str = "nothing was read or written; restore the file from a backup";

/// Where the file keeps its [`Saved`].
const METADATA: &str = "tidegate.state";

/// What a state file says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    /// On-disk format.
    pub version: u32,
    /// Identity of the pipeline's log.
    pub pipeline_id: String,
    /// The table.
    pub table: String,
    /// The batch after which the table remembers this.
    pub batch: BatchId,
    /// What gives the entries their meaning.
    pub meaning: String,
    /// Files that come before this one, oldest first; the first of all holds every entry of its time.
    pub after: Vec<String>,
    /// Entries in this file and those before it, gone ones included.
    pub entries: u64,
    /// The watermark after the batch.
    pub watermark: Option<Micros>,
    /// The clocks after the batch.
    pub clocks: Clocks,
    /// Batches that moved the watermark on without rows to do so, and how far: what was closed by hand or for want of rows.
    /// In a file that holds changes: those since the file before it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub closings: BTreeMap<BatchId, Micros>,
}

/// The states of a pipeline's tables.
#[derive(Debug, Clone)]
pub struct States {
    storage: Storage,
}

impl States {
    /// In a lake.
    pub fn new(lake: &Storage) -> Result<States> {
        Ok(States { storage: lake.join(FOLDER)? })
    }

    /// Writes a file, and returns its name.
    pub async fn save(&self, saved: &Saved, schema: SchemaRef, rows: Vec<RecordBatch>, nonce: &str) -> Result<String> {
        let name = format!("{:020}-{nonce}", saved.batch);
        let bytes = encode(saved, schema, rows)?;
        let path = path(&saved.table, &name);
        let put = self.storage.store.put(&path, PutPayload::from(bytes)).await;
        put.map_err(|error| {
            storage::explain(&error, &format!("write the state of {}", saved.table), &self.name(&path))
                .help("the table was not changed by this batch; it is tried again at the next run")
        })?;
        Ok(name)
    }

    /// What a file says of itself, and its entries.
    pub async fn load(&self, table: &str, name: &str) -> Result<(Saved, Vec<RecordBatch>)> {
        let path = path(table, name);
        let bytes = match self.storage.store.get(&path).await {
            Ok(found) => found.bytes().await,
            Err(object_store::Error::NotFound { .. }) => return Err(self.lost(table, &path)),
            Err(error) => Err(error),
        };
        let what = format!("read the state of {table}");
        let bytes = bytes.map_err(|error| storage::explain(&error, &what, &self.name(&path)))?;
        let damaged = || {
            let error = Error::config(format!("a file of the state of {table} is damaged")).coded(Code::StateLost);
            error.with("state", self.name(&path)).help(RESTORE)
        };
        decode(bytes, damaged)
    }

    /// Reads a table's state, entries that mean `meaning`: what its newest file says of itself; `take` gets the entries of
    /// that file and of those before it, oldest first.
    pub async fn restore(
        &self,
        table: &str,
        newest: &str,
        meaning: &str,
        mut take: impl FnMut(&[RecordBatch]) -> Result<()>,
    ) -> Result<Saved> {
        let (mut saved, rows) = self.load(table, newest).await?;
        if saved.meaning != meaning {
            return Err(Error::config(format!("the state of {table} was kept by other rules"))
                .coded(Code::MeaningChanged)
                .with("then", &saved.meaning)
                .with("now", meaning)
                .help("nothing was read or written; undo the change in the pipeline file"));
        }
        for name in &saved.after {
            let (earlier, rows) = self.load(table, name).await?;
            take(&rows)?;
            saved.closings.extend(earlier.closings);
        }
        take(&rows)?;
        Ok(saved)
    }

    /// What a table's newest file says of itself, whatever its entries mean.
    pub async fn saved(&self, table: &str, newest: &str) -> Result<Saved> {
        let (mut saved, _) = self.load(table, newest).await?;
        for name in &saved.after {
            saved.closings.extend(self.load(table, name).await?.0.closings);
        }
        Ok(saved)
    }

    /// Deletes files of earlier batches that are not among `needed`.
    pub async fn tidy(&self, table: &str, needed: &BTreeSet<String>, before: BatchId) -> Result<()> {
        let folder = Path::from(table);
        let found: Vec<_> =
            self.storage.store.list(Some(&folder)).try_collect().await.map_err(|error| {
                storage::explain(&error, &format!("list the state of {table}"), &self.name(&folder))
            })?;
        for object in found {
            let Some(name) = object.location.filename().and_then(|name| name.strip_suffix(".parquet")) else {
                continue;
            };
            let batch = name.split('-').next().and_then(|batch| batch.parse::<BatchId>().ok());
            if batch.is_some_and(|batch| batch < before) && !needed.contains(name) {
                match self.storage.store.delete(&object.location).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => {
                        let what = format!("delete an old state of {table}");
                        return Err(storage::explain(&error, &what, &self.name(&object.location)));
                    }
                }
            }
        }
        Ok(())
    }

    fn name(&self, path: &Path) -> String {
        format!("{}{path}", self.storage.display())
    }

    fn lost(&self, table: &str, path: &Path) -> Error {
        let error = Error::config(format!("the state of {table} is gone")).coded(Code::StateLost);
        error.with("missing", self.name(path)).help(RESTORE)
    }
}

fn path(table: &str, name: &str) -> Path {
    Path::from(format!("{table}/{name}.parquet"))
}

fn encode(saved: &Saved, schema: SchemaRef, rows: Vec<RecordBatch>) -> Result<Vec<u8>> {
    let text = serde_json::to_string(saved).context(ErrorKind::Failed, "what a state is cannot be written")?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_created_by(concat!("tidegate ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(vec![KeyValue::new(METADATA.to_string(), text)]))
        .build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, schema, Some(properties))
        .context(ErrorKind::Failed, "a state cannot be written")?;
    for batch in rows {
        writer.write(&batch).context(ErrorKind::Failed, "a state cannot be written")?;
    }
    writer.close().context(ErrorKind::Failed, "a state cannot be written")?;
    Ok(bytes)
}

fn decode(bytes: Bytes, damaged: impl Fn() -> Error) -> Result<(Saved, Vec<RecordBatch>)> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|cause| damaged().caused_by(cause))?;
    let metadata = builder.metadata().file_metadata().key_value_metadata();
    let text = metadata.into_iter().flatten().find(|pair| pair.key == METADATA).and_then(|pair| pair.value.clone());
    let text = text.ok_or_else(|| damaged().with("lacks", METADATA))?;
    let version: serde_json::Value = serde_json::from_str(&text).map_err(|cause| damaged().caused_by(cause))?;
    let version = version.get("version").and_then(serde_json::Value::as_u64).unwrap_or_default();
    if version > u64::from(STATE_VERSION) {
        return Err(Error::config(format!("the state was written by a newer tidegate (format {version})"))
            .coded(Code::StateLost)
            .help(format!("this build knows formats up to {STATE_VERSION}: run the newer tidegate")));
    }
    let saved: Saved = serde_json::from_str(&text).map_err(|cause| damaged().caused_by(cause))?;
    let reader = builder.build().map_err(|cause| damaged().caused_by(cause))?;
    let rows = reader.collect::<std::result::Result<Vec<_>, _>>().map_err(|cause| damaged().caused_by(cause))?;
    Ok((saved, rows))
}
