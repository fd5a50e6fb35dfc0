//! The two durable records of a batch: its plan (intent, written before a row is read) and its commit record (outcome,
//! written after every table carries the batch). Both are small JSON objects with a version; [`FORMAT_VERSION`] is the
//! only one written, older ones stay readable (golden files in `tests/golden`). Version 2 added a checksum and the
//! pipeline id to the object; both are the log's business and not part of the records here.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::forget::Forget;
use super::letter::{Action, Letters};
use super::loss::{Loss, Lost};
use super::offset::{Discontinuity, Incarnations, OffsetRanges, Offsets, Partition};
use super::window::Micros;

/// Version of the on-disk records that this build writes.
pub const FORMAT_VERSION: u32 = 2;

/// Number of a batch: dense, from 0, strictly increasing. It is the `version` of the Delta `txn` actions.
pub type BatchId = i64;

/// Who runs: printed when two runners meet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// New at every start of the process.
    pub run_id: String,
    /// Host name.
    pub host: String,
    /// Process id on that host.
    pub pid: u32,
}

/// The immutable intent of a batch. A replay takes everything from here, so that it reads the same rows and computes
/// the same tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchPlan {
    /// On-disk format.
    pub version: u32,
    /// The batch.
    pub batch: BatchId,
    /// Pipeline name, to refuse a checkpoint copied from elsewhere.
    pub pipeline: String,
    /// The only clock a transform can see, in microseconds.
    pub batch_time: DateTime<Utc>,
    /// What is read, by source name.
    pub sources: BTreeMap<String, OffsetRanges>,
    /// Where `on_data_loss: skip` moved a position before reading: `[was, now]`, by source name. What lies between was
    /// never read; this is the audit trail.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub skipped: BTreeMap<String, OffsetRanges>,
    /// Where an operator moved a position (`tidegate offsets`): `[was, now]`, by source name. Such a batch reads nothing;
    /// it only carries the move through every table, so that a crash cannot leave half of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub moved: BTreeMap<String, OffsetRanges>,
    /// Dead letters that an operator replays or gives up (`tidegate dlq`). Such a batch reads nothing from a source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub letters: Option<Letters>,
    /// Tables that are computed again, whole, from what they read: what they remember could not follow. Such a batch reads
    /// nothing from a source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rebuild: Vec<String>,
    /// The first event time, in microseconds, that each of them finds rows of: windows that ended before stay as they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub since: BTreeMap<String, Micros>,
    /// What an operator wants forgotten (`tidegate forget`). Such a batch reads nothing from a source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forget: Option<Forget>,
    /// Why positions were moved, and partitions that were left out because they are gone, by source name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lost: BTreeMap<String, Vec<Lost>>,
    /// Which topics the ranges belong to, by source name: a topic that was created again has other records at the same
    /// offsets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub incarnations: BTreeMap<String, Incarnations>,
    /// Event-time watermark in force for this batch, by table; absent = none yet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub watermarks: BTreeMap<String, DateTime<Utc>>,
    /// Delta versions of lookups, by lookup name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pinned: BTreeMap<String, i64>,
    /// What gives each table's stored rows their meaning (how they are written, by which keys), by table name.
    pub meaning: BTreeMap<String, String>,
    /// Hash of everything else that turns rows into tables (schemas, SQL, expectations): a batch that is in some
    /// tables already must reach the others by the same rules.
    pub recipe: String,
    /// Who planned it.
    pub owner: Owner,
}

impl BatchPlan {
    /// The positions after this batch, by source name.
    pub fn until(&self) -> BTreeMap<String, Offsets> {
        let until = |ranges: &OffsetRanges| Offsets(ranges.0.iter().map(|(p, r)| (p.clone(), r.until)).collect());
        self.sources.iter().map(|(name, ranges)| (name.clone(), until(ranges))).collect()
    }

    /// The position of every known partition after the batch. A plan that does not continue `position` is refused: this
    /// is the last line of defence against lost or doubled offsets.
    pub fn advance(&self, position: &BTreeMap<String, Offsets>) -> Result<BTreeMap<String, Offsets>, Discontinuity> {
        let mut offsets = position.clone();
        for (name, ranges) in &self.sources {
            let from = offsets.entry(name.clone()).or_default();
            for (partition, skipped) in self.skipped.get(name).iter().flat_map(|skipped| &skipped.0) {
                from.0.insert(partition.clone(), skipped.until);
            }
            for (partition, moved) in self.moved.get(name).iter().flat_map(|moved| &moved.0) {
                let at = from.0.insert(partition.clone(), moved.until).unwrap_or_default();
                let (partition, from) = (partition.clone(), moved.from);
                match at.cmp(&from) {
                    std::cmp::Ordering::Less => return Err(Discontinuity::Gap { partition, at, from }),
                    std::cmp::Ordering::Greater => return Err(Discontinuity::Overlap { partition, at, from }),
                    std::cmp::Ordering::Equal => {}
                }
            }
            from.0.retain(|partition, _| !self.drops(name, partition));
            *from = from.advance(ranges)?;
        }
        Ok(offsets)
    }

    /// Whether the position in a partition is given up: the topic was created again and does not have the partition. Kept,
    /// it would be taken for a position in the partition that may be added some day.
    pub fn drops(&self, source: &str, partition: &Partition) -> bool {
        let is_other = |lost: &Lost| matches!(&lost.loss, Loss::Recreated { partition: lost, .. } if lost == partition);
        let is_read = self.sources.get(source).is_some_and(|ranges| ranges.0.contains_key(partition));
        !is_read && self.lost.get(source).into_iter().flatten().any(is_other)
    }

    /// Whether the batch moves positions instead of reading.
    pub fn is_move(&self) -> bool {
        !self.moved.is_empty()
    }

    /// Whether an operator made the batch: it reads nothing from a source.
    pub fn is_by_hand(&self) -> bool {
        self.is_move() || self.letters.is_some() || self.forget.is_some() || !self.rebuild.is_empty()
    }

    /// Whether rows flow through the pipeline: from sources, or from dead letters that are replayed.
    pub fn has_rows(&self) -> bool {
        !self.is_by_hand() || self.letters.as_ref().is_some_and(|letters| letters.action == Action::Replay)
    }
}

/// Where a source's first run starts, resolved once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// On-disk format.
    pub version: u32,
    /// Name of the source; since version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// First offsets.
    pub offsets: Offsets,
    /// Which topics they belong to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub incarnations: Incarnations,
}

/// One commit by which somebody else changed rows of a table of the pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignWrite {
    /// Delta version that it made.
    pub version: i64,
    /// What it says it did, such as `DELETE`.
    pub operation: String,
    /// The program that it says it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// Rows that it says it added, changed or removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
}

impl fmt::Display for ForeignWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ForeignWrite { version, operation, engine, rows } = self;
        write!(f, "version {version}: {operation}")?;
        if let Some(engine) = engine {
            write!(f, " by {engine}")?;
        }
        match rows {
            Some(1) => f.write_str(" (1 row)"),
            Some(rows) => write!(f, " ({rows} rows)"),
            None => Ok(()),
        }
    }
}

/// What one table did with one batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Delta version that carries the batch; for a batch found already applied, the table's version when it was found.
    pub delta_version: i64,
    /// The batch was already in the table (a replay).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub already_applied: bool,
    /// Rows added that had no counterpart.
    #[serde(default)]
    pub inserted: u64,
    /// Rows that replaced an older one.
    #[serde(default)]
    pub updated: u64,
    /// Rows removed.
    #[serde(default)]
    pub deleted: u64,
    /// Rows that lost against a newer one (in the batch, in the table, or a remembered delete).
    #[serde(default)]
    pub superseded: u64,
    /// Deletes of keys that the table does not hold; remembered, so that a late row does not revive them.
    #[serde(default)]
    pub remembered: u64,
    /// Version of the table's memory of deletes, where it has one: it must never go back or go away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_version: Option<i64>,
    /// What others changed in the table between the batch before and this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign: Vec<ForeignWrite>,
    /// The file that holds what the table remembers after the batch, where it remembers something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Entries and bytes of memory that it remembers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_size: Option<(u64, u64)>,
    /// Data files added.
    #[serde(default)]
    pub files_added: u64,
    /// Data files removed.
    #[serde(default)]
    pub files_removed: u64,
}

/// The outcome of a batch. Its existence is what "done" means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CommitRecord {
    /// On-disk format.
    pub version: u32,
    /// The batch.
    pub batch: BatchId,
    /// Pipeline name.
    pub pipeline: String,
    /// The next offset to read of every known partition (not only those of this batch), by source name.
    pub offsets: BTreeMap<String, Offsets>,
    /// Which topics the offsets belong to, by source name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub incarnations: BTreeMap<String, Incarnations>,
    /// What the batch went without, by source name: what its plan says, and what was lost between the plan and its end.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lost: BTreeMap<String, Vec<Lost>>,
    /// Watermark after the batch, by table.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub next_watermarks: BTreeMap<String, DateTime<Utc>>,
    /// What each table did, dead letters included.
    pub tables: BTreeMap<String, Receipt>,
    /// Source rows read.
    pub input_rows: u64,
    /// Bytes of keys and values read.
    #[serde(default)]
    pub input_bytes: u64,
    /// Rows set aside in the dead-letter table.
    #[serde(default)]
    pub dead_letters: u64,
    /// Rows counted per rule, `table.rule` → how many broke it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub expectations: BTreeMap<String, u64>,
    /// `bronze` where the source no longer had the records and tables that did finished the batch: then `input_bytes` and
    /// the counts of rules on those tables are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replayed_from: Option<String>,
    /// Who finished it, where that is not the run that planned it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_by: Option<Owner>,
    /// Wall time per phase in milliseconds.
    #[serde(default)]
    pub duration_ms: BTreeMap<String, u64>,
    /// When the record was written.
    pub committed_at: DateTime<Utc>,
}
