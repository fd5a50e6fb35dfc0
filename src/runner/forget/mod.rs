//! Forgetting by hand (`tidegate forget`): a batch that reads nothing and takes rows out of every table that has the key's
//! columns, like any other batch: planned, carried through table by table, and finished by the next run after a crash.
//! Tables that are recomputed follow from what went upstream of them.
//!
//! The key itself is not in the plan. It is kept beside it, and deleted when the commit record and the receipt are there.

mod account;
mod close;
mod states;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use tracing::warn;

pub use self::account::{Share, counted};
pub use self::close::{files_receipt_name, receipt_name};
use super::Runner;
use super::claim::taken;
use super::rebuild::obstacle;
use super::step::Phases;
use crate::config::spec::{From, PipelineSpec, WriteSpec};
use crate::error::{Context, ErrorKind, Result};
use crate::model::batch::{BatchPlan, CommitRecord};
use crate::model::forget::{Counted, Forget, Key};
use crate::model::offset::{Offset, Partition};
use crate::source::column;
use crate::table::{Change, Removal};
use crate::transform::Transform;
use crate::transform::forget::Typed;

/// Tables that are recomputed when these lose rows, and those that are recomputed then.
fn recomputed(spec: &PipelineSpec, transform: &dyn Transform, tables: &BTreeMap<String, Counted>) -> BTreeSet<String> {
    let mut touched: BTreeSet<&str> = tables.keys().map(String::as_str).collect();
    let mut losing: BTreeSet<&str> =
        tables.iter().filter(|(_, counted)| counted.rows > 0).map(|(name, _)| name.as_str()).collect();
    let mut recomputed = BTreeSet::new();
    for table in &spec.tables {
        if let (WriteSpec::Refresh { .. }, From::Table(upstream)) = (&table.write, &table.from)
            && touched.contains(upstream.as_str())
        {
            touched.insert(&table.name);
            recomputed.insert(table.name.clone());
        }
        // What it remembers of the person goes with all the rest, and is worked in again without.
        if let (Some(_), From::Table(upstream)) = (&table.keeps, &table.from)
            && losing.contains(upstream.as_str())
            && obstacle(table, transform).is_none()
        {
            touched.insert(&table.name);
            losing.insert(&table.name);
            recomputed.insert(table.name.clone());
        }
    }
    recomputed
}

impl Runner {
    /// See [`recomputed`].
    pub fn recomputed(&self, tables: &BTreeMap<String, Counted>) -> BTreeSet<String> {
        recomputed(&self.parts.spec, &*self.parts.transform, tables)
    }

    /// Forgets: keeps the key, plans the batch that names it, and carries it through.
    pub async fn forget(&mut self, key: &Key, what: Forget) -> Result<CommitRecord> {
        let started = Instant::now();
        let last = self.standing().await?.last;
        self.ensure_observed().await?;
        let recomputed = self.recomputed(&what.tables);
        let remembering = self.parts.spec.tables.iter().filter(|table| table.keeps.is_some());
        let rebuild = remembering.map(|table| table.name.clone()).filter(|name| recomputed.contains(name));
        let rebuild: Vec<String> = rebuild.collect();
        let since = self.since(&rebuild).await?;
        let plan = BatchPlan { forget: Some(what), rebuild, since, ..self.empty_plan(last + 1).await? };
        self.parts.log.keep_key(key).await?;
        self.forgetting = Some(key.clone());
        let plan = match self.try_claim(plan).await? {
            Ok(plan) => plan,
            Err(winner) => {
                let needed = winner.forget.as_ref().map(|what| what.digest.as_str());
                self.parts.log.forget_keys(needed).await?;
                return Err(taken(&winner));
            }
        };
        self.carry_through(plan, false, Phases::default(), started, &BTreeMap::new()).await
    }

    /// The key of a batch that forgets. Without it (a checkpoint that was rebuilt from its tables has none) the batch ends
    /// as one that changes nothing more: nobody can do the rest but whoever knows the key.
    pub(super) async fn key_of(&mut self, plan: &BatchPlan) -> Result<Option<Key>> {
        let Some(what) = &plan.forget else { return Ok(None) };
        let key = self.find_key(&what.digest).await?;
        if key.is_none() {
            warn!(
                batch = plan.batch,
                "the key that this batch forgets is gone: tables that lack the batch keep their rows, and deletes that are \
                 remembered by other columns are not found any more; type the command again: tidegate forget FILE --key … \
                 --yes"
            );
        }
        Ok(key)
    }

    /// From this process or from the log.
    async fn find_key(&mut self, digest: &str) -> Result<Option<Key>> {
        match self.forgetting.as_ref().filter(|key| key.digest() == digest) {
            Some(key) => Ok(Some(key.clone())),
            None => self.parts.log.key(digest).await,
        }
    }

    /// What a batch that forgets changes in a table.
    pub(super) async fn removal(&mut self, table: &str, plan: &BatchPlan, key: Option<&Key>) -> Result<Change> {
        let nothing = Change::Rows(Vec::new());
        let is_chosen = plan.forget.as_ref().is_some_and(|what| what.tables.contains_key(table));
        let Some(key) = key.filter(|_| is_chosen && !self.carries(table, plan)) else { return Ok(nothing) };
        let is_dead_letters = self.parts.spec.dead_letters.as_ref().is_some_and(|dead| dead.table == table);
        let rows = match is_dead_letters {
            true => self.letters_of(&key.values, key.containing).await?.0,
            false => match self.typed(table, &key.values).await? {
                Some(Typed::Row(row)) => Some(row),
                _ => None,
            },
        };
        let records = if is_dead_letters { None } else { coordinates(&key.records)? };
        Ok(rows.map_or(nothing, |rows| Change::Remove(Removal { rows, records })))
    }
}

/// Dead letters that go, and new ones, in one change.
pub(super) fn removed_and_added(removal: Change, rows: Vec<RecordBatch>) -> Change {
    match removal {
        _ if rows.iter().all(|rows| rows.num_rows() == 0) => removal,
        Change::Remove(Removal { rows: groups, .. }) => Change::Groups { groups, rows },
        _ => Change::Rows(rows),
    }
}

/// Records as rows of their coordinates; none at all = `None`.
fn coordinates(records: &[(Partition, Vec<Offset>)]) -> Result<Option<RecordBatch>> {
    let all = || records.iter().flat_map(|(partition, offsets)| offsets.iter().map(move |offset| (partition, *offset)));
    let topics: StringArray = all().map(|(partition, _)| Some(partition.topic.as_str())).collect();
    let partitions: Int32Array = all().map(|(partition, _)| Some(partition.partition)).collect();
    let offsets: Int64Array = all().map(|(_, offset)| Some(offset)).collect();
    if offsets.is_empty() {
        return Ok(None);
    }
    let columns: [(&str, ArrayRef); 3] = [
        (column::TOPIC, Arc::new(topics)),
        (column::PARTITION, Arc::new(partitions)),
        (column::OFFSET, Arc::new(offsets)),
    ];
    RecordBatch::try_from_iter(columns).map(Some).context(ErrorKind::Failed, "coordinates are columns")
}
