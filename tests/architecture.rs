//! The import rules of the house, as in `src/lib.rs`: a layer that reaches past its neighbours fails here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Which top-level modules each top-level module may name.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("error", &["model"]),
    ("units", &["error", "model"]),
    ("cli", &[]),
    ("config", &["error", "model", "units"]),
    ("fail", &["error"]),
    ("storage", &["error", "fail", "model"]),
    ("arrow_bridge", &["error", "model"]),
    ("source", &["config", "error", "model", "storage", "units"]),
    ("transform", &["arrow_bridge", "config", "error", "model", "source", "table"]),
    ("table", &["arrow_bridge", "config", "error", "fail", "model", "source", "storage"]),
    ("checkpoint", &["error", "fail", "model", "storage"]),
    ("runner", &["checkpoint", "config", "error", "fail", "model", "source", "table", "transform"]),
];

/// Which library is named only below which paths.
const CONFINED: &[(&str, &[&str])] = &[
    ("rdkafka", &["source/kafka"]),
    ("deltalake", &["table/", "transform/datafusion"]),
    ("polars", &["transform/", "arrow_bridge"]),
    ("saphyr_parser", &["config/"]),
    ("clap", &["cli.rs", "cli/", "main.rs", "app/"]),
    ("unsafe {", &["arrow_bridge", "source/kafka/topic_id.rs"]),
];

fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("src is readable") {
            let path = entry.expect("src is readable").path();
            match path.is_dir() {
                true => walk(&path, into),
                false => into.push(path),
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    paths
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ext| ext == "rs"))
        .map(|path| {
            let name = path.strip_prefix(&root).expect("below src").to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path).expect("a source file is text");
            (name, code_only(&text))
        })
        .collect()
}

/// Leaves out comments and everything from the unit tests on.
fn code_only(text: &str) -> String {
    let before_tests = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = before_tests.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

fn module_of(file: &str) -> &str {
    file.split('/').next().unwrap_or_default().trim_end_matches(".rs")
}

/// The top-level modules that `crate::…` paths name.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let names: Vec<&str> = match rest.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or_default().split(',').collect(),
            None => vec![rest],
        };
        for name in names {
            let word: String = name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            found.insert(word);
        }
    }
    found.remove("");
    found
}

#[test]
fn every_module_imports_only_what_the_house_allows() {
    let mut broken = Vec::new();
    for (file, code) in sources() {
        let module = module_of(&file);
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == module) else { continue };
        for import in imports(&code) {
            if import != module && !allowed.contains(&import.as_str()) {
                broken.push(format!("src/{file} names crate::{import}"));
            }
        }
    }
    assert!(broken.is_empty(), "imports against the rules of src/lib.rs:\n{}", broken.join("\n"));
}

#[test]
fn the_runner_sees_ports_and_never_an_adapter() {
    let adapters = ["log::", "delta::", "kafka", "generate::", "files::", "compile::", "lookup::", "lock::"];
    for (file, code) in sources().iter().filter(|(file, _)| module_of(file) == "runner") {
        for adapter in adapters {
            assert!(!code.contains(&format!("::{adapter}")), "src/{file} names the adapter {adapter}");
        }
    }
}

#[test]
fn every_library_stays_in_its_room() {
    let mut broken = Vec::new();
    for (file, code) in sources() {
        for (library, rooms) in CONFINED {
            let named = code.contains(&format!("{library}::")) || (library.ends_with('{') && code.contains(library));
            if named && !rooms.iter().any(|room| file.starts_with(room)) {
                broken.push(format!("src/{file} names {library}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_rules_know_every_module() {
    let known: BTreeSet<&str> = MAY_IMPORT.iter().map(|(name, _)| *name).chain(["app", "main", "lib"]).collect();
    for (file, _) in sources() {
        assert!(known.contains(module_of(&file)), "src/{file} belongs to no module of the rules");
    }
}
