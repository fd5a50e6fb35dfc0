//! The data set `orders`: shops, customers, and orders that are placed, paid, then shipped or cancelled.
//!
//! Everything about a record follows from (seed, partition, offset) through ChaCha8, whose output is fixed for ever;
//! only raw words are drawn, never a distribution of the `rand` crate, whose algorithms may change.

use std::io::Write;

use chrono::{DateTime, Datelike, Timelike};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::config::spec::GenerateSpec;
use crate::model::offset::Offset;

/// 2026-03-01T00:00:00Z in milliseconds: when the first order is placed.
const EPOCH_MS: i64 = 1_772_323_200_000;

/// Time between two records: 20,000 a day. Fixed, so that raising `rows` adds records and changes none.
const STEP_MS: f64 = 4_320.0;

/// Orders that are under way at the same time in a partition: an order's next update comes this many offsets later.
const UNDER_WAY: u64 = 64;

/// How far back a duplicate reaches.
const DUPLICATE_REACH: u64 = 200;

const SHOPS: u64 = 20;
const CUSTOMERS: u64 = 5_000;

/// What a stream of random words is for; streams never overlap.
#[derive(Clone, Copy)]
enum Purpose {
    Order = 1,
    Record = 2,
    Pair = 3,
}

/// The data set.
#[derive(Debug)]
pub struct Orders {
    seed: u64,
    partitions: u64,
    rows: Option<u64>,
    dirty: f64,
    late: f64,
    duplicates: f64,
    out_of_order: f64,
}

/// A fraction in 0..1 from one random word.
fn fraction(word: u64) -> f64 {
    (word >> 11) as f64 / (1u64 << 53) as f64
}

impl Orders {
    /// The data set of `spec`. `rows` only says where it ends.
    pub fn new(spec: &GenerateSpec) -> Self {
        Orders {
            seed: spec.seed,
            partitions: u64::from(spec.partitions.max(1)),
            rows: spec.rows,
            dirty: spec.dirty,
            late: spec.late,
            duplicates: spec.duplicates,
            out_of_order: spec.out_of_order,
        }
    }

    /// Records of a partition.
    pub fn len(&self, partition: u64) -> Offset {
        match self.rows {
            None => Offset::MAX,
            Some(rows) => (rows / self.partitions + u64::from(partition < rows % self.partitions)) as Offset,
        }
    }

    /// Whether a partition has no records.
    pub fn is_empty(&self, partition: u64) -> bool {
        self.len(partition) == 0
    }

    /// Writes the record at `offset`, returns its broker timestamp in microseconds.
    pub fn write(&self, partition: u64, offset: u64, key: &mut Vec<u8>, value: &mut Vec<u8>) -> i64 {
        let mut logical = self.swapped(partition, offset);
        if self.is_duplicate(partition, logical) {
            logical = self.original(partition, logical);
        }
        key.clear();
        value.clear();
        self.write_original(partition, logical, key, value);
        self.event_ms(partition, offset) * 1000
    }

    fn random(&self, purpose: Purpose, partition: u64, index: u64) -> ChaCha8Rng {
        let mut seed = [0; 32];
        for (place, word) in seed.chunks_exact_mut(8).zip([self.seed, purpose as u64, partition, index]) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        ChaCha8Rng::from_seed(seed)
    }

    fn event_ms(&self, partition: u64, offset: u64) -> i64 {
        EPOCH_MS + ((offset * self.partitions + partition) as f64 * STEP_MS) as i64
    }

    /// Neighbours 2n and 2n+1 change places now and then, whether or not the data set ends between them.
    fn swapped(&self, partition: u64, offset: u64) -> u64 {
        let neighbour = offset ^ 1;
        if self.out_of_order <= 0.0 {
            return offset;
        }
        let word = self.random(Purpose::Pair, partition, offset / 2).next_u64();
        if fraction(word) < self.out_of_order { neighbour } else { offset }
    }

    /// The first two records have nothing before them to repeat, and a pair that changed places must not repeat itself.
    fn is_duplicate(&self, partition: u64, logical: u64) -> bool {
        self.duplicates > 0.0
            && logical >= 2
            && fraction(self.random(Purpose::Record, partition, logical).next_u64()) < self.duplicates
    }

    /// Which earlier record a duplicate repeats; that one is not a duplicate itself.
    fn original(&self, partition: u64, logical: u64) -> u64 {
        let mut random = self.random(Purpose::Record, partition, logical);
        random.next_u64();
        let mut earlier = logical - 2 - random.next_u64() % DUPLICATE_REACH.min(logical - 1);
        while self.is_duplicate(partition, earlier) {
            earlier -= 1;
        }
        earlier
    }

    fn write_original(&self, partition: u64, logical: u64, key: &mut Vec<u8>, value: &mut Vec<u8>) {
        let mut record = self.random(Purpose::Record, partition, logical);
        record.next_u64(); // decided whether this is a duplicate
        record.next_u64(); // and of which record
        let is_dirty = fraction(record.next_u64()) < self.dirty;
        let flaw = record.next_u64() % 5;
        let is_late = fraction(record.next_u64()) < self.late;
        let delay_ms = 3_600_000 + (record.next_u64() % (47 * 3_600_000)) as i64;

        let stage = logical / UNDER_WAY % 3;
        let index = logical / (3 * UNDER_WAY) * UNDER_WAY + logical % UNDER_WAY;
        let mut order = self.random(Purpose::Order, partition, index);
        let shop = order.next_u64() % SHOPS + 1;
        let customer = order.next_u64() % CUSTOMERS + 1;
        let cents = 199 + order.next_u64() % 49_800;
        let quantity = 1 + order.next_u64() % 5;
        let is_cancelled = fraction(order.next_u64()) < 0.15;
        let is_deleted = stage == 2 && fraction(order.next_u64()) < 0.03;
        let status = match stage {
            0 => "placed",
            1 => "paid",
            _ if is_cancelled => "cancelled",
            _ => "shipped",
        };
        let updated_ms = self.event_ms(partition, logical) - if is_late { delay_ms } else { 0 };

        let id = index * self.partitions + partition + 1;
        // Writing to a Vec cannot fail.
        let _ = write!(key, "o-{id:08}");
        value.push(b'{');
        if !(is_dirty && flaw == 2) {
            let _ = write!(value, "\"order_id\":\"o-{id:08}\",");
        }
        let _ = write!(value, "\"store_id\":\"s-{shop:03}\",\"customer_id\":\"c-{customer:05}\"");
        let _ = match (is_dirty, flaw) {
            (true, 1) => write!(value, ",\"amount\":\"about {}\"", cents / 100),
            _ => write!(value, ",\"amount\":\"{}.{:02}\"", cents / 100, cents % 100),
        };
        let _ = match (is_dirty, flaw) {
            (true, 3) => write!(value, ",\"quantity\":-{quantity}"),
            (true, 4) => write!(value, ",\"quantity\":0"),
            _ => write!(value, ",\"quantity\":{quantity}"),
        };
        let _ = write!(value, ",\"status\":\"{status}\",\"updated_at\":\"");
        write_time(updated_ms, value);
        let _ = write!(value, "\",\"op\":\"{}\"}}", if is_deleted { 'd' } else { 'u' });
        if is_dirty && flaw == 0 {
            // A producer that died in the middle of a message.
            value.truncate(value.len() * 2 / 3);
        }
    }
}

fn write_time(ms: i64, value: &mut Vec<u8>) {
    let Some(at) = DateTime::from_timestamp_millis(ms) else { return };
    let (year, month, day) = (at.year(), at.month(), at.day());
    let (hour, minute, second, milli) = (at.hour(), at.minute(), at.second(), at.timestamp_subsec_millis());
    let _ = write!(value, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z");
}

#[cfg(test)]
#[path = "orders_tests.rs"]
mod tests;
