//! What goes, and what stays.

use super::*;

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
    assert!(!world.in_paths("lake").is_empty(), "a partition is named after the person");
    // Nothing is left to do but the files.
    let vacuumed = world.forget_json(&["--key", KEY, "--yes", "--containing", "--vacuum"]);
    assert_eq!(vacuumed["status"], "no_change", "{vacuumed}");
    assert_eq!(world.on_disk("lake"), Vec::<PathBuf>::new());
    assert_eq!(world.in_paths("lake"), Vec::<PathBuf>::new());
    world.assert_tables(of_person(&world.files, true));
    world.sandbox.tidegate(&["checkpoint", "verify", FILE]).run().success();
    world.drain().success();
}

#[test]
fn all_at_once_and_what_the_logs_still_name_is_said() {
    let mut world = World::new("at-once");
    world.land(60);
    world.drain().success();
    let done = world.forget_json(&["--key", KEY, "--yes", "--containing", "--vacuum"]);
    assert_eq!(world.on_disk("lake"), Vec::<PathBuf>::new());
    assert_eq!(world.in_paths("lake"), Vec::<PathBuf>::new());
    world.assert_tables(of_person(&world.files, true));
    // What is left is in logs, and the receipt tells which.
    let [files, receipt] = &world.receipts()[..] else { panic!("two receipts: {:?}", world.receipts()) };
    let entries = || ["tables", "recomputed"].into_iter().flat_map(|list| receipt[list].as_array().expect("a list"));
    let named: BTreeSet<String> = entries()
        .filter(|entry| !entry["log"].is_null())
        .map(|entry| entry["name"].as_str().expect("a name").to_string())
        .collect();
    let found = world.in_logs();
    assert!(found.contains("bronze.orders"), "statistics have the name: {found:?}");
    assert!(found.is_subset(&named), "{found:?} {named:?}");
    let log = |name: &str| entries().find(|entry| entry["name"] == name).expect("an entry")["log"].clone();
    assert_eq!(log("bronze.orders")["statistics"], json!(["customer"]));
    assert_eq!(log("silver.customers")["partitions"], json!(["customer"]));
    assert_eq!(log("gold.stores"), Value::Null);
    let date = |text: &Value| chrono::DateTime::parse_from_rfc3339(text.as_str().expect("text")).expect("a time");
    let days = date(&log("bronze.orders")["leaves_after"]) - date(&receipt["forgotten_at"]);
    assert_eq!(days.num_days(), 30, "delta.logRetentionDuration");
    assert_eq!(entries().find(|entry| entry["files_leave_by"] != "tidegate forget --vacuum"), None);
    assert_eq!((&files["batch"], done["vacuumed"].as_array().map(Vec::len)), (&done["batch"], Some(7)), "{files}");
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
