//! Pipeline SQL, checked without data and made ready to run: every problem of every table in one pass.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field as ArrowField, Schema, SchemaRef};
use sqlparser::ast::Query;

use super::analysis::keeps_columns;
use super::decode::{Decoder, row_schema};
use super::engine::{self, OUTPUT};
use super::expect::{DELETE_FLAG, check_column};
use super::keeps::{self, CompiledKeeps};
use super::problems::{Field, Finding, Place, SqlProblem, explain, locate, refresh_reads_tables, suggest};
use super::rewrite::{self, BATCH, Input, InputKind, Moment, Prepared, Scope, prepare_expression, prepare_query};
use super::tally::{self, Tally, Upstream};
use super::types::stored_schema;
use super::{Reads, dead_letter};
use crate::config::spec::{Action, Expectation, From, KeepsSpec, OperatorSpec, PipelineSpec, TableSpec, WriteSpec};
use crate::source::column;

/// Where a row came from.
pub const COORDINATES: [&str; 3] = [column::TOPIC, column::PARTITION, column::OFFSET];

/// A pipeline whose SQL is known to be right.
pub struct CompiledPipeline {
    pub(super) decoders: BTreeMap<String, Decoder>,
    pub(super) tables: BTreeMap<String, CompiledTable>,
    pub(super) dead_letters: Option<(String, SchemaRef)>,
    pub(super) nothing: Reads,
    pub(super) spec: PipelineSpec,
}

/// One table, ready to run.
pub(super) struct CompiledTable {
    pub(super) spec: TableSpec,
    pub(super) inputs: Vec<Input>,
    /// `None` = the batch's rows pass through.
    pub(super) query: Option<String>,
    pub(super) computed: SchemaRef,
    pub(super) checks: Option<(String, SchemaRef)>,
    pub(super) output: SchemaRef,
    pub(super) stored: SchemaRef,
    pub(super) restore_order: bool,
    /// The coordinates in its rows are those of the records that they came from.
    pub(super) lineage: bool,
    /// Columns that are the source's, as they came.
    pub(super) passed: BTreeSet<String>,
    /// Columns that are those of the pairs of the join above it, as they came out.
    pub(super) paired: BTreeSet<String>,
    pub(super) reads: Reads,
    /// It reads whole tables, or is fed by one that does: it is computed when those are already written.
    pub(super) deferred: bool,
    /// What stands between the rows of the batch and the query.
    pub(super) keeps: Option<CompiledKeeps>,
    /// Of a refresh table: how what changed upstream changes it, or why its groups are computed from all of their rows.
    pub(super) upkeep: Option<Result<Tally, String>>,
}

impl CompiledPipeline {
    /// How a refresh table follows its upstream, for people; `None` = it is none.
    pub fn upkeep(&self, table: &str) -> Option<String> {
        Some(match self.tables.get(table)?.upkeep.as_ref()? {
            Ok(_) => "maintained from changes".to_string(),
            Err(why) => format!("recomputed per group, because {why}"),
        })
    }
}

impl CompiledTable {
    pub(super) fn is_refresh(&self) -> bool {
        matches!(self.spec.write, WriteSpec::Refresh { .. })
    }

    pub(super) fn has_windows(&self) -> bool {
        matches!(self.spec.write, WriteSpec::Windows { .. })
    }

    pub(super) fn expectations(&self) -> &[Expectation] {
        &self.spec.expect
    }

    pub(super) fn key(&self) -> &[String] {
        match &self.spec.write {
            WriteSpec::Upsert { key, .. } => key,
            _ => &[],
        }
    }
}

/// Checks and prepares every table's SQL. `lookups` are the schemas of the pipeline's lookups, by name.
pub fn compile(
    spec: &PipelineSpec,
    lookups: &BTreeMap<String, SchemaRef>,
) -> std::result::Result<CompiledPipeline, Vec<SqlProblem>> {
    let mut problems = Vec::new();
    let mut tables = BTreeMap::new();
    let mut schemas: BTreeMap<String, SchemaRef> = BTreeMap::new();
    let mut broken: Vec<&str> = Vec::new();
    for table in &spec.tables {
        let mut batches = Vec::new();
        for from in table.inputs() {
            let batch = match from {
                From::Source(name) => spec.sources.get(name).map(row_schema),
                From::Table(name) => schemas.get(name).cloned(),
            };
            let (From::Source(name) | From::Table(name)) = from;
            // What it reads could not be compiled: its own problems would only repeat that.
            if batch.is_none() && !broken.contains(&name.as_str()) {
                problems.push(
                    Finding {
                        place: Place::START,
                        message: format!("there is no source or table `{name}`"),
                        help: None,
                    }
                    .in_field(&table.name, Field::From),
                );
            }
            batches.extend(batch);
        }
        let Some(batch) = batches.first().filter(|_| batches.len() == table.inputs().len()).cloned() else {
            broken.push(&table.name);
            continue;
        };
        let upstream = match &table.from {
            From::Table(name) => tables.get(name),
            From::Source(_) => None,
        };
        let compiler = TableCompiler { table, batch: &batch, upstream, tables: &schemas, lookups };
        let is_deferred = |from: &&From| matches!(from, From::Table(name) if tables.get(name).is_some_and(|t: &CompiledTable| t.deferred));
        let compiled = match &table.keeps {
            None => compiler.compile(),
            Some(spec) => compiler.compile_keeping(spec, &batches, table.inputs().iter().any(is_deferred)),
        };
        match compiled {
            Ok(compiled) => {
                schemas.insert(table.name.clone(), compiled.stored.clone());
                tables.insert(table.name.clone(), compiled);
            }
            Err(found) => {
                let repeats = |problem: &SqlProblem| {
                    broken.iter().any(|name| problem.message == format!("unknown table `{name}`"))
                };
                problems.extend(found.into_iter().filter(|problem| !repeats(problem)));
                broken.push(&table.name);
            }
        }
    }
    let mut decoders = BTreeMap::new();
    for (name, source) in &spec.sources {
        match Decoder::new(name, source, spec.timezone) {
            Ok(decoder) => {
                decoders.insert(name.clone(), decoder);
            }
            Err(error) => problems.push(
                Finding { place: Place::START, message: error.to_string(), help: None }.in_field(name, Field::From),
            ),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(CompiledPipeline {
        decoders,
        tables,
        dead_letters: spec.dead_letters.as_ref().map(|dead| (dead.table.clone(), dead_letter::schema())),
        nothing: Reads::default(),
        spec: spec.clone(),
    })
}

#[derive(Clone, Copy)]
pub(super) struct TableCompiler<'a> {
    pub(super) table: &'a TableSpec,
    pub(super) batch: &'a SchemaRef,
    /// The table that `from` names.
    pub(super) upstream: Option<&'a CompiledTable>,
    pub(super) tables: &'a BTreeMap<String, SchemaRef>,
    pub(super) lookups: &'a BTreeMap<String, SchemaRef>,
}

/// A query's result, before expectations and write mode.
struct Computed {
    inputs: Vec<Input>,
    query: Option<String>,
    /// Columns of the query, injected coordinates last.
    schema: SchemaRef,
    injected: Vec<&'static str>,
    restore_order: bool,
    /// Its coordinates are those of `batch`.
    lineage: bool,
    /// Columns of `batch` that come out as they went in.
    passed: BTreeSet<String>,
    /// As in [`CompiledTable`].
    upkeep: Option<Result<Tally, String>>,
}

impl TableCompiler<'_> {
    /// A table that remembers: its query sees what the operator gives.
    fn compile_keeping(
        &self,
        spec: &KeepsSpec,
        batches: &[SchemaRef],
        deferred: bool,
    ) -> Result<CompiledTable, Vec<SqlProblem>> {
        let misfits = self.misfits();
        if !misfits.is_empty() {
            return Err(misfits);
        }
        let prepared = keeps::compile(self, spec, batches)?;
        let own_rows = matches!(spec.operator, OperatorSpec::Dedupe(_));
        let upstream = self.upstream.filter(|_| own_rows);
        let batch = &prepared.keeps.output;
        let mut compiled = TableCompiler { table: &prepared.table, batch, upstream, ..*self }.compile()?;
        if !own_rows {
            compiled.lineage = false;
            let passed = std::mem::take(&mut compiled.passed);
            if matches!(spec.operator, OperatorSpec::Join(_)) {
                compiled.paired = passed;
            }
        }
        compiled.deferred |= deferred;
        compiled.keeps = Some(prepared.keeps);
        Ok(compiled)
    }

    pub(super) fn compile(&self) -> Result<CompiledTable, Vec<SqlProblem>> {
        let misfits = self.misfits();
        if !misfits.is_empty() {
            return Err(misfits);
        }
        let computed = self.query()?;
        let mut problems = self.columns_exist(&computed.schema);
        problems.extend(self.unfit_columns(&computed.schema));
        let checks = self.checks(&computed.schema).unwrap_or_else(|found| {
            problems.extend(found);
            None
        });
        if let WriteSpec::Upsert { .. } = self.table.write
            && COORDINATES.iter().any(|name| computed.schema.column_with_name(name).is_none())
        {
            problems.push(
                Finding {
                    place: Place::START,
                    message: "an upsert must know which record each row came from".into(),
                    help: None,
                }
                .help(
                    "a plain `SELECT … FROM batch` (joins are fine) keeps track by itself; with CTEs, UNION or \
                         DISTINCT select _topic, _partition and _offset too",
                )
                .in_field(&self.table.name, if self.table.sql.is_some() { Field::Sql } else { Field::From }),
            );
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let stored = self.stored(&computed);
        let mut output: Vec<_> = stored.fields().iter().cloned().collect();
        if self.delete_when().is_some() {
            output.push(Arc::new(ArrowField::new(DELETE_FLAG, DataType::Boolean, false)));
        }
        // Checks without SQL still need a query to check.
        let query = match (&computed.query, &checks) {
            (None, Some(_)) => Some(format!("SELECT * FROM {BATCH}")),
            (query, _) => query.clone(),
        };
        let reads = self.reads(&computed.inputs);
        let deferred = !reads.tables.is_empty() || self.upstream.is_some_and(|upstream| upstream.deferred);
        let is_kept = |name: &String| {
            stored.column_with_name(name).is_some()
                && self.upstream.is_none_or(|upstream| upstream.passed.contains(name))
        };
        let is_paired = |name: &&String| self.upstream.is_some_and(|upstream| upstream.paired.contains(*name));
        let paired = computed.passed.iter().filter(is_paired).cloned().collect();
        Ok(CompiledTable {
            spec: self.table.clone(),
            reads,
            deferred,
            inputs: computed.inputs,
            query,
            computed: computed.schema,
            checks,
            output: Arc::new(Schema::new(output)),
            passed: computed.passed.into_iter().filter(is_kept).collect(),
            paired,
            stored,
            restore_order: computed.restore_order,
            lineage: computed.lineage && self.upstream.is_none_or(|upstream| upstream.lineage),
            keeps: None,
            upkeep: computed.upkeep,
        })
    }

    fn problem(&self, finding: Finding, field: Field) -> Vec<SqlProblem> {
        vec![finding.in_field(&self.table.name, field)]
    }

    fn refreshes(&self) -> bool {
        matches!(self.table.write, WriteSpec::Refresh { .. })
    }

    /// What cannot work whatever the SQL says.
    fn misfits(&self) -> Vec<SqlProblem> {
        let mut problems = Vec::new();
        if !self.refreshes()
            && let Some(upstream) = self.upstream.filter(|upstream| upstream.is_refresh() || upstream.has_windows())
        {
            let name = &upstream.spec.name;
            let message = match upstream.is_refresh() {
                true => format!("from a refresh table only another refresh table can be fed, and `{name}` is one"),
                false => {
                    format!("rows of `{name}` are replaced as windows fill: only a refresh table can be fed by it")
                }
            };
            let finding = Finding { place: Place::START, message, help: None }.help(
                "what a batch recomputes there may be more after a crash than without one; say `write: {refresh: {by: \
                 …}}` here, or feed this table from the tables upstream",
            );
            problems.push(finding.in_field(&self.table.name, Field::From));
        }
        let has_windows = matches!(self.table.write, WriteSpec::Windows { .. });
        let quarantines = |rule: &&Expectation| (self.refreshes() || has_windows) && rule.action == Action::Quarantine;
        for rule in self.table.expect.iter().filter(quarantines) {
            let message = match has_windows {
                false => {
                    "`refresh` computes its groups again and again: `else: quarantine` would set the same row aside each time"
                }
                true => {
                    "windows are written again as they fill: `else: quarantine` would set the same row aside each time"
                }
            };
            let finding = Finding { place: Place::START, message: message.into(), help: None }
                .help("put the rule on the upstream table, or say `else: warn`, `drop` or `fail`");
            problems.push(finding.in_field(&self.table.name, Field::Expect(rule.name.clone())));
        }
        problems
    }

    /// Columns that are there and cannot do what they are named for.
    fn unfit_columns(&self, computed: &Schema) -> Vec<SqlProblem> {
        let mut problems = Vec::new();
        for name in &self.table.partition_by {
            let Some((_, field)) = computed.column_with_name(name) else { continue };
            if matches!(field.data_type(), DataType::Binary) || field.data_type().is_nested() {
                let message = format!("`{name}` is {}, which cannot name a folder", field.data_type());
                let finding = Finding { place: Place::START, message, help: None }
                    .help("partition by a date, a number or a short text");
                problems.push(finding.in_field(&self.table.name, Field::PartitionBy));
            }
        }
        if let WriteSpec::Refresh { by } = &self.table.write {
            for name in by {
                let types = (computed.column_with_name(name), self.batch.column_with_name(name));
                let (Some((_, here)), Some((_, above))) = types else { continue };
                let (here, above) = (here.data_type(), above.data_type());
                // Wider numbers are the same numbers; anything else merges groups, of which only some are read again.
                let numbers = here.is_integer() && above.is_integer()
                    || matches!((here, above), (DataType::Decimal128(_, a), DataType::Decimal128(_, b)) if a >= b);
                if here != above && !numbers {
                    let message = format!("`{name}` is {above} upstream and {here} here: groups would not match");
                    let finding = Finding { place: Place::START, message, help: None }.help(
                        "pass the columns of `by` through unchanged; compute what you group by in the upstream table",
                    );
                    problems.push(finding.in_field(&self.table.name, Field::By));
                }
            }
        }
        problems
    }

    fn query(&self) -> Result<Computed, Vec<SqlProblem>> {
        let refresh = self.refreshes();
        let sql = match (&self.table.sql, &self.table.from) {
            (Some(sql), _) => sql.clone(),
            // The whole table's rows of the touched groups, not the batch's.
            (None, From::Table(name)) if refresh => format!("SELECT * FROM {}", rewrite::quoted(name)),
            (None, From::Source(_)) if refresh => {
                return Err(self.problem(refresh_reads_tables(Place::START), Field::From));
            }
            (None, _) => {
                let inputs = vec![Input { name: BATCH.into(), kind: InputKind::Batch, schema: self.batch.clone() }];
                let schema = self.batch.clone();
                let injected = Vec::new();
                let passed = schema.fields().iter().map(|field| field.name().clone()).collect();
                return Ok(Computed {
                    inputs,
                    query: None,
                    schema,
                    injected,
                    restore_order: false,
                    lineage: true,
                    passed,
                    upkeep: None,
                });
            }
        };
        let scope = Scope { engine: self.table.engine, batch: self.batch, tables: self.tables, lookups: self.lookups };
        let findings = |found: Vec<Finding>| -> Vec<SqlProblem> {
            found.into_iter().map(|finding| finding.in_field(&self.table.name, Field::Sql)).collect()
        };
        let mut prepared = prepare_query(&sql, &scope).map_err(findings)?;
        let reads_batch = prepared.inputs.iter().any(|input| input.kind == InputKind::Batch);
        if refresh && reads_batch {
            let place = locate(&prepared.original, BATCH).map_or(Place::START, Place::of);
            return Err(self.problem(refresh_reads_tables(place), Field::Sql));
        }
        if let (true, From::Table(from)) = (refresh, &self.table.from)
            && !prepared.inputs.iter().any(|input| input.kind == InputKind::Table && input.name == *from)
        {
            let message = format!("`refresh` follows `{from}`, and this does not read it");
            let finding = Finding { place: Place::START, message, help: None }.help(format!(
                "its groups are those that a batch changes in `{from}`: read them with FROM {from}, or correct `from:`"
            ));
            return Err(self.problem(finding, Field::Sql));
        }
        if let (WriteSpec::Upsert { .. }, Some(place), true) = (&self.table.write, prepared.aggregate, reads_batch) {
            let finding = Finding {
                place,
                message: "an upsert of aggregates over `batch` counts a changed row twice".into(),
                help: None,
            }
            .help("aggregate the whole table: `FROM` its name instead of `batch`, and `write: {refresh: {by: …}}`");
            return Err(self.problem(finding, Field::Sql));
        }
        let inputs: Vec<(String, SchemaRef)> =
            prepared.inputs.iter().map(|input| (input.name.clone(), input.schema.clone())).collect();
        let mut schema = self.infer(&prepared, &inputs)?;
        let mut injected = Vec::new();
        let has = |schema: &Schema, name: &str| schema.column_with_name(name).is_some();
        if let Some(qualifier) = prepared.plain.clone()
            && COORDINATES.iter().all(|name| has(self.batch, name))
        {
            injected = COORDINATES.iter().copied().filter(|name| !has(&schema, name)).collect();
            if !injected.is_empty() {
                rewrite::select_also(&mut prepared.query, &qualifier, &injected);
                schema = self.infer(&prepared, &inputs)?;
            }
        }
        let schema = stored_schema(&schema).map_err(|found| {
            let problem = |(column, message): (String, String)| {
                let place = locate(&prepared.original, &column).map_or(Place::START, Place::of);
                Finding { place, message, help: None }.in_field(&self.table.name, Field::Sql)
            };
            found.into_iter().map(problem).collect::<Vec<_>>()
        })?;
        if let Some(reserved) = schema.fields().iter().find(|field| field.name().starts_with("_tidegate_")) {
            let place = locate(&prepared.original, reserved.name()).map_or(Place::START, Place::of);
            let message = format!("column `{}`: names that start with `_tidegate_` are reserved", reserved.name());
            return Err(self.problem(Finding { place, message, help: None }, Field::Sql));
        }
        let restore_order =
            prepared.plain.is_some() && !prepared.ordered && COORDINATES.iter().all(|name| has(&schema, name));
        let lineage = prepared.plain.as_ref().is_some_and(|batch| keeps_columns(&prepared.query, batch, &COORDINATES));
        let passes = |batch: &String| {
            let names = schema.fields().iter().map(|field| field.name());
            names.filter(|name| keeps_columns(&prepared.query, batch, &[name])).cloned().collect()
        };
        let passed = prepared.plain.as_ref().map(passes).unwrap_or_default();
        Ok(Computed {
            upkeep: self.upkeep(&prepared.original, &schema),
            query: Some(prepared.query.to_string()),
            inputs: prepared.inputs,
            schema,
            injected,
            restore_order,
            lineage,
            passed,
        })
    }

    /// Of a refresh table.
    fn upkeep(&self, query: &Query, columns: &Schema) -> Option<Result<Tally, String>> {
        let (WriteSpec::Refresh { by }, From::Table(name)) = (&self.table.write, &self.table.from) else { return None };
        if !self.table.incremental {
            return Some(Err("it says `incremental: false`".into()));
        }
        // What a rule counts or leaves out, it counts and leaves out among all rows of a group.
        if let Some(rule) = self.table.expect.first() {
            return Some(Err(format!("it has the rule `{}`", rule.name)));
        }
        Some(tally::tally(query, &Upstream { name, schema: self.batch }, by, columns))
    }

    fn infer(&self, prepared: &Prepared, inputs: &[(String, SchemaRef)]) -> Result<Schema, Vec<SqlProblem>> {
        let sql = rewrite::at_moment(&prepared.query.to_string(), &Moment::never());
        engine::infer(self.table.engine, inputs, &sql).map_err(|message| {
            // Inputs are pruned to the columns that are named; a suggestion may come from all of them.
            let whole = |(name, pruned)| match name {
                BATCH => self.batch,
                name => self.tables.get(name).or_else(|| self.lookups.get(name)).unwrap_or(pruned),
            };
            let all = inputs.iter().map(|(name, pruned)| whole((name.as_str(), pruned)));
            let all = all.flat_map(|schema| schema.fields()).map(|field| field.name().as_str()).collect();
            self.problem(explain(&prepared.original, self.table.engine, &message, all), Field::Sql)
        })
    }

    fn delete_when(&self) -> Option<&str> {
        match &self.table.write {
            WriteSpec::Upsert { delete_when, .. } => delete_when.as_deref(),
            _ => None,
        }
    }

    /// One SELECT that computes every rule and the delete flag next to the output columns.
    fn checks(&self, computed: &SchemaRef) -> Result<Option<(String, SchemaRef)>, Vec<SqlProblem>> {
        let mut wanted: Vec<(Field, &str, String)> = Vec::new();
        for (index, rule) in self.table.expect.iter().enumerate() {
            wanted.push((Field::Expect(rule.name.clone()), &rule.check, check_column(index)));
        }
        wanted.extend(self.delete_when().map(|sql| (Field::DeleteWhen, sql, DELETE_FLAG.to_string())));
        if wanted.is_empty() {
            return Ok(None);
        }
        let mut problems = Vec::new();
        let mut items = vec!["*".to_string()];
        let mut fields: Vec<_> = computed.fields().iter().cloned().collect();
        for (field, sql, name) in wanted {
            match self.check(computed, sql) {
                Ok(expr) => {
                    items.push(format!("COALESCE(({expr}), FALSE) AS {}", rewrite::quoted(&name)));
                    fields.push(Arc::new(ArrowField::new(&name, DataType::Boolean, false)));
                }
                Err(found) => {
                    problems.extend(found.into_iter().map(|finding| finding.in_field(&self.table.name, field.clone())));
                }
            }
        }
        match problems.is_empty() {
            true => Ok(Some((format!("SELECT {} FROM {OUTPUT}", items.join(", ")), Arc::new(Schema::new(fields))))),
            false => Err(problems),
        }
    }

    /// The columns of an expression over rows of the batch; `written` is the text that the user knows.
    pub(super) fn infer_expression(&self, batch: &SchemaRef, sql: &str, written: &str) -> Result<Schema, Finding> {
        let query = rewrite::at_moment(&format!("SELECT ({sql}) AS c FROM {BATCH}"), &Moment::never());
        let inputs = [(BATCH.to_string(), batch.clone())];
        engine::infer(self.table.engine, &inputs, &query).map_err(|message| match rewrite::parse_expression(written) {
            Ok(original) => {
                let columns = batch.fields().iter().map(|field| field.name().as_str()).collect();
                explain(&original, self.table.engine, &message, columns)
            }
            Err(finding) => finding,
        })
    }

    fn check(&self, computed: &SchemaRef, sql: &str) -> Result<String, Vec<Finding>> {
        let expr = prepare_expression(sql, self.table.engine)?.to_string();
        let query = rewrite::at_moment(&format!("SELECT ({expr}) AS c FROM {OUTPUT}"), &Moment::never());
        let inputs = [(OUTPUT.to_string(), computed.clone())];
        let original = rewrite::parse_expression(sql).map_err(|finding| vec![finding])?;
        let schema = engine::infer(self.table.engine, &inputs, &query).map_err(|message| {
            let columns = computed.fields().iter().map(|field| field.name().as_str()).collect();
            vec![explain(&original, self.table.engine, &message, columns)]
        })?;
        match schema.field(0).data_type() {
            DataType::Boolean => Ok(expr),
            other => Err(vec![Finding {
                place: Place::START,
                message: format!("must be a condition (true or false), not {other}"),
                help: None,
            }]),
        }
    }

    fn columns_exist(&self, computed: &SchemaRef) -> Vec<SqlProblem> {
        let mut wanted: Vec<(Field, &String)> = Vec::new();
        match &self.table.write {
            WriteSpec::Append => {}
            WriteSpec::Upsert { key, order_by, drop, .. } => {
                wanted.extend(key.iter().map(|name| (Field::Key, name)));
                wanted.extend(order_by.iter().map(|name| (Field::OrderBy, name)));
                wanted.extend(drop.iter().map(|name| (Field::Drop, name)));
            }
            WriteSpec::Refresh { by } => wanted.extend(by.iter().map(|name| (Field::By, name))),
            // They are the operator's own.
            WriteSpec::Windows { .. } => {}
        }
        wanted.extend(self.table.partition_by.iter().map(|name| (Field::PartitionBy, name)));
        let mut problems = Vec::new();
        let mut missing = |field: Field, name: &str, schema: &Schema, whose: String| {
            if schema.column_with_name(name).is_none() {
                let known = schema.fields().iter().map(|field| field.name().as_str());
                let finding = Finding {
                    place: Place::START,
                    message: format!("{whose} has no column `{name}`"),
                    help: suggest(name, known, "columns"),
                };
                problems.push(finding.in_field(&self.table.name, field));
            }
        };
        for (field, name) in wanted {
            missing(field, name, computed, "the table".to_string());
        }
        if let (WriteSpec::Refresh { by }, From::Table(upstream)) = (&self.table.write, &self.table.from) {
            for name in by {
                missing(Field::By, name, self.batch, format!("`{upstream}`"));
            }
        }
        if let WriteSpec::Upsert { key, order_by, drop, .. } = &self.table.write {
            for (what, names) in [("key", key), ("order_by", order_by), ("partition_by", &self.table.partition_by)] {
                for name in names.iter().filter(|name| drop.contains(name)) {
                    let message = format!("`{name}` is in `{what}` and must be stored");
                    problems.push(
                        Finding { place: Place::START, message, help: None }.in_field(&self.table.name, Field::Drop),
                    );
                }
            }
        }
        problems
    }

    fn stored(&self, computed: &Computed) -> SchemaRef {
        let mut fields: Vec<_> = Vec::new();
        for field in computed.schema.fields() {
            let injected = computed.injected.contains(&field.name().as_str());
            match &self.table.write {
                WriteSpec::Upsert { drop, key, .. } => {
                    let coordinate = COORDINATES.contains(&field.name().as_str());
                    if key.contains(field.name()) {
                        fields.push(Arc::new(field.as_ref().clone().with_nullable(false)));
                    } else if coordinate || !drop.contains(field.name()) {
                        fields.push(field.clone());
                    }
                }
                _ if injected => {}
                _ => fields.push(field.clone()),
            }
        }
        Arc::new(Schema::new(fields))
    }

    fn reads(&self, inputs: &[Input]) -> Reads {
        let mut reads = Reads::default();
        for input in inputs {
            match input.kind {
                InputKind::Batch => reads.batch = true,
                InputKind::Lookup => reads.lookups.push(input.name.clone()),
                InputKind::Table => {
                    let mut columns: Vec<String> =
                        input.schema.fields().iter().map(|field| field.name().clone()).collect();
                    if let WriteSpec::Refresh { by } = &self.table.write {
                        let known = self.tables.get(&input.name);
                        let extra = by.iter().filter(|name| {
                            !columns.contains(name)
                                && known.is_some_and(|schema| schema.column_with_name(name).is_some())
                        });
                        let extra: Vec<String> = extra.cloned().collect();
                        columns.extend(extra);
                    }
                    reads.tables.insert(input.name.clone(), columns);
                }
            }
        }
        reads
    }
}
