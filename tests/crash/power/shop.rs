//! A small shop: every kind of table in a few batches, and what they must hold.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::support::{Sandbox, lake};

/// Batches whose plan and commit record the contract keeps.
pub const RETAINED: u64 = 100;

/// One line of the source.
enum Line {
    Order { id: u32, store: u32, cents: i64, quantity: i32, status: &'static str, minute: i64, delete: bool },
    Garbage,
}

/// 2026-03-01T00:00:00Z in microseconds.
const START: i64 = 1_772_323_200_000_000;
const MINUTE: i64 = 60_000_000;
const DAY: i64 = 24 * 60;

/// A pipeline, its source, and what must come out.
pub struct Shop {
    yaml: String,
    /// Lines by file.
    files: Vec<(String, Vec<Line>)>,
    layers: Layers,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Layers {
    All,
    Bronze,
}

const SOURCE: &str = "
version: 1
name: shop
lake: ./lake
checkpoints: ./checkpoints
source:
  files: {path: landing, pattern: \"*.ndjson\"}
  format: json
  schema:
    order_id: string not null
    store_id: string
    amount: decimal(18,2)
    quantity: int
    status: string
    updated_at: timestamp
    op: string
  event_time: updated_at
batch: {max_rows: ROWS, max_bytes: 1GB}
dead_letters: {table: dlq.orders, fail_above: 100%}
tables:
  bronze.orders: {from: source, write: append}
";

const REST: &str = "
  silver.orders:
    from: bronze.orders
    sql: |
      SELECT order_id, store_id, amount, lower(status) AS status, updated_at,
             CAST(updated_at AS DATE) AS order_date, quantity, op
      FROM batch
    expect:
      positive_quantity: {check: quantity > 0, else: quarantine}
    write:
      upsert: {key: order_id, order_by: updated_at, delete_when: op = 'd', drop: [op, quantity]}
    partition_by: [order_date]
  gold.daily_revenue:
    from: silver.orders
    sql: |
      SELECT order_date, store_id, count(*) AS orders, sum(amount) AS revenue
      FROM silver.orders WHERE status <> 'cancelled' GROUP BY order_date, store_id
    write: {refresh: {by: order_date}}
";

/// The batch whose commit record this is.
pub fn committed(path: &str) -> Option<u64> {
    path.strip_prefix("checkpoints/shop/commits/")?.strip_suffix(".json")?.parse().ok()
}

impl Shop {
    /// All layers, four batches, two files: updates, deletes, late rows after a delete, bad rows.
    pub fn orders() -> Self {
        let line = |n: u32| match n {
            n if n % 16 == 5 => Line::Garbage,
            n => Line::Order {
                id: n * 7 % 13,
                store: n % 3,
                cents: i64::from(n) * 125 + 99,
                quantity: i32::from(n % 11 != 0),
                status: ["PLACED", "PAID", "CANCELLED"][(n / 3) as usize % 3],
                // Mostly forward in time, over two days, some of it late.
                minute: (i64::from(n) * 50 - if n % 9 == 0 { 700 } else { 0 }).max(0) % (2 * DAY),
                delete: n % 8 == 3,
            },
        };
        let files = vec![
            ("a.ndjson".to_string(), (0..34).map(line).collect()),
            ("b.ndjson".to_string(), (34..56).map(line).collect()),
        ];
        Shop { yaml: format!("{}{REST}", SOURCE.replace("ROWS", "14")), files, layers: Layers::All }
    }

    /// Only bronze, a batch a row, so many that logs are checkpointed and pruned.
    pub fn long() -> Self {
        let line = |n: u32| Line::Order {
            id: n,
            store: 0,
            cents: i64::from(n),
            quantity: 1,
            status: "PAID",
            minute: i64::from(n),
            delete: false,
        };
        let files = vec![("a.ndjson".to_string(), (0..103).map(line).collect())];
        Shop { yaml: SOURCE.replace("ROWS", "1"), files, layers: Layers::Bronze }
    }

    /// The pipeline file.
    pub fn file(&self) -> &'static str {
        "shop.yaml"
    }

    /// Where the commit record of a batch lies.
    pub fn commit(&self, batch: u64) -> String {
        format!("checkpoints/shop/commits/{batch:020}.json")
    }

    /// Writes the pipeline and its source.
    pub fn write(&self, sandbox: &Sandbox) {
        sandbox.write(self.file(), &self.yaml);
        for (name, lines) in &self.files {
            let text: String = lines.iter().map(text).collect();
            sandbox.write(&format!("landing/{name}"), &text);
        }
    }

    /// Whether the tables and the log are what they must be.
    pub fn check(&self, sandbox: &Sandbox) -> Result<(), String> {
        let compare = || {
            for (table, sql, expected) in self.expected() {
                let found = lake::lines(&sandbox.path().join("lake").join(table), sql);
                lake::assert_same(table, &expected, &found);
            }
        };
        // A table that cannot be read panics too: here it is an answer like any other.
        catch_unwind(AssertUnwindSafe(compare)).map_err(|panic| match panic.downcast::<String>() {
            Ok(why) => *why,
            Err(_) => "the tables cannot be compared".to_string(),
        })?;
        let [plans, commits] = ["offsets", "commits"].map(|kind| numbers(sandbox, kind));
        // Pruning deletes one by one, and a power cut may bring some back: what counts is the end.
        let [last_plans, last_commits] =
            [&plans, &commits].map(|ids| &ids[ids.len().saturating_sub(RETAINED as usize)..]);
        let dense = last_plans.windows(2).all(|pair| pair[0] + 1 == pair[1]);
        if last_plans.is_empty() || !dense || last_plans != last_commits {
            return Err(format!("the log is not dense: plans {plans:?}, commits {commits:?}"));
        }
        Ok(())
    }

    /// Table, query and sorted rows, from the lines alone.
    fn expected(&self) -> Vec<(&'static str, &'static str, Vec<String>)> {
        let (mut bronze, mut dead) = (Vec::new(), Vec::new());
        #[allow(clippy::type_complexity, reason = "rank, row and facts of the newest line; used here only")]
        let mut newest: BTreeMap<u32, ((i64, usize), Option<String>, (i64, u32, i64, bool))> = BTreeMap::new();
        let numbered = self.files.iter().flat_map(|(file, lines)| lines.iter().enumerate().map(move |l| (file, l)));
        for (arrival, (file, (offset, line))) in numbered.enumerate() {
            let Line::Order { id, store, cents, quantity, status, minute, delete } = line else {
                dead.push(format!("{file}|{offset}|decode"));
                continue;
            };
            let (time, day) = (START + minute * MINUTE, START / (DAY * MINUTE) + minute / DAY);
            let op = if *delete { "d" } else { "u" };
            bronze.push(format!("{file}|{offset}|o-{id}|s-{store}|{cents}|{quantity}|{status}|{time}|{op}"));
            if !delete && *quantity <= 0 {
                dead.push(format!("{file}|{offset}|expect"));
                continue;
            }
            let status = status.to_lowercase();
            let row = (!delete).then(|| format!("o-{id}|s-{store}|{cents}|{status}|{time}|{day}"));
            // Files are partitions in name order: arrival breaks ties.
            let next = ((*minute, arrival), row, (day, *store, *cents, status != "cancelled"));
            match newest.get(id) {
                Some(known) if known.0 >= next.0 => {}
                _ => drop(newest.insert(*id, next)),
            }
        }
        let mut tables = vec![
            (
                "bronze/orders",
                "SELECT _topic, _offset, order_id, store_id, amount, quantity, status, updated_at, op FROM t",
                bronze,
            ),
            ("dlq/orders", "SELECT topic, \"offset\", stage FROM t", dead),
        ];
        if self.layers == Layers::All {
            let silver = newest.values().filter_map(|(_, row, _)| row.clone()).collect();
            let mut groups: BTreeMap<(i64, u32), (u64, i64)> = BTreeMap::new();
            for (_, _, (day, store, cents, _)) in newest.values().filter(|(_, row, facts)| row.is_some() && facts.3) {
                let (count, sum) = groups.entry((*day, *store)).or_default();
                *count += 1;
                *sum += cents;
            }
            let gold = groups.iter().map(|((day, store), (n, sum))| format!("{day}|s-{store}|{n}|{sum}")).collect();
            let query = "SELECT order_id, store_id, amount, status, updated_at, order_date FROM t";
            tables.push(("silver/orders", query, silver));
            tables.push(("gold/daily_revenue", "SELECT order_date, store_id, orders, revenue FROM t", gold));
        }
        // A table that was never written to has no rows and no folder.
        tables.retain(|(name, _, rows)| *name != "dlq/orders" || self.layers == Layers::All || !rows.is_empty());
        for (_, _, rows) in &mut tables {
            rows.sort_unstable();
        }
        tables
    }
}

fn numbers(sandbox: &Sandbox, kind: &str) -> Vec<u64> {
    let folder = sandbox.path().join("checkpoints/shop").join(kind);
    let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(name);
    let mut ids: Vec<u64> = entries.filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect();
    ids.sort_unstable();
    ids
}

fn text(line: &Line) -> String {
    let Line::Order { id, store, cents, quantity, status, minute, delete } = line else {
        return "{not json\n".to_string();
    };
    let time = chrono::DateTime::from_timestamp_micros(START + minute * MINUTE).expect("a time in 2026");
    let op = if *delete { "d" } else { "u" };
    let mut text = format!("{{\"order_id\":\"o-{id}\",\"store_id\":\"s-{store}\",\"quantity\":{quantity},");
    write!(text, "\"amount\":\"{}.{:02}\",\"status\":\"{status}\",", cents / 100, cents % 100).expect("a string");
    writeln!(text, "\"updated_at\":\"{}\",\"op\":\"{op}\"}}", time.to_rfc3339()).expect("a string");
    text
}
