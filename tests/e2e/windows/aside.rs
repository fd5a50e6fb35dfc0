//! Windows beside whatever else is done to a pipeline: tables that join in the middle of a batch, letters that are replayed
//! first, rows that a backfill brought back, rows that upstream has let go of, positions that go back.

use tidegate::runner::clock::{Clock as _, SystemClock};

use super::super::bronze::delete;
use super::oracle::{Cut, DAY, Emit, HOUR, Rules, SECOND};
use super::world::{FILE, World, at, pipeline};
use crate::support::lake;
use crate::support::sandbox::Outcome;

const ARRIVED: &[&str] = &["--trigger", "available_now"];
const FLUSHED: &[&str] = &["--trigger", "available_now", "--flush"];

fn hours(name: &str, emit: Emit) -> Rules {
    Rules { emit, ..Rules::plain(name) }
}

fn put(world: &mut World, file: &str, times: &[&str]) {
    let times: Vec<String> = times.iter().map(|time| format!("2026-03-{time}:00Z")).collect();
    world.events(file, &times.iter().map(String::as_str).collect::<Vec<_>>());
}

/// `start|n`, days of March and hours.
fn counts(world: &World, table: &str) -> Vec<String> {
    let midnight = at("2026-03-01T00:00:00Z");
    let lines = world.table(table, "SELECT window_start, n FROM t");
    let mut counts: Vec<String> = lines
        .iter()
        .map(|line| {
            let (start, n) = line.split_once('|').expect("two columns");
            let start = start.parse::<i64>().expect("a time") - midnight;
            format!("{:02}T{:02} {n}", start.div_euclid(DAY) + 1, start.rem_euclid(DAY) / HOUR)
        })
        .collect();
    counts.sort();
    counts
}

fn command(world: &World, arguments: &[&str]) -> Outcome {
    world.sandbox.tidegate(arguments).run()
}

fn write(world: &World, tables: &[Rules]) {
    world.sandbox.write(FILE, &pipeline(tables, 100));
}

#[test]
fn rows_that_wait_are_not_late_because_nothing_came_for_long() {
    let rules = Rules { idle_after: Some(SECOND / 2), ..hours("gold.hours", Emit::Final) };
    let mut world = World::new("backlog", &[rules], 100);
    put(&mut world, "a.ndjson", &["10T08:10"]);
    // It does not look a second time, which could be long after the first.
    world.run(&["--trigger", "once"]).success();
    std::thread::sleep(std::time::Duration::from_millis(600));
    put(&mut world, "a.ndjson", &["10T08:50"]);
    world.run(FLUSHED).success();
    assert_eq!(counts(&world, "gold.hours"), ["10T08 2"]);
    assert!(world.letters().is_empty(), "{:?}", world.letters());
}

#[test]
fn rows_of_one_source_do_not_keep_windows_of_another_open() {
    let mut world = World::new("two-sources", &[], 100);
    world.sandbox.write(FILE, TWO);
    busy(&world, "a.ndjson", "x");
    put(&mut world, "a.ndjson", &["10T08:10"]);
    world.run(ARRIVED).success();
    std::thread::sleep(std::time::Duration::from_millis(600));
    busy(&world, "b.ndjson", "y");
    world.run(&["--trigger", "once"]).success();
    assert_eq!(counts(&world, "gold.hours"), ["10T08 1"]);
    assert_eq!(world.table("bronze.busy", "SELECT count(*) FROM t"), ["2"]);
}

#[test]
fn what_a_flush_closes_reaches_the_windows_below_before_they_are_closed() {
    let mut world = World::new("chain", &[hours("gold.hours", Emit::Final)], 100);
    let days = "  gold.days:
    from: gold.hours
    watermark: {delay: 1h}
    aggregate:
      window: {tumbling: 1d}
      by: [k]
      measures: {n: sum(n)}
    emit: final
dead_letters";
    world.sandbox.write(FILE, &pipeline(&[hours("gold.hours", Emit::Final)], 100).replace("dead_letters", days));
    put(&mut world, "a.ndjson", &["10T08:10", "10T12:10", "10T23:10", "10T23:20"]);
    world.run(ARRIVED).success();
    assert_eq!(counts(&world, "gold.hours"), ["10T08 1", "10T12 1"], "so that a day is open below");
    world.run(FLUSHED).success();
    assert_eq!(counts(&world, "gold.hours"), ["10T08 1", "10T12 1", "10T23 2"]);
    assert_eq!(counts(&world, "gold.days"), ["10T00 4"]);
    assert!(world.letters().is_empty(), "{:?}", world.letters());
}

#[cfg(feature = "failpoints")]
#[test]
fn a_table_that_joins_while_a_batch_is_pending_has_all_of_history_too() {
    let live = hours("gold.live", Emit::Update);
    let mut world = World::new("joins-pending", std::slice::from_ref(&live), 100);
    put(&mut world, "a.ndjson", &["10T08:10", "10T09:10"]);
    world.run(ARRIVED).success();
    put(&mut world, "a.ndjson", &["10T09:20"]);
    let killed =
        world.sandbox.tidegate(&["run", FILE, "--trigger", "available_now"]).env("TIDEGATE_FAIL", "read@1=kill");
    assert_eq!(killed.run().status.code(), None);
    write(&world, &[live, hours("gold.new", Emit::Update)]);
    world.run(ARRIVED).success();
    assert_eq!(counts(&world, "gold.live"), ["10T08 1", "10T09 2"]);
    assert_eq!(counts(&world, "gold.new"), counts(&world, "gold.live"));
}

#[test]
fn a_table_that_joins_before_letters_are_replayed_has_all_of_history_too() {
    let live = hours("gold.live", Emit::Update);
    let mut world = World::new("joins-letters", std::slice::from_ref(&live), 100);
    let strict = |tables: &[Rules], check: &str| {
        let rule = format!("    write: append\n    expect: {{known: {{check: {check}, else: quarantine}}}}\n");
        pipeline(tables, 100).replacen("    write: append\n", &rule, 1)
    };
    world.sandbox.write(FILE, &strict(std::slice::from_ref(&live), "t < TIMESTAMP '2026-03-10 09:15:00+00:00'"));
    put(&mut world, "a.ndjson", &["10T08:10", "10T09:10", "10T09:20"]);
    world.run(ARRIVED).success();
    assert_eq!(counts(&world, "gold.live"), ["10T08 1", "10T09 1"]);
    world.sandbox.write(FILE, &strict(&[live, hours("gold.new", Emit::Update)], "t IS NOT NULL"));
    command(&world, &["dlq", "replay", FILE, "--yes"]).success();
    world.run(ARRIVED).success();
    assert_eq!(counts(&world, "gold.live"), ["10T08 1", "10T09 2"]);
    assert_eq!(counts(&world, "gold.new"), counts(&world, "gold.live"));
}

#[cfg(feature = "failpoints")]
#[test]
fn a_lost_state_under_a_pending_batch_has_a_way_out() {
    let mut world =
        World::new("lost-pending", &[hours("gold.live", Emit::Update), hours("gold.hours", Emit::Final)], 100);
    put(&mut world, "a.ndjson", &["10T08:10", "10T09:10"]);
    world.run(ARRIVED).success();
    let record = world.log("commits").into_values().last().expect("a record");
    let state = record["tables"]["gold.live"]["state"].as_str().expect("a state").to_string();
    put(&mut world, "a.ndjson", &["10T09:20", "10T12:00"]);
    let killed =
        world.sandbox.tidegate(&["run", FILE, "--trigger", "available_now"]).env("TIDEGATE_FAIL", "read@1=kill");
    assert_eq!(killed.run().status.code(), None);
    std::fs::remove_file(world.path(&format!("lake/_tidegate/state/gold.live/{state}.parquet"))).expect("a file");
    world.run(ARRIVED).code(&[78]).says("tidegate rebuild events.yaml --table gold.live");
    command(&world, &["rebuild", FILE, "--table", "gold.live", "--yes"]).success();
    world.run(FLUSHED).success();
    assert_eq!(counts(&world, "gold.live"), ["10T08 1", "10T09 2", "10T12 1"]);
    assert_eq!(counts(&world, "gold.hours"), counts(&world, "gold.live"));
}

#[test]
fn rows_that_a_backfill_brought_back_are_worked_in_where_they_were_read() {
    let mut world = World::new("restored", &[hours("gold.hours", Emit::Final)], 100);
    for times in
        [["01T08:10", "01T09:10"], ["02T08:10", "02T09:10"], ["03T08:10", "03T09:10"], ["04T08:10", "04T09:10"]]
    {
        put(&mut world, "a.ndjson", &times);
        world.run(ARRIVED).success();
    }
    world.run(FLUSHED).success();
    let before = counts(&world, "gold.hours");
    assert_eq!(before.len(), 8);
    // As a backfill leaves them: the third day, and then the last.
    for day in ["03", "04"] {
        let (from, until) = (format!("2026-03-{day}T00:00:00Z"), format!("2026-03-{day}T23:00:00Z"));
        lake::change(
            &world.path("lake/bronze/events"),
            &[("_batch_id", "-1"), ("_ingested_at", "TIMESTAMP '2026-11-20T00:00:00Z'")],
            &format!("t >= '{from}' AND t < '{until}'"),
        );
        command(&world, &["rebuild", FILE, "--table", "gold.hours", "--yes"]).success();
        world.run(FLUSHED).success();
        assert_eq!(counts(&world, "gold.hours"), before, "{day}");
        assert!(world.letters().is_empty(), "{:?}", world.letters());
    }
}

#[test]
fn windows_that_upstream_has_let_go_of_stay_when_the_rest_is_computed_again() {
    let day = Rules { cut: Cut::Tumbling(DAY), by: vec!["s"], ..hours("gold.days", Emit::Update) };
    let mut world = World::new("let-go", &[day], 100);
    for day in 1..6 {
        let at_noon = |key: &str, customer: &str| {
            let time = at(&format!("2026-03-{day:02}T12:00:00Z"));
            let (k, s) = (Some(customer.to_string()), Some(key.to_string()));
            Some(super::oracle::Event { k, s, v: Some(1), t: Some(time), ..Default::default() })
        };
        world.append("a.ndjson", vec![at_noon("north", "ada"), at_noon("north", "bob"), at_noon("south", "eve")]);
        world.run(ARRIVED).success();
    }
    delete(&world.path("lake/bronze/events"), "t < '2026-03-03T00:00:00Z'");
    let days = |world: &World| world.table("gold.days", "SELECT s, n FROM t");
    let all: Vec<String> = (0..5).map(|_| "north|2".to_string()).chain((0..5).map(|_| "south|1".to_string())).collect();
    assert_eq!(days(&world), all);
    command(&world, &["rebuild", FILE, "--table", "gold.days", "--yes"]).success();
    assert_eq!(days(&world), all, "by rebuild");
    command(&world, &["forget", FILE, "--key", "k=ada", "--yes"]).success();
    // The first two days cannot be told apart any more.
    let mut left = all.clone();
    left.splice(0..3, (0..3).map(|_| "north|1".to_string()));
    assert_eq!(days(&world), left, "by forget");
    put(&mut world, "a.ndjson", &["05T13:00"]);
    world.run(ARRIVED).success();
    assert_eq!(days(&world).len(), 11, "what was computed again goes on");
    // Ada is read again, and only where upstream has the days.
    let rewind = ["offsets", "rewind", FILE, "--to", "batch:3"];
    let says = |text: &str, rewind: &[&str]| {
        let told = command(&world, rewind).success();
        assert!(told.stdout.contains(text), "{}", told.report());
    };
    says("windows that ended before the oldest of these stay as they are", &rewind);
    command(&world, &[&rewind[..], &["--yes"]].concat()).success();
    world.run(ARRIVED).success();
    // Of her five days the last; the first two were never taken out.
    let mut again: Vec<String> =
        ["north|1"; 2].into_iter().chain(["north|2"; 3]).chain(["south|1"; 5]).map(String::from).collect();
    again.push(format!("{}|1", lake::NULL));
    again.sort_unstable();
    assert_eq!(days(&world), again, "by rewind");
    let rewind = ["offsets", "rewind", FILE, "--to", "earliest"];
    says("its upstream does not reach back that far: all windows go", &rewind);
    command(&world, &[&rewind[..], &["--yes"]].concat()).success();
    world.run(ARRIVED).success();
    again.iter_mut().filter(|day| *day == "north|1").for_each(|day| *day = "north|2".to_string());
    assert_eq!(days(&world), again, "by a rewind to the beginning");
}

#[test]
fn old_windows_of_whoever_is_forgotten_go_although_they_cannot_be_computed_again() {
    let day = Rules { cut: Cut::Tumbling(DAY), ..hours("gold.days", Emit::Update) };
    let mut world = World::new("let-go-key", &[day], 100);
    for day in ["01", "02", "03"] {
        visit(&mut world, "a.ndjson", "ada", &format!("{day}T12:00"));
        visit(&mut world, "a.ndjson", "bob", &format!("{day}T12:00"));
        world.run(ARRIVED).success();
    }
    delete(&world.path("lake/bronze/events"), "t < '2026-03-02T00:00:00Z'");
    command(&world, &["forget", FILE, "--key", "k=ada", "--yes"]).success();
    assert_eq!(world.table("gold.days", "SELECT k, n FROM t"), ["bob|1", "bob|1", "bob|1"]);
}

#[test]
fn what_a_flush_closes_before_its_time_is_not_too_far_ahead_for_the_windows_below() {
    let day = Rules { cut: Cut::Day, ..hours("gold.days", Emit::Final) };
    let mut world = World::new("ahead", std::slice::from_ref(&day), 100);
    let months = "  gold.months:
    from: gold.days
    watermark: {delay: 1h}
    aggregate: {window: {calendar: month}, by: [k], measures: {n: sum(n)}}
    emit: final
dead_letters";
    world.sandbox.write(FILE, &pipeline(&[day], 100).replace("dead_letters", months));
    let now = SystemClock.now().to_rfc3339();
    world.events("a.ndjson", &[&now, &now]);
    world.run(FLUSHED).success();
    assert_eq!(world.table("gold.months", "SELECT n FROM t"), ["2"]);
    assert!(world.letters().is_empty(), "{:?}", world.letters());
}

/// Orders joined with their payments; tables below it are to be added.
const PAID: &str = "version: 1
name: events
lake: ./lake
checkpoints: ./checkpoints
sources:
  orders: {files: {path: orders}, format: json, schema: {id: string, at: timestamp, seen: timestamp}, event_time: at}
  payments: {files: {path: payments}, format: json, schema: {id: string, at: timestamp}, event_time: at}
dead_letters: {table: dlq.events}
tables:
  bronze.orders: {from: orders, write: append}
  bronze.payments: {from: payments, write: append}
  silver.paid:
    join: {left: bronze.orders, right: bronze.payments, on: id, within: 15m}
    watermark: {delay: 5m}
    write: append
";

/// A lake with [`PAID`] and this table below the join.
fn paid(test: &str, below: &str) -> World {
    let world = World::new(test, &[], 100);
    world.sandbox.write(FILE, &format!("{PAID}{below}"));
    for folder in ["orders", "payments"] {
        world.sandbox.write(&format!("{folder}/.keep"), "");
    }
    world
}

/// Orders or payments as a file of their own: id, and time on a day of March. They were `seen` at the same time in May.
fn arrive(world: &World, file: &str, rows: &[(&str, &str)]) {
    let line = |(id, time): &(&str, &str)| {
        format!("{{\"id\": \"{id}\", \"at\": \"2026-03-10T{time}:00Z\", \"seen\": \"2026-05-10T{time}:00Z\"}}\n")
    };
    world.sandbox.write(&format!("{file}.ndjson"), &rows.iter().map(line).collect::<String>());
}

#[test]
fn what_a_join_brings_in_time_is_not_late_for_the_windows_below() {
    let world = paid(
        "below-join",
        "  silver.passed: {from: silver.paid, sql: SELECT * FROM batch, write: append}
  gold.paid:
    from: silver.passed
    watermark: {delay: 1m}
    aggregate: {window: {tumbling: 10m}, measures: {n: count(*)}}
    emit: final
",
    );
    arrive(&world, "orders/a", &[("early", "10:30")]);
    arrive(&world, "orders/b", &[("late", "11:59")]);
    arrive(&world, "payments/fast", &[("late", "12:00")]);
    arrive(&world, "payments/slow", &[("other", "10:00")]);
    world.run(ARRIVED).success();
    assert_eq!(world.table("silver.paid", "SELECT id FROM t"), ["late"]);
    arrive(&world, "payments/slower", &[("early", "10:35")]);
    world.run(FLUSHED).success();
    assert_eq!(world.table("gold.paid", "SELECT n FROM t"), ["1", "1"]);
    assert!(world.letters().is_empty(), "{:?}", world.letters());
}

#[test]
fn a_join_whose_slow_partition_is_idle_holds_no_window_below_open() {
    let world = paid(
        "below-idle-join",
        "  gold.paid:
    from: silver.paid
    watermark: {delay: 1m}
    aggregate: {window: {tumbling: 10m}, measures: {n: count(*)}}
    emit: final
",
    );
    let text = std::fs::read_to_string(world.path(FILE)).expect("the file");
    world.sandbox.write(FILE, &text.replace("{delay: 5m}", "{delay: 5m, idle: 1s}"));
    arrive(&world, "orders/slow", &[("other", "10:00")]);
    world.run(&["--trigger", "once"]).success();
    for folder in ["orders", "payments"] {
        arrive(&world, &format!("{folder}/a"), &[("early", "10:30"), ("late", "12:00")]);
    }
    world.run(&["--trigger", "once"]).success();
    // Nothing comes any more; that is time passing, too.
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    world.run(ARRIVED).success();
    assert_eq!(world.table("gold.paid", "SELECT n FROM t"), ["1"]);
}

#[test]
fn a_time_that_is_not_the_joins_is_not_held_back_by_it() {
    let world = paid(
        "beside-join",
        "  gold.seen:
    from: silver.paid
    watermark: {delay: 1m, event_time: seen}
    aggregate: {window: {tumbling: 10m}, measures: {n: count(*)}}
    emit: final
",
    );
    for folder in ["orders", "payments"] {
        arrive(&world, &format!("{folder}/a"), &[("first", "10:00"), ("second", "10:20")]);
    }
    world.run(ARRIVED).success();
    assert_eq!(world.table("gold.seen", "SELECT n FROM t"), ["1"]);
}

#[cfg(feature = "failpoints")]
#[test]
fn a_patience_that_changes_under_a_pending_batch_is_refused() {
    let rules = Rules { idle: SECOND / 4, ..hours("gold.hours", Emit::Final) };
    let mut world = World::new("idle-changes", std::slice::from_ref(&rules), 100);
    put(&mut world, "a.ndjson", &["10T08:10"]);
    put(&mut world, "b.ndjson", &["10T08:20"]);
    world.run(ARRIVED).success();
    std::thread::sleep(std::time::Duration::from_millis(300));
    put(&mut world, "a.ndjson", &["10T12:00"]);
    let run = ["run", FILE, "--trigger", "once"];
    world.sandbox.tidegate(&run).env("TIDEGATE_FAIL", "commit@1=kill").run();
    assert_eq!(counts(&world, "gold.hours"), ["10T08 2"], "closed, and not committed");
    write(&world, &[Rules { idle: HOUR, ..rules.clone() }]);
    command(&world, &run).code(&[78]);
    write(&world, &[rules]);
    world.run(FLUSHED).success();
    assert_eq!(counts(&world, "gold.hours"), ["10T08 2", "10T12 1"]);
}

#[test]
fn what_was_closed_after_rows_that_are_read_again_is_open_for_them() {
    let rules = [hours("gold.hours", Emit::Final), hours("gold.live", Emit::Update)];
    let mut world = World::new("rewind-flush", &rules, 100);
    for times in [["10T08:10", "10T09:10"], ["10T10:10", "10T11:10"], ["10T12:10", "10T13:10"]] {
        put(&mut world, "a.ndjson", &times);
        world.run(ARRIVED).success();
    }
    world.run(FLUSHED).success();
    let before = counts(&world, "gold.hours");
    assert_eq!(before.len(), 6);
    for to in ["batch:0", "batch:1", "earliest"] {
        command(&world, &["offsets", "rewind", FILE, "--to", to, "--yes"]).success();
        world.run(FLUSHED).success();
        assert_eq!(counts(&world, "gold.hours"), before, "{to}");
        assert_eq!(counts(&world, "gold.live"), before, "{to}");
        assert!(world.letters().is_empty(), "{to}: {:?}", world.letters());
    }
}

#[test]
fn windows_stay_where_upstream_has_no_row_at_all() {
    let total = Rules { cut: Cut::None, ..hours("gold.total", Emit::Update) };
    let mut world = World::new("let-go-all", &[hours("gold.live", Emit::Update), total], 100);
    put(&mut world, "a.ndjson", &["10T08:10", "10T09:10"]);
    world.run(ARRIVED).success();
    delete(&world.path("lake/bronze/events"), "v = 1");
    let rebuild = ["rebuild", FILE, "--table", "gold.live", "--table", "gold.total", "--yes"];
    command(&world, &rebuild).success();
    assert_eq!(counts(&world, "gold.live"), ["10T08 1", "10T09 1"]);
    assert_eq!(world.table("gold.total", "SELECT n FROM t"), ["2"]);
}

fn visit(world: &mut World, file: &str, who: &str, time: &str) {
    let (k, t) = (Some(who.to_string()), Some(at(&format!("2026-03-{time}:00Z"))));
    world.append(file, vec![Some(super::oracle::Event { k, v: Some(1), t, ..Default::default() })]);
}

#[test]
fn without_the_rows_of_the_forgotten_time_does_not_go_back() {
    let mut world = World::new("forget-newest", &[hours("gold.hours", Emit::Final)], 100);
    visit(&mut world, "a.ndjson", "bob", "10T08:10");
    visit(&mut world, "a.ndjson", "ada", "10T12:00");
    world.run(ARRIVED).success();
    for _ in 0..2 {
        assert_eq!(counts(&world, "gold.hours"), ["10T08 1"], "closed by what ada did");
        command(&world, &["forget", FILE, "--key", "k=ada", "--yes"]).success();
    }
    visit(&mut world, "a.ndjson", "bob", "10T08:20");
    visit(&mut world, "a.ndjson", "bob", "10T13:20");
    world.run(FLUSHED).success();
    assert_eq!(counts(&world, "gold.hours"), ["10T08 1", "10T13 1"]);
    assert_eq!(world.letters()["gold.hours"], ["late|a.ndjson|2"]);
    // Nor when it is computed once more.
    command(&world, &["rebuild", FILE, "--table", "gold.hours", "--yes"]).success();
    assert_eq!(counts(&world, "gold.hours"), ["10T08 1", "10T13 1"]);
    assert_eq!(world.letters()["gold.hours"], ["late|a.ndjson|2"]);
}

#[test]
fn rows_that_are_late_once_somebody_is_forgotten_are_dead_letters_and_not_lost() {
    let mut world = World::new("forget-slowest", &[hours("gold.live", Emit::Update)], 100);
    visit(&mut world, "a.ndjson", "ada", "10T08:00");
    visit(&mut world, "b.ndjson", "bob", "10T12:00");
    world.run(ARRIVED).success();
    visit(&mut world, "b.ndjson", "bob", "10T10:10");
    world.run(ARRIVED).success();
    assert_eq!(counts(&world, "gold.live"), ["10T08 1", "10T10 1", "10T12 1"], "ada held time back");
    command(&world, &["forget", FILE, "--key", "k=ada", "--yes"]).success();
    assert_eq!(counts(&world, "gold.live"), ["10T12 1"]);
    assert_eq!(world.letters()["gold.live"], ["late|b.ndjson|1"]);
}

#[test]
fn a_rewind_beside_windows_takes_their_letters_along() {
    let mut world = World::new("rewind", &[hours("gold.hours", Emit::Final)], 1);
    put(&mut world, "a.ndjson", &["10T08:10", "10T12:10", "10T08:20", "10T13:00"]);
    world.append("a.ndjson", vec![None]);
    world.run(ARRIVED).success();
    let (before, letters) =
        (counts(&world, "gold.hours"), world.table("dlq.events", "SELECT topic, \"offset\", stage FROM t"));
    assert_eq!((before.len(), letters.len()), (1, 2), "{before:?} {letters:?}");
    for to in ["earliest", "batch:1"] {
        command(&world, &["offsets", "rewind", FILE, "--to", to, "--yes"]).success();
        world.run(ARRIVED).success();
        assert_eq!(counts(&world, "gold.hours"), before, "{to}");
        assert_eq!(world.table("dlq.events", "SELECT topic, \"offset\", stage FROM t"), letters, "{to}");
    }
}

/// Two sources, each with a table that remembers.
const TWO: &str = "version: 1
name: events
lake: ./lake
checkpoints: ./checkpoints
sources:
  busy: {files: {path: busy}, format: json, schema: {id: string, t: timestamp}, event_time: t}
  quiet: {files: {path: landing}, format: json, schema: {k: string, v: long, t: timestamp}, event_time: t}
tables:
  bronze.busy: {from: busy, dedupe: {key: id, within: 1h}, write: append}
  bronze.events: {from: quiet, write: append}
  gold.hours:
    from: bronze.events
    watermark: {delay: 30m, idle_after: 500ms}
    aggregate: {window: {tumbling: 1h}, by: [k], measures: {n: count(*)}}
    emit: final
";

fn busy(world: &World, file: &str, id: &str) {
    world.sandbox.write(&format!("busy/{file}"), &format!("{{\"id\": \"{id}\", \"t\": \"2026-03-10T08:00:00Z\"}}\n"));
}

#[test]
fn a_rewind_is_none_of_the_business_of_tables_of_other_sources() {
    let mut world = World::new("rewind-other", &[], 100);
    world.sandbox.write(FILE, TWO);
    busy(&world, "a.ndjson", "x");
    put(&mut world, "a.ndjson", &["10T08:10", "10T12:10"]);
    world.run(ARRIVED).success();
    let rewind = |source: &str| command(&world, &["offsets", "rewind", FILE, "--source", source, "--to", "earliest"]);
    rewind("quiet").success();
    rewind("busy").code(&[2]).says("bronze.busy");
}

#[test]
fn a_table_that_cannot_catch_up_is_said_to_start_with_the_rows_to_come() {
    let hourly = [hours("gold.hours", Emit::Final)];
    let mut world = World::new("joins-late", &hourly, 100);
    put(&mut world, "a.ndjson", &["10T08:10", "10T12:10"]);
    world.run(ARRIVED).success();
    let days = "  gold.days:
    from: gold.hours
    watermark: {delay: 1h}
    aggregate: {window: {tumbling: 1d}, by: [k], measures: {n: sum(n)}}
dead_letters";
    world.sandbox.write(FILE, &pipeline(&hourly, 100).replace("dead_letters", days));
    put(&mut world, "a.ndjson", &["10T13:10"]);
    world.run(ARRIVED).success().says("gold.days is new, and starts with the rows to come");
}

#[cfg(feature = "failpoints")]
#[test]
fn a_rebuild_that_cannot_be_because_of_another_table_plans_nothing() {
    let mut world = World::new("lost-two", &[hours("gold.one", Emit::Update), hours("gold.two", Emit::Update)], 100);
    put(&mut world, "a.ndjson", &["10T08:10", "10T09:10"]);
    world.run(ARRIVED).success();
    std::fs::remove_dir_all(world.path("lake/_tidegate/state")).expect("a folder");
    command(&world, &["rebuild", FILE, "--table", "gold.one", "--yes"]).code(&[78]).says("--table gold.two");
    assert_eq!(world.plans().len(), 1, "nothing was planned");
    command(&world, &["rebuild", FILE, "--table", "gold.one", "--table", "gold.two", "--yes"]).success();
    assert_eq!(counts(&world, "gold.one"), ["10T08 1", "10T09 1"]);
    assert_eq!(counts(&world, "gold.two"), counts(&world, "gold.one"));
}

#[test]
fn a_backfill_of_nothing_but_windows_names_rebuild() {
    let mut world = World::new("backfill", &[hours("gold.hours", Emit::Update)], 100);
    put(&mut world, "a.ndjson", &["10T08:10"]);
    world.run(ARRIVED).success();
    let backfill = command(&world, &["backfill", FILE, "--date", "2026-03-10"]).code(&[2]);
    backfill.says("remembers").says("--table gold.hours");
}
