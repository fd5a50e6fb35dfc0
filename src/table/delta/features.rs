//! What a table may not be or have if the pipeline is to write to it. Looked at before a batch begins, and again before
//! each commit: by then another table may carry the batch.

use deltalake::kernel::transaction::PROTOCOL;
use deltalake::table::state::DeltaTableState;

use super::files::DataFile;
use super::handle::Handle;
use super::schema::made_by;
use crate::error::{Error, Result};
use crate::table::{TableDefinition, WriteMode};

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
    if let Some(Feature { name, mend }) = unsafe_feature(state, &definition.write) {
        return Err(refuse(format!("it uses {name}, which tidegate would break"))
            .help("nothing was written")
            .help(mend));
    }
    if let Err(cause) = PROTOCOL.can_write_to(state) {
        return Err(refuse("it uses features of Delta that tidegate cannot write".to_owned())
            .caused_by(cause)
            .help("nothing was written")
            .help(
                "take the feature away with the tool that added it (ALTER TABLE … DROP FEATURE …), RESTORE the table to \
                 the version before it, or choose another table name",
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

/// Something that a table has and tidegate does not keep up, and how to get rid of it.
struct Feature {
    name: String,
    mend: String,
}

fn unsafe_feature(state: &DeltaTableState, write: &WriteMode) -> Option<Feature> {
    let is_on = |value: &String| value.eq_ignore_ascii_case("true");
    let turn_off = |key: &str| format!("turn it off: ALTER TABLE … SET TBLPROPERTIES ('{key}' = 'false')");
    for (key, value) in state.metadata().configuration() {
        let constraint = key.strip_prefix("delta.constraints.");
        let (name, mend) = match key.as_str() {
            "delta.enableDeletionVectors" if is_on(value) => {
                ("deletion vectors", format!("{}, then REORG TABLE … APPLY (PURGE)", turn_off(key)))
            }
            "delta.enableChangeDataFeed" if is_on(value) => ("the change data feed", turn_off(key)),
            "delta.enableRowTracking" if is_on(value) => ("row tracking", turn_off(key)),
            "delta.appendOnly" if is_on(value) && *write != WriteMode::Append => ("append-only mode", turn_off(key)),
            "delta.columnMapping.mode" if value != "none" => (
                "column mapping",
                "RESTORE the table to the version before it, or choose another table name".to_owned(),
            ),
            _ if constraint.is_some() => (
                "check constraints",
                format!(
                    "drop it: ALTER TABLE … DROP CONSTRAINT {}; a rule belongs into the pipeline's `expect`",
                    constraint.unwrap_or_default()
                ),
            ),
            _ => continue,
        };
        return Some(Feature { name: format!("{name} ({key})"), mend });
    }
    for field in state.schema().fields() {
        let risky = |key: &&String| {
            ["delta.generationExpression", "delta.invariants"].contains(&key.as_str())
                || key.starts_with("delta.identity.")
        };
        if let Some(key) = field.metadata().keys().find(risky) {
            let name = format!("a computed or checked column ({key} on `{}`)", field.name());
            let mend = "RESTORE the table to the version before it, or compute the column in the pipeline's SQL and choose \
                        another table name";
            return Some(Feature { name, mend: mend.to_owned() });
        }
    }
    let features = state.protocol().writer_features().unwrap_or_default();
    let is_clustered = features.iter().any(|feature| format!("{feature:?}").to_lowercase().contains("cluster"));
    let mend = || "turn it off: ALTER TABLE … CLUSTER BY NONE, then ALTER TABLE … DROP FEATURE clustering".to_owned();
    is_clustered.then(|| Feature { name: "liquid clustering".to_owned(), mend: mend() })
}

/// Rows that are marked as deleted beside their file would come back when the file is rewritten.
pub(super) fn check_deletion_vectors(definition: &TableDefinition, handle: &Handle) -> Result<()> {
    let features = handle.state().and_then(|state| state.protocol().writer_features()).unwrap_or_default();
    let may_have_any = features.iter().any(|feature| format!("{feature:?}") == "DeletionVectors");
    if !may_have_any || !handle.files()?.iter().any(DataFile::has_deletion_vector) {
        return Ok(());
    }
    let text = format!("table {} has deletion vectors, which tidegate would break", definition.name);
    let help = "nothing was written; purge them (REORG TABLE … APPLY (PURGE)) and run again";
    Err(Error::config(text).with("at", handle.location()).help(help))
}
