//! DataFusion SQL, for what Polars SQL lacks.

use std::future::Future;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use deltalake::datafusion::common::TableReference;
use deltalake::datafusion::datasource::MemTable;
use deltalake::datafusion::error::DataFusionError;
use deltalake::datafusion::execution::context::SQLOptions;
use deltalake::datafusion::prelude::{DataFrame, SessionConfig, SessionContext};

use super::engine::{Job, NamedRows, OUTPUT};
use crate::arrow_bridge::conform;
use crate::error::{Code, Error, ErrorKind, Result};

fn session() -> SessionContext {
    // One partition: rows come out in the order they went in. Names mean what they say, as in Polars.
    let mut config = SessionConfig::new().with_target_partitions(1);
    config.options_mut().sql_parser.enable_ident_normalization = false;
    SessionContext::new_with_config(config)
}

fn register(session: &SessionContext, input: NamedRows) -> std::result::Result<(), DataFusionError> {
    let table = MemTable::try_new(input.schema, vec![input.rows])?;
    session.register_table(TableReference::bare(input.name), Arc::new(table))?;
    Ok(())
}

async fn plan(session: &SessionContext, sql: &str) -> std::result::Result<DataFrame, DataFusionError> {
    let only_queries = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    session.sql_with_options(sql, only_queries).await
}

/// DataFusion is asynchronous and callers are not; a thread with its own small runtime works wherever it is called from.
fn wait<T: Send>(future: impl Future<Output = std::result::Result<T, DataFusionError>> + Send) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|cause| Error::failed("starting a runtime for DataFusion").caused_by(cause))?;
    let joined = std::thread::scope(|scope| scope.spawn(move || runtime.block_on(future)).join());
    match joined {
        Ok(done) => done.map_err(failed),
        Err(_) => Err(Error::failed("DataFusion panicked")),
    }
}

/// See [`super::engine::infer`].
pub fn infer(inputs: &[(String, SchemaRef)], query: &str) -> std::result::Result<Schema, String> {
    let session = session();
    for (name, schema) in inputs {
        let input = NamedRows { name: name.clone(), schema: schema.clone(), rows: Vec::new() };
        register(&session, input).map_err(|error| error.strip_backtrace())?;
    }
    let planned = wait(async {
        Ok(async {
            let frame = plan(&session, query).await?;
            let schema = frame.schema().as_arrow().clone();
            // Types are checked by the planner's later passes: run it on no rows.
            frame.collect().await?;
            Ok(schema)
        }
        .await)
    });
    planned.map_err(|error| error.to_string())?.map_err(|error: DataFusionError| error.strip_backtrace())
}

/// See [`super::engine::run`].
pub fn run(job: Job<'_>) -> Result<Vec<RecordBatch>> {
    let session = session();
    for input in job.inputs {
        register(&session, input).map_err(failed)?;
    }
    let rows = wait(async { plan(&session, job.query).await?.collect().await })?;
    let rows = conform(&rows, job.computed)?;
    let Some((checks, checked)) = job.checks else {
        return Ok(rows);
    };
    let output = NamedRows { name: OUTPUT.to_string(), schema: job.computed.clone(), rows };
    register(&session, output).map_err(failed)?;
    let rows = wait(async { plan(&session, checks).await?.collect().await })?;
    conform(&rows, checked)
}

fn failed(cause: DataFusionError) -> Error {
    Error::new(ErrorKind::Data, "the SQL failed on this batch's rows")
        .coded(Code::SqlOnRows)
        .caused_by(cause)
        .help("TRY_CAST makes null of a value that cannot be cast; an expectation can then set the row aside")
}
