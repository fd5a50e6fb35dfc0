//! A YAML document as a tree that knows where everything stands. Aliases and merge keys are resolved here; typing is
//! not: a plain scalar stays text until the schema says what it should be.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span as YamlSpan};

use super::report::{Problem, Span};
use crate::error::Code;

/// Deeper files are refused: the tree is walked by recursion.
const MAX_DEPTH: usize = 64;
/// Aliases may not blow a file up beyond this many nodes (the "billion laughs").
const MAX_NODES: usize = 200_000;

/// A value with its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// What it is.
    pub value: Value,
    /// Where it stands; of a block scalar, its text without the `|` line.
    pub span: Span,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Text.
    Scalar(Scalar),
    /// A list.
    Sequence(Vec<Node>),
    /// A mapping, in file order, keys unique.
    Mapping(Vec<Entry>),
}

/// A scalar before typing.
#[derive(Debug, Clone, PartialEq)]
pub struct Scalar {
    /// The text, escapes and references resolved.
    pub text: String,
    /// How it was written.
    pub style: Style,
    /// Set when a `${…}` was replaced: the text as written, which is what may be printed.
    pub reference: Option<String>,
}

/// How a scalar was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Without quotes.
    Plain,
    /// In quotes, or tagged `!!str`.
    Quoted,
    /// `|`: every line of the text is a line of the file.
    Literal,
    /// `>`: lines were joined, so positions inside are only approximate.
    Folded,
}

/// One key of a mapping.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub key_span: Span,
    /// Its value.
    pub value: Node,
}

impl Node {
    /// The entry of a mapping.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// Keys of a mapping, in file order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        let entries = match &self.value {
            Value::Mapping(entries) => entries.as_slice(),
            _ => &[],
        };
        entries.iter().map(|entry| entry.key.as_str())
    }

    /// The text of a scalar.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(scalar) => Some(&scalar.text),
            _ => None,
        }
    }

    /// `null`, `~` or nothing.
    pub fn is_null(&self) -> bool {
        match &self.value {
            Value::Scalar(scalar) => {
                let word = matches!(scalar.text.as_str(), "" | "~" | "null" | "Null" | "NULL");
                scalar.style == Style::Plain && scalar.reference.is_none() && word
            }
            _ => false,
        }
    }

    fn count(&self) -> usize {
        match &self.value {
            Value::Scalar(_) => 1,
            Value::Sequence(items) => 1 + items.iter().map(Node::count).sum::<usize>(),
            Value::Mapping(entries) => 1 + entries.iter().map(|entry| entry.value.count()).sum::<usize>(),
        }
    }
}

/// Reads one document. The tree is `None` when the text is not YAML; problems may come with a tree (duplicate keys).
pub fn parse(source: &str) -> (Option<Node>, Vec<Problem>) {
    let mut builder =
        Builder { parser: Parser::new_from_str(source), anchors: HashMap::new(), nodes: 0, problems: Vec::new() };
    let root = match builder.document() {
        Ok(root) => root,
        Err(problem) => {
            builder.problems.push(*problem);
            None
        }
    };
    (root, builder.problems)
}

struct Builder<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    problems: Vec<Problem>,
}

/// Reading stops at these; boxed because the success path is the common one.
type Stop = Box<Problem>;

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, YamlSpan)>, Stop> {
        self.parser.next_event().transpose().map_err(|error| Box::new(scan_problem(&error)))
    }

    fn document(&mut self) -> Result<Option<Node>, Stop> {
        let mut root: Option<Node> = None;
        while let Some((event, span)) = self.next()? {
            match event {
                Event::DocumentStart(_) if root.is_some() => {
                    let problem = Problem::at(place(span), "a second YAML document in the file")
                        .coded(Code::NotYaml)
                        .label("one file is one pipeline")
                        .help("move what follows to a file of its own");
                    self.problems.push(problem);
                    break;
                }
                Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..) | Event::Alias(_) => {
                    root = Some(self.node(event, span, 0)?);
                }
                _ => {}
            }
        }
        Ok(root)
    }

    fn node(&mut self, event: Event<'a>, span: YamlSpan, depth: usize) -> Result<Node, Stop> {
        let here = place(span);
        self.nodes += 1;
        if depth > MAX_DEPTH {
            return Err(Box::new(
                Problem::at(here, format!("nested more than {MAX_DEPTH} levels deep")).coded(Code::NotYaml),
            ));
        }
        if self.nodes > MAX_NODES {
            return Err(Box::new(
                Problem::at(here, format!("the file has more than {MAX_NODES} values")).coded(Code::NotYaml),
            ));
        }
        let (anchor, node) = match event {
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return Err(Box::new(
                        Problem::at(here, "an alias inside the anchor it refers to").coded(Code::NotYaml),
                    ));
                };
                self.nodes += node.count();
                return Ok(node);
            }
            Event::Scalar(text, style, anchor, tag) => {
                let mut style = match style {
                    ScalarStyle::Plain => Style::Plain,
                    ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => Style::Quoted,
                    ScalarStyle::Literal => Style::Literal,
                    ScalarStyle::Folded => Style::Folded,
                };
                if let Some(tag) = tag {
                    match tag.is_yaml_core_schema() {
                        true if tag.suffix == "str" => style = Style::Quoted,
                        true => {}
                        false => self.problems.push(
                            Problem::at(here, format!("the tag `{tag}` means nothing here")).coded(Code::NotYaml),
                        ),
                    }
                }
                let scalar = Scalar { text: text.into_owned(), style, reference: None };
                (anchor, Node { value: Value::Scalar(scalar), span: here })
            }
            Event::SequenceStart(anchor, _) => {
                let (items, end) = self.sequence(depth)?;
                (anchor, Node { value: Value::Sequence(items), span: until(here, end) })
            }
            Event::MappingStart(anchor, _) => {
                let (entries, end) = self.mapping(depth)?;
                (anchor, Node { value: Value::Mapping(entries), span: until(here, end) })
            }
            _ => return Err(Box::new(Problem::at(here, "a value was expected here").coded(Code::NotYaml))),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn sequence(&mut self, depth: usize) -> Result<(Vec<Node>, Span), Stop> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                Some((Event::SequenceEnd, span)) => return Ok((items, place(span))),
                Some((event, span)) => items.push(self.node(event, span, depth + 1)?),
                None => return Err(Box::new(Problem::of_file("the file ends inside a list").coded(Code::NotYaml))),
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<(Vec<Entry>, Span), Stop> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut merged: Vec<Entry> = Vec::new();
        loop {
            let (event, span) = match self.next()? {
                Some((Event::MappingEnd, span)) => {
                    for entry in merged {
                        if !entries.iter().any(|own| own.key == entry.key) {
                            entries.push(entry);
                        }
                    }
                    return Ok((entries, place(span)));
                }
                Some(next) => next,
                None => return Err(Box::new(Problem::of_file("the file ends inside a mapping").coded(Code::NotYaml))),
            };
            let key = self.node(event, span, depth + 1)?;
            let Some((event, span)) = self.next()? else {
                return Err(Box::new(Problem::of_file("the file ends inside a mapping").coded(Code::NotYaml)));
            };
            let value = self.node(event, span, depth + 1)?;
            let Value::Scalar(scalar) = key.value else {
                self.problems
                    .push(Problem::at(key.span, "a key must be a word, not a list or mapping").coded(Code::NotYaml));
                continue;
            };
            if scalar.text == "<<" && scalar.style == Style::Plain {
                self.merge(key.span, value, &mut merged);
                continue;
            }
            match entries.iter().find(|entry| entry.key == scalar.text) {
                Some(first) => self.problems.push(
                    Problem::at(key.span, format!("duplicate key `{}`", scalar.text))
                        .coded(Code::DuplicateKey)
                        .label(format!("first given on line {}", first.key_span.line))
                        .help("a key may be given once; remove one of the two"),
                ),
                None => entries.push(Entry { key: scalar.text, key_span: key.span, value }),
            }
        }
    }

    /// `<<: *anchor` or `<<: [*first, *second]`; what comes first wins, the mapping's own keys win over all.
    fn merge(&mut self, key: Span, value: Node, merged: &mut Vec<Entry>) {
        let sources = match value.value {
            Value::Sequence(items) => items,
            other => vec![Node { value: other, span: value.span }],
        };
        for source in sources {
            match source.value {
                Value::Mapping(entries) => merged.extend(entries),
                _ => self.problems.push(Problem::at(key, "`<<` merges mappings only").coded(Code::NotYaml)),
            }
        }
    }
}

fn place(span: YamlSpan) -> Span {
    Span {
        line: span.start.line(),
        column: span.start.col() + 1,
        end_line: span.end.line(),
        end_column: span.end.col() + 1,
    }
}

fn until(start: Span, end: Span) -> Span {
    Span { end_line: end.end_line, end_column: end.end_column, ..start }
}

fn scan_problem(error: &ScanError) -> Problem {
    let (line, column) = (error.marker().line(), error.marker().col() + 1);
    let problem =
        Problem::at(Span::on_line(line, column, 1), "this is not YAML").coded(Code::NotYaml).label(error.info());
    match error.info() {
        info if info.contains("unknown anchor") => problem.help("define it first: `name: &name …`"),
        _ => problem.help("a value with `: `, ` #`, or one that starts with a special character needs quotes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(source: &str) -> Node {
        let (root, problems) = parse(source);
        assert_eq!(problems, vec![]);
        root.expect("a document")
    }

    #[test]
    fn keys_and_values_know_their_place() {
        let root = tree("a: 1\nb:\n  c: 'x y'\n");
        assert_eq!(root.entry("b").expect("b").key_span, Span::on_line(2, 1, 1));
        assert_eq!(root.get("b").and_then(|b| b.get("c")).expect("c").span, Span::on_line(3, 6, 5));
    }

    #[test]
    fn merge_keys_yield_to_own_keys() {
        let root = tree("base: &b {x: 1, y: 2}\nmore: &m {y: 9, z: 3}\nown:\n  <<: [*b, *m]\n  x: 7\n");
        let own = root.get("own").expect("own");
        let of = |key| own.get(key).and_then(Node::text);
        assert_eq!((of("x"), of("y"), of("z")), (Some("7"), Some("2"), Some("3")));
    }

    #[test]
    fn hostile_files_are_refused_not_crashed_on() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let previous = format!("*a{}, ", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{}]\n", previous.trim_end_matches(", ")));
        }
        assert!(parse(&bomb).1[0].message.contains("more than 200000"));
        assert!(parse(&"[".repeat(100_000)).1.len() == 1);
        assert!(!parse("a: &a [*a]").1.is_empty());
        for text in ["", "\u{feff}", "a: b: c", "\t", "- [", "? [a]\n: b", "%YAML 9", "&a", "*a", "\u{0}", "!x y"] {
            let _ = parse(text);
        }
    }
}
