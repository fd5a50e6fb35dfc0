//! Random rows, windows, functions, cuts and watermarks against the oracle; now and then the state is thrown away and loaded
//! from what was saved. `TIDEGATE_SEED` and `TIDEGATE_CASES` choose the cases.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::oracle::*;
use super::*;
use crate::model::window::CalendarUnit;

/// The types of `_arg0`, `_arg1`, …
fn types() -> Vec<DataType> {
    vec![
        DataType::Int64,
        DataType::Float64,
        DataType::Decimal128(10, 2),
        DataType::Utf8,
        DataType::Boolean,
        DataType::Date32,
        timestamp(),
        DataType::Int8,
        DataType::Binary,
        DataType::Int32,
        DataType::Float32,
    ]
}

fn environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn kinds() -> [Kind; 12] {
    [
        Kind::CountAll,
        Kind::Count,
        Kind::CountDistinct,
        Kind::ApproxCountDistinct,
        Kind::Sum,
        Kind::Avg,
        Kind::Min,
        Kind::Max,
        Kind::First,
        Kind::Last,
        Kind::ApproxQuantile(0.5),
        Kind::ApproxQuantile(0.95),
    ]
}

fn random_functions(random: &mut SmallRng) -> (Vec<Function>, Vec<Call>) {
    let (types, kinds) = (types(), kinds());
    let wanted = random.random_range(1..5);
    let (mut functions, mut calls) = (Vec::new(), Vec::new());
    while functions.len() < wanted {
        let kind = kinds[random.random_range(0..kinds.len())];
        let argument = random.random_range(0..types.len());
        let function = match kind {
            Kind::CountAll => count(),
            kind => function(kind, argument, types[argument].clone()),
        };
        if function.output(0).is_err() {
            continue;
        }
        let decimals = matches!(types[argument], DataType::Decimal128(_, _)).then_some(2);
        functions.push(function);
        calls.push(Call { kind, argument, decimals });
    }
    (functions, calls)
}

/// A window, the unit of its times, and where they start.
fn random_window(random: &mut SmallRng) -> (Option<Window>, i64, i64) {
    // Lengths in microseconds that divide a day.
    let steps = [1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 15, 16, 20];
    let step = steps[random.random_range(0..steps.len())];
    match random.random_range(0..6) {
        0 => (None, 1, 0),
        1 => (Some(Window::Tumbling { size: step }), 1, 0),
        2 | 3 => (Some(Window::Sliding { size: step + random.random_range(0..20), every: step }), 1, 0),
        4 => (Some(Window::Session { gap: random.random_range(1..12) }), 1, 0),
        _ => {
            let unit = [CalendarUnit::Day, CalendarUnit::Week, CalendarUnit::Month][random.random_range(0..3)];
            let zones =
                [chrono_tz::UTC, chrono_tz::Europe::Berlin, chrono_tz::America::New_York, chrono_tz::Asia::Kolkata];
            let timezone = zones[random.random_range(0..zones.len())];
            // Hours from 2026-03-06, over both spring changes.
            (Some(Window::Calendar { unit, timezone }), 6 * 3_600_000_000, 1_772_755_200_000_000)
        }
    }
}

fn random_cell(random: &mut SmallRng, data_type: &DataType) -> Cell {
    if random.random_bool(0.2) {
        return Cell::Null;
    }
    let wide = random.random_bool(0.1);
    let mut int = |range: std::ops::Range<i64>| Cell::Int(i128::from(random.random_range(range)));
    match data_type {
        DataType::Boolean => int(0..2),
        DataType::Utf8 | DataType::Binary => {
            Cell::Text(["", "a", "b", "ab", "ÿ"][random.random_range(0..5)].to_string())
        }
        DataType::Float64 | DataType::Float32 => Cell::Float(match random.random_range(0..12) {
            0 => f64::NAN,
            1 => -0.0,
            2 => (1u64 << 60) as f64,
            3 => -((1u64 << 60) as f64),
            _ => random.random_range(-40..40) as f64 / 4.0,
        }),
        DataType::Int8 => int(-128..128),
        DataType::Int64 if wide => int(-1 << 55..1 << 55),
        _ => int(-20..20),
    }
}

fn array(data_type: &DataType, cells: Vec<&Cell>) -> ArrayRef {
    let int = |cell: &&Cell| if let Cell::Int(int) = cell { Some(*int) } else { None };
    let text = |cell: &&Cell| if let Cell::Text(text) = cell { Some(text.clone()) } else { None };
    let cells = cells.iter();
    match data_type {
        DataType::Int64 => Arc::new(cells.map(|c| int(c).map(|i| i as i64)).collect::<Int64Array>()),
        DataType::Int32 => Arc::new(cells.map(|c| int(c).map(|i| i as i32)).collect::<Int32Array>()),
        DataType::Int8 => Arc::new(cells.map(|c| int(c).map(|i| i as i8)).collect::<Int8Array>()),
        DataType::Date32 => Arc::new(cells.map(|c| int(c).map(|i| i as i32)).collect::<Date32Array>()),
        DataType::Boolean => Arc::new(cells.map(|c| int(c).map(|i| i == 1)).collect::<BooleanArray>()),
        DataType::Timestamp(_, _) => {
            let times: TimestampMicrosecondArray = cells.map(|c| int(c).map(|i| i as i64)).collect();
            Arc::new(times.with_timezone("UTC"))
        }
        DataType::Decimal128(p, s) => {
            Arc::new(cells.map(int).collect::<Decimal128Array>().with_precision_and_scale(*p, *s).unwrap())
        }
        DataType::Float64 => {
            Arc::new(cells.map(|c| if let Cell::Float(f) = c { Some(*f) } else { None }).collect::<Float64Array>())
        }
        DataType::Float32 => {
            let float = |c: &&Cell| if let Cell::Float(f) = c { Some(*f as f32) } else { None };
            Arc::new(cells.map(float).collect::<Float32Array>())
        }
        DataType::Utf8 => Arc::new(cells.map(text).collect::<StringArray>()),
        DataType::Binary => Arc::new(cells.map(|c| text(c).map(String::into_bytes)).collect::<BinaryArray>()),
        other => unreachable!("{other}"),
    }
}

fn cell(array: &ArrayRef, row: usize) -> Cell {
    if array.is_null(row) {
        return Cell::Null;
    }
    match array.data_type() {
        DataType::Int64 => Cell::Int(array.as_primitive::<Int64Type>().value(row).into()),
        DataType::Int32 => Cell::Int(array.as_primitive::<Int32Type>().value(row).into()),
        DataType::Int8 => Cell::Int(array.as_primitive::<Int8Type>().value(row).into()),
        DataType::Date32 => Cell::Int(array.as_primitive::<Date32Type>().value(row).into()),
        DataType::Boolean => Cell::Int(array.as_boolean().value(row).into()),
        DataType::Timestamp(_, _) => Cell::Int(array.as_primitive::<TimestampMicrosecondType>().value(row).into()),
        DataType::Decimal128(_, _) => Cell::Int(array.as_primitive::<Decimal128Type>().value(row)),
        DataType::Float64 => Cell::Float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Float32 => Cell::Float(array.as_primitive::<Float32Type>().value(row).into()),
        DataType::Utf8 => Cell::Text(array.as_string::<i32>().value(row).to_string()),
        DataType::Binary => Cell::Text(String::from_utf8(array.as_binary::<i32>().value(row).to_vec()).unwrap()),
        other => unreachable!("{other}"),
    }
}

fn part(array: &ArrayRef, row: usize) -> Part {
    match cell(array, row) {
        Cell::Null => Part::Null,
        Cell::Int(int) => Part::Int(int as i64),
        Cell::Text(text) => Part::Text(text),
        Cell::Float(_) => unreachable!("no key is a float here"),
    }
}

/// Rows as some record batches.
fn batches(random: &mut SmallRng, by: &[Field], rows: &[Row]) -> Vec<RecordBatch> {
    let mut fields: Vec<Field> = by.to_vec();
    fields.push(Field::new(EVENT_TIME, timestamp(), true));
    fields
        .extend(types().into_iter().enumerate().map(|(n, data_type)| Field::new(format!("_arg{n}"), data_type, true)));
    let schema = Arc::new(Schema::new(fields));
    let mut rest = rows;
    let mut batches = Vec::new();
    while !rest.is_empty() {
        let (rows, others) = rest.split_at(random.random_range(1..=rest.len()));
        rest = others;
        let mut columns: Vec<ArrayRef> = Vec::new();
        for (number, field) in by.iter().enumerate() {
            let cells: Vec<Cell> = rows
                .iter()
                .map(|row| match &row.key[number] {
                    Part::Null => Cell::Null,
                    Part::Int(int) => Cell::Int(i128::from(*int)),
                    Part::Text(text) => Cell::Text(text.clone()),
                })
                .collect();
            columns.push(array(field.data_type(), cells.iter().collect()));
        }
        let times: Vec<Cell> =
            rows.iter().map(|row| row.time.map_or(Cell::Null, |time| Cell::Int(time.into()))).collect();
        columns.push(array(&timestamp(), times.iter().collect()));
        for (number, data_type) in types().iter().enumerate() {
            columns.push(array(data_type, rows.iter().map(|row| &row.arguments[number]).collect()));
        }
        batches.push(RecordBatch::try_new(schema.clone(), columns).unwrap());
    }
    batches
}

fn compare(aggregation: &Aggregation, step: &Step, expected: &Outcome) {
    let by = aggregation.by.len();
    let timed = aggregation.window.is_some();
    let mut found = Vec::new();
    for batch in &step.rows {
        for row in 0..batch.num_rows() {
            let key: Vec<Part> = (0..by).map(|column| part(batch.column(column), row)).collect();
            let time = |column: usize| match cell(batch.column(column), row) {
                Cell::Int(time) => time as i64,
                other => panic!("a window from {other:?}"),
            };
            let span = if timed { Some((time(by), time(by + 1))) } else { None };
            let first = if timed { by + 2 } else { by };
            let values: Vec<Cell> =
                (first..batch.num_columns()).map(|column| cell(batch.column(column), row)).collect();
            found.push((span, key, values));
        }
    }
    assert_eq!(found.len(), expected.lines.len(), "found {found:?}, expected {:?}", expected.lines);
    for ((span, key, values), line) in found.iter().zip(&expected.lines) {
        assert_eq!(
            (span, key),
            (&timed.then_some((line.start, line.end)), &line.key),
            "{found:?} {:?}",
            expected.lines
        );
        for (value, expected) in values.iter().zip(&line.values) {
            assert!(expected.fits(value), "{value:?} for {expected:?} in {line:?}");
        }
        assert_eq!(values.len(), line.values.len());
    }
    let mut replaced = BTreeSet::new();
    if let Some(batch) = &step.replaced {
        for row in 0..batch.num_rows() {
            let start = match timed {
                true => match cell(batch.column(by), row) {
                    Cell::Int(start) => start as i64,
                    other => panic!("a window from {other:?}"),
                },
                false => 0,
            };
            let key = (0..by).map(|column| part(batch.column(column), row)).collect();
            assert!(replaced.insert((start, key)), "replaced twice");
        }
    }
    assert_eq!(replaced, expected.replaced);
    let aside: Vec<_> = step.aside.iter().map(|aside| (aside.row, aside.rule)).collect();
    assert_eq!(aside, expected.aside);
    assert_eq!(step.counts, expected.counts);
}

/// What a file makes of saved rows.
fn through_parquet(log: &[RecordBatch]) -> Vec<RecordBatch> {
    let Some(first) = log.first() else { return Vec::new() };
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, first.schema(), None).unwrap();
    log.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.close().unwrap();
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes));
    reader.unwrap().build().unwrap().collect::<Result<_, _>>().unwrap()
}

fn case(random: &mut SmallRng, seen: &mut BTreeMap<&'static str, u64>) {
    let (window, unit, origin) = random_window(random);
    let (functions, calls) = random_functions(random);
    let keep = random.random_range(0..25) * unit;
    let mut late = [Late::Drop, Late::Quarantine, Late::Update { keep }][random.random_range(0..3)];
    let mut emit = [Emit::Update, Emit::Final, Emit::Final, Emit::Complete][random.random_range(0..4)];
    if window.is_none() && emit == Emit::Final {
        emit = Emit::Update;
    }
    if emit == Emit::Final && matches!(late, Late::Update { .. }) {
        late = Late::Quarantine;
    }
    let all = [Field::new("k", DataType::Utf8, true), Field::new("n", DataType::Int64, true)];
    let by = all[..random.random_range(0..3)].to_vec();
    let aggregation = Aggregation { by: by.clone(), window, functions, emit, late };
    let mut windows = Windows::new(aggregation.clone()).unwrap();
    let mut oracle = Oracle::new(window, emit, late, calls);
    let mut log: Vec<RecordBatch> = Vec::new();
    let mut watermark: Option<i64> = None;
    let mut center = 0i64;
    for _ in 0..random.random_range(1..7) {
        let rows: Vec<Row> = (0..random.random_range(0..14))
            .map(|_| {
                let key = by.iter().map(|field| match (random.random_range(0..4), field.data_type()) {
                    (0, _) => Part::Null,
                    (n, DataType::Utf8) => Part::Text(["", "x", "yy"][n - 1].to_string()),
                    (n, _) => Part::Int(n as i64 - 2),
                });
                let key = key.collect();
                let time = random.random_range(center - 25..center + 15) * unit + origin;
                Row {
                    key,
                    time: (!random.random_bool(0.06)).then_some(time),
                    arguments: types().iter().map(|data_type| random_cell(random, data_type)).collect(),
                }
            })
            .collect();
        // The watermark follows the rows, stays, or jumps with the time of another input.
        if random.random_bool(0.2) {
            watermark = watermark.max(Some((center - random.random_range(0..20)) * unit + origin));
        }
        let most = rows.iter().filter_map(|row| row.time).max();
        let next = match random.random_range(0..4) {
            0 => watermark,
            _ => watermark.max(most.map(|most| most - random.random_range(0..20) * unit)),
        };
        let latest = (center + if random.random_bool(0.3) { 10 } else { 100 }) * unit + origin;
        let time = EventTime { watermark, next, latest };
        let arrivals = batches(random, &by, &rows);
        let step = windows.step(&[arrivals], &time).unwrap();
        let expected = oracle.step(&rows, &time);
        compare(&aggregation, &step, &expected);
        for rule in step.counts.keys().copied().chain(step.aside.iter().map(|aside| aside.rule)) {
            *seen.entry(rule).or_default() += 1;
        }
        *seen.entry("lines").or_default() += expected.lines.len() as u64;
        assert_eq!(windows.size().rows, oracle.open() as u64);
        assert_eq!(windows.due(), oracle.ends().filter(|_| emit == Emit::Final));
        if random.random_bool(0.25) {
            log = windows.whole().unwrap();
        } else {
            log.extend(windows.changes().unwrap());
        }
        if random.random_bool(0.5) {
            *seen.entry("loaded").or_default() += log.len() as u64;
            windows = Windows::new(aggregation.clone()).unwrap();
            if random.random_bool(0.1) {
                log = through_parquet(&log);
            }
            windows.load(&log).unwrap();
            assert!(log.iter().all(|saved| saved.schema() == windows.saved()));
            assert!(windows.changes().unwrap().is_empty());
            assert_eq!(windows.size().rows, oracle.open() as u64, "after loading");
        }
        watermark = next;
        center += random.random_range(0..20);
    }
}

#[test]
fn windows_are_what_brute_force_makes_of_the_rows() {
    let (seed, cases) = (environment("TIDEGATE_SEED", 11), environment("TIDEGATE_CASES", 2_000));
    println!("TIDEGATE_SEED={seed} TIDEGATE_CASES={cases}");
    let mut seen = BTreeMap::new();
    for number in 0..cases {
        println!("case {number}");
        case(&mut SmallRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(number)), &mut seen);
    }
    println!("{seen:?}");
    for rule in ["late", "partly_late", "null_event_time", "ahead", "lines", "loaded"] {
        assert!(cases < 500 || seen.get(rule).is_some_and(|count| *count > 100), "{rule} hardly came up: {seen:?}");
    }
}
