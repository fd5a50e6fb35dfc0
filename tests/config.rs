//! What a person sees when a pipeline file is wrong, and that the files we ship are right.
//!
//! `tests/config/bad/<case>.yaml` must give exactly `<case>.txt`. `TIDEGATE_BLESS=1` writes the texts anew, to be read
//! before they are committed.

use std::path::{Path, PathBuf};

use tidegate::config::env::FixedLookup;
use tidegate::config::spec::{PipelineSpec, SourceKind};
use tidegate::config::{LoadOptions, json_schema, load, load_text};

fn home() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn lookup() -> FixedLookup {
    let variables = [("SECRET_PASSWORD", "hunter2"), ("TWO_LINES", "a\nb"), ("KAFKA_BROKERS", "k1:9092")];
    FixedLookup {
        variables: variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        files: [("/run/secrets/kafka".to_owned(), "hunter2\n".to_owned())].into(),
    }
}

fn options(target: Option<&str>) -> LoadOptions {
    LoadOptions { target: target.map(str::to_owned), lookup: Box::new(lookup()) }
}

/// The report of a text, as `p.yaml`.
fn report(source: &str, target: Option<&str>) -> String {
    match load_text(Path::new("p.yaml"), source, &options(target)) {
        Ok(_) => "no problem\n".to_owned(),
        Err(report) => report.to_string(),
    }
}

/// A first line `# target: prod` loads the file with that target.
fn target_of(source: &str) -> Option<&str> {
    source.lines().next()?.strip_prefix("# target: ").map(str::trim)
}

#[test]
fn every_bad_file_gives_exactly_the_expected_report() {
    let folder = home().join("tests/config/bad");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the folder of bad files")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    cases.sort();
    assert!(cases.len() >= 25, "only {} cases", cases.len());
    let bless = std::env::var_os("TIDEGATE_BLESS").is_some();
    let mut wrong = Vec::new();
    for case in cases {
        let source = std::fs::read_to_string(&case).expect("a bad file");
        let seen = report(&source, target_of(&source));
        let expected = case.with_extension("txt");
        if bless {
            #[allow(clippy::disallowed_methods, reason = "a test writes its own golden files, on request")]
            std::fs::write(&expected, &seen).expect("the golden file");
            continue;
        }
        let wanted = std::fs::read_to_string(&expected).unwrap_or_default();
        if seen != wanted {
            wrong.push(format!("=== {}\n--- expected\n{wanted}--- seen\n{seen}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn shipped(name: &str, target: Option<&str>) -> PipelineSpec {
    let path = home().join("pipelines").join(name);
    match load(&path, &options(target)) {
        Ok(loaded) => loaded.spec,
        Err(report) => panic!("{report}"),
    }
}

#[test]
fn shipped_pipelines_load() {
    let orders = shipped("orders.yaml", None);
    assert_eq!(orders.root, home());
    assert_eq!(orders.lake, home().join("lake").display().to_string());
    let names: Vec<&str> = orders.tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["bronze.orders", "silver.orders", "gold.daily_revenue"]);
    assert_eq!(orders.tables[1].expect[0].name, "positive_quantity");
    let SourceKind::Generate(generate) = &orders.sources["source"].kind else { panic!("a generator") };
    assert_eq!((generate.rows, generate.dirty, generate.late), (Some(100_000), 0.01, 0.05));
    let SourceKind::Generate(small) = &shipped("orders.yaml", Some("small")).sources["source"].kind.clone() else {
        panic!("a generator")
    };
    assert_eq!((small.rows, small.partitions), (Some(1_000), 4));
    for name in ["orders-kafka.yaml", "clickstream.yaml", "customers.yaml"] {
        shipped(name, None);
    }
}

#[test]
fn secrets_reach_the_settings_and_no_text() {
    let spec = shipped("orders-kafka.yaml", Some("prod"));
    assert_eq!(spec.lake, "s3://acme-lake/retail");
    let SourceKind::Kafka(kafka) = &spec.sources["source"].kind else { panic!("kafka") };
    assert_eq!(kafka.brokers, "k1:9092");
    assert_eq!(kafka.settings["sasl.password"].reveal(), "hunter2");
    assert_eq!(kafka.settings["security.protocol"].reveal(), "SASL_SSL");
    assert!(!format!("{spec:?}").contains("hunter2"));
}

#[test]
fn the_shipped_schema_is_current() {
    let path = home().join("pipelines/tidegate.schema.json");
    let current = json_schema();
    if std::env::var_os("TIDEGATE_BLESS").is_some() {
        let text = format!("{}\n", serde_json::to_string_pretty(&current).expect("JSON"));
        #[allow(clippy::disallowed_methods, reason = "a test writes its own golden files, on request")]
        std::fs::write(&path, text).expect("the schema file");
    }
    let shipped = std::fs::read_to_string(&path).expect("the schema file");
    let shipped: serde_json::Value = serde_json::from_str(&shipped).expect("JSON");
    assert_eq!(shipped, current, "run the tests with TIDEGATE_BLESS=1");
}

#[test]
fn only_a_change_of_meaning_counts_as_one() {
    let source = std::fs::read_to_string(home().join("pipelines/orders.yaml")).expect("the file");
    let meaning = |source: &str| {
        let loaded = load_text(Path::new("p.yaml"), source, &options(None)).expect("a sound file");
        tidegate::runner::meaning(&loaded.spec)
    };
    let base = meaning(&source);
    for same in [("rows: ${ROWS:-100_000}", "rows: 5"), ("lower(o.status)", "upper(o.status)"), ("fail_above: 10%", "")]
    {
        assert_eq!(meaning(&source.replace(same.0, same.1)), base, "{same:?}");
    }
    for other in [
        ("key: order_id", "key: [order_id, store_id]"),
        ("order_by: updated_at", "order_by: order_date"),
        ("delete_when: op = 'd'", "delete_when: op = 'x'"),
        ("by: order_date}", "by: [order_date, store_id]}"),
    ] {
        let changed = source.replace(other.0, other.1);
        assert_ne!(changed, source, "{other:?}");
        assert_ne!(meaning(&changed), base, "{other:?}");
    }
}

#[test]
fn omissions_are_safe_defaults() {
    let source =
        "version: 1\nname: p\nsource: {kafka: {brokers: b, topics: t}, format: raw}\ntables: {t: {from: source}}\n";
    let loaded = load_text(Path::new("/p/p.yaml"), source, &options(None));
    let spec = loaded.expect("a sound file").spec;
    assert_eq!((spec.lake.as_str(), spec.checkpoints.as_str()), ("/p/lake", "/p/checkpoints"));
    assert_eq!((spec.max_rows, spec.max_bytes, spec.trigger.as_str()), (500_000, 256_000_000, "available_now"));
    assert_eq!(spec.dead_letters.expect("on by default").table, "dlq.p");
    let SourceKind::Kafka(kafka) = &spec.sources["source"].kind else { panic!("kafka") };
    assert_eq!(kafka.group, "tidegate-p");
}

#[test]
fn no_text_makes_the_loader_panic() {
    let source = std::fs::read_to_string(home().join("pipelines/orders-kafka.yaml")).expect("the file");
    // Cut anywhere, and with every line left out: a file half typed in an editor.
    for end in (0..source.len()).step_by(7).filter(|end| source.is_char_boundary(*end)) {
        report(&source[..end], Some("prod"));
    }
    for left_out in 0..source.lines().count() {
        let text: String =
            source.lines().enumerate().filter(|(n, _)| *n != left_out).map(|(_, line)| format!("{line}\n")).collect();
        report(&text, None);
    }
}

// BEGIN decode
#[test]
fn the_columns_that_checking_knows_are_those_that_decoding_makes() {
    use tidegate::config::check::source_columns;
    for (name, target) in [("orders.yaml", None), ("customers.yaml", None), ("clickstream.yaml", None)] {
        let spec = shipped(name, target);
        let source = &spec.sources["source"];
        let decoded = tidegate::transform::decode::row_schema(source);
        let decoded: Vec<String> = decoded.fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!(source_columns(source), Some(decoded), "{name}");
    }
}
// END decode
