//! Backfill: an interval of event time derived again, beside the live pipeline and never in its way.
//!
//! The walk is that of a batch: observe, decide, plan, read, shape, apply, commit. What makes it right beside a live run:
//!
//! 1. Of a table's interval only rows take part whose live batch the table already has: its own live `txn` at the version
//!    that is written to says which. Later ones are the live run's to deliver.
//! 2. A table is pinned before anything is read for it, and written by strict compare and swap. Who loses reads and
//!    computes again: the last commit of an interval or a group is always the one that has read most.
//! 3. Application ids are the interval's own, and so is the log: live offsets, plans and transactions are never touched.
//!
//! 4. What topics say again (`--source kafka`) enters bronze only, by record; everything else is derived from bronze.
//!
//! 5. A row that leaves a table has a letter, also one of a live batch that came between the letters and the table: what the
//!    letters have not seen of it is added when all tables are written.
//!
//! 6. When all tables are written, the letters of records that are in them now are marked as replayed; until then nobody
//!    replays letters, because the run is known to be under way.
//!
//! How each table is written: an upsert takes the rows as from any batch (the newest by `order_by` wins; an equal row is
//! replaced, so that changed SQL shows); an append table has the interval's rows replaced; a refresh table has the groups
//! recomputed that the interval touches; dead letters are added where their id is not there yet.

mod apply;
mod derive;
mod late;
mod lineage;
mod ranges;
mod records;
mod reread;
mod settle;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tracing::debug;

pub use lineage::{Lineage, choose, choose_from_topics, is_bronze, lineage};

use self::derive::{Cache, Window};
use super::clock::Clock;
use super::shaping::check_budget;
use super::{MAX_LOOKS, app_id};
use crate::checkpoint::CheckpointLog;
use crate::checkpoint::backfills::{IntervalLog, Planned};
use crate::config::spec::PipelineSpec;
use crate::error::{Certainty, Error, ErrorKind, Result};
use crate::fail;
use crate::model::backfill::{BackfillPlan, BackfillRecord, Decision, Request, decide};
use crate::model::batch::{BatchId, BatchPlan, FORMAT_VERSION, Owner, Receipt};
use crate::model::interval::Interval;
use crate::model::offset::OffsetRanges;
use crate::source::Source;
use crate::table::{BESIDE, Lookup, Table, Txn};
use crate::transform::Transform;
use crate::transform::decode::added::{BATCH_ID, INGESTED_AT};

/// A live batch that is under way is let go first, as long as this; only once, for its run may have died.
const COURTESY: Duration = Duration::from_secs(10);
const COURTESY_STEP: Duration = Duration::from_millis(50);

/// What a backfill of one interval is made of.
pub struct Parts {
    /// The pipeline.
    pub spec: Arc<PipelineSpec>,
    /// Identity of the live log.
    pub pipeline_id: String,
    /// This process.
    pub owner: Owner,
    /// Rows in, rows out.
    pub transform: Arc<dyn Transform>,
    /// Handles of its own: nothing that the live run or another interval knows.
    pub tables: Vec<Box<dyn Table>>,
    /// By name, where topics are read again.
    pub sources: BTreeMap<String, Box<dyn Source>>,
    /// By lookup name.
    pub lookups: BTreeMap<String, Box<dyn Lookup>>,
    /// The live log; only read.
    pub live: Box<dyn CheckpointLog>,
    /// The interval's own log.
    pub log: IntervalLog,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// One writer a table in this process: others would only cost each other a try.
    pub turns: Arc<Turns>,
    /// Whether whoever planned a batch is still at work, as far as this host can tell.
    pub is_alive: fn(&Owner, &Owner) -> bool,
}

/// Whose turn it is to write, by table.
#[derive(Debug, Default)]
pub struct Turns(BTreeMap<String, Arc<Mutex<()>>>);

impl Turns {
    /// For these tables.
    pub fn of<'a>(tables: impl IntoIterator<Item = &'a str>) -> Turns {
        Turns(tables.into_iter().map(|name| (name.to_string(), Arc::default())).collect())
    }

    fn table(&self, name: &str) -> Arc<Mutex<()>> {
        self.0.get(name).cloned().unwrap_or_default()
    }
}

/// What became of an interval.
#[derive(Debug)]
pub enum Done {
    /// It is done already, by the same rules.
    Skipped,
    /// Nothing arrived since it was done.
    Unchanged,
    /// Derived again; with rows or, where the interval has none, without.
    Ran(Box<BackfillRecord>),
}

/// What would become of an interval.
#[derive(Debug)]
pub struct Preview {
    /// What would be done.
    pub decision: Decision,
    /// Rows of the interval that would take part, over all bronze tables, as they are.
    pub rows: u64,
    /// Offsets that would be read again.
    pub offsets: Option<i64>,
}

/// One interval on its way.
pub struct Backfill {
    parts: Parts,
    interval: Interval,
    cache: Cache,
    /// Last run applied, by table, as observed.
    applied: BTreeMap<String, Option<BatchId>>,
    /// The live batches that took part, by table.
    caps: BTreeMap<String, Option<BatchId>>,
    /// Rows that broke each rule, as `table.rule`.
    broken: BTreeMap<String, u64>,
    /// Live batches that were waited for long enough.
    waited: BTreeSet<BatchId>,
}

impl Backfill {
    /// Of an interval that nothing is known of yet.
    pub fn new(parts: Parts, interval: Interval) -> Backfill {
        Backfill {
            parts,
            interval,
            cache: Cache::default(),
            applied: BTreeMap::new(),
            caps: BTreeMap::new(),
            broken: BTreeMap::new(),
            waited: BTreeSet::new(),
        }
    }

    /// Derives the interval again. Looks again after a failure that may have been applied.
    pub async fn run(&mut self, request: &Request) -> Result<Done> {
        let mut looks = 0;
        loop {
            match self.walk(request).await {
                Ok(done) => return Ok(done),
                Err(error) => {
                    self.cache = Cache::default();
                    looks += 1;
                    if error.certainty() == Certainty::NotApplied || looks >= MAX_LOOKS {
                        return Err(error);
                    }
                    debug!(interval = %self.interval, %error, "a step failed and may have been applied; looking again");
                }
            }
        }
    }

    /// What `run` would do; writes nothing.
    pub async fn preview(&mut self, request: &Request) -> Result<Preview> {
        let head = self.parts.log.head().await?;
        let decision = self.decide(request, &head).await?;
        let (since, reread) = match &decision {
            Decision::Begin { since, tables, .. } => (*since, self.ranges(tables, request).await?),
            Decision::Replay(plan) => (plan.since, plan.reread.clone()),
            Decision::Skip => (None, None),
        };
        let after = since.and(head.record.map(|record| record.started_at));
        let rows = self.count(&request.tables, Window { since, after, upto: Some(BatchId::MAX) }).await?;
        let offsets = reread.map(|reread| reread.sources.values().map(OffsetRanges::len).sum());
        Ok(Preview { decision, rows, offsets })
    }

    async fn walk(&mut self, request: &Request) -> Result<Done> {
        fail::hit(fail::OBSERVE)?;
        let head = self.parts.log.head().await?;
        self.give_way().await?;
        let plan = match self.decide(request, &head).await? {
            Decision::Skip => return Ok(Done::Skipped),
            Decision::Replay(plan) => *plan,
            Decision::Begin { run, since, tables, unfinished } => {
                let after = since.and(head.record.as_ref().map(|record| record.started_at));
                let window = Window { since, after, upto: Some(BatchId::MAX) };
                if since.is_some() && self.count(&tables, window).await? == 0 {
                    return Ok(Done::Unchanged);
                }
                self.plan(request, run, window, tables, unfinished).await?
            }
        };
        fail::hit(fail::READ)?;
        let mut record = BackfillRecord {
            version: FORMAT_VERSION,
            run: plan.run,
            pipeline: plan.pipeline.clone(),
            interval: self.interval,
            mode: plan.mode,
            tables: plan.tables.clone(),
            receipts: BTreeMap::new(),
            through: None,
            reread: plan.reread.clone(),
            recipe: plan.recipe.clone(),
            input_rows: 0,
            dead_letters: 0,
            settles: true,
            settled_letters: 0,
            unsettled: settle::unsettled(&self.parts.spec, &plan, head.record.as_ref()),
            expectations: BTreeMap::new(),
            started_at: plan.batch_time,
            committed_at: plan.batch_time,
            owner: self.parts.owner.clone(),
        };
        self.restore(&plan, &mut record).await?;
        record.input_rows = self.count(&plan.tables, Window::all(&plan)).await?;
        // Without rows nothing is replaced: bronze may have let an old day go, and the tables are all that is left of it.
        if record.input_rows > 0 || !plan.unfinished.is_empty() || !self.cache.homeless.dead.is_empty() {
            fail::hit(fail::SHAPE)?;
            self.apply_all(&plan, &mut record).await?;
            self.settle(&plan, &mut record).await?;
        } else {
            self.note_caps(&plan).await?;
        }
        record.through = self.caps.values().min().copied().flatten();
        record.committed_at = self.parts.clock.now();
        let order: Vec<String> = self.parts.spec.tables.iter().map(|table| table.name.clone()).collect();
        let record = record.following(head.record.as_ref(), &order);
        fail::hit(fail::COMMIT)?;
        self.parts.log.commit(&record).await?;
        fail::hit(fail::COMMITTED)?;
        if let Err(error) = self.parts.log.prune().await {
            debug!(%error, "old runs stay; the next clean-up tries again");
        }
        let now = self.parts.clock.now();
        for table in &mut self.parts.tables {
            table.tidy_log(now).await;
        }
        Ok(Done::Ran(Box::new(record)))
    }

    /// What happens, by the log and by what the tables carry.
    async fn decide(&mut self, request: &Request, head: &crate::model::backfill::IntervalHead) -> Result<Decision> {
        let mut tables = request.tables.clone();
        tables.extend(head.pending().into_iter().flat_map(|plan| plan.tables.clone()));
        tables.extend(self.parts.spec.tables.iter().filter(|table| is_bronze(table)).map(|table| table.name.clone()));
        self.applied.clear();
        for name in tables {
            if !self.applied.contains_key(&name) && lineage::find(&self.parts.spec, &name).is_some() {
                let app_id = self.app_id(&name);
                let applied = self.table(&name)?.pin(&app_id).await?.applied;
                self.applied.insert(name, applied);
            }
        }
        let order: Vec<String> = self.parts.spec.tables.iter().map(|table| table.name.clone()).collect();
        let applied = self.applied.values().copied().flatten().max();
        let mut decision = decide(request, head, applied, &order);
        if let (Decision::Begin { tables, .. }, None) = (&mut decision, request.slack) {
            // A run that read topics again and was never finished may have named what this one takes as it is.
            tables.retain(|name| !lineage::find(&self.parts.spec, name).is_some_and(is_bronze));
        }
        Ok(decision)
    }

    /// Makes the intent durable.
    async fn plan(
        &mut self,
        request: &Request,
        run: BatchId,
        window: Window,
        tables: Vec<String>,
        unfinished: Vec<BatchId>,
    ) -> Result<BackfillPlan> {
        let reread = self.ranges(&tables, request).await?;
        let mut pinned = BTreeMap::new();
        for (name, lookup) in &mut self.parts.lookups {
            if let Some(version) = lookup.latest().await? {
                pinned.insert(name.clone(), version);
            }
        }
        let plan = BackfillPlan {
            version: FORMAT_VERSION,
            run,
            pipeline: self.parts.spec.name.clone(),
            interval: self.interval,
            mode: request.mode,
            since: window.since,
            since_time: window.after,
            reread,
            tables,
            unfinished,
            batch_time: self.parts.clock.now(),
            pinned,
            recipe: request.recipe.clone(),
            owner: self.parts.owner.clone(),
        };
        fail::hit(fail::PLAN)?;
        match self.parts.log.plan(&plan).await? {
            Planned::Ours => Ok(plan),
            Planned::Taken(winner) => {
                let Owner { host, pid, .. } = &winner.owner;
                let text = format!("another backfill works on {}: pid {pid} on host {host}", self.interval);
                Err(Error::new(ErrorKind::Busy, text)
                    .help("this one wrote nothing; let the other finish and run again"))
            }
        }
    }

    /// Rows of the interval in the bronze tables of `tables` that came with the batches of the window. Reads two columns.
    async fn count(&mut self, tables: &[String], window: Window) -> Result<u64> {
        let mut seen = BTreeSet::new();
        let mut count = 0;
        for name in tables {
            let Ok(lineage) = self.lineage(name) else { continue };
            if !seen.insert(lineage.bronze.clone()) {
                continue;
            }
            let span = self.span(&lineage.event_time);
            let kept = self.parts.transform.schema(&lineage.bronze);
            let names = [BATCH_ID, INGESTED_AT].into_iter().filter(|name| kept.column_with_name(name).is_some());
            let names: Vec<String> = names.map(str::to_string).collect();
            for batch in self.table(&lineage.bronze)?.read_span(&names, &span).await? {
                count += window.mask(&batch)?.true_count() as u64;
            }
        }
        Ok(count)
    }

    fn app_id(&self, table: &str) -> String {
        format!("{}{BESIDE}{}", self.live_app_id(table), self.interval.key())
    }

    fn live_app_id(&self, table: &str) -> String {
        app_id(&self.parts.pipeline_id, table)
    }

    /// Of a commit that rows of live batches up to `through` took part in.
    fn txn(&self, table: &str, plan: &BackfillPlan, through: Option<BatchId>) -> Txn {
        let note = serde_json::json!({ "tidegate": {
            "pipeline": plan.pipeline,
            "pipelineId": self.parts.pipeline_id,
            "backfill": { "interval": plan.interval, "run": plan.run, "mode": plan.mode, "recipe": plan.recipe,
                "through": through },
        }});
        Txn { app_id: self.app_id(table), batch: plan.run, user_metadata: note.to_string() }
    }

    fn table(&mut self, name: &str) -> Result<&mut Box<dyn Table>> {
        let table = self.parts.tables.iter_mut().find(|table| table.definition().name == name);
        table.ok_or_else(|| Error::failed(format!("table {name} is not part of the run")))
    }

    /// Lets the live batch that is under way finish first, not those after it. Without this a backfill of many short commits
    /// would win against a run whose one commit takes longer to prepare, again and again.
    ///
    /// Under positions that are being moved, or letters that are being replayed, nothing is derived: some tables have lost or
    /// got rows that others still have to.
    async fn give_way(&mut self) -> Result<()> {
        let mut left = COURTESY;
        let mut first = None;
        loop {
            let head = self.parts.live.head().await?;
            let done = head.commit.map(|record| record.batch);
            let Some(plan) = head.plan.filter(|plan| done.is_none_or(|done| done < plan.batch)) else { return Ok(()) };
            let is_another = *first.get_or_insert(plan.batch) != plan.batch;
            if !(self.parts.is_alive)(&plan.owner, &self.parts.owner) || left.is_zero() {
                self.waited.insert(plan.batch);
            }
            match (plan.is_by_hand(), self.waited.contains(&plan.batch)) {
                (true, true) => return Err(half_done(&plan)),
                (false, is_waited) if is_waited || is_another => return Ok(()),
                _ => {}
            }
            tokio::time::sleep(COURTESY_STEP).await;
            left = left.saturating_sub(COURTESY_STEP);
        }
    }

    /// The live batches whose rows the table has, or, where the live run does not know the table yet, has finished: a table
    /// that joins later is filled by a backfill, and the run goes on from where it stands.
    async fn cap(&mut self, applied: Option<BatchId>) -> Result<Option<BatchId>> {
        match applied {
            Some(applied) => Ok(Some(applied)),
            None => Ok(self.parts.live.head().await?.commit.map(|record| record.batch)),
        }
    }

    async fn note_caps(&mut self, plan: &BackfillPlan) -> Result<()> {
        for name in &plan.tables {
            let app_id = self.live_app_id(name);
            let applied = self.table(name)?.pin(&app_id).await?.applied;
            let cap = self.cap(applied).await?;
            self.caps.insert(name.clone(), cap);
        }
        Ok(())
    }

    fn check_budget(&self, dead_letters: u64, input_rows: u64) -> Result<()> {
        check_budget(self.parts.spec.dead_letters.as_ref(), dead_letters, input_rows)
    }
}

fn half_done(plan: &BatchPlan) -> Error {
    let what = match (plan.is_move(), plan.letters.is_some()) {
        (true, _) => "moves positions",
        (_, true) => "settles dead letters",
        _ => "forgets rows",
    };
    let text = format!("batch {} {what}, and is not finished: no day can be derived under it", plan.batch);
    Error::new(ErrorKind::Busy, text)
        .with("begun by", format!("pid {} on host {}", plan.owner.pid, plan.owner.host))
        .help("finish it first: tidegate run FILE --trigger once")
}

/// Over all tables: rows added, changed and removed.
pub fn totals(receipts: &BTreeMap<String, Receipt>) -> (u64, u64, u64) {
    receipts.values().fold((0, 0, 0), |(inserted, updated, deleted), receipt| {
        (inserted + receipt.inserted, updated + receipt.updated, deleted + receipt.deleted)
    })
}
