//! The command line of `tidegate dlq`.

use clap::{Args, Subcommand};

use super::PipelineArgs;

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum DlqCommand {
    /// Count dead letters by table, stage, rule, error and status; with --rows list them
    Ls(DlqLsArgs),
    /// Show everything about one dead letter: its record, what was wrong, what to type next
    Show(DlqShowArgs),
    /// Feed the records of dead letters through the pipeline as it is now; without --yes only says what would happen
    Replay(DlqReplayArgs),
    /// Give dead letters up; they stay in their table. Without --yes only says what would happen
    Discard(DlqDiscardArgs),
}

impl DlqCommand {
    /// The pipeline that it is about.
    pub fn pipeline(&self) -> &PipelineArgs {
        match self {
            DlqCommand::Ls(args) => &args.pipeline,
            DlqCommand::Show(args) => &args.pipeline,
            DlqCommand::Replay(args) => &args.pipeline,
            DlqCommand::Discard(args) => &args.pipeline,
        }
    }
}

/// Which dead letters.
#[derive(Debug, Default, Args)]
pub struct LetterArgs {
    /// Only letters of these tables (or sources, for records that could not be decoded)
    #[arg(long = "table", value_delimiter = ',', value_name = "TABLES")]
    pub tables: Vec<String>,
    /// Only letters of these stages: decode, expect, key, late
    #[arg(long = "stage", value_delimiter = ',', value_name = "STAGES")]
    pub stages: Vec<String>,
    /// Only letters of these rules, such as malformed or the name of an expectation
    #[arg(long = "rule", value_delimiter = ',', value_name = "RULES")]
    pub rules: Vec<String>,
    /// Only letters set aside at or after this: RFC 3339, or a date in the pipeline's timezone
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only letters set aside before this
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Only letters that these batches set aside
    #[arg(long = "batch", value_delimiter = ',', value_name = "N")]
    pub batches: Vec<i64>,
    /// Only letters whose id starts with one of these
    #[arg(long = "id", value_delimiter = ',', value_name = "IDS")]
    pub ids: Vec<String>,
    /// Only letters of these statuses: open, replayed, discarded
    #[arg(long = "status", value_delimiter = ',', value_name = "STATUSES")]
    pub statuses: Vec<String>,
    /// Only letters for which this SQL over the columns of the dead-letter table is true
    #[arg(long = "where", value_name = "SQL")]
    pub condition: Option<String>,
    /// At most this many letters, oldest first (`ls` without --rows: groups, largest first)
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

/// Arguments of `dlq ls`.
#[derive(Debug, Args)]
pub struct DlqLsArgs {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Which.
    #[command(flatten)]
    pub letters: LetterArgs,
    /// List the letters instead of counting them
    #[arg(long)]
    pub rows: bool,
}

/// Arguments of `dlq show`.
#[derive(Debug, Args)]
pub struct DlqShowArgs {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Id of the letter, or how it starts
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Arguments of `dlq replay`.
#[derive(Debug, Args)]
pub struct DlqReplayArgs {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Which; open ones unless --status says otherwise.
    #[command(flatten)]
    pub letters: LetterArgs,
    /// Do it; without this nothing is written
    #[arg(long)]
    pub yes: bool,
}

/// Arguments of `dlq discard`.
#[derive(Debug, Args)]
pub struct DlqDiscardArgs {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Which; open ones.
    #[command(flatten)]
    pub letters: LetterArgs,
    /// Why, kept with the letters
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Do it; without this nothing is written
    #[arg(long)]
    pub yes: bool,
}
