//! Rows that go because their records are read again: copy on write by source coordinates.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type, SchemaRef};
use futures::stream::{StreamExt, TryStreamExt};

use super::files::DataFile;
use super::scan::{Reader, parallelism};
use super::schema::project;
use super::write::Rewrite;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::table::Trim;

/// The files that hold rows to remove, and which rows those are.
pub(super) async fn find(
    reader: &Reader,
    files: Vec<DataFile>,
    schema: &SchemaRef,
    trim: &Trim,
) -> Result<Vec<Rewrite>> {
    let Some(lowest) = trim.from.0.values().min().copied() else { return Ok(Vec::new()) };
    let mut names = trim.columns.to_vec();
    names.extend(trim.only.iter().map(|(column, _)| column.clone()));
    let columns = project(schema, &names, &reader.location)?;
    let offset = trim.columns[2].clone();
    let trim = Arc::new(Trim { rows: Vec::new(), ..trim.clone() });
    let tasks = files.into_iter().filter(|file| may_reach(file, &offset, lowest)).map(|file| {
        let (reader, columns, trim) = (reader.clone(), columns.clone(), trim.clone());
        let task = tokio::spawn(async move {
            let mut rows = reader.open(&file, columns).await?;
            let mut rewrite = Rewrite { file, rows: 0, gone: Vec::new() };
            while let Some(batch) = rows.try_next().await? {
                rewrite.gone.extend(hits(&batch, &trim)?.iter().map(|at| rewrite.rows as u32 + at));
                rewrite.rows += batch.num_rows() as u64;
            }
            Ok::<_, Error>(rewrite)
        });
        async move { task.await.context(ErrorKind::Failed, "a reader died")? }
    });
    let found: Vec<Rewrite> =
        futures::stream::iter(tasks.collect::<Vec<_>>()).buffered(parallelism()).try_collect().await?;
    Ok(found.into_iter().filter(|rewrite| !rewrite.gone.is_empty()).collect())
}

/// False only when the file's statistics say that all its offsets are lower.
fn may_reach(file: &DataFile, offset: &str, lowest: i64) -> bool {
    let stats = file.view().and_then(|view| view.stats());
    let stats = stats.and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    let highest = stats.and_then(|stats| stats.get("maxValues")?.get(offset)?.as_i64());
    highest.is_none_or(|highest| highest >= lowest)
}

/// Positions of the rows that go.
fn hits(batch: &RecordBatch, trim: &Trim) -> Result<Vec<u32>> {
    let odd = || Error::failed("the coordinates of a table's rows have another type than they should");
    let topics = batch.column(0).as_string_opt::<i32>().ok_or_else(odd)?;
    let partitions = batch.column(1).as_primitive_opt::<Int32Type>().ok_or_else(odd)?;
    let offsets = batch.column(2).as_primitive_opt::<Int64Type>().ok_or_else(odd)?;
    let owners = match &trim.only {
        Some((_, names)) => Some((batch.column(3).as_string_opt::<i32>().ok_or_else(odd)?, names)),
        None => None,
    };
    let from: HashMap<(&str, i32), i64> =
        trim.from.0.iter().map(|(place, &at)| ((place.topic.as_str(), place.partition), at)).collect();
    let goes = |at: &usize| {
        if topics.is_null(*at) || partitions.is_null(*at) || offsets.is_null(*at) {
            return false;
        }
        let reached = from.get(&(topics.value(*at), partitions.value(*at)));
        reached.is_some_and(|&first| offsets.value(*at) >= first)
            && owners.is_none_or(|(owner, names)| owner.is_valid(*at) && names.contains(owner.value(*at)))
    };
    Ok((0..batch.num_rows()).filter(goes).map(|at| at as u32).collect())
}
