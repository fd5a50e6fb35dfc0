//! The protocol, searched exhaustively: every order in which crashes, lost replies, late requests and a second runner can
//! fall between the I/Os of the walk, breadth first, so that the first counterexample is a shortest one.
//!
//! # What is modelled
//!
//! - **The walk** (`walk`), one action = one I/O: list and get the log's head, look at every table and at the memory of
//!   deletes, look at the log again, record the first offsets, plan, per table refresh / create / load / commit / find out
//!   whether a commit landed, commit record, clean-up, acknowledgement. The decision after an observation is the
//!   production [`recover`](tidegate::model::recover::recover) on real `Facts`; positions move by the production
//!   `BatchPlan::advance`, ranges are cut by the production `OffsetRanges::prorate` (`facts`).
//! - **Storage** (`world`): put-if-absent objects, Delta tables as versions with compare-and-swap and a transaction id, two
//!   appends (dead letters first: what bronze is given back from does not hold them), an upsert with its memory of deletes.
//! - **Trouble** (`search`): a process dies before any I/O; a reply is lost; a request is lost; a request is believed lost
//!   and lands later, its sender dead or not (object stores do that); a client library sends a put twice and meets its own
//!   object; maintenance commits to a table; rows arrive at any moment, and the source lets them go at any moment; somebody
//!   moves the position back to the first one; a second process works or sleeps anywhere, with no lock between the two
//!   (another host).
//! - **Laws**, checked after every action: each table is exactly the rows up to the batch it carries (appends as multisets,
//!   upserts by key, from an oracle that knows rows and ranges only); none ahead of its plan; none behind a commit record;
//!   a plan starts where the last commit ended; ids dense, offsets monotone but for a move, records immutable; two plans of
//!   one id never both take effect; no run halts; from every content of storage a new run, alone, finishes with every row
//!   in, and every process under way ends. All of them hold with late requests, too. Where the source has let rows go a run
//!   may stop, but never over a batch that bronze holds.
//! - **Sabotages** (`sabotage`): the same walk with one deliberate bug each. Every one must break a law.
//!
//! # What is not
//!
//! - That a put is atomic and durable, and a listing complete: the contract suites and the crash tests are about that.
//! - Rows to files: a table commit changes rows as the transform says, and what is read back from bronze is what bronze
//!   was given. Reading a planned range is no action: it never changes, and what the source has let go counts when the batch
//!   is taken up. The tables are looked at one after the other; recovery judges each by itself, so their order is no matter.
//! - Tables that are shaped late and may set rows aside: with them the dead letters come last, and a batch that the source
//!   let go may not be finished. `on_data_loss: skip`. More than one move, or one to elsewhere than the first position.
//! - A failing read: it ends the run, as a crash does. Refresh tables: they are recomputed from what the model has.
//! - A sleep as long as 100 batches between a listing of the log and the reading of what it names: here the clean-up keeps
//!   one batch and waits for such a reader. `Sabotage::PruneUnderReader` shows what happens without that assumption.
//!
//! `TIDEGATE_MODEL=deep` searches further.

mod facts;
mod sabotage;
mod search;
mod walk;
mod world;

use std::time::Instant;

use sabotage::Sabotage;
use search::{Budget, Report, Scenario, search, sights};

const CALM: Budget =
    Budget { starts: 1, crashes: 0, lost: 0, delayed: 0, compactions: 0, rows: 0, expiries: 0, moves: 0 };

/// One host: the lock file keeps a second process out.
fn alone(name: &'static str, budget: Budget) -> Scenario {
    Scenario { name, runners: 1, budget }
}

/// Two hosts.
fn twins(name: &'static str, budget: Budget) -> Scenario {
    Scenario { name, runners: 2, budget }
}

/// Small ones first: a sabotage is looked for in one after the other.
fn scenarios() -> Vec<Scenario> {
    vec![
        alone("every row, run by run", Budget { starts: 2, rows: 6, ..CALM }),
        alone("a lost reply", Budget { starts: 2, lost: 1, rows: 2, ..CALM }),
        twins("twins, one row", Budget { starts: 2, rows: 1, ..CALM }),
        twins("twins, two rows", Budget { starts: 2, rows: 2, ..CALM }),
        twins("twins and maintenance", Budget { starts: 2, compactions: 1, rows: 1, ..CALM }),
        twins("twins and a lost reply", Budget { starts: 2, lost: 1, rows: 1, ..CALM }),
        alone("crashes", Budget { starts: 4, crashes: 3, rows: 4, ..CALM }),
        alone("crashes and a lost reply", Budget { starts: 3, crashes: 2, lost: 1, rows: 3, ..CALM }),
        alone("a crash and a late request", Budget { starts: 3, crashes: 1, delayed: 1, rows: 3, ..CALM }),
        twins("twins and a crash", Budget { starts: 3, crashes: 1, rows: 1, ..CALM }),
        twins("twins and a late request", Budget { starts: 2, delayed: 1, rows: 1, ..CALM }),
        alone("crashes and retention", Budget { starts: 3, crashes: 2, rows: 4, expiries: 1, ..CALM }),
        alone("a rewind", Budget { starts: 2, crashes: 1, rows: 2, moves: 1, ..CALM }),
        alone("a rewind and a lost reply", Budget { starts: 2, lost: 1, rows: 2, moves: 1, ..CALM }),
        twins("a rewind beside a run", Budget { starts: 1, crashes: 1, rows: 1, moves: 1, ..CALM }),
    ]
}

fn deep_scenarios() -> Vec<Scenario> {
    vec![
        twins("twins, three rows", Budget { starts: 2, rows: 3, ..CALM }),
        alone("many crashes, two lost replies", Budget { starts: 4, crashes: 3, lost: 2, rows: 3, ..CALM }),
        alone(
            "crashes, a lost reply, a late request",
            Budget { starts: 3, crashes: 2, lost: 1, delayed: 1, rows: 2, ..CALM },
        ),
        twins("twins and maintenance, two rows", Budget { starts: 2, compactions: 1, rows: 2, ..CALM }),
        twins("twins and a lost reply, two rows", Budget { starts: 2, lost: 1, rows: 2, ..CALM }),
        twins("twins and a crash, two rows", Budget { starts: 3, crashes: 1, rows: 2, ..CALM }),
        alone(
            "crashes, a lost reply, retention",
            Budget { starts: 3, crashes: 2, lost: 1, rows: 4, expiries: 1, ..CALM },
        ),
        alone(
            "a rewind, crashes, a late request",
            Budget { starts: 3, crashes: 2, delayed: 1, rows: 2, moves: 1, ..CALM },
        ),
        twins("a rewind beside runs", Budget { starts: 2, rows: 2, moves: 1, ..CALM }),
        twins("twins and a late request, two rows", Budget { starts: 2, delayed: 1, rows: 2, ..CALM }),
    ]
}

fn is_deep() -> bool {
    std::env::var("TIDEGATE_MODEL").is_ok_and(|depth| depth == "deep")
}

fn say(scenario: &Scenario, report: &Report, since: Instant) {
    println!(
        "{:40} {:>9} states {:>9} transitions, depth {:>3}, {:>6} contents of storage, alone done in {} I/Os, {:.1} s",
        scenario.name,
        report.states,
        report.transitions,
        report.depth,
        report.storages,
        report.slowest,
        since.elapsed().as_secs_f64()
    );
}

fn told(trace: &search::Trace) -> String {
    let lines: Vec<String> =
        trace.lines.iter().enumerate().map(|(at, line)| format!("    {:>2} {line}", at + 1)).collect();
    format!("{}\n    => {}", lines.join("\n"), trace.law)
}

#[test]
fn no_schedule_of_crashes_lost_replies_and_twins_breaks_the_promise() {
    let mut all = scenarios();
    if is_deep() {
        all.extend(deep_scenarios());
    }
    let (began, mut states, mut transitions, mut depth) = (Instant::now(), 0, 0, 0);
    let mut seen: Vec<(&str, u64)> = Vec::new();
    for scenario in &all {
        let since = Instant::now();
        let report = search(scenario, None);
        say(scenario, &report, since);
        if let Some(trace) = &report.broken {
            panic!("`{}` has a counterexample:\n{}", scenario.name, told(trace));
        }
        states += report.states;
        transitions += report.transitions;
        depth = depth.max(report.depth);
        for (at, (name, count)) in sights(&report).enumerate() {
            match seen.get_mut(at) {
                Some(total) => total.1 += count,
                None => seen.push((name, count)),
            }
        }
    }
    for (name, count) in &seen {
        println!("{count:>9} times {name}");
        assert!(*count > 0, "never seen, so the search does not bite: {name}");
    }
    println!(
        "model: {} scenarios, {states} states, {transitions} transitions, depth {depth}, no counterexample, {} of {} sights, {:.0} s",
        all.len(),
        seen.len(),
        seen.len(),
        began.elapsed().as_secs_f64()
    );
}

#[test]
fn every_sabotage_of_the_protocol_is_caught() {
    let (began, mut missed) = (Instant::now(), Vec::new());
    let mut lengths = Vec::new();
    for (sabotage, what) in Sabotage::ALL {
        let caught = scenarios().iter().find_map(|scenario| search(scenario, Some(*sabotage)).broken);
        match caught {
            Some(trace) => {
                println!("{what}: caught after {} actions\n{}", trace.lines.len(), told(&trace));
                lengths.push(trace.lines.len().to_string());
            }
            None => missed.push(*what),
        }
    }
    println!(
        "model: {} of {} sabotages caught, by {} actions, {:.0} s",
        lengths.len(),
        Sabotage::ALL.len(),
        lengths.join(" "),
        began.elapsed().as_secs_f64()
    );
    assert!(missed.is_empty(), "no law noticed: {missed:?}");
}
