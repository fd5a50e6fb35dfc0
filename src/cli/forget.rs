//! The command line of `tidegate forget`.

use clap::Args;

use super::PipelineArgs;

/// Arguments of `forget`.
#[derive(Debug, Args)]
#[command(
    after_help = "What goes: rows whose columns have the values, all of the key's columns, in every table that has them all; the\n\
                        deletes that upsert tables remember of them; dead letters whose JSON has the fields. Tables that are\n\
                        recomputed follow. Nothing else changes. Killed anywhere, the next run finishes what was begun.\n\
                        What stays: records in Kafka (shown), rows that arrive later, smallest and largest values in _delta_log\n\
                        (shown), and, until --vacuum or a later vacuum, the files of older versions."
)]
pub struct ForgetArgs {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Column and value, such as customer_id=42; several must all be met
    #[arg(long = "key", required = true, value_name = "COLUMN=VALUE")]
    pub keys: Vec<String>,
    /// Only these tables, and those that are recomputed from them
    #[arg(long, value_delimiter = ',', value_name = "TABLES")]
    pub tables: Vec<String>,
    /// Also remove dead letters whose bytes merely contain the values as words
    #[arg(long)]
    pub containing: bool,
    /// Do not read the sources to count what they still hold
    #[arg(long)]
    pub offline: bool,
    /// With --yes: delete the old files of these tables at once; their older versions cannot be read any more
    #[arg(long)]
    pub vacuum: bool,
    /// Do it; without this nothing is written
    #[arg(long)]
    pub yes: bool,
}
