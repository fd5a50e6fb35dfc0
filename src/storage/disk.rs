//! The file operations that change a local disk, one function each. Nothing else in tidegate writes local files, so a
//! recording of these (`recording.rs`, tests only) is everything that a power cut may lose.

use std::fs::{File, OpenOptions};
use std::io::Result;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Creates a file under a name that is free.
pub(super) fn create(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

/// Writes all of `bytes`. `_path` names the file for the recording.
pub(super) fn write_at(file: &File, _path: &Path, bytes: &[u8], at: u64) -> Result<()> {
    file.write_all_at(bytes, at)
}

/// The bytes of a file reach the disk.
pub(super) fn sync_file(file: &File, _path: &Path) -> Result<()> {
    file.sync_all()
}

/// A second name for a file; fails where the name is taken.
pub(super) fn link(from: &Path, to: &Path) -> Result<()> {
    std::fs::hard_link(from, to)
}

/// Another name for a file, replacing what has it.
#[allow(clippy::disallowed_methods)] // The one place that renames; `local.rs` syncs the bytes before it calls this.
pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to)
}

/// Takes a name away.
pub(super) fn unlink(path: &Path) -> Result<()> {
    std::fs::remove_file(path)
}

/// Makes one folder.
pub(super) fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir(path)
}

/// The names in a folder reach the disk.
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    File::open(path)?.sync_all()
}

/// The same for names that were there before this process came: a predecessor may have been killed before its fsync.
pub(super) fn sync_inherited(path: &Path) -> Result<()> {
    File::open(path)?.sync_all()
}
