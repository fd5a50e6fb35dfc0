//! One walk: bound, plan, read, shape, apply, commit. See the crate documentation for the picture.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use tracing::{debug, info_span};

use super::bronze::{BRONZE, Delivered};
use super::event::{Event, Finished};
use super::forget::removed_and_added;
use super::keeping::with_state;
use super::letters::Known;
use super::refresh::Upstream;
use super::shaping::{Rows, Shaping, dead_letters_come_first, deferred};
use super::{KEEP_BATCHES, PRUNE_EVERY, Position, Runner, Stepped, app_id};
use crate::config::spec::{From, OnDataLoss, SourceKind, TableSpec, WriteSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::fail;
use crate::model::batch::{BatchId, BatchPlan, CommitRecord, FORMAT_VERSION, Receipt};
use crate::model::loss::Lost;
use crate::model::note::Note;
use crate::model::offset::{Incarnations, OffsetRanges, Offsets, Partition, Range};
use crate::model::recover::{Decision, TableFact};
use crate::source::{Bounded, Limits};
use crate::table::{Change, Txn};
use crate::transform::{BatchContext, Inputs};

/// Wall time per phase of a batch, in milliseconds.
#[derive(Default)]
pub(super) struct Phases(BTreeMap<String, u64>);

impl Phases {
    fn add(&mut self, phase: &str, since: Instant) {
        *self.0.entry(phase.to_string()).or_default() += since.elapsed().as_millis() as u64;
    }
}

impl Runner {
    /// Walks one batch from the observed position; the caller has observed.
    pub(super) async fn walk(&mut self, ends: &BTreeMap<String, Offsets>) -> Result<Stepped> {
        let started = Instant::now();
        let mut phases = Phases::default();
        let decision = match &self.position {
            Some(position) => position.decision.clone(),
            None => return Err(Error::failed("a batch was started before its position was observed")),
        };
        let (plan, replayed) = match decision {
            Decision::Replay(plan) => (*plan, true),
            Decision::Begin => match self.plan(0, ends, &mut phases).await? {
                Some(plan) => (plan, false),
                None => return Ok(self.idle()),
            },
            Decision::Plan { batch } => match self.next_plan(batch, ends, &mut phases).await? {
                Some(plan) => (plan, false),
                None => return Ok(self.idle()),
            },
            Decision::Halt(why) => return Err(Error::config(why.to_string()).coded(super::code(&why))),
        };
        let record = self.carry_through(plan, replayed, phases, started, ends).await?;
        Ok(Stepped::Ran(Box::new(record)))
    }

    /// From a durable plan to the position after it.
    pub(super) async fn carry_through(
        &mut self,
        plan: BatchPlan,
        replayed: bool,
        phases: Phases,
        started: Instant,
        ends: &BTreeMap<String, Offsets>,
    ) -> Result<CommitRecord> {
        let span = info_span!("batch", pipeline = %plan.pipeline, id = plan.batch);
        let record = tracing::Instrument::instrument(self.finish(&plan, phases, started), span).await?;
        self.close_forget(&plan, &record).await?;
        self.advance(&plan, record.clone())?;
        let lag = self.lag(ends);
        let finished = Finished { plan, record: record.clone(), replayed, lag };
        self.emit(Event::Committed(Box::new(finished)));
        fail::hit(fail::COMMITTED)?;
        if record.batch > 0
            && record.batch % fail::often(PRUNE_EVERY, 2) == 0
            && let Err(error) = self.prune().await
        {
            debug!(%error, "old checkpoint objects stay; the next clean-up tries again");
        }
        Ok(record)
    }

    async fn prune(&mut self) -> Result<()> {
        fail::hit(fail::PRUNE)?;
        self.parts.log.prune(fail::often(KEEP_BATCHES, 2)).await
    }

    fn idle(&mut self) -> Stepped {
        self.emit(Event::Idle);
        Stepped::Idle
    }

    /// Tables that join the pipeline catch up first, in a batch of their own.
    async fn next_plan(
        &mut self,
        batch: BatchId,
        ends: &BTreeMap<String, Offsets>,
        phases: &mut Phases,
    ) -> Result<Option<BatchPlan>> {
        self.ensure_keeping(&[], None).await?;
        let newcomers = self.newcomers();
        match newcomers.is_empty() {
            true => self.plan(batch, ends, phases).await,
            false => self.rebuild_plan(batch, newcomers).await.map(Some),
        }
    }

    /// Bounds the next batch and makes its plan durable; `None` when there is nothing to read.
    async fn plan(
        &mut self,
        batch: BatchId,
        ends: &BTreeMap<String, Offsets>,
        phases: &mut Phases,
    ) -> Result<Option<BatchPlan>> {
        let bounding = Instant::now();
        fail::hit(fail::BOUND)?;
        let (bounded, waiting) = self.bound(ends).await?;
        let sources: BTreeMap<String, OffsetRanges> =
            bounded.iter().map(|(name, bounded)| (name.clone(), bounded.ranges.clone())).collect();
        // A position that a loss moved is made durable at once, or what is appended meanwhile could pass for lost too.
        let is_moved = bounded.values().flat_map(|bounded| &bounded.lost).any(|loss| !loss.is_gone());
        let batch_time = self.parts.clock.now();
        let has_rows = !sources.values().all(OffsetRanges::is_empty);
        let watermarks = self.watermarks(batch_time, &waiting);
        if !has_rows && !is_moved && !watermarks.closes {
            return Ok(None);
        }
        let nothing = self.empty_plan(batch).await?;
        phases.add("latestOffset", bounding);
        let planning = Instant::now();
        let plan = BatchPlan {
            batch_time,
            skipped: self.skipped(&sources),
            lost: lost(&bounded),
            incarnations: incarnations(bounded),
            sources,
            watermarks: watermarks.by_table,
            ..nothing
        };
        let plan = self.claim(plan).await?;
        phases.add("walCommit", planning);
        Ok(Some(plan))
    }

    /// What the next batch would read, from the position towards `ends` and within the limits, and the sources that have
    /// records for it: whoever is asked to stop while it waits for room reads none of them.
    async fn bound(
        &mut self,
        ends: &BTreeMap<String, Offsets>,
    ) -> Result<(BTreeMap<String, Bounded>, BTreeSet<String>)> {
        let limits = Limits { max_rows: self.parts.spec.max_rows, max_bytes: self.parts.spec.max_bytes };
        let (mut bounded, mut waiting) = (BTreeMap::new(), BTreeSet::new());
        let Some(position) = &self.position else { return Ok((bounded, waiting)) };
        for (name, source) in &mut self.parts.sources {
            let Some(end) = ends.get(name) else { continue };
            let mut from = position.offsets.get(name).cloned().unwrap_or_default();
            let new = end.0.keys().any(|partition| !from.0.contains_key(partition));
            if new {
                let earliest = source.earliest().await?;
                for (partition, &offset) in earliest.0.iter().filter(|(partition, _)| end.0.contains_key(partition)) {
                    from.0.entry(partition.clone()).or_insert(offset);
                }
            }
            let known = position.incarnations.get(name).cloned().unwrap_or_default();
            let next = source.bound(&from, &known, end, limits).await?;
            if !next.ranges.is_empty() || next.is_refused {
                waiting.insert(name.clone());
            }
            bounded.insert(name.clone(), next);
        }
        Ok((bounded, waiting))
    }

    /// Where the sources did not start at the position. They only do that when `on_data_loss: skip` allows it.
    fn skipped(&self, sources: &BTreeMap<String, OffsetRanges>) -> BTreeMap<String, OffsetRanges> {
        let mut skipped = BTreeMap::new();
        for (name, ranges) in sources {
            let kafka = self.parts.spec.sources.get(name).map(|source| &source.kind);
            let allowed = matches!(kafka, Some(SourceKind::Kafka(kafka)) if kafka.on_data_loss == OnDataLoss::Skip);
            let position = self.position.as_ref().and_then(|position| position.offsets.get(name));
            let (true, Some(position)) = (allowed, position) else { continue };
            let moved = ranges.0.iter().filter_map(|(partition, range)| {
                let was = *position.0.get(partition)?;
                (was != range.from).then(|| (partition.clone(), Range { from: was, until: range.from }))
            });
            let moved: BTreeMap<Partition, Range> = moved.collect();
            if !moved.is_empty() {
                skipped.insert(name.clone(), OffsetRanges(moved));
            }
        }
        skipped
    }

    /// Reads, shapes, applies and commits a planned batch.
    async fn finish(&mut self, plan: &BatchPlan, mut phases: Phases, started: Instant) -> Result<CommitRecord> {
        // Before anything is written: a plan that does not continue the position goes no further.
        let offsets = self.offsets_after(plan)?;
        let reading = Instant::now();
        fail::hit(fail::READ)?;
        let Delivered { records, held, lost } = self.records_of(plan).await?;
        let replayed_from = held.as_ref().map(|_| BRONZE.to_string());
        phases.add("getBatch", reading);

        let shaping_started = Instant::now();
        fail::hit(fail::SHAPE)?;
        let lookups = self.load_lookups(plan).await?;
        let again = [plan.rebuild.as_slice(), &self.left_out].concat();
        self.ensure_keeping(&again, plan.forget.as_ref().map(|_| plan.batch)).await?;
        let passed_by = self.passed_by(plan);
        let mut keeping = self.keeping.take().unwrap_or_default();
        keeping.leave_out(&passed_by);
        let mut shaping = if let Some(letters) = &plan.letters {
            let mut shaping = self.shape_letters(plan, letters, &lookups).await?.remembering(keeping, plan);
            if plan.has_rows() {
                let (spec, transform) = (self.parts.spec.clone(), self.parts.transform.clone());
                let lookups = lookups.clone();
                shaping = blocking(move || {
                    shaping.compute_remembering(&spec, &*transform, &lookups)?;
                    Ok(shaping)
                })
                .await?;
            }
            shaping
        } else if plan.is_by_hand() {
            let mut shaping = Shaping::empty(&BatchContext::live(plan)).remembering(keeping, plan);
            shaping.forgotten = self.key_of(plan).await?;
            shaping.forget_in_states(&*self.parts.transform, plan)?;
            shaping
        } else {
            let (spec, transform) = (self.parts.spec.clone(), self.parts.transform.clone());
            let (plan, lookups) = (plan.clone(), lookups.clone());
            blocking(move || Shaping::compute(&spec, &*transform, &plan, records, held, &lookups, keeping)).await?
        };
        phases.add("shape", shaping_started);

        let applying = Instant::now();
        let receipts = self.apply_all(plan, &mut shaping, &lookups).await?;
        phases.add("addBatch", applying);

        let committing = Instant::now();
        fail::hit(fail::COMMIT)?;
        let record = CommitRecord {
            version: FORMAT_VERSION,
            batch: plan.batch,
            pipeline: plan.pipeline.clone(),
            offsets,
            incarnations: self.incarnations_after(plan),
            lost,
            next_watermarks: std::mem::take(&mut shaping.next_watermarks),
            tables: receipts,
            input_rows: shaping.input_rows,
            input_bytes: shaping.input_bytes,
            dead_letters: shaping.dead_letters,
            expectations: std::mem::take(&mut shaping.expectations),
            replayed_from,
            finished_by: (plan.owner.run_id != self.parts.owner.run_id).then(|| self.parts.owner.clone()),
            duration_ms: {
                phases.add("triggerExecution", started);
                phases.0
            },
            committed_at: self.parts.clock.now(),
        };
        self.parts.log.commit(&record).await?;
        self.keep(std::mem::take(&mut shaping.keeping), &record).await;
        debug!(milliseconds = committing.elapsed().as_millis() as u64, "commit record written");
        Ok(record)
    }

    /// Applies every table in graph order; dead letters first, or last where a table that is shaped late may add to them.
    async fn apply_all(
        &mut self,
        plan: &BatchPlan,
        shaping: &mut Shaping,
        lookups: &HashMap<String, Rows>,
    ) -> Result<BTreeMap<String, Receipt>> {
        let late = deferred(&self.parts.spec, &*self.parts.transform);
        let mut receipts = BTreeMap::new();
        self.check_all(plan, shaping).await?;
        // What is computed again may set rows aside that were not before.
        let dead_letters_first =
            plan.rebuild.is_empty() && dead_letters_come_first(&self.parts.spec, &*self.parts.transform);
        if dead_letters_first {
            self.apply_dead_letters(plan, shaping, &mut receipts).await?;
        }
        for index in 0..self.parts.spec.tables.len() {
            let table = self.parts.spec.tables[index].clone();
            // Nothing follows a refresh table but what reads it whole: once it carries the batch, no rows are wanted of it.
            if matches!(table.write, WriteSpec::Refresh { .. }) && self.carries(&table.name, plan) {
                self.followed.remove(&table.name);
                let receipt = self.apply(&table.name, Change::Rows(Vec::new()), plan).await?;
                receipts.insert(table.name.clone(), receipt);
                continue;
            }
            if let (WriteSpec::Refresh { by }, From::Table(upstream)) = (&table.write, &table.from) {
                let carrier = receipts.get(upstream).filter(|receipt| !receipt.already_applied);
                let upstream = Upstream { name: upstream, carrier: carrier.map(|receipt| receipt.delta_version) };
                let receipt = self.refresh(&table, by, upstream, plan, shaping, lookups).await?;
                receipts.insert(table.name.clone(), receipt);
                let later = &self.parts.spec.tables[index + 1..];
                let late = later.iter().filter(|table| late.contains(&table.name)).collect::<Vec<_>>();
                shaping.release(&table.name, &late);
                continue;
            }
            // Without a batch there is nothing to shape.
            if late.contains(&table.name) && plan.has_rows() {
                self.shape_deferred(&table, None, shaping, lookups).await?;
            }
            let is_rebuilt = plan.rebuild.contains(&table.name) && table.keeps.is_some();
            let windows = match is_rebuilt {
                true => Some(self.computed_again(&table, plan, shaping, lookups).await?),
                false => shaping.windows(&table, &*self.parts.transform)?,
            };
            let rows = shaping.rows_of(&table.name);
            let later = &self.parts.spec.tables[index + 1..];
            shaping.release(&table.name, &later.iter().filter(|table| late.contains(&table.name)).collect::<Vec<_>>());
            let state = self.save_state(&table, plan, shaping).await?;
            let change = match windows {
                Some(windows) if is_rebuilt || plan.forget.is_none() => windows,
                _ if plan.forget.is_some() => self.removal(&table.name, plan, shaping.forgotten.as_ref()).await?,
                _ => self.without_rows_after(&table.name, plan, rows),
            };
            let file = state.as_ref().map(|(file, _)| file.as_str());
            let receipt = self.apply_with(&table.name, change, plan, file).await?;
            receipts.insert(table.name.clone(), with_state(receipt, state));
        }
        if !dead_letters_first {
            self.apply_dead_letters(plan, shaping, &mut receipts).await?;
        }
        Ok(receipts)
    }

    /// Rows that a table would refuse are better found while no table carries the batch: the file can still be changed.
    async fn check_all(&mut self, plan: &BatchPlan, shaping: &mut Shaping) -> Result<()> {
        let names = self.parts.spec.tables.iter().map(|table| table.name.clone());
        let names: Vec<String> = names.filter(|name| shaping.has(name)).collect();
        for name in &names {
            if !self.carries(name, plan) {
                let rows = Change::Rows(shaping.rows_of(name));
                self.table(name)?.check(&rows).await.map_err(|error| error.with("table", name))?;
            }
        }
        Ok(())
    }

    async fn apply_dead_letters(
        &mut self,
        plan: &BatchPlan,
        shaping: &mut Shaping,
        receipts: &mut BTreeMap<String, Receipt>,
    ) -> Result<()> {
        let Some(dead_letters) = self.parts.spec.dead_letters.clone() else { return Ok(()) };
        let rows = shaping.take_dead();
        let change = match shaping.settled.take() {
            // Once it carries the batch, nobody asks what would change.
            Some(settled) if !self.carries(&dead_letters.table, plan) => self.settle(settled, rows).await?,
            _ if plan.forget.is_some() => {
                let removal = self.removal(&dead_letters.table, plan, shaping.forgotten.as_ref()).await?;
                match self.carries(&dead_letters.table, plan) {
                    true => removal,
                    // Without the rows that went, others may have come too late.
                    false => removed_and_added(removal, self.unknown_letters(rows, Known::Any).await?),
                }
            }
            _ if !plan.rebuild.is_empty() && !self.carries(&dead_letters.table, plan) => {
                let rows = self.unknown_letters(rows, Known::Any).await?;
                self.without_rows_after(&dead_letters.table, plan, rows)
            }
            _ => self.without_rows_after(&dead_letters.table, plan, rows),
        };
        let receipt = self.apply(&dead_letters.table, change, plan).await?;
        receipts.insert(dead_letters.table, receipt);
        Ok(())
    }

    /// Reads what a deferred table needs and shapes it.
    pub(super) async fn shape_deferred(
        &mut self,
        table: &TableSpec,
        groups: Option<&arrow::record_batch::RecordBatch>,
        shaping: &mut Shaping,
        lookups: &HashMap<String, Rows>,
    ) -> Result<()> {
        let mut inputs =
            Inputs { batch: shaping.batch_of(&table.from), tables: HashMap::new(), lookups: lookups.clone() };
        let transform = self.parts.transform.clone();
        for (name, columns) in &transform.reads(&table.name).tables {
            // Only the table that the groups come from is narrowed to them; others are read whole.
            let is_upstream = table.from == From::Table(name.clone());
            let rows = match groups {
                Some(groups) => self.table(name)?.read_newest(columns, is_upstream.then_some(groups)).await?,
                None => self.table(name)?.read(columns, None).await?,
            };
            inputs.tables.insert(name.clone(), Arc::new(rows));
        }
        let spec = self.parts.spec.clone();
        let name = table.name.clone();
        let nothing = Shaping::empty(&shaping.context);
        let mut taken = std::mem::replace(shaping, nothing);
        let (back, outcome) = blocking(move || {
            let outcome = taken.compute_deferred(&spec, &*transform, &name, &inputs);
            Ok((taken, outcome))
        })
        .await?;
        *shaping = back;
        outcome
    }

    /// One table commit, unless the table already carries the batch.
    async fn apply(&mut self, name: &str, change: Change, plan: &BatchPlan) -> Result<Receipt> {
        self.apply_with(name, change, plan, None).await
    }

    /// The same; the commit names the file of what the table remembers.
    async fn apply_with(
        &mut self,
        name: &str,
        change: Change,
        plan: &BatchPlan,
        state: Option<&str>,
    ) -> Result<Receipt> {
        let known = self.position.as_ref().and_then(|position| position.applied.get(name));
        if let Some(TableFact { applied: Some(applied), version, memory, .. }) = known
            && *applied >= plan.batch
        {
            let delta_version = version.unwrap_or_default();
            let memory_version = *memory;
            return Ok(Receipt { delta_version, already_applied: true, memory_version, ..Receipt::default() });
        }
        let mut txn = self.txn(name, plan)?;
        if let Some(state) = state {
            txn.user_metadata = Note::with_state(&txn.user_metadata, state);
        }
        fail::hit(fail::APPLY)?;
        let receipt = self.table(name)?.apply(change, &txn).await.map_err(|error| error.with("table", name))?;
        fail::hit(fail::APPLIED)?;
        self.tell_foreign(name, &receipt.foreign);
        debug!(table = name, version = receipt.delta_version, "table committed");
        Ok(receipt)
    }

    pub(super) fn table(&mut self, name: &str) -> Result<&mut Box<dyn crate::table::Table>> {
        self.parts
            .tables
            .iter_mut()
            .find(|table| table.definition().name == name)
            .ok_or_else(|| Error::failed(format!("table {name} is not part of the run")))
    }

    pub(super) fn txn(&self, table: &str, plan: &BatchPlan) -> Result<Txn> {
        let nowhere = BTreeMap::new();
        let position = self.position.as_ref().map_or(&nowhere, |position| &position.offsets);
        let tables = self.parts.tables.iter().map(|table| table.definition().name.clone()).collect();
        let user_metadata = Note::write(plan, &self.parts.pipeline_id, table, position, tables).map_err(|cause| {
            Error::failed(format!("the note of batch {} could not be written", plan.batch)).caused_by(cause)
        })?;
        Ok(Txn { app_id: app_id(&self.parts.pipeline_id, table), batch: plan.batch, user_metadata })
    }

    async fn load_lookups(&mut self, plan: &BatchPlan) -> Result<HashMap<String, Rows>> {
        let mut rows = HashMap::new();
        for (name, lookup) in &mut self.parts.lookups {
            rows.insert(name.clone(), lookup.load(plan.pinned.get(name).copied()).await?);
        }
        Ok(rows)
    }

    /// The position of every known partition after the batch.
    fn offsets_after(&self, plan: &BatchPlan) -> Result<BTreeMap<String, Offsets>> {
        let position = self.position.as_ref().map(|p| p.offsets.clone()).unwrap_or_default();
        plan.advance(&position).map_err(|why| {
            Error::new(ErrorKind::Config, format!("batch {} does not continue the checkpoint: {why}", plan.batch))
                .help("the checkpoint folder was changed by hand or mixed with another one; restore it from a backup")
                .help("what is wrong with it: tidegate checkpoint verify FILE")
        })
    }

    /// Which topics the positions after the batch belong to. One that is gone for now is remembered.
    fn incarnations_after(&self, plan: &BatchPlan) -> BTreeMap<String, Incarnations> {
        let mut incarnations = self.position.as_ref().map(|p| p.incarnations.clone()).unwrap_or_default();
        for (name, planned) in &plan.incarnations {
            incarnations.entry(name.clone()).or_default().extend(planned.clone());
        }
        incarnations.retain(|_, topics| !topics.is_empty());
        incarnations
    }

    /// Moves the position past a finished batch.
    fn advance(&mut self, plan: &BatchPlan, record: CommitRecord) -> Result<()> {
        let applied = record
            .tables
            .iter()
            .map(|(name, receipt)| {
                let fact = TableFact {
                    version: Some(receipt.delta_version),
                    applied: Some(plan.batch),
                    memory: receipt.memory_version,
                    ..TableFact::default()
                };
                (name.clone(), fact)
            })
            .collect();
        self.position = Some(Position {
            decision: Decision::Plan { batch: plan.batch + 1 },
            offsets: record.offsets.clone(),
            incarnations: record.incarnations.clone(),
            last: Some(record),
            applied,
        });
        Ok(())
    }

    /// Offsets between the position and `ends`, by source.
    pub(super) fn lag(&self, ends: &BTreeMap<String, Offsets>) -> BTreeMap<String, i64> {
        let Some(position) = &self.position else { return BTreeMap::new() };
        let lag = |(name, end): (&String, &Offsets)| {
            let from = position.offsets.get(name)?;
            Some((name.clone(), from.ranges_to(end).len()))
        };
        ends.iter().filter_map(lag).collect()
    }
}

/// Why sources did not start at the position, by source.
fn lost(bounded: &BTreeMap<String, Bounded>) -> BTreeMap<String, Vec<Lost>> {
    let lost = |bounded: &Bounded| bounded.lost.iter().cloned().map(Lost::from).collect::<Vec<_>>();
    let all = bounded.iter().map(|(name, bounded)| (name.clone(), lost(bounded)));
    all.filter(|(_, lost)| !lost.is_empty()).collect()
}

/// Which topics the ranges belong to, by source.
fn incarnations(bounded: BTreeMap<String, Bounded>) -> BTreeMap<String, Incarnations> {
    let all = bounded.into_iter().map(|(name, bounded)| (name, bounded.incarnations));
    all.filter(|(_, topics)| !topics.is_empty()).collect()
}

/// Runs CPU-bound work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(outcome) => outcome,
        Err(panic) => Err(Error::failed("a transform panicked; this is a bug in tidegate or one of its libraries")
            .caused_by(panic)
            .help("the batch was not committed; it is tried again at the next run")),
    }
}
