//! What a run does beside its batches, for those who watch it: offsets for lag tools, and a warning before the source
//! deletes what is not read yet. Nothing here is ever read back, and nothing here stops a run.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};

use super::Runner;
use super::event::Event;
use crate::fail;
use crate::model::batch::BatchId;
use crate::model::lag::{Headroom, Lag, measure, worth_a_warning};
use crate::model::offset::Offsets;
use crate::source::lag::sight;

/// A look at the source's retention costs a client or two: seldom, and often enough to be heard in time.
fn look_every() -> TimeDelta {
    TimeDelta::minutes(10)
}

/// A run that comes this long after the last batch looks at once; otherwise it looks when one batch was not enough.
fn long_ago() -> TimeDelta {
    TimeDelta::hours(1)
}

/// What was done so far.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// The newest batch whose offsets lag tools were told in this run.
    acknowledged: Option<BatchId>,
    /// When the source's retention was last looked at.
    looked: Option<DateTime<Utc>>,
}

impl Runner {
    /// Copies the offsets of the last finished batch to wherever lag tools look, once: after every batch, and by a run that
    /// finds nothing to read, because an earlier one may have died in between.
    pub(super) async fn acknowledge(&mut self) {
        let Some(last) = self.position.as_ref().and_then(|position| position.last.clone()) else { return };
        if self.beside.acknowledged.is_some_and(|batch| batch >= last.batch) {
            return;
        }
        self.beside.acknowledged = Some(last.batch);
        for (name, source) in &mut self.parts.sources {
            if let Some(offsets) = last.offsets.get(name)
                && fail::hit(fail::ACK).is_ok()
            {
                source.acknowledge(offsets).await;
            }
        }
    }

    /// Tells of unread records that the source is about to delete.
    pub(super) async fn watch_headroom(&mut self, ends: &BTreeMap<String, Offsets>) {
        let now = self.parts.clock.now();
        let Some(position) = &self.position else { return };
        let is_late = position.last.as_ref().is_none_or(|last| now - last.committed_at > long_ago());
        let is_due = match self.beside.looked {
            Some(looked) => now - looked >= look_every(),
            None => is_late || self.beside.acknowledged.is_some(),
        };
        if !is_due || self.lag(ends).values().all(|offsets| *offsets == 0) {
            return;
        }
        self.beside.looked = Some(now);
        let positions = position.offsets.clone();
        let mut nearest: Vec<Lag> = Vec::new();
        for (name, source) in &mut self.parts.sources {
            let Some(at) = positions.get(name) else { continue };
            match sight(&mut **source, at).await {
                Ok(seen) => {
                    let near = measure(&seen, now).into_iter().filter(|lag| {
                        let warned = worth_a_warning(seen.retention.get(&lag.partition.topic));
                        matches!(lag.headroom, Headroom::Left(left, _) if left < warned)
                    });
                    nearest.extend(near.min_by_key(|lag| lag.headroom.left()));
                }
                // The batch that follows says what is wrong with the source, if anything is.
                Err(error) => tracing::debug!(%error, source = name, "how long records stay is not known"),
            }
        }
        for lag in nearest {
            self.emit(Event::HeadroomLow(Box::new(lag)));
        }
    }
}
