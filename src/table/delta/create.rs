//! Creating a table: version 0 holds schema and properties, rows follow in version 1.

use deltalake::DeltaTableError;
use deltalake::kernel::StructType;
use deltalake::operations::create::CreateBuilder;

use super::handle::{CHECKPOINT_EVERY, Handle, commit_properties};
use super::schema::{PIPELINE, PIPELINE_ID};
use crate::table::Maker;

/// Creates the table. An error says nothing: somebody may have been faster, or the answer was lost; load and look.
pub(super) async fn create(
    handle: &Handle,
    schema: &StructType,
    partition_by: &[String],
    maker: &Maker,
) -> Result<(), DeltaTableError> {
    let every = CHECKPOINT_EVERY.to_string();
    let properties = [
        (PIPELINE, maker.pipeline.as_str()),
        (PIPELINE_ID, maker.pipeline_id.as_str()),
        ("delta.checkpointInterval", every.as_str()),
        ("delta.logRetentionDuration", "interval 30 days"),
    ];
    let properties = properties.map(|(key, value)| (key.to_owned(), Some(value.to_owned())));
    let builder = CreateBuilder::new()
        .with_log_store(handle.log())
        .with_columns(schema.fields().cloned())
        .with_partition_columns(partition_by.iter().cloned())
        // `tidegate.*` is unknown to delta-rs, which would refuse it.
        .with_raise_if_key_not_exists(false)
        .with_configuration(properties)
        .with_commit_properties(commit_properties().with_max_retries(0));
    builder.await.map(|_| ())
}
