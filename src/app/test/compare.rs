//! Which rows of a table are the expected ones. Rows have no order, so this is a matching; what is left over is paired by
//! likeness, for people to see what changed.

use std::collections::BTreeSet;

/// Equality of cell `column` of expected row `i` and actual row `j`.
pub(super) type CellsEqual<'a> = &'a dyn Fn(usize, usize, usize) -> bool;

/// How expected and actual rows correspond.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Expected rows that are there.
    pub matched: usize,
    /// Expected and actual rows that differ in some cells.
    pub changed: Vec<(usize, usize)>,
    /// Expected rows that nothing resembles.
    pub missing: Vec<usize>,
    /// Actual rows that nobody expects.
    pub unexpected: Vec<usize>,
}

impl Alignment {
    /// Whether everything expected is there and nothing else.
    pub fn is_exact(&self) -> bool {
        self.changed.is_empty() && self.missing.is_empty() && self.unexpected.is_empty()
    }
}

/// Aligns rows. `columns` lists, for each expected row, the columns that count; `keys` the columns that identify a row.
pub(super) fn align(columns: &[Vec<usize>], actual: usize, keys: &[usize], equal: CellsEqual) -> Alignment {
    let fits = |i: usize, j: usize| columns[i].iter().all(|&column| equal(i, column, j));
    let fitting: Vec<Vec<usize>> = (0..columns.len()).map(|i| (0..actual).filter(|&j| fits(i, j)).collect()).collect();
    let taken = perfect(&fitting, actual);
    let found: BTreeSet<usize> = taken.iter().flatten().copied().collect();
    let mut alignment = Alignment { matched: found.len(), ..Alignment::default() };
    let mut missing: Vec<usize> = (0..columns.len()).filter(|i| !found.contains(i)).collect();
    let mut unexpected: Vec<usize> = (0..actual).filter(|&j| taken[j].is_none()).collect();

    let mut pairs: Vec<(usize, usize, usize)> = Vec::new();
    for &i in &missing {
        for &j in &unexpected {
            let alike = columns[i].iter().filter(|&&column| equal(i, column, j)).count();
            let listed = keys.iter().all(|key| columns[i].contains(key)) && !keys.is_empty();
            let same_key = listed && keys.iter().all(|&key| equal(i, key, j));
            // Rows of different keys are different rows; without keys, rows that share half of their cells are one.
            if same_key || (!listed && 2 * alike >= columns[i].len()) {
                pairs.push((alike, i, j));
            }
        }
    }
    pairs.sort_by_key(|&(alike, i, j)| (std::cmp::Reverse(alike), i, j));
    for (_, i, j) in pairs {
        if missing.contains(&i) && unexpected.contains(&j) {
            missing.retain(|&other| other != i);
            unexpected.retain(|&other| other != j);
            alignment.changed.push((i, j));
        }
    }
    alignment.changed.sort_unstable();
    Alignment { missing, unexpected, ..alignment }
}

/// A largest matching: the expected row of each actual one. Greedy would not do, since rows may list different columns.
fn perfect(fitting: &[Vec<usize>], actual: usize) -> Vec<Option<usize>> {
    fn place(i: usize, fitting: &[Vec<usize>], taken: &mut [Option<usize>], seen: &mut [bool]) -> bool {
        for &j in &fitting[i] {
            if std::mem::replace(&mut seen[j], true) {
                continue;
            }
            let moved = match taken[j] {
                None => true,
                Some(other) => place(other, fitting, taken, seen),
            };
            if moved {
                taken[j] = Some(i);
                return true;
            }
        }
        false
    }
    let mut taken = vec![None; actual];
    for i in 0..fitting.len() {
        place(i, fitting, &mut taken, &mut vec![false; actual]);
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aligned(expected: &[&[Option<i32>]], actual: &[&[i32]], keys: &[usize]) -> Alignment {
        let listed = |row: &&[Option<i32>]| (0..row.len()).filter(|&c| row[c].is_some()).collect();
        let columns: Vec<Vec<usize>> = expected.iter().map(listed).collect();
        align(&columns, actual.len(), keys, &|i, column, j| expected[i][column] == Some(actual[j][column]))
    }

    #[test]
    fn rows_match_in_any_order_and_as_often_as_they_are_expected() {
        let rows: [&[Option<i32>]; 2] = [&[Some(1), Some(1)], &[Some(2), Some(2)]];
        assert!(aligned(&rows, &[&[2, 2], &[1, 1]], &[]).is_exact());
        let twice = aligned(&rows[..1], &[&[1, 1], &[1, 1]], &[]);
        assert_eq!((twice.matched, twice.unexpected), (1, vec![1]));
    }

    #[test]
    fn a_row_that_lists_less_leaves_the_better_match_to_others() {
        let expected: [&[Option<i32>]; 2] = [&[Some(1), None], &[Some(1), Some(5)]];
        assert!(aligned(&expected, &[&[1, 5], &[1, 6]], &[]).is_exact());
    }

    #[test]
    fn what_is_left_over_is_paired_by_key_or_by_likeness() {
        let expected: [&[Option<i32>]; 1] = [&[Some(1), Some(5)]];
        assert_eq!(aligned(&expected, &[&[2, 5], &[1, 6]], &[0]).changed, [(0, 1)]);
        assert_eq!(aligned(&expected, &[&[2, 5]], &[0]).missing, [0]);
        assert_eq!(aligned(&expected, &[&[2, 5]], &[]).changed, [(0, 0)]);
        assert_eq!(aligned(&expected, &[&[2, 6]], &[]).missing, [0]);
    }
}
