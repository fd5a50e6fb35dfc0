//! What the rest of the program sees of a pipeline file: every default filled in, every reference resolved, every unit
//! typed. No `Option` here means "default".

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use arrow::datatypes::{DataType, SchemaRef};
use chrono::{DateTime, Utc};

use crate::model::trigger::Schedule;
use crate::model::window::{Emit, Late, Micros, Window};

/// A value that must not be printed. `Debug`, `Display` and `Serialize` show `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Secret(value.into())
    }

    /// The value, for the one call that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl serde::Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// One pipeline, checked.
#[derive(Debug, Clone)]
pub struct PipelineSpec {
    /// Identity of checkpoint, lock and Delta application ids.
    pub name: String,
    /// The file it came from, absolute.
    pub file: PathBuf,
    /// What relative paths in the file start at, absolute.
    pub root: PathBuf,
    /// Folder of the tables: an absolute path or a URL.
    pub lake: String,
    /// Folder of the checkpoint logs; this pipeline's is `<checkpoints>/<name>`: an absolute path or a URL.
    pub checkpoints: String,
    /// For dates, cron and date functions.
    pub timezone: chrono_tz::Tz,
    /// By name; `source:` in the file is the one named `source`.
    pub sources: BTreeMap<String, SourceSpec>,
    /// When batches run, unless the command line says otherwise.
    pub trigger: Schedule,
    /// Offsets per batch and source.
    pub max_rows: u64,
    /// Bytes of keys and values per batch and source.
    pub max_bytes: u64,
    /// Static sides of joins, by name.
    pub lookups: BTreeMap<String, LookupSpec>,
    /// In graph order: a table comes after every table that it reads.
    pub tables: Vec<TableSpec>,
    /// Where rows set aside go; `None` = the user turned it off, and a bad row fails the batch.
    pub dead_letters: Option<DeadLetterSpec>,
    /// What is done to tables between batches.
    pub maintain: MaintainSpec,
}

/// Where rows come from.
#[derive(Debug, Clone)]
pub struct SourceSpec {
    /// Which adapter.
    pub kind: SourceKind,
    /// How values are encoded.
    pub format: Format,
    /// Payload columns in order; empty for `raw`.
    pub columns: Vec<ColumnSpec>,
    /// The column that `--date`, windows and lateness mean.
    pub event_time: Option<String>,
    /// What happens to fields the schema does not name.
    pub schema_drift: SchemaDrift,
    /// What a record with a null value is.
    pub tombstones: Tombstones,
}

/// What a record with a null value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tombstones {
    /// A dead letter.
    Quarantine,
    /// A row: this column holds the record key (UTF-8 text read as the column's type), the event-time column holds the
    /// record's timestamp, every other column is null, and `_tombstone` is true (so that `delete_when: _tombstone`).
    Row {
        /// The column that the record key fills.
        key: String,
    },
}

/// Source adapters.
#[derive(Debug, Clone)]
pub enum SourceKind {
    /// Apache Kafka.
    Kafka(KafkaSpec),
    /// A folder of newline-delimited files.
    Files(FilesSpec),
    /// The embedded generator.
    Generate(GenerateSpec),
}

/// `source.kafka`.
#[derive(Debug, Clone)]
pub struct KafkaSpec {
    /// `bootstrap.servers`.
    pub brokers: String,
    /// Topics by name or by pattern.
    pub topics: TopicSelection,
    /// First run only.
    pub start: StartPosition,
    /// Offsets that are gone.
    pub on_data_loss: OnDataLoss,
    /// Consumer group that offsets are copied to for lag tools.
    pub group: String,
    /// librdkafka settings from `security` and `options`, checked; values that are secret stay wrapped.
    pub settings: BTreeMap<String, Secret>,
}

/// Which topics.
#[derive(Debug, Clone)]
pub enum TopicSelection {
    /// By name.
    Names(Vec<String>),
    /// By regular expression over all topic names.
    Pattern(String),
}

/// Where a first run starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartPosition {
    /// The oldest record kept.
    Earliest,
    /// Records produced from now on.
    Latest,
    /// The first record with a broker timestamp at or after this.
    At(DateTime<Utc>),
}

/// What to do when planned offsets are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDataLoss {
    /// Stop, exit 66.
    Fail,
    /// Record what was lost and go on.
    Skip,
}

/// `source.files`.
#[derive(Debug, Clone)]
pub struct FilesSpec {
    /// Folder, absolute.
    pub path: PathBuf,
    /// Glob over file names, such as `*.ndjson`.
    pub pattern: String,
}

/// `source.generate`.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateSpec {
    /// Data set; `orders` is the one there is.
    pub dataset: String,
    /// Rows over all partitions; `None` = endless (then `rate` bounds it).
    pub rows: Option<u64>,
    /// Number of partitions.
    pub partitions: u32,
    /// Rows per second over all partitions; `None` = all at once.
    pub rate: Option<f64>,
    /// Everything follows from it.
    pub seed: u64,
    /// Share of records that are malformed, 0..=1.
    pub dirty: f64,
    /// Share of records whose event time lies well before their neighbours', 0..=1.
    pub late: f64,
    /// Share of records that repeat an earlier one, 0..=1.
    pub duplicates: f64,
    /// Share of records that swap places with a neighbour, 0..=1.
    pub out_of_order: f64,
}

/// How values are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per record.
    Json,
    /// One CSV line per record, columns in schema order.
    Csv,
    /// No decoding: one column `value` of bytes.
    Raw,
}

/// One payload column.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnSpec {
    /// Field name.
    pub name: String,
    /// Arrow type as stored: Utf8, Binary, Boolean, Int8..Int64, Float32/64, Date32, Decimal128,
    /// Timestamp(Microsecond, Some("UTC")), Struct, List (field `element`).
    pub data_type: DataType,
    /// `not null` was not said.
    pub nullable: bool,
    /// How numbers become timestamps; RFC 3339 text is always read.
    pub unit: Option<EpochUnit>,
}

/// Unit of epoch timestamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpochUnit {
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Millis,
    /// Microseconds.
    Micros,
}

/// What happens to fields that the schema does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaDrift {
    /// Kept as JSON text in the column `_rescued`.
    Rescue,
    /// Added to the table as a string column.
    Evolve,
    /// Left out.
    Ignore,
    /// A dead letter.
    Fail,
}

/// Static side of joins.
#[derive(Debug, Clone)]
pub enum LookupSpec {
    /// A Delta table; pinned to one version per batch. Absolute path or URL.
    Delta(String),
    /// A Parquet file. Absolute path or URL.
    Parquet(String),
    /// A CSV file with a header line. Absolute path or URL.
    Csv(String),
}

/// One table of the pipeline.
#[derive(Debug, Clone)]
pub struct TableSpec {
    /// `silver.orders`.
    pub name: String,
    /// Where its rows come from.
    pub from: From,
    /// The query, `None` = all rows and columns of `from`.
    pub sql: Option<String>,
    /// Which SQL engine.
    pub engine: Engine,
    /// Rules over the query's output, in file order.
    pub expect: Vec<Expectation>,
    /// How rows enter.
    pub write: WriteSpec,
    /// Partition columns.
    pub partition_by: Vec<String>,
    /// A refresh table may be kept by what changed upstream, where that is exact. No part of `write`: it changes no row.
    pub incremental: bool,
    /// What it remembers from batch to batch.
    pub keeps: Option<KeepsSpec>,
}

impl TableSpec {
    /// Every upstream whose rows of the batch it takes.
    pub fn inputs(&self) -> Vec<&From> {
        let right = match self.keeps.as_ref().map(|keeps| &keeps.operator) {
            Some(OperatorSpec::Join(join)) => Some(&join.right),
            _ => None,
        };
        std::iter::once(&self.from).chain(right).collect()
    }

    /// Whether its rows are windows of an aggregate.
    pub fn has_windows(&self) -> bool {
        let operator = self.keeps.as_ref().map(|keeps| &keeps.operator);
        matches!(operator, Some(OperatorSpec::Aggregate(aggregate)) if aggregate.window.is_some())
    }
}

/// What a table remembers from batch to batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepsSpec {
    /// What for.
    pub operator: OperatorSpec,
    /// What is late.
    pub watermark: WatermarkSpec,
    /// Bytes of memory that it may take.
    pub limit: u64,
}

/// What a table's state is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperatorSpec {
    /// `aggregate`.
    Aggregate(AggregateSpec),
    /// `dedupe`.
    Dedupe(DedupeSpec),
    /// `join`.
    Join(JoinSpec),
}

/// `aggregate` and `emit`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AggregateSpec {
    /// How event time is cut; `None` = running totals.
    pub window: Option<Window>,
    /// Group columns.
    pub by: Vec<String>,
    /// Column name and SQL, in file order.
    pub measures: Vec<(String, String)>,
    /// When rows are written.
    pub emit: Emit,
}

/// `dedupe`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DedupeSpec {
    /// Columns that tell rows apart.
    pub key: Vec<String>,
    /// Rows of one key that are less than this apart are the same row.
    pub within: Micros,
}

/// `join`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinSpec {
    /// The other side; the table's `from` is the left one.
    pub right: From,
    /// Columns of both sides.
    pub on: Vec<String>,
    /// How far apart event times may be, either way.
    pub within: Micros,
    /// Left rows without a match come out, too.
    pub outer: bool,
}

/// `watermark`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatermarkSpec {
    /// How much rows may be out of order.
    pub delay: Micros,
    /// What becomes of late rows.
    pub late: Late,
    /// Rows further ahead of the batch's time are not believed.
    pub max_ahead: Micros,
    /// A partition without rows for this long, in the pipeline's time, holds nothing back.
    pub idle: Micros,
    /// Without any rows for this long everything open is closed; `None` = never.
    pub idle_after: Option<Micros>,
    /// The event-time column of each input, in the order of [`TableSpec::inputs`].
    pub columns: Vec<String>,
}

impl WatermarkSpec {
    /// `idle` where the file does not say it.
    pub const IDLE: Micros = 5 * 60 * 1_000_000;
}

/// Upstream of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// A source, by name.
    Source(String),
    /// A table, by name.
    Table(String),
}

/// SQL engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Polars SQL.
    Polars,
    /// DataFusion SQL.
    DataFusion,
}

/// A named rule; a row breaks it when `check` is not true (null is not true).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    /// Name.
    pub name: String,
    /// SQL boolean over the output columns.
    pub check: String,
    /// What happens to rows that break it.
    pub action: Action,
}

/// What happens to rows that break a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Counted.
    Warn,
    /// Counted and left out.
    Drop,
    /// Sent to the dead-letter table.
    Quarantine,
    /// The batch stops, exit 65: before anything is written, or, if the table reads whole tables, before it is.
    Fail,
}

/// How rows enter a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteSpec {
    /// `append`.
    Append,
    /// `upsert`.
    Upsert {
        /// Key columns.
        key: Vec<String>,
        /// Ordering columns, most significant first.
        order_by: Vec<String>,
        /// SQL boolean over the output columns: the row is a delete.
        delete_when: Option<String>,
        /// Output columns that are not stored.
        drop: Vec<String>,
    },
    /// `refresh`.
    Refresh {
        /// Group columns.
        by: Vec<String>,
    },
    /// `aggregate` with `emit: update` or `complete`: rows of touched windows are replaced.
    Windows {
        /// Columns that name a window of a group.
        by: Vec<String>,
    },
}

/// `dead_letters`.
#[derive(Debug, Clone)]
pub struct DeadLetterSpec {
    /// Table name, such as `dlq.orders`.
    pub table: String,
    /// Share of a batch's input rows, 0..=1, above which the batch fails before anything is written. Letters about rows that
    /// windows and joins emit do not count: those may have been read long ago.
    pub fail_above: Option<f64>,
}

/// `maintain`, of the pipeline and of its tables.
#[derive(Debug, Clone, Default)]
pub struct MaintainSpec {
    /// For tables that say nothing.
    pub default: Maintenance,
    /// By table.
    pub tables: BTreeMap<String, Maintenance>,
}

impl MaintainSpec {
    /// For one table.
    pub fn of(&self, table: &str) -> &Maintenance {
        self.tables.get(table).unwrap_or(&self.default)
    }
}

/// What is done to a table between batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maintenance {
    /// Small files are merged.
    pub compact: bool,
    /// Size that files are merged up to.
    pub target_bytes: u64,
    /// Files that no version this young needs are deleted; `None` = nothing is deleted.
    pub vacuum: Option<Duration>,
}

impl Default for Maintenance {
    fn default() -> Self {
        Maintenance { compact: true, target_bytes: 128_000_000, vacuum: None }
    }
}

/// No shorter retention is taken without `--force`: readers, time travel and a pipeline that stood still over a weekend
/// need the files of older versions.
pub const SHORTEST_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// Payload columns as an Arrow schema.
pub fn payload_schema(columns: &[ColumnSpec]) -> SchemaRef {
    let field = |c: &ColumnSpec| arrow::datatypes::Field::new(&c.name, c.data_type.clone(), c.nullable);
    std::sync::Arc::new(arrow::datatypes::Schema::new(columns.iter().map(field).collect::<Vec<_>>()))
}
