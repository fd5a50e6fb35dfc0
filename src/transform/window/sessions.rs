//! Works rows into sessions.
//!
//! Rows are sorted by key and time and cut where more than the gap lies between two of them. Each piece is then added to the
//! stored session that it touches; where it touches several, it makes one of them.

use super::arrivals::Arrivals;
use super::entries::Entries;
use super::judge::Judge;
use super::kept::{NOWHERE, Slot};
use super::state::Touched;
use crate::error::Result;
use crate::model::window::Micros;
use crate::transform::stateful::Step;

/// Rows of one key that belong together.
struct Piece<'a> {
    key: &'a [u8],
    start: Micros,
    end: Micros,
    slot: Slot,
}

/// See the module.
pub(super) fn work(
    gap: Micros,
    rows: &Arrivals,
    entries: &mut Entries,
    judge: &Judge,
    step: &mut Step,
    touched: &mut Touched,
) -> Result<()> {
    let mut taken = Vec::new();
    for (row, time) in judge.believed(rows, step) {
        let end = time.saturating_add(gap);
        if !judge.takes(end) {
            judge.refuse(row, end, step);
            continue;
        }
        if !judge.open(end) {
            *step.counts.entry("late").or_default() += 1;
        }
        taken.push((rows.keys.of(row), time, row));
    }
    taken.sort_unstable();
    let mut pieces: Vec<Piece<'_>> = Vec::new();
    let mut slots = vec![NOWHERE; rows.len()];
    for (key, time, row) in taken {
        let end = time.saturating_add(gap);
        let slot = match pieces.last_mut() {
            Some(piece) if piece.key == key && time <= piece.end => {
                piece.end = end;
                piece.slot
            }
            _ => {
                let slot = entries.allocate();
                pieces.push(Piece { key, start: time, end, slot });
                slot
            }
        };
        slots[row] = slot;
    }
    entries.update(&slots, &rows.arguments, rows.times())?;
    pieces.into_iter().try_for_each(|piece| add(piece, entries, touched))
}

fn add(piece: Piece<'_>, entries: &mut Entries, touched: &mut Touched) -> Result<()> {
    // Stored sessions of a key lie apart, so those that the piece touches are the last ones that start before it ends.
    let mut met: Vec<Slot> =
        entries.before(piece.key, piece.end).take_while(|slot| entries.end(*slot) >= piece.start).collect();
    let Some(first) = met.pop() else {
        entries.insert(piece.slot, piece.key, piece.start, piece.end);
        touched.touch(piece.slot, entries);
        return Ok(());
    };
    let start = entries.start(first).min(piece.start);
    let mut end = entries.end(first).max(piece.end);
    // What was stored comes before what arrives, or ties would go to the wrong row.
    for other in met.into_iter().rev() {
        end = end.max(entries.end(other));
        entries.merge(first, other)?;
        touched.forget(other, entries);
        entries.remove(other);
    }
    entries.merge(first, piece.slot)?;
    entries.release(piece.slot);
    if (start, end) != (entries.start(first), entries.end(first)) {
        if start != entries.start(first) {
            touched.moved(first, entries);
        }
        entries.stretch(first, start, end);
    }
    touched.touch(first, entries);
    Ok(())
}
