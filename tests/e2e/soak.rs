//! Minutes of everything at once, and then the tables are the oracle's: live orders and transactions, a continuous run
//! that is killed at random moments, brokers that stop and die, second runners, compaction in the run and from another
//! process, storage that fails and loses replies.
//!
//! Only with `TIDEGATE_SOAK_MINUTES` (`make soak`). `TIDEGATE_SOAK_RATE` = records a second; `TIDEGATE_SEED` makes the
//! same choices again, though not at the same moments.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tidegate::fail;

use super::maintain::live;
use crate::support::broker::{OwnBroker, Producer, Record, free_port};
use crate::support::lake;
use crate::support::oracle::{Tables, versions};
use crate::support::orders::Orders;
use crate::support::pipeline::{FILE, Pipeline};
use crate::support::sandbox::{Outcome, Running};
use crate::support::traffic::{Stop, Transaction, assert_as_sent, stream, transactions};
use crate::support::{Sandbox, number, seed};

const TOPIC: &str = "soak.v1";
const PARTITIONS: u32 = 4;

/// Small enough that a batch is done between most kills, however long the backlog that a stopped broker left.
const MAX_ROWS: u64 = 10_000;

/// Longer than any process takes that is neither killed nor continuous.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a process may end with: done, retry, another runner.
const ALLOWED: [i32; 3] = [0, 69, 75];

/// Between the end of a run by itself and the next: what systemd leaves by default.
const RESTART: Duration = Duration::from_millis(100);

/// Everything that the threads share.
struct Soak {
    sandbox: Sandbox,
    broker: OwnBroker,
    stop: Stop,
    ends: Mutex<BTreeMap<(&'static str, String), u64>>,
    replays: AtomicU64,
    second_looks: AtomicU64,
}

/// Lets the others end when one panics, so that the test fails at once.
struct EndsAll<'a>(&'a Stop);

impl Drop for EndsAll<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.set();
        }
    }
}

impl Soak {
    fn start(&self, arguments: &[&str], orders: &str, is_remote: bool) -> Running {
        let command = self.sandbox.tidegate(arguments);
        let command = if orders.is_empty() { command } else { command.env("TIDEGATE_FAIL", orders) };
        if is_remote { command.env("TIDEGATE_FAIL_REMOTE", "1") } else { command }.start()
    }

    /// Counts how a process ended, and requires that it may end so.
    #[track_caller]
    fn note(&self, who: &'static str, outcome: &Outcome) {
        let end = match (outcome.status.signal(), outcome.status.code()) {
            (Some(9), _) => "killed".to_string(),
            // Asked to stop before it could listen: then it has not done anything either.
            (Some(15), _) if outcome.stderr.is_empty() => "killed by SIGTERM while it started".to_string(),
            (_, Some(code)) if ALLOWED.contains(&code) => {
                let is_clear = outcome.stderr.contains("error[TG") && outcome.stderr.contains("help: ");
                assert!(code == 0 || is_clear, "{who}: no clear message\n{}", outcome.report());
                format!("exit {code}")
            }
            _ => panic!("{who} ended as it never may\n{}", outcome.report()),
        };
        let count = |text: &str| outcome.stderr.matches(text).count() as u64;
        self.replays.fetch_add(count(", begun by an earlier run"), Ordering::Relaxed);
        self.second_looks.fetch_add(count("looking again"), Ordering::Relaxed);
        *self.ends.lock().expect("nothing panics while it holds this").entry((who, end)).or_default() += 1;
    }

    /// The supervisor: runs the pipeline, kills it, and starts it again at once; returns the largest lag seen.
    fn supervise(&self, producer: &Producer, random: &mut ChaCha8Rng) -> i64 {
        let _guard = EndsAll(&self.stop);
        let arguments = ["run", FILE, "--trigger", "1s", "--output", "json", "--progress", "lines"];
        let mut most = 0;
        while !self.stop.within(Duration::ZERO) {
            let orders = if random.random_bool(0.4) { noise(random) } else { String::new() };
            let is_remote = !orders.is_empty() && random.random_bool(0.5);
            let run = self.start(&arguments, &orders, is_remote);
            // A third dies while it recovers.
            let millis = if random.random_bool(0.3) { 200..1_000 } else { 1_000..8_000 };
            let patience = Duration::from_millis(random.random_range(millis));
            let is_asked = random.random_bool(0.1);
            let outcome = if is_asked { self.ask(run, patience) } else { run.end(patience) };
            self.note("run", &outcome);
            most = most.max(self.lag(producer));
            if outcome.status.signal().is_none() && self.stop.within(RESTART) {
                break;
            }
        }
        most
    }

    /// Lets it run, then asks it to stop: it must finish its batch and end.
    #[track_caller]
    fn ask(&self, run: Running, patience: Duration) -> Outcome {
        let deadline = Instant::now() + patience;
        while !run.ended() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !run.ended() {
            run.signal("TERM");
        }
        let outcome = run.end(PATIENCE);
        // An order of the noise may kill it first; then it was not for want of an end.
        assert!(outcome.took < patience + PATIENCE, "SIGTERM did not end it\n{}", outcome.report());
        outcome
    }

    /// A second runner now and then, on this host or, without the lock file, as if on another.
    fn intrude(&self, random: &mut ChaCha8Rng) {
        let _guard = EndsAll(&self.stop);
        let arguments = ["run", FILE, "--trigger", "available_now", "--output", "json", "--progress", "lines"];
        while !self.stop.within(Duration::from_millis(random.random_range(3_000..15_000))) {
            let orders = if random.random_bool(0.5) { "lock@*=skip" } else { "" };
            let run = self.start(&arguments, orders, false);
            let is_killed = random.random_bool(0.3);
            let patience = if is_killed { Duration::from_millis(random.random_range(100..4_000)) } else { PATIENCE };
            let outcome = run.end(patience);
            assert!(is_killed || outcome.took < PATIENCE, "the second runner hangs\n{}", outcome.report());
            self.note("second runner", &outcome);
        }
    }

    /// `optimize` and `vacuum` from another process, all the time.
    fn maintain(&self, random: &mut ChaCha8Rng) {
        let _guard = EndsAll(&self.stop);
        while !self.stop.within(Duration::from_millis(random.random_range(100..3_000))) {
            let (who, arguments): (_, &[&str]) = match random.random_bool(0.8) {
                true => ("optimize", &["optimize", FILE, "--target-size", "8MB", "--output", "json"]),
                false => ("vacuum", &["vacuum", FILE, "--yes", "--output", "json"]),
            };
            let is_killed = random.random_bool(0.25);
            let patience = if is_killed { Duration::from_millis(random.random_range(20..1_500)) } else { PATIENCE };
            let orders = if random.random_bool(0.2) { noise(random) } else { String::new() };
            let outcome = self.start(arguments, &orders, false).end(patience);
            assert!(is_killed || outcome.took < PATIENCE, "{who} hangs\n{}", outcome.report());
            self.note(who, &outcome);
        }
    }

    /// Stops the broker or kills it, every 90 seconds or so; returns how often each.
    fn restart(&self, random: &mut ChaCha8Rng) -> [u64; 2] {
        let _guard = EndsAll(&self.stop);
        let mut times = [0, 0];
        let mut wait = 15_000..40_000;
        while !self.stop.within(Duration::from_millis(random.random_range(wait))) {
            let is_killed = (times[0] + times[1]) % 2 == 0;
            if is_killed {
                self.broker.kill()
            } else {
                self.broker.down()
            }
            times[usize::from(is_killed)] += 1;
            // Down for longer than clients retry, sometimes.
            self.stop.within(Duration::from_millis(random.random_range(100..10_000)));
            self.broker.up();
            wait = 60_000..110_000;
        }
        times
    }

    /// Offsets that the broker is known to have and the newest commit record does not.
    fn lag(&self, producer: &Producer) -> i64 {
        let commits = self.sandbox.path().join("checkpoints/orders/commits");
        let number = |path: &std::path::Path| path.file_stem()?.to_str()?.parse::<u64>().ok();
        let paths = std::fs::read_dir(commits).into_iter().flatten().flatten().map(|entry| entry.path());
        let newest = paths.filter(|path| path.extension().is_some_and(|e| e == "json")).max_by_key(|path| number(path));
        let text = newest.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        let record: Value = serde_json::from_str(&text).unwrap_or_default();
        let read = |partition: &i32| record["offsets"]["source"][TOPIC][partition.to_string()].as_i64().unwrap_or(0);
        producer.ends().iter().map(|(partition, end)| (end - read(partition)).max(0)).sum()
    }

    fn lake(&self) -> std::path::PathBuf {
        self.sandbox.path().join("lake")
    }
}

/// One to three requests that fail or lose their reply, or a death at a step instead of at a moment.
fn noise(random: &mut ChaCha8Rng) -> String {
    if random.random_bool(0.3) {
        return format!("*@{}=kill", random.random_range(1..600));
    }
    let order = |random: &mut ChaCha8Rng| {
        let point = fail::ALL[random.random_range(0..fail::ALL.len())];
        let is_write = ["put", "delete", "part", "complete", "begin"].iter().any(|end| point.ends_with(end));
        let action = match random.random_range(0..4) {
            0 | 1 if is_write => "lost",
            2 if is_write => "late=300",
            _ => "error",
        };
        // Mostly early: few points are hit often before the run is killed.
        let hit = if random.random_bool(0.7) { random.random_range(1..6) } else { random.random_range(1..60) };
        format!("{point}@{hit}={action}")
    };
    let count = random.random_range(1..4);
    (0..count).map(|_| order(random)).collect::<Vec<_>>().join(";")
}

/// Commits of a table that merged files.
fn merges(table: &std::path::Path) -> usize {
    let commits = (0..=lake::version(table).unwrap_or(-1)).map(|version| {
        let text = std::fs::read_to_string(table.join(format!("_delta_log/{version:020}.json"))).expect("a commit");
        text.lines().any(|line| {
            let action: Value = serde_json::from_str(line).expect("JSON");
            action["commitInfo"]["operation"] == "OPTIMIZE"
        })
    });
    commits.filter(|is_merge| *is_merge).count()
}

/// What the minutes brought.
struct Brought {
    plain: Vec<Record>,
    marked: Vec<Transaction>,
    /// Clean restarts of the broker, and kills.
    restarts: [u64; 2],
    lag: i64,
}

impl Soak {
    fn new() -> Option<Soak> {
        let broker = OwnBroker::start("soak", free_port(15), None)?;
        broker.broker.create_topic(TOPIC, PARTITIONS as i32, &[]);
        let sandbox = Sandbox::new("soak");
        let pipeline = Pipeline { brokers: &broker.broker.address, topic: TOPIC, max_rows: Some(MAX_ROWS) };
        pipeline.write(&sandbox);
        let maintained = "version: 1\nmaintain: {compact: auto, target_size: 4MB}\n";
        sandbox.write(FILE, &pipeline.yaml().replace("version: 1\n", maintained));
        let (ends, replays, second_looks) = (Mutex::default(), AtomicU64::new(0), AtomicU64::new(0));
        Some(Soak { sandbox, broker, stop: Stop::default(), ends, replays, second_looks })
    }

    /// Everything at once, for so long. Afterwards nobody is at work, the broker is up, and it has all that was sent.
    fn go_on(&self, seed: u64, minutes: u64, rate: u64) -> Brought {
        let random = |salt: u64| ChaCha8Rng::seed_from_u64(seed ^ (salt << 32));
        let orders = |salt: u64| Orders::new(seed ^ salt, minutes * 60 * rate, PARTITIONS);
        let (broker, producer, no_more) = (&self.broker.broker, self.broker.broker.stream(), Stop::default());
        std::thread::scope(|scope| {
            let plain = scope.spawn(|| stream(&producer, TOPIC, orders(0), rate, &no_more));
            let marked = scope.spawn(|| transactions(broker, TOPIC, orders(1), &mut random(1), &no_more));
            let lag = scope.spawn(|| self.supervise(&producer, &mut random(2)));
            let restarts = scope.spawn(|| self.restart(&mut random(3)));
            scope.spawn(|| self.intrude(&mut random(4)));
            scope.spawn(|| self.maintain(&mut random(5)));
            self.stop.within(Duration::from_secs(60 * minutes));
            self.stop.set();
            // The producers need the broker, which is up again when its thread is done.
            let restarts = restarts.join();
            no_more.set();
            Brought {
                plain: plain.join().expect("producing goes well"),
                marked: marked.join().expect("transactions go on"),
                restarts: restarts.expect("a broker restarts"),
                lag: lag.join().expect("every run ends as it may"),
            }
        })
    }

    fn tell(&self, brought: &Brought, minutes: f64) {
        let Brought { plain, restarts, lag, .. } = brought;
        println!("{minutes:.1} minutes, {} records sent outside transactions", plain.len());
        println!("broker: {} clean restarts, {} kills", restarts[0], restarts[1]);
        for ((who, end), count) in &*self.ends.lock().expect("nothing panics while it holds this") {
            println!("  {who}: {count} × {end}");
        }
        let (replays, looks) = (self.replays.load(Ordering::Relaxed), self.second_looks.load(Ordering::Relaxed));
        let batches = batches_done(&self.sandbox);
        println!(
            "{batches} batches, {replays} finished by a later run, {looks} second looks, largest lag {lag} offsets"
        );
        for name in versions(&self.lake()).keys() {
            let table = self.lake().join(name);
            let (version, files) = (lake::version(&table).unwrap_or(-1), live(&table).len());
            println!("  {name}: version {version}, {} merges, {files} live files", merges(&table));
        }
    }

    /// Requires that a further run finds nothing to do, and that the checkpoint is whole.
    fn nothing_left(&self) {
        let before = versions(&self.lake());
        let idle = self.sandbox.drain(FILE).success();
        assert_eq!(idle.json()["status"], "no_data", "{}", idle.report());
        assert_eq!(versions(&self.lake()), before, "a run with nothing to do committed something\n{}", idle.report());
        self.sandbox.tidegate(&["checkpoint", "verify", FILE, "--output", "json"]).run().success();
    }

    /// Now that nobody is at work: deletes what the tables do not name; what they name must stay.
    fn tidy(&self) {
        let arguments = ["vacuum", FILE, "--retain", "0s", "--force", "--yes", "--output", "json"];
        let vacuum = self.sandbox.tidegate(&arguments).run().success().json();
        let tables = vacuum["tables"].as_array().into_iter().flatten();
        let deleted: u64 = tables.filter_map(|table| table["expired"].as_u64()).sum();
        println!("vacuum: {deleted} files that the tables no longer name");
        assert!(deleted > 0, "nothing was ever replaced: the soak was too tame");
    }
}

#[test]
fn after_minutes_of_everything_at_once_no_row_is_lost_doubled_or_changed() {
    let Some(minutes) = number("TIDEGATE_SOAK_MINUTES").filter(|minutes| *minutes > 0) else {
        println!("soak: not asked for; `make soak MIN=10` runs it");
        return;
    };
    let (seed, rate) = (seed(), number("TIDEGATE_SOAK_RATE").unwrap_or(1_500));
    println!("TIDEGATE_SEED={seed} TIDEGATE_SOAK_MINUTES={minutes} TIDEGATE_SOAK_RATE={rate}");
    let Some(soak) = Soak::new() else { return };
    let started = Instant::now();
    let brought = soak.go_on(seed, minutes, rate);
    let took = started.elapsed();
    let drain = soak.sandbox.drain(FILE).success();
    soak.note("run", &drain);
    soak.tell(&brought, took.as_secs_f64() / 60.0);

    let found = soak.broker.broker.read_back(TOPIC, PARTITIONS as i32);
    let (ends, unknown_kept) = assert_as_sent(&brought.plain, &brought.marked, &found, brought.restarts[1] > 0);
    println!(
        "transactions {ends:?}, {unknown_kept} of the unknown were committed; {} records in the topic",
        found.len()
    );
    let expected = Tables::expected(TOPIC, &found);
    expected.assert_in(&soak.lake());
    soak.nothing_left();
    soak.tidy();
    expected.assert_in(&soak.lake());
    soak.nothing_left();
    println!(
        "soak: {} bronze, {} silver, {} gold, {} dead letters; 0 rows lost, doubled or changed",
        expected.bronze.len(),
        expected.silver.len(),
        expected.gold.len(),
        expected.dead.len()
    );
}

/// Batches that are done, by the log.
fn batches_done(sandbox: &Sandbox) -> u64 {
    let commits = std::fs::read_dir(sandbox.path().join("checkpoints/orders/commits")).expect("the log").flatten();
    let numbers = commits.filter_map(|entry| entry.path().file_stem()?.to_str()?.parse::<u64>().ok());
    numbers.max().map_or(0, |last| last + 1)
}
