//! The windows that are remembered: found by key and start, closed by end, saved by what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use arrow::array::ArrayRef;

use super::kept::{Kept, Slot};
use super::keys;
use super::value::ALLOCATION;
use crate::error::Result;
use crate::model::window::Micros;
use crate::transform::stateful::Size;

/// A key and a start, as [`keys::at`] makes it.
pub(super) type Place = Arc<[u8]>;

/// What each window costs beside its bytes of key and its states: the index and the deadlines (trees whose nodes are two
/// thirds full), the head of the key.
const ENTRY: usize =
    (size_of::<Place>() + 8 + size_of::<(Micros, Slot)>()) * 3 / 2 + 2 * size_of::<usize>() + ALLOCATION;

/// Windows and their states. States lie in slots, which are used again.
pub(super) struct Entries {
    kept: Vec<Box<dyn Kept>>,
    index: BTreeMap<Place, Slot>,
    /// By slot.
    heads: Vec<Head>,
    free: Vec<Slot>,
    /// By end; empty where nothing is ever closed.
    deadlines: BTreeSet<(Micros, Slot)>,
    closes: bool,
    /// Slots that changed since the last save, some of them freed since.
    changed: Vec<Slot>,
    /// Windows that went since the last save, with their ends.
    gone: BTreeMap<Place, Micros>,
    key_bytes: usize,
}

/// What a slot is used for.
#[derive(Clone, Default)]
struct Head {
    /// `None` = free, or not a window yet.
    place: Option<Place>,
    end: Micros,
    changed: bool,
}

impl Entries {
    pub(super) fn new(kept: Vec<Box<dyn Kept>>, closes: bool) -> Entries {
        Entries {
            kept,
            index: BTreeMap::new(),
            heads: Vec::new(),
            free: Vec::new(),
            deadlines: BTreeSet::new(),
            closes,
            changed: Vec::new(),
            gone: BTreeMap::new(),
            key_bytes: 0,
        }
    }

    /// The states, by function.
    pub(super) fn kept(&self) -> &[Box<dyn Kept>] {
        &self.kept
    }

    /// An empty slot that is no window yet.
    pub(super) fn allocate(&mut self) -> Slot {
        if self.free.is_empty() {
            let (from, to) = (self.heads.len(), self.heads.len() * 5 / 4 + 64);
            self.heads.resize(to, Head::default());
            self.kept.iter_mut().for_each(|kept| kept.grow(to));
            self.free.extend((from..to).rev().map(|slot| slot as Slot));
        }
        self.free.pop().unwrap_or_default()
    }

    /// Gives a slot back that is no window.
    pub(super) fn release(&mut self, slot: Slot) {
        self.kept.iter_mut().for_each(|kept| kept.clear(slot));
        self.heads[slot as usize] = Head::default();
        self.free.push(slot);
    }

    /// Makes a slot the window of a key.
    pub(super) fn insert(&mut self, slot: Slot, key: &[u8], start: Micros, end: Micros) {
        let place: Place = keys::at(key, start).into();
        self.gone.remove(&place);
        self.key_bytes += place.len();
        if self.closes {
            self.deadlines.insert((end, slot));
        }
        self.index.insert(place.clone(), slot);
        let head = &mut self.heads[slot as usize];
        (head.place, head.end) = (Some(place), end);
    }

    /// Takes a window out of index and deadlines; its states stay in the slot. `None` = it was none.
    fn detach(&mut self, slot: Slot) -> Option<(Place, Micros)> {
        let head = &mut self.heads[slot as usize];
        let (place, end) = (head.place.take()?, head.end);
        self.key_bytes = self.key_bytes.saturating_sub(place.len());
        self.index.remove(&place);
        self.deadlines.remove(&(end, slot));
        self.gone.insert(place.clone(), end);
        Some((place, end))
    }

    /// Forgets a window.
    pub(super) fn remove(&mut self, slot: Slot) -> Option<Place> {
        let place = self.detach(slot).map(|(place, _)| place);
        self.release(slot);
        place
    }

    /// Gives a window another start and end.
    pub(super) fn stretch(&mut self, slot: Slot, start: Micros, end: Micros) {
        if let Some((place, _)) = self.detach(slot) {
            self.insert(slot, keys::key(&place), start, end);
        }
    }

    /// The window of a key.
    pub(super) fn find(&self, key: &[u8], start: Micros) -> Option<Slot> {
        self.index.get(keys::at(key, start).as_slice()).copied()
    }

    /// The windows of a key that start at or before `last`, from the latest on.
    pub(super) fn before<'a>(&'a self, key: &[u8], last: Micros) -> impl Iterator<Item = Slot> + use<'a> {
        let (from, to) = (keys::at(key, Micros::MIN), keys::at(key, last));
        let range = (Bound::Included(from.as_slice()), Bound::Included(to.as_slice()));
        self.index.range::<[u8], _>(range).rev().map(|(_, slot)| *slot)
    }

    /// Notes that a window's states changed.
    pub(super) fn change(&mut self, slot: Slot) {
        let head = &mut self.heads[slot as usize];
        if !head.changed {
            head.changed = true;
            self.changed.push(slot);
        }
    }

    /// Works rows into slots.
    pub(super) fn update(&mut self, slots: &[Slot], arguments: &[Option<ArrayRef>], times: &[Micros]) -> Result<()> {
        self.kept.iter_mut().zip(arguments).try_for_each(|(kept, values)| kept.update(slots, values.as_ref(), times))
    }

    /// Adds one slot's states to another's, whose rows of the same time arrived first.
    pub(super) fn merge(&mut self, into: Slot, from: Slot) -> Result<()> {
        self.kept.iter_mut().try_for_each(|kept| kept.merge(into, from))
    }

    /// Takes saved states into empty slots.
    pub(super) fn load(&mut self, slots: &[Slot], columns: &[ArrayRef]) -> Result<()> {
        let mut columns = columns;
        for kept in &mut self.kept {
            let (own, rest) = columns.split_at(kept.saved().len());
            kept.load(slots, own)?;
            columns = rest;
        }
        Ok(())
    }

    /// Empties the states of a window.
    pub(super) fn clear(&mut self, slot: Slot) {
        self.kept.iter_mut().for_each(|kept| kept.clear(slot));
    }

    /// A window's key and start.
    pub(super) fn place(&self, slot: Slot) -> Place {
        self.heads[slot as usize].place.clone().unwrap_or_default()
    }

    pub(super) fn start(&self, slot: Slot) -> Micros {
        self.heads[slot as usize].place.as_ref().map_or(0, |place| keys::start(place))
    }

    pub(super) fn end(&self, slot: Slot) -> Micros {
        self.heads[slot as usize].end
    }

    /// Windows with an end at or before `last`.
    pub(super) fn ended(&self, last: Micros) -> Vec<Slot> {
        self.deadlines.range(..=(last, Slot::MAX)).map(|(_, slot)| *slot).collect()
    }

    /// The first and the last end.
    pub(super) fn ends(&self) -> Option<(Micros, Micros)> {
        Some((self.deadlines.first()?.0, self.deadlines.last()?.0))
    }

    /// All windows, by key and start.
    pub(super) fn all(&self) -> Vec<Slot> {
        self.index.values().copied().collect()
    }

    /// What changed since the last save, by key and start, and what went; the next save starts from here.
    pub(super) fn take_changes(&mut self) -> (Vec<Slot>, BTreeMap<Place, Micros>) {
        let mut slots = std::mem::take(&mut self.changed);
        // A slot that was freed is not changed any more; one that was used again is listed twice.
        slots.retain(|slot| {
            let head = &mut self.heads[*slot as usize];
            std::mem::take(&mut head.changed) && head.place.is_some()
        });
        slots.sort_by(|a, b| self.heads[*a as usize].place.cmp(&self.heads[*b as usize].place));
        (slots, std::mem::take(&mut self.gone))
    }

    /// How much it holds.
    pub(super) fn size(&self) -> Size {
        let widths: usize = self.kept.iter().map(|kept| kept.width()).sum();
        let slots = self.heads.len() * (widths + size_of::<Head>() + size_of::<Slot>());
        let heap: usize = self.kept.iter().map(|kept| kept.heap()).sum();
        let bytes = slots + heap + self.key_bytes + self.index.len() * ENTRY;
        Size { rows: self.index.len() as u64, bytes: bytes as u64 }
    }
}
