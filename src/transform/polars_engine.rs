//! Polars SQL, in memory.

use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use polars::prelude as pl;
use polars::prelude::IntoLazy;
use polars::sql::SQLContext;

use super::engine::{Job, OUTPUT};
use super::polars_functions::registry;
use crate::arrow_bridge::{dtype_to_arrow, empty_frame, field_to_polars, from_polars, to_polars};
use crate::error::{Code, Error, ErrorKind, Result};

fn context() -> SQLContext {
    SQLContext::new().with_function_registry(registry())
}

/// See [`super::engine::infer`].
pub fn infer(inputs: &[(String, SchemaRef)], query: &str) -> std::result::Result<Schema, String> {
    let mut context = context();
    for (name, schema) in inputs {
        context.register(name, empty_frame(schema).map_err(|error| error.to_string())?.lazy());
    }
    let mut frame = context.execute(query).map_err(|error| error.to_string())?;
    frame.collect_schema().map_err(|error| error.to_string())?;
    // Some type errors show only when the plan runs; running it on no rows finds them before there is data.
    let empty = frame.collect().map_err(|error| error.to_string())?;
    let schema = empty.schema();
    let mut fields = Vec::new();
    for (name, dtype) in schema.iter() {
        let data_type = dtype_to_arrow(name, dtype).map_err(|error| error.to_string())?;
        fields.push(Field::new(name.as_str(), data_type, true));
    }
    Ok(Schema::new(fields))
}

/// See [`super::engine::run`].
pub fn run(job: Job<'_>) -> Result<Vec<RecordBatch>> {
    let mut context = context();
    for input in &job.inputs {
        context.register(&input.name, to_polars(&input.schema, &input.rows)?.lazy());
    }
    let mut frame = context.execute(job.query).map_err(failed)?;
    let mut target = job.computed;
    if let Some((checks, checked)) = job.checks {
        frame = with_stored_types(frame, job.computed)?;
        let mut context = self::context();
        context.register(OUTPUT, frame);
        frame = context.execute(checks).map_err(failed)?;
        target = checked;
    }
    from_polars(frame.collect().map_err(failed)?, target)
}

/// Checks see the types that are stored.
fn with_stored_types(mut frame: pl::LazyFrame, computed: &SchemaRef) -> Result<pl::LazyFrame> {
    let schema = frame.collect_schema().map_err(failed)?;
    let mut casts = Vec::new();
    for field in computed.fields() {
        let wanted = field_to_polars(field)?;
        match schema.get(field.name()) {
            Some(dtype) if *dtype != wanted => {
                let column = pl::col(field.name().as_str());
                // A cast from one unit or zone to another goes through the naive type of the wanted unit: its clock is UTC.
                let column = match (dtype, &wanted) {
                    (pl::DataType::Datetime(_, None), pl::DataType::Datetime(unit, Some(_))) => {
                        column.cast(pl::DataType::Datetime(*unit, None))
                    }
                    _ => column,
                };
                casts.push(column.strict_cast(wanted));
            }
            _ => {}
        }
    }
    Ok(if casts.is_empty() { frame } else { frame.with_columns(casts) })
}

fn failed(cause: pl::PolarsError) -> Error {
    Error::new(ErrorKind::Data, "the SQL failed on this batch's rows")
        .coded(Code::SqlOnRows)
        .caused_by(cause)
        .help("TRY_CAST makes null of a value that cannot be cast; an expectation can then set the row aside")
}
