//! One Delta table on storage: loading, the commit itself, and what an error of it means.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties, TableReference, TransactionError};
use deltalake::kernel::{Action, Transaction};
use deltalake::logstore::{LogStoreRef, StorageConfig, default_logstore, get_actions};
use deltalake::protocol::DeltaOperation;
use deltalake::table::config::TablePropertiesExt;
use deltalake::table::state::DeltaTableState;
use deltalake::{DeltaTable, DeltaTableError};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::sync::Semaphore;

use super::files::DataFile;
use crate::error::{Code, Error, ErrorKind, Result};
use crate::fail;
use crate::model::batch::BatchId;
use crate::storage::{self, Storage};
use crate::table::Txn;

/// How far back the log is searched for the commit of a batch: further than any writer gets between a crash and the
/// restart, near enough to stay a matter of seconds.
pub(super) const SEARCH_BACK: u64 = 1000;

/// Versions between two checkpoints of the Delta log: a reader replays at most this many small files.
pub(super) const CHECKPOINT_EVERY: u64 = 50;

/// Versions between two clean-ups of the Delta log: each one lists the log.
const CLEAN_EVERY: u64 = 500;

/// The listing of a folder is no snapshot: beside a writer it may lack an entry and show the one after it. So a log counts
/// as broken when this many looks have found it so, with a pause between two of them.
const LOOKS: u32 = 4;
const LOOK: Duration = Duration::from_millis(50);

/// Reads of logs at once in this process. Each keeps a thread of the blocking pool waiting for requests that need threads
/// of that pool, too: with as many reads as there are threads, none would ever end.
const READS: usize = 64;
static READING: Semaphore = Semaphore::const_new(READS);

/// A commit that failed, with what is needed to find out whether it landed.
#[derive(Debug)]
pub(super) struct CommitFailure {
    /// Why.
    pub(super) cause: DeltaTableError,
    /// Identifies the attempt in the commit's own record.
    pub(super) nonce: String,
    /// The version that it was to follow.
    pub(super) read: Option<i64>,
}

impl CommitFailure {
    /// Somebody's commit came first. It may be this one: a store's client sends a request again when the reply was lost,
    /// and the second one finds what the first one made. So only the log tells whether this one is in it.
    pub(super) fn is_conflict(&self) -> bool {
        is_conflict(&self.cause)
    }
}

/// A table folder and what was last read of it.
pub(super) struct Handle {
    storage: Storage,
    log: LogStoreRef,
    state: Option<DeltaTableState>,
    checkpointed: u64,
}

impl Handle {
    /// A handle that has read nothing yet.
    pub(super) fn new(storage: Storage) -> Handle {
        let log = default_logstore(storage.store.clone(), storage.root(), &storage.url, &StorageConfig::default());
        Handle { storage, log, state: None, checkpointed: 0 }
    }

    pub(super) fn location(&self) -> String {
        self.storage.display()
    }

    pub(super) fn store(&self) -> Arc<dyn ObjectStore> {
        self.storage.store.clone()
    }

    pub(super) fn is_local(&self) -> bool {
        self.storage.url.scheme() == "file" && !fail::remote()
    }

    pub(super) fn log(&self) -> LogStoreRef {
        self.log.clone()
    }

    /// A second handle that knows what this one knows: what it learns and commits stays its own.
    pub(super) fn fork(&self) -> Handle {
        Handle {
            storage: self.storage.clone(),
            log: self.log.clone(),
            state: self.state.clone(),
            checkpointed: self.checkpointed,
        }
    }

    pub(super) fn storage(&self) -> &Storage {
        &self.storage
    }

    /// What was last read; `None` = there was no table, or nothing was read yet.
    pub(super) fn state(&self) -> Option<&DeltaTableState> {
        self.state.as_ref()
    }

    pub(super) fn version(&self) -> Option<i64> {
        self.state.as_ref().map(|state| signed(state.version()))
    }

    /// Reads the table from storage, forgetting what was known: the folder may hold another table by now.
    pub(super) async fn load(&mut self) -> Result<bool> {
        self.load_version(None).await
    }

    /// The same for one version; `None` = the newest.
    pub(super) async fn load_version(&mut self, version: Option<i64>) -> Result<bool> {
        let _turn = READING.acquire().await;
        self.state = None;
        let exists = self.log.is_delta_table_location().await.map_err(|e| self.explain(e, "look for the table"))?;
        if exists {
            let version = version.and_then(|version| u64::try_from(version).ok());
            let read = || {
                let log = self.log.clone();
                async move { DeltaTableState::try_new(log.as_ref(), version).await }
            };
            let state = look(read).await;
            let state = state.map_err(|e| self.unreadable(e))?;
            let every = fail::often(CHECKPOINT_EVERY, 2);
            self.checkpointed = state.version() / every * every;
            self.state = Some(state);
        }
        Ok(exists)
    }

    /// Reads what others have committed since; true = something.
    pub(super) async fn refresh(&mut self) -> Result<bool> {
        let Some(state) = &mut self.state else { return self.load().await };
        let before = state.version();
        let turn = READING.acquire().await;
        let updated = state.update(self.log.as_ref(), None).await;
        drop(turn);
        let after = state.version();
        match updated {
            Ok(()) => Ok(after != before),
            Err(cause) if is_damage(&cause) => {
                self.load().await?;
                // Older than it was, or gone: no slip of a listing, but a table that somebody has put back.
                if self.version() < Some(signed(before)) {
                    self.state = None;
                    return Err(self.unreadable(cause));
                }
                Ok(self.version() != Some(signed(before)))
            }
            Err(cause) => {
                self.state = None;
                Err(self.unreadable(cause))
            }
        }
    }

    /// The last batch of an application id in the table as last read.
    pub(super) async fn applied(&self, app_id: &str) -> Result<Option<BatchId>> {
        let Some(state) = &self.state else { return Ok(None) };
        let _turn = READING.acquire().await;
        let applied = state.transaction_version(self.log.as_ref(), app_id).await;
        applied.map_err(|e| self.explain(e, "read the last applied batch"))
    }

    /// The current files.
    pub(super) fn files(&self) -> Result<Vec<DataFile>> {
        let Some(state) = &self.state else { return Ok(Vec::new()) };
        let files = state.snapshot().try_log_data().map_err(|e| self.explain(e, "list the table's files"))?;
        Ok(files.iter().map(DataFile::from_view).collect())
    }

    /// Commits `actions` together with the batch number, by compare and swap: the table must be exactly as it was read.
    /// Rows could be added behind a commit that was not read, but that may be a RESTORE: it would be buried under the
    /// batch and never be noticed. An error says nothing about whether the commit landed.
    pub(super) async fn commit(
        &mut self,
        actions: Vec<Action>,
        operation: DeltaOperation,
        txn: &Txn,
    ) -> Result<i64, CommitFailure> {
        // `Transaction::new` has no time stamp, so no retention setting ever expires it.
        let properties = commit_properties().with_application_transaction(Transaction::new(&txn.app_id, txn.batch));
        let said = vec![("userMetadata".to_owned(), serde_json::Value::String(txn.user_metadata.clone()))];
        self.commit_as(properties, said, actions, operation).await
    }

    /// Commits maintenance: no batch, and never over a commit that was not read.
    pub(super) async fn commit_maintenance(
        &mut self,
        actions: Vec<Action>,
        operation: DeltaOperation,
        metrics: serde_json::Value,
    ) -> Result<i64, CommitFailure> {
        let said = vec![("operationMetrics".to_owned(), metrics)];
        self.commit_as(commit_properties(), said, actions, operation).await
    }

    async fn commit_as(
        &mut self,
        properties: CommitProperties,
        mut said: Vec<(String, serde_json::Value)>,
        actions: Vec<Action>,
        operation: DeltaOperation,
    ) -> Result<i64, CommitFailure> {
        let (nonce, read) = (nonce(), self.version());
        said.push((NONCE.to_owned(), serde_json::Value::String(nonce.clone())));
        let properties = properties.with_metadata(said).with_max_retries(0);
        let result = self.try_commit(actions, operation, properties).await;
        result.map_err(|cause| CommitFailure { cause, nonce, read })
    }

    async fn try_commit(
        &mut self,
        actions: Vec<Action>,
        operation: DeltaOperation,
        properties: CommitProperties,
    ) -> Result<i64, DeltaTableError> {
        let state = self.state.as_ref().ok_or(DeltaTableError::NotInitialized)?;
        let commit = CommitBuilder::from(properties).with_actions(actions).build(
            Some(state as &dyn TableReference),
            self.log.clone(),
            operation,
        );
        let done = commit.await?;
        let version = done.version();
        self.state = Some(done.snapshot);
        Ok(signed(version))
    }

    /// The commit that carries (application id, batch): its version and actions.
    pub(super) async fn find_commit(&self, app_id: &str, batch: BatchId) -> Result<Option<(i64, Vec<Action>)>> {
        let Some(state) = &self.state else { return Ok(None) };
        let newest = state.version();
        for version in (newest.saturating_sub(SEARCH_BACK)..=newest).rev() {
            let entry = self.log.read_commit_entry(version).await;
            let Some(bytes) = entry.map_err(|e| self.explain(e, "read the table's log"))? else { return Ok(None) };
            let actions = get_actions(version, &bytes).map_err(|e| self.explain(e, "read the table's log"))?;
            let ours = |a: &Action| matches!(a, Action::Txn(t) if t.app_id == app_id && t.version == batch);
            if actions.iter().any(ours) {
                return Ok(Some((signed(version), actions)));
            }
        }
        Ok(None)
    }

    /// The bytes of one commit; `None` = the log no longer has it.
    pub(super) async fn entry(&self, version: i64) -> Result<Option<Bytes>> {
        let Ok(version) = u64::try_from(version) else { return Ok(None) };
        self.log.read_commit_entry(version).await.map_err(|e| self.explain(e, "read the table's log"))
    }

    /// The actions of one commit; `None` = the log no longer has it.
    pub(super) async fn actions(&self, version: i64) -> Result<Option<Vec<Action>>> {
        let Some(entry) = self.entry(version).await? else { return Ok(None) };
        let actions = get_actions(version.unsigned_abs(), &entry);
        actions.map(Some).map_err(|e| self.explain(e, "read the table's log"))
    }

    /// Whether one of the versions after `after`, in the table as last read, is the attempt with this nonce.
    pub(super) async fn landed(&self, nonce: &str, after: i64) -> Result<Option<i64>> {
        let newest = self.version().unwrap_or(after);
        for version in after + 1..=newest {
            if self.actions(version).await?.is_some_and(|actions| carries(&actions, nonce)) {
                return Ok(Some(version));
            }
        }
        Ok(None)
    }

    /// Whether an attempt that was to follow version `read`, and is not in the table as last read, never will be: on local
    /// disk a failure is final, elsewhere the place must be taken. A store may refuse a request because another one, perhaps
    /// the same sent earlier, is still being worked on.
    pub(super) fn is_out(&self, read: Option<i64>) -> bool {
        self.is_local() || self.version() > read
    }

    /// Writes a Delta checkpoint now and then, and lets go of old log entries. Never fails: a log without a checkpoint
    /// is only slower to read.
    pub(super) async fn tidy_log(&mut self, now: DateTime<Utc>) {
        let Some(version) = self.state.as_ref().map(DeltaTableState::version) else { return };
        let every = fail::often(CHECKPOINT_EVERY, 2);
        if version < self.checkpointed + every || fail::hit(fail::DELTA_CHECKPOINT).is_err() {
            return;
        }
        let clean = version / CLEAN_EVERY > self.checkpointed / CLEAN_EVERY;
        self.checkpointed = version;
        let mut table = DeltaTable::new(self.log.clone());
        let made = async {
            table.load().await?;
            deltalake::checkpoints::create_checkpoint(&table, None).await?;
            if !clean {
                return Ok(0);
            }
            let retention = table.snapshot()?.table_config().log_retention_duration();
            let cutoff = now.timestamp_millis() - i64::try_from(retention.as_millis()).unwrap_or(i64::MAX / 2);
            // However old, what `find_commit` may look for stays.
            let below = version.saturating_sub(SEARCH_BACK);
            deltalake::checkpoints::cleanup_expired_logs_for(below, self.log.as_ref(), cutoff, None).await
        };
        match made.await {
            Ok(removed) => tracing::debug!(table = %self.location(), version, removed, "delta checkpoint written"),
            Err(error) => {
                tracing::warn!(table = %self.location(), version, %error, "could not write a delta checkpoint");
            }
        }
    }

    /// Removes files that no commit names. Best effort: what stays is invisible and goes with the next vacuum.
    pub(super) async fn remove_orphans(&self, paths: &[String]) {
        for path in paths {
            let location = super::files::location(path);
            if let Err(error) = self.storage.store.delete(&location).await {
                tracing::debug!(table = %self.location(), path, %error, "could not remove an orphan file");
            }
        }
    }

    /// Refuses a log with an entry of no bytes (a disk that was full, a copy that broke off): the reader takes it for a
    /// commit that did nothing, and the rows of that commit would be gone without a word. Entries older than two
    /// checkpoints are not read any more.
    pub(super) async fn check_entries(&self) -> Result<()> {
        let Some(state) = &self.state else { return Ok(()) };
        let after = state.version().saturating_sub(2 * CHECKPOINT_EVERY);
        let log = Path::from("_delta_log");
        let offset = log.clone().join(format!("{after:020}"));
        let mut entries = self.storage.store.list_with_offset(Some(&log), &offset);
        while let Some(entry) = entries.try_next().await.transpose() {
            let entry = entry.map_err(|cause| storage::explain(&cause, "list the table's log", &self.location()))?;
            if entry.size == 0 && entry.location.extension() == Some("json") {
                let name = entry.location.filename().unwrap_or_default();
                return Err(broken_log(&self.location()).with("empty entry", name));
            }
        }
        Ok(())
    }

    /// Storage that does not answer is one thing, a log that makes no sense is another: no later try will mend it.
    fn unreadable(&self, err: DeltaTableError) -> Error {
        let is_damage = is_damage(&err);
        let error = self.explain(err, "read the table's log");
        if !is_damage || error.kind() != ErrorKind::Failed {
            return error;
        }
        broken_log(&self.location()).caused_by(error)
    }

    pub(super) fn explain(&self, err: DeltaTableError, what: &str) -> Error {
        explain(err, what, &self.location())
    }
}

fn broken_log(at: &str) -> Error {
    Error::config("the log of a table cannot be read")
        .coded(Code::TableUnreadable)
        .with("at", format!("{at}_delta_log"))
        .help("nothing was written")
        .help("an entry is missing or broken? bring it back from a backup of the folder")
        .help(
            "another program gave the table a feature that is too new? take it away (ALTER TABLE … DROP FEATURE …), or \
             choose another table name",
        )
        .help("what the log and the tables hold: tidegate checkpoint verify FILE")
}

/// Marks the commits of tidegate.
pub(super) const NONCE: &str = "tidegateCommit";

/// Whether `actions` are those of the attempt with this nonce.
pub(super) fn carries(actions: &[Action], nonce: &str) -> bool {
    let ours = |info: &std::collections::HashMap<String, serde_json::Value>| {
        info.get(NONCE).and_then(serde_json::Value::as_str) == Some(nonce)
    };
    actions.iter().any(|action| matches!(action, Action::CommitInfo(commit) if ours(&commit.info)))
}

/// No hooks: they would list the whole log at every commit, and a hook that fails looks like a commit that failed.
pub(super) fn commit_properties() -> CommitProperties {
    CommitProperties::default().with_create_checkpoint(false).with_cleanup_expired_logs(Some(false))
}

/// The log makes no sense; the table was neither read nor changed.
fn is_damage(err: &DeltaTableError) -> bool {
    matches!(
        err,
        DeltaTableError::KernelError(_)
            | DeltaTableError::InvalidJsonLog { .. }
            | DeltaTableError::InvalidData { .. }
            | DeltaTableError::SerializeLogJson { .. }
    ) && !err.to_string().contains(KERNEL_STORE)
}

/// Reads a log, and again while it seems to be broken.
pub(super) async fn look<T, F>(read: impl Fn() -> F) -> Result<T, DeltaTableError>
where
    F: Future<Output = Result<T, DeltaTableError>>,
{
    for _ in 1..LOOKS {
        match read().await {
            Err(cause) if is_damage(&cause) => tracing::debug!(%cause, "the log seems to be broken; looking again"),
            done => return done,
        }
        tokio::time::sleep(LOOK).await;
    }
    read().await
}

/// Delta says that somebody else's commit came first.
pub(super) fn is_conflict(err: &DeltaTableError) -> bool {
    match err {
        DeltaTableError::VersionAlreadyExists(_) => true,
        DeltaTableError::Transaction { source } => matches!(
            source,
            TransactionError::MaxCommitAttempts(_)
                | TransactionError::CommitConflict(_)
                | TransactionError::VersionAlreadyExists(_)
        ),
        _ => false,
    }
}

/// What Delta's kernel writes before an error of the store. It keeps that error to itself (no `source()`), and its type
/// cannot be named from here.
const KERNEL_STORE: &str = "Error interacting with object store: ";

/// Says what an error below the table means to an operator.
pub(super) fn explain(err: impl std::error::Error + Send + Sync + 'static, what: &str, at: &str) -> Error {
    if let Some(kind) = storage::io_cause(&err) {
        let source = Box::new(std::io::Error::from(kind));
        return storage::explain(&object_store::Error::Generic { store: "local disk", source }, what, at);
    }
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&err);
    while let Some(cause) = next {
        if let Some(store) = cause.downcast_ref::<object_store::Error>() {
            return storage::explain(store, what, at);
        }
        next = cause.source();
    }
    let text = err.to_string();
    if text.contains(KERNEL_STORE) {
        return storage::explain(&object_store::Error::Generic { store: "store", source: text.into() }, what, at);
    }
    Error::failed(format!("cannot {what}")).with("at", at).caused_by(err)
}

/// Delta versions are unsigned in the kernel and signed everywhere else.
pub(super) fn signed(version: u64) -> i64 {
    i64::try_from(version).unwrap_or(i64::MAX)
}

/// Different for every commit of every process; says nothing and need not be hard to guess.
fn nonce() -> String {
    let random = RandomState::new().build_hasher().finish();
    format!("{random:016x}-{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;

    const COMMIT: &str = r#"{"protocol":{"minReaderVersion":1,"minWriterVersion":2}}
{"metaData":{"id":"1","format":{"provider":"parquet","options":{}},"schemaString":"{\"type\":\"struct\",\"fields\":[{\"name\":\"id\",\"type\":\"string\",\"nullable\":true,\"metadata\":{}}]}","partitionColumns":[],"configuration":{},"createdTime":0}}
"#;

    /// A `serve` of many pipelines looks at all of its tables when it starts.
    #[test]
    fn more_tables_than_there_are_threads_are_read_at_once() {
        let temp = tempfile::tempdir().unwrap();
        let storage = storage::open(temp.path().to_str().unwrap()).unwrap();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(4).max_blocking_threads(READS + 8).enable_all().build().unwrap();
        let first = Path::from("_delta_log/00000000000000000000.json");
        runtime.block_on(storage.store.put(&first, COMMIT.into())).unwrap();
        let read = async || {
            let mut handle = Handle::new(storage.clone());
            assert!(handle.load().await.unwrap());
            assert!(!handle.refresh().await.unwrap());
            assert_eq!(handle.applied("nobody").await.unwrap(), None);
        };
        let all = async { tokio::time::timeout(Duration::from_secs(60), join_all((0..200).map(|_| read()))).await };
        let done = runtime.block_on(all);
        runtime.shutdown_background();
        assert_eq!(done.expect("they wait for each other").len(), 200);
    }
}
