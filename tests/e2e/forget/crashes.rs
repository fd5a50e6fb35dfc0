//! Dies at a point, is finished by the next run, and is complete when it was begun at all.

use super::*;

const FORGET: &[&str] =
    &["forget", FILE, "--key", KEY, "--containing", "--yes", "--vacuum", "--offline", "--output", "json"];
const RUN: &[&str] = &["run", FILE, "--trigger", "available_now", "--output", "json"];

/// A person in every table, in the dead letters and in the memory of deletes.
fn ready() -> World {
    let mut world = World::new("crash");
    world.land(40);
    world.put(
        "f0.ndjson",
        &format!(
            r#"{{"id":"x","customer":"{PERSON}","store":"s1","amount":1,"at":"2026-03-18T00:00:00Z","op":"gone"}}"#
        ),
    );
    world.drain().success();
    world
}

fn attacked(world: &World, arguments: &[&str], orders: &str) -> Outcome {
    world.sandbox.tidegate(arguments).env("TIDEGATE_FAIL", orders).run()
}

fn newest(world: &World, kind: &str) -> Option<std::ffi::OsString> {
    let folder = fs::read_dir(world.path("checkpoints/orders").join(kind)).expect("a folder of the log");
    folder.map(|entry| entry.expect("readable").file_name()).max()
}

/// Kills there and requires that the next run finishes what was begun. Says whether it came in the middle of the batch.
#[track_caller]
fn survive(ready: &World, place: &str) -> bool {
    let world = ready.copy();
    let run = attacked(&world, FORGET, &format!("{place}=kill"));
    assert!(run.status.success() || run.status.code().is_none(), "{}", run.report());
    let is_midway = newest(&world, "offsets") > newest(&world, "commits");
    let is_done = world.receipts().len() == 2;
    let next = attacked(&world, RUN, "").success();
    assert_eq!(world.in_bytes("checkpoints"), Vec::<PathBuf>::new(), "{place}: no key is left after the next run");
    let is_owed = !is_done && world.receipts().len() == 1;
    let warns = next.report().contains("are still there; any `tidegate forget");
    assert_eq!(
        is_owed,
        warns,
        "{place}: whoever asked for a vacuum is told that it is still to be done\n{}",
        next.report()
    );
    if is_owed {
        let said = world.forget(&["--key", "customer=nobody", "--offline"]).success().stdout;
        assert!(said.contains("was cut short: with --yes the old files of"), "{said}");
        // Whose key it is does not matter.
        world.forget_json(&["--key", "customer=nobody", "--offline", "--yes"]);
        assert_eq!(world.on_disk("lake"), Vec::<PathBuf>::new(), "{place}");
    }
    let json = attacked(&world, FORGET, "").success().json();
    assert_eq!(is_midway || is_done || is_owed, json["status"] == "no_change", "{place}: {json}");
    world.assert_tables(of_person(&world.files, true));
    let receipts = world.receipts();
    let batches: BTreeSet<String> = receipts
        .iter()
        .filter(|receipt| !receipt["key"].is_null())
        .map(|receipt| receipt["batch"].to_string())
        .collect();
    assert_eq!(batches.len(), 1, "{place}: one batch, one receipt");
    assert_eq!(world.in_bytes("checkpoints"), Vec::<PathBuf>::new(), "{place}: no key is left");
    assert_eq!(world.on_disk("lake"), Vec::<PathBuf>::new(), "{place}");
    println!("{place}: {}", if is_midway { "midway" } else { "" });
    is_midway
}

#[test]
fn killed_in_the_middle_it_is_finished_by_the_next_run() {
    let ready = ready();
    // The plan is there and no table, some tables, and all of them.
    for place in ["plan.put.done@1", "applied@1", "applied@3", "memory.log.put.done@1"] {
        assert!(survive(&ready, place), "{place}");
    }
}

#[test]
fn killed_before_or_after_no_key_stays_and_files_that_were_to_go_are_not_forgotten() {
    let ready = ready();
    // The key is kept and no plan names it; the batch is done and no receipt says so; some files are deleted.
    for place in ["plan@1", "commit.put.done@1", "data.delete.done@1", "committed@2"] {
        assert!(!survive(&ready, place), "{place}");
    }
}

/// As the client of an object store does when a reply was lost. The answer to the second is "exists already".
#[test]
fn commits_that_were_sent_twice_are_there_with_their_files() {
    let mut world = ready();
    let deleted = |id: &str, customer: &str, amount: u64| {
        let rest = format!(r#""store":"s1","amount":{amount},"at":"2026-03-18T00:00:00Z","op":"gone""#);
        format!("{{\"id\":\"{id}\",\"customer\":\"{customer}\",{rest}}}")
    };
    // What is remembered of both lies in one file, and one of them stays.
    world.put("f1.ndjson", &deleted("y", PERSON, 1));
    world.put("f1.ndjson", &deleted("z", "another", 1));
    world.drain().success();
    let forget = world.sandbox.tidegate(FORGET).env("TIDEGATE_FAIL_REMOTE", "1");
    forget.env("TIDEGATE_FAIL", "memory.log.put@*=resent;log.put@*=resent").run().success();
    // Whoever deletes reads what deletes are remembered.
    world.put("f2.ndjson", &deleted("z", "another", 2));
    world.drain().success();
    world.assert_tables(of_person(&world.files, true));
}

#[test]
fn killed_anywhere_it_is_finished_by_the_next_run() {
    let ready = ready();
    let mut hits: BTreeMap<String, u64> = BTreeMap::new();
    let world = ready.copy();
    let file = world.path("trace");
    world.sandbox.tidegate(FORGET).env("TIDEGATE_FAIL_TRACE", &file.to_string_lossy()).run().success();
    world.assert_tables(of_person(&world.files, true));
    for line in fs::read_to_string(&file).expect("the trace").lines() {
        *hits.entry(line.to_string()).or_default() += 1;
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let all = std::env::var("TIDEGATE_CRASH").is_ok_and(|value| value == "all");
    let mut places: Vec<String> =
        hits.iter().map(|(point, hits)| format!("{point}@{}", random.random_range(1..=*hits))).collect();
    while !all && places.len() > 4 {
        places.swap_remove(random.random_range(0..places.len()));
    }
    let midway = places.iter().filter(|place| survive(&ready, place)).count();
    println!("{} points, {} of them, {midway} in the middle of the batch", hits.len(), places.len());
}

/// Half of the tables have the batch when the log is made anew: with the key it is finished, and without it nothing is
/// pretended.
#[test]
fn a_log_that_is_made_anew_finishes_what_was_begun_if_the_key_is_there() {
    let ready = ready();
    for keeps_key in [true, false] {
        let world = ready.copy();
        attacked(&world, FORGET, "applied@2=kill");
        let key = world.path("checkpoints/orders/forget");
        assert!(!world.in_bytes("checkpoints/orders/forget").is_empty());
        match keeps_key {
            true => {
                for folder in ["commits", "offsets"] {
                    fs::remove_dir_all(world.path("checkpoints/orders").join(folder)).expect("deletable");
                }
            }
            false => fs::remove_dir_all(key).expect("deletable"),
        }
        world.sandbox.tidegate(&["checkpoint", "rebuild", FILE, "--yes"]).run().code(&[0, 78]);
        let next = attacked(&world, RUN, "").success();
        if keeps_key {
            assert_eq!(world.receipts().len(), 1, "{}", next.report());
        } else {
            next.says("the key that this batch forgets is gone");
            assert_eq!(world.receipts(), Vec::<Value>::new());
        }
        world.forget_json(&["--key", KEY, "--containing", "--yes", "--vacuum", "--offline"]);
        world.assert_tables(of_person(&world.files, true));
        assert_eq!(world.in_bytes("checkpoints"), Vec::<PathBuf>::new());
        // Without the key nobody knows any more which records bronze had: that is said.
        let mute = world.path("lake/_tidegate/deletes/silver/orders");
        let mut held = world.on_disk("lake");
        held.retain(|path| keeps_key || !path.starts_with(&mute));
        assert_eq!(held, Vec::<PathBuf>::new());
    }
}
