//! Where bytes live: local folders and object stores behind one interface.
//!
//! Everything that tidegate writes (tables, checkpoint logs) goes through [`Storage`], because the promise needs two
//! things that plain stores do not give together: put-if-absent, and local writes that survive a power cut. Object
//! stores give both; for local folders [`local::DurableLocal`] adds the second.

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use url::Url;

use crate::error::{Code, Error, ErrorKind, Result};

mod disk;
#[cfg(feature = "failpoints")]
mod faulty;
mod local;
#[cfg(feature = "failpoints")]
mod recording;

pub use local::{DurableLocal, make_folders};

/// A folder on local disk or in an object store.
#[derive(Debug, Clone)]
pub struct Storage {
    /// Rooted at the folder. Local writes are durable (file and directory fsynced) when they return.
    pub store: Arc<dyn ObjectStore>,
    /// The folder; the path ends with a slash.
    pub url: Url,
    root: Arc<dyn ObjectStore>,
}

impl Storage {
    /// A folder of a store that is already open: `root` is rooted where the path of `url` starts (file system, bucket).
    pub fn new(root: Arc<dyn ObjectStore>, mut url: Url) -> Result<Storage> {
        if !url.path().ends_with('/') {
            let path = format!("{}/", url.path());
            url.set_path(&path);
        }
        let prefix = Path::from_url_path(url.path())
            .map_err(|cause| Error::config(format!("`{url}` is not a usable location")).caused_by(cause))?;
        let store: Arc<dyn ObjectStore> =
            if prefix.as_ref().is_empty() { root.clone() } else { Arc::new(PrefixStore::new(root.clone(), prefix)) };
        Ok(Storage { store, url, root })
    }

    /// The store that holds the folder, rooted at the file system or bucket. Delta wants this one.
    pub fn root(&self) -> Arc<dyn ObjectStore> {
        self.root.clone()
    }

    /// A folder below this one; `below` is a relative path with `/` between its parts.
    pub fn join(&self, below: &str) -> Result<Storage> {
        let mut url = self.url.clone();
        match url.path_segments_mut() {
            Ok(mut segments) => {
                segments.pop_if_empty().extend(below.split('/').filter(|part| !part.is_empty()));
            }
            Err(()) => return Err(Error::config(format!("`{}` cannot hold folders", self.url))),
        }
        Storage::new(self.root.clone(), url)
    }

    /// The folder as people write it: a plain path for local folders, else the URL.
    pub fn display(&self) -> String {
        match self.url.to_file_path() {
            Ok(path) if self.url.scheme() == "file" => path.display().to_string(),
            _ => self.url.as_str().trim_end_matches('/').to_owned(),
        }
    }
}

/// A new, empty folder in memory, gone when nothing holds it any more: for `tidegate test`.
pub fn in_memory() -> Result<Storage> {
    let url = Url::parse("memory:///").map_err(|cause| Error::failed("memory has no address").caused_by(cause))?;
    Storage::new(Arc::new(object_store::memory::InMemory::new()), url)
}

/// Opens a folder given as an absolute path or a URL (`file://`, `s3://`, `gs://`, `abfss://`); credentials come from the
/// environment. Creates nothing.
pub fn open(location: &str) -> Result<Storage> {
    if !location.contains("://") {
        let path = std::path::Path::new(location);
        let url = Url::from_directory_path(path).map_err(|()| {
            Error::config(format!("`{location}` is neither an absolute path nor a URL"))
                .help("write an absolute path such as /data/lake, or s3://, gs://, abfss:// and a bucket")
        })?;
        return Storage::new(guarded(Arc::new(DurableLocal::new())), url);
    }
    let url =
        Url::parse(location).map_err(|cause| Error::config(format!("`{location}` is not a URL")).caused_by(cause))?;
    let root: Arc<dyn ObjectStore> = match url.scheme() {
        "file" => {
            if url.to_file_path().is_err() {
                return Err(Error::config(format!("`{location}` is not a local folder"))
                    .help("three slashes before an absolute path: file:///data/lake"));
            }
            Arc::new(DurableLocal::new())
        }
        "s3" | "s3a" => amazon(&url)?,
        "gs" => google(&url)?,
        "abfss" | "abfs" | "az" | "azure" | "adl" => azure(&url)?,
        other => {
            return Err(Error::config(format!("`{location}`: tidegate has no storage for `{other}://`"))
                .help("known: an absolute path, file://, s3://, gs://, abfss://, az://"));
        }
    };
    Storage::new(guarded(root), url)
}

/// The store itself; in a test build the fail points stand in front of it.
fn guarded(root: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
    #[cfg(feature = "failpoints")]
    let root = Arc::new(faulty::Faulty::new(root));
    root
}

#[cfg(feature = "s3")]
fn amazon(url: &Url) -> Result<Arc<dyn ObjectStore>> {
    let builder = object_store::aws::AmazonS3Builder::from_env().with_url(url.as_str());
    let store = builder.build().map_err(|cause| misconfigured(url, "AWS_* variables", cause))?;
    Ok(Arc::new(store))
}

#[cfg(feature = "gcs")]
fn google(url: &Url) -> Result<Arc<dyn ObjectStore>> {
    let builder = object_store::gcp::GoogleCloudStorageBuilder::from_env().with_url(url.as_str());
    let store = builder.build().map_err(|cause| misconfigured(url, "GOOGLE_* variables", cause))?;
    Ok(Arc::new(store))
}

#[cfg(feature = "azure")]
fn azure(url: &Url) -> Result<Arc<dyn ObjectStore>> {
    let builder = object_store::azure::MicrosoftAzureBuilder::from_env().with_url(url.as_str());
    let store = builder.build().map_err(|cause| misconfigured(url, "AZURE_* variables", cause))?;
    Ok(Arc::new(store))
}

#[cfg(not(feature = "s3"))]
fn amazon(url: &Url) -> Result<Arc<dyn ObjectStore>> {
    Err(not_built_in(url, "s3"))
}

#[cfg(not(feature = "gcs"))]
fn google(url: &Url) -> Result<Arc<dyn ObjectStore>> {
    Err(not_built_in(url, "gcs"))
}

#[cfg(not(feature = "azure"))]
fn azure(url: &Url) -> Result<Arc<dyn ObjectStore>> {
    Err(not_built_in(url, "azure"))
}

#[allow(dead_code)] // Unused when no cloud feature is on.
fn misconfigured(url: &Url, variables: &str, cause: object_store::Error) -> Error {
    Error::config(format!("`{url}` cannot be opened"))
        .caused_by(cause)
        .help(format!("credentials and endpoint come from the environment: check the {variables}"))
}

#[allow(dead_code)] // Unused when every cloud feature is on.
fn not_built_in(url: &Url, feature: &str) -> Error {
    Error::config(format!("`{url}`: this build of tidegate has no support for `{}://`", url.scheme()))
        .help(format!("build it with: cargo install --path . --features {feature}"))
}

/// Says what a storage error means to an operator. `what` was not done (`write the plan of batch 7`), `at` is the
/// place (a path or URL).
pub fn explain(err: &object_store::Error, what: &str, at: &str) -> Error {
    use std::io::ErrorKind as Io;
    let text = err.to_string();
    let io = io_cause(err);
    let unavailable = |why: &str| Error::new(ErrorKind::Unavailable, format!("cannot {what}: {why}")).with("at", at);
    let error = match (err, io) {
        (_, Some(Io::StorageFull | Io::QuotaExceeded)) => {
            unavailable("disk full").coded(Code::DiskFull).help("free some space; the next run finishes what was begun")
        }
        (_, Some(Io::ReadOnlyFilesystem)) => unavailable("the file system is read-only")
            .coded(Code::ReadOnlyStorage)
            .help("mount it read-write, then run again"),
        (object_store::Error::PermissionDenied { .. }, _) | (_, Some(Io::PermissionDenied)) => {
            unavailable("permission denied")
                .coded(Code::PermissionDenied)
                .help("give the user that runs tidegate the right to read and write there")
        }
        (object_store::Error::Unauthenticated { .. }, _) => unavailable("the store does not accept the credentials")
            .coded(Code::Credentials)
            .help("check the credentials in the environment"),
        (object_store::Error::NotFound { .. }, _) => {
            Error::new(ErrorKind::Unavailable, format!("cannot {what}: not found"))
                .coded(Code::StorageNotFound)
                .with("at", at)
        }
        (object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. }, _) => {
            Error::config(format!("cannot {what}: the store cannot do that"))
                .coded(Code::StoreCannot)
                .with("at", at)
                .help("tidegate needs put-if-absent: local disks with hard links, S3 with If-None-Match, GCS, Azure")
        }
        _ => unavailable("storage failed or is unreachable")
            .coded(Code::StorageUnreachable)
            .help("run again; nothing was half written"),
    };
    error.caused_by(text)
}

/// The operating system's verdict at the bottom of an error, if there is one. Libraries wrap one I/O error in another,
/// whose kind is `Other` and whose source skips the one inside.
pub fn io_cause(err: &(dyn std::error::Error + 'static)) -> Option<std::io::ErrorKind> {
    if let Some(io) = err.downcast_ref::<std::io::Error>() {
        return match io.get_ref() {
            Some(inner) => io_cause(inner).or(Some(io.kind())),
            None => Some(io.kind()),
        };
    }
    err.source().and_then(io_cause)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // Tests make the mess themselves.
mod tests {
    use futures::TryStreamExt;
    use object_store::{ObjectStoreExt, PutMode, PutOptions};

    use super::*;

    #[tokio::test]
    async fn opening_creates_nothing_and_the_first_write_creates_the_folders() {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("a b/lake");
        let storage = open(folder.to_str().unwrap()).unwrap();
        let listed: Vec<_> = storage.store.list(None).try_collect().await.unwrap();
        assert!(listed.is_empty());
        assert!(!folder.exists());
        storage.store.put(&Path::from("x/y.json"), "1".into()).await.unwrap();
        assert_eq!(std::fs::read_to_string(folder.join("x/y.json")).unwrap(), "1");
        let below = storage.join("x").unwrap();
        let listed: Vec<_> = below.store.list(None).try_collect().await.unwrap();
        assert_eq!(listed.iter().map(|m| m.location.to_string()).collect::<Vec<_>>(), ["y.json"]);
        assert_eq!(storage.display().trim_end_matches('/'), folder.to_str().unwrap());
    }

    #[test]
    fn whoever_makes_the_same_folders_at_the_same_time_makes_them() {
        let temp = tempfile::tempdir().unwrap();
        for round in 0..300 {
            let root = temp.path().join(round.to_string());
            let start = std::sync::Barrier::new(4);
            std::thread::scope(|scope| {
                for name in ["orders", "orders", "payments", "stores"] {
                    let (start, folder) = (&start, root.join("checkpoints").join(name));
                    scope.spawn(move || {
                        start.wait();
                        make_folders(&folder).unwrap();
                        assert!(folder.is_dir());
                    });
                }
            });
        }
    }

    #[tokio::test]
    async fn put_if_absent_keeps_the_first_and_leaves_no_temporary_name() {
        let temp = tempfile::tempdir().unwrap();
        let storage = open(temp.path().to_str().unwrap()).unwrap();
        let create = || PutOptions { mode: PutMode::Create, ..Default::default() };
        let name = Path::from("log/0.json");
        storage.store.put_opts(&name, "first".into(), create()).await.unwrap();
        let lost = storage.store.put_opts(&name, "second".into(), create()).await;
        assert!(matches!(lost, Err(object_store::Error::AlreadyExists { .. })));
        let kept = storage.store.get(&name).await.unwrap().bytes().await.unwrap();
        assert_eq!(&kept[..], b"first");
        assert_eq!(std::fs::read_dir(temp.path().join("log")).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn leftovers_of_a_crash_are_invisible_and_in_nobodys_way() {
        let temp = tempfile::tempdir().unwrap();
        let storage = open(temp.path().to_str().unwrap()).unwrap();
        std::fs::create_dir(temp.path().join("log")).unwrap();
        std::fs::write(temp.path().join("log/0.json#1"), "torn").unwrap();
        let listed: Vec<_> = storage.store.list(None).try_collect().await.unwrap();
        assert!(listed.is_empty());
        let create = PutOptions { mode: PutMode::Create, ..Default::default() };
        storage.store.put_opts(&Path::from("log/0.json"), "whole".into(), create).await.unwrap();
        assert_eq!(std::fs::read_to_string(temp.path().join("log/0.json")).unwrap(), "whole");
    }

    #[tokio::test]
    async fn a_multipart_upload_appears_whole_or_not_at_all() {
        let temp = tempfile::tempdir().unwrap();
        let storage = open(temp.path().to_str().unwrap()).unwrap();
        let mut upload = storage.store.put_multipart(&Path::from("d/part.parquet")).await.unwrap();
        upload.put_part("ab".into()).await.unwrap();
        upload.put_part("cd".into()).await.unwrap();
        assert!(!temp.path().join("d/part.parquet").exists());
        upload.complete().await.unwrap();
        assert_eq!(std::fs::read_to_string(temp.path().join("d/part.parquet")).unwrap(), "abcd");
        let mut upload = storage.store.put_multipart(&Path::from("d/other.parquet")).await.unwrap();
        upload.put_part("ab".into()).await.unwrap();
        upload.abort().await.unwrap();
        assert_eq!(std::fs::read_dir(temp.path().join("d")).unwrap().count(), 1);
    }

    #[test]
    fn an_unknown_scheme_or_a_relative_path_is_a_configuration_error() {
        for location in ["lake", "./lake", "hdfs://x/y", "file://host/x"] {
            assert_eq!(open(location).unwrap_err().kind(), ErrorKind::Config, "{location}");
        }
        #[cfg(not(feature = "gcs"))]
        assert!(open("gs://b/x").unwrap_err().report().contains("--features gcs"));
    }

    #[test]
    fn a_full_disk_is_called_a_full_disk_however_deep_it_is_wrapped() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        for full in [full(), std::io::Error::other(full()), std::io::Error::other(std::io::Error::other(full()))] {
            let err = object_store::Error::Generic { store: "local", source: Box::new(full) };
            let told = explain(&err, "write the plan", "/x");
            assert_eq!(told.kind(), ErrorKind::Unavailable);
            assert!(told.message().contains("disk full"), "{told}");
        }
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_made_is_an_error_and_not_a_loop() {
        let temp = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/nonexistent/volume", temp.path().join("lake")).unwrap();
        for folder in [temp.path().join("lake"), temp.path().join("lake/deep/er"), "/proc/lake/x".into()] {
            let storage = open(folder.to_str().unwrap()).unwrap();
            assert!(storage.store.put(&Path::from("x/y.json"), "1".into()).await.is_err(), "{}", folder.display());
        }
    }
}
