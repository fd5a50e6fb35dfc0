//! Maintenance of a pipeline's table: when it is due, and how it leaves the batches' view of the table alone.

use chrono::{DateTime, Utc};
use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::features::check_writable;
use super::handle::Handle;
use super::{DeltaLakeTable, compact, vacuum};
use crate::error::Result;
use crate::storage::{self, Storage};
use crate::table::WriteMode;
use crate::table::maintain::{Compacted, Compaction, Depth, Vacuum, Vacuumed};

/// Files that a table gains before it is worth another look at all of its files.
const WORTH_A_LOOK: u64 = 8;

/// What maintenance remembers of a table.
pub(super) struct Upkeep {
    /// Files added since all were looked at; `None` = not looked at yet, or there was more to do.
    gained: Option<u64>,
    /// When the last vacuum was, as far as this process knows.
    vacuumed: Option<DateTime<Utc>>,
    /// `<lake>/_tidegate/vacuum`, which outlives the process: a pipeline that cron starts every minute is not listed
    /// every minute.
    folder: Storage,
    marker: Path,
}

impl Upkeep {
    pub(super) fn new(lake: &Storage, table: &str) -> Result<Upkeep> {
        let marker = Path::from(format!("{table}.json"));
        Ok(Upkeep { gained: None, vacuumed: None, folder: lake.join("_tidegate/vacuum")?, marker })
    }

    pub(super) fn grew_by(&mut self, files: u64) {
        self.gained = self.gained.map(|gained| gained + files);
    }

    /// The last vacuum. A marker that cannot be read is as good as none: the next vacuum writes it anew.
    async fn last_vacuum(&mut self) -> Option<DateTime<Utc>> {
        if self.vacuumed.is_none() {
            let found = self.folder.store.get(&self.marker).await.ok()?.bytes().await.ok()?;
            let marker: serde_json::Value = serde_json::from_slice(&found).ok()?;
            let at = DateTime::parse_from_rfc3339(marker["vacuumed_at"].as_str()?).ok()?;
            self.vacuumed = Some(at.to_utc());
        }
        self.vacuumed
    }

    async fn mark_vacuum(&mut self, at: DateTime<Utc>) -> Result<()> {
        self.vacuumed = Some(at);
        let marker = serde_json::json!({ "vacuumed_at": at.to_rfc3339() }).to_string();
        let put = self.folder.store.put(&self.marker, marker.into()).await;
        put.map_err(|cause| storage::explain(&cause, "note the time of the vacuum", &self.folder.display()))?;
        Ok(())
    }
}

/// Compacts what `handle` has read. Batches judge other writers by what changed since the version that they know:
/// the handle moves on only if nobody but this compaction has committed.
pub(super) async fn merge(handle: &mut Handle, keys: &[String], order: &Compaction) -> Result<Compacted> {
    let mut working = handle.fork();
    let done = compact::compact(&mut working, keys, order).await?;
    if let (Some(before), Some(after)) = (handle.version(), working.version())
        && after - before <= 1
        && done.files_added > 0
    {
        *handle = working;
    }
    Ok(done)
}

impl DeltaLakeTable {
    pub(super) async fn merge_files(&mut self, order: &Compaction) -> Result<Compacted> {
        if order.depth == Depth::Tiered && self.upkeep.gained.is_some_and(|gained| gained < WORTH_A_LOOK) {
            return Ok(Compacted::default());
        }
        if self.handle.state().is_none() {
            self.reload().await?;
        }
        let Some(state) = self.handle.state() else { return Ok(Compacted::default()) };
        if let Err(why) = check_writable(&self.definition, state, &self.handle.location()) {
            self.upkeep.gained = Some(0);
            return Ok(Compacted { skipped: Some(why.message().to_owned()), ..Compacted::default() });
        }
        let keys = match &self.definition.write {
            WriteMode::Append => Vec::new(),
            WriteMode::Upsert { key, .. } => key.clone(),
            WriteMode::Refresh { by } => by.clone(),
        };
        let mut done = merge(&mut self.handle, &keys, order).await?;
        if let Some(memory) = &mut self.memory {
            let beside = memory.compact(order).await?;
            let more = done.more;
            let (before, after) = (done.files_before, done.files_after);
            let skipped = done.skipped.take();
            done.then(beside.clone());
            done.more |= more;
            done.files_before = before + beside.files_before;
            done.files_after = after + beside.files_after;
            done.skipped = skipped.or(beside.skipped);
        }
        self.upkeep.gained = (!done.more).then_some(0);
        Ok(done)
    }

    pub(super) async fn delete_files(&mut self, order: &Vacuum) -> Result<Option<Vacuumed>> {
        if let Some(every) = order.every
            && let Some(last) = self.upkeep.last_vacuum().await
            && (order.now - last).to_std().unwrap_or_default() < every
        {
            return Ok(None);
        }
        let mut done = vacuum::vacuum(Handle::new(self.handle.storage().clone()), order).await?;
        if let Some(memory) = &self.memory {
            let beside = memory.vacuum(order).await?;
            done.expired += beside.expired;
            done.orphans += beside.orphans;
            done.bytes += beside.bytes;
            done.more |= beside.more;
            done.skipped = done.skipped.or(beside.skipped);
            done.paths.extend(beside.paths.iter().map(|path| format!("(deletes) {path}")));
        }
        if !order.dry_run && !done.more {
            self.upkeep.mark_vacuum(order.now).await?;
        }
        Ok(Some(done))
    }
}
