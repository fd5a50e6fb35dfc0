//! Delta tables. The only folder that names `deltalake`.
//!
//! How one batch becomes one commit:
//!
//! 1. `handle` reads the table and its last applied batch, `schema` checks that the pipeline may write to it and how its
//!    columns change;
//! 2. `append`, `upsert` or `refresh` find out which files change, and `write` writes new ones (nothing is visible yet);
//! 3. `handle` commits removed files, added files and the batch number at once. What removes files commits by compare
//!    and swap, never over a commit that it has not read;
//! 4. after any error the log is read again, and the batch number in it decides.

mod apply;
mod compact;
mod create;
mod deletes;
mod features;
mod files;
mod handle;
mod maintain;
mod others;
pub mod query;
mod refresh;
mod remove;
mod restored;
mod rows;
mod scan;
mod schema;
pub(super) mod snapshot;
mod span;
pub(super) mod trace;
mod trim;
mod upsert;
mod vacuum;
mod winners;
mod witness;
mod write;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array};
use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use deltalake::kernel::Action;

use self::features::{check_deletion_vectors, check_writable};
use self::files::DataFile;
use self::handle::Handle;
use self::rows::Distinct;
use self::scan::{Pruner, Reader, Semi};
use self::schema::{arrow_schema, check_kept, check_nulls, made_by, project, reconcile};
use self::witness::Witness;
use super::maintain::{Compacted, Compaction, Vacuum, Vacuumed};
use super::{
    Change, Held, Images, Pin, Removal, Span, Table, TableDefinition, TableState, Traces, Trim, Txn, WriteMode,
};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::model::batch::{BatchId, ForeignWrite, Receipt};
use crate::storage::Storage;

/// Tries against other writers before giving up as busy: a backfill beside a run commits many times while the run prepares
/// one commit, and each of those costs a try.
const ATTEMPTS: usize = 30;

/// Opens (does not create) the table of `definition` in a lake: `silver.orders` lies at `<lake>/silver/orders`.
pub fn open(lake: &Storage, definition: TableDefinition) -> Result<Box<dyn Table>> {
    let handle = Handle::new(lake.join(&definition.name.replace('.', "/"))?);
    let memory = match &definition.write {
        // Also without `delete_when`: deletes remembered from before it was taken out still count.
        WriteMode::Upsert { .. } => Some(deletes::Memory::open(lake, &definition)?),
        _ => None,
    };
    let upkeep = maintain::Upkeep::new(lake, &definition.name)?;
    Ok(Box::new(DeltaLakeTable {
        definition,
        handle,
        memory,
        known: HashMap::new(),
        touched: None,
        foreign: Vec::new(),
        upkeep,
    }))
}

/// A Delta table of a pipeline.
struct DeltaLakeTable {
    definition: TableDefinition,
    handle: Handle,
    memory: Option<deletes::Memory>,
    /// Last applied batch per application id, as this process last saw it.
    known: HashMap<String, Option<BatchId>>,
    /// What the last batch applied by this process touched.
    touched: Option<Touched>,
    /// When maintenance is due.
    upkeep: maintain::Upkeep,
    /// What others changed since the last batch; the receipt of the next one tells.
    foreign: Vec<ForeignWrite>,
}

struct Touched {
    app_id: String,
    batch: BatchId,
    witness: Witness,
}

impl DeltaLakeTable {
    fn reader(&self) -> Reader {
        self.reader_of(&self.handle)
    }

    fn reader_of(&self, handle: &Handle) -> Reader {
        Reader {
            store: handle.store(),
            location: handle.location(),
            partition_by: Arc::new(match handle.state() {
                Some(state) => state.metadata().partition_columns().to_vec(),
                None => self.definition.partition_by.clone(),
            }),
        }
    }

    /// The table as it is in storage now; what this process knows of it stays as it was, so that the next `apply` still
    /// notices what others did.
    async fn newest(&self) -> Result<Handle> {
        let mut handle = self.handle.fork();
        handle.refresh().await?;
        Ok(handle)
    }

    /// Rows with `columns`; with `groups`, only rows whose values of its columns are among its rows.
    async fn rows_of(
        &self,
        handle: &Handle,
        columns: &[String],
        groups: Option<&RecordBatch>,
    ) -> Result<Vec<RecordBatch>> {
        let Some(state) = handle.state() else { return Ok(Vec::new()) };
        let schema = arrow_schema(state);
        // Group columns are read for the filter and left out of the answer.
        let mut names = columns.to_vec();
        if let Some(groups) = groups {
            let asked = groups.schema();
            names.extend(asked.fields().iter().map(|f| f.name().clone()).filter(|n| !columns.contains(n)));
        }
        let wanted = project(&self.with_columns_to_come(&schema), &names, &self.definition.name)?;
        let reader = self.reader_of(handle);
        let mut files = handle.files()?;
        let mut keep = None;
        if let Some(groups) = groups {
            if groups.num_rows() == 0 {
                return Ok(Vec::new());
            }
            let semi = Semi::new(groups, &schema)?;
            let pruner = Pruner::new(semi.encoder(), groups, &reader)?;
            files.retain(|file| pruner.may_hold(file).unwrap_or(true));
            keep = Some(Arc::new(semi));
        }
        let batches = reader.read(files, wanted, keep).await?;
        batches.into_iter().map(|batch| first_columns(&batch, columns.len())).collect()
    }

    /// Rows for an append table may have columns that nobody announced (`schema_drift: evolve`): they become the table's.
    fn learn(&mut self, change: &Change) {
        let (Change::Rows(rows) | Change::Replace { rows, .. } | Change::Groups { rows, .. }) = change else { return };
        if self.definition.write != WriteMode::Append {
            return;
        }
        let known = self.definition.schema.clone();
        let mut fields: Vec<FieldRef> = known.fields().iter().cloned().collect();
        for field in rows.iter().flat_map(|batch| batch.schema().fields().to_vec()) {
            if !fields.iter().any(|known| known.name() == field.name()) {
                fields.push(Arc::new(field.as_ref().clone().with_nullable(true)));
            }
        }
        if fields.len() > known.fields().len() {
            self.definition.schema = Arc::new(Schema::new(fields));
        }
    }

    /// Looks at what others have committed since the last batch: a restore stops the run, other rows are told.
    async fn look_at_others(&mut self, app_id: &str) -> Result<()> {
        let others = others::since(&self.handle, app_id).await?;
        if others.went_back {
            return Err(self.restored());
        }
        if let Some(carrier) = others.changed_since {
            self.check_columns_since(carrier).await?;
        }
        self.foreign = others.writes;
        Ok(())
    }

    /// Somebody changed the table's definition after the version `carrier`: no column that the pipeline writes may have
    /// gone. Without this it would come back, empty, as if it were new.
    async fn check_columns_since(&self, carrier: i64) -> Result<()> {
        let Some(state) = self.handle.state() else { return Ok(()) };
        let now = arrow_schema(state);
        let is_whole = self.definition.schema.fields().iter().all(|f| now.column_with_name(f.name()).is_some());
        if is_whole {
            return Ok(());
        }
        let mut then = Handle::new(self.handle.storage().clone());
        match then.load_version(Some(carrier)).await {
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(table = %self.definition.name, %error, "the table of the last batch cannot be looked at");
                return Ok(());
            }
        }
        let Some(then) = then.state() else { return Ok(()) };
        check_kept(&self.definition, &arrow_schema(then), &now, carrier, &self.handle.location())
    }

    async fn apply_as(&mut self, change: Change, txn: &Txn, pin: Option<&Pin>) -> Result<Option<Receipt>> {
        self.learn(&change);
        let Some(mut receipt) = self.apply_change(&change, txn, pin).await? else { return Ok(None) };
        receipt.memory_version = self.memory.as_ref().and_then(deletes::Memory::version);
        self.upkeep.grew_by(receipt.files_added);
        Ok(Some(receipt))
    }

    /// The table's columns, and those that the next batch will add.
    fn with_columns_to_come(&self, stored: &Schema) -> Schema {
        let mut fields = stored.fields().to_vec();
        let is_new = |field: &&FieldRef| stored.column_with_name(field.name()).is_none();
        fields.extend(self.definition.schema.fields().iter().filter(is_new).cloned());
        Schema::new(fields)
    }

    async fn reload(&mut self) -> Result<()> {
        self.known.clear();
        if let Some(memory) = &mut self.memory {
            memory.reset();
        }
        self.handle.load().await?;
        Ok(())
    }
}

fn first_columns(batch: &RecordBatch, count: usize) -> Result<RecordBatch> {
    let first: Vec<usize> = (0..count).collect();
    batch.project(&first).context(ErrorKind::Failed, "columns could not be picked")
}

#[async_trait]
impl Table for DeltaLakeTable {
    fn definition(&self) -> &TableDefinition {
        &self.definition
    }

    async fn observe(&mut self, app_id: &str) -> Result<TableState> {
        self.reload().await?;
        let Some(state) = self.handle.state() else {
            self.known.insert(app_id.to_owned(), None);
            return Ok(TableState::default());
        };
        self.handle.check_entries().await?;
        let made_by = made_by(state);
        // A type that changed is better refused before a row is read than when half of the tables carry the batch.
        if made_by.as_ref() == Some(&self.definition.maker) {
            let at = self.handle.location();
            check_writable(&self.definition, state, &at)?;
            reconcile(&self.definition, state, &at)?;
            check_deletion_vectors(&self.definition, &self.handle)?;
        }
        let applied = self.handle.applied(app_id).await?;
        self.known.insert(app_id.to_owned(), applied);
        let others = match applied {
            Some(_) => others::since(&self.handle, app_id).await?,
            None => others::Others::default(),
        };
        let is_ours = made_by.as_ref() == Some(&self.definition.maker);
        if let Some(carrier) = others.changed_since.filter(|_| is_ours && !others.went_back) {
            self.check_columns_since(carrier).await?;
        }
        self.foreign = others.writes.clone();
        let (memory, memory_harmed) = match &mut self.memory {
            Some(memory) => memory.observe().await?,
            None => (None, false),
        };
        let (restored, foreign) = (others.went_back, others.writes);
        Ok(TableState { version: self.handle.version(), applied, memory, memory_harmed, made_by, restored, foreign })
    }

    async fn note(&mut self, app_id: &str, batch: BatchId) -> Result<Option<String>> {
        if self.handle.state().is_none() {
            self.reload().await?;
        }
        let Some((version, _)) = self.handle.find_commit(app_id, batch).await? else { return Ok(None) };
        let entry = self.handle.entry(version).await?;
        Ok(entry.and_then(|entry| trace::carried(&entry, app_id)).and_then(|(_, note)| note))
    }

    async fn apply(&mut self, change: Change, txn: &Txn) -> Result<Receipt> {
        let applied = self.apply_as(change, txn, None).await?;
        applied.ok_or_else(|| Error::failed("a change that nothing was pinned for was taken for outdated"))
    }

    async fn pin(&mut self, app_id: &str) -> Result<Pin> {
        let handle = self.newest().await?;
        Ok(Pin { version: handle.version(), applied: handle.applied(app_id).await? })
    }

    async fn apply_at(&mut self, change: Change, txn: &Txn, pin: &Pin) -> Result<Option<Receipt>> {
        self.apply_as(change, txn, Some(pin)).await
    }

    async fn check(&mut self, change: &Change) -> Result<()> {
        let (Change::Rows(rows), Some(state)) = (change, self.handle.state()) else { return Ok(()) };
        check_nulls(rows, &self.definition, &arrow_schema(state))
    }

    async fn added(&mut self, txn: &Txn, marker: &str) -> Result<Vec<RecordBatch>> {
        let name = self.definition.name.clone();
        let refuse = |why: String| Err(Error::config(why));
        let Some((_, actions)) = self.handle.find_commit(&txn.app_id, txn.batch).await? else {
            return refuse(format!("the log of {name} no longer has the commit of batch {}", txn.batch));
        };
        if let Some(write) = others::since(&self.handle, &txn.app_id).await?.writes.first() {
            return refuse(format!("{name} was changed by others since batch {} ({write})", txn.batch));
        }
        let mut written = 0;
        for add in actions.iter().filter_map(|action| match action {
            Action::Add(add) if add.data_change => Some(add),
            _ => None,
        }) {
            let Some(count) = add.get_stats().ok().flatten().map(|stats| stats.num_records) else {
                return refuse(format!(
                    "the commit of batch {} in {name} does not say how many rows it has",
                    txn.batch
                ));
            };
            written += count;
        }
        let Some(state) = self.handle.state() else { return refuse(format!("{name} is gone")) };
        let columns: Vec<String> = arrow_schema(state).fields().iter().map(|field| field.name().clone()).collect();
        let batch = RecordBatch::try_from_iter([(marker, Arc::new(Int64Array::from(vec![txn.batch])) as ArrayRef)])
            .context(ErrorKind::Failed, "a batch number is a column")?;
        let rows = self.read(&columns, Some(&batch)).await?;
        let found: i64 = rows.iter().map(|rows| rows.num_rows() as i64).sum();
        if found != written {
            let batch = txn.batch;
            return refuse(format!("{name} has {found} rows of batch {batch}, and {written} were written"));
        }
        Ok(rows)
    }

    async fn touched(&mut self, by: &[String], txn: &Txn) -> Result<RecordBatch> {
        if let Some(touched) = &self.touched
            && touched.app_id == txn.app_id
            && touched.batch == txn.batch
            && let Some(set) = touched.witness.set(by)
        {
            return set.rows();
        }
        if self.handle.state().is_none() {
            self.reload().await?;
        }
        let schema = match self.handle.state() {
            Some(state) => arrow_schema(state),
            None => self.definition.schema.clone(),
        };
        let mut set = Distinct::new(&schema, by)?;
        let Some((_, actions)) = self.handle.find_commit(&txn.app_id, txn.batch).await? else {
            return Err(Error::failed(format!(
                "batch {} is not in the log of table {}: what it touched is unknown",
                txn.batch, self.definition.name
            ))
            .with("at", self.handle.location())
            .help("the log was cleaned up or the table was replaced; rename the refresh tables downstream: a new one is computed whole"));
        };
        let files: Vec<DataFile> = actions
            .iter()
            .filter_map(|action| match action {
                Action::Add(add) if add.data_change => Some(DataFile::from_add(add)),
                Action::Remove(remove) if remove.data_change => Some(DataFile::from_remove(remove)),
                _ => None,
            })
            .collect();
        let columns = project(&schema, by, &self.definition.name)?;
        for file in files {
            for batch in self.reader().read(vec![file], columns.clone(), None).await? {
                set.add(&batch)?;
            }
        }
        set.rows()
    }

    fn images(&self, columns: &[String], txn: &Txn) -> Option<Images> {
        let touched = self.touched.as_ref()?;
        let is_it = touched.app_id == txn.app_id && touched.batch == txn.batch;
        is_it.then(|| touched.witness.images(columns)).flatten()
    }

    async fn is_unchanged(&mut self, after: i64, until: Option<i64>) -> Result<bool> {
        match until {
            Some(until) => others::are_without_rows(&self.handle, after, until).await,
            None => {
                let newest = self.newest().await?;
                let Some(until) = newest.version() else { return Ok(false) };
                others::are_without_rows(&newest, after, until).await
            }
        }
    }

    async fn count_after(&mut self, trim: &Trim) -> Result<u64> {
        if self.handle.state().is_none() {
            self.reload().await?;
        }
        let Some(state) = self.handle.state() else { return Ok(0) };
        let schema = arrow_schema(state);
        let work = trim::find(&self.reader(), self.handle.files()?, &schema, trim).await?;
        Ok(work.iter().map(|rewrite| rewrite.gone.len() as u64).sum())
    }

    async fn stored(&mut self) -> Result<Option<SchemaRef>> {
        if self.handle.state().is_none() {
            self.reload().await?;
        }
        Ok(self.handle.state().map(arrow_schema))
    }

    async fn count_held(&mut self, removal: &Removal) -> Result<Held> {
        DeltaLakeTable::count_held(self, removal).await
    }

    async fn traces(&mut self, columns: &[String]) -> Result<Traces> {
        DeltaLakeTable::traces(self, columns).await
    }

    async fn groups(&mut self, by: &[String]) -> Result<RecordBatch> {
        let rows = self.read(by, None).await?;
        let schema = match self.handle.state() {
            Some(state) => Arc::new(self.with_columns_to_come(&arrow_schema(state))),
            None => self.definition.schema.clone(),
        };
        let mut set = Distinct::new(&schema, by)?;
        for batch in &rows {
            set.add(batch)?;
        }
        set.rows()
    }

    async fn read(&mut self, columns: &[String], groups: Option<&RecordBatch>) -> Result<Vec<RecordBatch>> {
        if self.handle.state().is_none() {
            self.reload().await?;
        }
        self.rows_of(&self.handle, columns, groups).await
    }

    async fn read_newest(&mut self, columns: &[String], groups: Option<&RecordBatch>) -> Result<Vec<RecordBatch>> {
        let handle = self.newest().await?;
        self.rows_of(&handle, columns, groups).await
    }

    async fn read_span(&mut self, columns: &[String], span: &Span) -> Result<Vec<RecordBatch>> {
        let handle = self.newest().await?;
        let Some(state) = handle.state() else { return Ok(Vec::new()) };
        let schema = arrow_schema(state);
        let all = || schema.fields().iter().map(|field| field.name().clone()).collect();
        let columns: Vec<String> = if columns.is_empty() { all() } else { columns.to_vec() };
        span::read(&self.reader_of(&handle), handle.files()?, &schema, &columns, span).await
    }

    async fn first_time(&mut self, column: &str) -> Result<Option<DateTime<Utc>>> {
        let handle = self.newest().await?;
        let Some(state) = handle.state() else { return Ok(None) };
        span::first(&self.reader_of(&handle), handle.files()?, &arrow_schema(state), column).await
    }

    async fn compact(&mut self, order: &Compaction) -> Result<Compacted> {
        self.merge_files(order).await
    }

    async fn vacuum(&mut self, order: &Vacuum) -> Result<Option<Vacuumed>> {
        self.delete_files(order).await
    }

    async fn tidy_log(&mut self, now: DateTime<Utc>) {
        self.handle.tidy_log(now).await;
        if let Some(memory) = &mut self.memory {
            memory.tidy_log(now).await;
        }
    }
}
