//! Letters of rows that left a table later than the interval's letters were written.
//!
//! The letters come from the live batches that there were when they were written; each table is pinned at its own time, and
//! may have taken a later batch. Of that one, an append table loses the rows that the live run let pass and this run does
//! not: without a letter they would be nowhere. So when all tables are written, the letters of what each of them has taken
//! are looked for once more, under a number of their own, and those that are not there are added.

use std::collections::HashSet;

use super::apply::{PAUSE, TRIES, busy};
use super::derive::{Window, as_records};
use super::lineage::{find, is_bronze};
use super::{Backfill, COURTESY, COURTESY_STEP};
use crate::config::spec::WriteSpec;
use crate::error::{Error, ErrorKind, Result};
use crate::fail;
use crate::model::backfill::{BackfillPlan, BackfillRecord};
use crate::model::batch::BatchId;
use crate::model::letter::Status;
use crate::table::{Change, Txn};
use crate::transform::dead_letter;

/// The column that names a dead letter: the same in every run.
pub(super) const DEAD_ID: &str = "dlq_id";

impl Backfill {
    /// Adds the letters of rows that the tables have taken and the letters have not. No budget is asked: the rows are out of
    /// the tables already.
    pub(super) async fn catch_up(&mut self, plan: &BackfillPlan, record: &mut BackfillRecord) -> Result<()> {
        let Some(dead_letters) = self.parts.spec.dead_letters.as_ref().map(|dead| dead.table.clone()) else {
            return Ok(());
        };
        let ahead = self.ahead(&dead_letters, plan);
        let Some(newest) = ahead.iter().filter_map(|(_, window)| window.upto).max() else { return Ok(()) };
        let (mut dead, mut records, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        for (name, window) in ahead {
            dead.extend(self.derive(&name, window, plan).await?.dead.iter().cloned());
            let lineage = self.lineage(&name)?;
            if seen.insert((lineage.bronze.clone(), window)) {
                records.extend(as_records(&self.bronze_rows(&lineage, window).await?)?);
            }
        }
        if !dead.is_empty() {
            self.wait_for(&dead_letters, newest).await?;
            let rows = vec![dead_letter::rows(&dead, &records, &self.context(plan))?];
            let except = ("status".to_string(), Status::Replayed.as_str().to_string());
            let change = Change::Missing { column: DEAD_ID.to_string(), except, rows };
            self.add_late(&dead_letters, change, newest, plan, record).await?;
        }
        Ok(())
    }

    /// The tables that have taken more than the letters, and what each has taken.
    fn ahead(&self, dead_letters: &str, plan: &BackfillPlan) -> Vec<(String, Window)> {
        // Not known after a run that died and left no note: then as good as none.
        let letters = self.caps.get(dead_letters).copied().flatten();
        let (mut ahead, mut loses) = (Vec::new(), false);
        for name in &plan.tables {
            let Some(table) = find(&self.parts.spec, name).filter(|table| !is_bronze(table)) else { continue };
            let Some(upto) = self.caps.get(name).copied().flatten() else { continue };
            if matches!(table.write, WriteSpec::Refresh { .. }) {
                continue;
            }
            // All rows of the interval were replaced, of which a correction has looked at the new ones only: what a lookup
            // says of the others may have changed.
            let is_whole = table.write == WriteSpec::Append && plan.since.is_some();
            if Some(upto) > letters || is_whole {
                let since = if is_whole { None } else { plan.since };
                loses |= table.write == WriteSpec::Append;
                ahead.push((name.clone(), Window { since, after: plan.since_time, upto: Some(upto) }));
            }
        }
        // Rows leave append tables only; what an upsert holds stays, and the next correction looks at it.
        if loses { ahead } else { Vec::new() }
    }

    /// Until the live run has set aside what it does of a batch: the same letter written before would be there twice. Where
    /// letters are the last thing of a batch, tables have it before.
    async fn wait_for(&mut self, dead_letters: &str, batch: BatchId) -> Result<()> {
        let mut left = COURTESY;
        loop {
            let applied = self.pin(dead_letters).await?.applied;
            let head = self.parts.live.head().await?;
            // A table that batches went without for a while does not name them.
            if applied.max(head.commit.map(|record| record.batch)) >= Some(batch) {
                return Ok(());
            }
            let is_at_work = head.plan.is_some_and(|plan| (self.parts.is_alive)(&plan.owner, &self.parts.owner));
            if !is_at_work || left.is_zero() {
                let text = format!(
                    "batch {batch} of the live run is not finished: tables that were derived have it, and {dead_letters} has not"
                );
                return Err(Error::new(ErrorKind::Busy, text)
                    .help("the interval is not done: rows that were set aside are in no table and have no letter yet")
                    .help(
                        "once the live run has finished it (where none is under way: tidegate run FILE --trigger once), the \
                         same command with --resume finishes the interval",
                    ));
            }
            tokio::time::sleep(COURTESY_STEP).await;
            left = left.saturating_sub(COURTESY_STEP);
        }
    }

    async fn add_late(
        &mut self,
        dead_letters: &str,
        change: Change,
        newest: BatchId,
        plan: &BackfillPlan,
        record: &mut BackfillRecord,
    ) -> Result<()> {
        let app_id = format!("{}:late", self.app_id(dead_letters));
        for attempt in 1..=TRIES {
            self.give_way().await?;
            let turn = self.parts.turns.table(dead_letters);
            let _turn = turn.lock().await;
            let pin = self.table(dead_letters)?.pin(&app_id).await?;
            // They need no number: whoever adds them again finds them there.
            let batch = pin.applied.map_or(0, |applied| applied + 1);
            let txn = Txn { app_id: app_id.clone(), batch, ..self.txn(dead_letters, plan, Some(newest)) };
            fail::hit(fail::APPLY)?;
            let applied = self.table(dead_letters)?.apply_at(change.clone(), &txn, &pin).await;
            if let Some(receipt) = applied.map_err(|error| error.with("table", dead_letters))? {
                fail::hit(fail::APPLIED)?;
                record.dead_letters += receipt.inserted;
                let total = record.receipts.entry(dead_letters.to_string()).or_default();
                total.inserted += receipt.inserted;
                total.files_added += receipt.files_added;
                total.delta_version = receipt.delta_version;
                return Ok(());
            }
            tracing::debug!(table = dead_letters, attempt, "somebody else was first; the letters are looked for again");
            tokio::time::sleep(PAUSE * attempt.min(20)).await;
        }
        Err(busy(dead_letters))
    }
}
