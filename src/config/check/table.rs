//! Tables: names, the graph, write rules, and columns as far as configuration alone knows them.

use std::collections::BTreeMap;

use super::Checker;
use crate::config::document::SqlField;
use crate::config::raw::{OneOrMany, RawAction, RawEngine, RawPipeline, RawTable, RawWrite};
use crate::config::report::{Problem, closest};
use crate::config::spec::{
    Action, DeadLetterSpec, Engine, Expectation, Format, From, OperatorSpec, SchemaDrift, SourceSpec, TableSpec,
    Tombstones, WriteSpec,
};
use crate::config::sql::{self, Reads};
use crate::error::Code;

/// Columns that decoding adds to every row of a source; `tests/config` holds them against `transform::decode`.
pub const ADDED: [&str; 9] =
    ["_key", "_topic", "_partition", "_offset", "_timestamp", "_headers", "_batch_id", "_ingested_at", "_ingest_date"];

/// What is known of the other names while one table is checked.
pub(super) struct Names<'a> {
    /// Also those that were too broken to build.
    pub(super) source_names: Vec<String>,
    pub(super) tables: Vec<String>,
    lookups: Vec<String>,
    pub(super) raw: &'a RawPipeline,
}

impl Checker<'_> {
    /// Every table that could be built, in graph order.
    pub(super) fn tables(
        &mut self,
        raw: &RawPipeline,
        sources: &BTreeMap<String, SourceSpec>,
        dead_letters: Option<&DeadLetterSpec>,
        timezone: chrono_tz::Tz,
    ) -> Vec<TableSpec> {
        let mut source_names = self.document.keys(&["sources"]);
        if self.document.node(&["source"]).is_some() {
            source_names.push("source".to_owned());
        }
        let names = Names {
            source_names,
            tables: self.document.keys(&["tables"]),
            lookups: self.document.keys(&["lookups"]),
            raw,
        };
        if names.tables.is_empty() {
            let help = "add one: `tables: {bronze.orders: {from: source}}`".to_owned();
            self.refuse(&["tables"], "the pipeline has no table", "", Some(help));
        }
        self.table_names(&names.tables, dead_letters);
        let mut built: Vec<(TableSpec, Vec<String>)> = Vec::new();
        for name in &names.tables {
            if let Some(table) = raw.tables.get(name) {
                built.extend(self.table(name, table, &names, sources, timezone));
            }
        }
        let ordered = self.in_order(built);
        let mut columns: BTreeMap<String, Option<Vec<String>>> = BTreeMap::new();
        for table in &ordered {
            let known = known_columns(table, sources, &columns);
            if let Some(known) = &known {
                self.column_names(table, known);
            }
            let stored = known.map(|known| match &table.write {
                WriteSpec::Upsert { drop, .. } => known.into_iter().filter(|c| !drop.contains(c)).collect(),
                _ => known,
            });
            columns.insert(table.name.clone(), stored);
        }
        ordered
    }

    fn table_names(&mut self, tables: &[String], dead_letters: Option<&DeadLetterSpec>) {
        let rule = "letters, digits, `_` and `-`, parts joined by dots, such as silver.orders";
        for (index, name) in tables.iter().enumerate() {
            let path = ["tables", name.as_str()];
            if !is_table_name(name) {
                self.refuse_key(&path, format!("`{name}` is not a table name"), rule);
            }
            if name == "batch" {
                self.refuse_key(&path, "`batch` is the rows of the micro-batch", "choose another name");
            }
            for other in &tables[..index] {
                if let Some(message) = nested(name, other) {
                    self.refuse_key(&path, message, "Delta tables cannot lie inside each other");
                }
            }
        }
        let Some(dead_letters) = dead_letters else { return };
        let path = ["dead_letters", "table"];
        if !is_table_name(&dead_letters.table) {
            // With a broken pipeline name, the default table's name is broken with it: said once is enough.
            if self.document.node(&path).is_some() {
                self.refuse(&path, format!("`{}` is not a table name", dead_letters.table), rule, None);
            }
        }
        for name in tables {
            if *name == dead_letters.table {
                let label = "set `dead_letters: {table: …}` or rename one";
                self.refuse_key(&["tables", name], format!("`{name}` is the dead-letter table"), label);
            } else if let Some(message) = nested(name, &dead_letters.table) {
                self.refuse_key(&["tables", name], message, "Delta tables cannot lie inside each other");
            }
        }
    }

    /// A table and the tables that it reads.
    fn table(
        &mut self,
        name: &str,
        raw: &RawTable,
        names: &Names<'_>,
        sources: &BTreeMap<String, SourceSpec>,
        timezone: chrono_tz::Tz,
    ) -> Option<(TableSpec, Vec<String>)> {
        let from = self.from(name, raw, names);
        let reads = raw.sql.as_deref().map(sql::reads).unwrap_or_default();
        self.relations(name, &reads, names);
        let keeps = self.keeps(name, raw, from.as_ref(), names, sources, timezone);
        let write = match keeps.as_ref().map(|keeps| &keeps.operator) {
            Some(OperatorSpec::Aggregate(aggregate)) => self.write_of_windows(name, raw, aggregate),
            _ => self.write(name, raw, from.as_ref()),
        };
        self.aggregation(name, raw, &reads, names);
        self.repetition(name, raw, &reads);
        self.lost_deletes(name, raw, names);
        let expect = self.expectations(name, raw);
        let partition_by = self.names_list(&["tables", name, "partition_by"], raw.partition_by.as_ref());
        if let WriteSpec::Upsert { key, order_by, drop, .. } = &write {
            for column in drop.iter().filter(|c| key.contains(c) || order_by.contains(c) || partition_by.contains(c)) {
                let message = format!("`drop` names `{column}`, which the table needs");
                let label = "key, order_by and partition_by columns are stored";
                self.refuse(&["tables", name, "write", "upsert", "drop"], message, label, None);
            }
        }
        let from = from?;
        let mut upstream: Vec<String> = Vec::new();
        upstream.extend(reads.relations.iter().map(|r| r.name.clone()).filter(|r| names.tables.contains(r)));
        let engine = match raw.engine.unwrap_or(RawEngine::Polars) {
            RawEngine::Polars => Engine::Polars,
            RawEngine::DataFusion => Engine::DataFusion,
        };
        let sql = raw.sql.clone();
        let incremental = match &raw.write {
            Some(RawWrite::Refresh(refresh)) => refresh.incremental.unwrap_or(true),
            _ => true,
        };
        let name = name.to_string();
        let spec = TableSpec { name, from, sql, engine, expect, write, partition_by, incremental, keeps };
        upstream.extend(spec.inputs().into_iter().filter_map(|from| match from {
            From::Table(table) => Some(table.clone()),
            From::Source(_) => None,
        }));
        Some((spec, upstream))
    }

    /// The upstream; of a join, its left side.
    fn from(&mut self, name: &str, raw: &RawTable, names: &Names<'_>) -> Option<From> {
        match (&raw.from, &raw.join) {
            (Some(_), Some(_)) => {
                let label = "remove it: `join` names both sides";
                self.refuse_key(&["tables", name, "from"], format!("`{name}` has both `from` and `join`"), label);
                None
            }
            (Some(from), None) => self.upstream(name, &["tables", name, "from"], from, names),
            (None, Some(join)) => self.upstream(name, &["tables", name, "join", "left"], &join.left, names),
            (None, None) => {
                let message = format!("missing key `from` in `{name}`");
                let path = ["tables", name];
                if !self.broken.iter().any(|broken| broken.iter().eq(path.iter())) {
                    let problem = Problem::at(self.document.key_span_of(&path), message).coded(Code::MissingKey);
                    let about = "`from`: Where its rows come from: `source`, a source's name, or a table's name.";
                    self.problems.push(problem.label("needs `from`").help(about));
                }
                None
            }
        }
    }

    /// A source or a table by its name.
    pub(super) fn upstream(&mut self, name: &str, path: &[&str], from: &str, names: &Names<'_>) -> Option<From> {
        if names.source_names.iter().any(|source| source == from) {
            return Some(From::Source(from.to_owned()));
        }
        if names.tables.iter().any(|table| table == from) {
            return Some(From::Table(from.to_owned()));
        }
        let known: Vec<&str> = names.source_names.iter().chain(&names.tables).map(String::as_str).collect();
        let help = match closest(from, known.iter().copied().filter(|other| *other != name)) {
            Some(near) => {
                let table = self.document.key_span_of(&["tables", near]).line;
                let source = self.document.key_span_of(&["sources", near]).line;
                let single = self.document.key_span_of(&["source"]).line;
                let line = match () {
                    _ if names.tables.iter().any(|table| table == near) => table,
                    _ if near == "source" => single,
                    _ => source,
                };
                format!("did you mean `{near}` (line {line})?")
            }
            None => format!("known: {}", known.join(", ")),
        };
        let (message, label) = (format!("unknown table `{from}`"), "no table or source with this name in the pipeline");
        self.refuse_as(Code::UnknownName, path, message, label, Some(help));
        None
    }

    fn relations(&mut self, name: &str, reads: &Reads, names: &Names<'_>) {
        for relation in &reads.relations {
            let known = || names.tables.iter().chain(&names.lookups).map(String::as_str).chain(["batch"]);
            if known().any(|known| known == relation.name) {
                continue;
            }
            let (line, column, length) = (relation.line, relation.column, relation.length);
            let span = self.document.sql_position(name, SqlField::Sql, line, column, length);
            let problem = Problem::at(span, format!("unknown relation `{}` in the SQL of `{name}`", relation.name))
                .coded(Code::UnknownName);
            let problem = match closest(&relation.name, known()) {
                Some(near) => problem.label(format!("did you mean `{near}`?")),
                None => problem,
            };
            let all: Vec<&str> = known().collect();
            self.problems.push(problem.help(format!("relations: {}", all.join(", "))));
        }
    }

    fn write(&mut self, name: &str, raw: &RawTable, from: Option<&From>) -> WriteSpec {
        let path = |key| ["tables", name, "write", "upsert", key];
        match &raw.write {
            None | Some(RawWrite::Append) => WriteSpec::Append,
            Some(RawWrite::Upsert(upsert)) => {
                if upsert.key.to_vec().is_empty() {
                    self.refuse(&path("key"), "`upsert` needs at least one key column", "", None);
                }
                WriteSpec::Upsert {
                    key: self.names_list(&path("key"), Some(&upsert.key)),
                    order_by: self.names_list(&path("order_by"), upsert.order_by.as_ref()),
                    delete_when: upsert.delete_when.clone(),
                    drop: self.names_list(&path("drop"), upsert.drop.as_ref()),
                }
            }
            Some(RawWrite::Refresh(refresh)) => {
                let by = ["tables", name, "write", "refresh", "by"];
                if refresh.by.to_vec().is_empty() {
                    self.refuse(&by, "`refresh` needs at least one group column", "", None);
                }
                if let Some(From::Source(source)) = from {
                    let message = format!("`refresh` needs `from` a table, and `{source}` is a source");
                    let help = "a group is computed again from all of its rows; write the source to a table first";
                    self.refuse(&["tables", name, "from"], message, "not a table", Some(help.into()));
                }
                WriteSpec::Refresh { by: self.names_list(&by, Some(&refresh.by)) }
            }
        }
    }

    /// Aggregates over a batch are right only when no row of it replaces an earlier one.
    fn aggregation(&mut self, name: &str, raw: &RawTable, reads: &Reads, names: &Names<'_>) {
        if !reads.aggregates_batch {
            return;
        }
        let upstream = names.raw.tables.get(from_of(raw)).and_then(|table| table.write.as_ref());
        let Some(batch) = reads.relations.iter().find(|relation| relation.name.eq_ignore_ascii_case("batch")) else {
            return;
        };
        let message = match (upstream, &raw.write) {
            (_, Some(RawWrite::Refresh(_))) => {
                format!("`{name}` refreshes whole groups, but aggregates the rows of one batch")
            }
            (Some(RawWrite::Upsert(_)), _) => {
                format!("aggregating `batch` counts every update of `{}` again", from_of(raw))
            }
            _ => return,
        };
        let span = self.document.sql_position(name, SqlField::Sql, batch.line, batch.column, batch.length);
        let problem = Problem::at(span, message).label(format!("read `FROM {}`", from_of(raw)));
        let help =
            "with `write: {refresh: {by: …}}` every group that the batch touched is computed again from the table";
        self.problems.push(problem.help(help));
    }

    /// A table that adds what it reads must read what is new.
    fn repetition(&mut self, name: &str, raw: &RawTable, reads: &Reads) {
        let is_refresh = matches!(&raw.write, Some(RawWrite::Refresh(_)));
        if is_refresh || reads.reads("batch") {
            return;
        }
        let whole = reads.relations.iter().find(|relation| relation.name == from_of(raw));
        let Some(relation) = whole else { return };
        let (line, column, length) = (relation.line, relation.column, relation.length);
        let span = self.document.sql_position(name, SqlField::Sql, line, column, length);
        let message = format!("every batch would write all rows of `{}` to `{name}` again", from_of(raw));
        let problem = Problem::at(span, message).label("read `FROM batch`");
        self.problems
            .push(problem.help("`batch` is the rows of this micro-batch; whole tables are for `write: refresh`"));
    }

    /// The rows of a batch are those that exist: deletes of an upsert table do not travel on.
    fn lost_deletes(&mut self, name: &str, raw: &RawTable, names: &Names<'_>) {
        let upstream = names.raw.tables.get(from_of(raw)).and_then(|table| table.write.as_ref());
        let deletes = matches!(upstream, Some(RawWrite::Upsert(upsert)) if upsert.delete_when.is_some());
        if deletes && matches!(&raw.write, Some(RawWrite::Upsert(_))) {
            let message = format!("deletes of `{}` would never reach `{name}`", from_of(raw));
            let help = "feed it from the table before, with a `delete_when` of its own; or use `write: refresh`";
            self.refuse(&["tables", name, "from"], message, "has `delete_when`", Some(help.into()));
        }
    }

    fn expectations(&mut self, name: &str, raw: &RawTable) -> Vec<Expectation> {
        let Some(expect) = &raw.expect else { return Vec::new() };
        let build = |rule: String| {
            let raw = expect.get(&rule)?;
            let action = match raw.action {
                RawAction::Warn => Action::Warn,
                RawAction::Drop => Action::Drop,
                RawAction::Quarantine => Action::Quarantine,
                RawAction::Fail => Action::Fail,
            };
            Some(Expectation { name: rule, check: raw.check.clone(), action })
        };
        self.document.keys(&["tables", name, "expect"]).into_iter().filter_map(build).collect()
    }

    /// Column names without repetition.
    pub(super) fn names_list(&mut self, path: &[&str], raw: Option<&OneOrMany>) -> Vec<String> {
        let names = raw.map(OneOrMany::to_vec).unwrap_or_default();
        for (index, name) in names.iter().enumerate() {
            if name.is_empty() || names[..index].contains(name) {
                self.refuse(path, format!("the column `{name}` is there twice or empty"), "", None);
            }
        }
        names
    }

    /// A table after every table that it reads, otherwise as in the file; a cycle is a problem.
    fn in_order(&mut self, mut waiting: Vec<(TableSpec, Vec<String>)>) -> Vec<TableSpec> {
        let mut ordered = Vec::with_capacity(waiting.len());
        loop {
            let ready = waiting
                .iter()
                .position(|(_, reads)| reads.iter().all(|read| !waiting.iter().any(|(other, _)| other.name == *read)));
            match ready {
                Some(position) => ordered.push(waiting.remove(position).0),
                None => break,
            }
        }
        if let Some((first, _)) = waiting.first() {
            // Every table left reads another one left, so following the first such edge runs into a cycle.
            let mut chain: Vec<&str> = vec![&first.name];
            let cycle = loop {
                let last = chain.last().copied().unwrap_or_default();
                let reads = waiting.iter().find(|(table, _)| table.name == last).map(|(_, reads)| reads);
                let next = reads.into_iter().flatten().find(|read| waiting.iter().any(|(t, _)| t.name == **read));
                let Some(next) = next else { break chain.clone() };
                if let Some(start) = chain.iter().position(|seen| seen == next) {
                    break chain[start..].to_vec();
                }
                chain.push(next);
            };
            let start = cycle.first().copied().unwrap_or_default().to_owned();
            let walk = cycle.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" reads ");
            let message = format!("the tables form a cycle: {walk} reads `{start}`");
            self.refuse_key(&["tables", &start], message, "a table cannot wait for itself");
        }
        ordered
    }

    fn column_names(&mut self, table: &TableSpec, known: &[String]) {
        let name = table.name.as_str();
        let mut uses: Vec<(Vec<&str>, &Vec<String>)> =
            vec![(vec!["tables", name, "partition_by"], &table.partition_by)];
        match &table.write {
            WriteSpec::Append | WriteSpec::Windows { .. } => {}
            WriteSpec::Upsert { key, order_by, drop, .. } => {
                for (field, columns) in [("key", key), ("order_by", order_by), ("drop", drop)] {
                    uses.push((vec!["tables", name, "write", "upsert", field], columns));
                }
            }
            WriteSpec::Refresh { by } => uses.push((vec!["tables", name, "write", "refresh", "by"], by)),
        }
        for (path, columns) in uses {
            for column in columns.iter().filter(|column| !known.contains(column)) {
                self.unknown(&path, format!("`{name}` has no column `{column}`"), column, known, "columns");
            }
        }
    }
}

fn from_of(raw: &RawTable) -> &str {
    raw.from.as_deref().unwrap_or_default()
}

/// The output columns of a table without SQL whose upstream is known.
fn known_columns(
    table: &TableSpec,
    sources: &BTreeMap<String, SourceSpec>,
    columns: &BTreeMap<String, Option<Vec<String>>>,
) -> Option<Vec<String>> {
    match &table.from {
        _ if table.sql.is_some() || table.keeps.is_some() => None,
        From::Table(upstream) => columns.get(upstream).cloned().flatten(),
        From::Source(source) => source_columns(sources.get(source)?),
    }
}

/// The columns of a source's rows, when they are known before any row was read.
pub fn source_columns(source: &SourceSpec) -> Option<Vec<String>> {
    if source.schema_drift == SchemaDrift::Evolve || (source.columns.is_empty() && source.format != Format::Raw) {
        return None;
    }
    let mut names: Vec<String> = source.columns.iter().map(|column| column.name.clone()).collect();
    if source.format == Format::Raw {
        names = vec!["value".to_owned()];
    }
    if source.format == Format::Json && source.schema_drift == SchemaDrift::Rescue {
        names.push("_rescued".to_owned());
    }
    if matches!(source.tombstones, Tombstones::Row { .. }) {
        names.push("_tombstone".to_owned());
    }
    names.extend(ADDED.map(str::to_owned));
    Some(names)
}

/// Safe as folders under the lake, on any object store.
fn is_table_name(name: &str) -> bool {
    let part = |part: &str| {
        let first = part.starts_with(|c: char| c.is_ascii_alphabetic());
        first && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
    };
    name.len() <= 200 && name.split('.').all(part)
}

/// `bronze` and `bronze.orders`: one folder lies inside the other, and `vacuum` of the outer would delete the inner.
fn nested(one: &str, other: &str) -> Option<String> {
    let inside = |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'));
    let same = one != other && one.eq_ignore_ascii_case(other);
    match () {
        _ if same => Some(format!("`{one}` and `{other}` are one folder where case does not count")),
        _ if inside(one, other) => Some(format!("the folder of `{one}` lies inside that of `{other}`")),
        _ if inside(other, one) => Some(format!("the folder of `{other}` lies inside that of `{one}`")),
        _ => None,
    }
}
