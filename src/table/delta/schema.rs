//! Schemas: what a table has, what the pipeline wants, and rows cast from the one to the other.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, RecordBatch, RecordBatchOptions, StructArray, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::{Metadata, MetadataExt, StructField, StructType};
use deltalake::table::state::DeltaTableState;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::table::{Maker, TableDefinition, WriteMode};

/// Table properties that name the pipeline which made a table.
pub(super) const PIPELINE: &str = "tidegate.pipeline";
pub(super) const PIPELINE_ID: &str = "tidegate.pipelineId";

/// What a table looks like after the next commit.
#[derive(Debug, Clone)]
pub(super) struct Reconciled {
    /// All columns, table order, new ones last.
    pub(super) schema: SchemaRef,
    /// New table metadata when columns are added.
    pub(super) metadata: Option<Metadata>,
}

/// Who made the table, from its properties.
pub(super) fn made_by(state: &DeltaTableState) -> Option<Maker> {
    let properties = state.metadata().configuration();
    let pipeline = properties.get(PIPELINE)?.clone();
    let pipeline_id = properties.get(PIPELINE_ID)?.clone();
    Some(Maker { pipeline, pipeline_id })
}

/// The Delta schema of a definition.
pub(super) fn delta_schema(definition: &TableDefinition) -> Result<StructType> {
    let schema = plain_schema(&definition.schema);
    (&schema)
        .try_into_kernel()
        .context(ErrorKind::Config, format!("table {} has a column type that Delta does not know", definition.name))
}

/// Refuses a table that has lost columns which it had at version `carrier` and the pipeline writes.
pub(super) fn check_kept(
    definition: &TableDefinition,
    then: &Schema,
    now: &Schema,
    carrier: i64,
    at: &str,
) -> Result<()> {
    let wanted = definition.schema.fields().iter().map(|field| field.name().as_str());
    let has = |schema: &Schema, name: &str| schema.column_with_name(name).is_some();
    let gone: Vec<&str> = wanted.filter(|name| has(then, name) && !has(now, name)).collect();
    if gone.is_empty() {
        return Ok(());
    }
    Err(Error::config(format!("somebody dropped columns of table {} that the pipeline writes", definition.name))
        .with("at", at)
        .with("dropped", gone.join(", "))
        .help("nothing was written")
        .help(format!("bring them back: RESTORE TABLE … TO VERSION AS OF {carrier}"))
        .help("or take them out of the pipeline's `sql` (or `schema`), if they are meant to go"))
}

/// Nulls where the table forbids them and the pipeline does not: the table was made when the column was `not null`.
/// Deletes are not stored and may lack anything but the key.
pub(super) fn check_nulls(rows: &[RecordBatch], definition: &TableDefinition, table: &Schema) -> Result<()> {
    let flag = match &definition.write {
        WriteMode::Upsert { delete_flag, .. } => delete_flag.as_deref(),
        _ => None,
    };
    for field in table.fields().iter().filter(|field| !field.is_nullable()) {
        let name = field.name();
        if definition.schema.field_with_name(name).is_ok_and(|wanted| !wanted.is_nullable()) {
            continue;
        }
        let mut missing = 0;
        for batch in rows {
            let deletes = flag.and_then(|flag| batch.column_by_name(flag)).and_then(|flags| flags.as_boolean_opt());
            let is_delete = |row: usize| deletes.is_some_and(|flags| flags.is_valid(row) && flags.value(row));
            let is_null = |row: usize| batch.column_by_name(name).is_none_or(|column| column.is_null(row));
            missing += (0..batch.num_rows()).filter(|&row| is_null(row) && !is_delete(row)).count();
        }
        if missing > 0 {
            return Err(without_values(name, &definition.name, missing));
        }
    }
    Ok(())
}

fn without_values(column: &str, table: &str, rows: usize) -> Error {
    Error::new(
        ErrorKind::Data,
        format!("column `{column}` of {table} is not null, but {rows} rows have no value for it"),
    )
    .help("nothing was written; set such rows aside with an expectation (`else: quarantine`)")
}

/// Compares what the pipeline wants with what the table has; refuses changes that would alter stored data.
pub(super) fn reconcile(definition: &TableDefinition, state: &DeltaTableState, at: &str) -> Result<Reconciled> {
    let table = arrow_schema(state);
    let mut problems = Vec::new();
    let mut fields: Vec<FieldRef> = table.fields().iter().cloned().collect();
    let mut changed: Vec<usize> = Vec::new();
    for wanted in plain_schema(&definition.schema).fields() {
        let Some(at) = fields.iter().position(|f| f.name() == wanted.name()) else {
            if let Some(twin) = fields.iter().find(|f| f.name().eq_ignore_ascii_case(wanted.name())) {
                problems.push(format!("{}: table has `{}`, names differ only in case", wanted.name(), twin.name()));
                continue;
            }
            changed.push(fields.len());
            fields.push(Arc::new(Field::new(wanted.name(), nullable_inside(wanted.data_type()), true)));
            continue;
        };
        let before = fields[at].clone();
        let merged = merge(wanted.name(), before.data_type(), wanted.data_type(), &mut problems);
        if merged != *before.data_type() {
            changed.push(at);
            fields[at] = Arc::new(before.as_ref().clone().with_data_type(merged));
        }
    }
    for field in table.fields() {
        if !field.is_nullable() && definition.schema.column_with_name(field.name()).is_none() {
            problems.push(format!(
                "{}: table has {} not null, pipeline does not write it",
                field.name(),
                field.data_type()
            ));
        }
    }
    if !problems.is_empty() {
        let mut error =
            Error::config(format!("table {} and the pipeline disagree about columns", definition.name)).with("at", at);
        for problem in problems {
            error = error.with("column", problem);
        }
        return Err(error.help(
            "nothing was written; types of stored columns do not change in place: add a column under a new name, or \
             choose a new table name and backfill it",
        ));
    }
    let schema = Arc::new(Schema::new(fields));
    let metadata = if changed.is_empty() { None } else { Some(new_metadata(state, &schema, &changed)?) };
    Ok(Reconciled { schema, metadata })
}

/// Keeps the table's own fields as they are (comments and all) and converts only what is new.
fn new_metadata(state: &DeltaTableState, schema: &Schema, changed: &[usize]) -> Result<Metadata> {
    let why = "the new columns have a type that Delta does not know";
    let old = state.schema();
    let old: Vec<&StructField> = old.fields().collect();
    let mut fields: Vec<StructField> = Vec::new();
    for (at, field) in schema.fields().iter().enumerate() {
        match old.get(at) {
            Some(kept) if !changed.contains(&at) => fields.push((*kept).clone()),
            _ => fields.push(field.as_ref().try_into_kernel().context(ErrorKind::Config, why)?),
        }
    }
    let schema = StructType::try_new(fields).context(ErrorKind::Config, why)?;
    state
        .metadata()
        .clone()
        .with_schema(&schema)
        .context(ErrorKind::Failed, "the table's metadata could not be changed")
}

fn merge(path: &str, table: &DataType, wanted: &DataType, problems: &mut Vec<String>) -> DataType {
    match (table, wanted) {
        (DataType::Struct(has), DataType::Struct(wants)) => {
            let mut fields: Vec<FieldRef> = has.iter().cloned().collect();
            for want in wants {
                match fields.iter().position(|f| f.name() == want.name()) {
                    Some(at) => {
                        let inner = format!("{path}.{}", want.name());
                        let merged = merge(&inner, fields[at].data_type(), want.data_type(), problems);
                        fields[at] = Arc::new(fields[at].as_ref().clone().with_data_type(merged));
                    }
                    None => {
                        fields.push(Arc::new(Field::new(want.name(), nullable_inside(want.data_type()), true)));
                    }
                }
            }
            DataType::Struct(fields.into())
        }
        (DataType::List(has), DataType::List(want)) => {
            let merged = merge(&format!("{path}[]"), has.data_type(), want.data_type(), problems);
            DataType::List(Arc::new(has.as_ref().clone().with_data_type(merged)))
        }
        (has, want) if has == want => has.clone(),
        (DataType::Map(..), DataType::Map(..)) => table.clone(),
        (has, want) => {
            problems.push(format!("{path}: table has {has}, pipeline wants {want}"));
            has.clone()
        }
    }
}

/// A type whose struct fields may all be null: columns that are added later are null in older rows.
fn nullable_inside(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Struct(fields) => {
            let field = |f: &FieldRef| Field::new(f.name(), nullable_inside(f.data_type()), true);
            DataType::Struct(fields.iter().map(field).collect())
        }
        DataType::List(inner) => {
            DataType::List(Arc::new(Field::new(inner.name(), nullable_inside(inner.data_type()), true)))
        }
        other => other.clone(),
    }
}

/// The table's columns as arrow types.
pub(super) fn arrow_schema(state: &DeltaTableState) -> SchemaRef {
    state.snapshot().arrow_schema()
}

/// A schema in the types that Delta tables are read with: plain strings and bytes, lists of `element`.
pub(super) fn plain_schema(schema: &Schema) -> Schema {
    let field = |f: &FieldRef| Field::new(f.name(), plain_type(f.data_type()), f.is_nullable());
    Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>())
}

fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, values) => plain_type(values),
        DataType::List(inner)
        | DataType::LargeList(inner)
        | DataType::ListView(inner)
        | DataType::LargeListView(inner) => {
            DataType::List(Arc::new(Field::new("element", plain_type(inner.data_type()), inner.is_nullable())))
        }
        DataType::Struct(fields) => {
            let field = |f: &FieldRef| Field::new(f.name(), plain_type(f.data_type()), f.is_nullable());
            DataType::Struct(fields.iter().map(field).collect::<Fields>())
        }
        other => other.clone(),
    }
}

/// Casts one column; struct fields match by name, absent ones are null. A value that does not fit is an error.
pub(super) fn conform_array(array: &ArrayRef, to: &DataType, name: &str) -> Result<ArrayRef> {
    let failed = || format!("column `{name}` cannot be turned from {} into {to}", array.data_type());
    match (array.data_type(), to) {
        (from, to) if from == to => Ok(array.clone()),
        (DataType::Struct(_), DataType::Struct(fields)) => {
            let from = array.as_struct();
            let child = |field: &FieldRef| match from.column_by_name(field.name()) {
                Some(column) => conform_array(column, field.data_type(), &format!("{name}.{}", field.name())),
                None => Ok(new_null_array(field.data_type(), from.len())),
            };
            let columns = fields.iter().map(child).collect::<Result<Vec<_>>>()?;
            let nulls = from.nulls().cloned();
            let made = StructArray::try_new_with_length(fields.clone(), columns, nulls, from.len());
            Ok(Arc::new(made.context(ErrorKind::Data, failed())?))
        }
        (DataType::List(_), DataType::List(inner)) => {
            let from = array.as_list::<i32>();
            let values = conform_array(from.values(), inner.data_type(), &format!("{name}[]"))?;
            let made = ListArray::try_new(inner.clone(), from.offsets().clone(), values, from.nulls().cloned());
            Ok(Arc::new(made.context(ErrorKind::Data, failed())?))
        }
        (
            DataType::LargeList(inner) | DataType::ListView(inner) | DataType::LargeListView(inner),
            DataType::List(_),
        ) => {
            let list = DataType::List(inner.clone());
            let array = cast_with_options(array, &list, &strict()).context(ErrorKind::Data, failed())?;
            conform_array(&array, to, name)
        }
        _ => cast_with_options(array, to, &strict()).context(ErrorKind::Data, failed()),
    }
}

fn strict() -> CastOptions<'static> {
    CastOptions { safe: false, ..Default::default() }
}

/// The columns of `schema` out of `batch`, cast; columns that the batch lacks are null. Nulls where the table forbids
/// them are an error: relaxing the table silently would break its readers.
pub(super) fn conform(batch: &RecordBatch, schema: &SchemaRef, table: &str) -> Result<RecordBatch> {
    let mut columns = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let column = match batch.column_by_name(field.name()) {
            Some(column) => conform_array(column, field.data_type(), field.name())?,
            None => new_null_array(field.data_type(), batch.num_rows()),
        };
        let nulls = column.logical_null_count();
        if !field.is_nullable() && nulls > 0 {
            return Err(without_values(field.name(), table, nulls));
        }
        columns.push(column);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options)
        .context(ErrorKind::Failed, format!("rows of {table} do not fit its schema"))
}

/// `schema` cut down to `names`, in that order, all nullable.
pub(super) fn project(schema: &Schema, names: &[String], table: &str) -> Result<SchemaRef> {
    let field = |name: &String| match schema.field_with_name(name) {
        Ok(field) => Ok(field.clone().with_nullable(true).with_metadata(HashMap::new())),
        Err(_) => Err(Error::config(format!("table {table} has no column `{name}`"))),
    };
    Ok(Arc::new(Schema::new(names.iter().map(field).collect::<Result<Vec<_>>>()?)))
}
