//! What is on storage, what a put does to it, and what must hold of it. The oracle at the end knows rows and ranges only.

use super::sabotage::Sabotage;

/// In the order of the walk: the dead letters append, bronze appends, silver upserts; the last one is silver's memory of
/// deletes.
pub const TABLES: usize = 3;
pub const DEAD_LETTERS: usize = 0;
pub const BRONZE: usize = 1;
pub const SILVER: usize = 2;
pub const MEMORY: usize = 3;
pub const NAMES: [&str; 4] = ["dead letters", "bronze", "silver", "memory of deletes"];

pub const PARTITIONS: usize = 2;
/// Rows per partition.
pub const ROWS: usize = 3;
/// Room for batches: each reads at least one row.
pub const BATCHES: usize = PARTITIONS * ROWS;

/// Next offset per partition.
pub type Position = [u8; PARTITIONS];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Row {
    /// Key and rank (`order_by`).
    Put(usize, u8),
    Delete(usize, u8),
    /// Cannot be decoded.
    Bad,
}

/// Key 0 is written, deleted, and written again by a row that is older than its delete and comes from another partition.
pub const SOURCE: [[Row; ROWS]; PARTITIONS] =
    [[Row::Put(0, 1), Row::Delete(0, 3), Row::Put(1, 2)], [Row::Put(0, 2), Row::Bad, Row::Delete(1, 1)]];

/// The order in which partitions grow: the adversary chooses when, not where.
const GROWTH: [usize; BATCHES] = [0, 0, 1, 1, 0, 1];

/// The end of the source after so many rows were produced.
pub fn ends(produced: u8) -> Position {
    let mut ends = [0; PARTITIONS];
    for &partition in &GROWTH[..usize::from(produced)] {
        ends[partition] += 1;
    }
    ends
}

/// The rows of a range, with their place in the source.
pub fn rows(from: Position, until: Position) -> impl Iterator<Item = (usize, Row)> {
    (0..PARTITIONS).flat_map(move |partition| {
        let range = usize::from(from[partition])..usize::from(until[partition]).max(usize::from(from[partition]));
        range.map(move |offset| (partition * ROWS + offset, SOURCE[partition][offset]))
    })
}

/// A plan; two are the same if nothing differs, the planner and its attempt included (they stand for the batch time).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Plan {
    pub batch: u8,
    pub from: Position,
    pub until: Position,
    pub run: u8,
    pub look: u8,
    /// It reads nothing and moves the position back, from `from` to `until`.
    pub is_move: bool,
}

/// A commit record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Record {
    pub batch: u8,
    pub until: Position,
    pub versions: [Option<u8>; TABLES],
    pub memory: Option<u8>,
    pub run: u8,
}

/// Row counts by place in the source; for silver and the memory of deletes, the highest rank by key (0 = none).
pub type Cells = [u8; BATCHES];

/// A Delta table: its newest version.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Table {
    pub version: Option<u8>,
    pub applied: Option<u8>,
    /// Which attempt carries each batch; 0 = none.
    pub nonces: [u8; BATCHES],
    pub cells: Cells,
}

/// One put.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Put {
    Start(Position),
    Plan(Plan),
    Commit(Record),
    Create(usize),
    /// A Delta commit of one batch: it must be the next version after `base`.
    Write {
        table: usize,
        base: u8,
        plan: Plan,
        remembered: Cells,
        nonce: u8,
    },
}

/// What the store answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    Done,
    /// Something was there already.
    Existed,
    Unknown,
}

/// A broken law: the counterexample's last line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken(pub String);

fn broken<T>(why: impl Into<String>) -> Result<T, Broken> {
    Err(Broken(why.into()))
}

/// Everything that survives a crash.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Storage {
    pub produced: u8,
    /// The first rows that the source still has.
    pub earliest: Position,
    pub start: Option<Position>,
    pub plans: [Option<Plan>; BATCHES],
    pub commits: [Option<Record>; BATCHES],
    pub tables: [Table; TABLES + 1],
    /// The consumer group.
    pub group: Option<Position>,
    pub history: History,
}

/// What an observer who forgets nothing has seen; the runners never look at it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct History {
    pub start: Option<Position>,
    /// The plan by which some table carries the batch.
    pub effective: [Option<Plan>; BATCHES],
    pub planned: Option<u8>,
    pub done: Option<Record>,
}

fn newest<T>(objects: &[Option<T>]) -> Option<u8> {
    objects.iter().rposition(Option::is_some).map(|batch| batch as u8)
}

impl Storage {
    pub fn newest_plan(&self) -> Option<u8> {
        newest(&self.plans)
    }

    pub fn newest_commit(&self) -> Option<u8> {
        newest(&self.commits)
    }

    /// The effect of a put that reaches the store.
    pub fn put(&mut self, put: &Put, sabotage: Option<Sabotage>) -> Result<Answer, Broken> {
        match *put {
            Put::Start(at) => {
                if self.history.start.is_none() {
                    self.history.start = Some(at);
                }
                if sabotage == Some(Sabotage::StartNotRecorded) {
                    return Ok(Answer::Done);
                }
                if self.start.is_some() && sabotage != Some(Sabotage::StartOverwrites) {
                    return Ok(Answer::Existed);
                }
                self.start = Some(at);
            }
            Put::Plan(plan) => {
                let slot = &mut self.plans[usize::from(plan.batch)];
                if slot.is_some() && sabotage != Some(Sabotage::PlanOverwrites) {
                    return Ok(Answer::Existed);
                }
                if slot.is_some_and(|was| was != plan) {
                    return broken(format!("plan {} was changed after it existed", plan.batch));
                }
                *slot = Some(plan);
                self.planned(plan)?;
            }
            Put::Commit(record) => {
                let slot = &mut self.commits[usize::from(record.batch)];
                if slot.is_some() && sabotage != Some(Sabotage::CommitOverwrites) {
                    return Ok(Answer::Existed);
                }
                if slot.is_some_and(|was| was != record) {
                    return broken(format!("commit record {} was changed after it existed", record.batch));
                }
                *slot = Some(record);
                self.done(record)?;
            }
            Put::Create(table) => {
                if self.tables[table].version.is_some() {
                    return Ok(Answer::Existed);
                }
                self.tables[table].version = Some(0);
            }
            Put::Write { table, base, plan, remembered, nonce } => {
                let fits = self.tables[table].version == Some(base);
                if !fits && sabotage != Some(Sabotage::NoFencing) {
                    return Ok(Answer::Existed);
                }
                self.write(table, plan, &remembered, nonce, sabotage)?;
            }
        }
        self.check()?;
        Ok(Answer::Done)
    }

    /// Whether the source has let go of rows of a range.
    pub fn has_lost(&self, from: Position, until: Position) -> bool {
        (0..PARTITIONS).any(|partition| from[partition] < until[partition].min(self.earliest[partition]))
    }

    /// Whether a batch is begun that can be finished without the source: bronze has it, and so must the dead letters.
    pub fn is_pending_in_bronze(&self) -> bool {
        let done = self.history.done.map(|record| record.batch);
        let planned = self.history.planned;
        planned > done && planned.is_some() && self.tables[BRONZE].applied == planned
    }

    fn write(
        &mut self,
        table: usize,
        plan: Plan,
        remembered: &Cells,
        nonce: u8,
        sabotage: Option<Sabotage>,
    ) -> Result<(), Broken> {
        match &mut self.history.effective[usize::from(plan.batch)] {
            Some(was) if *was != plan => {
                return broken(format!("two different plans of batch {} took effect", plan.batch));
            }
            slot => *slot = Some(plan),
        }
        let into = &mut self.tables[table];
        let trims = plan.is_move && matches!(table, BRONZE | DEAD_LETTERS);
        if trims && sabotage != Some(Sabotage::MoveWithoutTrim) {
            // What is going to be read again.
            for (place, _) in rows(plan.until, plan.from) {
                into.cells[place] = 0;
            }
        }
        for (place, row) in rows(plan.from, plan.until) {
            match (table, row) {
                (BRONZE, Row::Put(..) | Row::Delete(..)) | (DEAD_LETTERS, Row::Bad) => {
                    into.cells[place] = into.cells[place].saturating_add(1);
                }
                (MEMORY, Row::Delete(key, rank)) => into.cells[key] = into.cells[key].max(rank),
                _ => {}
            }
        }
        if table == SILVER {
            for (key, rank, deletes) in winners(plan) {
                let alive = if deletes { rank >= remembered[key] } else { rank > remembered[key] };
                if alive && rank > into.cells[key] {
                    into.cells[key] = if deletes { 0 } else { rank };
                }
            }
        }
        let version = into.version.map_or(0, |version| version + 1);
        into.version = Some(version);
        into.nonces[usize::from(plan.batch)] = nonce;
        into.applied = Some(plan.batch);
        Ok(())
    }

    /// Laws of a plan that becomes the newest. An older one is a zombie's, written where the log was pruned: it is never
    /// looked at, and never takes effect.
    fn planned(&mut self, plan: Plan) -> Result<(), Broken> {
        if self.history.planned.is_some_and(|newest| plan.batch <= newest) {
            return Ok(());
        }
        let next = self.history.planned.map_or(0, |newest| newest + 1);
        if plan.batch != next {
            return broken(format!("ids are not dense: plan {} where {next} is next", plan.batch));
        }
        let after = self.history.done.map(|done| done.batch + 1).unwrap_or(0);
        if plan.batch != after {
            return broken(format!("batch {} was planned while {after} is not done", plan.batch));
        }
        let at = self.history.done.map(|done| done.until).or(self.history.start);
        if Some(plan.from) != at {
            return broken(format!("plan {} starts at {:?}, the batch before ended at {at:?}", plan.batch, plan.from));
        }
        self.history.planned = Some(plan.batch);
        Ok(())
    }

    fn done(&mut self, record: Record) -> Result<(), Broken> {
        let Some(before) = self.history.done else {
            self.history.done = Some(record);
            return if record.batch == 0 { Ok(()) } else { broken("the first commit record is not that of batch 0") };
        };
        if record.batch <= before.batch {
            return Ok(());
        }
        if record.batch != before.batch + 1 {
            return broken(format!("commit record {} follows {}", record.batch, before.batch));
        }
        let is_move = self.history.effective[usize::from(record.batch)].is_some_and(|plan| plan.is_move);
        if !is_move && (0..PARTITIONS).any(|partition| record.until[partition] < before.until[partition]) {
            return broken(format!("progress went back from {:?} to {:?}", before.until, record.until));
        }
        self.history.done = Some(record);
        Ok(())
    }

    /// The laws that hold at every moment.
    fn check(&self) -> Result<(), Broken> {
        let History { start, effective, planned, done } = &self.history;
        for (table, name) in NAMES.iter().enumerate().take(TABLES) {
            let applied = self.tables[table].applied;
            if applied > *planned {
                return broken(format!("{name} holds batch {applied:?}, planned is {planned:?}"));
            }
            if let Some(record) = done
                && applied.is_none_or(|applied| applied < record.batch)
            {
                return broken(format!("batch {} is called done, but {name} holds {applied:?}", record.batch));
            }
            let from = start.unwrap_or_default();
            let mut until = applied.and_then(|batch| effective[usize::from(batch)]).map_or(from, |plan| plan.until);
            if table == SILVER {
                // What was read once stays, for a row that is read again meets itself.
                let all = effective.iter().flatten().filter(|plan| Some(plan.batch) <= applied);
                until = all.fold(from, |far, plan| std::array::from_fn(|p| far[p].max(plan.until[p])));
            }
            let expected = prefix(table, from, until);
            let found = self.tables[table].cells;
            if found != expected {
                return broken(format!(
                    "{name} is not the rows of {from:?}..{until:?} (batch {applied:?}): found {found:?}, expected {expected:?}"
                ));
            }
        }
        if let Some(record) = done
            && effective[usize::from(record.batch)].is_none_or(|plan| plan.until != record.until)
        {
            return broken(format!("commit record {} says {:?}: not where its rows end", record.batch, record.until));
        }
        Ok(())
    }
}

/// The newest row per key of a batch: (key, rank, whether it deletes).
pub fn winners(plan: Plan) -> impl Iterator<Item = (usize, u8, bool)> {
    (0..2).filter_map(move |key| {
        let ranked = rows(plan.from, plan.until).filter_map(|(_, row)| match row {
            Row::Put(of, rank) if of == key => Some((key, rank, false)),
            Row::Delete(of, rank) if of == key => Some((key, rank, true)),
            _ => None,
        });
        ranked.max_by_key(|(_, rank, _)| *rank)
    })
}

/// The oracle: what a table holds after the rows of a range, whatever the batches. One row per key: the newest of all.
fn prefix(table: usize, from: Position, until: Position) -> Cells {
    let mut cells = [0; BATCHES];
    let mut newest = [0; BATCHES];
    for (place, row) in rows(from, until) {
        match (table, row) {
            (BRONZE, Row::Put(..) | Row::Delete(..)) | (DEAD_LETTERS, Row::Bad) => cells[place] = 1,
            (SILVER, Row::Put(key, rank)) if rank > newest[key] => (newest[key], cells[key]) = (rank, rank),
            (SILVER, Row::Delete(key, rank)) if rank > newest[key] => (newest[key], cells[key]) = (rank, 0),
            _ => {}
        }
    }
    cells
}
