//! The bad day: a checkpoint that is damaged, lost or copied, and positions moved by hand. The real binary on a folder of
//! files; what the tables must hold is computed from the files, by nothing of tidegate's.

#![allow(clippy::disallowed_methods, reason = "tests break files on purpose")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::support::sandbox::Outcome;
use crate::support::{Sandbox, lake, seed};

const FILE: &str = "orders.yaml";

const PIPELINE: &str = r#"
version: 1
name: orders
lake: ./lake
checkpoints: ./checkpoints
source:
  files: {path: landing, pattern: "*.ndjson"}
  format: json
  schema: {id: string not null, store: string, amount: long, rev: long, op: string}
batch: {max_rows: 20}
tables:
  bronze.orders:
    from: source
    write: append
  silver.orders:
    from: bronze.orders
    sql: SELECT id, store, amount, rev, op FROM batch
    expect:
      positive: {check: amount > 0, else: quarantine}
    write: {upsert: {key: id, order_by: rev, delete_when: op = 'd', drop: [op]}}
  gold.stores:
    from: silver.orders
    sql: SELECT store, count(*) AS orders, sum(amount) AS total FROM silver.orders GROUP BY store
    write: {refresh: {by: store}}
  gold.events:
    from: bronze.orders
    sql: SELECT store, count(*) AS events FROM bronze.orders GROUP BY store
    write: {refresh: {by: store}}
dead_letters: {table: dlq.orders}
"#;

/// A sandbox, its landing folder, and everything that was put there.
struct World {
    sandbox: Sandbox,
    files: BTreeMap<String, Vec<String>>,
    random: ChaCha8Rng,
}

impl World {
    fn new(test: &str) -> World {
        println!("TIDEGATE_SEED={}", seed());
        let world = World {
            sandbox: Sandbox::new(test),
            files: BTreeMap::new(),
            random: ChaCha8Rng::seed_from_u64(seed() ^ test.len() as u64),
        };
        world.sandbox.write(FILE, PIPELINE);
        fs::create_dir_all(world.path("landing")).expect("a folder");
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sandbox.path().join(name)
    }

    /// Appends lines to one of three files.
    fn land(&mut self, lines: usize) {
        let file = format!("f{}.ndjson", self.random.random_range(0..3));
        for _ in 0..lines {
            let line = match self.random.random_range(0..20) {
                0 => "not json".to_string(),
                n => json!({
                    "id": format!("k{}", self.random.random_range(0..25)),
                    "store": format!("s{}", self.random.random_range(0..5)),
                    "amount": if n == 1 { 0 } else { self.random.random_range(1..100) },
                    "rev": self.random.random_range(0..40),
                    "op": if n < 4 { "d" } else { "u" },
                })
                .to_string(),
            };
            self.files.entry(file.clone()).or_default().push(line);
        }
        let text: String = self.files[&file].iter().map(|line| format!("{line}\n")).collect();
        self.sandbox.write(&format!("landing/{file}"), &text);
    }

    fn drain(&self) -> Outcome {
        self.sandbox.drain(FILE)
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        self.sandbox.tidegate(arguments).run()
    }

    fn rebuild(&self) -> Outcome {
        self.run(&["checkpoint", "rebuild", FILE, "--yes", "--output", "json"])
    }

    fn verify(&self) -> Outcome {
        self.run(&["checkpoint", "verify", FILE, "--output", "json"])
    }

    fn table(&self, name: &str, sql: &str) -> Vec<String> {
        lake::lines(&self.path("lake").join(name.replace('.', "/")), sql)
    }

    #[track_caller]
    fn assert_tables(&self) {
        let expected = Tables::of(&self.files);
        let columns = "SELECT _topic, _offset, id, store, amount, rev, op FROM t";
        lake::assert_same("bronze.orders", &expected.bronze, &self.table("bronze.orders", columns));
        lake::assert_same(
            "dlq.orders",
            &expected.dead,
            &self.table("dlq.orders", "SELECT topic, \"offset\", stage FROM t"),
        );
        lake::assert_same(
            "silver.orders",
            &expected.silver,
            &self.table("silver.orders", "SELECT id, store, amount, rev FROM t"),
        );
        lake::assert_same(
            "gold.stores",
            &expected.stores,
            &self.table("gold.stores", "SELECT store, orders, total FROM t"),
        );
        lake::assert_same("gold.events", &expected.events, &self.table("gold.events", "SELECT store, events FROM t"));
    }

    fn objects(&self, kind: &str) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = fs::read_dir(self.path("checkpoints/orders").join(kind))
            .expect("a folder of the log")
            .map(|entry| entry.expect("readable").path())
            .collect();
        paths.sort();
        paths
    }

    /// Takes the newest commit of a table away: what a crash just before it leaves.
    fn undo(&self, table: &str) {
        let path = self.path("lake").join(table.replace('.', "/"));
        let version = lake::version(&path).expect("a table");
        fs::remove_file(path.join(format!("_delta_log/{version:020}.json"))).expect("the newest commit");
    }
}

/// What the tables must hold.
struct Tables {
    bronze: Vec<String>,
    silver: Vec<String>,
    stores: Vec<String>,
    events: Vec<String>,
    dead: Vec<String>,
}

impl Tables {
    fn of(files: &BTreeMap<String, Vec<String>>) -> Tables {
        let mut tables =
            Tables { bronze: Vec::new(), silver: Vec::new(), stores: Vec::new(), events: Vec::new(), dead: Vec::new() };
        let mut newest: BTreeMap<String, ((i64, String, usize), Value)> = BTreeMap::new();
        let (mut stores, mut events): (BTreeMap<String, (u64, i64)>, BTreeMap<String, u64>) = Default::default();
        for (file, lines) in files {
            for (offset, line) in lines.iter().enumerate() {
                let Ok(row) = serde_json::from_str::<Value>(line) else {
                    tables.dead.push(format!("{file}|{offset}|decode"));
                    continue;
                };
                let text = |name: &str| row[name].as_str().expect("text").to_string();
                let number = |name: &str| row[name].as_i64().expect("a number");
                let (id, store, op) = (text("id"), text("store"), text("op"));
                let (amount, rev) = (number("amount"), number("rev"));
                tables.bronze.push(format!("{file}|{offset}|{id}|{store}|{amount}|{rev}|{op}"));
                *events.entry(store).or_default() += 1;
                if op != "d" && amount <= 0 {
                    tables.dead.push(format!("{file}|{offset}|expect"));
                    continue;
                }
                let rank = (rev, file.clone(), offset);
                if newest.get(&id).is_none_or(|(known, _)| *known < rank) {
                    newest.insert(id, (rank, row));
                }
            }
        }
        for (id, ((rev, ..), row)) in newest.iter().filter(|(_, (_, row))| row["op"] != "d") {
            let (store, amount) = (row["store"].as_str().expect("text"), row["amount"].as_i64().expect("a number"));
            tables.silver.push(format!("{id}|{store}|{amount}|{rev}"));
            let group = stores.entry(store.to_string()).or_default();
            *group = (group.0 + 1, group.1 + amount);
        }
        tables.stores = stores.into_iter().map(|(store, (count, sum))| format!("{store}|{count}|{sum}")).collect();
        tables.events = events.into_iter().map(|(store, count)| format!("{store}|{count}")).collect();
        for lines in [&mut tables.bronze, &mut tables.silver, &mut tables.stores, &mut tables.events, &mut tables.dead]
        {
            lines.sort_unstable();
        }
        tables
    }
}

#[test]
fn a_damaged_object_of_any_kind_is_named_with_the_way_out_and_nothing_starts_over() {
    let mut world = World::new("damaged");
    // Before the first batch the start of the source is what counts.
    world.drain().success();
    let start = world.path("checkpoints/orders/sources/source.json");
    let mut damages = 0;
    let mut refuse = |world: &World, object: &PathBuf, text: &str, says: &str| {
        let whole = fs::read_to_string(object).expect("an object");
        assert_ne!(whole, text, "no damage at all");
        fs::write(object, text).expect("writable");
        let before = fs::read_dir(world.path("lake")).map_or(0, Iterator::count);
        let name = object.strip_prefix(world.path("")).expect("inside").to_string_lossy().into_owned();
        let refused = world.drain().code(&[78]).says(&name).says(says);
        if !says.contains("format version") {
            refused.says("tidegate checkpoint rebuild orders.yaml");
        }
        assert_eq!(fs::read_dir(world.path("lake")).map_or(0, Iterator::count), before);
        world.verify().code(&[78]);
        fs::write(object, whole).expect("writable");
        damages += 1;
    };
    let spoil = |world: &World, object: &PathBuf, refuse: &mut dyn FnMut(&World, &PathBuf, &str, &str)| {
        let whole = fs::read_to_string(object).expect("an object");
        refuse(world, object, "", "it is empty");
        refuse(world, object, &whole[..whole.len() / 2], "is damaged");
        refuse(world, object, &whole.replace("\"version\": 2", "\"version\": 99"), "format version 99");
        let edited = match whole.find("\"pipeline_id\": \"") {
            Some(at) => {
                let other = if &whole[at + 17..at + 18] == "0" { "1" } else { "0" };
                format!("{}{other}{}", &whole[..at + 17], &whole[at + 18..])
            }
            None => unreachable!("every object is marked"),
        };
        refuse(world, object, &edited, "does not match its checksum");
        let without: String =
            whole.lines().filter(|line| !line.contains("checksum")).map(|l| format!("{l}\n")).collect();
        let without = without.replace(",\n}", "\n}");
        refuse(world, object, &without, "checksum is missing");
    };
    spoil(&world, &start, &mut refuse);
    for _ in 0..3 {
        world.land(30);
    }
    world.drain().success();
    let (plan, commit) =
        (world.objects("offsets").pop().expect("a plan"), world.objects("commits").pop().expect("one"));
    for object in [world.path("checkpoints/orders/metadata.json"), plan.clone(), commit.clone()] {
        spoil(&world, &object, &mut refuse);
    }
    // An older object under the newest name.
    for (object, kind) in [(&plan, "offsets"), (&commit, "commits")] {
        let older = fs::read_to_string(&world.objects(kind)[0]).expect("the oldest");
        refuse(&world, object, &older, "it holds batch 0 under the name of batch");
    }
    // Objects of a pipeline with the same name and another life.
    let other = World::new("damaged");
    other.sandbox.write("landing/f0.ndjson", "{\"id\":\"x\",\"store\":\"s\",\"amount\":1,\"rev\":1,\"op\":\"u\"}\n");
    other.drain().success();
    let foreign = |kind: &str| {
        fs::read_to_string(other.path("checkpoints/orders").join(kind).join(format!("{:020}.json", 0))).expect("one")
    };
    for kind in ["offsets", "commits"] {
        let target = world.path("checkpoints/orders").join(kind).join(format!("{:020}.json", 0));
        let newest = world.objects(kind).split_off(1);
        let kept: Vec<_> = newest.iter().map(|path| (path.clone(), fs::read(path).expect("readable"))).collect();
        kept.iter().for_each(|(path, _)| fs::remove_file(path).expect("deletable"));
        refuse(&world, &target, &foreign(kind), "belongs to another checkpoint");
        kept.iter().for_each(|(path, bytes)| fs::write(path, bytes).expect("writable"));
    }
    println!("{damages} damages refused");
    world.verify().success();
    world.land(10);
    world.drain().success();
    world.assert_tables();
}

#[test]
fn a_lost_checkpoint_is_rebuilt_from_the_tables_and_the_next_run_goes_on() {
    let mut world = World::new("lost");
    for _ in 0..4 {
        world.land(35);
    }
    world.drain().success();
    world.run(&["checkpoint", "rebuild", FILE]).code(&[78]).says("nothing to rebuild");
    world.sandbox.remove("checkpoints");
    world.drain().code(&[78]).says("tidegate checkpoint rebuild orders.yaml");
    assert!(!world.path("checkpoints/orders/metadata.json").exists(), "a refused run must not bury what is left");
    world.verify().code(&[78]);
    let dry = world.run(&["checkpoint", "rebuild", FILE]).success();
    assert!(dry.stdout.contains("nothing was written") && dry.stdout.contains("--yes"), "{}", dry.report());
    assert!(!world.path("checkpoints/orders/metadata.json").exists(), "a dry run writes nothing");
    assert_eq!(world.rebuild().success().json()["lacking"], json!([]));
    world.verify().success();
    let idle = world.drain().success();
    assert_eq!(idle.json()["status"], "no_data", "{}", idle.report());
    world.land(25);
    assert_eq!(world.drain().success().batches().iter().sum::<u64>(), 25);
    world.assert_tables();
}

#[test]
fn a_checkpoint_lost_in_the_middle_of_a_batch_is_rebuilt_and_the_batch_is_finished_once() {
    for depth in 1..=4 {
        let mut world = World::new("midway");
        for _ in 0..3 {
            world.land(20 + depth);
        }
        world.drain().success();
        // In the order of the walk, dead letters last: what a crash leaves after fewer and fewer tables.
        for table in ["dlq.orders", "gold.events", "gold.stores", "silver.orders"].iter().take(depth) {
            world.undo(table);
        }
        world.sandbox.remove("checkpoints");
        world.drain().code(&[78]).says("tidegate checkpoint rebuild orders.yaml");
        let rebuilt = world.rebuild().success();
        assert_eq!(rebuilt.json()["lacking"].as_array().map(Vec::len), Some(depth), "{}", rebuilt.report());
        world.drain().success().says("finishing it with the same rows");
        world.assert_tables();
        world.land(15);
        world.drain().success();
        world.assert_tables();
    }
}

#[test]
fn killed_and_robbed_of_its_checkpoint_again_and_again_the_tables_equal_the_oracle() {
    let mut world = World::new("robbed");
    let (mut killed, mut midway) = (0, 0);
    for _ in 0..8 {
        world.land(60);
        let patience = Duration::from_millis(world.random.random_range(150..900));
        let arguments = ["run", FILE, "--trigger", "available_now", "--output", "json"];
        killed += u32::from(world.sandbox.tidegate(&arguments).start().finish(patience).is_none());
        world.sandbox.remove("checkpoints");
        let rebuilt = world.rebuild().code(&[0, 78]);
        if rebuilt.status.code() == Some(0) {
            midway += u32::from(rebuilt.json()["lacking"] != json!([]));
        } else {
            // Killed before the first batch was in any table: nothing is lost.
            assert!(rebuilt.stderr.contains("nothing to rebuild from") || rebuilt.stderr.contains("no batch was ever"));
            world.sandbox.remove("lake");
        }
        world.drain().success();
        world.assert_tables();
    }
    println!("{killed} kills, {midway} of them in the middle of a batch");
}

#[test]
fn what_the_tables_cannot_tell_is_refused_with_the_reason() {
    let mut world = World::new("refused");
    for _ in 0..3 {
        world.land(30);
    }
    world.run(&["checkpoint", "rebuild", FILE]).code(&[78]).says("nothing to rebuild from");
    world.drain().success();
    let log = world.path("checkpoints/orders");
    let aside = world.path("kept");
    fs::rename(&log, &aside).expect("movable");

    let changed = PIPELINE.replace("key: id, order_by: rev", "key: id, order_by: amount");
    world.sandbox.write(FILE, &changed);
    world.run(&["checkpoint", "rebuild", FILE]).code(&[78]).says("silver.orders").says("another meaning");
    world.sandbox.write(FILE, &PIPELINE.replace("name: orders", "name: billing"));
    world.run(&["checkpoint", "rebuild", FILE]).code(&[78]).says("made by pipeline `orders`");
    world.sandbox.write(FILE, PIPELINE);

    world.undo("silver.orders");
    world.undo("silver.orders");
    world.run(&["checkpoint", "rebuild", FILE]).code(&[78]).says("table silver.orders holds batch");
    fs::rename(world.path("lake/silver"), world.path("silver")).expect("movable");
    world.run(&["checkpoint", "rebuild", FILE]).code(&[78]).says("silver.orders").says("is gone");
    assert!(!log.exists(), "a refusal writes nothing");
}

#[test]
fn damaged_objects_are_moved_aside_and_never_deleted() {
    let mut world = World::new("aside");
    for _ in 0..3 {
        world.land(30);
    }
    world.drain().success();
    let commit = world.objects("commits").pop().expect("a commit record");
    let plan = world.objects("offsets").remove(0);
    fs::write(&commit, "{\"version\": 2, \"bat").expect("writable");
    fs::write(&plan, "rotten").expect("writable");
    let dry = world.run(&["checkpoint", "rebuild", FILE]).success();
    assert!(dry.stdout.contains("moves to damaged-<time>/"), "{}", dry.report());
    assert_eq!(fs::read_to_string(&plan).expect("still there"), "rotten");
    let done = world.rebuild().success().json();
    let folder = world.path("checkpoints/orders").join(done["moved_to"].as_str().expect("a folder"));
    assert_eq!(
        fs::read_to_string(folder.join("offsets").join(plan.file_name().expect("a name"))).expect("kept"),
        "rotten"
    );
    world.verify().success();
    world.land(10);
    world.drain().success();
    world.assert_tables();
}

#[test]
fn a_rewind_without_yes_says_everything_and_changes_nothing() {
    let mut world = World::new("dry");
    world.sandbox.write("landing/f0.ndjson", "");
    world.run(&["offsets", "rewind", FILE, "--to", "earliest"]).code(&[2]).says("never ran");
    for _ in 0..3 {
        world.land(30);
    }
    world.drain().success();
    let versions = |world: &World| {
        ["bronze", "silver", "dlq"].map(|layer| lake::version(&world.path("lake").join(layer).join("orders")))
    };
    let before = (versions(&world), world.objects("offsets"));
    let dry = world.run(&["offsets", "rewind", FILE, "--to", "earliest", "--output", "json"]).success().json();
    let expected = Tables::of(&world.files);
    let removes = |name: &str| {
        dry["tables"].as_array().and_then(|t| t.iter().find(|t| t["name"] == name)).map(|t| t["removes"].as_u64())
    };
    assert_eq!(removes("bronze.orders"), Some(Some(expected.bronze.len() as u64)));
    assert_eq!(removes("dlq.orders"), Some(Some(expected.dead.len() as u64)));
    assert_eq!((versions(&world), world.objects("offsets")), before);
    world.run(&["offsets", "rewind", FILE, "--to", "2026-01-01T00:00:00Z"]).code(&[2]).says("batch:N");
    world.run(&["offsets", "rewind", FILE, "--to", "batch:99"]).code(&[2]).says("there is no batch 99; the newest is");
    world.run(&["offsets", "set", FILE, "nothing.ndjson:0=1"]).code(&[2]).says("has no position in nothing.ndjson/0");
    let file = world.files.keys().next().expect("a file").clone();
    world.run(&["offsets", "set", FILE, &format!("{file}:0=100_000")]).code(&[2]).says("it ends at");
    let shown = world.run(&["offsets", "show", FILE, "--output", "json"]).success().json();
    assert!(shown["offsets"].as_array().is_some_and(|rows| !rows.is_empty() && rows.iter().all(|row| row["lag"] == 0)));
}

#[test]
fn changed_sql_takes_effect_on_rows_that_are_read_again() {
    let mut world = World::new("changed");
    for _ in 0..3 {
        world.land(40);
    }
    world.drain().success();
    world
        .sandbox
        .write(FILE, &PIPELINE.replace("SELECT id, store, amount,", "SELECT id, store, amount * 10 AS amount,"));
    world.run(&["offsets", "rewind", FILE, "--to", "earliest", "--yes"]).success();
    assert_eq!(world.table("bronze.orders", "SELECT count(*) FROM t"), ["0"]);
    assert!(world.table("gold.events", "SELECT store FROM t").is_empty(), "groups without rows go");
    world.drain().success();
    let expected: Vec<String> = Tables::of(&world.files)
        .silver
        .iter()
        .map(|line| {
            let parts: Vec<&str> = line.split('|').collect();
            format!("{}|{}|{}0|{}", parts[0], parts[1], parts[2], parts[3])
        })
        .collect();
    lake::assert_same(
        "silver.orders",
        &expected,
        &world.table("silver.orders", "SELECT id, store, amount, rev FROM t"),
    );
}

#[test]
fn rows_that_are_passed_over_are_counted_and_never_read() {
    let mut world = World::new("forward");
    world.land(30);
    world.drain().success();
    let file = world.files.keys().next().expect("a file").clone();
    let path = format!("landing/{file}");
    let text = fs::read_to_string(world.path(&path)).expect("a file");
    let row = |id: &str| format!("{{\"id\":\"{id}\",\"store\":\"s\",\"amount\":1,\"rev\":99,\"op\":\"u\"}}\n");
    world.sandbox.write(&path, &format!("{text}{}{}{}", row("lost-1"), row("lost-2"), row("kept")));
    let moved = world.run(&["offsets", "set", FILE, &format!("{file}:0=32"), "--yes", "--output", "json"]).success();
    assert_eq!(moved.json()["moved"][0]["never_read"], 2, "{}", moved.report());
    assert_eq!(world.drain().success().batches(), [1]);
    assert_eq!(world.table("silver.orders", "SELECT id FROM t WHERE rev = 99"), ["kept"]);
    let batch = moved.json()["batch"].to_string();
    let plan = world.run(&["checkpoint", "show", FILE, "--batch", &batch, "--output", "json"]).success().json();
    assert_eq!(plan["plan"]["moved"]["source"][&file]["0"], json!([30, 32]));
}

#[test]
fn an_append_table_without_coordinates_is_not_doubled_unless_that_is_accepted() {
    let mut world = World::new("doubles");
    let names =
        "  silver.names:\n    from: bronze.orders\n    sql: SELECT id FROM batch\n    write: append\ndead_letters:";
    world.sandbox.write(FILE, &PIPELINE.replace("dead_letters:", names));
    world.land(30);
    world.drain().success();
    let rewind = ["offsets", "rewind", FILE, "--to", "earliest", "--yes"];
    world.run(&rewind).code(&[2]).says("silver.names").says("--accept-duplicates");
    world.run(&[&rewind[..], &["--accept-duplicates"]].concat()).success();
    world.drain().success();
    world.assert_tables();
    let good = Tables::of(&world.files).bronze.len() * 2;
    assert_eq!(world.table("silver.names", "SELECT count(*) FROM t"), [good.to_string()]);
}

#[test]
fn however_it_is_rewound_and_killed_nothing_is_doubled_or_lost() {
    let mut world = World::new("rewound");
    let rounds = crate::support::number("TIDEGATE_REWINDS").unwrap_or(12);
    let (mut rewinds, mut killed) = (0, 0);
    for round in 0..rounds {
        let lines = world.random.random_range(5..50);
        world.land(lines);
        world.drain().success();
        let newest = world.objects("commits").len() as i64 - 1;
        let (file, lines) = {
            let at = world.random.random_range(0..world.files.len());
            let (file, lines) = world.files.iter().nth(at).expect("a file");
            (file.clone(), lines.len())
        };
        let place = match world.random.random_range(0..4) {
            0 => vec!["rewind".to_string(), FILE.into(), "--to".into(), "earliest".into()],
            1 => {
                let batch = world.random.random_range(0..=newest);
                vec!["rewind".into(), FILE.into(), "--to".into(), format!("batch:{batch}")]
            }
            _ => {
                let offset = world.random.random_range(0..=lines);
                vec!["set".into(), FILE.into(), format!("{file}:0={offset}")]
            }
        };
        let mut arguments = vec!["offsets".to_string()];
        arguments.extend(place);
        arguments.push("--yes".into());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        println!("round {round}: {}", arguments.join(" "));
        let patience = match world.random.random_bool(0.5) {
            true => Duration::from_millis(world.random.random_range(100..600)),
            false => Duration::from_secs(120),
        };
        rewinds += 1;
        match world.sandbox.tidegate(&arguments).start().finish(patience) {
            None => killed += 1,
            Some(ended) => drop(ended.success()),
        }
        if world.random.random_bool(0.3) {
            let patience = Duration::from_millis(world.random.random_range(100..900));
            let run = ["run", FILE, "--trigger", "available_now"];
            killed += i32::from(world.sandbox.tidegate(&run).start().finish(patience).is_none());
        }
        world.drain().success();
        world.assert_tables();
    }
    world.verify().success();
    println!("{rewinds} rewinds, {killed} kills");
}

#[test]
fn a_rewind_never_goes_forward_and_says_how_to_undo_one() {
    let mut world = World::new("undo");
    for _ in 0..3 {
        world.land(30);
    }
    world.drain().success();
    let newest = world.objects("commits").len() - 1;
    world.run(&["offsets", "rewind", FILE, "--to", "earliest", "--yes"]).success();
    let before = world.objects("offsets");
    let refused = world.run(&["offsets", "rewind", FILE, "--to", &format!("batch:{newest}"), "--yes"]).code(&[2]);
    refused.says("would go forward").says("tidegate run orders.yaml").says("tidegate offsets set orders.yaml");
    assert_eq!(world.objects("offsets"), before, "a refusal writes nothing");
    world.drain().success();
    world.assert_tables();
}

#[test]
fn columns_that_are_only_called_like_coordinates_do_not_decide_what_is_removed() {
    let mut world = World::new("named-alike");
    let tables = "  silver.faked:\n    from: bronze.orders\n    \
                  sql: SELECT _topic, _partition, _offset - _offset AS _offset, id FROM batch\n    write: append\n  \
                  silver.after:\n    from: silver.faked\n    write: append\ndead_letters:";
    world.sandbox.write(FILE, &PIPELINE.replace("dead_letters:", tables));
    world.land(30);
    world.drain().success();
    let rewind = ["offsets", "rewind", FILE, "--to", "earliest"];
    world.run(&rewind).code(&[2]).says("silver.faked").says("silver.after").says("--accept-duplicates");
    let passed = tables.replace("_offset - _offset AS _offset", "_offset");
    world.sandbox.remove("checkpoints");
    world.sandbox.remove("lake");
    world.sandbox.write(FILE, &PIPELINE.replace("dead_letters:", &passed));
    world.drain().success();
    world.run(&[&rewind[..], &["--yes"]].concat()).success();
    assert_eq!(world.table("silver.after", "SELECT count(*) FROM t"), ["0"]);
    world.drain().success();
    world.assert_tables();
    let good = Tables::of(&world.files).bronze.len().to_string();
    assert_eq!(world.table("silver.after", "SELECT count(*) FROM t"), [good]);
}

#[test]
fn dead_letters_of_a_source_that_was_taken_out_of_the_file_stay() {
    let mut world = World::new("taken-out");
    let two = PIPELINE
        .replace("source:\n  files", "sources:\n  source:\n    files")
        .replace("  format: json\n  schema", "    format: json\n    schema");
    let other = "  other:\n    files: {path: other, pattern: \"*.ndjson\"}\n    format: json\n    \
                 schema: {id: string}\nbatch:";
    let other_table = "tables:\n  bronze.other:\n    from: other\n    write: append\n";
    world.sandbox.write(FILE, &two.replace("batch:", other).replace("tables:\n", other_table));
    fs::create_dir_all(world.path("other")).expect("a folder");
    world.land(30);
    let file = world.files.keys().next().expect("a file").clone();
    // The same name in both folders: only the source tells the letters apart.
    world.sandbox.write(&format!("other/{file}"), "not json\n");
    world.drain().success();
    world.sandbox.write(FILE, &two);
    world.run(&["offsets", "rewind", FILE, "--to", "earliest", "--yes"]).success();
    assert_eq!(world.table("dlq.orders", "SELECT \"table\" FROM t"), ["other"]);
}

#[test]
fn commands_to_type_carry_the_target_and_survive_a_shell() {
    let mut world = World::new("quoted");
    let file = "my orders.yaml";
    world.sandbox.write(file, &format!("{PIPELINE}targets:\n  prod: {{lake: ./lake}}\n"));
    world.land(30);
    world.run(&["run", file, "--target", "prod", "--trigger", "available_now"]).success();
    let dry = world.run(&["offsets", "rewind", file, "--to", "earliest", "--target", "prod"]).success();
    let command = "tidegate offsets rewind 'my orders.yaml' --target prod --to earliest --yes";
    assert!(dry.stdout.contains(command), "{}", dry.report());
    world.sandbox.remove("checkpoints");
    let lost = ["run", file, "--target", "prod", "--trigger", "available_now"];
    world.run(&lost).code(&[78]).says("tidegate checkpoint rebuild 'my orders.yaml' --target prod");
    let dry = world.run(&["checkpoint", "rebuild", file, "--target", "prod"]).success();
    assert!(
        dry.stdout.contains("tidegate checkpoint rebuild 'my orders.yaml' --target prod --yes"),
        "{}",
        dry.report()
    );
}

#[test]
fn a_rebuild_over_an_older_copy_of_the_folder_leaves_nothing_broken() {
    let mut world = World::new("older-copy");
    world.land(30);
    world.drain().success();
    let (log, aside) = (world.path("checkpoints/orders"), world.path("older"));
    copy(&log, &aside);
    for _ in 0..3 {
        world.land(30);
        world.drain().success();
    }
    fs::remove_dir_all(&log).expect("deletable");
    copy(&aside, &log);
    world.rebuild().success();
    world.verify().success();
    world.land(10);
    world.drain().success();
    world.assert_tables();
    world.verify().success();
}

#[test]
fn a_memory_of_deletes_that_is_gone_is_not_forgotten_by_a_rebuild() {
    let mut world = World::new("memory-gone");
    for _ in 0..4 {
        world.land(35);
    }
    world.drain().success();
    let (memory, aside) = (world.path("lake/_tidegate/deletes/silver/orders"), world.path("aside"));
    assert!(lake::version(&memory) > Some(1), "no deletes in the landing files");
    fs::rename(&memory, &aside).expect("movable");
    world.drain().code(&[78]).says("memory of deletes of silver.orders");
    world.sandbox.remove("checkpoints");
    world.rebuild().code(&[78]).says("memory of deletes of silver.orders").says("from a backup");
    assert!(!world.path("checkpoints/orders/metadata.json").exists(), "a refusal writes nothing but its lock");
    fs::rename(&aside, &memory).expect("movable");
    let done = world.rebuild().success();
    assert!(!done.stdout.contains("whether the memory of deletes"), "its notes tell: {}", done.report());
    world.land(10);
    world.drain().success();
    world.assert_tables();
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("readable").flatten() {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).expect("copied")),
        }
    }
}
