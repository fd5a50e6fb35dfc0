//! Maintenance between two batches: never beside one, never in the way of one for long, and never a reason to stop.

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::{Runner, app_id};
use crate::model::batch::CommitRecord;
use crate::table::maintain::{Compaction, Depth, Vacuum};

/// Share of a batch's own time that maintenance may take when the next batch is due at once.
const SHARE: u32 = 5;

/// What maintenance may take in any case: enough for a handful of small files.
const LEAST: Duration = Duration::from_millis(200);

/// Bytes read in one pass over one table.
const PASS_BYTES: u64 = 256_000_000;

/// Old files are looked for this often, and deleted for this long at a time.
const VACUUM_EVERY: Duration = Duration::from_secs(24 * 3600);
const VACUUM_FOR: Duration = Duration::from_secs(10);

impl Runner {
    /// Looks after the tables once a batch is done; `idle` is the time until the next one is due. What is not finished
    /// is taken up after the next batch. Whatever goes wrong is told and left: the batch is done, and no row depends
    /// on this.
    pub(super) async fn maintain(&mut self, record: &CommitRecord, idle: Duration) {
        let batch = record.duration_ms.get("triggerExecution").copied().unwrap_or_default();
        let budget = (Duration::from_millis(batch) / SHARE).max(idle / 2).max(LEAST);
        let until = Instant::now() + budget;
        let now = self.parts.clock.now();
        let count = self.parts.tables.len();
        // Another table comes first each time, so that a busy one does not eat the others' share.
        self.turn = self.turn.wrapping_add(1);
        for step in 0..count {
            let table = &mut self.parts.tables[(self.turn + step) % count];
            let name = table.definition().name.clone();
            table.tidy_log(now).await;
            let settings = self.parts.spec.maintain.of(&name);
            if settings.compact && (step == 0 || Instant::now() < until) {
                let order = Compaction {
                    depth: Depth::Tiered,
                    target_bytes: settings.target_bytes,
                    max_bytes: PASS_BYTES,
                    until: Some(until),
                    dry_run: false,
                };
                match table.compact(&order).await {
                    Ok(done) => {
                        if let Some(why) = &done.skipped {
                            debug!(table = name, why, "not compacted");
                        }
                        if done.files_removed > 0 {
                            let (from, to) = (done.files_removed, done.files_added);
                            info!(table = name, from, to, bytes = done.bytes_removed, "small files merged");
                        }
                    }
                    Err(error) => warn!(table = name, error = %error.report(), "small files were not merged"),
                }
            }
            if let Some(retain) = settings.vacuum {
                let order = Vacuum {
                    now,
                    retain,
                    force: false,
                    every: Some(VACUUM_EVERY),
                    app_id: app_id(&self.parts.pipeline_id, &name),
                    keep_versions: Vec::new(),
                    dry_run: false,
                    until: Some(Instant::now() + VACUUM_FOR),
                };
                match table.vacuum(&order).await {
                    Ok(None) => {}
                    Ok(Some(done)) => match done.skipped {
                        Some(why) => warn!(table = name, why, "old files were not deleted"),
                        None => {
                            let files = done.expired + done.orphans;
                            info!(table = name, files, bytes = done.bytes, "old files deleted");
                        }
                    },
                    Err(error) => warn!(table = name, error = %error.report(), "old files were not deleted"),
                }
            }
        }
    }
}
