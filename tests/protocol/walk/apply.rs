//! Apply, as `Runner::apply` and `src/table/delta/{apply,deletes}.rs` do.

use super::super::facts::{self, Next};
use super::super::sabotage::Sabotage;
use super::super::world::{BRONZE, Cells, DEAD_LETTERS, MEMORY, Plan, Row, SILVER, TABLES, rows, winners};
use super::{ATTEMPTS, After, Exit, Io, Kind, Runner, Seen, Sight, Step, Stepped, Trouble, landed};

impl Runner {
    /// A durable plan: reads, shapes, and applies table after table.
    pub(super) fn begin(mut self, plan: Plan, step: &mut Step) -> Stepped {
        if !step.is(Sabotage::ReboundOnReplay) {
            facts::advance(self.at, plan)?;
        }
        self.plan = Some(plan);
        if !plan.is_move && step.storage.has_lost(plan.from, plan.until) {
            // What the source let go is read back from bronze; what was set aside, bronze never had.
            let carries = |table: usize| self.seen[table].applied.is_some_and(|applied| applied >= plan.batch);
            if !carries(DEAD_LETTERS) || !carries(BRONZE) {
                step.saw(Sight::Lost);
                return Ok(After::Ends(Exit::Lost));
            }
            step.saw(Sight::FromBronze);
        }
        match step.is(Sabotage::CommitBeforeApply) {
            true => self.at(Io::PutCommit),
            false => self.turn(0, step),
        }
    }

    /// The table whose turn comes after this one's.
    pub(super) fn after(self, table: usize, step: &mut Step) -> Stepped {
        let place = if step.is(Sabotage::DeadLettersLast) { (table + TABLES - 1) % TABLES } else { table };
        self.turn(place + 1, step)
    }

    /// The table in this place of the walk.
    pub(super) fn turn(mut self, place: usize, step: &mut Step) -> Stepped {
        let Some(plan) = self.plan else { return Ok(After::Ends(Exit::Failed)) };
        if place == 1 && step.is(Sabotage::PlanAfterFirstTable) && matches!(self.next, Some(Next::New(_))) {
            self.next = None;
            return self.at(Io::PutPlan);
        }
        if place == TABLES {
            return match step.is(Sabotage::CommitBeforeApply) {
                true => self.finished(step),
                false => self.at(Io::PutCommit),
            };
        }
        let table = if step.is(Sabotage::DeadLettersLast) { (place + 1) % TABLES } else { place };
        let carries = self.seen[table].applied.is_some_and(|applied| applied >= plan.batch);
        if carries && !skips_check(table, step) {
            step.saw(Sight::AlreadyApplied);
            if place == 0 && step.is(Sabotage::FirstTableDecides) {
                return self.at(Io::PutCommit);
            }
            return self.turn(place + 1, step);
        }
        if step.is(Sabotage::NothingToWriteNoTxn) && !changes(table, plan) {
            return self.turn(place + 1, step);
        }
        self.known = self.seen[table].applied;
        (self.attempt, self.memory_attempt, self.remembered) = (0, 0, Cells::default());
        self.at(Io::Refresh(table))
    }

    /// The table was just read: somebody else's work, a table to create, or a batch to write.
    pub(super) fn check(self, table: usize, step: &mut Step) -> Stepped {
        let Some(plan) = self.plan else { return Ok(After::Ends(Exit::Failed)) };
        let carries = self.seen[table].applied.is_some_and(|applied| applied >= plan.batch);
        if carries && !skips_check(table, step) && self.known != self.seen[table].applied {
            step.saw(Sight::LostAtApply);
            return Ok(After::Ends(Exit::Busy));
        }
        match self.seen[table].version {
            None => self.at(Io::Create(table)),
            Some(_) => self.prepare(table),
        }
    }

    pub(super) fn prepare(self, table: usize) -> Stepped {
        let has_rows = self.plan.is_some_and(|plan| winners(plan).next().is_some());
        match table == SILVER && has_rows {
            true => self.at(Io::Refresh(MEMORY)),
            false => self.at(Io::Write(table)),
        }
    }

    /// The memory of deletes was read: new deletes go there before the table changes.
    pub(super) fn remember(self, step: &mut Step) -> Stepped {
        let Some(plan) = self.plan else { return Ok(After::Ends(Exit::Failed)) };
        let is_late = |&(key, rank, deletes): &(usize, u8, bool)| !deletes && rank < self.remembered[key];
        if winners(plan).any(|winner| is_late(&winner)) {
            step.saw(Sight::LateRowStayedDead);
        }
        let mut fresh = winners(plan).filter(|&(key, rank, deletes)| deletes && rank > self.remembered[key]);
        if fresh.next().is_none() || step.is(Sabotage::MemoryAfterTable) {
            return self.at(Io::Write(SILVER));
        }
        self.write_memory(step)
    }

    pub(super) fn write_memory(self, step: &mut Step) -> Stepped {
        let Some(plan) = self.plan else { return Ok(After::Ends(Exit::Failed)) };
        match self.seen[MEMORY] {
            Seen { version: None, .. } => self.at(Io::Create(MEMORY)),
            Seen { applied: Some(applied), .. } if applied >= plan.batch => self.remembered_all(step),
            _ => self.at(Io::Write(MEMORY)),
        }
    }

    pub(super) fn remembered_all(self, step: &mut Step) -> Stepped {
        match step.is(Sabotage::MemoryAfterTable) {
            true => self.after(SILVER, step),
            false => self.at(Io::Write(SILVER)),
        }
    }

    pub(super) fn written(self, table: usize, step: &mut Step) -> Stepped {
        if table == SILVER && step.is(Sabotage::MemoryAfterTable) {
            let deletes = self.plan.is_some_and(|plan| winners(plan).any(|(_, _, deletes)| deletes));
            if deletes {
                return self.write_memory(step);
            }
        }
        self.after(table, step)
    }

    /// Whether this process is about to delete what another one has listed and is about to read.
    pub fn deletes_under(&self, reader: &Runner) -> bool {
        let batch = Some(self.old.trailing_zeros() as u8);
        match (self.io, reader.io) {
            (Io::DeleteOld(Kind::Plans), Io::ListCommits | Io::GetPlan) => reader.listed[0] == batch,
            (Io::DeleteOld(Kind::Commits), Io::GetPlan | Io::GetCommit) => reader.listed[1] == batch,
            _ => false,
        }
    }

    pub(super) fn nonce(&self) -> u8 {
        self.run * 16 + self.looks * 4 + self.attempt + 1
    }

    /// After a failed table commit: the table's log decides.
    pub(super) fn settle(mut self, table: usize, answer: Trouble, step: &mut Step) -> Stepped {
        let Some(plan) = self.plan else { return Ok(After::Ends(Exit::Failed)) };
        let nonce = self.nonce();
        self.seen[table] = landed(step.storage, table);
        if answer == Trouble::Unknown && step.is(Sabotage::ResendOnUnknown) {
            return self.at(Io::Write(table));
        }
        let carries = self.seen[table].applied.is_some_and(|applied| applied >= plan.batch);
        if table == MEMORY {
            self.memory_attempt += 1;
            return match (carries, self.memory_attempt < ATTEMPTS) {
                (true, _) => self.remembered_all(step),
                (false, true) => self.at(Io::Write(MEMORY)),
                (false, false) => Ok(After::Ends(Exit::Failed)),
            };
        }
        if carries && !skips_check(table, step) {
            if step.storage.tables[table].nonces[usize::from(plan.batch)] == nonce {
                step.saw(Sight::SettledAsLanded);
                return self.written(table, step);
            }
            step.saw(Sight::LostAtApply);
            return Ok(After::Ends(Exit::Busy));
        }
        match answer {
            Trouble::Conflict => {
                self.attempt += 1;
                match self.attempt < ATTEMPTS {
                    true => self.check(table, step),
                    false => Ok(After::Ends(Exit::Busy)),
                }
            }
            Trouble::Unknown => {
                step.saw(Sight::SettledAsLost);
                self.look_again(step)
            }
        }
    }
}

fn skips_check(table: usize, step: &Step) -> bool {
    step.is(Sabotage::SkipTxnCheck) || (table == DEAD_LETTERS && step.is(Sabotage::DeadLettersOutside))
}

/// Whether a batch changes rows of a table.
fn changes(table: usize, plan: Plan) -> bool {
    rows(plan.from, plan.until).any(|(_, row)| (row == Row::Bad) == (table == DEAD_LETTERS))
}
