//! From a file to tests that can run: everything that is wrong with them is found here, before one does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, Utc};

use super::given::{self, Records, in_schema, mapping, typed_rows, unknown_column};
use super::value::{Want, type_name, want, written};
use crate::app::{Failure, compose};
use crate::cli::Global;
use crate::config::document::Document;
use crate::config::report::{Problem, Report};
use crate::config::spec::{LookupSpec, PipelineSpec, SchemaDrift, WriteSpec};
use crate::config::tests::{self, Expected, TestCase};
use crate::config::yaml::Node;
use crate::config::{self, LoadOptions, Loaded};
use crate::error::{Context, ErrorKind, Result};
use crate::source::memory::Record;
use crate::table::{self, Maker, TableDefinition};
use crate::transform::compile::{self, CompiledPipeline};
use crate::transform::definitions::table_definitions;
use crate::transform::expect::DELETE_FLAG;

/// The identity of every pipeline under test.
pub(super) const PIPELINE_ID: &str = "test";

/// Rows and columns of a lookup.
pub(super) type LookupRows = (SchemaRef, Arc<Vec<RecordBatch>>);

/// One test, ready to run.
pub(super) struct Test {
    pub name: String,
    /// `orders.yaml:88:5`.
    pub place: String,
    pub now: DateTime<Utc>,
    pub spec: Arc<PipelineSpec>,
    pub compiled: Arc<CompiledPipeline>,
    /// Every table, dead letters last.
    pub definitions: Vec<TableDefinition>,
    pub lookups: BTreeMap<String, LookupRows>,
    /// Records of each micro-batch, in the order in which they were written.
    pub batches: Vec<Vec<(String, Record)>>,
    /// Rows that tables hold before the first batch.
    pub tables: BTreeMap<String, Vec<RecordBatch>>,
    pub expect: Vec<Expectation>,
}

/// What one table must hold.
pub(super) struct Expectation {
    pub table: String,
    /// Columns that identify a row, for the diff.
    pub keys: Vec<String>,
    pub rows: ExpectedRows,
}

pub(super) enum ExpectedRows {
    Rows(Vec<Vec<Cell>>),
    Count(usize),
}

/// An expected cell.
pub(super) struct Cell {
    pub column: String,
    pub want: Want,
    pub written: String,
}

/// The tests of one file, those whose name contains `filter`.
pub(super) async fn load(global: &Global, path: &Path, filter: Option<&str>) -> Result<Vec<Test>, Failure> {
    let (pipeline_file, test_document) = match tests::is_test_file(path) {
        true => {
            let file = tests::load(path)?;
            (file.pipeline, Some(file.document))
        }
        false => (path.to_owned(), None),
    };
    let Loaded { mut spec, document: pipeline } =
        config::load(&pipeline_file, &LoadOptions::offline(global.target.clone()))?;
    // The budget is about a batch of production; a test that sets one of two rows aside is in order.
    if let Some(dead_letters) = &mut spec.dead_letters {
        dead_letters.fail_above = None;
    }
    // Batches are cut by the test, never by these.
    (spec.max_rows, spec.max_bytes) = (u64::from(u32::MAX), u64::from(u32::MAX));
    let document = test_document.as_ref().unwrap_or(&pipeline);
    let mut report = document.report();
    let cases = tests::read(document, &spec, &mut report);
    let loader = Loader::new(&pipeline, document, spec, &cases).await?;
    let mut ready = Vec::new();
    for case in &cases {
        ready.extend(loader.test(case, &mut report)?);
    }
    if !report.is_empty() {
        return Err(report.into());
    }
    ready.retain(|test| filter.is_none_or(|filter| test.name.contains(filter)));
    Ok(ready)
}

struct Loader<'a> {
    pipeline: &'a Document,
    document: &'a Document,
    spec: Arc<PipelineSpec>,
    /// The real lookups, or why they cannot be had here.
    lookups: BTreeMap<String, Result<LookupRows, String>>,
    /// With the real lookups; `None` when one of them is not to be had.
    compiled: Option<Arc<CompiledPipeline>>,
}

impl<'a> Loader<'a> {
    async fn new(
        pipeline: &'a Document,
        document: &'a Document,
        spec: PipelineSpec,
        cases: &[TestCase],
    ) -> Result<Loader<'a>, Failure> {
        let mut lookups = BTreeMap::new();
        for (name, lookup) in spec.lookups.iter().filter(|_| !cases.is_empty()) {
            lookups.insert(name.clone(), open_lookup(name, lookup).await);
        }
        let mut loader = Loader { pipeline, document, spec: Arc::new(spec), lookups, compiled: None };
        if !cases.is_empty() && loader.lookups.values().all(Result::is_ok) {
            let real = loader.lookups.iter().filter_map(|(name, rows)| Some((name.clone(), rows.clone().ok()?)));
            loader.compiled = Some(loader.compile(&real.collect())?);
        }
        Ok(loader)
    }

    fn compile(&self, lookups: &BTreeMap<String, LookupRows>) -> Result<Arc<CompiledPipeline>, Failure> {
        let schemas = lookups.iter().map(|(name, (schema, _))| (name.clone(), schema.clone())).collect();
        compile::compile(&self.spec, &schemas).map(Arc::new).map_err(|problems| {
            let mut report = self.pipeline.report();
            problems.into_iter().for_each(|problem| compose::add_sql(&mut report, problem));
            report.into()
        })
    }

    /// A test that can run; `None` = its problems are in the report.
    fn test(&self, case: &TestCase, report: &mut Report) -> Result<Option<Test>, Failure> {
        let before = report.problems().len();
        let (lookups, inferred) = self.lookups_of(case, report)?;
        if report.problems().len() > before {
            return Ok(None);
        }
        let compiled = match &self.compiled {
            Some(compiled) if !inferred => compiled.clone(),
            _ => self.compile(&lookups)?,
        };
        let maker = Maker { pipeline: self.spec.name.clone(), pipeline_id: PIPELINE_ID.to_string() };
        let definitions = table_definitions(&compiled, &maker);
        let mut records = Records::new(&self.spec, case.now);
        let mut batches = Vec::new();
        for rows in &case.batches {
            let mut batch = Vec::new();
            for (source, rows) in rows {
                for row in rows {
                    batch.extend(records.record(source, row, report).map(|record| (source.clone(), record)));
                }
            }
            batches.push(batch);
        }
        let tables = self.tables_of(case, &definitions, report)?;
        let expect = case.expect.iter().filter_map(|(table, expected)| {
            let definition = definitions.iter().find(|definition| definition.name == *table)?;
            Some(self.expectation(definition, expected, report))
        });
        let expect: Vec<Expectation> = expect.collect();
        let (line, column) = (case.place.line, case.place.column);
        Ok((report.problems().len() == before).then(|| Test {
            name: case.name.clone(),
            place: format!("{}:{line}:{column}", self.document.file()),
            now: case.now,
            spec: self.spec.clone(),
            compiled,
            definitions,
            lookups,
            batches,
            tables,
            expect,
        }))
    }

    /// The lookups of a test, and whether the type of one was inferred from the test's rows.
    fn lookups_of(
        &self,
        case: &TestCase,
        report: &mut Report,
    ) -> Result<(BTreeMap<String, LookupRows>, bool), Failure> {
        let (mut lookups, mut any_inferred) = (BTreeMap::new(), false);
        for (name, real) in &self.lookups {
            let rows = match (case.lookups.get(name), real) {
                (None, Ok(real)) => real.clone(),
                (None, Err(why)) => {
                    let problem = Problem::in_test(case.place, format!("the lookup `{name}` {why}"));
                    report
                        .add(problem.help(format!("give its rows in the test: given: {{lookups: {{{name}: [...]}}}}")));
                    continue;
                }
                (Some(rows), Ok((schema, _))) => {
                    let typed = typed_rows(&format!("the lookup `{name}`"), rows, schema, case.now, report)?;
                    (schema.clone(), Arc::new(in_schema(&typed.unwrap_or_default(), schema)?))
                }
                (Some(rows), Err(_)) => {
                    any_inferred = true;
                    let (schema, rows) = given::inferred_rows(rows)?;
                    (schema, Arc::new(rows))
                }
            };
            lookups.insert(name.clone(), rows);
        }
        Ok((lookups, any_inferred))
    }

    fn tables_of(
        &self,
        case: &TestCase,
        definitions: &[TableDefinition],
        report: &mut Report,
    ) -> Result<BTreeMap<String, Vec<RecordBatch>>, Failure> {
        let mut tables = BTreeMap::new();
        for (name, rows) in &case.tables {
            let Some(definition) = definitions.iter().find(|definition| definition.name == *name) else { continue };
            if matches!(definition.write, table::WriteMode::Refresh { .. }) {
                let span = rows.first().map_or(case.place, |row| row.span);
                let problem = Problem::in_test(span, format!("the rows of {name} are computed"));
                report.add(problem.help("give rows to the table that it reads"));
                continue;
            }
            let typed = typed_rows(name, rows, &definition.schema, case.now, report)?;
            let Some(typed) = typed else { continue };
            tables.insert(name.clone(), stored_rows(&typed, definition)?);
        }
        Ok(tables)
    }

    fn expectation(&self, definition: &TableDefinition, expected: &Expected, report: &mut Report) -> Expectation {
        let spec = self.spec.tables.iter().find(|table| table.name == definition.name);
        let keys = match spec.map(|spec| &spec.write) {
            Some(WriteSpec::Upsert { key, .. }) => key.clone(),
            _ => Vec::new(),
        };
        let rows = match expected {
            Expected::Count(count) => ExpectedRows::Count(*count),
            Expected::Rows(rows) => {
                ExpectedRows::Rows(rows.iter().map(|row| self.row(row, definition, report)).collect())
            }
        };
        Expectation { table: definition.name.clone(), keys, rows }
    }

    fn row(&self, row: &Node, definition: &TableDefinition, report: &mut Report) -> Vec<Cell> {
        let names: Vec<&str> = definition.schema.fields().iter().map(|field| field.name().as_str()).collect();
        let evolves = definition.write == table::WriteMode::Append
            && self.spec.sources.values().any(|source| source.schema_drift == SchemaDrift::Evolve);
        let mut cells = Vec::new();
        for entry in mapping(row).unwrap_or_default() {
            let data_type = match definition.schema.field_with_name(&entry.key) {
                Ok(field) => field.data_type().clone(),
                // Columns that nobody announced are text.
                Err(_) if evolves => DataType::Utf8,
                Err(_) => {
                    report.add(unknown_column(entry, &definition.name, &names));
                    continue;
                }
            };
            match want(&entry.value, &data_type) {
                Ok(want) => cells.push(Cell { column: entry.key.clone(), want, written: written(&entry.value) }),
                Err(refusal) => {
                    report.add(Problem::in_test(refusal.span, refusal.message).label(refusal.label).help(format!(
                        "`{}` of {} is {}",
                        entry.key,
                        definition.name,
                        type_name(&data_type)
                    )))
                }
            }
        }
        cells
    }
}

/// What `apply` wants: the table's columns and, for upserts, where the rows came from and that they are no deletes.
fn stored_rows(rows: &[RecordBatch], definition: &TableDefinition) -> Result<Vec<RecordBatch>> {
    use arrow::array::BooleanArray;
    use arrow::datatypes::{Field, Schema};
    let mut stored = in_schema(rows, &definition.schema)?;
    let table::WriteMode::Upsert { delete_flag, .. } = &definition.write else { return Ok(stored) };
    for (stored, row) in stored.iter_mut().zip(rows) {
        let mut fields = stored.schema().fields().to_vec();
        let mut columns = stored.columns().to_vec();
        for name in compile::COORDINATES {
            if let (Err(_), Ok(field), Some(column)) =
                (stored.schema().field_with_name(name), row.schema().field_with_name(name), row.column_by_name(name))
            {
                fields.push(Arc::new(field.clone()));
                columns.push(column.clone());
            }
        }
        if delete_flag.is_some() {
            fields.push(Arc::new(Field::new(DELETE_FLAG, DataType::Boolean, true)));
            columns.push(Arc::new(BooleanArray::from(vec![false; row.num_rows()])));
        }
        *stored = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
            .context(ErrorKind::Failed, "given rows do not fit the table")?;
    }
    Ok(stored)
}

/// A lookup that lies on this machine; anything else would be a service.
async fn open_lookup(name: &str, spec: &LookupSpec) -> Result<LookupRows, String> {
    let (LookupSpec::Delta(location) | LookupSpec::Parquet(location) | LookupSpec::Csv(location)) = spec;
    if location.contains("${") {
        return Err("has a path that is not set here".to_string());
    }
    if location.contains("://") && !location.starts_with("file://") {
        return Err(format!("is not on this machine ({location}), and tests contact no service"));
    }
    let opened = async {
        let mut lookup = table::lookup::open(name, spec)?;
        let schema = lookup.schema().await?;
        let version = lookup.latest().await?;
        Ok::<_, crate::error::Error>((schema, lookup.load(version).await?))
    };
    opened.await.map_err(|error| format!("cannot be read: {error}"))
}

/// Files as given, folders as the pipelines and tests in them.
pub(super) fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries =
            std::fs::read_dir(path).context(ErrorKind::Usage, format!("folder {} cannot be read", path.display()))?;
        let mut found: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml"))
            .collect();
        found.sort();
        files.extend(found);
    }
    Ok(files)
}
