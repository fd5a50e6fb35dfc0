//! Keys of what is being forgotten, and receipts of what was.
//!
//! ```text
//! <checkpoints>/<pipeline>/
//!   forget/<digest>.json                         a key, from before the plan that names it until its batch is done
//!   receipts/00000000000000000042.json           what batch 42 forgot
//!   receipts/00000000000000000042-files.json     which files were deleted at once
//! ```
//!
//! A key lies apart from its plan because it must go while the plan stays: the newest plan tells where the pipeline is.

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::Value;

use super::log::ObjectLog;
use crate::error::Result;
use crate::model::forget::Key;
use crate::storage;

/// Where keys lie.
pub(super) const KEYS: &str = "forget";

/// Where receipts lie.
pub(super) const RECEIPTS: &str = "receipts";

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

    /// Deletes every key: whatever an attempt that never got as far as a plan has left, too.
    pub(super) async fn delete_keys(&self) -> Result<()> {
        let store = &self.storage().store;
        let failed = |e: &object_store::Error| storage::explain(e, "delete a forgotten key", &self.storage().display());
        let listed = store.list(Some(&Path::from(KEYS))).map_ok(|meta| meta.location).try_collect::<Vec<_>>().await;
        let paths = match listed {
            Ok(paths) => paths,
            Err(object_store::Error::NotFound { .. }) => Vec::new(),
            Err(error) => return Err(failed(&error)),
        };
        for path in paths {
            match store.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        // A crash in the middle of a write leaves a name that no listing shows.
        if self.storage().url.scheme() == "file"
            && let Ok(folder) = self.storage().url.to_file_path()
            && let Err(cause) = std::fs::remove_dir_all(folder.join(KEYS))
            && cause.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%cause, folder = %folder.join(KEYS).display(), "the folder of forgotten keys stays");
        }
        Ok(())
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
