//! A look at every object of a log, one by one: for `tidegate checkpoint`, which must go on where a run stops.

use std::collections::BTreeSet;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use super::log::{Kind, ObjectLog, batch_of};
use super::{Identity, backfills, forgotten};
use crate::error::Result;
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
    /// Every object, in order of path. What cannot be read from storage is an error; what is there and damaged is not. A
    /// run at work lets go of old objects: what was listed and is gone by now is left out.
    pub async fn inspect(&self) -> Result<Vec<Entry>> {
        // First, so that objects of another checkpoint are known by it. A damaged one is listed like any other.
        let _ = super::CheckpointLog::identity(self).await;
        self.read_all(self.paths().await?).await
    }

    async fn read_all(&self, paths: Vec<Path>) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for path in paths {
            let object = self.object(&path).await.transpose();
            entries.extend(object.map(|object| Entry { path: path.to_string(), object }));
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

    /// One object; `None` = it is not there.
    async fn object(&self, path: &Path) -> Result<Option<Object>> {
        let parts: Vec<&str> = path.as_ref().split('/').collect();
        match parts.as_slice() {
            ["metadata.json"] => Ok(self.get(path).await?.map(Object::Identity)),
            ["sources", file] if file.ends_with(".json") => {
                let name = file.trim_end_matches(".json").to_string();
                let start: Option<Start> = self.get_start(&name).await?;
                Ok(start.map(|start| Object::Start(name, start.offsets)))
            }
            ["offsets", _] if batch_of(path).is_some() => {
                let batch = batch_of(path).unwrap_or_default();
                Ok(self.get_batch(Kind::Offsets, batch).await?.map(Box::new).map(Object::Plan))
            }
            ["commits", _] if batch_of(path).is_some() => {
                let batch = batch_of(path).unwrap_or_default();
                Ok(self.get_batch(Kind::Commits, batch).await?.map(Box::new).map(Object::Commit))
            }
            _ => Ok(Some(Object::Stray)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_run_at_work_has_let_go_of_since_it_was_listed_is_no_damage() {
        let temp = tempfile::tempdir().unwrap();
        let log = ObjectLog::new(storage::open(temp.path().to_str().unwrap()).unwrap());
        let listed = ["offsets/00000000000000000006.json", "offsets/00000000000000000007.json", "metadata.json"];
        log.storage().store.put(&Path::from(listed[1]), "damaged".into()).await.unwrap();
        let entries = log.read_all(listed.map(Path::from).to_vec()).await.unwrap();
        assert_eq!(entries.iter().map(|entry| entry.path.as_str()).collect::<Vec<_>>(), [listed[1]]);
        assert!(entries[0].object.is_err());
    }
}
