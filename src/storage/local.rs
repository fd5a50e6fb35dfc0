//! A local file system whose writes survive a power cut.
//!
//! `object_store` 0.13 renames and links files atomically but never calls fsync, so a commit that was reported could be
//! gone (or, worse, be an empty file under its final name) after a power cut. Here bytes reach the disk before their
//! name does, and the name before the call returns. Copies and renames are passed through: nothing relies on them.

use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path as OsPath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};

#[cfg(not(feature = "failpoints"))]
use super::disk;
#[cfg(feature = "failpoints")]
use super::recording as disk;

const STORE: &str = "local disk";

/// Deletes under way at once.
const DELETES: usize = 10;

/// The whole local file system, rooted at `/`. Temporary names are `<name>#<digits>`, which listings leave out.
#[derive(Debug, Clone)]
pub struct DurableLocal {
    inner: Arc<LocalFileSystem>,
}

impl DurableLocal {
    /// Opens the file system; touches nothing.
    pub fn new() -> Self {
        DurableLocal { inner: Arc::new(LocalFileSystem::new()) }
    }
}

impl Default for DurableLocal {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for DurableLocal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DurableLocal")
    }
}

#[async_trait]
impl ObjectStore for DurableLocal {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let dest = self.inner.path_to_filesystem(location)?;
        let mode = match opts.mode {
            PutMode::Update(_) => {
                return Err(Error::NotImplemented {
                    operation: "`put_opts` with mode `PutMode::Update`".into(),
                    implementer: self.to_string(),
                });
            }
            mode => mode,
        };
        blocking(move || {
            let staged = Staged::create(&dest)?;
            let mut at = 0;
            for chunk in &payload {
                staged.write(chunk, at)?;
                at += chunk.len() as u64;
            }
            match mode {
                PutMode::Create => staged.link(),
                _ => staged.rename(),
            }?;
            Ok(PutResult { e_tag: None, version: None })
        })
        .await
    }

    async fn put_multipart_opts(&self, location: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let dest = self.inner.path_to_filesystem(location)?;
        let staged = blocking(move || Staged::create(&dest)).await?;
        Ok(Box::new(DurableUpload { staged: Some(Arc::new(staged)), end: 0 }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let inner = self.inner.clone();
        let delete = move |location: Result<Path>| {
            let inner = inner.clone();
            blocking(move || {
                let location = location?;
                let path = inner.path_to_filesystem(&location)?;
                match disk::unlink(&path) {
                    Ok(()) => Ok(location),
                    Err(cause) if cause.kind() == ErrorKind::NotFound => {
                        Err(Error::NotFound { path: location.to_string(), source: Box::new(cause) })
                    }
                    Err(cause) => Err(generic(cause)),
                }
            })
        };
        locations.map(delete).buffered(DELETES).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}

/// A file under a temporary name beside its destination; removed on drop unless it was given its name.
#[derive(Debug)]
struct Staged {
    file: File,
    path: PathBuf,
    dest: PathBuf,
    /// The temporary name is ours no more: another writer of the same destination may use it by now.
    placed: AtomicBool,
}

impl Staged {
    fn create(dest: &OsPath) -> Result<Staged> {
        for attempt in 1u32.. {
            let mut path = dest.as_os_str().to_owned();
            path.push(format!("#{attempt}"));
            let path = PathBuf::from(path);
            match disk::create(&path) {
                Ok(file) => return Ok(Staged { file, path, dest: dest.to_owned(), placed: AtomicBool::new(false) }),
                Err(cause) => match (cause.kind(), dest.parent()) {
                    (ErrorKind::AlreadyExists, _) => {}
                    (ErrorKind::NotFound, Some(parent)) => create_folders(parent)?,
                    _ => return Err(generic(cause)),
                },
            }
        }
        Err(generic(std::io::Error::from(ErrorKind::AlreadyExists)))
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        disk::write_at(&self.file, &self.path, bytes, at).map_err(generic)
    }

    /// Gives the file its name unless the name is taken. A hard link, because a rename would replace the winner.
    fn link(self) -> Result<()> {
        disk::sync_file(&self.file, &self.path).map_err(generic)?;
        match disk::link(&self.path, &self.dest) {
            Ok(()) => {}
            Err(cause) if cause.kind() == ErrorKind::AlreadyExists => {
                let path = self.dest.display().to_string();
                return Err(Error::AlreadyExists { path, source: Box::new(cause) });
            }
            Err(cause) if cause.kind() == ErrorKind::Unsupported => {
                return Err(Error::NotSupported { source: Box::new(cause) });
            }
            Err(cause) => return Err(generic(cause)),
        }
        self.placed.store(true, Ordering::Relaxed);
        let _ = disk::unlink(&self.path);
        sync_folder_of(&self.dest)
    }

    /// Gives the file its name, replacing what is there.
    fn rename(&self) -> Result<()> {
        disk::sync_file(&self.file, &self.path).map_err(generic)?;
        disk::rename(&self.path, &self.dest).map_err(generic)?;
        self.placed.store(true, Ordering::Relaxed);
        sync_folder_of(&self.dest)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Best effort: a leftover is invisible.
        if !self.placed.load(Ordering::Relaxed) {
            let _ = disk::unlink(&self.path);
        }
    }
}

#[derive(Debug)]
struct DurableUpload {
    staged: Option<Arc<Staged>>,
    end: u64,
}

impl DurableUpload {
    fn take(&mut self) -> Result<Arc<Staged>> {
        let closed = || generic(std::io::Error::other("the upload was already completed or aborted"));
        self.staged.take().ok_or_else(closed)
    }
}

#[async_trait]
impl MultipartUpload for DurableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let start = self.end;
        self.end += data.content_length() as u64;
        let staged = self.staged.clone();
        async move {
            let Some(staged) = staged else {
                return Err(generic(std::io::Error::other("the upload was already completed or aborted")));
            };
            blocking(move || {
                let mut at = start;
                for chunk in &data {
                    staged.write(chunk, at)?;
                    at += chunk.len() as u64;
                }
                Ok(())
            })
            .await
        }
        .boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let staged = self.take()?;
        blocking(move || staged.rename()).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn abort(&mut self) -> Result<()> {
        drop(self.take()?);
        Ok(())
    }
}

/// Creates missing folders; each new name is on disk before this returns.
fn create_folders(path: &OsPath) -> Result<()> {
    match disk::make_folder(path) {
        Ok(()) => sync_folder_of(path),
        Err(cause) => match (cause.kind(), path.parent()) {
            (ErrorKind::AlreadyExists, _) if path.is_dir() => Ok(()),
            // Once per level: a parent that exists and still has no room for a child (a link to nowhere, /proc) never will.
            (ErrorKind::NotFound, Some(parent)) if !parent.is_dir() => {
                create_folders(parent)?;
                match disk::make_folder(path) {
                    Err(cause) if cause.kind() != ErrorKind::AlreadyExists || !path.is_dir() => Err(generic(cause)),
                    _ => sync_folder_of(path),
                }
            }
            _ => Err(generic(cause)),
        },
    }
}

fn sync_folder_of(path: &OsPath) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    disk::sync_folder(parent).map_err(generic)
}

fn generic(cause: std::io::Error) -> Error {
    Error::Generic { store: STORE, source: Box::new(cause) }
}

/// File system calls block: off the async threads when there are any.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::runtime::Handle::try_current() {
        Ok(handle) => handle.spawn_blocking(work).await?,
        Err(_) => work(),
    }
}
