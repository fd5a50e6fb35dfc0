//! Breadth-first search over everything that an adversary can do: shortest counterexamples come first.

mod trace;

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};

use rayon::prelude::*;

use super::sabotage::Sabotage;
use super::walk::{After, Exit, Runner, Sight, Step};
use super::world::{Answer, BATCHES, Broken, Put, Storage, TABLES, ends};

pub use trace::Trace;

/// How much of each trouble one schedule may contain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Budget {
    /// Processes started in all.
    pub starts: u8,
    pub crashes: u8,
    /// Replies and requests lost, and puts that the client library sent twice.
    pub lost: u8,
    /// Requests that the sender takes for lost and that land later, its death or not.
    pub delayed: u8,
    /// Commits of maintenance to a table.
    pub compactions: u8,
    /// Rows produced while the search runs.
    pub rows: u8,
    /// How often the source lets go of all rows that it has.
    pub expiries: u8,
    /// Processes that move the position back to the first one.
    pub moves: u8,
}

/// One search.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    pub name: &'static str,
    /// Processes at a time: 1 = one host with its lock file, 2 = no lock between them.
    pub runners: usize,
    pub budget: Budget,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    Start(usize),
    Step(usize),
    Crash(usize),
    ReplyLost(usize),
    RequestLost(usize),
    Resent(usize),
    Delayed(usize),
    Lands,
    Produce,
    Compact(usize),
    Expire,
    Move(usize),
}

/// Everything: storage, processes, and what the adversary may still do.
#[derive(Clone, PartialEq, Eq, Hash)]
struct World {
    storage: Storage,
    runners: [Option<Runner>; 2],
    in_flight: Option<Put>,
    started: u8,
    left: Budget,
}

/// What a search saw.
#[derive(Default)]
pub struct Report {
    pub states: usize,
    pub transitions: u64,
    pub depth: usize,
    /// Transitions with each sight.
    pub sights: [u64; 32],
    /// The most I/Os that a process needed to finish alone.
    pub slowest: usize,
    /// Distinct contents of storage from which a new process was let run alone.
    pub storages: usize,
    pub broken: Option<Trace>,
}

/// A process that is alone needs fewer I/Os than this: a few hundred for all rows one by one.
const PATIENCE: usize = 400;

/// How many states are expanded at once: what is in memory beside the frontier.
const BLOCK: usize = 8192;

/// Hashes are already hashes.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

type Seen = HashSet<u64, BuildHasherDefault<AsIs>>;

fn digest(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

impl World {
    fn new(scenario: &Scenario) -> World {
        World { storage: Storage::default(), runners: [None, None], in_flight: None, started: 0, left: scenario.budget }
    }

    fn actions(&self, scenario: &Scenario, sabotage: Option<Sabotage>) -> Vec<Action> {
        let mut actions = Vec::with_capacity(12);
        let slots = &self.runners[..scenario.runners];
        // Slots are alike: a new process takes the first free one.
        if let (true, Some(free)) = (self.left.starts > 0, slots.iter().position(Option::is_none)) {
            actions.push(Action::Start(free));
        }
        if let (true, Some(free)) = (self.left.moves > 0, slots.iter().position(Option::is_none)) {
            actions.push(Action::Move(free));
        }
        if self.left.expiries > 0 && self.storage.earliest != ends(self.storage.produced) {
            actions.push(Action::Expire);
        }
        for (slot, runner) in slots.iter().enumerate() {
            let Some(runner) = runner else { continue };
            // Keeping 100 batches means that nobody sleeps that long between a listing and a reading. Here one is kept.
            let other =
                slots.iter().enumerate().filter(|(other, _)| *other != slot).find_map(|(_, other)| other.as_ref());
            let waits = other.is_some_and(|other| runner.deletes_under(other));
            if !waits || sabotage == Some(Sabotage::PruneUnderReader) {
                actions.push(Action::Step(slot));
            }
            if self.left.crashes > 0 {
                actions.push(Action::Crash(slot));
            }
            let (mut storage, mut sights) = (Storage::default(), 0);
            let step = Step { storage: &mut storage, sights: &mut sights, sabotage };
            if runner.next_put(&step).is_none() {
                continue;
            }
            if self.left.lost > 0 {
                actions.extend([Action::ReplyLost(slot), Action::RequestLost(slot), Action::Resent(slot)]);
            }
            if self.left.delayed > 0 && self.in_flight.is_none() {
                actions.push(Action::Delayed(slot));
            }
        }
        if self.in_flight.is_some() {
            actions.push(Action::Lands);
        }
        if self.left.rows > 0 && usize::from(self.storage.produced) < BATCHES {
            actions.push(Action::Produce);
        }
        if self.left.compactions > 0 {
            let exists = |&table: &usize| self.storage.tables[table].version.is_some();
            actions.extend((0..TABLES).filter(exists).map(Action::Compact));
        }
        actions
    }

    /// The world after an action.
    fn act(&mut self, action: Action, sabotage: Option<Sabotage>, sights: &mut u32) -> Result<Option<Exit>, Broken> {
        match action {
            Action::Start(slot) => {
                self.left.starts -= 1;
                self.runners[slot] = Some(Runner::start(self.started, false, sabotage));
                self.started += 1;
            }
            Action::Move(slot) => {
                self.left.moves -= 1;
                self.runners[slot] = Some(Runner::start(self.started, true, sabotage));
                self.started += 1;
            }
            Action::Expire => {
                self.left.expiries -= 1;
                self.storage.earliest = ends(self.storage.produced);
            }
            Action::Crash(slot) => {
                self.left.crashes -= 1;
                self.runners[slot] = None;
            }
            Action::Lands => {
                if let Some(put) = self.in_flight.take() {
                    self.storage.put(&put, sabotage)?;
                }
            }
            Action::Produce => {
                self.left.rows -= 1;
                self.storage.produced += 1;
            }
            Action::Compact(table) => {
                self.left.compactions -= 1;
                let version = &mut self.storage.tables[table].version;
                *version = version.map(|version| version + 1);
            }
            Action::Step(slot) => return self.io(slot, action, sabotage, sights),
            Action::ReplyLost(slot) | Action::RequestLost(slot) | Action::Resent(slot) => {
                self.left.lost -= 1;
                return self.io(slot, action, sabotage, sights);
            }
            Action::Delayed(slot) => {
                self.left.delayed -= 1;
                return self.io(slot, action, sabotage, sights);
            }
        }
        Ok(None)
    }

    fn io(
        &mut self,
        slot: usize,
        action: Action,
        sabotage: Option<Sabotage>,
        sights: &mut u32,
    ) -> Result<Option<Exit>, Broken> {
        let Some(runner) = self.runners[slot].take() else { return Ok(None) };
        let mut step = Step { storage: &mut self.storage, sights, sabotage };
        let after = match runner.next_put(&step) {
            None => runner.step(&mut step)?,
            Some(put) => {
                let answer = match action {
                    Action::ReplyLost(_) => {
                        step.storage.put(&put, sabotage)?;
                        Answer::Unknown
                    }
                    Action::RequestLost(_) => Answer::Unknown,
                    Action::Delayed(_) => {
                        self.in_flight = Some(put);
                        Answer::Unknown
                    }
                    // The client library sends a put again after a server error, and meets its own object.
                    Action::Resent(_) => {
                        step.storage.put(&put, sabotage)?;
                        step.storage.put(&put, sabotage)?
                    }
                    _ => step.storage.put(&put, sabotage)?,
                };
                runner.hear(answer, &mut step)?
            }
        };
        match after {
            After::Goes(runner) => {
                self.runners[slot] = Some(runner);
                Ok(None)
            }
            After::Ends(exit) => Ok(Some(exit)),
        }
    }

    /// One process, no trouble: it must finish, and every row that is there must be in.
    fn finishes_alone(&self, slot: usize, sabotage: Option<Sabotage>, known: &Seen) -> Result<Alone, Broken> {
        let mut world = self.clone();
        world.in_flight = None;
        let mut alone = Alone::default();
        if world.runners[slot].is_none() {
            world.runners = [None, None];
            world.runners[slot] = Some(Runner::start(world.started, false, sabotage));
            alone.is_new = true;
        }
        while alone.steps < PATIENCE {
            if !alone.is_new {
                let pair = digest(&(&world.storage, &world.runners[slot]));
                if known.contains(&pair) {
                    return Ok(alone);
                }
                alone.pairs.push(pair);
            }
            alone.steps += 1;
            match world.io(slot, Action::Step(slot), sabotage, &mut 0)? {
                None => {}
                // Whoever was under way may have been overtaken, and may have pinned an earlier end.
                Some(_) if !alone.is_new => return Ok(alone),
                Some(Exit::Done) => {
                    let (done, end) = (world.storage.history.done, ends(world.storage.produced));
                    let at = done.map(|record| record.until).or(world.storage.start);
                    let is_sabotaged = sabotage == Some(Sabotage::StartNotRecorded);
                    return match at == Some(end) || is_sabotaged {
                        true => Ok(alone),
                        false => Err(Broken(format!("a run alone ended at {at:?}, there is data up to {end:?}"))),
                    };
                }
                Some(Exit::Lost) if !world.storage.is_pending_in_bronze() => return Ok(alone),
                Some(exit) => return Err(Broken(format!("a run alone, without trouble, ended as {exit:?}"))),
            }
        }
        Err(Broken(format!("a run alone is not finished after {PATIENCE} I/Os")))
    }
}

/// A run to its end without trouble.
#[derive(Default)]
struct Alone {
    is_new: bool,
    steps: usize,
    pairs: Vec<u64>,
}

/// A state found while a block is expanded.
struct Found {
    parent: u32,
    action: Action,
    digest: u64,
    world: World,
    storage: u64,
    pairs: Vec<u64>,
    steps: usize,
}

#[derive(Default)]
struct Expanded {
    found: Vec<Found>,
    transitions: u64,
    sights: [u64; 32],
    broken: Option<(u32, Vec<Action>, Broken)>,
}

struct Search<'a> {
    scenario: &'a Scenario,
    sabotage: Option<Sabotage>,
    states: Seen,
    storages: Seen,
    pairs: Seen,
}

impl Search<'_> {
    fn expand(&self, frontier: &[(u32, World)]) -> Expanded {
        let mut expanded = Expanded::default();
        let mut here = Seen::default();
        let mut stores = Seen::default();
        for (parent, world) in frontier {
            for action in world.actions(self.scenario, self.sabotage) {
                expanded.transitions += 1;
                let mut next = world.clone();
                let mut sights = 0;
                if let Err(law) = next.act(action, self.sabotage, &mut sights) {
                    expanded.broken = Some((*parent, vec![action], law));
                    return expanded;
                }
                for (bit, count) in expanded.sights.iter_mut().enumerate() {
                    *count += u64::from(sights >> bit & 1);
                }
                let digest = digest(&next);
                if self.states.contains(&digest) || !here.insert(digest) {
                    continue;
                }
                match self.live(&next, &mut stores) {
                    Ok((storage, pairs, steps)) => {
                        expanded.found.push(Found {
                            parent: *parent,
                            action,
                            digest,
                            world: next,
                            storage,
                            pairs,
                            steps,
                        });
                    }
                    Err(law) => {
                        expanded.broken = Some((*parent, vec![action], law));
                        return expanded;
                    }
                }
            }
        }
        expanded
    }

    /// Liveness, once per distinct content of storage, and once per process in it.
    fn live(&self, world: &World, here: &mut Seen) -> Result<(u64, Vec<u64>, usize), Broken> {
        let (mut pairs, mut steps) = (Vec::new(), 0);
        let storage = digest(&world.storage);
        if !self.storages.contains(&storage) && here.insert(storage) {
            let mut fresh = world.clone();
            fresh.runners = [None, None];
            let alone = fresh.finishes_alone(0, self.sabotage, &self.pairs);
            steps = alone.map_err(|Broken(law)| Broken(format!("then a new run, alone: {law}")))?.steps;
        }
        for slot in 0..self.scenario.runners {
            if world.runners[slot].is_some() {
                let alone = world.finishes_alone(slot, self.sabotage, &self.pairs);
                let went_on = |Broken(law)| Broken(format!("then that run goes on alone: {law}"));
                pairs.extend(alone.map_err(went_on)?.pairs);
            }
        }
        Ok((storage, pairs, steps))
    }
}

/// Searches all of a scenario, or until a law breaks.
pub fn search(scenario: &Scenario, sabotage: Option<Sabotage>) -> Report {
    let first = World::new(scenario);
    let mut search =
        Search { scenario, sabotage, states: Seen::default(), storages: Seen::default(), pairs: Seen::default() };
    search.states.insert(digest(&first));
    let mut parents: Vec<(u32, Action)> = vec![(0, Action::Produce)];
    let mut frontier = vec![(0, first)];
    let mut report = Report { states: 1, ..Report::default() };
    while !frontier.is_empty() {
        let mut next = Vec::new();
        for block in frontier.chunks(BLOCK) {
            let parts: Vec<Expanded> = block.par_chunks(512).map(|part| search.expand(part)).collect();
            for part in parts {
                report.transitions += part.transitions;
                for (total, count) in report.sights.iter_mut().zip(part.sights) {
                    *total += count;
                }
                if let Some((parent, last, law)) = part.broken {
                    report.states = search.states.len();
                    report.broken = Some(trace::trace(scenario, sabotage, &parents, parent, &last, law));
                    return report;
                }
                for found in part.found {
                    search.storages.insert(found.storage);
                    search.pairs.extend(found.pairs);
                    report.slowest = report.slowest.max(found.steps);
                    if search.states.insert(found.digest) {
                        next.push((parents.len() as u32, found.world));
                        parents.push((found.parent, found.action));
                    }
                }
            }
        }
        frontier = next;
        report.depth += usize::from(!frontier.is_empty());
    }
    report.states = search.states.len();
    report.storages = search.storages.len();
    report
}

/// Names of what was seen, with how often.
pub fn sights(report: &Report) -> impl Iterator<Item = (&'static str, u64)> + '_ {
    Sight::ALL.iter().map(|(sight, name)| (*name, report.sights[*sight as usize]))
}
