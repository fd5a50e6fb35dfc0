//! The checkpoint log on an object store or a local folder.
//!
//! ```text
//! <checkpoints>/<pipeline>/
//!   metadata.json                        identity, written once
//!   sources/<source>.json                first offsets, resolved once
//!   offsets/00000000000000000042.json    plan of batch 42, written before a row of it is read
//!   commits/00000000000000000042.json    outcome of batch 42, written after every table carries it
//! ```
//!
//! Every object is created with put-if-absent, never changes, and carries a checksum and the id of its log. Names are zero-padded so that a listing is in batch
//! order. The newest pair is found by one listing at start; after that the runner remembers.

use std::sync::OnceLock;

use async_trait::async_trait;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{CheckpointLog, Claim, Head, Identity, seal};
use crate::error::{Error, Result};
use crate::model::batch::{BatchId, BatchPlan, CommitRecord, Start};
use crate::model::forget::{Key, Owed};
use crate::storage::{self, Storage};

/// See the module.
#[derive(Debug)]
pub struct ObjectLog {
    storage: Storage,
    /// Id of the log once it is known: objects of another log are refused from then on.
    id: OnceLock<String>,
}

/// Kinds of numbered objects.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Offsets,
    Commits,
}

impl Kind {
    fn folder(self) -> &'static str {
        match self {
            Kind::Offsets => "offsets",
            Kind::Commits => "commits",
        }
    }

    pub(super) fn path(self, batch: BatchId) -> Path {
        Path::from(format!("{}/{batch:020}.json", self.folder()))
    }
}

/// How often the head is looked for when what was listed is gone before it is read.
const HEAD_LOOKS: u32 = 3;

/// Whether a put created the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    Created,
    Existed,
}

impl ObjectLog {
    /// The log in a folder that holds nothing else.
    pub fn new(storage: Storage) -> Self {
        ObjectLog { storage, id: OnceLock::new() }
    }

    pub(super) async fn put<T: Serialize>(&self, path: &Path, value: &T) -> Result<Put> {
        let bytes = seal::seal(value, self.id.get().map(String::as_str))?;
        let options = PutOptions::from(PutMode::Create);
        match self.storage.store.put_opts(path, PutPayload::from(bytes), options).await {
            Ok(_) => Ok(Put::Created),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(Put::Existed),
            Err(error) => Err(storage::explain(&error, "write the checkpoint", &self.name(path))
                .maybe_applied()
                .help("no table was changed by this step; the next run looks at the log again and goes on from there")),
        }
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>> {
        let bytes = match self.storage.store.get(path).await {
            Ok(found) => found.bytes().await,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => Err(error),
        };
        let bytes = bytes.map_err(|e| storage::explain(&e, "read the checkpoint", &self.name(path)))?;
        seal::open(&bytes, &self.name(path), self.id.get().map(String::as_str)).map(Some)
    }

    /// A numbered object, which must say the number that its name says.
    pub(super) async fn get_batch<T: DeserializeOwned + Numbered>(
        &self,
        kind: Kind,
        batch: BatchId,
    ) -> Result<Option<T>> {
        let path = kind.path(batch);
        let found: Option<T> = self.get(&path).await?;
        match found.as_ref().map(Numbered::number) {
            Some(number) if number != batch => {
                let why = format!("it holds batch {number} under the name of batch {batch}: it was renamed or copied");
                Err(seal::damaged(&self.name(&path), &why))
            }
            _ => Ok(found),
        }
    }

    pub(super) async fn get_start(&self, source: &str) -> Result<Option<Start>> {
        let path = Path::from(format!("sources/{source}.json"));
        let start: Option<Start> = self.get(&path).await?;
        match start.as_ref().and_then(|start| start.source.as_deref()) {
            Some(name) if name != source => {
                let why = format!("it holds the start of source `{name}`: it was renamed or copied");
                Err(seal::damaged(&self.name(&path), &why))
            }
            _ => Ok(start),
        }
    }

    pub(super) fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Says whose log this is, where its own metadata cannot.
    pub fn expect(&self, pipeline_id: &str) {
        let _ = self.id.set(pipeline_id.to_string());
    }

    /// From here on objects are marked with this id, and those marked with another are refused.
    fn know(&self, identity: &Identity) {
        let _ = self.id.set(identity.pipeline_id.clone());
    }

    pub(super) async fn newest(&self, kind: Kind) -> Result<Vec<BatchId>> {
        let folder = Path::from(kind.folder());
        let listed = self.storage.store.list(Some(&folder)).map_ok(|meta| meta.location).try_collect::<Vec<_>>().await;
        let paths = match listed {
            Ok(paths) => paths,
            Err(object_store::Error::NotFound { .. }) => Vec::new(),
            Err(e) => return Err(storage::explain(&e, "list the checkpoint log", &self.name(&folder))),
        };
        let mut ids: Vec<BatchId> = paths.iter().filter_map(batch_of).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    pub(super) fn name(&self, path: &Path) -> String {
        format!("{}/{path}", self.location())
    }
}

/// Ignores whatever is not `<20 digits>.json`: temporary files, editors' backups.
pub(super) fn batch_of(path: &Path) -> Option<BatchId> {
    let digits = path.filename()?.strip_suffix(".json")?;
    (digits.len() == 20).then(|| digits.parse().ok()).flatten()
}

/// An object whose content says its batch.
pub(super) trait Numbered {
    /// The batch.
    fn number(&self) -> BatchId;
}

impl Numbered for BatchPlan {
    fn number(&self) -> BatchId {
        self.batch
    }
}

impl Numbered for CommitRecord {
    fn number(&self) -> BatchId {
        self.batch
    }
}

#[async_trait]
impl CheckpointLog for ObjectLog {
    fn location(&self) -> String {
        self.storage.display().trim_end_matches('/').to_string()
    }

    async fn identity(&self) -> Result<Option<Identity>> {
        let identity: Option<Identity> = self.get(&Path::from("metadata.json")).await?;
        if let Some(identity) = &identity {
            self.know(identity);
        }
        Ok(identity)
    }

    async fn create(&self, identity: &Identity) -> Result<Identity> {
        let path = Path::from("metadata.json");
        match self.put(&path, identity).await? {
            Put::Created => {
                self.know(identity);
                Ok(identity.clone())
            }
            Put::Existed => self.identity().await?.ok_or_else(|| vanished(&self.name(&path))),
        }
    }

    async fn start(&self, source: &str) -> Result<Option<Start>> {
        self.get_start(source).await
    }

    async fn record_start(&self, source: &str, start: &Start) -> Result<Start> {
        let path = Path::from(format!("sources/{source}.json"));
        let start = Start { source: Some(source.to_string()), ..start.clone() };
        match self.put(&path, &start).await? {
            Put::Created => Ok(start),
            Put::Existed => self.start(source).await?.ok_or_else(|| vanished(&self.name(&path))),
        }
    }

    async fn head(&self) -> Result<Head> {
        // What was listed may be cleaned up before it is read, by a runner that is a hundred batches further: listed again.
        for _ in 0..HEAD_LOOKS {
            let (plans, commits) = (self.newest(Kind::Offsets).await?, self.newest(Kind::Commits).await?);
            let mut head = Head::default();
            if let Some(&batch) = plans.last() {
                head.plan = self.get_batch(Kind::Offsets, batch).await?;
            }
            if let Some(&batch) = commits.last() {
                head.commit = self.get_batch(Kind::Commits, batch).await?;
            }
            if head.plan.is_some() != plans.is_empty() && head.commit.is_some() != commits.is_empty() {
                return Ok(head);
            }
        }
        Err(vanished(&self.name(&Path::from(Kind::Offsets.folder()))))
    }

    async fn plan(&self, plan: &BatchPlan) -> Result<Claim> {
        let path = Kind::Offsets.path(plan.batch);
        match self.put(&path, plan).await? {
            Put::Created => Ok(Claim::Claimed),
            Put::Existed => {
                let winner: Option<BatchPlan> = self.get_batch(Kind::Offsets, plan.batch).await?;
                let winner = winner.ok_or_else(|| vanished(&self.name(&path)))?;
                Ok(Claim::Taken(Box::new(winner)))
            }
        }
    }

    async fn commit(&self, record: &CommitRecord) -> Result<()> {
        self.put(&Kind::Commits.path(record.batch), record).await.map(|_| ())
    }

    async fn history(&self, count: usize) -> Result<Vec<CommitRecord>> {
        let ids = self.newest(Kind::Commits).await?;
        let mut records = Vec::new();
        for &batch in ids.iter().rev().take(count) {
            records.extend(self.get_batch::<CommitRecord>(Kind::Commits, batch).await?);
        }
        Ok(records)
    }

    /// Plans go before commit records, oldest first: whatever a crash leaves, the newest pair is whole.
    async fn prune(&self, keep: usize) -> Result<()> {
        for kind in [Kind::Offsets, Kind::Commits] {
            let ids = self.newest(kind).await?;
            for &batch in ids.iter().take(ids.len().saturating_sub(keep)) {
                let path = kind.path(batch);
                match self.storage.store.delete(&path).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(e) => {
                        return Err(storage::explain(&e, "delete an old checkpoint object", &self.name(&path)));
                    }
                }
            }
        }
        Ok(())
    }

    async fn keep_key(&self, key: &Key) -> Result<()> {
        self.put_key(key).await
    }

    async fn key(&self, digest: &str) -> Result<Option<Key>> {
        self.get_key(digest).await
    }

    async fn forget_keys(&self, except: Option<&str>) -> Result<()> {
        self.delete_keys(except).await
    }

    async fn owe_files(&self, owed: &Owed) -> Result<()> {
        self.put_owed(owed).await
    }

    async fn owed_files(&self) -> Result<Vec<Owed>> {
        self.all_owed().await
    }

    async fn paid_files(&self, batch: BatchId) -> Result<()> {
        self.delete_owed(batch).await
    }

    async fn keep_receipt(&self, name: &str, receipt: &serde_json::Value) -> Result<String> {
        self.put_receipt(name, receipt).await
    }

    async fn receipt(&self, name: &str) -> Result<Option<serde_json::Value>> {
        self.get_receipt(name).await
    }
}

pub(super) fn vanished(name: &str) -> Error {
    Error::failed(format!("checkpoint object {name} existed a moment ago and is gone"))
        .help("is another process cleaning the checkpoint folder? nothing was changed; run again")
}
