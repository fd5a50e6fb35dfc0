//! From the SQL a user writes to the SQL an engine runs: names resolved, `:batch_time` filled in, functions that would
//! make a transform differ from run to run refused, and the gaps of Polars SQL closed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use arrow::datatypes::SchemaRef;
use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};
use chrono_tz::Tz;
use sqlparser::ast::{
    CastKind, DataType as SqlType, DateTimeField, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList,
    FunctionArguments, Ident, JoinConstraint, JoinOperator, ObjectName, ObjectNamePart, Query, Select, SelectItem,
    SelectItemQualifiedWildcardKind, SetExpr, Spanned, Statement, TableFactor, Value, VisitMut, VisitorMut,
};
use sqlparser::dialect::GenericDialect;
use sqlparser::parser::{Parser, ParserError, ParserOptions};
use sqlparser::tokenizer::{Span, Token};

use super::BatchContext;
use super::analysis::{first_aggregate, outermost_aggregate, plain_over_batch};
use super::polars_functions as polars;
use super::problems::{Finding, Place, suggest};
use crate::config::spec::Engine;
use crate::model::interval::Interval;

/// The rows of this micro-batch.
pub const BATCH: &str = "batch";
/// Stands for the batch time until a batch runs.
const BATCH_TIME_MARK: &str = "<tidegate:batch_time>";

/// The same for the date, and for the two ends of the interval that is derived again.
const DATE_MARK: &str = "<tidegate:date>";
const RANGE_START_MARK: &str = "<tidegate:range_start>";
const RANGE_END_MARK: &str = "<tidegate:range_end>";

/// What stands for itself in SQL until a batch runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// `:batch_time`.
    pub batch_time: DateTime<Utc>,
    /// `:date`: the first day of the interval that is derived again; for a live batch the day of its time.
    pub date: NaiveDate,
    /// `:range_start` and `:range_end`: the interval that is derived again; null in a live batch.
    pub range: Option<Interval>,
}

impl Moment {
    /// For SQL that is only checked.
    pub fn never() -> Moment {
        Moment { batch_time: DateTime::UNIX_EPOCH, date: NaiveDate::default(), range: None }
    }

    /// Of a batch.
    pub fn of(context: &BatchContext, timezone: Tz) -> Moment {
        let (batch_time, range) = (context.batch_time, context.interval);
        let at = range.map_or(batch_time, |interval| interval.start);
        Moment { batch_time, date: at.with_timezone(&timezone).date_naive(), range }
    }
}

/// What a query may name.
#[derive(Debug)]
pub struct Scope<'a> {
    /// Which dialect the result is for.
    pub engine: Engine,
    /// Columns of `batch`.
    pub batch: &'a SchemaRef,
    /// Tables computed before this one, by name.
    pub tables: &'a BTreeMap<String, SchemaRef>,
    /// Lookups, by name.
    pub lookups: &'a BTreeMap<String, SchemaRef>,
}

/// Where rows registered with an engine come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputKind {
    /// The rows of this micro-batch.
    Batch,
    /// A whole table of the pipeline.
    Table,
    /// A lookup.
    Lookup,
}

/// Rows that a query reads.
#[derive(Debug, Clone)]
pub struct Input {
    /// Name in the SQL and in the engine.
    pub name: String,
    /// Where the rows come from.
    pub kind: InputKind,
    /// The columns that the query may touch.
    pub schema: SchemaRef,
}

/// A query ready for an engine.
#[derive(Debug)]
pub struct Prepared {
    /// As written, for positions.
    pub original: Query,
    /// As the engine reads it.
    pub query: Query,
    /// What it reads.
    pub inputs: Vec<Input>,
    /// A plain SELECT over `batch`: each output row comes from one batch row. Holds the qualifier of the batch's columns.
    pub plain: Option<String>,
    /// It says ORDER BY: the user's order is kept.
    pub ordered: bool,
    /// The first aggregate, or GROUP BY, of the outermost SELECT.
    pub aggregate: Option<Place>,
}

fn parser(sql: &str) -> Result<Parser<'_>, Finding> {
    let options = ParserOptions { trailing_commas: true, ..ParserOptions::default() };
    Parser::new(&GenericDialect).with_options(options).try_with_sql(sql).map_err(syntax)
}

/// sqlparser ends its messages with the position.
fn syntax(error: ParserError) -> Finding {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text,
        ParserError::RecursionLimitExceeded => "the SQL is nested too deeply".to_string(),
    };
    let Some((message, position)) = text.rsplit_once(" at Line: ") else {
        return Finding { place: Place::START, message: lower_first(&text), help: None };
    };
    let mut numbers = position.split(", Column: ").map(|n| n.trim().parse::<usize>().unwrap_or(1).max(1));
    let (line, column) = (numbers.next().unwrap_or(1), numbers.next().unwrap_or(1));
    Finding {
        place: Place { line, column, length: 1 },
        message: format!("syntax error: {}", lower_first(message)),
        help: None,
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

/// Parses the one SELECT that `sql:` must be.
pub fn parse_query(sql: &str) -> Result<Query, Finding> {
    let statements = parser(sql)?.parse_statements().map_err(syntax)?;
    let only_select = |span: Span| {
        Finding::at(span, "`sql` must be exactly one SELECT statement")
            .help("tables are written by `write:`, not by SQL; one table is one SELECT")
    };
    let mut statements = statements.into_iter();
    match (statements.next(), statements.next()) {
        (Some(Statement::Query(query)), None) => match body_is_select(&query.body) {
            true => Ok(*query),
            false => Err(only_select(query.span())),
        },
        (_, Some(second)) => Err(only_select(second.span())),
        (Some(other), None) => Err(only_select(other.span())),
        (None, None) => Err(only_select(Span::empty())),
    }
}

fn body_is_select(body: &SetExpr) -> bool {
    match body {
        SetExpr::Select(_) | SetExpr::Values(_) => true,
        SetExpr::Query(query) => body_is_select(&query.body),
        SetExpr::SetOperation { left, right, .. } => body_is_select(left) && body_is_select(right),
        _ => false,
    }
}

/// Parses one SQL expression.
pub fn parse_expression(sql: &str) -> Result<Expr, Finding> {
    let mut parser = parser(sql)?;
    let expr = parser.parse_expr().map_err(syntax)?;
    let rest = parser.peek_token();
    match rest.token {
        Token::EOF => Ok(expr),
        _ => Err(Finding::at(rest.span, format!("syntax error: expected the end of the expression, found: {rest}"))),
    }
}

/// Resolves and rewrites a query.
pub fn prepare_query(sql: &str, scope: &Scope<'_>) -> Result<Prepared, Vec<Finding>> {
    let original = parse_query(sql).map_err(|finding| vec![finding])?;
    let mut query = original.clone();
    let mut rewriter = Rewriter::new(scope);
    rewriter.names_in(&original);
    let _: ControlFlow<()> = VisitMut::visit(&mut query, &mut rewriter);
    if !rewriter.findings.is_empty() {
        return Err(rewriter.findings);
    }
    let inputs = rewriter.inputs();
    let aggregate = outermost_aggregate(&original);
    let plain = plain_over_batch(&query, &rewriter.ctes).filter(|_| aggregate.is_none());
    let ordered = original.order_by.is_some();
    Ok(Prepared { original, query, inputs, plain, ordered, aggregate })
}

/// Resolves and rewrites an expression over output columns.
pub fn prepare_expression(sql: &str, engine: Engine) -> Result<Expr, Vec<Finding>> {
    let mut expr = parse_expression(sql).map_err(|finding| vec![finding])?;
    let nothing = BTreeMap::new();
    let empty = std::sync::Arc::new(arrow::datatypes::Schema::empty());
    let scope = Scope { engine, batch: &empty, tables: &nothing, lookups: &nothing };
    let mut rewriter = Rewriter::new(&scope);
    let span = first_aggregate(&mut expr);
    if let Some(span) = span {
        rewriter.findings.push(
            Finding::at(span, "an aggregate looks at more than one row")
                .help("this is asked of each row alone; compute aggregates in `sql`"),
        );
    }
    let _: ControlFlow<()> = VisitMut::visit(&mut expr, &mut rewriter);
    match rewriter.findings.is_empty() {
        true => Ok(expr),
        false => Err(rewriter.findings),
    }
}

/// The text to run for one batch.
pub fn at_moment(sql: &str, moment: &Moment) -> String {
    let time = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Micros, true);
    // Empty text is read as null where these stand.
    let end =
        |of: fn(&Interval) -> DateTime<Utc>| moment.range.as_ref().map(|range| time(of(range))).unwrap_or_default();
    sql.replace(BATCH_TIME_MARK, &time(moment.batch_time))
        .replace(DATE_MARK, &format!("{}T00:00:00Z", moment.date))
        .replace(RANGE_START_MARK, &end(|range| range.start))
        .replace(RANGE_END_MARK, &end(|range| range.end))
}

/// A double-quoted identifier.
pub fn quoted(name: &str) -> Ident {
    Ident::with_quote('"', name)
}

/// Adds `alias.column AS column` to the outermost SELECT.
pub fn select_also(query: &mut Query, qualifier: &str, columns: &[&str]) {
    if let SetExpr::Select(select) = query.body.as_mut() {
        for column in columns {
            let expr = Expr::CompoundIdentifier(vec![quoted(qualifier), quoted(column)]);
            select.projection.push(SelectItem::ExprWithAlias { expr, alias: quoted(column) });
        }
    }
}

struct Rewriter<'a> {
    scope: &'a Scope<'a>,
    ctes: BTreeSet<String>,
    /// Names in use: as written (joined with dots) to kind.
    used: BTreeMap<String, InputKind>,
    /// `orders` for `silver.orders` read without an alias.
    short: BTreeMap<String, String>,
    columns: BTreeSet<String>,
    star: bool,
    skip_relation: bool,
    findings: Vec<Finding>,
}

impl<'a> Rewriter<'a> {
    fn new(scope: &'a Scope<'a>) -> Self {
        Rewriter {
            scope,
            ctes: BTreeSet::new(),
            used: BTreeMap::new(),
            short: BTreeMap::new(),
            columns: BTreeSet::new(),
            star: false,
            skip_relation: false,
            findings: Vec::new(),
        }
    }

    /// A first walk: names must be known before expressions that use them are rewritten, and SELECT comes before FROM.
    fn names_in(&mut self, query: &Query) {
        struct Names(BTreeSet<String>, Vec<(Vec<String>, bool)>);
        impl sqlparser::ast::Visitor for Names {
            type Break = ();
            fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
                for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
                    self.0.insert(cte.alias.name.value.clone());
                }
                ControlFlow::Continue(())
            }
            fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
                if let TableFactor::Table { name, alias, args: None, .. } = factor {
                    self.1.push((parts(name), alias.is_none()));
                }
                ControlFlow::Continue(())
            }
        }
        let mut names = Names(BTreeSet::new(), Vec::new());
        let _: ControlFlow<()> = sqlparser::ast::Visit::visit(query, &mut names);
        self.ctes = names.0;
        for (parts, unaliased) in names.1 {
            let full = parts.join(".");
            if let Some(kind) = self.kind(&full) {
                self.used.insert(full.clone(), kind);
                let last = full.rsplit('.').next().unwrap_or_default().to_string();
                if unaliased && last != full {
                    self.short.insert(last, full);
                }
            }
        }
    }

    fn kind(&self, name: &str) -> Option<InputKind> {
        if self.ctes.contains(name) {
            None
        } else if name == BATCH {
            Some(InputKind::Batch)
        } else if self.scope.tables.contains_key(name) {
            Some(InputKind::Table)
        } else if self.scope.lookups.contains_key(name) {
            Some(InputKind::Lookup)
        } else {
            None
        }
    }

    fn inputs(&self) -> Vec<Input> {
        let input = |(name, kind): (&String, &InputKind)| {
            let schema = match kind {
                InputKind::Batch => Some(self.scope.batch),
                InputKind::Table => self.scope.tables.get(name),
                InputKind::Lookup => self.scope.lookups.get(name),
            }?;
            let mut schema = match self.star {
                true => schema.clone(),
                false => crate::arrow_bridge::project(schema, |column| {
                    // Lineage may be added later; three narrow columns cost nothing.
                    self.columns.contains(column) || super::compile::COORDINATES.contains(&column)
                }),
            };
            if schema.fields().is_empty() {
                // Rows are counted by a column.
                let all = match kind {
                    InputKind::Batch => Some(self.scope.batch),
                    InputKind::Table => self.scope.tables.get(name),
                    InputKind::Lookup => self.scope.lookups.get(name),
                }?;
                let first = all.fields().first().map(|field| field.name().clone()).unwrap_or_default();
                schema = crate::arrow_bridge::project(all, |column| column == first);
            }
            Some(Input { name: name.clone(), kind: kind.clone(), schema })
        };
        self.used.iter().filter_map(input).collect()
    }

    fn refuse(&mut self, span: Span, message: impl Into<String>, help: impl Into<String>) {
        self.findings.push(Finding::at(span, message).help(help));
    }

    fn not_in_polars(&mut self, span: Span, what: &str) {
        self.refuse(
            span,
            format!("Polars SQL has no {what}"),
            "set `engine: datafusion` on this table, which has; or write it as a join or a CTE",
        );
    }

    fn is_polars(&self) -> bool {
        self.scope.engine == Engine::Polars
    }

    /// `silver.orders.amount` and `orders.amount` become `"silver.orders".amount`.
    fn qualify(&self, idents: &mut Vec<Ident>) {
        for count in (2..idents.len()).rev() {
            let name = idents[..count].iter().map(|ident| ident.value.as_str()).collect::<Vec<_>>().join(".");
            if self.used.contains_key(&name) {
                let mut first = quoted(&name);
                first.span = idents[0].span;
                idents.splice(..count, [first]);
                return;
            }
        }
        if let Some(full) = idents.first().filter(|_| idents.len() > 1).and_then(|first| self.short.get(&first.value)) {
            let mut first = quoted(full);
            first.span = idents[0].span;
            idents[0] = first;
        }
    }

    fn function(&mut self, function: &mut Function) -> Option<Wrap> {
        let name = function.name.to_string().to_lowercase();
        let span = function.name.span();
        match name.as_str() {
            "now"
            | "current_timestamp"
            | "current_date"
            | "current_time"
            | "localtimestamp"
            | "localtime"
            | "today"
            | "sysdate"
            | "getdate"
            | "clock_timestamp"
            | "transaction_timestamp"
            | "statement_timestamp" => {
                self.refuse(
                    span,
                    format!("`{name}` would give another answer when a batch is replayed"),
                    "write `:batch_time`, the batch's own clock; CAST(:batch_time AS DATE) is its date",
                );
                None
            }
            "random" | "rand" | "uuid" | "gen_random_uuid" | "newid" | "uuidv4" | "uuidv7" | "randn" => {
                self.refuse(
                    span,
                    format!("`{name}` would give another answer when a batch is replayed"),
                    "make ids from `_topic`, `_partition` and `_offset`, or from key columns",
                );
                None
            }
            _ if !self.is_polars() => None,
            "date_trunc" | "datetrunc" => {
                let unit = polars::trunc_unit(function);
                match unit {
                    Some(unit) => {
                        if let FunctionArguments::List(list) = &mut function.args {
                            list.args.remove(0);
                        }
                        function.name = ObjectName(vec![ObjectNamePart::Identifier(Ident::new(unit.function()))]);
                    }
                    None => self.refuse(
                        span,
                        "`date_trunc` wants a unit and a time",
                        "such as date_trunc('day', updated_at); units: second, minute, hour, day, week, month, quarter, year",
                    ),
                }
                None
            }
            "sum" => {
                wrap_argument(function, |argument| polars::call(polars::WIDEN, argument));
                None
            }
            "avg" | "mean" => {
                wrap_argument(function, |argument| {
                    cast(argument, SqlType::Double(sqlparser::ast::ExactNumberInfo::None))
                });
                None
            }
            "count" | "row_number" | "rank" | "dense_rank" => Some(Wrap::Long),
            "date_part" => Some(Wrap::Int),
            "timestamp" | "datetime" | "strptime" => Some(Wrap::Timestamp),
            _ => None,
        }
    }
}

enum Wrap {
    Long,
    Int,
    Timestamp,
}

fn wrap_argument(function: &mut Function, wrap: impl Fn(Expr) -> Expr) {
    if let FunctionArguments::List(list) = &mut function.args
        && let [FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))] = list.args.as_mut_slice()
    {
        *argument = wrap(std::mem::replace(argument, Expr::value(Value::Null)));
    }
}

fn cast(expr: Expr, data_type: SqlType) -> Expr {
    Expr::Cast { kind: CastKind::Cast, expr: Box::new(expr), data_type, array: false, format: None }
}

impl VisitorMut for Rewriter<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        if let Some(with) = query.with.as_ref().filter(|with| with.recursive && self.is_polars()) {
            let span = with.with_token.0.span;
            self.not_in_polars(span, "recursive CTE");
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        if let Some(into) = &select.into {
            let span = into.name.span();
            self.refuse(span, "SELECT INTO writes a table", "`write:` says how rows enter this table");
        }
        for item in &mut select.projection {
            match item {
                SelectItem::Wildcard(_) => self.star = true,
                SelectItem::QualifiedWildcard(kind, _) => {
                    self.star = true;
                    if let SelectItemQualifiedWildcardKind::ObjectName(name) = kind {
                        let mut idents: Vec<Ident> =
                            name.0.iter().filter_map(|part| part.as_ident()).cloned().collect();
                        idents.push(Ident::new("*"));
                        self.qualify(&mut idents);
                        idents.pop();
                        *name = ObjectName(idents.into_iter().map(ObjectNamePart::Identifier).collect());
                    }
                }
                _ => {}
            }
        }
        for join in select.from.iter().flat_map(|from| &from.joins) {
            if let Some(JoinConstraint::Using(_) | JoinConstraint::Natural) = constraint(&join.join_operator) {
                self.star = true; // these name columns outside expressions
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        let function = match factor {
            TableFactor::Table { name, args: Some(_), .. } => {
                self.skip_relation = true;
                Some((name.span(), name.to_string()))
            }
            TableFactor::Function { name, .. } => Some((name.span(), name.to_string())),
            TableFactor::TableFunction { expr, .. } => Some((expr.span(), expr.to_string())),
            _ => None,
        };
        if let Some((span, name)) = function {
            self.refuse(
                span,
                format!("table function `{name}`: a query reads only `batch`, tables of the pipeline and lookups"),
                "declare the file under `lookups:` (`delta`, `parquet` or `csv`) and join it by name",
            );
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &mut ObjectName) -> ControlFlow<()> {
        if std::mem::take(&mut self.skip_relation) {
            return ControlFlow::Continue(());
        }
        let name = parts(relation).join(".");
        if self.ctes.contains(&name) {
            return ControlFlow::Continue(());
        }
        if self.used.contains_key(&name) {
            let mut ident = quoted(&name);
            ident.span = relation.span();
            *relation = ObjectName(vec![ObjectNamePart::Identifier(ident)]);
            return ControlFlow::Continue(());
        }
        let known = std::iter::once(BATCH)
            .chain(self.scope.tables.keys().map(String::as_str))
            .chain(self.scope.lookups.keys().map(String::as_str))
            .chain(self.ctes.iter().map(String::as_str));
        let help = suggest(&name, known, "there are");
        let mut finding = Finding::at(relation.span(), format!("unknown table `{name}`"));
        finding.help = help;
        self.findings.push(finding);
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::Identifier(ident) => {
                self.columns.insert(ident.value.clone());
            }
            Expr::CompoundIdentifier(idents) => {
                self.columns.extend(idents.iter().map(|ident| ident.value.clone()));
                self.qualify(idents);
            }
            Expr::Subquery(query) if self.is_polars() => {
                let span = query.span();
                self.not_in_polars(span, "scalar subquery");
            }
            Expr::GroupingSets(_) | Expr::Cube(_) | Expr::Rollup(_) if self.is_polars() => {
                let span = expr.span();
                self.not_in_polars(span, "GROUPING SETS, CUBE or ROLLUP");
            }
            Expr::AtTimeZone { timestamp, .. } if self.is_polars() => {
                let span = timestamp.span();
                self.not_in_polars(span, "AT TIME ZONE");
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let polars_engine = self.is_polars();
        let take = |expr: &mut Expr| std::mem::replace(expr, Expr::value(Value::Null));
        match expr {
            Expr::Value(value) => {
                if let Value::Placeholder(name) = &value.value {
                    let mark = |mark: &str| Expr::value(Value::SingleQuotedString(mark.into()));
                    let timestamp = |mark: Expr| match polars_engine {
                        true => polars::call(polars::TIMESTAMP, mark),
                        false => arrow_timestamp(mark),
                    };
                    let or_null = |mark: Expr| match polars_engine {
                        true => polars::call(polars::TRY_TIMESTAMP, mark),
                        false => arrow_timestamp(null_if_empty(mark)),
                    };
                    match name.as_str() {
                        ":batch_time" => *expr = timestamp(mark(BATCH_TIME_MARK)),
                        ":date" => *expr = cast(timestamp(mark(DATE_MARK)), SqlType::Date),
                        ":range_start" => *expr = or_null(mark(RANGE_START_MARK)),
                        ":range_end" => *expr = or_null(mark(RANGE_END_MARK)),
                        _ => {
                            let (span, message) = (value.span, format!("nothing is called `{name}` here"));
                            let known = [":batch_time", ":date", ":range_start", ":range_end"];
                            let help = suggest(name, known, "there are").unwrap_or_default();
                            self.refuse(span, message, &help);
                        }
                    }
                }
            }
            Expr::Function(function) => match self.function(function) {
                Some(Wrap::Long) => *expr = cast(take(expr), SqlType::BigInt(None)),
                Some(Wrap::Int) => *expr = cast(take(expr), SqlType::Int(None)),
                Some(Wrap::Timestamp) => *expr = polars::call(polars::TIMESTAMP, take(expr)),
                None => {}
            },
            Expr::Extract { field, .. }
                if polars_engine
                    && !matches!(field, DateTimeField::Epoch | DateTimeField::Time | DateTimeField::Timezone) =>
            {
                *expr = cast(take(expr), SqlType::Int(None));
            }
            Expr::Cast { kind, expr: inner, data_type, format: None, .. }
                if polars_engine && matches!(data_type, SqlType::Timestamp(_, _) | SqlType::Datetime(_)) =>
            {
                let function = match kind {
                    CastKind::TryCast | CastKind::SafeCast => polars::TRY_TIMESTAMP,
                    _ => polars::TIMESTAMP,
                };
                *expr = polars::call(function, take(inner));
            }
            Expr::TypedString(typed)
                if polars_engine && matches!(typed.data_type, SqlType::Timestamp(_, _) | SqlType::Datetime(_)) =>
            {
                *expr = polars::call(polars::TIMESTAMP, Expr::Value(typed.value.clone()));
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// `arrow_cast` is how DataFusion writes a timestamp with a zone.
fn arrow_timestamp(text: Expr) -> Expr {
    let data_type = Value::SingleQuotedString("Timestamp(Microsecond, Some(\"UTC\"))".into());
    let mut call = polars::call("arrow_cast", text);
    if let Expr::Function(Function { args: FunctionArguments::List(FunctionArgumentList { args, .. }), .. }) = &mut call
    {
        args.push(FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::value(data_type))));
    }
    call
}

/// `NULLIF(text, '')`.
fn null_if_empty(text: Expr) -> Expr {
    let mut call = polars::call("nullif", text);
    if let Expr::Function(Function { args: FunctionArguments::List(FunctionArgumentList { args, .. }), .. }) = &mut call
    {
        let empty = Expr::value(Value::SingleQuotedString(String::new()));
        args.push(FunctionArg::Unnamed(FunctionArgExpr::Expr(empty)));
    }
    call
}

/// The parts of a name without quotes.
pub(super) fn parts(name: &ObjectName) -> Vec<String> {
    name.0.iter().map(|part| part.as_ident().map_or_else(|| part.to_string(), |ident| ident.value.clone())).collect()
}

fn constraint(operator: &JoinOperator) -> Option<&JoinConstraint> {
    use JoinOperator::*;
    match operator {
        Join(c) | Inner(c) | Left(c) | LeftOuter(c) | Right(c) | RightOuter(c) | FullOuter(c) | CrossJoin(c)
        | Semi(c) | LeftSemi(c) | RightSemi(c) | Anti(c) | LeftAnti(c) | RightAnti(c) | StraightJoin(c) => Some(c),
        AsOf { constraint, .. } => Some(constraint),
        _ => None,
    }
}
