//! Rows that an operator wants gone, whatever table they are in: found by the values of some columns, rewritten without.

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use deltalake::kernel::Action;
use deltalake::protocol::DeltaOperation;
use deltalake::table::config::TablePropertiesExt;

use super::DeltaLakeTable;
use super::deletes::Memory;
use super::files::DataFile;
use super::handle::{Handle, SEARCH_BACK};
use super::refresh::find_groups;
use super::scan::Reader;
use super::schema::arrow_schema;
use super::witness::Witness;
use super::write::{Writer, remove, stats_columns};
use crate::error::{Error, ErrorKind, Result};
use crate::fail;
use crate::table::{Held, Removal, Traces, Txn, WriteMode};

async fn count(reader: &Reader, files: Vec<DataFile>, schema: &SchemaRef, rows: &RecordBatch) -> Result<u64> {
    let work = find_groups(reader, files, schema, rows).await?;
    Ok(work.iter().map(|rewrite| rewrite.gone.len() as u64).sum())
}

fn has_columns(schema: &SchemaRef, rows: &RecordBatch) -> bool {
    rows.schema().fields().iter().all(|field| schema.column_with_name(field.name()).is_some())
}

/// What remembered deletes are found by: the values themselves, or else the records that deleted.
fn wanted<'a>(schema: &SchemaRef, removal: &'a Removal) -> Option<&'a RecordBatch> {
    let candidates = std::iter::once(&removal.rows).chain(&removal.records);
    candidates.into_iter().find(|rows| has_columns(schema, rows))
}

impl DeltaLakeTable {
    /// How many rows [`crate::table::Change::Remove`] would remove.
    pub(super) async fn count_held(&mut self, removal: &Removal) -> Result<Held> {
        if self.handle.state().is_none() {
            self.reload().await?;
        }
        let Some(state) = self.handle.state() else { return Ok(Held::default()) };
        let schema = arrow_schema(state);
        let mut held = Held {
            rows: count(&self.reader(), self.handle.files()?, &schema, &removal.rows).await?,
            ..Held::default()
        };
        if let Some(memory) = &mut self.memory {
            (held.remembered, held.is_mute) = memory.count(removal).await?;
        }
        Ok(held)
    }
}

impl DeltaLakeTable {
    /// Where the logs of the table and of its memory name values of these columns.
    pub(super) async fn traces(&mut self, columns: &[String]) -> Result<Traces> {
        if self.handle.state().is_none() {
            self.reload().await?;
        }
        let mut traces = Traces { newer: SEARCH_BACK, ..Traces::default() };
        let keys = match &self.definition.write {
            WriteMode::Append => Vec::new(),
            WriteMode::Upsert { key, .. } => key.clone(),
            WriteMode::Refresh { by } => by.clone(),
        };
        trace(&self.handle, columns, &keys, &mut traces);
        if let Some(memory) = &mut self.memory {
            memory.look().await?;
            trace(&memory.handle, columns, &keys, &mut traces);
        }
        Ok(traces)
    }
}

fn trace(handle: &Handle, columns: &[String], keys: &[String], traces: &mut Traces) {
    let Some(state) = handle.state() else { return };
    let schema = arrow_schema(state);
    let partitions = state.metadata().partition_columns();
    let statistics = stats_columns(&schema, keys);
    traces.retention = traces.retention.max(state.table_config().log_retention_duration());
    for name in columns {
        let Ok(field) = schema.field_with_name(name) else { continue };
        let has_range =
            !matches!(field.data_type(), DataType::Boolean | DataType::Binary) && !field.data_type().is_nested();
        let into = match partitions.contains(name) {
            true => &mut traces.partitions,
            false if has_range && statistics.contains(name) => &mut traces.statistics,
            false => continue,
        };
        if !into.contains(name) {
            into.push(name.clone());
        }
    }
}

impl Memory {
    /// Remembered deletes of these values, and whether there are deletes that do not have the columns.
    async fn count(&mut self, removal: &Removal) -> Result<(u64, bool)> {
        self.look().await?;
        let Some(state) = self.handle.state() else { return Ok((0, false)) };
        let schema = arrow_schema(state);
        let files = self.handle.files()?;
        let is_mute = !has_columns(&schema, &removal.rows) && !files.is_empty();
        match wanted(&schema, removal) {
            Some(rows) => Ok((count(&self.reader(), files, &schema, rows).await?, is_mute)),
            None => Ok((0, is_mute)),
        }
    }

    /// Forgets the deletes of these values, once per batch. Before the table itself, like all that the memory does: a
    /// crash in between is finished by the same batch.
    pub(super) async fn forget(&mut self, removal: &Removal, txn: &Txn) -> Result<()> {
        self.look().await?;
        let txn = Txn { app_id: format!("{}:deletes", txn.app_id), ..txn.clone() };
        let mut lost = None;
        for _ in 0..super::ATTEMPTS {
            self.check_owner()?;
            self.check_unharmed().await?;
            let Some(state) = self.handle.state() else { return Ok(()) };
            let schema = arrow_schema(state);
            let applied = self.handle.applied(&txn.app_id).await?;
            if applied.is_some_and(|applied| applied >= txn.batch) {
                return Ok(());
            }
            let Some(rows) = wanted(&schema, removal) else { return Ok(()) };
            let work = find_groups(&self.reader(), self.handle.files()?, &schema, rows).await?;
            if work.is_empty() {
                return Ok(());
            }
            fail::hit(fail::REMEMBER)?;
            let store = self.handle.store();
            let writer = Writer::new(store.clone(), self.handle.location(), &schema, &[], &[], state);
            let removes: Vec<Action> =
                work.iter().filter_map(|rewrite| rewrite.file.remove()).map(Action::Remove).collect();
            let adds = writer.rewrite(&self.reader(), &schema, work, Vec::new(), &mut Witness::blind()).await?;
            let actions = removes.into_iter().chain(adds.iter().cloned().map(Action::Add)).collect();
            match self.handle.commit(actions, DeltaOperation::Delete { predicate: None }, &txn).await {
                Ok(version) => {
                    self.unharmed = Some(version);
                    return Ok(());
                }
                // Whether it landed or not: look again, the transaction tells.
                Err(failure) => {
                    lost = Some(self.handle.explain(failure.cause, "forget remembered deletes"));
                    if !self.carries(&txn).await? && self.handle.is_out(failure.read) {
                        remove(&store, &adds).await;
                    }
                }
            }
        }
        Err(lost.unwrap_or_else(|| Error::new(ErrorKind::Busy, "the memory of deletes is being changed by others")))
    }

    async fn look(&mut self) -> Result<()> {
        match self.loaded {
            true => self.handle.refresh().await?,
            false => self.handle.load().await?,
        };
        self.loaded = true;
        Ok(())
    }
}
