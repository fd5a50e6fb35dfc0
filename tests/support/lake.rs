//! Reads tables the way any other reader would: the `deltalake` crate and DataFusion, never tidegate's own code.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray as _};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float64Type, Int64Type, TimeUnit, TimestampMicrosecondType,
};
use arrow::record_batch::RecordBatch;
use deltalake::datafusion::prelude::{SessionConfig, SessionContext};

/// What an absent value looks like in a line of [`lines`].
pub const NULL: &str = "∅";

/// Runs `sql` over the table at `path`, which it calls `t`.
pub fn read_table(path: &Path, sql: &str) -> Vec<RecordBatch> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let outcome = runtime.block_on(async {
        let url = url::Url::from_directory_path(path).expect("absolute");
        let table = deltalake::open_table(url).await?;
        // Column names as they are: order_Id is not order_id.
        let config = SessionConfig::new().set_bool("datafusion.sql_parser.enable_ident_normalization", false);
        let context = SessionContext::new_with_config(config);
        context.register_table("t", table.table_provider().await?)?;
        let frame = context.sql(sql).await?;
        Ok::<_, Box<dyn std::error::Error>>(frame.collect().await?)
    });
    outcome.unwrap_or_else(|cause| panic!("cannot read {}: {cause}\n  {sql}", path.display()))
}

/// Changes rows as others would, with the `deltalake` crate: columns and what they become, where `predicate` holds.
pub fn change(path: &Path, columns: &[(&str, &str)], predicate: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let url = url::Url::from_directory_path(path).expect("absolute");
        let table = deltalake::open_table(url).await.expect("a table");
        let update = table.update().with_predicate(predicate);
        let update = columns.iter().fold(update, |update, (column, value)| update.with_update(*column, *value));
        let (_, metrics) = update.await.expect("changed");
        assert_ne!(metrics.num_updated_rows, 0, "nothing was changed by {predicate}");
    });
}

/// The rows of `sql` as sorted lines: values parted by `|`, times in microseconds, decimals in their smallest unit, bytes
/// in hexadecimal. JSON in `_rescued` is parsed and written again, because its spelling is nobody's promise.
pub fn lines(path: &Path, sql: &str) -> Vec<String> {
    let batches = read_table(path, sql);
    let mut lines = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
    for batch in &batches {
        let schema = batch.schema();
        let columns: Vec<(bool, ArrayRef)> =
            batch.columns().iter().zip(schema.fields()).map(|(c, f)| (f.name() == "_rescued", plain(c))).collect();
        for row in 0..batch.num_rows() {
            let mut line = String::with_capacity(160);
            for (index, (is_json, column)) in columns.iter().enumerate() {
                if index > 0 {
                    line.push('|');
                }
                cell(column, row, *is_json, &mut line);
            }
            lines.push(line);
        }
    }
    lines.sort_unstable();
    lines
}

/// One representation per kind of value.
fn plain(column: &ArrayRef) -> ArrayRef {
    let to = match column.data_type() {
        DataType::Utf8View | DataType::LargeUtf8 | DataType::Dictionary(..) => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        DataType::Int8 | DataType::Int16 | DataType::Int32 => DataType::Int64,
        DataType::Float32 => DataType::Float64,
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        _ => return Arc::clone(column),
    };
    arrow::compute::cast(column, &to).expect("a change of representation only")
}

fn cell(column: &ArrayRef, row: usize, is_json: bool, line: &mut String) {
    if column.is_null(row) {
        line.push_str(NULL);
        return;
    }
    let written = match column.data_type() {
        DataType::Utf8 if is_json => {
            let text = column.as_string::<i32>().value(row);
            let value: serde_json::Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            write!(line, "{value}")
        }
        DataType::Utf8 => {
            line.push_str(column.as_string::<i32>().value(row));
            Ok(())
        }
        DataType::Binary => {
            hex(column.as_binary::<i32>().value(row), line);
            Ok(())
        }
        DataType::Int64 => write!(line, "{}", column.as_primitive::<Int64Type>().value(row)),
        DataType::Float64 => write!(line, "{}", column.as_primitive::<Float64Type>().value(row)),
        DataType::Date32 => write!(line, "{}", column.as_primitive::<Date32Type>().value(row)),
        DataType::Decimal128(..) => write!(line, "{}", column.as_primitive::<Decimal128Type>().value(row)),
        DataType::Boolean => write!(line, "{}", column.as_boolean().value(row)),
        DataType::Timestamp(..) => write!(line, "{}", column.as_primitive::<TimestampMicrosecondType>().value(row)),
        other => panic!("no test has compared {other} yet"),
    };
    written.expect("a string");
}

/// Bytes as text; long ones by length and hash.
pub fn hex(bytes: &[u8], line: &mut String) {
    const SHOWN: usize = 400;
    if bytes.len() > SHOWN {
        let hash =
            bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
        write!(line, "{} bytes {hash:x}", bytes.len()).expect("a string");
        return;
    }
    for byte in bytes {
        line.push(char::from_digit(u32::from(byte >> 4), 16).expect("a nibble"));
        line.push(char::from_digit(u32::from(byte & 15), 16).expect("a nibble"));
    }
}

/// Delta version of the table at `path`: the highest commit in its log.
pub fn version(path: &Path) -> Option<i64> {
    let entries = fs::read_dir(path.join("_delta_log")).ok()?;
    let number = |name: &str| name.strip_suffix(".json").and_then(|n| n.parse::<i64>().ok());
    entries.flatten().filter_map(|entry| number(&entry.file_name().to_string_lossy())).max()
}

/// Requires two sorted lists of lines to be the same, and shows where they are not.
#[track_caller]
pub fn assert_same(what: &str, expected: &[String], actual: &[String]) {
    if expected == actual {
        return;
    }
    let (missing, extra) = difference(expected, actual);
    let show = |lines: &[&String]| {
        let shown: String = lines.iter().take(5).map(|line| format!("    {line}\n")).collect();
        format!("{}\n{shown}", lines.len())
    };
    panic!(
        "{what} differs: {} rows expected, {} found\n  missing: {}  extra: {}",
        expected.len(),
        actual.len(),
        show(&missing),
        show(&extra)
    );
}

/// Lines of one sorted multiset that the other lacks, both ways.
fn difference<'a>(expected: &'a [String], actual: &'a [String]) -> (Vec<&'a String>, Vec<&'a String>) {
    let (mut missing, mut extra) = (Vec::new(), Vec::new());
    let (mut e, mut a) = (expected.iter().peekable(), actual.iter().peekable());
    loop {
        match (e.peek(), a.peek()) {
            (None, None) => return (missing, extra),
            (Some(left), Some(right)) if left == right => {
                e.next();
                a.next();
            }
            (Some(left), Some(right)) if left > right => extra.extend(a.next()),
            (Some(_), _) => missing.extend(e.next()),
            (None, Some(_)) => extra.extend(a.next()),
        }
    }
}

#[test]
fn a_missing_row_an_extra_row_and_a_repeated_row_are_all_seen() {
    let list = |words: &[&str]| words.iter().map(|w| w.to_string()).collect::<Vec<_>>();
    let (expected, actual) = (list(&["a", "b", "d"]), list(&["a", "a", "c", "d"]));
    assert_eq!(difference(&expected, &actual), (vec![&expected[1]], vec![&actual[1], &actual[2]]));
}
