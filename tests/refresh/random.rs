//! Random queries over random batches: after every batch a refresh table that follows what changed holds what an
//! independent computation over the events says, and what the same query computed from all rows says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{BooleanArray, Int32Array, RecordBatch};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use futures::StreamExt as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tidegate::table::Change;
use tidegate::table::maintain::{Compaction, Depth};
use tidegate::transform::expect::DELETE_FLAG;

use super::world::{NULL, World};
use crate::support::{number, seed};

/// One event as the silver table stores it.
#[derive(Debug, Clone)]
struct Event {
    id: u32,
    store: Option<&'static str>,
    day: Option<u32>,
    cents: Option<i64>,
    qty: Option<i64>,
    status: &'static str,
    at: i64,
    delete: bool,
}

impl Event {
    fn random(random: &mut ChaCha8Rng, ids: u32, at: i64) -> Event {
        let maybe = |random: &mut ChaCha8Rng| random.random_ratio(3, 4);
        Event {
            id: random.random_range(0..ids),
            store: maybe(random).then(|| ["a", "b", "c"][random.random_range(0..3)]),
            day: random.random_ratio(9, 10).then(|| random.random_range(1..3)),
            cents: maybe(random).then(|| random.random_range(-999..999)),
            qty: maybe(random).then(|| random.random_range(-5..5)),
            status: ["paid", "PAID", "cancelled"][random.random_range(0..3)],
            // Late ones, and ties.
            at: at - random.random_range(0..4),
            delete: random.random_ratio(1, 6),
        }
    }

    fn line(&self) -> String {
        let Event { id, store, day, cents, qty, status, at, delete } = self;
        let amount = cents.map(money);
        let day = day.map(date);
        let op = if *delete { "d" } else { "u" };
        serde_json::json!({
            "id": format!("k{id}"), "store": store, "day": day, "amount": amount, "qty": qty, "status": status, "at": at,
            "op": op, "n": at,
        })
        .to_string()
    }
}

fn date(day: u32) -> String {
    format!("2026-03-{day:02}")
}

fn money(cents: i64) -> String {
    let sign = if cents < 0 { "-" } else { "" };
    format!("{sign}{}.{:02}", cents.abs() / 100, cents.abs() % 100)
}

/// SQL, and what it means.
type Meaning<T> = (&'static str, fn(&Event) -> T);

const FILTERS: &[Meaning<Option<bool>>] = &[
    ("", |_| Some(true)),
    (" WHERE status <> 'cancelled'", |e| Some(e.status != "cancelled")),
    (" WHERE amount > 1.00", |e| e.cents.map(|cents| cents > 100)),
    (" WHERE store IN ('a', 'b') AND qty IS NOT NULL", |e| {
        Some(e.store.is_some_and(|store| store != "c") && e.qty.is_some())
    }),
    (" WHERE NOT (qty < 2)", |e| e.qty.map(|qty| qty >= 2)),
    (" WHERE lower(status) = 'paid' OR day IS NULL", |e| Some(e.status != "cancelled" || e.day.is_none())),
];

const GROUPS: &[Meaning<Option<String>>] = &[
    ("store", |e| e.store.map(str::to_string)),
    ("lower(status) AS state", |e| Some(e.status.to_lowercase())),
    ("CASE WHEN qty > 0 THEN 'in' ELSE 'out' END AS side", |e| {
        Some(if e.qty.is_some_and(|qty| qty > 0) { "in" } else { "out" }.to_string())
    }),
];

/// What is summed up or counted; amounts are in cents.
const MEASURES: &[Meaning<Option<i64>>] = &[
    ("sum(amount)", |e| e.cents),
    ("sum(qty)", |e| e.qty),
    ("sum(qty * 2 + 1)", |e| e.qty.map(|qty| qty * 2 + 1)),
    ("sum(n)", |e| Some(e.at)),
    ("sum(CASE WHEN status = 'paid' THEN qty ELSE 0 END)", |e| if e.status == "paid" { e.qty } else { Some(0) }),
    ("count(qty)", |e| e.qty),
    ("count(amount)", |e| e.cents),
    ("count(store)", |e| e.store.map(|_| 0)),
];

/// A query of the family.
struct Query {
    filter: usize,
    groups: Vec<usize>,
    measures: Vec<usize>,
}

impl Query {
    fn random(random: &mut ChaCha8Rng) -> Query {
        let mut some = |count: usize, most: u32| (0..count).filter(|_| random.random_ratio(most, 6)).collect();
        let (groups, measures) = (some(GROUPS.len(), 1), some(MEASURES.len(), 3));
        Query { filter: random.random_range(0..FILTERS.len()), groups, measures }
    }

    fn sql(&self) -> String {
        let groups = self.groups.iter().map(|at| GROUPS[*at].0.to_string());
        let names = self.groups.iter().map(|at| GROUPS[*at].0).map(|sql| sql.rsplit(" AS ").next().unwrap_or(sql));
        let measures = self.measures.iter().map(|at| format!("{} AS m{at}", MEASURES[*at].0));
        let columns: Vec<String> = ["day".to_string()]
            .into_iter()
            .chain(groups)
            .chain(["count(*) AS orders".into()])
            .chain(measures)
            .collect();
        let by: Vec<&str> = ["day"].into_iter().chain(names).collect();
        format!("SELECT {} FROM silver.t{} GROUP BY {}", columns.join(", "), FILTERS[self.filter].0, by.join(", "))
    }

    /// What the query makes of the rows, from its meaning alone.
    fn of<'a>(&self, rows: impl Iterator<Item = &'a Event>) -> Vec<String> {
        let text = |value: Option<String>| value.unwrap_or_else(|| NULL.to_string());
        let mut found: BTreeMap<Vec<String>, (u64, Vec<Option<i64>>)> = BTreeMap::new();
        for event in rows.filter(|event| FILTERS[self.filter].1(event) == Some(true)) {
            let mut key = vec![text(event.day.map(date))];
            key.extend(self.groups.iter().map(|at| text(GROUPS[*at].1(event))));
            let (orders, sums) = found.entry(key).or_insert_with(|| (0, vec![None; self.measures.len()]));
            *orders += 1;
            for (sum, at) in sums.iter_mut().zip(&self.measures) {
                let (sql, value) = (MEASURES[*at].0, MEASURES[*at].1(event));
                match sql.starts_with("count") {
                    true => *sum = Some(sum.unwrap_or(0) + i64::from(value.is_some())),
                    false => *sum = value.map_or(*sum, |value| Some(sum.unwrap_or(0) + value)),
                }
            }
        }
        let line = |(key, (orders, sums)): (&Vec<String>, &(u64, Vec<Option<i64>>))| {
            let mut cells = key.clone();
            cells.push(orders.to_string());
            for (sum, at) in sums.iter().zip(&self.measures) {
                let show = |sum: i64| if MEASURES[*at].0 == "sum(amount)" { money(sum) } else { sum.to_string() };
                cells.push(text(sum.map(show)));
            }
            cells.join("|")
        };
        let mut lines: Vec<String> = found.iter().map(line).collect();
        lines.sort_unstable();
        lines
    }
}

fn yaml(engine: &str, is_upsert: bool, is_parted: bool, query: &Query, with_twin: bool) -> String {
    let write = match is_upsert {
        true => "{upsert: {key: id, order_by: at, delete_when: op = 'd', drop: [op]}}",
        false => "append",
    };
    let parted = if is_parted { "\n    partition_by: [day]" } else { "" };
    let mut yaml = format!(
        "version: 1
name: world
lake: /lake
checkpoints: /checkpoints
source:
  files: {{path: /landing, pattern: \"*.ndjson\"}}
  format: json
  schema:
    id: string not null
    store: string
    day: date
    amount: decimal(18,2)
    qty: int
    status: string
    at: long
    n: long not null
    op: string
  schema_drift: ignore
dead_letters: off
tables:
  silver.t:
    from: source
    engine: {engine}
    sql: SELECT id, store, day, amount, qty, status, at, n, op FROM batch
    write: {write}{parted}
"
    );
    for (layer, setting) in [("gold", ""), ("twin", ", incremental: false")] {
        if layer == "gold" || with_twin {
            yaml.push_str(&format!(
                "  {layer}.q:
    from: silver.t
    engine: {engine}
    sql: |
      {}
    write: {{refresh: {{by: day{setting}}}}}
",
                query.sql()
            ));
        }
    }
    yaml
}

/// What has been refreshed.
#[derive(Debug, Default)]
struct Tally {
    batches: u64,
    /// Without a look at silver's rows.
    from_changes: u64,
}

async fn case(seed: u64) -> Tally {
    let random = &mut ChaCha8Rng::seed_from_u64(seed);
    let engine = if random.random_ratio(1, 4) { "datafusion" } else { "polars" };
    let (is_upsert, is_parted) = (random.random_ratio(3, 4), random.random_bool(0.3));
    // Rows that somebody else has put into silver are in no event: then a second table, computed from all rows, says what
    // is right, and the events say it otherwise.
    let is_meddled = random.random_ratio(1, 4);
    let query = Query::random(random);
    let mut events: Vec<Event> = (0..random.random_range(20..40)).map(|_| Event::random(random, 30, 0)).collect();
    let mut cuts = vec![events.len()];
    for batch in 1..random.random_range(3..6) {
        events.extend((0..random.random_range(1..25)).map(|_| Event::random(random, 30, 10 * batch)));
        cuts.push(events.len());
    }
    let yaml = yaml(engine, is_upsert, is_parted, &query, is_meddled);
    let lines: Vec<String> = events.iter().map(Event::line).collect();
    let mut world = World::new(&yaml, &lines).await;
    assert_eq!(world.upkeep("gold.q"), "maintained from changes", "{yaml}");
    let columns = world.columns("gold.q");
    let mut tally = Tally::default();
    for (batch, until) in cuts.iter().enumerate() {
        match random.random_range(0..12) {
            0 => world.restart(),
            1 => compact(&world, ["silver.t", "gold.q"][random.random_range(0..2)]).await,
            2 => _ = world.stage.lock().expect("a stage").failing.insert("gold.q".into()),
            3..6 if batch > 0 && is_meddled => meddle(&world, random, batch).await,
            _ => {}
        }
        world.reads("silver.t");
        if world.batch(*until).await.is_err() {
            world.batch(*until).await.expect("the second time");
        }
        tally.batches += 1;
        // The second table reads silver once.
        tally.from_changes += u64::from(world.reads("silver.t").0 == u64::from(is_meddled));
        let because = || format!("TIDEGATE_SEED={seed} TIDEGATE_CASES=1, batch {batch}, {engine}, {}", query.sql());
        let found = world.lines("gold.q", &columns).await;
        let right = match is_meddled {
            true => world.lines("twin.q", &columns).await,
            false => expected(&query, &events[..*until], is_upsert),
        };
        assert_eq!(found, right, "{}", because());
    }
    tally
}

/// What the query makes of the events so far: the newest of each key, by time and then by place.
fn expected(query: &Query, events: &[Event], is_upsert: bool) -> Vec<String> {
    if !is_upsert {
        return query.of(events.iter());
    }
    let mut newest: BTreeMap<u32, (i64, usize, &Event)> = BTreeMap::new();
    for (place, event) in events.iter().enumerate() {
        if newest.get(&event.id).is_none_or(|(at, was, _)| (*at, *was) < (event.at, place)) {
            newest.insert(event.id, (event.at, place, event));
        }
    }
    query.of(newest.into_values().map(|(_, _, event)| event).filter(|event| !event.delete))
}

/// A backfill that has changed silver and was killed before it came to the refresh tables.
async fn meddle(world: &World, random: &mut ChaCha8Rng, batch: usize) {
    let mut silver = world.open("silver.t");
    let columns = world.columns("silver.t");
    let txn = World::beside("silver.t", batch as i64);
    silver.observe(&txn.app_id).await.expect("a table");
    // A row that is there comes again: in an append table it is there twice then.
    let stored = silver.read(&columns, None).await.expect("rows");
    let Some(rows) = stored.into_iter().find(|rows| rows.num_rows() > 0) else { return };
    let at = random.random_range(0..rows.num_rows());
    // With another quantity.
    let mut columns = rows.slice(at, 1).columns().to_vec();
    columns[rows.schema().index_of("qty").expect("a column")] = Arc::new(Int32Array::from(vec![batch as i32]));
    let mut fields: Vec<FieldRef> = rows.schema().fields().iter().cloned().collect();
    if world.deletes("silver.t") {
        fields.push(Arc::new(Field::new(DELETE_FLAG, DataType::Boolean, false)));
        columns.push(Arc::new(BooleanArray::from(vec![false])));
    }
    let row = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("a row");
    silver.apply(Change::Rows(vec![row]), &txn).await.expect("rows of somebody else");
}

pub(super) async fn compact(world: &World, table: &str) {
    let order =
        Compaction { depth: Depth::Everything, target_bytes: 1 << 30, max_bytes: 1 << 30, until: None, dry_run: false };
    world.open(table).compact(&order).await.expect("a compaction");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_query_and_the_batches_both_ways_make_the_same_rows() {
    let (first, cases) = (seed(), number("TIDEGATE_CASES").unwrap_or(300));
    println!("TIDEGATE_SEED={first} TIDEGATE_CASES={cases}");
    let started = Instant::now();
    let run = (first..first + cases).map(|seed| tokio::spawn(case(seed)));
    let tallies: Vec<Tally> =
        futures::stream::iter(run).buffered(4).map(|tally| tally.expect("a case")).collect().await;
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let (batches, from_changes) = (sum(|tally| tally.batches), sum(|tally| tally.from_changes));
    println!("{cases} cases, {from_changes} of {batches} batches from changes alone, {:?}", started.elapsed());
    assert!(cases < 100 || from_changes * 5 > batches, "hardly anything follows what changed");
}
