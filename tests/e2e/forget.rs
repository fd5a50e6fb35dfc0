//! A person is forgotten: out of every table, out of the dead letters and the memory of deletes, and, after a vacuum, off the
//! disk; all other rows are what they were. The real binary on a folder of files; what the tables must hold is computed from
//! the files without the person, and the disk is searched with a Parquet reader of its own.

#![allow(clippy::disallowed_methods, reason = "tests break files on purpose")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::support::sandbox::Outcome;
use crate::support::{Sandbox, lake, seed};

const FILE: &str = "orders.yaml";
const YAML: &str = include_str!("forget.yaml");

/// Nobody else's name, nor part of one.
const PERSON: &str = "ada-4711";
const KEY: &str = "customer=ada-4711";

/// 2026-03-17T00:00:00Z.
const DAY: i64 = 1_773_705_600;

struct World {
    sandbox: Sandbox,
    files: BTreeMap<String, Vec<String>>,
    random: ChaCha8Rng,
}

impl World {
    fn new(test: &str) -> World {
        println!("TIDEGATE_SEED={}", seed());
        let random = ChaCha8Rng::seed_from_u64(seed() ^ test.len() as u64);
        let world = World { sandbox: Sandbox::new(&format!("forget-{test}")), files: BTreeMap::new(), random };
        world.sandbox.write(FILE, YAML);
        fs::create_dir_all(world.path("landing")).expect("a folder");
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sandbox.path().join(name)
    }

    fn line(&mut self) -> String {
        let customer = match self.random.random_range(0..4) {
            0 => PERSON.to_string(),
            _ => format!("c{}", self.random.random_range(0..6)),
        };
        let kind = self.random.random_range(0..14);
        let time = DAY + self.random.random_range(0..60);
        let mut line = json!({
            // An order is of one customer, as orders are.
            "id": format!("{customer}-{}", self.random.random_range(0..5)),
            "customer": customer,
            "store": format!("s{}", self.random.random_range(0..4)),
            "amount": if kind == 1 { -self.random.random_range(0..100) } else { self.random.random_range(1..100) },
            "at": chrono::DateTime::from_timestamp(time, 0).expect("a time").to_rfc3339(),
            "op": match kind { 2 => "d", 3 => "gone", _ => "u" },
        });
        if kind == 4 {
            line["colour"] = "red".into();
        }
        let text = line.to_string();
        // Cut off, or not JSON at all: only its bytes tell.
        match kind {
            5 => text[..text.len() - 3].to_string(),
            _ => text,
        }
    }

    fn land(&mut self, lines: usize) {
        for _ in 0..lines {
            let (file, line) = (format!("f{}.ndjson", self.random.random_range(0..3)), self.line());
            self.files.entry(file).or_default().push(line);
        }
        self.write();
    }

    fn put(&mut self, file: &str, line: &str) {
        self.files.entry(file.to_string()).or_default().push(line.to_string());
        self.write();
    }

    fn write(&self) {
        for (file, lines) in &self.files {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            self.sandbox.write(&format!("landing/{file}"), &text);
        }
    }

    fn drain(&self) -> Outcome {
        self.sandbox.drain(FILE)
    }

    fn forget(&self, arguments: &[&str]) -> Outcome {
        let all: Vec<&str> = ["forget", FILE].into_iter().chain(arguments.iter().copied()).collect();
        self.sandbox.tidegate(&all).run()
    }

    fn forget_json(&self, arguments: &[&str]) -> Value {
        let all: Vec<&str> = arguments.iter().copied().chain(["--output", "json"]).collect();
        self.forget(&all).success().json()
    }

    fn table(&self, name: &str, sql: &str) -> Vec<String> {
        lake::lines(&self.path("lake").join(name.replace('.', "/")), sql)
    }

    fn contents(&self) -> BTreeMap<&'static str, Vec<String>> {
        BTreeMap::from([
            (
                "bronze.orders",
                self.table("bronze.orders", "SELECT _topic, _offset, id, customer, store, amount, at, op FROM t"),
            ),
            ("silver.orders", self.table("silver.orders", "SELECT id, customer, store, amount, at FROM t")),
            ("silver.customers", self.table("silver.customers", "SELECT customer, store, at FROM t")),
            ("silver.events", self.table("silver.events", "SELECT store, amount FROM t")),
            ("gold.stores", self.table("gold.stores", "SELECT store, orders, total FROM t")),
            ("gold.customers", self.table("gold.customers", "SELECT customer, orders, total FROM t")),
            ("dlq.orders", self.table("dlq.orders", "SELECT topic, \"offset\", \"table\", stage FROM t")),
        ])
    }

    /// Requires the tables of the oracle: of all lines but those for which `is_forgotten`.
    #[track_caller]
    fn assert_tables(&self, is_forgotten: impl Fn(&str, usize) -> bool) {
        let expected = oracle(&self.files, is_forgotten);
        for (name, found) in self.contents() {
            lake::assert_same(name, &expected[name], &found);
        }
    }

    /// Files below `folder` of which any value has the person's name in it, read with the Parquet reader.
    fn on_disk(&self, folder: &str) -> Vec<PathBuf> {
        let mut holding = Vec::new();
        walk(&self.path(folder), &mut |path| {
            if path.extension().is_some_and(|ext| ext == "parquet") && parquet_holds(path) {
                holding.push(path.to_path_buf());
            }
        });
        holding
    }

    /// Files below `folder` with the name in their bytes as they are.
    fn in_bytes(&self, folder: &str) -> Vec<PathBuf> {
        let mut holding = Vec::new();
        walk(&self.path(folder), &mut |path| {
            if contains(&fs::read(path).expect("readable"), PERSON.as_bytes()) {
                holding.push(path.to_path_buf());
            }
        });
        holding
    }

    /// What commits say of themselves must not name the person; statistics of rows that were there may.
    fn notes_with_the_name(&self) -> Vec<String> {
        let mut found = Vec::new();
        walk(&self.path("lake"), &mut |path| {
            if path.extension().is_some_and(|ext| ext == "json") {
                let text = fs::read_to_string(path).expect("text");
                let notes = text.lines().filter(|line| line.contains("\"commitInfo\"") && line.contains(PERSON));
                found.extend(notes.map(|line| format!("{}: {line}", path.display())));
            }
        });
        found
    }

    fn receipts(&self) -> Vec<Value> {
        let folder = self.path("checkpoints/orders/receipts");
        let mut paths: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|ext| ext == "json"));
        paths.sort();
        let read = |path: &PathBuf| serde_json::from_str(&fs::read_to_string(path).expect("text")).expect("JSON");
        paths.iter().map(read).collect()
    }
}

fn walk(path: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        match entry.path().is_dir() {
            true => walk(&entry.path(), visit),
            false => visit(&entry.path()),
        }
    }
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

fn parquet_holds(path: &Path) -> bool {
    use arrow::util::display::{ArrayFormatter, FormatOptions};
    let file = fs::File::open(path).expect("a file");
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).expect("Parquet");
    let hex: String = PERSON.bytes().map(|byte| format!("{byte:02x}")).collect();
    reader.build().expect("readable").any(|batch| {
        let batch = batch.expect("rows");
        batch.columns().iter().any(|column| {
            let shown = ArrayFormatter::try_new(column, &FormatOptions::default()).expect("shown");
            (0..column.len()).any(|row| {
                let text = shown.value(row).to_string();
                text.contains(PERSON) || text.to_lowercase().contains(&hex)
            })
        })
    })
}

/// What the tables hold of all lines but those that are forgotten. Rows that do not name anybody stay.
fn oracle(
    files: &BTreeMap<String, Vec<String>>,
    is_forgotten: impl Fn(&str, usize) -> bool,
) -> BTreeMap<&'static str, Vec<String>> {
    let (mut bronze, mut events, mut dead) = (Vec::new(), Vec::new(), Vec::new());
    type Rank = (i64, String, usize);
    let mut orders: BTreeMap<String, (Rank, Value)> = BTreeMap::new();
    let mut customers: BTreeMap<String, (Rank, Value)> = BTreeMap::new();
    for (file, lines) in files {
        for (offset, line) in lines.iter().enumerate() {
            let forgotten = is_forgotten(file, offset);
            let row = serde_json::from_str::<Value>(line).ok().filter(|row| row["colour"].is_null());
            let Some(row) = row else {
                if !forgotten {
                    dead.push(format!("{file}|{offset}|source|decode"));
                }
                continue;
            };
            let text = |name: &str| row[name].as_str().expect("text").to_string();
            let at = chrono::DateTime::parse_from_rfc3339(&text("at")).expect("a time").timestamp_micros();
            let amount = row["amount"].as_i64().expect("a number");
            events.push(format!("{}|{amount}", text("store")));
            if forgotten {
                continue;
            }
            let (id, customer, store, op) = (text("id"), text("customer"), text("store"), text("op"));
            bronze.push(format!("{file}|{offset}|{id}|{customer}|{store}|{amount}|{at}|{op}"));
            let rank = (at, file.clone(), offset);
            if customers.get(&customer).is_none_or(|(known, _)| *known < rank) {
                customers.insert(customer.clone(), (rank.clone(), row.clone()));
            }
            // A delete is judged by no rule.
            if op != "d" && amount <= 0 {
                dead.push(format!("{file}|{offset}|silver.orders|expect"));
                continue;
            }
            if orders.get(&id).is_none_or(|(known, _)| *known < rank) {
                orders.insert(id, (rank, row));
            }
        }
    }
    let (mut silver, mut stores, mut totals) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    for (id, ((at, _, _), row)) in orders.iter().filter(|(_, (_, row))| row["op"] != "d") {
        let (customer, store) = (row["customer"].as_str().expect("text"), row["store"].as_str().expect("text"));
        let amount = row["amount"].as_i64().expect("a number");
        silver.push(format!("{id}|{customer}|{store}|{amount}|{at}"));
        for (sums, group) in [(&mut stores, store), (&mut totals, customer)] {
            let (count, sum): &mut (u64, i64) = sums.entry(group.to_string()).or_default();
            (*count, *sum) = (*count + 1, *sum + amount);
        }
    }
    let living = customers.iter().filter(|(_, (_, row))| row["op"] != "gone");
    let living =
        living.map(|(name, ((at, _, _), row))| format!("{name}|{}|{at}", row["store"].as_str().expect("text")));
    let sums = |sums: BTreeMap<String, (u64, i64)>| -> Vec<String> {
        sums.into_iter().map(|(group, (count, sum))| format!("{group}|{count}|{sum}")).collect()
    };
    let mut tables = BTreeMap::from([
        ("bronze.orders", bronze),
        ("silver.orders", silver),
        ("silver.customers", living.collect()),
        ("silver.events", events),
        ("gold.stores", sums(stores)),
        ("gold.customers", sums(totals)),
        ("dlq.orders", dead),
    ]);
    tables.values_mut().for_each(|lines| lines.sort_unstable());
    tables
}

/// The lines of the person: decoded ones by their field; of the others, those that are JSON with it, and with `containing`
/// those that name it at all.
fn of_person(files: &BTreeMap<String, Vec<String>>, containing: bool) -> impl Fn(&str, usize) -> bool {
    move |file, offset| {
        let line = &files[file][offset];
        match serde_json::from_str::<Value>(line) {
            Ok(row) => row["customer"] == PERSON,
            Err(_) => containing && line.contains(PERSON),
        }
    }
}

fn nobody(_: &str, _: usize) -> bool {
    false
}

#[test]
fn a_person_is_gone_from_every_table_and_all_other_rows_are_what_they_were() {
    let mut world = World::new("tables");
    for _ in 0..5 {
        world.land(40);
        world.drain().success();
    }
    world.assert_tables(nobody);
    let before = world.contents();

    let dry = world.forget_json(&["--key", KEY]);
    assert_eq!(dry["status"], "dry_run", "{dry}");
    assert_eq!(world.contents(), before, "a dry run changes nothing");
    let rows = |json: &Value, table: &str| {
        let tables = json["tables"].as_array().expect("a list");
        tables.iter().find(|entry| entry["name"] == table).expect("the table")["rows"].as_u64()
    };
    for (table, place) in [("bronze.orders", 3), ("silver.orders", 1), ("silver.customers", 0)] {
        let named = before[table].iter().filter(|line| line.split('|').nth(place) == Some(PERSON)).count() as u64;
        assert_eq!(rows(&dry, table), Some(named), "{table}: {dry}");
    }
    let lines = world.files.values().flatten();
    let still =
        lines.filter(|line| serde_json::from_str::<Value>(line).is_ok_and(|row| row["customer"] == PERSON)).count();
    let told: u64 =
        dry["sources"]["source"].as_array().expect("asked").iter().map(|p| p["records"].as_u64().expect("n")).sum();
    assert_eq!(told, still as u64, "{dry}");
    let containing = world.files.values().flatten();
    let containing =
        containing.filter(|line| serde_json::from_str::<Value>(line).is_err() && line.contains(PERSON)).count();
    assert!(containing > 0, "too tame a seed");
    let letters = dry["tables"].as_array().expect("a list").last().expect("the dead letters");
    assert_eq!(letters["containing"], json!(containing), "{dry}");

    let done = world.forget_json(&["--key", KEY, "--yes"]);
    assert_eq!(done["status"], "ok", "{done}");
    world.assert_tables(of_person(&world.files, false));
    let receipt = &world.receipts()[0];
    assert_eq!(receipt["batch"], done["batch"]);
    let counted = |name: &str| {
        let tables = receipt["tables"].as_array().expect("a list");
        tables.iter().find(|entry| entry["name"] == name).expect("the table")["rows"].as_u64()
    };
    for table in ["bronze.orders", "silver.orders", "silver.customers", "dlq.orders"] {
        assert_eq!(counted(table), rows(&dry, table), "{receipt}");
    }
    // By hand, from what the receipt says.
    let salt = receipt["key"]["salt"].as_str().expect("text");
    let mut parts = Vec::new();
    for part in [salt, "customer", PERSON] {
        parts.extend((part.len() as u64).to_be_bytes());
        parts.extend(part.as_bytes());
    }
    use sha2::Digest as _;
    let hash: String = sha2::Sha256::digest(&parts).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(receipt["key"]["sha256"], json!(hash));
    assert_eq!(world.in_bytes("checkpoints"), Vec::<PathBuf>::new(), "the log does not know the name");
    assert_eq!(world.notes_with_the_name(), Vec::<String>::new());

    let again = world.forget_json(&["--key", KEY, "--yes"]);
    assert_eq!((&again["status"], &again["batch"]), (&json!("no_change"), &Value::Null), "{again}");

    // Letters that merely contain the name, on demand.
    world.forget_json(&["--key", KEY, "--yes", "--containing"]);
    world.assert_tables(of_person(&world.files, true));

    // And the pipeline goes on with its log.
    let before = world.files.clone();
    world.land(40);
    world.drain().success();
    world.assert_tables(|file, offset| {
        before.get(file).is_some_and(|lines| offset < lines.len()) && of_person(&before, true)(file, offset)
    });
    world.sandbox.tidegate(&["checkpoint", "verify", FILE]).run().success();
}

#[test]
fn after_the_vacuum_no_file_on_disk_holds_the_person() {
    let mut world = World::new("disk");
    for _ in 0..4 {
        world.land(40);
        world.drain().success();
    }
    // Also in what the pipeline itself has taken out long ago, and in the memory of deletes.
    world.put(
        "f0.ndjson",
        &format!(
            r#"{{"id":"x","customer":"{PERSON}","store":"s1","amount":1,"at":"2026-03-18T00:00:00Z","op":"gone"}}"#
        ),
    );
    world.drain().success();
    assert!(!world.on_disk("lake/_tidegate").is_empty(), "the memory of deletes has the name");
    let done = world.forget_json(&["--key", KEY, "--yes", "--containing"]);
    assert!(done["receipt"]["tables"].to_string().contains("files_leave_after"), "{done}");
    assert!(!world.on_disk("lake").is_empty(), "old files still hold the name: the search can find it");
    // Nothing is left to do but the files.
    let vacuumed = world.forget_json(&["--key", KEY, "--yes", "--containing", "--vacuum"]);
    assert_eq!(vacuumed["status"], "no_change", "{vacuumed}");
    assert_eq!(world.on_disk("lake"), Vec::<PathBuf>::new());
    world.assert_tables(of_person(&world.files, true));
    world.sandbox.tidegate(&["checkpoint", "verify", FILE]).run().success();
    world.drain().success();

    // All at once.
    let forgotten = world.files.clone();
    world.land(40);
    world.drain().success();
    world.forget_json(&["--key", KEY, "--yes", "--containing", "--vacuum"]);
    assert_eq!(world.on_disk("lake"), Vec::<PathBuf>::new());
    assert!(forgotten.values().map(Vec::len).sum::<usize>() < world.files.values().map(Vec::len).sum());
    world.assert_tables(of_person(&world.files, true));
}

#[test]
fn a_late_record_of_a_forgotten_person_is_a_new_row_and_its_forgotten_delete_is_no_obstacle() {
    let mut world = World::new("late");
    let line = |customer: &str, op: &str, day: u32| {
        format!(
            r#"{{"id":"{customer}-1","customer":"{customer}","store":"s1","amount":5,"at":"2026-03-{day}T00:00:00Z","op":"{op}"}}"#
        )
    };
    for customer in [PERSON, "bob"] {
        world.put("a.ndjson", &line(customer, "u", 10));
        world.put("a.ndjson", &line(customer, "gone", 20));
    }
    world.drain().success();
    let dry = world.forget_json(&["--key", KEY]);
    let customers = dry["tables"].as_array().expect("a list").iter().find(|table| table["name"] == "silver.customers");
    assert_eq!(customers.map(|table| &table["remembered_deletes"]), Some(&json!(1)), "{dry}");
    world.forget_json(&["--key", KEY, "--yes"]);
    assert_eq!(world.forget_json(&["--key", KEY])["tables"][2]["remembered_deletes"], 0);
    // Older than both deletes: bob's is remembered, the other one is forgotten.
    for customer in [PERSON, "bob"] {
        world.put("a.ndjson", &line(customer, "u", 15));
    }
    world.drain().success();
    let forgotten = |file: &str, offset: usize| offset < 2 && file == "a.ndjson";
    world.assert_tables(forgotten);
    assert_eq!(world.table("silver.customers", "SELECT customer FROM t"), [PERSON]);
    world.forget_json(&["--key", KEY, "--yes"]);
    world.assert_tables(of_person(&world.files, false));
}

#[test]
fn the_account_says_what_goes_what_stays_and_why() {
    let mut world = World::new("account");
    let line = |id: &str, customer: &str, amount: i64, more: &str| {
        format!(
            r#"{{"id":"{id}","customer":"{customer}","store":"s1","amount":{amount},"at":"2026-03-17T00:00:00Z","op":"u"{more}}}"#
        )
    };
    for text in [
        line("o1", PERSON, 5, ""),
        line("o2", PERSON, -5, ""),
        line("o3", "bob", 5, ""),
        line("o4", PERSON, 5, r#","colour":"red""#),
        line("o5", PERSON, 5, "").replace('}', ""),
    ] {
        world.put("a.ndjson", &text);
    }
    world.drain().success();
    let mut said = String::new();
    let mut say = |arguments: &[&str]| {
        let outcome = world.forget(arguments);
        said.push_str(&format!("$ tidegate forget orders.yaml {}\n", arguments.join(" ")));
        said.push_str(&format!("{}{}[{}]\n\n", outcome.stdout, outcome.stderr, outcome.status.code().unwrap_or(-1)));
    };
    say(&["--key", KEY]);
    say(&["--key", KEY, "--offline", "--containing", "--tables", "silver.orders,dlq.orders"]);
    say(&["--key", KEY, "--key", "store=s1"]);
    say(&["--key", "custmer=ada"]);
    say(&["--key", "amount=many"]);
    say(&["--key", "customer"]);
    say(&["--key", KEY, "--tables", "silver.order"]);
    say(&["--key", "customer=nobody"]);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/forget.txt");
    if std::env::var_os("TIDEGATE_BLESS").is_some() {
        fs::write(&golden, &said).expect("writable");
    }
    let expected = fs::read_to_string(&golden).expect("tests/golden/forget.txt; TIDEGATE_BLESS=1 writes it");
    assert_eq!(said, expected, "\n{said}");
    world.assert_tables(nobody);

    // Only some tables, and what is computed from them.
    world.forget_json(&["--key", KEY, "--tables", "silver.orders", "--yes"]);
    let found = world.contents();
    let all = oracle(&world.files, nobody);
    let without = oracle(&world.files, of_person(&world.files, false));
    for name in ["silver.orders", "gold.stores", "gold.customers"] {
        lake::assert_same(name, &without[name], &found[name]);
    }
    for name in ["bronze.orders", "silver.customers", "dlq.orders"] {
        lake::assert_same(name, &all[name], &found[name]);
    }
    // Other types than text: a number and a time, both of one row.
    world.forget_json(&[
        "--key",
        "amount=5",
        "--key",
        "at=2026-03-17T00:00:00Z",
        "--key",
        "customer=bob",
        "--yes",
        "--offline",
    ]);
    assert_eq!(world.table("bronze.orders", "SELECT id FROM t"), ["o1", "o2"]);
}

/// Dies at a point, is finished by the next run, and is complete when it was begun at all.
#[cfg(feature = "failpoints")]
mod crashes {
    use super::*;

    const FORGET: &[&str] = &["forget", FILE, "--key", KEY, "--containing", "--yes", "--offline", "--output", "json"];
    const RUN: &[&str] = &["run", FILE, "--trigger", "available_now", "--output", "json"];

    fn ready() -> World {
        let mut world = World::new("crash");
        world.land(40);
        world.drain().success();
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

    #[test]
    fn killed_at_every_point_it_is_finished_by_the_next_run() {
        let trace = {
            let world = ready();
            let file = world.path("trace");
            let command = world.sandbox.tidegate(FORGET).env("TIDEGATE_FAIL_TRACE", &file.to_string_lossy());
            command.run().success();
            world.assert_tables(of_person(&world.files, true));
            let mut hits: BTreeMap<String, u64> = BTreeMap::new();
            for line in fs::read_to_string(&file).expect("the trace").lines() {
                *hits.entry(line.to_string()).or_default() += 1;
            }
            hits
        };
        let mut random = ChaCha8Rng::seed_from_u64(seed());
        let all = std::env::var("TIDEGATE_CRASH").is_ok_and(|value| value == "all");
        let mut places: Vec<(String, u64)> =
            trace.iter().map(|(point, hits)| (point.clone(), random.random_range(1..=*hits))).collect();
        while !all && places.len() > 10 {
            places.swap_remove(random.random_range(0..places.len()));
        }
        // The moments that only this command has: the plan is there and no table, some tables, and all of them.
        for point in ["plan.put.done@1", "applied@1", "applied@3", "commit.put.done@1", "memory.log.put.done@1"] {
            let (point, hit) = point.split_once('@').expect("a place");
            places.push((point.to_string(), hit.parse().expect("a number")));
        }
        let (mut killed, mut midway) = (0, 0);
        for (point, hit) in places {
            let world = ready();
            let run = attacked(&world, FORGET, &format!("{point}@{hit}=kill"));
            assert!(run.status.success() || run.status.code().is_none(), "{}", run.report());
            killed += u32::from(run.status.code().is_none());
            println!("{point}@{hit}");
            let is_midway = newest(&world, "offsets") > newest(&world, "commits");
            midway += u32::from(is_midway);
            attacked(&world, RUN, "").success();
            let json = attacked(&world, FORGET, "").success().json();
            if is_midway {
                assert_eq!(json["status"], "no_change", "{point}@{hit}: the run has finished it");
            }
            world.assert_tables(of_person(&world.files, true));
            assert_eq!(world.receipts().len(), 1, "{point}@{hit}: one batch, one receipt");
            assert_eq!(world.in_bytes("checkpoints"), Vec::<PathBuf>::new(), "{point}@{hit}: no key is left");
            world.forget_json(&["--key", KEY, "--containing", "--yes", "--vacuum", "--offline"]);
            assert_eq!(world.on_disk("lake"), Vec::<PathBuf>::new(), "{point}@{hit}");
        }
        assert!(midway > 0, "no kill came in the middle of the batch");
        println!("{} points, {killed} kills, {midway} in the middle of the batch", trace.len());
    }
}
