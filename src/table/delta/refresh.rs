//! Refresh: whole groups replaced. The same copy on write as upsert, with groups for keys and no order to compare.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use arrow::util::display::array_value_to_string;
use futures::stream::{StreamExt, TryStreamExt};

use super::files::DataFile;
use super::scan::{Pruner, Reader, Semi, parallelism};
use super::schema::project;
use super::write::Rewrite;
use crate::error::{Context, Error, ErrorKind, Result};

/// Refuses recomputed rows that belong to none of `groups`: nothing would ever replace them, and every batch that
/// computes them again would add them once more.
pub(super) fn check_inside(rows: &[RecordBatch], groups: &RecordBatch, schema: &SchemaRef, table: &str) -> Result<()> {
    let semi = Semi::new(groups, schema)?;
    let mut outside = 0usize;
    let mut first = None;
    for batch in rows {
        let mask = semi.mask(batch)?;
        if first.is_none()
            && let Some(at) = (0..mask.len()).find(|at| !mask.value(*at))
        {
            first = Some(describe(&semi, batch, at)?);
        }
        outside += mask.len() - mask.true_count();
    }
    let Some(first) = first else { return Ok(()) };
    let by: Vec<&str> = semi.encoder().names().map(String::as_str).collect();
    let text = format!(
        "{outside} rows computed for table {table}, such as {first}, belong to no group that the batch touched"
    );
    Err(Error::new(ErrorKind::Data, text)
        .with("table", table)
        .with("groups touched", groups.num_rows())
        .help("nothing was written to this table; tables upstream of it may already carry this batch")
        .help(format!(
            "`refresh` replaces whole groups of its upstream: `sql` must pass the columns of `by` ({}) through \
             unchanged, without a calendar of all values, upper(), coalesce() and the like; compute such values in the \
             upstream table, and refresh by them",
            by.join(", ")
        )))
}

/// The group of a row, such as `city = oslo, day = null`.
fn describe(semi: &Semi, batch: &RecordBatch, at: usize) -> Result<String> {
    let columns = semi.encoder().columns(batch)?;
    let value = |(name, column): (&String, &ArrayRef)| {
        let text = match column.is_null(at) {
            true => "null".to_owned(),
            false => array_value_to_string(column, at).context(ErrorKind::Failed, "a value cannot be shown")?,
        };
        Ok(format!("{name} = {text}"))
    };
    let values = semi.encoder().names().zip(&columns).map(value).collect::<Result<Vec<_>>>()?;
    Ok(values.join(", "))
}

/// The files that hold rows of `groups`, and which rows those are.
pub(super) async fn find_groups(
    reader: &Reader,
    files: Vec<DataFile>,
    schema: &SchemaRef,
    groups: &RecordBatch,
) -> Result<Vec<Rewrite>> {
    if groups.num_rows() == 0 {
        return Ok(Vec::new());
    }
    let semi = Arc::new(Semi::new(groups, schema)?);
    let pruner = Pruner::new(semi.encoder(), groups, reader)?;
    let names: Vec<String> = semi.encoder().names().cloned().collect();
    let columns = project(schema, &names, &reader.location)?;
    let mut candidates = Vec::new();
    for file in files {
        if pruner.may_hold(&file)? {
            candidates.push(file);
        }
    }
    let tasks = candidates.into_iter().map(|file| {
        let (reader, columns, semi) = (reader.clone(), columns.clone(), semi.clone());
        let task = tokio::spawn(async move {
            let mut rows = reader.open(&file, columns).await?;
            let mut rewrite = Rewrite { file, rows: 0, gone: Vec::new() };
            while let Some(batch) = rows.try_next().await? {
                let mask = semi.mask(&batch)?;
                let hits = mask.values().set_indices().map(|at| (rewrite.rows + at as u64) as u32);
                rewrite.gone.extend(hits);
                rewrite.rows += batch.num_rows() as u64;
            }
            Ok::<_, Error>(rewrite)
        });
        async move { task.await.context(ErrorKind::Failed, "a reader died")? }
    });
    let found: Vec<Rewrite> = futures::stream::iter(tasks).buffered(parallelism()).try_collect().await?;
    Ok(found.into_iter().filter(|rewrite| !rewrite.gone.is_empty()).collect())
}
