//! The window engine: by hand here, against brute force in `random`, and by the clock in `speed`.

mod oracle;
mod random;
mod speed;

use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimestampMicrosecondType};

use super::*;
use crate::model::window::{EventTime, Micros};
use crate::transform::stateful::{Stateful, Step};
use crate::transform::types::timestamp;

/// `kind` over `_argN`.
fn function(kind: Kind, argument: usize, argument_type: DataType) -> Function {
    Function { kind, argument: Some(argument), argument_type: Some(argument_type), measure: format!("m{argument}") }
}

fn count() -> Function {
    Function { kind: Kind::CountAll, argument: None, argument_type: None, measure: "rows".into() }
}

fn aggregation(window: Option<Window>, emit: Emit, late: Late, functions: Vec<Function>) -> Aggregation {
    Aggregation { by: vec![Field::new("k", DataType::Utf8, true)], window, functions, emit, late }
}

/// Rows (key, time, value).
fn rows(rows: &[(&str, Option<Micros>, Option<i64>)]) -> Vec<Vec<RecordBatch>> {
    let fields = [("k", DataType::Utf8), (EVENT_TIME, timestamp()), ("_arg0", DataType::Int64)]
        .map(|(n, t)| Field::new(n, t, true));
    let times: TimestampMicrosecondArray = rows.iter().map(|row| row.1).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0))),
        Arc::new(times.with_timezone("UTC")),
        Arc::new(rows.iter().map(|row| row.2).collect::<Int64Array>()),
    ];
    vec![vec![RecordBatch::try_new(Arc::new(Schema::new(fields.to_vec())), columns).unwrap()]]
}

fn at(watermark: Option<Micros>, next: Option<Micros>) -> EventTime {
    EventTime { watermark, next, latest: 1_000_000 }
}

/// (key, start, end, first result) of what a step wrote.
fn written(step: &Step) -> Vec<(String, Micros, Micros, Option<i64>)> {
    let mut found = Vec::new();
    for batch in &step.rows {
        let key = batch.column(0).as_string::<i32>();
        let start = batch.column(1).as_primitive::<TimestampMicrosecondType>();
        let end = batch.column(2).as_primitive::<TimestampMicrosecondType>();
        let value = batch.column(3).as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let value = value.is_valid(row).then(|| value.value(row));
            found.push((key.value(row).to_string(), start.value(row), end.value(row), value));
        }
    }
    found
}

fn line(key: &str, start: Micros, end: Micros, value: i64) -> (String, Micros, Micros, Option<i64>) {
    (key.to_string(), start, end, Some(value))
}

#[test]
fn final_windows_are_written_once_when_the_watermark_passes_their_end() {
    let window = Some(Window::Tumbling { size: 10 });
    let mut windows = Windows::new(aggregation(window, Emit::Final, Late::Quarantine, vec![count()])).unwrap();
    let step =
        windows.step(&rows(&[("a", Some(1), None), ("a", Some(9), None), ("b", Some(12), None)]), &at(None, Some(9)));
    assert_eq!(written(&step.unwrap()), []);
    assert_eq!(windows.due(), Some((10, 20)));
    let step = windows.step(&rows(&[("a", Some(9), None)]), &at(Some(9), Some(10))).unwrap();
    assert_eq!(written(&step), [line("a", 0, 10, 3)]);
    assert_eq!(windows.due(), Some((20, 20)));
    let step = windows.step(&rows(&[("a", Some(9), None), ("c", Some(10), None)]), &at(Some(10), Some(25))).unwrap();
    assert_eq!(written(&step), [line("b", 10, 20, 1), line("c", 10, 20, 1)]);
    assert_eq!(step.counts, [("late", 1)].into());
    assert_eq!((step.aside[0].row, step.aside[0].rule), (0, "late"));
    assert_eq!((windows.size().rows, windows.due(), step.replaced), (0, None, None));
}

#[test]
fn two_events_exactly_the_gap_apart_are_one_session_as_in_spark() {
    let window = Some(Window::Session { gap: 10 });
    let mut windows = Windows::new(aggregation(window, Emit::Update, Late::Drop, vec![count()])).unwrap();
    let time = at(None, None);
    let step =
        windows.step(&rows(&[("a", Some(10), None), ("a", Some(0), None), ("a", Some(21), None)]), &time).unwrap();
    assert_eq!(written(&step), [line("a", 0, 20, 2), line("a", 21, 31, 1)]);
    // One event makes three sessions one, and both of the others go.
    windows.step(&rows(&[("a", Some(41), None)]), &time).unwrap();
    let step = windows.step(&rows(&[("a", Some(31), None), ("a", Some(20), None)]), &time).unwrap();
    assert_eq!(written(&step), [line("a", 0, 51, 6)]);
    let replaced = step.replaced.unwrap();
    let starts = replaced.column(1).as_primitive::<TimestampMicrosecondType>();
    assert_eq!(starts.values().as_ref(), [0, 21, 41]);
    assert_eq!(windows.replaces(), ["k", "window_start"]);
    assert_eq!(windows.size().rows, 1);
}

#[test]
fn of_events_at_one_time_the_first_is_the_earlier_arrival_and_the_last_the_later_however_they_are_cut() {
    let events = [("a", Some(5), Some(1)), ("a", Some(5), Some(2)), ("a", Some(5), None), ("a", Some(5), Some(3))];
    for window in [Window::Tumbling { size: 10 }, Window::Sliding { size: 10, every: 5 }, Window::Session { gap: 5 }] {
        for (kind, expected) in [(Kind::First, 1), (Kind::Last, 3)] {
            for cut in 0..=events.len() {
                let functions = vec![function(kind, 0, DataType::Int64)];
                let mut windows =
                    Windows::new(aggregation(Some(window), Emit::Complete, Late::Drop, functions)).unwrap();
                windows.step(&rows(&events[..cut]), &at(None, None)).unwrap();
                let mut step = windows.step(&rows(&events[cut..]), &at(None, None)).unwrap();
                if cut == events.len() {
                    step = windows.step(&rows(&[("a", Some(5), None)]), &at(None, None)).unwrap();
                }
                assert_eq!(written(&step)[0].3, Some(expected), "{kind:?} in {window:?} cut at {cut}");
            }
        }
    }
}

#[test]
fn a_sum_that_is_no_bigint_names_its_measure() {
    let functions = vec![function(Kind::Sum, 0, DataType::Int64)];
    let window = Some(Window::Tumbling { size: 10 });
    let mut windows = Windows::new(aggregation(window, Emit::Update, Late::Drop, functions)).unwrap();
    let most = ("a", Some(1), Some(i64::MAX));
    let step = windows.step(&rows(&[most, most, ("a", Some(1), Some(-i64::MAX))]), &at(None, None)).unwrap();
    assert_eq!(written(&step)[0].3, Some(i64::MAX), "on the way it may be wider");
    let error = windows.step(&rows(&[most]), &at(None, None)).unwrap_err();
    assert_eq!(error.kind(), crate::error::ErrorKind::Data);
    assert!(error.to_string().contains("measure `m0`: the sum does not fit bigint"), "{error}");
}

#[test]
fn averages_of_decimals_have_four_more_digits_and_round_a_half_away_from_zero() {
    let functions = vec![function(Kind::Avg, 0, DataType::Decimal128(10, 2))];
    let windows = Windows::new(aggregation(None, Emit::Update, Late::Drop, functions.clone())).unwrap();
    assert_eq!(windows.output().field(1).data_type(), &DataType::Decimal128(14, 6));
    // 0.01 / 8 = 0.00125, and of digits without room 5 / 2.
    for (argument, values, expected) in [
        (DataType::Decimal128(10, 2), vec![1, 0, 0, 0, 0, 0, 0, 0], 1250),
        (DataType::Decimal128(38, 38), vec![5, 0], 3),
        (DataType::Decimal128(38, 38), vec![-5, 0], -3),
        (DataType::Decimal128(38, 38), vec![4, 1, 2], 2),
    ] {
        let mut windows = Windows::new(Aggregation {
            by: Vec::new(),
            window: None,
            functions: vec![function(Kind::Avg, 0, argument.clone())],
            emit: Emit::Complete,
            late: Late::Drop,
        })
        .unwrap();
        let DataType::Decimal128(precision, scale) = argument else { unreachable!() };
        let digits = Decimal128Array::from(values.clone()).with_precision_and_scale(precision, scale).unwrap();
        let times = TimestampMicrosecondArray::from(vec![0; values.len()]).with_timezone("UTC");
        let batch =
            RecordBatch::try_from_iter([(EVENT_TIME, Arc::new(times) as ArrayRef), ("_arg0", Arc::new(digits))])
                .unwrap();
        let step = windows.step(&[vec![batch]], &at(None, None)).unwrap();
        let found = step.rows[0].column(0).as_primitive::<arrow::datatypes::Decimal128Type>().value(0);
        assert_eq!(found, expected, "{values:?}");
        assert_eq!(step.replaced.map(|replaced| (replaced.num_columns(), replaced.num_rows())), Some((0, 1)));
    }
}

#[test]
fn state_of_another_format_or_of_other_measures_is_refused() {
    let window = Some(Window::Tumbling { size: 10 });
    let new = |functions| Windows::new(aggregation(window, Emit::Update, Late::Drop, functions)).unwrap();
    let mut windows = new(vec![count()]);
    windows.step(&rows(&[("a", Some(1), None)]), &at(None, None)).unwrap();
    let saved = windows.changes().unwrap();
    assert_eq!(saved.iter().map(RecordBatch::num_rows).sum::<usize>(), 1);
    assert!(windows.changes().unwrap().is_empty());
    let error = new(vec![function(Kind::Sum, 0, DataType::Int64)]).load(&saved).unwrap_err();
    assert!(error.to_string().contains("column `_agg0_sum` should be"), "{error}");
    let mut columns = saved[0].columns().to_vec();
    *columns.last_mut().unwrap() = Arc::new(Int32Array::from(vec![2]));
    let later = RecordBatch::try_new(saved[0].schema(), columns).unwrap();
    let error = new(vec![count()]).load(&[later]).unwrap_err();
    assert!(error.to_string().contains("format 2; this release reads format 1"), "{error}");
    let names: Vec<String> = windows.saved().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(names, ["k", "window_start", "window_end", "_agg0_count", "_gone", "_format"]);
}

#[test]
fn what_can_never_be_right_is_refused() {
    let tumbling = Some(Window::Tumbling { size: 10 });
    for aggregation in [
        aggregation(Some(Window::Tumbling { size: 0 }), Emit::Update, Late::Drop, vec![count()]),
        aggregation(None, Emit::Final, Late::Drop, vec![count()]),
        aggregation(tumbling, Emit::Final, Late::Update { keep: 1 }, vec![count()]),
        aggregation(tumbling, Emit::Update, Late::Drop, vec![function(Kind::Sum, 0, DataType::Utf8)]),
        Aggregation {
            by: vec![Field::new("window_start", DataType::Utf8, true)],
            ..aggregation(tumbling, Emit::Update, Late::Drop, vec![count()])
        },
    ] {
        assert!(Windows::new(aggregation.clone()).is_err(), "{aggregation:?}");
    }
}
