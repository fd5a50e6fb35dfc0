//! The embedded generator: data without a broker, the same for ever.
//!
//! A record is a pure function of (spec, partition, offset); see [`orders`]. So any range can be read again, by any
//! process, and nothing is kept.
//!
//! With `rate`, records become readable as time passes: `end` is the highest position seen, plus `rate` times the
//! seconds since the source was opened, plus one second's worth (so that a short run has something to do). Only *when*
//! a record can be read depends on the clock, never what is in it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::rows::Rows;
use super::{Bounded, Limits, Read, Source, blocking, loss};
use crate::config::spec::GenerateSpec;
use crate::error::{Error, Result};
use crate::model::offset::{Incarnations, Offset, OffsetRanges, Offsets, Partition};

pub mod orders;

/// Room of one record, key and value, on the safe side: what turns `max_bytes` into rows.
const RECORD_BYTES: u64 = 256;

/// The generator as a source.
pub struct GenerateSource {
    data: Arc<orders::Orders>,
    spec: GenerateSpec,
    elapsed: Box<dyn Fn() -> Duration + Send + Sync>,
    /// Highest position asked for, per partition: a restarted run goes on from there.
    floor: Vec<Offset>,
}

impl GenerateSource {
    /// A generator whose `rate` counts from now.
    pub fn new(spec: GenerateSpec) -> Result<Self> {
        let opened = Instant::now();
        Self::with_clock(spec, move || opened.elapsed())
    }

    /// A generator whose `rate` counts the time that `elapsed` tells.
    pub fn with_clock(spec: GenerateSpec, elapsed: impl Fn() -> Duration + Send + Sync + 'static) -> Result<Self> {
        if spec.dataset != "orders" {
            return Err(Error::config(format!("there is no data set `{}` to generate", spec.dataset))
                .help("the one there is: `dataset: orders`"));
        }
        if spec.rows.is_none() && spec.rate.is_none() {
            return Err(Error::config("a generator without `rows` and without `rate` would never end")
                .help("set `rows: 100_000`, or `rate: 1000/s` for an endless one"));
        }
        let floor = vec![0; spec.partitions.max(1) as usize];
        Ok(GenerateSource { data: Arc::new(orders::Orders::new(&spec)), spec, elapsed: Box::new(elapsed), floor })
    }

    fn partitions(&self) -> impl Iterator<Item = Partition> + '_ {
        (0..self.floor.len()).map(|p| Partition::new(&self.spec.dataset, p as i32))
    }

    /// The last offset there will ever be, plus one.
    fn last(&self, partition: &Partition) -> Option<Offset> {
        let known = partition.topic == self.spec.dataset && (0..self.floor.len() as i32).contains(&partition.partition);
        known.then(|| self.data.len(partition.partition as u64))
    }

    fn last_offsets(&self) -> Offsets {
        Offsets(self.partitions().map(|p| (p.clone(), self.data.len(p.partition as u64))).collect())
    }

    fn zero(&self) -> Offsets {
        Offsets(self.partitions().map(|p| (p, 0)).collect())
    }

    fn check(&self, from: &Offsets) -> Result<()> {
        let now = loss::Now::anonymous(self.zero(), self.last_offsets());
        match loss::find(from, &Incarnations::new(), &now).first() {
            None => Ok(()),
            Some(lost) => Err(Error::new(crate::error::ErrorKind::OffsetsLost, lost.message())
                .help("`rows` or `partitions` of the generator were lowered: restore them, or use a new checkpoint")),
        }
    }
}

#[async_trait]
impl Source for GenerateSource {
    fn description(&self) -> String {
        format!("generate[{}]", self.spec.dataset)
    }

    async fn start(&mut self) -> Result<Offsets> {
        Ok(self.zero())
    }

    async fn end(&mut self) -> Result<Offsets> {
        let Some(rate) = self.spec.rate else { return Ok(self.last_offsets()) };
        let seconds = (self.elapsed)().as_secs_f64() + 1.0;
        let due = (rate * seconds / self.floor.len() as f64) as Offset;
        let end = self.partitions().map(|partition| {
            let last = self.data.len(partition.partition as u64);
            let end = self.floor[partition.partition as usize].saturating_add(due).min(last);
            (partition, end)
        });
        Ok(Offsets(end.collect()))
    }

    async fn earliest(&mut self) -> Result<Offsets> {
        Ok(self.zero())
    }

    async fn bound(&mut self, from: &Offsets, _: &Incarnations, end: &Offsets, limits: Limits) -> Result<Bounded> {
        self.check(from)?;
        if self.spec.rate.is_some() && self.floor.iter().all(|&floor| floor == 0) {
            // The first position seen is where the run goes on from; later ones only follow `end`.
            for (partition, &at) in &from.0 {
                self.floor[partition.partition as usize] = at;
            }
        }
        let rows = limits.max_rows.min(limits.max_bytes / RECORD_BYTES).max(1);
        let mut ranges = from.ranges_to(end);
        for (partition, range) in &mut ranges.0 {
            range.until = range.until.min(self.last(partition).unwrap_or(range.from)).max(range.from);
        }
        Ok(ranges.prorate(rows).into())
    }

    async fn read(&mut self, ranges: &OffsetRanges, _: &Incarnations) -> Result<Read> {
        let ends = ranges.0.iter().filter(|(_, range)| !range.is_empty());
        self.check(&Offsets(ends.map(|(partition, range)| (partition.clone(), range.until)).collect()))?;
        let (data, ranges) = (self.data.clone(), ranges.clone());
        blocking(move || {
            let mut batches = Vec::new();
            let (mut key, mut value) = (Vec::new(), Vec::new());
            for (partition, range) in ranges.0 {
                let number = partition.partition as u64;
                let mut rows = Rows::new(partition);
                for offset in range.from..range.until {
                    let timestamp = data.write(number, offset as u64, &mut key, &mut value);
                    rows.push(offset, Some(timestamp), Some(&key), Some(&value), None)?;
                }
                batches.extend(rows.finish()?);
            }
            Ok(batches.into())
        })
        .await
    }

    async fn acknowledge(&mut self, _offsets: &Offsets) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The default of the tests: 100k rows, nothing odd.
    pub(super) fn spec() -> GenerateSpec {
        GenerateSpec {
            dataset: "orders".into(),
            rows: Some(100_000),
            partitions: 4,
            rate: None,
            seed: 7,
            dirty: 0.0,
            late: 0.0,
            duplicates: 0.0,
            out_of_order: 0.0,
        }
    }

    #[tokio::test]
    async fn a_rate_opens_offsets_as_time_passes_and_a_restart_goes_on_from_its_position() {
        let spec = GenerateSpec { rate: Some(400.0), rows: None, ..spec() };
        let mut source = GenerateSource::with_clock(spec, || Duration::from_secs(9)).expect("source");
        assert!(source.end().await.expect("end").0.values().all(|&end| end == 1000));
        let from = Offsets(source.zero().0.into_keys().map(|p| (p, 5000)).collect());
        let end = source.end().await.expect("end");
        let limits = Limits { max_rows: 10, max_bytes: 1 << 20 };
        assert!(source.bound(&from, &Incarnations::new(), &end, limits).await.expect("bound").ranges.is_empty());
        assert!(source.end().await.expect("end").0.values().all(|&end| end == 6000));
    }

    #[tokio::test]
    async fn fewer_rows_than_the_checkpoint_are_a_loss() {
        let mut source = GenerateSource::new(GenerateSpec { rows: Some(10), ..spec() }).expect("source");
        let end = source.end().await.expect("end");
        assert_eq!(end.0.values().sum::<i64>(), 10);
        let from = Offsets(end.0.into_keys().map(|p| (p, 99)).collect());
        let lost = source.bound(&from, &Incarnations::new(), &from, Limits { max_rows: 1, max_bytes: 1 }).await;
        let lost = lost.expect_err("lost");
        assert_eq!(lost.kind(), crate::error::ErrorKind::OffsetsLost);
    }

    #[test]
    fn an_endless_generator_needs_a_rate() {
        let refused = GenerateSource::new(GenerateSpec { rows: None, ..spec() }).err().expect("refused");
        assert_eq!(refused.kind(), crate::error::ErrorKind::Config);
    }
}
