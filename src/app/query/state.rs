//! What tables remember, as rows: `state.gold_sessions` is the state of `gold.sessions`.

use std::collections::BTreeMap;
use std::path::Path;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;

use super::super::{Failure, compose};
use crate::checkpoint::states::States;
use crate::cli::Global;
use crate::config::spec::PipelineSpec;
use crate::error::{Context, Error, ErrorKind};
use crate::model::batch::CommitRecord;
use crate::runner::remembered;
use crate::storage;
use crate::transform::Transform;

/// The column of saved entries that says they are gone.
const GONE: &str = "_gone";

/// The states that a batch left: what they are called in queries, whose they are, and their files.
pub(super) fn names(spec: &PipelineSpec, record: &CommitRecord) -> BTreeMap<String, (String, String)> {
    let state = |name: &String| {
        let file = record.tables.get(name)?.state.clone()?;
        Some((format!("state.{}", name.replace('.', "_")), (name.clone(), file)))
    };
    spec.tables.iter().filter_map(|table| state(&table.name)).collect()
}

/// The entries of one state.
pub(super) async fn entries(
    global: &Global,
    pipeline: &Path,
    table: &str,
    file: &str,
) -> Result<(SchemaRef, Vec<RecordBatch>), Failure> {
    let checked = compose::check(global, pipeline).await?;
    let states = States::new(&storage::open(&checked.spec.lake)?)?;
    let nothing = || Error::failed(format!("table {table} remembers nothing"));
    let mut operator = checked.compiled.remembers(table)?.ok_or_else(nothing)?;
    let spec = checked.spec.tables.iter().find(|spec| spec.name == table).ok_or_else(nothing)?;
    let meaning = spec.keeps.as_ref().map(|keeps| remembered(spec, keeps)).ok_or_else(nothing)?;
    states.restore(table, file, &meaning, |rows| operator.load(rows)).await?;
    let schema = operator.saved();
    let shown: Vec<usize> = (0..schema.fields().len()).filter(|at| schema.field(*at).name() != GONE).collect();
    let why = "columns of a state could not be picked";
    let rows = operator.whole()?;
    let rows = rows.iter().map(|rows| rows.project(&shown)).collect::<Result<Vec<_>, _>>();
    let schema = schema.project(&shown).context(ErrorKind::Failed, why)?;
    Ok((schema.into(), rows.context(ErrorKind::Failed, why)?))
}
