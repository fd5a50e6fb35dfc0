//! `targets`: the overlay of `--target` is merged over the file, the others are only held against the schema.

use serde_json::Value as Json;

use super::report::{Problem, Span, closest};
use super::shape::{self, Completeness};
use super::yaml::{Node, Value};
use crate::error::Code;

/// Merges the chosen target into `root` and takes `targets` out of it.
pub fn apply(root: &mut Node, target: Option<&str>, schema: &Json, problems: &mut Vec<Problem>) {
    let start = Span::on_line(root.span.line, root.span.column, 1);
    let Value::Mapping(entries) = &mut root.value else { return };
    let position = entries.iter().position(|entry| entry.key == "targets");
    // A `targets` that is not a mapping of mappings stays, for the schema to speak about.
    let well_formed = |node: &Node| match &node.value {
        Value::Mapping(targets) => targets.iter().all(|t| matches!(t.value.value, Value::Mapping(_))),
        _ => false,
    };
    let (key_span, targets) = match position {
        Some(position) if well_formed(&entries[position].value) => {
            let entry = entries.remove(position);
            (entry.key_span, Some(entry.value))
        }
        Some(position) => (entries[position].key_span, None),
        None => (start, None),
    };
    if let Some(target) = target {
        match targets.as_ref().and_then(|targets| targets.get(target)) {
            Some(overlay) => merge(root, overlay.clone()),
            None => {
                let names: Vec<&str> = targets.iter().flat_map(Node::keys).collect();
                let problem = Problem::at(key_span, format!("unknown target `{target}`")).coded(Code::UnknownTarget);
                let problem = match closest(target, names.iter().copied()) {
                    Some(near) => problem.label(format!("did you mean `{near}`?")),
                    None => problem,
                };
                problems.push(match names.is_empty() {
                    true => problem.help("the file has no targets"),
                    false => problem.help(format!("targets of the file: {}", names.join(", "))),
                });
            }
        }
    }
    let Some(Value::Mapping(others)) = targets.map(|targets| targets.value) else { return };
    for other in others.iter().filter(|other| Some(other.key.as_str()) != target) {
        problems.extend(shape::walk(&other.value, schema, Completeness::Overlay, Vec::new()).1.problems);
    }
}

/// Mappings merge key by key; everything else is replaced.
fn merge(base: &mut Node, overlay: Node) {
    match (&mut base.value, overlay.value) {
        (Value::Mapping(own), Value::Mapping(theirs)) => {
            for entry in theirs {
                match own.iter_mut().find(|mine| mine.key == entry.key) {
                    Some(mine) => {
                        mine.key_span = entry.key_span;
                        merge(&mut mine.value, entry.value);
                    }
                    None => own.push(entry),
                }
            }
        }
        (value, theirs) => {
            *value = theirs;
            base.span = overlay.span;
        }
    }
}
