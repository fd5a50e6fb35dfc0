//! What both SQL engines do: types without data, rows with data.

use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;

use super::{datafusion_engine, polars_engine};
use crate::config::spec::Engine;
use crate::error::Result;

/// Name of the query's result for expectations and `delete_when`.
pub const OUTPUT: &str = "_tidegate_output";

/// Rows registered under a name.
#[derive(Debug, Clone)]
pub struct NamedRows {
    /// Name in the SQL.
    pub name: String,
    /// Columns.
    pub schema: SchemaRef,
    /// Rows, of exactly that schema.
    pub rows: Vec<RecordBatch>,
}

/// One run of a table's SQL.
#[derive(Debug)]
pub struct Job<'a> {
    /// What the SQL reads.
    pub inputs: Vec<NamedRows>,
    /// The query.
    pub query: &'a str,
    /// The query's columns with their stored types.
    pub computed: &'a SchemaRef,
    /// A second SELECT over [`OUTPUT`], with the columns it makes.
    pub checks: Option<(&'a str, &'a SchemaRef)>,
}

/// Names and types of a query's columns, as the engine computes them; or the engine's message.
pub fn infer(engine: Engine, inputs: &[(String, SchemaRef)], query: &str) -> std::result::Result<Schema, String> {
    // The engines panic on some unsupported input; for a user that is a message like any other.
    let run = std::panic::AssertUnwindSafe(|| match engine {
        Engine::Polars => polars_engine::infer(inputs, query),
        Engine::DataFusion => datafusion_engine::infer(inputs, query),
    });
    std::panic::catch_unwind(run).unwrap_or_else(|_| Err("the SQL engine cannot plan this query".to_string()))
}

/// Runs a job.
pub fn run(engine: Engine, job: Job<'_>) -> Result<Vec<RecordBatch>> {
    match engine {
        Engine::Polars => polars_engine::run(job),
        Engine::DataFusion => datafusion_engine::run(job),
    }
}
