//! Repetitions are left out and two streams are joined, exactly, however often the run dies: the real binary on two folders
//! of files, and an oracle that sees the files only. `TIDEGATE_JOIN_CASES` makes it longer.

use std::collections::BTreeMap;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::support::{Sandbox, lake, number, seed};

const FILE: &str = "joins.yaml";
const YAML: &str = include_str!("joins.yaml");

/// 2026-03-17T00:00:00Z.
const START: i64 = 1_773_705_600;
const DAY: i64 = 86_400;
const MINUTE: i64 = 60;

#[derive(Clone)]
struct Row {
    event: String,
    order: Option<String>,
    at: i64,
    n: i64,
}

struct World {
    sandbox: Sandbox,
    random: ChaCha8Rng,
    /// Lines of each file, by folder and file.
    files: BTreeMap<(&'static str, u32), Vec<Row>>,
    /// Where each file's time is.
    now: i64,
    count: i64,
    /// Rows that come too late for everything.
    late: usize,
}

impl World {
    fn new(case: u64) -> World {
        let sandbox = Sandbox::in_memory(&format!("joins-{case}"));
        sandbox.write(FILE, YAML);
        let random = ChaCha8Rng::seed_from_u64(seed() ^ case);
        let mut world = World { sandbox, random, files: BTreeMap::new(), now: START, count: 0, late: 0 };
        // Every file is part of the first batch: one that nobody has seen holds no time back.
        for (folder, file) in [("orders", 0), ("orders", 1), ("payments", 0), ("payments", 1)] {
            world.count += 1;
            let row = Row { event: format!("{file}-first"), order: None, at: START, n: world.count };
            world.files.insert((folder, file), vec![row]);
        }
        world.write();
        world.run(false, 0);
        world
    }

    /// Some minutes of events, less than the delay out of order.
    fn land(&mut self, rows: usize) {
        for _ in 0..rows {
            self.now += self.random.random_range(0..40);
            let folder = if self.random.random_bool(0.5) { "orders" } else { "payments" };
            let file = self.random.random_range(0..2);
            let at = self.now - self.random.random_range(0..2 * MINUTE);
            let known = self.files.entry((folder, file)).or_default();
            self.count += 1;
            let recent = known.len().saturating_sub(6);
            let again = known[recent..].last().filter(|_| folder == "orders" && self.random.random_bool(0.3)).cloned();
            let again = again.filter(|row| (row.at - at).abs() < 3 * MINUTE);
            let row = match again {
                Some(row) => Row { at, n: self.count, ..row },
                None => Row {
                    // The same names come again every day, which is no repetition.
                    event: format!("{file}-{}", (self.now % DAY) / (2 * MINUTE)),
                    order: self.random.random_bool(0.92).then(|| format!("o{}", self.random.random_range(0..7))),
                    at,
                    n: self.count,
                },
            };
            known.push(row);
        }
        self.write();
    }

    fn write(&self) {
        let time = |at: i64| chrono::DateTime::from_timestamp(at, 0).expect("a time").to_rfc3339();
        for ((folder, file), rows) in &self.files {
            let line = |row: &Row| match *folder {
                "orders" => json!({"event": row.event, "order_id": row.order, "at": time(row.at), "n": row.n}),
                _ => json!({"order_id": row.order, "at": time(row.at), "n": row.n}),
            };
            let text: String = rows.iter().map(|row| format!("{}\n", line(row))).collect();
            self.sandbox.write(&format!("{folder}/f{file}.ndjson"), &text);
        }
    }

    /// Runs that die anywhere, then one that does not.
    fn run(&mut self, flush: bool, kills: usize) -> usize {
        let mut arguments = vec!["run", FILE, "--trigger", "available_now", "--output", "json"];
        arguments.extend(flush.then_some("--flush"));
        let mut killed = 0;
        for _ in 0..kills {
            let order = format!("*@{}=kill", self.random.random_range(1..400));
            let run =
                self.sandbox.tidegate(&arguments).env("TIDEGATE_FAIL", &order).env("TIDEGATE_FAIL_SMALL", "1").run();
            assert!(run.status.success() || run.status.code().is_none(), "{}", run.report());
            killed += usize::from(run.status.code().is_none());
        }
        self.sandbox.tidegate(&arguments).env("TIDEGATE_FAIL_SMALL", "1").run().success();
        killed
    }

    /// Orders that do not repeat an earlier line of their file (events have the file in their name).
    fn orders(&self) -> Vec<&Row> {
        let mut kept: Vec<&Row> = Vec::new();
        for row in self.files.iter().filter(|((folder, _), _)| *folder == "orders").flat_map(|(_, rows)| rows) {
            if !kept.iter().any(|known| known.event == row.event && (known.at - row.at).abs() < 60 * MINUTE) {
                kept.push(row);
            }
        }
        kept.retain(|row| row.event != "late");
        kept
    }

    #[track_caller]
    fn check(&self, closed: bool) {
        let table = |name: &str| self.sandbox.path().join("lake").join(name);
        let orders = self.orders();
        let mut expected: Vec<String> = orders.iter().map(|row| row.n.to_string()).collect();
        expected.sort_unstable();
        lake::assert_same("bronze.orders", &expected, &lake::lines(&table("bronze/orders"), "SELECT n FROM t"));
        let payments = self.files.iter().filter(|((folder, _), _)| *folder == "payments").flat_map(|(_, rows)| rows);
        let payments: Vec<&Row> = payments.filter(|row| row.event != "late").collect();
        let (mut matches, mut pairs) = (Vec::new(), Vec::new());
        for order in &orders {
            let partners = payments.iter().filter(|payment| {
                order.order.is_some() && payment.order == order.order && (payment.at - order.at).abs() <= 10 * MINUTE
            });
            let found: Vec<String> = partners.map(|payment| format!("{}|{}", order.n, payment.n)).collect();
            pairs.extend(if found.is_empty() { vec![format!("{}|{}", order.n, lake::NULL)] } else { found.clone() });
            matches.extend(found);
        }
        matches.sort_unstable();
        pairs.sort_unstable();
        let stored = lake::lines(&table("silver/matches"), "SELECT n, payments_n FROM t");
        lake::assert_same("silver.matches", &matches, &stored);
        let stored = lake::lines(&table("silver/pairs"), "SELECT n, payments_n FROM t");
        let is_alone = |line: &&String| line.ends_with(lake::NULL);
        match closed {
            true => lake::assert_same("silver.pairs", &pairs, &stored),
            false => {
                let paired: Vec<String> = stored.iter().filter(|line| !is_alone(line)).cloned().collect();
                lake::assert_same("pairs of silver.pairs", &matches, &paired);
                // What is out alone was alone for good: so far, the last of them wait.
                let mut alone: Vec<&String> = stored.iter().filter(is_alone).collect();
                assert!(alone.iter().all(|line| pairs.contains(line)));
                alone.dedup();
                assert_eq!(alone.len() + paired.len(), stored.len(), "twice");
            }
        }
        let dead = match self.late {
            0 => Vec::new(),
            _ => lake::lines(&table("dlq/orders"), "SELECT \"table\", rule FROM t"),
        };
        let late = ["bronze.orders|late", "silver.matches|late", "silver.pairs|late"].map(str::to_string);
        let mut expected: Vec<String> =
            late.iter().flat_map(|line| std::iter::repeat_n(line.clone(), self.late)).collect();
        expected.sort_unstable();
        lake::assert_same("dead letters", &expected, &dead);
    }

    /// One order and one payment of the day before yesterday.
    fn land_late(&mut self) {
        for folder in ["orders", "payments"] {
            self.count += 1;
            let row = Row { event: "late".into(), order: Some("o1".into()), at: START - 2 * DAY, n: self.count };
            self.files.entry((folder, 0)).or_default().push(row);
        }
        self.late += 1;
        self.write();
    }
}

/// Three days: of each some events in two parts, then everything is closed.
#[test]
fn repetitions_are_left_out_and_streams_joined_exactly_through_crashes() {
    println!("TIDEGATE_SEED={}", seed());
    let kills = if cfg!(feature = "failpoints") { 2 } else { 0 };
    let mut killed = 0;
    let cases = number("TIDEGATE_JOIN_CASES").unwrap_or(1);
    for case in 0..cases {
        let mut world = World::new(case);
        for day in 0..3 {
            world.now = START + day * DAY;
            let rows = world.random.random_range(40..70);
            world.land(rows);
            if day > 0 {
                world.land_late();
            }
            killed += world.run(false, kills);
            world.check(false);
            world.land(rows);
            killed += world.run(true, kills);
            world.check(true);
        }
        // A run that finds nothing changes nothing.
        let before = lake::version(&world.sandbox.path().join("lake/silver/pairs"));
        world.run(true, 0);
        assert_eq!(lake::version(&world.sandbox.path().join("lake/silver/pairs")), before);
        world.check(true);
    }
    println!("{cases} histories, {killed} kills");
    assert!(kills == 0 || killed > 0);
}

#[test]
fn columns_that_cannot_be_told_apart_or_matched_by_are_refused_where_they_are_named() {
    let sandbox = Sandbox::in_memory("joins-bad");
    sandbox.write(FILE, include_str!("joins_bad.yaml"));
    let run = sandbox.tidegate(&["validate", FILE]).run().code(&[78]);
    let report = run.report();
    for (message, place) in [
        ("the rows have no column `lane`", "dedupe: {key: [order_id, lane]"),
        ("the rows have no column `lane`", "on: [order_id, lane]"),
        ("`line` is Int32 on the left and Int64 on the right", "on: [order_id, line]"),
        ("`weight` is Float64: numbers that are rounded do not match", "on: [weight]"),
        ("both sides have a column `note`, and `payments_note` is taken", "right: payments"),
    ] {
        let found = report.split("error[").any(|problem| problem.contains(message) && problem.contains(place));
        assert!(found, "{message} at {place}\n{report}");
    }
    run.says("5 problems found; nothing was run");
}

/// One line: an order or a payment, `minutes` after the first.
fn line(order: &str, minutes: i64, rest: &str) -> String {
    let at = chrono::DateTime::from_timestamp(START + minutes * MINUTE, 0).expect("a time").to_rfc3339();
    format!("{{\"order_id\":\"{order}\",\"at\":\"{at}\"{rest}}}\n")
}

const SIDES: &str = r#"version: 1
name: orders
lake: ./lake
checkpoints: ./checkpoints
sources:
  orders:
    files: {path: orders, pattern: "*.ndjson"}
    format: json
    schema: {order_id: string, at: timestamp, n: long#LEFT}
    event_time: at
  payments:
    files: {path: payments, pattern: "*.ndjson"}
    format: json
    schema: {order_id: string, at: timestamp, payment_id: string#RIGHT}
    event_time: at
tables:
  bronze.orders:
    from: orders
    write: append
  bronze.payments:
    from: payments
    write: append
  silver.pairs:
    join: {left: bronze.orders, right: bronze.payments, on: order_id, within: 10m, type: left}
    watermark: {delay: 5m}
    write: append
    #EXPECT
dead_letters: {table: dlq.orders#LIMIT}
"#;

fn sides(left: &str, right: &str) -> String {
    let text = SIDES.replace("#LEFT", left).replace("#RIGHT", right);
    text.replace("#EXPECT", "").replace("#LIMIT", "")
}

#[test]
fn rows_that_wait_are_joined_when_a_column_has_been_added_dropped_or_renamed_by_the_other_side() {
    let sandbox = Sandbox::in_memory("joins-columns");
    let pairs = |columns: &str| {
        let sql = format!("SELECT order_id, n, payment_id, {columns} FROM t");
        lake::lines(&sandbox.path().join("lake/silver/pairs"), &sql)
    };
    sandbox.write(FILE, &sides("", ""));
    // Two batches, so that there is a file of changes.
    for n in [1, 2] {
        sandbox.write(&format!("orders/{n}.ndjson"), &line(&format!("o{n}"), 0, &format!(",\"n\":{n}")));
        sandbox.write(&format!("payments/{n}.ndjson"), &line(&format!("p{n}"), 0, &format!(",\"payment_id\":\"{n}\"")));
        sandbox.drain(FILE).success();
    }
    // A column on the right only; what waits on the left does not have it either.
    sandbox.write(FILE, &sides("", ", note: string"));
    sandbox.write("orders/3.ndjson", &(line("p1", 1, ",\"n\":3") + &line("o3", 1, ",\"n\":4")));
    let told = |id: u32| format!(",\"payment_id\":\"{id}\",\"note\":\"right {id}\"");
    sandbox.write("payments/3.ndjson", &(line("o1", 1, &told(3)) + &line("p3", 1, &told(4))));
    sandbox.drain(FILE).success();
    let null = lake::NULL;
    let mut expected = vec![format!("o1|1|3|right 3"), format!("p1|3|1|{null}")];
    lake::assert_same("a column on the right", &expected, &pairs("note"));
    // Now on the left, too: the right side's has another name in pairs, and keeps its values. The table keeps the older rows.
    sandbox.write(FILE, &sides(", note: string", ", note: string"));
    sandbox.write("orders/4.ndjson", &line("p3", 2, ",\"n\":5,\"note\":\"left 5\""));
    sandbox.write("payments/4.ndjson", &line("o2", 2, &told(6)));
    sandbox.drain(FILE).success();
    expected = vec![
        format!("o1|1|3|right 3|{null}"),
        format!("o2|2|6|{null}|right 6"),
        format!("p1|3|1|{null}|{null}"),
        format!("p3|5|4|left 5|right 4"),
    ];
    lake::assert_same("a column on both sides", &expected, &pairs("note, payments_note"));
    // And gone from the left again.
    sandbox.write(FILE, &sides("", ", note: string"));
    sandbox.write("orders/5.ndjson", &(line("p2", 3, ",\"n\":7") + &line("p3", 3, ",\"n\":8")));
    sandbox.write("payments/5.ndjson", &line("o3", 3, &told(9)));
    sandbox.drain(FILE).success();
    expected.extend([
        format!("o3|4|9|right 9|{null}"),
        format!("p2|7|2|{null}|{null}"),
        format!("p3|8|4|right 4|{null}"),
    ]);
    expected.sort_unstable();
    lake::assert_same("a column that is gone", &expected, &pairs("note, payments_note"));
}

#[test]
fn the_budget_is_about_rows_that_a_batch_reads_and_not_about_those_that_a_join_lets_go_of() {
    let sandbox = Sandbox::in_memory("joins-budget");
    let rule = "expect: {paid: {check: payment_id IS NOT NULL, else: quarantine}}";
    let text = SIDES.replace("#LEFT", "").replace("#RIGHT", "").replace("#EXPECT", rule);
    sandbox.write(FILE, &text.replace("#LIMIT", ", fail_above: 5%"));
    let dead = || lake::lines(&sandbox.path().join("lake/dlq/orders"), "SELECT stage, rule FROM t");
    let mut orders: String = (0..57).map(|n| line(&format!("o{n}"), 0, &format!(",\"n\":{n}"))).collect();
    let mut payments = String::new();
    let mut land = |order: &str, payment: &str| {
        orders.push_str(order);
        payments.push_str(payment);
        sandbox.write("orders/1.ndjson", &orders);
        sandbox.write("payments/1.ndjson", &payments);
    };
    let payment = |minutes: i64| line("none", minutes, ",\"payment_id\":\"0\"");
    land("", &payment(0));
    sandbox.drain(FILE).success();
    // A batch of two rows ends the wait of all of them, which is no sign of a wrong schema.
    land(&line("later", 30, ",\"n\":57"), &payment(30));
    sandbox.drain(FILE).success();
    assert_eq!(dead(), vec!["expect|paid".to_string(); 57]);
    // So does a batch without rows.
    let flush = ["run", FILE, "--trigger", "available_now", "--flush"];
    sandbox.tidegate(&flush).run().success();
    assert_eq!(dead().len(), 58);
    // What arrives late was read.
    land(&line("late", 0, ",\"n\":58"), "");
    sandbox.drain(FILE).code(&[65]).says("1 of 1 rows (100.0 %) would be dead letters");
}
