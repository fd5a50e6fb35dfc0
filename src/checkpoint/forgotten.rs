//! Keys of what is being forgotten, and receipts of what was.
//!
//! ```text
//! <checkpoints>/<pipeline>/
//!   forget/<digest>.json                         a key, from before the plan that names it until its batch is done
//!   receipts/00000000000000000042.json           what batch 42 forgot
//!   receipts/00000000000000000042-files.json     which files were deleted at once
//!   owed/00000000000000000042.json               that they are still to be deleted
//! ```
//!
//! A key lies apart from its plan because it must go while the plan stays: the newest plan tells where the pipeline is.

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::Value;

use super::log::{ObjectLog, batch_of};
use crate::error::Result;
use crate::model::batch::BatchId;
use crate::model::forget::{Key, Owed};
use crate::storage;

/// Where keys lie.
pub(super) const KEYS: &str = "forget";

/// Where receipts lie.
pub(super) const RECEIPTS: &str = "receipts";

/// Where it lies which old files are still to be deleted.
pub(super) const OWED: &str = "owed";

fn owed_path(batch: BatchId) -> Path {
    Path::from(format!("{OWED}/{batch:020}.json"))
}

fn path_of(digest: &str) -> Path {
    Path::from(format!("{KEYS}/{digest}.json"))
}

impl ObjectLog {
    pub(super) async fn put_key(&self, key: &Key) -> Result<()> {
        self.put(&path_of(&key.digest()), key).await.map(|_| ())
    }

    pub(super) async fn get_key(&self, digest: &str) -> Result<Option<Key>> {
        self.get(&path_of(digest)).await
    }

    /// Deletes every key but one: whatever an attempt that never got as far as a plan has left, too.
    pub(super) async fn delete_keys(&self, except: Option<&str>) -> Result<()> {
        let spared = except.map(path_of);
        for path in self.listed(KEYS).await? {
            if Some(&path) != spared.as_ref() {
                self.delete(&path, "delete a forgotten key").await?;
            }
        }
        // A crash in the middle of a write leaves a name that no listing shows.
        if spared.is_none()
            && self.storage().url.scheme() == "file"
            && let Ok(folder) = self.storage().url.to_file_path()
            && let Err(cause) = std::fs::remove_dir_all(folder.join(KEYS))
            && cause.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%cause, folder = %folder.join(KEYS).display(), "the folder of forgotten keys stays");
        }
        Ok(())
    }

    /// Whether anything was ever forgotten.
    pub async fn has_forgotten(&self) -> Result<bool> {
        Ok(!self.listed(RECEIPTS).await?.is_empty())
    }

    pub(super) async fn put_owed(&self, owed: &Owed) -> Result<()> {
        self.put(&owed_path(owed.batch), owed).await.map(|_| ())
    }

    pub(super) async fn all_owed(&self) -> Result<Vec<Owed>> {
        let mut paths = self.listed(OWED).await?;
        paths.sort();
        let mut all = Vec::new();
        for path in paths.iter().filter(|path| batch_of(path).is_some()) {
            all.extend(self.get::<Owed>(path).await?);
        }
        Ok(all)
    }

    pub(super) async fn delete_owed(&self, batch: BatchId) -> Result<()> {
        self.delete(&owed_path(batch), "note that old files are deleted").await
    }

    async fn listed(&self, folder: &str) -> Result<Vec<Path>> {
        let listed = self.storage().store.list(Some(&Path::from(folder))).map_ok(|meta| meta.location);
        match listed.try_collect::<Vec<_>>().await {
            Ok(paths) => Ok(paths),
            Err(object_store::Error::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(storage::explain(&error, "list the checkpoint log", &self.storage().display())),
        }
    }

    async fn delete(&self, path: &Path, what: &str) -> Result<()> {
        match self.storage().store.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(storage::explain(&error, what, &self.name(path))),
        }
    }

    pub(super) async fn put_receipt(&self, name: &str, receipt: &Value) -> Result<String> {
        let path = Path::from(format!("{RECEIPTS}/{name}.json"));
        self.put(&path, receipt).await?;
        Ok(format!("{}/{path}", self.storage().display().trim_end_matches('/')))
    }

    pub(super) async fn get_receipt(&self, name: &str) -> Result<Option<Value>> {
        self.get(&Path::from(format!("{RECEIPTS}/{name}.json"))).await
    }
}
