//! The windows of one table, from batch to batch.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{Field, Schema, SchemaRef};

use super::arrivals::Arrivals;
use super::entries::{Entries, Place};
use super::judge::{Judge, closes, keep};
use super::kept::{Slot, keep as keep_states};
use super::keys::{self, Keys, batch};
use super::{Aggregation, EVENT_TIME, WINDOW_END, WINDOW_START, misfit, panes, saved, sessions};
use crate::error::{Error, Result};
use crate::model::window::{Emit, EventTime, Late, Micros, Window};
use crate::transform::stateful::{Size, Stateful, Step};
use crate::transform::types::timestamp;

/// See [`super`].
pub struct Windows {
    aggregation: Aggregation,
    keys: Keys,
    entries: Entries,
    output: SchemaRef,
    replaced: SchemaRef,
    saved: SchemaRef,
}

/// What one batch did to windows.
#[derive(Default)]
pub(super) struct Touched {
    slots: BTreeSet<Slot>,
    /// Starts and keys that rows were written under and no window has any more.
    vanished: BTreeSet<(Micros, Place)>,
}

impl Touched {
    /// Notes that a window changed.
    pub(super) fn touch(&mut self, slot: Slot, entries: &mut Entries) -> Slot {
        entries.change(slot);
        self.slots.insert(slot);
        slot
    }

    /// Notes that a window is about to get another start.
    pub(super) fn moved(&mut self, slot: Slot, entries: &Entries) {
        self.vanished.insert((entries.start(slot), entries.place(slot)));
    }

    /// Notes that a window is about to go.
    pub(super) fn forget(&mut self, slot: Slot, entries: &Entries) {
        self.moved(slot, entries);
        self.slots.remove(&slot);
    }
}

impl Windows {
    /// No windows yet. The configuration has refused what is refused here, with better words.
    pub fn new(aggregation: Aggregation) -> Result<Windows> {
        check(&aggregation)?;
        let kept = aggregation.functions.iter().enumerate();
        let kept = kept.map(|(number, function)| keep_states(function, number)).collect::<Result<Vec<_>>>()?;
        let mut fields = aggregation.by.clone();
        let mut replaced = aggregation.by.clone();
        if aggregation.window.is_some() {
            fields.extend([WINDOW_START, WINDOW_END].map(|name| Field::new(name, timestamp(), true)));
            replaced.push(Field::new(WINDOW_START, timestamp(), true));
        }
        for (number, function) in aggregation.functions.iter().enumerate() {
            fields.push(function.output(number).map_err(misfit)?);
        }
        Ok(Windows {
            keys: Keys::new(&aggregation.by)?,
            output: Arc::new(Schema::new(fields)),
            replaced: Arc::new(Schema::new(replaced)),
            saved: saved::schema(&aggregation, &kept),
            entries: Entries::new(kept, closes(&aggregation)),
            aggregation,
        })
    }

    fn rows(&self, mut slots: Vec<Slot>) -> Result<Vec<RecordBatch>> {
        if slots.is_empty() {
            return Ok(Vec::new());
        }
        slots.sort_by_cached_key(|slot| (self.entries.start(*slot), self.entries.place(*slot)));
        let places: Vec<Place> = slots.iter().map(|slot| self.entries.place(*slot)).collect();
        let mut columns = self.keys.decode(places.iter().map(|place| keys::key(place)))?;
        if self.aggregation.window.is_some() {
            columns.push(times(slots.iter().map(|slot| self.entries.start(*slot))));
            columns.push(times(slots.iter().map(|slot| self.entries.end(*slot))));
        }
        for kept in self.entries.kept() {
            columns.push(kept.results(&slots)?);
        }
        Ok(vec![batch(&self.output, columns, slots.len())?])
    }

    fn replaced(&self, touched: Touched) -> Result<Option<RecordBatch>> {
        let mut places = touched.vanished;
        places.extend(touched.slots.iter().map(|slot| (self.entries.start(*slot), self.entries.place(*slot))));
        if places.is_empty() {
            return Ok(None);
        }
        let mut columns = self.keys.decode(places.iter().map(|(_, place)| keys::key(place)))?;
        if self.aggregation.window.is_some() {
            columns.push(times(places.iter().map(|(start, _)| *start)));
        }
        batch(&self.replaced, columns, places.len()).map(Some)
    }

    /// Lets go of the windows that are over, and says which rows they leave.
    fn close(&mut self, next: Option<Micros>) -> Result<Vec<RecordBatch>> {
        let Some(next) = next.filter(|_| closes(&self.aggregation)) else { return Ok(Vec::new()) };
        let ended = self.entries.ended(next.saturating_sub(keep(self.aggregation.late)));
        let rows = match self.aggregation.emit {
            Emit::Final => self.rows(ended.clone())?,
            Emit::Update | Emit::Complete => Vec::new(),
        };
        for slot in ended {
            self.entries.remove(slot);
        }
        Ok(rows)
    }
}

fn check(aggregation: &Aggregation) -> Result<()> {
    if let Some(misfit) = aggregation.window.and_then(|window| window.misfit()) {
        return Err(Error::config(format!("window.{}: {}", misfit.field, misfit.message)).help(misfit.mend));
    }
    if aggregation.emit == Emit::Final && aggregation.window.is_none() {
        return Err(Error::config("`emit: final` without a window: totals that go on for ever are never final"));
    }
    if aggregation.emit == Emit::Final && matches!(aggregation.late, Late::Update { .. }) {
        return Err(Error::config("`emit: final` writes a window once: late rows cannot update it"));
    }
    let taken = |name: &str| name.starts_with('_') || [EVENT_TIME, WINDOW_START, WINDOW_END].contains(&name);
    match aggregation.by.iter().find(|field| taken(field.name())) {
        Some(field) => Err(Error::config(format!("windows have a column `{}` of their own", field.name()))
            .help("give the column of `by` another name in `sql`")),
        None => Ok(()),
    }
}

/// A column of timestamps.
pub(super) fn times(times: impl Iterator<Item = Micros>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
}

impl Stateful for Windows {
    fn step(&mut self, arrivals: &[Vec<RecordBatch>], time: &EventTime) -> Result<Step> {
        let [arrivals] = arrivals else { return Err(misfit("windows have one input")) };
        let rows = Arrivals::new(&self.aggregation, &self.keys, arrivals)?;
        let judge = Judge::new(&self.aggregation, time);
        let (mut step, mut touched) = (Step::default(), Touched::default());
        // What the watermark has passed since the batch before is over: a session takes no more rows, however often anybody
        // looked in between.
        step.rows = self.close(time.watermark)?;
        let entries = &mut self.entries;
        match self.aggregation.window {
            Some(Window::Session { gap }) => sessions::work(gap, &rows, entries, &judge, &mut step, &mut touched)?,
            window => panes::work(window, &rows, entries, &judge, &mut step, &mut touched)?,
        }
        step.aside.sort_by_key(|aside| aside.row);
        if self.aggregation.emit == Emit::Final {
            step.rows.extend(self.close(time.next)?);
        } else {
            step.rows = self.rows(touched.slots.iter().copied().collect())?;
            step.replaced = self.replaced(touched)?;
            self.close(time.next)?;
        }
        Ok(step)
    }

    fn changes(&mut self) -> Result<Vec<RecordBatch>> {
        let (changed, gone) = self.entries.take_changes();
        let mut batches = saved::gone(&self.saved, &self.keys, &gone)?;
        batches.extend(saved::windows(&self.saved, &self.keys, &self.entries, &changed)?);
        Ok(batches)
    }

    fn whole(&mut self) -> Result<Vec<RecordBatch>> {
        self.entries.take_changes();
        saved::windows(&self.saved, &self.keys, &self.entries, &self.entries.all())
    }

    fn load(&mut self, saved: &[RecordBatch]) -> Result<()> {
        let by = self.aggregation.by.len();
        for rows in saved {
            saved::load(&self.saved, &self.keys, &mut self.entries, rows, by)?;
        }
        self.entries.take_changes();
        Ok(())
    }

    fn saved(&self) -> SchemaRef {
        self.saved.clone()
    }

    fn output(&self) -> SchemaRef {
        self.output.clone()
    }

    fn replaces(&self) -> Vec<String> {
        match self.aggregation.emit {
            Emit::Final => Vec::new(),
            Emit::Update | Emit::Complete => self.replaced.fields().iter().map(|field| field.name().clone()).collect(),
        }
    }

    fn due(&self) -> Option<(Micros, Micros)> {
        self.entries.ends().filter(|_| self.aggregation.emit == Emit::Final)
    }

    fn size(&self) -> Size {
        self.entries.size()
    }
}
