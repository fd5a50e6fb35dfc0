//! Intervals of event time derived again, by the real binary: the tables equal an independent computation over the events,
//! beside a live run, after kills at any point, on days of a clock change, and however often it is done.

#![allow(clippy::disallowed_methods, reason = "what is today is asked of the clock")]

mod kafka;
mod letters;
mod retail;
mod shop;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

#[cfg_attr(not(feature = "failpoints"), allow(unused_imports, reason = "tests with fail points make events"))]
use self::shop::{Event, Shop, TODAY, day};
use crate::support::{lake, number};

#[test]
fn changed_sql_is_derived_for_the_days_asked_for_and_twice_changes_no_row() {
    let mut shop = Shop::new("backfill-sql", 500);
    shop.assert_tables();
    shop.change_sql(7, 3);
    let first = shop.backfill(&["--date", "2026-03-17"]).success().json();
    assert_eq!(first["status"], "ok");
    assert_eq!(first["intervals"][0]["interval"], "2026-03-17");
    assert_eq!(first["input_rows"], shop.rows_of(&[day(17)]));
    shop.derived(&[day(17)]);
    shop.assert_tables();
    // Again: other versions, the same rows.
    shop.backfill(&["--date", "2026-03-17"]).success();
    shop.assert_tables();
    let before = shop.versions();
    let resumed = shop.backfill(&["--date", "2026-03-17", "--resume"]).success().json();
    assert_eq!((&resumed["status"], &resumed["skipped"]), (&"no_data".into(), &1.into()));
    assert_eq!(shop.versions(), before, "a finished interval was written again");
    // The other days; the one that is done is left alone.
    let rest = shop.backfill(&["--from", "2026-03-15", "--to", "2026-03-21", "--resume", "--parallel", "2"]).success();
    assert_eq!((&rest.json()["skipped"], &rest.json()["interval_count"]), (&1.into(), &6.into()), "{}", rest.report());
    let all: Vec<_> = (15..21).map(day).collect();
    shop.derived(&all);
    shop.assert_tables();
    // The live run goes on where it was.
    shop.land(80);
    shop.live().success();
    shop.assert_tables();
    assert_eq!(shop.gaps(&["--from", "2026-03-15", "--to", "2026-03-21"]), [] as [String; 0]);
    shop.change_sql(9, 3);
    assert_eq!(
        shop.gaps(&["--from", "2026-03-16", "--to", "2026-03-18"]),
        ["2026-03-16 outdated", "2026-03-17 outdated"]
    );
}

#[test]
fn hours_of_a_day_are_the_day() {
    let mut shop = Shop::new("backfill-hours", 400);
    shop.change_sql(3, 1);
    let arguments = ["--from", "2026-03-18", "--to", "2026-03-19", "--by", "hour"];
    let done = shop.backfill(&arguments).success();
    assert_eq!(done.json()["interval_count"], 24);
    assert_eq!(done.json()["input_rows"], shop.rows_of(&[day(18)]));
    shop.derived(&[day(18)]);
    shop.assert_tables();
    assert_eq!(shop.gaps(&["--from", "2026-03-17", "--to", "2026-03-19"]), ["2026-03-17 missing"]);
}

#[test]
fn days_of_a_clock_change_have_23_and_25_hours_of_rows() {
    let mut shop = Shop::empty("backfill-clocks");
    // Every half hour around both changes, in UTC.
    let mut events = Vec::new();
    for (date, hours) in [("2026-03-28", 60), ("2026-10-24", 60)] {
        let start = chrono::DateTime::parse_from_rfc3339(&format!("{date}T12:00:00Z")).expect("a time").to_utc();
        for half in 0..2 * hours {
            let at = start + chrono::TimeDelta::minutes(30 * half);
            events.push(shop::Event::sale(&format!("{date}-{half}"), 5, Some(at)));
        }
    }
    shop.write(events);
    shop.live().success();
    shop.change_sql(2, 0);
    for (date, rows) in [("2026-03-29", 46), ("2026-10-25", 50)] {
        let done = shop.backfill(&["--date", date]).success();
        assert_eq!(done.json()["input_rows"], rows, "{}", done.report());
    }
    let march = |d: u32| shop::local_day(2026, 3, d);
    let october = |d: u32| shop::local_day(2026, 10, d);
    shop.derived(&[march(29), october(25)]);
    shop.assert_tables();
}

#[test]
fn a_correction_takes_what_arrived_since_and_nothing_else() {
    let mut shop = Shop::new("backfill-correct", 300);
    let full = shop.backfill(&["--date", "2026-03-17", "--mode", "correction"]).success().json();
    assert_eq!(full["input_rows"], shop.rows_of(&[day(17)]), "the first correction is a full run");
    let idle =
        shop.backfill(&["--date", "2026-03-17", "--mode", "correction", "--no-data-exit-code", "99"]).code(&[99]);
    assert_eq!((&idle.json()["status"], &idle.json()["unchanged"]), (&"no_data".into(), &1.into()));
    // One store's events come two days late.
    let before = shop.rows_of(&[day(17)]);
    shop.land_on(17, 25);
    shop.live().success();
    let late = shop.rows_of(&[day(17)]) - before;
    assert!(late > 10, "{late} late rows");
    let done = shop.backfill(&["--date", "2026-03-17", "--mode", "correction"]).success().json();
    assert_eq!(done["input_rows"], late);
    shop.assert_tables();
    let again = shop.backfill(&["--date", "2026-03-17", "--mode", "correction"]).success().json();
    assert_eq!(again["unchanged"], 1);
}

#[test]
fn a_table_that_joins_later_is_filled() {
    let mut shop = Shop::new("backfill-join", 300);
    shop.add_table("  silver.late: {from: bronze.sales, sql: 'SELECT id, at FROM batch', write: append}\n");
    let arguments = ["--from", "2026-03-15", "--to", "2026-03-21", "--tables", "silver.late"];
    shop.backfill(&arguments).success();
    let expected = || shop.events().iter().filter(|event| event.at.is_some()).count().to_string();
    let found = || lake::lines(&shop.table("silver/late"), "SELECT count(*) FROM t");
    assert_eq!(found(), [expected()]);
    shop.backfill(&arguments).success();
    assert_eq!(found(), [expected()]);
    // The live run takes it up from where it stands.
    let filled: usize = expected().parse().expect("a number");
    let before = shop.events().len();
    shop.land(40);
    shop.live().success();
    let live = shop.events().len() - before;
    let found = lake::lines(&shop.table("silver/late"), "SELECT count(*) FROM t");
    assert_eq!(found, [(filled + live).to_string()]);
}

#[test]
fn what_cannot_be_meant_is_refused_before_anything_is_written() {
    let shop = Shop::new("backfill-refuse", 120);
    let before = shop.versions();
    let tomorrow = (chrono::Utc::now() + chrono::TimeDelta::days(3)).date_naive().to_string();
    let cases: &[(&[&str], &str)] = &[
        (&["--from", "2026-03-17", "--to", "2026-03-17"], "CronDataIntervalTimetable"),
        (&["--from", "2026-03-18", "--to", "2026-03-17"], "ends before it starts"),
        (&["--date", &tomorrow], "lies in the future"),
        (&["--date", "2020-01-01"], "the first one is of 2026-03-15"),
        (&["--date", "17.3.2026"], "is not a date"),
        (&["--from", "2026-03-17T10:30:00Z", "--to", "2026-03-18"], "lies inside a day"),
        (&["--date", "2026-03-17", "--tables", "silver.sale"], "did you mean `silver.sales`?"),
        (&["--date", "2026-03-17", "--tables", "bronze.sales"], "is what a backfill reads"),
        (&["--date", "2026-03-17", "--tables", "gold.stores"], "name gold.daily as well"),
    ];
    for (arguments, text) in cases {
        let run = shop.backfill(arguments).code(&[2]).says(text);
        println!("{}", run.stderr.trim());
    }
    for arguments in
        [&[][..], &["--from", "2026-03-17"], &["--date", "2026-03-17", "--from", "2026-03-17", "--to", "2026-03-18"]]
    {
        shop.backfill(arguments).code(&[2]);
    }
    shop.add_table("  silver.blind: {from: bronze.sales, sql: 'SELECT id FROM batch', write: append}\n");
    let run = shop.backfill(&["--date", "2026-03-17"]).code(&[2]).says("does not keep the event time");
    let run = run.says("--tables gold.daily,gold.stores,silver.log,silver.sales");
    println!("{}", run.stderr.trim());
    assert_eq!(shop.versions(), before);
    assert!(!shop.path("checkpoints/shop/backfills").exists());
    // A dry run says what would be done.
    let dry = shop.backfill(&["--date", "2026-03-17", "--dry-run", "--tables", "silver.log"]).success().json();
    assert_eq!(dry["intervals"][0]["input_rows"], shop.rows_of(&[day(17)]));
    assert_eq!(dry["intervals"][0]["action"], "derive");
    assert_eq!(shop.versions(), before);
    assert!(!shop.path("checkpoints/shop/backfills").exists());
}

#[test]
fn beside_a_live_run_under_load_no_row_is_lost_doubled_or_stale() {
    let rounds = number("TIDEGATE_BACKFILL_ROUNDS").unwrap_or(1);
    let mut shop = Shop::new("backfill-beside", 240);
    let live = shop.start_live();
    for _ in 0..rounds {
        let running = shop.start_backfill(&["--from", "2026-03-15", "--to", "2026-03-21", "--parallel", "3"]);
        let mut landed = 0;
        // However soon it is done: several batches are live.
        while landed < 5 || !running.ended() {
            // Old days, new rows: both write the same keys, groups and intervals. As many as the run keeps up with.
            if landed < 12 {
                shop.land(20);
                landed += 1;
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        running.finish(Duration::from_secs(300)).expect("it has ended").success();
    }
    live.signal("TERM");
    let live = live.finish(Duration::from_secs(300)).expect("a run that is told to stop ends").success();
    assert!(live.json()["batch_count"].as_u64() > Some(2), "{}", live.report());
    shop.live().success();
    shop.assert_tables();
    shop.assert_live_log_is_dense();
    println!("{rounds} backfills beside {} live batches, {} events", live.json()["batch_count"], shop.events().len());
}

#[test]
fn thirty_days_in_parallel_beside_a_live_run_and_its_offsets_never_move() {
    let mut shop = Shop::over_days("backfill-month", 900, 30);
    let live = shop.start_live();
    let started = std::time::Instant::now();
    let running = shop.start_backfill(&["--from", "2026-03-15", "--to", "2026-04-14", "--parallel", "4"]);
    let mut landed = 0;
    while !running.ended() {
        if landed < 20 {
            shop.land(30);
            landed += 1;
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    let done = running.finish(Duration::from_secs(600)).expect("it has ended").success().json();
    let took = started.elapsed();
    live.signal("TERM");
    let live = live.finish(Duration::from_secs(300)).expect("a run that is told to stop ends").success();
    shop.live().success();
    assert_eq!(done["intervals"].as_array().map(Vec::len), Some(30), "{done}");
    shop.assert_tables();
    shop.assert_live_log_is_dense();
    shop.assert_live_offsets();
    println!(
        "30 days in {took:.1?} beside {} live batches, {} events",
        live.json()["batch_count"],
        shop.events().len()
    );
}

#[cfg(feature = "failpoints")]
#[test]
fn killed_anywhere_the_same_command_finishes_it() {
    use rand::{Rng as _, SeedableRng as _};
    let seed = crate::support::seed();
    println!("TIDEGATE_SEED={seed}");
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let kills = number("TIDEGATE_KILLS").unwrap_or(4);
    let mut shop = Shop::new("backfill-kill", 300);
    let (mut factor, mut killed) = (1, 0);
    for round in 0..kills {
        factor += 1;
        shop.change_sql(factor, i64::try_from(round % 4).expect("small"));
        let arguments = ["--from", "2026-03-16", "--to", "2026-03-18"];
        // A second kill while the first is recovered from, every other time.
        for _ in 0..1 + round % 2 {
            let hit = random.random_range(40..900);
            let order = format!("*@{hit}=kill");
            let run = shop.backfill_with(&arguments, &[("TIDEGATE_FAIL", order.as_str())]);
            let is_killed = run.status.code().is_none();
            println!("{order}: {}", if is_killed { "killed" } else { "survived" });
            killed += usize::from(is_killed);
        }
        // With live batches in between, which must not mind.
        shop.land(10);
        shop.live().success();
        let run = shop.backfill(&arguments).success();
        assert_eq!(run.json()["status"], "ok");
        shop.derived(&[day(16), day(17)]);
        shop.assert_tables();
        assert!(shop.unfinished().is_empty());
    }
    println!("{killed} kills in {kills} rounds; 0 rows lost, doubled or stale");
    assert!(killed > 0);
}

#[cfg(feature = "failpoints")]
#[test]
fn groups_that_an_unfinished_run_took_rows_out_of_are_followed_up_by_a_run_of_other_rules() {
    let shop = Shop::new("backfill-follow", 300);
    // The rows of a day move to another one, and then, before gold follows, to a third: only the run that was killed has
    // touched the first.
    let (was, other) = ("CAST(at AS DATE) AS day", "CAST(date_trunc('month', at) AS DATE) AS day");
    shop.replace(was, other);
    let run = shop.backfill_with(&["--date", "2026-03-17"], &[("TIDEGATE_FAIL", "applied@2=kill")]);
    assert!(run.status.code().is_none(), "{}", run.report());
    assert_eq!(shop.unfinished(), ["2026-03-17"]);
    shop.replace(other, "CAST(date_trunc('year', at) AS DATE) AS day");
    shop.backfill(&["--date", "2026-03-17"]).success();
    let sums = "SELECT day, store, count(*), sum(amount) FROM t GROUP BY day, store";
    let silver = lake::lines(&shop.table("silver/sales"), sums);
    let gold = lake::lines(&shop.table("gold/daily"), "SELECT day, store, sales, total FROM t");
    lake::assert_same("gold/daily", &silver, &gold);
    assert!(shop.unfinished().is_empty());
}

#[cfg(feature = "failpoints")]
#[test]
fn an_hour_that_was_begun_in_a_day_that_is_done_is_listed_with_the_command_that_finishes_it() {
    let shop = Shop::new("backfill-hour-begun", 200);
    shop.backfill(&["--date", "2026-03-17"]).success();
    let hours = ["--from", "2026-03-17T10:00:00+01:00", "--to", "2026-03-17T12:00:00+01:00", "--by", "hour"];
    let killed = shop.backfill_with(&hours, &[("TIDEGATE_FAIL", "applied@1=kill")]);
    assert!(killed.status.code().is_none(), "{}", killed.report());
    let list = ["history", shop::FILE, "--gaps", "--from", "2026-03-17", "--to", "2026-03-18"];
    let listed = shop.command(&list, &[]).success();
    println!("{}", listed.stdout);
    assert_eq!(shop.unfinished(), ["2026-03-17"]);
    let line =
        listed.stdout.lines().find_map(|line| line.trim().split_once("tidegate backfill ")).expect("a command").1;
    let words: Vec<&str> = ["backfill"].into_iter().chain(line.split_whitespace()).collect();
    shop.command(&words, &[]).success();
    assert!(shop.command(&list, &[]).success().stdout.contains("no gap"));
}

/// Stops a live batch at a point, derives its day again, and lets it go on.
#[cfg(feature = "failpoints")]
fn in_the_middle_of_a_batch(point: &str, is_changed: bool) {
    let mut shop = Shop::new("backfill-middle", 180);
    shop.land_on(17, 30);
    let gate = shop.path("gate");
    let live = shop.start_live_with(&[("TIDEGATE_FAIL", &format!("{point}=pause={}", gate.display()))]);
    shop.wait_for(&gate, &live);
    if is_changed {
        shop.change_sql(5, 2);
    }
    shop.backfill(&["--date", "2026-03-17"]).success();
    shop.release(&gate);
    live.finish(Duration::from_secs(120)).expect("it goes on").success();
    if is_changed {
        shop.derived(&[day(17)]);
    }
    shop.assert_tables();
    shop.assert_live_log_is_dense();
}

#[cfg(feature = "failpoints")]
#[test]
fn rows_that_a_live_batch_has_in_bronze_only_are_left_to_it() {
    // Bronze has the batch; the log that is about to be written does not.
    in_the_middle_of_a_batch("applied@2", false);
    in_the_middle_of_a_batch("prepared@4", false);
}

#[cfg(feature = "failpoints")]
#[test]
fn groups_that_a_live_batch_has_computed_before_a_backfill_are_computed_again() {
    in_the_middle_of_a_batch("prepared@5", true);
    in_the_middle_of_a_batch("prepared@6", true);
}

#[cfg(feature = "failpoints")]
#[test]
fn one_backfill_of_a_pipeline_at_a_time() {
    let shop = Shop::new("backfill-lock", 120);
    let gate = shop.path("gate");
    let order = format!("plan@1=pause={}", gate.display());
    let first = shop.start_backfill_with(&["--date", "2026-03-17"], &[("TIDEGATE_FAIL", order.as_str())]);
    shop.wait_for(&gate, &first);
    shop.backfill(&["--date", "2026-03-18"]).code(&[75]).says("another backfill of pipeline `shop` is at work");
    // The live run is another matter.
    shop.live().success();
    shop.release(&gate);
    first.finish(Duration::from_secs(120)).expect("it goes on").success();
    shop.backfill(&["--date", "2026-03-18"]).success();
}

#[cfg(feature = "failpoints")]
#[test]
fn no_day_is_derived_under_a_rewind_that_is_not_finished() {
    let mut shop = Shop::empty("backfill-rewind");
    for number in [16, 17] {
        let sales = (0..40).map(|n| Event::sale(&format!("{number}-{n}"), n - 4, Some(day(number).0))).collect();
        shop.write(sales);
    }
    shop.live().success();
    // The dead letters have lost what is read again; bronze has it still.
    let rewind = ["offsets", "rewind", shop::FILE, "--to", "earliest", "--yes", "--accept-duplicates"];
    let killed = shop.command(&rewind, &[("TIDEGATE_FAIL", "applied@1=kill")]);
    assert!(killed.status.code().is_none(), "{}", killed.report());
    let before = shop.versions();
    let refused = shop.backfill(&["--date", "2026-03-17"]).code(&[75]).says("moves positions, and is not finished");
    refused.says("tidegate run shop.yaml --trigger once");
    assert_eq!(shop.versions(), before);
    assert!(shop.unfinished().is_empty(), "it was not begun");
    shop.live().success();
    // The log has every row twice, as was accepted: derived again, each is there once.
    shop.backfill(&["--from", "2026-03-16", "--to", "2026-03-18"]).success();
    shop.assert_tables();
}

#[test]
fn letters_that_are_new_are_counted_and_gaps_are_listed_by_history_too() {
    let shop = Shop::new("backfill-letters", 240);
    let letters = || {
        let lines = lake::lines(&shop.table("dlq/sales"), "SELECT count(*) FROM t");
        lines[0].parse::<u64>().expect("a number")
    };
    let day = ["--date", "2026-03-17"];
    let letters_of = || shop.backfill(&day).success().json()["intervals"][0]["dead_letters"].as_u64().expect("a count");
    assert_eq!(letters_of(), 0, "the live run has set them aside");
    shop.replace("amount > 0", "amount > 12");
    let before = letters();
    let new = letters_of();
    assert!(new > 5, "{new} letters");
    assert_eq!(letters(), before + new);
    assert_eq!(letters_of(), 0, "they are there");
    let gaps = |arguments: &[&str]| {
        let range =
            ["--gaps", "--from", "2026-03-16", "--to", "2026-03-19", "--tables", "silver.log", "--output", "json"];
        let all: Vec<&str> = arguments.iter().chain(&range).copied().collect();
        shop.command(&all, &[]).success().json()
    };
    let (of_history, of_backfill) = (gaps(&["history", shop::FILE]), gaps(&["backfill", shop::FILE]));
    assert_eq!(of_history, of_backfill);
    let missing: Vec<&str> =
        of_history["gaps"].as_array().expect("a list").iter().flat_map(|gap| gap["interval"].as_str()).collect();
    assert_eq!(missing, ["2026-03-16", "2026-03-18"]);
    shop.command(&["history", shop::FILE, "--from", "2026-03-16", "--to", "2026-03-19"], &[]).code(&[2]).says("--gaps");
}

/// Every object of a log with its content.
fn objects(folder: &Path) -> BTreeMap<String, Value> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let json = entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "json"));
    json.map(|entry| {
        let text = std::fs::read_to_string(entry.path()).expect("readable");
        (entry.file_name().to_string_lossy().into_owned(), serde_json::from_str(&text).expect("JSON"))
    })
    .collect()
}

#[test]
fn yesterday_and_today_are_days_of_the_pipelines_timezone() {
    let mut shop = Shop::empty("backfill-today");
    shop.write(vec![shop::Event::sale("now", 5, Some(chrono::Utc::now()))]);
    shop.live().success();
    let rows = |name: &str| shop.backfill(&["--date", name]).code(&[0, 2]).json()["input_rows"].clone();
    let (yesterday, today) = (rows("yesterday"), rows("today"));
    // At midnight the one is the other; a day before the first row is refused.
    assert!(today == 1 || yesterday == 1, "{yesterday} {today} {TODAY}");
}
