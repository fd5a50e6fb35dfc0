//! The source port: ordered, replayable records in partitions.
//!
//! # Contract (one test suite, every adapter: `tests/contract/source.rs`)
//!
//! 1. `read(ranges)` returns exactly the records of those half-open ranges: the same ranges give the same records in the
//!    same order (topic, partition, offset ascending), at any time, in any process. A range that can no longer be
//!    read in full is an error of kind `OffsetsLost`, never a shorter answer.
//! 2. `bound` has no durable effect: calling it and dying loses nothing. It may fetch ahead and keep the records for the
//!    `read` that follows, so its ranges may be cut by bytes as well as by rows.
//! 3. Memory is bounded by `Limits`, however large the backlog.
//! 4. Holes (Kafka control records, aborted transactions, compaction) are not lost rows: a range is complete when the
//!    source has passed its end.

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::config::spec::{SourceKind, SourceSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::model::lag::{Retention, Times};
use crate::model::loss::{Loss, Lost};
use crate::model::offset::{Incarnations, OffsetRanges, Offsets};

pub mod files;
pub mod generate;
pub mod kafka;
pub mod lag;
pub mod loss;
pub mod memory;
pub mod rows;

/// Opens the source called `name` in the pipeline file. Nothing is connected or read until the first question.
pub fn open(name: &str, spec: &SourceSpec) -> Result<Box<dyn Source>> {
    open_within(name, spec, kafka::PATIENCE)
}

/// The same, with another patience for brokers that do not answer.
pub fn open_within(name: &str, spec: &SourceSpec, patience: Duration) -> Result<Box<dyn Source>> {
    Ok(match &spec.kind {
        SourceKind::Kafka(kafka) => Box::new(kafka::KafkaSource::new(kafka.clone(), patience)),
        SourceKind::Files(files) => Box::new(files::FilesSource::new(files.clone())),
        SourceKind::Generate(generate) => {
            Box::new(generate::GenerateSource::new(generate.clone()).map_err(|e| e.with("source", name))?)
        }
    })
}

/// Runs blocking work on its own thread; a panic there is a failure here, not the end of the process.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(cause) => Err(Error::new(ErrorKind::Failed, "the source's thread did not finish").caused_by(cause)),
    }
}

/// How much one batch may read from one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Offsets per batch.
    pub max_rows: u64,
    /// Bytes of keys and values per batch. One record larger than this is still read, alone.
    pub max_bytes: u64,
}

/// What one batch reads from one source.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bounded {
    /// The ranges.
    pub ranges: OffsetRanges,
    /// Why ranges start elsewhere than the position; only ever filled where the user accepts losses.
    pub lost: Vec<Loss>,
    /// Which topics the ranges belong to.
    pub incarnations: Incarnations,
    /// Nothing was looked at: whoever was to read it is asked to stop. Rows may wait.
    pub is_refused: bool,
}

impl From<OffsetRanges> for Bounded {
    fn from(ranges: OffsetRanges) -> Self {
        Bounded { ranges, ..Bounded::default() }
    }
}

/// The records of planned ranges.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Read {
    /// Batches of [`envelope`], in order.
    pub batches: Vec<RecordBatch>,
    /// What of the ranges could no longer be read; only ever filled where the user accepts losses.
    pub lost: Vec<Lost>,
}

impl From<Vec<RecordBatch>> for Read {
    fn from(batches: Vec<RecordBatch>) -> Self {
        Read { batches, lost: Vec::new() }
    }
}

/// Ordered, replayable records in partitions. See the module for the contract.
#[async_trait]
pub trait Source: Send {
    /// One line for logs and progress, such as `kafka[orders.v1]`; never a secret.
    fn description(&self) -> String;

    /// Where a pipeline's first run starts (`start:`), for every partition that exists now. Resolved once; the runner
    /// records it.
    async fn start(&mut self) -> Result<Offsets>;

    /// The end of every partition that exists now: the next offset that a reader with `read_committed` cannot read yet.
    async fn end(&mut self) -> Result<Offsets>;

    /// The earliest readable offset of every partition that exists now. Partitions that appear later start here.
    async fn earliest(&mut self) -> Result<Offsets>;

    /// The first offset of each partition whose record has a timestamp at or after `time`; the end where there is none.
    /// Sources whose records carry no time refuse.
    async fn at(&mut self, time: DateTime<Utc>) -> Result<Offsets> {
        Err(Error::new(
            ErrorKind::Usage,
            format!("{} knows no times: {} names no position in it", self.description(), time.to_rfc3339()),
        )
        .help("name a batch instead: --to batch:N goes to where the pipeline stood right after batch N"))
    }

    /// When the first record at or after each of these offsets was written. Sources whose records carry no time know
    /// nothing.
    async fn times(&mut self, _at: &Offsets) -> Result<Times> {
        Ok(Times::new())
    }

    /// How long records are kept, by topic, as far as the source says.
    async fn retention(&mut self) -> Result<BTreeMap<String, Retention>> {
        Ok(BTreeMap::new())
    }

    /// Which topics there are now, for sources whose names can come to stand for something else.
    async fn incarnations(&mut self) -> Result<Incarnations> {
        Ok(Incarnations::new())
    }

    /// Ranges from `from`, a position in the topics `known`, towards `end`, within `limits`, prorated over partitions by
    /// their backlog.
    ///
    /// Fails with `OffsetsLost` when `from` is before the earliest or after the end of its partition, when a partition
    /// that `from` names is gone, or when its topic is another one than `known` says.
    async fn bound(&mut self, from: &Offsets, known: &Incarnations, end: &Offsets, limits: Limits) -> Result<Bounded>;

    /// The records of exactly `ranges` of the topics `known`, in order.
    async fn read(&mut self, ranges: &OffsetRanges, known: &Incarnations) -> Result<Read>;

    /// Copies `offsets` to wherever lag tools look. Best effort: never read back, errors are logged by the adapter.
    async fn acknowledge(&mut self, offsets: &Offsets);

    /// Nothing is read for a while: gives back what only reading needs (threads, connections, what was fetched ahead). What
    /// the source knows it keeps.
    async fn rest(&mut self) {}
}

/// Columns of the envelope, in order.
pub mod column {
    /// Topic, or file.
    pub const TOPIC: &str = "_topic";
    /// Partition number.
    pub const PARTITION: &str = "_partition";
    /// Offset in the partition.
    pub const OFFSET: &str = "_offset";
    /// Broker timestamp, UTC microseconds; null where the source has none.
    pub const TIMESTAMP: &str = "_timestamp";
    /// Record key.
    pub const KEY: &str = "_key";
    /// Record value; null = tombstone.
    pub const VALUE: &str = "_value";
    /// Record headers; null where there are none.
    pub const HEADERS: &str = "_headers";
}

/// What every source delivers: undecoded records with their coordinates.
pub fn envelope() -> SchemaRef {
    static ENVELOPE: LazyLock<SchemaRef> = LazyLock::new(|| {
        let header =
            Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Binary, true)]);
        Arc::new(Schema::new(vec![
            Field::new(column::TOPIC, DataType::Utf8, false),
            Field::new(column::PARTITION, DataType::Int32, false),
            Field::new(column::OFFSET, DataType::Int64, false),
            Field::new(column::TIMESTAMP, DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
            Field::new(column::KEY, DataType::Binary, true),
            Field::new(column::VALUE, DataType::Binary, true),
            Field::new(
                column::HEADERS,
                DataType::List(Arc::new(Field::new("element", DataType::Struct(header), true))),
                true,
            ),
        ]))
    });
    ENVELOPE.clone()
}
