//! Old files of tables that held what is forgotten: deleted at once, and with a receipt.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::compose::{self, Checked};
use super::say;
use crate::checkpoint::log::ObjectLog;
use crate::checkpoint::{CheckpointLog, Identity};
use crate::config::spec::PipelineSpec;
use crate::error::Result;
use crate::fail;
use crate::model::forget::Owed;
use crate::runner::clock::{Clock, SystemClock};
use crate::runner::forget::files_receipt_name;
use crate::table::maintain::{Vacuum, Vacuumed};

/// Deletes the old files of these tables, and those that earlier commands were to delete. `None` = there was nothing to do.
pub(super) async fn delete(
    checked: &Checked,
    identity: &Identity,
    log: &ObjectLog,
    asked: &BTreeSet<&String>,
) -> Result<Option<BTreeMap<String, Vacuumed>>> {
    let owed = unpaid(log).await?;
    let chosen: BTreeSet<&String> = owed.iter().flat_map(|owed| &owed.tables).chain(asked.iter().copied()).collect();
    if chosen.is_empty() {
        return Ok(None);
    }
    let vacuumed = vacuum(checked, identity, &chosen).await?;
    for owed in &owed {
        pay(log, &checked.spec, owed, &vacuumed).await?;
    }
    Ok(Some(vacuumed))
}

/// Old files that are still to be deleted: of what has a receipt already, only the note is left.
pub(super) async fn unpaid(log: &ObjectLog) -> Result<Vec<Owed>> {
    let mut unpaid = Vec::new();
    for owed in log.owed_files().await? {
        if log.receipt(&files_receipt_name(owed.batch)).await?.is_none() {
            unpaid.push(owed);
        }
    }
    Ok(unpaid)
}

/// The receipt of the files that were owed for a batch. What had to be left alone stays owed.
async fn pay(log: &ObjectLog, spec: &PipelineSpec, owed: &Owed, vacuumed: &BTreeMap<String, Vacuumed>) -> Result<()> {
    let of_it = vacuumed.iter().filter(|(name, _)| owed.tables.contains(name));
    let of_it: BTreeMap<String, Vacuumed> = of_it.map(|(name, done)| (name.clone(), done.clone())).collect();
    if of_it.values().any(|done| done.skipped.is_some()) {
        return Ok(());
    }
    log.keep_receipt(&files_receipt_name(owed.batch), &say::files(spec, Some(owed.batch), &of_it)).await?;
    fail::hit(fail::COMMITTED)?;
    log.paid_files(owed.batch).await
}

/// Deletes the old files of the tables that held the person, whatever their age: the batch is done, and nobody else works.
async fn vacuum(
    checked: &Checked,
    identity: &Identity,
    chosen: &BTreeSet<&String>,
) -> Result<BTreeMap<String, Vacuumed>> {
    let mut done = BTreeMap::new();
    for mut table in compose::open_tables(checked, identity)? {
        let name = table.definition().name.clone();
        if !chosen.contains(&name) {
            continue;
        }
        let order = Vacuum {
            // Files that the batch took out a moment ago are older than this.
            now: SystemClock.now() + Duration::from_millis(2),
            retain: Duration::ZERO,
            force: true,
            every: None,
            app_id: String::new(),
            keep_versions: Vec::new(),
            dry_run: false,
            until: None,
        };
        let vacuumed = table.vacuum(&order).await.map_err(|error| error.with("table", &name))?;
        done.insert(name, vacuumed.unwrap_or_default());
    }
    Ok(done)
}
