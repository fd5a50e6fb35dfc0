//! What a pipeline file may say: the types that the JSON Schema is generated from and that a checked tree is read into.
//! Doc comments here are what editors show. Meaning and defaults are `check`'s business.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

/// A tidegate pipeline: sources, tables and when they run. One file is one pipeline.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "tidegate pipeline")]
pub struct RawPipeline {
    /// Version of this format: 1.
    pub version: u32,
    /// Identity of the checkpoint, the lock and the Delta transaction ids. Renaming it makes a new pipeline.
    pub name: String,
    /// Folder of the tables, local or s3://, gs://, abfss://; `silver.orders` lives at `<lake>/silver/orders`. Default: ./lake
    pub lake: Option<String>,
    /// Folder of the checkpoint logs; this pipeline's is `<checkpoints>/<name>`. Default: ./checkpoints
    pub checkpoints: Option<String>,
    /// Timezone for `--date` and date functions, such as Europe/Berlin. Default: UTC
    pub timezone: Option<String>,
    /// The source, named `source`. Several go under `sources`.
    pub source: Option<RawSource>,
    /// Several sources by name; tables say `from: <name>`.
    pub sources: Option<BTreeMap<String, RawSource>>,
    /// When batches run, unless `--trigger` says otherwise. Default: available_now
    pub trigger: Option<RawTrigger>,
    /// Limits of one micro-batch, prorated over partitions by their backlog.
    pub batch: Option<RawBatch>,
    /// Static sides of joins, by the name that SQL uses.
    pub lookups: Option<BTreeMap<String, RawLookup>>,
    /// The tables, a graph by `from`; their order in the file does not matter.
    pub tables: BTreeMap<String, RawTable>,
    /// Where rows that are set aside go: settings, or `off` (then a bad row fails the batch). Default: the table dlq.<name>
    pub dead_letters: Option<RawDeadLetters>,
    /// What is done to the tables between batches; a table's own `maintain` wins.
    pub maintain: Option<RawMaintain>,
    /// Overlays, deep-merged over the rest of the file by `--target <name>`.
    pub targets: Option<BTreeMap<String, BTreeMap<String, serde_json::Value>>>,
    /// Rows in, rows out, without services.
    pub tests: Option<Vec<RawTest>>,
}

/// Where rows come from: exactly one of kafka, files, generate; then how they are encoded.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawSource {
    /// Apache Kafka.
    pub kafka: Option<RawKafka>,
    /// A folder of newline-delimited files; each file is a partition, new files are picked up.
    pub files: Option<RawFiles>,
    /// The embedded generator, for demos and tests.
    pub generate: Option<RawGenerate>,
    /// How values are encoded. Default: json
    pub format: Option<RawFormat>,
    /// Columns of the payload and their Delta types, such as `order_id: string not null`. Order is kept.
    pub schema: Option<BTreeMap<String, RawType>>,
    /// The column that `--date` and lateness mean: a timestamp or date of the schema.
    pub event_time: Option<String>,
    /// What happens to fields that the schema does not name. Default: rescue
    pub schema_drift: Option<RawDrift>,
    /// What a record with a null value is. Default: quarantine
    pub tombstones: Option<RawTombstones>,
}

/// A Kafka source.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawKafka {
    /// Bootstrap servers, host:port.
    pub brokers: OneOrMany,
    /// Topics by name.
    pub topics: Option<OneOrMany>,
    /// Topics by regular expression, instead of `topics`.
    pub pattern: Option<String>,
    /// Where the first run starts: earliest, latest or an RFC 3339 time. Resolved once and recorded. Default: earliest
    pub start: Option<String>,
    /// What to do when planned offsets are gone. Default: fail
    pub on_data_loss: Option<RawDataLoss>,
    /// Consumer group that offsets are copied to for lag tools; never read back. Default: tidegate-<name>
    pub group: Option<String>,
    /// How to log in.
    pub security: Option<RawSecurity>,
    /// Further librdkafka settings; those that would break exactly-once are refused.
    pub options: Option<BTreeMap<String, Setting>>,
}

/// How to log in to Kafka.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawSecurity {
    /// PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.
    pub protocol: Option<String>,
    /// PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
    pub mechanism: Option<String>,
    /// SASL user.
    pub username: Option<String>,
    /// SASL password; use ${VAR} or ${file:/path}.
    pub password: Option<String>,
    /// Certificate authority, a PEM file.
    pub ca: Option<String>,
    /// Client certificate, a PEM file.
    pub cert: Option<String>,
    /// Client key, a PEM file.
    pub key: Option<String>,
    /// Password of the client key.
    pub key_password: Option<String>,
}

/// A source of newline-delimited files.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawFiles {
    /// Folder.
    pub path: String,
    /// Glob over file names. Default: *.ndjson (json), *.csv (csv), * (raw)
    pub pattern: Option<String>,
}

/// The embedded generator.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawGenerate {
    /// Data set: orders. Default: orders
    pub dataset: Option<String>,
    /// Rows over all partitions, such as 100_000; without it the source is endless and needs a rate.
    pub rows: Option<Quantity>,
    /// Number of partitions. Default: 4
    pub partitions: Option<Quantity>,
    /// Rows per second over all partitions, such as 5000/s. Default: all at once
    pub rate: Option<Quantity>,
    /// Everything follows from it. Default: 1
    pub seed: Option<Quantity>,
    /// Share of malformed records, such as 1%. Default: 0%
    pub dirty: Option<Quantity>,
    /// Share of records with an event time well before their neighbours'. Default: 0%
    pub late: Option<Quantity>,
    /// Share of records that repeat an earlier one. Default: 0%
    pub duplicates: Option<Quantity>,
    /// Share of records that swap places with a neighbour. Default: 0%
    pub out_of_order: Option<Quantity>,
}

/// How values are encoded.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawFormat {
    /// One JSON object per record.
    Json,
    /// One CSV line per record, columns in schema order.
    Csv,
    /// No decoding: one column `value` of bytes.
    Raw,
}

/// What happens to fields that the schema does not name.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawDrift {
    /// Kept as JSON text in the column `_rescued`.
    Rescue,
    /// Added to the table as a string column.
    Evolve,
    /// Left out.
    Ignore,
    /// A dead letter.
    Fail,
}

/// What a record with a null value is.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawTombstones {
    /// A dead letter.
    Quarantine,
    /// A row with the key column filled and `_tombstone` true.
    Row(RawTombstoneRow),
}

/// A tombstone as a row.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawTombstoneRow {
    /// The column that the record key fills.
    pub key: String,
}

/// What to do when planned offsets are gone.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawDataLoss {
    /// Stop, exit 66.
    Fail,
    /// Record what was lost and go on.
    Skip,
}

/// When batches run.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RawTrigger {
    /// A word.
    Word(RawTriggerWord),
    /// An interval.
    Interval(RawInterval),
}

/// A trigger without settings.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
pub enum RawTriggerWord {
    /// A pending batch, then one batch, then exit.
    #[serde(rename = "once")]
    Once,
    /// As many batches as it takes to reach the end that was pinned at the start, then exit.
    #[serde(rename = "available_now")]
    AvailableNow,
    /// Spark's spelling of available_now.
    #[serde(rename = "availableNow")]
    SparkAvailableNow,
}

/// A trigger with an interval or a schedule.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawInterval {
    /// A batch at every multiple of this since the epoch, such as 30s.
    pub processing_time: Option<Quantity>,
    /// Spark's spelling of processing_time.
    #[serde(rename = "processingTime")]
    pub spark_processing_time: Option<Quantity>,
    /// An available_now run at each tick of a crontab expression, in the pipeline's timezone, such as "*/15 * * * *".
    pub cron: Option<String>,
}

/// Limits of one micro-batch.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawBatch {
    /// Rows per batch and source. Default: 500_000
    pub max_rows: Option<Quantity>,
    /// Bytes of keys and values per batch and source. Default: 256MB
    pub max_bytes: Option<Quantity>,
}

/// Static side of a join.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawLookup {
    /// A Delta table, pinned to one version per batch.
    Delta(String),
    /// A Parquet file.
    Parquet(String),
    /// A CSV file with a header line.
    Csv(String),
}

/// One table.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawTable {
    /// Where its rows come from: `source`, a source's name, or a table's name. Not with `join`, which names two.
    pub from: Option<String>,
    /// The query; `batch` = the rows of this micro-batch. Default: all rows and columns of `from`
    pub sql: Option<String>,
    /// Which SQL engine. Default: polars
    pub engine: Option<RawEngine>,
    /// Rules over the query's output, by name.
    pub expect: Option<BTreeMap<String, RawExpectation>>,
    /// How rows enter: append, upsert or refresh. Default: append
    pub write: Option<RawWrite>,
    /// Partition columns.
    pub partition_by: Option<OneOrMany>,
    /// What is done to this table between batches, where it differs from the pipeline's `maintain`.
    pub maintain: Option<RawMaintain>,
    /// What is late, and what becomes of it; for `aggregate`, `dedupe` and `join`.
    pub watermark: Option<RawWatermark>,
    /// Measures per window of event time, over the rows that `sql` makes of the batch.
    pub aggregate: Option<RawAggregate>,
    /// When rows of windows are written: update, final or complete. Default: update
    pub emit: Option<RawEmit>,
    /// Rows that repeat an earlier one are left out and counted.
    pub dedupe: Option<RawDedupe>,
    /// Rows of two tables or sources that belong together; `batch` in `sql` is the pairs.
    pub join: Option<RawJoin>,
    /// Limits of what the table remembers between batches.
    pub state: Option<RawState>,
}

/// What is late: rows whose windows ended at or before the highest event time seen, less the delay.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawWatermark {
    /// How much rows may be out of order, such as 5m.
    pub delay: Option<Quantity>,
    /// What becomes of late rows: drop, quarantine or update. Default: quarantine
    pub late: Option<RawLate>,
    /// With `late: update`: how long closed windows can still be updated, in event time. Default: 1d
    pub keep: Option<Quantity>,
    /// Rows further ahead of the batch's time than this are quarantined: one broken clock would close every window. Default: 1h
    pub max_ahead: Option<Quantity>,
    /// A partition without rows for this long holds the watermark back no more. Default: 5m
    pub idle: Option<Quantity>,
    /// Without any rows for this long, what is open is closed. Default: never
    pub idle_after: Option<Quantity>,
    /// The column that holds the event time. Default: that of the source
    pub event_time: Option<String>,
}

/// What becomes of late rows.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawLate {
    /// Counted and left out.
    Drop,
    /// Counted and sent to the dead-letter table.
    Quarantine,
    /// Counted and worked in, while the window is kept.
    Update,
}

/// Measures per window and group.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawAggregate {
    /// How event time is cut. Default: not at all, one running total per group
    pub window: Option<RawWindow>,
    /// Columns that name a group.
    pub by: Option<OneOrMany>,
    /// SQL over aggregates by column name, such as `revenue: sum(amount)`.
    pub measures: BTreeMap<String, String>,
}

/// A window: one of tumbling, sliding with every, session, calendar.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawWindow {
    /// Windows of this length, one after the other, such as 1m.
    pub tumbling: Option<Quantity>,
    /// Windows of this length, with a new one starting `every` so often.
    pub sliding: Option<Quantity>,
    /// From the start of one sliding window to the next.
    pub every: Option<Quantity>,
    /// Events of a group that follow each other within this gap, such as 30m.
    pub session: Option<Quantity>,
    /// Days, weeks or months in the pipeline's timezone.
    pub calendar: Option<RawCalendar>,
}

/// Stretches of the calendar.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawCalendar {
    /// From midnight to midnight.
    Day,
    /// From Monday to Monday.
    Week,
    /// From the first to the first.
    Month,
}

/// When rows of windows are written.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawEmit {
    /// Touched windows are written with every batch, in place of what was there.
    Update,
    /// A window is written once, when it is closed, and never changes.
    Final,
    /// As update, and nothing is ever closed or late.
    Complete,
}

/// Deduplication: the first row of a key wins.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawDedupe {
    /// Columns that tell rows apart.
    pub key: OneOrMany,
    /// Rows of one key whose event times are less than this apart are the same row.
    pub within: Option<Quantity>,
}

/// A join of two streams within a time bound.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawJoin {
    /// A table or source; with `type: left`, its rows come out alone when nothing matches in time.
    pub left: String,
    /// The other table or source.
    pub right: String,
    /// Columns that both have and that must be equal.
    pub on: OneOrMany,
    /// How far apart the event times of a pair may be, either way.
    pub within: Option<Quantity>,
    /// inner or left. Default: inner
    #[serde(rename = "type")]
    pub kind: Option<RawJoinKind>,
}

/// Which rows of a join come out.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawJoinKind {
    /// Pairs.
    Inner,
    /// Pairs, and rows of the left side that have none.
    Left,
}

/// Limits of state.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawState {
    /// Memory that the table's state may take; a batch that needs more is refused. Default: 1GB
    pub limit: Option<Quantity>,
}

/// Maintenance of tables.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawMaintain {
    /// Whether small files are merged between batches. Default: auto
    pub compact: Option<RawCompact>,
    /// Size that files are merged up to. Default: 128MB
    pub target_size: Option<Quantity>,
    /// Once a day, delete files that no version of the last 7d (or longer) needs; off = nothing is ever deleted. Default: off
    pub vacuum: Option<Quantity>,
}

/// Whether small files are merged.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawCompact {
    /// Merged where enough of them gather.
    Auto,
    /// Left alone; `tidegate optimize` merges them.
    Off,
}

/// SQL engines.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawEngine {
    /// Polars SQL.
    Polars,
    /// DataFusion SQL.
    DataFusion,
}

/// A rule; rows where the check is not true break it (null is not true).
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawExpectation {
    /// SQL boolean over the output columns.
    pub check: String,
    /// What happens to rows that break it.
    #[serde(rename = "else")]
    pub action: RawAction,
}

/// What happens to rows that break a rule.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawAction {
    /// Counted.
    Warn,
    /// Counted and left out.
    Drop,
    /// Sent to the dead-letter table.
    Quarantine,
    /// The batch stops before anything is written, exit 65.
    Fail,
}

/// How rows enter a table.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawWrite {
    /// Rows are added.
    Append,
    /// Rows replace those with the same key.
    Upsert(RawUpsert),
    /// Groups that the batch touched are computed again from the table it reads, and replaced.
    Refresh(RawRefresh),
}

/// Upsert settings.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawUpsert {
    /// Key columns.
    pub key: OneOrMany,
    /// Ordering columns: the highest wins, also against the row in the table; ties: partition, offset.
    pub order_by: Option<OneOrMany>,
    /// SQL boolean over the output columns: the row is a delete.
    pub delete_when: Option<String>,
    /// Output columns that are not stored.
    pub drop: Option<OneOrMany>,
}

/// Refresh settings.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawRefresh {
    /// Group columns.
    pub by: OneOrMany,
    /// Counts and sums follow what changed where that is exact; `false` = every group is computed from all of its rows.
    /// The rows are the same. Default: true
    pub incremental: Option<bool>,
}

/// Dead letters.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RawDeadLetters {
    /// `false`.
    Switch(bool),
    /// `off`.
    Word(RawOff),
    /// Settings.
    Settings(RawDeadLetterSettings),
}

/// The word `off`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawOff {
    /// No dead-letter table: a bad row fails the batch.
    Off,
}

/// Dead-letter settings.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawDeadLetterSettings {
    /// Table. Default: dlq.<name>
    pub table: Option<String>,
    /// Share of a batch's input rows above which the batch fails before anything is written, such as 5%. Rows that windows and joins emit do not count.
    pub fail_above: Option<Quantity>,
}

/// A column type: a text such as `decimal(18,2) not null`, or a mapping.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RawType {
    /// `string`, `binary`, `boolean`, `byte`, `short`, `int`, `long`, `float`, `double`, `date`, `timestamp`,
    /// `decimal(p,s)`, `array<T>`, `struct<a: T>`; each may end in `not null`.
    Text(String),
    /// A type with settings.
    Mapping(Box<RawTypeMapping>),
}

/// A type with settings: one of type, struct, list.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawTypeMapping {
    /// A type by name, such as timestamp.
    #[serde(rename = "type")]
    pub name: Option<String>,
    /// Unit of epoch timestamps: s, ms or us.
    pub unit: Option<RawUnit>,
    /// Fields of a struct.
    #[serde(rename = "struct")]
    pub fields: Option<BTreeMap<String, RawType>>,
    /// Element type of a list.
    pub list: Option<RawType>,
    /// Whether null is allowed. Default: true
    pub nullable: Option<bool>,
}

/// Unit of epoch timestamps.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
pub enum RawUnit {
    /// Seconds.
    #[serde(rename = "s")]
    Seconds,
    /// Milliseconds.
    #[serde(rename = "ms")]
    Millis,
    /// Microseconds.
    #[serde(rename = "us")]
    Micros,
}

/// One test: rows in, rows out.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawTest {
    /// What it shows.
    pub name: String,
    /// The batch time, RFC 3339. Default: 2026-01-01T00:00:00Z
    pub now: Option<String>,
    /// Records by source, rows by table, `lookups`: one batch, or a list of batches.
    pub given: RawGiven,
    /// Rows by table; only the listed columns are compared, the order of rows is not.
    pub expect: BTreeMap<String, RawExpected>,
}

/// What there is before and during a test.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RawGiven {
    /// One micro-batch: records by source (a mapping is a JSON record, a text is bytes as they are, null a tombstone,
    /// `{value: …, key: …, headers: …, timestamp: …, partition: …, offset: …}` the whole envelope), rows that a table
    /// holds before, by table, and rows of lookups, by name, under `lookups`.
    Batch(BTreeMap<String, serde_json::Value>),
    /// Several micro-batches, one after the other.
    Batches(Vec<BTreeMap<String, serde_json::Value>>),
}

/// What a table must hold in the end.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RawExpected {
    /// Exactly these rows; `[]` = none.
    Rows(Vec<serde_json::Value>),
    /// This many rows.
    Count(RawCount),
}

/// A number of rows.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawCount {
    /// How many rows.
    pub count: u64,
}

/// A file of tests beside a pipeline file: `orders.test.yaml`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "tidegate test file")]
pub struct RawTestFile {
    /// The pipeline file; a relative path starts at this file's folder.
    pub pipeline: String,
    /// Rows in, rows out, without services.
    pub tests: Vec<RawTest>,
}

/// A text, or a list of them.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl OneOrMany {
    /// As a list.
    pub fn to_vec(&self) -> Vec<String> {
        match self {
            OneOrMany::One(one) => vec![one.clone()],
            OneOrMany::Many(many) => many.clone(),
        }
    }
}

/// A number with or without a unit, as text; the field knows the unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantity(pub String);

/// The value of a pass-through setting, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting(pub String);

fn scalar_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(text) => Ok(text),
        value @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_)) => Ok(value.to_string()),
        _ => Err(serde::de::Error::custom("expected a text or a number")),
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar_text(deserializer).map(Quantity)
    }
}

impl<'de> Deserialize<'de> for Setting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar_text(deserializer).map(Setting)
    }
}

impl JsonSchema for Quantity {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["string", "number"]})
    }
}

impl JsonSchema for Setting {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Setting".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["string", "number", "boolean"]})
    }
}

/// The JSON Schema of a pipeline file, shipped as `pipelines/tidegate.schema.json` for editors.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(RawPipeline).to_value()
}

/// The JSON Schema of a test file.
pub fn test_file_schema() -> serde_json::Value {
    schemars::schema_for!(RawTestFile).to_value()
}
