//! Many pipelines under one roof: when each runs, rests, is tried again, or is left alone; pure.
//!
//! [`Supervisor::decide`] takes the time and what happened and says what to do. A pipeline never overlaps with itself: it
//! is started only from a state in which nothing of it runs, and whatever is asked meanwhile waits for the end of its run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;

use super::trigger::{Schedule, Trigger};

/// Pauses after failures in a row: they double from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(300);

/// Ticks that passed are counted up to here.
const COUNTED: u64 = 1_000;

/// A pipeline as its file has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Which pipeline: its file.
    pub key: String,
    /// Changes with whatever a run can see of the file.
    pub revision: String,
    /// When it runs.
    pub schedule: Schedule,
    /// Where its crontab is read.
    pub timezone: Tz,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// As it should, or it was asked to stop.
    Done,
    /// In a way that may be better next time: 1, 69, 75.
    Retryable,
    /// In a way that only a person mends: 2, 65, 66, 78.
    Permanent,
}

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Time passed.
    Woke,
    /// A run ended.
    Ended {
        /// Whose.
        key: String,
        /// How.
        ending: Ending,
    },
    /// The files were read again, because somebody asked for it.
    Reloaded {
        /// The sound ones.
        offers: Vec<Offer>,
        /// Files that are there and cannot be used: what runs from them goes on as it was.
        broken: BTreeSet<String>,
    },
    /// One file changed.
    Changed(Offer),
    /// Finish what runs and start nothing.
    Stopped,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Run the pipeline once.
    Start {
        /// Which.
        key: String,
        /// From this version of its file.
        revision: String,
        /// What a run is.
        trigger: Trigger,
    },
    /// Let the running batch finish and end the run.
    Stop {
        /// Which.
        key: String,
    },
    /// Close what is open of it; a start, if any, opens it anew.
    Close {
        /// Which.
        key: String,
    },
}

/// What a pipeline is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Running,
    /// It waits for its next tick.
    Waiting {
        /// The tick.
        until: DateTime<Utc>,
    },
    /// It failed and is tried again.
    Pausing {
        /// When.
        until: DateTime<Utc>,
    },
    /// It failed in a way that trying again does not mend.
    Parked,
    /// Its trigger is satisfied for good.
    Finished,
}

impl State {
    /// The word for messages and JSON.
    pub fn as_str(&self) -> &'static str {
        match self {
            State::Running => "running",
            State::Waiting { .. } => "waiting",
            State::Pausing { .. } => "pausing",
            State::Parked => "parked",
            State::Finished => "finished",
        }
    }
}

/// What comes after the run that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Next {
    Replace(Offer),
    Remove,
}

/// One pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pipeline {
    offer: Offer,
    /// What it is doing.
    pub state: State,
    /// Failures in a row.
    pub failures: u32,
    /// Runs that were started.
    pub runs: u64,
    /// Ticks that passed while a run took longer than its interval; they are not made up for.
    pub missed: u64,
    started: DateTime<Utc>,
    next: Option<Next>,
}

/// All pipelines of a process.
#[derive(Debug, Default)]
pub struct Supervisor {
    pipelines: BTreeMap<String, Pipeline>,
    is_stopping: bool,
}

impl Supervisor {
    /// What to do about `event` at `now`.
    pub fn decide(&mut self, now: DateTime<Utc>, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Woke => {}
            Event::Ended { key, ending } => self.ended(now, &key, ending, &mut actions),
            Event::Changed(offer) => self.take(now, offer, &mut actions),
            Event::Reloaded { offers, broken } => self.reloaded(now, offers, &broken, &mut actions),
            Event::Stopped => {
                self.is_stopping = true;
                let running = self.pipelines.iter().filter(|(_, pipeline)| pipeline.state == State::Running);
                actions.extend(running.map(|(key, _)| Action::Stop { key: key.clone() }));
            }
        }
        if !self.is_stopping {
            for (key, pipeline) in &mut self.pipelines {
                actions.extend(pipeline.start_if_due(key, now));
            }
        }
        actions
    }

    /// When there is something to do next, unless something happens before.
    pub fn wakes_at(&self) -> Option<DateTime<Utc>> {
        self.pipelines.values().filter_map(Pipeline::due).min()
    }

    /// Whether everything that ran has ended after a stop.
    pub fn has_stopped(&self) -> bool {
        self.is_stopping && self.pipelines.values().all(|pipeline| pipeline.state != State::Running)
    }

    /// All of them, by key.
    pub fn pipelines(&self) -> &BTreeMap<String, Pipeline> {
        &self.pipelines
    }

    /// Whether a run of this version of a file may still be started.
    pub fn may_start(&self, key: &str, revision: &str) -> bool {
        let is_it = |offer: &Offer| offer.revision == revision;
        self.pipelines.get(key).is_some_and(|pipeline| {
            is_it(&pipeline.offer) || matches!(&pipeline.next, Some(Next::Replace(offer)) if is_it(offer))
        })
    }

    fn ended(&mut self, now: DateTime<Utc>, key: &str, ending: Ending, actions: &mut Vec<Action>) {
        let Some(pipeline) = self.pipelines.get_mut(key) else { return };
        match pipeline.next.take() {
            Some(Next::Remove) => {
                self.pipelines.remove(key);
                actions.push(Action::Close { key: key.to_string() });
            }
            Some(Next::Replace(offer)) => {
                actions.push(Action::Close { key: key.to_string() });
                self.enter(now, offer);
            }
            None => pipeline.rest(key, now, ending),
        }
    }

    fn reloaded(
        &mut self,
        now: DateTime<Utc>,
        offers: Vec<Offer>,
        broken: &BTreeSet<String>,
        actions: &mut Vec<Action>,
    ) {
        let offered: BTreeSet<String> = offers.iter().map(|offer| offer.key.clone()).collect();
        let gone = |key: &&String| !offered.contains(*key) && !broken.contains(*key);
        for key in self.pipelines.keys().filter(gone).cloned().collect::<Vec<_>>() {
            match self.pipelines.get_mut(&key) {
                Some(pipeline) if pipeline.state == State::Running => {
                    pipeline.next = Some(Next::Remove);
                    actions.push(Action::Stop { key });
                }
                _ => {
                    self.pipelines.remove(&key);
                    actions.push(Action::Close { key });
                }
            }
        }
        for offer in offers {
            self.take(now, offer, actions);
        }
    }

    /// A file was read: a new one enters, a changed one takes the place of the old one after its batch, an unchanged one
    /// goes on, at once if it had failed.
    fn take(&mut self, now: DateTime<Utc>, offer: Offer, actions: &mut Vec<Action>) {
        let key = offer.key.clone();
        match self.pipelines.get_mut(&key) {
            None => self.enter(now, offer),
            Some(pipeline) if pipeline.state == State::Running => {
                // The same file again undoes a removal or a change that was still waiting.
                let is_same = pipeline.offer == offer;
                let was_stopped = pipeline.next.is_some();
                if !is_same || was_stopped {
                    pipeline.next = Some(Next::Replace(offer));
                }
                if !is_same && !was_stopped {
                    actions.push(Action::Stop { key });
                }
            }
            Some(pipeline) if pipeline.offer == offer => {
                if matches!(pipeline.state, State::Parked | State::Pausing { .. }) {
                    pipeline.failures = 0;
                    pipeline.state = State::Waiting { until: now };
                }
            }
            Some(_) => {
                actions.push(Action::Close { key });
                self.enter(now, offer);
            }
        }
    }

    /// Runs at once, but for a crontab, which says when.
    fn enter(&mut self, now: DateTime<Utc>, offer: Offer) {
        let until = match &offer.schedule {
            Schedule::Cron(cron) => cron.next_after(now, offer.timezone),
            Schedule::Trigger(_) => Some(now),
        };
        let state = until.map_or(State::Finished, |until| State::Waiting { until });
        let (runs, missed) = self.pipelines.get(&offer.key).map_or((0, 0), |pipeline| (pipeline.runs, pipeline.missed));
        let key = offer.key.clone();
        let entered = Pipeline { offer, state, failures: 0, runs, missed, started: now, next: None };
        self.pipelines.insert(key, entered);
    }
}

impl Pipeline {
    /// When it has to be started.
    pub fn due(&self) -> Option<DateTime<Utc>> {
        match self.state {
            State::Waiting { until } | State::Pausing { until } => Some(until),
            State::Running | State::Parked | State::Finished => None,
        }
    }

    fn start_if_due(&mut self, key: &str, now: DateTime<Utc>) -> Option<Action> {
        let due = self.due().filter(|due| *due <= now)?;
        if matches!(self.state, State::Waiting { .. }) {
            self.missed += self.passed(due, now);
        }
        (self.state, self.started) = (State::Running, now);
        self.runs += 1;
        let (key, revision) = (key.to_string(), self.offer.revision.clone());
        Some(Action::Start { key, revision, trigger: self.offer.schedule.of_tick() })
    }

    /// Ticks after `due`, which is run now, until now: one run stands for them all.
    fn passed(&self, due: DateTime<Utc>, now: DateTime<Utc>) -> u64 {
        let mut tick = due;
        for count in 0..COUNTED {
            match self.offer.schedule.next_after(tick, self.offer.timezone) {
                Some(next) if next <= now && next > tick => tick = next,
                _ => return count,
            }
        }
        COUNTED
    }

    fn rest(&mut self, key: &str, now: DateTime<Utc>, ending: Ending) {
        self.state = match ending {
            Ending::Done => {
                self.failures = 0;
                // From the start of the run: a tick that passed meanwhile is due now.
                let next = self.offer.schedule.next_after(self.started, self.offer.timezone);
                next.map_or(State::Finished, |until| State::Waiting { until })
            }
            Ending::Retryable => {
                self.failures = self.failures.saturating_add(1);
                State::Pausing { until: now + pause(key, self.failures) }
            }
            Ending::Permanent => State::Parked,
        };
    }
}

/// Between half of it and the whole pause, spread by name so that pipelines that failed together do not return together.
fn pause(key: &str, failures: u32) -> TimeDelta {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LAST_PAUSE);
    let seed = key.bytes().chain(failures.to_le_bytes());
    let hash =
        seed.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let whole = doubled.as_millis() as u64;
    TimeDelta::milliseconds((whole / 2 + (hash >> 16) % (whole / 2 + 1)) as i64)
}

#[cfg(test)]
#[path = "supervise_tests.rs"]
mod tests;
