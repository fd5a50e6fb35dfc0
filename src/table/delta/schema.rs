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

/// Refuses tables that tidegate must not write to: made by somebody else, or with features that it would break.
pub(super) fn check_writable(definition: &TableDefinition, state: &DeltaTableState, at: &str) -> Result<()> {
    let refuse =
        |why: String| Error::config(format!("table {} cannot be written: {why}", definition.name)).with("at", at);
    match made_by(state) {
        None => {
            return Err(refuse("it was not made by tidegate".to_owned())
                .help("nothing was written; choose another table name, or move that table away"));
        }
        Some(maker) if maker.pipeline_id != definition.maker.pipeline_id => {
            return Err(refuse(format!("it belongs to the pipeline `{}` ({})", maker.pipeline, maker.pipeline_id))
                .with("this pipeline", format!("{} ({})", definition.maker.pipeline, definition.maker.pipeline_id))
                .help("nothing was written; two pipelines cannot share a table: choose another name or lake"));
        }
        Some(_) => {}
    }
    if let Some(feature) = unsafe_feature(state, &definition.write) {
        return Err(refuse(format!("it uses {feature}, which tidegate would break")).help(
            "nothing was written; turn the feature off with the tool that turned it on, or choose another table",
        ));
    }
    let partitions = state.metadata().partition_columns();
    if partitions != definition.partition_by.as_slice() {
        return Err(refuse("its partition columns are others".to_owned())
            .with("table has", partitions.join(", "))
            .with("pipeline wants", definition.partition_by.join(", "))
            .help("nothing was written; partitions cannot change in place: choose another table name"));
    }
    Ok(())
}

fn unsafe_feature(state: &DeltaTableState, write: &WriteMode) -> Option<String> {
    let is_on = |value: &String| value.eq_ignore_ascii_case("true");
    for (key, value) in state.metadata().configuration() {
        let feature = match key.as_str() {
            "delta.enableDeletionVectors" if is_on(value) => "deletion vectors",
            "delta.enableChangeDataFeed" if is_on(value) => "the change data feed",
            "delta.enableRowTracking" if is_on(value) => "row tracking",
            "delta.appendOnly" if is_on(value) && *write != WriteMode::Append => "append-only mode",
            "delta.columnMapping.mode" if value != "none" => "column mapping",
            key if key.starts_with("delta.constraints.") => "check constraints",
            _ => continue,
        };
        return Some(format!("{feature} ({key})"));
    }
    for field in state.schema().fields() {
        let risky = |key: &&String| {
            ["delta.generationExpression", "delta.invariants"].contains(&key.as_str())
                || key.starts_with("delta.identity.")
        };
        if let Some(key) = field.metadata().keys().find(risky) {
            return Some(format!("a computed or checked column ({key} on `{}`)", field.name()));
        }
    }
    let clustered = |name: &String| name.to_lowercase().contains("clustering");
    let features = state.protocol().writer_features().unwrap_or_default();
    features.iter().map(|f| format!("{f:?}")).find(clustered).map(|_| "liquid clustering".to_owned())
}

/// The Delta schema of a definition.
pub(super) fn delta_schema(definition: &TableDefinition) -> Result<StructType> {
    let schema = plain_schema(&definition.schema);
    (&schema)
        .try_into_kernel()
        .context(ErrorKind::Config, format!("table {} has a column type that Delta does not know", definition.name))
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
            return Err(Error::new(
                ErrorKind::Data,
                format!("column `{}` of {table} is not null, but {nulls} rows have no value for it", field.name()),
            )
            .help("nothing was written; set such rows aside with an expectation (`else: quarantine`)"));
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
