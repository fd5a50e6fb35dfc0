//! A runner's walk, one I/O at a time, in the order of `src/runner` and `src/table/delta/apply.rs`.
//!
//! Between two I/Os everything is pure and happens at once: a crash there is a crash before the next I/O. Reading a
//! planned range and what is computed from it is part of that: the rows of a range never change.

mod apply;
mod observe;

use super::facts::Next;
use super::sabotage::Sabotage;
use super::world::{Answer, Broken, Cells, MEMORY, Plan, Position, Put, Record, Storage, TABLES, ends};

/// Walks whose outcome is unknown are looked at again (production: 3, too).
const MAX_LOOKS: u8 = 3;
/// Looks again at a log that moved meanwhile. Production: 3; fewer here, so that running out of them is explored as well.
const MAX_RECHECKS: u8 = 1;
/// Tries against other writers of a table.
const ATTEMPTS: u8 = 3;
/// Plans and commit records that are kept. Production: 100; the least that could be right here.
const KEEP: usize = 1;

/// What a runner last saw of a table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Seen {
    pub version: Option<u8>,
    pub applied: Option<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    Plans,
    Commits,
}

/// The I/O that comes next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Io {
    ListPlans,
    ListCommits,
    GetPlan,
    GetCommit,
    LookAtTable(usize),
    GetStart,
    ResolveStart,
    PutStart,
    GetStartThatWon,
    GetEnds,
    PutPlan,
    GetPlanThatWon,
    Refresh(usize),
    Create(usize),
    LoadCreated(usize),
    ReloadNotCreated(usize),
    Write(usize),
    Settle(usize, Trouble),
    PutCommit,
    ListOld(Kind),
    DeleteOld(Kind),
    Acknowledge,
}

/// What is wrong with a table commit: somebody was first, or nothing is known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Trouble {
    Conflict,
    Unknown,
}

/// Why a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Nothing more to read (exit 0).
    Done,
    /// Another runner was met (exit 75).
    Busy,
    /// A failure that is tried again by whoever started the run (exit 69).
    Failed,
    /// The source has let go of rows that nobody has (exit 66).
    Lost,
    /// A position that cannot be moved now (exit 78).
    Refused,
}

/// What a step shows the statistics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Sight {
    Replay,
    AlreadyApplied,
    OwnPlanFound,
    SettledAsLanded,
    SettledAsLost,
    LostAtPlan,
    LostAtApply,
    LostAtCommit,
    LogMoved,
    GaveUpLooking,
    Pruned,
    PruneRaced,
    Idle,
    LateRowStayedDead,
    FromBronze,
    Lost,
    MovedBack,
    MoveRefused,
}

impl Sight {
    pub const ALL: &[(Sight, &str)] = &[
        (Sight::Replay, "a batch was replayed"),
        (Sight::AlreadyApplied, "a table had the batch already"),
        (Sight::OwnPlanFound, "a runner found its own plan, whose reply was lost"),
        (Sight::SettledAsLanded, "a lost reply was settled as landed"),
        (Sight::SettledAsLost, "a lost request was settled as not landed"),
        (Sight::LostAtPlan, "a runner lost at plan"),
        (Sight::LostAtApply, "a runner lost at apply"),
        (Sight::LostAtCommit, "a runner found the commit record written"),
        (Sight::LogMoved, "the log moved while it was looked at"),
        (Sight::GaveUpLooking, "the log moved at every look"),
        (Sight::Pruned, "old objects were deleted"),
        (Sight::PruneRaced, "a sleeper planned a batch that was done and cleaned up meanwhile"),
        (Sight::Idle, "a run ended with nothing more to read"),
        (Sight::LateRowStayedDead, "a late row met the memory of deletes"),
        (Sight::FromBronze, "a batch was finished from bronze"),
        (Sight::Lost, "a run stopped because the source had let rows go"),
        (Sight::MovedBack, "a position was moved back"),
        (Sight::MoveRefused, "a position was not moved, for there was none or a batch was under way"),
    ];
}

/// Newest plan and commit record as read by one look at the log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Head {
    plan: Option<Plan>,
    commit: Option<Record>,
}

/// A process.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Runner {
    pub run: u8,
    /// Here to move the position back, not to read.
    pub moves: bool,
    pub io: Io,
    looks: u8,
    rechecks: u8,
    listed: [Option<u8>; 2],
    /// The first look at the log, while the second one is under way.
    first: Option<Head>,
    head: Head,
    seen: [Seen; TABLES + 1],
    /// What this process knew of the table before it began to apply to it.
    known: Option<u8>,
    remembered: Cells,
    at: Position,
    ends: Option<Position>,
    next: Option<Next>,
    plan: Option<Plan>,
    attempt: u8,
    memory_attempt: u8,
    old: u8,
    has_run: bool,
}

/// What a runner does after an I/O.
pub enum After {
    Goes(Runner),
    Ends(Exit),
}

/// One step in the making: the store, the sights, the bug.
pub struct Step<'a> {
    pub storage: &'a mut Storage,
    pub sights: &'a mut u32,
    pub sabotage: Option<Sabotage>,
}

impl Step<'_> {
    fn saw(&mut self, sight: Sight) {
        *self.sights |= 1 << sight as u32;
    }

    fn is(&self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage)
    }
}

type Stepped = Result<After, Broken>;

impl Runner {
    pub fn start(run: u8, moves: bool, sabotage: Option<Sabotage>) -> Runner {
        let head = Head::default();
        let mut runner = Runner {
            run,
            moves,
            io: Io::ListPlans,
            looks: 0,
            rechecks: 0,
            listed: [None; 2],
            first: None,
            head,
            seen: Default::default(),
            known: None,
            remembered: Cells::default(),
            at: Position::default(),
            ends: None,
            next: None,
            plan: None,
            attempt: 0,
            memory_attempt: 0,
            old: 0,
            has_run: false,
        };
        runner.observe(sabotage);
        runner
    }

    fn at(mut self, io: Io) -> Stepped {
        self.io = io;
        Ok(After::Goes(self))
    }

    fn record(&self, step: &Step) -> Record {
        let plan =
            self.plan.unwrap_or(Plan { batch: 0, from: self.at, until: self.at, run: 0, look: 0, is_move: false });
        let until = match self.ends {
            Some(ends) if step.is(Sabotage::OffsetsFromEnds) => ends,
            _ => plan.until,
        };
        Record {
            batch: plan.batch,
            until,
            versions: std::array::from_fn(|table| self.seen[table].version),
            memory: self.seen[MEMORY].version,
            run: self.run,
        }
    }

    fn finished(mut self, step: &mut Step) -> Stepped {
        let Some(plan) = self.plan.take() else { return Ok(After::Ends(Exit::Failed)) };
        self.at = plan.until;
        self.looks = 0;
        self.has_run = true;
        self.known = None;
        self.remembered = Cells::default();
        self.next = Some(Next::New(plan.batch + 1));
        match plan.batch > 0 {
            true => self.at(Io::ListOld(Kind::Plans)),
            false => self.go_on(step),
        }
    }

    /// The put that comes next, if it is one.
    pub fn next_put(&self, step: &Step) -> Option<Put> {
        let plan = self.plan;
        match self.io {
            Io::PutStart => Some(Put::Start(self.at)),
            Io::PutPlan => plan.map(Put::Plan),
            Io::PutCommit => Some(Put::Commit(self.record(step))),
            Io::Create(table) => Some(Put::Create(table)),
            Io::Write(table) => plan.map(|plan| Put::Write {
                table,
                base: self.seen[table].version.unwrap_or_default(),
                plan,
                remembered: self.remembered,
                nonce: self.nonce(),
            }),
            _ => None,
        }
    }

    /// The runner hears the answer to its put.
    pub fn hear(mut self, answer: Answer, step: &mut Step) -> Stepped {
        let answer = match answer {
            Answer::Unknown if step.is(Sabotage::GoOnAfterUnknown) => Answer::Done,
            answer => answer,
        };
        match (self.io, answer) {
            (Io::PutStart, Answer::Done) => self.go_on(step),
            (Io::PutStart, Answer::Existed) => self.at(Io::GetStartThatWon),
            // Not inside the walk: the run ends.
            (Io::PutStart, Answer::Unknown) => Ok(After::Ends(Exit::Failed)),
            (Io::PutPlan, Answer::Existed) if step.is(Sabotage::TakenIsOwn) => self.turn(0, step),
            (Io::PutPlan, Answer::Done) if step.is(Sabotage::PlanAfterFirstTable) => self.turn(1, step),
            (Io::PutPlan, Answer::Done) => match self.plan {
                Some(plan) => {
                    if step.storage.history.planned > Some(plan.batch) {
                        step.saw(Sight::PruneRaced);
                    }
                    self.begin(plan, step)
                }
                None => Ok(After::Ends(Exit::Failed)),
            },
            (Io::PutPlan, Answer::Existed) => self.at(Io::GetPlanThatWon),
            (Io::Create(table), Answer::Done) => self.at(Io::LoadCreated(table)),
            (Io::Create(table), _) => self.at(Io::ReloadNotCreated(table)),
            (Io::Write(MEMORY), Answer::Done) => {
                self.seen[MEMORY] = landed(step.storage, MEMORY);
                self.remembered_all(step)
            }
            (Io::Write(table), Answer::Done) => {
                self.seen[table] = landed(step.storage, table);
                self.written(table, step)
            }
            (Io::Write(table), Answer::Existed) => self.at(Io::Settle(table, Trouble::Conflict)),
            (Io::Write(table), Answer::Unknown) => self.at(Io::Settle(table, Trouble::Unknown)),
            (Io::PutCommit, Answer::Done) if step.is(Sabotage::CommitBeforeApply) => self.turn(0, step),
            (Io::PutCommit, Answer::Done) => self.finished(step),
            (Io::PutCommit, Answer::Existed) => {
                step.saw(Sight::LostAtCommit);
                self.finished(step)
            }
            _ => self.look_again(step),
        }
    }

    /// An I/O that changes nothing that another runner could be fenced by.
    pub fn step(mut self, step: &mut Step) -> Stepped {
        match self.io {
            Io::ListPlans => {
                self.listed[0] = step.storage.newest_plan();
                self.at(Io::ListCommits)
            }
            Io::ListCommits => {
                self.listed[1] = step.storage.newest_commit();
                match self.listed {
                    [Some(_), _] => self.at(Io::GetPlan),
                    [None, Some(_)] => self.at(Io::GetCommit),
                    [None, None] => self.after_head(step),
                }
            }
            Io::GetPlan => {
                self.head.plan = self.listed[0].and_then(|batch| step.storage.plans[usize::from(batch)]);
                match self.listed[1] {
                    Some(_) => self.at(Io::GetCommit),
                    None => self.after_head(step),
                }
            }
            Io::GetCommit => {
                self.head.commit = self.listed[1].and_then(|batch| step.storage.commits[usize::from(batch)]);
                self.after_head(step)
            }
            Io::LookAtTable(table) => {
                self.seen[table] = landed(step.storage, table);
                match table {
                    MEMORY => self.at(Io::ListPlans),
                    _ => self.at(Io::LookAtTable(table + 1)),
                }
            }
            Io::GetStart => match step.storage.start {
                Some(start) => {
                    self.at = start;
                    self.go_on(step)
                }
                None => self.at(Io::ResolveStart),
            },
            // `latest`: what it means depends on when it is asked.
            Io::ResolveStart => {
                self.at = ends(step.storage.produced);
                self.at(Io::PutStart)
            }
            Io::GetStartThatWon => {
                self.at = step.storage.start.unwrap_or_default();
                self.go_on(step)
            }
            Io::GetEnds => {
                self.ends = Some(ends(step.storage.produced));
                self.go_on(step)
            }
            Io::GetPlanThatWon => {
                let batch = self.plan.map(|plan| usize::from(plan.batch)).unwrap_or_default();
                match step.storage.plans[batch] {
                    Some(winner) if winner.run == self.run => {
                        step.saw(Sight::OwnPlanFound);
                        self.begin(winner, step)
                    }
                    Some(_) => {
                        step.saw(Sight::LostAtPlan);
                        Ok(After::Ends(Exit::Busy))
                    }
                    None => Ok(After::Ends(Exit::Failed)),
                }
            }
            Io::Refresh(MEMORY) => {
                self.seen[MEMORY] = landed(step.storage, MEMORY);
                self.remembered = step.storage.tables[MEMORY].cells;
                self.remember(step)
            }
            Io::Refresh(table) => {
                self.seen[table] = landed(step.storage, table);
                self.check(table, step)
            }
            Io::LoadCreated(MEMORY) => {
                self.seen[MEMORY] = landed(step.storage, MEMORY);
                self.write_memory(step)
            }
            Io::LoadCreated(table) => {
                self.seen[table] = landed(step.storage, table);
                self.made(table, step)
            }
            Io::ReloadNotCreated(table) => {
                self.seen[table] = landed(step.storage, table);
                if self.seen[table].version.is_none() {
                    return Ok(After::Ends(Exit::Failed));
                }
                if table == MEMORY {
                    return self.write_memory(step);
                }
                self.made(table, step)
            }
            Io::Settle(table, answer) => self.settle(table, answer, step),
            Io::ListOld(kind) => {
                self.old = old(step, kind);
                self.delete_next(kind, step)
            }
            Io::DeleteOld(kind) => {
                let batch = self.old.trailing_zeros() as usize;
                self.old &= self.old - 1;
                match kind {
                    Kind::Plans => step.storage.plans[batch] = None,
                    Kind::Commits => step.storage.commits[batch] = None,
                }
                step.saw(Sight::Pruned);
                self.delete_next(kind, step)
            }
            Io::Acknowledge => {
                step.storage.group = Some(self.at);
                Ok(After::Ends(Exit::Done))
            }
            Io::PutStart | Io::PutPlan | Io::PutCommit | Io::Create(_) | Io::Write(_) => self.at(Io::ListPlans),
        }
    }

    /// The table is there, made by this process or by another, which may even have applied the batch.
    fn made(self, table: usize, step: &mut Step) -> Stepped {
        match step.is(Sabotage::CreateWithoutCheck) {
            true => self.prepare(table),
            false => self.check(table, step),
        }
    }

    fn delete_next(self, kind: Kind, step: &mut Step) -> Stepped {
        match (self.old, kind) {
            (0, Kind::Plans) => self.at(Io::ListOld(Kind::Commits)),
            (0, Kind::Commits) => self.go_on(step),
            _ => self.at(Io::DeleteOld(kind)),
        }
    }
}

fn landed(storage: &Storage, table: usize) -> Seen {
    Seen { version: storage.tables[table].version, applied: storage.tables[table].applied }
}

/// What a clean-up would delete, as bits.
fn old(step: &Step, kind: Kind) -> u8 {
    let keep = if step.is(Sabotage::PruneTooMuch) { 0 } else { KEEP };
    let there: Vec<usize> = match kind {
        Kind::Plans => (0..step.storage.plans.len()).filter(|&batch| step.storage.plans[batch].is_some()).collect(),
        Kind::Commits => {
            (0..step.storage.commits.len()).filter(|&batch| step.storage.commits[batch].is_some()).collect()
        }
    };
    there.iter().take(there.len().saturating_sub(keep)).fold(0, |bits, batch| bits | 1 << batch)
}
