//! Refresh tables that follow what changed upstream hold what their SQL makes of the whole table: whatever the batches, and
//! whoever else writes. Where they follow it, no row of a group is read again.

mod measure;
mod random;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use object_store::ObjectStoreExt as _;
use tidegate::table::Change;

use self::random::compact;
use self::world::{NULL, World};

const SQL: &str = "SELECT day, store, count(*) AS orders, sum(amount) AS revenue, count(amount) AS paid FROM silver.t \
                   WHERE status <> 'cancelled' GROUP BY day, store";

fn yaml(sql: &str) -> String {
    format!(
        "version: 1
name: world
lake: /lake
checkpoints: /checkpoints
source:
  files: {{path: /landing, pattern: \"*.ndjson\"}}
  format: json
  schema: {{id: string not null, store: string, day: string, amount: int, ratio: double, status: string, at: timestamp}}
dead_letters: off
tables:
  silver.t:
    from: source
    sql: SELECT id, store, day, amount, ratio, status, at FROM batch
    write: {{upsert: {{key: id}}}}
  gold.q:
    from: silver.t
    sql: |
      {sql}
    write: {{refresh: {{by: day}}}}
"
    )
}

/// Order `id` of a store on a day; a negative amount is a cancelled order.
fn line(id: u32, day: &str, amount: i64) -> String {
    let status = if amount < 0 { "cancelled" } else { "paid" };
    serde_json::json!({"id": format!("k{id}"), "store": "s", "day": day, "amount": amount, "status": status})
        .to_string()
}

/// What [`SQL`] makes of silver as it is.
async fn expected(world: &World) -> Vec<String> {
    let mut groups: BTreeMap<(String, String), (u64, i64)> = BTreeMap::new();
    for row in world.lines("silver.t", &["day", "store", "status", "amount"].map(String::from)).await {
        let [day, store, status, amount] = row.split('|').collect::<Vec<_>>()[..] else { panic!("{row}") };
        if status != "cancelled" {
            let group = groups.entry((day.to_string(), store.to_string())).or_default();
            *group = (group.0 + 1, group.1 + amount.parse::<i64>().expect("a number"));
        }
    }
    groups.iter().map(|((day, store), (orders, sum))| format!("{day}|{store}|{orders}|{sum}|{orders}")).collect()
}

#[track_caller]
fn assert_lines(found: Vec<String>, expected: Vec<String>) {
    assert_eq!(found, expected);
}

async fn assert_gold(world: &World) {
    assert_lines(world.lines("gold.q", &world.columns("gold.q")).await, expected(world).await);
}

/// Ten orders on each of two days, then one line a batch.
async fn world(more: &[String]) -> World {
    let mut lines: Vec<String> = (0..20).map(|id| line(id, ["mon", "tue"][id as usize % 2], 10)).collect();
    lines.extend(more.iter().cloned());
    let mut world = World::new(&yaml(SQL), &lines).await;
    world.batch(20).await.expect("the first batch");
    assert_eq!(world.reads("silver.t").1, 20, "a new table is computed whole");
    world
}

/// The next batch, and how many rows of silver were read for it.
async fn next(world: &mut World, until: usize) -> u64 {
    world.reads("silver.t");
    world.batch(until).await.expect("a batch").expect("rows");
    world.reads("silver.t").1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_known_is_not_read_again() {
    let more = [
        line(0, "mon", 99),
        line(1, "mon", 10),
        line(2, "mon", -1),
        line(40, "wed", 7),
        line(40, "wed", 8),
        line(3, "wed", 1),
    ];
    let mut world = world(&more).await;
    // Another amount; from one day to the other; cancelled.
    for until in 21..24 {
        assert_eq!(next(&mut world, until).await, 0);
        assert_gold(&world).await;
    }
    assert_eq!(next(&mut world, 24).await, 1, "a day that is new has one row");
    assert_eq!(next(&mut world, 25).await, 0);
    world.restart();
    assert_eq!(next(&mut world, 26).await, 10 + 1 - 2 + 1, "after a start both of its days are read");
    assert_gold(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_changes_no_row_and_a_group_stays_known() {
    let mut world = world(&[line(0, "mon", 1), line(1, "tue", 2)]).await;
    next(&mut world, 21).await;
    compact(&world, "silver.t").await;
    compact(&world, "gold.q").await;
    assert_eq!(next(&mut world, 22).await, 0);
    assert_gold(&world).await;
}

/// A row of silver as a backfill would write it.
async fn foreign(world: &World, day: &str) -> Change {
    let mut silver = world.open("silver.t");
    let rows = silver.read(&world.columns("silver.t"), None).await.expect("rows");
    let row = rows.iter().find(|rows| rows.num_rows() > 0).expect("a row").slice(0, 1);
    let mut columns = row.columns().to_vec();
    for (name, value) in [("id", "z"), ("day", day)] {
        columns[row.schema().index_of(name).expect("a column")] = Arc::new(StringArray::from(vec![value])) as ArrayRef;
    }
    Change::Rows(vec![RecordBatch::try_new(row.schema(), columns).expect("a row")])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_upstream_between_two_batches_is_read() {
    let mut world = world(&[line(0, "mon", 1), line(2, "mon", 2), line(4, "mon", 3)]).await;
    let change = foreign(&world, "mon").await;
    let txn = World::beside("silver.t", 0);
    let mut silver = world.open("silver.t");
    silver.observe(&txn.app_id).await.expect("a table");
    silver.apply(change, &txn).await.expect("a backfill that was killed after silver");
    assert_eq!(next(&mut world, 21).await, 11);
    assert_gold(&world).await;
    assert_eq!(next(&mut world, 22).await, 0, "and from then on it is known again");
    assert_gold(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_upstream_while_a_batch_is_applied_is_read() {
    let mut world = world(&[line(0, "mon", 1), line(2, "mon", 2), line(4, "mon", 3)]).await;
    let change = foreign(&world, "mon").await;
    world.stage.lock().expect("a stage").intruders.insert("silver.t".into(), (change, World::beside("silver.t", 0)));
    assert_eq!(next(&mut world, 21).await, 11);
    assert_gold(&world).await;
    assert_eq!(next(&mut world, 22).await, 0);
    assert_gold(&world).await;
}

/// What a backfill writes into gold that no group of silver stands behind, as of before.
fn gone(world: &World) -> Change {
    let definition = world.open("gold.q").definition().schema.clone();
    let cell = |field: &Arc<Field>| -> ArrayRef {
        match field.name().as_str() {
            "day" => Arc::new(StringArray::from(vec!["sun"])),
            _ => arrow::array::new_null_array(field.data_type(), 1),
        }
    };
    let row = RecordBatch::try_new(definition.clone(), definition.fields().iter().map(cell).collect()).expect("a row");
    Change::Groups {
        groups: row.project(&[definition.index_of("day").expect("a column")]).expect("a group"),
        rows: vec![row],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_a_backfill_filled_before_its_first_batch_starts_whole_too() {
    let lines = [line(0, "mon", 1), line(1, "tue", 2), line(2, "tue", 3)];
    let text = yaml(SQL);
    let (before, _) = text.split_once("  gold.q:").expect("the last table");
    let mut world = World::new(before, &lines).await;
    world.batch(2).await.expect("a batch without gold");
    let mut world = world.with(&text);
    let txn = World::beside("gold.q", 0);
    let mut gold = world.open("gold.q");
    gold.observe(&txn.app_id).await.expect("no table yet");
    gold.apply(gone(&world), &txn).await.expect("a commit");
    assert_eq!(world.lines("gold.q", &["day".into()]).await, ["sun"]);
    world.batch(3).await.expect("a batch");
    assert_gold(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_finished_however_much_others_have_committed_upstream_meanwhile() {
    let mut world = world(&[line(0, "tue", 1), line(40, "wed", 2)]).await;
    world.stage.lock().expect("a stage").failing.insert("gold.q".into());
    world.batch(21).await.expect_err("gold is not committed");
    world.restart();
    let log = |version: u64| format!("silver/t/_delta_log/{version:020}.json").into();
    let nothing = "{\"commitInfo\":{\"timestamp\":0,\"operation\":\"WRITE\"}}";
    let newest = world.open("silver.t").observe("x").await.expect("a table").version.expect("a version");
    for version in 1..=1_001 {
        let version = newest.unsigned_abs() + version;
        world.lake.store.put(&log(version), nothing.into()).await.expect("memory");
    }
    for until in [21, 22] {
        world.batch(until).await.expect("a batch");
        assert_gold(&world).await;
    }
}

/// A group of gold, and rows for it that no SQL has computed.
async fn wrong(world: &World, day: &str) -> Change {
    let mut gold = world.open("gold.q");
    let schema = Arc::new(Schema::new(vec![Field::new("day", DataType::Utf8, true)]));
    let groups = RecordBatch::try_new(schema, vec![Arc::new(StringArray::from(vec![day]))]).expect("a group");
    let rows = gold.read(&world.columns("gold.q"), Some(&groups)).await.expect("rows");
    let twice = rows.iter().chain(&rows).cloned().collect();
    Change::Groups { groups, rows: twice }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_make_of_a_group_is_computed_again() {
    let mut world = world(&[line(0, "mon", 1), line(1, "tue", 2), line(2, "mon", 3)]).await;
    // Between two batches, and while the second is applied.
    let txn = World::beside("gold.q", 0);
    let mut gold = world.open("gold.q");
    gold.observe(&txn.app_id).await.expect("a table");
    gold.apply(wrong(&world, "mon").await, &txn).await.expect("a commit");
    assert_eq!(next(&mut world, 21).await, 10);
    assert_gold(&world).await;
    let change = wrong(&world, "tue").await;
    world.stage.lock().expect("a stage").intruders.insert("gold.q".into(), (change, World::beside("gold.q", 1)));
    // Tue is not known since others were at work, and who comes second computes again.
    assert_eq!(next(&mut world, 22).await, 20, "once for each attempt");
    assert_gold(&world).await;
    assert_eq!(next(&mut world, 23).await, 10, "and mon, which somebody could have changed, too");
    assert_gold(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_ended_between_two_tables_is_computed_from_all_rows() {
    let more = [line(0, "mon", 1), line(2, "mon", 2), line(4, "mon", 5), line(4, "mon", 6)];
    let mut world = world(&more).await;
    for (until, dies) in [(21, false), (22, true)] {
        world.stage.lock().expect("a stage").failing.insert("gold.q".into());
        world.batch(until).await.expect_err("gold is not committed");
        if dies {
            world.restart();
        }
        // Of a commit that was made earlier only the files are known, and they hold both days.
        assert!(next(&mut world, until).await >= 10);
        assert_gold(&world).await;
    }
    // Which version of silver gold is of, a batch knows that has written both.
    assert_eq!(next(&mut world, 23).await, 10);
    assert_eq!(next(&mut world, 24).await, 0);
    assert_gold(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sum_too_large_is_left_to_the_engine() {
    let large = i64::from(i32::MAX) - 5;
    let lines = [line(1, "mon", 1), line(2, "mon", 2), line(1, "mon", large), line(3, "mon", 9)];
    let sql = "SELECT day, count(*) AS n, sum(amount) AS total FROM silver.t GROUP BY day";
    let twin = format!(
        "{}  twin.q:\n    from: silver.t\n    sql: {sql}\n    write: {{refresh: {{by: day, incremental: false}}}}\n",
        yaml(sql)
    );
    let mut world = World::new(&twin, &lines).await;
    assert_eq!(world.upkeep("twin.q"), "recomputed per group, because it says `incremental: false`");
    for until in 2..=4 {
        world.batch(until).await.expect("a batch");
        let columns = world.columns("gold.q");
        assert_eq!(world.lines("gold.q", &columns).await, world.lines("twin.q", &columns).await, "up to {until}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sum_of_nothing_is_null_and_a_group_of_nothing_is_gone() {
    let null = |id: u32, day: &str| {
        serde_json::json!({"id": format!("k{id}"), "store": "s", "day": day, "status": "paid"}).to_string()
    };
    let lines = [line(1, "mon", 1), null(2, "mon"), null(1, "mon"), line(1, "tue", 5), line(2, "tue", 6)];
    // With a count of what is summed up, and without.
    for (count, reads) in [(", count(amount) AS c", [0, 0, 0]), ("", [2, 0, 1])] {
        let sql = format!("SELECT day, count(*) AS n, sum(amount) AS total{count} FROM silver.t GROUP BY day");
        let mut world = World::new(&yaml(&sql), &lines).await;
        let columns = ["day", "n", "total"].map(String::from);
        world.batch(2).await.expect("a batch");
        assert_eq!(world.lines("gold.q", &columns).await, ["mon|2|1"]);
        assert_eq!(next(&mut world, 3).await, reads[0]);
        assert_eq!(world.lines("gold.q", &columns).await, [format!("mon|2|{NULL}")]);
        // Tuesday is new.
        next(&mut world, 4).await;
        assert_eq!(world.lines("gold.q", &columns).await, [format!("mon|1|{NULL}"), "tue|1|5".to_string()]);
        assert_eq!(next(&mut world, 5).await, reads[1]);
        assert_eq!(world.lines("gold.q", &columns).await, ["tue|2|11"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_kept_from_changes_is_said_and_why_not() {
    let cases = [
        (SQL, Ok(())),
        ("SELECT day, count(*) AS n FROM silver.t GROUP BY day", Ok(())),
        (
            "SELECT t.day, lower(store) AS s, count(*) AS n, sum(t.amount * 2) AS a FROM silver.t t GROUP BY t.day, s",
            Ok(()),
        ),
        ("SELECT day, CAST(at AS DATE) AS d, count(*) AS n FROM silver.t GROUP BY day, CAST(at AS DATE)", Ok(())),
        ("SELECT day, min(amount) AS m, count(*) AS n FROM silver.t GROUP BY day", Err("it has min(amount)")),
        ("SELECT day, avg(amount) AS m, count(*) AS n FROM silver.t GROUP BY day", Err("it has avg(amount)")),
        (
            "SELECT day, count(DISTINCT id) AS m, count(*) AS n FROM silver.t GROUP BY day",
            Err("it has count(DISTINCT id)"),
        ),
        ("SELECT day, sum(amount) + 1 AS m, count(*) AS n FROM silver.t GROUP BY day", Err("it has sum(amount) + 1")),
        ("SELECT day, sum(1) AS m, count(*) AS n FROM silver.t GROUP BY day", Err("it has sum(1)")),
        (
            "SELECT day, sum(ratio) AS r, count(*) AS n FROM silver.t GROUP BY day",
            Err("sum(ratio) is Float64, which rounds differently in another order"),
        ),
        (
            "SELECT day, ratio, count(*) AS n FROM silver.t GROUP BY day, ratio",
            Err("it groups by `ratio`, which is Float64"),
        ),
        (
            "SELECT day, sum(amount) AS m FROM silver.t GROUP BY day",
            Err("it has no count(*), which tells when a group is gone"),
        ),
        ("SELECT day, count(*) AS n FROM silver.t GROUP BY day HAVING count(*) > 1", Err("it has HAVING")),
        ("SELECT day, count(*) AS n FROM silver.t GROUP BY day ORDER BY n LIMIT 3", Err("it has ORDER BY")),
        (
            "SELECT day, count(*) AS n FROM silver.t GROUP BY day, store",
            Err("it groups by what is not one of its columns"),
        ),
        ("SELECT DISTINCT day, store FROM silver.t", Err("it has DISTINCT")),
        ("SELECT * FROM silver.t", Err("it has no GROUP BY")),
        (
            "SELECT a.day, count(*) AS n FROM silver.t a JOIN silver.t b ON a.id = b.id GROUP BY a.day",
            Err("it joins: JOIN silver.t b ON a.id = b.id"),
        ),
        ("WITH x AS (SELECT * FROM silver.t) SELECT day, count(*) AS n FROM x GROUP BY day", Err("it has WITH")),
        ("SELECT day, count(*) AS n FROM silver.t WHERE at < :batch_time GROUP BY day", Err("it has :batch_time")),
        (
            "SELECT day, lower(store) AS store, count(*) AS n FROM silver.t GROUP BY day, store",
            Err("`store` in its GROUP BY could be two columns"),
        ),
        (
            "SELECT day, CAST(store AS DATE) AS d, count(*) AS n FROM silver.t GROUP BY day, CAST(store AS DATE)",
            Err("it has CAST(store AS DATE)"),
        ),
    ];
    for (sql, outcome) in cases {
        let world = World::new(&yaml(sql), &[]).await;
        let expected = match outcome {
            Ok(()) => "maintained from changes".to_string(),
            Err(why) => format!("recomputed per group, because {why}"),
        };
        assert_eq!(world.upkeep("gold.q"), expected, "{sql}");
    }
}
