//! `${VAR}`, `${VAR:-default}`, `${VAR:?message}`, `${file:/path}` and the escape `$${`, resolved on scalars after YAML
//! parsing, so that a value can never create structure. SQL text is left alone. Every missing reference is reported, by
//! its name and never by a value.

use super::report::{Problem, Span};
use super::shape::Path;
use super::yaml::{Node, Scalar, Style, Value};
use crate::error::Code;

/// Keys whose text is SQL, where `${` is not ours.
const SQL_KEYS: [&str; 3] = ["sql", "check", "delete_when"];
/// References inside defaults of references may nest this deep.
const MAX_NESTING: usize = 8;

/// Where values come from. Injected, so that tests never touch the process environment.
pub trait Lookup {
    /// The value of an environment variable.
    fn variable(&self, name: &str) -> Option<String>;
    /// The text of a file, or why it cannot be read.
    fn file(&self, path: &str) -> Result<String, String>;
    /// What becomes of the value at `path` (keys from the root) when a reference in it has no value.
    fn when_missing(&self, path: &[String]) -> Missing {
        let _ = path;
        Missing::Report
    }
}

/// What becomes of a value whose reference has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// It is a problem.
    Report,
    /// The setting counts as left out.
    LeaveOut,
    /// The reference itself stands for the value.
    KeepReference,
}

/// The process environment and the file system, where they say something: for `tidegate test`, which contacts no broker
/// and no lake, so that what only they need may be unset. What shapes rows (timezone, SQL, schemas) may not.
#[derive(Debug, Clone, Copy, Default)]
pub struct OfflineLookup;

impl Lookup for OfflineLookup {
    fn variable(&self, name: &str) -> Option<String> {
        SystemLookup.variable(name)
    }

    fn file(&self, path: &str) -> Result<String, String> {
        SystemLookup.file(path)
    }

    fn when_missing(&self, path: &[String]) -> Missing {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        match path.as_slice() {
            ["source", "kafka" | "files" | "generate", ..] | ["sources", _, "kafka" | "files" | "generate", ..] => {
                Missing::LeaveOut
            }
            ["lake" | "checkpoints"] | ["lookups", ..] => Missing::KeepReference,
            _ => Missing::Report,
        }
    }
}

/// The process environment and the file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemLookup;

impl Lookup for SystemLookup {
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn file(&self, path: &str) -> Result<String, String> {
        std::fs::read_to_string(path).map_err(|error| error.to_string())
    }
}

/// Fixed values, for tests and dry checks.
#[derive(Debug, Clone, Default)]
pub struct FixedLookup {
    /// Variables by name.
    pub variables: std::collections::BTreeMap<String, String>,
    /// File texts by path.
    pub files: std::collections::BTreeMap<String, String>,
}

impl Lookup for FixedLookup {
    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }

    fn file(&self, path: &str) -> Result<String, String> {
        self.files.get(path).cloned().ok_or_else(|| "no such file".to_owned())
    }
}

/// Resolves every reference of the tree in place, and returns the paths where that failed. `lines` is the file, to point
/// at the reference itself.
pub fn resolve(root: &mut Node, lookup: &dyn Lookup, lines: &[&str], problems: &mut Vec<Problem>) -> Vec<Path> {
    let mut resolver = Resolver { lookup, lines, problems, path: Vec::new(), failed: Vec::new() };
    resolver.node(root);
    resolver.failed
}

struct Resolver<'r> {
    lookup: &'r dyn Lookup,
    lines: &'r [&'r str],
    problems: &'r mut Vec<Problem>,
    path: Path,
    failed: Vec<Path>,
}

impl Resolver<'_> {
    fn node(&mut self, node: &mut Node) {
        let span = node.span;
        match &mut node.value {
            Value::Scalar(scalar) => self.scalar(scalar, span),
            Value::Sequence(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.child(index.to_string(), item);
                }
            }
            Value::Mapping(entries) => {
                for entry in entries {
                    let tests = self.path.is_empty() && entry.key == "tests";
                    if !tests && !SQL_KEYS.contains(&entry.key.as_str()) {
                        self.child(entry.key.clone(), &mut entry.value);
                    }
                }
            }
        }
    }

    fn child(&mut self, step: String, node: &mut Node) {
        self.path.push(step);
        self.node(node);
        self.path.pop();
    }

    fn scalar(&mut self, scalar: &mut Scalar, span: Span) {
        if !scalar.text.contains("${") {
            return;
        }
        let mut missing = Vec::new();
        let text = expand(&scalar.text, self.lookup, &mut missing, 0);
        match (missing.is_empty(), self.lookup.when_missing(&self.path)) {
            (true, _) => {}
            (false, Missing::KeepReference) => return,
            (false, Missing::LeaveOut) => {
                self.failed.push(self.path.clone());
                missing.clear();
            }
            (false, Missing::Report) => self.failed.push(self.path.clone()),
        }
        for miss in missing {
            let span = reference_span(span, scalar.style, &miss.reference, self.lines);
            let problem = Problem::at(span, miss.message).coded(Code::Reference).label(miss.label);
            self.problems.push(match miss.help {
                Some(help) => problem.help(help),
                None => problem,
            });
        }
        scalar.reference = Some(std::mem::replace(&mut scalar.text, text));
    }
}

/// The place of a reference when the file shows it as written (no escapes before it), else the whole scalar.
fn reference_span(span: Span, style: Style, reference: &str, lines: &[&str]) -> Span {
    let one_line = span.line == span.end_line && matches!(style, Style::Plain | Style::Quoted);
    let Some(line) = lines.get(span.line.saturating_sub(1)).filter(|_| one_line) else { return span };
    let from: usize = line.chars().take(span.column.saturating_sub(1)).map(char::len_utf8).sum();
    match line[from..].find(reference) {
        Some(offset) => {
            let before = line[from..from + offset].chars().count();
            Span::on_line(span.line, span.column + before, reference.chars().count())
        }
        None => span,
    }
}

struct Miss {
    reference: String,
    message: String,
    label: String,
    help: Option<String>,
}

fn expand(text: &str, lookup: &dyn Lookup, missing: &mut Vec<Miss>, depth: usize) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            out.push_str(&rest[..at - 1]);
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let Some(end) = closing_brace(&rest[at..]) else {
            missing.push(Miss {
                reference: rest[at..].to_owned(),
                message: "`${` without `}`".into(),
                label: "the reference does not end".into(),
                help: Some("write `$${` for a literal `${`".into()),
            });
            return out;
        };
        let reference = &rest[at..at + end + 1];
        out.push_str(&value_of(reference, lookup, missing, depth));
        rest = &rest[at + end + 1..];
    }
    out.push_str(rest);
    out
}

/// Index of the `}` that closes the `${` at the start of `text`.
fn closing_brace(text: &str) -> Option<usize> {
    let mut open = 0usize;
    for (at, c) in text.char_indices() {
        if text[at..].starts_with("${") {
            open += 1;
        } else if c == '}' {
            open -= 1;
            if open == 0 {
                return Some(at);
            }
        }
    }
    None
}

fn value_of(reference: &str, lookup: &dyn Lookup, missing: &mut Vec<Miss>, depth: usize) -> String {
    let inner = &reference[2..reference.len() - 1];
    let mut miss = |message: String, label: &str, help: Option<String>| {
        missing.push(Miss { reference: reference.to_owned(), message, label: label.to_owned(), help });
        String::new()
    };
    if depth > MAX_NESTING {
        return miss("references nested too deep".into(), "", None);
    }
    if let Some(path) = inner.strip_prefix("file:") {
        return match lookup.file(path) {
            Err(why) => miss(format!("cannot read the file `{path}`"), &why, None),
            Ok(text) => match text.strip_suffix('\n').map(|t| t.strip_suffix('\r').unwrap_or(t)).unwrap_or(&text) {
                line if line.contains('\n') => miss(format!("the file `{path}` has more than one line"), "", None),
                line => line.to_owned(),
            },
        };
    }
    let end = inner.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inner.len());
    let (name, operator) = inner.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        let help = "write ${VAR}, ${VAR:-default}, ${VAR:?message}, ${file:/path}, or `$${` for a literal `${`";
        return miss(format!("`{reference}` is not a reference"), "", Some(help.into()));
    }
    let value = lookup.variable(name);
    if value.as_ref().is_some_and(|value| value.contains('\n')) {
        return miss(format!("the value of `{name}` has more than one line"), "", None);
    }
    let given = value.as_ref().is_some_and(|value| !value.is_empty());
    match (operator, value) {
        ("", Some(value)) => value,
        ("", None) => {
            let help = format!("export {name}=…, or give a default: ${{{name}:-…}}");
            miss(format!("`{name}` is not set"), "no such environment variable", Some(help))
        }
        (operator, value) if operator.starts_with(":-") => match value {
            Some(value) if given => value,
            _ => expand(&operator[2..], lookup, missing, depth + 1),
        },
        (operator, value) if operator.starts_with(":?") => match value {
            Some(value) if given => value,
            _ => miss(format!("`{name}` is not set"), &operator[2..], None),
        },
        _ => {
            let help = "write ${VAR}, ${VAR:-default} or ${VAR:?message}";
            miss(format!("`{reference}` is not a reference"), "", Some(help.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup() -> FixedLookup {
        let pair = |(k, v): (&str, &str)| (k.to_owned(), v.to_owned());
        FixedLookup {
            variables: [("A", "one"), ("EMPTY", ""), ("LINES", "x\ny")].map(pair).into(),
            files: [("/s", "secret\n"), ("/two", "a\nb\n")].map(pair).into(),
        }
    }

    fn expanded(text: &str) -> (String, Vec<String>) {
        let mut missing = Vec::new();
        let out = expand(text, &lookup(), &mut missing, 0);
        (out, missing.into_iter().map(|m| format!("{}: {}", m.message, m.label)).collect())
    }

    #[test]
    fn references_resolve() {
        for (text, value) in [
            ("x ${A} y ${A}", "x one y one"),
            ("${NO:-d}", "d"),
            ("${EMPTY:-d}", "d"),
            ("${EMPTY}", ""),
            ("${NO:-${A}/x}", "one/x"),
            ("$${A} $A $", "${A} $A $"),
            ("${file:/s}", "secret"),
            ("${A:?must}", "one"),
            ("^a\\.$", "^a\\.$"),
        ] {
            assert_eq!(expanded(text), (value.to_owned(), vec![]), "{text}");
        }
    }

    #[test]
    fn every_miss_is_told_and_no_value_is() {
        let (_, missing) = expanded("${NO} ${NO2:?set it} ${LINES} ${file:/none} ${file:/two} ${A!} ${} ${open");
        assert_eq!(
            missing,
            [
                "`NO` is not set: no such environment variable",
                "`NO2` is not set: set it",
                "the value of `LINES` has more than one line: ",
                "cannot read the file `/none`: no such file",
                "the file `/two` has more than one line: ",
                "`${A!}` is not a reference: ",
                "`${}` is not a reference: ",
                "`${` without `}`: the reference does not end",
            ]
        );
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = format!("{}x{}", "${N:-".repeat(5000), "}".repeat(5000));
        assert_eq!(expanded(&deep).1.len(), 1);
    }
}
