//! `tidegate serve`: many pipelines in one process, each with its own trigger, none in the way of another. What tables hold
//! is held against what the test wrote; what pipelines did is read from `/metrics` and from the result.

#![allow(clippy::disallowed_methods, reason = "a test's own files need no durability")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::broker::{Record, broker, free_port};
use crate::support::sandbox::{Running, Tidegate};
use crate::support::{Sandbox, lake, number};

/// How long anything may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A pipeline `name` with one bronze table; `rest` is its trigger and whatever else the test wants.
fn pipeline(sandbox: &Sandbox, name: &str, source: &str, rest: &str) {
    let text = format!(
        "version: 1\nname: {name}\nsource:\n  {source}\n  format: json\n  schema: {{id: string not null, n: int}}\n\
         tables:\n  bronze.{name}:\n    from: source\n    write: append\n{rest}\n"
    );
    // Moved in whole, as deployments do: half a file is a broken file.
    sandbox.write(&format!("staging/{name}"), &text);
    let folder = sandbox.path().join("pipelines");
    fs::create_dir_all(&folder).expect("a folder");
    fs::rename(sandbox.path().join(format!("staging/{name}")), folder.join(format!("{name}.yaml"))).expect("moved");
}

fn files(name: &str) -> String {
    format!("files: {{path: landing/{name}, pattern: \"*.ndjson\"}}")
}

fn record(name: &str, n: u64) -> String {
    format!("{{\"id\":\"{name}-{n}\",\"n\":{n}}}")
}

/// Rows `from..until` of a pipeline as one file that appears whole.
fn feed(sandbox: &Sandbox, name: &str, from: u64, until: u64) {
    let text: String = (from..until).map(|n| record(name, n) + "\n").collect();
    let file = format!("landing/{name}/{from:012}");
    sandbox.write(&format!("{file}.tmp"), &text);
    fs::rename(sandbox.path().join(format!("{file}.tmp")), sandbox.path().join(format!("{file}.ndjson")))
        .expect("moved");
}

/// The table holds the rows `0..until`, each once.
#[track_caller]
fn assert_holds(sandbox: &Sandbox, name: &str, until: u64) {
    let table = sandbox.path().join("lake/bronze").join(name);
    let mut expected: Vec<String> = (0..until).map(|n| format!("{name}-{n}|{n}")).collect();
    expected.sort_unstable();
    lake::assert_same(name, &expected, &lake::lines(&table, "SELECT id, n FROM t"));
}

struct Served {
    running: Running,
    port: u16,
}

fn serve(sandbox: &Sandbox, place: u16, arguments: &[&str], fail: Option<&str>) -> Served {
    serve_as(sandbox, place, arguments, |command| match fail {
        Some(fail) => command.env("TIDEGATE_FAIL", fail),
        None => command,
    })
}

fn serve_as<'a>(
    sandbox: &'a Sandbox,
    place: u16,
    arguments: &[&str],
    how: impl Fn(Tidegate<'a>) -> Tidegate<'a>,
) -> Served {
    let port = free_port(place);
    let address = format!("127.0.0.1:{port}");
    let fixed = ["serve", "pipelines", "--output", "json", "--log-format", "json", "--listen", &address];
    let command = sandbox.tidegate(&[&fixed[..], arguments].concat());
    Served { running: how(command).start(), port }
}

impl Served {
    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// One family of metrics by pipeline.
    fn metric(&self, name: &str) -> BTreeMap<String, f64> {
        let text = self.get("/metrics").unwrap_or_default();
        let prefix = format!("tidegate_{name}{{pipeline=\"");
        let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
        lines
            .filter_map(|line| line.split_once("\"} "))
            .map(|(p, v)| (p.to_string(), v.parse().expect("a number")))
            .collect()
    }

    #[track_caller]
    fn wait(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(!self.running.ended(), "it ended while waiting for {what}:\n{}", self.running.stderr());
            assert!(Instant::now() < deadline, "no {what}:\n{}\n{:?}", self.running.stderr(), self.get("/metrics"));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn wait_rows(&self, name: &str, rows: u64) {
        self.wait(&format!("{rows} rows of {name}"), |s| {
            s.metric("input_rows_total").get(name) == Some(&(rows as f64))
        });
    }

    fn wait_says(&self, text: &str) {
        self.wait(text, |s| s.running.stderr().contains(text));
    }

    /// SIGTERM, exit 0, and the result.
    fn stop(self) -> Value {
        self.running.signal("TERM");
        self.running.finish(PATIENCE).expect("it stops").success().json()
    }

    /// VmHWM, VmRSS, Threads, and CPU seconds.
    fn cost(&self) -> (u64, u64, u64, f64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.running.pid())).expect("it runs");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
            line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number")
        };
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.running.pid())).expect("it runs");
        let times: Vec<f64> = stat
            .rsplit_once(") ")
            .expect("a state")
            .1
            .split(' ')
            .skip(11)
            .take(2)
            .map(|t| t.parse().expect("ticks"))
            .collect();
        (field("VmHWM:") / 1024, field("VmRSS:") / 1024, field("Threads:"), times.iter().sum::<f64>() / 100.0)
    }
}

/// How late, at worst, somebody comes who only sleeps for a moment and asks: that is the machine, or whom he asks. In
/// milliseconds; it goes on for as long as this is kept.
fn stalls(ask: impl Fn() + Send + 'static) -> Arc<AtomicU64> {
    const MOMENT: Duration = Duration::from_millis(50);
    let worst = Arc::new(AtomicU64::new(0));
    let kept = Arc::downgrade(&worst);
    std::thread::spawn(move || {
        loop {
            let started = Instant::now();
            std::thread::sleep(MOMENT);
            ask();
            let Some(worst) = kept.upgrade() else { return };
            let late = started.elapsed().saturating_sub(MOMENT).as_millis();
            worst.fetch_max(u64::try_from(late).expect("not for ever"), Ordering::Relaxed);
        }
    });
    worst
}

const COUNT: usize = 50;

/// Rows of one pipeline at a time.
const ROWS: u64 = 40;

/// Fifty pipelines every few seconds: first they make their tables, then some have news at each tick, then all at once, then
/// none. Every table equals what was sent; every tick is a run or is counted; with some news or none, no tick is missed.
fn fifty(
    sandbox: &Sandbox,
    place: u16,
    source: impl Fn(&str) -> String,
    send: impl Fn(&[(&str, u64, u64)]),
    ask: impl Fn() + Send + 'static,
) {
    let seconds = number("TIDEGATE_SERVE_SECONDS").unwrap_or(20);
    let tick = number("TIDEGATE_SERVE_TICK").unwrap_or(4);
    let names: Vec<String> = (0..COUNT).map(|index| format!("p{index:02}")).collect();
    let mut sent: BTreeMap<String, u64> = names.iter().map(|name| (name.clone(), 0)).collect();
    let send = |sent: &mut BTreeMap<String, u64>, count: usize, first: usize| {
        let chosen: Vec<&str> = names.iter().cycle().skip(first % COUNT).take(count).map(String::as_str).collect();
        send(&chosen.iter().map(|name| (*name, sent[*name], sent[*name] + ROWS)).collect::<Vec<_>>());
        chosen.iter().for_each(|name| *sent.get_mut(*name).expect("one of them") += ROWS);
    };
    for name in &names {
        pipeline(sandbox, name, &source(name), &format!("trigger: {{processing_time: {tick}s}}"));
    }
    send(&mut sent, COUNT, 0);
    let served = serve(sandbox, place, &[], None);
    let started = Instant::now();
    let all_arrived = |sent: &BTreeMap<String, u64>| {
        served.wait("all rows of every pipeline", |s| {
            let seen = s.metric("input_rows_total");
            seen.len() == COUNT && sent.iter().all(|(name, rows)| seen[name] == *rows as f64)
        });
    };
    let sum = |metric: &str| served.metric(metric).values().sum::<f64>();
    let stalls = stalls(ask);
    // Wall seconds, CPU seconds, missed ticks, runs, batches, threads at the end of each phase, and its longest stall.
    let mark = || {
        let (_, _, threads, cpu) = served.cost();
        let counts = ["missed_ticks_total", "runs_total", "batches_total", "batch_duration_seconds_sum"].map(sum);
        let stall = stalls.swap(0, Ordering::Relaxed) as f64 / 1000.0;
        (started.elapsed().as_secs_f64(), cpu, counts, threads, stall)
    };
    let mut phases = vec![("start", mark())];
    all_arrived(&sent);
    phases.push(("first rows", mark()));
    let some = started.elapsed();
    let mut round = 0;
    while started.elapsed() < some + Duration::from_secs(seconds) {
        // Five pipelines have news in each tick.
        send(&mut sent, 5, round * 5);
        round += 1;
        let runs = sum("runs_total");
        served.wait("a tick", |s| s.metric("runs_total").values().sum::<f64>() >= runs + COUNT as f64);
    }
    all_arrived(&sent);
    phases.push(("some news", mark()));
    let runs = sum("runs_total");
    served.wait("idle ticks", |s| s.metric("runs_total").values().sum::<f64>() >= runs + 3.0 * COUNT as f64);
    phases.push(("no news", mark()));
    send(&mut sent, COUNT, 0);
    all_arrived(&sent);
    phases.push(("all at once", mark()));
    let (peak, resident, ..) = served.cost();
    let mut late = 0.0;
    for pair in phases.windows(2) {
        let [(_, before), (phase, after)] = pair else { unreachable!("windows of two") };
        let [missed, runs, batches, working] = [0, 1, 2, 3].map(|index| after.2[index] - before.2[index]);
        let (wall, cpu) = (after.0 - before.0, after.1 - before.1);
        println!(
            "{phase}: {wall:.1} s, {cpu:.2} CPU s, {runs} runs, {batches} batches, {missed} ticks missed, {} threads, \
             longest stall {:.1} s",
            after.3, after.4
        );
        // Where the machine needs seconds for one small batch, others have it, and the ticks tell of them. Where it stood
        // still, each pipeline may have missed what passed meanwhile. The full run has it to itself.
        let (has_it_alone, tick) = (seconds >= 300, tick as f64);
        let is_ours = has_it_alone || working / batches.max(1.0) < tick / 4.0;
        let stalled = if has_it_alone || after.4 < tick / 4.0 { 0.0 } else { (after.4 / tick).ceil() * COUNT as f64 };
        if matches!(*phase, "some news" | "no news") && is_ours {
            late += (missed - stalled).max(0.0);
        }
        if *phase == "no news" {
            // Unoptimised and under load it was 2 to 5 ms, what the test itself asks for included.
            let each = cpu * 1000.0 / runs;
            println!("a run with nothing to do: {each:.1} CPU ms");
            assert!(each < 20.0, "a run with nothing to do takes {each:.1} CPU ms");
        }
    }
    println!("{COUNT} pipelines every {tick} s: VmHWM {peak} MB, VmRSS {resident} MB");
    // Ticks that pass during a run are counted when the next one starts.
    let runs = served.metric("runs_total");
    served.wait("one more run of each", |s| {
        let now = s.metric("runs_total");
        names.iter().all(|name| now.get(name) > Some(&runs[name]))
    });
    let json = served.stop();
    let of = |name: &str, field: &str| json["pipelines"][name][field].as_u64().expect("a number");
    assert_eq!(names.iter().map(|name| of(name, "failures")).sum::<u64>(), 0, "{json}");
    let ticks = json["duration_ms"].as_u64().expect("a duration") / 1000 / tick;
    for name in &names {
        let seen = of(name, "runs") - 1 + of(name, "missed_ticks");
        assert!(seen.abs_diff(ticks) <= 1, "{name}: {seen} ticks seen of {ticks}: {json}");
    }
    assert_eq!(late, 0.0, "ticks were missed with little or nothing to do");
    for name in &names {
        assert_holds(sandbox, name, sent[name]);
    }
}

#[test]
fn fifty_pipelines_over_files_share_one_process() {
    let sandbox = Sandbox::new("serve-files");
    let send =
        |news: &[(&str, u64, u64)]| news.iter().for_each(|(name, from, until)| feed(&sandbox, name, *from, *until));
    fifty(&sandbox, 40, files, send, || ());
}

#[test]
fn fifty_pipelines_over_kafka_share_one_process() {
    let Some(broker) = broker("fifty_pipelines_over_kafka_share_one_process") else { return };
    let sandbox = Sandbox::new("serve-kafka");
    let topic = |name: &str| format!("serve-{}-{name}", std::process::id());
    let source = |name: &str| {
        broker.create_topic(&topic(name), 1, &[]);
        format!("kafka: {{brokers: \"{}\", topics: [{}], start: earliest}}", broker.address, topic(name))
    };
    let send = |news: &[(&str, u64, u64)]| {
        let producer = broker.producer(None);
        for (name, from, until) in news {
            producer.send(&topic(name), (*from..*until).map(|n| Record::of(record(name, n))));
        }
        producer.done();
    };
    fifty(&sandbox, 41, source, send, broker.question());
}

#[test]
fn a_pipeline_that_fails_leaves_the_others_alone_and_comes_back_when_its_file_is_mended() {
    let sandbox = Sandbox::new("serve-failing");
    let every = "trigger: {processing_time: 1s}";
    for name in ["good", "away", "halted", "wrong"] {
        feed(&sandbox, name, 0, 10);
    }
    pipeline(&sandbox, "good", &files("good"), every);
    // A broker that nobody is: 69, tried again. Data that break a rule: 65, left alone. No YAML at all: 78.
    let nobody = format!("kafka: {{brokers: \"localhost:{}\", topics: [t]}}", free_port(42));
    pipeline(&sandbox, "away", &nobody, every);
    let rule = "    expect: {small: {check: n < 5, else: fail}}\ntrigger: {processing_time: 1s}";
    pipeline(&sandbox, "halted", &files("halted"), rule);
    pipeline(&sandbox, "wrong", &files("wrong"), "trigger: {processing_time: often}");
    let served = serve(&sandbox, 43, &[], None);
    served.wait_rows("good", 10);
    // Its metrics say so a little earlier, when its run may not be counted yet.
    served.wait("the halt", |s| s.get("/readyz").is_some_and(|answer| answer.contains("halted: parked")));
    assert_eq!(served.metric("up").get("halted"), Some(&0.0));
    let ready = served.get("/readyz").expect("an answer");
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert!(ready.contains("pipelines/wrong.yaml: cannot be used"), "{ready}");
    assert!(served.get("/metrics").expect("an answer").contains("\ntidegate_broken_files 1\n"));
    assert!(served.get("/healthz").expect("an answer").starts_with("HTTP/1.1 200"));
    let runs = served.metric("runs_total")["halted"];
    feed(&sandbox, "good", 10, 20);
    served.wait_rows("good", 20);
    assert_eq!(served.metric("runs_total")["halted"], runs, "what only a person mends is not tried again");
    pipeline(&sandbox, "halted", &files("halted"), every);
    pipeline(&sandbox, "wrong", &files("wrong"), every);
    served.wait_rows("halted", 10);
    served.wait_rows("wrong", 10);
    served.wait("another try of the broker", |s| {
        s.metric("failures_total").get("away") >= Some(&1.0) && s.metric("runs_total").get("away") >= Some(&2.0)
    });
    let json = served.stop();
    let pipelines = &json["pipelines"];
    assert_eq!(pipelines["away"]["error"]["exit_code"], 69, "{json}");
    assert_eq!(json["broken_files"], serde_json::json!({}), "it was mended: {json}");
    assert_eq!((&pipelines["good"]["failures"], &pipelines["good"]["status"]), (&0.into(), &"ok".into()), "{json}");
    for (name, rows) in [("good", 20), ("halted", 10), ("wrong", 10)] {
        assert_holds(&sandbox, name, rows);
    }
}

#[test]
#[cfg(feature = "failpoints")]
fn a_panic_in_one_pipeline_is_a_failure_of_that_one() {
    let sandbox = Sandbox::new("serve-panic");
    let names = ["a", "b", "c"];
    for name in names {
        feed(&sandbox, name, 0, 10);
        pipeline(&sandbox, name, &files(name), "trigger: {processing_time: 1s}");
    }
    // Whoever comes second to this point: rows are read, no table has them.
    let served = serve(&sandbox, 48, &["--max-concurrent", "1"], Some("shape@2=panic"));
    for name in names {
        served.wait_rows(name, 10);
        feed(&sandbox, name, 10, 20);
        served.wait_rows(name, 20);
    }
    let failures = served.metric("failures_total");
    assert!(served.running.stderr().contains("a fault of tidegate's own"), "{}", served.running.stderr());
    let json = served.stop();
    assert_eq!(failures.values().sum::<f64>(), 1.0, "{failures:?}");
    for name in names {
        assert_eq!(json["pipelines"][name]["status"], "ok", "{json}");
        assert_holds(&sandbox, name, 20);
    }
}

/// Ctrl-C ends whatever is behind the pipe (`2>&1 | tee`), too, and may end it first.
#[test]
fn when_nobody_watches_any_more_runs_go_on_and_end_as_ever() {
    let sandbox = Sandbox::new("serve-unwatched");
    feed(&sandbox, "a", 0, 10);
    pipeline(&sandbox, "a", &files("a"), "trigger: {processing_time: 1s}");
    let run = ["run", "pipelines/a.yaml", "--trigger", "available_now", "--output", "json", "--log", "debug"];
    let ran = sandbox.tidegate(&run).unwatched().run().success().json();
    assert_eq!((&ran["status"], &ran["input_rows"]), (&"ok".into(), &10.into()), "{ran}");
    let wrong = sandbox.tidegate(&["run", "pipelines/b.yaml", "--output", "json"]).unwatched().run();
    assert_eq!(wrong.code(&[2, 78]).json()["status"], "failed");
    let served = serve_as(&sandbox, 50, &["--log", "debug"], Tidegate::unwatched);
    served.wait_rows("a", 0);
    feed(&sandbox, "a", 10, 20);
    served.wait_rows("a", 10);
    assert_eq!(served.stop()["pipelines"]["a"]["status"], "ok");
    assert_holds(&sandbox, "a", 20);
}

#[test]
fn sighup_takes_new_files_drops_removed_ones_restarts_changed_ones_and_keeps_what_works() {
    let sandbox = Sandbox::new("serve-reload");
    let every = "trigger: {processing_time: 1s}";
    for name in ["same", "gone", "changed", "broken", "new"] {
        feed(&sandbox, name, 0, 10);
        if name != "new" {
            pipeline(&sandbox, name, &files(name), every);
        }
    }
    let served = serve(&sandbox, 44, &[], None);
    for name in ["same", "gone", "changed", "broken"] {
        served.wait_rows(name, 10);
    }
    pipeline(&sandbox, "new", &files("new"), every);
    pipeline(
        &sandbox,
        "changed",
        &files("changed"),
        "    expect: {small: {check: n < 15, else: drop}}\ntrigger: {processing_time: 1s}",
    );
    pipeline(
        &sandbox,
        "broken",
        &files("broken"),
        "    sql: SELECT nothing FROM batch\ntrigger: {processing_time: 1s}",
    );
    sandbox.remove("pipelines/gone.yaml");
    served.running.signal("HUP");
    served.wait_rows("new", 10);
    served.wait_says("its old version goes on");
    // It goes on, and whoever has rolled out the file is told that it does not run.
    served.wait("not ready", |s| s.get("/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 503")));
    let ready = served.get("/readyz").expect("an answer");
    assert!(ready.contains("pipelines/broken.yaml: cannot be used"), "{ready}");
    served.wait("the removal", |s| !s.metric("runs_total").contains_key("gone"));
    // The old version might still look into the folder.
    served.wait_says("changed: continues after");
    for name in ["same", "gone", "changed", "broken"] {
        feed(&sandbox, name, 10, 20);
    }
    for name in ["same", "changed", "broken"] {
        served.wait_rows(name, 20);
    }
    let starts = |name: &str| served.running.stderr().matches(&format!("{name}: continues after")).count();
    assert_eq!((starts("same"), starts("changed")), (0, 1), "only what changed is opened anew");
    pipeline(&sandbox, "broken", &files("broken"), every);
    served.running.signal("HUP");
    served.wait("ready again", |s| s.get("/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")));
    // One name twice: nothing of the reload is taken, and everything goes on.
    let twice = fs::read_to_string(sandbox.path().join("pipelines/same.yaml")).expect("it is there");
    sandbox.write("pipelines/twice.yaml", &twice);
    served.running.signal("HUP");
    served.wait_says("two files name their pipeline `same`");
    feed(&sandbox, "same", 20, 30);
    served.wait_rows("same", 30);
    served.stop();
    assert_holds(&sandbox, "same", 30);
    assert_holds(&sandbox, "gone", 10);
    assert_holds(&sandbox, "changed", 15);
    assert_holds(&sandbox, "broken", 20);
    assert_holds(&sandbox, "new", 10);
    let said = sandbox.tidegate(&["serve", "pipelines"]).run().code(&[78]);
    said.says("two files name their pipeline `same`").says("pipelines/same.yaml").says("pipelines/twice.yaml");
    sandbox.tidegate(&["validate", "pipelines"]).run().code(&[78]).says("two files name their pipeline `same`");
}

/// Batches small enough to be caught in the middle.
fn backlog(sandbox: &Sandbox, names: &[&str], rows: u64) {
    for name in names {
        feed(sandbox, name, 0, rows);
        pipeline(sandbox, name, &files(name), "batch: {max_rows: 50}\ntrigger: available_now");
    }
}

#[test]
#[cfg(feature = "failpoints")]
fn sigterm_finishes_the_batches_under_way_and_the_next_start_goes_on() {
    let sandbox = Sandbox::new("serve-term");
    let names = ["a", "b", "c"];
    backlog(&sandbox, &names, 1000);
    // The fourth batch stands right before its commit record until the signal has been heard.
    let go = sandbox.path().join("go");
    let order = format!("commit@4=pause={}", go.display());
    let served = serve(&sandbox, 45, &["--max-concurrent", "2"], Some(&order));
    served.wait("a batch under way", |_| sandbox.path().join("go.reached").exists());
    served.running.signal("TERM");
    served.wait_says("stopping");
    fs::write(go, "").expect("a file");
    let json = served.running.finish(PATIENCE).expect("it stops").success().json();
    let done: u64 = names.iter().map(|name| json["pipelines"][name]["input_rows"].as_u64().expect("rows")).sum();
    println!("{done} rows were done when it stopped");
    assert!((200..3000).contains(&done), "{json}");
    let served = serve(&sandbox, 45, &[], None);
    served.wait("all rows", |s| s.metric("input_rows_total").values().sum::<f64>() as u64 + done == 3000);
    assert!(!served.running.stderr().contains("begun by an earlier run"), "a batch was left half done");
    served.stop();
    for name in names {
        assert_holds(&sandbox, name, 1000);
    }
}

#[test]
fn kill_nine_costs_nothing_but_time() {
    let sandbox = Sandbox::new("serve-kill");
    let names = ["a", "b", "c"];
    // More than is done in the moments after which it is to be killed, however late the kill comes.
    backlog(&sandbox, &names, 3000);
    let seed = crate::support::seed();
    println!("TIDEGATE_SEED={seed}");
    for kill in 0..4_u64 {
        let served = serve(&sandbox, 46, &[], None);
        let enough = 1.0 + ((seed >> (kill * 3)) & 7) as f64;
        served.wait("some batches", |s| s.metric("batches_total").values().sum::<f64>() >= enough);
        served.running.signal("KILL");
        served.running.finish(PATIENCE).expect("it is dead");
    }
    let served = serve(&sandbox, 46, &[], None);
    served.wait("three finished", |s| {
        let successes = s.metric("last_success_timestamp_seconds");
        names.iter().all(|name| successes.contains_key(*name))
    });
    served.stop();
    for name in names {
        assert_holds(&sandbox, name, 3000);
    }
}

#[test]
fn a_run_that_waits_for_its_tick_stops_when_it_is_asked_to() {
    let sandbox = Sandbox::new("serve-wait");
    feed(&sandbox, "yearly", 0, 10);
    pipeline(&sandbox, "yearly", &files("yearly"), "trigger: {cron: \"@yearly\"}");
    let file = "pipelines/yearly.yaml";
    let refused = sandbox.tidegate(&["run", file, "--trigger", "61 * * * *"]).run().code(&[2]);
    refused.says("minute 61 is not 0-59").says("^^");
    let running = sandbox.tidegate(&["run", file, "--output", "json"]).start();
    let deadline = Instant::now() + PATIENCE;
    while !sandbox.path().join("checkpoints/yearly/metadata.json").exists() {
        assert!(Instant::now() < deadline && !running.ended(), "it does not wait:\n{}", running.stderr());
        std::thread::sleep(Duration::from_millis(20));
    }
    running.signal("TERM");
    let json = running.finish(PATIENCE).expect("it stops").success().json();
    assert_eq!(json["batch_count"], 0, "it ran before its tick: {json}");
}

/// A minute is long: `TIDEGATE_CRON_MINUTE=1`, or the full run of `serve`.
#[test]
fn a_crontab_runs_at_the_minute() {
    if number("TIDEGATE_CRON_MINUTE").is_none() && number("TIDEGATE_SERVE_SECONDS").is_none_or(|seconds| seconds < 300)
    {
        println!("skipped: TIDEGATE_CRON_MINUTE is not set");
        return;
    }
    let sandbox = Sandbox::new("serve-cron");
    feed(&sandbox, "minutely", 0, 10);
    pipeline(&sandbox, "minutely", &files("minutely"), "timezone: Europe/Berlin\ntrigger: {cron: \"* * * * *\"}");
    let served = serve(&sandbox, 47, &[], None);
    served.wait_rows("minutely", 10);
    let time = || served.metric("last_success_timestamp_seconds")["minutely"];
    served.wait("a success", |s| s.metric("last_success_timestamp_seconds").contains_key("minutely"));
    println!("the run ended {:.1} s after the minute", time() % 60.0);
    assert!(time() % 60.0 < 30.0, "{}", time());
    served.stop();
    assert_holds(&sandbox, "minutely", 10);
}

/// Windows that close for want of rows are closed by a batch without rows, and a batch that found no room is none of those.
#[cfg(feature = "failpoints")]
#[test]
fn a_stop_while_a_pipeline_waits_for_room_closes_no_window_over_rows_that_wait() {
    let sandbox = Sandbox::in_memory("serve-room-windows");
    feed(&sandbox, "busy", 0, 1);
    pipeline(&sandbox, "busy", &files("busy"), "trigger: available_now");
    let windows = "version: 1
name: windows
source:
  files: {path: landing/windows}
  format: json
  schema: {t: timestamp}
  event_time: t
trigger: {processing_time: 1s}
tables:
  bronze.windows: {from: source, write: append}
  gold.windows:
    from: bronze.windows
    watermark: {delay: 30m, idle_after: 100ms}
    aggregate: {window: {tumbling: 1h}, measures: {n: count(*)}}
    emit: final
";
    sandbox.write("windows.yaml", windows);
    sandbox.write("landing/windows/a.ndjson", "{\"t\": \"2026-03-10T08:10:00Z\"}\n");
    sandbox.tidegate(&["run", "windows.yaml", "--trigger", "once"]).run().success();
    sandbox.write("landing/windows/b.ndjson", "{\"t\": \"2026-03-10T08:20:00Z\"}\n");
    // It keeps the room until the other one has been told to stop.
    let go = sandbox.path().join("go");
    let order = format!("apply@1=pause={}", go.display());
    let served = serve(&sandbox, 49, &["--max-concurrent", "1"], Some(&order));
    served.wait("the batch that takes the room", |_| sandbox.path().join("go.reached").exists());
    fs::copy(sandbox.path().join("windows.yaml"), sandbox.path().join("pipelines/windows.yaml")).expect("a copy");
    served.running.signal("HUP");
    served.wait("the other pipeline", |served| served.running.stderr().contains("windows: continues after batch 0"));
    // From here to the door it says nothing more.
    std::thread::sleep(Duration::from_secs(1));
    served.running.signal("TERM");
    served.wait_says("stopping");
    fs::write(go, "").expect("a file");
    served.running.end(PATIENCE);
    let gold = sandbox.path().join("lake/gold/windows");
    assert_eq!(lake::lines(&gold, "SELECT n FROM t"), [""; 0], "rows wait for the window");
    sandbox.tidegate(&["run", "windows.yaml", "--flush", "--trigger", "available_now"]).run().success();
    assert_eq!(lake::lines(&gold, "SELECT n FROM t"), ["2"]);
}
