//! Writing data files: new rows, and rewrites of files without the rows that go.

use std::num::NonZeroU64;
use std::sync::Arc;

use arrow::array::{BooleanArray, BooleanBufferBuilder, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use deltalake::datafile::writer::{DeltaWriter, WriterConfig};
use deltalake::kernel::Add;
use deltalake::table::config::TablePropertiesExt;
use deltalake::table::state::DeltaTableState;
use futures::TryStreamExt;
use object_store::ObjectStore;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::files::DataFile;
use super::handle::explain;
use super::scan::{Reader, parallelism};
use super::schema::project;
use super::witness::Witness;
use crate::error::{Context, ErrorKind, Result};

/// Parquet files aim at this size: fewer files to look at per batch, few enough rows to rewrite.
const TARGET_FILE_BYTES: u64 = 100 << 20;

/// Below this a rewrite is one writer's work: more would only make more small files.
const LANE_BYTES: u64 = 24 << 20;

/// Delta keeps statistics of the first columns only; keys are looked up by theirs.
const STATS_COLUMNS: usize = 32;

/// Makes writers of one table.
#[derive(Clone)]
pub(super) struct Writer {
    store: Arc<dyn ObjectStore>,
    config: WriterConfig,
    location: String,
}

/// The columns that get statistics: the first ones, and keys wherever they stand.
pub(super) fn stats_columns(schema: &SchemaRef, keys: &[String]) -> Vec<String> {
    let mut names: Vec<String> = schema.fields().iter().take(STATS_COLUMNS).map(|field| field.name().clone()).collect();
    let late: Vec<String> = keys.iter().filter(|key| !names.contains(key)).cloned().collect();
    names.extend(late);
    names
}

impl Writer {
    /// `keys` get statistics wherever they stand in the schema.
    pub(super) fn new(
        store: Arc<dyn ObjectStore>,
        location: String,
        schema: &SchemaRef,
        partition_by: &[String],
        keys: &[String],
        state: &DeltaTableState,
    ) -> Writer {
        Writer::sized(store, location, schema, partition_by, keys, state, TARGET_FILE_BYTES)
    }

    /// The same for files of about `target` bytes.
    pub(super) fn sized(
        store: Arc<dyn ObjectStore>,
        location: String,
        schema: &SchemaRef,
        partition_by: &[String],
        keys: &[String],
        state: &DeltaTableState,
        target: u64,
    ) -> Writer {
        let stats = stats_columns(schema, keys);
        let stats_columns = (stats.len() > schema.fields().len().min(STATS_COLUMNS)).then_some(stats);
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_created_by(concat!("tidegate ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        let config = WriterConfig::new(
            schema.clone(),
            partition_by.to_vec(),
            Some(properties),
            NonZeroU64::new(target),
            None,
            state.table_config().num_indexed_cols(),
            stats_columns,
        );
        Writer { store, config, location }
    }

    /// Writes rows to new files.
    pub(super) async fn write(&self, rows: &[RecordBatch]) -> Result<Vec<Add>> {
        let lane = Lane { work: Vec::new(), fresh: rows.to_vec() };
        let (adds, _) = self.run(lane, None, Witness::blind()).await?;
        Ok(adds)
    }

    /// Writes all rows of `files`, in that order, to new files.
    pub(super) async fn merge(&self, reader: &Reader, schema: &SchemaRef, files: &[DataFile]) -> Result<Vec<Add>> {
        let whole = |file: &DataFile| Rewrite { file: file.clone(), rows: u64::MAX, gone: Vec::new() };
        let lane = Lane { work: files.iter().map(whole).collect(), fresh: Vec::new() };
        let (adds, _) = self.run(lane, Some((reader.clone(), schema.clone())), Witness::blind()).await?;
        Ok(adds)
    }

    /// Writes the rows of `work` that stay, and `fresh` rows, to new files; shows the rows that go to `witness`.
    pub(super) async fn rewrite(
        &self,
        reader: &Reader,
        schema: &SchemaRef,
        work: Vec<Rewrite>,
        fresh: Vec<RecordBatch>,
        witness: &mut Witness,
    ) -> Result<Vec<Add>> {
        let empty = witness.emptied();
        let tasks = lanes(work, fresh).into_iter().map(|lane| {
            let (writer, source, empty) = (self.clone(), Some((reader.clone(), schema.clone())), empty.clone());
            tokio::spawn(async move { writer.run(lane, source, empty).await })
        });
        let mut adds = Vec::new();
        let mut failure = None;
        for done in futures::future::join_all(tasks).await {
            match done.context(ErrorKind::Failed, "a writer died").and_then(|lane| lane) {
                Ok((files, seen)) => {
                    adds.extend(files);
                    witness.join(seen);
                }
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            None => Ok(adds),
            Some(error) => {
                remove(&self.store, &adds).await;
                Err(error)
            }
        }
    }

    async fn run(
        &self,
        lane: Lane,
        source: Option<(Reader, SchemaRef)>,
        mut witness: Witness,
    ) -> Result<(Vec<Add>, Witness)> {
        let mut writer = DeltaWriter::new(self.store.clone(), self.config.clone());
        match self.fill(&mut writer, lane, source, &mut witness).await {
            Ok(()) => {
                let adds = writer.close().await.map_err(|e| explain(e, "write data files", &self.location))?;
                Ok((adds, witness))
            }
            Err(error) => {
                if let Err(cause) = writer.abort().await {
                    tracing::debug!(table = %self.location, error = %cause, "could not abort an upload");
                }
                Err(error)
            }
        }
    }

    async fn fill(
        &self,
        writer: &mut DeltaWriter,
        lane: Lane,
        source: Option<(Reader, SchemaRef)>,
        witness: &mut Witness,
    ) -> Result<()> {
        for batch in lane.fresh.iter().filter(|batch| batch.num_rows() > 0) {
            writer.write(batch).await.map_err(|e| explain(e, "write data files", &self.location))?;
        }
        let Some((reader, schema)) = source else { return Ok(()) };
        for rewrite in lane.work {
            let whole = rewrite.goes_whole();
            let columns = match (whole, witness.is_blind()) {
                (true, true) => continue,
                (true, false) => {
                    let names: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
                    let watched = names.into_iter().filter(|name| witness.looks_at(name));
                    project(&schema, &watched.collect::<Vec<_>>(), &self.location)?
                }
                (false, _) => schema.clone(),
            };
            let mut rows = reader.open(&rewrite.file, columns).await?;
            let mut cursor = Cursor { gone: &rewrite.gone, start: 0 };
            while let Some(batch) = rows.try_next().await? {
                let stays = cursor.stays(batch.num_rows());
                if !witness.is_blind() {
                    let goes = arrow::compute::not(&stays).context(ErrorKind::Failed, "rows could not be filtered")?;
                    let goes = filter(&batch, &goes)?;
                    if goes.num_rows() > 0 {
                        witness.goes(&goes)?;
                    }
                }
                if !whole {
                    let stays = filter(&batch, &stays)?;
                    if stays.num_rows() > 0 {
                        writer.write(&stays).await.map_err(|e| explain(e, "write data files", &self.location))?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// A file and the rows of it that go, by position, ascending.
pub(super) struct Rewrite {
    pub(super) file: DataFile,
    pub(super) rows: u64,
    pub(super) gone: Vec<u32>,
}

impl Rewrite {
    fn goes_whole(&self) -> bool {
        self.gone.len() as u64 == self.rows
    }
}

struct Lane {
    work: Vec<Rewrite>,
    fresh: Vec<RecordBatch>,
}

/// Cuts the work into lanes of about equal size; one partition stays in one lane, so that its files are merged.
fn lanes(work: Vec<Rewrite>, fresh: Vec<RecordBatch>) -> Vec<Lane> {
    let total: u64 = work.iter().map(|w| w.file.size).sum();
    let count = ((total / LANE_BYTES) as usize).clamp(1, parallelism());
    let mut lanes: Vec<(u64, Lane)> = (0..count).map(|_| (0, Lane { work: Vec::new(), fresh: Vec::new() })).collect();
    let mut homes = std::collections::HashMap::new();
    let mut fresh_bytes: u64 = fresh.iter().map(|b| b.get_array_memory_size() as u64 / 4).sum();
    if let Some((load, lane)) = lanes.first_mut() {
        lane.fresh = fresh;
        *load = std::mem::take(&mut fresh_bytes);
    }
    for rewrite in work {
        let lightest = lanes.iter().enumerate().min_by_key(|(_, (load, _))| *load).map_or(0, |(at, _)| at);
        let partition = rewrite.file.partition_name();
        let home = if partition.is_empty() { lightest } else { *homes.entry(partition).or_insert(lightest) };
        lanes[home].0 += rewrite.file.size;
        lanes[home].1.work.push(rewrite);
    }
    lanes.into_iter().map(|(_, lane)| lane).filter(|lane| !lane.work.is_empty() || !lane.fresh.is_empty()).collect()
}

/// Walks ascending positions in step with batches.
struct Cursor<'a> {
    gone: &'a [u32],
    start: u64,
}

impl Cursor<'_> {
    fn stays(&mut self, rows: usize) -> BooleanArray {
        let mut bits = BooleanBufferBuilder::new(rows);
        bits.append_n(rows, true);
        while let Some((first, rest)) = self.gone.split_first() {
            let at = u64::from(*first) - self.start;
            if at >= rows as u64 {
                break;
            }
            bits.set_bit(at as usize, false);
            self.gone = rest;
        }
        self.start += rows as u64;
        BooleanArray::new(bits.finish(), None)
    }
}

fn filter(batch: &RecordBatch, mask: &BooleanArray) -> Result<RecordBatch> {
    filter_record_batch(batch, mask).context(ErrorKind::Failed, "rows could not be filtered")
}

/// Removes files that were never committed. Best effort.
pub(super) async fn remove(store: &Arc<dyn ObjectStore>, adds: &[Add]) {
    use object_store::ObjectStoreExt;
    for add in adds {
        let _ = store.delete(&super::files::location(&add.path)).await;
    }
}
