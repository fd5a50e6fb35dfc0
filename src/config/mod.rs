//! From YAML to [`spec::PipelineSpec`], reporting every problem at once.
//!
//! The walk of a file: text → [`yaml`] (a tree with places) → `targets` merged → [`env`] (references) → [`shape`] (held
//! against the JSON Schema) → [`raw`] (typed as written) → [`check`] (meaning, defaults) → [`spec`]. No step stops the
//! next one unless there is nothing to hand on, so one run shows everything there is to repair.

pub mod check;
pub mod document;
pub mod env;
pub mod raw;
pub mod report;
pub mod shape;
pub mod spec;
mod sql;
mod target;
pub mod tests;
mod types;
pub mod yaml;

use std::path::Path;

use document::Document;
use env::{Lookup, OfflineLookup, SystemLookup};
pub use raw::json_schema;
use report::{Problem, Report};
use shape::Completeness;
use spec::PipelineSpec;

use crate::error::Code;

/// How to read a file.
pub struct LoadOptions {
    /// `--target`: the overlay to merge.
    pub target: Option<String>,
    /// Where `${…}` comes from.
    pub lookup: Box<dyn Lookup + Send + Sync>,
}

impl LoadOptions {
    /// References from the process environment and the file system.
    pub fn from_environment(target: Option<String>) -> Self {
        LoadOptions { target, lookup: Box::new(SystemLookup) }
    }

    /// For a run that contacts nothing: references that only the source and the lake need may be unset.
    pub fn offline(target: Option<String>) -> Self {
        LoadOptions { target, lookup: Box::new(OfflineLookup) }
    }
}

/// A pipeline, and its file to place later problems in.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What the rest of the program sees.
    pub spec: PipelineSpec,
    /// The file as it was written.
    pub document: Document,
}

/// Reads a pipeline file. The only door of this module.
pub fn load(path: &Path, options: &LoadOptions) -> Result<Loaded, Report> {
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(source) => load_text(path, &source, options),
        Err(error) => {
            let problem =
                Problem::of_file(format!("cannot read the pipeline file: {error}")).coded(Code::UnreadableFile);
            Err(Report::new(name, "", vec![problem]))
        }
    }
}

/// The same for a text; `path` says where relative paths start and what problems name.
pub fn load_text(path: &Path, source: &str, options: &LoadOptions) -> Result<Loaded, Report> {
    let name = path.display().to_string();
    let (root, mut problems) = yaml::parse(source);
    let Some(mut root) = root.filter(|root| !root.is_null()) else {
        if problems.is_empty() {
            let help = "start with `tidegate init`, or with the keys version, name, source and tables";
            problems.push(Problem::of_file("the file is empty").coded(Code::UnreadableFile).help(help));
        }
        return Err(Report::new(name, &document::masked_by_line(source), problems));
    };

    // A key given twice is not in the tree, so its value can only be masked by the look of its line.
    let masked = match problems.is_empty() {
        true => document::masked(source, &root),
        false => document::masked(&document::masked_by_line(source), &root),
    };
    let schema = json_schema();
    target::apply(&mut root, options.target.as_deref(), &schema, &mut problems);
    let document = Document::new(name, masked, root.clone());
    let lines: Vec<&str> = source.lines().collect();
    let unresolved = env::resolve(&mut root, options.lookup.as_ref(), &lines, &mut problems);

    let (json, outcome) = shape::walk(&root, &schema, Completeness::Whole, unresolved);
    problems.extend(outcome.problems);
    let checked = check::pipeline(json, &root, &document, path, outcome.broken);
    problems.extend(checked.problems);
    match checked.spec {
        Some(spec) if problems.is_empty() => Ok(Loaded { spec, document }),
        _ => Err(Report::of_document(&document, problems)),
    }
}
