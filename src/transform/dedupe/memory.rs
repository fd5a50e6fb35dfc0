//! The rows that went on: found by key, forgotten by time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::model::window::Micros;
use crate::transform::stateful::Size;

/// A key, encoded, and the event time of a row that went on.
pub(super) type Seen = (Arc<[u8]>, Micros);

/// Rows are forgotten by buckets of time, this many in the length that they are told apart by.
const BUCKETS: Micros = 64;
/// What a key costs beside its bytes: the counts of its `Arc`, and the allocation.
const KEY: usize = 4 * size_of::<usize>();
/// What an entry of the map costs beside its content: a byte of its own, and the places that are free.
const FREE: usize = 1;

/// What a bucket costs beside its list.
const BUCKET: usize = 3 * (size_of::<Micros>() + size_of::<Vec<Seen>>()) / 2 + KEY;

/// Times of one key, which lie `within` or more apart.
enum Times {
    One(Micros),
    /// In order.
    Many(Vec<Micros>),
}

pub(super) struct Memory {
    within: Micros,
    /// Length of a bucket.
    width: Micros,
    times: HashMap<Arc<[u8]>, Times>,
    buckets: BTreeMap<Micros, Vec<Seen>>,
    /// Since the last save.
    added: Vec<Seen>,
    /// The watermark by which something was forgotten since the last save.
    forgotten: Option<Micros>,
    key_bytes: usize,
    count: usize,
}

impl Times {
    /// Whether one of them is less than `within` from a time.
    fn near(&self, time: Micros, within: Micros) -> bool {
        let is_near = |other: &Micros| time.saturating_sub(*other).saturating_abs() < within;
        match self {
            Times::One(known) => is_near(known),
            Times::Many(known) => {
                let after = known.partition_point(|known| *known < time);
                known[after.saturating_sub(1)..].iter().take(2).any(is_near)
            }
        }
    }

    fn add(&mut self, time: Micros) {
        match self {
            Times::One(known) => {
                *self = Times::Many(if *known < time { vec![*known, time] } else { vec![time, *known] });
            }
            Times::Many(known) => known.insert(known.partition_point(|known| *known < time), time),
        }
    }

    /// Takes a time out; whether none is left.
    fn remove(&mut self, time: Micros) -> bool {
        match self {
            Times::One(_) => true,
            Times::Many(known) => {
                if let Ok(at) = known.binary_search(&time) {
                    known.remove(at);
                }
                if let [last] = known.as_slice() {
                    *self = Times::One(*last);
                }
                false
            }
        }
    }
}

impl Memory {
    pub(super) fn new(within: Micros) -> Memory {
        Memory {
            within,
            width: (within / BUCKETS).max(1),
            times: HashMap::new(),
            buckets: BTreeMap::new(),
            added: Vec::new(),
            forgotten: None,
            key_bytes: 0,
            count: 0,
        }
    }

    /// Whether a row repeats none that is remembered; then it is remembered, too.
    pub(super) fn is_new(&mut self, key: &[u8], time: Micros) -> bool {
        let is_new = self.times.get(key).is_none_or(|known| !known.near(time, self.within));
        if is_new {
            self.remember(key, time);
        }
        is_new
    }

    pub(super) fn remember(&mut self, key: &[u8], time: Micros) {
        let key = match self.times.get_key_value(key) {
            Some((known, _)) => known.clone(),
            None => {
                self.key_bytes += key.len() + KEY;
                Arc::from(key)
            }
        };
        self.times.entry(key.clone()).and_modify(|times| times.add(time)).or_insert(Times::One(time));
        self.buckets.entry(time.div_euclid(self.width)).or_default().push((key.clone(), time));
        self.added.push((key, time));
        self.count += 1;
    }

    /// Forgets what no row that comes in time after this watermark can repeat: of whole buckets, so a little later.
    pub(super) fn forget(&mut self, watermark: Micros) {
        let horizon = watermark.saturating_sub(self.within.saturating_mul(2));
        // The bucket that the horizon itself is in may hold later times.
        let live = horizon.saturating_add(1).div_euclid(self.width);
        while let Some(bucket) = self.buckets.first_entry().filter(|bucket| *bucket.key() < live) {
            for (key, time) in bucket.remove() {
                self.count -= 1;
                if self.times.get_mut(&key).is_some_and(|times| times.remove(time)) {
                    self.times.remove(&key);
                    self.key_bytes = self.key_bytes.saturating_sub(key.len() + KEY);
                }
            }
            self.forgotten = self.forgotten.max(Some(watermark));
        }
        if self.times.capacity() > 4 * self.times.len() + 1_000 {
            self.times.shrink_to(2 * self.times.len());
        }
    }

    /// What was added since the last save and is still remembered, and the watermark by which others were forgotten; the
    /// next save starts from here.
    pub(super) fn take_changes(&mut self) -> (Vec<Seen>, Option<Micros>) {
        let mut added = std::mem::take(&mut self.added);
        added.retain(|(_, time)| self.buckets.contains_key(&time.div_euclid(self.width)));
        (added, self.forgotten.take())
    }

    /// Everything, by time.
    pub(super) fn all(&self) -> Vec<Seen> {
        self.buckets.values().flatten().cloned().collect()
    }

    pub(super) fn size(&self) -> Size {
        let map = self.times.capacity() * 8 / 7 * (size_of::<(Arc<[u8]>, Times)>() + FREE);
        let listed: usize = self.buckets.values().map(Vec::capacity).sum::<usize>() + self.added.capacity();
        let more: usize = (self.count - self.times.len().min(self.count)) * 2 * size_of::<Micros>();
        let bytes = map + self.key_bytes + more + listed * size_of::<Seen>() + self.buckets.len() * BUCKET;
        Size { rows: self.count as u64, bytes: bytes as u64 }
    }
}
