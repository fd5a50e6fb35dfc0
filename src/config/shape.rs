//! Holds the tree against the JSON Schema of [`super::raw`] and reports every structural problem, in the words of what
//! the user was writing: alternatives are chosen by the kind of node and by the variant named, never tried in turn.
//! What is sound comes back as JSON; what is broken is left out and its path noted, so that later checks stay silent
//! about it.

use serde_json::{Map, Value as Json, json};

use super::report::{Problem, Span, closest};
use super::yaml::{Entry, Node, Scalar, Style, Value};
use crate::error::Code;

/// In the contract, not in this version: said plainly instead of "unknown value".
const LATER_WORDS: [&str; 3] = ["avro", "protobuf", "debezium"];

/// Whether keys that a complete file needs may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completeness {
    /// A whole file.
    Whole,
    /// An overlay of `targets`.
    Overlay,
}

/// Keys and indexes from the root.
pub type Path = Vec<String>;

/// What a walk found.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Every structural problem.
    pub problems: Vec<Problem>,
    /// Where something was left out.
    pub broken: Vec<Path>,
}

/// Walks `root` by `schema`. The JSON holds what is sound; values at `unresolved` paths were reported already.
pub fn walk(root: &Node, schema: &Json, completeness: Completeness, unresolved: Vec<Path>) -> (Json, Outcome) {
    let outcome = Outcome { problems: Vec::new(), broken: unresolved };
    let mut walker = Walker { schema, completeness, path: Vec::new(), keys: Vec::new(), outcome };
    let json = match &root.value {
        Value::Mapping(entries) => walker.structure(entries, schema, Span { end_line: root.span.line, ..root.span }).0,
        _ => {
            let help = "a pipeline file starts with `version: 1` and `name: …`";
            let problem = Problem::at(root.span, "the file must be a mapping").coded(Code::WrongValue).help(help);
            walker.outcome.problems.push(problem);
            walker.outcome.broken.push(Vec::new());
            json!({})
        }
    };
    (json, walker.outcome)
}

struct Walker<'s> {
    schema: &'s Json,
    completeness: Completeness,
    path: Path,
    /// The keys of each struct on the way to where the walk is.
    keys: Vec<Vec<&'s str>>,
    outcome: Outcome,
}

impl<'s> Walker<'s> {
    fn problem(&mut self, problem: Problem) {
        self.outcome.problems.push(problem);
        self.outcome.broken.push(self.path.clone());
    }

    /// The name of what is being looked at, for messages.
    fn subject(&self) -> String {
        match self.path.as_slice() {
            [] => self.schema.get("title").and_then(Json::as_str).map_or_else(
                || "the file".to_owned(),
                |title| format!("the {}", title.trim_start_matches("tidegate ")),
            ),
            [.., list, item] if item.parse::<usize>().is_ok() => format!("an item of `{list}`"),
            [.., last] => format!("`{last}`"),
        }
    }

    fn resolve(&self, schema: &'s Json) -> &'s Json {
        let name = schema.get("$ref").and_then(Json::as_str).and_then(|r| r.strip_prefix("#/$defs/"));
        match name.and_then(|name| self.schema.get("$defs").and_then(|defs| defs.get(name))) {
            Some(definition) => self.resolve(definition),
            None => schema,
        }
    }

    /// The alternatives of a schema, flat, without `null`.
    fn alternatives(&self, schema: &'s Json, out: &mut Vec<&'s Json>) {
        let schema = self.resolve(schema);
        match schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Json::as_array) {
            Some(several) => several.iter().for_each(|one| self.alternatives(one, out)),
            None if schema.get("type").and_then(Json::as_str) == Some("null") => {}
            None => out.push(schema),
        }
    }

    fn node(&mut self, node: &Node, schema: &'s Json, place: Span) -> Option<Json> {
        if self.outcome.broken.contains(&self.path) {
            return None;
        }
        let mut alternatives = Vec::new();
        self.alternatives(schema, &mut alternatives);
        if alternatives.iter().any(|one| one.as_bool() == Some(true) || one.as_object().is_some_and(Map::is_empty)) {
            return Some(untyped(node));
        }
        match &node.value {
            Value::Scalar(scalar) => self.scalar(node, scalar, &alternatives),
            Value::Sequence(items) => match alternatives.iter().find(|one| has_type(one, "array")) {
                Some(list) => self.list(items, list.get("items")?),
                None => self.wrong_type(place, "a list", &alternatives),
            },
            Value::Mapping(entries) => {
                let objects: Vec<&'s Json> =
                    alternatives.iter().copied().filter(|one| has_type(one, "object")).collect();
                match objects.as_slice() {
                    [] => self.wrong_type(place, "a mapping", &alternatives),
                    [one] if variant_key(one).is_none() => self.object(entries, one, place),
                    _ => self.variant(entries, &alternatives, place),
                }
            }
        }
    }

    fn list(&mut self, items: &[Node], schema: &'s Json) -> Option<Json> {
        let mut out = Vec::with_capacity(items.len());
        let mut whole = true;
        for (index, item) in items.iter().enumerate() {
            self.path.push(index.to_string());
            match self.node(item, schema, item.span) {
                Some(json) => out.push(json),
                None => whole = false,
            }
            self.path.pop();
        }
        whole.then_some(Json::Array(out))
    }

    /// A struct (`properties`) or a map (`additionalProperties`).
    fn object(&mut self, entries: &[Entry], schema: &'s Json, place: Span) -> Option<Json> {
        let values = schema.get("additionalProperties").filter(|values| values.as_bool() != Some(false));
        if let Some(values) = values {
            let mut out = Map::new();
            for entry in entries {
                self.path.push(entry.key.clone());
                if let Some(json) = self.node(&entry.value, values, entry.key_span) {
                    out.insert(entry.key.clone(), json);
                }
                self.path.pop();
            }
            return Some(Json::Object(out));
        }
        let (json, whole) = self.structure(entries, schema, place);
        whole.then_some(json)
    }

    /// The sound properties, and whether every required one is among them.
    fn structure(&mut self, entries: &[Entry], schema: &'s Json, place: Span) -> (Json, bool) {
        let properties = schema.get("properties").and_then(Json::as_object);
        let properties: Vec<(&'s str, &'s Json)> =
            properties.into_iter().flatten().map(|(key, value)| (key.as_str(), value)).collect();
        let required: Vec<&str> =
            schema.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str).collect();
        let mut out = Map::new();
        self.keys.push(properties.iter().map(|(key, _)| *key).collect());
        for entry in entries {
            let Some((_, property)) = properties.iter().find(|(key, _)| *key == entry.key) else {
                self.unknown_key(entry, &properties);
                continue;
            };
            if entry.value.is_null() && !required.contains(&entry.key.as_str()) {
                continue;
            }
            self.path.push(entry.key.clone());
            if let Some(json) = self.node(&entry.value, property, entry.key_span) {
                out.insert(entry.key.clone(), json);
            }
            self.path.pop();
        }
        self.keys.pop();
        let mut whole = true;
        for key in required {
            let typed = entries.iter().any(|entry| entry.key == key);
            if !typed && self.completeness == Completeness::Whole {
                let about = properties.iter().find(|(name, _)| *name == key).map(|(_, schema)| description(schema));
                let message = match self.path.is_empty() {
                    true => format!("missing key `{key}`"),
                    false => format!("missing key `{key}` in {}", self.subject()),
                };
                let problem = Problem::at(place, message).coded(Code::MissingKey).label(format!("needs `{key}`"));
                let problem = match about.filter(|about| !about.is_empty()) {
                    Some(about) => problem.help(format!("`{key}`: {about}")),
                    None => problem,
                };
                self.problem_of_key(key, problem);
            }
            whole &= out.contains_key(key);
        }
        (Json::Object(out), whole || self.completeness == Completeness::Overlay)
    }

    fn unknown_key(&mut self, entry: &Entry, properties: &[(&str, &'s Json)]) {
        let mut accepted: Vec<&str> = properties.iter().map(|(key, _)| *key).collect();
        accepted.sort_unstable();
        let subject = self.subject();
        let problem =
            Problem::at(entry.key_span, format!("unknown key `{}` in {subject}", entry.key)).coded(Code::UnknownKey);
        let problem = match closest(&entry.key, accepted.iter().copied()) {
            Some(near) => problem.label(format!("did you mean `{near}`?")),
            None if self.is_above(&entry.key) => problem.label("belongs one level up"),
            None => problem,
        };
        self.problem_of_key(&entry.key, problem.help(format!("{subject} accepts: {}", accepted.join(", "))));
    }

    /// Whether the struct around this one has the key.
    fn is_above(&self, key: &str) -> bool {
        self.keys.iter().nth_back(1).is_some_and(|keys| keys.contains(&key))
    }

    fn problem_of_key(&mut self, key: &str, problem: Problem) {
        self.path.push(key.to_owned());
        self.problem(problem);
        self.path.pop();
    }

    /// One of several forms, named by its only key: `{upsert: {…}}`.
    fn variant(&mut self, entries: &[Entry], alternatives: &[&'s Json], place: Span) -> Option<Json> {
        let forms: Vec<(&str, &'s Json)> =
            alternatives.iter().filter_map(|one| variant_key(one).map(|key| (key, *one))).collect();
        let [entry] = entries else {
            let names: Vec<&str> = forms.iter().map(|(key, _)| *key).collect();
            let second = entries.get(1).map_or(place, |entry| entry.key_span);
            let message = format!("{} takes exactly one of: {}", self.subject(), names.join(", "));
            self.problem(Problem::at(second, message).coded(Code::WrongValue));
            return None;
        };
        match forms.iter().find(|(key, _)| *key == entry.key) {
            Some((_, form)) => self.object(entries, form, place),
            None => {
                self.unknown_word(&entry.key, entry.key_span, alternatives);
                None
            }
        }
    }

    fn scalar(&mut self, node: &Node, scalar: &Scalar, alternatives: &[&'s Json]) -> Option<Json> {
        let allowed = |name: &str| alternatives.iter().any(|one| has_type(one, name));
        let free_text = alternatives.iter().any(|one| has_type(one, "string") && word(one).is_none());
        let typed = core_type(scalar);
        if node.is_null() {
            return self.wrong_type(node.span, "nothing", alternatives);
        }
        // Text and number alike: the field knows the unit, and `007` keeps its zeros.
        if free_text && (typed == "text" || scalar.reference.is_some() || allowed("number")) {
            return Some(Json::String(scalar.text.clone()));
        }
        if typed == "a boolean" && allowed("boolean") {
            return Some(Json::Bool(scalar.text.eq_ignore_ascii_case("true")));
        }
        if typed == "a number" && (allowed("integer") || allowed("number")) {
            return match scalar.text.parse::<i64>() {
                Ok(number) => Some(json!(number)),
                Err(_) => self.wrong_type(node.span, "a fraction", alternatives),
            };
        }
        if alternatives.iter().filter_map(|one| word(one)).any(|w| w == scalar.text) {
            return Some(Json::String(scalar.text.clone()));
        }
        let words = alternatives.iter().any(|one| word(one).is_some());
        let names_form = alternatives.iter().find(|one| variant_key(one) == Some(scalar.text.as_str()));
        if let Some(key) = names_form.and_then(|one| variant_key(one)) {
            let message = format!("`{key}` needs settings");
            self.problem(
                Problem::at(node.span, message).coded(Code::WrongValue).label(format!("write `{{{key}: …}}`")),
            );
            return None;
        }
        if typed == "text" && words {
            let shown = scalar.reference.clone().unwrap_or_else(|| scalar.text.clone());
            self.unknown_word(&shown, node.span, alternatives);
            return None;
        }
        let found = if typed == "text" { "a text" } else { typed };
        self.wrong_type(node.span, found, alternatives)
    }

    fn unknown_word(&mut self, typed: &str, span: Span, alternatives: &[&'s Json]) {
        if LATER_WORDS.contains(&typed) {
            let message = format!("`{typed}` is not available in this version");
            return self.problem(Problem::at(span, message).coded(Code::NotYet));
        }
        let accepted: Vec<&str> =
            alternatives.iter().filter_map(|one| word(one).or_else(|| variant_key(one))).collect();
        let structs = alternatives.iter().filter(|one| variant_key(one).is_none());
        let properties = structs.filter_map(|one| one.get("properties").and_then(Json::as_object));
        let mut keys: Vec<&str> = properties.flat_map(|map| map.keys().map(String::as_str)).collect();
        keys.sort_unstable();
        let mapping = match keys.is_empty() {
            true => String::new(),
            false => format!(", or a mapping of: {}", keys.join(", ")),
        };
        let subject = self.subject();
        let problem = Problem::at(span, format!("unknown value `{typed}` for {subject}")).coded(Code::WrongValue);
        let problem = match closest(typed, accepted.iter().copied()) {
            Some(near) => problem.label(format!("did you mean `{near}`?")),
            None => problem,
        };
        self.problem(problem.help(format!("{subject} is one of: {}{mapping}", accepted.join(", "))));
    }

    fn wrong_type(&mut self, span: Span, found: &str, alternatives: &[&'s Json]) -> Option<Json> {
        let mut expected: Vec<&str> = Vec::new();
        for (name, words) in [
            ("string", "a text"),
            ("integer", "a whole number"),
            ("number", "a number"),
            ("boolean", "true or false"),
            ("array", "a list"),
            ("object", "a mapping"),
        ] {
            if alternatives.iter().any(|one| has_type(one, name)) {
                expected.push(words);
            }
        }
        let expected = expected.join(" or ");
        let problem =
            Problem::at(span, format!("{} must be {expected}, not {found}", self.subject())).coded(Code::WrongValue);
        let quote = matches!(found, "a number" | "a boolean" | "a fraction") && expected.contains("a text");
        self.problem(if quote { problem.help("put it in quotes") } else { problem });
        None
    }
}

fn has_type(schema: &Json, name: &str) -> bool {
    match schema.get("type") {
        Some(Json::String(one)) => one == name,
        Some(Json::Array(several)) => several.iter().any(|one| one == name),
        _ => false,
    }
}

/// The word of a unit variant.
fn word(schema: &Json) -> Option<&str> {
    let only = schema.get("enum").and_then(Json::as_array).filter(|several| several.len() == 1);
    schema.get("const").or_else(|| only.and_then(|several| several.first())).and_then(Json::as_str)
}

/// The key of a variant with content: an object that requires its only property.
fn variant_key(schema: &Json) -> Option<&str> {
    let properties = schema.get("properties").and_then(Json::as_object).filter(|map| map.len() == 1)?;
    let required = schema.get("required").and_then(Json::as_array)?.first()?.as_str()?;
    // Structs have described properties; schemars leaves those of variants bare.
    properties.get(required).filter(|property| property.get("description").is_none()).map(|_| required)
}

fn description(schema: &Json) -> String {
    schema.get("description").and_then(Json::as_str).unwrap_or_default().replace('\n', " ")
}

/// What YAML 1.2's core schema makes of a scalar.
fn core_type(scalar: &Scalar) -> &'static str {
    if scalar.style != Style::Plain {
        return "text";
    }
    let text = scalar.text.as_str();
    if matches!(text, "true" | "True" | "TRUE" | "false" | "False" | "FALSE") {
        return "a boolean";
    }
    let digits = text.trim_start_matches(['-', '+', '.']).starts_with(|c: char| c.is_ascii_digit());
    if digits && text.parse::<f64>().is_ok() { "a number" } else { "text" }
}

/// JSON of a node that no schema describes (rows of `tests`).
pub fn untyped(node: &Node) -> Json {
    match &node.value {
        Value::Sequence(items) => Json::Array(items.iter().map(untyped).collect()),
        Value::Mapping(entries) => entries.iter().map(|e| (e.key.clone(), untyped(&e.value))).collect(),
        Value::Scalar(_) if node.is_null() => Json::Null,
        Value::Scalar(scalar) => match core_type(scalar) {
            "a boolean" => Json::Bool(scalar.text.eq_ignore_ascii_case("true")),
            "a number" => serde_json::from_str(&scalar.text).unwrap_or_else(|_| Json::String(scalar.text.clone())),
            _ => Json::String(scalar.text.clone()),
        },
    }
}
