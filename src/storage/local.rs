//! A local file system whose writes survive a power cut.
//!
//! `object_store` 0.13 renames and links files atomically but never calls fsync, so a commit that was reported could be
//! gone (or, worse, be an empty file under its final name) after a power cut. Here bytes reach the disk before their
//! name does, and the name before the call returns. Copies and renames are passed through: nothing relies on them.
//! Deletes are not synced: what comes back is what nothing names any more.
//!
//! A predecessor may have been killed between a change and its fsync: the page cache shows its last plan, commit or folder,
//! and the disk does not have it yet. So what is listed or read whole, and the folders that are written into, are synced
//! once per process before anything is built on them.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path as OsPath, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
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
    folders: Arc<Folders>,
}

impl DurableLocal {
    /// Opens the file system; touches nothing.
    pub fn new() -> Self {
        DurableLocal { inner: Arc::new(LocalFileSystem::new()), folders: Arc::default() }
    }
}

impl DurableLocal {
    /// What a folder shows is on disk before it is shown.
    async fn keep(&self, folder: Option<PathBuf>) -> Result<()> {
        let Some(folder) = folder.filter(|folder| !self.folders.is_kept(folder)) else { return Ok(()) };
        let folders = self.folders.clone();
        blocking(move || folders.keep(&folder)).await
    }

    async fn keep_below(&self, prefix: Option<&Path>) -> Result<()> {
        let Some(prefix) = prefix else { return Ok(()) };
        self.keep(Some(self.inner.path_to_filesystem(prefix)?)).await
    }
}

/// What this process has made sure of.
#[derive(Debug, Default)]
struct Folders {
    /// Folders whose name is on disk, all the way up.
    named: Mutex<HashSet<PathBuf>>,
    /// Folders that are named, and whose own names were synced when this process first looked.
    kept: Mutex<HashSet<PathBuf>>,
}

impl Folders {
    fn is_kept(&self, folder: &OsPath) -> bool {
        lock(&self.kept).contains(folder)
    }

    fn keep(&self, folder: &OsPath) -> Result<()> {
        match disk::sync_inherited(folder) {
            Ok(()) => {
                self.name(folder)?;
                lock(&self.kept).insert(folder.to_owned());
                Ok(())
            }
            // Nothing there to be lost; or not ours to write, so nothing of ours is in it.
            Err(cause) if is_nobodys(&cause) || is_absent(&cause) => Ok(()),
            Err(cause) => Err(generic(cause)),
        }
    }

    /// Makes the name of a folder that exists durable, and those of the folders above it.
    fn name(&self, folder: &OsPath) -> Result<()> {
        let unknown: Vec<&OsPath> =
            folder.ancestors().take_while(|folder| !lock(&self.named).contains(*folder)).collect();
        for folder in unknown.into_iter().rev() {
            match folder.parent().map_or(Ok(()), disk::sync_inherited) {
                Err(cause) if !is_nobodys(&cause) => return Err(generic(cause)),
                _ => lock(&self.named).insert(folder.to_owned()),
            };
        }
        Ok(())
    }
}

fn lock<T>(set: &Mutex<T>) -> MutexGuard<'_, T> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Folders of others (`/`, `/home`): what we may not read or sync we have not changed either.
fn is_nobodys(cause: &std::io::Error) -> bool {
    use ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    matches!(cause.kind(), InvalidInput | PermissionDenied | ReadOnlyFilesystem | Unsupported)
}

fn is_absent(cause: &std::io::Error) -> bool {
    matches!(cause.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
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
        let folders = self.folders.clone();
        blocking(move || {
            let staged = Staged::create(&dest, &folders)?;
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
        let folders = self.folders.clone();
        let staged = blocking(move || Staged::create(&dest, &folders)).await?;
        Ok(Box::new(DurableUpload { staged: Some(Arc::new(staged)), end: 0 }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        // Ranges are read from data files, which a commit names only when they are on disk.
        if options.range.is_none() && !options.head {
            let folder = self.inner.path_to_filesystem(location)?.parent().map(OsPath::to_owned);
            self.keep(folder).await?;
        }
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
        let (this, inner, prefix) = (self.clone(), self.inner.clone(), prefix.cloned());
        let kept = async move {
            this.keep_below(prefix.as_ref()).await?;
            Ok::<_, Error>(inner.list(prefix.as_ref()))
        };
        kept.into_stream().try_flatten().boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, inner, prefix, offset) = (self.clone(), self.inner.clone(), prefix.cloned(), offset.clone());
        let kept = async move {
            this.keep_below(prefix.as_ref()).await?;
            Ok::<_, Error>(inner.list_with_offset(prefix.as_ref(), &offset))
        };
        kept.into_stream().try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.keep_below(prefix).await?;
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
    fn create(dest: &OsPath, folders: &Folders) -> Result<Staged> {
        let parent = dest.parent().unwrap_or(dest);
        for attempt in 1u32.. {
            let mut path = dest.as_os_str().to_owned();
            path.push(format!("#{attempt}"));
            let path = PathBuf::from(path);
            match disk::create(&path) {
                Ok(file) => {
                    let staged = Staged { file, path, dest: dest.to_owned(), placed: AtomicBool::new(false) };
                    folders.name(parent)?;
                    return Ok(staged);
                }
                Err(cause) if cause.kind() == ErrorKind::AlreadyExists => {}
                Err(cause) if cause.kind() == ErrorKind::NotFound && parent != dest => {
                    make_folders(parent).map_err(generic)?;
                }
                Err(cause) => return Err(generic(cause)),
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
                // The winner may have been killed before this: it counts only if it stays.
                sync_folder_of(&self.dest).map_err(generic)?;
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
        sync_folder_of(&self.dest).map_err(generic)
    }

    /// Gives the file its name, replacing what is there.
    fn rename(&self) -> Result<()> {
        disk::sync_file(&self.file, &self.path).map_err(generic)?;
        disk::rename(&self.path, &self.dest).map_err(generic)?;
        self.placed.store(true, Ordering::Relaxed);
        sync_folder_of(&self.dest).map_err(generic)
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

/// Creates a folder and what is missing above it; each new name is on disk before this returns.
pub fn make_folders(path: &OsPath) -> std::io::Result<()> {
    match disk::make_folder(path) {
        Ok(()) => sync_folder_of(path),
        Err(cause) => match (cause.kind(), path.parent()) {
            (ErrorKind::AlreadyExists, _) if path.is_dir() => Ok(()),
            (ErrorKind::NotFound, Some(parent)) => {
                // There by now: another made it since. Tried once more all the same, and no more than once: some folders
                // never have room for a child (`/proc`).
                if !parent.is_dir() {
                    make_folders(parent)?;
                }
                match disk::make_folder(path) {
                    Err(cause) if cause.kind() != ErrorKind::AlreadyExists || !path.is_dir() => Err(cause),
                    _ => sync_folder_of(path),
                }
            }
            _ => Err(cause),
        },
    }
}

fn sync_folder_of(path: &OsPath) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), disk::sync_folder)
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
