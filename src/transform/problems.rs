//! What is wrong with a pipeline's SQL, where, and what to write instead.

use std::fmt;
use std::ops::ControlFlow;

use sqlparser::ast::{Expr, Ident, ObjectName, SelectItem, SelectItemQualifiedWildcardKind, Visit, Visitor};
use sqlparser::tokenizer::Span;

use crate::config::spec::Engine;

/// Which part of a table's YAML a problem is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// `sql`.
    Sql,
    /// `expect.<name>.check`.
    Expect(String),
    /// `write.upsert.delete_when`.
    DeleteWhen,
    /// `write.upsert.key`.
    Key,
    /// `write.upsert.order_by`.
    OrderBy,
    /// `write.upsert.drop`.
    Drop,
    /// `write.refresh.by`.
    By,
    /// `partition_by`.
    PartitionBy,
    /// `from`.
    From,
    /// `write`.
    Write,
    /// `aggregate.measures.<name>`.
    Measure(String),
    /// Another key of the table.
    Inside(&'static [&'static str]),
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Field::Sql => f.write_str("sql"),
            Field::Expect(name) => write!(f, "expect.{name}.check"),
            Field::DeleteWhen => f.write_str("write.upsert.delete_when"),
            Field::Key => f.write_str("write.upsert.key"),
            Field::OrderBy => f.write_str("write.upsert.order_by"),
            Field::Drop => f.write_str("write.upsert.drop"),
            Field::By => f.write_str("write.refresh.by"),
            Field::PartitionBy => f.write_str("partition_by"),
            Field::From => f.write_str("from"),
            Field::Write => f.write_str("write"),
            Field::Measure(name) => write!(f, "aggregate.measures.{name}"),
            Field::Inside(path) => f.write_str(&path.join(".")),
        }
    }
}

/// A problem in one table's SQL, or in a name that must fit its columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlProblem {
    /// Table.
    pub table: String,
    /// Where in the table's YAML.
    pub field: Field,
    /// Line inside that SQL text, from 1.
    pub line: usize,
    /// Column (characters) inside that line, from 1.
    pub column: usize,
    /// Characters to underline, at least 1.
    pub length: usize,
    /// What is wrong; lowercase, no full stop.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}

impl fmt::Display for SqlProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tables.{}.{}:{}:{}: {}", self.table, self.field, self.line, self.column, self.message)?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

/// A problem before it is known which table and field it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Line, column, length.
    pub place: Place,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}

/// A stretch of SQL text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// At least 1.
    pub length: usize,
}

impl Place {
    /// Where there is nothing better to point at.
    pub const START: Place = Place { line: 1, column: 1, length: 1 };

    /// The place of a parsed piece.
    pub fn of(span: Span) -> Place {
        if span.start.line == 0 {
            return Place::START;
        }
        let length = match span.end.line == span.start.line {
            true => span.end.column.saturating_sub(span.start.column).max(1),
            false => 1,
        };
        Place { line: span.start.line as usize, column: span.start.column as usize, length: length as usize }
    }
}

impl Finding {
    /// A problem at `span`.
    pub fn at(span: Span, message: impl Into<String>) -> Finding {
        Finding { place: Place::of(span), message: message.into(), help: None }
    }

    /// Adds what to write instead.
    pub fn help(mut self, help: impl Into<String>) -> Finding {
        self.help = Some(help.into());
        self
    }

    /// Says whose problem it is.
    pub fn in_field(self, table: &str, field: Field) -> SqlProblem {
        SqlProblem {
            table: table.to_string(),
            field,
            line: self.place.line,
            column: self.place.column,
            length: self.place.length,
            message: self.message,
            help: self.help,
        }
    }
}

/// `did you mean `x`?` when something is close, and then what there is.
pub fn suggest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>, what: &str) -> Option<String> {
    let known: Vec<&str> = known.into_iter().collect();
    let lower = wrong.to_lowercase();
    let best = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), *name))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, name)| *distance <= 1 + name.len().min(wrong.len()) / 4);
    let list = match known.len() {
        0 => return None,
        1..=30 => known.join(", "),
        more => format!("{}, … ({more} in all)", known[..30].join(", ")),
    };
    Some(match best {
        Some((_, name)) => format!("did you mean `{name}`? {what}: {list}"),
        None => format!("{what}: {list}"),
    })
}

/// Finds the first identifier called `name` in a statement; the last part of a qualified one counts too.
pub fn locate(node: &impl Visit, name: &str) -> Option<Span> {
    struct Seek<'a>(&'a str);
    impl Seek<'_> {
        fn test(&self, ident: &Ident) -> ControlFlow<Span> {
            match ident.value.eq_ignore_ascii_case(self.0) && ident.span.start.line > 0 {
                true => ControlFlow::Break(ident.span),
                false => ControlFlow::Continue(()),
            }
        }
        fn test_name(&self, name: &ObjectName) -> ControlFlow<Span> {
            name.0.iter().filter_map(|part| part.as_ident()).try_for_each(|ident| self.test(ident))
        }
    }
    impl Visitor for Seek<'_> {
        type Break = Span;
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Span> {
            match expr {
                Expr::Identifier(ident) => self.test(ident),
                Expr::CompoundIdentifier(idents) => idents.iter().rev().try_for_each(|ident| self.test(ident)),
                Expr::Function(function) => self.test_name(&function.name),
                _ => ControlFlow::Continue(()),
            }
        }
        fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<Span> {
            self.test_name(relation)
        }
        fn pre_visit_select(&mut self, select: &sqlparser::ast::Select) -> ControlFlow<Span> {
            select.projection.iter().try_for_each(|item| match item {
                SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
                    self.test_name(name)
                }
                _ => ControlFlow::Continue(()),
            })
        }
    }
    match node.visit(&mut Seek(name)) {
        ControlFlow::Break(span) => Some(span),
        ControlFlow::Continue(()) => None,
    }
}

/// A query of a `refresh` table that reads only the batch.
pub(super) fn refresh_reads_tables(place: Place) -> Finding {
    Finding {
        place,
        message: "`refresh` recomputes whole groups, but `batch` holds only this batch's rows".into(),
        help: None,
    }
    .help("read the table itself: `FROM` the name that `from:` gives, such as FROM silver.orders")
}

/// An engine's message as ours: what it names is found in the SQL, and what it could have been is said.
pub(super) fn explain(original: &impl Visit, engine: Engine, message: &str, columns: Vec<&str>) -> Finding {
    let first_line = message.lines().next().unwrap_or_default().trim();
    let mut columns = columns;
    columns.sort_unstable();
    columns.dedup();
    let named = names_in(message);
    let about_a_column =
        ["unable to find column", "no column named", "No field named", "not found", "no table or struct column"]
            .iter()
            .any(|text| message.contains(text));
    if about_a_column
        && let Some((name, span)) = named
            .iter()
            .filter(|name| !columns.contains(&name.as_str()))
            .find_map(|name| Some((name, locate(original, name)?)))
    {
        let mut finding = Finding::at(span, format!("unknown column `{name}`"));
        finding.help = suggest(name, columns.iter().copied(), "columns");
        return finding;
    }
    if ["unsupported function", "Invalid function", "UDF"].iter().any(|text| message.contains(text))
        && let Some((name, span)) = named.iter().find_map(|name| Some((name, locate(original, name)?)))
    {
        let finding = Finding::at(span, format!("unknown function `{name}`"));
        return match engine {
            Engine::Polars => finding.help("Polars SQL does not have it; `engine: datafusion` on this table may"),
            Engine::DataFusion => finding,
        };
    }
    let place = named.iter().find_map(|name| locate(original, name)).map_or(Place::START, Place::of);
    let finding = Finding { place, message: first_line.to_string(), help: None };
    match engine {
        Engine::Polars if message.contains("support") => {
            finding.help("if Polars SQL cannot do this, `engine: datafusion` on this table may")
        }
        _ => finding,
    }
}

/// What a message puts in quotes, and what follows `No field named`.
fn names_in(message: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((_, rest)) = message.split_once("No field named ") {
        let token = rest.split([' ', ',', '\n']).next().unwrap_or_default().trim_end_matches('.').trim_matches('"');
        let last = token.rsplit('.').next().unwrap_or(token);
        names.push(last.trim_matches('"').to_string());
    }
    for quote in ['"', '\'', '`'] {
        names.extend(message.split(quote).skip(1).step_by(2).map(str::to_string));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_are_close_or_absent() {
        let known = ["amount", "store_id"];
        let text = |wrong| suggest(wrong, known, "columns").unwrap();
        assert_eq!(text("amout"), "did you mean `amount`? columns: amount, store_id");
        assert_eq!(text("xyz"), "columns: amount, store_id");
        assert_eq!(suggest("x", [], "columns"), None);
    }
}
