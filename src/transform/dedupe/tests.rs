//! Deduplication: by hand, and random rows, cuts and watermarks against an oracle that forgets nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

const WITHIN: Micros = 10;

/// Key (two columns), time, number.
type Row = (Option<i64>, Option<&'static str>, Option<Micros>, i64);

fn schema() -> SchemaRef {
    let fields = [("a", DataType::Int64), ("b", DataType::Utf8), ("at", timestamp()), ("n", DataType::Int64)];
    Arc::new(Schema::new(fields.map(|(name, data_type)| Field::new(name, data_type, true)).to_vec()))
}

fn rows(rows: &[Row]) -> RecordBatch {
    let times: TimestampMicrosecondArray = rows.iter().map(|row| row.2).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| row.0).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|row| row.1).collect::<StringArray>()),
        Arc::new(times.with_timezone("UTC")),
        Arc::new(rows.iter().map(|row| row.3).collect::<Int64Array>()),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

fn dedupe(within: Micros, late: Late) -> Dedupe {
    let key = vec![schema().field(0).clone(), schema().field(1).clone()];
    let what = Deduplication { key, event_time: "at".into(), within, late, rows: schema() };
    Dedupe::new(what, chrono_tz::UTC).unwrap()
}

fn at(watermark: Option<Micros>, next: Option<Micros>) -> EventTime {
    EventTime { watermark, next, latest: 1_000 }
}

/// The numbers of the rows that went on.
fn went_on(step: &Step) -> Vec<i64> {
    let numbers = |rows: &RecordBatch| rows.column_by_name("n").unwrap().as_primitive::<Int64Type>().values().to_vec();
    step.rows.iter().flat_map(numbers).collect()
}

fn a(time: Micros, number: i64) -> Row {
    (Some(1), Some("x"), Some(time), number)
}

#[test]
fn the_first_to_arrive_goes_on_and_repetitions_are_counted() {
    let mut dedupe = dedupe(WITHIN, Late::Quarantine);
    // 14 is near to 5, which is itself a repetition, and 10 from the one that went on.
    let step = dedupe.step(&[vec![rows(&[a(5, 0), a(5, 1), a(14, 2), a(-4, 3)]), rows(&[a(15, 4)])]], &at(None, None));
    let step = step.unwrap();
    assert_eq!(went_on(&step), [0, 4]);
    assert_eq!(step.counts, [("duplicate", 3)].into());
    assert_eq!((dedupe.size().rows, dedupe.due()), (2, None));
}

#[test]
fn a_row_within_reach_of_the_watermark_is_told_from_one_that_went_on_long_before() {
    let mut dedupe = dedupe(WITHIN, Late::Quarantine);
    dedupe.step(&[vec![rows(&[a(0, 0)])]], &at(None, Some(15))).unwrap();
    // 6 is not late at 15, and repeats 0, which is more than `within` behind the watermark.
    let step = dedupe.step(&[vec![rows(&[a(6, 1), a(5, 2), a(9, 3)])]], &at(Some(15), Some(19))).unwrap();
    assert!(went_on(&step).is_empty());
    assert_eq!(step.counts, [("duplicate", 2), ("late", 1)].into());
    assert_eq!((step.aside[0].row, step.aside[0].rule), (1, "late"));
    assert_eq!(dedupe.size().rows, 1);
    dedupe.step(&[vec![]], &at(Some(19), Some(20))).unwrap();
    assert_eq!(dedupe.size().rows, 0, "whatever repeats 0 is late from now on");
}

#[test]
fn rows_without_time_or_key_and_those_too_far_ahead_are_set_aside() {
    let mut dedupe = dedupe(WITHIN, Late::Drop);
    let arriving = [(Some(1), Some("x"), None, 0), (Some(1), None, Some(3), 1), a(1_001, 2), a(1_000, 3), a(-5, 4)];
    let step = dedupe.step(&[vec![rows(&arriving)]], &at(Some(5), None)).unwrap();
    assert_eq!(went_on(&step), [3]);
    let found: Vec<_> = step.aside.iter().map(|aside| (aside.row, aside.rule, aside.stage)).collect();
    let expected = [(0, "null_event_time", Stage::Late), (1, "null_key", Stage::Key), (2, "ahead", Stage::Late)];
    assert_eq!(found, expected);
    assert_eq!(step.counts, [("late", 1)].into(), "dropped, and counted");
}

#[test]
fn columns_that_come_later_pass() {
    let mut dedupe = dedupe(WITHIN, Late::Drop);
    let one = rows(&[a(1, 0)]);
    let mut fields: Vec<Field> = schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    fields.push(Field::new("new", DataType::Int64, true));
    let mut columns = one.columns().to_vec();
    columns.push(Arc::new(Int64Array::from(vec![7])));
    let wider = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    let step = dedupe.step(&[vec![wider]], &at(None, None)).unwrap();
    assert_eq!(step.rows[0].column_by_name("new").unwrap().as_primitive::<Int64Type>().value(0), 7);
}

#[test]
fn a_state_of_another_format_is_refused() {
    let mut dedupe = dedupe(WITHIN, Late::Drop);
    dedupe.step(&[vec![rows(&[a(1, 0)])]], &at(None, None)).unwrap();
    let saved = dedupe.whole().unwrap().remove(0);
    let mut columns = saved.columns().to_vec();
    columns[4] = Arc::new(Int32Array::from(vec![2]));
    let other = RecordBatch::try_new(saved.schema(), columns).unwrap();
    let error = dedupe.load(&[other]).unwrap_err();
    assert!(error.to_string().contains("another format"), "{error}");
}

fn environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// What the rules say of one batch: rows that go on, rows aside, counts. Forgets nothing.
#[derive(Default)]
struct Oracle {
    kept: BTreeMap<(i64, &'static str), BTreeSet<Micros>>,
}

/// Rows aside: row, rule.
type Sided = Vec<(usize, &'static str)>;

impl Oracle {
    fn batch(
        &mut self,
        rows: &[Row],
        within: Micros,
        late: Late,
        time: &EventTime,
    ) -> (Vec<i64>, Sided, BTreeMap<&'static str, u64>) {
        let (mut on, mut aside, mut counts) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (number, row) in rows.iter().enumerate() {
            let (a, b, t) = match *row {
                (_, _, None, _) => {
                    aside.push((number, "null_event_time"));
                    continue;
                }
                (_, _, Some(t), _) if t > time.latest => {
                    aside.push((number, "ahead"));
                    continue;
                }
                (Some(a), Some(b), Some(t), _) => (a, b, t),
                _ => {
                    aside.push((number, "null_key"));
                    continue;
                }
            };
            if time.watermark.is_some_and(|watermark| watermark - t >= within) {
                *counts.entry("late").or_default() += 1;
                if late != Late::Drop {
                    aside.push((number, "late"));
                }
                continue;
            }
            let kept = self.kept.entry((a, b)).or_default();
            if kept.iter().any(|known| known.abs_diff(t) < within as u64) {
                *counts.entry("duplicate").or_default() += 1;
                continue;
            }
            kept.insert(t);
            on.push(row.3);
        }
        (on, aside, counts)
    }
}

fn random_row(random: &mut SmallRng, now: Micros, spread: Micros, number: i64) -> Row {
    let null = |random: &mut SmallRng| random.random_bool(0.03);
    let texts = ["", "x", "xy", "y"];
    (
        (!null(random)).then(|| random.random_range(-1..2)),
        (!null(random)).then(|| texts[random.random_range(0..texts.len())]),
        (!null(random)).then(|| now + random.random_range(-spread..=spread)),
        number,
    )
}

#[test]
fn random_rows_cuts_and_watermarks_with_the_state_loaded_again_now_and_then() {
    let seed = environment("TIDEGATE_SEED", rand::random());
    let cases = environment("TIDEGATE_CASES", 2_000);
    println!("TIDEGATE_SEED={seed} TIDEGATE_CASES={cases}");
    let (mut went, mut repeated, mut late_rows) = (0, 0, 0);
    for case in 0..cases {
        let mut random = SmallRng::seed_from_u64(seed.wrapping_add(case));
        let within = [1, 2, 7, 64, 130, 1_000][random.random_range(0..6)];
        let late = [Late::Drop, Late::Quarantine][random.random_range(0..2)];
        let spread = random.random_range(1..3 * within + 2);
        let mut oracle = Oracle::default();
        let mut operator = dedupe(within, late);
        let mut saved: Vec<Vec<RecordBatch>> = Vec::new();
        let (mut watermark, mut now, mut number) = (None, random.random_range(-50..50), 0);
        for step in 0..random.random_range(1..12) {
            let arriving: Vec<Row> = (0..random.random_range(0..25))
                .map(|_| {
                    number += 1;
                    random_row(&mut random, now, spread, number)
                })
                .collect();
            let next: Option<Micros> = match random.random_bool(0.7) {
                true => watermark.max(Some(now - random.random_range(0..2 * within + 1))),
                false => watermark,
            };
            let time = EventTime { watermark, next, latest: now + spread - spread / 8 };
            let cut = random.random_range(0..=arriving.len());
            let expected = oracle.batch(&arriving, within, late, &time);
            let parts = vec![rows(&arriving[..cut]), rows(&arriving[cut..])];
            let found = operator.step(&[parts], &time).unwrap();
            let aside: Vec<_> = found.aside.iter().map(|aside| (aside.row, aside.rule)).collect();
            let place = format!("case {case} of TIDEGATE_SEED={seed}, step {step}, within {within}, {time:?}");
            assert_eq!((went_on(&found), aside, found.counts), expected, "{place}");
            went += expected.0.len();
            repeated += expected.2.get("duplicate").copied().unwrap_or_default();
            late_rows += expected.2.get("late").copied().unwrap_or_default();
            // Nothing is kept for longer than a bucket more than it can matter.
            if let Some(next) = next {
                let longest = 2 * within + (within / 64).max(1);
                let known = oracle.kept.values().flatten().filter(|time| **time + longest > next).count();
                assert!(operator.size().rows as usize <= known, "{place}");
            }
            match random.random_range(0..4) {
                0 => saved = vec![operator.whole().unwrap()],
                1 => saved.push(operator.changes().unwrap()),
                _ => {}
            }
            if random.random_bool(0.5) {
                saved.push(operator.changes().unwrap());
                let size = operator.size().rows;
                operator = dedupe(within, late);
                saved.iter().for_each(|saved| operator.load(saved).unwrap());
                assert_eq!(operator.size().rows, size, "{place}");
            }
            (watermark, now) = (next, now + random.random_range(0..=within));
        }
    }
    println!("{went} rows went on, {repeated} were repetitions, {late_rows} late");
    assert!(went > 0 && repeated > 0 && late_rows > 0);
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    let mut dedupe = dedupe(900_000_000, Late::Drop);
    let mut random = SmallRng::seed_from_u64(1);
    let started = std::time::Instant::now();
    let (batches, size) = (200, 10_000);
    for batch in 0..batches {
        let now = batch * 1_000_000;
        let arriving: Vec<Row> =
            (0..size).map(|n| (Some(random.random_range(0..1 << 40)), Some("x"), Some(now + n * 100), n)).collect();
        let time = EventTime { watermark: Some(now - 1), next: Some(now), latest: i64::MAX };
        dedupe.step(&[vec![rows(&arriving)]], &time).unwrap();
        dedupe.changes().unwrap();
    }
    let (took, size_of) = (started.elapsed(), dedupe.size());
    println!("{} rows in {took:?}, {size_of:?}, {} bytes a row", batches * size, size_of.bytes / size_of.rows);
}
