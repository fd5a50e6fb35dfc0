//! SQL over whole tables, for people who ask: DataFusion over Delta's own reader, so that only the files and columns that a
//! query needs are read, in a stream, with bounded memory. Nothing here writes.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, Utc};
use deltalake::DeltaTable;
use deltalake::datafusion::catalog::{CatalogProvider, MemorySchemaProvider};
use deltalake::datafusion::common::TableReference;
use deltalake::datafusion::datasource::{MemTable, TableProvider};
use deltalake::datafusion::error::DataFusionError;
use deltalake::datafusion::execution::context::SQLOptions;
use deltalake::datafusion::execution::memory_pool::FairSpillPool;
use deltalake::datafusion::execution::runtime_env::RuntimeEnvBuilder;
use deltalake::datafusion::prelude::{SessionConfig, SessionContext};
use futures::stream::{BoxStream, StreamExt, TryStreamExt};

use super::handle::{Handle, explain, look, signed};
use crate::error::{Code, Context, Error, ErrorKind, Result};
use crate::storage::Storage;

/// Where names without a schema live: lookups.
const CATALOG: &str = "tidegate";
const NAMELESS: &str = "lookups";

/// Which state of a table is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// The newest.
    Newest,
    /// A Delta version.
    Version(i64),
    /// The newest version of that time.
    Time(DateTime<Utc>),
}

/// Tables that can be asked.
pub struct Queries {
    session: SessionContext,
    names: Vec<String>,
}

/// Rows as they come.
pub struct Answer {
    /// Columns.
    pub schema: SchemaRef,
    /// Rows.
    pub rows: BoxStream<'static, Result<RecordBatch>>,
}

impl Queries {
    /// No tables yet; sorting, joining and grouping take `memory` bytes at most, and temporary files beyond that. `names` is
    /// what can be asked, for messages.
    pub fn new(memory: usize, names: Vec<String>) -> Result<Queries> {
        let pool = Arc::new(FairSpillPool::new(memory));
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc();
        let runtime = runtime.context(ErrorKind::Failed, "the query engine did not start")?;
        let mut config = SessionConfig::new().with_default_catalog_and_schema(CATALOG, NAMELESS);
        // Names mean what they say, as in the SQL of pipelines.
        config.options_mut().sql_parser.enable_ident_normalization = false;
        Ok(Queries { session: SessionContext::new_with_config_rt(config, runtime), names })
    }

    /// Lets a Delta table be asked as `name`; returns its version, `None` = there is no table.
    pub async fn add_table(&self, name: &str, storage: &Storage, at: At) -> Result<Option<i64>> {
        let handle = Handle::new(storage.clone());
        let failed = |cause| explain(cause, "read the table's log", &handle.location()).with("table", name);
        let log = handle.log();
        if !log.is_delta_table_location().await.map_err(failed)? {
            return Ok(None);
        }
        let read = || {
            let mut table = DeltaTable::new(log.clone());
            async move {
                match at {
                    At::Newest => table.load().await?,
                    At::Version(version) => table.load_version(version.unsigned_abs()).await?,
                    At::Time(time) => table.load_with_datetime(time).await?,
                }
                Ok(table)
            }
        };
        let table = look(read).await.map_err(|cause| match at {
            At::Newest => failed(cause),
            At::Version(version) => no_such_version(name, &format!("no version {version}")).caused_by(cause),
            At::Time(time) => no_such_version(name, &format!("no version of {time}")).caused_by(cause),
        })?;
        if let At::Time(time) = at {
            // A time before the oldest version that is left is answered with that version.
            let read = table.snapshot().ok().zip(table.version());
            let made = read.and_then(|(state, version)| state.version_timestamp(version));
            if made.is_some_and(|made| made > time.timestamp_millis()) {
                return Err(no_such_version(name, &format!("no version of {}", time.to_rfc3339())));
            }
        }
        table.update_datafusion_session(&self.session.state()).map_err(failed)?;
        let provider =
            table.table_provider().await.context(ErrorKind::Failed, format!("table {name} cannot be asked"))?;
        self.register(name, provider)?;
        Ok(table.version().map(signed))
    }

    /// Lets rows be asked as `name`.
    pub fn add_rows(&self, name: &str, schema: SchemaRef, rows: &[RecordBatch]) -> Result<()> {
        let table =
            MemTable::try_new(schema, vec![rows.to_vec()]).context(ErrorKind::Failed, format!("the rows of {name}"))?;
        self.register(name, Arc::new(table))
    }

    fn register(&self, name: &str, table: Arc<dyn TableProvider>) -> Result<()> {
        let why = || format!("table {name} cannot be asked");
        let reference = match name.split_once('.') {
            None => TableReference::bare(name.to_string()),
            Some((schema, table)) => {
                let catalog: Option<Arc<dyn CatalogProvider>> = self.session.catalog(CATALOG);
                if let Some(catalog) = catalog.filter(|catalog| catalog.schema(schema).is_none()) {
                    let added = catalog.register_schema(schema, Arc::new(MemorySchemaProvider::new()));
                    added.context(ErrorKind::Failed, why())?;
                }
                TableReference::partial(schema.to_string(), table.to_string())
            }
        };
        self.session.register_table(reference, table).context(ErrorKind::Failed, why())?;
        Ok(())
    }

    /// Asks. Whatever would change anything is refused.
    pub async fn ask(&self, sql: &str, limit: Option<usize>) -> Result<Answer> {
        let only_queries = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let frame = self.session.sql_with_options(sql, only_queries).await.map_err(|e| self.refused(e))?;
        let frame = match limit {
            Some(limit) => frame.limit(0, Some(limit)).map_err(|e| self.refused(e))?,
            None => frame,
        };
        let schema: SchemaRef = Arc::new(frame.schema().as_arrow().clone());
        let rows = frame.execute_stream().await.map_err(|e| self.refused(e))?;
        Ok(Answer { schema, rows: rows.map_err(failed).boxed() })
    }

    /// What the planner says, for a person.
    fn refused(&self, cause: DataFusionError) -> Error {
        let is_about_the_query = matches!(
            cause.find_root(),
            DataFusionError::SQL(..)
                | DataFusionError::Plan(_)
                | DataFusionError::SchemaError(..)
                | DataFusionError::NotImplemented(_)
                | DataFusionError::Diagnostic(..)
        );
        if !is_about_the_query {
            return failed(cause);
        }
        let message = message(&cause);
        if ["DML ", "DDL ", "Statement "].iter().any(|kind| message.starts_with(kind)) {
            return Error::new(ErrorKind::Usage, "this is not a query: only SELECT, SHOW TABLES and DESCRIBE are run")
                .coded(Code::QueryWrites)
                .caused_by(message)
                .help("nothing was changed; tables are written by pipelines");
        }
        Error::config(format!("the query cannot be run: {message}"))
            .coded(Code::Query)
            .help(format!("tables: {}", self.names.join(", ")))
            .help("columns of one: DESCRIBE silver.orders")
    }
}

/// Without the planner's own kinds of errors.
fn message(cause: &DataFusionError) -> String {
    let text = cause.strip_backtrace();
    let text = text.lines().next().unwrap_or_default();
    let kinds = ["Error during planning: ", "Schema error: ", "SQL error: ", "This feature is not implemented: "];
    let text = kinds.iter().fold(text, |text, kind| text.strip_prefix(kind).unwrap_or(text));
    text.replace(&format!("{CATALOG}.{NAMELESS}."), "").replace(&format!("{CATALOG}."), "")
}

fn failed(cause: DataFusionError) -> Error {
    let root = cause.find_root().to_string();
    if let DataFusionError::ResourcesExhausted(_) = cause.find_root() {
        return Error::failed("the query needs more memory than it may take")
            .caused_by(root)
            .help("allow more (--memory 4GB), or ask for less: fewer columns, a WHERE, a LIMIT");
    }
    let is_gone = root.contains("not found") && root.contains(".parquet");
    let error = explain(cause, "answer the query", "the lake");
    match is_gone {
        true => error.help("a vacuum has deleted files of the version that was asked: ask for a newer one"),
        false => error,
    }
}

fn no_such_version(name: &str, what: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("table {name} has {what}, or not any more"))
}
