//! How long a batch takes that touches some rows of a large day, both ways. Not a test: run it by hand, optimised.
//!
//!     TIDEGATE_ROWS=5_000_000 cargo test --release --test it -- --ignored --nocapture refresh::measure

use std::time::{Duration, Instant};

use super::world::World;
use crate::support::number;

const STORES: u64 = 50;

fn yaml(setting: &str) -> String {
    format!(
        "version: 1
name: world
lake: /lake
checkpoints: /checkpoints
source:
  files: {{path: /landing, pattern: \"*.ndjson\"}}
  format: json
  schema: {{id: string not null, store: string, day: date, amount: \"decimal(18,2)\", status: string, note: string}}
batch: {{max_rows: 100_000_000, max_bytes: 100GB}}
dead_letters: off
tables:
  silver.t:
    from: source
    sql: SELECT id, store, day, amount, status, note FROM batch
    write: {{upsert: {{key: id}}}}
    partition_by: [day]
  gold.q:
    from: silver.t
    sql: |
      SELECT day, store, count(*) AS orders, sum(amount) AS revenue FROM silver.t WHERE status <> 'cancelled'
      GROUP BY day, store
    write: {{refresh: {{by: day{setting}}}}}
"
    )
}

fn line(id: u64, round: u64) -> String {
    let (store, cents) = (id % STORES, id * 7 % 100 + round);
    let note = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!(
        "{{\"id\":\"k{id}\",\"store\":\"s{store}\",\"day\":\"2026-03-17\",\"amount\":\"{id}.{:02}\",\"status\":\"paid\",\
         \"note\":\"{note:016x}\"}}",
        cents % 100
    )
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn a_batch_that_touches_some_rows_of_a_large_day() {
    let rows = number("TIDEGATE_ROWS").unwrap_or(200_000);
    let touched = number("TIDEGATE_TOUCHED").unwrap_or(1_000);
    let batches = 5;
    let step = (rows / touched).max(1);
    let updates = |round: u64| (0..touched).map(move |at| line((at * step + round) % rows, round));
    let lines: Vec<String> = (0..rows).map(|id| line(id, 0)).chain((1..=batches).flat_map(updates)).collect();
    let mut gold = Vec::new();
    for (how, setting) in [("from changes", ""), ("from all rows", ", incremental: false")] {
        let folder = tempfile::tempdir().expect("a folder");
        let lake = tidegate::storage::open(&folder.path().to_string_lossy()).expect("a folder");
        let mut world = World::over(lake, &yaml(setting), &lines).await;
        world.batch(rows as usize).await.expect("the first batch");
        let (mut times, mut refreshes): (Vec<Duration>, Vec<Duration>) = (Vec::new(), Vec::new());
        let mut read = 0;
        for batch in 1..=batches {
            world.reads("silver.t");
            let started = Instant::now();
            world.batch((rows + batch * touched) as usize).await.expect("a batch");
            times.push(started.elapsed());
            refreshes.push(world.stage.lock().expect("a stage").refreshing);
            read = world.reads("silver.t").1;
        }
        times.sort_unstable();
        refreshes.sort_unstable();
        let (batch, of_it) = (times[times.len() / 2], refreshes[refreshes.len() / 2]);
        println!(
            "{rows} rows, {touched} touched, {how}: batch {batch:.3?}, of it gold {of_it:.3?}, {read} rows read for it"
        );
        gold.push(world.lines("gold.q", &world.columns("gold.q")).await);
    }
    assert_eq!(gold[0], gold[1]);
    assert_eq!(gold[0].len() as u64, STORES);
}
