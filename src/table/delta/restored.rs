//! RESTORE TABLE, by hand or by another tool: it makes a new version out of an older one's files. The version grows and
//! the batch number stays, so that nothing but the log tells that rows are missing.

use std::collections::BTreeMap;

use serde_json::Value;

use super::handle::{Handle, signed};
use crate::error::Result;

/// Commits of others that are looked through: far more than maintenance makes between two batches.
const LOOK_BACK: i64 = 200;

/// Whether the table went back behind the commit that carries the last batch of `app_id`, and has not been brought
/// forward again. One small object is read when that commit is the newest, as it nearly always is.
pub(super) async fn went_back(handle: &Handle, app_id: &str) -> Result<bool> {
    let Some(newest) = handle.state().map(|state| signed(state.version())) else { return Ok(false) };
    let mut restores = BTreeMap::new();
    let mut oldest = newest;
    for version in (newest.saturating_sub(LOOK_BACK).max(0)..=newest).rev() {
        // Older entries may have been cleaned up.
        let Some(entry) = handle.entry(version).await? else { break };
        oldest = version;
        let commit = Commit::parse(&entry, app_id);
        if commit.ours {
            break;
        }
        if let Some(target) = commit.restored {
            restores.insert(version, target);
        }
    }
    Ok(is_behind(&restores, oldest, newest))
}

/// Follows restores from the `newest` version to the one whose files it has, and compares that with `carrier`, the
/// version that carries the last batch. A restore to the carrier or later undoes one that went further back.
fn is_behind(restores: &BTreeMap<i64, Option<i64>>, carrier: i64, newest: i64) -> bool {
    let mut at = newest;
    loop {
        match restores.range(..=at).next_back() {
            None => return false,
            Some((version, Some(target))) if (carrier..*version).contains(target) => at = *target,
            // Further back, or to a point in time: that may be anywhere.
            Some(_) => return true,
        }
    }
}

/// What one commit says about itself.
#[derive(Debug, PartialEq, Eq)]
struct Commit {
    /// It carries a batch of the application id asked for.
    ours: bool,
    /// It is a restore, to the version inside if it was asked for by version.
    restored: Option<Option<i64>>,
}

impl Commit {
    /// Looks at nothing but the two actions that matter: other writers' commits hold fields that nobody here knows.
    fn parse(entry: &[u8], app_id: &str) -> Commit {
        let mut commit = Commit { ours: false, restored: None };
        for line in entry.split(|byte| *byte == b'\n') {
            let head = &line[..line.len().min(32)];
            let names = |action: &[u8]| head.windows(action.len()).any(|window| window == action);
            if !names(b"\"txn\"") && !names(b"\"commitInfo\"") {
                continue;
            }
            let Ok(action) = serde_json::from_slice::<Value>(line) else { continue };
            if action["txn"]["appId"] == app_id {
                commit.ours = true;
            }
            if action["commitInfo"]["operation"] == "RESTORE" {
                let version = &action["commitInfo"]["operationParameters"]["version"];
                // A number or, as Spark writes every parameter, a text.
                let number = || version.as_str().and_then(|text| text.parse().ok());
                commit.restored = Some(version.as_i64().or_else(number));
            }
        }
        commit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_says_whose_it_is_and_whether_it_restores() {
        let parse = |text: &str| Commit::parse(text.as_bytes(), "us");
        let add = "{\"add\":{\"path\":\"RESTORE\"}}\n";
        let ours = format!("{add}{{\"commitInfo\":{{\"operation\":\"MERGE\"}}}}\n{{\"txn\":{{\"appId\":\"us\"}}}}");
        assert_eq!(parse(&ours), Commit { ours: true, restored: None });
        assert_eq!(parse("{\"txn\":{\"appId\":\"them\"}}"), Commit { ours: false, restored: None });
        for (version, target) in [("3", Some(3)), ("\"3\"", Some(3)), ("null", None)] {
            let info = format!(
                "{{\"commitInfo\":{{\"operation\":\"RESTORE\",\"operationParameters\":{{\"version\":{version}}}}}}}\n{add}"
            );
            assert_eq!(parse(&info), Commit { ours: false, restored: Some(target) });
        }
    }

    #[test]
    fn a_restore_is_undone_by_one_to_the_last_batch_or_later() {
        let behind =
            |restores: &[(i64, Option<i64>)], newest| is_behind(&restores.iter().copied().collect(), 5, newest);
        assert!(!behind(&[], 9));
        assert!(behind(&[(6, Some(4))], 6), "back");
        assert!(behind(&[(6, Some(4))], 8), "back, then compacted");
        assert!(behind(&[(6, None)], 6), "to a point in time");
        assert!(!behind(&[(6, Some(4)), (7, Some(5))], 7), "back and forth");
        assert!(!behind(&[(8, Some(6))], 8), "another's compaction was undone");
        assert!(behind(&[(6, Some(4)), (7, Some(5)), (8, Some(6))], 8), "to what the first one made");
    }
}
