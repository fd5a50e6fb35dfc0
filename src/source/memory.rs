//! Records held in memory: what `tidegate test` gives a pipeline in place of its sources.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::rows::Rows;
use super::{Bounded, Limits, Read, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::model::offset::{Incarnations, Offset, OffsetRanges, Offsets, Partition};

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Topic and number.
    pub partition: Partition,
    /// Its place there.
    pub offset: Offset,
    /// UTC microseconds.
    pub timestamp: Option<i64>,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value; `None` = a tombstone.
    pub value: Option<Vec<u8>>,
    /// Headers, in order; `None` = none.
    pub headers: Option<Vec<(String, Option<Vec<u8>>)>>,
}

/// The records as a source. Every partition exists from the start, and begins at its first record.
#[derive(Debug, Clone)]
pub struct MemorySource {
    partitions: BTreeMap<Partition, BTreeMap<Offset, Record>>,
}

impl MemorySource {
    /// A source of these records; of two with the same place the later one counts.
    pub fn new(records: impl IntoIterator<Item = Record>) -> Self {
        let mut partitions: BTreeMap<Partition, BTreeMap<Offset, Record>> = BTreeMap::new();
        for record in records {
            partitions.entry(record.partition.clone()).or_default().insert(record.offset, record);
        }
        MemorySource { partitions }
    }

    fn edge(&self, edge: impl Fn(&BTreeMap<Offset, Record>) -> Option<Offset>) -> Offsets {
        let places =
            self.partitions.iter().map(|(partition, records)| (partition.clone(), edge(records).unwrap_or_default()));
        Offsets(places.collect())
    }
}

#[async_trait]
impl Source for MemorySource {
    fn description(&self) -> String {
        "memory".to_string()
    }

    async fn start(&mut self) -> Result<Offsets> {
        self.earliest().await
    }

    async fn end(&mut self) -> Result<Offsets> {
        Ok(self.edge(|records| records.keys().next_back().map(|last| last + 1)))
    }

    async fn earliest(&mut self) -> Result<Offsets> {
        Ok(self.edge(|records| records.keys().next().copied()))
    }

    async fn bound(&mut self, from: &Offsets, _: &Incarnations, end: &Offsets, limits: Limits) -> Result<Bounded> {
        Ok(from.ranges_to(end).prorate(limits.max_rows).into())
    }

    async fn read(&mut self, ranges: &OffsetRanges, _: &Incarnations) -> Result<Read> {
        let mut batches = Vec::new();
        for (partition, range) in &ranges.0 {
            let records = self.partitions.get(partition).ok_or_else(|| {
                Error::new(ErrorKind::OffsetsLost, format!("there is no partition {partition} in memory"))
            })?;
            let mut rows = Rows::new(partition.clone());
            for (offset, record) in records.range(range.from..range.until) {
                let headers = record
                    .headers
                    .as_ref()
                    .map(|headers| headers.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect());
                rows.push(*offset, record.timestamp, record.key.as_deref(), record.value.as_deref(), headers)?;
            }
            batches.extend(rows.finish()?);
        }
        Ok(batches.into())
    }

    async fn acknowledge(&mut self, _offsets: &Offsets) {}
}
