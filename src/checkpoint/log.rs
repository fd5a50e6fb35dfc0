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
//! Every object is created with put-if-absent and never changes. Names are zero-padded so that a listing is in batch
//! order. The newest pair is found by one listing at start; after that the runner remembers.

use async_trait::async_trait;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{CheckpointLog, Claim, Head, Identity};
use crate::error::{Error, Result};
use crate::model::batch::{BatchId, BatchPlan, CommitRecord, FORMAT_VERSION};
use crate::model::offset::Offsets;
use crate::storage::{self, Storage};

/// See the module.
#[derive(Debug)]
pub struct ObjectLog {
    storage: Storage,
}

/// Kinds of numbered objects.
#[derive(Debug, Clone, Copy)]
enum Kind {
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

    fn path(self, batch: BatchId) -> Path {
        Path::from(format!("{}/{batch:020}.json", self.folder()))
    }
}

/// Whether a put created the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Put {
    Created,
    Existed,
}

impl ObjectLog {
    /// The log in a folder that holds nothing else.
    pub fn new(storage: Storage) -> Self {
        ObjectLog { storage }
    }

    async fn put<T: Serialize>(&self, path: &Path, value: &T) -> Result<Put> {
        let mut bytes = serde_json::to_vec_pretty(value)
            .map_err(|e| Error::failed("a checkpoint object could not be serialised").caused_by(e))?;
        bytes.push(b'\n');
        let options = PutOptions::from(PutMode::Create);
        match self.storage.store.put_opts(path, PutPayload::from(bytes), options).await {
            Ok(_) => Ok(Put::Created),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(Put::Existed),
            Err(error) => Err(storage::explain(&error, "write the checkpoint", &self.name(path))
                .maybe_applied()
                .help("no table was changed by this step; the next run looks at the log again and goes on from there")),
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>> {
        let bytes = match self.storage.store.get(path).await {
            Ok(found) => found.bytes().await,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => Err(error),
        };
        let bytes = bytes.map_err(|e| storage::explain(&e, "read the checkpoint", &self.name(path)))?;
        parse(&bytes, &self.name(path)).map(Some)
    }

    async fn newest(&self, kind: Kind) -> Result<Vec<BatchId>> {
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

    fn name(&self, path: &Path) -> String {
        format!("{}/{path}", self.location())
    }
}

/// Ignores whatever is not `<20 digits>.json`: temporary files, editors' backups.
fn batch_of(path: &Path) -> Option<BatchId> {
    let digits = path.filename()?.strip_suffix(".json")?;
    (digits.len() == 20).then(|| digits.parse().ok()).flatten()
}

/// Checks the version before anything else, so that a newer format is named as such and not as a missing field.
fn parse<T: DeserializeOwned>(bytes: &[u8], name: &str) -> Result<T> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let damaged = |why: String| {
        Error::config(format!("checkpoint object {name} is damaged: {why}"))
            .help("nothing was read or written; tidegate never guesses where to start")
            .help("restore this object from a backup of the checkpoint folder")
    };
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(damaged("it is empty".into()));
    }
    let versioned: Versioned = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
    if versioned.version > FORMAT_VERSION {
        return Err(Error::config(format!(
            "checkpoint object {name} has format version {}, this tidegate reads up to {FORMAT_VERSION}",
            versioned.version
        ))
        .help("nothing was read or written; run the newer tidegate that wrote it"));
    }
    serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))
}

/// First offsets of one source.
#[derive(serde::Serialize, serde::Deserialize)]
struct Start {
    version: u32,
    offsets: Offsets,
}

#[async_trait]
impl CheckpointLog for ObjectLog {
    fn location(&self) -> String {
        self.storage.display().trim_end_matches('/').to_string()
    }

    async fn identity(&self) -> Result<Option<Identity>> {
        self.get(&Path::from("metadata.json")).await
    }

    async fn create(&self, identity: &Identity) -> Result<Identity> {
        let path = Path::from("metadata.json");
        match self.put(&path, identity).await? {
            Put::Created => Ok(identity.clone()),
            Put::Existed => self.get(&path).await?.ok_or_else(|| vanished(&self.name(&path))),
        }
    }

    async fn start(&self, source: &str) -> Result<Option<Offsets>> {
        let start: Option<Start> = self.get(&Path::from(format!("sources/{source}.json"))).await?;
        Ok(start.map(|start| start.offsets))
    }

    async fn record_start(&self, source: &str, offsets: &Offsets) -> Result<Offsets> {
        let path = Path::from(format!("sources/{source}.json"));
        let start = Start { version: FORMAT_VERSION, offsets: offsets.clone() };
        match self.put(&path, &start).await? {
            Put::Created => Ok(start.offsets),
            Put::Existed => self.start(source).await?.ok_or_else(|| vanished(&self.name(&path))),
        }
    }

    async fn head(&self) -> Result<Head> {
        let (plans, commits) = (self.newest(Kind::Offsets).await?, self.newest(Kind::Commits).await?);
        let mut head = Head::default();
        if let Some(&batch) = plans.last() {
            head.plan = self.get(&Kind::Offsets.path(batch)).await?;
        }
        if let Some(&batch) = commits.last() {
            head.commit = self.get(&Kind::Commits.path(batch)).await?;
        }
        Ok(head)
    }

    async fn plan(&self, plan: &BatchPlan) -> Result<Claim> {
        let path = Kind::Offsets.path(plan.batch);
        match self.put(&path, plan).await? {
            Put::Created => Ok(Claim::Claimed),
            Put::Existed => {
                let winner: BatchPlan = self.get(&path).await?.ok_or_else(|| vanished(&self.name(&path)))?;
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
            records.extend(self.get(&Kind::Commits.path(batch)).await?);
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
}

fn vanished(name: &str) -> Error {
    Error::failed(format!("checkpoint object {name} existed a moment ago and is gone"))
        .help("is another process cleaning the checkpoint folder? nothing was changed; run again")
}
