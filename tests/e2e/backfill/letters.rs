//! Dead letters whose records a backfill has brought are settled by it; all others stay as they were, and can be replayed.
//! Whatever dies in between, every record is in every table once.

use serde_json::json;

use crate::support::sandbox::Outcome;
#[cfg(feature = "failpoints")]
use crate::support::sandbox::Running;
use crate::support::{Sandbox, lake};

const FILE: &str = "orders.yaml";
const TABLES: [&str; 3] = ["silver/log", "silver/more", "silver/sales"];

/// Four sales, three of which a rule sets aside until it is mended: one of the 17th, one of the 18th, one without a time.
struct Sales {
    sandbox: Sandbox,
    /// More tables.
    more: &'static str,
}

impl Sales {
    /// Read by the strict rule, then mended.
    fn new(test: &str) -> Sales {
        Sales::with(test, "")
    }

    fn with(test: &str, more: &'static str) -> Sales {
        let sales = Sales { sandbox: Sandbox::new(test), more };
        let record =
            |(id, amount, at): (&str, u32, Option<&str>)| json!({"id": id, "amount": amount, "at": at}).to_string();
        let (first, second) = (Some("2026-03-17T12:00:00Z"), Some("2026-03-18T12:00:00Z"));
        let lines = [("a", 5, first), ("b", 50, first), ("n", 50, None), ("o", 50, second)].map(record);
        sales.sandbox.write("landing/1.ndjson", &lines.map(|line| line + "\n").concat());
        sales.rule(10);
        sales.sandbox.drain(FILE).success();
        assert_eq!((sales.rows(), sales.open()), (["a", "a", "a"].map(String::from), 6));
        sales.rule(100);
        sales
    }

    /// Amounts are below this.
    fn rule(&self, most: u32) {
        let rule = format!("expect: {{small: {{check: amount < {most}, else: quarantine}}}}");
        let text = format!(
            "version: 1\nname: orders\nlake: ./lake\ncheckpoints: ./checkpoints\nsource:\n  \
             files: {{path: landing, pattern: \"*.ndjson\"}}\n  format: json\n  schema: {{id: string, \
             amount: long, at: timestamp}}\n  event_time: at\ntables:\n  bronze.orders: {{from: source, write: append}}\n  \
             silver.log:\n    from: bronze.orders\n    sql: SELECT id, amount, at FROM batch\n    {rule}\n    write: append\n  \
             silver.more:\n    from: silver.log\n    sql: SELECT id, at FROM batch\n    write: append\n  \
             silver.sales:\n    from: bronze.orders\n    sql: SELECT id, amount, at FROM batch\n    {rule}\n    \
             write: {{upsert: {{key: id, order_by: at}}}}\n{}dead_letters: {{table: dlq.orders}}\n",
            self.more
        );
        self.sandbox.write(FILE, &text);
    }

    fn run(&self, words: &[&str]) -> Outcome {
        self.sandbox.tidegate(words).run()
    }

    fn derive(&self, more: &[&str]) -> Outcome {
        let all = ["backfill", FILE, "--output", "json"];
        self.run(&[&all[..], more].concat())
    }

    fn replay(&self) -> Outcome {
        self.run(&["dlq", "replay", FILE, "--yes", "--output", "json"])
    }

    /// The ids in each table.
    fn rows(&self) -> [String; 3] {
        TABLES.map(|name| lake::lines(&self.sandbox.path().join("lake").join(name), "SELECT id FROM t").join(""))
    }

    fn open(&self) -> usize {
        let table = self.sandbox.path().join("lake/dlq/orders");
        lake::lines(&table, "SELECT dlq_id FROM t WHERE coalesce(status, 'open') = 'open'").len()
    }
}

#[test]
fn a_backfill_settles_the_letters_of_what_it_brought_and_no_others() {
    let sales = Sales::new("letters-settled");
    let done = sales.derive(&["--date", "2026-03-17"]).success().json();
    assert_eq!(done["intervals"][0]["letters_settled"], 2, "{done}");
    assert_eq!((sales.rows(), sales.open()), (["ab", "ab", "ab"].map(String::from), 4));
    let again = sales.derive(&["--date", "2026-03-17"]).success().json();
    assert_eq!(again["intervals"][0]["letters_settled"], 0, "{again}");
    // What has no time, or another day, goes on as it always could; also where nobody knows of the backfill any more.
    sales.sandbox.remove("checkpoints/orders/backfills");
    let replayed = sales.replay().success().json();
    assert_eq!((&replayed["pass"], &replayed["cannot"]), (&4.into(), &0.into()), "{replayed}");
    assert_eq!((sales.rows(), sales.open()), (["abno", "abno", "abno"].map(String::from), 0));
    // Days that were replayed are derived as all others.
    sales.derive(&["--from", "2026-03-17", "--to", "2026-03-19"]).success();
    assert_eq!((sales.rows(), sales.open()), (["abno", "abno", "abno"].map(String::from), 0));
}

#[test]
fn a_letter_that_was_given_up_and_came_back_is_settled_and_one_that_fails_again_stays() {
    let sales = Sales::new("letters-given-up");
    sales.run(&["dlq", "discard", FILE, "--table", "silver.log", "--yes"]).success();
    sales.derive(&["--date", "2026-03-17"]).success();
    assert_eq!(sales.rows(), ["ab", "ab", "ab"].map(String::from));
    let replayed =
        sales.run(&["dlq", "replay", FILE, "--status", "discarded", "--yes", "--output", "json"]).success().json();
    assert_eq!(replayed["pass"], 2, "{replayed}");
    assert_eq!(sales.rows(), ["abno", "abno", "ab"].map(String::from));
    sales.rule(20);
    sales.derive(&["--date", "2026-03-18"]).success();
    // Set aside again in the log; an upsert keeps what it has.
    assert_eq!(sales.rows(), ["abn", "abn", "ab"].map(String::from));
    sales.rule(100);
    sales.derive(&["--date", "2026-03-18"]).success();
    assert_eq!((sales.rows(), sales.open()), (["abno", "abno", "abo"].map(String::from), 1));
}

#[test]
fn a_letter_that_stands_for_tables_that_were_derived_in_part_is_kept_until_all_are() {
    let sales = Sales::new("letters-part");
    sales.derive(&["--date", "2026-03-17", "--tables", "silver.log"]).success();
    assert_eq!((sales.rows(), sales.open()), (["ab", "a", "a"].map(String::from), 6));
    let held = sales.replay().success().json();
    // Which of them the backfill has brought is not known: all letters of that table wait.
    assert_eq!((&held["pass"], &held["cannot"]), (&3.into(), &3.into()), "{held}");
    assert_eq!((sales.rows(), sales.open()), (["ab", "a", "abno"].map(String::from), 3));
    sales.derive(&["--date", "2026-03-17"]).success();
    let replayed = sales.replay().success().json();
    assert_eq!((&replayed["pass"], &replayed["cannot"]), (&2.into(), &0.into()), "{replayed}");
    assert_eq!((sales.rows(), sales.open()), (["abno", "abno", "abno"].map(String::from), 0));
}

#[cfg(feature = "failpoints")]
#[test]
fn killed_before_letters_are_settled_a_backfill_keeps_replays_out_until_it_is_finished() {
    let points = ["apply@1", "applied@1", "applied@2", "applied@3", "prepared@4", "apply@4", "applied@4", "commit@1"];
    for point in points {
        let sales = Sales::new(&format!("letters-{}", point.replace('@', "-")));
        let command = sales.sandbox.tidegate(&["backfill", FILE, "--date", "2026-03-17"]);
        let killed = command.env("TIDEGATE_FAIL", &format!("{point}=kill")).run();
        assert!(killed.status.code().is_none(), "{point}\n{}", killed.report());
        let (rows, open) = (sales.rows(), sales.open());
        println!("{point}: {rows:?}, {open} open");
        let refused = sales.replay().code(&[75]).says("a backfill of 2026-03-17 was begun and is not finished");
        assert_eq!((sales.rows(), sales.open()), (rows, open), "{point}");
        // What is said is typed.
        let line = refused.stderr.lines().find_map(|line| line.split_once("tidegate backfill ")).expect("a command").1;
        assert!(line.ends_with("--resume") || line.contains("--resume"), "{line}");
        let words: Vec<&str> = ["backfill"].into_iter().chain(line.split_whitespace()).collect();
        sales.run(&words).success();
        assert_eq!((sales.rows(), sales.open()), (["ab", "ab", "ab"].map(String::from), 4), "{point}");
        sales.replay().success();
        assert_eq!((sales.rows(), sales.open()), (["abno", "abno", "abno"].map(String::from), 0), "{point}");
    }
}

#[cfg(feature = "failpoints")]
#[test]
fn letters_are_not_replayed_while_days_are_derived() {
    let sales = Sales::new("letters-beside");
    let gate = sales.sandbox.path().join("gate");
    let command = sales.sandbox.tidegate(&["backfill", FILE, "--date", "2026-03-17"]);
    let running = command.env("TIDEGATE_FAIL", &format!("plan@1=pause={}", gate.display())).start();
    while !gate.with_extension("reached").exists() {
        assert!(!running.ended(), "{}", running.stderr());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    sales.replay().code(&[75]).says("a backfill of pipeline `orders` is at work");
    #[allow(clippy::disallowed_methods, reason = "a test's own files need no durability")]
    std::fs::write(&gate, "").expect("a file");
    running.finish(std::time::Duration::from_secs(120)).expect("it goes on").success();
    sales.replay().success();
    assert_eq!((sales.rows(), sales.open()), (["abno", "abno", "abno"].map(String::from), 0));
}

/// Starts a `dlq` command that has chosen its letters when it stops at the gate.
#[cfg(feature = "failpoints")]
fn chosen(sales: &Sales, words: &[&str]) -> (Running, std::path::PathBuf) {
    let gate = sales.sandbox.path().join("gate");
    let all = [&["dlq", words[0], FILE, "--output", "json"], &words[1..]].concat();
    // The first file of rows that it reads is one of dead letters.
    let command = sales.sandbox.tidegate(&all).env("TIDEGATE_FAIL", &format!("data.get@1=pause={}", gate.display()));
    let running = command.start();
    while !gate.with_extension("reached").exists() {
        assert!(!running.ended(), "{}", running.stderr());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    (running, gate)
}

#[cfg(feature = "failpoints")]
fn let_go(running: Running, gate: &std::path::Path) -> Outcome {
    #[allow(clippy::disallowed_methods, reason = "a test's own files need no durability")]
    std::fs::write(gate, "").expect("a file");
    running.finish(std::time::Duration::from_secs(120)).expect("it goes on").success()
}

#[cfg(feature = "failpoints")]
#[test]
fn no_day_is_derived_once_a_replay_has_begun_to_choose_its_letters() {
    let sales = Sales::new("letters-chosen");
    let (running, gate) = chosen(&sales, &["replay", "--yes"]);
    // Done before the letters are replayed, it would settle some that are chosen for it.
    let derived = sales.derive(&["--date", "2026-03-17"]);
    let_go(running, &gate);
    assert_eq!((sales.rows(), sales.open()), (["abno", "abno", "abno"].map(String::from), 0));
    derived.code(&[75]).says("or a replay of its dead letters");
}

#[cfg(feature = "failpoints")]
#[test]
fn a_letter_that_a_backfill_settles_after_it_was_chosen_is_left_alone() {
    let sales = Sales::new("letters-tried");
    let (running, gate) = chosen(&sales, &["replay"]);
    sales.derive(&["--date", "2026-03-17"]).success();
    let tried = let_go(running, &gate).json();
    assert_eq!((&tried["letters"], &tried["pass"], &tried["cannot"]), (&6.into(), &4.into(), &2.into()), "{tried}");

    let sales = Sales::new("letters-discarded");
    let (running, gate) = chosen(&sales, &["discard", "--yes"]);
    sales.derive(&["--date", "2026-03-17"]).success();
    let_go(running, &gate);
    let table = sales.sandbox.path().join("lake/dlq/orders");
    let statuses = lake::lines(&table, "SELECT status, count(*) FROM t GROUP BY status ORDER BY status");
    assert_eq!(statuses, ["discarded|4", "replayed|2"]);
    // Given up, they could be replayed, and their records are there.
    sales.run(&["dlq", "replay", FILE, "--status", "discarded", "--yes"]).success();
    assert_eq!(sales.rows(), ["abno", "abno", "abno"].map(String::from));
}

/// A table that reads another one whole: what it sets aside is known last.
#[cfg(feature = "failpoints")]
const LAST: &str = "  silver.rich:\n    from: bronze.orders\n    sql: SELECT b.id, b.at FROM batch b JOIN silver.sales s ON b.id = s.id\n    \
                    expect: {known: {check: id <> 'nobody', else: quarantine}}\n    write: append\n";

#[cfg(feature = "failpoints")]
impl Sales {
    /// One more sale of the 17th, read by a rule that lets it pass, up to a point.
    fn one_more(&self, orders: &str) -> Outcome {
        let line = json!({"id": "c", "amount": 50, "at": "2026-03-17T13:00:00Z"}).to_string() + "\n";
        self.sandbox.write("landing/2.ndjson", &line);
        self.rule(100);
        let words = ["run", FILE, "--trigger", "available_now", "--output", "json"];
        self.sandbox.tidegate(&words).env("TIDEGATE_FAIL", orders).run()
    }

    /// Every record is in the log, or has an open letter that says why it is not.
    #[track_caller]
    fn assert_none_is_nowhere(&self, log: &str) {
        let table = |name: &str| self.sandbox.path().join("lake").join(name);
        let letters = "SELECT topic, \"offset\" FROM t WHERE \"table\" = 'silver.log' AND status = 'open'";
        let letters = lake::lines(&table("dlq/orders"), letters);
        let records = lake::lines(&table("bronze/orders"), "SELECT _topic, _offset, id FROM t");
        assert_eq!(self.rows()[0], log);
        let id = |record: &String| record.rsplit_once('|').map(|(place, id)| (place.to_string(), id.to_string()));
        let set_aside = records.iter().filter_map(id).filter(|(_, id)| !log.contains(id.as_str()));
        assert_eq!(letters, set_aside.map(|(place, _)| place).collect::<Vec<_>>());
    }
}

#[cfg(feature = "failpoints")]
#[test]
fn a_row_that_a_live_batch_lets_pass_between_the_letters_and_the_tables_of_a_day_has_a_letter_when_it_goes() {
    for action in ["pause", "kill"] {
        let sales = Sales::new(&format!("letters-late-{action}"));
        sales.rule(5);
        let gate = sales.sandbox.path().join("gate");
        let order = match action {
            "pause" => format!("applied@1=pause={}", gate.display()),
            _ => "applied@1=kill".to_string(),
        };
        let command = sales.sandbox.tidegate(&["backfill", FILE, "--date", "2026-03-17", "--output", "json"]);
        let running = command.env("TIDEGATE_FAIL", &order).start();
        while !gate.with_extension("reached").exists() && !running.ended() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        // The letters are there, and no table is written.
        assert_eq!((sales.rows()[0].as_str(), sales.open()), ("a", 8), "{}", running.stderr());
        sales.one_more("").success();
        assert_eq!(sales.rows()[0], "ac");
        sales.rule(5);
        let done = match action {
            "pause" => let_go(running, &gate).json(),
            _ => {
                let killed = running.finish(std::time::Duration::from_secs(60)).expect("it was killed");
                assert!(killed.status.code().is_none(), "{}", killed.report());
                sales.derive(&["--date", "2026-03-17", "--resume"]).success().json()
            }
        };
        sales.assert_none_is_nowhere("");
        let of_both = if action == "pause" { 4 } else { 2 };
        assert_eq!(done["intervals"][0]["dead_letters"], of_both, "{done}");
        // Derived again by the mended rule, all of them are settled.
        sales.rule(100);
        sales.derive(&["--date", "2026-03-17"]).success();
        sales.assert_none_is_nowhere("abc");
    }
}

#[cfg(feature = "failpoints")]
#[test]
fn letters_of_a_live_batch_that_has_not_set_its_own_aside_yet_are_waited_for_and_none_is_lost() {
    let sales = Sales::with("letters-last", LAST);
    // The log has the batch, and the dead letters have not.
    let killed = sales.one_more("applied@2=kill");
    assert!(killed.status.code().is_none(), "{}", killed.report());
    assert_eq!(sales.rows()[0], "ac");
    sales.rule(5);
    let day = ["--date", "2026-03-17", "--tables", "silver.log"];
    let refused = sales.derive(&day).code(&[75]).says("batch 1 of the live run is not finished");
    refused.says("--resume");
    sales.rule(100);
    sales.sandbox.drain(FILE).success();
    sales.rule(5);
    sales.derive(&[&day[..], &["--resume"]].concat()).success();
    sales.assert_none_is_nowhere("");
}
