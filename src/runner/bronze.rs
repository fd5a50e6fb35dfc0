//! A half-done batch whose records the source has let go, finished from the tables that already hold them.
//!
//! It is exact or it does not happen. Every table that reads the lost source directly, on either side of a join, must carry
//! the batch. Where a table downstream still needs those rows, they are read back: from a table that appends and keeps each
//! row's coordinates and batch, that nobody has changed since, all of them, in the order of the records. And the batch's
//! dead letters must be in their table, because what was set aside cannot be found again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type, Schema};

use super::Runner;
use super::shaping::{Records, Rows};
use crate::config::spec::{From, TableSpec};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::model::batch::BatchPlan;
use crate::model::loss::Lost;
use crate::model::offset::{OffsetRanges, Partition};
use crate::source::{Read, column};
use crate::transform::Stage;
use crate::transform::decode::added::BATCH_ID;
use crate::transform::expect::in_source_order;

/// What a commit record says of a batch that was finished this way.
pub(super) const BRONZE: &str = "bronze";

/// The column of the dead-letter table that holds each row's batch.
const DEAD_BATCH_ID: &str = "batch_id";

/// What the tables that carry a batch know of it.
#[derive(Default)]
pub(super) struct ReadBack {
    /// The rows that were shaped for each table that reads a lost source directly.
    pub tables: BTreeMap<String, Rows>,
    /// Tables of which nobody needs the rows of the batch, and nobody knows them.
    pub unknown: BTreeSet<String>,
    /// Records of the lost sources, as far as the tables tell.
    pub input_rows: u64,
    /// Rows that the batch set aside.
    pub dead_letters: u64,
}

/// What a planned batch works with.
#[derive(Default)]
pub(super) struct Delivered {
    /// The records of each source that still has them.
    pub records: Records,
    /// What the tables hold of the batch, in place of the records of the others.
    pub held: Option<ReadBack>,
    /// What is missing all the same, where `on_data_loss: skip` lets a batch go on without.
    pub lost: BTreeMap<String, Vec<Lost>>,
}

impl Runner {
    /// The records of a planned batch, or what its tables hold of it where the source no longer has them.
    pub(super) async fn records_of(&mut self, plan: &BatchPlan) -> Result<Delivered> {
        let mut delivered = Delivered { lost: plan.lost.clone(), ..Delivered::default() };
        if plan.is_by_hand() {
            // It reads nothing; then nobody needs to be asked.
            return Ok(delivered);
        }
        let is_begun = self.is_begun(plan);
        let mut gone: BTreeMap<String, Error> = BTreeMap::new();
        let mut short: BTreeMap<String, Vec<Lost>> = BTreeMap::new();
        for (name, ranges) in &plan.sources {
            match self.deliver(plan, name, ranges).await {
                Ok(Read { batches, lost }) => {
                    delivered.records.insert(name.clone(), batches);
                    if !lost.is_empty() {
                        short.insert(name.clone(), lost);
                    }
                }
                Err(error) if error.kind() == ErrorKind::OffsetsLost => {
                    gone.insert(name.clone(), error);
                }
                Err(error) => return Err(error),
            }
        }
        // Of a batch that no table has yet, no table can give anything back.
        let incomplete: BTreeSet<String> = gone.keys().chain(short.keys().filter(|_| is_begun)).cloned().collect();
        if incomplete.is_empty() {
            delivered.add(short);
            return Ok(delivered);
        }
        let why = match self.read_back(plan, &incomplete).await? {
            Ok(found) => {
                let told = gone.values().map(|error| error.message().to_owned());
                let loss = told.chain(short.values().flatten().map(|lost| lost.loss.message())).next();
                self.emit(super::event::Event::FromBronze { batch: plan.batch, loss: loss.unwrap_or_default() });
                delivered.records.retain(|name, _| !incomplete.contains(name));
                delivered.held = Some(found);
                return Ok(delivered);
            }
            Err(why) => why,
        };
        match gone.into_values().next() {
            Some(loss) if is_begun => Err(loss.with("the batch was begun", why)),
            Some(loss) => Err(loss),
            None => {
                delivered.add(short);
                Ok(delivered)
            }
        }
    }

    async fn deliver(&mut self, plan: &BatchPlan, name: &str, ranges: &OffsetRanges) -> Result<Read> {
        let source = self.parts.sources.get_mut(name).ok_or_else(|| {
            Error::config(format!(
                "batch {} was planned with source `{name}`, which the pipeline no longer has",
                plan.batch
            ))
            .help("nothing was written; put the source back until this batch is done")
        })?;
        let known = plan.incarnations.get(name).cloned().unwrap_or_default();
        source.read(ranges, &known).await
    }

    pub(super) fn carries(&self, table: &str, plan: &BatchPlan) -> bool {
        let fact = self.position.as_ref().and_then(|position| position.applied.get(table));
        fact.and_then(|fact| fact.applied).is_some_and(|applied| applied >= plan.batch)
    }

    /// Some table has the batch.
    fn is_begun(&self, plan: &BatchPlan) -> bool {
        self.position.iter().flat_map(|position| position.applied.keys()).any(|table| self.carries(table, plan))
    }

    /// What the tables hold of the batch; the inner error is the reason why they do not hold enough.
    async fn read_back(&mut self, plan: &BatchPlan, lost: &BTreeSet<String>) -> Result<Result<ReadBack, String>> {
        let batch = plan.batch;
        let mut found = ReadBack::default();
        if let Some(dead_letters) = self.parts.spec.dead_letters.clone() {
            let table = dead_letters.table;
            if !self.carries(&table, plan) {
                let why = format!(
                    "{table} does not have batch {batch} yet: the rows that the batch set aside are only in the source"
                );
                return Ok(Err(why));
            }
            let (all, decoded) = self.count_dead_letters(&table, plan, lost).await?;
            found.dead_letters = all;
            found.input_rows = decoded;
        }
        let wanted = self.wanted(plan);
        let tables = self.parts.spec.tables.clone();
        let mut rows_of: BTreeMap<&String, u64> = BTreeMap::new();
        for table in &tables {
            // A join has two inputs: what is gone or not known on either side makes all of its rows so.
            let inputs = table.inputs();
            let source = inputs.iter().find_map(|from| match from {
                From::Source(source) => Some(source).filter(|source| lost.contains(*source)),
                From::Table(_) => None,
            });
            let Some(source) = source else {
                let is_unknown = |from: &&From| matches!(from, From::Table(name) if found.unknown.contains(name));
                if inputs.iter().any(is_unknown) && self.is_fed(table) {
                    found.unknown.insert(table.name.clone());
                }
                continue;
            };
            if !self.carries(&table.name, plan) {
                return Ok(Err(format!("{} does not have batch {batch} yet", table.name)));
            }
            let ranges = plan.sources.get(source).cloned().unwrap_or_default();
            match self.rows_in(&table.name, plan, &ranges).await? {
                Ok(rows) => {
                    let count: u64 = rows.iter().map(|rows| rows.num_rows() as u64).sum();
                    let known = rows_of.entry(source).or_default();
                    *known = count.max(*known);
                    found.tables.insert(table.name.clone(), Arc::new(rows));
                }
                Err(why) if wanted.contains(&table.name) => return Ok(Err(why)),
                Err(_) => {
                    found.unknown.insert(table.name.clone());
                }
            }
        }
        found.input_rows += rows_of.values().sum::<u64>();
        Ok(Ok(found))
    }

    /// The tables whose rows of the batch somebody downstream still has to be given.
    fn wanted(&self, plan: &BatchPlan) -> BTreeSet<String> {
        let mut wanted = BTreeSet::new();
        for table in self.parts.spec.tables.iter().rev() {
            let is_due = !self.carries(&table.name, plan) || wanted.contains(&table.name);
            if !is_due || !self.is_fed(table) {
                continue;
            }
            wanted.extend(table.inputs().into_iter().filter_map(|from| match from {
                From::Table(upstream) => Some(upstream.clone()),
                From::Source(_) => None,
            }));
        }
        wanted
    }

    /// Whether a table is made of the rows of the batch; one that remembers works them in, whatever its query reads.
    fn is_fed(&self, table: &TableSpec) -> bool {
        table.keeps.is_some() || self.parts.transform.reads(&table.name).batch
    }

    /// The rows that were shaped for a table that carries the batch, or why they cannot be told.
    async fn rows_in(
        &mut self,
        table: &str,
        plan: &BatchPlan,
        ranges: &OffsetRanges,
    ) -> Result<Result<Vec<RecordBatch>, String>> {
        if !self.parts.transform.reads_back(table) {
            let why = format!(
                "{table} does not keep its rows as they came: only a table that appends and has the columns {BATCH_ID}, \
                 {}, {} and {} does",
                column::TOPIC,
                column::PARTITION,
                column::OFFSET
            );
            return Ok(Err(why));
        }
        let known = self.parts.transform.schema(table);
        let txn = self.txn(table, plan)?;
        match self.table(table)?.added(&txn, BATCH_ID).await {
            Ok(rows) => Ok(as_shaped(rows, &known, table, ranges)?),
            Err(error) if error.kind() == ErrorKind::Config => Ok(Err(error.message().to_owned())),
            Err(error) => Err(error),
        }
    }

    /// Rows that the batch set aside, and how many of them are records of the `lost` sources that could not be decoded.
    async fn count_dead_letters(
        &mut self,
        table: &str,
        plan: &BatchPlan,
        lost: &BTreeSet<String>,
    ) -> Result<(u64, u64)> {
        let columns = ["stage", "table"].map(String::from);
        let batch = Arc::new(Int64Array::from(vec![plan.batch])) as arrow::array::ArrayRef;
        let batch = RecordBatch::try_from_iter([(DEAD_BATCH_ID, batch)]);
        let batch = batch.context(ErrorKind::Failed, "a batch number is a column")?;
        let (mut all, mut decoded) = (0, 0);
        for rows in self.table(table)?.read(&columns, Some(&batch)).await? {
            all += rows.num_rows() as u64;
            let (stages, tables) = (rows.column(0).as_string::<i32>(), rows.column(1).as_string::<i32>());
            let is_lost =
                |row: &usize| stages.value(*row) == Stage::Decode.as_str() && lost.contains(tables.value(*row));
            decoded += (0..rows.num_rows()).filter(is_lost).count() as u64;
        }
        Ok((all, decoded))
    }
}

/// Stored rows as they were shaped: in the order of their records, one for each, all from `ranges`.
fn as_shaped(
    rows: Vec<RecordBatch>,
    known: &Schema,
    table: &str,
    ranges: &OffsetRanges,
) -> Result<Result<Vec<RecordBatch>, String>> {
    let Some(first) = rows.first() else { return Ok(Ok(Vec::new())) };
    let rows = in_source_order(&first.schema(), rows)?;
    let mut last: Option<(Partition, i64)> = None;
    for batch in &rows {
        let columns = (
            batch.column_by_name(column::TOPIC).and_then(|c| c.as_string_opt::<i32>()),
            batch.column_by_name(column::PARTITION).and_then(|c| c.as_primitive_opt::<Int32Type>()),
            batch.column_by_name(column::OFFSET).and_then(|c| c.as_primitive_opt::<Int64Type>()),
        );
        let (Some(topics), Some(partitions), Some(offsets)) = columns else {
            return Ok(Err(format!("{table} does not say which record each row came from")));
        };
        for row in 0..batch.num_rows() {
            if topics.is_null(row) || partitions.is_null(row) || offsets.is_null(row) {
                return Ok(Err(format!("{table} has rows without the record they came from")));
            }
            let at = (Partition::new(topics.value(row), partitions.value(row)), offsets.value(row));
            let is_planned = ranges.0.get(&at.0).is_some_and(|range| (range.from..range.until).contains(&at.1));
            if !is_planned {
                return Ok(Err(format!("{table} has a row of {} at {} that the batch did not read", at.0, at.1)));
            }
            if last.as_ref().is_some_and(|last| *last >= at) {
                return Ok(Err(format!("{table} has several rows of {} at {}: their order is lost", at.0, at.1)));
            }
            last = Some(at);
        }
    }
    Ok(Ok(without_later_columns(rows, known)?))
}

/// Leaves out columns that `schema_drift: evolve` brought with other batches: they were not part of this one.
pub(super) fn without_later_columns(rows: Vec<RecordBatch>, known: &Schema) -> Result<Vec<RecordBatch>> {
    let Some(first) = rows.first() else { return Ok(rows) };
    let is_part = |index: &usize| {
        let is_empty = || rows.iter().all(|batch| batch.column(*index).null_count() == batch.num_rows());
        known.column_with_name(first.schema_ref().field(*index).name()).is_some() || !is_empty()
    };
    let kept: Vec<usize> = (0..first.num_columns()).filter(is_part).collect();
    let project = |batch: &RecordBatch| batch.project(&kept).context(ErrorKind::Failed, "columns could not be picked");
    rows.iter().map(project).collect()
}

impl Delivered {
    fn add(&mut self, lost: BTreeMap<String, Vec<Lost>>) {
        for (source, lost) in lost {
            self.lost.entry(source).or_default().extend(lost);
        }
    }
}
