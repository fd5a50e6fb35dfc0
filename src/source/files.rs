//! A folder of newline-delimited files: landing zones, demos, tests.
//!
//! - Each file is a partition (topic = file name, partition 0); an offset is a line number, counted from 0.
//! - Every physical line counts. Blank lines are holes: they have an offset and deliver nothing.
//! - A last line without a newline counts as a line. So files are to be moved into the folder whole; whole lines may be
//!   appended later, but a half-written line would be read as it is.
//! - Files are read in name order, an earlier file before a later one (not prorated: names usually carry the time).
//! - `_timestamp`, `_key` and `_headers` are null: a file's times change when it is copied, and a replay must not.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use regex::Regex;

use super::rows::Rows;
use super::{Bounded, Limits, Read as Records, Source, blocking, loss};
use crate::config::spec::FilesSpec;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::model::loss::Loss;
use crate::model::offset::{Incarnations, Offset, OffsetRanges, Offsets, Partition, Range};

/// Lines between two entries of a file's index.
const STRIDE: usize = 4096;

/// Bytes read at a time.
const BUFFER: usize = 256 << 10;

/// A folder of files as a source.
pub struct FilesSource {
    state: Arc<Mutex<State>>,
    description: String,
}

impl FilesSource {
    /// The files of `spec`. Nothing is opened yet.
    pub fn new(spec: FilesSpec) -> Self {
        let description = format!("files[{}/{}]", spec.path.display(), spec.pattern);
        FilesSource { state: Arc::new(Mutex::new(State { spec, index: BTreeMap::new(), kept: None })), description }
    }

    async fn with<T: Send + 'static>(&self, work: impl FnOnce(&mut State) -> Result<T> + Send + 'static) -> Result<T> {
        let state = self.state.clone();
        blocking(move || work(&mut lock(&state))).await
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Source for FilesSource {
    fn description(&self) -> String {
        self.description.clone()
    }

    async fn start(&mut self) -> Result<Offsets> {
        self.earliest().await
    }

    async fn end(&mut self) -> Result<Offsets> {
        self.with(State::end).await
    }

    async fn earliest(&mut self) -> Result<Offsets> {
        self.with(|state| Ok(Offsets(state.list()?.into_keys().map(|name| (Partition::new(name, 0), 0)).collect())))
            .await
    }

    async fn bound(&mut self, from: &Offsets, _: &Incarnations, end: &Offsets, limits: Limits) -> Result<Bounded> {
        let (from, end) = (from.clone(), end.clone());
        self.with(move |state| state.bound(&from, &end, limits)).await.map(Bounded::from)
    }

    async fn read(&mut self, ranges: &OffsetRanges, _: &Incarnations) -> Result<Records> {
        let ranges = ranges.clone();
        self.with(move |state| state.read(&ranges)).await.map(Records::from)
    }

    async fn acknowledge(&mut self, _offsets: &Offsets) {}
}

struct State {
    spec: FilesSpec,
    index: BTreeMap<String, Index>,
    /// What `bound` read ahead, for the `read` that follows.
    kept: Option<(OffsetRanges, Vec<RecordBatch>)>,
}

/// Where lines start, so that a range in the middle of a file is found without parsing the file.
#[derive(Debug, Clone, Default)]
struct Index {
    /// Byte position of lines 0, STRIDE, 2·STRIDE, …
    starts: Vec<u64>,
    /// Lines that end with a newline.
    lines: usize,
    /// Bytes of those lines.
    bytes: u64,
    /// Size of the file when it was scanned.
    size: u64,
}

impl Index {
    /// How many lines there are, a last one without a newline included.
    fn count(&self) -> Offset {
        self.lines as Offset + Offset::from(self.size > self.bytes)
    }

    /// Scans what was appended since the last scan.
    fn extend(&mut self, path: &Path) -> Result<()> {
        let mut file = open(path)?;
        let size = file.metadata().context(ErrorKind::Unavailable, describe("cannot stat", path))?.len();
        if size == self.size {
            return Ok(());
        }
        if size < self.bytes {
            // Another, shorter file: count it afresh. A position after its end is reported as a loss by the caller.
            *self = Index::default();
        }
        file.seek(SeekFrom::Start(self.bytes)).context(ErrorKind::Unavailable, describe("cannot read", path))?;
        let mut reader = file.take(size - self.bytes);
        let mut buffer = vec![0; BUFFER];
        let mut at = self.bytes;
        loop {
            let n = reader.read(&mut buffer).context(ErrorKind::Unavailable, describe("cannot read", path))?;
            if n == 0 {
                break;
            }
            for (i, _) in buffer[..n].iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
                if self.lines.is_multiple_of(STRIDE) {
                    self.starts.push(self.bytes);
                }
                self.lines += 1;
                self.bytes = at + i as u64 + 1;
            }
            at += n as u64;
        }
        self.size = at;
        Ok(())
    }

    /// The last indexed line at or before `line`, and its byte position.
    fn before(&self, line: usize) -> (usize, u64) {
        match self.starts.get((line / STRIDE).min(self.starts.len().saturating_sub(1))) {
            Some(&start) => ((line / STRIDE).min(self.starts.len() - 1) * STRIDE, start),
            None => (0, 0),
        }
    }
}

impl State {
    /// Files of the folder by name.
    fn list(&self) -> Result<BTreeMap<String, PathBuf>> {
        let pattern = glob(&self.spec.pattern)?;
        let folder = &self.spec.path;
        let entries = std::fs::read_dir(folder).map_err(|cause| {
            Error::config(describe("cannot list the source folder", folder))
                .caused_by(cause)
                .help("make the folder, or correct `source.files.path` (relative paths start at the project root)")
        })?;
        let mut files = BTreeMap::new();
        for entry in entries {
            let entry = entry.context(ErrorKind::Unavailable, describe("cannot list", folder))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            // Dot files are what editors and copy tools leave while they write.
            if !name.starts_with('.') && pattern.is_match(&name) && entry.path().is_file() {
                files.insert(name, entry.path());
            }
        }
        Ok(files)
    }

    fn end(&mut self) -> Result<Offsets> {
        let mut end = Offsets::default();
        for (name, path) in self.list()? {
            let index = self.index.entry(name.clone()).or_default();
            index.extend(&path)?;
            end.0.insert(Partition::new(name, 0), index.count());
        }
        Ok(end)
    }

    /// Fails when a position of `from` cannot be continued.
    fn check(&mut self, from: &Offsets) -> Result<()> {
        let now = self.end()?;
        let earliest = Offsets(now.0.keys().map(|partition| (partition.clone(), 0)).collect());
        let lost = loss::find(from, &Incarnations::new(), &loss::Now::anonymous(earliest, now)).into_iter().next();
        // A file is one partition, and "topic" is a word of Kafka sources.
        let lost = lost.map(|lost| match lost {
            Loss::TopicGone { partition, at } => Loss::PartitionGone { partition, at },
            other => other,
        });
        match lost {
            None => Ok(()),
            // `on_data_loss` is a word of Kafka sources; here the way out is to bring the file back.
            Some(lost) => Err(Error::new(ErrorKind::OffsetsLost, lost.message())
                .with("folder", self.spec.path.display())
                .help("this attempt wrote nothing: the checkpoint stands where the last finished batch left it")
                .help("put the file back as it was: files that were read must stay, or a replay could not read them")),
        }
    }

    fn bound(&mut self, from: &Offsets, end: &Offsets, limits: Limits) -> Result<OffsetRanges> {
        self.kept = None;
        self.check(from)?;
        let mut rows_left = limits.max_rows.max(1);
        let mut bytes_left = limits.max_bytes.max(1);
        let mut taken = false;
        let mut ranges = from.ranges_to(end);
        let mut batches = Vec::new();
        for (partition, range) in &mut ranges.0 {
            let known = self.index.get(&partition.topic).map_or(0, Index::count);
            let until = range.until.min(known).min(range.from.saturating_add_unsigned(rows_left)).max(range.from);
            range.until = range.from;
            if until == range.from || bytes_left == 0 {
                continue;
            }
            let mut rows = Rows::new(partition.clone());
            range.until = self.scan(partition, Range { from: range.from, until }, |line, text| {
                if taken && text.len() as u64 > bytes_left {
                    bytes_left = 0;
                    return Ok(false);
                }
                taken = true;
                bytes_left = bytes_left.saturating_sub(text.len() as u64);
                rows.push(line, None, None, Some(text), None)?;
                Ok(true)
            })?;
            rows_left -= range.len() as u64;
            batches.extend(rows.finish()?);
        }
        self.kept = Some((ranges.clone(), batches));
        Ok(ranges)
    }

    fn read(&mut self, ranges: &OffsetRanges) -> Result<Vec<RecordBatch>> {
        if let Some((_, batches)) = self.kept.take_if(|(kept, _)| kept == ranges) {
            return Ok(batches);
        }
        let named = ranges.0.iter().filter(|(_, range)| !range.is_empty());
        self.check(&Offsets(named.map(|(partition, range)| (partition.clone(), range.until)).collect()))?;
        let mut batches = Vec::new();
        for (partition, range) in ranges.0.iter().filter(|(_, range)| !range.is_empty()) {
            let mut rows = Rows::new(partition.clone());
            let until = self.scan(partition, *range, |line, text| {
                rows.push(line, None, None, Some(text), None)?;
                Ok(true)
            })?;
            if until < range.until {
                return Err(loss::error(&Loss::Shrunk { partition: partition.clone(), at: range.until, end: until }));
            }
            batches.extend(rows.finish()?);
        }
        Ok(batches)
    }

    /// Gives the lines of `range` that are not blank to `take` until it declines one; returns the offset after the last
    /// line that was passed.
    fn scan(
        &self,
        partition: &Partition,
        range: Range,
        mut take: impl FnMut(Offset, &[u8]) -> Result<bool>,
    ) -> Result<Offset> {
        let path = self.spec.path.join(&partition.topic);
        let failed = || describe("cannot read", &path);
        let (mut line, start) = match self.index.get(&partition.topic) {
            Some(index) => index.before(range.from.max(0) as usize),
            None => (0, 0),
        };
        let mut file = open(&path)?;
        file.seek(SeekFrom::Start(start)).context(ErrorKind::Unavailable, failed())?;
        let mut reader = BufReader::with_capacity(BUFFER, file);
        let mut text = Vec::new();
        while (line as Offset) < range.until {
            text.clear();
            if reader.read_until(b'\n', &mut text).context(ErrorKind::Unavailable, failed())? == 0 {
                break;
            }
            let value = text.trim_ascii_end();
            let offset = line as Offset;
            if offset >= range.from && !value.is_empty() && !take(offset, value)? {
                break;
            }
            line += 1;
        }
        Ok((line as Offset).max(range.from))
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).context(ErrorKind::Unavailable, describe("cannot open", path))
}

fn describe(what: &str, path: &Path) -> String {
    format!("{what} {}", path.display())
}

/// `*` is any text, `?` any character; everything else is itself.
fn glob(pattern: &str) -> Result<Regex> {
    let mut text = String::from("^");
    for c in pattern.chars() {
        match c {
            '*' => text.push_str(".*"),
            '?' => text.push('.'),
            c => text.push_str(&regex::escape(&c.to_string())),
        }
    }
    text.push('$');
    Regex::new(&text).context(ErrorKind::Config, format!("`{pattern}` is not a file pattern"))
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
