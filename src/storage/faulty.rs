//! A store that fails on order, for tests: every request is a fail point named after what is asked for (`plan.put`,
//! `log.put.done`, `data.get`, …; see [`crate::fail`]).

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};

use crate::fail::{self, Action};

/// Wraps a store that is rooted at a file system or bucket.
#[derive(Debug)]
pub(super) struct Faulty {
    inner: Arc<dyn ObjectStore>,
}

impl Faulty {
    pub(super) fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Faulty { inner }
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

/// What an object is, told from where it lies.
fn class(path: &Path) -> &'static str {
    let text = path.as_ref();
    let memory = text.contains("_tidegate/deletes/");
    let name = path.filename().unwrap_or_default();
    if text.contains("/_delta_log") {
        let is_snapshot = name == "_last_checkpoint" || name.contains(".checkpoint.") || text.contains("/_sidecars/");
        return match (memory, is_snapshot) {
            (false, false) => "log",
            (false, true) => "snapshot",
            (true, false) => "memory.log",
            (true, true) => "memory.snapshot",
        };
    }
    if text.contains("_tidegate/state/") {
        return "state";
    }
    // A listing names the folder, everything else an object in it.
    let folder = text.rsplit('/').nth(usize::from(name.contains('.'))).unwrap_or_default();
    match (folder, name) {
        ("offsets", _) => "plan",
        ("commits", _) => "commit",
        ("sources", _) => "start",
        (_, "metadata.json") => "identity",
        _ if memory => "memory.data",
        _ => "data",
    }
}

fn point(path: &Path, operation: &str) -> String {
    format!("{}.{operation}", class(path))
}

fn failed(point: &str, kind: io::ErrorKind) -> Error {
    let source = Box::new(io::Error::new(kind, format!("ordered at the fail point `{point}`")));
    Error::Generic { store: "faulty store", source }
}

/// What is left to do after the gate.
enum Gate {
    Open,
    /// Carry it out, and report a failure.
    Lost,
    /// Carry it out twice, and report how the second time ended.
    Resent,
    /// Report a failure, and carry it out after this time.
    Late(Duration),
    Torn,
    /// One entry is not listed.
    Gap,
}

async fn gate(point: &str) -> Result<Gate> {
    match fail::arrive(point) {
        None | Some(Action::Skip) => Ok(Gate::Open),
        Some(Action::Panic) => panic!("ordered at the fail point `{point}`"),
        Some(Action::Kill) => fail::die(),
        Some(Action::Error) => Err(failed(point, io::ErrorKind::ConnectionReset)),
        Some(Action::Full) => Err(failed(point, io::ErrorKind::StorageFull)),
        Some(Action::Lost) => Ok(Gate::Lost),
        Some(Action::Resent) => Ok(Gate::Resent),
        Some(Action::Late(wait)) => Ok(Gate::Late(wait)),
        Some(Action::Torn) => Ok(Gate::Torn),
        Some(Action::Gap) => Ok(Gate::Gap),
        Some(Action::Slow(wait)) => {
            tokio::time::sleep(wait).await;
            Ok(Gate::Open)
        }
        Some(Action::Pause(file)) => {
            let waited = tokio::task::spawn_blocking(move || fail::pause(&file)).await;
            waited.map(|()| Gate::Open).map_err(|_| failed(point, io::ErrorKind::Interrupted))
        }
    }
}

/// A gate of something that is not a write: nothing was done, whatever is reported.
async fn read_gate(point: &str) -> Result<()> {
    list_gate(point).await.map(drop)
}

/// The same where entries may be left out.
async fn list_gate(point: &str) -> Result<Gate> {
    match gate(point).await? {
        Gate::Torn => fail::die(),
        Gate::Lost | Gate::Resent | Gate::Late(_) => Err(failed(point, io::ErrorKind::TimedOut)),
        gate => Ok(gate),
    }
}

/// Half of the bytes under a temporary name of the local store, then the end.
#[allow(clippy::disallowed_methods, reason = "a torn file is the point")]
fn tear(location: &Path, payload: &PutPayload) -> ! {
    let bytes: Vec<u8> = payload.iter().flat_map(|chunk| chunk.iter().copied()).collect();
    let path = std::path::PathBuf::from(format!("/{location}#1"));
    if let Some(folder) = path.parent() {
        let _ = std::fs::create_dir_all(folder);
    }
    let _ = std::fs::write(&path, &bytes[..bytes.len() / 2]);
    fail::die()
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        if fail::parts() && class(location) == "data" {
            return self.in_parts(location, payload).await;
        }
        let here = point(location, "put");
        match gate(&here).await? {
            Gate::Open | Gate::Gap => {}
            Gate::Torn => tear(location, &payload),
            Gate::Lost => {
                self.inner.put_opts(location, payload, opts).await?;
                return Err(failed(&here, io::ErrorKind::TimedOut));
            }
            // A put of an object that must not exist is answered by what the first one made.
            Gate::Resent => {
                self.inner.put_opts(location, payload.clone(), opts.clone()).await?;
            }
            Gate::Late(wait) => {
                let (inner, location) = (self.inner.clone(), location.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    let _ = inner.put_opts(&location, payload, opts).await;
                });
                return Err(failed(&here, io::ErrorKind::TimedOut));
            }
        }
        let done = self.inner.put_opts(location, payload, opts).await?;
        read_gate(&format!("{here}.done")).await?;
        Ok(done)
    }

    async fn put_multipart_opts(&self, location: &Path, o: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        read_gate(&point(location, "begin")).await?;
        let inner = self.inner.put_multipart_opts(location, o).await?;
        Ok(Box::new(FaultyUpload { inner, class: class(location) }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        read_gate(&point(location, "get")).await?;
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        read_gate(&point(location, "get")).await?;
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let inner = self.inner.clone();
        let delete = move |location: Result<Path>| {
            let inner = inner.clone();
            async move {
                let location = location?;
                let here = point(&location, "delete");
                let gate = gate(&here).await?;
                inner.delete(&location).await?;
                match gate {
                    Gate::Open => read_gate(&format!("{here}.done")).await.map(|()| location),
                    _ => Err(failed(&here, io::ErrorKind::TimedOut)),
                }
            }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, prefix, here) = (self.inner.clone(), prefix.cloned(), prefix.cloned());
        let list = move |gate| listed(gate, inner.list(prefix.as_ref()));
        before_listing(here).map_ok(list).try_flatten().boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, prefix, offset) = (self.inner.clone(), prefix.cloned(), offset.clone());
        let here = prefix.clone();
        let list = move |gate| listed(gate, inner.list_with_offset(prefix.as_ref(), &offset));
        before_listing(here).map_ok(list).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        read_gate(&point(prefix.unwrap_or(&Path::ROOT), "list")).await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}

/// One item: whether the listing may begin.
fn before_listing(prefix: Option<Path>) -> BoxStream<'static, Result<Gate>> {
    let gate = async move { list_gate(&point(&prefix.unwrap_or(Path::ROOT), "list")).await };
    futures::stream::once(gate).boxed()
}

/// What is listed, without the JSON file before the newest where that was ordered.
fn listed(gate: Gate, listing: BoxStream<'static, Result<ObjectMeta>>) -> BoxStream<'static, Result<ObjectMeta>> {
    if !matches!(gate, Gate::Gap) {
        return listing;
    }
    let torn = async move {
        let mut all: Vec<ObjectMeta> = listing.try_collect().await?;
        all.sort_by(|a, b| a.location.cmp(&b.location));
        let is_entry = |meta: &ObjectMeta| meta.location.extension() == Some("json");
        let entries: Vec<usize> = (0..all.len()).filter(|&i| is_entry(&all[i])).collect();
        if let [.., missed, _] = entries[..] {
            all.remove(missed);
        }
        Ok::<_, Error>(futures::stream::iter(all.into_iter().map(Ok)))
    };
    futures::stream::once(torn).try_flatten().boxed()
}

impl Faulty {
    /// A put as an upload of two parts.
    async fn in_parts(&self, location: &Path, payload: PutPayload) -> Result<PutResult> {
        let bytes = Bytes::from(payload.iter().flat_map(|chunk| chunk.iter().copied()).collect::<Vec<u8>>());
        let half = bytes.len() / 2;
        let mut upload = self.put_multipart_opts(location, PutMultipartOptions::default()).await?;
        let mut sent = async || {
            upload.put_part(bytes.slice(..half).into()).await?;
            upload.put_part(bytes.slice(half..).into()).await?;
            upload.complete().await
        };
        match sent().await {
            Ok(done) => Ok(done),
            Err(error) => {
                let _ = upload.abort().await;
                Err(error)
            }
        }
    }
}

#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    class: &'static str,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let here = format!("{}.part", self.class);
        let sent = self.inner.put_part(data);
        async move {
            // Torn: the part before this one is in the temporary file, this one is not.
            let gate = gate(&here).await?;
            if matches!(gate, Gate::Torn) {
                fail::die();
            }
            sent.await?;
            match gate {
                Gate::Open => Ok(()),
                _ => Err(failed(&here, io::ErrorKind::TimedOut)),
            }
        }
        .boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let here = format!("{}.complete", self.class);
        let gate = gate(&here).await?;
        if matches!(gate, Gate::Torn) {
            fail::die();
        }
        let done = self.inner.complete().await?;
        match gate {
            Gate::Open => read_gate(&format!("{here}.done")).await.map(|()| done),
            _ => Err(failed(&here, io::ErrorKind::TimedOut)),
        }
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_has_its_class() {
        let table = "tmp/lake/silver/orders";
        let memory = "tmp/lake/_tidegate/deletes/silver/orders";
        let log = "tmp/checkpoints/orders";
        for (path, expected) in [
            (format!("{table}/_delta_log/00000000000000000003.json"), "log"),
            (format!("{table}/_delta_log"), "log"),
            (format!("{table}/_delta_log/_last_checkpoint"), "snapshot"),
            (format!("{table}/_delta_log/00000000000000000003.checkpoint.parquet"), "snapshot"),
            (format!("{table}/order_date=2026-03-01/part-0.parquet"), "data"),
            (format!("{memory}/_delta_log/00000000000000000003.json"), "memory.log"),
            (format!("{memory}/part-0.parquet"), "memory.data"),
            ("tmp/lake/_tidegate/state/gold.hours/00000000000000000003-1f.parquet".to_string(), "state"),
            ("tmp/lake/_tidegate/state/gold.hours".to_string(), "state"),
            (format!("{log}/metadata.json"), "identity"),
            (format!("{log}/sources/source.json"), "start"),
            (format!("{log}/offsets/00000000000000000003.json"), "plan"),
            (format!("{log}/offsets"), "plan"),
            (format!("{log}/commits/00000000000000000003.json"), "commit"),
            (format!("{log}/commits"), "commit"),
        ] {
            assert_eq!(class(&Path::from(path.as_str())), expected, "{path}");
        }
    }
}
