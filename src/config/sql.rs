//! The little that configuration must know about a query: which relations it reads, and whether it aggregates. SQL that
//! does not parse is the SQL compiler's to report; here it reads nothing.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use sqlparser::ast::{Expr, GroupByExpr, ObjectName, Query, Select, SetExpr, Statement, TableFactor, Visit, Visitor};
use sqlparser::dialect::GenericDialect;
use sqlparser::parser::Parser;

const AGGREGATES: [&str; 20] = [
    "count",
    "sum",
    "avg",
    "mean",
    "min",
    "max",
    "first",
    "last",
    "median",
    "stddev",
    "stddev_samp",
    "variance",
    "var_samp",
    "array_agg",
    "string_agg",
    "corr",
    "covar",
    "quantile_cont",
    "quantile_disc",
    "approx_distinct",
];

/// A relation that a query reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// Its name, such as `batch` or `silver.orders`.
    pub name: String,
    /// Line in the query, from 1; 0 = unknown.
    pub line: usize,
    /// Column in the query, from 1; 0 = unknown.
    pub column: usize,
    /// Characters, as far as they stand on one line.
    pub length: usize,
}

/// What a query reads.
#[derive(Debug, Default)]
pub struct Reads {
    /// Relations outside the query, in order, names unique.
    pub relations: Vec<Relation>,
    /// A `SELECT` that reads `batch` directly has GROUP BY or an aggregate function.
    pub aggregates_batch: bool,
}

impl Reads {
    /// Whether a relation is read.
    pub fn reads(&self, name: &str) -> bool {
        self.relations.iter().any(|relation| relation.name == name)
    }
}

/// What a query reads; nothing when it does not parse.
pub fn reads(sql: &str) -> Reads {
    // The parser's own limit on recursion (50) holds, so nesting cannot overflow the stack.
    let Ok(statements) = Parser::parse_sql(&GenericDialect {}, sql) else { return Reads::default() };
    let mut collector = Collector::default();
    let _ = statements.visit(&mut collector);
    let mut reads = Reads { relations: Vec::new(), aggregates_batch: collector.aggregates_batch };
    for relation in collector.relations {
        let own = collector.ctes.contains(&relation.name.to_lowercase());
        if !own && !reads.reads(&relation.name) {
            reads.relations.push(relation);
        }
    }
    reads
}

#[derive(Default)]
struct Collector {
    relations: Vec<Relation>,
    ctes: BTreeSet<String>,
    aggregates_batch: bool,
}

impl Visitor for Collector {
    type Break = ();

    fn pre_visit_statement(&mut self, _: &Statement) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
            self.ctes.insert(cte.alias.name.value.to_lowercase());
        }
        self.body(&query.body);
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, args: None, .. } = factor {
            self.relations.push(relation(name));
        }
        ControlFlow::Continue(())
    }
}

impl Collector {
    fn body(&mut self, body: &SetExpr) {
        match body {
            SetExpr::Select(select) if reads_batch(select) && aggregates(select) => self.aggregates_batch = true,
            SetExpr::SetOperation { left, right, .. } => {
                self.body(left);
                self.body(right);
            }
            // A query in parentheses is visited on its own.
            _ => {}
        }
    }
}

fn reads_batch(select: &Select) -> bool {
    let is_batch = |factor: &TableFactor| match factor {
        TableFactor::Table { name, args: None, .. } => relation(name).name.eq_ignore_ascii_case("batch"),
        _ => false,
    };
    let joined = |from: &sqlparser::ast::TableWithJoins| from.joins.iter().any(|join| is_batch(&join.relation));
    select.from.iter().any(|from| is_batch(&from.relation) || joined(from))
}

fn aggregates(select: &Select) -> bool {
    let grouped = match &select.group_by {
        GroupByExpr::All(_) => true,
        GroupByExpr::Expressions(expressions, _) => !expressions.is_empty(),
    };
    let mut finder = AggregateFinder { queries: 0 };
    grouped || select.projection.visit(&mut finder).is_break()
}

/// Stops at an aggregate function that is not a window function. Subqueries aggregate for themselves.
struct AggregateFinder {
    queries: usize,
}

impl Visitor for AggregateFinder {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.queries += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.queries -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expression: &Expr) -> ControlFlow<()> {
        match expression {
            Expr::Function(function) if self.queries == 0 && function.over.is_none() => {
                let name = function.name.to_string().to_lowercase();
                match AGGREGATES.contains(&name.as_str()) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

fn relation(name: &ObjectName) -> Relation {
    let idents: Vec<_> = name.0.iter().filter_map(|part| part.as_ident()).collect();
    let text = idents.iter().map(|ident| ident.value.as_str()).collect::<Vec<_>>().join(".");
    let (line, column) = match idents.first() {
        Some(first) => (first.span.start.line as usize, first.span.start.column as usize),
        None => (0, 0),
    };
    let length = match idents.last() {
        Some(last) if last.span.end.line as usize == line => (last.span.end.column as usize).saturating_sub(column),
        _ => text.chars().count(),
    };
    Relation { name: text, line, column, length }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(sql: &str) -> Vec<String> {
        reads(sql).relations.into_iter().map(|relation| relation.name).collect()
    }

    #[test]
    fn relations_are_those_outside_the_query() {
        assert_eq!(names("SELECT * FROM batch b LEFT JOIN stores s ON b.x = s.x"), ["batch", "stores"]);
        assert_eq!(names("WITH a AS (SELECT * FROM silver.orders) SELECT * FROM a"), ["silver.orders"]);
        assert_eq!(names("SELECT * FROM batch WHERE x IN (SELECT x FROM gold.y)"), ["batch", "gold.y"]);
        assert_eq!(names("SELEC oops"), Vec::<String>::new());
        let reads = reads("SELECT *\nFROM silver.orders");
        let relation = &reads.relations[0];
        assert_eq!((relation.line, relation.column, relation.length), (2, 6, 13));
    }

    #[test]
    fn aggregates_of_the_batch_are_seen() {
        for (sql, expected) in [
            ("SELECT a, count(*) FROM batch GROUP BY a", true),
            ("SELECT sum(x) + 1 AS s FROM batch", true),
            ("WITH t AS (SELECT a, max(b) AS b FROM batch GROUP BY a) SELECT * FROM t", true),
            ("SELECT a FROM batch UNION ALL SELECT max(a) FROM batch", true),
            ("SELECT a, row_number() OVER (PARTITION BY a) FROM batch", false),
            ("SELECT a, sum(b) OVER (PARTITION BY a) FROM batch", false),
            ("SELECT a, count(*) FROM silver.orders GROUP BY a", false),
            ("SELECT a, (SELECT max(b) FROM other) FROM batch", false),
        ] {
            assert_eq!(reads(sql).aggregates_batch, expected, "{sql}");
        }
    }
}
