//! Refresh: whole groups replaced. The same copy on write as upsert, with groups for keys and no order to compare.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::stream::{StreamExt, TryStreamExt};

use super::files::DataFile;
use super::scan::{Pruner, Reader, Semi, parallelism};
use super::schema::project;
use super::write::Rewrite;
use crate::error::{Context, Error, ErrorKind, Result};

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
