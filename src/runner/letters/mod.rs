//! Dead letters replayed or given up by hand (`tidegate dlq`): a batch like any other, which reads them instead of a source.
//! Its plan names them, it is carried through every table, and what became of them is part of its commit to the
//! dead-letter table, so that a crash anywhere is finished by the next run, and no letter is ever replayed twice.

pub mod trial;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use arrow::array::{AsArray, BooleanArray, RecordBatch, StringArray};
use arrow::compute::filter_record_batch;

use self::trial::{Bench, Trial, Verdict};
use super::Runner;
use super::shaping::{Rows, Settled, Shaping};
use super::step::blocking;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fail;
use crate::model::batch::{BatchId, BatchPlan, CommitRecord};
use crate::model::letter::{Action, Letters, Status};
use crate::table::Change;
use crate::transform::letter::{self, Letter, Mark};
use crate::transform::{BatchContext, dead_letter};

/// Why a letter is left alone that was replayed after it was chosen.
pub const BROUGHT: &str = "its record was brought into the tables meanwhile";

/// The ids of letters, by the batch that set them aside.
pub type Ids = BTreeMap<BatchId, Vec<String>>;

/// Letters of one batch. Each is named in the plan and in every table's commit; more letters are more batches.
pub fn most_letters() -> usize {
    fail::often(2_000, 3)
}

/// Which letters of the table stand for a new one of the same row and rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// Open ones.
    Open,
    /// All, also those that were replayed or given up: the row was judged before.
    Any,
}

/// What a replay would do now.
#[derive(Debug, Default)]
pub struct Outlook {
    /// Each letter and what becomes of it.
    pub letters: Vec<(Letter, Verdict)>,
    /// Rows for each table; tables that are computed from whole tables are not among them.
    pub rows: BTreeMap<String, u64>,
    /// Rows that pass and are set aside further down: table, stage, rule.
    pub further: Vec<(String, String, String)>,
}

/// Rows of the dead-letter table that go by the names of some letters, whole.
#[derive(Debug, Default)]
struct Found {
    /// The letters that are not replayed, one row each.
    due: Vec<RecordBatch>,
    /// The letters that are, one row each.
    replayed: Vec<RecordBatch>,
    /// Other rows of the same names.
    others: Vec<RecordBatch>,
}

impl Runner {
    /// What replaying these letters would do; the tables have been observed. Writes nothing.
    pub async fn try_letters(&mut self, ids: &Ids, batch: BatchId) -> Result<Outlook> {
        let mut lookups = HashMap::new();
        for (name, lookup) in &mut self.parts.lookups {
            let newest = lookup.latest().await?;
            lookups.insert(name.clone(), lookup.load(newest).await?);
        }
        let pipeline = self.parts.spec.name.clone();
        let context = BatchContext { pipeline, batch, batch_time: self.parts.clock.now(), interval: None };
        let found = self.letter_rows(ids, None).await?;
        let (letters, trial) = self.trial(found.due, context, lookups).await?;
        // Better found while nothing is planned: a batch that a table refuses would stand in the way of every run.
        for (table, rows) in &trial.shaped {
            let rows = Change::Rows(rows.to_vec());
            self.table(table)?.check(&rows).await.map_err(|error| error.with("table", table))?;
        }
        let count = |rows: &Rows| rows.iter().map(|batch| batch.num_rows() as u64).sum::<u64>();
        // Chosen while it was open; a backfill has been faster.
        let brought =
            letter::read(&found.replayed)?.into_iter().map(|letter| (letter, Verdict::Cannot(BROUGHT.into())));
        let further =
            trial.dead.iter().map(|dead| (dead.table.clone(), dead.stage.as_str().to_string(), dead.rule.clone()));
        Ok(Outlook {
            rows: trial.shaped.iter().map(|(table, rows)| (table.clone(), count(rows))).collect(),
            further: further.collect(),
            letters: letters.into_iter().zip(trial.verdicts).chain(brought).collect(),
        })
    }

    /// Those of these letters that can be given up, and those that were replayed meanwhile. Asked before it is planned: a plan
    /// whose letters cannot be read would stand in the way of every run.
    pub async fn open_letters(&mut self, ids: &Ids) -> Result<(Ids, Vec<Letter>)> {
        let found = self.letter_rows(ids, None).await?;
        let mut open = Ids::new();
        for letter in letter::read(&found.due)? {
            open.entry(letter.batch).or_default().push(letter.id);
        }
        Ok((open, letter::read(&found.replayed)?))
    }

    /// Replays letters, or gives them up: plans the batch that says so, and carries it through.
    pub async fn settle_letters(&mut self, letters: Letters) -> Result<CommitRecord> {
        let started = Instant::now();
        let last = self.standing().await?.last;
        self.ensure_observed().await?;
        self.ensure_keeping(&[], None).await?;
        let plan = BatchPlan { letters: Some(letters), ..self.empty_plan(last + 1).await? };
        self.carry_by_hand(plan, started).await
    }

    /// Everything that a planned batch of letters computes before the first table is changed.
    pub(super) async fn shape_letters(
        &mut self,
        plan: &BatchPlan,
        letters: &Letters,
        lookups: &HashMap<String, Rows>,
    ) -> Result<Shaping> {
        let context = BatchContext::live(plan);
        let Found { due: mut rows, replayed, mut others } = self.letter_rows(&letters.ids, Some(plan.batch)).await?;
        let mut shaping = Shaping::empty(&context);
        let marks = match &letters.action {
            Action::Discard { reason } => {
                // Given up, it could be replayed again, and its record is in the tables.
                others.extend(replayed);
                let mark = Mark { status: Status::Discarded, is_attempt: false, note: reason.clone() };
                vec![mark; rows.iter().map(RecordBatch::num_rows).sum()]
            }
            Action::Replay => {
                rows.extend(replayed);
                let (letters, trial) = self.trial(rows.clone(), context.clone(), lookups.clone()).await?;
                let Trial { verdicts, shaped, decoded, unreached, dead, records, expectations } = trial;
                let dead_rows = match dead.is_empty() {
                    true => Vec::new(),
                    false => vec![dead_letter::rows(&dead, &records, &context)?],
                };
                shaping = Shaping::of_letters(&context, decoded, shaped, unreached, dead_rows, expectations);
                letters.iter().zip(verdicts).map(mark).collect()
            }
        };
        let mut rows = letter::marked(&rows, &marks, plan.batch, plan.batch_time)?;
        rows.extend(others);
        shaping.settled = Some(Settled { keys: letter::keys(&letters.ids)?, rows });
        Ok(shaping)
    }

    /// The change of the dead-letter table: letters with their new status, and `new` ones, unless the table has them.
    pub(super) async fn settle(&mut self, settled: Settled, new: Vec<RecordBatch>) -> Result<Change> {
        let Settled { keys: groups, mut rows } = settled;
        rows.extend(self.unknown_letters(new, Known::Open).await?);
        Ok(Change::Groups { groups, rows })
    }

    /// Leaves out letters that are in the table: of a record that makes several rows, some may be there.
    pub(super) async fn unknown_letters(&mut self, rows: Vec<RecordBatch>, known: Known) -> Result<Vec<RecordBatch>> {
        let name = self.dead_letter_table()?;
        let mut unknown = Vec::with_capacity(rows.len());
        for batch in rows {
            let ids = batch.project(&[0]).context(ErrorKind::Failed, "ids could not be picked")?;
            let found = self.table(&name)?.read(&letter::light_columns(), Some(&ids)).await?;
            let is_known = |letter: &Letter| known == Known::Any || letter.status == Status::Open;
            let open = letter::read(&found)?.into_iter().filter(is_known);
            let open: std::collections::HashSet<String> = open.map(|letter| letter.id).collect();
            let ids: &StringArray = ids.column(0).as_string();
            let is_new: BooleanArray = ids.iter().map(|id| Some(id.is_none_or(|id| !open.contains(id)))).collect();
            let new = filter_record_batch(&batch, &is_new).context(ErrorKind::Failed, "letters could not be picked")?;
            unknown.push(new);
        }
        Ok(unknown)
    }

    async fn trial(
        &mut self,
        rows: Vec<RecordBatch>,
        context: BatchContext,
        lookups: HashMap<String, Rows>,
    ) -> Result<(Vec<Letter>, Trial)> {
        let (spec, transform) = (self.parts.spec.clone(), self.parts.transform.clone());
        blocking(move || {
            let letters = letter::read(&rows)?;
            let bench = Bench { spec: &spec, transform: &*transform, context: &context, lookups: &lookups };
            let trial = bench.run(&letters, &rows)?;
            Ok((letters, trial))
        })
        .await
    }

    /// The rows of letters, as the table has them now; `batch` is the one that deals with them, where there is one.
    async fn letter_rows(&mut self, ids: &Ids, batch: Option<BatchId>) -> Result<Found> {
        let name = self.dead_letter_table()?;
        let keys = letter::keys(ids)?;
        let rows = self.table(&name)?.read_newest(&letter::columns(), Some(&keys)).await?;
        let letters = letter::read(&rows)?;
        let is_meant = meant(&letters, batch);
        let is_replayed = |row: usize| letters[row].status == Status::Replayed;
        let mut found = Found::default();
        let mut first = 0;
        for rows in rows {
            let pick = |is_picked: &dyn Fn(usize) -> bool| {
                let mask: BooleanArray = (first..first + rows.num_rows()).map(|row| Some(is_picked(row))).collect();
                filter_record_batch(&rows, &mask).context(ErrorKind::Failed, "letters could not be picked")
            };
            found.due.push(pick(&|row| is_meant[row] && !is_replayed(row))?);
            found.replayed.push(pick(&|row| is_meant[row] && is_replayed(row))?);
            found.others.push(pick(&|row| !is_meant[row])?);
            first += rows.num_rows();
        }
        for rows in [&mut found.due, &mut found.replayed, &mut found.others] {
            rows.retain(|batch| batch.num_rows() > 0);
        }
        let asked: BTreeSet<(BatchId, &String)> =
            ids.iter().flat_map(|(batch, ids)| ids.iter().map(|id| (*batch, id))).collect();
        let count = is_meant.iter().filter(|is_meant| **is_meant).count();
        if count == asked.len() {
            return Ok(found);
        }
        Err(Error::config(format!("{} dead letters were asked for, and {name} has {count} of them", asked.len()))
            .help("nothing was changed")
            .help("was the table changed or renamed meanwhile? bring it back, then run again: tidegate run FILE"))
    }

    fn dead_letter_table(&self) -> Result<String> {
        let table = self.parts.spec.dead_letters.as_ref().map(|dead_letters| dead_letters.table.clone());
        table.ok_or_else(|| {
            Error::config("a batch that replays dead letters was begun, and `dead_letters` is off")
                .help("nothing was changed; turn `dead_letters` on again until the batch is done")
        })
    }
}

/// Which rows are the letters that were asked for: one of each name. A record that a backfill sets aside, a later one brings
/// and a third sets aside again has a row for each time, all by one name, and at most the last is not replayed: that one is
/// meant. Where all of them are, `batch` may have replayed one: its marks can be there before it is done.
fn meant(letters: &[Letter], batch: Option<BatchId>) -> Vec<bool> {
    let rank = |letter: &Letter| match letter.status {
        Status::Open | Status::Discarded => 2,
        Status::Replayed if batch.is_some() && letter.status_batch == batch => 1,
        Status::Replayed => 0,
    };
    let name = |letter: &Letter| (letter.batch, letter.id.clone());
    let mut best: HashMap<(BatchId, String), usize> = HashMap::new();
    for (row, letter) in letters.iter().enumerate() {
        let best = best.entry(name(letter)).or_insert(row);
        if rank(letter) > rank(&letters[*best]) {
            *best = row;
        }
    }
    letters.iter().enumerate().map(|(row, letter)| best.get(&name(letter)) == Some(&row)).collect()
}

fn mark((letter, verdict): (&Letter, Verdict)) -> Mark {
    let (status, note) = match verdict {
        Verdict::Passes => (Status::Replayed, None),
        Verdict::Fails(why) | Verdict::Cannot(why) => (letter.status, Some(why)),
    };
    Mark { status, is_attempt: true, note }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(id: &str, status: Status, status_batch: Option<BatchId>) -> Letter {
        Letter {
            id: id.into(),
            batch: -1,
            table: "silver.log".into(),
            stage: "expect".into(),
            rule: "small".into(),
            error: "not true".into(),
            coordinates: None,
            failed_at: chrono::DateTime::UNIX_EPOCH,
            status,
            attempts: 0,
            status_batch,
            status_at: None,
            note: None,
        }
    }

    #[test]
    fn of_rows_of_one_name_the_one_that_is_not_replayed_is_the_letter() {
        let replayed = |batch| letter("a", Status::Replayed, Some(batch));
        for status in [Status::Open, Status::Discarded] {
            assert_eq!(meant(&[replayed(-1), letter("a", status, None)], Some(7)), [false, true]);
            assert_eq!(meant(&[letter("a", status, None), replayed(7)], Some(7)), [true, false]);
        }
        // A plan that is done again, its marks being there.
        assert_eq!(meant(&[replayed(-1), replayed(7), replayed(-1)], Some(7)), [false, true, false]);
        assert_eq!(meant(&[replayed(-1), replayed(7)], None), [true, false]);
        let mixed = [letter("b", Status::Open, None), replayed(-1), letter("a", Status::Open, None)];
        assert_eq!(meant(&mixed, None), [true, false, true]);
    }
}
