//! Letters whose records a backfill has brought: once every table carries the rows, they are marked as replayed, or a replay
//! would bring them once more.
//!
//! A letter of a table stands for rows that neither this table nor any below it has. It is settled when all of these were
//! derived from its record and nothing on the way set the record aside again. Where only some of them were (`--tables`),
//! nobody can replay it without doubling rows in those that only add: the run's record keeps such tables in mind.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;

use super::Backfill;
use super::apply::{PAUSE, TRIES, busy};
use super::derive::Window;
use super::lineage::{Lineage, find, is_bronze, lineage, origin};
use crate::config::spec::{From, PipelineSpec, TableSpec, WriteSpec};
use crate::error::{Context, ErrorKind, Result};
use crate::fail;
use crate::model::backfill::{BackfillPlan, BackfillRecord};
use crate::model::batch::BatchId;
use crate::model::letter::{BACKFILLED, Status};
use crate::runner::letters::Ids;
use crate::runner::shaping::deferred;
use crate::table::{Change, Txn};
use crate::transform::Coordinates;
use crate::transform::expect::coordinates;
use crate::transform::letter::{self, Letter, Mark};

/// Letters, by what they are of: a table, or a source for records that could not be decoded.
type ByPlace = BTreeMap<String, Vec<Letter>>;

/// What a run does to the tables that the letters of one table or source stand for.
#[derive(Debug, PartialEq, Eq)]
enum Reach {
    /// None of those that could double a row was derived.
    Nothing,
    /// Some were.
    Part,
    /// All were.
    Whole,
}

/// A table or source, with everything below it that takes its rows one by one.
fn family<'a>(spec: &'a PipelineSpec, name: &str) -> Vec<&'a TableSpec> {
    let mut names = vec![name];
    let mut family = Vec::new();
    for table in &spec.tables {
        let (From::Source(from) | From::Table(from)) = &table.from;
        if table.name == name || names.contains(&from.as_str()) {
            names.push(&table.name);
            family.push(table);
        }
    }
    family.retain(|table| !matches!(table.write, WriteSpec::Refresh { .. }));
    family
}

fn reach(spec: &PipelineSpec, name: &str, plan: &BackfillPlan) -> Reach {
    let family = family(spec, name);
    // Without topics nothing enters bronze, and what could not be decoded is nowhere.
    if family.is_empty() || (plan.reread.is_none() && family.iter().any(|table| is_bronze(table))) {
        return Reach::Nothing;
    }
    let is_derived = |table: &&TableSpec| plan.tables.contains(&table.name);
    let is_append = |table: &TableSpec| table.write == WriteSpec::Append;
    // A correction takes some rows for upserts, and all for append tables.
    let is_mixed = plan.since.is_some()
        && family.iter().any(|table| is_append(table))
        && family.iter().any(|table| !is_append(table));
    match family.iter().all(is_derived) && !is_mixed {
        true => Reach::Whole,
        false if family.iter().any(|table| is_append(table) && is_derived(table)) => Reach::Part,
        false => Reach::Nothing,
    }
}

/// Tables and sources whose letters nobody can replay after this run: rows of them are in some tables and not in others.
pub(super) fn unsettled(spec: &PipelineSpec, plan: &BackfillPlan, before: Option<&BackfillRecord>) -> Vec<String> {
    let places = || spec.sources.keys().chain(spec.tables.iter().map(|table| &table.name));
    let mut unsettled: BTreeSet<String> = match before {
        None => BTreeSet::new(),
        Some(before) if before.settles => before.unsettled.iter().cloned().collect(),
        Some(_) => spec.tables.iter().map(|table| table.name.clone()).collect(),
    };
    for name in places() {
        match reach(spec, name, plan) {
            Reach::Nothing => false,
            Reach::Part => unsettled.insert(name.clone()),
            Reach::Whole => unsettled.remove(name),
        };
    }
    unsettled.into_iter().collect()
}

impl Backfill {
    /// Marks the letters that the tables have made good.
    pub(super) async fn settle(&mut self, plan: &BackfillPlan, record: &mut BackfillRecord) -> Result<()> {
        let spec = self.parts.spec.clone();
        let Some(dead_letters) = spec.dead_letters.as_ref().map(|dead| dead.table.clone()) else { return Ok(()) };
        let late = deferred(&spec, &*self.parts.transform);
        let places = spec.sources.keys().chain(spec.tables.iter().map(|table| &table.name));
        let places: Vec<&String> =
            places.filter(|name| !late.contains(*name) && reach(&spec, name, plan) == Reach::Whole).collect();
        for place in &places {
            // A commit that does not say any more what took part.
            let is_known = |table: &&TableSpec| self.caps.get(&table.name).is_some_and(Option::is_some);
            if !family(&spec, place).iter().all(is_known) {
                record.unsettled.push(place.to_string());
            }
        }
        let mut passed: BTreeMap<String, HashSet<Coordinates>> = BTreeMap::new();
        let app_id = format!("{}:letters", self.app_id(&dead_letters));
        for attempt in 1..=TRIES {
            self.give_way().await?;
            let turn = self.parts.turns.table(&dead_letters);
            let _turn = turn.lock().await;
            let pin = self.table(&dead_letters)?.pin(&app_id).await?;
            let mut due = Ids::new();
            for (place, letters) in self.unsettled_letters(&dead_letters, &places).await? {
                if !passed.contains_key(&place) {
                    let found = self.passed(&place, plan).await?;
                    passed.insert(place.clone(), found);
                }
                let is_there = |letter: &&Letter| {
                    letter.coordinates.as_ref().is_some_and(|at| passed.get(&place).is_some_and(|set| set.contains(at)))
                };
                for letter in letters.iter().filter(is_there) {
                    due.entry(letter.batch).or_default().push(letter.id.clone());
                }
            }
            for ids in due.values_mut() {
                ids.sort_unstable();
                ids.dedup();
            }
            if due.is_empty() {
                return Ok(());
            }
            fail::hit(fail::APPLY)?;
            let (change, count) = self.marked(&dead_letters, &due, plan).await?;
            // Marks need no number: whoever marks again finds nothing to mark.
            let batch = pin.applied.map_or(0, |applied| applied + 1);
            let txn = Txn { app_id: app_id.clone(), batch, ..self.txn(&dead_letters, plan, None) };
            if self.table(&dead_letters)?.apply_at(change, &txn, &pin).await?.is_some() {
                fail::hit(fail::APPLIED)?;
                record.settled_letters = count;
                return Ok(());
            }
            tracing::debug!(table = dead_letters, attempt, "somebody else was first; the letters are looked at again");
            tokio::time::sleep(PAUSE * attempt.min(20)).await;
        }
        Err(busy(&dead_letters))
    }

    /// Letters of these tables and sources that are not settled, those that were given up included.
    async fn unsettled_letters(&mut self, dead_letters: &str, places: &[&String]) -> Result<ByPlace> {
        let rows = self.table(dead_letters)?.read_newest(&letter::light_columns(), None).await?;
        let mut found = ByPlace::new();
        for letter in letter::read(&rows)?.into_iter().filter(|letter| letter.status != Status::Replayed) {
            if places.contains(&&letter.table) && letter.coordinates.is_some() {
                found.entry(letter.table.clone()).or_default().push(letter);
            }
        }
        Ok(found)
    }

    /// The records of the interval that got past a table or source, and into everything below it that takes them.
    async fn passed(&mut self, place: &str, plan: &BackfillPlan) -> Result<HashSet<Coordinates>> {
        let spec = self.parts.spec.clone();
        let family: Vec<TableSpec> = family(&spec, place).into_iter().cloned().collect();
        // What took part in all of them; where that is not known, nothing.
        let upto = family.iter().map(|table| self.caps.get(&table.name).copied().flatten()).min().flatten();
        let is_append = family.iter().all(|table| table.write == WriteSpec::Append);
        let since = if is_append { None } else { plan.since };
        let window = Window { since, after: plan.since_time, upto };
        let lineages = self.lineages(place);
        let mut passed: Option<HashSet<Coordinates>> = None;
        for lineage in &lineages {
            let mut places: HashSet<Coordinates> = HashSet::new();
            for batch in self.bronze_rows(lineage, window).await?.iter() {
                places.extend((0..batch.num_rows()).filter_map(|row| coordinates(batch, row)));
            }
            for table in &lineage.chain {
                for dead in &self.derive(table, window, plan).await?.dead {
                    match &dead.coordinates {
                        Some(at) => drop(places.remove(at)),
                        // Any of them.
                        None => places.clear(),
                    }
                }
            }
            passed = Some(match passed {
                Some(others) => &others & &places,
                None => places,
            });
        }
        Ok(passed.unwrap_or_default())
    }

    /// The way of the rows of a table; of a source, the tables that keep them.
    fn lineages(&self, place: &str) -> Vec<Lineage> {
        let (spec, transform) = (&self.parts.spec, &*self.parts.transform);
        let kept = |bronze: &TableSpec| {
            let (_, event_time) = origin(spec, transform, &bronze.name)?;
            Some(Lineage { bronze: bronze.name.clone(), event_time, chain: Vec::new() })
        };
        match find(spec, place) {
            Some(table) if is_bronze(table) => kept(table).into_iter().collect(),
            Some(table) => lineage(spec, transform, table).into_iter().collect(),
            None => {
                let is_of = |table: &&TableSpec| table.from == From::Source(place.to_string()) && is_bronze(table);
                spec.tables.iter().filter(is_of).filter_map(kept).collect()
            }
        }
    }

    async fn marked(&mut self, dead_letters: &str, due: &Ids, plan: &BackfillPlan) -> Result<(Change, u64)> {
        let groups = letter::keys(due)?;
        let mut rows = Vec::new();
        let mut count = 0;
        let interval = self.interval.label(self.parts.spec.timezone);
        let note = format!("its record was brought by the backfill of {interval}, run {}", plan.run);
        let mark = Mark { status: Status::Replayed, is_attempt: false, note: Some(note) };
        for batch in self.table(dead_letters)?.read_newest(&letter::columns(), Some(&groups)).await? {
            // One that was replayed, and set aside again later, goes by the same name.
            let is_due = letter::read(std::slice::from_ref(&batch))?.into_iter().map(|l| l.status != Status::Replayed);
            let is_due: BooleanArray = is_due.map(Some).collect();
            let pick = |mask: &BooleanArray| -> Result<RecordBatch> {
                filter_record_batch(&batch, mask).context(ErrorKind::Failed, "letters could not be picked")
            };
            let new = pick(&is_due)?;
            count += new.num_rows() as u64;
            let marks = vec![mark.clone(); new.num_rows()];
            rows.extend(letter::marked(&[new], &marks, BACKFILLED, plan.batch_time)?);
            rows.push(pick(&arrow::compute::not(&is_due).context(ErrorKind::Failed, "letters could not be picked")?)?);
        }
        rows.retain(|batch| batch.num_rows() > 0);
        Ok((Change::Groups { groups, rows }, count))
    }

    /// The last live batch that took part in what this run has committed to a table, from the commit's note.
    pub(super) async fn noted(&mut self, table: &str, plan: &BackfillPlan) -> Result<Option<BatchId>> {
        let app_id = self.app_id(table);
        let note = self.table(table)?.note(&app_id, plan.run).await?;
        let note = note.and_then(|note| serde_json::from_str::<serde_json::Value>(&note).ok());
        Ok(note.and_then(|note| note["tidegate"]["backfill"]["through"].as_i64()))
    }
}
