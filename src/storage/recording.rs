//! `disk.rs` for the tests of power cuts: the same operations, each written down in the order in which the disk saw them.
//!
//! `TIDEGATE_FAIL_OPS=FILE` appends every operation that succeeded to FILE: a line of words parted by tabs, and after a
//! `write` its bytes. One lock is held from before an operation until it is written down, so the order in FILE is the
//! order on disk, whatever the threads.
//!
//! `TIDEGATE_FAIL_NOSYNC=MODE` is a sabotage that a test of power cuts must notice: `file` and `folder` skip that fsync,
//! `mkdir` skips those that only a new folder asks for, `inherited` trusts what a killed predecessor left, `late` syncs a file after it has its name.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{Result, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::disk;

struct Recorder {
    out: Option<File>,
    sabotage: Option<String>,
    /// Files that `late` has not synced yet.
    unsynced: HashSet<PathBuf>,
    /// Folders in which a folder was made after the last file: nothing but the new folder asks for their fsync.
    grown: HashSet<PathBuf>,
}

/// The registry of faults is the one static state of the program; `None` where the environment asks for nothing.
fn recorder() -> Option<MutexGuard<'static, Recorder>> {
    static RECORDER: OnceLock<Option<Mutex<Recorder>>> = OnceLock::new();
    let open = |path| OpenOptions::new().create(true).append(true).open(path).expect("the recording can be written");
    let start = || {
        let out = std::env::var_os("TIDEGATE_FAIL_OPS").map(open);
        let sabotage = std::env::var("TIDEGATE_FAIL_NOSYNC").ok();
        let wanted = out.is_some() || sabotage.is_some();
        wanted.then(|| Mutex::new(Recorder { out, sabotage, unsynced: HashSet::new(), grown: HashSet::new() }))
    };
    let recorder = RECORDER.get_or_init(start).as_ref()?;
    Some(recorder.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Recorder {
    fn sabotaged(&self, mode: &str) -> bool {
        self.sabotage.as_deref() == Some(mode)
    }

    fn note(&mut self, what: &str, paths: &[&Path]) {
        self.note_bytes(what, paths, &[]);
    }

    fn note_bytes(&mut self, what: &str, paths: &[&Path], bytes: &[u8]) {
        let Some(out) = &mut self.out else { return };
        let mut entry = what.as_bytes().to_vec();
        for path in paths {
            entry.push(b'\t');
            entry.extend_from_slice(path.as_os_str().as_encoded_bytes());
        }
        entry.push(b'\n');
        entry.extend_from_slice(bytes);
        out.write_all(&entry).expect("the recording can be written");
    }

    /// A file came into the folder, whose fsync is about the file from now on.
    fn placed(&mut self, path: &Path) {
        if let Some(folder) = path.parent() {
            self.grown.remove(folder);
        }
    }

    /// The sync that `late` owes to a file, which goes by another name now.
    fn sync_late(&mut self, was: &Path, path: &Path) -> Result<()> {
        if self.unsynced.remove(was) {
            File::open(path)?.sync_all()?;
            self.note("sync", &[path]);
        }
        Ok(())
    }
}

pub(super) fn create(path: &Path) -> Result<File> {
    let Some(mut recorder) = recorder() else { return disk::create(path) };
    let file = disk::create(path)?;
    recorder.note("create", &[path]);
    Ok(file)
}

pub(super) fn write_at(file: &File, path: &Path, bytes: &[u8], at: u64) -> Result<()> {
    let Some(mut recorder) = recorder() else { return disk::write_at(file, path, bytes, at) };
    disk::write_at(file, path, bytes, at)?;
    recorder.note_bytes(&format!("write\t{at}\t{}", bytes.len()), &[path], bytes);
    Ok(())
}

pub(super) fn sync_file(file: &File, path: &Path) -> Result<()> {
    let Some(mut recorder) = recorder() else { return disk::sync_file(file, path) };
    if recorder.sabotaged("file") {
        return Ok(());
    }
    if recorder.sabotaged("late") {
        recorder.unsynced.insert(path.to_owned());
        return Ok(());
    }
    disk::sync_file(file, path)?;
    recorder.note("sync", &[path]);
    Ok(())
}

pub(super) fn link(from: &Path, to: &Path) -> Result<()> {
    let Some(mut recorder) = recorder() else { return disk::link(from, to) };
    disk::link(from, to)?;
    recorder.note("link", &[from, to]);
    recorder.placed(to);
    recorder.sync_late(from, to)
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    let Some(mut recorder) = recorder() else { return disk::rename(from, to) };
    disk::rename(from, to)?;
    recorder.note("rename", &[from, to]);
    recorder.placed(to);
    recorder.sync_late(from, to)
}

pub(super) fn unlink(path: &Path) -> Result<()> {
    let Some(mut recorder) = recorder() else { return disk::unlink(path) };
    disk::unlink(path)?;
    recorder.note("unlink", &[path]);
    Ok(())
}

pub(super) fn make_folder(path: &Path) -> Result<()> {
    let Some(mut recorder) = recorder() else { return disk::make_folder(path) };
    disk::make_folder(path)?;
    recorder.note("mkdir", &[path]);
    if let Some(parent) = path.parent() {
        recorder.grown.insert(parent.to_owned());
    }
    Ok(())
}

pub(super) fn sync_folder(path: &Path) -> Result<()> {
    let Some(mut recorder) = recorder() else { return disk::sync_folder(path) };
    if recorder.sabotaged("folder") || (recorder.sabotaged("mkdir") && recorder.grown.contains(path)) {
        return Ok(());
    }
    disk::sync_folder(path)?;
    recorder.note("syncdir", &[path]);
    Ok(())
}

pub(super) fn sync_inherited(path: &Path) -> Result<()> {
    let Some(mut recorder) = recorder() else { return disk::sync_inherited(path) };
    if recorder.sabotaged("inherited") || recorder.sabotaged("folder") || recorder.sabotaged("mkdir") {
        return Ok(());
    }
    disk::sync_inherited(path)?;
    recorder.note("syncdir", &[path]);
    Ok(())
}
