//! Looks back through a table's log for the batches it carries.

use serde_json::Value;

use super::handle::Handle;
use super::others;
use super::schema::made_by;
use crate::error::Result;
use crate::model::batch::BatchId;
use crate::storage::Storage;
use crate::table::Maker;
use crate::table::trace::{Carrier, Trace};

/// The last batch and the one before it: a crash falls between two batches.
const CARRIERS: usize = 2;

pub(in crate::table) async fn maker(lake: &Storage, name: &str) -> Result<Option<Maker>> {
    let mut handle = Handle::new(lake.join(&name.replace('.', "/"))?);
    handle.load().await?;
    Ok(handle.state().and_then(made_by))
}

pub(in crate::table) async fn trace(
    lake: &Storage,
    name: &str,
    app_id: impl Fn(&str) -> String,
) -> Result<Option<Trace>> {
    let mut handle = Handle::new(lake.join(&name.replace('.', "/"))?);
    handle.load().await?;
    let (Some(state), Some(version)) = (handle.state(), handle.version()) else { return Ok(None) };
    let mut trace = Trace { version, maker: made_by(state), ..Trace::default() };
    let Some(maker) = &trace.maker else { return Ok(Some(trace)) };
    let app_id = app_id(&maker.pipeline_id);
    trace.applied = handle.applied(&app_id).await?;
    trace.restored = trace.applied.is_some() && others::since(&handle, &app_id).await?.went_back;
    if trace.applied.is_some() {
        for version in (0..=version).rev() {
            // Older entries may have been cleaned up.
            let Some(entry) = handle.entry(version).await? else { break };
            if let Some((batch, note)) = carried(&entry, &app_id) {
                trace.carriers.push(Carrier { version, batch, note });
            }
            if trace.carriers.len() == CARRIERS {
                break;
            }
        }
    }
    let mut memory = Handle::new(lake.join(&format!("_tidegate/deletes/{}", name.replace('.', "/")))?);
    memory.load().await?;
    trace.memory = memory.version();
    trace.memory_harmed = others::harmed(&memory).await?;
    Ok(Some(trace))
}

/// The batch of `app_id` that a commit carries, and its note.
pub(super) fn carried(entry: &[u8], app_id: &str) -> Option<(BatchId, Option<String>)> {
    let (mut batch, mut note) = (None, None);
    for line in entry.split(|byte| *byte == b'\n') {
        // Data files are most of a commit, and say nothing about batches.
        let head = &line[..line.len().min(32)];
        let names = |action: &[u8]| head.windows(action.len()).any(|window| window == action);
        if !names(b"\"txn\"") && !names(b"\"commitInfo\"") {
            continue;
        }
        let Ok(action) = serde_json::from_slice::<Value>(line) else { continue };
        if action["txn"]["appId"] == app_id {
            batch = action["txn"]["version"].as_i64();
        }
        if let Some(text) = action["commitInfo"]["userMetadata"].as_str() {
            note = Some(text.to_owned());
        }
    }
    batch.map(|batch| (batch, note))
}
