//! What others have committed to a table since the last batch: restores, which take rows of batches away, and writes that
//! change rows. One small object is read when the newest commit carries the batch, as it nearly always does.

use std::collections::BTreeMap;

use futures::future::join_all;
use serde_json::Value;

use super::handle::{Handle, NONCE};
use super::restored::{in_effect, is_behind};
use crate::error::Result;
use crate::model::batch::ForeignWrite;

/// Commits that are read at once: one at first, as the newest nearly always carries the batch, then more and more.
const PAGE: i64 = 32;

/// Writes of others that are named; what they changed beyond that is told by the table's history.
const NAMED: usize = 200;

/// What the commits after the last batch did.
#[derive(Debug, Default)]
pub(super) struct Others {
    /// The table went back behind the commit that carries the last batch, and has not been brought forward again.
    pub(super) went_back: bool,
    /// Commits that changed rows, oldest first.
    pub(super) writes: Vec<ForeignWrite>,
    /// The version that carries the last batch, where a later commit changed the table's schema or properties.
    pub(super) changed_since: Option<i64>,
}

/// Looks through the commits after the one that carries the last batch of `app_id`.
pub(super) async fn since(handle: &Handle, app_id: &str) -> Result<Others> {
    let seen = look(handle, Whose::App(app_id)).await?;
    let mut others = Others { went_back: seen.is_behind(), changed_since: seen.changed_since, writes: seen.writes };
    others.writes.drain(..others.writes.len().saturating_sub(NAMED));
    Ok(others)
}

/// Whether others took rows away from, or changed rows of, a table that only tidegate writes to, since tidegate's last
/// batch in it. What a restore has undone does not count.
pub(super) async fn harmed(handle: &Handle) -> Result<bool> {
    let seen = look(handle, Whose::Ours).await?;
    let Some(in_effect) = in_effect(&seen.restores, seen.oldest, seen.newest) else { return Ok(true) };
    let counts = |write: &ForeignWrite| in_effect.iter().any(|versions| versions.contains(&write.version));
    Ok(seen.writes.iter().any(counts))
}

/// Whether no commit after version `after`, up to and with `until`, changed a row or the table's definition.
pub(super) async fn are_without_rows(handle: &Handle, after: i64, until: i64) -> Result<bool> {
    // Somebody who was away that long looks at the rows again.
    if until < after || until - after > PAGE {
        return Ok(false);
    }
    for version in after + 1..=until {
        match handle.entry(version).await? {
            Some(entry) if is_without_rows(&entry) => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// Whether a commit is known to leave every row and the table's definition as they are: it notes batches, or puts the same
/// rows into other files.
fn is_without_rows(entry: &[u8]) -> bool {
    let is_harmless = |line: &[u8]| {
        let Ok(Value::Object(action)) = serde_json::from_slice::<Value>(line) else { return false };
        action.iter().all(|(kind, action)| match kind.as_str() {
            "commitInfo" => action["operation"] != "RESTORE",
            "txn" => true,
            "add" | "remove" => action["dataChange"] == false,
            _ => false,
        })
    };
    entry.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).all(is_harmless)
}

/// Which commit ends the look back.
#[derive(Clone, Copy)]
enum Whose<'a> {
    /// One that carries a batch of this application id.
    App(&'a str),
    /// One that carries any batch and that tidegate made.
    Ours,
}

/// What was seen from the newest commit back to the one that carries a batch.
struct Seen {
    newest: i64,
    /// The carrier, or the oldest commit that the log still has.
    oldest: i64,
    restores: BTreeMap<i64, Option<i64>>,
    /// Oldest first.
    writes: Vec<ForeignWrite>,
    changed_since: Option<i64>,
}

impl Seen {
    fn is_behind(&self) -> bool {
        is_behind(&self.restores, self.oldest, self.newest)
    }
}

/// Looks back as far as it takes: a restore is found however much was committed after it.
async fn look(handle: &Handle, whose: Whose<'_>) -> Result<Seen> {
    let newest = handle.version().unwrap_or(-1);
    let mut seen = Seen { newest, oldest: newest, restores: BTreeMap::new(), writes: Vec::new(), changed_since: None };
    let (mut next, mut page, mut is_changed) = (newest, 1, false);
    'pages: while next >= 0 {
        let versions: Vec<i64> = ((next + 1 - page).max(0)..=next).rev().collect();
        // All are waited for, also when one fails: dropped halfway, the reader of a log panics.
        let entries = join_all(versions.iter().map(|version| handle.entry(*version))).await;
        for (version, entry) in versions.into_iter().zip(entries) {
            // Older entries may have been cleaned up.
            let Some(entry) = entry? else { break 'pages };
            seen.oldest = version;
            let commit = Commit::parse(&entry, version, whose);
            if commit.carries {
                seen.changed_since = is_changed.then_some(version);
                break 'pages;
            }
            is_changed |= commit.changes_table;
            seen.restores.extend(commit.restored.map(|target| (version, target)));
            seen.writes.extend(commit.write);
        }
        next -= page;
        page = (page * 2).min(PAGE);
    }
    seen.writes.reverse();
    Ok(seen)
}

/// What one commit says about itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct Commit {
    /// It carries a batch of the application id asked for.
    carries: bool,
    /// It is a restore, to the version inside if it was asked for by version.
    restored: Option<Option<i64>>,
    /// It changes schema, properties or protocol.
    changes_table: bool,
    /// Somebody else's rows.
    write: Option<ForeignWrite>,
}

impl Commit {
    /// Looks only at what matters: other writers' commits hold fields that nobody here knows.
    fn parse(entry: &[u8], version: i64, whose: Whose<'_>) -> Commit {
        let mut commit = Commit::default();
        let (mut info, mut changes_rows, mut has_batch) = (Value::Null, false, false);
        for line in entry.split(|byte| *byte == b'\n') {
            let Ok(Value::Object(mut action)) = serde_json::from_slice::<Value>(line) else { continue };
            if let Some(txn) = action.get("txn") {
                if matches!(whose, Whose::App(app_id) if txn["appId"] == app_id) {
                    return Commit { carries: true, ..Commit::default() };
                }
                has_batch = true;
            }
            commit.changes_table |= action.contains_key("metaData") || action.contains_key("protocol");
            let file = action.get("add").or_else(|| action.get("remove"));
            changes_rows |= file.is_some_and(|file| file["dataChange"] != false);
            if let Some(found) = action.remove("commitInfo") {
                info = found;
            }
        }
        if matches!(whose, Whose::Ours) && has_batch && !info[NONCE].is_null() {
            return Commit { carries: true, ..Commit::default() };
        }
        let parameters = &info["operationParameters"];
        if info["operation"] == "RESTORE" {
            commit.restored = Some(number(&parameters["version"]).and_then(|target| i64::try_from(target).ok()));
        }
        // Other work of tidegate on its own table is not a stranger's.
        if changes_rows && info[NONCE].is_null() {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            commit.write = Some(ForeignWrite {
                version,
                operation: text(&info["operation"]).unwrap_or_else(|| "a change without a name".to_owned()),
                engine: text(&info["engineInfo"]).or_else(|| text(&info["clientVersion"])),
                rows: rows(&info["operationMetrics"]),
            });
        }
        commit
    }
}

/// Rows that an operation says it added, changed or removed; Spark and delta-rs name their counts differently.
fn rows(metrics: &Value) -> Option<u64> {
    let sum = |names: &[&str]| {
        let counts: Vec<u64> = names.iter().filter_map(|name| number(&metrics[*name])).collect();
        (!counts.is_empty()).then(|| counts.iter().sum())
    };
    sum(&["numTargetRowsInserted", "numTargetRowsUpdated", "numTargetRowsDeleted"])
        .or_else(|| sum(&["num_target_rows_inserted", "num_target_rows_updated", "num_target_rows_deleted"]))
        .or_else(|| sum(&["numUpdatedRows", "numDeletedRows"]))
        .or_else(|| sum(&["num_updated_rows", "num_deleted_rows"]))
        .or_else(|| sum(&["numOutputRows"]))
        .or_else(|| sum(&["num_added_rows"]))
}

/// A number or, as Spark writes everything, its text.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Commit {
        Commit::parse(text.as_bytes(), 7, Whose::App("us"))
    }

    #[test]
    fn a_commit_says_whose_it_is_and_whether_it_restores() {
        let add = "{\"add\":{\"path\":\"RESTORE\",\"dataChange\":false}}\n";
        let ours = format!("{add}{{\"commitInfo\":{{\"operation\":\"MERGE\"}}}}\n{{\"txn\":{{\"appId\":\"us\"}}}}");
        assert!(parse(&ours).carries);
        assert_eq!(parse("{\"txn\":{\"appId\":\"them\"}}"), Commit::default());
        for (version, target) in [("3", Some(3)), ("\"3\"", Some(3)), ("null", None)] {
            let info = format!(
                "{{\"commitInfo\":{{\"operation\":\"RESTORE\",\"operationParameters\":{{\"version\":{version}}}}}}}\n{add}"
            );
            assert_eq!(parse(&info), Commit { restored: Some(target), ..Commit::default() });
        }
    }

    #[test]
    fn a_write_names_its_operation_its_engine_and_its_rows() {
        let commit = |operation: &str, metrics: &str, change: bool| {
            let write = parse(&format!(
                "{{\"commitInfo\":{{\"operation\":\"{operation}\",\"engineInfo\":\"Apache-Spark/3.5\",\
                 \"operationMetrics\":{{{metrics}}}}}}}\n{{\"remove\":{{\"path\":\"x\",\"dataChange\":{change}}}}}"
            ))
            .write;
            write.map(|write| write.to_string())
        };
        let delete = commit("DELETE", "\"numDeletedRows\":\"12\",\"numCopiedRows\":\"5\"", true);
        assert_eq!(delete.as_deref(), Some("version 7: DELETE by Apache-Spark/3.5 (12 rows)"));
        let merge = commit("MERGE", "\"num_target_rows_inserted\":1,\"num_target_rows_deleted\":2", true);
        assert_eq!(merge.as_deref(), Some("version 7: MERGE by Apache-Spark/3.5 (3 rows)"));
        assert_eq!(commit("WRITE", "", true).as_deref(), Some("version 7: WRITE by Apache-Spark/3.5"));
        assert_eq!(commit("OPTIMIZE", "", false), None, "the same rows in other files");
    }

    #[test]
    fn a_write_without_a_commit_info_or_by_tidegate_itself() {
        let add = "{\"add\":{\"path\":\"x\",\"stats\":\"{\\\"dataChange\\\":false}\",\"dataChange\":true}}\n";
        assert_eq!(parse(add).write.map(|w| w.to_string()).as_deref(), Some("version 7: a change without a name"));
        let ours = format!("{add}{{\"commitInfo\":{{\"operation\":\"WRITE\",\"{NONCE}\":\"1-2\"}}}}");
        assert_eq!(parse(&ours).write, None);
        assert!(parse("{\"metaData\":{\"id\":\"x\"}}").changes_table);
    }
}
