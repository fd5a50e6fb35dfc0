//! Which refresh tables can be kept by what changed upstream: their groups are counts and sums, so that the rows that went
//! can be taken off and the rows that came put on. Anything else is computed from all rows of a group.
//!
//! What is allowed is listed, not what is not: an expression that nobody thought of is computed per group.

use std::collections::BTreeSet;

use arrow::datatypes::{DataType, Schema};
use sqlparser::ast::{
    CastKind, DataType as SqlType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, Ident,
    Query, Select, SelectItem, SetExpr, TableFactor, Value,
};

use super::rewrite::parts;

/// Functions whose result for a row depends on nothing but the row, in both engines.
const OF_ONE_ROW: &[&str] = &[
    "abs",
    "btrim",
    "ceil",
    "char_length",
    "coalesce",
    "concat",
    "date_part",
    "date_trunc",
    "day",
    "ends_with",
    "floor",
    "hour",
    "ifnull",
    "left",
    "length",
    "lower",
    "ltrim",
    "minute",
    "mod",
    "month",
    "nullif",
    "replace",
    "right",
    "rtrim",
    "sign",
    "starts_with",
    "substr",
    "substring",
    "trim",
    "upper",
    "year",
];

/// What the columns of such a table are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Every column of GROUP BY: what tells the table's rows apart.
    pub identity: Vec<String>,
    /// The column `count(*)`.
    pub rows: String,
    /// Columns `count(x)`.
    pub counts: Vec<String>,
    /// Columns `sum(x)`.
    pub sums: Vec<Sum>,
}

/// A column `sum(x)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sum {
    /// The column.
    pub column: String,
    /// The column that counts the same x: without any, the sum is null.
    pub counted_by: Option<String>,
}

/// The table that a query reads, and the names that it goes by.
pub(super) struct Upstream<'a> {
    pub(super) name: &'a str,
    pub(super) schema: &'a Schema,
}

/// What the query's columns are, or why its groups have to be computed from all of their rows. `output` has a field for each
/// column of the query, with its stored type.
pub(super) fn tally(query: &Query, upstream: &Upstream<'_>, by: &[String], output: &Schema) -> Result<Tally, String> {
    let select = only_select(query)?;
    let source = Source::of(select, upstream)?;
    if let Some(filter) = &select.selection {
        source.check_row_by_row(filter)?;
    }
    let groups = source.groups(select)?;
    if select.projection.len() != output.fields().len() {
        return Err("its columns are not all named".into());
    }
    let (mut tally, mut counted, mut summed) = (Tally::default(), Vec::new(), Vec::new());
    let mut grouped = BTreeSet::new();
    for (item, field) in select.projection.iter().zip(output.fields()) {
        let (expr, alias) = match item {
            SelectItem::UnnamedExpr(expr) => (expr, None),
            SelectItem::ExprWithAlias { expr, alias } => (expr, Some(alias)),
            other => return Err(it_has(other)),
        };
        let name = field.name().clone();
        if let Some(at) = groups.iter().position(|group| source.names(group, expr, alias)) {
            source.check_row_by_row(expr)?;
            check_key(field.data_type(), &name)?;
            grouped.insert(at);
            tally.identity.push(name);
            continue;
        }
        match aggregate(expr)? {
            Aggregate::Rows if tally.rows.is_empty() => tally.rows = name,
            Aggregate::Rows => tally.counts.push(name),
            Aggregate::Count(of) => {
                source.check_measured(of, expr)?;
                counted.push((of, name.clone()));
                tally.counts.push(name);
            }
            Aggregate::Sum(of) => {
                source.check_measured(of, expr)?;
                if !is_exact(field.data_type()) {
                    return Err(format!("{expr} is {}, which rounds differently in another order", field.data_type()));
                }
                summed.push((of, name));
            }
        }
    }
    if tally.rows.is_empty() {
        return Err("it has no count(*), which tells when a group is gone".into());
    }
    if grouped.len() < groups.len() {
        return Err("it groups by what is not one of its columns".into());
    }
    for name in by {
        let here = output.field_with_name(name).map(|field| field.data_type());
        let above = upstream.schema.field_with_name(name).map(|field| field.data_type());
        let is_same = matches!((here, above), (Ok(here), Ok(above)) if here == above);
        if !is_same || !tally.identity.contains(name) || !source.passes(select, output, name) {
            return Err(format!("`{name}` is not a column of `{}` that it groups by", upstream.name));
        }
    }
    tally.sums = summed
        .into_iter()
        .map(|(of, column)| {
            let counter = counted.iter().find(|(other, _)| *other == of).map(|(_, name)| name.clone());
            let counted_by = counter.or_else(|| source.is_never_null(of).then(|| tally.rows.clone()));
            Sum { column, counted_by }
        })
        .collect();
    Ok(tally)
}

/// The one SELECT that the query is, with nothing around it.
fn only_select(query: &Query) -> Result<&Select, String> {
    let Query { with, body, order_by, limit_clause, fetch, locks, for_clause, settings, format_clause, pipe_operators } =
        query;
    let SetExpr::Select(select) = body.as_ref() else { return Err("it is not a single SELECT".into()) };
    let more = [
        (with.is_some(), "WITH"),
        (order_by.is_some(), "ORDER BY"),
        (limit_clause.is_some() || fetch.is_some() || select.top.is_some(), "LIMIT"),
        (select.distinct.is_some(), "DISTINCT"),
        (select.having.is_some(), "HAVING"),
        (select.qualify.is_some() || !select.named_window.is_empty(), "windows"),
        (!locks.is_empty() || for_clause.is_some() || settings.is_some() || format_clause.is_some(), "more clauses"),
        (!pipe_operators.is_empty() || select.into.is_some() || select.exclude.is_some(), "more clauses"),
        (!select.lateral_views.is_empty() || select.prewhere.is_some(), "more clauses"),
        (!select.connect_by.is_empty() || select.value_table_mode.is_some(), "more clauses"),
        (!select.cluster_by.is_empty() || !select.distribute_by.is_empty(), "more clauses"),
        (!select.sort_by.is_empty() || select.select_modifiers.is_some(), "more clauses"),
    ];
    match more.iter().find(|(is_there, _)| *is_there) {
        Some((_, what)) => Err(format!("it has {what}")),
        None => Ok(select),
    }
}

fn it_has(what: &impl std::fmt::Display) -> String {
    format!("it has {what}")
}

enum Aggregate<'a> {
    Rows,
    Count(&'a Expr),
    Sum(&'a Expr),
}

/// What a column that is not grouped by has to be.
fn aggregate(expr: &Expr) -> Result<Aggregate<'_>, String> {
    let why = || Err(it_has(expr));
    let Expr::Function(function) = expr else { return why() };
    let name = parts(&function.name).join(".").to_lowercase();
    let Function { parameters, args, filter, null_treatment, over, within_group, .. } = function;
    let is_bare = matches!(parameters, FunctionArguments::None)
        && filter.is_none()
        && null_treatment.is_none()
        && over.is_none()
        && within_group.is_empty();
    let FunctionArguments::List(list) = args else { return why() };
    if !is_bare || list.duplicate_treatment.is_some() || !list.clauses.is_empty() {
        return why();
    }
    match (name.as_str(), list.args.as_slice()) {
        ("count", [FunctionArg::Unnamed(FunctionArgExpr::Wildcard)]) => Ok(Aggregate::Rows),
        ("count", [FunctionArg::Unnamed(FunctionArgExpr::Expr(of))]) => Ok(Aggregate::Count(of)),
        ("sum", [FunctionArg::Unnamed(FunctionArgExpr::Expr(of))]) => Ok(Aggregate::Sum(of)),
        _ => why(),
    }
}

/// Sums of these are the same in any order.
fn is_exact(data_type: &DataType) -> bool {
    data_type.is_integer() || matches!(data_type, DataType::Decimal128(..))
}

/// Values that are equal exactly where they are the same.
fn check_key(data_type: &DataType, name: &str) -> Result<(), String> {
    match data_type.is_floating() || data_type.is_nested() {
        true => Err(format!("it groups by `{name}`, which is {data_type}")),
        false => Ok(()),
    }
}

struct Source<'a> {
    upstream: &'a Upstream<'a>,
    /// What may stand before the name of a column.
    qualifiers: BTreeSet<String>,
}

impl<'a> Source<'a> {
    fn of(select: &Select, upstream: &'a Upstream<'a>) -> Result<Source<'a>, String> {
        let [from] = select.from.as_slice() else { return Err("it reads more than one table".into()) };
        if let Some(join) = from.joins.first() {
            return Err(format!("it joins: {}", join.to_string().trim()));
        }
        let TableFactor::Table { name, alias, args: None, sample: None, version: None, .. } = &from.relation else {
            return Err("it reads more than one table".into());
        };
        let full = parts(name).join(".");
        if full != upstream.name {
            return Err(format!("it reads `{full}`"));
        }
        let qualifiers = match alias {
            Some(alias) if !alias.columns.is_empty() => return Err("it names the columns of its table anew".into()),
            Some(alias) => BTreeSet::from([alias.name.value.clone()]),
            None => BTreeSet::from([full.rsplit('.').next().unwrap_or_default().to_string(), full]),
        };
        Ok(Source { upstream, qualifiers })
    }

    /// The column that an expression is.
    fn column(&self, expr: &'a Expr) -> Option<&'a Ident> {
        match expr {
            Expr::Identifier(column) => Some(column),
            Expr::CompoundIdentifier(path) => {
                let (column, before) = path.split_last()?;
                let before: Vec<&str> = before.iter().map(|ident| ident.value.as_str()).collect();
                self.qualifiers.contains(&before.join(".")).then_some(column)
            }
            Expr::Nested(inner) => self.column(inner),
            _ => None,
        }
    }

    fn field(&self, expr: &'a Expr) -> Option<&'a arrow::datatypes::Field> {
        self.upstream.schema.field_with_name(&self.column(expr)?.value).ok()
    }

    fn is_never_null(&self, expr: &'a Expr) -> bool {
        self.field(expr).is_some_and(|field| !field.is_nullable())
    }

    fn has_column_like(&self, name: &str) -> bool {
        self.upstream.schema.fields().iter().any(|field| field.name().eq_ignore_ascii_case(name))
    }

    /// GROUP BY, where no name in it can mean two things.
    fn groups(&self, select: &'a Select) -> Result<Vec<&'a Expr>, String> {
        let GroupByExpr::Expressions(groups, modifiers) = &select.group_by else {
            return Err("it has GROUP BY ALL".into());
        };
        if groups.is_empty() {
            return Err("it has no GROUP BY".into());
        }
        if let Some(modifier) = modifiers.first() {
            return Err(format!("it has GROUP BY … {modifier}"));
        }
        for item in &select.projection {
            let SelectItem::ExprWithAlias { expr, alias } = item else { continue };
            let is_itself = self.column(expr).is_some_and(|column| column.value == alias.value);
            let is_named = |group: &&Expr| self.mentions(group, &alias.value);
            if !is_itself && self.has_column_like(&alias.value) && groups.iter().any(|group| is_named(&group)) {
                return Err(format!("`{}` in its GROUP BY could be two columns", alias.value));
            }
        }
        Ok(groups.iter().collect())
    }

    fn mentions(&self, expr: &Expr, name: &str) -> bool {
        let mut found = false;
        let _ = sqlparser::ast::visit_expressions(expr, |expr| {
            found |= match expr {
                Expr::Identifier(ident) => ident.value.eq_ignore_ascii_case(name),
                Expr::CompoundIdentifier(path) => {
                    path.last().is_some_and(|ident| ident.value.eq_ignore_ascii_case(name))
                }
                _ => false,
            };
            std::ops::ControlFlow::<()>::Continue(())
        });
        found
    }

    /// Whether a column of the query is what GROUP BY names.
    fn names(&self, group: &'a Expr, expr: &'a Expr, alias: Option<&Ident>) -> bool {
        let is_alias = matches!((group, alias), (Expr::Identifier(name), Some(alias)) if name.value == alias.value);
        let same_column = match (self.column(group), self.column(expr)) {
            (Some(group), Some(expr)) => group.value == expr.value && self.has_column_like(&group.value),
            _ => false,
        };
        group == expr || same_column || is_alias
    }

    /// Whether the output column `name` is the upstream's column of that name.
    fn passes(&self, select: &'a Select, output: &Schema, name: &str) -> bool {
        let Ok(at) = output.index_of(name) else { return false };
        match select.projection.get(at) {
            Some(SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) => {
                self.column(expr).is_some_and(|column| column.value == name)
            }
            _ => false,
        }
    }

    /// What a sum or a count is taken of: something that each row has its own value for.
    fn check_measured(&self, of: &'a Expr, aggregate: &Expr) -> Result<(), String> {
        self.check_row_by_row(of)?;
        let mut columns = false;
        let _ = sqlparser::ast::visit_expressions(of, |expr| {
            columns |= matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_));
            std::ops::ControlFlow::<()>::Continue(())
        });
        if columns { Ok(()) } else { Err(it_has(aggregate)) }
    }

    /// An expression whose value for a row depends on nothing but the row.
    fn check_row_by_row(&self, expr: &'a Expr) -> Result<(), String> {
        let all = |exprs: &[&'a Expr]| exprs.iter().try_for_each(|expr| self.check_row_by_row(expr));
        match expr {
            Expr::Identifier(_) | Expr::CompoundIdentifier(_) if self.column(expr).is_some() => Ok(()),
            Expr::Value(value) if !matches!(value.value, Value::Placeholder(_)) => Ok(()),
            Expr::TypedString(_) => Ok(()),
            Expr::Nested(inner)
            | Expr::UnaryOp { expr: inner, .. }
            | Expr::IsNull(inner)
            | Expr::IsNotNull(inner)
            | Expr::IsTrue(inner)
            | Expr::IsNotTrue(inner)
            | Expr::IsFalse(inner)
            | Expr::IsNotFalse(inner)
            | Expr::Extract { expr: inner, .. } => self.check_row_by_row(inner),
            Expr::BinaryOp { left, right, .. }
            | Expr::IsDistinctFrom(left, right)
            | Expr::IsNotDistinctFrom(left, right) => all(&[left, right]),
            Expr::Between { expr, low, high, .. } => all(&[expr, low, high]),
            Expr::Like { expr, pattern, any: false, .. } | Expr::ILike { expr, pattern, any: false, .. } => {
                all(&[expr, pattern])
            }
            Expr::InList { expr, list, .. } => {
                self.check_row_by_row(expr)?;
                all(&list.iter().collect::<Vec<_>>())
            }
            Expr::Case { operand, conditions, else_result, .. } => {
                let mut inner: Vec<&Expr> = operand.iter().chain(else_result).map(AsRef::as_ref).collect();
                inner.extend(conditions.iter().flat_map(|when| [&when.condition, &when.result]));
                all(&inner)
            }
            Expr::Cast {
                kind: CastKind::Cast | CastKind::TryCast | CastKind::DoubleColon,
                expr: inner,
                data_type,
                array: false,
                format: None,
            } => {
                self.check_cast(inner, data_type).ok_or_else(|| it_has(expr))?;
                self.check_row_by_row(inner)
            }
            Expr::Function(function) => {
                let name = parts(&function.name).join(".").to_lowercase();
                let FunctionArguments::List(list) = &function.args else { return Err(it_has(expr)) };
                if !OF_ONE_ROW.contains(&name.as_str()) || function.over.is_some() || !list.clauses.is_empty() {
                    return Err(it_has(expr));
                }
                list.args.iter().try_for_each(|arg| match arg {
                    FunctionArg::Unnamed(FunctionArgExpr::Expr(arg)) => self.check_row_by_row(arg),
                    _ => Err(it_has(expr)),
                })
            }
            Expr::Substring { expr, substring_from, substring_for, .. } => {
                let inner = [Some(expr), substring_from.as_ref(), substring_for.as_ref()];
                all(&inner.into_iter().flatten().map(AsRef::as_ref).collect::<Vec<_>>())
            }
            Expr::Trim { expr, trim_what: None, trim_characters: None, .. }
            | Expr::Ceil { expr, .. }
            | Expr::Floor { expr, .. } => self.check_row_by_row(expr),
            other => Err(it_has(other)),
        }
    }

    /// Polars learns the pattern of times in text from the first rows that it sees; which those are must not matter.
    fn check_cast(&self, expr: &'a Expr, to: &SqlType) -> Option<()> {
        let is_time = |data_type: &DataType| data_type.is_temporal();
        match to {
            SqlType::Date | SqlType::Timestamp(..) | SqlType::Datetime(..) => {
                is_time(self.field(expr)?.data_type()).then_some(())
            }
            SqlType::Int(_)
            | SqlType::Integer(_)
            | SqlType::BigInt(_)
            | SqlType::SmallInt(_)
            | SqlType::Varchar(_)
            | SqlType::Text
            | SqlType::String(_)
            | SqlType::Decimal(_)
            | SqlType::Numeric(_)
            | SqlType::Double(_)
            | SqlType::Boolean => Some(()),
            _ => None,
        }
    }
}
