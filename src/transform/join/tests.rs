//! Joins: by hand, and random rows, cuts and watermarks against an oracle that lets go of nothing.

use std::collections::BTreeMap;

use arrow::array::{Float64Array, ListArray, TimestampMicrosecondArray};
use arrow::datatypes::{Float64Type, Int32Type};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::transform::Stage;

/// Key (two columns), time, number.
type Row = (Option<i64>, Option<&'static str>, Option<Micros>, i64);

/// What a row carries follows from its number.
fn text(number: i64) -> Option<String> {
    (number % 5 != 0).then(|| "long enough for more than one block of bytes, ÿ ".repeat(number as usize % 3) + "!")
}

fn float(number: i64) -> Option<f64> {
    [Some(f64::NAN), Some(-0.0), None, Some(number as f64 / 3.0)][number as usize % 4]
}

fn list(number: i64) -> Option<Vec<Option<i32>>> {
    (number % 4 != 0).then(|| (0..number % 3).map(|at| (at != 1).then_some(number as i32)).collect())
}

fn schema(side: usize) -> Schema {
    let list = DataType::List(Arc::new(Field::new_list_field(DataType::Int32, true)));
    let own = if side == 0 { ("f", DataType::Float64) } else { ("l", list) };
    let fields = [("at", timestamp()), ("b", DataType::Utf8), ("a", DataType::Int64), own, ("v", DataType::Utf8)];
    let numbered = fields.into_iter().chain([("n", DataType::Int64)]);
    Schema::new(numbered.map(|(name, data_type)| Field::new(name, data_type, true)).collect::<Vec<_>>())
}

fn rows(side: usize, rows: &[Row]) -> RecordBatch {
    let times: TimestampMicrosecondArray = rows.iter().map(|row| row.2).collect();
    let numbers = || rows.iter().map(|row| row.3);
    let own: ArrayRef = match side {
        0 => Arc::new(numbers().map(float).collect::<Float64Array>()),
        _ => Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(numbers().map(list))),
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(times.with_timezone("UTC")),
        Arc::new(rows.iter().map(|row| row.1).collect::<StringArray>()),
        Arc::new(rows.iter().map(|row| row.0).collect::<Int64Array>()),
        own,
        Arc::new(numbers().map(text).collect::<StringArray>()),
        Arc::new(numbers().collect::<Int64Array>()),
    ];
    RecordBatch::try_new(Arc::new(schema(side)), columns).unwrap()
}

fn join(within: Micros, outer: bool, late: Late) -> Join {
    let on = ["a".to_string(), "b".to_string()];
    let columns = Columns::of(&schema(0), &schema(1), &on, "payments");
    let columns = columns.unwrap_or_else(|misfits| panic!("{}", misfits[0].message));
    let event_times = ["at".to_string(), "at".to_string()];
    Join::new(Joining { columns, event_times, within, outer, late }, chrono_tz::UTC).unwrap()
}

fn at(watermark: Option<Micros>, next: Option<Micros>) -> EventTime {
    EventTime { watermark, next, latest: 1_000 }
}

/// The numbers of the rows of each pair; every value is looked at.
fn pairs(step: &Step) -> Vec<(i64, Option<i64>)> {
    let mut found = Vec::new();
    for batch in &step.rows {
        let column = |name: &str| batch.column_by_name(name).unwrap();
        let ints = |name: &str| column(name).as_primitive::<Int64Type>().clone();
        let texts = |name: &str| column(name).as_string::<i32>().clone();
        let (left, right) = (ints("n"), ints("payments_n"));
        let (ours, theirs) = (texts("v"), texts("payments_v"));
        let floats = column("f").as_primitive::<Float64Type>();
        let lists = column("l").as_list::<i32>();
        for row in 0..batch.num_rows() {
            let number = left.value(row);
            let partner = right.is_valid(row).then(|| right.value(row));
            assert_eq!(ours.is_valid(row).then(|| ours.value(row).to_string()), text(number));
            let bits = floats.is_valid(row).then(|| floats.value(row).to_bits());
            assert_eq!(bits, float(number).map(f64::to_bits));
            assert_eq!(theirs.is_valid(row).then(|| theirs.value(row).to_string()), partner.and_then(text));
            let items = lists.is_valid(row).then(|| lists.value(row));
            let items = items.map(|items| items.as_primitive::<Int32Type>().iter().collect::<Vec<_>>());
            assert_eq!(items, partner.and_then(list));
            found.push((number, partner));
        }
    }
    found
}

fn a(time: Micros, number: i64) -> Row {
    (Some(1), Some("x"), Some(time), number)
}

fn step(join: &mut Join, left: &[Row], right: &[Row], time: &EventTime) -> Step {
    join.step(&[vec![rows(0, left)], vec![rows(1, right)]], time).unwrap()
}

#[test]
fn pairs_come_out_once_when_the_later_row_arrives() {
    let mut join = join(10, false, Late::Quarantine);
    let time = at(None, None);
    assert_eq!(pairs(&step(&mut join, &[a(0, 1), a(20, 2)], &[], &time)), []);
    let found = step(&mut join, &[a(5, 3)], &[a(10, 4), a(31, 5)], &time);
    assert_eq!(pairs(&found), [(1, Some(4)), (2, Some(4)), (3, Some(4))]);
    assert_eq!(pairs(&step(&mut join, &[], &[], &time)), []);
    assert_eq!((join.due(), join.size().rows), (None, 5));
}

#[test]
fn a_row_waits_until_nothing_in_time_can_be_its_partner() {
    let mut join = join(10, true, Late::Quarantine);
    step(&mut join, &[a(0, 1), a(1, 2)], &[a(0, 3)], &at(None, Some(-11)));
    // Both have found the right row; only one of two more has a partner.
    let found = step(&mut join, &[a(2, 4), a(-8, 5), a(40, 6)], &[], &at(Some(-11), Some(1)));
    assert_eq!(pairs(&found), [(4, Some(3)), (5, Some(3))]);
    assert_eq!(join.due(), Some((50, 50)));
    let found = step(&mut join, &[], &[a(30, 7), a(51, 8), a(1, 9)], &at(Some(1), Some(10)));
    assert_eq!(pairs(&found), [(6, Some(7))]);
    assert_eq!(found.counts, [("late", 1)].into());
    let aside = &found.aside[0];
    assert_eq!((aside.input, aside.row, aside.rule, aside.stage), (1, 2, "late", Stage::Late));
    assert_eq!(join.due(), None);
}

#[test]
fn a_left_row_without_a_match_comes_out_with_the_watermark_that_makes_it_final_and_not_before() {
    let mut join = join(10, true, Late::Drop);
    assert_eq!(pairs(&step(&mut join, &[a(5, 1), a(6, 2)], &[], &at(None, Some(14)))), []);
    assert_eq!(join.due(), Some((15, 16)));
    // The right row that comes in the batch that ends the wait is still in time for it.
    let found = step(&mut join, &[], &[a(15, 3)], &at(Some(14), Some(16)));
    assert_eq!(pairs(&found), [(1, Some(3)), (2, Some(3))]);
    step(&mut join, &[a(30, 4), a(31, 5)], &[], &at(Some(16), Some(39)));
    let found = step(&mut join, &[], &[], &at(Some(39), Some(40)));
    assert_eq!(pairs(&found), [(4, None)]);
    assert_eq!(pairs(&step(&mut join, &[], &[], &at(Some(40), Some(41)))), [(5, None)]);
    assert_eq!((join.due(), join.size().rows), (None, 0));
}

#[test]
fn null_equals_nothing() {
    let (left, right) = ([(None, Some("x"), Some(1), 1), (Some(1), None, Some(1), 2)], [(None, Some("x"), Some(1), 3)]);
    let mut inner = join(10, false, Late::Drop);
    let found = step(&mut inner, &left, &right, &at(None, None));
    assert_eq!((pairs(&found), found.counts), (vec![], [("null_key", 3)].into()));
    let mut outer = join(10, true, Late::Drop);
    let found = step(&mut outer, &left, &right, &at(None, None));
    assert_eq!((pairs(&found), found.counts), (vec![(1, None), (2, None)], [("null_key", 1)].into()));
    assert_eq!(outer.size().rows, 0);
}

#[test]
fn rows_without_time_and_those_too_far_ahead_are_set_aside_by_side() {
    let mut join = join(10, true, Late::Drop);
    let nameless = (Some(1), Some("x"), None, 1);
    let found = step(&mut join, &[nameless], &[a(1_001, 2), a(1_000, 3), nameless], &at(None, None));
    let aside: Vec<_> = found.aside.iter().map(|aside| (aside.input, aside.row, aside.rule)).collect();
    assert_eq!(aside, [(0, 0, "null_event_time"), (1, 0, "ahead"), (1, 2, "null_event_time")]);
    assert_eq!(join.size().rows, 1);
}

#[test]
fn columns_are_those_of_on_then_left_then_right_with_the_rights_name_where_both_have_it() {
    let joined = join(10, false, Late::Drop).output();
    let names: Vec<&str> = joined.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["a", "b", "at", "f", "v", "n", "payments_at", "l", "payments_v", "payments_n"]);
}

#[test]
fn columns_that_come_later_are_left_out_of_pairs() {
    let mut join = join(10, false, Late::Drop);
    let one = rows(0, &[a(1, 1)]);
    let fields = one.schema().fields().iter().map(|field| field.as_ref().clone()).collect::<Vec<_>>();
    let fields = fields.into_iter().chain([Field::new("new", DataType::Int64, true)]).collect::<Vec<_>>();
    let columns = one.columns().iter().cloned().chain([Arc::new(Int64Array::from(vec![7])) as ArrayRef]).collect();
    let wider = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    let found = join.step(&[vec![wider], vec![rows(1, &[a(1, 2)])]], &at(None, None)).unwrap();
    assert_eq!(pairs(&found), [(1, Some(2))]);
    assert!(found.rows[0].column_by_name("new").is_none());
}

/// Sides with these columns besides `k` and `at`, each of them null or 7.
fn joined_by_k(left: &[(&str, DataType)], right: &[(&str, DataType)]) -> Join {
    let of = |fields: &[(&str, DataType)]| {
        let matched = [("k", DataType::Int64), ("at", timestamp())];
        let fields = matched.iter().chain(fields).map(|(name, of)| Field::new(*name, of.clone(), true));
        Schema::new(fields.collect::<Vec<_>>())
    };
    let columns = Columns::of(&of(left), &of(right), &["k".to_string()], "r");
    let columns = columns.unwrap_or_else(|misfits| panic!("{}", misfits[0].message));
    let event_times = ["at".to_string(), "at".to_string()];
    Join::new(Joining { columns, event_times, within: 10, outer: false, late: Late::Drop }, chrono_tz::UTC).unwrap()
}

/// A row of such a side.
fn with(columns: &[(&str, Option<i64>)]) -> RecordBatch {
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![1]).with_timezone("UTC"));
    let ints = |value: Option<i64>| Arc::new(Int64Array::from(vec![value])) as ArrayRef;
    let matched = [("k", ints(Some(1)), true), ("at", times, true)];
    let columns = columns.iter().map(|(name, value)| (*name, ints(*value), true));
    RecordBatch::try_from_iter_with_nullable(matched.into_iter().chain(columns)).unwrap()
}

#[test]
fn rows_that_wait_keep_the_values_of_their_own_side_when_columns_come_and_go() {
    const INT: DataType = DataType::Int64;
    let (x, y) = ([("x", INT)], [("y", INT)]);
    // Columns of both sides then, of both now, and what `x`, `r_x` and `y` of the pair are.
    type Columns<'a> = &'a [(&'a str, DataType)];
    type Case<'a> = ([Columns<'a>; 2], [Columns<'a>; 2], [Option<i64>; 3]);
    let cases: [Case<'_>; 7] = [
        ([&x, &y], [&x, &y], [Some(10), None, Some(21)]),
        ([&[], &x], [&x, &x], [None, Some(20), None]),
        ([&x, &x], [&[], &x], [Some(20), None, None]),
        ([&x, &[]], [&x, &x], [Some(10), None, None]),
        ([&x, &x], [&x, &[]], [Some(10), None, None]),
        ([&x, &[]], [&[], &x], [None, None, None]),
        ([&[], &x], [&x, &y], [None, None, None]),
    ];
    for (number, (then, now, expected)) in cases.into_iter().enumerate() {
        let mut before = joined_by_k(then[0], then[1]);
        let row = |side: usize, columns: Columns<'_>| {
            let value = |name: &str| Some(10 + 10 * side as i64 + i64::from(name == "y"));
            with(&columns.iter().map(|(name, _)| (*name, value(name))).collect::<Vec<_>>())
        };
        before.step(&[vec![row(0, then[0])], Vec::new()], &at(None, None)).unwrap();
        let saved = before.whole().unwrap();
        let mut after = joined_by_k(now[0], now[1]);
        after.load(&saved).unwrap();
        // The right row comes before the change, too.
        before.step(&[Vec::new(), vec![row(1, then[1])]], &at(None, None)).unwrap();
        after.load(&before.changes().unwrap()).unwrap();
        let waiting = after.whole().unwrap();
        let value = |name: &str| {
            let columns = waiting.iter().filter_map(|rows| rows.column_by_name(name));
            let values = columns.flat_map(|column| column.as_primitive::<Int64Type>().iter()).flatten();
            values.collect::<Vec<_>>()
        };
        let found = ["x", "r_x", "y"].map(|name| value(name).first().copied());
        assert_eq!(found, expected, "case {number}");
        assert_eq!(after.size().rows, 2, "case {number}");
    }
}

#[test]
fn rows_that_wait_with_a_value_of_another_type_are_refused_and_those_without_are_not() {
    let mut before = joined_by_k(&[("x", DataType::Int64), ("y", DataType::Int64)], &[("z", DataType::Int64)]);
    let left = with(&[("x", Some(7)), ("y", None)]);
    before.step(&[vec![left], Vec::new()], &at(None, None)).unwrap();
    let saved = before.whole().unwrap();
    let load = |left: &[(&str, DataType)]| joined_by_k(left, &[("z", DataType::Utf8)]).load(&saved);
    load(&[("x", DataType::Int64), ("y", DataType::Utf8)]).unwrap();
    let error = load(&[("x", DataType::Utf8)]).unwrap_err();
    assert_eq!(error.message(), "rows that wait in the join have `x` as Int64, and it is Utf8 now");
    let columns = saved[0].schema().fields().len();
    let without_key: Vec<usize> = (0..columns).filter(|at| saved[0].schema().field(*at).name() != "k").collect();
    let error = before.load(&[saved[0].project(&without_key).unwrap()]).unwrap_err();
    assert_eq!(error.message(), "the saved state of the join has no column `k` of type Int64");
}

#[test]
fn sides_that_do_not_fit_are_refused() {
    let of = |fields: &[(&str, DataType)]| {
        Schema::new(fields.iter().map(|(name, of)| Field::new(*name, of.clone(), true)).collect::<Vec<_>>())
    };
    let refused = |left: &[(&str, DataType)], right: &[(&str, DataType)]| {
        let misfits = Columns::of(&of(left), &of(right), &["k".to_string()], "r").err().unwrap_or_default();
        misfits.into_iter().map(|misfit| (misfit.key, misfit.message)).collect::<Vec<_>>()
    };
    let (int, text, float) = (DataType::Int64, DataType::Utf8, DataType::Float64);
    let found = refused(&[("k", int.clone())], &[("k", text)]);
    assert_eq!(found, [("on", "`k` is Int64 on the left and Utf8 on the right".to_string())]);
    assert_eq!(refused(&[("k", float.clone())], &[("k", float)])[0].0, "on");
    let found = refused(
        &[("k", int.clone()), ("v", int.clone()), ("r_v", int.clone())],
        &[("k", int.clone()), ("v", int.clone())],
    );
    assert_eq!(found, [("right", "both sides have a column `v`, and `r_v` is taken".to_string())]);
    assert_eq!(
        refused(&[("k", int.clone()), ("v", int.clone())], &[("k", int.clone()), ("v", int.clone()), ("r_v", int)])
            .len(),
        1
    );
    let found = refused(&[("k", DataType::Int64)], &[("k", DataType::Int64), ("_gone", DataType::Int64)]);
    assert_eq!(found, [("right", "what is remembered has a column `_gone` of its own".to_string())]);
}

fn environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Every row that was ever taken in, by side.
#[derive(Default)]
struct Oracle {
    taken: [Vec<Row>; 2],
    matched: Vec<bool>,
    /// Left rows that came out alone.
    out: Vec<bool>,
}

/// Rows aside: input, row, rule.
type Sided = Vec<(usize, usize, &'static str)>;

/// A left row and what it was paired with.
type Paired = (i64, Option<i64>);

impl Oracle {
    fn batch(
        &mut self,
        arriving: &[Vec<Row>; 2],
        (within, outer, late): (Micros, bool, Late),
        time: &EventTime,
    ) -> (Vec<Paired>, Sided, BTreeMap<&'static str, u64>) {
        let (mut aside, mut counts, mut found, mut nulls) = (Vec::new(), BTreeMap::new(), Vec::new(), Vec::new());
        let before = [self.taken[0].len(), self.taken[1].len()];
        for (side, rows) in arriving.iter().enumerate() {
            for (number, row) in rows.iter().enumerate() {
                let Some(t) = row.2 else {
                    aside.push((side, number, "null_event_time"));
                    continue;
                };
                if t > time.latest {
                    aside.push((side, number, "ahead"));
                } else if time.watermark.is_some_and(|watermark| t <= watermark) {
                    *counts.entry("late").or_default() += 1;
                    if late != Late::Drop {
                        aside.push((side, number, "late"));
                    }
                } else if row.0.is_none() || row.1.is_none() {
                    match outer && side == 0 {
                        true => nulls.push((row.3, None)),
                        false => *counts.entry("null_key").or_default() += 1,
                    }
                } else {
                    self.taken[side].push(*row);
                }
            }
        }
        self.matched.resize(self.taken[0].len(), false);
        self.out.resize(self.taken[0].len(), false);
        for (l, left) in self.taken[0].iter().enumerate() {
            for (r, right) in self.taken[1].iter().enumerate() {
                let is_new = l >= before[0] || r >= before[1];
                let apart = left.2.unwrap().abs_diff(right.2.unwrap());
                if is_new && (left.0, left.1) == (right.0, right.1) && apart <= within as u64 {
                    self.matched[l] = true;
                    found.push((left.3, Some(right.3)));
                }
            }
        }
        found.extend(nulls);
        for (l, left) in self.taken[0].iter().enumerate().filter(|_| outer) {
            if !self.matched[l] && !self.out[l] && time.next.is_some_and(|next| !could_match(left, next, within)) {
                self.out[l] = true;
                found.push((left.3, None));
            }
        }
        (found, aside, counts)
    }

    /// The watermarks with which left rows come out.
    fn due(&self, within: Micros) -> Option<(Micros, Micros)> {
        let open = |(l, _): &(usize, &Row)| !self.matched[*l] && !self.out[*l];
        let mut ends: Vec<Micros> =
            self.taken[0].iter().enumerate().filter(open).map(|(_, row)| row.2.unwrap() + within).collect();
        ends.sort_unstable();
        Some((*ends.first()?, *ends.last()?))
    }

    fn waiting(&self, next: Option<Micros>, within: Micros) -> usize {
        let waits = |row: &&Row| next.is_none_or(|next| could_match(row, next, within));
        self.taken.iter().flatten().filter(waits).count()
    }
}

/// Whether the earliest time that is not late and near enough is near enough.
fn could_match(row: &Row, watermark: Micros, within: Micros) -> bool {
    let time = row.2.unwrap();
    (watermark + 1).max(time - within).abs_diff(time) <= within as u64
}

#[test]
fn random_rows_cuts_and_watermarks_with_the_state_loaded_again_now_and_then() {
    let seed = environment("TIDEGATE_SEED", rand::random());
    let cases = environment("TIDEGATE_CASES", 2_000);
    println!("TIDEGATE_SEED={seed} TIDEGATE_CASES={cases}");
    let (mut paired, mut alone, mut late_rows) = (0, 0, 0);
    for case in 0..cases {
        let mut random = SmallRng::seed_from_u64(seed.wrapping_add(case));
        // Buckets are a second long or more: some cases have one, some many.
        let unit = [1, 300_000, 1_000_000, 40_000_000][random.random_range(0..4)];
        let within = unit * [0, 1, 3, 10, 100][random.random_range(0..5)];
        let late = [Late::Drop, Late::Quarantine][random.random_range(0..2)];
        let rules = (within, random.random_bool(0.6), late);
        let spread = unit * random.random_range(1..25);
        let mut oracle = Oracle::default();
        let mut operator = join(within, rules.1, late);
        let mut saved: Vec<Vec<RecordBatch>> = Vec::new();
        let (mut watermark, mut now, mut number) = (None, unit * random.random_range(-50..50), 0);
        let steps = random.random_range(2..12);
        for step in 0..=steps {
            let mut arrive = || -> Vec<Row> {
                let count = if step == steps { 0 } else { random.random_range(0..12) };
                (0..count)
                    .map(|_| {
                        number += 1;
                        let time = now + unit * random.random_range(-spread / unit..=spread / unit);
                        let null = |random: &mut SmallRng| random.random_bool(0.04);
                        (
                            (!null(&mut random)).then(|| random.random_range(-1..2)),
                            (!null(&mut random)).then(|| ["", "x"][random.random_range(0..2)]),
                            (!null(&mut random)).then_some(time),
                            number,
                        )
                    })
                    .collect()
            };
            let arriving = [arrive(), arrive()];
            // At last everything is closed, as `--flush` does.
            let due = if step == steps { operator.due().map(|(_, last)| last) } else { None };
            watermark = watermark.max(due);
            let next: Option<Micros> = match random.random_bool(0.7) {
                true => watermark.max(Some(now - unit * random.random_range(0..15))),
                false => watermark,
            };
            let time = EventTime { watermark, next, latest: now + spread - spread / 8 };
            let expected = oracle.batch(&arriving, rules, &time);
            let cut = |side: usize, random: &mut SmallRng| {
                let at = random.random_range(0..=arriving[side].len());
                vec![rows(side, &arriving[side][..at]), rows(side, &arriving[side][at..])]
            };
            let parts = [cut(0, &mut random), cut(1, &mut random)];
            let found = operator.step(&parts, &time).unwrap();
            let aside: Vec<_> = found.aside.iter().map(|aside| (aside.input, aside.row, aside.rule)).collect();
            let place = format!("case {case} of TIDEGATE_SEED={seed}, step {step}, {rules:?}, unit {unit}, {time:?}");
            assert_eq!((pairs(&found), aside, found.counts), expected, "{place}");
            let due = oracle.due(within).filter(|_| rules.1);
            assert_eq!(operator.due(), due, "{place}");
            assert_eq!(operator.size().rows as usize, oracle.waiting(next, within), "{place}");
            paired += expected.0.iter().filter(|pair| pair.1.is_some()).count();
            alone += expected.0.iter().filter(|pair| pair.1.is_none()).count();
            late_rows += expected.2.get("late").copied().unwrap_or_default();
            match random.random_range(0..4) {
                0 => saved = vec![operator.whole().unwrap()],
                1 => saved.push(operator.changes().unwrap()),
                _ => {}
            }
            if random.random_bool(0.5) {
                saved.push(operator.changes().unwrap());
                operator = join(within, rules.1, late);
                saved.iter().for_each(|saved| operator.load(saved).unwrap());
                assert_eq!(operator.due(), due, "{place}");
                assert_eq!(operator.size().rows as usize, oracle.waiting(next, within), "{place}");
            }
            (watermark, now) = (next, now + unit * random.random_range(0..12));
        }
        assert_eq!(operator.due(), None, "everything was closed");
    }
    println!("{paired} pairs, {alone} left rows without a match, {late_rows} late rows");
    assert!(paired > 0 && alone > 0 && late_rows > 0);
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    let mut join = join(900_000_000, true, Late::Drop);
    let mut random = SmallRng::seed_from_u64(1);
    let (batches, size) = (environment("TIDEGATE_BATCHES", 200) as i64, 10_000);
    let (mut took, mut found) = (std::time::Duration::ZERO, 0);
    for batch in 0..batches {
        let now = batch * 1_000_000;
        let mut side = |side| {
            let row = |n| (Some(random.random_range(0..1 << 20)), Some("x"), Some(now + n * 100), n);
            vec![rows(side, &(0..size).map(row).collect::<Vec<Row>>())]
        };
        let arriving = [side(0), side(1)];
        let started = std::time::Instant::now();
        let time = EventTime { watermark: Some(now - 1), next: Some(now), latest: i64::MAX };
        found += join.step(&arriving, &time).unwrap().rows.iter().map(RecordBatch::num_rows).sum::<usize>();
        join.changes().unwrap();
        took += started.elapsed();
        if batch % 50 == 49 {
            println!("batch {batch}: {took:?} in all, {:?}", join.size());
        }
    }
    let held = join.size();
    println!(
        "{} rows a side in {took:?}, {found} rows out, {} bytes a waiting row",
        batches * size,
        held.bytes / held.rows
    );
}
