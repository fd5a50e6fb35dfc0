//! The tests of a pipeline: the `tests:` of its file, or a `*.test.yaml` beside it. Names are checked here; columns and
//! types need the compiled SQL and are `tidegate test`'s business.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde_json::Value as Json;

use super::document::{self, Document};
use super::raw::test_file_schema;
use super::report::{Problem, Report, Span, closest};
use super::shape::{self, Completeness};
use super::spec::PipelineSpec;
use super::yaml::{self, Node, Style, Value};
use crate::error::Code;

/// The key of `given` that holds rows of lookups.
const LOOKUPS: &str = "lookups";

/// The clock of a test that names none.
const DEFAULT_NOW: &str = "2026-01-01T00:00:00Z";

/// One test, its names checked.
#[derive(Debug, Clone)]
pub struct TestCase {
    /// What it shows.
    pub name: String,
    /// Where it stands.
    pub place: Span,
    /// The batch time.
    pub now: DateTime<Utc>,
    /// Records of each micro-batch: source by source, as written.
    pub batches: Vec<Vec<(String, Vec<Node>)>>,
    /// Rows that tables hold before the first batch.
    pub tables: BTreeMap<String, Vec<Node>>,
    /// Rows of lookups, in place of the real ones.
    pub lookups: BTreeMap<String, Vec<Node>>,
    /// What tables must hold in the end.
    pub expect: Vec<(String, Expected)>,
}

/// What a table must hold in the end.
#[derive(Debug, Clone)]
pub enum Expected {
    /// Exactly these rows, in any order, of which only the listed columns are compared.
    Rows(Vec<Node>),
    /// This many rows.
    Count(usize),
}

/// A `*.test.yaml`.
#[derive(Debug, Clone)]
pub struct TestFile {
    /// The pipeline file that it tests.
    pub pipeline: PathBuf,
    /// The file as it was written.
    pub document: Document,
}

/// Whether a file holds tests only.
pub fn is_test_file(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.ends_with(".test.yaml") || name.ends_with(".test.yml")
}

/// Reads a `*.test.yaml`.
pub fn load(path: &Path) -> Result<TestFile, Report> {
    let name = path.display().to_string();
    let source = std::fs::read_to_string(path).map_err(|error| {
        Report::new(
            name.clone(),
            "",
            vec![Problem::of_file(format!("cannot read the test file: {error}")).coded(Code::UnreadableFile)],
        )
    })?;
    let (root, mut problems) = yaml::parse(&source);
    let Some(root) = root.filter(|root| !root.is_null()) else {
        if problems.is_empty() {
            let help = "start with the keys `pipeline: orders.yaml` and `tests:`";
            problems.push(Problem::of_file("the file is empty").coded(Code::UnreadableFile).help(help));
        }
        return Err(Report::new(name, &document::masked_by_line(&source), problems));
    };
    let masked = document::masked(&source, &root);
    let (json, outcome) = shape::walk(&root, &test_file_schema(), Completeness::Whole, Vec::new());
    problems.extend(outcome.problems);
    let document = Document::new(name, masked, root);
    let pipeline = json.get("pipeline").and_then(Json::as_str).map(|pipeline| beside(path, pipeline));
    match pipeline {
        Some(pipeline) if problems.is_empty() => Ok(TestFile { pipeline, document }),
        _ => Err(Report::of_document(&document, problems)),
    }
}

fn beside(path: &Path, pipeline: &str) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(pipeline)
}

/// The tests in a document whose shape was checked. Problems of names and forms go into `report`.
pub fn read(document: &Document, spec: &PipelineSpec, report: &mut Report) -> Vec<TestCase> {
    let mut tables: Vec<&str> = spec.tables.iter().map(|table| table.name.as_str()).collect();
    tables.extend(spec.dead_letters.as_ref().map(|dead_letters| dead_letters.table.as_str()));
    let mut reader = Reader { document, spec, tables, report };
    let Some(Node { value: Value::Sequence(items), .. }) = document.node(&["tests"]) else { return Vec::new() };
    let cases: Vec<TestCase> = items.iter().enumerate().map(|(index, node)| reader.case(index, node)).collect();
    for (index, case) in cases.iter().enumerate() {
        if let Some(first) = cases[..index].iter().find(|other| other.name == case.name) {
            let problem = Problem::in_test(case.place, format!("two tests are named `{}`", case.name))
                .label(format!("the first stands on line {}", first.place.line));
            reader.report.add(problem);
        }
    }
    cases
}

struct Reader<'a> {
    document: &'a Document,
    spec: &'a PipelineSpec,
    /// Dead letters included.
    tables: Vec<&'a str>,
    report: &'a mut Report,
}

impl Reader<'_> {
    fn case(&mut self, index: usize, node: &Node) -> TestCase {
        let at = index.to_string();
        let text = |key: &str| node.get(key).and_then(Node::text);
        let mut case = TestCase {
            name: text("name").unwrap_or_default().to_owned(),
            place: self.document.span_of(&["tests", &at, "name"]),
            now: self.now(node),
            batches: Vec::new(),
            tables: BTreeMap::new(),
            lookups: BTreeMap::new(),
            expect: Vec::new(),
        };
        match node.get("given").map(|given| &given.value) {
            Some(Value::Sequence(batches)) => {
                for (number, batch) in batches.iter().enumerate() {
                    self.given(batch, number, &mut case);
                }
            }
            _ => {
                if let Some(batch) = node.get("given") {
                    self.given(batch, 0, &mut case);
                }
            }
        }
        self.expect(node, &mut case);
        case
    }

    fn now(&mut self, node: &Node) -> DateTime<Utc> {
        let text = node.get("now").and_then(Node::text).unwrap_or(DEFAULT_NOW);
        match (DateTime::parse_from_rfc3339(text), node.get("now")) {
            (Ok(now), _) => now.to_utc(),
            (Err(_), written) => {
                let span = written.map(|node| node.span).unwrap_or_default();
                let problem = Problem::in_test(span, format!("`{text}` is not a time"));
                self.report.add(problem.label("write it like 2026-03-18T00:00:00Z"));
                DateTime::UNIX_EPOCH
            }
        }
    }

    fn given(&mut self, batch: &Node, number: usize, case: &mut TestCase) {
        let mut records = Vec::new();
        let Value::Mapping(entries) = &batch.value else { return };
        for entry in entries {
            let key = entry.key.as_str();
            let first_only = |what: &str| {
                Problem::in_test(entry.key_span, format!("{what} can be given in the first batch only"))
                    .label("a test starts with them")
            };
            if self.spec.sources.contains_key(key) {
                if let Some(rows) = self.rows(&entry.value, entry.key_span, key) {
                    records.push((key.to_owned(), rows));
                }
            } else if key == LOOKUPS {
                if number > 0 {
                    self.report.add(first_only("rows of lookups"));
                }
                self.lookups(&entry.value, entry.key_span, case);
            } else if self.tables.contains(&key) {
                if number > 0 {
                    self.report.add(first_only("rows of a table"));
                }
                if let Some(rows) = self.rows(&entry.value, entry.key_span, key) {
                    self.mappings(&rows);
                    case.tables.insert(key.to_owned(), rows);
                }
            } else {
                let mut known: Vec<&str> = self.spec.sources.keys().map(String::as_str).collect();
                known.extend(&self.tables);
                known.push(LOOKUPS);
                self.unknown(entry.key_span, "a test gives rows to sources, tables and lookups", key, &known);
            }
        }
        case.batches.push(records);
    }

    fn lookups(&mut self, node: &Node, key_span: Span, case: &mut TestCase) {
        let Value::Mapping(entries) = &node.value else {
            let problem = Problem::in_test(key_span, "`lookups` must be a mapping: rows by the lookup's name");
            return self.report.add(problem);
        };
        for entry in entries {
            if !self.spec.lookups.contains_key(&entry.key) {
                let known: Vec<&str> = self.spec.lookups.keys().map(String::as_str).collect();
                self.unknown(entry.key_span, "lookups of the pipeline", &entry.key, &known);
            } else if let Some(rows) = self.rows(&entry.value, entry.key_span, &entry.key) {
                self.mappings(&rows);
                case.lookups.insert(entry.key.clone(), rows);
            }
        }
    }

    fn expect(&mut self, node: &Node, case: &mut TestCase) {
        let Some(entry) = node.entry("expect") else { return };
        let Value::Mapping(entries) = &entry.value.value else { return };
        if entries.is_empty() {
            let problem = Problem::in_test(entry.key_span, format!("the test `{}` expects nothing", case.name));
            self.report.add(problem.label("it could not fail; name a table and its rows"));
        }
        for entry in entries {
            if !self.tables.contains(&entry.key.as_str()) {
                let known = self.tables.clone();
                self.unknown(entry.key_span, "tables of the pipeline", &entry.key, &known);
                continue;
            }
            let expected = match &entry.value.value {
                Value::Sequence(rows) => {
                    self.mappings(rows);
                    Expected::Rows(rows.clone())
                }
                _ => {
                    let count = entry.value.get("count").and_then(Node::text);
                    Expected::Count(count.and_then(|count| count.parse().ok()).unwrap_or_default())
                }
            };
            case.expect.push((entry.key.clone(), expected));
        }
    }

    fn rows(&mut self, node: &Node, key_span: Span, key: &str) -> Option<Vec<Node>> {
        match &node.value {
            Value::Sequence(rows) => Some(rows.clone()),
            _ => {
                self.report.add(Problem::in_test(key_span, format!("`{key}` must be a list of rows")));
                None
            }
        }
    }

    fn mappings(&mut self, rows: &[Node]) {
        for row in rows.iter().filter(|row| !matches!(row.value, Value::Mapping(_))) {
            self.report.add(Problem::in_test(row.span, "a row of a table must be a mapping of columns"));
        }
    }

    fn unknown(&mut self, span: Span, what: &str, name: &str, known: &[&str]) {
        let problem = Problem::in_test(span, format!("unknown name `{name}` in a test"));
        let problem = match closest(name, known.iter().copied()) {
            Some(near) => problem.label(format!("did you mean `{near}`?")),
            None => problem,
        };
        let names = if known.is_empty() { "there are none".to_owned() } else { known.join(", ") };
        self.report.add(problem.help(format!("{what}: {names}")));
    }
}

/// A node as JSON text; numbers keep the digits as they were written.
pub fn json_text(node: &Node) -> String {
    match &node.value {
        Value::Sequence(items) => format!("[{}]", items.iter().map(json_text).collect::<Vec<_>>().join(",")),
        Value::Mapping(entries) => {
            let pair = |entry: &yaml::Entry| format!("{}:{}", Json::from(entry.key.as_str()), json_text(&entry.value));
            format!("{{{}}}", entries.iter().map(pair).collect::<Vec<_>>().join(","))
        }
        Value::Scalar(scalar) => match shape::untyped(node) {
            Json::Number(_) if scalar.style == Style::Plain => scalar.text.clone(),
            other => other.to_string(),
        },
    }
}
