//! RESTORE TABLE, by hand or by another tool: it makes a new version out of an older one's files. The version grows and
//! the batch number stays, so that nothing but the log tells that rows are missing.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Follows restores from the `newest` version to the one whose files it has, and compares that with `carrier`, the
/// version that carries the last batch. A restore to the carrier or later undoes one that went further back.
pub(super) fn is_behind(restores: &BTreeMap<i64, Option<i64>>, carrier: i64, newest: i64) -> bool {
    in_effect(restores, carrier, newest).is_none()
}

/// The versions after `carrier` that the `newest` one is made of, newest first: what lies between a restore and its target
/// was undone by it. `None` = the table is behind the carrier.
pub(super) fn in_effect(
    restores: &BTreeMap<i64, Option<i64>>,
    carrier: i64,
    newest: i64,
) -> Option<Vec<RangeInclusive<i64>>> {
    let (mut at, mut ranges) = (newest, Vec::new());
    loop {
        match restores.range(..=at).next_back() {
            None => {
                ranges.push(carrier + 1..=at);
                return Some(ranges);
            }
            Some((version, Some(target))) if (carrier..*version).contains(target) => {
                ranges.push(version + 1..=at);
                at = *target;
            }
            // Further back, or to a point in time: that may be anywhere.
            Some(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_is_undone_by_one_to_the_last_batch_or_later() {
        let behind =
            |restores: &[(i64, Option<i64>)], newest| is_behind(&restores.iter().copied().collect(), 5, newest);
        assert!(!behind(&[], 9));
        assert!(behind(&[(6, Some(4))], 6), "back");
        assert!(behind(&[(6, Some(4))], 8), "back, then compacted");
        assert!(behind(&[(6, None)], 6), "to a point in time");
        assert!(!behind(&[(6, Some(4)), (7, Some(5))], 7), "back and forth");
        assert!(!behind(&[(8, Some(6))], 8), "another's compaction was undone");
        assert!(behind(&[(6, Some(4)), (7, Some(5)), (8, Some(6))], 8), "to what the first one made");
    }
}
