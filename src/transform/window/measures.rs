//! From the measures a user writes to what the engine works out per row, per window, and over the window's values.
//!
//! `sum(case when status = 'cancelled' then 1 else 0 end) * 1.0 / count(*)` becomes one argument (the `CASE`), two functions
//! (`sum` of that argument, `count(*)`), and the SQL `CAST(_agg0 * 1.0 AS DOUBLE) / NULLIF(CAST(_agg1 AS DOUBLE), 0)` over
//! their results.
//!
//! `/` is the same in a measure whatever the engine: the quotient as a double, never a whole number, and null where the
//! divisor is 0 (as in Spark).

use std::ops::ControlFlow;

use sqlparser::ast::{
    AccessExpr, BinaryOperator, CaseWhen, CastKind, DataType as SqlType, DuplicateTreatment, ExactNumberInfo, Expr,
    Function as Call, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident, NullTreatment,
    Spanned, Value, Visit, VisitMut, Visitor, VisitorMut, helpers::attached_token::AttachedToken,
};
use sqlparser::tokenizer::Span;

use super::function::{Kind, NAMES, result_column};
use crate::transform::analysis::is_aggregate;
use crate::transform::problems::{Finding, suggest};
use crate::transform::rewrite::parse_expression;

/// Aggregates of other engines, which people try.
const ELSEWHERE: &[&str] = &["collect_list", "collect_set", "percentile", "percentile_disc", "any_value", "mode"];

/// Whether a function aggregates, though windows do not keep it.
fn is_other_aggregate(name: &str) -> bool {
    is_aggregate(name) || ELSEWHERE.contains(&name)
}

/// Measures, taken apart.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measures {
    /// SQL over one row: `_arg0`, `_arg1`, … Each text is here once.
    pub arguments: Vec<String>,
    /// What is kept per window: `_agg0`, `_agg1`, …
    pub functions: Vec<Aggregate>,
    /// Name of each measure and its SQL over `_aggN` and the columns of the key, in the order written.
    pub results: Vec<(String, String)>,
}

/// An aggregate over an argument.
#[derive(Debug, Clone, PartialEq)]
pub struct Aggregate {
    /// Which.
    pub kind: Kind,
    /// Number of its argument; `None` for `count(*)`.
    pub argument: Option<usize>,
    /// The first measure that names it.
    pub measure: String,
}

/// What is wrong with a measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeasureProblem {
    /// Its name.
    pub measure: String,
    /// What, and where in its text.
    pub finding: Finding,
}

/// Takes measures (name, SQL) apart. `columns` may be named outside of aggregates: those of `by`, and `window_start` and
/// `window_end` where there are windows.
pub fn parse(measures: &[(String, String)], columns: &[&str]) -> Result<Measures, Vec<MeasureProblem>> {
    let mut parsed = Measures::default();
    let mut problems = Vec::new();
    for (name, sql) in measures {
        let mut reader = Reader { measure: name, columns, parsed: &mut parsed, aggregates: 0, findings: Vec::new() };
        match parse_expression(sql) {
            Ok(expr) => {
                let result = reader.read(expr);
                problems.extend(reader.findings.drain(..).map(|finding| (name, finding)));
                parsed.results.push((name.clone(), result));
            }
            Err(finding) => problems.push((name, finding)),
        }
    }
    match problems.is_empty() {
        true => Ok(parsed),
        false => Err(problems
            .into_iter()
            .map(|(measure, finding)| MeasureProblem { measure: measure.clone(), finding })
            .collect()),
    }
}

struct Reader<'a> {
    measure: &'a str,
    columns: &'a [&'a str],
    parsed: &'a mut Measures,
    aggregates: usize,
    findings: Vec<Finding>,
}

impl Reader<'_> {
    fn read(&mut self, mut expr: Expr) -> String {
        let span = expr.span();
        let _: ControlFlow<()> = VisitMut::visit(&mut expr, self);
        if self.aggregates == 0 && self.findings.is_empty() {
            self.findings.push(Finding::at(span, "a measure must aggregate the rows of a window; this does not").help(
                "such as count(*), sum(amount) or last(status); columns of `by` are in the table without a measure",
            ));
        }
        expr.to_string()
    }

    fn refuse(&mut self, span: Span, message: impl Into<String>, help: impl Into<String>) -> Option<Expr> {
        self.findings.push(Finding::at(span, message).help(help));
        Some(null())
    }

    /// What stands in for a function; `None` = itself, with its arguments.
    fn function(&mut self, call: &Call) -> Option<Expr> {
        let name = call.name.to_string().to_lowercase();
        let span = call.name.span();
        if call.over.is_some() {
            self.aggregates += 1;
            return self.refuse(
                span,
                "OVER has no place in a measure: it is worked out over the rows of one window",
                "leave OVER out; rows are grouped by `by` and `window`",
            );
        }
        if let Some(known) = usual_name(&name) {
            self.aggregates += 1;
            return match self.aggregate(known, call) {
                Ok(expr) => Some(expr),
                Err(finding) => {
                    self.findings.push(finding);
                    Some(null())
                }
            };
        }
        let inside = Inside::of(call, self.columns);
        if is_other_aggregate(&name) || (!inside.aggregates && inside.rows) {
            self.aggregates += 1;
            let help = suggest(&name, NAMES.iter().map(|(name, _)| *name), "there are").unwrap_or_default();
            return self.refuse(span, format!("no aggregate of windows is called `{name}`"), help);
        }
        None
    }

    fn aggregate(&mut self, name: &'static str, call: &Call) -> Result<Expr, Finding> {
        let span = call.name.span();
        let FunctionArguments::List(list) = &call.args else {
            return Err(Finding::at(span, format!("`{name}` wants an argument")).help(usage(name)));
        };
        plain(name, call, list)?;
        let distinct = list.duplicate_treatment == Some(DuplicateTreatment::Distinct);
        if distinct && name != "count" {
            return Err(Finding::at(span, format!("`{name}` does not take DISTINCT"))
                .help("count(distinct x) and approx_count_distinct(x) are the ones that look at distinct values"));
        }
        let nested = Inside::of(call, self.columns);
        if let Some(inner) = nested.place {
            return Err(Finding::at(inner, format!("an aggregate inside of `{name}`")).help(
                "an aggregate looks at rows, not at other aggregates; combine them outside, such as sum(x) / count(*)",
            ));
        }
        let (kind, argument) = arguments(name, distinct, call, list)?;
        let (kind, argument) = filtered(kind, argument, call.filter.as_deref());
        let argument = argument.map(|mut argument| {
            let _: ControlFlow<()> = VisitMut::visit(&mut argument, &mut Quotients);
            self.argument(argument.to_string())
        });
        Ok(Expr::Identifier(Ident::new(result_column(self.number(kind, argument)))))
    }

    fn argument(&mut self, text: String) -> usize {
        let arguments = &mut self.parsed.arguments;
        arguments.iter().position(|known| *known == text).unwrap_or_else(|| {
            arguments.push(text);
            arguments.len() - 1
        })
    }

    fn number(&mut self, kind: Kind, argument: Option<usize>) -> usize {
        let functions = &mut self.parsed.functions;
        let same = |known: &Aggregate| known.kind == kind && known.argument == argument;
        functions.iter().position(same).unwrap_or_else(|| {
            functions.push(Aggregate { kind, argument, measure: self.measure.to_string() });
            functions.len() - 1
        })
    }

    fn column(&mut self, span: Span, name: &str) {
        if !self.columns.contains(&name) {
            let mut finding =
                Finding::at(span, format!("`{name}` differs from row to row: it must stand in an aggregate"));
            let list = suggest(name, self.columns.iter().copied(), "or a column of the key").unwrap_or_default();
            finding = finding.help(format!("such as last({name}); or add it to `by`{}{list}", separator(&list)));
            self.findings.push(finding);
        }
    }
}

fn separator(list: &str) -> &'static str {
    match list.is_empty() {
        true => "",
        false => "; ",
    }
}

impl VisitorMut for Reader<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let replaced = match expr {
            Expr::Function(call) => self.function(call),
            Expr::Identifier(ident) => {
                self.column(ident.span, &ident.value);
                None
            }
            Expr::CompoundIdentifier(idents) => {
                if let Some(first) = idents.first() {
                    self.column(first.span, &first.value);
                }
                None
            }
            Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } => {
                let span = expr.span();
                self.refuse(span, "a measure cannot read other tables", "join in the table's `sql`, which comes before")
            }
            _ => None,
        };
        if let Some(replaced) = replaced {
            *expr = replaced;
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        Quotients.post_visit_expr(expr)
    }
}

/// Makes every `/` a quotient of doubles that is null where the divisor is 0.
struct Quotients;

impl VisitorMut for Quotients {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::BinaryOp { left, op: BinaryOperator::Divide, right } = expr {
            let take = |side: &mut Box<Expr>| double(std::mem::replace(side.as_mut(), null()));
            let (dividend, divisor) = (take(left), take(right));
            **left = dividend;
            **right = null_if_zero(divisor);
        }
        ControlFlow::Continue(())
    }
}

fn null() -> Expr {
    Expr::value(Value::Null)
}

fn number(text: &str) -> Expr {
    Expr::value(Value::Number(text.to_string(), false))
}

fn double(expr: Expr) -> Expr {
    let data_type = SqlType::Double(ExactNumberInfo::None);
    Expr::Cast { kind: CastKind::Cast, expr: Box::new(expr), data_type, array: false, format: None }
}

fn null_if_zero(expr: Expr) -> Expr {
    let mut call = crate::transform::polars_functions::call("NULLIF", expr);
    if let Expr::Function(Call { args: FunctionArguments::List(list), .. }) = &mut call {
        list.args.push(FunctionArg::Unnamed(FunctionArgExpr::Expr(number("0"))));
    }
    call
}

fn usual_name(name: &str) -> Option<&'static str> {
    NAMES.iter().find(|(usual, others)| *usual == name || others.contains(&name)).map(|(usual, _)| *usual)
}

fn usage(name: &str) -> String {
    match name {
        "count" => "count(*), count(x) or count(distinct x)".to_string(),
        "approx_quantile" => "approx_quantile(amount, 0.95)".to_string(),
        _ => format!("{name}(x)"),
    }
}

/// Refuses what would be read over.
fn plain(name: &str, call: &Call, list: &FunctionArgumentList) -> Result<(), Finding> {
    let span = call.name.span();
    if call.null_treatment == Some(NullTreatment::RespectNulls) {
        return Err(Finding::at(span, "aggregates of windows skip nulls").help("leave RESPECT NULLS out"));
    }
    if !list.clauses.is_empty() || !call.within_group.is_empty() || call.parameters != FunctionArguments::None {
        return Err(Finding::at(span, format!("`{name}` takes no such clause"))
            .help(format!("write {}; first and last go by event time", usage(name))));
    }
    Ok(())
}

fn arguments(
    name: &'static str,
    distinct: bool,
    call: &Call,
    list: &FunctionArgumentList,
) -> Result<(Kind, Option<Expr>), Finding> {
    let span = call.name.span();
    let wrong = || Finding::at(span, format!("`{name}` does not take these arguments")).help(usage(name));
    let values: Vec<&FunctionArgExpr> = list
        .args
        .iter()
        .map(|argument| match argument {
            FunctionArg::Unnamed(value) => Ok(value),
            _ => Err(wrong()),
        })
        .collect::<Result<_, _>>()?;
    let one = |kind: Kind| match values.as_slice() {
        [FunctionArgExpr::Expr(argument)] => Ok((kind, Some(argument.clone()))),
        _ => Err(wrong()),
    };
    match name {
        "count" => match (distinct, values.as_slice()) {
            (false, [FunctionArgExpr::Wildcard]) => Ok((Kind::CountAll, None)),
            (false, [FunctionArgExpr::Expr(Expr::Value(value))]) if value.value != Value::Null => {
                Ok((Kind::CountAll, None))
            }
            (false, _) => one(Kind::Count),
            (true, [_, _, ..]) => Err(Finding::at(span, "count(distinct …) takes one value")
                .help("put several into one, such as count(distinct concat(a, '/', b))")),
            (true, _) => one(Kind::CountDistinct),
        },
        "sum" => one(Kind::Sum),
        "avg" => one(Kind::Avg),
        "min" => one(Kind::Min),
        "max" => one(Kind::Max),
        "first" => one(Kind::First),
        "last" => one(Kind::Last),
        "approx_count_distinct" => one(Kind::ApproxCountDistinct),
        _ => match values.as_slice() {
            [FunctionArgExpr::Expr(argument), FunctionArgExpr::Expr(share)] => {
                Ok((Kind::ApproxQuantile(quantile(share)?), Some(argument.clone())))
            }
            _ => Err(wrong()),
        },
    }
}

fn quantile(share: &Expr) -> Result<f64, Finding> {
    let number = match share {
        Expr::Value(value) => match &value.value {
            Value::Number(text, _) => text.parse::<f64>().ok(),
            _ => None,
        },
        _ => None,
    };
    number.filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| {
        Finding::at(share.span(), "which quantile must be a number from 0 to 1")
            .help("0.5 is the median; approx_quantile(amount, 0.95)")
    })
}

/// `filter (where c)` sees the rows for which `c` is true: the value of the others is null.
fn filtered(kind: Kind, argument: Option<Expr>, filter: Option<&Expr>) -> (Kind, Option<Expr>) {
    let Some(condition) = filter else { return (kind, argument) };
    let kind = match kind {
        Kind::CountAll => Kind::Count,
        other => other,
    };
    let result = argument.unwrap_or_else(|| number("1"));
    let case = Expr::Case {
        case_token: AttachedToken::empty(),
        end_token: AttachedToken::empty(),
        operand: None,
        conditions: vec![CaseWhen { condition: condition.clone(), result }],
        else_result: None,
    };
    (kind, Some(case))
}

/// What the arguments of a function hold.
#[derive(Default)]
struct Inside<'a> {
    /// Aggregates.
    aggregates: bool,
    /// The first of them.
    place: Option<Span>,
    /// `*`, or columns that differ from row to row.
    rows: bool,
    columns: &'a [&'a str],
}

impl<'a> Inside<'a> {
    fn of(call: &Call, columns: &'a [&'a str]) -> Inside<'a> {
        let mut inside = Inside { columns, ..Inside::default() };
        let _: ControlFlow<()> = call.args.visit(&mut inside);
        let _: ControlFlow<()> = call.filter.visit(&mut inside);
        if let FunctionArguments::List(list) = &call.args {
            inside.rows |=
                list.args.iter().any(|argument| matches!(argument, FunctionArg::Unnamed(FunctionArgExpr::Wildcard)));
        }
        inside
    }
}

impl Visitor for Inside<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Function(call) => {
                let name = call.name.to_string().to_lowercase();
                if call.over.is_some() || usual_name(&name).is_some() || is_other_aggregate(&name) {
                    self.aggregates = true;
                    self.place = self.place.or(Some(call.name.span()));
                }
            }
            Expr::Identifier(ident) => self.rows |= !self.columns.contains(&ident.value.as_str()),
            Expr::CompoundIdentifier(idents) => {
                self.rows |= idents.first().is_none_or(|first| !self.columns.contains(&first.value.as_str()));
            }
            Expr::CompoundFieldAccess { access_chain, .. } => {
                self.rows |= access_chain.iter().any(|access| matches!(access, AccessExpr::Subscript(_)));
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
#[path = "measures_tests.rs"]
mod tests;
