//! What kind of query it is: one output row for each batch row, or something that aggregates.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use sqlparser::ast::{
    Expr, Ident, JoinOperator, Query, SelectItem, SelectItemQualifiedWildcardKind as Qualified, SetExpr, Spanned,
    TableFactor, VisitMut, VisitorMut, WildcardAdditionalOptions,
};
use sqlparser::tokenizer::Span;

use super::problems::Place;
use super::rewrite::{BATCH, parts};

/// Aggregates of both engines; with OVER they are window functions.
const AGGREGATES: &[&str] = &[
    "count",
    "sum",
    "avg",
    "mean",
    "min",
    "max",
    "median",
    "total",
    "stddev",
    "stdev",
    "stddev_samp",
    "stdev_samp",
    "stddev_pop",
    "var",
    "variance",
    "var_samp",
    "var_pop",
    "first",
    "last",
    "first_value",
    "last_value",
    "array_agg",
    "string_agg",
    "listagg",
    "group_concat",
    "corr",
    "covar",
    "covar_pop",
    "covar_samp",
    "quantile_cont",
    "quantile_disc",
    "bit_and",
    "bit_or",
    "bit_xor",
    "bool_and",
    "bool_or",
    "approx_distinct",
    "approx_median",
    "approx_percentile_cont",
    "percentile_cont",
    "grouping",
    "nth_value",
    "regr_slope",
    "unnest",
];

/// Whether the function of this name, in lower case, is an aggregate of one of the engines.
pub(super) fn is_aggregate(name: &str) -> bool {
    AGGREGATES.contains(&name)
}

/// The first aggregate in an expression, subqueries left out.
pub(super) fn first_aggregate(node: &mut impl VisitMut) -> Option<Span> {
    struct Seek(usize);
    impl VisitorMut for Seek {
        type Break = Span;
        fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<Span> {
            self.0 += 1;
            ControlFlow::Continue(())
        }
        fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<Span> {
            self.0 -= 1;
            ControlFlow::Continue(())
        }
        fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Span> {
            match expr {
                Expr::Function(function)
                    if self.0 == 0
                        && function.over.is_none()
                        && is_aggregate(&function.name.to_string().to_lowercase()) =>
                {
                    ControlFlow::Break(function.name.span())
                }
                _ => ControlFlow::Continue(()),
            }
        }
    }
    match node.visit(&mut Seek(0)) {
        ControlFlow::Break(span) => Some(span),
        ControlFlow::Continue(()) => None,
    }
}

/// The first aggregate, or GROUP BY, of the outermost SELECT.
pub(super) fn outermost_aggregate(query: &Query) -> Option<Place> {
    let SetExpr::Select(select) = query.body.as_ref() else {
        return None;
    };
    let mut projection = select.projection.clone();
    if let Some(span) = projection.iter_mut().find_map(first_aggregate) {
        return Some(Place::of(span));
    }
    match &select.group_by {
        sqlparser::ast::GroupByExpr::Expressions(exprs, modifiers) if exprs.is_empty() && modifiers.is_empty() => {
            select.having.as_ref().map(|having| Place::of(having.span()))
        }
        group_by => Some(Place::of(group_by.span())),
    }
}

/// For a SELECT whose every output row comes from one row of `batch`: the qualifier of the batch's columns.
pub(super) fn plain_over_batch(query: &Query, ctes: &BTreeSet<String>) -> Option<String> {
    let SetExpr::Select(select) = query.body.as_ref() else {
        return None;
    };
    let [from] = select.from.as_slice() else {
        return None;
    };
    let TableFactor::Table { name, alias, args: None, .. } = &from.relation else {
        return None;
    };
    let keeps_left_rows = from.joins.iter().all(|join| {
        use JoinOperator::*;
        matches!(
            join.join_operator,
            Join(_) | Inner(_) | Left(_) | LeftOuter(_) | CrossJoin(_) | Semi(_) | LeftSemi(_) | Anti(_) | LeftAnti(_)
        )
    });
    let is_batch = parts(name) == [BATCH] && !ctes.contains(BATCH);
    (is_batch && keeps_left_rows && select.distinct.is_none() && select.lateral_views.is_empty())
        .then(|| alias.as_ref().map_or(BATCH.to_string(), |alias| alias.name.value.clone()))
}

/// Whether each of `names` comes out of a plain SELECT over `batch` as the column of that name that went in. In a join only
/// references with a qualifier count: which side the others mean is the engine's to say.
pub(super) fn keeps_columns(query: &Query, batch: &str, names: &[&str]) -> bool {
    let SetExpr::Select(select) = query.body.as_ref() else {
        return false;
    };
    let joins = select.from.iter().any(|from| !from.joins.is_empty());
    let is_plain = |options: &WildcardAdditionalOptions| *options == WildcardAdditionalOptions::default();
    names.iter().all(|name| {
        let refers = |path: &[Ident]| match path {
            [column] => !joins && column.value == *name,
            [qualifier, column] => qualifier.value == batch && column.value == *name,
            _ => false,
        };
        // What an item says about the column: nothing, or whether it is passed through.
        let passed = |item: &SelectItem| match item {
            SelectItem::UnnamedExpr(Expr::Identifier(column)) if column.value == *name => {
                Some(refers(std::slice::from_ref(column)))
            }
            SelectItem::UnnamedExpr(Expr::CompoundIdentifier(path))
                if path.last().is_some_and(|last| last.value == *name) =>
            {
                Some(refers(path))
            }
            SelectItem::UnnamedExpr(_) => None,
            SelectItem::ExprWithAlias { alias, .. } if !alias.value.eq_ignore_ascii_case(name) => None,
            SelectItem::ExprWithAlias { expr: Expr::Identifier(column), .. } => {
                Some(refers(std::slice::from_ref(column)))
            }
            SelectItem::ExprWithAlias { expr: Expr::CompoundIdentifier(path), .. } => Some(refers(path)),
            SelectItem::Wildcard(options) => Some(!joins && is_plain(options)),
            SelectItem::QualifiedWildcard(Qualified::ObjectName(table), options) => {
                Some(parts(table) == [batch] && is_plain(options))
            }
            _ => Some(false),
        };
        let said: Vec<bool> = select.projection.iter().filter_map(passed).collect();
        !said.is_empty() && said.iter().all(|passed| *passed)
    })
}
