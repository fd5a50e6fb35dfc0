//! `tidegate test`: the examples' tests hold, each of them can fail, and what a failure or a wrong test says.
//!
//! `tests/golden/test/<case>.yaml` (or `.test.yaml`) must give exactly `<case>.txt`: exit code, stdout, stderr.
//! `TIDEGATE_BLESS=1` writes the texts anew, to be read before they are committed.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tidegate::config::shape::untyped;
use tidegate::config::yaml;

use crate::support::Sandbox;

fn home() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn pipelines() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(home().join("pipelines")).expect("pipelines/ is readable");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    files
}

/// The tests of a pipeline file as JSON.
fn tests_of(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).expect("a pipeline");
    let root = yaml::parse(&text).0.expect("YAML");
    let Value::Array(tests) = untyped(root.get("tests").expect("an example has tests")) else { panic!("a list") };
    tests
}

#[test]
fn every_example_passes_its_tests_and_nothing_is_written() {
    let sandbox = Sandbox::new("test-examples");
    let folder = home().join("pipelines");
    let folders = [home().join("lake"), home().join("checkpoints"), sandbox.path().join("lake")];
    let before = folders.each_ref().map(|folder| folder.exists());
    let run = sandbox.tidegate(&["test", &folder.to_string_lossy(), "--output", "json"]).run().success();
    let json = run.json();
    let written: usize = pipelines().iter().map(|file| tests_of(file).len()).sum();
    assert_eq!((json["passed"].as_u64(), json["failed"].as_u64()), (Some(written as u64), Some(0)));
    assert!(written >= 12, "only {written} tests in the examples");
    assert_eq!(folders.each_ref().map(|folder| folder.exists()), before, "tests write no table");
    println!("{written} tests in {:?}", run.took);
}

#[test]
fn what_init_writes_passes_its_tests() {
    let sandbox = Sandbox::new("test-init");
    sandbox.tidegate(&["init", "shop", "--name", "shop"]).run().success();
    sandbox.tidegate(&["test", "shop/pipelines"]).run().success();
}

/// Every way to get one expected thing wrong: another value in each cell, each row twice or not at all, one row more in
/// each count.
fn mutants(test: &Value) -> Vec<Value> {
    let mut mutants = Vec::new();
    let mut add = |what: String, table: &str, expected: Value| {
        let mut mutant = test.clone();
        mutant["name"] = format!("{}: {what} [{}]", test["name"], mutants.len()).into();
        mutant["expect"][table] = expected;
        mutants.push(mutant);
    };
    for (table, expected) in test["expect"].as_object().expect("a mapping") {
        if let Some(count) = expected["count"].as_u64() {
            add(format!("{table}: a larger count"), table, json!({ "count": count + 1 }));
            add(format!("{table}: a smaller count"), table, json!({ "count": count - 1 }));
            continue;
        }
        let rows = expected.as_array().expect("rows");
        if rows.is_empty() {
            add(format!("{table}: a row"), table, json!([{}]));
        }
        for index in 0..rows.len() {
            let mut more = rows.clone();
            more.push(rows[index].clone());
            add(format!("{table}: row {index} twice"), table, more.into());
            let mut fewer = rows.clone();
            fewer.remove(index);
            add(format!("{table}: without row {index}"), table, fewer.into());
            for (column, value) in rows[index].as_object().expect("a mapping") {
                let mut other = rows.clone();
                // In place of null, what another row has there: it is of the column's type.
                let elsewhere = rows.iter().map(|row| &row[column]).find(|value| !value.is_null());
                other[index][column] = match elsewhere.filter(|_| value.is_null()) {
                    Some(elsewhere) => elsewhere.clone(),
                    None => another(value),
                };
                add(format!("{table}: another {column} in row {index}"), table, other.into());
            }
        }
    }
    mutants
}

/// A value of the same type, but another one.
fn another(value: &Value) -> Value {
    match value {
        Value::Number(number) => (number.as_i64().expect("whole") + 1).into(),
        Value::Bool(value) => (!value).into(),
        Value::Null => "1".into(),
        Value::Array(items) => match items.split_last() {
            Some((_, others)) => others.to_vec().into(),
            None => Value::Null,
        },
        Value::Object(fields) => {
            let mut fields = fields.clone();
            let (name, value) = fields.iter().next().map(|(n, v)| (n.clone(), v.clone())).expect("a field");
            fields.insert(name, another(&value));
            fields.into()
        }
        // The last digit of a date, time or amount; else one letter more.
        Value::String(text) => match text.rfind(|c: char| c.is_ascii_digit()) {
            Some(at) if text.starts_with(|c: char| c.is_ascii_digit()) => {
                let digit = if &text[at..=at] == "1" { "2" } else { "1" };
                format!("{}{digit}{}", &text[..at], &text[at + 1..]).into()
            }
            _ => format!("{text}x").into(),
        },
    }
}

#[test]
fn every_changed_expectation_of_the_examples_fails() {
    let sandbox = Sandbox::new("test-mutants");
    for file in pipelines() {
        let mutated: Vec<Value> = tests_of(&file).iter().flat_map(mutants).collect();
        let count = mutated.len() as u64;
        // JSON is YAML.
        let tests = json!({ "pipeline": file, "tests": mutated }).to_string();
        sandbox.write("mutants.test.yaml", &tests);
        let run = sandbox.tidegate(&["test", "mutants.test.yaml", "--output", "json"]).run().code(&[1]);
        let json = run.json();
        let passed = json["files"][0]["tests"].as_array().expect("tests").iter();
        let survivors: Vec<&Value> =
            passed.filter(|test| test["status"] != "failed").map(|test| &test["name"]).collect();
        assert!(survivors.is_empty(), "{}: these cannot fail: {survivors:?}", file.display());
        assert_eq!(json["failed"].as_u64(), Some(count));
        println!("{}: {count} mutants in {:?}", file.display(), run.took);
    }
}

/// Times differ from run to run.
fn timeless(text: &str) -> String {
    let line = |line: &str| match line.rsplit_once(" in ") {
        Some((before, _)) if line.contains(" passed") => format!("{before} in some time\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

#[test]
fn failures_and_wrong_tests_say_exactly_this() {
    let folder = home().join("tests/golden/test");
    let bless = std::env::var_os("TIDEGATE_BLESS").is_some();
    let mut cases: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the folder of cases")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    cases.sort();
    assert!(cases.len() >= 4, "only {} cases", cases.len());
    let sandbox = Sandbox::new("test-golden");
    for case in &cases {
        let name = case.file_name().expect("a name").to_string_lossy();
        sandbox.write(&name, &std::fs::read_to_string(case).expect("a case"));
    }
    let mut wrong = Vec::new();
    for case in &cases {
        let name = case.file_name().expect("a name").to_string_lossy().into_owned();
        let run = sandbox.tidegate(&["test", &name]).run();
        let code = run.status.code().unwrap_or(-1);
        let seen = format!("exit {code}\n--- stdout\n{}--- stderr\n{}", timeless(&run.stdout), run.stderr);
        let expected = folder.join(format!("{}.txt", name.trim_end_matches(".yaml")));
        if bless {
            #[allow(clippy::disallowed_methods, reason = "a test writes its own golden files, on request")]
            std::fs::write(&expected, &seen).expect("the golden file");
            continue;
        }
        let wanted = std::fs::read_to_string(&expected).unwrap_or_default();
        if seen != wanted {
            wrong.push(format!("=== {name}\n--- expected\n{wanted}\n--- seen\n{seen}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const OFFLINE: &str = "
version: 1
name: p
lake: ${NO_SUCH_LAKE}
source:
  kafka: {brokers: \"${NO_SUCH_BROKERS:?set it}\", topics: t, security: {protocol: SASL_SSL, mechanism: PLAIN, username: u,
          password: \"${file:/no/such/secret}\"}}
  schema: {id: string not null}
tables:
  bronze.t: {from: source}
tests:
  - {name: first, given: {source: [{id: a}]}, expect: {bronze.t: [{id: a}]}}
  - {name: second, given: {source: [{id: b}]}, expect: {bronze.t: [{id: c}]}}
";

#[test]
fn a_test_needs_neither_brokers_nor_secrets_nor_a_lake() {
    let sandbox = Sandbox::new("test-offline");
    sandbox.write("p.yaml", OFFLINE);
    sandbox.tidegate(&["test", "p.yaml", "--filter", "first"]).run().success();
    sandbox.tidegate(&["run", "p.yaml"]).run().code(&[78]).says("`NO_SUCH_BROKERS` is not set");
    sandbox.tidegate(&["test", "p.yaml", "--filter", "nothing of this"]).run().code(&[2]).says("has `nothing of this`");
}

#[test]
fn results_leave_as_json_and_junit() {
    let sandbox = Sandbox::new("test-forms");
    sandbox.write("p.yaml", OFFLINE);
    let run = sandbox.tidegate(&["test", "p.yaml", "--output", "json", "--junit", "out.xml"]).run().code(&[1]);
    let json = run.json();
    assert_eq!(run.stdout.lines().count(), 1);
    let tests = &json["files"][0]["tests"];
    assert_eq!((&tests[0]["status"], &tests[1]["status"]), (&json!("passed"), &json!("failed")));
    assert_eq!(tests[1]["faults"][0]["changed"], json!([]));
    assert_eq!(tests[1]["faults"][0]["missing"], json!([{ "id": "c" }]));
    assert_eq!(tests[1]["faults"][0]["unexpected"], json!([{ "id": "b" }]));
    let xml = std::fs::read_to_string(sandbox.path().join("out.xml")).expect("the results");
    assert!(xml.contains("<testsuite name=\"p.yaml\" tests=\"2\" failures=\"1\""), "{xml}");
    assert_eq!(xml.matches("<failure").count(), 1, "{xml}");
}

const GIVEN: &str = "
version: 1
name: p
source:
  files: {path: landing}
  schema: {id: string not null, store: string, at: timestamp}
  event_time: at
tables:
  bronze.orders: {from: source}
  silver.orders:
    from: bronze.orders
    sql: SELECT id, store FROM batch
    write: {upsert: {key: id}}
  gold.stores:
    from: bronze.orders
    aggregate: {by: store, measures: {orders: count(*)}}
tests:
  - name: rows that a table has got before do not stand in the way of those of the source
    given:
      silver.orders: [{id: a, store: x}]
      source:
        - {id: b, store: x, at: 2025-12-31T00:00:00Z}
        - {id: c, store: y, at: 2025-12-31T00:01:00Z}
        - {id: d, store: y, at: 2025-12-31T00:02:00Z}
    expect:
      bronze.orders: {count: 3}
      silver.orders: [{id: a, store: x}, {id: b, store: x}, {id: c, store: y}, {id: d, store: y}]
      gold.stores: [{store: x, orders: 1}, {store: y, orders: 2}]
  - name: a table that remembers counts what the table above it was given
    given:
      bronze.orders: [{id: a, store: x, at: 2025-12-31T00:00:00Z}]
      source: [{id: b, store: x, at: 2025-12-31T00:01:00Z}]
    expect:
      gold.stores: [{store: x, orders: 2}]
";

#[test]
fn tables_that_remember_see_the_source_in_tests_that_give_a_table_rows() {
    let sandbox = Sandbox::new("test-given");
    sandbox.write("p.yaml", GIVEN);
    sandbox.tidegate(&["test", "p.yaml"]).run().success();
}
