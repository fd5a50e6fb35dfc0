//! Sources: adapter, columns, event time, tombstones.

use std::collections::BTreeMap;
use std::path::Path as FilePath;

use arrow::datatypes::DataType;

use super::{Checker, is_identifier, paths};
use crate::config::raw::{
    RawDrift, RawFiles, RawFormat, RawGenerate, RawPipeline, RawSource, RawTombstones, RawType, RawTypeMapping, RawUnit,
};
use crate::config::report::closest;
use crate::config::spec::{
    ColumnSpec, EpochUnit, FilesSpec, Format, GenerateSpec, SchemaDrift, SourceKind, SourceSpec, Tombstones,
};
use crate::config::types::{self, Type};
use crate::error::Code;
use crate::units;

impl Checker<'_> {
    pub(super) fn sources(&mut self, raw: &RawPipeline, root: &FilePath) -> BTreeMap<String, SourceSpec> {
        let mut sources = BTreeMap::new();
        if raw.source.is_some() && raw.sources.is_some() {
            let help = "put the one under `sources: {<name>: …}` too".to_owned();
            self.refuse(&["sources"], "`source` and `sources` in one file", "one of the two", Some(help));
        }
        let nothing = raw.source.is_none() && raw.sources.as_ref().is_none_or(BTreeMap::is_empty);
        let mentioned = self.document.node(&["source"]).is_some() || !self.document.keys(&["sources"]).is_empty();
        let mistyped = |broken: &Vec<String>| broken.len() == 1 && closest(&broken[0], ["source", "sources"]).is_some();
        if nothing && !mentioned && !self.broken.iter().any(mistyped) {
            let help = "add `source: {kafka: …}`, `source: {files: …}` or `source: {generate: …}`".to_owned();
            self.refuse(&["source"], "the pipeline has no source", "", Some(help));
        }
        if let Some(source) = &raw.source
            && let Some(spec) = self.source(&["source"], &raw.name, source, root)
        {
            sources.insert("source".to_owned(), spec);
        }
        for (name, source) in raw.sources.iter().flatten() {
            if !is_identifier(name) {
                let message = format!("`{name}` is not a source name");
                self.refuse_key(&["sources", name], message, "a letter, then letters, digits or `_`");
            }
            if raw.tables.contains_key(name) {
                let message = format!("`{name}` is a source and a table");
                self.refuse_key(&["sources", name], message, "`from` could mean either; choose another name");
            }
            if let Some(spec) = self.source(&["sources", name], &raw.name, source, root) {
                sources.insert(name.clone(), spec);
            }
        }
        sources
    }

    fn source(&mut self, at: &[&str], pipeline: &str, raw: &RawSource, root: &FilePath) -> Option<SourceSpec> {
        let format = match raw.format.unwrap_or(RawFormat::Json) {
            RawFormat::Json => Format::Json,
            RawFormat::Csv => Format::Csv,
            RawFormat::Raw => Format::Raw,
        };
        let given: Vec<&str> =
            [("kafka", raw.kafka.is_some()), ("files", raw.files.is_some()), ("generate", raw.generate.is_some())]
                .into_iter()
                .filter_map(|(key, given)| given.then_some(key))
                .collect();
        let kind = match (given.as_slice(), &raw.kafka, &raw.files, &raw.generate) {
            (["kafka"], Some(kafka), ..) => {
                self.kafka(&join(at, &["kafka"]), pipeline, kafka, root).map(SourceKind::Kafka)
            }
            (["files"], _, Some(files), _) => Some(SourceKind::Files(self.files(at, files, format, root))),
            (["generate"], _, _, Some(generate)) => Some(SourceKind::Generate(self.generate(at, generate))),
            (several, ..) => {
                let message = "a source takes exactly one of: kafka, files, generate";
                let path = several.get(1).map_or(at.to_vec(), |second| join(at, &[second]));
                self.refuse(&path, message, if several.is_empty() { "none is given" } else { "one too many" }, None);
                None
            }
        };
        let columns = self.columns(at, raw);
        let schema_path = join(at, &["schema"]);
        match (format, raw.schema.is_some()) {
            (Format::Raw, true) => {
                let help = "raw rows have one column, `value`".to_owned();
                self.refuse_place(&schema_path, "`format: raw` takes no `schema`", Some(help));
            }
            (Format::Json | Format::Csv, false) => {
                let help = "list the columns: `schema: {order_id: string not null, amount: decimal(18,2)}`".to_owned();
                let keep = "or keep the bytes with `format: raw`";
                self.refuse_as(Code::MissingKey, &schema_path, "missing key `schema` in the source", keep, Some(help));
            }
            _ => {}
        }
        let names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
        let event_time = raw.event_time.clone();
        if let Some(name) = event_time.as_deref().filter(|_| raw.schema.is_some()) {
            let path = join(at, &["event_time"]);
            match columns.iter().find(|column| column.name == name) {
                None if self.document.keys(&schema_path).iter().any(|key| key == name) => {}
                None => {
                    let message = format!("event_time `{name}` is not a column of the schema");
                    self.unknown(&path, message, name, &names, "columns");
                }
                Some(column) if !matches!(column.data_type, DataType::Timestamp(..) | DataType::Date32) => {
                    let message = format!("event_time `{name}` is not a timestamp or date");
                    self.refuse(&path, message, "its type is another", None);
                }
                Some(_) => {}
            }
        }
        let tombstones = self.tombstones(at, raw, &columns);
        let schema_drift = match raw.schema_drift.unwrap_or(RawDrift::Rescue) {
            RawDrift::Rescue => SchemaDrift::Rescue,
            RawDrift::Evolve => SchemaDrift::Evolve,
            RawDrift::Ignore => SchemaDrift::Ignore,
            RawDrift::Fail => SchemaDrift::Fail,
        };
        // A source whose settings were left out (`tidegate test`), or are broken and reported, still has its columns.
        let unset = || SourceKind::Files(FilesSpec { path: root.to_owned(), pattern: "*".to_owned() });
        let kind = kind.unwrap_or_else(unset);
        Some(SourceSpec { kind, format, columns, event_time, schema_drift, tombstones })
    }

    fn refuse_place(&mut self, path: &[&str], message: &str, help: Option<String>) {
        self.refuse(path, message, "", help);
    }

    fn columns(&mut self, at: &[&str], raw: &RawSource) -> Vec<ColumnSpec> {
        let schema_path = join(at, &["schema"]);
        let Some(schema) = &raw.schema else { return Vec::new() };
        let mut columns: Vec<ColumnSpec> = Vec::new();
        for name in self.document.keys(&schema_path) {
            let Some(raw_type) = schema.get(&name) else { continue };
            let path = join(&schema_path, &[&name]);
            if name.starts_with('_') {
                self.refuse_key(
                    &path,
                    format!("the column `{name}` starts with `_`"),
                    "that is for tidegate's columns",
                );
            }
            if name.is_empty() || name.chars().any(|c| c.is_control() || " ,;{}()\n\t=.`".contains(c)) {
                self.refuse_key(&path, format!("`{name}` is not a column name"), "no spaces and none of ,;{}()=.`");
            }
            if columns.iter().any(|column| column.name.eq_ignore_ascii_case(&name)) {
                self.refuse_key(&path, format!("the column `{name}` is there twice"), "Delta ignores case in names");
            }
            if let Some(parsed) = self.column_type(&path, raw_type) {
                let Type { data_type, nullable, unit } = parsed;
                columns.push(ColumnSpec { name, data_type, nullable, unit });
            }
        }
        columns
    }

    fn column_type(&mut self, path: &[&str], raw: &RawType) -> Option<Type> {
        match raw {
            RawType::Text(text) => match types::parse(text) {
                Ok(parsed) => Some(parsed),
                Err(refusal) => {
                    self.refuse(path, refusal.message, &refusal.label, None);
                    None
                }
            },
            RawType::Mapping(mapping) => self.mapped_type(path, mapping),
        }
    }

    fn mapped_type(&mut self, path: &[&str], raw: &RawTypeMapping) -> Option<Type> {
        let mut parsed = match (&raw.name, &raw.fields, &raw.list) {
            (Some(text), None, None) => self.column_type(&join(path, &["type"]), &RawType::Text(text.clone()))?,
            (None, Some(fields), None) => {
                let at = join(path, &["struct"]);
                let mut types = Vec::new();
                for name in self.document.keys(&at) {
                    let field = fields.get(&name)?;
                    types.push((name.clone(), self.column_type(&join(&at, &[&name]), field)?));
                }
                Type::of_struct(types)
            }
            (None, None, Some(element)) => self.column_type(&join(path, &["list"]), element)?.into_list(),
            _ => {
                self.refuse(path, "a type takes exactly one of: type, struct, list", "", None);
                return None;
            }
        };
        if raw.nullable == Some(false) {
            parsed.nullable = false;
        }
        if let Some(unit) = raw.unit {
            if !matches!(parsed.data_type, DataType::Timestamp(..)) {
                self.refuse(&join(path, &["unit"]), "`unit` is for timestamps only", "", None);
            }
            parsed.unit = Some(match unit {
                RawUnit::Seconds => EpochUnit::Seconds,
                RawUnit::Millis => EpochUnit::Millis,
                RawUnit::Micros => EpochUnit::Micros,
            });
        }
        Some(parsed)
    }

    fn tombstones(&mut self, at: &[&str], raw: &RawSource, columns: &[ColumnSpec]) -> Tombstones {
        let Some(RawTombstones::Row(row)) = &raw.tombstones else { return Tombstones::Quarantine };
        let path = join(at, &["tombstones", "row", "key"]);
        let names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
        if !names.contains(&row.key) {
            let message = format!("the tombstone key `{}` is not a column of the schema", row.key);
            self.unknown(&path, message, &row.key, &names, "columns");
        }
        for column in columns.iter().filter(|column| !column.nullable) {
            if column.name != row.key && Some(&column.name) != raw.event_time.as_ref() {
                let message = format!("a tombstone row cannot fill the column `{}`", column.name);
                let help = "only the key and the event_time column may be `not null` with `tombstones: row`".to_owned();
                self.refuse(&join(at, &["schema", &column.name]), message, "it is `not null`", Some(help));
            }
        }
        Tombstones::Row { key: row.key.clone() }
    }

    fn files(&mut self, at: &[&str], raw: &RawFiles, format: Format, root: &FilePath) -> FilesSpec {
        if paths::is_url(&raw.path) {
            let message = "a files source reads local folders only";
            self.refuse(&join(at, &["files", "path"]), message, "not available in this version", None);
        }
        let default = match format {
            Format::Json => "*.ndjson",
            Format::Csv => "*.csv",
            Format::Raw => "*",
        };
        let pattern = raw.pattern.clone().unwrap_or_else(|| default.to_owned());
        if pattern.is_empty() || pattern.contains('/') {
            let message = "`pattern` is a glob over file names, such as *.ndjson";
            self.refuse(&join(at, &["files", "pattern"]), message, "folders go into `path`", None);
        }
        FilesSpec { path: paths::absolute(root, &raw.path), pattern }
    }

    fn generate(&mut self, at: &[&str], raw: &RawGenerate) -> GenerateSpec {
        let at = join(at, &["generate"]);
        let dataset = raw.dataset.clone().unwrap_or_else(|| "orders".to_owned());
        if dataset != "orders" {
            let message = format!("unknown dataset `{dataset}`");
            self.unknown(&join(&at, &["dataset"]), message, &dataset, &["orders".to_owned()], "datasets");
        }
        let rows = self.quantity(&join(&at, &["rows"]), raw.rows.as_ref(), units::count);
        let rate = self.quantity(&join(&at, &["rate"]), raw.rate.as_ref(), units::rate);
        if raw.rows.is_none() && raw.rate.is_none() {
            let help = "add `rows: 100_000`, or `rate: 5000/s` for an endless one".to_owned();
            self.refuse(&at, "`generate` needs `rows` or `rate`", "it would never end", Some(help));
        }
        let partitions = self.quantity(&join(&at, &["partitions"]), raw.partitions.as_ref(), units::count).unwrap_or(4);
        if !(1..=1024).contains(&partitions) {
            self.refuse(&join(&at, &["partitions"]), "`partitions` must be 1 to 1024", "", None);
        }
        let seed = self.quantity(&join(&at, &["seed"]), raw.seed.as_ref(), units::count).unwrap_or(1);
        let mut share =
            |key: &str, raw: &Option<_>| self.quantity(&join(&at, &[key]), raw.as_ref(), units::percent).unwrap_or(0.0);
        GenerateSpec {
            dirty: share("dirty", &raw.dirty),
            late: share("late", &raw.late),
            duplicates: share("duplicates", &raw.duplicates),
            out_of_order: share("out_of_order", &raw.out_of_order),
            dataset,
            rows,
            partitions: u32::try_from(partitions).unwrap_or(1),
            rate,
            seed,
        }
    }
}

/// A path with more steps.
pub(super) fn join<'p>(path: &[&'p str], more: &[&'p str]) -> Vec<&'p str> {
    path.iter().chain(more).copied().collect()
}
