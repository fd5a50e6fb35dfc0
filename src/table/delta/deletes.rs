//! The memory of deletes: for every deleted key the rank of its delete, so that a late row does not revive the key.
//!
//! A side table `<lake>/_tidegate/deletes/<table>` of appended rows, written before the table itself, with its own
//! transaction. Writing first is what makes a crash in between harmless: the replay finds its own deletes in memory, and
//! a delete is not beaten by its equal. Keys are never forgotten: the price is one narrow row per deleted key.

use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{Field, Schema, SchemaRef};
use chrono::{DateTime, Utc};
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::{Action, StructType};
use deltalake::protocol::{DeltaOperation, OutputMode};
use std::cmp::Ordering;

use super::create::create;
use super::handle::Handle;
use super::others;
use super::rows::Encoder;
use super::scan::{Pruner, Reader};
use super::schema::{conform, made_by};
use super::winners::Winners;
use super::write::{Writer, remove};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fail;
use crate::storage::Storage;
use crate::table::maintain::{Compacted, Compaction, Vacuum, Vacuumed};
use crate::table::{Maker, TableDefinition, Txn};

/// Small files that are merged into the next one written: lookups stay at a handful of files.
const MERGE_ABOVE: usize = 16;
const SMALL_FILE: u64 = 16 << 20;

/// The remembered deletes of one table.
pub(super) struct Memory {
    pub(super) handle: Handle,
    pub(super) loaded: bool,
    /// The version up to which nobody else has done it any harm.
    pub(super) unharmed: Option<i64>,
    /// The table it belongs to.
    table: String,
    maker: Maker,
}

impl Memory {
    pub(super) fn open(lake: &Storage, definition: &TableDefinition) -> Result<Memory> {
        let below = format!("_tidegate/deletes/{}", definition.name.replace('.', "/"));
        let handle = Handle::new(lake.join(&below)?);
        Ok(Memory {
            handle,
            loaded: false,
            unharmed: None,
            table: definition.name.clone(),
            maker: definition.maker.clone(),
        })
    }

    /// Deletes that another checkpoint remembers say nothing about this one's rows: its offsets may be those of another
    /// topic, and its batches are numbered anew, so that its own deletes would be taken for written.
    pub(super) fn check_owner(&self) -> Result<()> {
        let Some(state) = self.handle.state() else { return Ok(()) };
        let owner = made_by(state);
        if owner.as_ref().is_some_and(|owner| owner.pipeline_id == self.maker.pipeline_id) {
            return Ok(());
        }
        let show = |maker: &Maker| format!("{} ({})", maker.pipeline, maker.pipeline_id);
        let at = self.handle.location();
        Err(Error::config(format!("the memory of deletes at {at} belongs to another checkpoint"))
            .with("table", &self.table)
            .with("it belongs to", owner.as_ref().map_or("nobody that is known".to_owned(), show))
            .with("this pipeline", show(&self.maker))
            .help("no row of this batch was written to the table")
            .help(format!(
                "the table was dropped or the checkpoint was made anew: delete the folder {at} together with \
                 the table, or restore the checkpoint that they belong to"
            )))
    }

    /// Reads its version from storage, and whether others have taken deletes away from it.
    pub(super) async fn observe(&mut self) -> Result<(Option<i64>, bool)> {
        self.handle.load().await?;
        (self.loaded, self.unharmed) = (true, None);
        Ok((self.version(), self.is_harmed().await?))
    }

    /// What the note of a commit says: the version that the memory has reached, -1 while there is none. `None` = it was
    /// not looked at.
    pub(super) fn reached(&self) -> Option<i64> {
        self.loaded.then(|| self.version().unwrap_or(-1))
    }

    /// A restore raises the version like any other commit, so only the log tells. Each version is looked at once.
    async fn is_harmed(&mut self) -> Result<bool> {
        let version = self.version();
        if version == self.unharmed {
            return Ok(false);
        }
        let is_harmed = others::harmed(&self.handle).await?;
        if !is_harmed {
            self.unharmed = version;
        }
        Ok(is_harmed)
    }

    /// Never over a version that others have made: buried under our own commit it would not be found again.
    pub(super) async fn check_unharmed(&mut self) -> Result<()> {
        if !self.is_harmed().await? {
            return Ok(());
        }
        let text = format!("the memory of deletes of {} was restored or changed by others", self.table);
        Err(Error::config(text)
            .with("at", self.handle.location())
            .with("version", self.version().unwrap_or_default())
            .help("no row of this batch was written to the table: late rows would revive deleted keys")
            .help("undo it: RESTORE that folder to the version before the change, then run again")
            .help("what the log and the tables hold: tidegate checkpoint verify FILE"))
    }

    /// Its version as last seen; `None` = nothing was ever deleted.
    pub(super) fn version(&self) -> Option<i64> {
        self.handle.version()
    }

    /// Forgets what was read; the next look starts from storage.
    pub(super) fn reset(&mut self) {
        self.loaded = false;
    }

    /// How the remembered delete of each winner's key ranks against the winner; `None` = the key was never deleted.
    pub(super) async fn verdicts(
        &mut self,
        winners: &Winners,
        key: &Encoder,
        rank: &Encoder,
    ) -> Result<Vec<Option<Ordering>>> {
        // After the table itself was read, so that a delete which the table shows is in here: a backfill may work beside
        // the live pipeline.
        match self.loaded {
            true => self.handle.refresh().await?,
            false => self.handle.load().await?,
        };
        self.check_owner()?;
        self.check_unharmed().await?;
        self.loaded = true;
        let mut verdicts = vec![None; winners.len()];
        if self.handle.state().is_none() {
            return Ok(verdicts);
        }
        let reader = self.reader();
        let pruner = Pruner::new(key, &winners.rows, &reader)?;
        let mut files = self.handle.files()?;
        files.retain(|file| pruner.may_hold(file).unwrap_or(true));
        let semi = super::scan::Semi::new(&project_keys(&winners.rows, key)?, &memory_schema(key, rank))?;
        let remembered = reader.read(files, memory_schema(key, rank), Some(Arc::new(semi))).await?;
        for batch in &remembered {
            let (keys, ranks) = (key.encode(batch)?, rank.encode(batch)?);
            for at in 0..batch.num_rows() {
                let Some(number) = winners.find(keys.row(at)) else { continue };
                let order = ranks.row(at).cmp(&winners.ranks.row(number));
                verdicts[number] = verdicts[number].max(Some(order));
            }
        }
        Ok(verdicts)
    }

    /// Remembers the deletes `numbers` of a batch, once per batch.
    pub(super) async fn remember(
        &mut self,
        winners: &Winners,
        numbers: Vec<u32>,
        encoders: (&Encoder, &Encoder),
        definition: &TableDefinition,
        txn: &Txn,
    ) -> Result<()> {
        if numbers.is_empty() {
            return Ok(());
        }
        fail::hit(fail::REMEMBER)?;
        let txn = Txn { app_id: format!("{}:deletes", txn.app_id), ..txn.clone() };
        let schema = memory_schema(encoders.0, encoders.1);
        let rows = take_record_batch(&winners.rows, &UInt32Array::from(numbers))
            .context(ErrorKind::Failed, "rows could not be picked")?;
        let rows = conform(&rows, &schema, &definition.name)?;
        let mut lost = None;
        for _ in 0..super::ATTEMPTS {
            if self.handle.state().is_none() && !self.handle.load().await? {
                let kernel: StructType = schema
                    .as_ref()
                    .try_into_kernel()
                    .context(ErrorKind::Config, "keys of this type cannot be stored")?;
                if let Err(cause) = create(&self.handle, &kernel, &[], &definition.maker).await
                    && !self.handle.load().await?
                {
                    return Err(self.handle.explain(cause, "create the memory of deletes"));
                }
                self.handle.load().await?;
            }
            self.check_owner()?;
            self.check_unharmed().await?;
            if self.handle.applied(&txn.app_id).await?.is_some_and(|applied| applied >= txn.batch) {
                return Ok(());
            }
            match self.write(&rows, &schema, encoders.0, &txn).await {
                Ok(()) => return Ok(()),
                // Whether it landed or not: look again, the transaction tells.
                Err(error) => {
                    self.handle.load().await?;
                    lost = Some(error);
                }
            }
        }
        if self.handle.applied(&txn.app_id).await?.is_some_and(|applied| applied >= txn.batch) {
            return Ok(());
        }
        Err(lost.unwrap_or_else(|| Error::new(ErrorKind::Busy, "the memory of deletes is being changed by others")))
    }

    /// Merges its small files.
    pub(super) async fn compact(&mut self, order: &Compaction) -> Result<Compacted> {
        if self.handle.state().is_none() && !self.handle.load().await? {
            return Ok(Compacted::default());
        }
        self.check_owner()?;
        super::maintain::merge(&mut self.handle, &[], order).await
    }

    /// Deletes its old files.
    pub(super) async fn vacuum(&self, order: &Vacuum) -> Result<Vacuumed> {
        let app_id = match order.app_id.as_str() {
            "" => String::new(),
            app_id => format!("{app_id}:deletes"),
        };
        let order = Vacuum { app_id, keep_versions: Vec::new(), ..order.clone() };
        super::vacuum::vacuum(Handle::new(self.handle.storage().clone()), &order).await
    }

    pub(super) async fn tidy_log(&mut self, now: DateTime<Utc>) {
        self.handle.tidy_log(now).await;
    }

    async fn write(&mut self, rows: &RecordBatch, schema: &SchemaRef, key: &Encoder, txn: &Txn) -> Result<()> {
        let Some(state) = self.handle.state() else { return Err(Error::failed("the memory of deletes is not loaded")) };
        let keys: Vec<String> = key.names().cloned().collect();
        let store = self.handle.store();
        let writer = Writer::new(store.clone(), self.handle.location(), schema, &[], &keys, state);
        let mut small = self.handle.files()?;
        small.retain(|file| file.size < SMALL_FILE);
        if small.len() < fail::often(MERGE_ABOVE, 2) {
            small.clear();
        }
        let mut all = vec![rows.clone()];
        all.extend(self.reader().read(small.clone(), schema.clone(), None).await?);
        let adds = writer.write(&all).await?;
        let mut actions: Vec<Action> = small.iter().filter_map(|file| file.remove()).map(Action::Remove).collect();
        actions.extend(adds.iter().cloned().map(Action::Add));
        let operation = DeltaOperation::StreamingUpdate {
            output_mode: OutputMode::Append,
            query_id: txn.app_id.clone(),
            epoch_id: txn.batch,
        };
        match self.handle.commit(actions, operation, txn).await {
            Ok(version) => {
                self.unharmed = Some(version);
                Ok(())
            }
            Err(failure) => {
                let error = self.handle.explain(failure.cause, "remember deletes");
                if !self.carries(txn).await? && self.handle.is_out(failure.read) {
                    remove(&store, &adds).await;
                }
                Err(error)
            }
        }
    }

    /// After a failed commit: whether the log has this batch all the same. Whoever's commit that was, files that it may
    /// name stay; were they another's, vacuum takes them.
    pub(super) async fn carries(&mut self, txn: &Txn) -> Result<bool> {
        self.handle.load().await?;
        Ok(self.handle.applied(&txn.app_id).await?.is_some_and(|applied| applied >= txn.batch))
    }

    pub(super) fn reader(&self) -> Reader {
        Reader { store: self.handle.store(), location: self.handle.location(), partition_by: Arc::default() }
    }
}

/// Key columns, then whatever else ranks rows.
fn memory_schema(key: &Encoder, rank: &Encoder) -> SchemaRef {
    let mut fields: Vec<Arc<Field>> = key.schema().fields().iter().cloned().collect();
    for field in rank.schema().fields() {
        if !fields.iter().any(|f| f.name() == field.name()) {
            fields.push(field.clone());
        }
    }
    Arc::new(Schema::new(fields))
}

fn project_keys(rows: &RecordBatch, key: &Encoder) -> Result<RecordBatch> {
    let columns = key.columns(rows)?;
    RecordBatch::try_new(key.schema().clone(), columns).context(ErrorKind::Failed, "keys could not be picked")
}
