//! Vacuum: deleting files that no version within the retention needs.
//!
//! Not deltalake's: its full mode deletes what another process is about to commit as soon as it is older than the
//! retention asked for, and believes any name. Here
//!
//! - a file that a commit took out goes when that happened before the retention began;
//! - a file that no commit names goes when it was written before the retention began, and at least a day ago, whatever
//!   was asked for: a writer somewhere may still be about to commit it;
//! - what the last batch of the pipeline changed stays, because a replay reads it, however long ago that was;
//! - if the listing lacks a file that the table needs, names do not mean what they seem to, and nothing is deleted.
//!
//! The folder is listed before the log is read again: whatever is committed in between is in the log, and stays.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use deltalake::kernel::Action;
use deltalake::table::config::TablePropertiesExt;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};

use super::files::{DataFile, location};
use super::handle::Handle;
use crate::error::Result;
use crate::storage;
use crate::table::maintain::{Vacuum, Vacuumed};

/// Files that no commit names stay this long, whatever retention was asked for.
const UNNAMED: Duration = Duration::from_secs(24 * 3600);

/// Files deleted between two looks at the clock.
const AT_ONCE: usize = 1000;

/// A file that may go.
struct Candidate {
    path: Path,
    size: u64,
    orphan: bool,
}

/// Deletes old files of the table at `handle`, which is read anew and must not be the one that batches use.
pub(super) async fn vacuum(mut handle: Handle, order: &Vacuum) -> Result<Vacuumed> {
    if !handle.load().await? {
        return Ok(Vacuumed::default());
    }
    let (own, partition_by) = match handle.state() {
        Some(state) => {
            (state.table_config().deleted_file_retention_duration(), state.metadata().partition_columns().to_vec())
        }
        None => return Ok(Vacuumed::default()),
    };
    let retain = if order.force { order.retain } else { order.retain.max(own) };
    let mut done = Vacuumed { retain, ..Vacuumed::default() };
    let before = live(&handle)?;
    let listed = list(&handle, &partition_by).await?;
    handle.load().await?;

    let names: HashSet<&Path> = listed.iter().map(|object| &object.location).collect();
    if let Some(absent) = before.iter().find(|path| !names.contains(path)) {
        done.skipped = Some(format!("the log names the file {absent}, which its folder does not show"));
        return Ok(done);
    }
    let now = order.now.timestamp_millis();
    let cutoff = now - millis(retain);
    let kept = kept(&handle, order).await?;
    let mut gone = tombstones(&handle).await?;
    // The log forgets removed files after the table's own retention; beyond it, commits tell.
    let known = retain <= own || older_commits(&handle, cutoff, &mut gone).await?;

    let mut candidates = Vec::new();
    for object in &listed {
        if kept.contains(&object.location) {
            continue;
        }
        let written = object.last_modified.timestamp_millis();
        let (goes, orphan) = match gone.get(&object.location) {
            Some(removed) => (*removed < cutoff, false),
            None => (known && written < cutoff.min(now - millis(UNNAMED)), true),
        };
        if goes {
            candidates.push(Candidate { path: object.location.clone(), size: object.size, orphan });
        }
    }
    candidates.sort_by(|a, b| a.path.cmp(&b.path));
    for part in candidates.chunks(AT_ONCE) {
        if order.until.is_some_and(|until| Instant::now() >= until) {
            done.more = true;
            break;
        }
        if !order.dry_run {
            delete(&handle, part).await?;
        }
        for candidate in part {
            *(if candidate.orphan { &mut done.orphans } else { &mut done.expired }) += 1;
            done.bytes += candidate.size;
            done.paths.push(candidate.path.to_string());
        }
    }
    if order.app_id.is_empty() && order.force && !order.dry_run {
        remove_empty_folders(&handle, &partition_by);
    }
    Ok(done)
}

/// What is forgotten must not go on as the name of a partition's folder. Object stores have no folders.
fn remove_empty_folders(handle: &Handle, partition_by: &[String]) {
    let url = &handle.storage().url;
    if url.scheme() == "file"
        && let Ok(folder) = url.to_file_path()
    {
        remove_empty_below(&folder, partition_by);
    }
}

fn remove_empty_below(folder: &std::path::Path, partition_by: &[String]) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let column = name.to_str().and_then(|name| name.split_once('=')).map(|(column, _)| column);
        if column.is_some_and(|column| partition_by.iter().any(|name| name == column)) {
            remove_empty_below(&entry.path(), partition_by);
            // One that is not empty stays.
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

fn millis(duration: Duration) -> i64 {
    // Far beyond any table's age, and no sum with it overflows.
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).min(i64::MAX / 4)
}

fn live(handle: &Handle) -> Result<HashSet<Path>> {
    Ok(handle.files()?.iter().map(DataFile::location).collect())
}

/// The data files in the table's folder. The log and what other tools hide are not looked at.
async fn list(handle: &Handle, partition_by: &[String]) -> Result<Vec<ObjectMeta>> {
    let store = handle.store();
    let failed = |cause| storage::explain(&cause, "list the table's files", &handle.location());
    let top = store.list_with_delimiter(None).await.map_err(failed)?;
    let mut objects = top.objects;
    for folder in top.common_prefixes.iter().filter(|folder| !is_hidden(folder, partition_by)) {
        let below: Vec<ObjectMeta> = store.list(Some(folder)).try_collect().await.map_err(failed)?;
        objects.extend(below);
    }
    objects
        .retain(|object| object.location.as_ref().ends_with(".parquet") && !is_hidden(&object.location, partition_by));
    Ok(objects)
}

/// Names that begin with `_` or `.` are not data, but for folders of partition columns.
fn is_hidden(path: &Path, partition_by: &[String]) -> bool {
    path.parts().any(|part| {
        let part = part.as_ref();
        let names_partition =
            || part.split_once('=').is_some_and(|(column, _)| partition_by.iter().any(|c| c == column));
        part.starts_with(['_', '.']) && !names_partition()
    })
}

/// Files that stay whatever their age: of the newest version, of versions asked for, and of the pipeline's last batch.
async fn kept(handle: &Handle, order: &Vacuum) -> Result<HashSet<Path>> {
    let mut kept = live(handle)?;
    for version in &order.keep_versions {
        let mut old = handle.fork();
        old.load_version(Some(*version)).await?;
        kept.extend(live(&old)?);
    }
    if order.app_id.is_empty() {
        return Ok(kept);
    }
    if let Some(applied) = handle.applied(&order.app_id).await?
        && let Some((_, actions)) = handle.find_commit(&order.app_id, applied).await?
    {
        kept.extend(actions.iter().filter_map(|action| match action {
            Action::Add(add) => Some(location(&add.path)),
            Action::Remove(remove) => Some(location(&remove.path)),
            _ => None,
        }));
    }
    Ok(kept)
}

/// When each file that the log remembers was taken out. One without a time was taken out just now, for all we know.
async fn tombstones(handle: &Handle) -> Result<HashMap<Path, i64>> {
    let mut gone: HashMap<Path, i64> = HashMap::new();
    let Some(state) = handle.state() else { return Ok(gone) };
    let log = handle.log();
    let mut tombstones = state.all_tombstones(log.as_ref());
    while let Some(tombstone) = tombstones.try_next().await.map_err(|e| handle.explain(e, "read the table's log"))? {
        let removed = tombstone.deletion_timestamp().filter(|at| *at > 0).unwrap_or(i64::MAX);
        let latest = gone.entry(location(&tombstone.path())).or_insert(removed);
        *latest = removed.max(*latest);
    }
    Ok(gone)
}

/// Adds what commits since `cutoff` took out; false = the log does not reach back that far.
async fn older_commits(handle: &Handle, cutoff: i64, gone: &mut HashMap<Path, i64>) -> Result<bool> {
    for version in (0..=handle.version().unwrap_or(-1)).rev() {
        let Some(actions) = handle.actions(version).await? else { return Ok(false) };
        let mut at = i64::MAX;
        for action in actions {
            match action {
                Action::CommitInfo(info) => at = info.timestamp.unwrap_or(at),
                Action::Remove(remove) => {
                    let removed = remove.deletion_timestamp.unwrap_or(i64::MAX);
                    let latest = gone.entry(location(&remove.path)).or_insert(removed);
                    *latest = removed.max(*latest);
                }
                _ => {}
            }
        }
        if at < cutoff {
            break;
        }
    }
    Ok(true)
}

/// A file that is gone already is what was wanted.
async fn delete(handle: &Handle, files: &[Candidate]) -> Result<()> {
    let store = handle.store();
    let paths: Vec<object_store::Result<Path>> = files.iter().map(|file| Ok(file.path.clone())).collect();
    let mut deleted = store.delete_stream(Box::pin(futures::stream::iter(paths)));
    loop {
        match deleted.try_next().await {
            Ok(Some(_)) | Err(object_store::Error::NotFound { .. }) => {}
            Ok(None) => return Ok(()),
            Err(cause) => return Err(storage::explain(&cause, "delete old files", &handle.location())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_hidden_and_a_partition_column_is_not() {
        let columns = ["_ingest_date".to_owned()];
        for (path, hidden) in [
            ("_delta_log/00000000000000000000.json", true),
            ("_change_data/x.parquet", true),
            (".staging/x.parquet", true),
            ("_other=1/x.parquet", true),
            ("_ingest_date=2026-03-17/x.parquet", false),
            ("part-0.parquet", false),
        ] {
            assert_eq!(is_hidden(&Path::from(path), &columns), hidden, "{path}");
        }
    }
}
