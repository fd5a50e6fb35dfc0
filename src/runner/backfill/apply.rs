//! One table of an interval, one commit: pinned, derived, written by compare and swap, and derived again by who loses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{FieldRef, Schema, SchemaRef};

use super::Backfill;
use super::derive::{Window, as_records};
use super::late::DEAD_ID;
use super::lineage::{find, is_bronze};
use crate::config::spec::{From, TableSpec, WriteSpec};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fail;
use crate::model::backfill::{BackfillPlan, BackfillRecord};
use crate::model::batch::Receipt;
use crate::model::letter::Status;
use crate::runner::shaping::{dead_letters_come_first, deferred};
use crate::table::{Change, Pin, Txn};
use crate::transform::{Inputs, dead_letter};

/// How often a table is derived when others are faster.
pub(super) const TRIES: u32 = 40;

/// Grows with every try.
pub(super) const PAUSE: Duration = Duration::from_millis(25);

impl Backfill {
    /// Every table in graph order, and the dead letters where the live walk has them.
    pub(super) async fn apply_all(&mut self, plan: &BackfillPlan, record: &mut BackfillRecord) -> Result<()> {
        let (spec, transform) = (self.parts.spec.clone(), self.parts.transform.clone());
        let late = deferred(&spec, &*transform);
        // A rule that refuses rows is better broken while no table is written.
        for name in plan.tables.iter().filter(|name| !late.contains(*name)) {
            if let Some(table) = find(&spec, name).filter(|table| !is_bronze(table)) {
                let pin = self.pin(name).await?;
                let window = self.window(table, plan, &pin).await?;
                self.derive(name, window, plan).await?;
            }
        }
        let dead_letters_first = dead_letters_come_first(&spec, &*transform);
        if dead_letters_first {
            self.set_aside(plan, record).await?;
        }
        for name in &plan.tables {
            let Some(table) = find(&spec, name).filter(|table| !is_bronze(table)) else { continue };
            let receipt = self.apply(table, plan).await.map_err(|error| error.with("table", name))?;
            record.receipts.insert(name.clone(), receipt);
        }
        if !dead_letters_first {
            self.set_aside(plan, record).await?;
        }
        self.catch_up(plan, record).await?;
        record.expectations = std::mem::take(&mut self.broken);
        Ok(())
    }

    async fn apply(&mut self, table: &TableSpec, plan: &BackfillPlan) -> Result<Receipt> {
        if self.applied.get(&table.name).copied().flatten().is_some_and(|applied| applied >= plan.run) {
            let pin = self.pin(&table.name).await?;
            let cap = self.cap(pin.applied).await?;
            // Where the commit does not say what took part, only that it was no more than this is known: the next correction
            // may take rows twice, and misses none.
            let noted = self.noted(&table.name, plan).await?;
            self.caps.insert(table.name.clone(), noted.or(cap.and(plan.since)));
            let delta_version = pin.version.unwrap_or_default();
            return Ok(Receipt { delta_version, already_applied: true, ..Receipt::default() });
        }
        for attempt in 1..=TRIES {
            self.give_way().await?;
            let pin = self.pin(&table.name).await?;
            fail::hit(fail::APPLY)?;
            let applied = match &table.write {
                WriteSpec::Refresh { by } => self.refresh(table, by, plan).await?,
                WriteSpec::Upsert { .. } => self.upsert(table, plan, pin).await?,
                WriteSpec::Append => self.replace(table, plan, pin).await?,
                WriteSpec::Windows { .. } => {
                    return Err(Error::failed("windows are not derived from an interval alone"));
                }
            };
            if let Some(receipt) = applied {
                fail::hit(fail::APPLIED)?;
                return Ok(receipt);
            }
            tracing::debug!(table = table.name, attempt, "somebody else was first; the rows are derived again");
            tokio::time::sleep(PAUSE * attempt.min(20)).await;
        }
        Err(busy(&table.name))
    }

    /// The table and its last live batch, as they are now.
    pub(super) async fn pin(&mut self, table: &str) -> Result<Pin> {
        let app_id = self.live_app_id(table);
        self.table(table)?.pin(&app_id).await
    }

    async fn window(&mut self, table: &TableSpec, plan: &BackfillPlan, pin: &Pin) -> Result<Window> {
        let upto = self.cap(pin.applied).await?;
        // An append table has all rows of the interval replaced: all of them must come.
        let since = if table.write == WriteSpec::Append { None } else { plan.since };
        Ok(Window { since, after: plan.since_time, upto })
    }

    /// Rows that the table has not seen from any batch of its own never come: its pin says which it has. They stay right
    /// whatever others commit meanwhile, because newer rows win.
    async fn upsert(&mut self, table: &TableSpec, plan: &BackfillPlan, pin: Pin) -> Result<Option<Receipt>> {
        let window = self.window(table, plan, &pin).await?;
        let derived = self.derive(&table.name, window, plan).await?;
        let txn = self.txn(&table.name, plan, window.upto);
        let turn = self.parts.turns.table(&table.name);
        let _turn = turn.lock().await;
        let receipt = self.table(&table.name)?.apply(Change::Rows(derived.rows.to_vec()), &txn).await?;
        self.note(&table.name, window, &derived.broken);
        Ok(Some(receipt))
    }

    /// All rows of the interval go and the derived ones come, in one commit.
    async fn replace(&mut self, table: &TableSpec, plan: &BackfillPlan, pin: Pin) -> Result<Option<Receipt>> {
        let window = self.window(table, plan, &pin).await?;
        let lineage = self.lineage(&table.name)?;
        let derived = self.derive(&table.name, window, plan).await?;
        if self.bronze_rows(&lineage, window).await?.is_empty() {
            // Bronze may have let the day go, and this table is all that is left of it.
            self.note(&table.name, window, &derived.broken);
            return Ok(Some(untouched(&pin)));
        }
        let span = self.span(&lineage.event_time);
        let txn = self.txn(&table.name, plan, window.upto);
        let turn = self.parts.turns.table(&table.name);
        let _turn = turn.lock().await;
        // Rows of other intervals may have come and gone meanwhile; what counts is which live batches the table has.
        let now = self.pin(&table.name).await?;
        if now.applied != pin.applied {
            return Ok(None);
        }
        let change = Change::Replace { span, rows: derived.rows.to_vec() };
        let receipt = self.table(&table.name)?.apply_at(change, &txn, &now).await?;
        self.note(&table.name, window, &derived.broken);
        Ok(receipt)
    }

    /// Every group that the interval touches is computed from the upstream as it is after the table was pinned.
    async fn refresh(&mut self, table: &TableSpec, by: &[String], plan: &BackfillPlan) -> Result<Option<Receipt>> {
        let turn = self.parts.turns.table(&table.name);
        let _turn = turn.lock().await;
        let pin = self.pin(&table.name).await?;
        let window = self.window(table, plan, &pin).await?;
        let Some(groups) = self.groups(table, by, window, plan).await? else {
            self.note(&table.name, window, &BTreeMap::new());
            return Ok(Some(untouched(&pin)));
        };
        let mut inputs = Inputs { lookups: self.lookups(plan).await?, ..Inputs::default() };
        let reads = self.parts.transform.reads(&table.name).tables.clone();
        for (name, columns) in &reads {
            let is_upstream = table.from == From::Table(name.clone());
            let rows = self.table(name)?.read_newest(columns, is_upstream.then_some(&groups)).await?;
            inputs.tables.insert(name.clone(), Arc::new(rows));
        }
        let derived = self.shape(&table.name, inputs, plan).await?;
        let txn = self.txn(&table.name, plan, window.upto);
        let change = Change::Groups { groups, rows: derived.rows.to_vec() };
        let receipt = self.table(&table.name)?.apply_at(change, &txn, &pin).await?;
        self.note(&table.name, window, &derived.broken);
        Ok(receipt)
    }

    /// The groups that the interval touches: of the rows derived for the upstream, of what this run and those that were
    /// never finished took out of it or put into it, and, where the upstream is left as it is, of its rows of the interval.
    /// `None` = none.
    async fn groups(
        &mut self,
        table: &TableSpec,
        by: &[String],
        window: Window,
        plan: &BackfillPlan,
    ) -> Result<Option<RecordBatch>> {
        let From::Table(upstream) = &table.from else {
            return Err(Error::failed(format!("{} follows no table", table.name)));
        };
        let lineage = self.lineage(&table.name)?;
        let is_target = plan.tables.contains(upstream);
        let mut found: Vec<RecordBatch> = Vec::new();
        for run in plan.unfinished.iter().chain(is_target.then_some(&plan.run)) {
            let txn = Txn { batch: *run, ..self.txn(upstream, plan, None) };
            let followed = self.table(upstream)?;
            // A run that never came to this table touched nothing in it.
            if followed.note(&txn.app_id, *run).await?.is_none() {
                continue;
            }
            match followed.touched(by, &txn).await {
                Ok(groups) => found.push(groups),
                // A vacuum since may have deleted what it took out: then it is every group that there is, or was computed.
                Err(error) => {
                    tracing::debug!(table = upstream, run, %error, "what a run touched cannot be read; all groups are");
                    found.extend(followed.read_newest(by, None).await?);
                    found.extend(self.table(&table.name)?.read_newest(by, None).await?);
                }
            }
        }
        let is_refresh = find(&self.parts.spec, upstream).is_some_and(|t| matches!(t.write, WriteSpec::Refresh { .. }));
        if !is_refresh {
            let rows = match *upstream == lineage.bronze {
                true => self.bronze_rows(&lineage, window).await?,
                false => self.derive(upstream, window, plan).await?.rows.clone(),
            };
            found.extend(rows.iter().map(|batch| picked(batch, by)).collect::<Result<Vec<_>>>()?);
            if !is_target && self.parts.transform.passes(upstream, &lineage.event_time) {
                let span = self.span(&lineage.event_time);
                found.extend(self.table(upstream)?.read_span(by, &span).await?);
            }
        }
        found.retain(|batch| batch.num_rows() > 0);
        together(&found)
    }

    /// Adds the dead letters of the interval that are not there yet. Those of later live batches are the live run's: where
    /// it has moved meanwhile, they are derived again.
    async fn set_aside(&mut self, plan: &BackfillPlan, record: &mut BackfillRecord) -> Result<()> {
        let Some(dead_letters) = self.parts.spec.dead_letters.as_ref().map(|dead| dead.table.clone()) else {
            return Ok(());
        };
        let app_id = self.app_id(&dead_letters);
        let pin = self.table(&dead_letters)?.pin(&app_id).await?;
        if pin.applied.is_some_and(|applied| applied >= plan.run) {
            // Those of batches that came since are not written under the same number again: they are late.
            let noted = self.noted(&dead_letters, plan).await?;
            self.caps.insert(dead_letters.clone(), noted);
            let receipt = Receipt { already_applied: true, ..untouched(&pin) };
            record.receipts.insert(dead_letters, receipt);
            return Ok(());
        }
        for attempt in 1..=TRIES {
            if self.add_letters(&dead_letters, plan, record).await? {
                return Ok(());
            }
            tracing::debug!(table = dead_letters, attempt, "somebody else was first; the letters are derived again");
            tokio::time::sleep(PAUSE * attempt.min(20)).await;
        }
        Err(busy(&dead_letters))
    }

    /// False = somebody else was first, and nothing was written.
    async fn add_letters(
        &mut self,
        dead_letters: &str,
        plan: &BackfillPlan,
        record: &mut BackfillRecord,
    ) -> Result<bool> {
        let spec = self.parts.spec.clone();
        self.give_way().await?;
        let pin = self.pin(dead_letters).await?;
        let mut upto = self.cap(pin.applied).await?;
        let derived = |name: &&String| find(&spec, name).is_some_and(|table| !is_bronze(table));
        for name in plan.tables.iter().filter(derived) {
            // A live batch sets aside before it adds to bronze: the letters of one that bronze lacks are its own.
            let lineage = self.lineage(name)?;
            upto = upto.min(self.pin(&lineage.bronze).await?.applied);
        }
        let window = Window { since: plan.since, after: plan.since_time, upto };
        self.caps.insert(dead_letters.to_string(), upto);
        let (mut dead, mut records) = (Vec::new(), BTreeMap::new());
        for name in &plan.tables {
            let is_refresh = |table: &TableSpec| matches!(table.write, WriteSpec::Refresh { .. });
            if find(&spec, name).is_none_or(|table| is_refresh(table) || is_bronze(table)) {
                continue;
            }
            let lineage = self.lineage(name)?;
            dead.extend(self.derive(name, window, plan).await?.dead.iter().cloned());
            let rows = self.bronze_rows(&lineage, window).await?;
            records.insert(lineage.bronze, as_records(&rows)?);
        }
        dead.extend(self.cache.homeless.dead.iter().cloned());
        self.check_budget(dead.len() as u64, record.input_rows + self.cache.homeless.dead.len() as u64)?;
        if dead.is_empty() {
            return Ok(true);
        }
        let mut records: Vec<RecordBatch> = records.into_values().flatten().collect();
        records.extend(self.cache.homeless.records.iter().cloned());
        let rows = dead_letter::rows(&dead, &records, &self.context(plan))?;
        // A letter that was replayed said that its record is in the tables; set aside again, it needs one that is open.
        let except = ("status".to_string(), Status::Replayed.as_str().to_string());
        let change = Change::Missing { column: DEAD_ID.to_string(), except, rows: vec![rows] };
        let txn = self.txn(dead_letters, plan, upto);
        let turn = self.parts.turns.table(dead_letters);
        let _turn = turn.lock().await;
        fail::hit(fail::APPLY)?;
        let now = self.pin(dead_letters).await?;
        if now.applied != pin.applied {
            return Ok(false);
        }
        let applied = self.table(dead_letters)?.apply_at(change, &txn, &now).await;
        let Some(receipt) = applied.map_err(|error| error.with("table", dead_letters))? else { return Ok(false) };
        fail::hit(fail::APPLIED)?;
        record.dead_letters = receipt.inserted;
        record.receipts.insert(dead_letters.to_string(), receipt);
        Ok(true)
    }

    /// What took part in a table, and which rules its rows broke.
    fn note(&mut self, table: &str, window: Window, broken: &BTreeMap<String, u64>) {
        self.caps.insert(table.to_string(), window.upto);
        self.broken.extend(broken.iter().map(|(rule, count)| (format!("{table}.{rule}"), *count)));
    }
}

pub(super) fn busy(table: &str) -> Error {
    let text = format!("table {table} is changed by others faster than an interval can be derived again");
    Error::new(ErrorKind::Busy, text)
        .with("tries", TRIES)
        .help("the interval is not done; the same command finishes it when the other writer is less busy")
}

fn untouched(pin: &Pin) -> Receipt {
    Receipt { delta_version: pin.version.unwrap_or_default(), ..Receipt::default() }
}

fn picked(batch: &RecordBatch, names: &[String]) -> Result<RecordBatch> {
    let index = |name: &String| batch.schema_ref().index_of(name);
    let at = names.iter().map(index).collect::<std::result::Result<Vec<_>, _>>();
    at.and_then(|at| batch.project(&at)).context(ErrorKind::Failed, "the columns of groups could not be picked")
}

/// All rows in one batch, with the types of the first.
fn together(batches: &[RecordBatch]) -> Result<Option<RecordBatch>> {
    let Some(first) = batches.first() else { return Ok(None) };
    let nullable = |field: &FieldRef| Arc::new(field.as_ref().clone().with_nullable(true));
    let schema: SchemaRef = Arc::new(Schema::new(first.schema().fields().iter().map(nullable).collect::<Vec<_>>()));
    let fit = |batch: &RecordBatch| {
        let columns = batch.columns().iter().zip(schema.fields());
        let columns = columns.map(|(column, field)| cast(column, field.data_type()));
        RecordBatch::try_new(schema.clone(), columns.collect::<std::result::Result<Vec<_>, _>>()?)
    };
    let fitting = batches.iter().map(fit).collect::<std::result::Result<Vec<_>, _>>();
    let all = fitting.and_then(|batches| concat_batches(&schema, &batches));
    all.map(Some).context(ErrorKind::Failed, "groups could not be put together")
}
