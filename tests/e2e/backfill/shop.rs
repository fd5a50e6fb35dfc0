//! A small shop: seeded sales in files, what its tables must hold, and the commands that work on it.

#![allow(clippy::disallowed_methods, reason = "a test's own files need no durability")]
#![cfg_attr(not(feature = "failpoints"), allow(dead_code, reason = "only builds with fail points can be killed"))]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use chrono::{DateTime, SecondsFormat, TimeDelta, TimeZone as _, Utc};
use chrono_tz::Europe::Berlin;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::objects;
use crate::support::lake::{self, assert_same};
use crate::support::sandbox::{Outcome, Running};
use crate::support::{CONTENT, Sandbox};

pub const FILE: &str = "shop.yaml";
/// For messages only.
pub const TODAY: &str = "rows of now are of today, or of yesterday when midnight was just now";

/// A half-open range of time.
pub type Range = (DateTime<Utc>, DateTime<Utc>);

/// What decides which event of a key is the newest: its time, then where it is.
type Rank = (Option<DateTime<Utc>>, usize);

/// A day of March 2026 in Berlin.
pub fn day(number: u32) -> Range {
    local_day(2026, 3, number)
}

/// A day in Berlin. None of those here starts at a clock change.
pub fn local_day(year: i32, month: u32, number: u32) -> Range {
    let start =
        |number: u32| Berlin.with_ymd_and_hms(year, month, number, 0, 0, 0).single().expect("midnight").to_utc();
    (start(number), start(number + 1))
}

/// One record.
#[derive(Debug, Clone)]
pub struct Event {
    id: String,
    store: String,
    amount: i64,
    pub at: Option<DateTime<Utc>>,
    is_delete: bool,
}

impl Event {
    pub fn sale(id: &str, amount: i64, at: Option<DateTime<Utc>>) -> Event {
        Event { id: id.to_string(), store: "s-0".to_string(), amount, at, is_delete: false }
    }

    fn line(&self) -> String {
        let at = self.at.map(|at| at.to_rfc3339_opts(SecondsFormat::Micros, true));
        let op = if self.is_delete { "d" } else { "u" };
        serde_json::json!({"id": self.id, "store": self.store, "amount": self.amount, "at": at, "op": op}).to_string()
    }
}

/// The SQL's two constants: the factor of amounts and the least amount in the log.
#[derive(Debug, Clone, Copy)]
struct Rules {
    factor: i64,
    least: i64,
}

pub struct Shop {
    sandbox: Sandbox,
    /// Of what is sold. Tests name the days and hours that have sales, so it is the same every day.
    random: ChaCha8Rng,
    /// By file and line: where a record is decides ties.
    files: Vec<Vec<Event>>,
    /// The rules that the live run had for a file.
    live: Vec<Rules>,
    now: Rules,
    /// Derived again: which time, by which rules, over how many files.
    derived: Vec<(Range, Rules, usize)>,
    /// How many days sales are spread over.
    days: i64,
}

impl Shop {
    /// A shop without a sale.
    pub fn empty(test: &str) -> Shop {
        let shop = Shop {
            sandbox: Sandbox::new(test),
            random: ChaCha8Rng::seed_from_u64(CONTENT),
            files: Vec::new(),
            live: Vec::new(),
            now: Rules { factor: 1, least: 0 },
            derived: Vec::new(),
            days: 6,
        };
        shop.sandbox.write("landing/.keep", "");
        let yaml = include_str!("../backfill.yaml").replace("FACTOR", "1").replace("LEAST", "0");
        shop.sandbox.write(FILE, &yaml);
        shop
    }

    /// A shop with so many events in several files, which the live run has read.
    pub fn new(test: &str, events: usize) -> Shop {
        Shop::over_days(test, events, 6)
    }

    /// The same, over so many days from the fifteenth on.
    pub fn over_days(test: &str, events: usize, days: i64) -> Shop {
        let mut shop = Shop { days, ..Shop::empty(test) };
        for _ in 0..3 {
            shop.land(events / 3);
        }
        shop.live().success();
        shop
    }

    /// A file with events of all days: a few keys with many updates, ties, deletes, rows that are set aside, and some
    /// without a time.
    pub fn land(&mut self, count: usize) {
        let days = self.days;
        let events = (0..count).map(|_| {
            let at = day(15).0 + TimeDelta::minutes(self.random.random_range(0..days * 24 * 60));
            event(&mut self.random, at)
        });
        let events = events.collect();
        self.write(events);
    }

    /// A file with events of one day.
    pub fn land_on(&mut self, number: u32, count: usize) {
        let events = (0..count).map(|_| {
            let at = day(number).0 + TimeDelta::minutes(self.random.random_range(0..24 * 60));
            event(&mut self.random, at)
        });
        let events = events.collect();
        self.write(events);
    }

    /// A file with these events, there at once.
    pub fn write(&mut self, events: Vec<Event>) {
        let text: String = events.iter().map(|event| event.line() + "\n").collect();
        let name = format!("landing/{:04}.ndjson", self.files.len());
        let hidden = self.sandbox.write(&format!("{name}.part"), &text);
        fs::rename(hidden, self.path(&name)).expect("a name");
        self.files.push(events);
        self.live.push(self.now);
    }

    pub fn events(&self) -> Vec<&Event> {
        self.files.iter().flatten().collect()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.sandbox.path().join(name)
    }

    pub fn table(&self, name: &str) -> PathBuf {
        self.path("lake").join(name)
    }

    /// How many records have their time in one of the ranges.
    pub fn rows_of(&self, ranges: &[Range]) -> usize {
        let inside = |event: &&&Event| ranges.iter().any(|range| is_inside(event, range));
        self.events().iter().filter(inside).count()
    }

    // The pipeline.

    pub fn replace(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(FILE)).expect("the pipeline");
        assert!(text.contains(from), "the pipeline has no {from:?}");
        self.sandbox.write(FILE, &text.replace(from, to));
    }

    pub fn add_table(&self, yaml: &str) {
        self.replace("#MORE", &format!("{yaml}#MORE"));
    }

    pub fn change_sql(&mut self, factor: i64, least: i64) {
        let was = self.now;
        self.replace(&format!("amount * {} AS", was.factor), &format!("amount * {factor} AS"));
        self.replace(&format!("amount > {}\n", was.least), &format!("amount > {least}\n"));
        self.now = Rules { factor, least };
    }

    // Commands.

    pub fn live(&self) -> Outcome {
        self.sandbox.drain(FILE)
    }

    pub fn start_live(&self) -> Running {
        self.sandbox.tidegate(&["run", FILE, "--trigger", "150ms", "--output", "json"]).start()
    }

    /// One that ends by itself.
    pub fn start_live_with(&self, variables: &[(&str, &str)]) -> Running {
        let command = self.sandbox.tidegate(&["run", FILE, "--trigger", "available_now", "--output", "json"]);
        variables.iter().fold(command, |command, (name, value)| command.env(name, value)).start()
    }

    /// Waits until a run has come to a gate.
    pub fn wait_for(&self, gate: &Path, run: &Running) {
        while !gate.with_extension("reached").exists() {
            assert!(!run.ended(), "{}", run.stderr());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    pub fn backfill(&self, arguments: &[&str]) -> Outcome {
        self.backfill_with(arguments, &[])
    }

    pub fn backfill_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Outcome {
        let running = self.start_backfill_with(arguments, variables);
        running.finish(std::time::Duration::from_secs(600)).expect("a backfill that ends")
    }

    /// Any command in the folder of the shop, to its end.
    pub fn command(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Outcome {
        let command = self.sandbox.tidegate(arguments);
        variables.iter().fold(command, |command, (name, value)| command.env(name, value)).run()
    }

    pub fn start_backfill(&self, arguments: &[&str]) -> Running {
        self.start_backfill_with(arguments, &[])
    }

    pub fn start_backfill_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Running {
        let all: Vec<&str> = ["backfill", FILE, "--output", "json"].iter().chain(arguments).copied().collect();
        let command = self.sandbox.tidegate(&all);
        variables.iter().fold(command, |command, (name, value)| command.env(name, value)).start()
    }

    /// `interval why`, one a gap.
    pub fn gaps(&self, arguments: &[&str]) -> Vec<String> {
        let all: Vec<&str> = ["--gaps"].iter().chain(arguments).copied().collect();
        let json = self.backfill(&all).success().json();
        let text = |gap: &Value, name: &str| gap[name].as_str().expect("text").to_string();
        let gaps = json["gaps"].as_array().expect("a list").iter();
        gaps.map(|gap| format!("{} {}", text(gap, "interval"), text(gap, "why"))).collect()
    }

    /// Days with a run that was begun and is not done.
    pub fn unfinished(&self) -> Vec<String> {
        let gaps = self.gaps(&["--from", "2026-03-15", "--to", "2026-03-21"]);
        gaps.iter().filter_map(|gap| gap.strip_suffix(" unfinished").map(str::to_string)).collect()
    }

    pub fn release(&self, gate: &Path) {
        fs::write(gate, "").expect("a file");
    }

    pub fn versions(&self) -> BTreeMap<&'static str, Option<i64>> {
        let names = ["bronze/sales", "silver/sales", "silver/log", "gold/daily", "gold/stores", "dlq/sales"];
        names.into_iter().map(|name| (name, lake::version(&self.table(name)))).collect()
    }

    // The oracle.

    /// From now on the rows of these ranges that are there are by today's rules.
    pub fn derived(&mut self, ranges: &[Range]) {
        let files = self.files.len();
        self.derived.extend(ranges.iter().map(|range| (*range, self.now, files)));
    }

    fn rules(&self, file: usize, event: &Event) -> Rules {
        let again = self.derived.iter().rev().find(|(range, _, files)| file < *files && is_inside(event, range));
        again.map_or(self.live[file], |(_, rules, _)| *rules)
    }

    /// Requires every table to hold what the events say.
    #[track_caller]
    pub fn assert_tables(&self) {
        let (mut bronze, mut log, mut dead) = (Vec::new(), Vec::new(), Vec::new());
        // Newest by time, file and line; a row that is set aside does not count, a delete always does.
        let mut newest: BTreeMap<&str, (Rank, &Event, Rules)> = BTreeMap::new();
        for (file, events) in self.files.iter().enumerate() {
            for (line, event) in events.iter().enumerate() {
                let rules = self.rules(file, event);
                let at = micros(event);
                bronze.push(format!("{file:04}.ndjson|{line}|{}|{}|{at}", event.id, event.amount));
                if event.amount > rules.least {
                    log.push(format!("{}|{}|{at}", event.id, event.amount * rules.factor));
                }
                if event.amount <= 0 && !event.is_delete {
                    dead.push(format!("{file:04}.ndjson|{line}|positive"));
                    continue;
                }
                let rank = (event.at, file * 1_000_000 + line);
                if newest.get(event.id.as_str()).is_none_or(|(best, ..)| *best < rank) {
                    newest.insert(&event.id, (rank, event, rules));
                }
            }
        }
        let (mut silver, mut groups) = (Vec::new(), BTreeMap::<(Option<i64>, &str), (i64, i64)>::new());
        for (_, event, rules) in newest.values().filter(|(_, event, _)| !event.is_delete) {
            let amount = event.amount * rules.factor;
            silver.push(format!("{}|{}|{amount}|{}", event.id, event.store, micros(event)));
            let day = event.at.map(|at| at.timestamp().div_euclid(86_400));
            let group = groups.entry((day, &event.store)).or_default();
            *group = (group.0 + 1, group.1 + amount);
        }
        let show = |day: Option<i64>| day.map_or(lake::NULL.to_string(), |day| day.to_string());
        let daily =
            groups.iter().map(|((day, store), (n, total))| format!("{}|{store}|{n}|{total}", show(*day))).collect();
        let mut stores = BTreeMap::<&str, (i64, i64)>::new();
        for ((_, store), (n, total)) in &groups {
            let sum = stores.entry(store).or_default();
            *sum = (sum.0 + n, sum.1 + total);
        }
        let stores = stores.iter().map(|(store, (n, total))| format!("{store}|{n}|{total}")).collect();
        let is = |name: &str, sql: &str, mut expected: Vec<String>| {
            expected.sort_unstable();
            assert_same(name, &expected, &lake::lines(&self.table(name), sql));
        };
        is("bronze/sales", "SELECT \"_topic\", \"_offset\", id, amount, at FROM t", bronze);
        is("silver/log", "SELECT id, amount, at FROM t", log);
        is("silver/sales", "SELECT id, store, amount, at FROM t", silver);
        is("dlq/sales", "SELECT topic, \"offset\", rule FROM t", dead);
        is("gold/daily", "SELECT day, store, sales, total FROM t", daily);
        is("gold/stores", "SELECT store, sales, total FROM t", stores);
    }

    /// Plans and commit records of the same batches, without a gap, and nothing of a backfill among them.
    #[track_caller]
    pub fn assert_live_log_is_dense(&self) {
        let log = self.path("checkpoints/shop");
        let (plans, commits) = (objects(&log.join("offsets")), objects(&log.join("commits")));
        let names = |objects: &BTreeMap<String, Value>| objects.keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(names(&plans), names(&commits));
        let numbers: Vec<i64> = commits.values().map(|record| record["batch"].as_i64().expect("a number")).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{numbers:?}");
    }
}

impl Shop {
    /// The live run has read every file once, to its end, and its position never went back.
    pub fn assert_live_offsets(&self) {
        let commits = objects(&self.path("checkpoints/shop").join("commits"));
        let mut commits: Vec<&Value> = commits.values().collect();
        commits.sort_by_key(|record| record["batch"].as_i64());
        let offsets = |record: &Value| -> BTreeMap<String, i64> {
            let files = record["offsets"]["source"].as_object().cloned().unwrap_or_default();
            files.into_iter().map(|(file, at)| (file, at["0"].as_i64().expect("a line"))).collect()
        };
        let mut before = BTreeMap::new();
        for record in commits {
            let after = offsets(record);
            assert!(before.iter().all(|(file, at)| after.get(file) >= Some(at)), "{before:?} then {after:?}");
            before = after;
        }
        let lines = |(number, events): (usize, &Vec<Event>)| (format!("{number:04}.ndjson"), events.len() as i64);
        assert_eq!(before, self.files.iter().enumerate().map(lines).collect());
    }
}

fn event(random: &mut ChaCha8Rng, at: DateTime<Utc>) -> Event {
    let at = (!random.random_ratio(1, 40)).then_some(at);
    Event {
        id: format!("k-{:03}", random.random_range(0..150)),
        store: format!("s-{}", random.random_range(0..4)),
        amount: random.random_range(-1..30),
        at,
        is_delete: random.random_ratio(1, 10),
    }
}

fn is_inside(event: &Event, range: &Range) -> bool {
    event.at.is_some_and(|at| range.0 <= at && at < range.1)
}

fn micros(event: &Event) -> String {
    event.at.map_or(lake::NULL.to_string(), |at| at.timestamp_micros().to_string())
}
