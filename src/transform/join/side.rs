//! The waiting rows of one side: found by key, let go of by time.
//!
//! Rows lie encoded, one behind the other, in buckets of time; a bucket goes as a whole. Over all of them there is one index
//! by the hash of the key, so a row that arrives looks at the rows of its key only, however many wait.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

use crate::model::window::Micros;

/// Rows are let go of by buckets of time, this many in `within`, and none shorter than this.
const BUCKETS: Micros = 64;
const SHORTEST: Micros = 1_000_000;

/// Where a row lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At {
    bucket: Micros,
    row: u32,
}

/// See the module.
pub(super) struct Side {
    within: Micros,
    width: Micros,
    buckets: BTreeMap<Micros, Bucket>,
    index: HashMap<u64, Found, BuildHasherDefault<Same>>,
    hashes: RandomState,
    /// The number of the next row.
    next: u64,
    /// The number of the first row that is not saved.
    unsaved: u64,
    /// Up to which watermark time has passed.
    passed: Option<Micros>,
    added: Vec<At>,
    /// Rows that were saved before they found a partner.
    matched: Vec<At>,
}

#[derive(Default)]
struct Bucket {
    bytes: Vec<u8>,
    rows: Vec<Row>,
    /// Rows whose time is not up.
    waiting: usize,
    /// Those of them that have found no partner.
    open: usize,
}

struct Row {
    time: Micros,
    /// Its place in the order of arrival.
    number: u64,
    /// Where its bytes start: those of the key, then the others.
    start: usize,
    key: u32,
    matched: bool,
}

/// Rows whose keys have one hash.
enum Found {
    One(At),
    Many(Vec<At>),
}

/// A hash of a hash is the hash.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl Bucket {
    fn key(&self, row: usize) -> &[u8] {
        let Row { start, key, .. } = self.rows[row];
        &self.bytes[start..start + key as usize]
    }

    fn rest(&self, row: usize) -> &[u8] {
        let Row { start, key, .. } = self.rows[row];
        let end = self.rows.get(row + 1).map_or(self.bytes.len(), |next| next.start);
        &self.bytes[start + key as usize..end]
    }
}

impl Side {
    pub(super) fn new(within: Micros) -> Side {
        Side {
            within,
            width: (within / BUCKETS).max(SHORTEST),
            buckets: BTreeMap::new(),
            index: HashMap::default(),
            hashes: RandomState::new(),
            next: 0,
            unsaved: 0,
            passed: None,
            added: Vec::new(),
            matched: Vec::new(),
        }
    }

    /// Lets a row wait that has just arrived.
    pub(super) fn add(&mut self, key: &[u8], rest: &[u8], time: Micros) -> At {
        let at = self.put(key, rest, time, self.next, false);
        self.next += 1;
        self.added.push(at);
        at
    }

    /// Takes in a row that was saved: one that is known has found a partner since.
    pub(super) fn load(&mut self, key: &[u8], rest: &[u8], time: Micros, number: u64, matched: bool) {
        let bucket = time.div_euclid(self.width);
        let rows = self.buckets.get(&bucket).map_or(&[][..], |bucket| bucket.rows.as_slice());
        match rows.binary_search_by_key(&number, |row| row.number) {
            Ok(row) if matched => {
                self.mark(At { bucket, row: row as u32 });
            }
            Ok(_) => {}
            Err(_) => {
                self.put(key, rest, time, number, matched);
            }
        }
        self.next = self.next.max(number + 1);
    }

    fn put(&mut self, key: &[u8], rest: &[u8], time: Micros, number: u64, matched: bool) -> At {
        let number_of_bucket = time.div_euclid(self.width);
        if !self.buckets.contains_key(&number_of_bucket)
            && let Some((_, before)) = self.buckets.range_mut(..number_of_bucket).next_back()
        {
            // Time has gone on: few rows come to it any more.
            before.bytes.shrink_to_fit();
            before.rows.shrink_to_fit();
        }
        let bucket = self.buckets.entry(number_of_bucket).or_default();
        let at = At { bucket: number_of_bucket, row: bucket.rows.len() as u32 };
        bucket.rows.push(Row { time, number, start: bucket.bytes.len(), key: key.len() as u32, matched });
        bucket.bytes.extend_from_slice(key);
        bucket.bytes.extend_from_slice(rest);
        bucket.waiting += 1;
        bucket.open += usize::from(!matched);
        let found = self.index.entry(self.hashes.hash_one(key));
        found.and_modify(|found| found.add(at)).or_insert(Found::One(at));
        at
    }

    /// Adds the rows that a row of the other side with this key and time pairs with, in any order.
    pub(super) fn partners(&self, key: &[u8], time: Micros, found: &mut Vec<At>) {
        let (first, last) = (time.saturating_sub(self.within), time.saturating_add(self.within));
        let all = self.index.get(&self.hashes.hash_one(key)).map_or(&[][..], Found::all);
        found.extend(all.iter().filter(|at| {
            let Some(bucket) = self.buckets.get(&at.bucket) else { return false };
            let time = bucket.rows[at.row as usize].time;
            first <= time && time <= last && bucket.key(at.row as usize) == key
        }));
    }

    /// Notes that a row has found a partner.
    pub(super) fn mark(&mut self, at: At) {
        let Some(bucket) = self.buckets.get_mut(&at.bucket) else { return };
        let row = &mut bucket.rows[at.row as usize];
        if !row.matched {
            row.matched = true;
            bucket.open -= 1;
            if row.number < self.unsaved {
                self.matched.push(at);
            }
        }
    }

    /// Lets time pass: the rows that no row after this watermark can pair with are not waited for any more. Returns those
    /// of them that have found no partner, in the order of arrival; their bytes stay until [`Side::let_go`].
    pub(super) fn pass(&mut self, watermark: Micros) -> Vec<At> {
        let before = self.passed;
        if before.is_some_and(|before| watermark <= before) {
            return Vec::new();
        }
        self.passed = Some(watermark);
        let mut alone = Vec::new();
        let last = watermark.saturating_sub(self.within).div_euclid(self.width);
        for (number, bucket) in self.buckets.range_mut(..=last) {
            for (row, at) in bucket.rows.iter().zip(0..) {
                let end = row.time.saturating_add(self.within);
                if end <= watermark && before.is_none_or(|before| end > before) {
                    bucket.waiting -= 1;
                    if !row.matched {
                        bucket.open -= 1;
                        alone.push((row.number, At { bucket: *number, row: at }));
                    }
                }
            }
        }
        alone.sort_unstable_by_key(|(number, _)| *number);
        alone.into_iter().map(|(_, at)| at).collect()
    }

    /// Lets go of buckets whose time is up as a whole: no row comes to them any more.
    pub(super) fn let_go(&mut self) {
        let Some(passed) = self.passed else { return };
        let live = passed.saturating_sub(self.within).saturating_add(1).div_euclid(self.width);
        let over: Vec<Micros> = self.buckets.range(..live).map(|(number, _)| *number).collect();
        for number in &over {
            let Some(bucket) = self.buckets.remove(number) else { continue };
            // Once per key: many rows may have it.
            let hashes: HashSet<u64, BuildHasherDefault<Same>> =
                (0..bucket.rows.len()).map(|row| self.hashes.hash_one(bucket.key(row))).collect();
            for hash in hashes {
                if self.index.get_mut(&hash).is_some_and(|found| found.forget(*number)) {
                    self.index.remove(&hash);
                }
            }
        }
        if self.index.capacity() > 4 * self.index.len() + 1_000 {
            self.index.shrink_to(2 * self.index.len());
        }
    }

    fn waits(&self, at: &At) -> bool {
        self.buckets.get(&at.bucket).is_some_and(|bucket| self.is_waiting(&bucket.rows[at.row as usize]))
    }

    fn is_waiting(&self, row: &Row) -> bool {
        self.passed.is_none_or(|passed| row.time.saturating_add(self.within) > passed)
    }

    /// The waiting rows that arrived since the last save, and those that found a partner since; the next save starts here.
    pub(super) fn take_changes(&mut self) -> Vec<At> {
        let mut changed = std::mem::take(&mut self.matched);
        changed.append(&mut self.added);
        changed.retain(|at| self.waits(at));
        self.unsaved = self.next;
        changed
    }

    /// All waiting rows.
    pub(super) fn all(&self) -> Vec<At> {
        let rows = |(number, bucket): (&Micros, &Bucket)| {
            let waits = |row: &u32| self.is_waiting(&bucket.rows[*row as usize]);
            let rows = (0..bucket.rows.len() as u32).filter(waits);
            rows.map(|row| At { bucket: *number, row }).collect::<Vec<_>>()
        };
        self.buckets.iter().flat_map(rows).collect()
    }

    /// When the first and the last row without a partner are not waited for any more.
    pub(super) fn ends(&self) -> Option<(Micros, Micros)> {
        let ends = |bucket: &Bucket| -> Option<(Micros, Micros)> {
            let open = bucket.rows.iter().filter(|row| !row.matched && self.is_waiting(row));
            let times = open.map(|row| row.time).fold(None, |times: Option<(Micros, Micros)>, time| {
                times.map(|(first, last)| (first.min(time), last.max(time))).or(Some((time, time)))
            });
            times.map(|(first, last)| (first.saturating_add(self.within), last.saturating_add(self.within)))
        };
        let first = self.buckets.values().find(|bucket| bucket.open > 0).and_then(ends)?.0;
        let last = self.buckets.values().rev().find(|bucket| bucket.open > 0).and_then(ends)?.1;
        Some((first, last))
    }

    pub(super) fn passed(&self) -> Option<Micros> {
        self.passed
    }

    pub(super) fn key(&self, at: At) -> &[u8] {
        self.buckets.get(&at.bucket).map_or(&[], |bucket| bucket.key(at.row as usize))
    }

    /// The bytes of a row but its key's.
    pub(super) fn rest(&self, at: At) -> &[u8] {
        self.buckets.get(&at.bucket).map_or(&[], |bucket| bucket.rest(at.row as usize))
    }

    /// A row's event time, number, and whether it found a partner.
    pub(super) fn facts(&self, at: At) -> (Micros, u64, bool) {
        let row = self.buckets.get(&at.bucket).map(|bucket| &bucket.rows[at.row as usize]);
        row.map_or((0, 0, false), |row| (row.time, row.number, row.matched))
    }

    /// Waiting rows, and bytes of memory.
    pub(super) fn size(&self) -> (usize, usize) {
        let bytes = |bucket: &Bucket| bucket.bytes.capacity() + bucket.rows.capacity() * size_of::<Row>();
        let buckets: usize = self.buckets.values().map(bytes).sum();
        let heads = self.buckets.len() * (size_of::<(Micros, Bucket)>() * 3 / 2);
        let rows: usize = self.buckets.values().map(|bucket| bucket.rows.len()).sum();
        let listed = (rows - self.index.len().min(rows)) * size_of::<At>() * 3 / 2;
        let index = self.index.capacity() * 8 / 7 * (size_of::<(u64, Found)>() + 1);
        let waiting = self.buckets.values().map(|bucket| bucket.waiting).sum();
        (waiting, buckets + heads + listed + index)
    }
}

impl Found {
    fn all(&self) -> &[At] {
        match self {
            Found::One(at) => std::slice::from_ref(at),
            Found::Many(all) => all,
        }
    }

    fn add(&mut self, at: At) {
        match self {
            Found::One(first) => *self = Found::Many(vec![*first, at]),
            Found::Many(all) => all.push(at),
        }
    }

    /// Takes out the rows of a bucket; whether none is left.
    fn forget(&mut self, bucket: Micros) -> bool {
        match self {
            Found::One(at) => at.bucket == bucket,
            Found::Many(all) => {
                all.retain(|at| at.bucket != bucket);
                if let [last] = all.as_slice() {
                    *self = Found::One(*last);
                    return false;
                }
                all.is_empty()
            }
        }
    }
}
