//! The dead-letter loop: what was set aside is looked at, the file is mended, and the records go through it again, each
//! exactly once, whatever dies in between. The real binary on a folder of files; what the tables must hold is computed from
//! the files, by nothing of tidegate's.

#![allow(clippy::disallowed_methods, reason = "tests break files on purpose")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::support::sandbox::Outcome;
use crate::support::{Sandbox, lake, seed};

const FILE: &str = "orders.yaml";

/// What the file says before it is mended, and after.
const BEFORE: &str = include_str!("dlq.yaml");
const MENDED: &[(&str, &str)] = &[
    ("at: timestamp not null", "at: {type: timestamp, unit: ms, nullable: false}"),
    ("schema_drift: fail", "schema_drift: rescue"),
    ("SELECT id, store,", "SELECT coalesce(id, 'nobody') AS id, store,"),
    ("amount > 0", "amount > -50"),
    ("amount < 1000", "amount < 2000"),
];

/// 2026-03-17T00:00:00Z in milliseconds.
const DAY: i64 = 1_773_705_600_000;

/// A sandbox, and everything that was put into its landing folder.
struct World {
    sandbox: Sandbox,
    files: BTreeMap<String, Vec<String>>,
    random: ChaCha8Rng,
}

impl World {
    fn new(test: &str) -> World {
        println!("TIDEGATE_SEED={}", seed());
        let random = ChaCha8Rng::seed_from_u64(seed() ^ test.len() as u64);
        let world = World { sandbox: Sandbox::new(&format!("dlq-{test}")), files: BTreeMap::new(), random };
        world.sandbox.write(FILE, BEFORE);
        fs::create_dir_all(world.path("landing")).expect("a folder");
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sandbox.path().join(name)
    }

    fn mend(&self) {
        let mut text = BEFORE.to_string();
        for (before, after) in MENDED {
            assert!(text.contains(before), "{before} is not in the file");
            text = text.replace(before, after);
        }
        self.sandbox.write(FILE, &text);
    }

    fn line(&mut self) -> String {
        let kind = self.random.random_range(0..12);
        if kind == 0 {
            return "not json".to_string();
        }
        let at = DAY + self.random.random_range(0..40) * 1_000;
        let time = chrono::DateTime::from_timestamp_millis(at).expect("a time").to_rfc3339();
        let mut line = json!({
            "id": format!("k{}", self.random.random_range(0..20)),
            "store": format!("s{}", self.random.random_range(0..4)),
            "amount": match kind {
                // Right after it is mended, and wrong for ever.
                1 => -self.random.random_range(0..100),
                2 => self.random.random_range(1000..3000),
                _ => self.random.random_range(1..100),
            },
            "at": time,
            "op": if kind == 3 { "d" } else { "u" },
        });
        match kind {
            // What decoding refuses until it is mended; some of it breaks a rule after that.
            4 => line["at"] = at.into(),
            5 => {
                line["at"] = at.into();
                line["amount"] = (-1000).into();
            }
            6 => line["colour"] = "red".into(),
            7 => line["id"] = Value::Null,
            _ => {}
        }
        line.to_string()
    }

    fn land(&mut self, lines: usize) {
        let file = format!("f{}.ndjson", self.random.random_range(0..3));
        let new: Vec<String> = (0..lines).map(|_| self.line()).collect();
        self.files.entry(file.clone()).or_default().extend(new);
        self.write(&file);
    }

    fn put(&mut self, file: &str, lines: &[&str]) {
        self.files.entry(file.to_string()).or_default().extend(lines.iter().map(|line| line.to_string()));
        self.write(file);
    }

    fn write(&self, file: &str) {
        let text: String = self.files[file].iter().map(|line| format!("{line}\n")).collect();
        self.sandbox.write(&format!("landing/{file}"), &text);
    }

    fn drain(&self) -> Outcome {
        self.sandbox.drain(FILE)
    }

    fn dlq(&self, arguments: &[&str]) -> Outcome {
        let all: Vec<&str> = ["dlq", arguments[0], FILE].into_iter().chain(arguments[1..].iter().copied()).collect();
        self.sandbox.tidegate(&all).run()
    }

    fn dlq_json(&self, arguments: &[&str]) -> Value {
        let all: Vec<&str> = arguments.iter().copied().chain(["--output", "json"]).collect();
        self.dlq(&all).success().json()
    }

    /// Under `orders` (`TIDEGATE_FAIL`), three letters a batch.
    #[cfg(feature = "failpoints")]
    fn attacked(&self, arguments: &[&str], orders: &str) -> Outcome {
        let command = self.sandbox.tidegate(arguments).env("TIDEGATE_FAIL", orders).env("TIDEGATE_FAIL_SMALL", "1");
        command.run()
    }

    fn table(&self, name: &str, sql: &str) -> Vec<String> {
        lake::lines(&self.path("lake").join(name.replace('.', "/")), sql)
    }

    /// The newest object of the log.
    #[cfg(feature = "failpoints")]
    fn newest(&self, kind: &str) -> Option<std::ffi::OsString> {
        let folder = fs::read_dir(self.path("checkpoints/orders").join(kind)).expect("a folder of the log");
        folder.map(|entry| entry.expect("readable").file_name()).max()
    }

    /// Topic, offset, table and stage of every letter of a status.
    fn letters(&self, status: &str) -> Vec<String> {
        let sql =
            format!("SELECT topic, \"offset\", \"table\", stage FROM t WHERE coalesce(status, 'open') = '{status}'");
        self.table("dlq.orders", &sql)
    }

    /// The data that a replay must not double.
    fn contents(&self) -> Vec<Vec<String>> {
        vec![
            self.table("bronze.orders", "SELECT _topic, _offset, id, store, amount, at, op FROM t"),
            self.table("silver.orders", "SELECT id, store, amount, at FROM t"),
            self.table("silver.events", "SELECT store, amount FROM t"),
            self.table("gold.stores", "SELECT store, orders, total FROM t"),
            self.table("gold.events", "SELECT store, events FROM t"),
        ]
    }

    /// Requires the tables of the oracle, and its dead letters to be the open ones.
    #[track_caller]
    fn assert_tables(&self, is_mended: bool) {
        let expected = Tables::of(&self.files, is_mended);
        let found = self.contents();
        let names = ["bronze.orders", "silver.orders", "silver.events", "gold.stores", "gold.events"];
        let all = [expected.bronze, expected.silver, expected.events, expected.stores, expected.counts];
        for ((name, expected), found) in names.into_iter().zip(all).zip(found) {
            lake::assert_same(name, &expected, &found);
        }
        lake::assert_same("dlq.orders", &expected.dead, &self.letters("open"));
    }
}

/// What the tables must hold.
#[derive(Default)]
struct Tables {
    bronze: Vec<String>,
    silver: Vec<String>,
    events: Vec<String>,
    stores: Vec<String>,
    counts: Vec<String>,
    dead: Vec<String>,
}

impl Tables {
    fn of(files: &BTreeMap<String, Vec<String>>, is_mended: bool) -> Tables {
        let mut tables = Tables::default();
        let mut newest: BTreeMap<String, ((i64, String, usize), Value)> = BTreeMap::new();
        let (mut stores, mut counts): (BTreeMap<String, (u64, i64)>, BTreeMap<String, u64>) = Default::default();
        for (file, lines) in files {
            for (offset, line) in lines.iter().enumerate() {
                let decoded = serde_json::from_str::<Value>(line).ok();
                let decoded = decoded.filter(|row| is_mended || (row["at"].is_string() && row["colour"].is_null()));
                let Some(mut row) = decoded else {
                    tables.dead.push(format!("{file}|{offset}|source|decode"));
                    continue;
                };
                let millis = row["at"].as_i64().unwrap_or_else(|| {
                    let text = row["at"].as_str().expect("text");
                    chrono::DateTime::parse_from_rfc3339(text).expect("a time").timestamp_millis()
                });
                let at = millis * 1_000;
                let store = row["store"].as_str().expect("text").to_string();
                let amount = row["amount"].as_i64().expect("a number");
                let op = row["op"].as_str().expect("text").to_string();
                let id = row["id"].as_str().map(str::to_string);
                let shown = id.clone().unwrap_or_else(|| lake::NULL.to_string());
                tables.bronze.push(format!("{file}|{offset}|{shown}|{store}|{amount}|{at}|{op}"));
                *counts.entry(store.clone()).or_default() += 1;
                match amount < if is_mended { 2000 } else { 1000 } {
                    true => tables.events.push(format!("{store}|{amount}")),
                    false => tables.dead.push(format!("{file}|{offset}|silver.events|expect")),
                }
                if op != "d" && amount <= if is_mended { -50 } else { 0 } {
                    tables.dead.push(format!("{file}|{offset}|silver.orders|expect"));
                    continue;
                }
                let Some(id) = id.or(is_mended.then(|| "nobody".to_string())) else {
                    tables.dead.push(format!("{file}|{offset}|silver.orders|key"));
                    continue;
                };
                let rank = (at, file.clone(), offset);
                row["at"] = at.into();
                if newest.get(&id).is_none_or(|(known, _)| *known < rank) {
                    newest.insert(id, (rank, row));
                }
            }
        }
        for (id, (_, row)) in newest.iter().filter(|(_, (_, row))| row["op"] != "d") {
            let (store, amount) = (row["store"].as_str().expect("text"), row["amount"].as_i64().expect("a number"));
            tables.silver.push(format!("{id}|{store}|{amount}|{}", row["at"]));
            let group = stores.entry(store.to_string()).or_default();
            *group = (group.0 + 1, group.1 + amount);
        }
        tables.stores = stores.into_iter().map(|(store, (count, sum))| format!("{store}|{count}|{sum}")).collect();
        tables.counts = counts.into_iter().map(|(store, count)| format!("{store}|{count}")).collect();
        let all = [&mut tables.bronze, &mut tables.silver, &mut tables.events, &mut tables.stores, &mut tables.counts];
        all.into_iter().chain([&mut tables.dead]).for_each(|lines| lines.sort_unstable());
        tables
    }
}

#[test]
fn a_table_that_is_nowhere_is_refused_with_the_one_that_may_be_meant() {
    let mut world = World::new("nope");
    let refused = |world: &World| {
        for command in ["replay", "discard", "ls"] {
            let refused = world.dlq(&[command, "--table", "silver.order"]).code(&[2]);
            refused.says("no table or source `silver.order`").says("did you mean `silver.orders`?");
        }
    };
    refused(&world);
    world.land(40);
    world.drain().success();
    refused(&world);
    world.dlq(&["ls", "--table", "silver.orders,source"]).success();
    // Its letters outlive it.
    world.sandbox.write(FILE, &BEFORE.replace("silver.orders", "silver.sold"));
    world.dlq(&["ls", "--table", "silver.orders"]).success();
}

#[test]
fn a_mended_file_takes_what_was_set_aside_and_the_tables_are_as_if_it_had_always_been_right() {
    let mut world = World::new("mended");
    for _ in 0..6 {
        world.land(30);
    }
    world.drain().success();
    world.assert_tables(false);
    let before = (world.contents(), world.letters("open"));

    // Nothing is mended: all fail again, and are counted.
    let same = world.dlq_json(&["replay"]);
    assert_eq!((&same["status"], &same["pass"]), (&json!("dry_run"), &json!(0)), "{same}");
    assert_eq!(same["fail_again"], json!(before.1.len()), "{same}");
    assert_eq!((world.contents(), world.letters("open")), before, "a dry run changes nothing");
    let again = world.dlq_json(&["replay", "--yes"]);
    assert_eq!(again["batches"].as_array().map(Vec::len), Some(1), "{again}");
    assert_eq!((world.contents(), world.letters("open")), before, "letters that fail bring no row anywhere");
    let attempts = world.table("dlq.orders", "SELECT DISTINCT attempts, status_batch FROM t");
    assert_eq!(attempts, [format!("1|{}", again["batches"][0])]);

    world.mend();
    let dry = world.dlq_json(&["replay"]);
    let told = (dry["pass"].as_u64().expect("a number"), dry["fail_again"].as_u64().expect("a number"));
    assert!(told.0 > 0 && told.1 > 0, "too tame a seed: {dry}");
    assert!(!dry["set_aside_further"].as_array().expect("a list").is_empty(), "too tame a seed: {dry}");
    let dry_text = world.dlq(&["replay"]).success();
    assert!(dry_text.stdout.contains("tidegate dlq replay orders.yaml --yes"), "{}", dry_text.report());
    assert_eq!((world.contents(), world.letters("open")), before, "a dry run changes nothing");

    let done = world.dlq_json(&["replay", "--yes"]);
    assert_eq!((done["pass"].as_u64(), done["fail_again"].as_u64()), (Some(told.0), Some(told.1)), "{done}");
    world.assert_tables(true);
    assert_eq!(world.letters("replayed").len() as u64, told.0);
    let after = world.contents();
    // What fails again is counted once more, what passed is not touched.
    let twice = world.dlq_json(&["replay", "--yes"]);
    assert_eq!(twice["pass"], 0, "{twice}");
    world.assert_tables(true);
    assert_eq!(world.contents(), after);
    let none = world.dlq_json(&["replay", "--yes", "--where", "attempts = 0"]);
    assert_eq!(none["status"], "no_change", "{none}");

    // And the pipeline goes on, with new rows and the same log.
    world.land(40);
    world.drain().success();
    world.assert_tables(true);
    world.sandbox.tidegate(&["checkpoint", "verify", FILE]).run().success();
    println!("{} passed, {} failed again", told.0, told.1);
}

#[test]
fn a_letter_that_is_read_again_is_a_new_letter_and_a_replayed_row_is_not_doubled_by_a_rewind() {
    let mut world = World::new("rewound");
    for _ in 0..3 {
        world.land(30);
    }
    world.drain().success();
    world.mend();
    world.dlq(&["replay", "--yes"]).success();
    world.assert_tables(true);
    // silver.events does not know which records its rows came from: it is the one table that a rewind would double.
    let yaml = fs::read_to_string(world.path(FILE)).expect("the file");
    assert!(yaml.contains("SELECT store, amount FROM batch"));
    let rewind = ["offsets", "rewind", FILE, "--to", "earliest", "--yes", "--accept-duplicates"];
    world.sandbox.tidegate(&rewind).run().success();
    assert_eq!(world.letters("replayed"), Vec::<String>::new(), "their records are read again");
    world.drain().success();
    let expected = Tables::of(&world.files, true);
    lake::assert_same("bronze.orders", &expected.bronze, &world.contents()[0]);
    lake::assert_same("silver.orders", &expected.silver, &world.contents()[1]);
    lake::assert_same("dlq.orders", &expected.dead, &world.letters("open"));
}

#[test]
fn every_filter_chooses_what_it_says() {
    let mut world = World::new("filters");
    world.put(
        "a.ndjson",
        &[
            "not json",
            r#"{"id":"k1","store":"s1","amount":0,"at":"2026-03-17T00:00:00Z","op":"u"}"#,
            r#"{"id":null,"store":"s1","amount":5,"at":"2026-03-17T00:00:00Z","op":"u"}"#,
            r#"{"id":"k2","store":"s2","amount":5000,"at":"2026-03-17T00:00:00Z","op":"u"}"#,
        ],
    );
    world.drain().success();
    let first = chrono::DateTime::parse_from_rfc3339(
        world.dlq_json(&["ls", "--rows"])["rows"][0]["failed_at"].as_str().expect("a time"),
    )
    .expect("a time");
    world.put("b.ndjson", &["also not json"]);
    world.drain().success();
    let chosen = |filter: &[&str]| -> Vec<String> {
        let arguments: Vec<&str> = ["ls", "--rows"].iter().chain(filter).copied().collect();
        let json = world.dlq_json(&arguments);
        let row = |row: &Value| format!("{}:{}", row["topic"].as_str().expect("text"), row["offset"]);
        json["rows"].as_array().expect("rows").iter().map(row).collect()
    };
    let later = (first + chrono::Duration::milliseconds(1)).to_rfc3339();
    let b = json!(world.dlq_json(&["ls", "--rows"])["rows"][4]["id"]).as_str().expect("an id")[..9].to_string();
    let cases: Vec<(Vec<&str>, Vec<&str>)> = vec![
        (vec![], vec!["a.ndjson:0", "a.ndjson:1", "a.ndjson:2", "a.ndjson:3", "b.ndjson:0"]),
        (vec!["--table", "silver.orders"], vec!["a.ndjson:1", "a.ndjson:2"]),
        (vec!["--table", "silver.events,source"], vec!["a.ndjson:0", "a.ndjson:3", "b.ndjson:0"]),
        (vec!["--stage", "decode"], vec!["a.ndjson:0", "b.ndjson:0"]),
        (vec!["--stage", "key,expect"], vec!["a.ndjson:1", "a.ndjson:2", "a.ndjson:3"]),
        (vec!["--rule", "positive"], vec!["a.ndjson:1"]),
        (vec!["--rule", "malformed,null_key"], vec!["a.ndjson:0", "a.ndjson:2", "b.ndjson:0"]),
        (vec!["--batch", "1"], vec!["b.ndjson:0"]),
        (vec!["--since", &later], vec!["b.ndjson:0"]),
        (vec!["--until", &later], vec!["a.ndjson:0", "a.ndjson:1", "a.ndjson:2", "a.ndjson:3"]),
        (vec!["--since", "2026-01-01", "--until", "2026-01-02"], vec![]),
        (vec!["--id", &b], vec!["b.ndjson:0"]),
        (vec!["--status", "discarded"], vec![]),
        (vec!["--limit", "2"], vec!["a.ndjson:0", "a.ndjson:1"]),
        (vec!["--where", "\"offset\" BETWEEN 2 AND 3 AND status = 'open'"], vec!["a.ndjson:2", "a.ndjson:3"]),
        (vec!["--where", "row_json LIKE '%5000%'", "--stage", "expect"], vec!["a.ndjson:3"]),
        (vec!["--where", "attempts > 0"], vec![]),
    ];
    for (filter, expected) in &cases {
        assert_eq!(chosen(filter), *expected, "{filter:?}");
    }
    println!("{} filters", cases.len());
    for (wrong, says) in [
        (["--where", "colour = 3"], "columns dlq_id, pipeline"),
        (["--where", "1 ="], "SQL over the columns"),
        (["--status", "lost"], "open, replayed or discarded"),
        (["--since", "soon"], "is not a time"),
    ] {
        world.dlq(&["ls", wrong[0], wrong[1]]).code(&[2]).says(says);
    }

    // Discard: said first, then done, with its reason; the letter stays.
    let dry = world.dlq_json(&["discard", "--rule", "malformed"]);
    assert_eq!((&dry["status"], &dry["letters"]), (&json!("dry_run"), &json!(2)));
    assert_eq!(world.letters("discarded"), Vec::<String>::new());
    let before = world.contents();
    let done = world.dlq_json(&["discard", "--rule", "malformed", "--reason", "it's a test", "--yes"]);
    assert_eq!(done["batches"], json!([2]), "{done}");
    assert_eq!(world.letters("discarded"), ["a.ndjson|0|source|decode", "b.ndjson|0|source|decode"]);
    let notes = world.table("dlq.orders", "SELECT DISTINCT note, attempts FROM t WHERE status = 'discarded'");
    assert_eq!(notes, ["it's a test|0"]);
    assert_eq!(chosen(&["--status", "discarded"]), ["a.ndjson:0", "b.ndjson:0"]);
    world.dlq(&["discard", "--status", "discarded", "--yes"]).code(&[2]).says("cannot be discarded");
    world.dlq(&["replay", "--status", "replayed", "--yes"]).code(&[2]).says("cannot be replayed");
    assert_eq!(world.dlq_json(&["replay", "--rule", "malformed", "--yes"])["status"], "no_change");
    // One that was given up can be tried again, and stays given up when it fails.
    let again = world.dlq_json(&["replay", "--status", "discarded", "--yes"]);
    assert_eq!(again["fail_again"], 2, "{again}");
    assert_eq!(world.letters("discarded").len(), 2);
    assert_eq!(world.contents(), before);
}

/// Times, ids and folders are new in every run.
fn masked(text: &str, world: &World) -> String {
    let mut masked = text.replace(&world.path("").to_string_lossy().into_owned(), "");
    let rows = world.dlq_json(&["ls", "--rows"]);
    for (number, row) in rows["rows"].as_array().expect("rows").iter().enumerate() {
        let id = row["id"].as_str().expect("an id");
        let time = &row["failed_at"].as_str().expect("a time")[..19];
        masked = masked
            .replace(id, &format!("ID-{number}-{}", "0".repeat(59)))
            .replace(&id[..12], &format!("ID-{number}-000000"));
        masked = masked.replace(&format!("{time}Z"), "2026-03-17T12:00:00Z");
    }
    masked
}

#[test]
fn what_ls_show_and_replay_say() {
    let mut world = World::new("texts");
    world.put(
        "a.ndjson",
        &[
            "not json \u{1b}[31m",
            r#"{"id":"k1","store":"s1","amount":0,"at":"2026-03-17T00:00:00Z","op":"u"}"#,
            r#"{"id":"k2","store":"s1","amount":-1,"at":"2026-03-17T00:00:00Z","op":"u"}"#,
            r#"{"id":"k3","store":"s1","amount":-70,"at":"2026-03-17T00:00:00Z","op":"u"}"#,
            r#"{"id":"k4","store":"s1","amount":1.50,"at":"2026-03-17T00:00:00Z","op":"u","tags":[]}"#,
        ],
    );
    let never = world.dlq(&["ls"]).success();
    assert!(never.stdout.contains("0 dead letters"), "{}", never.report());
    world.drain().success();
    let rows = world.dlq_json(&["ls", "--rows"]);
    let id = |number: usize| rows["rows"][number]["id"].as_str().expect("an id")[..10].to_string();
    let mut said = String::new();
    let mut say = |arguments: &[&str]| {
        let shown: Vec<String> = arguments.iter().map(|word| masked(word, &world)).collect();
        let outcome = world.dlq(arguments).success();
        said.push_str(&format!("$ tidegate dlq {}\n{}\n", shown.join(" "), masked(&outcome.stdout, &world)));
    };
    let ids: Vec<String> = (0..5).map(id).collect();
    say(&["ls"]);
    say(&["ls", "--rows"]);
    for id in &ids {
        let number = ids.iter().position(|other| other == id).expect("itself");
        if [0, 1, 4].contains(&number) {
            say(&["show", id]);
        }
    }
    world.mend();
    say(&["replay"]);
    say(&["replay", "--yes", "--stage", "expect"]);
    say(&["discard", "--stage", "decode", "--reason", "a test"]);
    say(&["ls"]);
    for id in ids.iter() {
        said = said.replace(id.as_str(), "ID");
    }
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/dlq.txt");
    if std::env::var_os("TIDEGATE_BLESS").is_some() {
        fs::write(&golden, &said).expect("writable");
    }
    let expected = fs::read_to_string(&golden).expect("tests/golden/dlq.txt; TIDEGATE_BLESS=1 writes it");
    assert_eq!(said, expected, "\n{said}");
    world.dlq(&["show", "no-such-id"]).code(&[2]).says("tidegate dlq ls orders.yaml --rows");
    world.dlq(&["show", ""]).code(&[2]).says("write more of the id");
    let json = world.dlq_json(&["show", &ids[4]]);
    assert_eq!(json["letter"]["record"]["value"]["text"].as_str(), Some(world.files["a.ndjson"][4].as_str()), "{json}");
}

#[test]
fn a_record_of_several_rows_is_not_replayed_where_some_are_there_already() {
    let sandbox = Sandbox::new("dlq-several");
    sandbox.write("parts.csv", "store,part\ns1,good\ns1,bad\ns2,bad\n");
    let yaml = |write: &str, check: &str| {
        format!(
            "version: 1\nname: orders\nlake: ./lake\ncheckpoints: ./checkpoints\nsource:\n  files: {{path: landing, \
             pattern: \"*.ndjson\"}}\n  format: json\n  schema: {{id: string, store: string}}\nlookups:\n  parts: \
             {{csv: parts.csv}}\ntables:\n  silver.parts:\n    from: source\n    sql: SELECT b.id, p.part FROM batch b \
             JOIN parts p ON b.store = p.store\n    expect: {{fine: {{check: \"{check}\", else: quarantine}}}}\n    \
             write: {write}\ndead_letters: {{table: dlq.orders}}\n"
        )
    };
    let lines = "{\"id\":\"a\",\"store\":\"s1\"}\n{\"id\":\"b\",\"store\":\"s2\"}\n";
    for (folder, write, expected) in [
        ("append", "append", ["a|good", "b|bad"].as_slice()),
        ("upsert", "{upsert: {key: [id, part]}}", ["a|bad", "a|good", "b|bad"].as_slice()),
    ] {
        sandbox.write(&format!("{folder}/landing/x.ndjson"), lines);
        sandbox.write(&format!("{folder}/parts.csv"), "store,part\ns1,good\ns1,bad\ns2,bad\n");
        let file = format!("{folder}/orders.yaml");
        sandbox.write(&file, &yaml(write, "part <> 'bad'"));
        sandbox.drain(&file).success();
        sandbox.write(&file, &yaml(write, "part <> 'worse'"));
        let replayed = sandbox.tidegate(&["dlq", "replay", &file, "--yes", "--output", "json"]).run().success();
        let json = replayed.json();
        let cannot = if write == "append" { 1 } else { 0 };
        assert_eq!((&json["pass"], &json["cannot"]), (&json!(2 - cannot), &json!(cannot)), "{}", replayed.report());
        let table = sandbox.path().join(folder).join("lake/silver/parts");
        assert_eq!(lake::lines(&table, "SELECT id, part FROM t"), expected);
        if write == "append" {
            assert!(json.to_string().contains("would have them twice"), "{json}");
        }
    }
}

#[test]
fn letters_from_before_there_was_a_status_are_open_and_can_be_replayed() {
    let mut world = World::new("older");
    world.land(60);
    world.drain().success();
    // The table as older releases made it: its definition without the new columns.
    let first = world.path("lake/dlq/orders/_delta_log").join(format!("{:020}.json", 0));
    let text = fs::read_to_string(&first).expect("version 0");
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut action: Value = serde_json::from_str(line).expect("JSON");
        if let Some(schema) = action["metaData"]["schemaString"].as_str() {
            let mut schema: Value = serde_json::from_str(schema).expect("JSON");
            let new = ["status", "attempts", "status_batch", "status_at", "note"];
            let fields = schema["fields"].as_array_mut().expect("fields");
            fields.retain(|field| !new.contains(&field["name"].as_str().expect("a name")));
            action["metaData"]["schemaString"] = schema.to_string().into();
        }
        lines.push(action.to_string());
    }
    fs::write(&first, lines.join("\n") + "\n").expect("writable");
    let open = world.table("dlq.orders", "SELECT topic, \"offset\", \"table\", stage FROM t");
    assert!(!open.is_empty(), "too tame a seed");
    let json = world.dlq_json(&["ls", "--where", "status = 'open' AND attempts = 0"]);
    assert_eq!((&json["letters"], &json["open"]), (&json!(open.len()), &json!(open.len())), "{json}");
    world.mend();
    world.dlq(&["replay"]).success();
    world.dlq(&["replay", "--yes"]).success();
    world.assert_tables(true);
}

#[tokio::test]
async fn the_record_of_a_letter_comes_back_from_its_table_as_the_source_delivered_it() {
    use tidegate::model::offset::Partition;
    use tidegate::source::rows::Rows;
    use tidegate::table::{Change, Maker, TableDefinition, Txn, WriteMode};
    use tidegate::transform::{BatchContext, Coordinates, DeadLetter, Stage, dead_letter, letter};

    let mut rows = Rows::new(Partition::new("t", 3));
    let headers = || Some(vec![("trace", Some(b"\xff\x00".as_slice())), ("empty", None)]);
    rows.push(5, Some(1_000_001), Some(b"key"), Some(b"\xffnot json"), headers()).expect("a row");
    rows.push(6, None, None, Some(b"good"), None).expect("a row");
    rows.push(7, Some(2), Some(b""), None, Some(vec![])).expect("a tombstone");
    let records = rows.finish().expect("records");
    let dead = |offset| DeadLetter {
        table: "source".into(),
        stage: Stage::Decode,
        rule: "malformed".into(),
        error: "bad".into(),
        coordinates: Some(Coordinates { topic: "t".into(), partition: 3, offset }),
        row_json: None,
    };
    let context =
        BatchContext { pipeline: "p".into(), batch: 4, batch_time: chrono::DateTime::UNIX_EPOCH, interval: None };
    let set_aside = dead_letter::rows(&[dead(7), dead(5)], &records, &context).expect("letters");
    let sandbox = Sandbox::new("dlq-record");
    let lake = tidegate::storage::open(&sandbox.path().to_string_lossy()).expect("a folder");
    let definition = TableDefinition {
        name: "dlq.t".into(),
        schema: dead_letter::schema(),
        partition_by: Vec::new(),
        write: WriteMode::Append,
        watched: Vec::new(),
        imaged: Vec::new(),
        maker: Maker { pipeline: "p".into(), pipeline_id: "id".into() },
    };
    let mut table = tidegate::table::delta::open(&lake, definition).expect("a table");
    let txn = Txn { app_id: "a".into(), batch: 4, user_metadata: "{}".into() };
    table.apply(Change::Rows(vec![set_aside]), &txn).await.expect("applied");
    let stored = table.read(&letter::columns(), None).await.expect("rows");
    let back = letter::records(&stored, |_| true).expect("records");
    assert_eq!(back.len(), 1);
    assert_eq!((back[0].slice(0, 1), back[0].slice(1, 1)), (records[0].slice(0, 1), records[0].slice(2, 1)));
}

/// Two sales of a day, and one append table with a rule that is changed: one of the two may be set aside.
struct Sales {
    sandbox: Sandbox,
}

impl Sales {
    fn new(test: &str, most: u32) -> Sales {
        let sales = Sales { sandbox: Sandbox::new(test) };
        let record = |(id, amount)| json!({"id": id, "amount": amount, "at": "2026-03-17T12:00:00Z"}).to_string();
        let lines: String = [("a", 5), ("b", 50)].map(record).map(|line| line + "\n").concat();
        sales.sandbox.write("landing/1.ndjson", &lines);
        sales.rule(most);
        sales.sandbox.drain(FILE).success();
        sales
    }

    /// Amounts are below this.
    fn rule(&self, most: u32) {
        let text = format!(
            "version: 1\nname: orders\nlake: ./lake\ncheckpoints: ./checkpoints\nsource:\n  \
             files: {{path: landing, pattern: \"*.ndjson\"}}\n  format: json\n  schema: {{id: string, \
             amount: long, at: timestamp}}\n  event_time: at\ntables:\n  bronze.orders: {{from: source, write: append}}\n  \
             silver.log:\n    from: bronze.orders\n    sql: SELECT id, amount, at FROM batch\n    expect: {{small: {{check: \
             amount < {most}, else: quarantine}}}}\n    write: append\ndead_letters: {{table: dlq.orders}}\n"
        );
        self.sandbox.write(FILE, &text);
    }

    fn derive(&self) {
        self.sandbox.tidegate(&["backfill", FILE, "--date", "2026-03-17"]).run().success();
    }

    fn replay(&self, arguments: &[&str]) -> Outcome {
        let all: Vec<&str> = ["dlq", "replay", FILE].into_iter().chain(arguments.iter().copied()).collect();
        self.sandbox.tidegate(&all).run()
    }

    fn dlq(&self, arguments: &[&str]) -> Outcome {
        let all: Vec<&str> = ["dlq", arguments[0], FILE].into_iter().chain(arguments[1..].iter().copied()).collect();
        self.sandbox.tidegate(&all).run()
    }

    /// Of every row of the dead-letter table.
    fn statuses(&self) -> Vec<String> {
        let table = self.sandbox.path().join("lake/dlq/orders");
        lake::lines(&table, "SELECT coalesce(status, 'open') AS status FROM t ORDER BY status")
    }

    /// What the letters of a status say that was set aside.
    fn row_of(&self, status: &str) -> Value {
        let table = self.sandbox.path().join("lake/dlq/orders");
        let sql = format!("SELECT row_json FROM t WHERE status = '{status}'");
        lake::lines(&table, &sql).concat().into()
    }

    fn log(&self) -> Vec<String> {
        lake::lines(&self.sandbox.path().join("lake/silver/log"), "SELECT id FROM t ORDER BY id")
    }

    fn open_letters(&self) -> usize {
        let table = self.sandbox.path().join("lake/dlq/orders");
        lake::lines(&table, "SELECT dlq_id FROM t WHERE coalesce(status, 'open') = 'open'").len()
    }
}

/// A backfill works from bronze, which has no original bytes: taken for a record without a value, such a letter could even
/// delete rows.
#[test]
fn a_letter_of_a_backfill_is_never_replayed_and_its_way_out_is_another_backfill() {
    let sales = Sales::new("dlq-backfill", 100);
    let both = sales.log();
    sales.rule(10);
    sales.derive();
    assert_eq!((sales.log(), sales.open_letters()), (both[..1].to_vec(), 1), "the rule is stricter now");
    sales.rule(100);
    let account = sales.replay(&[]).success();
    assert!(account.stdout.contains("tidegate backfill FILE --date"), "{}", account.report());
    sales.replay(&["--yes"]);
    assert_eq!(sales.log(), both[..1], "nothing may come of it");
    sales.derive();
    assert_eq!((both.len(), sales.log()), (2, both));
}

#[test]
fn a_record_that_a_backfill_has_brought_is_not_replayed_into_an_append_table() {
    let sales = Sales::new("dlq-derived", 10);
    sales.rule(100);
    sales.derive();
    let both = sales.log();
    assert_eq!((both.len(), sales.open_letters()), (2, 0), "the backfill has settled it");
    let account = sales.replay(&["--yes"]).success();
    assert!(account.stdout.contains("nothing to replay"), "{}", account.report());
    assert_eq!(sales.log(), both);
}

#[test]
fn a_replayed_record_that_a_backfill_sets_aside_has_an_open_letter_again() {
    let sales = Sales::new("dlq-again", 10);
    sales.rule(100);
    sales.replay(&["--yes"]).success();
    assert_eq!((sales.log().len(), sales.open_letters()), (2, 0));
    sales.rule(10);
    for round in ["first", "second"] {
        sales.derive();
        assert_eq!((sales.log().len(), sales.open_letters()), (1, 1), "{round}");
    }
}

/// Set aside by a backfill, brought by the next and set aside again by a third: two rows of one name, the first replayed.
fn twins(test: &str) -> Sales {
    let sales = Sales::new(test, 100);
    for most in [10, 100, 10] {
        sales.rule(most);
        sales.derive();
    }
    assert_eq!(sales.statuses(), ["open", "replayed"]);
    sales
}

#[test]
fn a_letter_that_is_set_aside_again_after_it_was_settled_can_be_given_up() {
    let sales = twins("dlq-twins");
    let listed = sales.dlq(&["ls", "--rows", "--output", "json"]).success().json();
    assert_eq!((&listed["letters"], &listed["open"]), (&json!(2), &json!(1)), "{listed}");
    let id = listed["rows"][1]["id"].as_str().expect("an id");
    let shown = sales.dlq(&["show", id, "--output", "json"]).success().json();
    assert_eq!(
        (&shown["letter"]["status"], &shown["letter"]["record"]["row"]),
        (&json!("open"), &sales.row_of("open"))
    );
    let replayed = sales.replay(&["--output", "json"]).success().json();
    assert_eq!((&replayed["letters"], &replayed["cannot"]), (&json!(1), &json!(1)), "{replayed}");
    let done = sales.dlq(&["discard", "--yes", "--output", "json"]).success().json();
    assert_eq!(done["letters"], 1, "{done}");
    assert_eq!(sales.statuses(), ["discarded", "replayed"]);
    sales.sandbox.drain(FILE).success();
    // Both are rows of the table still: the record comes back, and the letter is settled.
    sales.rule(100);
    sales.derive();
    assert_eq!((sales.log().len(), sales.statuses()), (2, vec!["replayed".to_string(); 2]));
}

#[cfg(feature = "failpoints")]
#[test]
fn a_letter_that_was_settled_once_is_given_up_once_wherever_the_command_dies() {
    for point in ["plan.put.done", "apply", "prepared", "applied", "commit"] {
        let sales = twins("dlq-twins-killed");
        let discard = ["dlq", "discard", FILE, "--yes", "--reason", "a test"];
        let command = sales.sandbox.tidegate(&discard).env("TIDEGATE_FAIL", &format!("{point}@1=kill"));
        let killed = command.run();
        assert!(killed.status.code().is_none(), "{point}\n{}", killed.report());
        sales.sandbox.drain(FILE).success();
        assert_eq!(sales.statuses(), ["discarded", "replayed"], "{point}");
    }
}

#[test]
fn dead_letters_that_are_off_or_not_there_are_said() {
    let world = World::new("none");
    world.sandbox.write(FILE, &BEFORE.replace("dead_letters: {table: dlq.orders}", "dead_letters: off"));
    for command in ["ls", "replay", "discard"] {
        world.dlq(&[command]).code(&[2, 78]);
    }
}

/// Dies at a point of a replay, is finished by the next run, and goes on with what was left.
#[cfg(feature = "failpoints")]
mod crashes {
    use super::*;
    use std::time::Duration;

    const REPLAY: &[&str] = &["dlq", "replay", FILE, "--yes", "--output", "json"];
    const RUN: &[&str] = &["run", FILE, "--trigger", "available_now", "--output", "json"];

    /// A mended pipeline with letters, and what its tables must hold when all are replayed.
    fn ready(name: &str) -> World {
        let mut world = World::new(name);
        world.land(26);
        world.drain().success();
        world.mend();
        world
    }

    /// Replays until everything passed that can.
    fn finish(world: &World) {
        world.attacked(RUN, "").success();
        loop {
            let json = world.attacked(REPLAY, "").success().json();
            if json["pass"].as_u64().unwrap_or_default() == 0 {
                return;
            }
        }
    }

    #[test]
    fn killed_at_every_point_of_a_replay_no_row_is_lost_or_doubled() {
        let trace = {
            let world = ready("crash");
            let file = world.path("trace");
            let command = world.sandbox.tidegate(REPLAY).env("TIDEGATE_FAIL_SMALL", "1");
            let run = command.env("TIDEGATE_FAIL_TRACE", &file.to_string_lossy()).run().success();
            assert!(run.json()["batches"].as_array().map_or(0, Vec::len) > 2, "{}", run.report());
            finish(&world);
            world.assert_tables(true);
            let mut hits: BTreeMap<String, u64> = BTreeMap::new();
            for line in fs::read_to_string(&file).expect("the trace").lines() {
                *hits.entry(line.to_string()).or_default() += 1;
            }
            hits
        };
        let mut random = ChaCha8Rng::seed_from_u64(seed());
        let all = std::env::var("TIDEGATE_CRASH").is_ok_and(|value| value == "all");
        let mut places: Vec<(&String, u64)> =
            trace.iter().map(|(point, hits)| (point, random.random_range(1..=*hits))).collect();
        while !all && places.len() > 10 {
            places.swap_remove(random.random_range(0..places.len()));
        }
        let mut killed = 0;
        for (point, hit) in places {
            let world = ready("crash");
            let run = world.attacked(REPLAY, &format!("{point}@{hit}=kill"));
            assert!(run.status.success() || run.status.code().is_none(), "{}", run.report());
            killed += u32::from(run.status.code().is_none());
            println!("{point}@{hit}");
            finish(&world);
            world.assert_tables(true);
        }
        println!("{} points, {killed} kills", trace.len());
    }

    #[test]
    fn killed_at_random_moments_and_robbed_of_its_checkpoint_a_replay_ends_once() {
        let mut world = World::new("random");
        let (mut kills, mut midway, mut rebuilt) = (0, 0, 0);
        let mut longest = 1_000;
        for round in 0..6 {
            world.sandbox.write(FILE, BEFORE);
            world.land(20);
            world.drain().success();
            world.mend();
            // At random moments alone, all of them may miss the middle of a batch.
            if round == 0 {
                let run = world.attacked(REPLAY, "commit@1=kill");
                kills += u32::from(run.status.code().is_none());
                midway += u32::from(world.newest("offsets") > world.newest("commits"));
                world.attacked(RUN, "").success();
            }
            for _ in 0..3 {
                let patience = Duration::from_millis(world.random.random_range(longest / 20..longest));
                let command = world.sandbox.tidegate(REPLAY).env("TIDEGATE_FAIL_SMALL", "1");
                kills += u32::from(command.start().finish(patience).is_none());
                midway += u32::from(world.newest("offsets") > world.newest("commits"));
                if round % 2 == 1 && world.sandbox.path().join("checkpoints").exists() {
                    world.sandbox.remove("checkpoints");
                    world.sandbox.tidegate(&["checkpoint", "rebuild", FILE, "--yes"]).run().success();
                    rebuilt += 1;
                }
                world.attacked(RUN, "").success();
            }
            let started = std::time::Instant::now();
            finish(&world);
            longest = u64::try_from(started.elapsed().as_millis()).expect("a few seconds").max(400);
            world.assert_tables(true);
        }
        assert!(midway > 0, "no kill came in the middle of a batch");
        println!("{kills} kills, {midway} of them in the middle of a batch, {rebuilt} checkpoints rebuilt");
    }

    #[test]
    fn a_runner_that_works_keeps_a_replay_out() {
        let mut world = ready("busy");
        world.land(5);
        let wall = world.path("wall");
        let orders = format!("plan@1=pause={}", wall.display());
        let running = world.sandbox.tidegate(RUN).env("TIDEGATE_FAIL", &orders).start();
        let reached = wall.with_extension("reached");
        while !reached.exists() && !world.path("wall.reached").exists() {
            assert!(!running.ended(), "{}", running.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
        world.dlq(&["replay"]).success();
        world.dlq(&["replay", "--yes"]).code(&[75]).says("between two runs");
        world.sandbox.write("wall", "");
        running.finish(Duration::from_secs(60)).expect("it goes on").success();
        world.dlq(&["replay", "--yes"]).success();
        world.assert_tables(true);
    }
}
