//! `tidegate graph`: what a pipeline reads and writes, as a picture. Touches neither source nor tables.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Failure, Outcome, compose};
use crate::cli::{Global, GraphArgs, GraphFormat};
use crate::config::spec::{Action, From, LookupSpec, PipelineSpec, TableSpec, WriteSpec};
use crate::error::Result;
use crate::transform::Transform;

/// Something that holds rows.
#[derive(Debug, PartialEq)]
struct Node {
    /// Unique, also between a table and a lookup of one name.
    id: String,
    kind: Kind,
    name: String,
    /// How rows enter a table, where a source or a lookup is.
    detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Source,
    Lookup,
    Table,
    DeadLetters,
}

/// Rows go from one to another.
#[derive(Debug, PartialEq)]
struct Edge {
    from: String,
    to: String,
    how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// The rows of each batch.
    Rows,
    /// Read whole, to join or to compute again.
    Reads,
    /// Rows that are set aside.
    SetAside,
}

struct Graph {
    name: String,
    nodes: Vec<Node>,
    edges: Vec<Edge>,
}

pub(super) async fn graph(global: &Global, args: &GraphArgs) -> Result<Outcome, Failure> {
    let checked = compose::check(global, &args.pipeline.file).await?;
    let graph = draw(&checked.spec, &*checked.compiled)?;
    let json = graph.json();
    let text = match args.format {
        GraphFormat::Mermaid => graph.mermaid(),
        GraphFormat::Dot => graph.dot(),
        GraphFormat::Json => format!("{json:#}\n"),
    };
    Ok(Outcome { text, json, code: 0 })
}

fn draw(spec: &PipelineSpec, transform: &dyn Transform) -> Result<Graph> {
    let mut graph = Graph { name: spec.name.clone(), nodes: Vec::new(), edges: Vec::new() };
    let mut aside: Vec<String> = Vec::new();
    for (name, source) in &spec.sources {
        let detail = crate::source::open(name, source)?.description();
        graph.nodes.push(Node { id: id("source", name), kind: Kind::Source, name: name.clone(), detail });
        aside.push(id("source", name));
    }
    for (name, lookup) in &spec.lookups {
        let (LookupSpec::Delta(at) | LookupSpec::Parquet(at) | LookupSpec::Csv(at)) = lookup;
        let file = at.trim_end_matches('/').rsplit('/').next().unwrap_or(at);
        let detail = match lookup {
            LookupSpec::Delta(_) => format!("delta {file}"),
            LookupSpec::Parquet(_) | LookupSpec::Csv(_) => file.to_string(),
        };
        graph.nodes.push(Node { id: id("lookup", name), kind: Kind::Lookup, name: name.clone(), detail });
    }
    for table in &spec.tables {
        let own = id("table", &table.name);
        graph.nodes.push(Node { id: own.clone(), kind: Kind::Table, name: table.name.clone(), detail: written(table) });
        let from = match &table.from {
            From::Source(name) => id("source", name),
            From::Table(name) => id("table", name),
        };
        graph.edges.push(Edge { from: from.clone(), to: own.clone(), how: How::Rows });
        let reads = transform.reads(&table.name);
        let tables = reads.tables.keys().map(|name| id("table", name)).filter(|name| *name != from);
        let lookups = reads.lookups.iter().map(|name| id("lookup", name));
        let read = tables.chain(lookups).map(|from| Edge { from, to: own.clone(), how: How::Reads });
        graph.edges.extend(read);
        let sets_aside = matches!(table.write, WriteSpec::Upsert { .. })
            || table.expect.iter().any(|rule| rule.action == Action::Quarantine);
        aside.extend(sets_aside.then_some(own));
    }
    if let Some(dead_letters) = &spec.dead_letters {
        let own = id("table", &dead_letters.table);
        let detail = "dead letters".to_string();
        let name = dead_letters.table.clone();
        graph.nodes.push(Node { id: own.clone(), kind: Kind::DeadLetters, name, detail });
        graph.edges.extend(aside.into_iter().map(|from| Edge { from, to: own.clone(), how: How::SetAside }));
    }
    Ok(graph)
}

fn id(kind: &str, name: &str) -> String {
    format!("{kind}:{name}")
}

fn written(table: &TableSpec) -> String {
    match &table.write {
        WriteSpec::Append => "append".to_string(),
        WriteSpec::Upsert { key, .. } => format!("upsert by {}", key.join(", ")),
        WriteSpec::Refresh { by } => format!("refresh by {}", by.join(", ")),
        WriteSpec::Windows { by } => format!("windows by {}", by.join(", ")),
    }
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Source => "source",
            Kind::Lookup => "lookup",
            Kind::Table => "table",
            Kind::DeadLetters => "dead_letters",
        }
    }
}

impl How {
    fn word(self) -> &'static str {
        match self {
            How::Rows => "rows",
            How::Reads => "reads",
            How::SetAside => "dead_letters",
        }
    }
}

impl Graph {
    /// Short names for languages whose identifiers may not have dots.
    fn numbers(&self) -> BTreeMap<&str, String> {
        self.nodes.iter().enumerate().map(|(at, node)| (node.id.as_str(), format!("n{at}"))).collect()
    }

    fn mermaid(&self) -> String {
        let numbers = self.numbers();
        let number = |id: &str| numbers.get(id).cloned().unwrap_or_default();
        let mut text = "flowchart LR\n".to_string();
        for node in &self.nodes {
            let (open, close) = match node.kind {
                Kind::Source => ("([", "])"),
                Kind::Lookup => ("[/", "/]"),
                Kind::Table => ("[(", ")]"),
                Kind::DeadLetters => ("[[", "]]"),
            };
            let label = format!("{}<br/>{}", escaped(&node.name), escaped(&node.detail));
            text.push_str(&format!("  {}{open}\"{label}\"{close}\n", number(&node.id)));
        }
        for edge in &self.edges {
            let arrow = match edge.how {
                How::Rows => "-->",
                How::Reads => "-. reads .->",
                How::SetAside => "-. dead letters .->",
            };
            text.push_str(&format!("  {} {arrow} {}\n", number(&edge.from), number(&edge.to)));
        }
        text
    }

    fn dot(&self) -> String {
        let mut text = format!("digraph {} {{\n  rankdir=LR;\n  node [fontname=\"Helvetica\"];\n", dotted(&self.name));
        for node in &self.nodes {
            let shape = match node.kind {
                Kind::Source => "oval",
                Kind::Lookup => "parallelogram",
                Kind::Table => "cylinder",
                Kind::DeadLetters => "box3d",
            };
            let label = dotted(&format!("{}\n{}", node.name, node.detail));
            text.push_str(&format!("  {} [shape={shape}, label={label}];\n", dotted(&node.id)));
        }
        for edge in &self.edges {
            let style = match edge.how {
                How::Rows => "",
                How::Reads => " [style=dashed, label=\"reads\"]",
                How::SetAside => " [style=dotted, label=\"dead letters\"]",
            };
            text.push_str(&format!("  {} -> {}{style};\n", dotted(&edge.from), dotted(&edge.to)));
        }
        text + "}\n"
    }

    fn json(&self) -> Value {
        let node =
            |node: &Node| json!({ "id": node.id, "kind": node.kind.word(), "name": node.name, "detail": node.detail });
        let edge = |edge: &Edge| json!({ "from": edge.from, "to": edge.to, "how": edge.how.word() });
        json!({
            "version": 1, "status": "ok", "pipeline": self.name,
            "nodes": self.nodes.iter().map(node).collect::<Vec<_>>(),
            "edges": self.edges.iter().map(edge).collect::<Vec<_>>(),
        })
    }
}

/// Mermaid reads labels as HTML with entities of its own.
fn escaped(text: &str) -> String {
    text.replace('&', "#amp;").replace('"', "#quot;").replace('<', "#lt;").replace('>', "#gt;")
}

/// A string of Graphviz.
fn dotted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
