//! Problems of a pipeline file, with the place they point at, and the two forms in which they leave: text for people
//! (the shape that rustc made familiar) and JSON for editors and CI.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::document::{Document, SqlPlace};
use crate::error::{Code, Error};

/// A place in the file: lines and columns count from 1, columns in characters, the end is exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
pub struct Span {
    /// First line.
    pub line: usize,
    /// First column.
    pub column: usize,
    /// Last line.
    pub end_line: usize,
    /// Column after the last character.
    pub end_column: usize,
}

impl Span {
    /// `length` characters on one line.
    pub fn on_line(line: usize, column: usize, length: usize) -> Self {
        Span { line, column, end_line: line, end_column: column + length.max(1) }
    }
}

/// One thing to repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Its class.
    pub code: Code,
    /// What is wrong: lowercase, no full stop.
    pub message: String,
    /// Where; `None` = the file as a whole.
    pub span: Option<Span>,
    /// Said next to the caret; may be empty.
    pub label: String,
    /// What to do about it, one line each.
    pub help: Vec<String>,
}

impl Problem {
    /// A problem at a place.
    pub fn at(span: Span, message: impl Into<String>) -> Self {
        Problem { span: Some(span), ..Problem::of_file(message) }
    }

    /// A problem of the file as a whole.
    pub fn of_file(message: impl Into<String>) -> Self {
        let (code, message) = (Code::PipelineFile, message.into());
        Problem { code, message, span: None, label: String::new(), help: Vec::new() }
    }

    /// A problem at a place in a test.
    pub fn in_test(span: Span, message: impl Into<String>) -> Self {
        Problem::at(span, message).coded(Code::TestFile)
    }

    /// Gives it a code that says more than that the file has a problem.
    pub fn coded(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// Sets the words next to the caret.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Adds a line of help.
    pub fn help(mut self, line: impl Into<String>) -> Self {
        self.help.push(line.into());
        self
    }
}

/// Every problem of one file, in file order, with the lines to show.
#[derive(Debug, Clone)]
pub struct Report {
    file: String,
    lines: Vec<String>,
    problems: Vec<Problem>,
    document: Option<Arc<Document>>,
}

impl Report {
    /// `source` is shown around the carets: literal secrets must already be masked in it.
    pub fn new(file: impl Into<String>, source: &str, problems: Vec<Problem>) -> Self {
        let lines = source.lines().map(str::to_owned).collect();
        let mut report = Report { file: file.into(), lines, problems: Vec::new(), document: None };
        problems.into_iter().for_each(|problem| report.add(problem));
        report
    }

    pub(super) fn of_document(document: &Document, problems: Vec<Problem>) -> Self {
        let report = Report::new(document.file(), document.source(), problems);
        Report { document: Some(Arc::new(document.clone())), ..report }
    }

    /// Adds a problem, at its place in file order.
    pub fn add(&mut self, problem: Problem) {
        // An anchor that is used twice is checked twice; its problem is still one problem.
        if self.problems.contains(&problem) {
            return;
        }
        let place = |problem: &Problem| problem.span.map_or((0, 0), |span| (span.line, span.column));
        let at = self.problems.partition_point(|other| place(other) <= place(&problem));
        self.problems.insert(at, problem);
    }

    /// Adds a problem with the value at `path`, such as `["lookups", "stores"]`.
    pub fn add_at(&mut self, code: Code, path: &[&str], message: impl Into<String>, help: Option<String>) {
        let span = self.document.as_ref().map(|document| document.span_of(path));
        self.add(Problem { code, span, help: help.into_iter().collect(), ..Problem::of_file(message) });
    }

    /// Adds a problem inside a table's SQL.
    pub fn add_sql(&mut self, code: Code, place: SqlPlace<'_>, message: impl Into<String>, help: Option<String>) {
        let SqlPlace { table, field, line, column, length } = place;
        let span = self.document.as_ref().map(|document| document.sql_position(table, field, line, column, length));
        self.add(Problem { code, span, help: help.into_iter().collect(), ..Problem::of_file(message) });
    }

    /// Whether there is nothing to repair.
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// The text for a terminal.
    pub fn render(&self) -> String {
        self.to_string()
    }

    /// The file, as the user named it.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The problems, in file order.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// For editors and CI.
    pub fn to_json(&self) -> serde_json::Value {
        let problem = |p: &Problem| {
            serde_json::json!({
                "code": p.code.to_string(),
                "file": self.file,
                "line": p.span.map(|s| s.line),
                "column": p.span.map(|s| s.column),
                "end_line": p.span.map(|s| s.end_line),
                "end_column": p.span.map(|s| s.end_column),
                "message": if p.label.is_empty() { p.message.clone() } else { format!("{}: {}", p.message, p.label) },
                "help": p.help,
            })
        };
        serde_json::Value::Array(self.problems.iter().map(problem).collect())
    }

    fn snippet(&self, f: &mut fmt::Formatter<'_>, span: Span, label: &str) -> fmt::Result {
        let number = span.line.to_string();
        let gutter = " ".repeat(number.len());
        let tabless = |text: &str| text.replace('\t', " ");
        let line = self.lines.get(span.line.saturating_sub(1)).map(|l| tabless(l)).unwrap_or_default();
        let width = line.chars().count();
        let start = span.column.saturating_sub(1).min(width);
        let end = if span.end_line > span.line { width } else { span.end_column.saturating_sub(1).min(width) };
        let carets = "^".repeat(end.saturating_sub(start).max(1));
        writeln!(f, "{gutter}--> {}:{}:{}", self.file, span.line, span.column)?;
        writeln!(f, "{gutter} |")?;
        writeln!(f, "{number} | {line}")?;
        let pointer = format!("{gutter} | {}{carets} {label}", " ".repeat(start));
        writeln!(f, "{}", pointer.trim_end())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "error[{}]: {}", problem.code, problem.message)?;
            let gutter = match problem.span {
                Some(span) => {
                    self.snippet(f, span, &problem.label)?;
                    " ".repeat(span.line.to_string().len())
                }
                None => {
                    writeln!(f, " --> {}", self.file)?;
                    " ".to_owned()
                }
            };
            for line in &problem.help {
                writeln!(f, "{gutter} = help: {line}")?;
            }
            writeln!(f)?;
        }
        let count = self.problems.len();
        writeln!(f, "{count} problem{} found; nothing was run", if count == 1 { "" } else { "s" })
    }
}

impl std::error::Error for Report {}

impl From<Report> for Error {
    fn from(report: Report) -> Self {
        let count = report.problems.len();
        let plural = if count == 1 { "" } else { "s" };
        Error::config(format!("{count} problem{plural} in {}", report.file)).caused_by(report)
    }
}

/// The candidate that was probably meant: close by edit distance, or the same but for case and `_`/`-`.
pub fn closest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace(['_', '-'], "");
    let score = |candidate: &str| match plain(candidate) == plain(typed) {
        true => 1.0,
        false => strsim::jaro_winkler(&typed.to_lowercase(), &candidate.to_lowercase()),
    };
    let scored = candidates.into_iter().map(|candidate| (score(candidate), candidate));
    // 0.8: `orderby` finds `order_by` and `custmer` finds `customer`, while `foo` does not find `from` (0.75).
    scored.filter(|(s, _)| *s > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_looks_like_rustc() {
        let problem = Problem::at(Span::on_line(2, 7, 12), "unknown table `silver.order`")
            .coded(Code::UnknownName)
            .label("no table with this name in the pipeline")
            .help("did you mean `silver.orders` (line 15)?");
        let report = Report::new("p.yaml", "a:\nfrom: silver.order\n", vec![problem]);
        let expected = "\
error[TG0208]: unknown table `silver.order`
 --> p.yaml:2:7
  |
2 | from: silver.order
  |       ^^^^^^^^^^^^ no table with this name in the pipeline
  = help: did you mean `silver.orders` (line 15)?

1 problem found; nothing was run
";
        assert_eq!(report.to_string(), expected);
        assert_eq!(report.to_json()[0]["end_column"], 19);
    }

    #[test]
    fn a_place_outside_the_file_does_not_panic() {
        let problems = vec![Problem::at(Span::on_line(9, 90, 3), "x"), Problem::at(Span::default(), "y")];
        assert!(Report::new("p", "a\n", problems).to_string().contains("2 problems"));
    }

    #[test]
    fn suggestions_are_close_or_absent() {
        assert_eq!(closest("orderby", ["key", "order_by", "drop"]), Some("order_by"));
        assert_eq!(closest("silver.order", ["bronze.orders", "silver.orders"]), Some("silver.orders"));
        assert_eq!(closest("zebra", ["key", "order_by"]), None);
    }
}
