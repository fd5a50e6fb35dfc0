//! One runner per pipeline on one host: a lock file, released by the kernel when the process dies, however it dies.
//!
//! A courtesy that turns a race into a clear message at once. The guarantee between hosts is the log's put-if-absent
//! and Delta's txn; no correctness rests on this file.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use crate::error::{Code, Context, Error, ErrorKind, Result};
use crate::fail;
use crate::model::batch::Owner;
use crate::storage;

/// How often, and with which pauses, the lock is tried while somebody only looks at it.
const LOOKS: u32 = 500;
const LOOK: Duration = Duration::from_millis(10);

/// Held as long as it lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Takes the lock of a log in a local folder, which is created if there is none: durably, because the log's own
/// writes rely on the name of their folder.
pub fn acquire(folder: &Path, pipeline: &str, owner: &Owner) -> Result<Lock> {
    acquire_or(folder, &format!("another runner owns pipeline `{pipeline}`"), owner)
}

/// The same for a lock that stands for something else: `taken` is what is said, and by whom, when another holds it.
pub fn acquire_or(folder: &Path, taken: &str, owner: &Owner) -> Result<Lock> {
    let path = folder.join("lock");
    let failed = || format!("the lock file {} could not be opened; nothing was read or written", path.display());
    storage::make_folders(folder).context(ErrorKind::Unavailable, failed())?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .context(ErrorKind::Unavailable, failed())?;
    if fail::skipped(fail::LOCK) {
        return Ok(Lock { _file: file });
    }
    match try_lock(&file) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(held(&mut file, taken)),
        // A file system without locks: the log's put-if-absent still decides.
        Err(TryLockError::Error(error)) => {
            tracing::debug!(%error, path = %path.display(), "no lock on this file system");
            return Ok(Lock { _file: file });
        }
    }
    // Best effort: the text only serves the message that another runner would print.
    let text = serde_json::to_string(owner).unwrap_or_default();
    let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes()));
    Ok(Lock { _file: file })
}

/// Whether a process may be at work: false only when it ran on this host and is gone.
pub fn may_be_alive(owner: &Owner, here: &Owner) -> bool {
    let processes = Path::new("/proc");
    owner.host != here.host || !processes.is_dir() || processes.join(owner.pid.to_string()).exists()
}

/// Who holds the lock of a log in a local folder; `None` = nobody, or the file system has no locks.
pub fn holder(folder: &Path) -> Option<Holder> {
    let mut file = File::open(folder.join("lock")).ok()?;
    // Shared, so that two who look do not see each other, and given back at once.
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let _ = file.read_to_string(&mut text);
            Some(serde_json::from_str(&text).map_or(Holder::Unknown, Holder::Known))
        }
        _ => None,
    }
}

/// Who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// The file says so.
    Known(Owner),
    /// Somebody; the file does not say who.
    Unknown,
}

/// Somebody who only looks (`tidegate status`) shares the lock for a moment, and is waited for; a runner has it alone.
fn try_lock(file: &File) -> Result<(), TryLockError> {
    for _ in 0..LOOKS {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if file.try_lock_shared().is_ok() => {
                file.unlock().map_err(TryLockError::Error)?
            }
            outcome => return outcome,
        }
        std::thread::sleep(LOOK);
    }
    file.try_lock()
}

fn held(file: &mut File, taken: &str) -> Error {
    let mut text = String::new();
    let _ = file.read_to_string(&mut text);
    let by = serde_json::from_str::<Owner>(&text)
        .map_or("another process".to_string(), |owner| format!("pid {} on host {}", owner.pid, owner.host));
    Error::new(ErrorKind::Busy, format!("{taken}: {by}"))
        .coded(Code::LockHeld)
        .help("this runner read and wrote nothing; wait for the other to finish, or stop it, and run again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_is_seen_and_looking_stops_nobody() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(holder(folder.path()), None);
        let owner = Owner { run_id: "r".into(), host: "h".into(), pid: 7 };
        let lock = acquire(folder.path(), "orders", &owner).unwrap();
        assert_eq!(holder(folder.path()), Some(Holder::Known(owner.clone())));
        assert_eq!(acquire(folder.path(), "orders", &owner).unwrap_err().kind(), ErrorKind::Busy);
        drop(lock);
        assert_eq!(holder(folder.path()), None, "a lock that was let go is nobody's, whatever the file says");
        let seen = File::open(folder.path().join("lock")).unwrap();
        seen.lock_shared().unwrap();
        let looker = std::thread::spawn(move || {
            std::thread::sleep(5 * LOOK);
            drop(seen);
        });
        acquire(folder.path(), "orders", &owner).expect("a look is over at once");
        looker.join().unwrap();
    }
}
