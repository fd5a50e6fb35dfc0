//! How a plan becomes the batch: what an operator wants is written down as a plan that reads nothing from a source, and
//! whoever puts a plan into the log first owns its batch.

use std::collections::BTreeMap;
use std::time::Instant;

use super::event::Event;
use super::step::Phases;
use super::{Runner, meaning, recipe};
use crate::checkpoint::Claim;
use crate::error::{Code, Error, ErrorKind, Result};
use crate::fail;
use crate::model::batch::{BatchId, BatchPlan, CommitRecord, FORMAT_VERSION, Owner};

impl Runner {
    /// A plan that reads and does nothing: the rest is added by the caller.
    pub(super) async fn empty_plan(&mut self, batch: BatchId) -> Result<BatchPlan> {
        Ok(BatchPlan {
            version: FORMAT_VERSION,
            batch,
            pipeline: self.parts.spec.name.clone(),
            batch_time: self.parts.clock.now(),
            sources: BTreeMap::new(),
            skipped: BTreeMap::new(),
            moved: BTreeMap::new(),
            letters: None,
            forget: None,
            rebuild: Vec::new(),
            since: BTreeMap::new(),
            lost: BTreeMap::new(),
            // The topics stay those that the rest of the position belongs to.
            incarnations: BTreeMap::new(),
            watermarks: BTreeMap::new(),
            pinned: self.pins().await?,
            meaning: meaning(&self.parts.spec),
            recipe: recipe(&self.parts.spec),
            owner: self.parts.owner.clone(),
        })
    }

    /// The versions of lookups that a batch planned now works with.
    pub(super) async fn pins(&mut self) -> Result<BTreeMap<String, i64>> {
        let mut pinned = BTreeMap::new();
        for (name, lookup) in &mut self.parts.lookups {
            if let Some(version) = lookup.latest().await? {
                pinned.insert(name.clone(), version);
            }
        }
        Ok(pinned)
    }

    /// Makes a plan durable; the inner error is the plan of another runner, which was first.
    pub(super) async fn try_claim(&mut self, plan: BatchPlan) -> Result<Result<BatchPlan, Box<BatchPlan>>> {
        fail::hit(fail::PLAN)?;
        let plan = match self.parts.log.plan(&plan).await? {
            Claim::Claimed => plan,
            // Our own plan can be there already: a put whose reply was lost. What it says counts.
            Claim::Taken(winner) if winner.owner.run_id == plan.owner.run_id => *winner,
            Claim::Taken(winner) => return Ok(Err(winner)),
        };
        self.emit(Event::Planned(Box::new(plan.clone())));
        Ok(Ok(plan))
    }

    /// The same; to come second is an error.
    pub(super) async fn claim(&mut self, plan: BatchPlan) -> Result<BatchPlan> {
        self.try_claim(plan).await?.map_err(|winner| taken(&winner))
    }

    /// Claims a plan that an operator made, and carries it through.
    pub(super) async fn carry_by_hand(&mut self, plan: BatchPlan, started: Instant) -> Result<CommitRecord> {
        let plan = self.claim(plan).await?;
        self.carry_through(plan, false, Phases::default(), started, &BTreeMap::new()).await
    }
}

/// The error of whoever comes second.
pub(super) fn taken(winner: &BatchPlan) -> Error {
    let Owner { run_id, host, pid } = &winner.owner;
    Error::new(
        ErrorKind::Busy,
        format!(
            "another runner owns pipeline `{}`: batch {} was planned by pid {pid} on host {host} at {}",
            winner.pipeline,
            winner.batch,
            winner.batch_time.to_rfc3339()
        ),
    )
    .coded(Code::PlanTaken)
    .with("its run", run_id)
    .help("this runner wrote nothing; stop one of the two, or let the other finish and run again")
}
