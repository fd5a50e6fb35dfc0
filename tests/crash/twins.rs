//! Two runners on one pipeline: on one host, and on two hosts that share nothing but the storage.

#![allow(clippy::disallowed_methods, reason = "a test's own files need no durability")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rand::Rng as _;
use tidegate::fail;

use super::matrix::{Place, Setup, places};
use super::world::{Case, cases, each, random, sample, try_all};
use crate::support::lake;
use crate::support::sandbox::Running;

const PATIENCE: Duration = Duration::from_secs(600);

fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").expect("the name of this host").trim().to_string()
}

/// Waits until the paused run has got there.
fn reached(run: &Running, file: &Path) {
    let reached = file.with_extension("reached");
    let deadline = Instant::now() + PATIENCE;
    while !reached.exists() {
        assert!(!run.ended() && Instant::now() < deadline, "it never got there\n{}", run.stderr());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Versions of every table, the memory of deletes included.
fn versions(case: &Case) -> BTreeMap<&'static str, Option<i64>> {
    let tables =
        ["bronze/orders", "silver/orders", "gold/daily_revenue", "dlq/orders", "_tidegate/deletes/silver/orders"];
    tables.into_iter().map(|table| (table, lake::version(&case.path("lake").join(table)))).collect()
}

#[test]
fn on_one_host_the_second_runner_names_the_first_and_touches_nothing() {
    let case = Case::new("one-host");
    let wake = case.path("wake");
    let first = case.start(&format!("applied@3=pause={}", wake.display()));
    reached(&first, &wake);
    let before = case.commits();
    let second = case.run("").code(&[75]);
    let second = second.says("another runner owns pipeline `orders`");
    second.says(&format!("pid {} on host {}", first.pid(), host()));
    assert_eq!(case.commits(), before, "the second runner committed something");
    std::fs::write(&wake, "").expect("a file");
    let first = first.finish(PATIENCE).expect("it hangs").success();
    case.check(&first);
    case.nothing_left();
}

#[test]
fn on_two_hosts_the_one_that_plans_second_stops_and_names_the_other() {
    let case = Case::new("two-hosts").with_zombies();
    let wake = case.path("wake");
    let slow = case.start(&format!("lock@*=skip;plan@2=pause={}", wake.display()));
    reached(&slow, &wake);
    let fast = case.start("lock@*=skip");
    let pid = fast.pid();
    let fast = fast.finish(PATIENCE).expect("it hangs").success();
    case.check(&fast);
    let before = case.commits();
    std::fs::write(&wake, "").expect("a file");
    let slow = slow.finish(PATIENCE).expect("it hangs").code(&[75]);
    slow.says("another runner owns pipeline `orders`").says(&format!("pid {pid} on host {}", host()));
    assert_eq!(case.commits(), before, "the loser committed something");
    case.nothing_left();
}

/// A zombie that was paused before its first look at log and tables finds its work done by the twin, and ends with 0.
fn has_not_looked(place: &Place) -> bool {
    matches!(place.point, fail::OBSERVE | fail::IDENTITY_PUT | fail::IDENTITY_PUT_DONE)
}

#[test]
fn a_zombie_that_wakes_up_when_its_twin_is_done_changes_nothing() {
    let is_place = |(place, _): &(Place, u64)| {
        let is_read = place.point.ends_with("get") || place.point.ends_with("list");
        // Leaving the lock out is what makes two hosts of this one.
        !is_read && place.point != fail::LOCK && matches!(place.setup, Setup::Plain | Setup::Parts)
    };
    let all = places().into_iter().filter(is_place);
    let mut random = random(5);
    let cells: Vec<(Place, u64)> = if try_all() {
        all.flat_map(|(place, hits)| (1..=hits).map(move |hit| (Place { hit, ..place.clone() }, hits))).collect()
    } else {
        let one = all.map(|(place, hits)| (Place { hit: random.random_range(1..=hits), ..place }, hits)).collect();
        sample(one, cases(12), &mut self::random(6))
    };
    let ends: Mutex<BTreeMap<(&str, i32), u64>> = Mutex::default();
    each(
        "zombies",
        &cells,
        |(place, _)| place.orders("pause"),
        |(place, _)| {
            let case = place.case("zombie").with_zombies();
            let wake = case.path("wake");
            let zombie = case.start(&format!("lock@*=skip;{}", place.orders(&format!("pause={}", wake.display()))));
            reached(&zombie, &wake);
            let found = versions(&case);
            let twin = case.run("lock@*=skip").success();
            case.check(&twin);
            let before = versions(&case);
            // Every table was the zombie's own work, and only records and clean-up were left.
            let was_done = found == before;
            std::fs::write(&wake, "").expect("a file");
            let zombie = zombie.finish(PATIENCE).expect("the zombie hangs").code(&[0, 75]);
            assert_eq!(versions(&case), before, "the zombie committed something\n{}", zombie.report());
            case.check(&zombie);
            case.nothing_left();
            let code = zombie.status.code().unwrap_or(-1);
            *ends.lock().expect("no thread panics here").entry((place.point, code)).or_default() += 1;
            if code == 0 {
                assert!(was_done || has_not_looked(place), "it should have said that it lost\n{}", zombie.report());
            } else {
                zombie.says("another run");
            }
        },
    );
    for ((point, code), count) in ends.into_inner().expect("no thread panicked here") {
        println!("  paused at {point}: {count} × exit {code}");
    }
    println!("zombies: {} cases; 0 versions added by them, 0 rows lost, doubled or changed", cells.len());
}

#[test]
fn two_runners_that_race_all_the_way_leave_the_tables_right() {
    let rounds: Vec<u64> = (0..if try_all() { 60 } else { 3 }).collect();
    each(
        "races",
        &rounds,
        |round| format!("round {round}"),
        |round| {
            let case = Case::new("race").with_zombies();
            let mut random = random(100 + round);
            let orders = |wait: u64| format!("lock@*=skip;log.put@*=slow={wait}");
            let first = case.start(&orders(random.random_range(0..20)));
            let second = case.start(&orders(random.random_range(0..20)));
            for run in [first, second] {
                run.finish(PATIENCE).expect("it hangs").code(&[0, 75]);
            }
            case.recover();
        },
    );
}
