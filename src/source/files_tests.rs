//! Lines, blank lines, half lines, and files that change.

use std::io::Write;

use super::*;
use crate::source::rows::offsets_of;

fn write(folder: &Path, name: &str, text: &str) {
    let mut file = File::options().create(true).append(true).open(folder.join(name)).expect("opens");
    file.write_all(text.as_bytes()).expect("writes");
}

fn source(folder: &Path) -> FilesSource {
    FilesSource::new(FilesSpec { path: folder.to_path_buf(), pattern: "*.ndjson".into() })
}

fn ranges(values: &[(&str, i64, i64)]) -> OffsetRanges {
    OffsetRanges(values.iter().map(|&(n, f, u)| (Partition::new(n, 0), Range { from: f, until: u })).collect())
}

const LIMITS: Limits = Limits { max_rows: 1_000_000, max_bytes: 1 << 30 };

#[tokio::test]
async fn every_line_counts_and_blank_lines_are_holes() {
    let folder = tempfile::tempdir().expect("folder");
    write(folder.path(), "a.ndjson", "one\n\nthree\r\nfour");
    write(folder.path(), "b.txt", "not ours\n");
    let mut source = source(folder.path());
    assert_eq!(source.end().await.expect("end").0[&Partition::new("a.ndjson", 0)], 4);
    let batches = source.read(&ranges(&[("a.ndjson", 0, 4)]), &Incarnations::new()).await.expect("reads").batches;
    assert_eq!(offsets_of(&batches[0]).expect("offsets").values(), &[0, 2, 3]);
    write(folder.path(), "a.ndjson", " and more\nfive\n");
    assert_eq!(source.end().await.expect("end").0[&Partition::new("a.ndjson", 0)], 5);
}

#[tokio::test]
async fn a_range_deep_in_a_file_is_found_through_the_index() {
    let folder = tempfile::tempdir().expect("folder");
    let lines: String = (0..20_000).map(|i| format!("line {i}\n")).collect();
    write(folder.path(), "a.ndjson", &lines);
    let mut warm = source(folder.path());
    warm.end().await.expect("end");
    for (from, until) in [(0, 1), (4095, 4097), (8192, 8193), (19_999, 20_000)] {
        let wanted = ranges(&[("a.ndjson", from, until)]);
        let read = warm.read(&wanted, &Incarnations::new()).await.expect("warm").batches;
        assert_eq!(read, source(folder.path()).read(&wanted, &Incarnations::new()).await.expect("cold").batches);
        let values: &arrow::array::BinaryArray = read[0].column(5).as_any().downcast_ref().expect("binary");
        assert_eq!(values.value(0), format!("line {from}").as_bytes());
    }
}

#[tokio::test]
async fn a_missing_folder_is_a_configuration_error_and_a_missing_file_a_loss() {
    let folder = tempfile::tempdir().expect("folder");
    let missing = source(&folder.path().join("no")).end().await.expect_err("no folder");
    assert_eq!(missing.kind(), ErrorKind::Config);
    let from = Offsets(BTreeMap::from([(Partition::new("gone.ndjson", 0), 3)]));
    let gone = source(folder.path()).bound(&from, &Incarnations::new(), &from, LIMITS).await.expect_err("gone");
    assert_eq!(gone.kind(), ErrorKind::OffsetsLost);
    write(folder.path(), "gone.ndjson", "1\n2\n");
    let shrunk = source(folder.path()).bound(&from, &Incarnations::new(), &from, LIMITS).await.expect_err("shrunk");
    assert!(shrunk.message().contains("ends at 2"), "{shrunk}");
}

#[test]
fn a_pattern_is_text_with_two_wild_cards() {
    let matches = |pattern: &str, name: &str| glob(pattern).expect("pattern").is_match(name);
    assert!(matches("*.ndjson", "a.ndjson") && !matches("*.ndjson", "a.ndjson.tmp"));
    assert!(matches("a?.(1)", "ab.(1)") && !matches("a.b", "axb"));
}
