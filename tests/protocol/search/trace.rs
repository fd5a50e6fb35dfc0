//! Counterexamples in words.

use super::super::sabotage::Sabotage;
use super::super::walk::Io;
use super::super::world::{Broken, NAMES};
use super::{Action, Scenario, World};

/// A shortest schedule that breaks a law.
pub struct Trace {
    pub lines: Vec<String>,
    pub law: String,
}

/// Tells the way to a state in words.
pub(super) fn trace(
    scenario: &Scenario,
    sabotage: Option<Sabotage>,
    parents: &[(u32, Action)],
    at: u32,
    last: &[Action],
    law: Broken,
) -> Trace {
    let mut actions = last.to_vec();
    let mut at = at;
    while at != 0 {
        let (parent, action) = parents[at as usize];
        actions.push(action);
        at = parent;
    }
    actions.reverse();
    let mut world = World::new(scenario);
    let mut lines = Vec::new();
    for action in actions {
        let said = say(&world, action);
        let exit = world.act(action, sabotage, &mut 0);
        let end = match exit {
            Ok(Some(exit)) => format!(" -> exit {exit:?}"),
            _ => String::new(),
        };
        lines.push(format!("{said}{end}"));
    }
    Trace { lines, law: law.0 }
}

fn say(world: &World, action: Action) -> String {
    let io = |slot: usize| match &world.runners[slot] {
        Some(runner) => format!("run {}: {}", runner.run, name(runner.io)),
        None => String::new(),
    };
    match action {
        Action::Start(_) => format!("run {} starts", world.started),
        Action::Step(slot) => io(slot),
        Action::Crash(slot) => format!("{} … crash before it", io(slot)),
        Action::ReplyLost(slot) => format!("{} … done, reply lost", io(slot)),
        Action::RequestLost(slot) => format!("{} … request lost", io(slot)),
        Action::Resent(slot) => format!("{} … done, sent again by the client library", io(slot)),
        Action::Delayed(slot) => format!("{} … no reply, the request is still on its way", io(slot)),
        Action::Lands => "the late request lands".to_string(),
        Action::Produce => "a row is produced".to_string(),
        Action::Expire => "the source lets go of all rows so far".to_string(),
        Action::Move(_) => format!("run {} starts to move the position back", world.started),
        Action::Compact(table) => format!("{} is compacted", NAMES[table]),
    }
}

fn name(io: Io) -> String {
    match io {
        Io::LookAtTable(table) => format!("look at {}", NAMES[table]),
        Io::Refresh(table) => format!("refresh {}", NAMES[table]),
        Io::Create(table) => format!("create {}", NAMES[table]),
        Io::LoadCreated(table) | Io::ReloadNotCreated(table) => format!("load {}", NAMES[table]),
        Io::Write(table) => format!("commit to {}", NAMES[table]),
        Io::Settle(table, _) => format!("did the commit to {} land?", NAMES[table]),
        Io::ListOld(kind) => format!("list old {kind:?}").to_lowercase(),
        Io::DeleteOld(kind) => format!("delete the oldest of {kind:?}").to_lowercase(),
        other => {
            let mut words = String::new();
            for letter in format!("{other:?}").chars() {
                if letter.is_uppercase() && !words.is_empty() {
                    words.push(' ');
                }
                words.push(letter.to_ascii_lowercase());
            }
            words
        }
    }
}
