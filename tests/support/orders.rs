//! Order events as dirty as real ones, for ever the same for the same seed.
//!
//! Of all records about 1 % cannot be decoded (thirteen kinds), 2 % repeat an earlier record byte for byte, 5 % are
//! older than what the topic already holds for their order, 1 % tie with it in time but not in content, 2 % break the
//! rule `quantity > 0`, 7 % are deletes, and a few come through another partition than their order's.
//! Also used by the benchmark's producer (`examples/produce_orders.rs`).

use std::collections::VecDeque;
use std::io::Write as _;

use chrono::{DateTime, FixedOffset, SecondsFormat};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// One record to produce.
#[derive(Debug, Clone)]
pub struct Event {
    /// Partition.
    pub partition: i32,
    /// Key bytes.
    pub key: Vec<u8>,
    /// Value bytes; `None` = tombstone.
    pub value: Option<Vec<u8>>,
    /// Milliseconds since the epoch.
    pub timestamp: i64,
}

/// 2026-03-01T00:00:00Z; the events cover a week from here.
const START: i64 = 1_772_323_200_000_000;
const WEEK: i64 = 7 * 86_400 * 1_000_000;
/// Stores `s-00` to `s-24`; the lookup knows the first 23.
pub const STORES: u8 = 25;
/// How far back a repeat may lie.
const REMEMBERED: usize = 5_000;

/// What the generator knows of an order.
struct Order {
    newest: i64,
    cents: i64,
    store: u8,
}

/// An endless stream of events.
pub struct Orders {
    random: ChaCha8Rng,
    partitions: u64,
    step: i64,
    now: i64,
    orders: Vec<Order>,
    recent: VecDeque<Event>,
}

impl Orders {
    /// A stream whose first `rows` events cover a week.
    pub fn new(seed: u64, rows: u64, partitions: u32) -> Self {
        let rows = i64::try_from(rows.max(1)).expect("a count of rows");
        Orders {
            random: ChaCha8Rng::seed_from_u64(seed),
            partitions: u64::from(partitions),
            step: (WEEK / rows).max(1),
            now: START,
            orders: Vec::new(),
            recent: VecDeque::new(),
        }
    }

    fn chance(&mut self, percent: f64) -> bool {
        self.random.random_bool(percent / 100.0)
    }

    /// An order that exists: mostly a recent one.
    fn pick(&mut self) -> usize {
        let all = self.orders.len();
        let window = if self.chance(80.0) { all.min(2_000) } else { all };
        all - 1 - self.random.random_range(0..window)
    }

    fn event(&mut self) -> Event {
        self.now += self.random.random_range(0..=2 * self.step);
        if self.recent.len() > 10 && self.chance(2.0) {
            let index = self.random.random_range(0..self.recent.len());
            return self.recent[index].clone();
        }
        let fresh = self.orders.is_empty() || self.chance(55.0);
        let index = if fresh {
            let (cents, store) = (self.random.random_range(-500..500_000), self.random.random_range(0..STORES));
            self.orders.push(Order { newest: self.now, cents, store });
            self.orders.len() - 1
        } else {
            self.pick()
        };
        let updated_at = if fresh { self.now } else { self.update_time(index) };
        let order = &mut self.orders[index];
        order.newest = order.newest.max(updated_at);
        let (cents, store) = (order.cents, order.store);
        let key = format!("o-{index:09}");
        let good = self.value(&key, store, cents, updated_at, !fresh);
        let value = if self.chance(1.0) { self.spoil(good) } else { Some(good) };
        let home = index as u64 % self.partitions;
        let partition = if self.chance(0.5) { self.random.random_range(0..self.partitions) } else { home };
        let partition = i32::try_from(partition).expect("few partitions");
        Event { partition, key: key.into_bytes(), value, timestamp: self.now / 1_000 }
    }

    /// When an update of an existing order says it happened.
    fn update_time(&mut self, index: usize) -> i64 {
        let newest = self.orders[index].newest;
        // Shares of updates, which are 45 % of all events.
        if self.chance(11.0) {
            newest - self.random.random_range(1..7_200_000_000)
        } else if self.chance(2.0) {
            newest
        } else {
            if self.chance(30.0) {
                self.orders[index].cents = self.random.random_range(-500..500_000);
            }
            self.now.max(newest + 1)
        }
    }

    /// About 200 bytes of JSON.
    fn value(&mut self, id: &str, store: u8, cents: i64, updated_at: i64, may_delete: bool) -> Vec<u8> {
        let mut json = Vec::with_capacity(240);
        write!(json, r#"{{"order_id":"{id}","customer_id":"c-{:032x}""#, self.random.random::<u128>())
            .expect("a vector");
        let mut amount = true;
        match self.random.random_range(0..1_000) {
            0..3 => {}
            3..6 => json.extend_from_slice(br#","store_id":null"#),
            _ => {
                write!(json, r#","store_id":"s-{store:02}""#).expect("a vector");
                amount = !self.chance(0.5);
            }
        }
        let (sign, cents) = (if cents < 0 { "-" } else { "" }, cents.unsigned_abs());
        let (whole, rest) = (cents / 100, cents % 100);
        match (amount, self.random.random_range(0..10)) {
            (false, 0..5) => {}
            (false, _) => json.extend_from_slice(br#","amount":null"#),
            (true, 0..3) => write!(json, r#","amount":{sign}{whole}.{rest:02}"#).expect("a vector"),
            (true, _) => write!(json, r#","amount":"{sign}{whole}.{rest:02}""#).expect("a vector"),
        }
        let quantity =
            if self.chance(2.0) { self.random.random_range(-3..=0) } else { self.random.random_range(1..20) };
        let status = ["PLACED", "PAID", "Paid", "CANCELLED", "cancelled", "placed"][self.random.random_range(0..6)];
        let status = if self.chance(0.5) { "REFUNDED" } else { status };
        let updated_at = self.time(updated_at);
        let op = if may_delete && self.chance(15.0) { 'd' } else { 'u' };
        write!(json, r#","quantity":{quantity},"status":"{status}","updated_at":"{updated_at}","op":"{op}""#)
            .expect("a vector");
        if self.chance(1.0) {
            write!(json, r#","coupon":{{"code":"X{}","percent":5}}"#, self.random.random_range(0..100))
                .expect("a vector");
        }
        json.push(b'}');
        json
    }

    /// RFC 3339 in one of its spellings.
    fn time(&mut self, micros: i64) -> String {
        let time = DateTime::from_timestamp_micros(micros).expect("in range");
        match self.random.random_range(0..20) {
            0 => time.to_rfc3339_opts(SecondsFormat::Secs, true),
            1 => time.to_rfc3339_opts(SecondsFormat::Millis, true),
            2 => {
                let zone = FixedOffset::east_opt(2 * 3600).expect("a zone");
                time.with_timezone(&zone).to_rfc3339_opts(SecondsFormat::Micros, false)
            }
            _ => time.to_rfc3339_opts(SecondsFormat::Micros, true),
        }
    }

    /// Makes a value that no decoder may accept.
    fn spoil(&mut self, good: Vec<u8>) -> Option<Vec<u8>> {
        let text = String::from_utf8(good).expect("JSON");
        let replaced = |from: &str, to: &str| Some(text.replacen(from, to, 1).into_bytes());
        match self.random.random_range(0..13) {
            0 => None,
            1 => Some(Vec::new()),
            2 => Some(b"not json".to_vec()),
            3 => Some(text.as_bytes()[..text.len() / 2].to_vec()),
            // Two objects in one record: neither may count.
            4 => Some(format!("{text}{text}").into_bytes()),
            5 => Some(format!("[{text}]").into_bytes()),
            6 => Some(b"\"a string\"".to_vec()),
            7 => replaced("\"order_id\":", "\"order\":"),
            8 => Some(
                format!("{{\"order_id\":null,{}", &text[text.find("\"customer_id\"").expect("it has one")..]).into(),
            ),
            9 => replaced("\"quantity\":", "\"quantity\":\"many\",\"was\":"),
            10 => replaced("\"quantity\":", "\"quantity\":3000000000,\"was\":"),
            11 => replaced("\"updated_at\":\"2026-", "\"updated_at\":\"2026-13-"),
            _ => {
                let mut bytes = text.into_bytes();
                let at = bytes.len() / 2;
                bytes.splice(at..at, [0xff, 0xfe]);
                Some(bytes)
            }
        }
    }
}

impl Iterator for Orders {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let event = self.event();
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back(event.clone());
        Some(event)
    }
}

/// The lookup table: every store but the last two.
pub fn stores_csv() -> String {
    let cities = ["Lyon", "Porto", "Graz", "Turku", "Bergen"];
    let line = |store: u8| format!("s-{store:02},{}\n", cities[usize::from(store) % cities.len()]);
    std::iter::once("store_id,city\n".to_string()).chain((0..STORES - 2).map(line)).collect()
}
