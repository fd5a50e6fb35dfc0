//! The sentences of the contract, one by one.

#![allow(clippy::disallowed_methods, reason = "tests break files on purpose")]

use std::fs;

use serde_json::Value;

use super::oracle::{Cut, Emit, HOUR, Late, MINUTE, Rules, SECOND};
use super::world::{FILE, World, at, pipeline};

const ARRIVED: &[&str] = &["--trigger", "available_now"];
const FLUSHED: &[&str] = &["--trigger", "available_now", "--flush"];

fn finals(name: &str) -> Rules {
    Rules { emit: Emit::Final, ..Rules::plain(name) }
}

/// `start|n` of a table, hours of 2026-03-10 by number.
fn hours(world: &World, table: &str) -> Vec<(i64, i64)> {
    let midnight = at("2026-03-10T00:00:00Z");
    let lines = world.table(table, "SELECT window_start, n FROM t");
    let cells = lines.iter().map(|line| line.split_once('|').expect("two columns"));
    let number = |text: &str| text.parse::<i64>().expect("a number");
    let mut hours: Vec<(i64, i64)> = cells.map(|(start, n)| ((number(start) - midnight) / HOUR, number(n))).collect();
    hours.sort_unstable();
    hours
}

fn hour(hour: i64, minute: i64) -> String {
    format!("2026-03-10T{hour:02}:{minute:02}:00Z")
}

fn put(world: &mut World, file: &str, times: &[(i64, i64)]) {
    let times: Vec<String> = times.iter().map(|(h, m)| hour(*h, *m)).collect();
    world.events(file, &times.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Actions of a table's commits, oldest first.
fn actions(world: &World, table: &str) -> Vec<Vec<Value>> {
    let folder = world.path("lake").join(table.replace('.', "/")).join("_delta_log");
    let mut paths: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    let parse = |line: &str| serde_json::from_str(line).expect("JSON");
    paths.iter().map(|path| fs::read_to_string(path).expect("readable").lines().map(parse).collect()).collect()
}

/// The watermark of a table in each plan.
fn watermarks(world: &World, table: &str) -> Vec<Option<i64>> {
    world.plans().values().map(|planned| planned.watermarks.get(table).copied()).collect()
}

#[test]
fn a_partition_that_falls_idle_lets_windows_close_in_a_batch_without_rows() {
    let mut world = World::new("idle", &[Rules { idle: SECOND, ..finals("gold.hours") }], 100);
    put(&mut world, "slow.ndjson", &[(8, 10)]);
    put(&mut world, "fast.ndjson", &[(8, 20)]);
    world.run(ARRIVED).success();
    std::thread::sleep(std::time::Duration::from_millis(600));
    put(&mut world, "fast.ndjson", &[(12, 0)]);
    world.run(ARRIVED).success();
    let held = hours(&world, "gold.hours");
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    let run = world.run(ARRIVED).success();
    assert_eq!(hours(&world, "gold.hours"), [(8, 2)], "{}", run.report());
    let plans = world.plans();
    let last = plans.values().last().expect("a plan");
    // Where the machine was so slow that both were idle before, nothing was held back.
    if held.is_empty() {
        assert!(last.plan.ranges.is_empty(), "the closing batch reads nothing: {last:?}");
        assert_eq!(last.watermarks["gold.hours"], at(&hour(11, 30)));
    }
    world.run(ARRIVED).success();
    assert_eq!(world.plans().len(), plans.len(), "once it is closed there is nothing to do");
}

/// Whoever asks has read the name of a state, and reads its files while the next batch may be written.
#[test]
fn the_state_of_the_batch_before_can_be_read_after_every_batch() {
    let mut world = World::new("before", &[finals("gold.hours")], 100);
    for batch in 0..40 {
        put(&mut world, "a.ndjson", &[(8, batch)]);
        world.run(ARRIVED).success();
        if let Some(before) = batch.checked_sub(1).filter(|before| *before >= 0) {
            let before = before.to_string();
            let sql = "SELECT count(*) AS n FROM state.gold_hours";
            let asked = world.sandbox.tidegate(&["query", FILE, sql, "--at-batch", &before, "--output", "json"]).run();
            assert_eq!(asked.success().json()["rows"][0]["n"], 1, "batch {before}");
        }
    }
    let files = fs::read_dir(world.path("lake/_tidegate/state/gold.hours")).expect("the state").count();
    assert!(files < 60, "{files} files: old ones are let go of");
}

#[test]
fn without_any_rows_for_long_enough_what_is_open_is_closed_and_later_rows_are_late() {
    let mut world = World::new("idle-after", &[Rules { idle_after: Some(SECOND / 2), ..finals("gold.hours") }], 100);
    put(&mut world, "a.ndjson", &[(8, 10), (9, 50)]);
    world.run(ARRIVED).success();
    std::thread::sleep(std::time::Duration::from_millis(600));
    let run = world.run(ARRIVED).success();
    assert_eq!(hours(&world, "gold.hours"), [(8, 1), (9, 1)], "{}", run.report());
    assert_eq!(world.plans().values().last().expect("a plan").watermarks["gold.hours"], at(&hour(10, 0)));
    put(&mut world, "a.ndjson", &[(9, 55), (10, 0)]);
    world.run(FLUSHED).success();
    assert_eq!(hours(&world, "gold.hours"), [(8, 1), (9, 1), (10, 1)]);
    assert_eq!(world.letters()["gold.hours"], ["late|a.ndjson|2"]);
}

#[test]
fn a_closed_session_takes_no_more_rows() {
    let sessions = Rules { cut: Cut::Session(20 * MINUTE), idle_after: Some(SECOND / 2), ..finals("gold.sessions") };
    let mut world = World::new("closed-session", std::slice::from_ref(&sessions), 100);
    put(&mut world, "a.ndjson", &[(8, 0)]);
    world.run(ARRIVED).success();
    std::thread::sleep(std::time::Duration::from_millis(600));
    world.run(ARRIVED).success();
    // Within the gap, and not late by itself: it would end at 8:30.
    put(&mut world, "a.ndjson", &[(8, 10)]);
    world.run(FLUSHED).success();
    let sql = "SELECT window_start, window_end, n FROM t";
    let line = |from: i64, to: i64| format!("{}|{}|1", at(&hour(8, from)), at(&hour(8, to)));
    assert_eq!(world.table("gold.sessions", sql), [line(0, 20), line(10, 30)]);
}

#[test]
fn a_flush_closes_what_is_open_in_a_batch_without_rows_and_only_then() {
    let mut world = World::new("flush", &[finals("gold.hours"), Rules::plain("gold.live")], 100);
    put(&mut world, "a.ndjson", &[(8, 10), (9, 10)]);
    world.run(ARRIVED).success();
    assert_eq!((hours(&world, "gold.hours"), hours(&world, "gold.live")), (vec![], vec![(8, 1), (9, 1)]));
    world.run(FLUSHED).success();
    assert_eq!(hours(&world, "gold.hours"), [(8, 1), (9, 1)]);
    assert_eq!(world.plans().len(), 2);
    let again = world.run(FLUSHED).success();
    assert_eq!(world.plans().len(), 2, "nothing is open{}", again.report());
}

#[test]
fn a_window_is_closed_when_its_end_is_the_watermark_and_a_row_is_late_then() {
    let mut world = World::new("edge", &[Rules { delay: 0, ..finals("gold.hours") }], 1);
    // Closes 8 to 9 exactly; a row of it is late, a row of the next is not.
    put(&mut world, "a.ndjson", &[(8, 59), (9, 0), (8, 59), (9, 59)]);
    world.run(ARRIVED).success();
    assert_eq!(hours(&world, "gold.hours"), [(8, 1)]);
    assert_eq!(world.letters()["gold.hours"], ["late|a.ndjson|2"]);
    let marks = [None, Some(at(&hour(8, 59))), Some(at(&hour(9, 0))), Some(at(&hour(9, 0)))];
    assert_eq!(watermarks(&world, "gold.hours"), marks);
}

#[test]
fn rows_of_one_batch_are_judged_by_the_watermark_from_before_it() {
    let mut world = World::new("order", &[Rules { delay: 0, ..finals("gold.hours") }], 100);
    put(&mut world, "a.ndjson", &[(8, 10), (15, 0), (8, 20)]);
    world.run(ARRIVED).success();
    assert_eq!(hours(&world, "gold.hours"), [(8, 2)]);
    assert!(world.letters().is_empty());
}

#[test]
fn the_slowest_partition_holds_the_watermark() {
    let mut world = World::new("slowest", &[finals("gold.hours")], 100);
    put(&mut world, "a.ndjson", &[(8, 10), (20, 0)]);
    put(&mut world, "b.ndjson", &[(8, 40)]);
    world.run(ARRIVED).success();
    assert_eq!(hours(&world, "gold.hours"), []);
    put(&mut world, "b.ndjson", &[(8, 50), (9, 30)]);
    world.run(ARRIVED).success();
    assert_eq!(hours(&world, "gold.hours"), [(8, 3)]);
    assert_eq!(watermarks(&world, "gold.hours"), [None, Some(at(&hour(8, 10)))]);
}

#[test]
fn rows_of_final_windows_never_change() {
    let finals = [finals("gold.hours"), Rules { cut: Cut::Session(20 * MINUTE), ..finals("gold.sessions") }];
    let mut world = World::new("final", &finals, 2);
    put(&mut world, "a.ndjson", &[(8, 10), (9, 10), (10, 10), (8, 15), (11, 10), (9, 12), (12, 10), (12, 12)]);
    world.run(ARRIVED).success();
    put(&mut world, "a.ndjson", &[(9, 30), (14, 10)]);
    world.run(FLUSHED).success();
    for table in ["gold.hours", "gold.sessions"] {
        let commits = actions(&world, table);
        assert!(commits.iter().flatten().filter(|action| action.get("add").is_some()).count() > 2, "{table} grew");
        let removes: Vec<&Value> = commits.iter().flatten().filter(|action| action.get("remove").is_some()).collect();
        assert!(removes.is_empty(), "{table}: {removes:?}");
    }
}

#[test]
fn a_new_aggregate_in_a_pipeline_that_has_run_starts_whole() {
    let mut world = World::new("newcomer", &[finals("gold.hours")], 2);
    put(&mut world, "a.ndjson", &[(8, 10), (9, 10), (10, 10), (8, 15)]);
    world.run(ARRIVED).success();
    let tables = [finals("gold.hours"), finals("gold.same"), Rules::plain("gold.live")];
    world.sandbox.write(FILE, &pipeline(&tables, 2));
    put(&mut world, "a.ndjson", &[(8, 16), (11, 40)]);
    world.run(ARRIVED).success();
    assert_eq!(hours(&world, "gold.same"), hours(&world, "gold.hours"));
    assert_eq!(hours(&world, "gold.same"), [(8, 2), (9, 1), (10, 1)]);
    assert_eq!(hours(&world, "gold.live"), [(8, 2), (9, 1), (10, 1), (11, 1)]);
    let letters = world.letters();
    assert_eq!(letters["gold.hours"], ["late|a.ndjson|4"]);
    assert_eq!((&letters["gold.same"], &letters["gold.live"]), (&letters["gold.hours"], &letters["gold.hours"]));
}

#[test]
fn another_key_window_or_measure_is_refused_naming_rebuild_and_a_rebuild_makes_it_so() {
    let rules = Rules::plain("gold.hours");
    type Change<'a> = (&'a str, &'a dyn Fn(String) -> String, &'a str);
    let changes: [Change<'_>; 4] = [
        ("by", &|text| text.replace("by: [k]", "by: [s]"), "∅"),
        ("window", &|text| text.replace("tumbling: 1h", "tumbling: 30m"), "a"),
        ("no window", &|text| text.replace("      window: {tumbling: 1h}\n", ""), "a"),
        ("measure", &|text| text.replace("n: count(*)", "n: count(*) + 100"), "a"),
    ];
    for (what, change, key) in changes {
        let mut world = World::new("changed", std::slice::from_ref(&rules), 100);
        put(&mut world, "a.ndjson", &[(8, 10), (8, 50), (9, 10)]);
        world.run(ARRIVED).success();
        let before = world.table("gold.hours", "SELECT k, n FROM t");
        assert_eq!(before, ["a|1", "a|2"]);
        let changed = change(pipeline(std::slice::from_ref(&rules), 100));
        assert_ne!(changed, pipeline(std::slice::from_ref(&rules), 100), "{what}");
        world.sandbox.write(FILE, &changed);
        put(&mut world, "a.ndjson", &[(9, 20)]);
        let run = world.run(ARRIVED).code(&[78]).says("tidegate rebuild").says("gold.hours");
        assert_eq!(world.table("gold.hours", "SELECT k, n FROM t"), before, "{what}{}", run.report());
        assert_eq!(world.plans().len(), 1, "{what}{}", run.report());
        let rebuild = ["rebuild", FILE, "--table", "gold.hours", "--yes", "--output", "json"];
        world.sandbox.tidegate(&rebuild).run().success();
        let run = world.run(ARRIVED).success();
        let column = if what == "by" { "s" } else { "k" };
        let after = world.table("gold.hours", &format!("SELECT {column}, n FROM t"));
        let expected: &[i64] = match what {
            "window" => &[1, 1, 2],
            "no window" => &[4],
            "measure" => &[102, 102],
            _ => &[2, 2],
        };
        let expected: Vec<String> = expected.iter().map(|n| format!("{key}|{n}")).collect();
        assert_eq!(after, expected, "{what}{}", run.report());
    }
}

#[test]
fn a_state_beyond_its_limit_is_refused_before_anything_is_written_and_a_higher_limit_goes_on() {
    let rules = Rules::plain("gold.hours");
    let limited = |limit: &str| {
        pipeline(std::slice::from_ref(&rules), 10_000)
            .replace("    aggregate:\n", &format!("    state: {{limit: {limit}}}\n    aggregate:\n"))
    };
    let mut world = World::new("limit", std::slice::from_ref(&rules), 10_000);
    world.sandbox.write(FILE, &limited("200KB"));
    put(&mut world, "a.ndjson", &[(8, 10)]);
    world.run(ARRIVED).success();
    let before = [world.table("bronze.events", "SELECT t FROM t"), world.table("gold.hours", "SELECT n FROM t")];
    let many = (0..5_000).map(|n| {
        let key = format!("a customer with a number as long as {n:030}");
        Some(super::oracle::Event { k: Some(key), t: Some(at(&hour(8, 11))), v: Some(n), ..Default::default() })
    });
    world.append("a.ndjson", many.collect());
    for _ in 0..2 {
        let run = world.run(ARRIVED).code(&[65]).says("the state of gold.hours would need").says("state: {limit:");
        let after = [world.table("bronze.events", "SELECT t FROM t"), world.table("gold.hours", "SELECT n FROM t")];
        assert_eq!(after, before, "{}", run.report());
    }
    world.sandbox.write(FILE, &limited("200MB"));
    world.run(ARRIVED).success();
    assert_eq!(world.table("gold.hours", "SELECT count(*) FROM t"), ["5001"]);
}

#[test]
fn measures_that_cannot_be_are_refused_with_their_place() {
    let world = World::new("measures", &[], 10);
    for (measure, by, says) in [
        ("sum(missing)", "k", "missing"),
        ("count(*)", "missing", "missing"),
        ("sum(count(*))", "k", "count"),
        ("v", "k", "v"),
        ("sum(distinct v)", "k", "distinct"),
        ("median(v)", "k", "median"),
        ("sum(k)", "k", "sum"),
    ] {
        let text = pipeline(&[Rules { by: vec![by], ..Rules::plain("gold.hours") }], 10);
        world.sandbox.write(FILE, &text.replace("n: count(*)", &format!("n: {measure}")));
        let run = world.sandbox.tidegate(&["validate", FILE]).run();
        assert_eq!(run.status.code(), Some(78), "{measure} by {by}{}", run.report());
        let said = run.stderr.to_lowercase();
        assert!(said.contains(says) && said.contains("events.yaml:"), "{measure} by {by}{}", run.report());
    }
}

#[test]
fn late_rows_are_worked_in_for_as_long_as_was_said() {
    let kept = Rules { late: Late::Update(2 * HOUR), ..Rules::plain("gold.hours") };
    let mut world = World::new("kept", &[kept], 1);
    put(&mut world, "a.ndjson", &[(8, 10), (10, 0), (8, 20), (11, 29), (8, 30), (11, 30), (8, 40)]);
    world.run(ARRIVED).success();
    assert_eq!(hours(&world, "gold.hours"), [(8, 3), (10, 1), (11, 2)]);
    assert_eq!(world.letters()["gold.hours"], ["late|a.ndjson|6"]);
    let late = |record: &Value| record["expectations"]["gold.hours.late"].as_u64().unwrap_or(0);
    assert_eq!(world.log("commits").values().map(late).collect::<Vec<_>>(), [0, 0, 1, 0, 1, 0, 1]);
}

/// A kill between the state file and the table's commit, and right after the commit.
#[cfg(feature = "failpoints")]
#[test]
fn killed_around_the_commit_of_the_table_its_rows_and_its_memory_agree() {
    // Two tables remember: the first and the second file of the batch.
    let points = [
        "state.put@1=torn",
        "state.put.done@1=kill",
        "state.put.done@2=kill",
        "applied@4=kill",
        "commit@1=kill",
        "committed@1=kill",
    ];
    for orders in points {
        let mut world = World::new("between", &[finals("gold.hours"), Rules::plain("gold.live")], 100);
        put(&mut world, "a.ndjson", &[(8, 10), (9, 40)]);
        world.run(ARRIVED).success();
        put(&mut world, "a.ndjson", &[(9, 45), (8, 12), (10, 40)]);
        let run =
            world.sandbox.tidegate(&["run", FILE, "--trigger", "available_now"]).env("TIDEGATE_FAIL", orders).run();
        assert_eq!(run.status.code(), None, "{orders}{}", run.report());
        let planned = watermarks(&world, "gold.hours");
        assert_eq!(planned.len(), 2, "{orders}{}", run.report());
        // Rows that come meanwhile are of another batch, and judged by what the first showed.
        put(&mut world, "a.ndjson", &[(8, 13), (11, 40)]);
        let run = world.run(ARRIVED).success();
        assert_eq!(watermarks(&world, "gold.hours")[..2], planned, "a replay sees the same watermark");
        assert_eq!(planned[1], Some(at(&hour(9, 10))));
        assert_eq!(hours(&world, "gold.hours"), [(8, 1), (9, 2), (10, 1)], "{orders}{}", run.report());
        assert_eq!(hours(&world, "gold.live"), [(8, 1), (9, 2), (10, 1), (11, 1)], "{orders}{}", run.report());
        assert_eq!(world.letters()["gold.hours"], ["late|a.ndjson|3", "late|a.ndjson|5"], "{orders}");
    }
}
