//! Files for those who start tidegate: Airflow, cron, systemd, Kubernetes. The templates are files of their own beside this
//! one; here they get the names and paths of a project.

use std::path::{Path, PathBuf};

use crate::app::Failure;
use crate::app::compose;
use crate::cli::{Global, With};
use crate::config::spec::LookupSpec;
use crate::error::{Context, Error, ErrorKind, Result};

/// What the templates are filled with.
pub(super) struct Project<'a> {
    /// Of the pipeline.
    pub name: &'a str,
    /// Absolute path of the folder above `pipelines/`.
    pub root: &'a Path,
    /// Name of the pipeline's file in `pipelines/`.
    pub file: &'a str,
}

/// A file to write, below the project.
pub(super) type Generated = (String, String);

/// What is to be done next, for each scheduler.
pub(super) fn next(with: With, name: &str, dir: &Path) -> String {
    let dir = dir.join("deploy");
    match with {
        With::Airflow => format!("link {}/airflow/{name}.py into the DAGs folder", dir.display()),
        With::Cron => format!("crontab {}/cron/{name}.crontab", dir.display()),
        With::Systemd => format!("read the first lines of {}/systemd/tidegate-{name}.service", dir.display()),
        With::Kubernetes => format!("kubectl apply -f {}/kubernetes/{name}.yaml", dir.display()),
    }
}

/// The files of one scheduler.
pub(super) async fn files(with: With, project: &Project<'_>, global: &Global) -> Result<Vec<Generated>, Failure> {
    let name = project.name;
    let file = |path: String, template: &str| Ok((path, fill(template, project)?));
    let files: Result<Vec<Generated>> = match with {
        With::Airflow => [(format!("deploy/airflow/{name}.py"), include_str!("templates/airflow.py"))].into_iter(),
        With::Cron => [(format!("deploy/cron/{name}.crontab"), include_str!("templates/crontab"))].into_iter(),
        With::Systemd => {
            return Ok(vec![
                file(format!("deploy/systemd/tidegate-{name}.service"), include_str!("templates/run.service"))?,
                file(format!("deploy/systemd/tidegate-{name}.timer"), include_str!("templates/run.timer"))?,
                file(
                    format!("deploy/systemd/tidegate-{name}-continuous.service"),
                    include_str!("templates/continuous.service"),
                )?,
            ]);
        }
        With::Kubernetes => return kubernetes(project, global).await,
    }
    .map(|(path, template)| file(path, template))
    .collect();
    Ok(files?)
}

/// Puts names and paths in place. What a template leaves over is a defect of this file, not of the user's.
fn fill(template: &str, project: &Project<'_>) -> Result<String> {
    let root = plain(project.root)?;
    let tidegate =
        std::env::current_exe().map_err(|e| Error::failed("the path of tidegate is not known").caused_by(e))?;
    let user = std::env::var("USER").unwrap_or_else(|_| "tidegate".to_string());
    Ok(template
        .replace("@NAME@", project.name)
        .replace("@DAG@", &project.name.replace('-', "_"))
        .replace("@K8S@", &project.name.replace('_', "-"))
        .replace("@PIPELINE@", &format!("{root}/pipelines/{}", project.file))
        .replace("@PROJECT@", root)
        .replace("@FILE@", project.file)
        .replace("@TIDEGATE@", plain(&tidegate)?)
        .replace("@USER@", &user))
}

/// A path that means the same in YAML, Python, a shell, a crontab and a unit file.
fn plain(path: &Path) -> Result<&str> {
    let is_plain = |c: char| c.is_alphanumeric() || "_-./+,=".contains(c);
    path.to_str().filter(|path| path.chars().all(is_plain)).ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("the path {} would need quoting in the files to write", path.display()))
            .help("nothing was written; use a path of letters, digits and _ - . /")
    })
}

/// Larger objects are refused by Kubernetes (1 MiB with everything in them).
const CONFIG_MAP_BYTES: usize = 900_000;

/// The pipeline goes into a ConfigMap, with the lookups that are files beside it.
async fn kubernetes(project: &Project<'_>, global: &Global) -> Result<Vec<Generated>, Failure> {
    let folder = project.root.join("pipelines");
    let mut inside = vec![PathBuf::from(project.file)];
    for lookup in compose::check(global, &folder.join(project.file)).await?.spec.lookups.into_values() {
        if let LookupSpec::Csv(path) = lookup {
            let Ok(below) = Path::new(&path).strip_prefix(&folder).map(Path::to_path_buf) else { continue };
            inside.push(below);
        }
    }
    let (mut data, mut items, mut bytes) = (Vec::new(), Vec::new(), 0);
    for below in inside {
        let path = folder.join(&below);
        let text = std::fs::read_to_string(&path)
            .context(ErrorKind::Usage, format!("{} cannot be read as text", path.display()))?;
        let below = plain(&below)?;
        let key = below.replace('/', ".");
        bytes += text.len();
        let lines: Vec<String> = text.lines().map(|line| format!("    {line}").trim_end().to_string()).collect();
        data.push(format!("  {key}: |\n{}", lines.join("\n")));
        items.push(format!("- {{key: {key}, path: {below}}}"));
    }
    if bytes > CONFIG_MAP_BYTES {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("the pipeline and its lookups are {bytes} bytes: too many for a ConfigMap"),
        )
        .help("nothing was written; put large lookups on the object store, or into the image")
        .into());
    }
    let items =
        |indent: usize| items.iter().map(|item| format!("{}{item}", " ".repeat(indent))).collect::<Vec<_>>().join("\n");
    let complete = |template: &str| -> Result<String> {
        // What users wrote comes last: it may hold what looks like a place to fill.
        Ok(fill(template, project)?
            .replace("@CONTINUOUS_ITEMS@", &items(14))
            .replace("@ITEMS@", &items(18))
            .replace("@DATA@", &data.join("\n")))
    };
    Ok(vec![
        (format!("deploy/kubernetes/{}.yaml", project.name), complete(include_str!("templates/kubernetes.yaml"))?),
        (
            format!("deploy/kubernetes/{}-continuous.yaml", project.name),
            complete(include_str!("templates/kubernetes-continuous.yaml"))?,
        ),
    ])
}
