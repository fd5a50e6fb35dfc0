//! What tables remember between batches: keys, rows that wait for a match, open windows.

use super::*;

const FILE: &str = "shop.yaml";
const SHOP: &str = r#"
version: 1
name: shop
lake: ./lake
checkpoints: ./checkpoints
sources:
  orders:
    files: {path: orders, pattern: "*.ndjson"}
    format: json
    schema: {order_id: string, id: long, store_id: long, price: "decimal(18,2)", at: timestamp}
    event_time: at
  payments:
    files: {path: payments, pattern: "*.ndjson"}
    format: json
    schema: {order_id: string, id: long, at: timestamp}
    event_time: at
tables:
  bronze.orders:
    from: orders
    dedupe: {key: [id, order_id], within: 2h}
    write: append
  bronze.payments: {from: payments, write: append}
  silver.pairs:
    join: {left: bronze.orders, right: bronze.payments, on: order_id, within: 1h, type: left}
    watermark: {delay: 10m}
    write: append
  gold.visits:
    from: orders
    watermark: {delay: 10m}
    aggregate:
      window: {session: 30m}
      by: [id, store_id]
      measures: {n: count(*), total: sum(price)}
    emit: final
  gold.stores:
    from: orders
    watermark: {delay: 10m}
    aggregate:
      window: {tumbling: 1h}
      by: [store_id]
      measures: {n: count(*)}
    emit: update
dead_letters: {table: dlq.shop}
"#;

struct Shop {
    sandbox: Sandbox,
    files: BTreeMap<&'static str, String>,
}

impl Shop {
    fn new(test: &str) -> Shop {
        let sandbox = Sandbox::in_memory(&format!("forget-{test}"));
        sandbox.write(FILE, SHOP);
        sandbox.write("orders/.keep", "");
        sandbox.write("payments/.keep", "");
        Shop { sandbox, files: BTreeMap::new() }
    }

    /// Orders and payments of one minute of 2026-03-17T08:00Z: order, person and, of orders, the store.
    fn land(&mut self, minute: u32, orders: &[(&str, i64, i64)], payments: &[(&str, i64)]) {
        let at = format!("2026-03-17T{:02}:{:02}:00Z", 8 + minute / 60, minute % 60);
        let orders = orders.iter().map(|(order, id, store)| {
            json!({"order_id": order, "id": id, "store_id": store, "price": "7.00", "at": at}).to_string() + "\n"
        });
        let payments =
            payments.iter().map(|(order, id)| json!({"order_id": order, "id": id, "at": at}).to_string() + "\n");
        for (folder, lines) in [("orders", orders.collect::<String>()), ("payments", payments.collect())] {
            let text = self.files.entry(folder).or_default();
            text.push_str(&lines);
            self.sandbox.write(&format!("{folder}/a.ndjson"), text);
        }
    }

    fn run(&self, more: &[&str]) {
        let all = [&["run", FILE, "--trigger", "available_now"], more].concat();
        self.sandbox.tidegate(&all).run().success();
    }

    fn forget(&self, more: &[&str]) -> Outcome {
        let all = [&["forget", FILE], more].concat();
        self.sandbox.tidegate(&all).run()
    }

    fn table(&self, name: &str, sql: &str) -> Vec<String> {
        let path = self.sandbox.path().join("lake").join(name.replace('.', "/"));
        if path.join("_delta_log").exists() { lake::lines(&path, sql) } else { Vec::new() }
    }

    /// `id` and what else of a state that people may read.
    fn state(&self, sql: &str) -> Value {
        self.sandbox.tidegate(&["query", FILE, sql, "--output", "json"]).run().success().json()["rows"].clone()
    }

    fn state_files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        walk(&self.sandbox.path().join("lake/_tidegate/state"), &mut |path| files.push(path.to_path_buf()));
        files
    }
}

/// 42 is the person, and the number of a store; 7 is somebody else, who is in that store.
fn ready(test: &str) -> Shop {
    let mut shop = Shop::new(test);
    shop.land(0, &[("a", 42, 1), ("b", 7, 42)], &[("c", 42), ("d", 7)]);
    shop.run(&[]);
    shop.land(5, &[("e", 7, 42)], &[]);
    shop.run(&[]);
    shop
}

#[test]
fn entries_of_the_person_go_and_those_of_everybody_else_stay() {
    let mut shop = ready("remembered");
    assert_eq!(shop.state("SELECT count(*) AS n FROM state.silver_pairs")[0]["n"], 5, "too little waits");
    let dry = shop.forget(&["--key", "id=042"]).success();
    for (table, entries) in [("bronze.orders", 1), ("silver.pairs", 2), ("gold.visits", 1)] {
        let entries = if entries == 1 { "1 entry".to_string() } else { format!("{entries} entries") };
        assert!(
            dry.stdout.contains(&format!("what {table} remembers between batches loses {entries}")),
            "{}",
            dry.report()
        );
    }
    assert!(
        dry.stdout.contains("what gold.stores remembers between batches cannot be told apart by id"),
        "{}",
        dry.report()
    );
    let done = shop.forget(&["--key", "id=042", "--yes", "--output", "json"]).success().json();
    let gone = json!({"bronze.orders": 1, "gold.visits": 1, "silver.pairs": 2});
    assert_eq!(done["receipt"]["states"], gone, "{done:#}");
    for sql in [
        "SELECT id FROM state.bronze_orders WHERE id = 42",
        "SELECT id FROM state.silver_pairs WHERE id = 42 OR payments_id = 42",
        "SELECT id FROM state.gold_visits WHERE id = 42",
    ] {
        assert_eq!(shop.state(sql), json!([]), "{sql}");
    }
    // The answers to what waited, and repetitions of what was there.
    shop.land(10, &[("c", 9, 3), ("d", 9, 3), ("b", 7, 42), ("f", 7, 42)], &[("a", 9), ("b", 9)]);
    shop.run(&["--flush"]);
    let pairs = shop.table("silver.pairs", "SELECT order_id, id, payments_id FROM t");
    assert_eq!(pairs, ["b|7|9", "c|9|∅", "d|9|7", "e|7|∅", "f|7|∅"]);
    assert_eq!(shop.table("bronze.orders", "SELECT order_id, id FROM t"), ["b|7", "c|9", "d|9", "e|7", "f|7"]);
    let visits = shop.table("gold.visits", "SELECT id, store_id, n FROM t");
    // The repetition is one for bronze, not for who reads the source itself.
    assert_eq!(visits, ["7|42|4", "9|3|2"]);
    assert_eq!(shop.table("gold.stores", "SELECT store_id, n FROM t"), ["1|1", "3|2", "42|4"]);
}

#[test]
fn whoever_is_only_remembered_is_forgotten_too() {
    let mut shop = ready("remembered-only");
    shop.forget(&["--key", "id=42", "--tables", "bronze.orders,bronze.payments,silver.pairs", "--yes"]).success();
    assert_eq!(shop.state("SELECT id FROM state.gold_visits WHERE id = 42"), json!([{"id": 42}]), "--tables bounds it");
    let done = shop.forget(&["--key", "id=42", "--yes", "--output", "json"]).success().json();
    assert_eq!((&done["status"], &done["receipt"]["states"]["gold.visits"]), (&json!("ok"), &json!(1)), "{done:#}");
    let again = shop.forget(&["--key", "id=42", "--yes", "--output", "json"]).success().json();
    assert_eq!(again["status"], "no_change", "{again:#}");
    shop.land(10, &[("f", 7, 42)], &[]);
    shop.run(&["--flush"]);
    assert_eq!(shop.table("gold.visits", "SELECT id, store_id, n FROM t"), ["7|42|3"]);
}

#[test]
fn pairs_that_name_the_person_on_the_right_are_said_to_stay_with_the_way_to_take_them_out() {
    let mut shop = Shop::new("remembered-right");
    shop.land(0, &[("a", 7, 1)], &[("a", 42)]);
    shop.run(&[]);
    let pairs = || shop.table("silver.pairs", "SELECT id, payments_id FROM t");
    let dry = shop.forget(&["--key", "id=42"]).success();
    let says = "silver.pairs names them on the right side of its pairs, too, in 1 row, which stay: to take those out: --key \
                payments_id=42";
    assert!(dry.stdout.contains(says), "{}", dry.report());
    shop.forget(&["--key", "id=42", "--yes"]).success();
    assert_eq!(pairs(), ["7|42"]);
    shop.forget(&["--key", "payments_id=42", "--yes"]).success();
    assert_eq!(pairs(), Vec::<String>::new());
}

#[test]
fn no_old_file_of_a_state_outlives_the_receipt() {
    let kills: &[&str] =
        if cfg!(feature = "failpoints") { &["commit.put.done@1=kill", "committed@1=kill"] } else { &[] };
    for place in [""].iter().chain(kills) {
        let shop = ready("remembered-files");
        let before = shop.state_files();
        let forget = ["forget", FILE, "--key", "id=42", "--yes"];
        let run = shop.sandbox.tidegate(&forget).env("TIDEGATE_FAIL", place).run();
        if run.status.code().is_none() {
            shop.run(&[]);
        }
        let after = shop.state_files();
        // What has no column of the key is as it was.
        let is_touched = |file: &&PathBuf| !file.to_string_lossy().contains("gold.stores");
        let stay: Vec<&PathBuf> = before.iter().filter(is_touched).filter(|file| after.contains(file)).collect();
        let touched = after.iter().filter(is_touched).count();
        assert!(stay.is_empty() && touched == 3, "{place}: {stay:?} {after:?}");
    }
}
