//! A person is forgotten: out of every table, out of the dead letters and the memory of deletes, and, after a vacuum, off the
//! disk; all other rows are what they were. The real binary on a folder of files; what the tables must hold is computed from
//! the files without the person, and the disk is searched with a Parquet reader of its own.

#![allow(clippy::disallowed_methods, reason = "tests break files on purpose")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::support::sandbox::Outcome;
use crate::support::{CONTENT, Sandbox, lake, seed};

mod account;
#[cfg(feature = "failpoints")]
mod crashes;
mod kafka;
mod remembered;
mod tables;
mod ways_back;

const FILE: &str = "orders.yaml";
const YAML: &str = include_str!("../forget.yaml");

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
        // Of the places to die at. Tests name what is in the files, so that is the same every day.
        println!("TIDEGATE_SEED={}", seed());
        let random = ChaCha8Rng::seed_from_u64(CONTENT ^ test.len() as u64);
        let world = World { sandbox: Sandbox::in_memory(&format!("forget-{test}")), files: BTreeMap::new(), random };
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
            ("gold.records", self.table("gold.records", "SELECT store, records FROM t")),
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

    /// Paths below `folder` that have the person's name in them: a partition's, say.
    fn in_paths(&self, folder: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk_all(&self.path(folder), &mut |path| {
            if path.file_name().is_some_and(|name| name.to_string_lossy().contains(PERSON)) {
                found.push(path.to_path_buf());
            }
        });
        found
    }

    /// The tables whose log still names the person.
    fn in_logs(&self) -> BTreeSet<String> {
        let lake = self.path("lake");
        let table = |path: PathBuf| {
            let (table, rest) =
                path.strip_prefix(&lake).expect("below").to_str().expect("text").split_once("/_delta_log/")?;
            assert!(rest.ends_with(".json"), "{rest}");
            Some(table.trim_start_matches("_tidegate/deletes/").replace('/', "."))
        };
        let all = self.in_bytes("lake");
        all.into_iter().map(|path| table(path.clone()).unwrap_or_else(|| panic!("{}", path.display()))).collect()
    }

    /// The same world once more.
    #[cfg(feature = "failpoints")]
    fn copy(&self) -> World {
        let sandbox = Sandbox::in_memory("forget-copy");
        copy(self.sandbox.path(), sandbox.path());
        World { sandbox, files: self.files.clone(), random: self.random.clone() }
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

#[cfg(feature = "failpoints")]
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("readable").flatten() {
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => fs::copy(entry.path(), to.join(entry.file_name())).map(|_| ()).expect("copied"),
        }
    }
}

fn walk_all(path: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        visit(&entry.path());
        walk_all(&entry.path(), visit);
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
    let mut records: BTreeMap<String, u64> = BTreeMap::new();
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
            *records.entry(store.clone()).or_default() += 1;
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
        ("gold.records", records.into_iter().map(|(store, count)| format!("{store}|{count}")).collect()),
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
