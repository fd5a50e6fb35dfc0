//! Random histories: files grow, runs are started, killed and started again, flushed, tables join, are computed again, lose
//! their memory; after every run that ends well the tables are the oracle's.

#![allow(clippy::disallowed_methods, reason = "tests break files on purpose")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::oracle::{Cut, DAY, Emit, Event, HOUR, Late, MINUTE, Rules, SECOND, Table};
use super::world::{FILE, Planned, World, at, pipeline, shown};
use crate::support::lake::assert_same;
use crate::support::sandbox::Outcome;
use crate::support::{number, seed};

/// What histories have been through, so that none of it is missing without anybody noticing.
static SEEN: Mutex<BTreeMap<&'static str, usize>> = Mutex::new(BTreeMap::new());

fn seen(what: &'static str, count: usize) {
    *SEEN.lock().expect("no thread panics here").entry(what).or_default() += count;
}

fn pick<T: Clone>(random: &mut ChaCha8Rng, from: &[T]) -> T {
    from[random.random_range(0..from.len())].clone()
}

/// Any table that the configuration allows.
fn rules(random: &mut ChaCha8Rng, name: String) -> Rules {
    let cuts = [
        Cut::None,
        Cut::Tumbling(15 * MINUTE),
        Cut::Tumbling(HOUR),
        Cut::Tumbling(DAY),
        Cut::Sliding(HOUR, 15 * MINUTE),
        Cut::Sliding(50 * MINUTE, 20 * MINUTE),
        Cut::Session(5 * MINUTE),
        Cut::Session(20 * MINUTE),
        Cut::Session(HOUR),
        Cut::Day,
        Cut::Week,
        Cut::Month,
    ];
    let cut = pick(random, &cuts);
    let emit = match (cut, random.random_range(0..10)) {
        (Cut::None, 0..8) | (_, 0..4) => Emit::Update,
        (Cut::None, _) | (_, 4) => Emit::Complete,
        _ => Emit::Final,
    };
    let late = match random.random_range(0..3) {
        0 => Late::Drop,
        1 if emit != Emit::Final => Late::Update(pick(random, &[10 * MINUTE, HOUR, 5 * HOUR])),
        _ => Late::Quarantine,
    };
    let by = match cut {
        Cut::None => pick(random, &[vec!["k"], vec!["k", "s"]]),
        _ => pick(random, &[vec![], vec!["k"], vec!["s"], vec!["k", "s"]]),
    };
    let from_source = random.random_bool(0.15);
    Rules {
        name,
        from_source,
        filtered: !from_source && random.random_bool(0.15),
        cut,
        emit,
        late,
        delay: pick(random, &[0, MINUTE, 20 * MINUTE, HOUR]),
        idle: pick(random, &[SECOND / 5, SECOND, 5 * MINUTE]),
        idle_after: pick(random, &[None, None, None, Some(SECOND / 4)]),
        max_ahead: pick(random, &[HOUR, HOUR, HOUR, HOUR, 20 * DAY]),
        by,
    }
}

struct History {
    random: ChaCha8Rng,
    world: World,
    max_rows: u64,
    rules: Vec<Rules>,
    /// What joins later.
    waiting: Vec<Rules>,
    tables: BTreeMap<String, Table>,
    /// Tables whose state was taken away and that were not computed again yet.
    lost: BTreeSet<String>,
    /// Letters of tables that were judged anew: those of before stay.
    earlier: BTreeMap<String, Vec<String>>,
    plans: BTreeMap<i64, Planned>,
    /// Runs with `--flush`.
    flushing: BTreeSet<u64>,
    closed_by_hand: bool,
    now: i64,
    pace: i64,
    odd_future: bool,
}

impl History {
    fn new(case: usize, seed: u64) -> History {
        let mut random = ChaCha8Rng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(case as u64));
        let count = random.random_range(3..8);
        let mut rules: Vec<Rules> = (0..count).map(|n| rules(&mut random, format!("gold.t{n}"))).collect();
        let mut waiting = Vec::new();
        if random.random_bool(0.3) {
            let late = rules.pop().expect("three at least");
            waiting.extend(Some(late).filter(|late| !late.from_source));
        }
        let max_rows = pick(&mut random, &[4, 15, 40, 1_000]);
        let world = World::new(&format!("history-{case}"), &rules, max_rows);
        let tables = rules.iter().map(|rules| (rules.name.clone(), Table::new(rules.clone()))).collect();
        let pace = pick(&mut random, &[MINUTE, 20 * MINUTE, HOUR, 8 * HOUR]);
        let odd_future = random.random_bool(0.2);
        History {
            random,
            world,
            max_rows,
            rules,
            waiting,
            tables,
            lost: BTreeSet::new(),
            earlier: BTreeMap::new(),
            plans: BTreeMap::new(),
            flushing: BTreeSet::new(),
            closed_by_hand: false,
            now: at("2026-03-28T06:00:00Z"),
            pace,
            odd_future,
        }
    }

    fn event(&mut self, clock: i64) -> Option<Event> {
        let random = &mut self.random;
        if random.random_bool(0.01) {
            return None;
        }
        let mut time = clock + random.random_range(0..=self.pace);
        time -= match random.random_range(0..10) {
            0 => random.random_range(0..=6 * self.pace),
            1..4 => random.random_range(0..=self.pace),
            _ => 0,
        };
        time = match random.random_range(0..3) {
            0 => time - time.rem_euclid(5 * MINUTE),
            1 => time - time.rem_euclid(SECOND),
            _ => time,
        };
        if random.random_bool(0.01) {
            time = at("2099-01-01T00:00:00Z");
        } else if self.odd_future && random.random_bool(0.005) {
            let real = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_micros() as i64;
            time = real + pick(random, &[-DAY, 10 * DAY, 30 * DAY]);
        }
        let text = |letters: &[&str], random: &mut ChaCha8Rng| Some(pick(random, letters).to_string());
        Some(Event {
            k: text(&["a", "a", "b", "c"], random).filter(|_| random.random_bool(0.95)),
            s: text(&["x", "y", "zz"], random).filter(|_| random.random_bool(0.9)),
            v: Some(random.random_range(-3..10)).filter(|_| random.random_bool(0.9)),
            cents: Some(random.random_range(-500..5_000)).filter(|_| random.random_bool(0.9)),
            t: Some(time).filter(|_| random.random_bool(0.97)),
        })
    }

    fn grow(&mut self) {
        self.now += self.random.random_range(0..=3 * self.pace);
        for file in ["a.ndjson", "b.ndjson", "c.ndjson"] {
            if self.random.random_bool(0.4) {
                continue;
            }
            let clock = self.now - if file == "c.ndjson" { self.pace } else { 0 };
            let count = self.random.random_range(0..14);
            let mut events: Vec<Option<Event>> = (0..count).map(|_| self.event(clock)).collect();
            if count > 2 && self.random.random_bool(0.3) {
                events.push(events[0].clone());
            }
            self.world.append(file, events);
        }
    }

    /// Orders for a run to fail at some point.
    fn orders(&mut self) -> String {
        let hit = f64::exp(self.random.random_range(0.0..f64::ln(600.0))) as u64;
        let action = pick(&mut self.random, &["kill", "kill", "kill", "torn", "error", "lost"]);
        format!("*@{hit}={action}")
    }

    fn command(&mut self, arguments: &[&str], disturbed: bool) -> (Outcome, u64) {
        let by_hand = disturbed && self.random.random_bool(0.3);
        let orders = if disturbed && !by_hand { self.orders() } else { String::new() };
        let command = self.world.sandbox.tidegate(arguments).env("TIDEGATE_FAIL", &orders);
        let started = Instant::now();
        let running = command.start();
        let pid = u64::from(running.pid());
        let patience = match by_hand {
            true => Duration::from_millis(self.random.random_range(1..1_500)),
            false => Duration::from_secs(300),
        };
        let outcome = running.end(patience);
        seen("ms of runs", started.elapsed().as_millis() as usize);
        let code = outcome.status.code();
        seen("killed", usize::from(code.is_none()));
        seen("failed", usize::from(code.is_some_and(|code| code != 0)));
        assert!(disturbed || code == Some(0), "{}", outcome.report());
        assert!(code.is_none_or(|code| [0, 1, 69, 75].contains(&code)), "{}", outcome.report());
        (outcome, pid)
    }

    fn run(&mut self, disturbed: bool) {
        let flush = self.random.random_bool(0.15);
        let once = !flush && disturbed && self.random.random_bool(0.4);
        let trigger = if once { "once" } else { "available_now" };
        let mut arguments = vec!["run", FILE, "--output", "json", "--trigger", trigger];
        if flush {
            arguments.push("--flush");
        }
        let (outcome, pid) = self.command(&arguments, disturbed);
        if flush {
            self.flushing.insert(pid);
        }
        seen("flushed", usize::from(flush));
        self.catch_up(pid, &outcome);
        if outcome.status.code() == Some(0) {
            self.check(&outcome);
            if !once {
                let read: u64 =
                    self.plans.values().flat_map(|planned| planned.plan.ranges.values()).map(|(f, u)| u - f).sum();
                let lines: usize = self.world.files.values().map(Vec::len).sum();
                assert_eq!(read, lines as u64, "not every line was read{}", outcome.report());
            }
            if flush {
                for table in self.tables.values().filter(|table| table.rules.emit == Emit::Final) {
                    assert_eq!(
                        table.waiting(),
                        0,
                        "{} has open windows after a flush{}",
                        table.rules.name,
                        outcome.report()
                    );
                }
            }
        }
    }

    fn rebuild(&mut self, names: &[String], disturbed: bool) {
        let mut arguments = vec!["rebuild", FILE, "--yes", "--output", "json"];
        for name in names {
            arguments.extend(["--table", name]);
        }
        let (outcome, pid) = self.command(&arguments, disturbed);
        seen("rebuilt", 1);
        self.catch_up(pid, &outcome);
        if outcome.status.code() == Some(0) {
            self.check(&outcome);
        }
    }

    /// Works the plans that are new into the oracle, and compares their watermarks.
    fn catch_up(&mut self, last_pid: u64, outcome: &Outcome) {
        let found = self.world.plans();
        for (batch, planned) in &found {
            if let Some(known) = self.plans.get(batch) {
                assert_eq!(format!("{known:?}"), format!("{planned:?}"), "a plan changed{}", outcome.report());
            }
        }
        let new: Vec<Planned> =
            found.into_values().filter(|planned| !self.plans.contains_key(&planned.plan.batch)).collect();
        for (index, planned) in new.iter().enumerate() {
            assert_eq!(planned.plan.batch, self.plans.len() as i64, "batches are numbered without a gap");
            let is_last = index + 1 == new.len() && planned.pid == last_pid;
            self.work(planned, is_last, outcome);
            self.plans.insert(planned.plan.batch, planned.clone());
        }
    }

    fn work(&mut self, planned: &Planned, is_last: bool, outcome: &Outcome) {
        if !planned.rebuild.is_empty() {
            assert!(planned.plan.ranges.is_empty() && planned.watermarks.is_empty(), "{planned:?}");
            for name in &planned.rebuild {
                self.work_again(name);
            }
            return;
        }
        let (plan, time) = (&planned.plan, planned.plan.time);
        let says = |flush: bool| -> BTreeMap<String, i64> {
            let watermark =
                |table: &Table| Some((table.rules.name.clone(), table.in_force(time, flush, plan.ranges.is_empty())?));
            self.tables.values().filter_map(watermark).collect()
        };
        let mut flush = false;
        if plan.ranges.is_empty() {
            seen("no rows", 1);
            let is_flushing = is_last && self.flushing.contains(&planned.pid);
            let is_due = self.tables.values().any(|table| table.is_due(time, false));
            flush = is_flushing && (!is_due || says(false) != planned.watermarks);
            let why = || format!("batch {} reads nothing and closes nothing{}", plan.batch, outcome.report());
            assert!(self.tables.values().any(|table| table.is_due(time, flush)), "{}", why());
        }
        self.closed_by_hand |= flush || self.rules.iter().any(|rules| rules.idle_after.is_some());
        assert_eq!(says(flush), planned.watermarks, "watermarks of batch {}{}", plan.batch, outcome.report());
        for table in self.tables.values_mut() {
            table.work(plan, &self.world.files, flush, true);
        }
    }

    /// A table that joined or lost its memory: all batches from the first one.
    fn work_again(&mut self, name: &str) {
        let is_lost = self.lost.remove(name);
        if self.tables.contains_key(name) && !is_lost {
            return;
        }
        seen(if is_lost { "repaired" } else { "joined" }, 1);
        let rules = self.rules.iter().find(|rules| rules.name == name).expect("a table of the pipeline");
        let mut table = Table::new(rules.clone());
        for planned in self.plans.values().filter(|planned| !planned.plan.ranges.is_empty()) {
            table.work(&planned.plan, &self.world.files, false, false);
        }
        if let Some(before) = self.tables.insert(name.to_string(), table) {
            self.earlier.entry(name.to_string()).or_default().extend(shown(&before.letters));
        }
    }

    fn is_settled(&self) -> bool {
        let (plans, commits) = (self.world.log("offsets"), self.world.log("commits"));
        plans.keys().last() == commits.keys().last()
    }

    fn check(&self, outcome: &Outcome) {
        let started = Instant::now();
        let checked = catch_unwind(AssertUnwindSafe(|| {
            let letters = self.world.letters();
            for (name, table) in &self.tables {
                seen("compared", 1);
                self.world.assert_table(table);
                let mut expected = shown(&table.letters);
                if let Some(earlier) = self.earlier.get(name) {
                    expected.extend(earlier.iter().cloned());
                    expected.sort_unstable();
                    expected.dedup();
                }
                assert_same(&format!("dead letters of {name}"), &expected, letters.get(name).unwrap_or(&Vec::new()));
            }
            self.check_counts();
        }));
        seen("ms of checks", started.elapsed().as_millis() as usize);
        if let Err(why) = checked {
            let rules: String = self.rules.iter().map(|rules| format!("  {rules:?}\n")).collect();
            let plans: String = self.plans.values().map(|plan| format!("  {plan:?}\n")).collect();
            panic!("{}\n{rules}{plans}{}", message(&*why), outcome.report());
        }
    }

    fn check_counts(&self) {
        for (batch, record) in self.world.log("commits") {
            let planned = &self.plans[&batch];
            if !planned.rebuild.is_empty() {
                continue;
            }
            for (name, table) in &self.tables {
                // Before it joined, or as it was judged before its memory was lost.
                if !record["tables"].as_object().expect("tables").contains_key(name) || self.earlier.contains_key(name)
                {
                    continue;
                }
                let count = |rule: &str| record["expectations"][format!("{name}.{rule}")].as_u64().unwrap_or(0);
                let expected = table.counts.get(&batch).copied().unwrap_or_default();
                seen("late rows", expected.0 as usize);
                assert_eq!((count("late"), count("partly_late")), expected, "late rows of {name} in batch {batch}");
            }
        }
    }

    /// Takes a file of a table's state away, and requires the next run to say so.
    fn lose(&mut self) {
        let records = self.world.log("commits");
        let Some(record) = records.values().last() else { return };
        let can_lose = |rules: &&Rules| !rules.from_source && (rules.emit != Emit::Final || !self.closed_by_hand);
        let names: Vec<String> = self.rules.iter().filter(can_lose).map(|rules| rules.name.clone()).collect();
        let Some(name) = names.get(self.random.random_range(0..names.len().max(1))) else { return };
        let Some(file) = record["tables"][name]["state"].as_str() else { return };
        let path = self.world.path("lake/_tidegate/state").join(name).join(format!("{file}.parquet"));
        match self.random.random_bool(0.5) {
            true => fs::remove_file(&path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display())),
            false => fs::write(&path, "nothing").expect("writable"),
        }
        let run = self.world.run(&["--trigger", "available_now"]).code(&[78]).says("TG0514").says("rebuild");
        assert_eq!(self.world.log("offsets").len(), self.plans.len(), "nothing is planned{}", run.report());
        self.lost.insert(name.clone());
        let name = name.clone();
        self.rebuild(&[name], false);
        assert!(self.lost.is_empty());
    }

    fn join(&mut self) {
        let Some(rules) = self.waiting.pop() else { return };
        self.rules.push(rules);
        self.world.sandbox.write(FILE, &pipeline(&self.rules, self.max_rows));
    }

    fn live(&mut self) {
        let runs = self.random.random_range(3..7);
        for _ in 0..runs {
            if self.random.random_bool(0.9) {
                self.grow();
            }
            if self.random.random_bool(0.1) {
                std::thread::sleep(Duration::from_millis(250));
            }
            let disturbed = self.random.random_bool(0.5);
            self.run(disturbed);
            let has_run = self.is_settled() && !self.plans.is_empty();
            match self.random.random_range(0..20) {
                0..3 if has_run => {
                    let known =
                        self.rules.iter().filter(|rules| !rules.from_source && self.tables.contains_key(&rules.name));
                    let known: Vec<String> = known.map(|rules| rules.name.clone()).collect();
                    let names: Vec<String> = known.into_iter().filter(|_| self.random.random_bool(0.6)).collect();
                    if !names.is_empty() {
                        let disturbed = self.random.random_bool(0.3);
                        self.rebuild(&names, disturbed);
                    }
                }
                3..5 if has_run && self.waiting.is_empty() && self.tables.len() == self.rules.len() => self.lose(),
                5..9 if has_run => self.join(),
                _ => {}
            }
        }
        self.run(false);
        seen("batches", self.plans.len());
    }
}

fn message(why: &(dyn std::any::Any + Send)) -> String {
    let text = why.downcast_ref::<String>().cloned();
    text.or_else(|| why.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or_default()
}

#[test]
fn whatever_the_history_the_tables_are_what_the_rules_say() {
    let seed = seed();
    let count = number("TIDEGATE_WINDOW_CASES").unwrap_or(40) as usize;
    let only = number("TIDEGATE_WINDOW_CASE").map(|case| case as usize);
    println!("TIDEGATE_SEED={seed} TIDEGATE_WINDOW_CASES={count}");
    let cases: Vec<usize> = only.map_or_else(|| (0..count).collect(), |case| vec![case]);
    let (next, failures, started) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Instant::now());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(why) = catch_unwind(AssertUnwindSafe(|| History::new(*case, seed).live())) {
                        failures.lock().expect("no thread panics here").push((*case, message(&*why)));
                    }
                }
            });
        }
    });
    let seen = SEEN.lock().expect("no thread panics here").clone();
    println!("{} histories in {:.1?}: {seen:?}", cases.len(), started.elapsed());
    let failures = failures.into_inner().expect("no thread panicked here");
    let names: String = failures
        .iter()
        .map(|(case, why)| format!("  TIDEGATE_WINDOW_CASE={case}: {}\n", why.lines().next().unwrap_or_default()))
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} histories went wrong (TIDEGATE_SEED={seed})\n{names}\nthe first:\n{}",
        failures.len(),
        cases.len(),
        failures[0].1
    );
    if only.is_none() && count >= 40 {
        for what in ["killed", "failed", "flushed", "rebuilt", "repaired", "joined", "no rows", "late rows"] {
            assert!(seen.get(what).is_some_and(|times| *times > 0), "no history with: {what}");
        }
    }
}
