//! What the tables of [`super::pipeline`] must hold, computed in one batch from the produced records by code that shares
//! nothing with tidegate but the JSON grammar: maps, integers, and the sentences of the contract.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use chrono::DateTime;
use serde_json::value::RawValue;

use super::broker::Record;
use super::lake::{self, NULL, assert_same};
use super::orders;

/// Where records came from, which decides what the columns that describe them say.
pub enum Origin<'a> {
    /// A Kafka topic.
    Topic(&'a str),
    /// A folder where partition N is the file `part-N.ndjson`: no keys, no times, and lines for offsets.
    Files,
}

impl Origin<'_> {
    fn topic(&self, stored: &Stored) -> String {
        match self {
            Origin::Topic(topic) => topic.to_string(),
            Origin::Files => format!("part-{}.ndjson", stored.partition),
        }
    }

    fn partition(&self, stored: &Stored) -> i32 {
        match self {
            Origin::Topic(_) => stored.partition,
            Origin::Files => 0,
        }
    }

    fn timestamp(&self, stored: &Stored) -> String {
        match self {
            Origin::Topic(_) => (stored.record.timestamp * 1_000).to_string(),
            Origin::Files => NULL.to_string(),
        }
    }

    fn key(&self, stored: &Stored) -> String {
        match self {
            Origin::Topic(_) => bytes(stored.record.key.as_deref()),
            Origin::Files => NULL.to_string(),
        }
    }
}

/// A record where the broker put it.
pub struct Stored {
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// The record.
    pub record: Record,
}

/// Numbers the records of a topic that nothing but [`super::broker::Broker::produce`] wrote to: offsets are dense.
pub fn stored(records: Vec<Record>) -> Vec<Stored> {
    let mut next: HashMap<i32, i64> = HashMap::new();
    let place = |record: Record| {
        let offset = next.entry(record.partition).or_default();
        *offset += 1;
        Stored { partition: record.partition, offset: *offset - 1, record }
    };
    records.into_iter().map(place).collect()
}

/// A record that could be decoded.
#[derive(Clone)]
struct Order {
    order_id: String,
    customer_id: Option<String>,
    store_id: Option<String>,
    cents: Option<i128>,
    quantity: Option<i32>,
    status: Option<String>,
    micros: i64,
    op: Option<String>,
    rescued: Option<String>,
}

/// Sorted lines, as [`lake::lines`] writes them.
#[derive(Debug, PartialEq, Eq)]
pub struct Tables {
    /// `bronze.orders`
    pub bronze: Vec<String>,
    /// `silver.orders`
    pub silver: Vec<String>,
    /// `gold.daily_revenue`
    pub gold: Vec<String>,
    /// `dlq.orders`
    pub dead: Vec<String>,
}

impl Tables {
    /// What the pipeline must have made of these records of `topic`, whatever their batches.
    pub fn expected(topic: &str, records: &[Stored]) -> Self {
        Self::expected_from(&Origin::Topic(topic), records)
    }

    /// The same for records from elsewhere.
    pub fn expected_from(origin: &Origin<'_>, records: &[Stored]) -> Self {
        let mut tables = Tables { bronze: Vec::new(), silver: Vec::new(), gold: Vec::new(), dead: Vec::new() };
        let mut newest: HashMap<String, ((i64, i32, i64), Order)> = HashMap::new();
        for stored in records {
            let Some(order) = stored.record.value.as_deref().and_then(decode) else {
                tables.dead.push(dead_line(origin, stored, "decode", None));
                continue;
            };
            tables.bronze.push(bronze_line(origin, stored, &order));
            // A delete is not judged by rules about a row that is going away.
            let is_delete = order.op.as_deref() == Some("d");
            if !is_delete && order.quantity.is_none_or(|quantity| quantity <= 0) {
                tables.dead.push(dead_line(origin, stored, "expect", Some("positive_quantity")));
                continue;
            }
            let rank = (order.micros, stored.partition, stored.offset);
            match newest.get_mut(&order.order_id) {
                Some(known) if known.0 >= rank => {}
                Some(known) => *known = (rank, order),
                None => drop(newest.insert(order.order_id.clone(), (rank, order))),
            }
        }
        let live: Vec<Order> =
            newest.into_values().map(|(_, order)| order).filter(|order| order.op.as_deref() != Some("d")).collect();
        let cities = cities();
        tables.silver = live.iter().map(|order| silver_line(order, &cities)).collect();
        tables.gold = gold_lines(&live);
        for lines in [&mut tables.bronze, &mut tables.silver, &mut tables.gold, &mut tables.dead] {
            lines.sort_unstable();
        }
        tables
    }

    /// What the lake holds.
    pub fn read(lake: &Path) -> Self {
        let table = |name: &str, sql: &str| lake::lines(&lake.join(name), sql);
        Tables {
            bronze: table(
                "bronze/orders",
                "SELECT _partition, _offset, _topic, _timestamp, _key, order_id, customer_id, store_id, amount, \
                 quantity, status, updated_at, op, _rescued FROM t",
            ),
            silver: table(
                "silver/orders",
                "SELECT order_id, store_id, city, amount, quantity, status, updated_at, order_date FROM t",
            ),
            gold: table("gold/daily_revenue", "SELECT order_date, store_id, orders, revenue FROM t"),
            dead: table("dlq/orders", DEAD_SQL),
        }
    }

    /// Requires the lake to hold exactly this.
    #[track_caller]
    pub fn assert_in(&self, lake: &Path) {
        let found = Tables::read(lake);
        assert_same("bronze.orders", &self.bronze, &found.bronze);
        assert_same("dlq.orders", &self.dead, &found.dead);
        assert_same("silver.orders", &self.silver, &found.silver);
        assert_same("gold.daily_revenue", &self.gold, &found.gold);
    }
}

/// The dead-letter columns that the contract promises; the rule of a decode failure is tidegate's own word.
const DEAD_SQL: &str = "SELECT topic, partition, \"offset\", \"timestamp\", stage, \
                        CASE WHEN stage = 'expect' THEN rule END, \"key\", value FROM t";

/// Every table's Delta version, by name.
pub fn versions(lake: &Path) -> BTreeMap<&'static str, Option<i64>> {
    let names = ["bronze/orders", "silver/orders", "gold/daily_revenue", "dlq/orders"];
    names.into_iter().map(|name| (name, lake::version(&lake.join(name)))).collect()
}

/// The schema's reading of one value; `None` = it goes to the dead letters.
fn decode(value: &[u8]) -> Option<Order> {
    let text = std::str::from_utf8(value).ok()?;
    let mut fields: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
    let mut take = |name: &str| fields.remove(name).map(RawValue::get).filter(|raw| *raw != "null");
    let string = |raw: Option<&str>| match raw {
        None => Some(None),
        Some(raw) => serde_json::from_str::<String>(raw).ok().map(Some),
    };
    let order_id = string(take("order_id"))??;
    let customer_id = string(take("customer_id"))?;
    let store_id = string(take("store_id"))?;
    let cents = match take("amount") {
        None => None,
        Some(raw) => Some(cents(raw.trim_matches('"'))?),
    };
    let quantity = match take("quantity") {
        None => None,
        Some(raw) => Some(raw.parse().ok()?),
    };
    let status = string(take("status"))?;
    let updated_at = string(take("updated_at"))??;
    let micros = DateTime::parse_from_rfc3339(&updated_at).ok()?.timestamp_micros();
    let op = string(take("op"))?;
    // Deeper than the parser goes: not readable, and so not decodable.
    let values: BTreeMap<&String, serde_json::Value> =
        fields.iter().map(|(name, raw)| Some((name, serde_json::from_str(raw.get()).ok()?))).collect::<Option<_>>()?;
    let rescued = (!values.is_empty()).then(|| serde_json::to_string(&values).expect("JSON"));
    Some(Order { order_id, customer_id, store_id, cents, quantity, status, micros, op, rescued })
}

/// `-12.30` as -1230; `None` where it does not fit decimal(18,2).
fn cents(text: &str) -> Option<i128> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, rest) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || whole.len() > 16 || rest.len() > 2 || !all_digits(whole) || !all_digits(rest) {
        return None;
    }
    let value: i128 = format!("{whole}{rest:0<2}").parse().ok()?;
    Some(if negative { -value } else { value })
}

fn text(value: Option<impl ToString>) -> String {
    value.map_or_else(|| NULL.to_string(), |value| value.to_string())
}

fn bytes(value: Option<&[u8]>) -> String {
    let Some(value) = value else { return NULL.to_string() };
    let mut line = String::new();
    lake::hex(value, &mut line);
    line
}

fn bronze_line(origin: &Origin<'_>, stored: &Stored, order: &Order) -> String {
    format!(
        "{}|{}|{}|{}|{}|{}|{}|{}|{}|{}|{}|{}|{}|{}",
        origin.partition(stored),
        stored.offset,
        origin.topic(stored),
        origin.timestamp(stored),
        origin.key(stored),
        order.order_id,
        text(order.customer_id.as_ref()),
        text(order.store_id.as_ref()),
        text(order.cents),
        text(order.quantity),
        text(order.status.as_ref()),
        order.micros,
        text(order.op.as_ref()),
        text(order.rescued.as_ref()),
    )
}

fn silver_line(order: &Order, cities: &HashMap<String, String>) -> String {
    let city = order.store_id.as_ref().and_then(|store| cities.get(store));
    format!(
        "{}|{}|{}|{}|{}|{}|{}|{}",
        order.order_id,
        text(order.store_id.as_ref()),
        text(city),
        text(order.cents),
        text(order.quantity),
        text(order.status.as_ref().map(|status| status.to_lowercase())),
        order.micros,
        day(order.micros),
    )
}

fn gold_lines(live: &[Order]) -> Vec<String> {
    // (day, store) → (orders, cents)
    #[allow(clippy::type_complexity, reason = "named once, used here only")]
    let mut groups: HashMap<(i64, Option<&String>), (u64, Option<i128>)> = HashMap::new();
    for order in live {
        if order.status.as_ref().is_none_or(|status| status.eq_ignore_ascii_case("cancelled")) {
            continue;
        }
        let (count, revenue) = groups.entry((day(order.micros), order.store_id.as_ref())).or_default();
        *count += 1;
        if let Some(cents) = order.cents {
            *revenue = Some(revenue.unwrap_or(0) + cents);
        }
    }
    groups.into_iter().map(|((d, store), (n, sum))| format!("{d}|{}|{n}|{}", text(store), text(sum))).collect()
}

fn dead_line(origin: &Origin<'_>, stored: &Stored, stage: &str, rule: Option<&str>) -> String {
    format!(
        "{}|{}|{}|{}|{stage}|{}|{}|{}",
        origin.topic(stored),
        origin.partition(stored),
        stored.offset,
        origin.timestamp(stored),
        text(rule),
        origin.key(stored),
        bytes(stored.record.value.as_deref()),
    )
}

fn day(micros: i64) -> i64 {
    micros.div_euclid(86_400_000_000)
}

fn cities() -> HashMap<String, String> {
    let csv = orders::stores_csv();
    let pairs = csv.lines().skip(1).filter_map(|line| line.split_once(','));
    pairs.map(|(store, city)| (store.to_string(), city.to_string())).collect()
}

#[test]
fn the_oracle_sees_what_the_generator_promises() {
    let rows = 50_000;
    let seed = super::seed();
    println!("TIDEGATE_SEED={seed}");
    let records: Vec<Record> = orders::Orders::new(seed, rows, 4).take(rows as usize).map(Record::from).collect();
    let stored = stored(records);
    let tables = Tables::expected("orders", &stored);
    let share = |part: usize| part as f64 / rows as f64;
    let (malformed, expect) = tables.dead.iter().partition::<Vec<_>, _>(|line| line.contains("|decode|"));
    assert!((0.007..0.013).contains(&share(malformed.len())), "malformed: {}", malformed.len());
    assert!((0.015..0.025).contains(&share(expect.len())), "quarantined: {}", expect.len());
    assert_eq!(tables.bronze.len() + malformed.len(), stored.len());
    let bytes: usize = stored.iter().filter_map(|s| s.record.value.as_ref()).map(Vec::len).sum();
    assert!((170..230).contains(&(bytes / stored.len())), "bytes a record: {}", bytes / stored.len());
    let distinct: std::collections::HashSet<&Vec<u8>> = stored.iter().filter_map(|s| s.record.value.as_ref()).collect();
    assert!((0.01..0.03).contains(&(1.0 - share(distinct.len()))), "repeated: {}", stored.len() - distinct.len());
    let mut newest: HashMap<String, i64> = HashMap::new();
    let mut late = 0;
    for order in stored.iter().filter_map(|s| s.record.value.as_deref()).filter_map(decode) {
        let known = newest.entry(order.order_id).or_insert(order.micros);
        late += usize::from(order.micros < *known);
        *known = order.micros.max(*known);
    }
    assert!((0.035..0.075).contains(&share(late)), "out of order: {late}");
    assert!(tables.silver.len() > 20_000 && tables.gold.len() > 150, "{} {}", tables.silver.len(), tables.gold.len());
}
