//! A power cut: what was synced is there; of the rest, anything may be.
//!
//! SIGKILL leaves the page cache alone, so killing processes can never show a missing fsync. Here the real binary writes
//! down every file operation of a run. A model of a disk replays them, is cut after each one, and keeps what was synced
//! plus some of what was not: names without bytes, bytes without names, torn files. On every such disk the real binary
//! must finish the job: exit 0, tables as the oracle says, and no batch begun again that had been reported done.
//!
//! In the model every entry of a folder is durable by itself: a link, a rename, an unlink and a mkdir become durable with
//! the fsync of their folder, and a folder is reached only through durable entries. That is less than any file system
//! in use gives.
//!
//! `TIDEGATE_CRASH=all` tries every state; otherwise a seeded sample, as much as fits into a few seconds.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

use self::disk::{Content, Disk, Op, Tree, parse};
use self::shop::{RETAINED, Shop, committed};
use crate::support::{Sandbox, seed};

mod disk;
mod shop;

/// Where the recording is kept, outside of what the model knows.
const RECORDING: &str = ".ops";

/// A disk after a cut.
struct State {
    tree: Tree,
    /// The last batch that was reported done before the cut.
    reported: Option<u64>,
    /// Where the power was cut and what survived.
    story: String,
}

fn everything() -> bool {
    std::env::var("TIDEGATE_CRASH").is_ok_and(|value| value == "all")
}

/// Runs the pipeline from an empty disk to the end.
fn record(shop: &Shop, sabotage: Option<&str>) -> Vec<Op> {
    let sandbox = Sandbox::in_memory("power-record");
    shop.write(&sandbox);
    record_in(shop, &sandbox, sabotage)
}

/// Runs the pipeline to the end on the disk that is there.
fn record_in(shop: &Shop, sandbox: &Sandbox, sabotage: Option<&str>) -> Vec<Op> {
    let recording = sandbox.path().join(RECORDING);
    let mut run = sandbox
        .tidegate(&["run", shop.file(), "--trigger", "available_now", "--output", "json"])
        .env("TIDEGATE_FAIL_OPS", &recording.to_string_lossy());
    if let Some(mode) = sabotage {
        run = run.env("TIDEGATE_FAIL_NOSYNC", mode);
    }
    run.run().success();
    shop.check(sandbox).expect("a run without faults is right");
    parse(&std::fs::read(&recording).expect("the run was recorded"), sandbox.path())
}

/// The last batch that was reported done before operation `cut`: the put of its commit record had returned, because
/// something else was begun after it.
fn reported(ops: &[Op], cut: usize) -> Option<u64> {
    let mut last = None;
    let mut open: Option<(u64, &str)> = None;
    for op in &ops[..cut] {
        if let Some((batch, name)) = open {
            let still_putting = match op {
                Op::Unlink(path) | Op::Sync(path) => path.starts_with(name),
                Op::SyncDir(path) => name.starts_with(path.as_str()),
                _ => false,
            };
            if !still_putting {
                last = Some(batch);
                open = None;
            }
        }
        if let Op::Link(_, to) = op
            && let Some(batch) = committed(to)
        {
            open = Some((batch, to));
        }
    }
    // The process ended well: everything was reported.
    if cut == ops.len() { open.map(|(batch, _)| batch).or(last) } else { last }
}

/// The states that a cut after `cut` operations may leave. `before` happened earlier, in a process that was killed.
fn cut(disk: &Disk, done: &[Op], cut: usize, random: &mut SmallRng, into: &mut States) {
    let reported = reported(done, cut);
    let mut add = |tree: Tree, what: String| into.add(State { tree, reported, story: what });
    let at = match cut.checked_sub(1).map(|last| &done[last]) {
        Some(op) => format!("power cut after operation {cut} of {} ({})", done.len(), op.short()),
        None => "power cut before the first operation".to_string(),
    };
    add(disk.survivors(&mut |_| false, &mut || Content::Synced), format!("{at}: nothing unsynced survived"));
    for content in [Content::Whole, Content::Synced, Content::Torn, Content::Zeros] {
        let story = format!("{at}: every name survived, unsynced bytes {content:?}");
        add(disk.survivors(&mut |_| true, &mut || content), story);
    }
    let pending = disk.pending();
    for one in 0..pending.min(8) {
        for content in [Content::Whole, Content::Synced] {
            let tree = disk.survivors(&mut |number| number == one, &mut || content);
            add(tree, format!("{at}: of the unsynced names only number {one}, bytes {content:?}"));
            let tree = disk.survivors(&mut |number| number != one, &mut || content);
            add(tree, format!("{at}: of the unsynced names all but number {one}, bytes {content:?}"));
        }
    }
    for _ in 0..2 {
        let mut names = SmallRng::seed_from_u64(random.random());
        let mut contents = SmallRng::seed_from_u64(random.random());
        let choices = [Content::Synced, Content::Torn, Content::Zeros, Content::Whole];
        let tree = disk.survivors(&mut |_| names.random_bool(0.5), &mut || choices[contents.random_range(0..4)]);
        add(tree, format!("{at}: a random subset survived"));
    }
}

/// States that differ.
#[derive(Default)]
struct States {
    seen: HashSet<(u64, Option<u64>)>,
    list: Vec<State>,
}

impl States {
    fn add(&mut self, state: State) {
        if self.seen.insert((state.tree.hash(), state.reported)) {
            self.list.push(state);
        }
    }
}

/// Every cut of a recording in `cuts`.
fn states(ops: &[Op], cuts: impl Fn(usize) -> bool, random: &mut SmallRng) -> States {
    let (mut disk, mut states) = (Disk::default(), States::default());
    for at in 0..=ops.len() {
        if cuts(at) {
            cut(&disk, ops, at, random, &mut states);
        }
        if let Some(op) = ops.get(at) {
            disk.apply(op);
        }
    }
    states
}

/// What a state must hold before anything runs: the record of every batch that was reported done, as far back as the
/// contract keeps them.
fn still_reported(shop: &Shop, state: &State) -> Result<(), String> {
    let Some(last) = state.reported else { return Ok(()) };
    (last.saturating_sub(RETAINED - 1)..=last).try_for_each(|batch| match state.tree.file(&shop.commit(batch)) {
        Some(bytes) if serde_json::from_slice::<serde_json::Value>(bytes).is_ok() => Ok(()),
        found => Err(format!(
            "batch {batch} was reported done, and its commit record is {}",
            found.map_or("gone".to_string(), |bytes| format!("{} damaged bytes", bytes.len()))
        )),
    })
}

/// Runs the real binary on a state; says what is wrong afterwards.
fn recovers(shop: &Shop, state: &State) -> Result<(), String> {
    still_reported(shop, state)?;
    let sandbox = Sandbox::in_memory("power");
    shop.write(&sandbox);
    state.tree.write(sandbox.path());
    let outcome = sandbox.drain(shop.file());
    if outcome.status.code() != Some(0) {
        return Err(format!("exit {:?}\n{}", outcome.status.code(), outcome.report()));
    }
    let begun = outcome.json()["batches"].as_array().cloned().unwrap_or_default();
    let begun: Vec<u64> = begun.iter().filter_map(|batch| batch["batch_id"].as_u64()).collect();
    if let (Some(first), Some(reported)) = (begun.first(), state.reported)
        && *first <= reported
    {
        return Err(format!("batch {reported} was reported done, and batch {first} was begun again"));
    }
    shop.check(&sandbox).map_err(|why| format!("{why}\n{}", outcome.report()))
}

/// States that are tried however slow the machine is.
const LEAST: usize = 10;

/// Tries states on two threads until `patience` is over or one fails; how many were tried, and the failure.
fn try_all(shop: &Shop, states: &[&State], patience: Duration) -> (usize, Option<String>) {
    let deadline = Instant::now() + patience;
    let (next, tried) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failure = Mutex::new(None);
    let work = || {
        while failure.lock().expect("no thread panics with it").is_none() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(state) = states.get(number) else { return };
            if number >= LEAST && Instant::now() >= deadline {
                return;
            }
            let outcome = recovers(shop, state);
            tried.fetch_add(1, Ordering::Relaxed);
            if let Err(why) = outcome {
                *failure.lock().expect("no thread panics with it") = Some(format!("{}\n{why}", state.story));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(work);
        }
    });
    (tried.into_inner(), failure.into_inner().expect("no thread panics with it"))
}

/// A seeded order, so that what fits into the time is a fair sample.
fn sample<'a>(states: &'a States, random: &mut SmallRng) -> Vec<&'a State> {
    let mut list: Vec<&State> = states.list.iter().collect();
    list.shuffle(random);
    list
}

fn patience(seconds: u64) -> Duration {
    Duration::from_secs(if everything() { 24 * 3600 } else { seconds })
}

fn dice() -> SmallRng {
    println!("TIDEGATE_SEED={}", seed());
    SmallRng::seed_from_u64(seed())
}

#[test]
fn a_power_cut_anywhere_loses_nothing_that_was_reported_and_the_next_run_finishes() {
    let (shop, mut random) = (Shop::orders(), dice());
    let ops = record(&shop, None);
    let states = states(&ops, |_| true, &mut random);
    // Cheap, so for every state whatever the sample.
    for state in &states.list {
        still_reported(&shop, state).unwrap_or_else(|why| panic!("{}\n{why}", state.story));
    }
    let (tried, failure) = try_all(&shop, &sample(&states, &mut random), patience(20));
    println!("power: {} operations, {} distinct states, {tried} of them run", ops.len(), states.list.len());
    assert!(failure.is_none(), "{}", failure.unwrap_or_default());
    assert!(tried >= LEAST, "only {tried} states were tried");
}

/// Long enough that Delta writes a checkpoint of its log and tidegate prunes its own.
#[test]
fn a_power_cut_while_logs_are_checkpointed_and_pruned_is_harmless() {
    let (shop, mut random) = (Shop::long(), dice());
    let ops = record(&shop, None);
    let mentions = |op: &Op, what: &str| op.short().contains(what);
    let special: Vec<usize> = (0..ops.len())
        .filter(|&at| mentions(&ops[at], "checkpoint.parquet") || mentions(&ops[at], "_last_checkpoint"))
        .chain((0..ops.len()).filter(|&at| matches!(&ops[at], Op::Unlink(path) if !path.contains('#'))))
        .collect();
    let kinds = ["checkpoint.parquet", "_last_checkpoint"].map(|what| ops.iter().any(|op| mentions(op, what)));
    assert_eq!(kinds, [true, true], "the run was long enough for a Delta checkpoint");
    assert!(special.iter().any(|&at| matches!(ops[at], Op::Unlink(_))), "the run was long enough to prune");
    let near = |cut: usize| special.iter().any(|&at| cut.abs_diff(at) <= 4);
    let states = states(&ops, near, &mut random);
    let (tried, failure) = try_all(&shop, &sample(&states, &mut random), patience(8));
    println!("power, long: {} operations, {} distinct states, {tried} of them run", ops.len(), states.list.len());
    assert!(failure.is_none(), "{}", failure.unwrap_or_default());
    assert!(tried >= LEAST, "only {tried} states were tried");
}

/// A restart acts on what its killed predecessor left in the page cache. The power cut that follows must not take away
/// what the restart has built upon.
fn kill_restart_and_cut(sabotage: Option<&str>, patience: Duration) -> Option<String> {
    let (shop, mut random) = (Shop::orders(), dice());
    let first = record(&shop, None);
    // Kills that leave something unsynced; elsewhere the restart is a first run with a head start.
    let mut disk = Disk::default();
    let mut kills = Vec::new();
    for (at, op) in first.iter().enumerate() {
        disk.apply(op);
        if matches!(op, Op::Link(..) | Op::Rename(..) | Op::Mkdir(_)) {
            kills.push((at + 1, disk.clone()));
        }
    }
    kills.shuffle(&mut random);
    let started = Instant::now();
    let (mut killed, mut tried) = (0, 0);
    for (kill, disk) in kills {
        // However slow the first of them was.
        if started.elapsed() > patience && tried >= 4 {
            break;
        }
        killed += 1;
        let sandbox = Sandbox::in_memory("power-kill");
        shop.write(&sandbox);
        disk.survivors(&mut |_| true, &mut || Content::Whole).write(sandbox.path());
        let second = record_in(&shop, &sandbox, sabotage);
        let mut cuts: Vec<usize> = (1..=second.len()).collect();
        cuts.shuffle(&mut random);
        cuts.truncate(if everything() { 12 } else { 4 });
        let mut states = States::default();
        let mut disk = disk;
        for (at, op) in second.iter().enumerate() {
            disk.apply(op);
            let tree = disk.survivors(&mut |_| false, &mut || Content::Synced);
            let reported = reported(&second, at + 1).or(reported(&first, kill));
            let story = format!(
                "killed after operation {kill} ({}), restarted, power cut after operation {} of {} ({})",
                first[kill - 1].short(),
                at + 1,
                second.len(),
                op.short()
            );
            let state = State { tree, reported, story };
            if let Err(why) = still_reported(&shop, &state) {
                return Some(format!("{}\n{why}", state.story));
            }
            if cuts.contains(&(at + 1)) {
                states.add(state);
            }
        }
        let list: Vec<&State> = states.list.iter().collect();
        let (count, failure) = try_all(&shop, &list, Duration::from_secs(24 * 3600));
        tried += count;
        if failure.is_some() {
            return failure;
        }
    }
    println!("power after a kill: {killed} kills and restarts, {tried} states run");
    assert!(tried >= 4, "only {tried} states were tried");
    None
}

#[test]
fn a_power_cut_after_a_kill_and_a_restart_loses_nothing_either() {
    let failure = kill_restart_and_cut(None, patience(12));
    assert!(failure.is_none(), "{}", failure.unwrap_or_default());
}

#[test]
fn a_restart_that_trusts_what_a_killed_run_left_unsynced_is_noticed() {
    let failure = kill_restart_and_cut(Some("inherited"), Duration::from_secs(180));
    let failure = failure.expect("nobody noticed that inherited names are not synced");
    println!("sabotage inherited: {}", failure.lines().take(2).collect::<Vec<_>>().join(" / "));
}

/// Without this fsync the model must find a state that breaks the promise.
#[track_caller]
fn is_caught(sabotage: &str) {
    let (shop, mut random) = (Shop::orders(), dice());
    let ops = record(&shop, Some(sabotage));
    let states = states(&ops, |_| true, &mut random);
    let lost = states.list.iter().filter(|state| still_reported(&shop, state).is_err()).count();
    // What only the binary can tell.
    let mut rest = sample(&states, &mut random);
    rest.retain(|state| still_reported(&shop, state).is_ok());
    let (tried, failure) = try_all(&shop, &rest, Duration::from_secs(120));
    let failure = failure.unwrap_or_default();
    println!(
        "sabotage {sabotage}: of {} states {lost} have lost a reported batch; state {tried} that was run failed: {}",
        states.list.len(),
        failure.lines().take(2).collect::<Vec<_>>().join(" / ")
    );
    assert!(lost > 0 || !failure.is_empty(), "nobody noticed the missing sync `{sabotage}`");
}

#[test]
fn a_missing_fsync_of_files_is_noticed() {
    is_caught("file");
}

#[test]
fn a_missing_fsync_of_folders_is_noticed() {
    is_caught("folder");
}

#[test]
fn a_missing_fsync_of_the_folder_above_a_new_folder_is_noticed() {
    is_caught("mkdir");
}

#[test]
fn a_name_given_before_the_fsync_is_noticed() {
    is_caught("late");
}
