//! Tables that remember, compiled: what arrives at their operator, the operator, and what their SQL makes of its rows.
//!
//! ```text
//! aggregate   batch → sql → arguments of the measures → windows → measures
//! dedupe      batch → rows not seen before → sql
//! join        both batches → pairs → sql
//! ```
//!
//! What comes after the operator is an ordinary query over `batch`, with rules and a write mode like any other.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field as ArrowField, Schema, SchemaRef};

use super::compile::{COORDINATES, CompiledTable, TableCompiler};
use super::dedupe::{Dedupe, Deduplication};
use super::join::columns::Misfit;
use super::join::{Columns, Join, Joining};
use super::problems::{Field, Finding, Place, SqlProblem, suggest};
use super::rewrite::{BATCH, Moment, quoted};
use super::stateful::{Stateful, event_times, is_event_time};
use super::types::timestamp;
use super::window::function::{Function, argument_column};
use super::window::measures::{self, Measures};
use super::window::{Aggregation, WINDOW_END, Windows};
use super::{Inputs, run};
use crate::config::spec::{AggregateSpec, DedupeSpec, From, JoinSpec, KeepsSpec, OperatorSpec, TableSpec, WriteSpec};
use crate::error::{Context, Error, ErrorKind, Result};

/// The event time of rows that arrive at windows.
const EVENT_TIME: &str = "_event_time";

/// What a table remembers, ready to run.
pub(super) struct CompiledKeeps {
    /// By input, the queries that make arrivals of its rows; none = rows arrive as they are.
    arrivals: Vec<Vec<CompiledTable>>,
    /// By input, the column of event times.
    columns: Vec<String>,
    blueprint: Blueprint,
    /// Columns of the operator's rows: `batch` of the table's own query.
    pub(super) output: SchemaRef,
}

/// What the operator is made from.
enum Blueprint {
    Windows(Aggregation),
    Dedupe(Deduplication),
    Join(Joining),
}

/// A table as its own query sees it: `batch` is what the operator gives.
pub(super) struct Prepared {
    pub(super) keeps: CompiledKeeps,
    /// The table with the query that follows the operator.
    pub(super) table: TableSpec,
}

/// Compiles what stands before a table's own query. `batches` are the columns of its inputs.
pub(super) fn compile(
    compiler: &TableCompiler<'_>,
    keeps: &KeepsSpec,
    batches: &[SchemaRef],
) -> std::result::Result<Prepared, Vec<SqlProblem>> {
    let table = compiler.table;
    let mut problems = Vec::new();
    for ((batch, column), from) in batches.iter().zip(&keeps.watermark.columns).zip(table.inputs()) {
        if let Some(finding) = unfit_time(batch, column, from) {
            problems.push(finding.in_field(&table.name, Field::Inside(&["from"])));
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    match &keeps.operator {
        OperatorSpec::Aggregate(aggregate) => windows(compiler, keeps, aggregate),
        OperatorSpec::Dedupe(dedupe) => dedupe_rows(compiler, keeps, dedupe, batches),
        OperatorSpec::Join(join) => pairs(compiler, keeps, join, batches),
    }
}

/// Why the event time cannot be read from an input.
fn unfit_time(batch: &Schema, column: &str, from: &From) -> Option<Finding> {
    if column.is_empty() {
        return None;
    }
    let (From::Source(from) | From::Table(from)) = from;
    let finding = |message: String| Finding { place: Place::START, message, help: None };
    match batch.column_with_name(column) {
        None => {
            let known: Vec<&str> = batch
                .fields()
                .iter()
                .filter(|field| is_event_time(field.data_type()))
                .map(|field| field.name().as_str())
                .collect();
            let help = format!(
                "let it through in the `sql` of `{from}`, or name another column with `watermark: {{event_time: …}}`{}",
                match known.is_empty() {
                    true => String::new(),
                    false => format!("; it has {}", known.join(", ")),
                }
            );
            Some(finding(format!("`{from}` has no column `{column}`, which is the event time")).help(&help))
        }
        Some((_, field)) if !is_event_time(field.data_type()) => {
            let message = format!("the event time `{column}` is {}, not a timestamp or a date", field.data_type());
            Some(
                finding(message)
                    .help("cast it in the table before, or name another column with `watermark: {event_time: …}`"),
            )
        }
        Some(_) => None,
    }
}

fn windows(
    compiler: &TableCompiler<'_>,
    keeps: &KeepsSpec,
    aggregate: &AggregateSpec,
) -> std::result::Result<Prepared, Vec<SqlProblem>> {
    let table = compiler.table;
    let mut steps = Vec::new();
    let mut batch = compiler.batch.clone();
    if table.sql.is_some() {
        let shaping = TableSpec {
            expect: Vec::new(),
            write: WriteSpec::Append,
            partition_by: Vec::new(),
            keeps: None,
            ..table.clone()
        };
        let step = TableCompiler { table: &shaping, ..*compiler }.compile()?;
        if !step.reads.tables.is_empty() {
            let finding = Finding {
                place: Place::START,
                message: "the `sql` of an aggregate reads the rows of the batch, not whole tables".into(),
                help: None,
            };
            return Err(vec![
                finding
                    .help("read `FROM batch`; static sides of joins go under `lookups:`")
                    .in_field(&table.name, Field::Sql),
            ]);
        }
        batch = step.computed.clone();
        steps.push(step);
    }
    let column = keeps.watermark.columns.first().cloned().unwrap_or_default();
    let mut problems = missing(&table.name, &batch, &aggregate.by, &["aggregate", "by"]);
    if !column.is_empty() && batch.column_with_name(&column).is_none() {
        let message = format!("the rows have no column `{column}`, which is the event time");
        let finding = Finding { place: Place::START, message, help: None };
        problems.push(finding.help("select it, too").in_field(&table.name, Field::Sql));
    }
    let bounds: &[&str] = if aggregate.window.is_some() { &["window_start", "window_end"] } else { &[] };
    let named: Vec<&str> = aggregate.by.iter().map(String::as_str).chain(bounds.iter().copied()).collect();
    let measures = match measures::parse(&aggregate.measures, &named) {
        Ok(measures) => measures,
        Err(found) => {
            problems.extend(found.into_iter().map(|p| p.finding.in_field(&table.name, Field::Measure(p.measure))));
            return Err(problems);
        }
    };
    problems.extend(argument_problems(compiler, &batch, &measures, &aggregate.measures));
    if !problems.is_empty() {
        return Err(problems);
    }
    let arguments = arguments_of(compiler, &batch, aggregate, &measures, &column)?;
    let aggregation = aggregation(table, keeps, aggregate, &measures, &arguments.computed)?;
    steps.push(arguments);
    let output = Windows::new(aggregation.clone()).map(|windows| windows.output()).map_err(|error| {
        let finding = Finding { place: Place::START, message: error.to_string(), help: None };
        vec![finding.in_field(&table.name, Field::Inside(&["aggregate"]))]
    })?;
    let items = aggregate.by.iter().map(|name| quoted(name).to_string());
    let items = items.chain(bounds.iter().map(ToString::to_string));
    let items = items.chain(measures.results.iter().map(|(name, sql)| format!("{sql} AS {}", quoted(name))));
    let sql = format!("SELECT {} FROM {BATCH}", items.collect::<Vec<_>>().join(", "));
    let keeps = CompiledKeeps {
        arrivals: vec![steps],
        columns: vec![column],
        blueprint: Blueprint::Windows(aggregation),
        output,
    };
    Ok(Prepared { keeps, table: TableSpec { sql: Some(sql), ..table.clone() } })
}

fn missing(table: &str, batch: &Schema, names: &[String], path: &'static [&'static str]) -> Vec<SqlProblem> {
    let absent = names.iter().filter(|name| batch.column_with_name(name).is_none());
    let known = || batch.fields().iter().map(|field| field.name().as_str());
    absent
        .map(|name| {
            let message = format!("the rows have no column `{name}`");
            Finding { place: Place::START, message, help: suggest(name, known(), "columns") }
                .in_field(table, Field::Inside(path))
        })
        .collect()
}

/// What is wrong with the arguments of aggregates, each where it stands.
fn argument_problems(
    compiler: &TableCompiler<'_>,
    batch: &SchemaRef,
    measures: &Measures,
    written: &[(String, String)],
) -> Vec<SqlProblem> {
    let mut problems = Vec::new();
    for (number, argument) in measures.arguments.iter().enumerate() {
        let user = measures.functions.iter().find(|function| function.argument == Some(number));
        let Some(measure) = user.map(|function| function.measure.clone()) else { continue };
        let text = written.iter().find(|(name, _)| *name == measure).map_or(argument.as_str(), |(_, sql)| sql);
        if let Err(finding) = compiler.infer_expression(batch, argument, text) {
            problems.push(finding.in_field(&compiler.table.name, Field::Measure(measure)));
        }
    }
    problems
}

/// The query that computes what windows take: group columns, event time, arguments, and where the row came from.
fn arguments_of(
    compiler: &TableCompiler<'_>,
    batch: &SchemaRef,
    aggregate: &AggregateSpec,
    measures: &Measures,
    column: &str,
) -> std::result::Result<CompiledTable, Vec<SqlProblem>> {
    let mut items: Vec<String> = aggregate.by.iter().map(|name| quoted(name).to_string()).collect();
    if !column.is_empty() {
        items.push(format!("{} AS {}", quoted(column), quoted(EVENT_TIME)));
    }
    let arguments = measures.arguments.iter().enumerate();
    items.extend(arguments.map(|(number, sql)| format!("({sql}) AS {}", quoted(&argument_column(number)))));
    let coordinates = COORDINATES.iter().filter(|name| batch.column_with_name(name).is_some());
    items.extend(
        coordinates.filter(|name| !aggregate.by.iter().any(|by| by == *name)).map(|name| quoted(name).to_string()),
    );
    if items.is_empty() {
        // `count(*)` over everything: rows must have something to be counted by.
        items.push("1 AS \"_row\"".into());
    }
    let sql = format!("SELECT {} FROM {BATCH}", items.join(", "));
    let table = TableSpec {
        sql: Some(sql),
        expect: Vec::new(),
        write: WriteSpec::Append,
        partition_by: Vec::new(),
        keeps: None,
        ..compiler.table.clone()
    };
    TableCompiler { table: &table, batch, upstream: None, ..*compiler }.compile()
}

fn aggregation(
    table: &TableSpec,
    keeps: &KeepsSpec,
    aggregate: &AggregateSpec,
    measures: &Measures,
    arrivals: &Schema,
) -> std::result::Result<Aggregation, Vec<SqlProblem>> {
    let by = aggregate.by.iter().filter_map(|name| arrivals.field_with_name(name).ok().cloned()).collect();
    let mut functions = Vec::new();
    let mut problems = Vec::new();
    for aggregate in &measures.functions {
        let argument_type = aggregate
            .argument
            .and_then(|number| arrivals.field_with_name(&argument_column(number)).ok())
            .map(|field| field.data_type().clone());
        let function = Function {
            kind: aggregate.kind,
            argument: aggregate.argument,
            argument_type,
            measure: aggregate.measure.clone(),
        };
        if let Err(message) = function.output(functions.len()) {
            let finding = Finding { place: Place::START, message, help: None };
            problems.push(finding.in_field(&table.name, Field::Measure(aggregate.measure.clone())));
        }
        functions.push(function);
    }
    match problems.is_empty() {
        true => Ok(Aggregation {
            by,
            window: aggregate.window,
            functions,
            emit: aggregate.emit,
            late: keeps.watermark.late,
        }),
        false => Err(problems),
    }
}

fn dedupe_rows(
    compiler: &TableCompiler<'_>,
    keeps: &KeepsSpec,
    dedupe: &DedupeSpec,
    batches: &[SchemaRef],
) -> std::result::Result<Prepared, Vec<SqlProblem>> {
    const KEY: &[&str] = &["dedupe", "key"];
    let table = compiler.table;
    let rows = batches.first().cloned().unwrap_or_else(|| compiler.batch.clone());
    let problems = missing(&table.name, &rows, &dedupe.key, KEY);
    if !problems.is_empty() {
        return Err(problems);
    }
    let column = keeps.watermark.columns.first().cloned().unwrap_or_default();
    let what = Deduplication {
        key: dedupe.key.iter().filter_map(|name| rows.field_with_name(name).ok().cloned()).collect(),
        event_time: column.clone(),
        within: dedupe.within,
        late: keeps.watermark.late,
        rows: rows.clone(),
    };
    Dedupe::new(what.clone(), chrono_tz::UTC).map_err(|error| unfit(table, &error, KEY))?;
    let blueprint = Blueprint::Dedupe(what);
    let keeps = CompiledKeeps { arrivals: vec![Vec::new()], columns: vec![column], blueprint, output: rows };
    Ok(Prepared { keeps, table: table.clone() })
}

/// An operator that cannot be made, as a problem of the key that says what it is made from.
fn unfit(table: &TableSpec, error: &Error, path: &'static [&'static str]) -> Vec<SqlProblem> {
    let finding = Finding { place: Place::START, message: error.to_string(), help: None };
    vec![finding.in_field(&table.name, Field::Inside(path))]
}

fn pairs(
    compiler: &TableCompiler<'_>,
    keeps: &KeepsSpec,
    join: &JoinSpec,
    batches: &[SchemaRef],
) -> std::result::Result<Prepared, Vec<SqlProblem>> {
    const ON: &[&str] = &["join", "on"];
    let table = compiler.table;
    let [left, right] = batches else { return Err(unfit(table, &Error::failed("a join has two sides"), ON)) };
    let mut problems = missing(&table.name, left, &join.on, ON);
    for problem in missing(&table.name, right, &join.on, ON) {
        if !problems.iter().any(|known| known.message == problem.message) {
            problems.push(problem);
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let (From::Source(name) | From::Table(name)) = &join.right;
    let prefix = name.rsplit('.').next().unwrap_or(name);
    let columns = Columns::of(left, right, &join.on, prefix).map_err(|misfits| {
        let problem = |misfit: Misfit| {
            let path: &'static [&'static str] = match misfit.key {
                "on" => ON,
                "left" => &["join", "left"],
                _ => &["join", "right"],
            };
            let finding = Finding { place: Place::START, message: misfit.message, help: None };
            finding.help(&misfit.help).in_field(&table.name, Field::Inside(path))
        };
        misfits.into_iter().map(problem).collect::<Vec<_>>()
    })?;
    let columns_of_time = &keeps.watermark.columns;
    let event_times = [0, 1].map(|side| columns_of_time.get(side).cloned().unwrap_or_default());
    let late = keeps.watermark.late;
    let what = Joining { columns, event_times, within: join.within, outer: join.outer, late };
    let output = Join::new(what.clone(), chrono_tz::UTC).map_err(|error| unfit(table, &error, &["join"]))?.output();
    let keeps = CompiledKeeps {
        arrivals: vec![Vec::new(), Vec::new()],
        columns: columns_of_time.clone(),
        blueprint: Blueprint::Join(what),
        output,
    };
    Ok(Prepared { keeps, table: table.clone() })
}

impl CompiledKeeps {
    /// The operator, remembering nothing.
    pub(super) fn operator(&self, timezone: chrono_tz::Tz) -> Result<Box<dyn Stateful>> {
        Ok(match &self.blueprint {
            Blueprint::Windows(aggregation) => Box::new(Windows::new(aggregation.clone())?),
            Blueprint::Dedupe(what) => Box::new(Dedupe::new(what.clone(), timezone)?),
            Blueprint::Join(what) => Box::new(Join::new(what.clone(), timezone)?),
        })
    }

    /// Rows of an input as the operator takes them.
    pub(super) fn arrivals(
        &self,
        input: usize,
        inputs: &Inputs,
        moment: &Moment,
        timezone: chrono_tz::Tz,
    ) -> Result<Vec<RecordBatch>> {
        let mut rows = run::live(&inputs.batch)?;
        for step in self.arrivals.get(input).into_iter().flatten() {
            let inputs = Inputs { batch: Arc::new(rows), ..inputs.clone() };
            rows = step.compute(&inputs, moment)?;
        }
        match &self.blueprint {
            Blueprint::Windows(_) if !self.columns.iter().all(String::is_empty) => {
                let name = self.columns.get(input).map_or(EVENT_TIME, String::as_str);
                rows.iter().map(|rows| with_instants(rows, name, timezone)).collect()
            }
            Blueprint::Windows(_) | Blueprint::Dedupe(_) | Blueprint::Join(_) => Ok(rows),
        }
    }
}

/// The event time as a timestamp, whatever it was.
fn with_instants(rows: &RecordBatch, name: &str, timezone: chrono_tz::Tz) -> Result<RecordBatch> {
    let Some((at, field)) = rows.schema_ref().column_with_name(EVENT_TIME).map(|(at, field)| (at, field.clone()))
    else {
        return Ok(rows.clone());
    };
    if *field.data_type() == timestamp() && name != WINDOW_END {
        return Ok(rows.clone());
    }
    let times = event_times(name, rows.column(at), timezone)?;
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC"));
    let mut columns = rows.columns().to_vec();
    let mut fields: Vec<_> = rows.schema_ref().fields().iter().cloned().collect();
    columns[at] = times;
    fields[at] = Arc::new(ArrowField::new(
        EVENT_TIME,
        DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some("UTC".into())),
        true,
    ));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).context(ErrorKind::Failed, "event times as timestamps")
}
