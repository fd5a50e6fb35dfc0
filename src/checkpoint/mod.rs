//! The checkpoint port: the pipeline's log of plans and commit records.
//!
//! # Contract (one test suite, every adapter: `tests/contract/checkpoint.rs`)
//!
//! 1. Every write is put-if-absent and durable when it returns; an object never changes after it exists.
//! 2. Reads see every write that has returned (read-after-write).
//! 3. Safety decisions are not made here: the log reports facts, [`crate::model::recover`] decides.

pub mod backfills;
mod forgotten;
pub mod inspect;
pub mod lock;
pub mod log;
mod seal;
pub mod states;

use async_trait::async_trait;

use crate::error::Result;
use crate::model::batch::{BatchId, BatchPlan, CommitRecord, Owner, Start};
use crate::model::forget::{Key, Owed};

/// What the log holds at its head.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Head {
    /// The newest plan.
    pub plan: Option<BatchPlan>,
    /// The newest commit record.
    pub commit: Option<CommitRecord>,
}

/// Identity of a pipeline's log, written once.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// On-disk format.
    pub version: u32,
    /// Never changes; part of the Delta application ids, so a new log never takes an old one's txns for its own.
    pub pipeline_id: String,
    /// Pipeline name.
    pub pipeline: String,
    /// Who created it.
    pub created_by: Owner,
}

/// Outcome of planning a batch.
#[derive(Debug, Clone, PartialEq)]
pub enum Claim {
    /// The plan is durable and ours.
    Claimed,
    /// Another runner planned this batch first.
    Taken(Box<BatchPlan>),
}

/// A pipeline's log. See the module for the contract.
#[async_trait]
pub trait CheckpointLog: Send {
    /// Where the log lives, for messages.
    fn location(&self) -> String;

    /// The identity, if the log exists.
    async fn identity(&self) -> Result<Option<Identity>>;

    /// Creates the log unless it exists; returns the identity that is there.
    async fn create(&self, identity: &Identity) -> Result<Identity>;

    /// The resolved first offsets of a source, if recorded.
    async fn start(&self, source: &str) -> Result<Option<Start>>;

    /// Records the resolved first offsets of a source unless they exist; returns what is there.
    async fn record_start(&self, source: &str, start: &Start) -> Result<Start>;

    /// Newest plan and commit record. Lists; call at start and after errors, never per batch.
    async fn head(&self) -> Result<Head>;

    /// Writes the plan unless one of that batch exists.
    async fn plan(&self, plan: &BatchPlan) -> Result<Claim>;

    /// Writes the commit record; one that exists already is the same batch finished by a twin, and is left alone.
    async fn commit(&self, record: &CommitRecord) -> Result<()>;

    /// Commit records of the last `count` batches, newest first.
    async fn history(&self, count: usize) -> Result<Vec<CommitRecord>>;

    /// Deletes plans and commit records older than the newest `keep` batches.
    async fn prune(&self, keep: usize) -> Result<()>;

    /// Keeps a key that is about to be forgotten, under its digest.
    async fn keep_key(&self, key: &Key) -> Result<()>;

    /// The key of a digest; `None` = it was deleted.
    async fn key(&self, digest: &str) -> Result<Option<Key>>;

    /// Deletes every key but that of the batch that is pending: also what an attempt has left that never got as far as a
    /// plan.
    async fn forget_keys(&self, except: Option<&str>) -> Result<()>;

    /// Notes that old files are to be deleted, before the key goes that says so, too.
    async fn owe_files(&self, owed: &Owed) -> Result<()>;

    /// Old files that are still to be deleted, by batch.
    async fn owed_files(&self) -> Result<Vec<Owed>>;

    /// Notes that the files owed for a batch are deleted.
    async fn paid_files(&self, batch: BatchId) -> Result<()>;

    /// Keeps a receipt unless there is one of that name; says where it lies.
    async fn keep_receipt(&self, name: &str, receipt: &serde_json::Value) -> Result<String>;

    /// A receipt that was kept.
    async fn receipt(&self, name: &str) -> Result<Option<serde_json::Value>>;
}
