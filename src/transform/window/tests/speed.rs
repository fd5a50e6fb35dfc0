//! What a million open sessions take. `cargo test --release --lib -- --ignored --nocapture million_sessions`

use std::time::Instant;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

const SESSIONS: usize = 1_000_000;
const BATCH: usize = 100_000;
const MINUTE: Micros = 60_000_000;

/// One event for each user.
fn events(users: &[usize], time: impl Fn(usize) -> Micros) -> Vec<Vec<RecordBatch>> {
    let amounts = Decimal128Array::from_iter_values(users.iter().map(|user| (*user % 10_000) as i128));
    let times = TimestampMicrosecondArray::from_iter_values(users.iter().map(|user| time(*user)));
    let batch = RecordBatch::try_from_iter([
        (
            "k",
            Arc::new(StringArray::from_iter_values(users.iter().map(|user| format!("customer-{user:09}")))) as ArrayRef,
        ),
        (EVENT_TIME, Arc::new(times.with_timezone("UTC"))),
        ("_arg0", Arc::new(amounts.with_precision_and_scale(18, 2).unwrap())),
    ]);
    vec![vec![batch.unwrap()]]
}

/// Resident memory of this process.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default() * 4_096
}

fn parquet(batches: &[RecordBatch], schema: arrow::datatypes::SchemaRef) -> usize {
    let mut bytes = Vec::new();
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_compression(parquet::basic::Compression::SNAPPY)
        .build();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, schema, Some(properties)).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.close().unwrap();
    bytes.len()
}

#[test]
#[ignore = "a measurement"]
fn million_sessions() {
    let functions = vec![
        count(),
        function(Kind::Sum, 0, DataType::Decimal128(18, 2)),
        function(Kind::Max, 0, DataType::Decimal128(18, 2)),
    ];
    let window = Some(Window::Session { gap: 30 * MINUTE });
    let aggregation = aggregation(window, Emit::Final, Late::Drop, functions);
    let mut windows = Windows::new(aggregation.clone()).unwrap();
    let mut random = SmallRng::seed_from_u64(1);
    let users: Vec<usize> = (0..SESSIONS).map(|user| (user * 7_919) % SESSIONS).collect();
    let before = resident();
    let time = EventTime { watermark: None, next: Some(0), latest: Micros::MAX };
    for batch in users.chunks(BATCH) {
        let arrivals = events(batch, |user| (user % 1_200) as Micros * 1_000_000);
        let start = Instant::now();
        windows.step(&arrivals, &time).unwrap();
        println!("{} new sessions: {} ms", batch.len(), start.elapsed().as_millis());
    }
    let size = windows.size();
    println!("{} sessions: estimated {} bytes each", size.rows, size.bytes / size.rows);
    println!("resident: {} bytes each, with the batches' own", (resident() - before) / size.rows);
    let start = Instant::now();
    let whole = windows.whole().unwrap();
    println!("whole: {} ms", start.elapsed().as_millis());
    println!("whole as parquet: {} bytes", parquet(&whole, windows.saved()));
    let start = Instant::now();
    let mut again = Windows::new(aggregation).unwrap();
    again.load(&whole).unwrap();
    println!("load: {} ms", start.elapsed().as_millis());
    drop((again, whole));
    for round in 0..3 {
        let some: Vec<usize> = (0..BATCH).map(|_| random.random_range(0..SESSIONS)).collect();
        let arrivals = events(&some, |user| (user % 1_200 + 60 * round) as Micros * 1_000_000);
        let start = Instant::now();
        windows.step(&arrivals, &time).unwrap();
        println!("{BATCH} rows into them: {} ms", start.elapsed().as_millis());
        let start = Instant::now();
        let changes = windows.changes().unwrap();
        let rows: usize = changes.iter().map(RecordBatch::num_rows).sum();
        println!("changes of {rows}: {} ms", start.elapsed().as_millis());
        println!("changes as parquet: {} bytes", parquet(&changes, windows.saved()));
    }
    let start = Instant::now();
    let close = EventTime { next: Some(45 * MINUTE), ..time };
    let step = windows.step(&[Vec::new()], &close).unwrap();
    let closed: usize = step.rows.iter().map(RecordBatch::num_rows).sum();
    println!("{closed} sessions closed: {} ms", start.elapsed().as_millis());
    assert_eq!(closed as u64 + windows.size().rows, SESSIONS as u64);
}
