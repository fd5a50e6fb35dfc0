//! Works rows into windows whose borders are known beforehand.
//!
//! Rows are first gathered per key and pane, the longest stretch that no window's border divides; each pane is then added to
//! the windows that hold it. Where windows do not overlap, the pane is the window and rows go straight into it.

use std::collections::HashMap;

use super::arrivals::Arrivals;
use super::entries::Entries;
use super::judge::Judge;
use super::kept::{NOWHERE, Slot};
use super::state::Touched;
use crate::error::Result;
use crate::model::window::{Micros, Window, floor};
use crate::transform::stateful::Step;

/// What is the same for all rows of a pane.
struct Pane {
    /// Starts of the windows that take its rows.
    takers: Vec<Micros>,
    /// Every window that holds it is closed.
    late: bool,
    /// The last end of those.
    end: Micros,
    /// Some window does not take it.
    partly: bool,
}

/// Finds the pane of a time.
struct Cutter {
    window: Option<Window>,
    /// The calendar window of the row before.
    recent: (Micros, Micros),
}

impl Cutter {
    fn pane(&mut self, time: Micros) -> Micros {
        match self.window {
            None => 0,
            Some(window @ Window::Calendar { .. }) => {
                if !(self.recent.0..self.recent.1).contains(&time) {
                    let mut starts = Vec::new();
                    window.starts(time, &mut starts);
                    let start = starts.first().copied().unwrap_or(time);
                    self.recent = (start, window.end(start));
                }
                self.recent.0
            }
            Some(Window::Tumbling { size }) => floor(time, size),
            Some(window) => window.pane().map_or(time, |pane| floor(time, pane)),
        }
    }

    fn describe(&self, pane: Micros, judge: &Judge) -> Pane {
        let Some(window) = self.window else {
            return Pane { takers: vec![0], late: false, end: Micros::MAX, partly: false };
        };
        let mut takers = Vec::new();
        window.starts(pane, &mut takers);
        let end = takers.last().map_or(pane, |start| window.end(*start));
        let late = !takers.iter().any(|start| judge.open(window.end(*start)));
        let all = takers.len();
        takers.retain(|start| judge.takes(window.end(*start)));
        let partly = takers.len() < all;
        Pane { takers, late, end, partly }
    }
}

/// See the module.
pub(super) fn work(
    window: Option<Window>,
    rows: &Arrivals,
    entries: &mut Entries,
    judge: &Judge,
    step: &mut Step,
    touched: &mut Touched,
) -> Result<()> {
    let overlap = matches!(window, Some(Window::Sliding { .. }));
    let mut cutter = Cutter { window, recent: (0, 0) };
    let mut panes: HashMap<Micros, Pane> = HashMap::new();
    let mut groups: HashMap<(Micros, &[u8]), Slot> = HashMap::new();
    let mut gathered = Vec::new();
    let mut slots = vec![NOWHERE; rows.len()];
    for (row, time) in judge.believed(rows, step) {
        let start = cutter.pane(time);
        let pane = panes.entry(start).or_insert_with(|| cutter.describe(start, judge));
        if pane.takers.is_empty() {
            judge.refuse(row, pane.end, step);
            continue;
        }
        match (pane.late, pane.partly) {
            (true, _) => *step.counts.entry("late").or_default() += 1,
            (false, true) => *step.counts.entry("partly_late").or_default() += 1,
            (false, false) => {}
        }
        let key = rows.keys.of(row);
        slots[row] = *groups.entry((start, key)).or_insert_with(|| match overlap {
            true => {
                let slot = entries.allocate();
                gathered.push((start, key, slot));
                slot
            }
            false => touched.touch(find_or_open(entries, window, key, start), entries),
        });
    }
    entries.update(&slots, &rows.arguments, rows.times())?;
    for (pane, key, from) in gathered {
        for start in panes.get(&pane).iter().flat_map(|pane| &pane.takers) {
            let into = touched.touch(find_or_open(entries, window, key, *start), entries);
            entries.merge(into, from)?;
        }
        entries.release(from);
    }
    Ok(())
}

fn find_or_open(entries: &mut Entries, window: Option<Window>, key: &[u8], start: Micros) -> Slot {
    entries.find(key, start).unwrap_or_else(|| {
        let slot = entries.allocate();
        let end = window.map_or(Micros::MAX, |window| window.end(start));
        entries.insert(slot, key, start, end);
        slot
    })
}
