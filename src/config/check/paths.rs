//! Where relative paths start, and what they become.

use std::path::{Component, Path, PathBuf};

/// The file, absolute, and the project root: the folder above `pipelines/` when the file lies in one, else the file's
/// folder. Never the working directory, because a scheduler's is a temporary one.
pub fn roots(file: &Path) -> (PathBuf, PathBuf) {
    let file = normal(&std::path::absolute(file).unwrap_or_else(|_| file.to_owned()));
    let folder = file.parent().unwrap_or(Path::new("/"));
    let pipelines = folder.ancestors().find(|folder| folder.file_name().is_some_and(|name| name == "pipelines"));
    let root = pipelines.and_then(Path::parent).unwrap_or(folder).to_owned();
    (file, root)
}

/// An absolute path, or the URL as it is.
pub fn location(root: &Path, text: &str) -> String {
    match is_url(text) {
        true => text.trim_end_matches('/').to_owned(),
        false => absolute(root, text).display().to_string(),
    }
}

/// An absolute path.
pub fn absolute(root: &Path, text: &str) -> PathBuf {
    normal(&root.join(text))
}

/// Whether a text is a URL.
pub fn is_url(text: &str) -> bool {
    text.contains("://")
}

/// Without `.` and `..`, by text alone: the folder may not exist yet.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_above_pipelines() {
        let root = |file: &str| roots(Path::new(file)).1;
        assert_eq!(root("/p/pipelines/orders.yaml"), Path::new("/p"));
        assert_eq!(root("/p/pipelines/team/orders.yaml"), Path::new("/p"));
        assert_eq!(root("/p/orders.yaml"), Path::new("/p"));
    }

    #[test]
    fn paths_become_absolute_and_urls_stay() {
        let location = |text: &str| location(Path::new("/p"), text);
        assert_eq!(location("./lake"), "/p/lake");
        assert_eq!(location("../x/./y"), "/x/y");
        assert_eq!(location("/abs/"), "/abs");
        assert_eq!(location("s3://bucket/lake/"), "s3://bucket/lake");
    }
}
