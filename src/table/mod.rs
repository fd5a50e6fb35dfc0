//! The table port: something that holds rows, changes atomically, and remembers which batch it has applied.
//!
//! # Contract (one test suite, every adapter: `tests/contract/table.rs`)
//!
//! 1. `apply` is all or nothing: readers see the table before the batch or after it.
//! 2. `apply` is idempotent per (application id, batch): if the table already carries `txn.batch` or a later one, nothing
//!    changes and the receipt says `already_applied`. The batch id is recorded even when no row changes.
//! 3. After an error of certainty `Unknown` the caller observes again; the adapter never resends a commit blindly.
//! 4. The result depends only on the set of rows applied so far, never on how they were cut into batches.
//! 5. Losing against another writer of the same application id is an error of kind `Busy`, and changes nothing.
//! 6. `apply_at` changes nothing unless the table still is as it was pinned.
//! 7. [`Change::Remove`] takes rows from the table and deletes from its memory, once, whatever kind of table it is.
//! 8. `compact`, `vacuum` and `tidy_log` change no row and no batch number, whoever else writes meanwhile.

pub mod delta;
pub mod glance;
pub mod lookup;
pub mod maintain;
pub mod trace;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use chrono::{DateTime, NaiveDate, Utc};

use self::maintain::{Compacted, Compaction, Vacuum, Vacuumed};
use crate::error::Result;
use crate::model::batch::{BatchId, ForeignWrite, Receipt};
use crate::model::interval::Interval;
use crate::model::offset::Offsets;

/// Who commits what: identity and audit trail of one table commit.
#[derive(Debug, Clone)]
pub struct Txn {
    /// Delta application id: one per (pipeline, table), stable over restarts.
    pub app_id: String,
    /// The batch; the `version` of the Delta `txn` action.
    pub batch: BatchId,
    /// One compact JSON object, stored as `userMetadata` of the commit: pipeline, batch, source ranges.
    pub user_metadata: String,
}

/// What storage says about a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableState {
    /// Delta version; `None` = there is no table.
    pub version: Option<i64>,
    /// Last batch applied under the application id asked for.
    pub applied: Option<BatchId>,
    /// Version of its memory of deletes; `None` = it has none.
    pub memory: Option<i64>,
    /// Others restored or changed its memory of deletes since this pipeline's last commit there.
    pub memory_harmed: bool,
    /// Who created it, from the table's properties; `None` = not tidegate.
    pub made_by: Option<Maker>,
    /// Somebody restored the table to a version before the one that carries `applied`: rows of that batch are missing.
    pub restored: bool,
    /// Commits since the one that carries `applied` by which others changed rows, oldest first. What changes no rows
    /// (compaction, vacuum) is not here.
    pub foreign: Vec<ForeignWrite>,
}

/// The pipeline that created a table, kept in the table's properties `tidegate.pipeline` and `tidegate.pipelineId`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maker {
    /// Pipeline name.
    pub pipeline: String,
    /// Identity of the checkpoint log.
    pub pipeline_id: String,
}

/// How rows enter a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteMode {
    /// Add rows.
    Append,
    /// One row per key: the highest `order_by` wins, also against the row already in the table and against remembered
    /// deletes; ties go to the higher (topic, partition, offset).
    Upsert {
        /// Key columns.
        key: Vec<String>,
        /// Ordering columns, most significant first; empty = source order alone.
        order_by: Vec<String>,
        /// Name of the boolean column (computed by the transform, never stored) that marks a delete.
        delete_flag: Option<String>,
    },
    /// Groups are replaced whole.
    Refresh {
        /// Columns that name a group.
        by: Vec<String>,
    },
}

/// Part of the application ids of writers that work beside the live pipeline, each with batches of its own.
pub const BESIDE: &str = ":backfill:";

impl Txn {
    /// The commit is not one of the live pipeline's batches.
    pub fn is_beside(&self) -> bool {
        self.app_id.contains(BESIDE)
    }
}

/// Everything an adapter needs to know about a table of the pipeline.
#[derive(Debug, Clone)]
pub struct TableDefinition {
    /// `silver.orders`.
    pub name: String,
    /// Column names, types and nullability as stored (arrow types that Delta has; timestamps UTC microseconds).
    pub schema: SchemaRef,
    /// Partition columns, a subset of the schema.
    pub partition_by: Vec<String>,
    /// How rows enter.
    pub write: WriteMode,
    /// Column sets that downstream `refresh` tables group by: `apply` remembers which groups it touched.
    pub watched: Vec<Vec<String>>,
    /// Columns of which `apply` keeps the old and new images of rows, for `refresh` tables that follow what changed.
    pub imaged: Vec<String>,
    /// Who creates the table if there is none.
    pub maker: Maker,
}

/// Rows by the time in one of their columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// A column of timestamps or dates.
    pub column: String,
    /// Which timestamps: half-open.
    pub interval: Interval,
    /// Which dates: half-open.
    pub dates: (NaiveDate, NaiveDate),
}

/// A table as it was at one moment: what a change was computed for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pin {
    /// Delta version; `None` = there is no table.
    pub version: Option<i64>,
    /// Last batch of the application id asked for, at that version.
    pub applied: Option<BatchId>,
}

/// Rows that go because their records are read again.
#[derive(Debug, Clone)]
pub struct Trim {
    /// The columns of topic, partition and offset.
    pub columns: [String; 3],
    /// Rows of these partitions at or after these offsets go.
    pub from: Offsets,
    /// Of those, only rows whose value of this column is one of these.
    pub only: Option<(String, BTreeSet<String>)>,
    /// Rows that come in the same commit.
    pub rows: Vec<RecordBatch>,
}

/// One batch's change to one table.
#[derive(Debug, Clone)]
pub enum Change {
    /// Rows for `Append` and `Upsert` tables, in source order. Upsert rows carry the source coordinates `_topic`,
    /// `_partition`, `_offset` and, when the table has one, the delete flag.
    Rows(Vec<RecordBatch>),
    /// For `Append` tables: an operator moved a position back.
    Trim(Trim),
    /// For `Append` tables: every row in the span is replaced by `rows`.
    Replace {
        /// Which rows go.
        span: Span,
        /// Which come, all of them in the span.
        rows: Vec<RecordBatch>,
    },
    /// For `Append` tables: rows whose value of a column no stored row has.
    Missing {
        /// The column.
        column: String,
        /// Stored rows with this value in this column do not count; both are text.
        except: (String, String),
        /// The rows.
        rows: Vec<RecordBatch>,
    },
    /// For `Refresh` tables: every row whose `by` values are in `groups` is replaced by `rows`. For `Append` tables: rows
    /// are replaced by what an operator made of them, found by any columns, and others may come with them.
    Groups {
        /// Distinct `by` values that were touched; the columns are exactly `by`.
        groups: RecordBatch,
        /// The recomputed rows of those groups.
        rows: Vec<RecordBatch>,
    },
    /// For every table: an operator wants rows forgotten. Those whose values are among these go, from the table and from its
    /// memory of deletes.
    Remove(Removal),
}

/// Rows that an operator wants forgotten.
#[derive(Debug, Clone)]
pub struct Removal {
    /// Their values; the columns are the table's, or some of them.
    pub rows: RecordBatch,
    /// Topic, partition and offset of their records: what a memory of deletes that lacks the columns is searched for.
    pub records: Option<RecordBatch>,
}

/// What a table holds of some values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Rows.
    pub rows: u64,
    /// Deletes that it remembers.
    pub remembered: u64,
    /// It remembers deletes, but not the columns in question: those of records that are known were found, others were not.
    pub is_mute: bool,
}

/// Where the log of a table names values of rows that went, and for how long.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traces {
    /// Of the columns in question, those whose smallest and largest value of each file the log has.
    pub statistics: Vec<String>,
    /// Of the columns in question, those that files are parted by: the log and the folders have each value.
    pub partitions: Vec<String>,
    /// Entries stay this long (`delta.logRetentionDuration`),
    pub retention: Duration,
    /// and in any case until the table has so many newer ones.
    pub newer: u64,
}

impl Traces {
    /// Whether the log names no value.
    pub fn is_nothing(&self) -> bool {
        self.statistics.is_empty() && self.partitions.is_empty()
    }
}

/// What one batch did to the rows of a table.
#[derive(Debug, Clone, Default)]
pub struct Images {
    /// Rows that are no more.
    pub gone: Vec<RecordBatch>,
    /// Rows that were not there before.
    pub came: Vec<RecordBatch>,
}

/// A table of the pipeline. See the module for the contract.
#[async_trait]
pub trait Table: Send {
    /// What this table is.
    fn definition(&self) -> &TableDefinition;

    /// Reads the table's state from storage. Never cached: this is what recovery decides on.
    async fn observe(&mut self, app_id: &str) -> Result<TableState>;

    /// What the commit that carries `batch` of `app_id` says about itself (its `userMetadata`); `None` = it says nothing, or
    /// the log no longer has it.
    async fn note(&mut self, app_id: &str, batch: BatchId) -> Result<Option<String>>;

    /// Commits one batch, creating the table first if there is none, and adding columns that the definition has and the
    /// table lacks. A type that differs is refused (kind `Config`) with a diff; so is a table that somebody else made.
    async fn apply(&mut self, change: Change, txn: &Txn) -> Result<Receipt>;

    /// The table as it is in storage now, and the last batch of `app_id` there. What this process knows of the table, and
    /// what `apply` makes of it, stays as it was.
    async fn pin(&mut self, app_id: &str) -> Result<Pin>;

    /// As `apply`, for a change that was computed from what the table held when it was pinned, or from what other tables
    /// held after that: `None` = somebody has committed since, and nothing was written. The caller pins, reads and
    /// computes again; the same rows are never sent a second time.
    async fn apply_at(&mut self, change: Change, txn: &Txn, pin: &Pin) -> Result<Option<Receipt>>;

    /// Refuses (kind `Data`) rows that `apply` would refuse for what they are, as far as that is known without reading
    /// the table; asked before the first table of a batch is changed.
    async fn check(&mut self, change: &Change) -> Result<()>;

    /// Every column of the rows that `txn.batch`, the last batch applied, added to an `Append` table; the column `marker`
    /// holds each row's batch. Refused (kind `Config`, the reason in its message) unless they are known to be exactly
    /// what that batch wrote: as many, and nobody has changed rows of the table since.
    async fn added(&mut self, txn: &Txn, marker: &str) -> Result<Vec<RecordBatch>>;

    /// The distinct values of the columns `by` over all rows that `txn.batch` added, replaced or removed: old and new
    /// images. May be a superset (after a crash only the files of the commit are known), never a subset. Defined for
    /// the last applied batch only.
    async fn touched(&mut self, by: &[String], txn: &Txn) -> Result<RecordBatch>;

    /// The rows that `txn.batch` removed or replaced, as they were, and those that it added or put in their place, as they
    /// are: only `columns`, which the definition must ask for. The rows of the table before the batch without those that
    /// went and with those that came are the rows after it. `None` = not known: this process did not apply the batch, or
    /// something else since, or there were too many.
    fn images(&self, columns: &[String], txn: &Txn) -> Option<Images>;

    /// Whether no commit after version `after`, up to and with `until` (`None` = the newest in storage), changed a row or the
    /// definition of the table, whoever made it. False when in doubt.
    async fn is_unchanged(&mut self, after: i64, until: Option<i64>) -> Result<bool>;

    /// How many rows [`Change::Trim`] would remove now.
    async fn count_after(&mut self, trim: &Trim) -> Result<u64>;

    /// Its columns as they are stored; `None` = there is no table.
    async fn stored(&mut self) -> Result<Option<SchemaRef>>;

    /// How many rows [`Change::Remove`] would remove now.
    async fn count_held(&mut self, removal: &Removal) -> Result<Held>;

    /// Where its log, and that of what it keeps beside itself, names values of these columns.
    async fn traces(&mut self, columns: &[String]) -> Result<Traces>;

    /// The distinct values of the columns `by` over all rows: what a refresh table that is new computes.
    async fn groups(&mut self, by: &[String]) -> Result<RecordBatch>;

    /// The table's rows after the last apply or observe, only `columns`; with `groups`, only rows whose values of the
    /// columns of `groups` are among its rows (null matches null). An absent table has no rows; a column that the next
    /// batch will add is null.
    async fn read(&mut self, columns: &[String], groups: Option<&RecordBatch>) -> Result<Vec<RecordBatch>>;

    /// The same from the table as it is in storage now.
    async fn read_newest(&mut self, columns: &[String], groups: Option<&RecordBatch>) -> Result<Vec<RecordBatch>>;

    /// Rows of the span with these columns (none named = all that the table has), from the table as it is in storage now.
    /// Files that hold none by their statistics are not read.
    async fn read_span(&mut self, columns: &[String], span: &Span) -> Result<Vec<RecordBatch>>;

    /// The first time (or midnight UTC of the first date) in a column, from statistics where they tell; `None` = no row has
    /// one.
    async fn first_time(&mut self, column: &str) -> Result<Option<DateTime<Utc>>>;

    /// Merges small files, of the table and of what it keeps beside itself.
    async fn compact(&mut self, order: &Compaction) -> Result<Compacted>;

    /// Deletes files that no version within the retention needs, of the table and of what it keeps beside itself.
    /// `None` = the last vacuum is not long enough ago.
    async fn vacuum(&mut self, order: &Vacuum) -> Result<Option<Vacuumed>>;

    /// Housekeeping of the table's own log, when it is due. Call after a batch is done: it is kept out of `apply`.
    async fn tidy_log(&mut self, now: DateTime<Utc>);
}

/// Static side of joins.
#[async_trait]
pub trait Lookup: Send {
    /// The version to pin for a batch; `None` for kinds without versions (files).
    async fn latest(&mut self) -> Result<Option<i64>>;

    /// Column names and types, without reading rows where the format allows it.
    async fn schema(&mut self) -> Result<SchemaRef>;

    /// All rows at `version` (as returned by `latest`). Cached by version.
    async fn load(&mut self, version: Option<i64>) -> Result<Arc<Vec<RecordBatch>>>;
}
