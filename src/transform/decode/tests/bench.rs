//! How fast: `cargo test --release --lib decode::tests::bench -- --ignored --nocapture`.

use super::*;
use std::time::Instant;

/// The columns of the README's pipeline.
fn orders() -> SourceSpec {
    let mut columns = vec![
        column("order_id", DataType::Utf8),
        column("store_id", DataType::Utf8),
        column("amount", DataType::Decimal128(18, 2)),
        column("quantity", DataType::Int32),
        column("status", DataType::Utf8),
        column("updated_at", timestamp()),
        column("op", DataType::Utf8),
    ];
    columns[0].nullable = false;
    spec(columns)
}

#[test]
#[ignore = "a measurement"]
fn megabytes_per_second() {
    let rows = 500_000;
    for (name, extra, bad_every) in [("plain", false, 0), ("with an unknown field", true, 0), ("1% bad", false, 100)] {
        let mut values: Vec<String> = Vec::new();
        for i in 0..rows {
            if bad_every > 0 && i % bad_every == 0 {
                values.push(format!(r#"{{"order_id":"order-{i:012}","amount":"seven"}}"#));
                continue;
            }
            let extra = if extra { r#","channel":"web shop""# } else { "" };
            values.push(format!(
                r#"{{"order_id":"order-{i:012}","store_id":"store-{:04}","amount":{}.{:02},"quantity":{},"status":"PLACED","updated_at":"2026-03-17T12:{:02}:{:02}.123Z","op":"u"{extra}}}"#,
                i % 500, i % 1000, i % 100, i % 9 + 1, i % 60, i % 59,
            ));
        }
        let bytes: usize = values.iter().map(String::len).sum();
        let values: Vec<_> = values.iter().map(|v| Some(v.as_bytes())).collect();
        let batch = records(0, &values);
        let decoder = Decoder::new("source", &orders(), chrono_tz::UTC).expect("decodable");
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            let mut best = f64::MAX;
            for _ in 0..7 {
                let start = Instant::now();
                let decoded =
                    pool.install(|| decoder.decode(std::slice::from_ref(&batch), &context())).expect("decoded");
                best = best.min(start.elapsed().as_secs_f64());
                assert_eq!(decoded.rows.iter().map(RecordBatch::num_rows).sum::<usize>() + decoded.dead.len(), rows);
            }
            println!(
                "{name}, {threads} thread(s), {} bytes a record: {:.2} M rows/s, {:.0} MB/s",
                bytes / rows,
                rows as f64 / best / 1e6,
                bytes as f64 / best / 1e6
            );
        }
    }
}
