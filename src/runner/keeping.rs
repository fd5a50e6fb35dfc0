//! What tables remember from batch to batch: loaded with the position, worked on by shaping, saved before the table's
//! commit, named by its note and by the commit record. After any failure it is thrown away and loaded again.

use std::collections::{BTreeMap, BTreeSet};

use arrow::record_batch::RecordBatch;
use chrono::{DateTime, Utc};

use super::above::Above;
use super::rebuild::obstacle;
use super::relocate::reads;
use super::shaping::{Rows, Shaping};
use super::{Runner, remembered};

use crate::checkpoint::states::{STATE_VERSION, Saved, States};
use crate::config::spec::{From, KeepsSpec, TableSpec, WriteSpec};
use crate::error::{Code, Error, ErrorKind, Result};
use crate::fail;
use crate::model::batch::{BatchId, BatchPlan, CommitRecord, Receipt};
use crate::model::watermark::{Clocks, Patience};
use crate::model::window::{EventTime, Micros};
use crate::table::Change;
use crate::transform::stateful::{Stateful, Step, conform, newest_by_partition};
use crate::transform::{DeadLetter, Inputs, Transform, expect, row_json};

/// A file that only holds changes is followed by at most this many others before all entries are written again.
const LONGEST_CHAIN: usize = 24;
/// Changed entries are cheap to keep up to this many, however few entries there are.
const FEW_ENTRIES: u64 = 20_000;
/// Files of attempts that came to nothing stay for this many batches.
const TIDY_AFTER: BatchId = 2;

/// The states of all tables that have one.
#[derive(Default)]
pub(super) struct Keeping(BTreeMap<String, Kept>);

/// One table's state.
struct Kept {
    operator: Box<dyn Stateful>,
    /// As of the last batch that is done; `batch` is -1 before the first.
    saved: Saved,
    /// Its file.
    file: Option<String>,
    /// What the batch in work has made of it.
    working: Option<Working>,
    /// The batch in work passes it by: it is computed afterwards from what is stored.
    left_out: bool,
    above: Above,
}

impl Kept {
    fn new(operator: Box<dyn Stateful>, saved: Saved, file: Option<String>) -> Kept {
        Kept { operator, saved, file, working: None, left_out: false, above: Above::default() }
    }

    /// As far as its time has come, the batch in work included.
    fn reached(&self) -> Option<Micros> {
        self.working.as_ref().map_or(&self.saved, |working| &working.saved).watermark
    }
}

/// The state in the midst of a batch.
struct Working {
    saved: Saved,
    /// Nothing came in and no time passed.
    untouched: bool,
    replaced: Option<RecordBatch>,
    file: Option<String>,
}

impl Keeping {
    /// Whether a table has not been part of a finished batch.
    pub fn is_new(&self, table: &str) -> bool {
        self.0.get(table).is_none_or(|kept| kept.file.is_none() && kept.saved.batch < 0)
    }

    /// The batch in work passes these tables by.
    pub fn leave_out(&mut self, tables: &[String]) {
        for (table, kept) in &mut self.0 {
            kept.left_out = tables.contains(table);
        }
    }

    /// All entries of a table, and the operator that they are of.
    pub fn entries(&mut self, table: &str) -> Result<(Vec<RecordBatch>, &dyn Stateful)> {
        let operator = &mut self.get(table)?.operator;
        Ok((operator.whole()?, &**operator))
    }

    /// A table remembers nothing but `entries` after the batch. They are written whole, so that no older file is needed.
    pub fn replace(
        &mut self,
        table: &str,
        mut empty: Box<dyn Stateful>,
        entries: &[RecordBatch],
        batch: BatchId,
    ) -> Result<()> {
        empty.load(entries)?;
        let kept = self.get(table)?;
        (kept.operator, kept.file) = (empty, None);
        self.settle(table, batch)
    }

    /// Empties a table's memory; returns the batches that closed something without rows to do so.
    pub fn restart(&mut self, table: &str, transform: &dyn Transform) -> Result<BTreeMap<BatchId, Micros>> {
        let kept = self.get(table)?;
        if let Some(operator) = transform.remembers(table)? {
            kept.operator = operator;
        }
        let closings = std::mem::take(&mut kept.saved.closings);
        kept.saved = Saved { meaning: kept.saved.meaning.clone(), ..unsaved(&kept.saved.pipeline_id, table) };
        (kept.file, kept.working) = (None, None);
        Ok(closings)
    }

    /// What was worked in so far is what the table remembers after the batch.
    pub fn settle(&mut self, table: &str, batch: BatchId) -> Result<()> {
        let kept = self.get(table)?;
        let saved = Saved { batch, ..kept.saved.clone() };
        kept.working = Some(Working { saved, untouched: false, replaced: None, file: None });
        Ok(())
    }

    /// Time of the last batch that brought rows.
    pub fn last_rows(&mut self, table: &str) -> Result<Option<Micros>> {
        Ok(self.get(table)?.saved.clocks.last())
    }

    /// The watermarks that were reached, by table.
    pub fn reached(&self) -> BTreeMap<String, DateTime<Utc>> {
        let reached = self.0.iter().filter_map(|(table, kept)| Some((table.clone(), instant(kept.saved.watermark?))));
        reached.collect()
    }

    /// Where the rows of `table` say that time is, but not past what a join above may still bring: its rows are at most `within`
    /// behind its own watermark, whichever of its partitions they come from.
    ///
    /// `planned` has the watermarks of this batch where they are not known otherwise.
    fn flowed(
        &self,
        table: &str,
        clocks: &Clocks,
        patience: Patience,
        now: Micros,
        planned: &BTreeMap<&str, Micros>,
    ) -> Option<Micros> {
        let joins = self.0.get(table).map(|kept| &*kept.above.joins).unwrap_or_default();
        let reached = |join: &str| planned.get(join).copied().or_else(|| self.0.get(join).and_then(Kept::reached));
        let held_back = joins.iter().map(|(join, within)| reached(join).map(|at| at.saturating_sub(*within)));
        // No time at all is before every time.
        std::iter::once(clocks.watermark(patience, now)).chain(held_back).min().flatten()
    }

    fn get(&mut self, table: &str) -> Result<&mut Kept> {
        self.0.get_mut(table).ok_or_else(|| Error::failed(format!("the state of {table} was not loaded")))
    }
}

/// What one batch of the past made of the state: its rows, and the keys that they replace.
pub(super) struct Stepped {
    pub rows: Vec<RecordBatch>,
    pub replaced: Option<RecordBatch>,
}

fn unsaved(pipeline_id: &str, table: &str) -> Saved {
    let (pipeline_id, table) = (pipeline_id.to_string(), table.to_string());
    Saved { version: STATE_VERSION, pipeline_id, table, batch: -1, ..Saved::default() }
}

fn micros(time: DateTime<Utc>) -> Micros {
    time.timestamp_micros()
}

fn instant(micros: Micros) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or(match micros < 0 {
        true => DateTime::<Utc>::MIN_UTC,
        false => DateTime::<Utc>::MAX_UTC,
    })
}

fn patience(keeps: &KeepsSpec) -> Patience {
    let watermark = &keeps.watermark;
    Patience { delay: watermark.delay, idle: watermark.idle, inputs: watermark.columns.len() }
}

/// The watermarks of the next batch, and whether one of them closes something.
pub(super) struct Watermarks {
    pub by_table: BTreeMap<String, DateTime<Utc>>,
    pub closes: bool,
}

impl Runner {
    /// Loads what the tables remember, as the last commit record names it; of those that are computed again only what
    /// closed their windows. `forgetting` is the batch in work, if it forgets.
    pub(super) async fn ensure_keeping(&mut self, rebuilt: &[String], forgetting: Option<BatchId>) -> Result<()> {
        if self.keeping.is_some() {
            return Ok(());
        }
        let mut keeping = Keeping::default();
        let spec = self.parts.spec.clone();
        for table in &spec.tables {
            let (Some(keeps), Some(operator)) = (&table.keeps, self.parts.transform.remembers(&table.name)?) else {
                continue;
            };
            let last = self.position.as_ref().and_then(|position| position.last.as_ref());
            let file = last.and_then(|record| record.tables.get(&table.name)).and_then(|receipt| receipt.state.clone());
            if rebuilt.contains(&table.name) {
                let before = match &file {
                    Some(file) => saved_before(&self.parts.states, &table.name, file).await?,
                    None => Saved::default(),
                };
                let mut closings = before.closings;
                // Without the rows of whoever is forgotten, time may not have come as far; but it does not go back.
                closings.extend(forgetting.zip(before.watermark));
                let meaning = remembered(table, keeps);
                let saved = Saved { meaning, closings, ..unsaved(&self.parts.pipeline_id, &table.name) };
                keeping.0.insert(table.name.clone(), Kept::new(operator, saved, None));
                continue;
            }
            let has_joined = last.is_some_and(|record| !record.tables.contains_key(&table.name));
            if let Some(why) = obstacle(table, &*self.parts.transform).filter(|_| has_joined) {
                tracing::warn!(table = table.name, "{} is new, and starts with the rows to come: {why}", table.name);
            }
            let kept = load_state(&self.parts.states, &self.parts.pipeline_id, table, keeps, operator, file).await;
            let kept = kept.map_err(|error| match error.code() {
                Code::StateLost => error.help(self.without_state(table)),
                _ => error,
            })?;
            let above = Above::of(&spec, &*self.parts.transform, table, keeps);
            keeping.0.insert(table.name.clone(), Kept { above, ..kept });
        }
        self.keeping = Some(keeping);
        Ok(())
    }

    /// What is left to do where a table's state is gone.
    fn without_state(&self, table: &TableSpec) -> String {
        let name = &table.name;
        match obstacle(table, &*self.parts.transform) {
            None => format!("or compute the table again from what it reads: tidegate rebuild FILE --table {name}"),
            Some(_) => format!(
                "or give {name} a new name in the pipeline file: that table starts with the next batch, and remembers nothing \
                 of earlier ones"
            ),
        }
    }

    /// The watermarks that a batch planned at `now` is judged by; `waiting` are the sources that have rows. A table that has
    /// rows to get is not closed by hand or for want of rows: those rows would be late. Nor is one in the batch that closes a
    /// table above it: what that emits would be.
    pub(super) fn watermarks(&self, now: DateTime<Utc>, waiting: &BTreeSet<String>) -> Watermarks {
        let mut watermarks = Watermarks { by_table: BTreeMap::new(), closes: false };
        let Some(keeping) = &self.keeping else { return watermarks };
        let mut moving: BTreeSet<&str> = BTreeSet::new();
        // Of tables that let nothing go in this batch.
        let mut planned: BTreeMap<&str, Micros> = BTreeMap::new();
        for table in &self.parts.spec.tables {
            let is_below = table.inputs().into_iter().any(|from| match from {
                From::Table(name) => moving.contains(name.as_str()),
                From::Source(_) => false,
            });
            if is_below {
                moving.insert(&table.name);
            }
            let (Some(keeps), Some(kept)) = (&table.keeps, keeping.0.get(&table.name)) else { continue };
            let flowed = keeping.flowed(&table.name, &kept.saved.clocks, patience(keeps), micros(now), &planned);
            let flowed = kept.saved.watermark.max(flowed);
            let due = kept.operator.due();
            let quiet_since = kept.saved.clocks.last();
            let is_quiet = keeps.watermark.idle_after.zip(quiet_since);
            let is_quiet = is_quiet.is_some_and(|(idle, last)| micros(now).saturating_sub(last) >= idle);
            let gets_rows = waiting.iter().any(|source| reads(&self.parts.spec, table, source));
            let may_close = !gets_rows && !is_below && (is_quiet || self.flush);
            let closed = due.filter(|_| may_close).map(|(_, last)| last);
            let watermark = flowed.max(closed);
            if due.zip(watermark).is_some_and(|((first, _), watermark)| first <= watermark) {
                watermarks.closes = true;
                moving.insert(&table.name);
            } else {
                planned.extend(watermark.map(|watermark| (table.name.as_str(), watermark)));
            }
            if let Some(watermark) = watermark {
                watermarks.by_table.insert(table.name.clone(), instant(watermark));
            }
        }
        watermarks
    }

    /// What a table's commit and the commit record say of its state; the file is written before either.
    pub(super) async fn save_state(
        &mut self,
        table: &TableSpec,
        plan: &BatchPlan,
        shaping: &mut Shaping,
    ) -> Result<Option<(String, (u64, u64))>> {
        if table.keeps.is_none() {
            return Ok(None);
        }
        let noted = self.position.as_ref().and_then(|position| position.applied.get(&table.name));
        let noted = noted.filter(|fact| fact.applied == Some(plan.batch)).and_then(|fact| fact.note.clone());
        let nonce: String = self.parts.owner.run_id.chars().take(8).collect();
        let states = self.parts.states.clone();
        let kept = shaping.keeping.get(&table.name)?;
        let size = kept.operator.size();
        let size = (size.rows, size.bytes);
        let file = match &mut kept.working {
            // Its rows of this batch are not known any more, but the table carries the batch, and says what it remembers.
            None if plan.has_rows() && noted.is_some() => noted.and_then(|note| note.state),
            None => kept.file.clone(),
            Some(working) if working.file.is_some() => working.file.clone(),
            Some(working) if working.untouched && kept.file.is_some() => {
                working.saved = kept.saved.clone();
                working.file = kept.file.clone();
                kept.file.clone()
            }
            Some(working) => {
                let saved = &mut working.saved;
                let is_long =
                    saved.after.len() >= fail::often(LONGEST_CHAIN, 1) || saved.entries > FEW_ENTRIES.max(2 * size.0);
                let rows = if kept.file.is_none() || is_long {
                    (saved.after, saved.entries) = (Vec::new(), 0);
                    kept.operator.whole()?
                } else {
                    kept.operator.changes()?
                };
                saved.entries += rows.iter().map(|rows| rows.num_rows() as u64).sum::<u64>();
                let mut written = saved.clone();
                if !saved.after.is_empty() {
                    // Those before are in the files that it comes after.
                    written.closings.retain(|batch, _| *batch > kept.saved.batch);
                }
                working.file = Some(states.save(&written, kept.operator.saved(), rows, &nonce).await?);
                working.file.clone()
            }
        };
        Ok(file.map(|file| (file, size)))
    }

    /// Takes the states back from a batch that is done.
    pub(super) async fn keep(&mut self, mut keeping: Keeping, record: &CommitRecord) {
        let before = record.batch - TIDY_AFTER;
        let mut is_known = true;
        for (table, kept) in &mut keeping.0 {
            kept.left_out = false;
            let Some(working) = kept.working.take() else {
                is_known &= record.tables.get(table).and_then(|receipt| receipt.state.as_ref()) == kept.file.as_ref();
                continue;
            };
            let is_whole = working.saved.after.is_empty() && working.file != kept.file;
            // Whoever reads the state of the batch before (`query`) has only its name, and reads its files one by one.
            let replaced: Vec<String> = kept.saved.after.iter().chain(&kept.file).cloned().collect();
            (kept.saved, kept.file) = (working.saved, working.file);
            if is_whole && kept.file.is_some() {
                let needed: BTreeSet<String> = kept.file.iter().cloned().chain(replaced).collect();
                if let Err(error) = self.parts.states.tidy(table, &needed, before).await {
                    tracing::debug!(%error, "old files of state stay; the next clean-up tries again");
                }
            }
        }
        self.keeping = is_known.then_some(keeping);
    }
}

/// What a table's state says of itself; nothing where it is gone, because the table is computed again.
async fn saved_before(states: &States, table: &str, file: &str) -> Result<Saved> {
    match states.saved(table, file).await {
        Ok(saved) => Ok(saved),
        Err(error) if error.code() == Code::StateLost => {
            tracing::warn!(
                table,
                %error,
                "the state is gone: windows that `--flush` or `idle_after` closed are open again until their time passes"
            );
            Ok(Saved::default())
        }
        Err(error) => Err(error),
    }
}

/// A table's state as its file and those before it have it; without a file it is empty.
async fn load_state(
    states: &States,
    pipeline_id: &str,
    table: &TableSpec,
    keeps: &KeepsSpec,
    mut operator: Box<dyn Stateful>,
    file: Option<String>,
) -> Result<Kept> {
    let meaning = remembered(table, keeps);
    let Some(file) = file else {
        let saved = Saved { meaning, ..unsaved(pipeline_id, &table.name) };
        return Ok(Kept::new(operator, saved, None));
    };
    let saved = states.restore(&table.name, &file, &meaning, |rows| operator.load(rows)).await?;
    Ok(Kept::new(operator, saved, Some(file)))
}

impl Shaping {
    /// The rows that a table's SQL gets as `batch`: what came from upstream, or what the table's memory made of it.
    pub(super) fn batch_for(
        &mut self,
        table: &TableSpec,
        transform: &dyn Transform,
        lookups: &std::collections::HashMap<String, Rows>,
        dead: &mut Vec<DeadLetter>,
    ) -> Result<Rows> {
        let Some(keeps) = &table.keeps else { return Ok(self.batch_of(&table.from)) };
        if self.keeping.get(&table.name)?.left_out {
            return Ok(Rows::default());
        }
        let batch_time = micros(self.context.batch_time);
        let kept = self.keeping.get(&table.name)?;
        let latest = match kept.above.is_windows {
            true => Micros::MAX,
            false => batch_time.saturating_add(keeps.watermark.max_ahead),
        };
        let mut clocks: Clocks = kept.saved.clocks.clone();
        let mut arrivals = Vec::new();
        let mut has_input = false;
        for (number, from) in table.inputs().into_iter().enumerate() {
            let batch = self.batch_of(from);
            has_input |= batch.iter().any(|rows| rows.num_rows() > 0);
            if let Some(column) = keeps.watermark.columns.get(number).filter(|column| !column.is_empty()) {
                for (partition, newest) in newest_by_partition(&batch, column, latest, transform.timezone())? {
                    clocks.observe(number, &partition, newest, batch_time);
                }
            }
            let inputs = Inputs { batch, tables: std::collections::HashMap::new(), lookups: lookups.clone() };
            arrivals.push(transform.arrivals(&table.name, number, &inputs, &self.context)?);
        }
        let context = &self.context;
        let planned = self.watermarks.get(&table.name).copied().map(micros);
        let was = self.keeping.get(&table.name)?.saved.clocks.clone();
        let nothing = BTreeMap::new();
        let flowed = self.keeping.flowed(&table.name, &was, patience(keeps), batch_time, &nothing);
        let next = self.keeping.flowed(&table.name, &clocks, patience(keeps), batch_time, &nothing);
        let kept = self.keeping.get(&table.name)?;
        // A batch that an operator made plans none; then what was reached stands.
        let in_force = planned.max(kept.saved.watermark);
        let (flowed, next) = (kept.saved.watermark.max(flowed), in_force.max(next));
        let step = kept.operator.step(&arrivals, &EventTime { watermark: in_force, next, latest }).map_err(|error| {
            error
                .with("table", &table.name)
                .help("the table was not changed by this batch; it is tried again, with the same rows, at the next run")
                .help(match obstacle(table, transform) {
                    None => format!(
                        "mend it under a new name: a table that takes the place of {} in the file is computed from all \
                         stored rows, and the batch goes on",
                        table.name
                    ),
                    Some(_) => format!(
                        "mend it under a new name: a table that takes the place of {} in the file starts with this batch, \
                         and remembers nothing of earlier ones",
                        table.name
                    ),
                })
        })?;
        let Step { rows, replaced, aside, counts } = step;
        check_size(table, keeps, &*kept.operator)?;
        let mut saved = Saved { batch: context.batch, watermark: next, clocks, ..kept.saved.clone() };
        saved.after.extend(kept.file.clone());
        // For computing it again: what no stored row of this batch tells then.
        let is_kept = obstacle(table, transform).is_none();
        let told = if has_input { flowed } else { kept.saved.watermark };
        if let Some(closed) = in_force.filter(|in_force| is_kept && Some(*in_force) > told) {
            saved.closings.insert(context.batch, closed);
        }
        let no_rows = arrivals.iter().flatten().all(|rows| rows.num_rows() == 0);
        let untouched = no_rows && next == kept.saved.watermark && saved.clocks == kept.saved.clocks;
        kept.working = Some(Working { saved, untouched, replaced, file: None });
        for (rule, count) in counts {
            *self.expectations.entry(format!("{}.{rule}", table.name)).or_default() += count;
        }
        if let Some(next) = next {
            self.next_watermarks.insert(table.name.clone(), instant(next));
        }
        for letter in aside {
            let place = row_at(&arrivals, letter.input, letter.row);
            dead.push(DeadLetter {
                table: table.name.clone(),
                stage: letter.stage,
                rule: letter.rule.to_string(),
                error: letter.error,
                coordinates: place.and_then(|(rows, row)| expect::coordinates(rows, row)),
                row_json: place.map(|(rows, row)| shown(rows, row)),
            });
        }
        Ok(std::sync::Arc::new(rows))
    }

    /// A batch of the past, worked in as it was then.
    pub(super) fn step_again(
        &mut self,
        table: &TableSpec,
        transform: &dyn Transform,
        lookups: &std::collections::HashMap<String, Rows>,
        closed: Option<Micros>,
        dead: &mut Vec<DeadLetter>,
    ) -> Result<Stepped> {
        let Some(keeps) = &table.keeps else {
            return Err(Error::failed(format!("{} remembers nothing", table.name)));
        };
        let batch_time = micros(self.context.batch_time);
        let saved = &self.keeping.get(&table.name)?.saved;
        let in_force = saved.watermark.max(saved.clocks.watermark(patience(keeps), batch_time)).max(closed);
        if let Some(in_force) = in_force {
            self.watermarks.insert(table.name.clone(), instant(in_force));
        }
        let rows = self.batch_for(table, transform, lookups, dead)?;
        let kept = self.keeping.get(&table.name)?;
        let working = kept.working.take().ok_or_else(|| Error::failed("a batch of the past left nothing behind"))?;
        kept.saved = working.saved;
        Ok(Stepped { rows: rows.as_ref().clone(), replaced: working.replaced })
    }

    /// The change of a table whose windows are replaced.
    pub(super) fn windows(&mut self, table: &TableSpec, transform: &dyn Transform) -> Result<Option<Change>> {
        let WriteSpec::Windows { by } = &table.write else { return Ok(None) };
        let schema = transform.schema(&table.name);
        let indices: Vec<usize> = by.iter().filter_map(|name| schema.index_of(name).ok()).collect();
        let wanted = schema.project(&indices).map_err(|cause| Error::failed("windows have no key").caused_by(cause))?;
        let wanted = std::sync::Arc::new(wanted);
        let touched = self.keeping.get(&table.name)?.working.as_ref().and_then(|working| working.replaced.clone());
        let groups = match touched {
            Some(touched) => conform(&[touched], &wanted)?.into_iter().next(),
            None => None,
        };
        let groups = groups.unwrap_or_else(|| RecordBatch::new_empty(wanted));
        Ok(Some(Change::Groups { groups, rows: self.rows_of(&table.name) }))
    }
}

/// A receipt that says what the table remembers.
pub(super) fn with_state(receipt: Receipt, state: Option<(String, (u64, u64))>) -> Receipt {
    match state {
        Some((file, size)) => Receipt { state: Some(file), state_size: Some(size), ..receipt },
        None => receipt,
    }
}

fn row_at(arrivals: &[Vec<RecordBatch>], input: usize, mut row: usize) -> Option<(&RecordBatch, usize)> {
    for batch in arrivals.get(input)? {
        if row < batch.num_rows() {
            return Some((batch, row));
        }
        row -= batch.num_rows();
    }
    None
}

/// The row without what was added for the operator.
fn shown(rows: &RecordBatch, row: usize) -> String {
    let schema = rows.schema();
    let own = |index: &usize| !schema.field(*index).name().starts_with("_arg");
    let kept: Vec<usize> = (0..schema.fields().len()).filter(own).collect();
    rows.project(&kept).map_or_else(|_| String::from("{}"), |rows| row_json::row_json(&rows, row))
}

fn check_size(table: &TableSpec, keeps: &KeepsSpec, operator: &dyn Stateful) -> Result<()> {
    let size = operator.size();
    if size.bytes <= keeps.limit {
        return Ok(());
    }
    let text = format!(
        "the state of {} would need {} kB, its limit is {} kB",
        table.name,
        size.bytes.div_ceil(1_000),
        keeps.limit / 1_000
    );
    Err(Error::new(ErrorKind::Data, text)
        .coded(Code::StateTooLarge)
        .with("entries", size.rows)
        .help("nothing of this batch was written to it; the batch is tried again, with the same rows, at the next run")
        .help(format!(
            "raise `state: {{limit: …}}` of {0}, or let it remember less (a shorter delay; for another window: change it, then \
             tidegate rebuild FILE --table {0})",
            table.name
        )))
}
