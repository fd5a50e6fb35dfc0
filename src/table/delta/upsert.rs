//! Upsert by copy on write: find the rows that the batch replaces by reading key columns only, rewrite the files that
//! hold one, leave every other file alone.
//!
//! The built-in MERGE joins all columns of every file it cannot rule out; here memory is bounded by the batch and one
//! file per reader, and a file without a hit costs the reading of its keys.
//!
//! Ranks: between rows of one batch, and against remembered deletes, `order_by` and all source coordinates decide.
//! Against stored rows, `order_by` and those coordinates that the table stores; on a tie the incoming row wins.

use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::row::Rows;
use futures::stream::{StreamExt, TryStreamExt};

use super::files::DataFile;
use super::rows::Encoder;
use super::scan::{Pruner, Reader, parallelism};
use super::schema::{plain_schema, project};
use super::winners::{Winners, ranking};
use super::write::Rewrite;
use crate::error::{Context, Error, ErrorKind, Result};

/// How rows of this table are told apart and ranked.
pub(super) struct Ranking {
    pub(super) key: Encoder,
    /// Over the incoming rows.
    pub(super) incoming: Encoder,
    /// Over the columns that the table stores; `None` = the table stores nothing that ranks, and the newcomer wins.
    pub(super) stored: Option<Encoder>,
}

impl Ranking {
    pub(super) fn new(key: &[String], order_by: &[String], rows: &Schema, table: &Schema) -> Result<Ranking> {
        // The table's types win, the batch brings what the table does not store.
        let mut fields: Vec<_> = table.fields().iter().cloned().collect();
        let extra = plain_schema(rows);
        fields.extend(extra.fields().iter().filter(|f| table.column_with_name(f.name()).is_none()).cloned());
        let both = Schema::new(fields);
        if let Some(missing) = order_by.iter().find(|n| rows.column_with_name(n).is_none()) {
            return Err(Error::config(format!("the rows have no column `{missing}` to order by")));
        }
        let names = ranking(order_by, rows);
        let stored: Vec<String> = names.iter().filter(|n| table.column_with_name(n).is_some()).cloned().collect();
        Ok(Ranking {
            key: Encoder::new(&both, key)?,
            incoming: Encoder::new(&both, &names)?,
            stored: if stored.is_empty() { None } else { Some(Encoder::new(&both, &stored)?) },
        })
    }
}

/// What a batch does to the stored rows.
#[derive(Default)]
pub(super) struct Hits {
    pub(super) work: Vec<Rewrite>,
    /// Winner `i` replaces (or removes) a stored row.
    pub(super) replaced: Vec<bool>,
    /// Winner `i` met a newer stored row.
    pub(super) beaten: Vec<bool>,
}

/// Compares the winners still `alive` with the stored rows of `files`.
pub(super) async fn find_hits(
    reader: &Reader,
    files: Vec<DataFile>,
    schema: &SchemaRef,
    ranking: &Ranking,
    winners: &Arc<Winners>,
    alive: Vec<bool>,
) -> Result<Hits> {
    let mut hits = Hits { work: Vec::new(), replaced: vec![false; winners.len()], beaten: vec![false; winners.len()] };
    if files.is_empty() {
        return Ok(hits);
    }
    let mut names: Vec<String> = ranking.key.names().cloned().collect();
    if let Some(stored) = &ranking.stored {
        names.extend(stored.names().filter(|n| !ranking.key.names().any(|k| k == *n)).cloned());
    }
    let columns = project(schema, &names, &reader.location)?;
    let pruner = Pruner::new(&ranking.key, &winners.rows, reader)?;
    let mut candidates = Vec::new();
    for file in files {
        if pruner.may_hold(&file)? {
            candidates.push(file);
        }
    }
    let look = Arc::new(Look {
        reader: reader.clone(),
        columns,
        key: ranking.key.clone(),
        stored: ranking.stored.clone(),
        ranks: ranking.stored.as_ref().map(|stored| stored.encode(&winners.rows)).transpose()?,
        winners: winners.clone(),
        alive,
    });
    let tasks = candidates.into_iter().map(|file| {
        let look = look.clone();
        let task = tokio::spawn(async move { look.at(file).await });
        async move { task.await.context(ErrorKind::Failed, "a reader died")? }
    });
    let mut found = futures::stream::iter(tasks).buffered(parallelism());
    while let Some(Found { rewrite, replaced, beaten }) = found.try_next().await? {
        replaced.into_iter().for_each(|number| hits.replaced[number as usize] = true);
        beaten.into_iter().for_each(|number| hits.beaten[number as usize] = true);
        if !rewrite.gone.is_empty() {
            hits.work.push(rewrite);
        }
    }
    Ok(hits)
}

struct Look {
    reader: Reader,
    columns: SchemaRef,
    key: Encoder,
    stored: Option<Encoder>,
    ranks: Option<Rows>,
    winners: Arc<Winners>,
    alive: Vec<bool>,
}

struct Found {
    rewrite: Rewrite,
    replaced: Vec<u32>,
    beaten: Vec<u32>,
}

impl Look {
    async fn at(&self, file: DataFile) -> Result<Found> {
        let mut rows = self.reader.open(&file, self.columns.clone()).await?;
        let mut found =
            Found { rewrite: Rewrite { file, rows: 0, gone: Vec::new() }, replaced: Vec::new(), beaten: Vec::new() };
        while let Some(batch) = rows.try_next().await? {
            self.compare(&batch, &mut found)?;
        }
        Ok(found)
    }

    fn compare(&self, batch: &RecordBatch, found: &mut Found) -> Result<()> {
        let keys = self.key.encode(batch)?;
        let mut stored: Option<Rows> = None;
        for at in 0..batch.num_rows() {
            let Some(number) = self.winners.find(keys.row(at)) else { continue };
            if !self.alive[number] {
                continue;
            }
            let newer = match (&self.stored, &self.ranks) {
                (Some(encoder), Some(ranks)) => {
                    let stored = match &mut stored {
                        Some(rows) => rows,
                        empty => empty.insert(encoder.encode(batch)?),
                    };
                    stored.row(at) > ranks.row(number)
                }
                _ => false,
            };
            if newer {
                found.beaten.push(number as u32);
            } else {
                found.rewrite.gone.push((found.rewrite.rows + at as u64) as u32);
                found.replaced.push(number as u32);
            }
        }
        found.rewrite.rows += batch.num_rows() as u64;
        Ok(())
    }
}

/// The chosen winners.
pub(super) fn pick(winners: &Winners, numbers: Vec<u32>) -> Result<RecordBatch> {
    take_record_batch(&winners.rows, &UInt32Array::from(numbers)).context(ErrorKind::Failed, "rows could not be picked")
}
