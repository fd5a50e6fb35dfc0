//! Tables that others restore, drop, replace or write to, found by the real binary before a batch begins: what breaks the
//! promise is refused with the way out, what does not is named, and compaction is nobody's business.

#![allow(clippy::disallowed_methods, reason = "tests break files on purpose")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::bronze::delete;
use crate::support::sandbox::Outcome;
use crate::support::{Sandbox, lake};

const FILE: &str = "orders.yaml";
const SILVER: &str = "silver/orders";

/// A lake with two batches, from one file each.
struct Lake {
    sandbox: Sandbox,
    files: u32,
}

impl Lake {
    fn new(test: &str) -> Lake {
        let sandbox = Sandbox::new(test);
        sandbox.write(FILE, &include_str!("bronze_files.yaml").replace("#BRONZE", "schema_drift: ignore"));
        let mut lake = Lake { sandbox, files: 0 };
        lake.batch().success();
        lake.batch().success();
        lake
    }

    /// One more file, and a run.
    fn batch(&mut self) -> Outcome {
        let n = self.files;
        self.files += 1;
        let rows = format!("{{\"id\":\"all\",\"amount\":{}}}\n{{\"id\":\"k{n}\",\"amount\":1}}\n", n + 1);
        self.sandbox.write(&format!("landing/{n:03}.ndjson"), &rows);
        self.run()
    }

    fn run(&self) -> Outcome {
        self.sandbox.drain(FILE)
    }

    fn table(&self, name: &str) -> PathBuf {
        self.sandbox.path().join("lake").join(name)
    }

    fn versions(&self) -> Vec<Option<i64>> {
        ["bronze/orders", "silver/copy", SILVER, "dlq/orders"].map(|name| lake::version(&self.table(name))).to_vec()
    }

    /// A run on new rows must refuse, say why and how to go on, and leave every table as it is.
    #[track_caller]
    fn refuses(&mut self, texts: &[&str]) {
        let before = self.versions();
        let mut run = self.batch().code(&[78]);
        println!("{}", run.stderr.trim());
        for text in texts {
            run = run.says(text);
        }
        assert_eq!(self.versions(), before, "a table was written\n{}", run.report());
        assert_eq!(plans(&self.sandbox), 2, "a batch was planned\n{}", run.report());
    }

    /// All rows are there once, and the upsert holds the newest of each key.
    #[track_caller]
    fn goes_on(&mut self) {
        self.batch().success();
        let silver = lake::lines(&self.table(SILVER), "SELECT id, amount FROM t");
        let mut expected: Vec<String> = (0..self.files).map(|n| format!("k{n}|1")).collect();
        expected.push(format!("all|{}", self.files));
        expected.sort();
        assert_eq!(silver, expected);
        let count = lake::lines(&self.table("bronze/orders"), "SELECT count(*) FROM t");
        assert_eq!(count, [(2 * self.files).to_string()]);
    }

    fn log(&self, name: &str, version: i64) -> PathBuf {
        self.table(name).join("_delta_log").join(format!("{version:020}.json"))
    }

    /// Appends a commit to silver's log as another program would.
    fn commit(&self, actions: &[Value]) -> PathBuf {
        let version = lake::version(&self.table(SILVER)).expect("a table") + 1;
        let info = json!({"commitInfo": {"operation": "SET TBLPROPERTIES", "engineInfo": "Apache-Spark/4.0.0"}});
        let lines: Vec<String> = std::iter::once(&info).chain(actions).map(Value::to_string).collect();
        let path = self.log(SILVER, version);
        fs::write(&path, lines.join("\n")).expect("writable");
        path
    }

    /// An action of silver's first commit.
    fn made_with(&self, action: &str) -> Value {
        let text = fs::read_to_string(self.log(SILVER, 0)).expect("version 0");
        let actions = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        actions.into_iter().find(|found| found.get(action).is_some()).expect("it is in version 0")
    }

    /// Silver's metadata with another schema.
    fn with_fields(&self, change: impl Fn(&mut Vec<Value>)) -> Value {
        let mut metadata = self.made_with("metaData");
        let text = metadata["metaData"]["schemaString"].as_str().expect("a schema");
        let mut schema: Value = serde_json::from_str(text).expect("JSON");
        change(schema["fields"].as_array_mut().expect("fields"));
        metadata["metaData"]["schemaString"] = schema.to_string().into();
        metadata
    }
}

fn plans(sandbox: &Sandbox) -> usize {
    let plans = fs::read_dir(sandbox.path().join("checkpoints/orders/offsets")).expect("plans").flatten();
    plans.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "json")).count()
}

/// What somebody does with another library.
fn other<F: Future<Output = ()>>(table: &Path, work: impl FnOnce(deltalake::DeltaTable) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let url = url::Url::from_directory_path(table).expect("absolute");
        work(deltalake::open_table(url).await.expect("a table")).await;
    });
}

fn restore(table: &Path, version: i64) {
    other(table, async |table| {
        table.restore().with_version_to_restore(version as u64).await.map(drop).expect("restorable");
    });
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("readable").flatten() {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).expect("copied")),
        }
    }
}

#[test]
fn rows_that_others_changed_are_named_once_and_kept_in_the_record() {
    let mut lake = Lake::new("foreign-rows");
    delete(&lake.table(SILVER), "id = 'k0'");
    let version = lake::version(&lake.table(SILVER)).expect("a table");
    let status = lake.sandbox.tidegate(&["status", FILE]).run().success();
    assert!(
        status
            .stdout
            .contains(&format!("silver.orders was changed by others since its last batch: version {version}: DELETE")),
        "{}",
        status.report()
    );
    let status = lake.sandbox.tidegate(&["status", FILE, "--output", "json"]).run().success().json();
    let tables = status["tables"].as_array().expect("tables");
    let foreign = |name: &str| tables.iter().find(|table| table["name"] == name).map(|table| table["foreign"].clone());
    assert_eq!(foreign("silver.orders").expect("listed")[0]["operation"], "DELETE");
    assert_eq!(foreign("silver.orders").expect("listed")[0]["rows"], 1);
    assert_eq!(foreign("bronze.orders"), Some(json!([])));

    let run = lake.batch().success().says("others changed rows of this table").says("DELETE");
    assert_eq!(run.stderr.matches("others changed rows").count(), 1, "{}", run.report());
    let receipts = run.json()["batches"][0]["tables"].clone();
    assert_eq!(receipts["silver.orders"]["foreign"][0]["version"], version);
    assert!(receipts["bronze.orders"].get("foreign").is_none());
    let quiet = lake.batch().success();
    assert!(!quiet.stderr.contains("others changed"), "{}", quiet.report());
    // What they deleted stays deleted, and what came since is there.
    assert_eq!(lake::lines(&lake.table(SILVER), "SELECT id FROM t"), ["all", "k1", "k2", "k3"]);
}

#[test]
fn compaction_by_others_is_not_mentioned() {
    let mut lake = Lake::new("foreign-optimize");
    let before = lake::version(&lake.table("bronze/orders"));
    other(&lake.table("bronze/orders"), async |table| {
        table.optimize().await.map(drop).expect("compactable");
    });
    assert_eq!(lake::version(&lake.table("bronze/orders")), before.map(|version| version + 1), "nothing was compacted");
    let run = lake.batch().success();
    assert!(!run.stderr.contains("others"), "{}", run.report());
    lake.goes_on();
}

#[test]
fn a_restore_behind_the_last_batch_is_refused_until_it_is_undone() {
    let mut lake = Lake::new("foreign-restore");
    let last = lake::version(&lake.table(SILVER)).expect("a table");
    restore(&lake.table(SILVER), last - 1);
    let undo = format!("RESTORE TABLE … TO VERSION AS OF {last}");
    lake.refuses(&["table silver.orders was restored to an older version", &undo, "tidegate checkpoint verify"]);
    restore(&lake.table(SILVER), last);
    lake.goes_on();
}

#[test]
fn a_restore_to_the_last_batch_or_later_is_none_of_our_business() {
    let mut lake = Lake::new("foreign-restore-later");
    let last = lake::version(&lake.table(SILVER)).expect("a table");
    delete(&lake.table(SILVER), "id = 'k0'");
    restore(&lake.table(SILVER), last);
    lake.goes_on();
}

#[test]
fn a_dropped_table_is_refused_until_its_folder_is_back() {
    let mut lake = Lake::new("foreign-drop");
    let aside = lake.sandbox.path().join("aside");
    fs::rename(lake.table(SILVER), &aside).expect("movable");
    lake.refuses(&["table silver.orders was dropped or made anew", "from a backup", "tidegate checkpoint verify"]);
    fs::rename(aside, lake.table(SILVER)).expect("movable");
    lake.goes_on();
}

#[test]
fn a_table_made_anew_by_another_program_or_another_pipeline_is_refused() {
    let mut lake = Lake::new("foreign-anew");
    let aside = lake.sandbox.path().join("aside");
    fs::rename(lake.table(SILVER), &aside).expect("movable");
    let schema =
        "{\"type\":\"struct\",\"fields\":[{\"name\":\"id\",\"type\":\"string\",\"nullable\":true,\"metadata\":{}}]}";
    let metadata = json!({"metaData": {"id": "5b9e3f0e-0b0e-4d4e-9f5c-000000000001", "format": {"provider": "parquet", "options": {}},
        "schemaString": schema, "partitionColumns": [], "configuration": {}, "createdTime": 0}});
    let protocol = json!({"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}});
    lake.sandbox
        .write(&format!("lake/{SILVER}/_delta_log/00000000000000000000.json"), &format!("{protocol}\n{metadata}"));
    lake.refuses(&["table silver.orders was dropped or made anew"]);
    fs::remove_dir_all(lake.table(SILVER)).expect("deletable");

    let text = fs::read_to_string(lake.sandbox.path().join(FILE)).expect("the pipeline");
    let billing = text.replace("name: orders", "name: billing").replace("bronze.orders", "bronze.bills");
    let billing = billing.replace("silver.copy", "silver.bills").replace("dlq.orders", "dlq.bills");
    lake.sandbox.write("billing.yaml", &billing);
    lake.sandbox.drain("billing.yaml").success();
    lake.refuses(&["table silver.orders was dropped or made anew"]);
    fs::remove_dir_all(lake.table(SILVER)).expect("deletable");
    fs::rename(aside, lake.table(SILVER)).expect("movable");
    lake.goes_on();
}

#[test]
fn create_or_replace_keeps_the_log_and_is_refused_all_the_same() {
    let mut lake = Lake::new("foreign-replace");
    let mut metadata = lake.made_with("metaData");
    metadata["metaData"]["configuration"] = json!({});
    let entry = lake.commit(&[metadata]);
    lake.refuses(&["table silver.orders was replaced", "RESTORE TABLE", "tidegate checkpoint verify"]);
    fs::remove_file(entry).expect("deletable");
    lake.goes_on();
}

#[test]
fn yesterdays_copy_of_a_table_is_refused_until_the_newest_one_is_back() {
    let mut lake = Lake::new("foreign-copy");
    let (old, new) = (lake.sandbox.path().join("old"), lake.sandbox.path().join("new"));
    let last = lake::version(&lake.table(SILVER)).expect("a table");
    copy(&lake.table(SILVER), &old);
    fs::remove_file(old.join("_delta_log").join(format!("{last:020}.json"))).expect("deletable");
    fs::rename(lake.table(SILVER), &new).expect("movable");
    fs::rename(old, lake.table(SILVER)).expect("movable");
    lake.refuses(&[
        "table silver.orders holds batch 0 only",
        "replaced by an older copy",
        "tidegate checkpoint verify",
    ]);
    fs::remove_dir_all(lake.table(SILVER)).expect("deletable");
    fs::rename(new, lake.table(SILVER)).expect("movable");
    lake.goes_on();
}

#[test]
fn a_log_with_a_gap_or_a_broken_entry_is_named() {
    let mut lake = Lake::new("foreign-gap");
    for contents in [None, Some(""), Some("{\"add\":")] {
        let entry = lake.log(SILVER, 1);
        let text = fs::read_to_string(&entry).expect("readable");
        match contents {
            None => fs::remove_file(&entry).expect("deletable"),
            Some(broken) => fs::write(&entry, broken).expect("writable"),
        }
        lake.refuses(&["silver", "_delta_log", "from a backup"]);
        fs::write(&entry, text).expect("writable");
    }
    lake.goes_on();
}

#[test]
fn changes_that_the_pipeline_cannot_live_with_are_refused_before_a_batch_begins() {
    let mut lake = Lake::new("foreign-schema");
    let protocol = |reader: &[&str], writer: &[&str]| json!({"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": reader, "writerFeatures": writer}});
    let property = |key: &str, value: &str| {
        let mut metadata = lake.made_with("metaData");
        metadata["metaData"]["configuration"][key] = value.into();
        metadata
    };
    let field = |name: &str, kind: &str, nullable: bool, metadata: Value| json!({"name": name, "type": kind, "nullable": nullable, "metadata": metadata});
    let retyped = |fields: &mut Vec<Value>| {
        let amount = fields.iter_mut().find(|field| field["name"] == "amount").expect("it has one");
        amount["type"] = "string".into();
    };
    let generated = json!({"delta.generationExpression": "amount + 1"});
    let mut mapped = lake.with_fields(|fields| {
        for (id, field) in fields.iter_mut().enumerate() {
            let physical = field["name"].clone();
            field["metadata"] = json!({"delta.columnMapping.id": id + 1, "delta.columnMapping.physicalName": physical});
        }
    });
    mapped["metaData"]["configuration"]["delta.columnMapping.mode"] = "name".into();
    let cases: Vec<(Vec<Value>, &[&str])> = vec![
        (vec![property("delta.enableChangeDataFeed", "true")], &["change data feed", "SET TBLPROPERTIES"]),
        (
            vec![protocol(&["deletionVectors"], &["deletionVectors"]), property("delta.enableDeletionVectors", "true")],
            &["deletion vectors", "REORG TABLE"],
        ),
        (
            vec![property("delta.constraints.positive", "amount > 0")],
            &["check constraints", "DROP CONSTRAINT positive"],
        ),
        (vec![property("delta.appendOnly", "true")], &["append-only", "'delta.appendOnly' = 'false'"]),
        (vec![protocol(&["columnMapping"], &["columnMapping"]), mapped], &["column mapping", "RESTORE"]),
        (
            vec![protocol(&[], &["rowTracking", "domainMetadata"])],
            &["features of Delta", "DROP FEATURE", "RowTracking"],
        ),
        (vec![protocol(&[], &["somethingNew"])], &["features of Delta", "DROP FEATURE", "somethingNew"]),
        (vec![protocol(&["somethingNew"], &["somethingNew"])], &["somethingNew"]),
        (vec![protocol(&[], &["identityColumns"])], &["features of Delta", "IdentityColumns"]),
        (vec![lake.with_fields(retyped)], &["disagree about columns", "amount: table has Utf8, pipeline wants Int32"]),
        (
            vec![lake.with_fields(|fields| fields.push(field("needed", "string", false, json!({}))))],
            &["needed: table has Utf8 not null, pipeline does not write it"],
        ),
        (
            vec![lake.with_fields(|fields| fields.push(field("twice", "integer", true, generated.clone())))],
            &["a computed or checked column"],
        ),
        (
            vec![lake.with_fields(|fields| fields.retain(|field| field["name"] != "amount"))],
            &["dropped columns of table silver.orders", "amount", "RESTORE TABLE"],
        ),
    ];
    for (actions, texts) in cases {
        let entry = lake.commit(&actions);
        lake.refuses(texts);
        fs::remove_file(entry).expect("deletable");
    }
    // Harmless: a column that others added, and a comment.
    let entry = lake.with_fields(|fields| fields.push(field("note", "string", true, json!({"comment": "theirs"}))));
    lake.commit(&[entry]);
    lake.goes_on();
}
