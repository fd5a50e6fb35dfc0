//! A folder of growing files, a pipeline with bronze and aggregates over it, and what its log and tables say.

#![allow(clippy::disallowed_methods, reason = "a test's own files need no durability")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use chrono::{DateTime, SecondsFormat};
use serde_json::Value;

use super::oracle::{
    Cut, DAY, Emit, Event, Files, HOUR, Late, Letter, MEASURES, MINUTE, Plan, Rules, SECOND, TIMEZONE, Table,
};
use crate::support::Sandbox;
use crate::support::lake::{assert_same, lines};
use crate::support::sandbox::Outcome;

pub const FILE: &str = "events.yaml";

/// A length as the file has it.
pub fn length(micros: i64) -> String {
    let units = [(DAY, "d"), (HOUR, "h"), (MINUTE, "m"), (SECOND, "s"), (1_000, "ms")];
    let (unit, name) = units.into_iter().find(|(unit, _)| micros % unit == 0).expect("whole milliseconds");
    format!("{}{name}", micros / unit)
}

impl Rules {
    /// Hourly, by `k`, half an hour of patience.
    pub fn plain(name: &str) -> Rules {
        Rules {
            name: name.to_string(),
            from_source: false,
            filtered: false,
            cut: Cut::Tumbling(HOUR),
            emit: Emit::Update,
            late: Late::Quarantine,
            delay: 30 * MINUTE,
            idle: 5 * MINUTE,
            idle_after: None,
            max_ahead: HOUR,
            by: vec!["k"],
        }
    }

    /// The table in YAML.
    pub fn yaml(&self) -> String {
        let from = if self.from_source { "source" } else { "bronze.events" };
        let mut text = format!("  {}:\n    from: {from}\n", self.name);
        if self.filtered {
            text.push_str("    sql: SELECT * FROM batch WHERE v >= 0\n");
        }
        let mut watermark = format!("delay: {}, idle: {}", length(self.delay), length(self.idle));
        match self.late {
            Late::Drop => watermark.push_str(", late: drop"),
            // What is left out of the file.
            Late::Quarantine => {}
            Late::Update(keep) => write!(watermark, ", late: update, keep: {}", length(keep)).expect("a string"),
        }
        if let Some(idle_after) = self.idle_after {
            write!(watermark, ", idle_after: {}", length(idle_after)).expect("a string");
        }
        if self.max_ahead != HOUR {
            write!(watermark, ", max_ahead: {}", length(self.max_ahead)).expect("a string");
        }
        writeln!(text, "    watermark: {{{watermark}}}\n    aggregate:").expect("a string");
        let window = match self.cut {
            Cut::None => None,
            Cut::Tumbling(size) => Some(format!("tumbling: {}", length(size))),
            Cut::Sliding(size, every) => Some(format!("sliding: {}, every: {}", length(size), length(every))),
            Cut::Session(gap) => Some(format!("session: {}", length(gap))),
            Cut::Day => Some("calendar: day".into()),
            Cut::Week => Some("calendar: week".into()),
            Cut::Month => Some("calendar: month".into()),
        };
        if let Some(window) = window {
            writeln!(text, "      window: {{{window}}}").expect("a string");
        }
        writeln!(text, "      by: [{}]\n      measures:", self.by.join(", ")).expect("a string");
        for (name, sql) in MEASURES {
            writeln!(text, "        {name}: {sql}").expect("a string");
        }
        match self.emit {
            Emit::Update => {}
            Emit::Final => text.push_str("    emit: final\n"),
            Emit::Complete => text.push_str("    emit: complete\n"),
        }
        text
    }
}

/// The pipeline of these tables.
pub fn pipeline(tables: &[Rules], max_rows: u64) -> String {
    let tables: String = tables.iter().map(Rules::yaml).collect();
    format!(
        "version: 1
name: events
lake: ./lake
checkpoints: ./checkpoints
timezone: {TIMEZONE}
source:
  files: {{path: landing, pattern: \"*.ndjson\"}}
  format: json
  schema:
    k: string
    s: string
    v: long
    amount: decimal(18,2)
    t: timestamp
  event_time: t
batch: {{max_rows: {max_rows}}}
tables:
  bronze.events:
    from: source
    write: append
{tables}dead_letters: {{table: dlq.events}}
"
    )
}

/// A time as the files have it.
pub fn show(micros: i64) -> String {
    DateTime::from_timestamp_micros(micros).expect("a time").to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// A time from text.
pub fn at(text: &str) -> i64 {
    DateTime::parse_from_rfc3339(text).unwrap_or_else(|cause| panic!("{text}: {cause}")).timestamp_micros()
}

fn line(event: &Option<Event>) -> String {
    let Some(event) = event else { return "{\"v\": ".to_string() };
    let amount = event.cents.map(|cents| {
        let sign = if cents < 0 { "-" } else { "" };
        format!("{sign}{}.{:02}", cents.abs() / 100, cents.abs() % 100)
    });
    let mut object = serde_json::Map::new();
    // Absent and null are the same.
    let mut put = |name: &str, value: Option<Value>| drop(value.map(|value| object.insert(name.to_string(), value)));
    put("k", event.k.clone().map(Value::from));
    put("s", event.s.clone().map(Value::from));
    put("v", event.v.map(Value::from));
    put("amount", amount.map(Value::from));
    put("t", event.t.map(show).map(Value::from));
    Value::from(object).to_string()
}

/// A plan, and what the oracle is not to look at.
#[derive(Debug, Clone)]
pub struct Planned {
    pub plan: Plan,
    pub watermarks: BTreeMap<String, i64>,
    pub rebuild: Vec<String>,
    pub pid: u64,
}

/// The folder and everything that was written into it.
pub struct World {
    pub sandbox: Sandbox,
    pub files: Files,
}

impl World {
    pub fn new(test: &str, tables: &[Rules], max_rows: u64) -> World {
        let sandbox = Sandbox::in_memory(&format!("windows-{test}"));
        sandbox.write(FILE, &pipeline(tables, max_rows));
        sandbox.write("landing/.keep", "");
        World { sandbox, files: Files::new() }
    }

    /// Appends lines to a file.
    pub fn append(&mut self, file: &str, events: Vec<Option<Event>>) {
        let known = self.files.entry(file.to_string()).or_default();
        known.extend(events);
        let text: String = known.iter().map(|event| line(event) + "\n").collect();
        // Renamed into place: a run that is under way sees all of it or nothing.
        self.sandbox.write(".next", &text);
        let (from, to) = (self.sandbox.path().join(".next"), self.sandbox.path().join("landing").join(file));
        fs::rename(from, to).expect("the same disk");
    }

    /// Events of `k = a` at these times.
    pub fn events(&mut self, file: &str, times: &[&str]) {
        let event = |time: &&str| Event { k: Some("a".into()), v: Some(1), t: Some(at(time)), ..Event::default() };
        self.append(file, times.iter().map(|time| Some(event(time))).collect());
    }

    pub fn run(&self, arguments: &[&str]) -> Outcome {
        let all = [&["run", FILE, "--output", "json"], arguments].concat();
        self.sandbox.tidegate(&all).run()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.sandbox.path().join(name)
    }

    /// Objects of the log by batch: `offsets` or `commits`.
    pub fn log(&self, kind: &str) -> BTreeMap<i64, Value> {
        let entries = fs::read_dir(self.path("checkpoints/events").join(kind)).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "json"));
        let parse = |path: PathBuf| {
            let batch = path.file_stem()?.to_str()?.parse().ok()?;
            let text = fs::read_to_string(&path).expect("readable");
            Some((batch, serde_json::from_str(&text).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()))))
        };
        paths.filter_map(parse).collect()
    }

    /// All plans, as the log has them.
    pub fn plans(&self) -> BTreeMap<i64, Planned> {
        self.log("offsets").into_iter().map(|(batch, plan)| (batch, planned(batch, &plan))).collect()
    }

    /// The rows of a table.
    pub fn table(&self, name: &str, sql: &str) -> Vec<String> {
        let path = self.path("lake").join(name.replace('.', "/"));
        // Before its first batch there is no table.
        if path.join("_delta_log").exists() { lines(&path, sql) } else { Vec::new() }
    }

    /// Requires a table and its dead letters to be as the oracle says.
    #[track_caller]
    pub fn assert_table(&self, table: &Table) {
        let rules = &table.rules;
        assert_same(&rules.name, &table.lines(), &self.table(&rules.name, &rules.sql()));
    }

    /// Dead letters of tables with windows, by table.
    pub fn letters(&self) -> BTreeMap<String, Vec<String>> {
        let sql = "SELECT \"table\", rule, topic, \"offset\" FROM t WHERE stage <> 'decode'";
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in self.table("dlq.events", sql) {
            let (table, rest) = line.split_once('|').expect("four columns");
            found.entry(table.to_string()).or_default().push(rest.to_string());
        }
        found
    }
}

/// Letters as [`World::letters`] has them.
pub fn shown(letters: &[Letter]) -> Vec<String> {
    let mut lines: Vec<String> = letters.iter().map(|(rule, file, line)| format!("{rule}|{file}|{line}")).collect();
    lines.sort_unstable();
    lines
}

fn planned(batch: i64, plan: &Value) -> Planned {
    let mut ranges = BTreeMap::new();
    for (file, partitions) in plan["sources"]["source"].as_object().into_iter().flatten() {
        let number = |index: usize| partitions["0"][index].as_u64().expect("an offset");
        if number(0) < number(1) {
            ranges.insert(file.clone(), (number(0), number(1)));
        }
    }
    let watermarks = plan["watermarks"].as_object().into_iter().flatten();
    let rebuild = plan["rebuild"].as_array().into_iter().flatten();
    Planned {
        plan: Plan { batch, time: at(plan["batch_time"].as_str().expect("a time")), ranges },
        watermarks: watermarks.map(|(table, time)| (table.clone(), at(time.as_str().expect("a time")))).collect(),
        rebuild: rebuild.map(|table| table.as_str().expect("a name").to_string()).collect(),
        pid: plan["owner"]["pid"].as_u64().expect("a process id"),
    }
}
