//! The logs of backfills: one small log an interval, beside the live log and never part of it.
//!
//! ```text
//! <checkpoints>/<pipeline>/backfills/
//!   lock                                          one backfill at a time on one host
//!   20260317T000000Z-20260318T000000Z/            an interval, by its two instants
//!     offsets/00000000000000000002.json           plan of the interval's run 2, written before anything else is
//!     commits/00000000000000000002.json           its outcome, written after every table carries it
//! ```
//!
//! Objects are written and sealed like those of the live log: put-if-absent, never changed, with a checksum and the id of
//! the pipeline's log.

use futures::StreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::log::{Kind, Numbered, ObjectLog, Put, vanished};
use crate::error::Result;
use crate::model::backfill::{BackfillPlan, BackfillRecord, IntervalHead};
use crate::model::batch::BatchId;
use crate::model::interval::Interval;
use crate::storage::{self, Storage};

/// Below the folder of the pipeline's log.
pub const FOLDER: &str = "backfills";

/// Logs that are read at once.
const READERS: usize = 16;

/// Runs of an interval that are kept.
const KEEP: usize = 100;

/// All backfills of one pipeline.
#[derive(Debug, Clone)]
pub struct Backfills {
    folder: Storage,
    pipeline_id: String,
}

/// The log of one interval.
#[derive(Debug)]
pub struct IntervalLog {
    objects: ObjectLog,
}

/// Outcome of planning a run.
#[derive(Debug)]
pub enum Planned {
    /// The plan is durable and ours.
    Ours,
    /// Somebody else planned this run first.
    Taken(Box<BackfillPlan>),
}

impl Numbered for BackfillPlan {
    fn number(&self) -> BatchId {
        self.run
    }
}

impl Numbered for BackfillRecord {
    fn number(&self) -> BatchId {
        self.run
    }
}

impl Backfills {
    /// The backfills of the pipeline whose log lies in `log`.
    pub fn new(log: &Storage, pipeline_id: &str) -> Result<Backfills> {
        Ok(Backfills { folder: log.join(FOLDER)?, pipeline_id: pipeline_id.to_string() })
    }

    /// Where they lie, for messages.
    pub fn location(&self) -> String {
        self.folder.display().trim_end_matches('/').to_string()
    }

    /// The log of an interval.
    pub fn of(&self, interval: &Interval) -> Result<IntervalLog> {
        self.open(&interval.key())
    }

    fn open(&self, key: &str) -> Result<IntervalLog> {
        let objects = ObjectLog::new(self.folder.join(key)?);
        objects.expect(&self.pipeline_id);
        Ok(IntervalLog { objects })
    }

    /// The ledger: the newest plan and record of every interval that was ever begun, in order of time.
    pub async fn ledger(&self) -> Result<Vec<IntervalHead>> {
        let listed = match self.folder.store.list_with_delimiter(None).await {
            Ok(listed) => listed.common_prefixes,
            Err(object_store::Error::NotFound { .. }) => Vec::new(),
            Err(error) => return Err(storage::explain(&error, "list the backfills", &self.location())),
        };
        let mut keys: Vec<String> = listed.iter().filter_map(Path::filename).map(str::to_string).collect();
        keys.sort_unstable();
        let heads = keys.into_iter().map(|key| async move { self.open(&key)?.head().await });
        let heads: Vec<Result<IntervalHead>> = futures::stream::iter(heads).buffered(READERS).collect().await;
        heads.into_iter().collect()
    }
}

impl IntervalLog {
    /// Newest plan and record.
    pub async fn head(&self) -> Result<IntervalHead> {
        // The plan first: a record that is written meanwhile makes it done, never the other way round.
        let plan = match self.objects.newest(Kind::Offsets).await?.last() {
            Some(run) => self.objects.get_batch(Kind::Offsets, *run).await?,
            None => None,
        };
        let record = match self.objects.newest(Kind::Commits).await?.last() {
            Some(run) => self.objects.get_batch(Kind::Commits, *run).await?,
            None => None,
        };
        Ok(IntervalHead { plan, record })
    }

    /// Writes the plan unless one of that run exists.
    pub async fn plan(&self, plan: &BackfillPlan) -> Result<Planned> {
        let path = Kind::Offsets.path(plan.run);
        match self.objects.put(&path, plan).await? {
            Put::Created => Ok(Planned::Ours),
            Put::Existed => {
                let winner: Option<BackfillPlan> = self.objects.get_batch(Kind::Offsets, plan.run).await?;
                let winner = winner.ok_or_else(|| vanished(&self.objects.name(&path)))?;
                // A put whose reply was lost.
                match winner.owner.run_id == plan.owner.run_id {
                    true => Ok(Planned::Ours),
                    false => Ok(Planned::Taken(Box::new(winner))),
                }
            }
        }
    }

    /// Writes the record; one that exists already is the same run finished by a twin, and is left alone.
    pub async fn commit(&self, record: &BackfillRecord) -> Result<()> {
        self.objects.put(&Kind::Commits.path(record.run), record).await.map(|_| ())
    }

    /// Deletes old runs, plans before records: whatever a crash leaves, the newest pair is whole.
    pub async fn prune(&self) -> Result<()> {
        for kind in [Kind::Offsets, Kind::Commits] {
            let runs = self.objects.newest(kind).await?;
            for run in runs.iter().take(runs.len().saturating_sub(KEEP)) {
                let path = kind.path(*run);
                match self.objects.storage().store.delete(&path).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => {
                        return Err(storage::explain(&error, "delete an old run", &self.objects.name(&path)));
                    }
                }
            }
        }
        Ok(())
    }
}
