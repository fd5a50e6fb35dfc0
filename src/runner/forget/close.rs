//! What is left when a batch that forgets is done: its receipt, and old files that are to go. Then the key goes.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tracing::warn;

use super::super::Runner;
use crate::config::spec::SHORTEST_RETENTION;
use crate::error::Result;
use crate::model::batch::{BatchId, BatchPlan, CommitRecord, FORMAT_VERSION};
use crate::model::forget::{Forget, Key, Owed};
use crate::model::recover::Decision;
use crate::table::Traces;

impl Runner {
    /// What earlier commands have left is put in order before anything else: the receipt of a batch that is done, and keys
    /// that no batch needs. What is pending keeps its key.
    pub(in crate::runner) async fn close_earlier(
        &mut self,
        decision: &Decision,
        plan: Option<&BatchPlan>,
        record: Option<&CommitRecord>,
    ) -> Result<()> {
        match (decision, plan, record) {
            (Decision::Replay(plan), _, _) => {
                let needed = plan.forget.as_ref().map(|what| what.digest.clone());
                self.parts.log.forget_keys(needed.as_deref()).await
            }
            (Decision::Plan { .. }, Some(plan), Some(record)) if plan.forget.is_some() => {
                self.close_forget(plan, record).await?;
                self.parts.log.forget_keys(None).await
            }
            _ => self.parts.log.forget_keys(None).await,
        }
    }

    /// After a batch that forgets is done: its receipt, what is still to be done about files, and then the key goes. Again
    /// at the next start if a crash came first.
    pub(in crate::runner) async fn close_forget(&mut self, plan: &BatchPlan, record: &CommitRecord) -> Result<()> {
        let Some(what) = &plan.forget else { return Ok(()) };
        if let Some(key) = self.find_key(&what.digest).await? {
            self.tidy_states(plan, record).await?;
            let recomputed = self.recomputed(&what.tables);
            let tables: Vec<String> = what.tables.keys().cloned().chain(recomputed).collect();
            let traces = self.traces(&tables, &what.columns).await?;
            let receipt = self.receipt(plan, what, &key, record, &traces);
            self.parts.log.keep_receipt(&receipt_name(plan.batch), &receipt).await?;
            if what.vacuum {
                let owed = Owed { version: FORMAT_VERSION, batch: plan.batch, tables };
                self.parts.log.owe_files(&owed).await?;
            }
            self.parts.log.forget_keys(None).await?;
            self.forgetting = None;
        }
        Ok(())
    }

    /// A run does not delete files that were asked for by hand, when a crash came in between; but it says so.
    pub(in crate::runner) async fn tell_owed_files(&mut self) -> Result<()> {
        for owed in self.parts.log.owed_files().await? {
            if self.parts.log.receipt(&files_receipt_name(owed.batch)).await?.is_some() {
                self.parts.log.paid_files(owed.batch).await?;
                continue;
            }
            warn!(
                batch = owed.batch,
                tables = owed.tables.join(","),
                "old files that hold what this batch forgot were to be deleted at once, and are still there; any \
                 `tidegate forget FILE --key … --yes` deletes them first"
            );
        }
        Ok(())
    }

    fn receipt(
        &self,
        plan: &BatchPlan,
        what: &Forget,
        key: &Key,
        record: &CommitRecord,
        traces: &BTreeMap<String, Traces>,
    ) -> Value {
        let log = |name: &String| log_json(traces.get(name), record.committed_at);
        let tables = what.tables.iter().map(|(name, counted)| {
            let receipt = record.tables.get(name).cloned().unwrap_or_default();
            // A table that had the batch before a crash does not say again how many rows went.
            let rows = if receipt.already_applied { counted.rows } else { receipt.deleted };
            let mut entry = json!({
                "name": name, "rows": rows, "remembered_deletes": counted.remembered, "version": receipt.delta_version,
                "log": log(name),
            });
            self.say_when_files_leave(&mut entry, name, what, record.committed_at);
            entry
        });
        let recomputed = self.recomputed(&what.tables);
        let recomputed = recomputed.iter().map(|name| {
            let receipt = record.tables.get(name).cloned().unwrap_or_default();
            let count = |rows: u64| if receipt.already_applied { Value::Null } else { rows.into() };
            let mut entry = json!({
                "name": name, "rows_before": count(receipt.deleted), "rows_after": count(receipt.inserted),
                "version": receipt.delta_version, "log": log(name),
            });
            self.say_when_files_leave(&mut entry, name, what, record.committed_at);
            entry
        });
        json!({
            "version": FORMAT_VERSION,
            "pipeline": plan.pipeline,
            "batch": plan.batch,
            "asked_at": plan.batch_time,
            "forgotten_at": record.committed_at,
            "asked_by": plan.owner,
            "finished_by": record.finished_by,
            "key": {
                "columns": what.columns, "salt": key.salt, "sha256": what.digest,
                "how": "SHA-256 over the salt, then column and value of each column in order, each with its length in front \
                        as 8 bytes, big endian",
            },
            "tables": tables.collect::<Vec<_>>(),
            "recomputed": recomputed.collect::<Vec<_>>(),
            "states": what.states,
            "sources": what.sources,
            "notes": [
                "records that a source still holds bring the rows back if they are read again (offsets rewind, a backfill \
                 from the source)",
                "a record that arrives later is a new row",
                "log: in _delta_log, the columns of the key whose values stand in statistics (the smallest and largest of \
                 each file) or name a partition; other columns of the same rows are there, too",
            ],
        })
    }

    fn say_when_files_leave(&self, entry: &mut Value, table: &str, what: &Forget, done: DateTime<Utc>) {
        let retain = self.parts.spec.maintain.of(table).vacuum;
        let (after, by) = match (what.vacuum, retain) {
            (true, _) => (Duration::ZERO, "tidegate forget --vacuum"),
            (false, Some(retain)) => (retain.max(SHORTEST_RETENTION), "a run"),
            (false, None) => (SHORTEST_RETENTION, "tidegate vacuum FILE --yes"),
        };
        entry["files_leave_after"] = (done + after).to_rfc3339().into();
        entry["files_leave_by"] = by.into();
    }
}

/// Which values the log of a table names, and when they leave it.
fn log_json(traces: Option<&Traces>, done: DateTime<Utc>) -> Value {
    let Some(traces) = traces.filter(|traces| !traces.is_nothing()) else { return Value::Null };
    json!({
        "statistics": traces.statistics, "partitions": traces.partitions,
        "retention_days": traces.retention.as_secs().div_ceil(86_400),
        "leaves_after": (done + traces.retention).to_rfc3339(),
        "and_after_commits": traces.newer,
    })
}

/// The name of a batch's receipt.
pub fn receipt_name(batch: BatchId) -> String {
    format!("{batch:020}")
}

/// The name of the receipt of the files that were deleted for a batch.
pub fn files_receipt_name(batch: BatchId) -> String {
    format!("{}-files", receipt_name(batch))
}
