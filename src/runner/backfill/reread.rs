//! Topics that are read again: bronze gets what it lacks of an interval, and what today's file decodes otherwise. The tables
//! downstream are derived from it after that, as always.
//!
//! Rows are replaced by record, never by time: of every record that was read again and whose row lies in the interval, now
//! or as it was stored, the stored rows go and the new ones come, in one commit. So bronze only gains:
//!
//! 1. A row whose record lies outside of what was read stays, and so does one whose record the topic has let go since.
//! 2. A row whose record cannot be decoded any more, or is set aside by a rule, stays as it was.
//! 3. What the live run has not finished reading is left to it: the position of its last finished batch is the end.
//!
//! A row of a record that was there keeps its batch and the time when it was ingested: batches can still be read back from
//! bronze, and a second run finds nothing to change. A row that was not there belongs to no batch any more; its batch is
//! [`crate::model::letter::BACKFILLED`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::{DataType, TimestampMicrosecondType};

use super::Backfill;
use super::apply::{PAUSE, TRIES, busy};
use super::lineage::origin;
use super::records::{
    ADDED, Came, Comparison, Key, Origin, alike, arrival, as_it_came, key_columns, key_rows, keys, micros, place_rows,
    push, rest, within,
};
use crate::error::{Error, Result};
use crate::fail;
use crate::model::backfill::{BackfillPlan, BackfillRecord, Reread};
use crate::model::batch::Receipt;
use crate::model::letter::Status;
use crate::model::offset::{Incarnations, OffsetRanges};
use crate::runner::shaping::Rows;
use crate::runner::step::blocking;
use crate::source::{Read, column, loss};
use crate::table::{Change, Pin};
use crate::transform::expect::coordinates;
use crate::transform::{Coordinates, DeadLetter, Inputs, Stage};

/// What the topics say of an interval now.
pub(super) struct Fresh {
    /// As they are stored.
    rows: Rows,
    broken: BTreeMap<String, u64>,
    dead: Vec<DeadLetter>,
    /// The records that could not be decoded, and what is left of those that a rule set aside.
    records: Vec<RecordBatch>,
}

/// Letters of records that are nowhere else.
#[derive(Default)]
pub(super) struct Homeless {
    pub dead: Vec<DeadLetter>,
    pub records: Vec<RecordBatch>,
}

impl Backfill {
    /// Brings the bronze tables up to what the topics say.
    pub(super) async fn restore(&mut self, plan: &BackfillPlan, record: &mut BackfillRecord) -> Result<()> {
        let Some(reread) = plan.reread.clone() else { return Ok(()) };
        self.cache.homeless = Homeless::default();
        for name in &plan.tables {
            let Some(origin) = self.origin(name) else { continue };
            let fresh = self.fresh(&origin, &reread, plan).await.map_err(|error| error.with("table", name))?;
            let receipt = self.restore_table(&origin, &fresh, plan).await.map_err(|error| error.with("table", name))?;
            record.receipts.insert(name.clone(), receipt);
            self.broken.extend(fresh.broken.iter().map(|(rule, count)| (format!("{name}.{rule}"), *count)));
            let homeless = self.homeless(&origin, &fresh).await?;
            self.cache.homeless.dead.extend(homeless);
            self.cache.homeless.records.extend(fresh.records.iter().cloned());
        }
        Ok(())
    }

    fn origin(&self, name: &str) -> Option<Origin> {
        let (spec, transform) = (&self.parts.spec, &*self.parts.transform);
        let (source, event_time) = origin(spec, transform, name)?;
        let stored = transform.schema(name);
        let keeps_time = transform.passes(name, column::TIMESTAMP)
            && stored
                .field_with_name(column::TIMESTAMP)
                .is_ok_and(|field| matches!(field.data_type(), DataType::Timestamp(..)));
        Some(Origin { bronze: name.to_string(), source, event_time, keeps_time })
    }

    /// The records of the planned ranges, decoded and shaped, as far as they are about the interval.
    async fn fresh(&mut self, origin: &Origin, reread: &Reread, plan: &BackfillPlan) -> Result<Arc<Fresh>> {
        if let Some(fresh) = self.cache.fresh.get(&origin.bronze) {
            return Ok(fresh.clone());
        }
        let span = self.span(&origin.event_time);
        let stored = self.table(&origin.bronze)?.read_span(&key_columns(origin), &span).await?;
        let inside: HashSet<Key> = stored.iter().flat_map(|batch| keys(batch, origin)).flatten().collect();
        let mut left = reread.sources.get(&origin.source).cloned().unwrap_or_default();
        let known = reread.incarnations.get(&origin.source).cloned().unwrap_or_default();
        let (mut rows, mut dead, mut records) = (Vec::new(), Vec::new(), Vec::new());
        while !left.is_empty() {
            let piece = left.prorate(self.parts.spec.max_rows.max(1));
            let batches = self.read(&origin.source, &piece, &known).await?;
            let (transform, source, context) =
                (self.parts.transform.clone(), origin.source.clone(), self.context(plan));
            let (decoded, batches) =
                blocking(move || Ok((transform.decode(&source, &batches, &context)?, batches))).await?;
            for batch in &decoded.rows {
                let times = within(batch, &span)?;
                let is_kept = keys(batch, origin).into_iter().zip(times);
                let mask: BooleanArray =
                    is_kept.map(|(key, is_in)| Some(is_in || key.is_some_and(|key| inside.contains(&key)))).collect();
                push(&mut rows, batch, &mask)?;
            }
            // What cannot be decoded has no time but that of its record.
            let failed: HashSet<&Coordinates> =
                decoded.dead.iter().filter_map(|dead| dead.coordinates.as_ref()).collect();
            let mut due = HashSet::new();
            for batch in batches.iter().filter(|_| !failed.is_empty()) {
                let times = batch.column_by_name(column::TIMESTAMP).cloned();
                let times = times.and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>().cloned());
                let at = |row: usize| times.as_ref().filter(|times| times.is_valid(row)).map(|times| times.value(row));
                let is_due = |row: usize| {
                    let place = coordinates(batch, row).filter(|place| failed.contains(place));
                    let is_in = at(row).is_some_and(|at| micros(&span).contains(&at));
                    place.filter(|_| is_in)
                };
                let places: Vec<Option<Coordinates>> = (0..batch.num_rows()).map(is_due).collect();
                let mask: BooleanArray = places.iter().map(|place| Some(place.is_some())).collect();
                due.extend(places.into_iter().flatten());
                push(&mut records, batch, &mask)?;
            }
            dead.extend(
                decoded.dead.into_iter().filter(|dead| dead.coordinates.as_ref().is_some_and(|at| due.contains(at))),
            );
            left = rest(&left, &piece);
        }
        if let Some(source) = self.parts.sources.get_mut(&origin.source) {
            source.rest().await;
        }
        let rows = Arc::new(alike(rows)?);
        let inputs = Inputs { batch: rows.clone(), lookups: self.lookups(plan).await?, ..Inputs::default() };
        let shaped = self.shape(&origin.bronze, inputs, plan).await?;
        if !shaped.dead.is_empty() {
            records.extend(super::derive::as_records(&rows)?);
        }
        dead.extend(shaped.dead);
        let fresh = Arc::new(Fresh { rows: shaped.rows, broken: shaped.broken, dead, records });
        self.cache.fresh.insert(origin.bronze.clone(), fresh.clone());
        Ok(fresh)
    }

    async fn read(&mut self, name: &str, ranges: &OffsetRanges, known: &Incarnations) -> Result<Vec<RecordBatch>> {
        fail::hit(fail::READ)?;
        let Read { batches, lost } = self.source(name)?.read(ranges, known).await?;
        match lost.first() {
            // `on_data_loss: skip` is about going on; this is about having all of a day.
            Some(lost) => Err(loss::error(&lost.loss).help("what bronze has of it: leave out --source kafka")),
            None => Ok(batches),
        }
    }

    pub(super) fn source(&mut self, name: &str) -> Result<&mut Box<dyn crate::source::Source>> {
        let source = self.parts.sources.get_mut(name);
        source.ok_or_else(|| Error::failed(format!("source {name} is not part of the run")))
    }

    /// One commit: stored rows of records go, new ones come. Computed again where somebody else was first.
    async fn restore_table(&mut self, origin: &Origin, fresh: &Fresh, plan: &BackfillPlan) -> Result<Receipt> {
        let name = &origin.bronze;
        let txn = self.txn(name, plan, None);
        for attempt in 1..=TRIES {
            self.give_way().await?;
            let turn = self.parts.turns.table(name);
            let _turn = turn.lock().await;
            let pin = self.pin(name).await?;
            fail::hit(fail::APPLY)?;
            let (change, moved) = self.change(origin, fresh).await?;
            let cap = self.cap(pin.applied).await?;
            self.caps.insert(name.clone(), cap);
            let Some(change) = change else { return Ok(untouched(&pin)) };
            if let Some(receipt) = self.table(name)?.apply_at(change, &txn, &pin).await? {
                fail::hit(fail::APPLIED)?;
                if moved > 0 {
                    tracing::warn!(
                        table = name,
                        interval = %self.interval,
                        "{moved} rows have another event time than before: the days that they were of must be derived again, too"
                    );
                }
                return Ok(receipt);
            }
            tracing::debug!(table = name, attempt, "somebody else was first; what it holds is compared again");
            tokio::time::sleep(PAUSE * attempt.min(20)).await;
        }
        Err(busy(name))
    }

    /// What bronze lacks and what it has otherwise; and how many rows come from or go to other intervals.
    async fn change(&mut self, origin: &Origin, fresh: &Fresh) -> Result<(Option<Change>, usize)> {
        let name = &origin.bronze;
        // Asked after the table was pinned: whoever moves the position back changes the table, too.
        let head = self.parts.live.head().await?;
        let position = head.commit.and_then(|commit| commit.offsets.get(&origin.source).cloned()).unwrap_or_default();
        let is_read = |(at, _): &Key| {
            let partition = crate::model::offset::Partition::new(at.topic.clone(), at.partition);
            position.0.get(&partition).is_some_and(|&next| at.offset < next)
        };
        let span = self.span(&origin.event_time);
        let stored = self.table(name)?.read_span(&[], &span).await?;
        let mut held: HashMap<Key, Vec<(usize, usize)>> = HashMap::new();
        for (number, batch) in stored.iter().enumerate() {
            for (row, key) in keys(batch, origin).into_iter().enumerate() {
                held.entry(key.ok_or_else(|| nowhere(name))?).or_default().push((number, row));
            }
        }
        let mut new: Vec<Vec<Key>> = Vec::with_capacity(fresh.rows.len());
        for batch in fresh.rows.iter() {
            new.push(
                keys(batch, origin).into_iter().map(|key| key.ok_or_else(|| nowhere(name))).collect::<Result<_>>()?,
            );
        }
        let mut rows_of: HashMap<&Key, Vec<(usize, usize)>> = HashMap::new();
        for (number, keys) in new.iter().enumerate() {
            for (row, key) in keys.iter().enumerate().filter(|(_, key)| is_read(key)) {
                rows_of.entry(key).or_default().push((number, row));
            }
        }
        let known = Comparison::of(&fresh.rows, &stored);
        let changed: HashSet<&Key> = rows_of
            .iter()
            .filter(|(key, rows)| {
                held.get(**key).is_none_or(|held| !known.as_ref().is_some_and(|c| c.same(rows, held)))
            })
            .map(|(key, _)| *key)
            .collect();
        if changed.is_empty() {
            return Ok((None, 0));
        }
        let mut came: HashMap<Key, Came> = HashMap::new();
        for key in changed.iter().filter(|key| held.contains_key(**key)) {
            let (batch, row) = held[*key][0];
            came.insert((*key).clone(), arrival(&stored[batch], row));
        }
        let elsewhere: Vec<&Key> = changed.iter().filter(|key| !held.contains_key(**key)).copied().collect();
        let found_elsewhere = self.arrivals(origin, &elsewhere).await?;
        let mut moved = found_elsewhere.len();
        came.extend(found_elsewhere);
        let mut rows = Vec::new();
        for (batch, keys) in fresh.rows.iter().zip(&new) {
            let mask: BooleanArray = keys.iter().map(|key| Some(changed.contains(key))).collect();
            let is_in = within(batch, &span)?;
            moved += keys.iter().zip(is_in).filter(|(key, is_in)| !is_in && changed.contains(key)).count();
            let mut kept = Vec::new();
            push(&mut kept, batch, &mask)?;
            let keys: Vec<&Key> = keys.iter().filter(|key| changed.contains(key)).collect();
            rows.extend(kept.iter().map(|batch| as_it_came(batch, &keys, &came)).collect::<Result<Vec<_>>>()?);
        }
        let gone: Vec<&Key> = came.keys().collect();
        let change = match gone.is_empty() {
            true => Change::Rows(rows),
            false => Change::Groups { groups: key_rows(&gone, origin)?, rows },
        };
        Ok((Some(change), moved))
    }

    /// When the stored rows of these records came, wherever they are.
    async fn arrivals(&mut self, origin: &Origin, wanted: &[&Key]) -> Result<HashMap<Key, Came>> {
        if wanted.is_empty() {
            return Ok(HashMap::new());
        }
        let schema = self.parts.transform.schema(&origin.bronze);
        let mut columns = key_columns(origin);
        let kept = ADDED.iter().filter(|name| schema.column_with_name(name).is_some());
        columns.extend(kept.map(|name| name.to_string()));
        let groups = key_rows(wanted, origin)?;
        let mut found = HashMap::new();
        for batch in self.table(&origin.bronze)?.read_newest(&columns, Some(&groups)).await? {
            let keys = keys(&batch, origin).into_iter().enumerate();
            found.extend(keys.filter_map(|(row, key)| Some((key?, arrival(&batch, row)))));
        }
        Ok(found)
    }

    /// The letters of records that have no row in bronze and no letter: of any rule, for a record is set aside once.
    async fn homeless(&mut self, origin: &Origin, fresh: &Fresh) -> Result<Vec<DeadLetter>> {
        let Some(dead_letters) = self.parts.spec.dead_letters.as_ref().map(|dead| dead.table.clone()) else {
            return Ok(Vec::new());
        };
        let places: BTreeSet<&Coordinates> = fresh.dead.iter().filter_map(|dead| dead.coordinates.as_ref()).collect();
        if places.is_empty() {
            return Ok(fresh.dead.clone());
        }
        let mut known: HashSet<Coordinates> = HashSet::new();
        let names = [column::TOPIC, column::PARTITION, column::OFFSET];
        let groups = place_rows(places.iter().copied(), names)?;
        for batch in self.table(&origin.bronze)?.read_newest(&names.map(str::to_string), Some(&groups)).await? {
            known.extend((0..batch.num_rows()).filter_map(|row| coordinates(&batch, row)));
        }
        let groups = place_rows(places.iter().copied(), ["topic", "partition", "offset"])?;
        let columns = crate::transform::letter::light_columns();
        let rows = self.table(&dead_letters)?.read_newest(&columns, Some(&groups)).await?;
        // One that was replayed said that its record is in bronze: it is not.
        let letters = crate::transform::letter::read(&rows)?.into_iter().filter(|letter| {
            letter.status != Status::Replayed
                && ((letter.table == origin.source && letter.stage == Stage::Decode.as_str())
                    || letter.table == origin.bronze)
        });
        known.extend(letters.filter_map(|letter| letter.coordinates));
        let is_new = |dead: &&DeadLetter| dead.coordinates.as_ref().is_none_or(|at| !known.contains(at));
        Ok(fresh.dead.iter().filter(is_new).cloned().collect())
    }
}

fn nowhere(table: &str) -> Error {
    Error::config(format!("{table} has rows without the record they came from: it cannot be compared with its topic"))
        .help("nothing was written; derive from bronze as it is: leave out --source kafka")
}

fn untouched(pin: &Pin) -> Receipt {
    Receipt { delta_version: pin.version.unwrap_or_default(), ..Receipt::default() }
}
