//! Storage that fails, stalls, fills up, loses replies and tears: the run ends well or with a clear error, and the next
//! one makes everything right.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tidegate::fail;

use super::matrix::{Place, Setup, places};
use super::world::{Case, assert_killed, cases, each, random, sample, try_all};

/// A request that goes wrong.
#[derive(Clone)]
struct Fault {
    place: Place,
    action: &'static str,
    remote: bool,
}

impl Fault {
    fn orders(&self) -> String {
        self.place.orders(self.action)
    }

    fn name(&self) -> String {
        format!("{}{}", self.orders(), if self.remote { " on a remote store" } else { "" })
    }

    fn case(&self) -> Case {
        let case = self.place.case("fault");
        if self.remote { case.with("TIDEGATE_FAIL_REMOTE", "1") } else { case }
    }

    /// Where the run itself must find out how a request ended, or can do without it.
    fn is_settled_by_the_run(&self) -> bool {
        // A commit was refused on the way there, and that may end the run.
        if self.place.setup == Setup::Refused {
            return false;
        }
        let point = self.place.point;
        match self.action {
            "slow=30" => true,
            // What is there already is its own.
            "resent" => true,
            // A log that seems to be broken is looked at again.
            "gap" => true,
            // The plan or the record is looked for and found, or written again.
            "lost" | "error" | "full" if [fail::PLAN_PUT, fail::COMMIT_PUT].contains(&point) => true,
            "lost" if [fail::LOG_PUT, fail::MEMORY_LOG_PUT].contains(&point) => true,
            // On an object store no error says that nothing was done: the run looks, and does it again. (A table that
            // could not be made has no rows to be in doubt about: the first ten commits make five tables.)
            "error" if point == fail::LOG_PUT && self.remote => self.place.hit > 10,
            // Only slower to read without.
            _ => {
                [fail::SNAPSHOT_PUT, fail::MEMORY_SNAPSHOT_PUT, fail::PLAN_DELETE, fail::COMMIT_DELETE].contains(&point)
            }
        }
    }
}

/// Every request at every hit with everything that can go wrong with it.
fn faults() -> Vec<Fault> {
    let mut faults = Vec::new();
    for (place, hits) in places() {
        let operation = place.point.rsplit('.').next().unwrap_or_default();
        let actions: &[&str] = match operation {
            "put" | "part" | "complete" => &["error", "lost", "full", "slow=30", "torn"],
            "begin" | "delete" => &["error", "lost", "full", "slow=30"],
            "list" if [fail::LOG_LIST, fail::MEMORY_LOG_LIST].contains(&place.point) => &["error", "slow=30", "gap"],
            "get" | "list" => &["error", "slow=30"],
            _ => continue,
        };
        for hit in 1..=hits {
            for &action in actions {
                // What a slow read shows, it shows once.
                let is_read = matches!(operation, "get" | "list");
                if !(is_read && action == "slow=30" && hit > 1) {
                    faults.push(Fault { place: Place { hit, ..place.clone() }, action, remote: false });
                }
            }
        }
        if [fail::LOG_PUT, fail::MEMORY_LOG_PUT, fail::PLAN_PUT, fail::COMMIT_PUT].contains(&place.point) {
            for (hit, action) in
                (1..=hits).flat_map(|hit| ["error", "lost", "resent", "late=2", "late=60"].map(|a| (hit, a)))
            {
                faults.push(Fault { place: Place { hit, ..place.clone() }, action, remote: true });
            }
        }
    }
    faults
}

#[test]
fn whatever_storage_does_the_run_ends_well_or_says_so_and_the_next_one_makes_it_right() {
    let mut faults = faults();
    if !try_all() {
        // Writes are what can be half done: most of the sample is theirs.
        let (writes, reads): (Vec<_>, Vec<_>) = faults
            .into_iter()
            .partition(|fault| !fault.place.point.ends_with("get") && !fault.place.point.ends_with("list"));
        let mut random = random(4);
        faults = sample(writes, cases(24), &mut random);
        faults.extend(sample(reads, cases(6), &mut random));
    }
    let ends: Mutex<BTreeMap<(&str, bool, String), u64>> = Mutex::default();
    each("storage faults", &faults, Fault::name, |fault| {
        let case = fault.case();
        let run = case.run(&fault.orders());
        let end = match fault.action {
            "torn" => {
                assert_killed(&run);
                "killed".to_string()
            }
            _ => {
                let code = run.status.code().unwrap_or(-1);
                assert!(!fault.is_settled_by_the_run() || code == 0, "not settled by the run\n{}", run.report());
                let run = run.code(&[0, 69, 75]);
                if code != 0 {
                    let is_clear = run.stderr.contains("error[TG") && run.stderr.contains("help: ");
                    assert!(is_clear, "no clear message\n{}", run.report());
                }
                format!("exit {code}")
            }
        };
        case.recover();
        let mut ends = ends.lock().expect("no thread panics here");
        *ends.entry((fault.action, fault.remote, end)).or_default() += 1;
    });
    for ((action, remote, end), count) in ends.into_inner().expect("no thread panicked here") {
        println!("  {action}{}: {count} × {end}", if remote { " (remote)" } else { "" });
    }
    println!("storage faults: {} cases; 0 rows lost, doubled or changed", faults.len());
}

#[test]
fn a_full_disk_is_called_a_full_disk_and_nothing_is_tried_again() {
    for point in [fail::PLAN_PUT, fail::LOG_PUT, fail::DATA_PUT, fail::MEMORY_LOG_PUT, fail::COMMIT_PUT] {
        let case = Case::new("full");
        let run = case.run(&format!("{point}@*=full")).code(&[69]);
        run.says("disk full").says("free some space");
        case.recover();
    }
}

#[test]
fn a_reply_lost_inside_a_commit_is_settled_in_the_same_run() {
    for (remote, hit) in [(false, 2), (false, 9), (true, 3)] {
        let place = Place { point: fail::LOG_PUT, hit, setup: Setup::Plain };
        let fault = Fault { place, action: "lost", remote };
        let case = fault.case();
        let run = case.run(&fault.orders()).success();
        case.check(&run);
        case.nothing_left();
    }
}

/// The client of an object store sends a request again when its reply was lost; a commit is then told that its version
/// exists already, and that version is its own.
#[test]
fn a_commit_that_was_sent_twice_is_known_as_its_own() {
    for point in [fail::LOG_PUT, fail::MEMORY_LOG_PUT, fail::PLAN_PUT, fail::COMMIT_PUT] {
        let case = Case::new("resent").with("TIDEGATE_FAIL_REMOTE", "1");
        let run = case.run(&format!("{point}@*=resent")).success();
        case.check(&run);
        case.nothing_left();
    }
}

/// A folder that is listed while it is written into may show an entry and not the one before it.
#[test]
fn a_log_that_was_listed_with_a_gap_is_listed_again_and_one_that_has_a_gap_is_refused() {
    let commands: [&[&str]; 4] = [
        &["run", "orders.yaml", "--trigger", "available_now"],
        &["status", "orders.yaml"],
        &["query", "orders.yaml", "SELECT count(*) AS n FROM silver.orders"],
        &["checkpoint", "verify", "orders.yaml"],
    ];
    let case = Case::new("gap");
    let run = |arguments: &[&str], orders: &str| {
        let arguments = [arguments, &["--output", "json"]].concat();
        case.sandbox.tidegate(&arguments).env("TIDEGATE_FAIL", orders).run()
    };
    // Without the checkpoints of the logs that cases write more often than is usual: no entry before one is missed.
    run(commands[0], "").success();
    for command in commands {
        for hit in 1..=6 {
            run(command, &format!("log.list@{hit}=gap")).success();
        }
        let refused = run(command, "log.list@*=gap");
        assert!(!refused.status.success(), "{}", refused.report());
    }
    // While rows are written.
    for hit in [3, 9, 20] {
        let case = Case::new("gap-run");
        let run = case.run(&format!("log.list@{hit}=gap")).success();
        case.check(&run);
        case.nothing_left();
    }
}
