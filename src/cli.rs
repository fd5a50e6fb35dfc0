//! The command line. The doc comments here are the help text.

mod dlq;
mod forget;
mod look;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use dlq::*;
pub use forget::ForgetArgs;
pub use look::{ExplainArgs, GraphArgs, GraphFormat, HistoryArgs, LagArgs, QueryArgs, RowFormat, StatusArgs};

/// Kafka to trustworthy Delta tables: micro-batch ETL, exactly once, in one binary.
#[derive(Debug, Parser)]
#[command(
    name = "tidegate",
    version,
    propagate_version = true,
    after_help = "Exit codes: 0 done or nothing to do, 1 failed, 2 usage, 65 data broke a rule, 66 offsets lost,\n\
                  69 broker or storage unreachable, 75 another runner, 78 configuration, 99 nothing to do (if asked for)."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
}

/// Warnings of everybody, but for two of deltalake's: at every commit, that a binary column has no statistics, and at every
/// race of two writers, that a commit came second, which is looked at and tried again here.
const DEFAULT_LOG: &str = "warn,deltalake_core::writer=error,deltalake_core::kernel::transaction=off";

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Overlay of the pipeline file's `targets:` to apply
    #[arg(short, long, global = true, env = "TIDEGATE_TARGET", value_name = "NAME")]
    pub target: Option<String>,
    /// Form of the result on stdout; json is one line, the very last bytes of the process
    #[arg(long, global = true, env = "TIDEGATE_OUTPUT", value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Also write the result, as JSON, to this file; whole or not at all
    #[arg(long, global = true, env = "TIDEGATE_OUTPUT_FILE", value_name = "FILE")]
    pub output_file: Option<PathBuf>,
    /// Say nothing unless something is wrong: no progress, no result in text
    #[arg(short, long, global = true, env = "TIDEGATE_QUIET")]
    pub quiet: bool,
    /// Form of the logs on stderr
    #[arg(long, global = true, env = "TIDEGATE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or a filter such as `tidegate=debug,warn`
    #[arg(long, global = true, env = "TIDEGATE_LOG", default_value = DEFAULT_LOG, value_name = "FILTER")]
    pub log: String,
    /// Progress on stderr: a bar on a terminal, one line a batch elsewhere
    #[arg(long, global = true, env = "TIDEGATE_PROGRESS", value_enum, default_value_t = Progress::Auto)]
    pub progress: Progress,
}

/// Form of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// One line of JSON.
    Json,
}

/// Form of the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Form of the progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// A bar on a terminal, lines elsewhere.
    Auto,
    /// A bar.
    Bar,
    /// One line a batch.
    Lines,
    /// Nothing.
    None,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write an example pipeline, its lookup and a .gitignore into a folder
    Init(InitArgs),
    /// Check pipeline files, SQL included, without touching Kafka or a table; reports every problem at once
    Validate(ValidateArgs),
    /// Show what the next batch would read and write, and the tables it would create; writes nothing
    Plan(PipelineArgs),
    /// Run a pipeline
    Run(RunArgs),
    /// Derive days or hours of event time again from the bronze tables; safe beside a running pipeline
    Backfill(BackfillArgs),
    /// Compute tables that aggregate again, whole, from stored rows; shows what would be done unless --yes
    Rebuild(RebuildArgs),
    /// Run many pipelines in one process, each by its own trigger, until a signal; SIGHUP reads the files again
    Serve(ServeArgs),
    /// Run the tests of pipeline files: rows in, rows out, without any service, in memory
    Test(TestArgs),
    /// Show where pipelines stand: running or not, last batch, lag, dead letters, tables
    Status(StatusArgs),
    /// Show the batches of a pipeline, or one in detail: offsets, counts, versions, phases, who ran it
    History(HistoryArgs),
    /// Show how far pipelines are behind, and how long until Kafka deletes what they have not read; a probe with --fail-above
    Lag(LagArgs),
    /// Ask the tables with SQL, also as they were; reads only
    Query(QueryArgs),
    /// Draw sources, lookups and tables of a pipeline
    Graph(GraphArgs),
    /// Explain the code of an error, such as TG0401: what happened, and what to do
    Explain(ExplainArgs),
    /// Show and move the offsets that a pipeline has read up to
    #[command(subcommand)]
    Offsets(OffsetsCommand),
    /// Look at dead letters, replay them through the pipeline as it is now, or give them up
    #[command(subcommand)]
    Dlq(DlqCommand),
    /// Look at a pipeline's checkpoint, check it against tables and source, rebuild it from the tables
    #[command(subcommand)]
    Checkpoint(CheckpointCommand),
    /// Merge small files of a pipeline's tables; safe beside a running pipeline
    Optimize(OptimizeArgs),
    /// Delete files that no version within the retention needs; shows what would go unless --yes
    Vacuum(VacuumArgs),
    /// Take a person out of every table, the dead letters and the memory of deletes; without --yes only counts
    Forget(ForgetArgs),
    /// Print the JSON Schema of pipeline files, for editors
    Schema,
    /// Print a shell completion script
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// A pipeline file.
#[derive(Debug, Args)]
pub struct PipelineArgs {
    /// Pipeline file
    #[arg(env = "TIDEGATE_FILE", value_name = "FILE")]
    pub file: PathBuf,
}

/// Arguments of `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Folder to write into; created if there is none
    #[arg(default_value = ".", value_name = "DIR")]
    pub dir: PathBuf,
    /// Name of the pipeline; `orders` where there is none yet
    #[arg(long)]
    pub name: Option<String>,
    /// Also write files that start the pipeline, into `deploy/`; works in a folder that has pipelines, too
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SCHEDULER")]
    pub with: Vec<With>,
}

/// Who starts the runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum With {
    /// A DAG for Airflow 3: runs, and days again.
    Airflow,
    /// A crontab.
    Cron,
    /// A service with a timer, and a service without end.
    Systemd,
    /// A CronJob with what it needs, and a Deployment.
    #[value(alias = "k8s")]
    Kubernetes,
}

/// Arguments of `validate`.
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// Pipeline files, or folders of them
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// Arguments of `test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Pipeline files, test files (`*.test.yaml`), or folders of them
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Only tests whose name contains this text
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// Also write the results to this file, as JUnit XML
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// When batches run, instead of the file's `trigger:`: once, available_now, an interval such as 30s, or a crontab expression
    #[arg(long, env = "TIDEGATE_TRIGGER", value_name = "TRIGGER")]
    pub trigger: Option<String>,
    /// Exit code when there was nothing to read; 99 makes an Airflow task "skipped"
    #[arg(long, env = "TIDEGATE_NO_DATA_EXIT_CODE", value_name = "CODE")]
    pub no_data_exit_code: Option<u8>,
    /// When everything is read, close what is still open: windows of `emit: final`, rows of a left join that wait. Rows that
    /// come for them later are late
    #[arg(long)]
    pub flush: bool,
}

/// Arguments of `rebuild`.
#[derive(Debug, Args)]
pub struct RebuildArgs {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Which tables: aggregates, or `refresh` tables
    #[arg(long = "table", value_name = "TABLE", required = true)]
    pub tables: Vec<String>,
    /// Do it
    #[arg(long)]
    pub yes: bool,
}

/// Arguments of `backfill`.
#[derive(Debug, Args)]
#[command(after_help = "Which rows: those whose event time (the source's `event_time`) lies in the interval, in the\n\
                        pipeline's timezone; rows without one never take part. Live offsets are not touched.\n\
                        How tables are written: upserts take the rows as from any batch, append tables have the rows of the\n\
                        interval replaced, refresh tables have the groups that it touches recomputed, all or nothing a table.\n\
                        Letters of records that it brought are marked as replayed when all tables have them.\n\
                        Killed anywhere, the same command finishes what was begun; run twice, it changes nothing.")]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["date", "from", "gaps"])))]
pub struct BackfillArgs {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// One day: a date such as 2026-03-17, `yesterday` or `today`
    #[arg(long, value_name = "DATE", conflicts_with_all = ["from", "to", "by"])]
    pub date: Option<String>,
    /// First instant of a range: a date, or an RFC 3339 time
    #[arg(long, value_name = "WHEN", requires = "to")]
    pub from: Option<String>,
    /// First instant after the range
    #[arg(long, value_name = "WHEN", requires = "from")]
    pub to: Option<String>,
    /// What the range is cut into
    #[arg(long, value_enum, default_value_t = Pieces::Day)]
    pub by: Pieces,
    /// Only these tables
    #[arg(long, value_delimiter = ',', value_name = "TABLES")]
    pub tables: Vec<String>,
    /// Every row of the interval, or only those that arrived since it was last derived
    #[arg(long, value_enum, default_value_t = BackfillMode::Full)]
    pub mode: BackfillMode,
    /// Where the rows come from: the bronze tables, or Kafka; then bronze gets what it lacks of the interval, and what is
    /// decoded otherwise by today's file, before the other tables are derived from it
    #[arg(long, value_enum, default_value_t = BackfillSource::Bronze)]
    pub source: BackfillSource,
    /// With --source kafka: records written this long before or after the interval may hold events of it
    #[arg(long, default_value = "2h", value_name = "TIME")]
    pub slack: String,
    /// Intervals that are worked on at the same time
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub parallel: u16,
    /// Leave out intervals that are done already, by the same SQL and settings
    #[arg(long)]
    pub resume: bool,
    /// Show what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// List the intervals that were never derived again, or by other SQL or settings than today's; of the range, or from the
    /// first row to yesterday
    #[arg(long, conflicts_with_all = ["date", "mode", "source", "slack", "parallel", "resume", "dry_run"])]
    pub gaps: bool,
    /// Exit code when no interval had a row to derive; 99 makes an Airflow task "skipped"
    #[arg(long, env = "TIDEGATE_NO_DATA_EXIT_CODE", value_name = "CODE")]
    pub no_data_exit_code: Option<u8>,
}

/// What a range of time is cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pieces {
    /// Days of the pipeline's timezone.
    Day,
    /// Hours.
    Hour,
}

/// Where the rows of an interval come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackfillSource {
    /// The tables that keep the source's rows.
    Bronze,
    /// The topics.
    Kafka,
}

/// How much of an interval is derived again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackfillMode {
    /// Every row.
    Full,
    /// Rows that arrived since it was last derived.
    Correction,
}

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Folders of pipeline files, or pipeline files
    #[arg(required = true, value_name = "DIR|FILE")]
    pub files: Vec<PathBuf>,
    /// Batches under way at a time over all pipelines; the others wait for their turn. Default: two for each core
    #[arg(long, env = "TIDEGATE_MAX_CONCURRENT", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub max_concurrent: Option<u16>,
    /// Bytes of keys and values that all batches under way may hold, divided evenly. Default: a 16th of the memory
    #[arg(long, env = "TIDEGATE_MAX_BYTES", value_name = "SIZE")]
    pub max_bytes: Option<String>,
    /// Answer /healthz, /readyz and /metrics (Prometheus) here, such as 127.0.0.1:9464. Default: nowhere
    #[arg(long, env = "TIDEGATE_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<std::net::SocketAddr>,
}

/// What to do with offsets.
#[derive(Debug, Subcommand)]
pub enum OffsetsCommand {
    /// Show per source and partition: checkpoint, earliest and end of the source, lag
    Show(PipelineArgs),
    /// Move single partitions to offsets; without --yes only says what would happen
    Set(OffsetsSetArgs),
    /// Move a source to a batch, a time, or its beginning; without --yes only says what would happen
    Rewind(OffsetsRewindArgs),
}

/// Arguments of `offsets set`.
#[derive(Debug, Args)]
pub struct OffsetsSetArgs {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Where to: topic (or file), partition, next offset to read
    #[arg(required = true, value_name = "TOPIC:PARTITION=OFFSET")]
    pub positions: Vec<String>,
    /// How it is done.
    #[command(flatten)]
    pub moving: MovingArgs,
}

/// Arguments of `offsets rewind`.
#[derive(Debug, Args)]
pub struct OffsetsRewindArgs {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Where to: `batch:N` (right after batch N), an RFC 3339 time (first record at or after it), or `earliest`
    #[arg(long, value_name = "WHERE")]
    pub to: String,
    /// How it is done.
    #[command(flatten)]
    pub moving: MovingArgs,
}

/// What moving offsets has in common.
#[derive(Debug, Args)]
pub struct MovingArgs {
    /// Which source, where the pipeline has several
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// Go on although append tables without source coordinates will hold the rows twice
    #[arg(long)]
    pub accept_duplicates: bool,
    /// Do it; without this nothing is written
    #[arg(long)]
    pub yes: bool,
}

/// What to do with a checkpoint.
#[derive(Debug, Subcommand)]
pub enum CheckpointCommand {
    /// Show identity, head, last batches and offsets
    Show(CheckpointShowArgs),
    /// Check every object, the tables, and whether the source still has the offsets; exit 78 if something must be mended
    Verify(CheckpointVerifyArgs),
    /// Rebuild a lost or damaged checkpoint from the tables; without --yes only says what would be written
    Rebuild(CheckpointRebuildArgs),
}

/// Arguments of `checkpoint show`.
#[derive(Debug, Args)]
pub struct CheckpointShowArgs {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Show this batch whole
    #[arg(long, value_name = "N")]
    pub batch: Option<i64>,
}

/// Arguments of `checkpoint verify`.
#[derive(Debug, Args)]
pub struct CheckpointVerifyArgs {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Do not ask the source whether it still has the offsets
    #[arg(long)]
    pub offline: bool,
}

/// Arguments of `checkpoint rebuild`.
#[derive(Debug, Args)]
pub struct CheckpointRebuildArgs {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Do it; without this nothing is written
    #[arg(long)]
    pub yes: bool,
}

/// Arguments of `optimize`.
#[derive(Debug, Args)]
pub struct OptimizeArgs {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Only these tables
    #[arg(long, value_delimiter = ',', value_name = "TABLES")]
    pub tables: Vec<String>,
    /// Size that files are merged up to, instead of the file's `target_size`
    #[arg(long, value_name = "SIZE")]
    pub target_size: Option<String>,
    /// Show what would be merged, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `vacuum`.
#[derive(Debug, Args)]
pub struct VacuumArgs {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Only these tables
    #[arg(long, value_delimiter = ',', value_name = "TABLES")]
    pub tables: Vec<String>,
    /// Versions this young stay readable, instead of the file's `vacuum`, or 7d
    #[arg(long, value_name = "AGE")]
    pub retain: Option<String>,
    /// Delete the files
    #[arg(long)]
    pub yes: bool,
    /// Take a retention under 7d: versions older than it cannot be read any more, queries that still read them fail
    #[arg(long)]
    pub force: bool,
}
