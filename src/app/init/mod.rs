//! `tidegate init`: a folder that runs as it is, without any service, and files for those who start it.

mod deploy;

use std::path::{Path, PathBuf};

use serde_json::json;

use self::deploy::Project;
use super::{Failure, Outcome, file};
use crate::cli::{Global, InitArgs};
use crate::error::{Error, ErrorKind, Result};

const PIPELINE: &str = include_str!("../../../pipelines/orders.yaml");
const STORES: &str = include_str!("../../../pipelines/ref/stores.csv");
const SCHEMA: &str = include_str!("../../../pipelines/tidegate.schema.json");
const GITIGNORE: &str = "/lake\n/checkpoints\n";

/// Name of the example.
const EXAMPLE: &str = "orders";

pub(super) async fn init(global: &Global, args: &InitArgs) -> Result<Outcome, Failure> {
    let root = std::path::absolute(&args.dir)
        .map_err(|error| Error::failed("the folder has no absolute path").caused_by(error))?;
    let existing = pipelines(&root);
    let (name, file) = choose(args, &existing)?;
    let mut written = Written { dir: &args.dir, root: &root, text: String::new(), paths: Vec::new() };
    // Files for a scheduler join a project that is there; the example is for a folder that has no pipeline yet.
    if args.with.is_empty() || existing.is_empty() {
        let pipeline = PIPELINE.replacen("\nname: orders ", &format!("\nname: {name} "), 1);
        for (path, content) in [
            (format!("pipelines/{file}"), pipeline.as_str()),
            ("pipelines/ref/stores.csv".to_string(), STORES),
            ("pipelines/tidegate.schema.json".to_string(), SCHEMA),
            (".gitignore".to_string(), GITIGNORE),
        ] {
            written.add(path, content).await?;
        }
    }
    let mut next = Vec::new();
    if args.with.is_empty() {
        let path = args.dir.join(format!("pipelines/{file}"));
        next.push(format!("tidegate test {}", path.display()));
        next.push(format!("tidegate run {}", path.display()));
    }
    for with in &args.with {
        let project = Project { name: &name, root: &root, file: &file };
        for (path, content) in deploy::files(*with, &project, global).await? {
            written.add(path, &content).await?;
        }
        next.push(deploy::next(*with, &name, &args.dir));
    }
    let text = format!("{}\nnext: {}\n", written.text, next.join("\n      "));
    Ok(Outcome { text, json: json!({ "version": 1, "status": "ok", "written": written.paths }), code: 0 })
}

/// What was written so far.
struct Written<'a> {
    /// As given, for people.
    dir: &'a Path,
    /// The same, absolute.
    root: &'a Path,
    text: String,
    paths: Vec<String>,
}

impl Written<'_> {
    /// Writes a file below the folder, unless there is one.
    async fn add(&mut self, path: String, content: &str) -> Result<()> {
        let shown = self.dir.join(&path);
        if file::create(&self.root.join(&path), content).await? {
            self.text.push_str(&format!("wrote {}\n", shown.display()));
            self.paths.push(path);
        } else {
            self.text.push_str(&format!("kept  {} (it exists)\n", shown.display()));
        }
        Ok(())
    }
}

/// The pipeline files that the folder has.
fn pipelines(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(root.join("pipelines")) else { return Vec::new() };
    let is_pipeline = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
            && !path.to_string_lossy().contains(".test.")
    };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_pipeline).collect();
    files.sort();
    files
}

/// The name of the pipeline and of its file in `pipelines/`.
fn choose(args: &InitArgs, existing: &[PathBuf]) -> Result<(String, String)> {
    let stem = |path: &PathBuf| path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let names: Vec<String> = existing.iter().map(stem).collect();
    let name = match (&args.name, &names[..]) {
        (Some(name), _) => name.clone(),
        (None, [only]) if !args.with.is_empty() => only.clone(),
        (None, several) if several.len() > 1 && !args.with.is_empty() => {
            return Err(Error::new(ErrorKind::Usage, format!("the folder has {} pipelines", several.len()))
                .help(format!("nothing was written; say which: --name {}", several.join(" or --name "))));
        }
        _ => EXAMPLE.to_string(),
    };
    if let Some(position) = names.iter().position(|known| *known == name) {
        let file = existing[position].file_name().map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
        return Ok((name, file));
    }
    if !args.with.is_empty() && !existing.is_empty() {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("there is no pipeline file `{name}` in {}", args.dir.display()),
        )
        .help(format!("nothing was written; there are: {}", names.join(", "))));
    }
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(valid) {
        return Err(Error::new(ErrorKind::Usage, format!("`{name}` is not a pipeline name"))
            .help("write a lower-case letter first, then letters, digits, `-` and `_`"));
    }
    Ok((name.clone(), format!("{name}.yaml")))
}
