//! A look at every object of a log, one by one: for `tidegate checkpoint`, which must go on where a run stops.

use std::collections::BTreeSet;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use super::log::{Kind, ObjectLog, batch_of};
use super::{Identity, backfills, forgotten};
use crate::error::{Error, Result};
use crate::model::batch::{BatchId, BatchPlan, CommitRecord, Start};
use crate::model::offset::Offsets;
use crate::storage;

/// Where damaged objects are put: `damaged-<time>` inside the log's folder.
const ASIDE: &str = "damaged-";

/// One object of a log.
#[derive(Debug)]
pub struct Entry {
    /// Relative to the log's folder.
    pub path: String,
    /// What it holds, or why it cannot be believed.
    pub object: Result<Object>,
}

/// What an object holds.
#[derive(Debug, Clone)]
pub enum Object {
    /// `metadata.json`.
    Identity(Identity),
    /// First offsets of a source.
    Start(String, Offsets),
    /// A plan.
    Plan(Box<BatchPlan>),
    /// A commit record.
    Commit(Box<CommitRecord>),
    /// Not part of a log; ignored by runs.
    Stray,
}

/// What a log holds of one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Its number.
    pub id: BatchId,
    /// What it was to do; cleaned up a little earlier than its outcome.
    pub plan: Option<BatchPlan>,
    /// What came of it; `None` = it is not done.
    pub commit: Option<CommitRecord>,
}

impl ObjectLog {
    /// Every object, in order of path. What cannot be read from storage is an error; what is there and damaged is not.
    pub async fn inspect(&self) -> Result<Vec<Entry>> {
        // First, so that objects of another checkpoint are known by it. A damaged one is listed like any other.
        let _ = super::CheckpointLog::identity(self).await;
        let mut entries = Vec::new();
        for path in self.paths().await? {
            let object = self.object(&path).await;
            entries.push(Entry { path: path.to_string(), object });
        }
        Ok(entries)
    }

    /// The newest batches, newest first, with as much as there is of each.
    pub async fn batches(&self, count: usize) -> Result<Vec<Batch>> {
        let ids: BTreeSet<BatchId> =
            self.newest(Kind::Offsets).await?.into_iter().chain(self.newest(Kind::Commits).await?).collect();
        let mut batches = Vec::new();
        for &batch in ids.iter().rev().take(count) {
            batches.extend(self.batch(batch).await?);
        }
        Ok(batches)
    }

    /// One batch; `None` = the log does not hold it, or no longer.
    pub async fn batch(&self, batch: BatchId) -> Result<Option<Batch>> {
        let plan: Option<BatchPlan> = self.get_batch(Kind::Offsets, batch).await?;
        let commit: Option<CommitRecord> = self.get_batch(Kind::Commits, batch).await?;
        Ok((plan.is_some() || commit.is_some()).then_some(Batch { id: batch, plan, commit }))
    }

    async fn paths(&self) -> Result<Vec<Path>> {
        let listed = self.storage().store.list(None).map_ok(|meta| meta.location).try_collect::<Vec<_>>().await;
        let mut paths = match listed {
            Ok(paths) => paths,
            Err(object_store::Error::NotFound { .. }) => Vec::new(),
            Err(e) => return Err(storage::explain(&e, "list the checkpoint log", &self.storage().display())),
        };
        let is_other = |path: &Path| {
            let folder = path.as_ref().split('/').next().unwrap_or_default();
            // A key is never moved aside, where it would stay.
            path.as_ref() == "lock"
                || path.as_ref().starts_with(ASIDE)
                || [backfills::FOLDER, forgotten::KEYS, forgotten::RECEIPTS, forgotten::OWED].contains(&folder)
        };
        paths.retain(|path| !is_other(path));
        paths.sort();
        Ok(paths)
    }

    async fn object(&self, path: &Path) -> Result<Object> {
        let gone = || Error::failed(format!("checkpoint object {} is gone", self.name(path)));
        let parts: Vec<&str> = path.as_ref().split('/').collect();
        match parts.as_slice() {
            ["metadata.json"] => self.get(path).await?.map(Object::Identity).ok_or_else(gone),
            ["sources", file] if file.ends_with(".json") => {
                let name = file.trim_end_matches(".json").to_string();
                let start: Start = self.get_start(&name).await?.ok_or_else(gone)?;
                Ok(Object::Start(name, start.offsets))
            }
            ["offsets", _] if batch_of(path).is_some() => {
                let batch = batch_of(path).unwrap_or_default();
                self.get_batch(Kind::Offsets, batch).await?.map(Box::new).map(Object::Plan).ok_or_else(gone)
            }
            ["commits", _] if batch_of(path).is_some() => {
                let batch = batch_of(path).unwrap_or_default();
                self.get_batch(Kind::Commits, batch).await?.map(Box::new).map(Object::Commit).ok_or_else(gone)
            }
            _ => Ok(Object::Stray),
        }
    }

    /// Moves objects into `damaged-<time>`: copied first, so that a crash leaves an object twice and never nowhere.
    pub async fn move_aside(&self, paths: &[String], time: &str) -> Result<String> {
        let folder = format!("{ASIDE}{time}");
        let store = &self.storage().store;
        for path in paths {
            let (from, to) = (Path::from(path.as_str()), Path::from(format!("{folder}/{path}")));
            let failed = |e: &object_store::Error| storage::explain(e, "move a damaged checkpoint object", path);
            let bytes = match store.get(&from).await {
                Ok(found) => found.bytes().await.map_err(|e| failed(&e))?,
                Err(object_store::Error::NotFound { .. }) => continue,
                Err(e) => return Err(failed(&e)),
            };
            match store.put_opts(&to, PutPayload::from(bytes), PutOptions::from(PutMode::Create)).await {
                Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => {}
                Err(e) => return Err(failed(&e)),
            }
            match store.delete(&from).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => return Err(failed(&e)),
            }
        }
        Ok(folder)
    }
}
