//! `tidegate validate`: every check that needs no source and no table.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::logging::tell;
use super::{Failure, Outcome, compose, test};
use crate::cli::{Global, ValidateArgs};
use crate::error::{Context, Error, ErrorKind, Result};

pub(super) async fn validate(global: &Global, args: &ValidateArgs) -> Result<Outcome, Failure> {
    let files = expand(&args.files)?;
    let (mut text, mut results, mut bad) = (String::new(), Vec::new(), 0);
    let mut names = Names::default();
    for file in &files {
        let checked = match compose::check(global, file).await {
            Ok(checked) => test::check(global, file).await.map(|()| checked),
            Err(failure) => Err(failure),
        };
        let checked = checked.and_then(|checked| {
            // Files in different folders may be different stages of one pipeline.
            names.add(&checked.spec.name, file, file.parent())?;
            Ok(checked)
        });
        match checked {
            Ok(checked) => {
                let tables: Vec<&str> = checked.spec.tables.iter().map(|table| table.name.as_str()).collect();
                text.push_str(&format!("{}: ok, {}\n", file.display(), tables.join(" → ")));
                let upkeep = |table: &&str| Some((table.to_string(), checked.compiled.upkeep(table)?));
                let upkeep: BTreeMap<String, String> = tables.iter().filter_map(upkeep).collect();
                for (table, how) in &upkeep {
                    text.push_str(&format!("  {table}: {how}\n"));
                }
                results.push(json!({
                    "file": file, "ok": true, "pipeline": checked.spec.name, "tables": tables, "refresh": upkeep,
                }));
            }
            Err(failure) => {
                bad += 1;
                let (report, problems) = match failure {
                    Failure::Report(report) => (report.render(), report.to_json()),
                    Failure::Error(error) => (error.report(), super::output::error_json(&error)),
                };
                tell(report.trim_end());
                results.push(json!({ "file": file, "ok": false, "problems": problems }));
            }
        }
    }
    let json = json!({ "version": 1, "status": if bad == 0 { "ok" } else { "failed" }, "files": results });
    Ok(Outcome { text, json, code: if bad == 0 { 0 } else { ErrorKind::Config.exit_code() } })
}

/// Pipelines that live side by side need names of their own: checkpoint, lock and transactions go by name.
#[derive(Default)]
pub(super) struct Names(BTreeMap<(String, Option<PathBuf>), PathBuf>);

impl Names {
    /// Takes the name for `file`; fails when another file of the same folder has it.
    pub fn add(&mut self, name: &str, file: &Path, folder: Option<&Path>) -> Result<()> {
        let key = (name.to_string(), folder.map(Path::to_path_buf));
        match self.0.get(&key) {
            Some(other) if other != file => Err(Error::config(format!("two files name their pipeline `{name}`"))
                .with("first", other.display())
                .with("second", file.display())
                .help("checkpoint, lock and transactions go by the pipeline's name; give one of them another `name:`")),
            _ => {
                self.0.insert(key, file.to_path_buf());
                Ok(())
            }
        }
    }
}

/// Folders stand for the pipeline files in them; tests and lookups' descriptions live elsewhere.
pub(super) fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries =
            std::fs::read_dir(path).context(ErrorKind::Usage, format!("folder {} cannot be read", path.display()))?;
        let mut found: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml"))
            .filter(|path| !path.to_string_lossy().contains(".test."))
            .collect();
        if found.is_empty() {
            return Err(Error::new(ErrorKind::Usage, format!("folder {} holds no .yaml file", path.display())));
        }
        found.sort();
        files.extend(found);
    }
    Ok(files)
}
