//! Commands that only look.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Pieces, PipelineArgs};

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Pipeline files, or folders of them; several are shown in one table
    #[arg(required = true, env = "TIDEGATE_FILE", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Show this many rows of each table too
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub rows: usize,
    /// Do not ask the source for its end (no lag shown)
    #[arg(long)]
    pub offline: bool,
    /// Look again every so often, such as 5s, until interrupted
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, require_equals = true, default_missing_value = "2s")]
    pub watch: Option<String>,
}

/// Arguments of `history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Show this many batches, newest first
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub limit: usize,
    /// List the days that no backfill has derived again, or by other SQL or settings than today's, instead of batches: from
    /// the first row to yesterday, or of a range
    #[arg(long, conflicts_with_all = ["limit", "batch", "failed"])]
    pub gaps: bool,
    /// With --gaps, first instant of a range: a date, or an RFC 3339 time
    #[arg(long, value_name = "WHEN", requires_all = ["gaps", "to"])]
    pub from: Option<String>,
    /// With --gaps, first instant after the range
    #[arg(long, value_name = "WHEN", requires_all = ["gaps", "from"])]
    pub to: Option<String>,
    /// With --gaps, what the range is cut into
    #[arg(long, value_enum, default_value_t = Pieces::Day, requires = "gaps")]
    pub by: Pieces,
    /// With --gaps, only these tables
    #[arg(long, value_delimiter = ',', value_name = "TABLES", requires = "gaps")]
    pub tables: Vec<String>,
    /// Show one batch in detail
    #[arg(long, value_name = "N", conflicts_with_all = ["limit", "failed"])]
    pub batch: Option<i64>,
    /// Only batches that did not go smoothly: not finished, finished by another run, or without records that were lost
    #[arg(long)]
    pub failed: bool,
}

/// Arguments of `lag`.
#[derive(Debug, Args)]
pub struct LagArgs {
    /// Pipeline files, or folders of them
    #[arg(required = true, env = "TIDEGATE_FILE", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Exit 1 when a pipeline is further behind: a time (5m: the age of its oldest unread record) or a number of records
    /// (10_000, over all partitions)
    #[arg(long, value_name = "TIME|RECORDS")]
    pub fail_above: Option<String>,
    /// Warn when the topic deletes unread records within this time; unless given, 6h or a quarter of the topic's
    /// retention.ms, whichever is less
    #[arg(long, value_name = "TIME")]
    pub warn_headroom: Option<String>,
}

/// Arguments of `query`.
#[derive(Debug, Args)]
pub struct QueryArgs {
    /// Pipeline file, and the query: `tidegate query FILE "SELECT …"`; with --lake only the query
    #[arg(value_name = "FILE] [SQL", num_args = 0..=2, required_unless_present = "lake")]
    pub words: Vec<String>,
    /// A folder of tables instead of a pipeline: <DIR>/silver/orders is silver.orders
    #[arg(long, value_name = "DIR")]
    pub lake: Option<String>,
    /// List the tables instead
    #[arg(long)]
    pub tables: bool,
    /// Read every table as batch N of the pipeline left it: tables and lookups fit each other
    #[arg(long, value_name = "N", conflicts_with_all = ["lake", "at", "at_version"])]
    pub at_batch: Option<i64>,
    /// Read a table at a Delta version; may be repeated
    #[arg(long, value_name = "TABLE=VERSION", conflicts_with = "at")]
    pub at_version: Vec<String>,
    /// Read everything as it was at this time (RFC 3339): as the newest batch that was done by then left it; with --lake,
    /// each table at its newest version of then
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    /// Form of the rows
    #[arg(short = 'o', long, value_enum, default_value_t = RowFormat::Table)]
    pub format: RowFormat,
    /// At most so many rows; a table on a terminal shows 100 unless told otherwise, the other forms everything
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Memory for sorting, joining and grouping; what needs more goes to temporary files, or fails
    #[arg(long, default_value = "1GB", value_name = "SIZE")]
    pub memory: String,
}

/// Form of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RowFormat {
    /// For people.
    Table,
    /// One JSON array of objects.
    Json,
    /// With a header line.
    Csv,
    /// One JSON object a line.
    Ndjson,
}

/// Arguments of `graph`.
#[derive(Debug, Args)]
pub struct GraphArgs {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Form of the picture
    #[arg(long, value_enum, default_value_t = GraphFormat::Mermaid)]
    pub format: GraphFormat,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// A code such as TG0401; without one, all are listed
    #[arg(value_name = "CODE")]
    pub code: Option<String>,
}

/// Form of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GraphFormat {
    /// For Markdown files: GitHub and GitLab draw it.
    Mermaid,
    /// For Graphviz.
    Dot,
    /// For programs.
    Json,
}
