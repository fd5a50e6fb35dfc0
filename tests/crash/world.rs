//! A small medallion over two files, what its tables must hold, and how a run of it is attacked and checked.

#![allow(clippy::disallowed_methods, reason = "a test's own files need no durability")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use crate::support::broker::Record;
use crate::support::lake::{assert_same, lines};
use crate::support::oracle::{Origin, Stored, Tables, stored};
use crate::support::orders::{Orders, stores_csv};
use crate::support::sandbox::{Outcome, Running};
use crate::support::{Sandbox, number, seed};

/// Enough for deletes, late rows, ties and dead letters; few enough for thousands of runs.
const ROWS: usize = 318;
const MAX_ROWS: usize = 80;
const FILES: u32 = 2;

/// A table that remembers: its rows are worked out of bronze's by the reader.
const REMEMBERING: &str = "
  gold.stores:
    from: bronze.orders
    aggregate: {by: store_id, measures: {orders: count(*), revenue: sum(amount)}}
";

/// What all cases share.
pub struct World {
    lines: Vec<Vec<u8>>,
    rows: BTreeMap<String, u64>,
    expected: Tables,
}

/// The world of this run's seed, or of the first one after it whose orders hold enough of everything: not every day's do.
pub fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        println!("TIDEGATE_SEED={}", seed());
        let mut worlds = (seed()..).take(100).map(World::of);
        worlds.find(|world| !world.is_tame()).expect("not all of a hundred seeds are too tame")
    })
}

impl World {
    fn of(seed: u64) -> World {
        // A third of the week that the stream would cover: fewer days, fewer files.
        let events = Orders::new(seed, 3 * ROWS as u64, FILES).take(ROWS);
        // What cannot be a line of a file is left out: tombstones and empty values.
        let is_line = |value: &[u8]| !value.is_empty() && !value.contains(&b'\n');
        let records = events.map(Record::from).filter(|record| record.value.as_deref().is_some_and(is_line));
        let records: Vec<Stored> = stored(records.collect());
        let mut lines = vec![Vec::new(); FILES as usize];
        let mut rows = BTreeMap::new();
        for stored in &records {
            let file = &mut lines[stored.partition as usize];
            file.extend_from_slice(stored.record.value.as_deref().expect("filtered"));
            file.push(b'\n');
            *rows.entry(format!("part-{}.ndjson", stored.partition)).or_default() += 1;
        }
        let expected = Tables::expected_from(&Origin::Files, &records);
        World { lines, rows, expected }
    }

    /// Too few rows would leave nothing to lose, double or change.
    fn is_tame(&self) -> bool {
        let Tables { silver, gold, dead, .. } = &self.expected;
        silver.len() <= 50 || gold.len() <= 10 || dead.len() <= 2
    }
}

/// The seeded choice of what a sample holds.
pub fn random(salt: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed() ^ salt)
}

/// Whether everything is tried (`make crash`) or a sample.
pub fn try_all() -> bool {
    std::env::var("TIDEGATE_CRASH").is_ok_and(|value| value == "all")
}

/// `usual` cases of a sample; `TIDEGATE_CRASH=10` = ten times as many.
pub fn cases(usual: usize) -> usize {
    usual * usize::try_from(number("TIDEGATE_CRASH").unwrap_or(1)).expect("a factor")
}

/// Processes started by the crash tests.
pub static RUNS: AtomicU64 = AtomicU64::new(0);

/// One lake, one checkpoint, and the runs that are tried on them.
pub struct Case {
    pub sandbox: Sandbox,
    variables: Vec<(&'static str, String)>,
    has_zombies: bool,
}

impl Case {
    /// A pipeline that never ran.
    pub fn new(name: &str) -> Case {
        let world = world();
        let sandbox = Sandbox::new(&format!("crash-{name}"));
        sandbox.write("ref/stores.csv", &stores_csv());
        let text = include_str!("../support/orders.yaml");
        let (before, rest) = text.split_once("  kafka:\n").expect("the pipeline of the oracle reads Kafka");
        let (_, after) = rest.split_once("  format: json").expect("and JSON");
        let source = "  files: {path: landing, pattern: \"*.ndjson\"}\n  format: json";
        let yaml = format!("{before}{source}{after}").replace("#BATCH", &format!("batch: {{max_rows: {MAX_ROWS}}}"));
        let yaml = yaml.replace("\ndead_letters:", &format!("{REMEMBERING}\ndead_letters:"));
        assert!(yaml.contains(REMEMBERING), "the pipeline has dead letters");
        sandbox.write("orders.yaml", &yaml);
        sandbox.write("landing/.keep", "");
        for (number, lines) in world.lines.iter().enumerate() {
            fs::write(sandbox.path().join(format!("landing/part-{number}.ndjson")), lines).expect("a file");
        }
        Case { sandbox, variables: vec![("TIDEGATE_FAIL_SMALL", "1".into())], has_zombies: false }
    }

    /// Sets a variable for every attacked run of the case.
    pub fn with(mut self, name: &'static str, value: &str) -> Case {
        self.variables.push((name, value.to_string()));
        self
    }

    /// More than one runner works on it at a time.
    pub fn with_zombies(mut self) -> Case {
        self.has_zombies = true;
        self
    }

    /// Starts a run under `orders` (`TIDEGATE_FAIL`).
    pub fn start(&self, orders: &str) -> Running {
        RUNS.fetch_add(1, Ordering::Relaxed);
        let arguments = ["run", "orders.yaml", "--trigger", "available_now", "--output", "json"];
        let command = self.sandbox.tidegate(&arguments).env("TIDEGATE_FAIL", orders);
        self.variables.iter().fold(command, |command, (name, value)| command.env(name, value)).start()
    }

    /// The same, to its end.
    pub fn run(&self, orders: &str) -> Outcome {
        let run = self.start(orders);
        run.finish(std::time::Duration::from_secs(600)).expect("the run hangs; it was killed")
    }

    /// A path for a pause.
    pub fn path(&self, name: &str) -> PathBuf {
        self.sandbox.path().join(name)
    }

    /// Runs cleanly, requires the tables of the oracle and a dense log, and that a further run changes nothing.
    #[track_caller]
    pub fn recover(&self) {
        let recovery = self.run("").success();
        self.check(&recovery);
        self.nothing_left();
    }

    /// Requires the tables of the oracle and a dense log.
    #[track_caller]
    pub fn check(&self, last: &Outcome) {
        let checked = catch_unwind(AssertUnwindSafe(|| {
            world().expected.assert_in(&self.path("lake"));
            let sums = "SELECT store_id, count(*), sum(amount) FROM t GROUP BY store_id";
            let summed = lines(&self.path("lake/bronze/orders"), sums);
            assert!(summed.len() > 2, "too few stores");
            let remembered = lines(&self.path("lake/gold/stores"), "SELECT store_id, orders, revenue FROM t");
            assert_same("gold.stores", &summed, &remembered);
            check_log(&self.path("checkpoints/orders"), self.has_zombies);
        }));
        if let Err(why) = checked {
            panic!("{}\nafter the last run: {}", message(&*why), last.report());
        }
    }

    /// Requires that a further run finds nothing to do and touches no file.
    #[track_caller]
    pub fn nothing_left(&self) {
        let before = self.files();
        let idle = self.run("").success();
        assert_eq!(idle.json()["status"], "no_data", "{}", idle.report());
        assert_eq!(self.files(), before, "a run with nothing to do changed files\n{}", idle.report());
    }

    /// Every file of lake and log with its size.
    fn files(&self) -> BTreeMap<PathBuf, u64> {
        fn walk(folder: &Path, into: &mut BTreeMap<PathBuf, u64>) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                match path.is_dir() {
                    true => walk(&path, into),
                    false => drop(into.insert(path, entry.metadata().map_or(0, |data| data.len()))),
                }
            }
        }
        let mut files = BTreeMap::new();
        walk(&self.path("lake"), &mut files);
        walk(&self.path("checkpoints"), &mut files);
        // It says who holds it, and nothing depends on it.
        files.remove(&self.path("checkpoints/orders/lock"));
        files
    }

    /// Names and sizes of all commits of all tables.
    pub fn commits(&self) -> BTreeMap<PathBuf, u64> {
        let mut files = self.files();
        files.retain(|path, _| path.parent().is_some_and(|folder| folder.ends_with("_delta_log")));
        files
    }
}

/// Requires plans and commit records of the same batches without a gap, each going on where the one before it ended, up
/// to the last line of every file. A zombie that slept through a clean-up (100 batches, here 2) may put a plan back that
/// was deleted, or delete a commit record that the clean-up would have left: both are older than anything that is read.
fn check_log(log: &Path, has_zombies: bool) {
    let read = |kind: &str| -> BTreeMap<u64, Value> {
        let entries = fs::read_dir(log.join(kind)).expect("a folder of the log").flatten();
        let names = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "json"));
        let parse = |path: PathBuf| {
            let number = path.file_stem().expect("a name").to_string_lossy().parse().expect("a batch number");
            let text = fs::read_to_string(&path).expect("readable");
            (number, serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}\n{text}", path.display())))
        };
        names.map(parse).collect()
    };
    let (mut plans, mut commits) = (read("offsets"), read("commits"));
    if has_zombies {
        let both = plans.keys().filter(|id| commits.contains_key(id)).copied();
        let last = both.clone().last().expect("a batch that is done");
        let first = both.rev().zip((0..=last).rev()).filter(|(id, dense)| id == dense).map(|(id, _)| id).last();
        plans = plans.split_off(&first.expect("at least the last"));
        commits = commits.split_off(&first.expect("at least the last"));
    }
    let ids = |log: &BTreeMap<u64, Value>| log.keys().copied().collect::<BTreeSet<_>>();
    let (first, last) = (*plans.keys().next().expect("a plan"), *plans.keys().last().expect("a plan"));
    assert_eq!(ids(&plans), (first..=last).collect(), "plans have a gap");
    // A crash between the two halves of a clean-up leaves older commit records than plans.
    let newest: BTreeSet<u64> = ids(&commits).into_iter().filter(|id| *id >= first).collect();
    assert_eq!(newest, ids(&plans), "plans and commit records differ");
    for id in first + 1..=last {
        for (file, ranges) in plans[&id]["sources"]["source"].as_object().expect("ranges of the source") {
            let before = &commits[&(id - 1)]["offsets"]["source"][file]["0"];
            assert_eq!(&ranges["0"][0], before, "batch {id} does not continue {file} where the one before ended");
        }
    }
    let ends: BTreeMap<String, u64> = commits[&last]["offsets"]["source"]
        .as_object()
        .expect("offsets of the source")
        .iter()
        .map(|(file, offsets)| (file.clone(), offsets["0"].as_u64().expect("an offset")))
        .collect();
    assert_eq!(ends, world().rows, "not every line was read");
}

/// Requires that the run died of SIGKILL.
#[track_caller]
pub fn assert_killed(run: &Outcome) {
    assert_eq!(run.status.signal(), Some(9), "it should have died of SIGKILL\n{}", run.report());
}

/// Hits by point of a run that nothing disturbs, with uploads in one piece and in parts.
pub fn trace(parts: bool) -> &'static BTreeMap<String, u64> {
    static TRACES: [OnceLock<BTreeMap<String, u64>>; 2] = [OnceLock::new(), OnceLock::new()];
    TRACES[usize::from(parts)].get_or_init(|| {
        let case = Case::new("trace");
        let file = case.path("trace");
        let case = case.with("TIDEGATE_FAIL_TRACE", &file.to_string_lossy());
        let case = if parts { case.with("TIDEGATE_FAIL_PARTS", "1") } else { case };
        let run = case.run("").success();
        let mut hits = BTreeMap::new();
        for line in fs::read_to_string(&file).expect("the trace").lines() {
            *hits.entry(line.to_string()).or_default() += 1;
        }
        assert!(run.batches().len() >= 4, "too few batches\n{}", run.report());
        case.check(&run);
        hits
    })
}

/// Works through `cells` on all cores, and fails at the end with everything that went wrong.
pub fn each<T: Sync>(what: &str, cells: &[T], name: impl Fn(&T) -> String + Sync, work: impl Fn(&T) + Sync) {
    let started = Instant::now();
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(why) = catch_unwind(AssertUnwindSafe(|| work(cell))) {
                        let text = format!("{}: {}", name(cell), message(&*why));
                        failures.lock().expect("no thread panics here").push(text);
                    }
                }
            });
        }
    });
    println!("{what}: {} cases in {:.1?}", cells.len(), started.elapsed());
    let failures = failures.into_inner().expect("no thread panicked here");
    let names: String = failures.iter().map(|f| format!("  {}\n", f.lines().next().unwrap_or_default())).collect();
    assert!(
        failures.is_empty(),
        "{what}: {} of {} cases failed (seed {})\n{names}\nthe first:\n{}",
        failures.len(),
        cells.len(),
        seed(),
        failures[0]
    );
}

fn message(why: &(dyn std::any::Any + Send)) -> String {
    let text = why.downcast_ref::<String>().cloned();
    text.or_else(|| why.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or_default()
}

/// `count` of `all`, by the seed; all of them where that is fewer.
pub fn sample<T>(mut all: Vec<T>, count: usize, random: &mut ChaCha8Rng) -> Vec<T> {
    let mut taken = Vec::new();
    while taken.len() < count && !all.is_empty() {
        taken.push(all.swap_remove(random.random_range(0..all.len())));
    }
    taken
}
