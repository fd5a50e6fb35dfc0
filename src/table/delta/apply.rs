//! One batch, one commit: the attempt, and what is made of its failure.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array as _, AsArray as _, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use deltalake::kernel::{Action, Add};
use deltalake::protocol::{DeltaOperation, OutputMode};

use super::create::create;
use super::features::{check_deletion_vectors, check_writable};
use super::handle::{CommitFailure, carries};
use super::rows::Distinct;
use super::scan::Semi;
use super::schema::{conform, delta_schema, reconcile};
use super::upsert::{Hits, Ranking, find_hits, pick};
use super::winners::Winners;
use super::witness::Witness;
use super::write::{Rewrite, Writer};
use super::{ATTEMPTS, DeltaLakeTable, Touched};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fail;
use crate::model::batch::{BatchId, Receipt};
use crate::model::note::Note;
use crate::table::{Change, Pin, Txn, WriteMode};

/// Files written and rows counted, not committed yet.
struct Prepared {
    removes: Vec<Action>,
    adds: Vec<Add>,
    receipt: Receipt,
    operation: DeltaOperation,
}

/// An attempt that got as far as committing.
struct Attempted {
    failure: CommitFailure,
    adds: Vec<Add>,
    receipt: Receipt,
    witness: Witness,
}

enum Failure {
    /// Nothing was committed, and trying again changes nothing.
    Refused(Error),
    Commit(Box<Attempted>),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Refused(error)
    }
}

impl DeltaLakeTable {
    /// `None` = the table is not as it was pinned any more, and nothing was written.
    pub(super) async fn apply_change(
        &mut self,
        change: &Change,
        txn: &Txn,
        pin: Option<&Pin>,
    ) -> Result<Option<Receipt>> {
        let known = self.known.get(&txn.app_id).copied();
        if self.handle.state().is_none() || known.is_none() {
            self.reload().await?;
        } else if self.handle.refresh().await? {
            self.known.clear();
            // Nobody else commits while a run works, but for maintenance: the one time to look what they did.
            if known.flatten().is_some() && !txn.is_beside() {
                self.look_at_others(&txn.app_id).await?;
            }
        }
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            if self.handle.state().is_none() {
                self.make().await?;
            }
            let applied = self.applied(&txn.app_id).await?;
            if let Some(found) = applied.filter(|found| *found >= txn.batch) {
                // Seen behind by this process, ahead now: somebody else has applied it.
                let overtaken = attempt > 0 || known.is_some();
                let version = self.handle.version().unwrap_or_default();
                if overtaken && known.flatten() != applied {
                    return Err(self.busy(txn, found));
                }
                return Ok(Some(Receipt { delta_version: version, already_applied: true, ..Receipt::default() }));
            }
            // Somebody's commit came first: what it did has to be known before another one follows it. That is the live
            // pipeline's business: for a writer beside it, its own last commit may lie a year back.
            if attempt > 0 && applied.is_some() && !txn.is_beside() {
                self.look_at_others(&txn.app_id).await?;
            }
            // A table that was just made holds as little as none.
            let version = |known: Option<i64>| known.unwrap_or_default();
            if pin.is_some_and(|pin| version(pin.version) != version(self.handle.version())) {
                return Ok(None);
            }
            match self.attempt(change, txn).await {
                Ok((receipt, witness)) => return Ok(Some(self.done(txn, receipt, witness))),
                Err(Failure::Refused(error)) => return Err(error),
                Err(Failure::Commit(attempted)) => match self.settle(*attempted, txn).await? {
                    Ok(receipt) => return Ok(Some(receipt)),
                    Err(error) => last = Some(error),
                },
            }
            if pin.is_none() {
                pause(attempt).await;
            }
        }
        let text = format!(
            "table {} is changed by others faster than batch {} can be applied",
            self.definition.name, txn.batch
        );
        let mut error = Error::new(ErrorKind::Busy, text)
            .with("at", self.handle.location())
            .with("tries", ATTEMPTS)
            .help("nothing was written; run again when the other writer is done");
        if let Some(cause) = last {
            error = error.caused_by(cause);
        }
        Err(error)
    }

    async fn applied(&mut self, app_id: &str) -> Result<Option<BatchId>> {
        if let Some(known) = self.known.get(app_id) {
            return Ok(*known);
        }
        let applied = self.handle.applied(app_id).await?;
        self.known.insert(app_id.to_owned(), applied);
        Ok(applied)
    }

    fn done(&mut self, txn: &Txn, receipt: Receipt, witness: Witness) -> Receipt {
        let receipt = Receipt { foreign: std::mem::take(&mut self.foreign), ..receipt };
        self.known.insert(txn.app_id.clone(), Some(txn.batch));
        self.touched = Some(Touched { app_id: txn.app_id.clone(), batch: txn.batch, witness });
        receipt
    }

    /// After a failed commit: the log decides. The inner error means that it is worth another try.
    async fn settle(&mut self, attempted: Attempted, txn: &Txn) -> Result<Result<Receipt>> {
        let Attempted { failure, adds, receipt, witness } = attempted;
        let conflict = failure.is_conflict();
        let (nonce, read) = (failure.nonce, failure.read);
        let error = self.handle.explain(failure.cause, &format!("commit batch {}", txn.batch));
        if self.reload().await.is_err() {
            return Err(error.maybe_applied());
        }
        if let Some(found) = self.applied(&txn.app_id).await?.filter(|found| *found >= txn.batch) {
            let commit = self.handle.find_commit(&txn.app_id, txn.batch).await?;
            return match commit {
                Some((version, actions)) if carries(&actions, &nonce) => {
                    tracing::info!(table = %self.definition.name, version, %error, "the commit landed in spite of an error");
                    Ok(Ok(self.done(txn, Receipt { delta_version: version, ..receipt }, witness)))
                }
                _ => {
                    self.forget(&adds).await;
                    Err(self.busy(txn, found))
                }
            };
        }
        // An object store may still be working on a request that failed here: then its files must stay.
        if self.handle.is_out(read) {
            self.forget(&adds).await;
        }
        if conflict {
            Ok(Err(error))
        } else if self.handle.is_local() {
            Err(error)
        } else {
            Err(error.maybe_applied())
        }
    }

    async fn forget(&self, adds: &[Add]) {
        let paths: Vec<String> = adds.iter().map(|add| add.path.clone()).collect();
        self.handle.remove_orphans(&paths).await;
    }

    fn busy(&self, txn: &Txn, found: BatchId) -> Error {
        let text = format!("another run of this pipeline has applied batch {found} to table {}", self.definition.name);
        Error::new(ErrorKind::Busy, text)
            .with("this run's batch", txn.batch)
            .with("at", self.handle.location())
            .help("this run changed nothing and must stop: two runs of one pipeline cannot work at the same time")
    }

    pub(super) fn restored(&self) -> Error {
        let text = format!("table {} was restored to an older version while this run worked", self.definition.name);
        Error::config(text)
            .with("at", self.handle.location())
            .with("version", self.handle.version().unwrap_or_default())
            .help("nothing was written to it; undo the restore (RESTORE TABLE to the version before it) and run again")
    }

    async fn attempt(&mut self, change: &Change, txn: &Txn) -> Result<(Receipt, Witness), Failure> {
        let Some(state) = self.handle.state() else { return Err(Error::failed("the table disappeared").into()) };
        let at = self.handle.location();
        check_writable(&self.definition, state, &at)?;
        let reconciled = reconcile(&self.definition, state, &at)?;
        check_deletion_vectors(&self.definition, &self.handle)?;
        // The images of the batch before are let go first: two batches' would be twice the memory.
        self.touched = None;
        let mut witness = Witness::new(&reconciled.schema, &self.definition.watched, &self.definition.imaged)?;
        let prepared = self.prepare(change, txn, &reconciled.schema, &mut witness).await?;
        let Prepared { removes, adds, mut receipt, operation } = prepared;
        receipt.files_removed = removes.len() as u64;
        receipt.files_added = adds.len() as u64;
        let mut actions: Vec<Action> = Vec::new();
        if let Some(metadata) = reconciled.metadata {
            actions.push(Action::Metadata(metadata));
        }
        actions.extend(removes);
        actions.extend(adds.iter().cloned().map(Action::Add));
        fail::hit(fail::PREPARED)?;
        // The memory is written by now: a rebuild of the checkpoint counts on as much of it.
        let user_metadata = match self.memory.as_ref().and_then(super::deletes::Memory::reached) {
            Some(memory) => Note::with_memory(&txn.user_metadata, memory),
            None => txn.user_metadata.clone(),
        };
        let txn = &Txn { user_metadata, ..txn.clone() };
        match self.handle.commit(actions, operation, txn).await {
            Ok(version) => Ok((Receipt { delta_version: version, ..receipt }, witness)),
            Err(failure) => Err(Failure::Commit(Box::new(Attempted { failure, adds, receipt, witness }))),
        }
    }

    /// Makes the table, unless somebody else was first. A twin may even have applied the batch by now: what was known is
    /// void, and the caller looks again before anything is written.
    async fn make(&mut self) -> Result<()> {
        fail::hit(fail::CREATE)?;
        let schema = delta_schema(&self.definition)?;
        let made = create(&self.handle, &schema, &self.definition.partition_by, &self.definition.maker).await;
        self.reload().await?;
        match made {
            Err(cause) if self.handle.state().is_none() => {
                Err(self.handle.explain(cause, &format!("create table {}", self.definition.name)))
            }
            _ => Ok(()),
        }
    }

    async fn prepare(
        &mut self,
        change: &Change,
        txn: &Txn,
        schema: &SchemaRef,
        witness: &mut Witness,
    ) -> Result<Prepared> {
        match (self.definition.write.clone(), change) {
            (WriteMode::Append, Change::Rows(rows)) => {
                let rows = self.conform_all(rows, schema)?;
                let inserted = count(&rows);
                let adds = if inserted == 0 { Vec::new() } else { self.writer(schema, &[])?.write(&rows).await? };
                see(witness, &rows)?;
                let operation = DeltaOperation::StreamingUpdate {
                    output_mode: OutputMode::Append,
                    query_id: txn.app_id.clone(),
                    epoch_id: txn.batch,
                };
                let receipt = Receipt { inserted, ..Receipt::default() };
                Ok(Prepared { removes: Vec::new(), adds, receipt, operation })
            }
            (WriteMode::Append, Change::Trim(trim)) => {
                let rows = self.conform_all(&trim.rows, schema)?;
                let inserted = count(&rows);
                let work = super::trim::find(&self.reader(), self.handle.files()?, schema, trim).await?;
                let deleted = work.iter().map(|rewrite| rewrite.gone.len() as u64).sum();
                let (removes, adds) = self.rewrite(schema, &[], work, rows, witness).await?;
                let receipt = Receipt { inserted, deleted, ..Receipt::default() };
                let operation = DeltaOperation::Delete { predicate: None };
                Ok(Prepared { removes, adds, receipt, operation })
            }
            (WriteMode::Append, Change::Replace { span, rows }) => {
                let rows = self.conform_all(rows, schema)?;
                super::span::check_inside(&rows, span, &self.definition.name)?;
                let inserted = count(&rows);
                let work = super::span::find(&self.reader(), self.handle.files()?, schema, span).await?;
                let deleted = work.iter().map(|rewrite| rewrite.gone.len() as u64).sum();
                let (removes, adds) = self.rewrite(schema, &[], work, rows, witness).await?;
                let receipt = Receipt { inserted, deleted, ..Receipt::default() };
                let operation = merge(std::slice::from_ref(&span.column));
                Ok(Prepared { removes, adds, receipt, operation })
            }
            (WriteMode::Append, Change::Missing { column, except, rows }) => {
                let rows = self.missing(column, except, rows, schema).await?;
                let inserted = count(&rows);
                let adds = if inserted == 0 { Vec::new() } else { self.writer(schema, &[])?.write(&rows).await? };
                see(witness, &rows)?;
                let operation = merge(std::slice::from_ref(column));
                let receipt = Receipt { inserted, ..Receipt::default() };
                Ok(Prepared { removes: Vec::new(), adds, receipt, operation })
            }
            (WriteMode::Append, Change::Groups { groups, rows }) => {
                let rows = self.conform_all(rows, schema)?;
                let work = super::refresh::find_groups(&self.reader(), self.handle.files()?, schema, groups).await?;
                let updated: u64 = work.iter().map(|rewrite| rewrite.gone.len() as u64).sum();
                let inserted = count(&rows).saturating_sub(updated);
                let (removes, adds) = self.rewrite(schema, &[], work, rows, witness).await?;
                let receipt = Receipt { inserted, updated, ..Receipt::default() };
                Ok(Prepared { removes, adds, receipt, operation: DeltaOperation::Update { predicate: None } })
            }
            (mode, Change::Remove(removal)) => {
                if let Some(memory) = &mut self.memory {
                    memory.forget(removal, txn).await?;
                }
                let (reader, files) = (self.reader(), self.handle.files()?);
                let work = super::refresh::find_groups(&reader, files, schema, &removal.rows).await?;
                let deleted = work.iter().map(|rewrite| rewrite.gone.len() as u64).sum();
                let keys = match mode {
                    WriteMode::Append => Vec::new(),
                    WriteMode::Upsert { key, .. } => key,
                    WriteMode::Refresh { by } => by,
                };
                let (removes, adds) = self.rewrite(schema, &keys, work, Vec::new(), witness).await?;
                let receipt = Receipt { deleted, ..Receipt::default() };
                Ok(Prepared { removes, adds, receipt, operation: DeltaOperation::Delete { predicate: None } })
            }
            (WriteMode::Upsert { key, order_by, delete_flag }, Change::Rows(rows)) => {
                self.upsert(rows, txn, schema, witness, &key, &order_by, delete_flag.as_deref()).await
            }
            (WriteMode::Refresh { by }, Change::Groups { groups, rows }) => {
                let rows = self.conform_all(rows, schema)?;
                super::refresh::check_inside(&rows, groups, schema, &self.definition.name)?;
                let work = super::refresh::find_groups(&self.reader(), self.handle.files()?, schema, groups).await?;
                let deleted = work.iter().map(|rewrite| rewrite.gone.len() as u64).sum();
                let inserted = count(&rows);
                let (removes, adds) = self.rewrite(schema, &by, work, rows, witness).await?;
                let receipt = Receipt { inserted, deleted, ..Receipt::default() };
                Ok(Prepared { removes, adds, receipt, operation: merge(&by) })
            }
            // Carries the batch, and nothing else.
            (WriteMode::Refresh { by }, Change::Rows(rows)) if count(rows) == 0 => {
                let (removes, adds) = (Vec::new(), Vec::new());
                Ok(Prepared { removes, adds, receipt: Receipt::default(), operation: merge(&by) })
            }
            (mode, _) => Err(Error::failed(format!(
                "table {} does not take this kind of change: {mode:?}",
                self.definition.name
            ))),
        }
    }

    /// Those of `rows` whose value of `column` no stored row has.
    async fn missing(
        &self,
        column: &String,
        (state, passed_over): &(String, String),
        rows: &[RecordBatch],
        schema: &SchemaRef,
    ) -> Result<Vec<RecordBatch>> {
        let rows = self.conform_all(rows, schema)?;
        let mut wanted = Distinct::new(schema, std::slice::from_ref(column))?;
        rows.iter().try_for_each(|batch| wanted.add(batch))?;
        if rows.is_empty() {
            return Ok(rows);
        }
        let columns = [column.clone(), state.clone()];
        let stored = self.rows_of(&self.handle, &columns, Some(&wanted.rows()?)).await?;
        let mut known = Distinct::new(schema, std::slice::from_ref(column))?;
        for batch in &stored {
            let states = batch.column(1).as_string_opt::<i32>();
            let counts = |row| !states.is_some_and(|states| states.is_valid(row) && states.value(row) == passed_over);
            let counts: BooleanArray = (0..batch.num_rows()).map(|row| Some(counts(row))).collect();
            let batch = filter_record_batch(batch, &counts).context(ErrorKind::Failed, "rows could not be filtered")?;
            known.add(&batch)?;
        }
        let known = Semi::new(&known.rows()?, schema)?;
        let is_new = |batch: &RecordBatch| {
            let stored = known.mask(batch)?;
            let new = arrow::compute::not(&stored).context(ErrorKind::Failed, "rows could not be filtered")?;
            filter_record_batch(batch, &new).context(ErrorKind::Failed, "rows could not be filtered")
        };
        rows.iter().map(is_new).collect()
    }

    #[allow(clippy::too_many_arguments)] // The parts of one write mode, taken apart by the only caller.
    async fn upsert(
        &mut self,
        rows: &[RecordBatch],
        txn: &Txn,
        schema: &SchemaRef,
        witness: &mut Witness,
        key: &[String],
        order_by: &[String],
        delete_flag: Option<&str>,
    ) -> Result<Prepared> {
        let nothing =
            || Prepared { removes: Vec::new(), adds: Vec::new(), receipt: Receipt::default(), operation: merge(key) };
        let Some(first) = rows.iter().find(|batch| batch.num_rows() > 0) else { return Ok(nothing()) };
        let ranking = Ranking::new(key, order_by, &first.schema(), schema)?;
        let Some(winners) = Winners::pick(rows, &ranking.key, &ranking.incoming, delete_flag)? else {
            return Ok(nothing());
        };
        let winners = Arc::new(winners);

        let mut alive = vec![true; winners.len()];
        if let Some(memory) = &mut self.memory {
            let verdicts = memory.verdicts(&winners, &ranking.key, &ranking.incoming).await?;
            let mut fresh = Vec::new();
            for (number, verdict) in verdicts.iter().enumerate() {
                let delete = winners.deletes[number];
                // Equal is the record of the delete itself, read again: what it says now counts, as for stored rows.
                alive[number] = !matches!(verdict, Some(std::cmp::Ordering::Greater));
                if delete && matches!(verdict, None | Some(std::cmp::Ordering::Less)) {
                    fresh.push(number as u32);
                }
            }
            let encoders = (&ranking.key, &ranking.incoming);
            memory.remember(&winners, fresh, encoders, &self.definition, txn).await?;
        }

        let files = self.handle.files()?;
        let hits = find_hits(&self.reader(), files, schema, &ranking, &winners, alive.clone()).await?;
        let Hits { work, replaced, beaten } = hits;
        let mut receipt = Receipt { superseded: winners.lost, ..Receipt::default() };
        let mut written = Vec::new();
        for number in 0..winners.len() {
            if !alive[number] || beaten[number] {
                receipt.superseded += 1;
            } else if winners.deletes[number] {
                let counter = if replaced[number] { &mut receipt.deleted } else { &mut receipt.remembered };
                *counter += 1;
            } else {
                written.push(number as u32);
                let counter = if replaced[number] { &mut receipt.updated } else { &mut receipt.inserted };
                *counter += 1;
            }
        }
        let fresh =
            if written.is_empty() { Vec::new() } else { self.conform_all(&[pick(&winners, written)?], schema)? };
        let (removes, adds) = self.rewrite(schema, key, work, fresh, witness).await?;
        Ok(Prepared { removes, adds, receipt, operation: merge(key) })
    }

    /// Writes `fresh` and what stays of the files in `work`.
    async fn rewrite(
        &self,
        schema: &SchemaRef,
        keys: &[String],
        work: Vec<Rewrite>,
        fresh: Vec<RecordBatch>,
        witness: &mut Witness,
    ) -> Result<(Vec<Action>, Vec<Add>)> {
        if work.is_empty() && fresh.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let removes = work.iter().filter_map(|rewrite| rewrite.file.remove()).map(Action::Remove).collect();
        see(witness, &fresh)?;
        let adds = self.writer(schema, keys)?.rewrite(&self.reader(), schema, work, fresh, witness).await?;
        Ok((removes, adds))
    }

    fn writer(&self, schema: &SchemaRef, keys: &[String]) -> Result<Writer> {
        let Some(state) = self.handle.state() else { return Err(Error::failed("the table is not loaded")) };
        let (store, at) = (self.handle.store(), self.handle.location());
        Ok(Writer::new(store, at, schema, &self.definition.partition_by, keys, state))
    }

    fn conform_all(&self, rows: &[RecordBatch], schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
        rows.iter()
            .filter(|batch| batch.num_rows() > 0)
            .map(|batch| conform(batch, schema, &self.definition.name))
            .collect()
    }
}

/// A moment for whoever is faster, longer each time, and never the same for two writers.
async fn pause(attempt: usize) {
    let longest = 10_u64 << attempt.min(5);
    let random = RandomState::new().build_hasher().finish();
    tokio::time::sleep(Duration::from_millis(random % longest)).await;
}

fn see(witness: &mut Witness, rows: &[RecordBatch]) -> Result<()> {
    rows.iter().try_for_each(|batch| witness.comes(batch))
}

fn count(rows: &[RecordBatch]) -> u64 {
    rows.iter().map(|batch| batch.num_rows() as u64).sum()
}

/// Without a predicate: for Delta's conflict check the whole table was read, and so it was.
fn merge(by: &[String]) -> DeltaOperation {
    DeltaOperation::Merge {
        predicate: None,
        merge_predicate: Some(by.join(", ")),
        matched_predicates: Vec::new(),
        not_matched_predicates: Vec::new(),
        not_matched_by_source_predicates: Vec::new(),
    }
}
