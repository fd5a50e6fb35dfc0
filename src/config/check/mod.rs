//! From what was typed to what is true: names, references between parts, defaults, and the rules of the contract. Every
//! problem is collected; a problem at a place that the schema already complained about is not said twice.

mod kafka;
mod maintain;
mod paths;
mod source;
mod stateful;
mod table;

pub use table::source_columns;

use std::collections::BTreeMap;
use std::path::Path as FilePath;

use serde_json::{Value as Json, json};

use super::document::Document;
use super::raw::{Quantity, RawDeadLetters, RawInterval, RawPipeline, RawTrigger, RawTriggerWord};
use super::report::{Problem, Span, closest};
use super::shape::Path;
use super::spec::{DeadLetterSpec, LookupSpec, PipelineSpec};
use super::yaml::Node;
use crate::error::Code;
use crate::model::cron::Cron;
use crate::model::trigger::{Schedule, Trigger};
use crate::units;

/// What checking found.
pub struct Checked {
    /// `None` when the file could not be made sense of.
    pub spec: Option<PipelineSpec>,
    /// Every problem of meaning.
    pub problems: Vec<Problem>,
}

/// Checks a file that was held against the schema: `json` is what was sound in it, `broken` where it was not.
pub fn pipeline(mut json: Json, root: &Node, document: &Document, file: &FilePath, broken: Vec<Path>) -> Checked {
    // Stand-ins for the required keys that the schema already reported, so that the rest is checked all the same.
    if let Some(map) = json.as_object_mut() {
        for (key, value) in [("version", json!(1)), ("name", json!("unnamed")), ("tables", json!({}))] {
            map.entry(key).or_insert(value);
        }
    }
    let mut checker = Checker { document, broken, problems: Vec::new() };
    let spec = match serde_json::from_value::<RawPipeline>(json) {
        Ok(raw) => Some(checker.pipeline(&raw, file)),
        Err(error) => {
            let message = format!("the file does not fit the schema: {error}");
            checker.problems.push(Problem::at(root.span, message));
            None
        }
    };
    Checked { spec, problems: checker.problems }
}

/// Collects problems and knows where they stand.
struct Checker<'d> {
    document: &'d Document,
    broken: Vec<Path>,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    /// A problem with the value at `path`.
    fn refuse(&mut self, path: &[&str], message: impl Into<String>, label: &str, help: Option<String>) {
        self.refuse_as(Code::PipelineFile, path, message, label, help);
    }

    /// A problem with the value at `path` whose class has a code of its own.
    fn refuse_as(&mut self, code: Code, path: &[&str], message: impl Into<String>, label: &str, help: Option<String>) {
        let known = self.broken.iter().any(|broken| {
            let shorter = broken.len().min(path.len());
            broken[..shorter].iter().zip(path).all(|(a, b)| a == b)
        });
        if known {
            return;
        }
        let problem = Problem::at(self.document.span_of(path), message).coded(code).label(label);
        self.problems.push(match help {
            Some(help) => problem.help(help),
            None => problem,
        });
    }

    /// A problem with a name that nothing has.
    fn unknown(&mut self, path: &[&str], message: String, name: &str, known: &[String], what: &str) {
        let near = closest(name, known.iter().map(String::as_str));
        let (label, help) = match near {
            Some(near) => (format!("did you mean `{near}`?"), format!("{what}: {}", known.join(", "))),
            None if known.is_empty() => (String::new(), format!("there are no {what}")),
            None => (String::new(), format!("{what}: {}", known.join(", "))),
        };
        self.refuse(path, message, &label, Some(help));
    }

    /// A quantity in the unit that `read` knows.
    fn quantity<T>(
        &mut self,
        path: &[&str],
        raw: Option<&Quantity>,
        read: fn(&str) -> Result<T, units::Refusal>,
    ) -> Option<T> {
        match read(&raw?.0) {
            Ok(value) => Some(value),
            Err(refusal) => {
                // A reference prints as the reference.
                let written = self.document.node(path).and_then(Node::text).unwrap_or_default();
                let quoted = |text: &str| format!("`{text}`");
                let refusal = match written.contains("${") {
                    true => refusal.replacen(&quoted(&raw?.0), &quoted(written), 1),
                    false => refusal,
                };
                self.refuse_as(Code::WrongValue, path, refusal, "", None);
                None
            }
        }
    }

    fn pipeline(&mut self, raw: &RawPipeline, file: &FilePath) -> PipelineSpec {
        if raw.version != 1 {
            let message = format!("version {} is not known to this tidegate", raw.version);
            self.refuse(&["version"], message, "write `version: 1`", None);
        }
        let name_rule = "a lowercase letter, then lowercase letters, digits, `_` or `-`";
        if !is_pipeline_name(&raw.name) {
            let message = format!("`{}` is not a pipeline name", raw.name);
            self.refuse(&["name"], message, name_rule, Some("it names folders and transactions".into()));
        }
        let (file, root) = paths::roots(file);
        let timezone = self.timezone(raw.timezone.as_deref());
        let trigger = self.trigger(raw.trigger.as_ref());
        let batch = raw.batch.as_ref();
        let max_rows = batch.and_then(|b| b.max_rows.as_ref());
        let max_rows = self.quantity(&["batch", "max_rows"], max_rows, units::count).unwrap_or(500_000);
        let max_bytes = batch.and_then(|b| b.max_bytes.as_ref());
        let max_bytes = self.quantity(&["batch", "max_bytes"], max_bytes, units::size).unwrap_or(256_000_000);
        for (key, value) in [("max_rows", max_rows), ("max_bytes", max_bytes)] {
            if value == 0 {
                let message = format!("`{key}` must be above zero");
                self.refuse_as(Code::WrongValue, &["batch", key], message, "", None);
            }
        }
        let sources = self.sources(raw, &root);
        let lookups = self.lookups(raw, &root);
        let dead_letters = self.dead_letters(raw);
        let tables = self.tables(raw, &sources, dead_letters.as_ref(), timezone);
        PipelineSpec {
            name: raw.name.clone(),
            lake: paths::location(&root, raw.lake.as_deref().unwrap_or("./lake")),
            checkpoints: paths::location(&root, raw.checkpoints.as_deref().unwrap_or("./checkpoints")),
            file,
            root,
            timezone,
            sources,
            trigger,
            max_rows,
            max_bytes,
            lookups,
            tables,
            dead_letters,
            maintain: self.maintain(raw),
        }
    }

    fn timezone(&mut self, name: Option<&str>) -> chrono_tz::Tz {
        let name = name.unwrap_or("UTC");
        name.parse().unwrap_or_else(|_| {
            let near = closest(name, chrono_tz::TZ_VARIANTS.iter().map(|tz| tz.name()));
            let label = near.map(|near| format!("did you mean `{near}`?")).unwrap_or_default();
            let help = "write it like Europe/Berlin or UTC".to_owned();
            self.refuse(&["timezone"], format!("unknown timezone `{name}`"), &label, Some(help));
            chrono_tz::UTC
        })
    }

    fn trigger(&mut self, raw: Option<&RawTrigger>) -> Schedule {
        match raw {
            None => Trigger::AvailableNow.into(),
            Some(RawTrigger::Word(RawTriggerWord::Once)) => Trigger::Once.into(),
            Some(RawTrigger::Word(RawTriggerWord::AvailableNow | RawTriggerWord::SparkAvailableNow)) => {
                Trigger::AvailableNow.into()
            }
            Some(RawTrigger::Interval(RawInterval { processing_time, spark_processing_time, cron })) => {
                let (key, interval) = match (processing_time, spark_processing_time, cron) {
                    (Some(interval), None, None) => ("processing_time", interval),
                    (None, Some(interval), None) => ("processingTime", interval),
                    (None, None, Some(cron)) => return self.cron(cron),
                    _ => {
                        self.refuse(&["trigger"], "`trigger` takes exactly one of: processing_time, cron", "", None);
                        return Trigger::AvailableNow.into();
                    }
                };
                match self.quantity(&["trigger", key], Some(interval), units::duration) {
                    Some(interval) => Trigger::ProcessingTime(interval).into(),
                    None => Trigger::AvailableNow.into(),
                }
            }
        }
    }

    fn cron(&mut self, text: &str) -> Schedule {
        let path = ["trigger", "cron"];
        match Cron::parse(text) {
            Ok(cron) => Schedule::Cron(cron),
            Err(refusal) => {
                self.refuse_as(Code::WrongValue, &path, refusal.message, "", Some(refusal.help));
                // The caret goes under the field, where the value stands in the file as it was read.
                let written = self.document.node(&path).and_then(Node::text);
                if let Some(span) = self.problems.last_mut().and_then(|problem| problem.span.as_mut())
                    && written == Some(text)
                    && span.line == span.end_line
                {
                    let quote = (span.end_column - span.column).saturating_sub(text.len()) / 2;
                    let from = span.column + quote + refusal.at.start;
                    *span = Span::on_line(span.line, from, refusal.at.len());
                }
                Trigger::AvailableNow.into()
            }
        }
    }

    fn lookups(&mut self, raw: &RawPipeline, root: &FilePath) -> BTreeMap<String, LookupSpec> {
        use super::raw::RawLookup;
        let mut lookups = BTreeMap::new();
        for (name, lookup) in raw.lookups.iter().flatten() {
            if !is_identifier(name) {
                let message = format!("`{name}` is not a lookup name");
                self.refuse_key(&["lookups", name], message, "a letter, then letters, digits or `_`");
            }
            if name == "batch" || raw.tables.contains_key(name) {
                let message = format!("the lookup `{name}` hides another relation of that name");
                self.refuse_key(&["lookups", name], message, "choose another name");
            }
            let location = |path: &str| paths::location(root, path);
            let spec = match lookup {
                RawLookup::Delta(path) => LookupSpec::Delta(location(path)),
                RawLookup::Parquet(path) => LookupSpec::Parquet(location(path)),
                RawLookup::Csv(path) => LookupSpec::Csv(location(path)),
            };
            lookups.insert(name.clone(), spec);
        }
        lookups
    }

    fn dead_letters(&mut self, raw: &RawPipeline) -> Option<DeadLetterSpec> {
        let default = || format!("dlq.{}", raw.name);
        match &raw.dead_letters {
            None | Some(RawDeadLetters::Switch(true)) => Some(DeadLetterSpec { table: default(), fail_above: None }),
            Some(RawDeadLetters::Switch(false) | RawDeadLetters::Word(_)) => None,
            Some(RawDeadLetters::Settings(settings)) => {
                let path = ["dead_letters", "fail_above"];
                let fail_above = self.quantity(&path, settings.fail_above.as_ref(), units::percent);
                Some(DeadLetterSpec { table: settings.table.clone().unwrap_or_else(default), fail_above })
            }
        }
    }

    /// A problem with the key at `path`.
    fn refuse_key(&mut self, path: &[&str], message: impl Into<String>, label: &str) {
        self.refuse_key_as(Code::PipelineFile, path, message, label);
    }

    /// A problem with the key at `path`, and its mend.
    fn refuse_key_with(&mut self, path: &[&str], message: impl Into<String>, label: &str, help: String) {
        if !self.broken.iter().any(|broken| broken.iter().eq(path.iter())) {
            let problem = Problem::at(self.document.key_span_of(path), message).coded(Code::PipelineFile).label(label);
            self.problems.push(problem.help(help));
        }
    }

    /// A problem with the key at `path` whose class has a code of its own.
    fn refuse_key_as(&mut self, code: Code, path: &[&str], message: impl Into<String>, label: &str) {
        if !self.broken.iter().any(|broken| broken.iter().eq(path.iter())) {
            self.problems.push(Problem::at(self.document.key_span_of(path), message).coded(code).label(label));
        }
    }
}

fn is_pipeline_name(name: &str) -> bool {
    let first = name.starts_with(|c: char| c.is_ascii_lowercase());
    first
        && name.len() <= 100
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-')
}

fn is_identifier(name: &str) -> bool {
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    first && name.len() <= 100 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
