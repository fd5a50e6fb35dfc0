//! Batches of many pipelines share one machine: a batch is read only once there is room for it, and a pipeline that rests
//! gives its readers back. Both are done around the sources, so the runner does not know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard, PoisonError};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};

use crate::error::{Error, Result};
use crate::model::offset::{Incarnations, OffsetRanges, Offsets};
use crate::source::{Bounded, Limits, Read, Source};

/// Room for batches in this process.
#[derive(Clone)]
pub(super) struct Room {
    /// One permit a batch; whoever waits longest is next.
    pub batches: Arc<Semaphore>,
    /// What one batch may hold.
    pub max_bytes: u64,
}

/// A pipeline's place in the room. The permit of a batch is kept until the next batch asks for one or the run ends, so that
/// shaping, writing and maintenance are covered too.
#[derive(Clone)]
pub(super) struct Gate {
    room: Room,
    stop: watch::Receiver<bool>,
    held: Arc<std::sync::Mutex<Held>>,
    sources: Vec<Shared>,
}

#[derive(Default)]
struct Held {
    permit: Option<OwnedSemaphorePermit>,
    /// The sources that were bounded under it: one that comes again begins another batch.
    bounded: BTreeSet<String>,
}

/// An adapter that both its runner and the gate can reach.
type Shared = Arc<Mutex<Box<dyn Source>>>;

impl Gate {
    /// A gate before the sources of a pipeline.
    pub fn new(room: Room, stop: watch::Receiver<bool>) -> Self {
        Gate { room, stop, held: Arc::default(), sources: Vec::new() }
    }

    /// Puts the gate before the sources.
    pub fn guard(&mut self, sources: BTreeMap<String, Box<dyn Source>>) -> BTreeMap<String, Box<dyn Source>> {
        let shared: Vec<(String, String, Shared)> = sources
            .into_iter()
            .map(|(name, source)| (name, source.description(), Arc::new(Mutex::new(source))))
            .collect();
        self.sources = shared.iter().map(|(.., source)| source.clone()).collect();
        let gate = &*self;
        let guard = |(name, description, source): (String, String, Shared)| -> (String, Box<dyn Source>) {
            (name.clone(), Box::new(Guarded { name, description, source, gate: gate.clone(), seen: None }))
        };
        shared.into_iter().map(guard).collect()
    }

    /// Gives the room back; whether there was any.
    pub fn leave(&self) -> bool {
        std::mem::take(&mut *self.held()).permit.is_some()
    }

    /// Nothing is read for a while.
    pub async fn rest(&self) {
        for source in &self.sources {
            source.lock().await.rest().await;
        }
    }

    /// Waits for room for a batch, unless there is some already; `false` = asked to stop before there was any.
    async fn enter(&self, can_stop: bool) -> Result<bool> {
        if self.held().permit.is_some() {
            return Ok(true);
        }
        let mut stop = self.stop.clone();
        let permit = tokio::select! {
            permit = self.room.batches.clone().acquire_owned() => permit,
            _ = stop.wait_for(|stop| *stop), if can_stop => return Ok(false),
        };
        let permit = permit.map_err(|cause| Error::failed("the room for batches is closed").caused_by(cause))?;
        *self.held() = Held { permit: Some(permit), bounded: BTreeSet::new() };
        Ok(true)
    }

    /// A source is bounded. For the second time means for another batch, which waits behind everyone who waits already.
    async fn enter_bounding(&self, source: &str) -> Result<bool> {
        if self.held().bounded.contains(source) {
            self.leave();
        }
        let has_entered = self.enter(true).await?;
        if has_entered {
            self.held().bounded.insert(source.to_string());
        }
        Ok(has_entered)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A source behind the gate.
struct Guarded {
    name: String,
    description: String,
    source: Shared,
    gate: Gate,
    /// Where it was bounded last; what lies behind is news.
    seen: Option<Offsets>,
}

#[async_trait]
impl Source for Guarded {
    fn description(&self) -> String {
        self.description.clone()
    }

    async fn start(&mut self) -> Result<Offsets> {
        self.source.lock().await.start().await
    }

    async fn end(&mut self) -> Result<Offsets> {
        let end = self.source.lock().await.end().await?;
        // Here already, because a wait while it is bounded would count as the batch's own time.
        let has_news = self.seen.as_ref().is_none_or(|seen| !seen.ranges_to(&end).is_empty());
        if has_news {
            self.gate.enter(true).await?;
        }
        Ok(end)
    }

    async fn earliest(&mut self) -> Result<Offsets> {
        self.source.lock().await.earliest().await
    }

    async fn at(&mut self, time: DateTime<Utc>) -> Result<Offsets> {
        self.source.lock().await.at(time).await
    }

    async fn incarnations(&mut self) -> Result<Incarnations> {
        self.source.lock().await.incarnations().await
    }

    async fn bound(&mut self, from: &Offsets, known: &Incarnations, end: &Offsets, limits: Limits) -> Result<Bounded> {
        // Without news there is nothing to hold, so nothing to wait for; the source still looks for losses.
        let has_news = !from.ranges_to(end).is_empty();
        if has_news && !self.gate.enter_bounding(&self.name).await? {
            return Ok(Bounded { is_refused: true, ..Bounded::default() });
        }
        let limits = Limits { max_bytes: limits.max_bytes.min(self.gate.room.max_bytes), ..limits };
        let bounded = self.source.lock().await.bound(from, known, end, limits).await?;
        self.seen = from.advance(&bounded.ranges).ok();
        Ok(bounded)
    }

    async fn read(&mut self, ranges: &OffsetRanges, known: &Incarnations) -> Result<Read> {
        // A batch that an earlier run began is read without being bounded; it is finished whoever asks to stop.
        self.gate.enter(false).await?;
        self.source.lock().await.read(ranges, known).await
    }

    async fn acknowledge(&mut self, offsets: &Offsets) {
        self.source.lock().await.acknowledge(offsets).await;
    }

    async fn rest(&mut self) {
        self.source.lock().await.rest().await;
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
