//! Compaction: small files of a partition become one, and no row changes.
//!
//! Files are written first (nobody sees them), then one commit swaps them in. It is a compare and swap: it lands only
//! on a version that was read, and only if every file it replaces is still live there. Two maintainers, or a maintainer
//! and a writer, can therefore never both keep the same rows; deltalake's own conflict check lets exactly that happen
//! between two rewrites with `dataChange: false`. A commit that others have overtaken is repeated on their version as
//! long as they left its files alone; groups of files that they changed are dropped.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use deltalake::kernel::{Action, Add};
use deltalake::protocol::DeltaOperation;
use futures::StreamExt;

use super::files::DataFile;
use super::handle::Handle;
use super::scan::{Reader, parallelism};
use super::schema::arrow_schema;
use super::write::{Writer, remove};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::table::maintain::{Compacted, Compaction, Depth};

/// Files of the smallest tier that gather before they are merged, and of every tier above. Together with the tiers this
/// bounds the live small files of a partition: 15 + 7 + 7 with the default target.
const FEW_TINY: usize = 16;
const FEW: usize = 8;

/// Upper bound of the smallest tier, and how much larger each next one is.
const TINY: u64 = 1 << 20;
const STEP: u64 = 8;

/// How often a commit is repeated on what others have committed meanwhile.
const ROUNDS: usize = 20;

/// Files to be merged, in the order in which they were written: neighbours in time are mostly neighbours in key and
/// offset, and statistics stay narrow.
#[derive(Clone)]
struct Group {
    files: Vec<DataFile>,
    bytes: u64,
}

/// A group and the files that hold its rows now.
struct Merged {
    group: Group,
    adds: Vec<Add>,
}

/// Merges small files of the table that `handle` has read. The handle moves on to what it commits.
pub(super) async fn compact(handle: &mut Handle, keys: &[String], order: &Compaction) -> Result<Compacted> {
    let Some(state) = handle.state() else { return Ok(Compacted::default()) };
    let files = handle.files()?;
    let live = files.len() as u64;
    let mut done = Compacted { files_before: live, files_after: live, ..Compacted::default() };
    if files.iter().any(DataFile::has_deletion_vector) {
        done.skipped = Some("it has deletion vectors, which a rewrite would lose".to_owned());
        return Ok(done);
    }
    let mut groups = groups(files, order.depth, order.target_bytes);
    done.more = cut(&mut groups, order.max_bytes);
    if groups.is_empty() {
        return Ok(done);
    }
    if order.dry_run {
        done.more = false;
        count_removed(&mut done, groups.iter());
        return Ok(done);
    }
    let schema = arrow_schema(state);
    let partition_by = state.metadata().partition_columns().to_vec();
    // Room above the target: a merged file that is a little larger than its parts must not leave a sliver behind.
    let room = order.target_bytes + order.target_bytes / 2;
    let store = handle.store();
    let writer = Writer::sized(store.clone(), handle.location(), &schema, &partition_by, keys, state, room);
    let reader = Reader { store: store.clone(), location: handle.location(), partition_by: partition_by.into() };

    let begun = groups.len();
    let tasks = groups.into_iter().enumerate().map(|(number, group)| {
        let (reader, writer, schema, until) = (reader.clone(), writer.clone(), schema.clone(), order.until);
        async move {
            if number > 0 && until.is_some_and(|until| Instant::now() >= until) {
                return Ok(None);
            }
            let task = tokio::spawn(async move {
                let adds = writer.merge(&reader, &schema, &group.files).await?;
                Ok::<_, Error>(Merged { group, adds })
            });
            task.await.context(ErrorKind::Failed, "a writer died")?.map(Some)
        }
    });
    let outcomes: Vec<Result<Option<Merged>>> =
        futures::stream::iter(tasks).buffer_unordered(parallelism()).collect().await;
    let (mut merged, mut failure) = (Vec::new(), None);
    for outcome in outcomes {
        match outcome {
            Ok(Some(one)) => match check(&one, &reader.location) {
                Ok(()) => merged.push(one),
                Err(error) => {
                    remove(&store, &one.adds).await;
                    failure = Some(error);
                }
            },
            Ok(None) => {}
            Err(error) => failure = Some(error),
        }
    }
    if let Some(error) = failure {
        for one in &merged {
            remove(&store, &one.adds).await;
        }
        return Err(error);
    }
    done.more |= merged.len() < begun;
    let kept = swap(handle, merged, order, &mut done).await?;
    count_removed(&mut done, kept.iter().map(|one| &one.group));
    for add in kept.iter().flat_map(|one| &one.adds) {
        done.files_added += 1;
        done.bytes_added += u64::try_from(add.size).unwrap_or(0);
    }
    done.files_after = handle.files()?.len() as u64;
    Ok(done)
}

fn count_removed<'a>(done: &mut Compacted, groups: impl Iterator<Item = &'a Group>) {
    for group in groups {
        done.files_removed += group.files.len() as u64;
        done.bytes_removed += group.bytes;
    }
}

/// Chooses what is merged.
fn groups(files: Vec<DataFile>, depth: Depth, target: u64) -> Vec<Group> {
    let mut partitions: BTreeMap<String, Vec<DataFile>> = BTreeMap::new();
    for file in files {
        // Two files this large would not fit into one.
        if tier(file.size, target).is_some() {
            partitions.entry(file.partition_name()).or_default().push(file);
        }
    }
    let mut groups = Vec::new();
    for mut files in partitions.into_values() {
        if depth == Depth::Tiered {
            let sizes: Vec<u64> = files.iter().map(|file| file.size).collect();
            let Some(top) = full_tier(&sizes, target) else { continue };
            files.retain(|file| tier(file.size, target).is_some_and(|tier| tier <= top));
        }
        files.sort_by(|a, b| (a.modified(), &a.path).cmp(&(b.modified(), &b.path)));
        let mut group = Group { files: Vec::new(), bytes: 0 };
        for file in files {
            if group.bytes + file.size > target {
                let full = std::mem::replace(&mut group, Group { files: Vec::new(), bytes: 0 });
                groups.push(full);
            }
            group.bytes += file.size;
            group.files.push(file);
        }
        groups.push(group);
    }
    groups.retain(|group| group.files.len() > 1);
    groups
}

/// The size class of a small file; `None` = it is large enough to be left alone.
fn tier(size: u64, target: u64) -> Option<usize> {
    if size >= target / 2 {
        return None;
    }
    let (mut bound, mut tier) = (TINY, 0);
    while size >= bound {
        bound = bound.saturating_mul(STEP);
        tier += 1;
    }
    Some(tier)
}

/// The highest tier in which enough files have gathered.
fn full_tier(sizes: &[u64], target: u64) -> Option<usize> {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for tier in sizes.iter().filter_map(|size| tier(*size, target)) {
        *counts.entry(tier).or_default() += 1;
    }
    let full = |(tier, count): (usize, usize)| (count >= if tier == 0 { FEW_TINY } else { FEW }).then_some(tier);
    counts.into_iter().rev().find_map(full)
}

/// Keeps the groups that cost least per file, up to `max_bytes`; true = some had to wait.
fn cut(groups: &mut Vec<Group>, max_bytes: u64) -> bool {
    groups.sort_by_key(|group| group.bytes / group.files.len() as u64);
    let (mut total, mut fitting) = (0u64, 0);
    for group in groups.iter() {
        total = total.saturating_add(group.bytes);
        if fitting > 0 && total > max_bytes {
            break;
        }
        fitting += 1;
    }
    let more = fitting < groups.len();
    groups.truncate(fitting);
    more
}

/// As many rows came out as went in, as far as the log counts them.
fn check(merged: &Merged, at: &str) -> Result<()> {
    let before: Option<u64> = merged.group.files.iter().map(DataFile::rows).sum();
    let rows = |add: &Add| -> Option<u64> {
        let stats: serde_json::Value = serde_json::from_str(add.stats.as_ref()?).ok()?;
        stats.get("numRecords")?.as_u64()
    };
    let after: Option<u64> = merged.adds.iter().map(rows).sum();
    match (before, after) {
        (Some(before), Some(after)) if before != after => {
            Err(Error::failed(format!("merging files would have made {after} rows out of {before}"))
                .with("at", at)
                .help("nothing was changed; a data file does not hold what the log says of it"))
        }
        _ => Ok(()),
    }
}

/// Commits what was merged; returns the part of it that landed.
async fn swap(
    handle: &mut Handle,
    mut merged: Vec<Merged>,
    order: &Compaction,
    done: &mut Compacted,
) -> Result<Vec<Merged>> {
    let store = handle.store();
    let shape = |handle: &Handle| handle.state().map(|state| (state.metadata().clone(), state.protocol().clone()));
    let planned = shape(handle);
    let mut tried = None;
    for round in 0..ROUNDS {
        if round > 0 {
            // A schema or a feature that these files know nothing of: everything is out of date.
            let same = shape(handle) == planned;
            let files = if same { handle.files()? } else { Vec::new() };
            let whole = files.iter().filter(|file| !file.has_deletion_vector());
            let live: HashSet<&str> = whole.map(|file| file.path.as_str()).collect();
            // An earlier round's commit, which was still being worked on when it was refused.
            let is_there = |one: &Merged| one.adds.iter().any(|add| live.contains(add.path.as_str()));
            if merged.iter().any(is_there) {
                return Ok(merged.into_iter().filter(is_there).collect());
            }
            let intact = |one: &Merged| one.group.files.iter().all(|file| live.contains(file.path.as_str()));
            let (kept, lost): (Vec<Merged>, Vec<Merged>) = merged.into_iter().partition(intact);
            for one in &lost {
                remove(&store, &one.adds).await;
            }
            done.lost += lost.len() as u64;
            done.more |= !lost.is_empty();
            merged = kept;
        }
        if merged.is_empty() {
            return Ok(merged);
        }
        tried = handle.version();
        let read = tried.unwrap_or(-1);
        let operation = DeltaOperation::Optimize { predicate: None, target_size: signed(order.target_bytes) };
        match handle.commit_maintenance(actions(&merged), operation, metrics(&merged)).await {
            Ok(_) => return Ok(merged),
            Err(failure) if failure.is_conflict() => {
                handle.refresh().await?;
                if handle.landed(&failure.nonce, read).await?.is_some() {
                    return Ok(merged);
                }
            }
            Err(failure) => {
                let nonce = failure.nonce;
                let error = handle.explain(failure.cause, "commit merged files");
                handle.load().await?;
                if handle.landed(&nonce, read).await?.is_some() {
                    return Ok(merged);
                }
                // An object store may still be working on a request that failed here: then its files must stay.
                if handle.is_out(tried) {
                    forget(handle, &merged).await;
                }
                return Err(error);
            }
        }
    }
    if handle.is_out(tried) {
        forget(handle, &merged).await;
    }
    done.lost += merged.len() as u64;
    done.more = true;
    Ok(Vec::new())
}

async fn forget(handle: &Handle, merged: &[Merged]) {
    for one in merged {
        remove(&handle.store(), &one.adds).await;
    }
}

fn actions(merged: &[Merged]) -> Vec<Action> {
    let removes = merged.iter().flat_map(|one| &one.group.files).filter_map(DataFile::move_out).map(Action::Remove);
    let adds = merged.iter().flat_map(|one| &one.adds).cloned();
    let adds = adds.map(|add| Action::Add(Add { data_change: false, ..add }));
    removes.chain(adds).collect()
}

/// With the names, and as the texts, that Spark writes.
fn metrics(merged: &[Merged]) -> serde_json::Value {
    let adds = || merged.iter().flat_map(|one| &one.adds);
    let removed: u64 = merged.iter().map(|one| one.group.bytes).sum();
    serde_json::json!({
        "numRemovedFiles": merged.iter().map(|one| one.group.files.len()).sum::<usize>().to_string(),
        "numRemovedBytes": removed.to_string(),
        "numAddedFiles": adds().count().to_string(),
        "numAddedBytes": adds().map(|add| add.size).sum::<i64>().to_string(),
    })
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: u64 = 128 << 20;

    #[test]
    fn tiers_grow_eightfold_up_to_half_the_target() {
        for (size, expected) in [
            (0, Some(0)),
            ((1 << 20) - 1, Some(0)),
            (1 << 20, Some(1)),
            ((8 << 20) - 1, Some(1)),
            (8 << 20, Some(2)),
            ((64 << 20) - 1, Some(2)),
            (64 << 20, None),
        ] {
            assert_eq!(tier(size, TARGET), expected, "{size}");
        }
    }

    #[test]
    fn a_tier_is_merged_when_it_is_full_and_not_before() {
        let files = |count: usize, size: u64| vec![size; count];
        assert_eq!(full_tier(&files(15, 1000), TARGET), None);
        assert_eq!(full_tier(&files(16, 1000), TARGET), Some(0));
        assert_eq!(full_tier(&[files(7, 2 << 20), files(15, 1000)].concat(), TARGET), None);
        assert_eq!(full_tier(&[files(8, 2 << 20), files(3, 1000)].concat(), TARGET), Some(1));
        assert_eq!(full_tier(&files(100, 64 << 20), TARGET), None, "large files are left alone");
    }

    /// A table that gets a small file in every batch for a year.
    #[test]
    fn files_stay_few_and_every_byte_is_rewritten_a_few_times() {
        let (mut files, mut written, mut rewritten, mut most) = (Vec::new(), 0u64, 0u64, 0);
        for _ in 0..100_000 {
            files.push(100_000u64);
            written += 100_000;
            most = most.max(files.iter().filter(|size| tier(**size, TARGET).is_some()).count());
            let Some(top) = full_tier(&files, TARGET) else { continue };
            let merges = |size: &u64| tier(*size, TARGET).is_some_and(|tier| tier <= top);
            let total: u64 = files.iter().copied().filter(merges).sum();
            files.retain(|size| !merges(size));
            files.push(total);
            rewritten += total;
        }
        assert!(most <= FEW_TINY + 2 * FEW, "{most} small files at once");
        let times = rewritten as f64 / written as f64;
        assert!(times < 5.0, "every byte was rewritten {times:.1} times");
    }
}
