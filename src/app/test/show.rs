//! What a test run says: text for people, JSON for programs, JUnit XML for CI.

use std::io::IsTerminal;

use serde_json::{Value as Json, json};

use super::trial::Cut;
use crate::app::output::counted;

/// Outcome of one test.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub faults: Vec<Fault>,
    /// The dead letters, when there are faults.
    pub set_aside: Vec<String>,
}

/// Why a test failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// A batch did not come to its end.
    Error { cut: Cut, report: String },
    /// A table is not as expected.
    Table { table: String, diff: Diff },
    /// A table depends on where batches end.
    Cut { table: String, cut: Cut, diff: Diff },
}

/// Rows that are not as they should be.
#[derive(Debug)]
pub(super) struct Diff {
    pub columns: Vec<String>,
    pub rows: Vec<DiffRow>,
    pub matched: usize,
    /// Expected and actual number of rows, when only these were compared.
    pub counts: Option<(usize, usize)>,
}

/// Cells by column; `None` = not listed.
#[derive(Debug)]
pub(super) enum DiffRow {
    Changed { expected: Vec<Option<String>>, actual: Vec<Option<String>>, differs: Vec<bool> },
    Missing(Vec<Option<String>>),
    Unexpected(Vec<Option<String>>),
}

/// Rows of one diff that are shown; the rest is counted.
const MAX_ROWS: usize = 20;

/// Cells are cut to this many characters.
const MAX_CELL: usize = 48;

/// Colours, on terminals only.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint(bool);

impl Paint {
    /// <https://no-color.org>: any value but an empty one turns colours off.
    pub fn for_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Paint(std::io::stdout().is_terminal() && !refused)
    }

    /// No colours.
    pub fn none() -> Self {
        Paint(false)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    fn strong(self, code: &str, text: &str) -> String {
        self.paint(&format!("1;7;{code}"), text)
    }
}

impl Fault {
    fn headline(&self) -> String {
        match self {
            Fault::Error { cut, .. } => format!("the batches ({}) did not come to their end:", cut.describe()),
            Fault::Table { table, diff } => format!("{table}: {}", diff.summary()),
            Fault::Cut { table, cut, .. } => {
                format!("{table} depends on where batches end: other rows when the input is read {}", cut.describe())
            }
        }
    }

    fn text(&self, paint: Paint) -> String {
        let mut text = format!("{}\n", self.headline());
        match self {
            Fault::Error { report, .. } => text.push_str(report.trim_end()),
            Fault::Table { diff, .. } => text.push_str(diff.text(paint).trim_end_matches('\n')),
            Fault::Cut { cut, diff, .. } => {
                text.push_str(&diff.text(paint));
                text.push_str(&format!(
                    "  = - is the table as written, + {}. Live batches end anywhere, so this table would be arbitrary:\n",
                    cut.describe()
                ));
                text.push_str(
                    "    an aggregate, DISTINCT, LIMIT or window over `batch` sees one micro-batch only. Read the whole\n    \
                     table (write: refresh), or keep one row per key (write: upsert with order_by)",
                );
            }
        }
        text.push('\n');
        text
    }

    fn json(&self) -> Json {
        match self {
            Fault::Error { cut, report } => json!({ "kind": "error", "input": cut.describe(), "error": report }),
            Fault::Table { table, diff } => diff.json(json!({ "kind": "table", "table": table })),
            Fault::Cut { table, cut, diff } => {
                diff.json(json!({ "kind": "batching", "table": table, "input": cut.describe() }))
            }
        }
    }
}

impl Diff {
    fn count(&self, is: fn(&DiffRow) -> bool) -> usize {
        self.rows.iter().filter(|row| is(row)).count()
    }

    fn summary(&self) -> String {
        if let Some((expected, actual)) = self.counts {
            return format!("{} expected, {actual} found", counted(expected as u64, "row", "rows"));
        }
        let parts = [
            (self.matched, "as expected"),
            (self.count(|row| matches!(row, DiffRow::Changed { .. })), "changed"),
            (self.count(|row| matches!(row, DiffRow::Missing(_))), "missing"),
            (self.count(|row| matches!(row, DiffRow::Unexpected(_))), "unexpected"),
        ];
        let told = parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        told.collect::<Vec<_>>().join(", ")
    }

    /// `-` expected, `+` found, aligned; below a changed pair the cells that differ are underlined.
    fn text(&self, paint: Paint) -> String {
        let cut =
            |cells: &[Option<String>]| -> Vec<String> { cells.iter().map(|cell| cell_text(cell.as_deref())).collect() };
        let mut widths: Vec<usize> = self.columns.iter().map(|name| name.chars().count()).collect();
        let shown = &self.rows[..self.rows.len().min(MAX_ROWS)];
        for row in shown {
            let sides: Vec<&Vec<Option<String>>> = match row {
                DiffRow::Changed { expected, actual, .. } => vec![expected, actual],
                DiffRow::Missing(cells) | DiffRow::Unexpected(cells) => vec![cells],
            };
            for side in sides {
                for (width, cell) in widths.iter_mut().zip(cut(side)) {
                    *width = (*width).max(cell.chars().count());
                }
            }
        }
        let line = |sign: &str, cells: &[String], style: &dyn Fn(usize, &str) -> String| {
            let padded = cells.iter().enumerate().map(|(c, cell)| {
                let pad = " ".repeat(widths[c].saturating_sub(cell.chars().count()));
                format!("{}{pad}", style(c, cell))
            });
            format!("  {sign} {}", padded.collect::<Vec<_>>().join("  ")).trim_end().to_string() + "\n"
        };
        let plain = |_: usize, cell: &str| cell.to_string();
        let red = |_: usize, cell: &str| paint.paint("31", cell);
        let green = |_: usize, cell: &str| paint.paint("32", cell);
        let mut text = line(" ", &self.columns, &plain);
        for row in shown {
            match row {
                DiffRow::Changed { expected, actual, differs } => {
                    let marked = |code: &'static str| {
                        move |c: usize, cell: &str| {
                            if differs[c] { paint.strong(code, cell) } else { paint.paint(code, cell) }
                        }
                    };
                    let (expected, actual) = (cut(expected), cut(actual));
                    text += &line("-", &expected, &marked("31"));
                    text += &line("+", &actual, &marked("32"));
                    let under = |c: usize| {
                        let width = expected[c].chars().count().max(actual[c].chars().count()).max(1);
                        if differs[c] { "^".repeat(width) } else { String::new() }
                    };
                    text += &line(" ", &(0..differs.len()).map(under).collect::<Vec<_>>(), &plain);
                }
                DiffRow::Missing(cells) => text += &line("-", &cut(cells), &red),
                DiffRow::Unexpected(cells) => text += &line("+", &cut(cells), &green),
            }
        }
        if self.rows.len() > MAX_ROWS {
            text += &format!("  … and {} more\n", counted((self.rows.len() - MAX_ROWS) as u64, "row", "rows"));
        }
        text
    }

    fn json(&self, mut fault: Json) -> Json {
        let object = |cells: &[Option<String>]| -> Json {
            let listed = self.columns.iter().zip(cells).filter_map(|(c, cell)| Some((c.clone(), cell.clone()?.into())));
            Json::Object(listed.collect())
        };
        let (mut changed, mut missing, mut unexpected) = (Vec::new(), Vec::new(), Vec::new());
        for row in &self.rows {
            match row {
                DiffRow::Changed { expected, actual, .. } => {
                    changed.push(json!({ "expected": object(expected), "found": object(actual) }));
                }
                DiffRow::Missing(cells) => missing.push(object(cells)),
                DiffRow::Unexpected(cells) => unexpected.push(object(cells)),
            }
        }
        fault["as_expected"] = self.matched.into();
        fault["changed"] = changed.into();
        fault["missing"] = missing.into();
        fault["unexpected"] = unexpected.into();
        if let Some((expected, found)) = self.counts {
            fault["count"] = json!({ "expected": expected, "found": found });
        }
        fault
    }
}

fn cell_text(cell: Option<&str>) -> String {
    let text = cell.unwrap_or("");
    match text.char_indices().nth(MAX_CELL) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

impl Verdict {
    /// Whether everything was as expected.
    pub fn passed(&self) -> bool {
        self.faults.is_empty()
    }

    /// Why it failed, indented.
    pub fn text(&self, paint: Paint) -> String {
        let mut text: String = self.faults.iter().map(|fault| fault.text(paint)).collect();
        if !self.set_aside.is_empty() {
            text += "set aside as dead letters:\n";
            text.extend(self.set_aside.iter().take(MAX_ROWS).map(|line| format!("  {line}\n")));
            if self.set_aside.len() > MAX_ROWS {
                text += &format!("  … and {} more\n", self.set_aside.len() - MAX_ROWS);
            }
        }
        text.lines().map(|line| format!("      {line}").trim_end().to_string() + "\n").collect()
    }

    /// What is wrong, for programs.
    pub fn json(&self) -> Json {
        json!({ "faults": self.faults.iter().map(Fault::json).collect::<Vec<_>>(), "dead_letters": self.set_aside })
    }
}

/// A test as JUnit knows it.
pub(super) struct Case<'a> {
    pub file: &'a str,
    pub name: &'a str,
    pub seconds: f64,
    /// Why it failed.
    pub failure: Option<String>,
}

/// JUnit XML: one suite a file; a file that cannot be tested is an error.
pub(super) fn junit(cases: &[Case<'_>]) -> String {
    let mut files: Vec<&str> = Vec::new();
    for case in cases {
        if !files.contains(&case.file) {
            files.push(case.file);
        }
    }
    let failed = |file: Option<&str>| {
        let of = cases.iter().filter(|case| file.is_none_or(|file| case.file == file));
        (
            of.clone().count(),
            of.clone().filter(|case| case.failure.is_some()).count(),
            of.map(|c| c.seconds).sum::<f64>(),
        )
    };
    let (all, bad, seconds) = failed(None);
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites tests=\"{all}\" failures=\"{bad}\" time=\"{seconds:.3}\">\n"
    );
    for file in files {
        let (all, bad, seconds) = failed(Some(file));
        let file_name = escaped(file);
        xml +=
            &format!("  <testsuite name=\"{file_name}\" tests=\"{all}\" failures=\"{bad}\" time=\"{seconds:.3}\">\n");
        for case in cases.iter().filter(|case| case.file == file) {
            let name = escaped(case.name);
            xml += &format!("    <testcase classname=\"{file_name}\" name=\"{name}\" time=\"{:.3}\"", case.seconds);
            match &case.failure {
                None => xml += "/>\n",
                Some(why) => {
                    let first = escaped(why.lines().next().unwrap_or_default().trim());
                    xml +=
                        &format!(">\n      <failure message=\"{first}\">{}</failure>\n    </testcase>\n", escaped(why));
                }
            }
        }
        xml += "  </testsuite>\n";
    }
    xml + "</testsuites>\n"
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML 1.0 has no other control characters, not even escaped.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(texts: &[&str]) -> Vec<Option<String>> {
        texts.iter().map(|text| Some(text.to_string())).collect()
    }

    #[test]
    fn a_diff_is_aligned_and_underlines_what_changed() {
        let diff = Diff {
            columns: vec!["id".into(), "amount".into()],
            rows: vec![
                DiffRow::Changed {
                    expected: cells(&["o-1", "7.00"]),
                    actual: cells(&["o-1", "6.5"]),
                    differs: vec![false, true],
                },
                DiffRow::Missing(vec![Some("o-22".into()), None]),
                DiffRow::Unexpected(cells(&["o-3", "null"])),
            ],
            matched: 2,
            counts: None,
        };
        assert_eq!(diff.summary(), "2 as expected, 1 changed, 1 missing, 1 unexpected");
        let expected = "\
\x20   id    amount
  - o-1   7.00
  + o-1   6.5
          ^^^^
  - o-22
  + o-3   null
";
        assert_eq!(diff.text(Paint(false)), expected);
        assert!(diff.text(Paint(true)).contains("\x1b[1;7;31m7.00\x1b[0m"));
    }

    #[test]
    fn junit_is_well_formed_whatever_a_test_is_called() {
        let case = Case { file: "a&b.yaml", name: "\"x\" < y", seconds: 0.25, failure: Some("one\u{1} <two>".into()) };
        let xml = junit(&[case]);
        assert!(xml.contains("<testsuite name=\"a&amp;b.yaml\" tests=\"1\" failures=\"1\" time=\"0.250\">"), "{xml}");
        assert!(xml.contains("name=\"&quot;x&quot; &lt; y\""), "{xml}");
        assert!(xml.contains("<failure message=\"one\u{fffd} &lt;two&gt;\">"), "{xml}");
    }
}
