//! The file as it was written: places of values, for problems that are found after the YAML was checked.

use super::report::{Report, Span};
use super::yaml::{Node, Style, Value};

/// A piece of SQL of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SqlField<'a> {
    /// `sql`.
    Sql,
    /// `write.upsert.delete_when`.
    DeleteWhen,
    /// `expect.<name>.check`.
    Expect(&'a str),
    /// `aggregate.measures.<name>`.
    Measure(&'a str),
}

/// A place in a piece of SQL: lines and columns count from 1, columns and length in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SqlPlace<'a> {
    /// Table.
    pub table: &'a str,
    /// Which of its texts.
    pub field: SqlField<'a>,
    /// Line in that text.
    pub line: usize,
    /// Column in that line.
    pub column: usize,
    /// Characters to underline.
    pub length: usize,
}

/// The file as it was written, with the target's overlay merged.
#[derive(Debug, Clone)]
pub struct Document {
    file: String,
    source: String,
    root: Node,
}

impl Document {
    /// `source` with literal secrets masked; `root` before references were resolved, so that a problem can print the
    /// reference.
    pub(super) fn new(file: String, source: String, root: Node) -> Self {
        Document { file, source, root }
    }

    /// The file, as the user named it.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The place of the value at `path`, or of the deepest part of the path that exists. Mappings and block texts give
    /// their key, which is what a caret can point at.
    pub fn span_of<S: AsRef<str>>(&self, path: &[S]) -> Span {
        self.place(path, Part::Value)
    }

    /// The place of the key at `path`, or of the deepest part of the path that exists.
    pub fn key_span_of<S: AsRef<str>>(&self, path: &[S]) -> Span {
        self.place(path, Part::Key)
    }

    /// The node at a path.
    pub fn node<S: AsRef<str>>(&self, path: &[S]) -> Option<&Node> {
        path.iter().try_fold(&self.root, |node, step| child(node, step.as_ref()).map(|(node, _)| node))
    }

    /// Keys of the mapping at a path, in file order.
    pub(super) fn keys<S: AsRef<str>>(&self, path: &[S]) -> Vec<String> {
        self.node(path).map(|node| node.keys().map(str::to_owned).collect()).unwrap_or_default()
    }

    fn place<S: AsRef<str>>(&self, path: &[S], part: Part) -> Span {
        let mut node = &self.root;
        let mut key = Span::on_line(node.span.line, node.span.column, 1);
        for (index, step) in path.iter().enumerate() {
            let Some((next, next_key)) = child(node, step.as_ref()) else {
                return key;
            };
            (node, key) = (next, next_key.unwrap_or(next.span));
            let block = matches!(&node.value, Value::Scalar(s) if matches!(s.style, Style::Literal | Style::Folded));
            let scalar = matches!(node.value, Value::Scalar(_)) && !block && !node.is_null();
            let one_line = node.span.line == node.span.end_line;
            if index + 1 == path.len() && part == Part::Value && (scalar || one_line) && !block && !node.is_null() {
                return node.span;
            }
        }
        key
    }

    /// The place in the file of a place in a table's SQL (lines and columns from 1, in characters).
    pub fn sql_position(&self, table: &str, field: SqlField<'_>, line: usize, column: usize, length: usize) -> Span {
        let path = match field {
            SqlField::Sql => vec!["tables", table, "sql"],
            SqlField::DeleteWhen => vec!["tables", table, "write", "upsert", "delete_when"],
            SqlField::Expect(name) => vec!["tables", table, "expect", name, "check"],
            SqlField::Measure(name) => vec!["tables", table, "aggregate", "measures", name],
        };
        let fallback = || self.span_of(&path);
        let Some(node) = self.node(&path) else { return fallback() };
        let Value::Scalar(scalar) = &node.value else { return fallback() };
        if line == 0 || column == 0 {
            return fallback();
        }
        match scalar.style {
            // The span of a block starts at its first line with text, at the block's indentation.
            Style::Literal => {
                let blank = scalar.text.chars().take_while(|c| *c == '\n').count();
                let file_line = (node.span.line + line).saturating_sub(1 + blank);
                Span::on_line(file_line, node.span.column - 1 + column, length)
            }
            Style::Plain | Style::Quoted if node.span.line == node.span.end_line && line == 1 => {
                let quote = usize::from(scalar.style == Style::Quoted);
                Span::on_line(node.span.line, node.span.column + quote + column - 1, length)
            }
            // Folded texts and texts over several lines lost their lines: point at the whole.
            _ => fallback(),
        }
    }

    /// The text, literal secrets masked.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// An empty report of this document, for problems that are found later.
    pub fn report(&self) -> Report {
        Report::of_document(self, Vec::new())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Key,
    Value,
}

fn child<'n>(node: &'n Node, step: &str) -> Option<(&'n Node, Option<Span>)> {
    match &node.value {
        Value::Mapping(_) => node.entry(step).map(|entry| (&entry.value, Some(entry.key_span))),
        Value::Sequence(items) => items.get(step.parse::<usize>().ok()?).map(|item| (item, None)),
        Value::Scalar(_) => None,
    }
}

/// Whether a key holds a secret.
pub(super) fn is_secret_key(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["password", "secret", "token", "sasl.jaas", "ssl.key.pem", "private"].iter().any(|word| key.contains(word))
}

/// The text with literal secrets replaced by asterisks, columns kept. `root` is the whole file, all targets included,
/// before references were resolved: what is secret can then be told from what refers to a secret.
pub(super) fn masked(source: &str, root: &Node) -> String {
    let mut lines: Vec<Vec<char>> = source.lines().map(|line| line.chars().collect()).collect();
    mask_node(root, &mut lines);
    lines.into_iter().map(|line| line.into_iter().chain(['\n']).collect::<String>()).collect()
}

fn mask_node(node: &Node, lines: &mut [Vec<char>]) {
    match &node.value {
        Value::Scalar(_) => {}
        Value::Sequence(items) => items.iter().for_each(|item| mask_node(item, lines)),
        Value::Mapping(entries) => {
            for entry in entries {
                match entry.key.as_str() {
                    key if is_secret_key(key) => mask_scalars(&entry.value, lines),
                    "security" => mask_security(&entry.value, lines),
                    _ => mask_node(&entry.value, lines),
                }
            }
        }
    }
}

/// Keys of `security` whose values may be shown. A misspelt `password` is none of them.
const HARMLESS: [&str; 5] = ["protocol", "mechanism", "username", "ca", "cert"];

fn mask_security(node: &Node, lines: &mut [Vec<char>]) {
    match &node.value {
        Value::Mapping(entries) => {
            for entry in entries.iter().filter(|entry| !HARMLESS.contains(&entry.key.as_str())) {
                mask_scalars(&entry.value, lines);
            }
        }
        _ => mask_scalars(node, lines),
    }
}

/// Masks whatever is written below a key that holds a secret, references apart.
fn mask_scalars(node: &Node, lines: &mut [Vec<char>]) {
    match &node.value {
        Value::Scalar(scalar) if scalar.text.starts_with("${") => {}
        Value::Scalar(_) => mask_span(node.span, lines),
        Value::Sequence(items) => items.iter().for_each(|item| mask_scalars(item, lines)),
        Value::Mapping(entries) => entries.iter().for_each(|entry| mask_scalars(&entry.value, lines)),
    }
}

fn mask_span(span: Span, lines: &mut [Vec<char>]) {
    for number in span.line..=span.end_line {
        let Some(line) = lines.get_mut(number.saturating_sub(1)) else { return };
        let from = if number == span.line { span.column.saturating_sub(1) } else { 0 };
        let to = if number == span.end_line { span.end_column.saturating_sub(1) } else { line.len() };
        line.iter_mut().take(to).skip(from).for_each(|c| *c = '*');
    }
}

/// The text of a file that is not YAML: what follows a secret key on its line is masked.
pub(super) fn masked_by_line(source: &str) -> String {
    let mask = |line: &str| match line.split_once(':') {
        Some((key, value)) if is_secret_key(key) || is_secret_key(value) => {
            let hidden: String = value.chars().map(|c| if c.is_whitespace() { c } else { '*' }).collect();
            format!("{key}:{hidden}\n")
        }
        _ => format!("{line}\n"),
    };
    source.lines().map(mask).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(source: &str) -> Document {
        let (root, problems) = super::super::yaml::parse(source);
        assert!(problems.is_empty());
        let root = root.expect("a document");
        Document::new("p.yaml".into(), masked(source, &root), root)
    }

    #[test]
    fn places_in_sql_map_to_the_file() {
        let yaml = "tables:\n  t:\n    sql: |\n\n      SELECT a,\n        b\n    write:\n      upsert: {delete_when: \"op = 'd'\"}\n    expect:\n      q: {check: a > 0}\n";
        let document = document(yaml);
        let at = |field, line, column| {
            let span = document.sql_position("t", field, line, column, 1);
            (span.line, span.column)
        };
        assert_eq!(at(SqlField::Sql, 2, 8), (5, 14));
        assert_eq!(at(SqlField::Sql, 3, 3), (6, 9));
        assert_eq!(at(SqlField::DeleteWhen, 1, 6), (8, 35));
        assert_eq!(at(SqlField::Expect("q"), 1, 3), (10, 20));
        assert_eq!(at(SqlField::Expect("none"), 1, 1), (9, 5));
        assert_eq!(at(SqlField::Sql, 0, 0), (3, 5));
        assert_eq!(at(SqlField::Sql, 99, 99).0, 102);
    }

    #[test]
    fn literal_secrets_are_masked_and_references_are_not() {
        let text = document("s: {password: hunter2, user: x}\nt: {password: \"${P}\"}\n").source;
        assert_eq!(text, "s: {password: *******, user: x}\nt: {password: \"${P}\"}\n");
        let text = document("security: {pasword: hunter2, protocol: SSL, password: [hunter3]}\n").source;
        assert_eq!(text, "security: {pasword: *******, protocol: SSL, password: [*******]}\n");
        assert_eq!(masked_by_line("a: {b: c\npassword: x: y\n"), "a: {b: c\npassword: ** *\n");
    }
}
