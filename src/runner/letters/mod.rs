//! Dead letters replayed or given up by hand (`tidegate dlq`): a batch like any other, which reads them instead of a source.
//! Its plan names them, it is carried through every table, and what became of them is part of its commit to the
//! dead-letter table, so that a crash anywhere is finished by the next run, and no letter is ever replayed twice.

pub mod trial;

use std::collections::{BTreeMap, HashMap};
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
        let rows = self.letter_rows(ids).await?;
        let (letters, trial) = self.trial(rows, context, lookups).await?;
        // Better found while nothing is planned: a batch that a table refuses would stand in the way of every run.
        for (table, rows) in &trial.shaped {
            let rows = Change::Rows(rows.to_vec());
            self.table(table)?.check(&rows).await.map_err(|error| error.with("table", table))?;
        }
        let count = |rows: &Rows| rows.iter().map(|batch| batch.num_rows() as u64).sum::<u64>();
        let further =
            trial.dead.iter().map(|dead| (dead.table.clone(), dead.stage.as_str().to_string(), dead.rule.clone()));
        Ok(Outlook {
            rows: trial.shaped.iter().map(|(table, rows)| (table.clone(), count(rows))).collect(),
            further: further.collect(),
            letters: letters.into_iter().zip(trial.verdicts).collect(),
        })
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
        let rows = self.letter_rows(&letters.ids).await?;
        let mut shaping = Shaping::empty(&context);
        let marks = match &letters.action {
            Action::Discard { reason } => {
                let mark = Mark { status: Status::Discarded, is_attempt: false, note: reason.clone() };
                vec![mark; letters.len()]
            }
            Action::Replay => {
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
        shaping.settled = Some(Settled {
            keys: letter::keys(&letters.ids)?,
            rows: letter::marked(&rows, &marks, plan.batch, plan.batch_time)?,
        });
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

    /// The rows of letters, whole.
    async fn letter_rows(&mut self, ids: &Ids) -> Result<Vec<RecordBatch>> {
        let name = self.dead_letter_table()?;
        let keys = letter::keys(ids)?;
        let rows = self.table(&name)?.read(&letter::columns(), Some(&keys)).await?;
        let found: usize = rows.iter().map(RecordBatch::num_rows).sum();
        if found == keys.num_rows() {
            return Ok(rows);
        }
        Err(Error::config(format!("{} dead letters were asked for, and {name} has {found} of them", keys.num_rows()))
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

fn mark((letter, verdict): (&Letter, Verdict)) -> Mark {
    let (status, note) = match verdict {
        Verdict::Passes => (Status::Replayed, None),
        Verdict::Fails(why) | Verdict::Cannot(why) => (letter.status, Some(why)),
    };
    Mark { status, is_attempt: true, note }
}
