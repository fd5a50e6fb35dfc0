//! Observe and decide, as `Runner::gather`, `ensure_observed` and `first_offsets` do.

use super::super::facts::{self, Next};
use super::super::sabotage::Sabotage;
use super::super::world::Plan;
use super::{After, Exit, Head, Io, MAX_LOOKS, MAX_RECHECKS, Runner, Sight, Step, Stepped};

impl Runner {
    /// Forgets everything but what the run is about.
    pub(super) fn observe(&mut self, sabotage: Option<Sabotage>) {
        self.rechecks = 0;
        self.seen = Default::default();
        self.next = None;
        self.plan = None;
        self.look(sabotage);
    }

    pub(super) fn look(&mut self, sabotage: Option<Sabotage>) {
        self.first = None;
        self.head = Head::default();
        self.io = match sabotage {
            Some(Sabotage::TablesBeforeLog) => Io::LookAtTable(0),
            _ => Io::ListPlans,
        };
    }

    pub(super) fn after_head(mut self, step: &mut Step) -> Stepped {
        let head = std::mem::take(&mut self.head);
        self.listed = [None; 2];
        let Some(first) = self.first else {
            self.first = Some(head);
            return match step.sabotage {
                Some(Sabotage::TablesBeforeLog) => self.at(Io::ListPlans),
                _ => self.at(Io::LookAtTable(0)),
            };
        };
        self.first = None;
        if first == head || step.is(Sabotage::NoRecheck) {
            return self.decide(first, step);
        }
        step.saw(Sight::LogMoved);
        if self.rechecks < MAX_RECHECKS {
            self.rechecks += 1;
            self.look(step.sabotage);
            return Ok(After::Goes(self));
        }
        step.saw(Sight::GaveUpLooking);
        // Facts from different moments: what looks like damage is somebody else's work.
        match facts::decide(first.plan, first.commit, &self.seen) {
            Err(_) if !step.is(Sabotage::DecideWhileMoving) => Ok(After::Ends(Exit::Busy)),
            _ => self.decide(first, step),
        }
    }

    pub(super) fn decide(mut self, head: Head, step: &mut Step) -> Stepped {
        self.rechecks = 0;
        let mut next = facts::decide(head.plan, head.commit, &self.seen)?;
        self.at = head.commit.map(|commit| commit.until).unwrap_or_default();
        self.has_run = head.commit.is_some();
        if let (Next::Again(plan), true) = (next, step.is(Sabotage::PendingIsDone)) {
            (next, self.at) = (Next::New(plan.batch + 1), plan.until);
            self.next = Some(next);
            return self.go_on(step);
        }
        self.next = Some(next);
        if self.moves && (matches!(next, Next::Again(_)) || head.commit.is_none()) {
            step.saw(Sight::MoveRefused);
            return Ok(After::Ends(Exit::Refused));
        }
        match head.commit {
            Some(_) => {
                if let (true, Some(group)) = (step.is(Sabotage::TrustConsumerGroup), step.storage.group) {
                    self.at = group;
                }
                self.go_on(step)
            }
            None => self.at(Io::GetStart),
        }
    }

    /// The position is known: what does the next batch read?
    pub(super) fn go_on(mut self, step: &mut Step) -> Stepped {
        if self.moves {
            return self.go_back(step);
        }
        let rebounds = step.is(Sabotage::ReboundOnReplay);
        let batch = match self.next {
            Some(Next::Again(plan)) if !rebounds => {
                step.saw(Sight::Replay);
                return self.begin(plan, step);
            }
            Some(Next::Again(plan)) => plan.batch,
            Some(Next::New(batch)) => batch,
            None => return self.at(Io::ListPlans),
        };
        let Some(end) = self.ends else { return self.at(Io::GetEnds) };
        if step.storage.has_lost(self.at, step.storage.earliest) {
            step.saw(Sight::Lost);
            return Ok(After::Ends(Exit::Lost));
        }
        let until = facts::bound(self.at, end);
        if until == self.at {
            step.saw(Sight::Idle);
            return match self.has_run {
                true => self.at(Io::Acknowledge),
                false => Ok(After::Ends(Exit::Done)),
            };
        }
        let plan = Plan { batch, from: self.at, until, run: self.run, look: self.looks, is_move: false };
        if matches!(self.next, Some(Next::Again(_))) || step.is(Sabotage::PlanAfterFirstTable) {
            return self.begin(plan, step);
        }
        self.plan = Some(plan);
        self.at(Io::PutPlan)
    }

    /// Plans to move the position back to the first one, as `Runner::relocate` does; the end, once that is done.
    fn go_back(mut self, step: &mut Step) -> Stepped {
        let first = step.storage.start.unwrap_or_default();
        let Some(Next::New(batch)) = self.next.filter(|_| self.at != first) else {
            return Ok(After::Ends(Exit::Done));
        };
        step.saw(Sight::MovedBack);
        let (run, look) = (self.run, self.looks);
        self.plan = Some(Plan { batch, from: self.at, until: first, run, look, is_move: true });
        self.at(Io::PutPlan)
    }

    /// A failure that may have been applied: everything is looked at again.
    pub(super) fn look_again(mut self, step: &mut Step) -> Stepped {
        self.looks += 1;
        // Who moves a position looks once.
        if self.looks >= MAX_LOOKS || self.moves {
            return Ok(After::Ends(Exit::Failed));
        }
        self.observe(step.sabotage);
        Ok(After::Goes(self))
    }
}
