//! The traps of SQL transforms, each with its message or its rows.

mod refusals;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::{DataType, Field as ArrowField, Schema, SchemaRef};
use chrono::{TimeZone, Utc};
use proptest::prelude::*;

use super::compile::{CompiledPipeline, compile};
use super::definitions::table_definitions;
use super::expect::DELETE_FLAG;
use super::problems::{Field, SqlProblem};
use super::types::timestamp;
use super::*;
use crate::arrow_bridge::conform;
use crate::config::spec::*;
use crate::error::ErrorKind;
use crate::model::trigger::Trigger;
use crate::table::{Maker, WriteMode};

fn source() -> SourceSpec {
    let column = |name: &str, data_type: DataType, nullable: bool| ColumnSpec {
        name: name.into(),
        data_type,
        nullable,
        unit: None,
    };
    SourceSpec {
        kind: SourceKind::Generate(GenerateSpec {
            dataset: "orders".into(),
            rows: Some(1),
            partitions: 1,
            rate: None,
            seed: 1,
            dirty: 0.0,
            late: 0.0,
            duplicates: 0.0,
            out_of_order: 0.0,
        }),
        format: Format::Json,
        columns: vec![
            column("order_id", DataType::Utf8, true),
            column("store_id", DataType::Utf8, true),
            column("amount", DataType::Decimal128(18, 2), true),
            column("quantity", DataType::Int32, true),
            column("status", DataType::Utf8, true),
            column("updated_at", timestamp(), true),
            column("op", DataType::Utf8, true),
        ],
        event_time: Some("updated_at".into()),
        schema_drift: SchemaDrift::Ignore,
        tombstones: Tombstones::Quarantine,
    }
}

fn table(name: &str, from: &str, sql: Option<&str>, write: WriteSpec) -> TableSpec {
    let from = match from {
        "source" => From::Source("source".into()),
        name => From::Table(name.into()),
    };
    TableSpec {
        name: name.into(),
        from,
        sql: sql.map(str::to_string),
        engine: Engine::Polars,
        expect: Vec::new(),
        write,
        keeps: None,
        partition_by: Vec::new(),
        incremental: true,
    }
}

fn upsert(key: &str) -> WriteSpec {
    WriteSpec::Upsert { key: vec![key.into()], order_by: vec!["updated_at".into()], delete_when: None, drop: vec![] }
}

fn refresh(by: &str) -> WriteSpec {
    WriteSpec::Refresh { by: vec![by.into()] }
}

fn spec(tables: Vec<TableSpec>) -> PipelineSpec {
    PipelineSpec {
        name: "orders".into(),
        file: "/p/orders.yaml".into(),
        root: "/p".into(),
        lake: "/lake".into(),
        checkpoints: "/checkpoints".into(),
        timezone: chrono_tz::UTC,
        sources: [("source".to_string(), source())].into(),
        trigger: Trigger::AvailableNow.into(),
        max_rows: 1000,
        max_bytes: 1000,
        lookups: BTreeMap::new(),
        tables,
        dead_letters: Some(DeadLetterSpec { table: "dlq.orders".into(), fail_above: None }),
        maintain: Default::default(),
    }
}

fn stores() -> SchemaRef {
    Arc::new(Schema::new(vec![
        ArrowField::new("store_id", DataType::Utf8, true),
        ArrowField::new("city", DataType::Utf8, true),
    ]))
}

fn lookups() -> BTreeMap<String, SchemaRef> {
    [("stores".to_string(), stores())].into()
}

fn compiled(tables: Vec<TableSpec>) -> CompiledPipeline {
    compile(&spec(tables), &lookups()).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

fn problems(tables: Vec<TableSpec>) -> Vec<SqlProblem> {
    compile(&spec(tables), &lookups()).err().expect("problems")
}

fn append_problem(sql: &str) -> SqlProblem {
    problems(vec![table("bronze.t", "source", Some(sql), WriteSpec::Append)]).remove(0)
}

fn with_engine(mut table: TableSpec, engine: Engine) -> TableSpec {
    table.engine = engine;
    table
}

fn rule(name: &str, check: &str, action: Action) -> Expectation {
    Expectation { name: name.into(), check: check.into(), action }
}

/// order id, store, cents, quantity, minute of the hour, op
type Row<'a> = (Option<&'a str>, &'a str, i128, i32, i64, &'a str);

const NOON: i64 = 1_773_748_800_000_000; // 2026-03-17T12:00:00Z

fn rows(start: i64, rows: &[Row<'_>]) -> RecordBatch {
    let schema = decode::row_schema(&source());
    let mut columns: HashMap<&str, ArrayRef> = HashMap::new();
    columns.insert("order_id", Arc::new(rows.iter().map(|r| r.0).collect::<StringArray>()));
    columns.insert("store_id", Arc::new(rows.iter().map(|r| Some(r.1)).collect::<StringArray>()));
    let amount = rows.iter().map(|r| Some(r.2)).collect::<Decimal128Array>().with_precision_and_scale(18, 2).unwrap();
    columns.insert("amount", Arc::new(amount));
    columns.insert("quantity", Arc::new(rows.iter().map(|r| Some(r.3)).collect::<Int32Array>()));
    columns.insert("status", Arc::new(rows.iter().map(|_| Some("PAID")).collect::<StringArray>()));
    let times = rows.iter().map(|r| Some(NOON + r.4 * 60_000_000)).collect::<TimestampMicrosecondArray>();
    columns.insert("updated_at", Arc::new(times.with_timezone("UTC")));
    columns.insert("op", Arc::new(rows.iter().map(|r| Some(r.5)).collect::<StringArray>()));
    columns.insert("_topic", Arc::new(rows.iter().map(|_| Some("orders.v1")).collect::<StringArray>()));
    columns.insert("_partition", Arc::new(rows.iter().map(|_| Some(0)).collect::<Int32Array>()));
    columns.insert("_offset", Arc::new((0..rows.len() as i64).map(|i| Some(start + i)).collect::<Int64Array>()));
    columns.insert("_batch_id", Arc::new(rows.iter().map(|_| Some(7)).collect::<Int64Array>()));
    let arrays = schema.fields().iter().map(|field| match columns.get(field.name().as_str()) {
        Some(array) => array.clone(),
        None if field.is_nullable() => new_null_array(field.data_type(), rows.len()),
        None => match field.data_type() {
            DataType::Date32 => Arc::new(Date32Array::from(vec![20_529; rows.len()])) as ArrayRef,
            _ => Arc::new(TimestampMicrosecondArray::from(vec![NOON; rows.len()]).with_timezone("UTC")),
        },
    });
    let arrays: Vec<ArrayRef> = arrays.collect();
    RecordBatch::try_new(schema, arrays).unwrap()
}

fn context() -> BatchContext {
    let batch_time = Utc.with_ymd_and_hms(2026, 3, 18, 0, 0, 0).unwrap();
    BatchContext { pipeline: "orders".into(), batch: 7, batch_time, interval: None }
}

fn inputs(batch: Vec<RecordBatch>) -> Inputs {
    let cities = RecordBatch::try_new(
        stores(),
        vec![Arc::new(StringArray::from(vec!["s2", "s1"])), Arc::new(StringArray::from(vec!["Oslo", "Bergen"]))],
    );
    let lookups = [("stores".to_string(), Arc::new(vec![cities.unwrap()]))].into();
    Inputs { batch: Arc::new(batch), tables: HashMap::new(), lookups }
}

fn text(shaped: &Shaped, columns: &[&str]) -> Vec<String> {
    let mut lines = Vec::new();
    for batch in &shaped.rows {
        for row in 0..batch.num_rows() {
            let value = |name: &&str| {
                let column = batch.column_by_name(name).unwrap_or_else(|| panic!("no column {name}"));
                arrow::util::display::array_value_to_string(column, row).unwrap()
            };
            lines.push(columns.iter().map(value).collect::<Vec<_>>().join("|"));
        }
    }
    lines
}

fn types(pipeline: &CompiledPipeline, table: &str) -> Vec<String> {
    pipeline.schema(table).fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect()
}

fn one(sql: &str, engine: Engine, batch: &[Row<'_>]) -> (CompiledPipeline, Shaped) {
    let pipeline = compiled(vec![with_engine(table("t", "source", Some(sql), WriteSpec::Append), engine)]);
    let shaped = pipeline.shape("t", &inputs(vec![rows(0, batch)]), &context()).unwrap();
    (pipeline, shaped)
}

const BOTH: [Engine; 2] = [Engine::Polars, Engine::DataFusion];
const TWO: [Row<'static>; 2] = [(Some("o-1"), "s1", 700, 2, 0, "u"), (Some("o-2"), "s2", 250, 1, 61, "d")];

#[test]
fn unknown_columns_are_located_and_suggested() {
    for engine in BOTH {
        let t =
            with_engine(table("t", "source", Some("SELECT order_id,\n  amout FROM batch"), WriteSpec::Append), engine);
        let problem = problems(vec![t]).remove(0);
        assert_eq!((problem.line, problem.column, problem.length), (2, 3, 5), "{engine:?} {problem:?}");
        assert_eq!(problem.message, "unknown column `amout`");
        assert!(problem.help.unwrap().starts_with("did you mean `amount`? columns: _batch_id"));
    }
    let problem = append_problem("SELECT b.nope FROM batch b");
    assert_eq!((problem.message.as_str(), problem.column), ("unknown column `nope`", 10));
}

#[test]
fn syntax_errors_have_a_position() {
    let problem = append_problem("SELECT order_id\nFROM batch WHERE WHERE x");
    assert_eq!((problem.line, problem.column), (2, 24), "{problem:?}");
    assert!(problem.message.starts_with("syntax error: expected"), "{problem:?}");
}

#[test]
fn only_one_select_is_allowed() {
    for sql in ["SELECT 1 AS a; SELECT 2 AS a", "DROP TABLE batch", "DELETE FROM batch", ""] {
        let problem = append_problem(sql);
        assert_eq!(problem.message, "`sql` must be exactly one SELECT statement", "{sql}");
    }
}

#[test]
fn unknown_tables_and_functions_are_named() {
    let problem = append_problem("SELECT order_id FROM bacth");
    assert_eq!((problem.message.as_str(), problem.column, problem.length), ("unknown table `bacth`", 22, 5));
    assert_eq!(problem.help.as_deref(), Some("did you mean `batch`? there are: batch, stores"));
    for engine in BOTH {
        let t = table("t", "source", Some("SELECT frobnicate(order_id) AS x FROM batch"), WriteSpec::Append);
        let problem = problems(vec![with_engine(t, engine)]).remove(0);
        assert_eq!((problem.message.as_str(), problem.column), ("unknown function `frobnicate`", 8), "{problem:?}");
    }
}

#[test]
fn clocks_and_dice_and_files_are_refused() {
    for engine in BOTH {
        for (sql, help) in [
            ("SELECT now() AS t FROM batch", ":batch_time"),
            ("SELECT CURRENT_TIMESTAMP AS t FROM batch", ":batch_time"),
            ("SELECT random() AS t FROM batch", "`_offset`"),
            ("SELECT uuid() AS t FROM batch", "`_offset`"),
            ("SELECT * FROM read_csv('/etc/passwd')", "lookups:"),
            ("SELECT * FROM batch WHERE order_id IN (SELECT a FROM read_csv('/etc/passwd'))", "lookups:"),
            ("SELECT :today AS t FROM batch", ":batch_time"),
        ] {
            let found = problems(vec![with_engine(table("t", "source", Some(sql), WriteSpec::Append), engine)]);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].help.as_ref().unwrap().contains(help), "{found:?}");
        }
    }
}

#[test]
fn what_polars_lacks_names_datafusion_and_datafusion_has_it() {
    for sql in [
        "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 3) SELECT n FROM r",
        "SELECT order_id FROM batch WHERE amount > (SELECT avg(amount) FROM batch)",
        "SELECT store_id, sum(amount) AS s FROM batch GROUP BY ROLLUP (store_id)",
    ] {
        let problem = append_problem(sql);
        assert!(problem.message.starts_with("Polars SQL has no"), "{problem:?}");
        assert!(problem.help.unwrap().contains("engine: datafusion"));
        one(sql, Engine::DataFusion, &TWO);
    }
}

#[test]
fn every_problem_of_every_table_is_reported_once() {
    let found = problems(vec![
        table("a.one", "source", Some("SELECT nope FROM batch"), WriteSpec::Append),
        table("a.two", "a.one", Some("SELECT x FROM batch"), WriteSpec::Append),
        table("a.three", "source", Some("SELECT now() AS a, random() AS b FROM batch"), WriteSpec::Append),
    ]);
    let whose: Vec<&str> = found.iter().map(|problem| problem.table.as_str()).collect();
    assert_eq!(whose, ["a.one", "a.three", "a.three"], "{found:#?}");
}

#[test]
fn types_are_what_a_sql_user_expects() {
    let sql = "SELECT store_id, count(*) AS orders, sum(amount) AS revenue, sum(quantity) AS items, avg(amount) AS mean, \
               avg(quantity) AS q, count(DISTINCT order_id) AS ids, max(updated_at) AS last FROM batch GROUP BY store_id";
    let (pipeline, shaped) = one(sql, Engine::Polars, &TWO);
    let expected = [
        "store_id Utf8",
        "orders Int64",
        "revenue Decimal128(38, 2)",
        "items Int64",
        "mean Float64",
        "q Float64",
        "ids Int64",
        "last Timestamp(µs, \"UTC\")",
    ];
    assert_eq!(types(&pipeline, "t"), expected);
    let mut lines = text(&shaped, &["store_id", "orders", "revenue", "items", "mean"]);
    lines.sort();
    assert_eq!(lines, ["s1|1|7.00|2|7.0", "s2|1|2.50|1|2.5"]);
    let sql = "SELECT EXTRACT(YEAR FROM updated_at) AS y, EXTRACT(DOW FROM updated_at) AS d, \
               date_part('hour', updated_at) AS h, row_number() OVER (ORDER BY order_id) AS n, \
               CAST(updated_at AS DATE) AS day, quantity * 2 AS q, amount * quantity AS total FROM batch";
    let (pipeline, shaped) = one(sql, Engine::Polars, &TWO);
    assert_eq!(types(&pipeline, "t")[..6], ["y Int32", "d Int32", "h Int32", "n Int64", "day Date32", "q Int32"]);
    assert_eq!(
        text(&shaped, &["y", "d", "h", "n", "day", "q", "total"]),
        ["2026|2|12|1|2026-03-17|4|14.00", "2026|2|13|2|2026-03-17|2|2.50"]
    );
}

#[test]
fn sums_do_not_wrap() {
    let batch = [(Some("a"), "s1", 1, i32::MAX, 0, "u"), (Some("b"), "s1", 1, i32::MAX, 0, "u")];
    for engine in BOTH {
        let (_, shaped) = one("SELECT sum(quantity) AS n FROM batch", engine, &batch);
        assert_eq!(text(&shaped, &["n"]), ["4294967294"]);
        let (_, shaped) = one("SELECT sum(quantity) OVER (PARTITION BY store_id) AS n FROM batch", engine, &batch);
        assert_eq!(text(&shaped, &["n"]), ["4294967294", "4294967294"]);
    }
}

#[test]
fn times_are_utc_microseconds_in_both_engines() {
    let sql = "SELECT date_trunc('hour', updated_at) AS hour, date_trunc('week', updated_at) AS week, \
               date_trunc('month', CAST(updated_at AS DATE)) AS month, :batch_time AS now, \
               CAST('2026-03-17T12:00:00Z' AS TIMESTAMP) AS cast_text, TIMESTAMP '2026-03-17 12:00:00' AS typed, \
               CAST(:batch_time AS DATE) AS today \
               FROM batch WHERE updated_at >= TIMESTAMP '2026-03-17 12:00:00' AND updated_at < :batch_time";
    for engine in BOTH {
        let (pipeline, shaped) = one(sql, engine, &TWO);
        for field in &pipeline.schema("t").fields()[..6] {
            assert_eq!(field.data_type(), &timestamp(), "{engine:?} {}", field.name());
        }
        assert_eq!(
            text(&shaped, &["hour", "week", "month", "now", "cast_text", "typed", "today"]),
            [
                "2026-03-17T12:00:00Z|2026-03-16T00:00:00Z|2026-03-01T00:00:00Z|2026-03-18T00:00:00Z|2026-03-17T12:00:00Z|2026-03-17T12:00:00Z|2026-03-18",
                "2026-03-17T13:00:00Z|2026-03-16T00:00:00Z|2026-03-01T00:00:00Z|2026-03-18T00:00:00Z|2026-03-17T12:00:00Z|2026-03-17T12:00:00Z|2026-03-18",
            ],
            "{engine:?}"
        );
    }
    let problem = append_problem("SELECT date_trunc('fortnight', updated_at) AS x FROM batch");
    assert_eq!((problem.message.as_str(), problem.column), ("`date_trunc` wants a unit and a time", 8));
}

#[test]
fn the_interval_of_a_backfill_can_be_named_and_a_live_batch_has_none() {
    let sql =
        "SELECT :date AS day, :range_start AS first, :range_end AS after, updated_at < :range_end AS inside FROM batch";
    let at = |text: &str| DateTime::parse_from_rfc3339(text).expect("valid").to_utc();
    for engine in BOTH {
        let table = with_engine(table("t", "source", Some(sql), WriteSpec::Append), engine);
        let pipeline = compiled(vec![table]);
        let types: Vec<_> = pipeline.schema("t").fields().iter().map(|field| field.data_type().clone()).collect();
        assert_eq!(types, [DataType::Date32, timestamp(), timestamp(), DataType::Boolean], "{engine:?}");
        let shown = |context: &BatchContext| {
            let shaped = pipeline.shape("t", &inputs(vec![rows(0, &TWO[..1])]), context).unwrap();
            text(&shaped, &["day", "first", "after", "inside"])
        };
        assert_eq!(shown(&context()), ["2026-03-18|||"], "{engine:?}");
        let interval = Interval { start: at("2026-03-17T00:00:00Z"), end: at("2026-03-18T00:00:00Z") };
        let context = BatchContext { interval: Some(interval), ..context() };
        assert_eq!(shown(&context), ["2026-03-17|2026-03-17T00:00:00Z|2026-03-18T00:00:00Z|true"], "{engine:?}");
    }
    let problem = append_problem("SELECT :dat AS x FROM batch");
    assert_eq!(problem.message, "nothing is called `:dat` here");
    assert_eq!(
        problem.help.as_deref(),
        Some("did you mean `:date`? there are: :batch_time, :date, :range_start, :range_end")
    );
}

#[test]
fn a_join_with_a_lookup_keeps_source_order_and_lineage() {
    let sql = "SELECT o.order_id, s.city, lower(o.status) AS status, o.updated_at FROM batch o \
               LEFT JOIN stores s ON o.store_id = s.store_id";
    for engine in BOTH {
        let pipeline =
            compiled(vec![with_engine(table("silver.orders", "source", Some(sql), upsert("order_id")), engine)]);
        assert_eq!(
            types(&pipeline, "silver.orders"),
            [
                "order_id Utf8",
                "city Utf8",
                "status Utf8",
                "updated_at Timestamp(µs, \"UTC\")",
                "_topic Utf8",
                "_partition Int32",
                "_offset Int64"
            ]
        );
        assert!(!pipeline.schema("silver.orders").field(0).is_nullable());
        assert_eq!(pipeline.reads("silver.orders").lookups, ["stores"]);
        let batch = [
            (Some("a"), "s2", 1, 1, 0, "u"),
            (Some("b"), "s1", 1, 1, 0, "u"),
            (None, "s1", 1, 1, 0, "u"),
            (Some("c"), "s9", 1, 1, 0, "u"),
        ];
        let shaped = pipeline.shape("silver.orders", &inputs(vec![rows(5, &batch)]), &context()).unwrap();
        assert_eq!(
            text(&shaped, &["order_id", "city", "status", "_offset"]),
            ["a|Oslo|paid|5", "b|Bergen|paid|6", "c||paid|8"]
        );
        assert_eq!(
            (shaped.dead.len(), shaped.dead[0].rule.as_str(), shaped.dead[0].stage),
            (1, "null_key", Stage::Key)
        );
        assert_eq!(
            shaped.dead[0].coordinates,
            Some(Coordinates { topic: "orders.v1".into(), partition: 0, offset: 7 })
        );
    }
}

#[test]
fn append_tables_do_not_store_lineage() {
    let (pipeline, shaped) = one("SELECT order_id FROM batch", Engine::Polars, &TWO);
    assert_eq!(types(&pipeline, "t"), ["order_id Utf8"]);
    assert_eq!(shaped.rows[0].num_columns(), 1);
}

#[test]
fn deletes_are_flagged_dropped_columns_are_not_stored_and_deletes_are_not_checked() {
    let mut t = table(
        "silver.orders",
        "source",
        Some("SELECT order_id, quantity, updated_at, op FROM batch"),
        upsert("order_id"),
    );
    t.write = WriteSpec::Upsert {
        key: vec!["order_id".into()],
        order_by: vec!["updated_at".into()],
        delete_when: Some("op = 'd'".into()),
        drop: vec!["op".into()],
    };
    t.expect = vec![rule("many", "quantity > 1", Action::Drop)];
    for engine in BOTH {
        let pipeline = compiled(vec![with_engine(t.clone(), engine)]);
        assert!(pipeline.schema("silver.orders").column_with_name("op").is_none());
        let batch = [(Some("a"), "s1", 1, 2, 0, "u"), (Some("b"), "s1", 1, 0, 0, "d"), (Some("c"), "s1", 1, 1, 0, "u")];
        let shaped = pipeline.shape("silver.orders", &inputs(vec![rows(0, &batch)]), &context()).unwrap();
        assert_eq!(text(&shaped, &["order_id", DELETE_FLAG]), ["a|false", "b|true"]);
        assert_eq!((shaped.dropped, shaped.broken["many"]), (1, 1));
        let definitions = table_definitions(&pipeline, &Maker { pipeline: "orders".into(), pipeline_id: "x".into() });
        assert!(
            matches!(&definitions[0].write, WriteMode::Upsert { delete_flag: Some(flag), .. } if flag == DELETE_FLAG)
        );
        assert_eq!(definitions[1].name, "dlq.orders");
    }
}

#[test]
fn expectations_warn_drop_quarantine_and_fail() {
    let mut t = table("t", "source", Some("SELECT order_id, quantity FROM batch"), WriteSpec::Append);
    t.expect = vec![
        rule("warned", "quantity > 5", Action::Warn),
        rule("positive", "quantity > 0", Action::Quarantine),
        rule("not_odd", "quantity % 2 = 0", Action::Quarantine),
        rule("known", "order_id IS NOT NULL", Action::Drop),
        rule("fine", "quantity < 100", Action::Fail),
    ];
    let batch = [
        (Some("a"), "s", 1, 2, 0, "u"),
        (Some("b"), "s", 1, -1, 0, "u"),
        (Some("c"), "s", 1, 3, 0, "u"),
        (None, "s", 1, 4, 0, "u"),
    ];
    for engine in BOTH {
        let pipeline = compiled(vec![with_engine(t.clone(), engine)]);
        let shaped = pipeline.shape("t", &inputs(vec![rows(0, &batch)]), &context()).unwrap();
        assert_eq!(text(&shaped, &["order_id"]), ["a"]);
        let broken: Vec<(&str, u64)> = shaped.broken.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!(broken, [("fine", 0), ("known", 1), ("not_odd", 2), ("positive", 1), ("warned", 4)]);
        assert_eq!(shaped.dropped, 1);
        let dead: Vec<(&str, i64)> =
            shaped.dead.iter().map(|d| (d.rule.as_str(), d.coordinates.as_ref().unwrap().offset)).collect();
        assert_eq!(dead, [("positive", 1), ("not_odd", 2)]);
        assert!(shaped.dead[0].row_json.as_ref().unwrap().contains("\"quantity\":-1"));
        let error =
            pipeline.shape("t", &inputs(vec![rows(0, &[(Some("z"), "s", 1, 200, 0, "u")])]), &context()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(error.to_string().starts_with("1 rows of t break the rule fine"), "{error}");
    }
    let mut spec = spec(vec![t]);
    spec.dead_letters = None;
    let pipeline = compile(&spec, &lookups()).ok().unwrap();
    let error = pipeline.shape("t", &inputs(vec![rows(0, &batch)]), &context()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
}

#[test]
fn pass_through_keeps_rows_nullability_and_checks() {
    let bronze = table("bronze.orders", "source", None, WriteSpec::Append);
    let pipeline = compiled(vec![bronze.clone()]);
    assert_eq!(pipeline.schema("bronze.orders"), decode::row_schema(&source()));
    let batch = rows(0, &TWO);
    let shaped = pipeline.shape("bronze.orders", &inputs(vec![batch.clone()]), &context()).unwrap();
    assert_eq!(shaped.rows, std::slice::from_ref(&batch));
    let mut checked = bronze;
    checked.expect = vec![rule("big", "amount > 5", Action::Quarantine)];
    for engine in BOTH {
        let pipeline = compiled(vec![with_engine(checked.clone(), engine)]);
        let shaped = pipeline.shape("bronze.orders", &inputs(vec![batch.clone()]), &context()).unwrap();
        assert_eq!(shaped.rows, [batch.slice(0, 1)]);
        assert_eq!(shaped.dead.len(), 1);
    }
}

#[test]
fn gold_reads_the_whole_silver_table() {
    let silver = table(
        "silver.orders",
        "source",
        Some("SELECT order_id, store_id, amount, updated_at FROM batch"),
        upsert("order_id"),
    );
    let sql = "SELECT store_id, count(*) AS orders, sum(silver.orders.amount) AS revenue FROM silver.orders \
               WHERE orders.amount > 1 GROUP BY store_id";
    let gold = table("gold.revenue", "silver.orders", Some(sql), refresh("store_id"));
    for engine in BOTH {
        let pipeline = compiled(vec![silver.clone(), with_engine(gold.clone(), engine)]);
        let reads = pipeline.reads("gold.revenue");
        assert!(!reads.batch);
        assert_eq!(reads.tables["silver.orders"], ["store_id", "amount", "_topic", "_partition", "_offset"]);
        let mut inputs = inputs(vec![]);
        let stored = conform(&[rows(0, &TWO)], &pipeline.schema("silver.orders")).unwrap();
        inputs.tables.insert("silver.orders".into(), Arc::new(stored));
        let shaped = pipeline.shape("gold.revenue", &inputs, &context()).unwrap();
        let mut lines = text(&shaped, &["store_id", "orders", "revenue"]);
        lines.sort();
        assert_eq!(lines, ["s1|1|7.00", "s2|1|2.50"]);
        let definitions = table_definitions(&pipeline, &Maker { pipeline: "orders".into(), pipeline_id: "x".into() });
        assert_eq!(definitions[0].watched, [vec!["store_id".to_string()]]);
    }
}

#[test]
fn ctes_unions_windows_and_stars_work() {
    for engine in BOTH {
        let (_, shaped) =
            one("WITH b AS (SELECT * FROM batch) SELECT order_id FROM b ORDER BY order_id DESC", engine, &TWO);
        assert_eq!(text(&shaped, &["order_id"]), ["o-2", "o-1"]);
        let (_, shaped) = one("SELECT order_id FROM batch UNION ALL SELECT store_id FROM batch", engine, &TWO);
        assert_eq!(text(&shaped, &["order_id"]).len(), 4);
        let (_, shaped) = one(
            "SELECT b.*, upper(op) AS x FROM batch b WHERE EXISTS (SELECT 1 FROM stores s WHERE s.store_id = b.store_id)",
            engine,
            &TWO,
        );
        assert_eq!(text(&shaped, &["order_id", "x"]), ["o-1|U", "o-2|D"]);
        let sql = "SELECT order_id, updated_at FROM batch QUALIFY row_number() OVER (PARTITION BY order_id ORDER BY updated_at DESC) = 1";
        let (_, shaped) = one(sql, engine, &[TWO[0], TWO[0], TWO[1]]);
        assert_eq!(text(&shaped, &["order_id"]), ["o-1", "o-2"]);
    }
}

#[test]
fn casts_that_fail_stop_the_batch_and_try_cast_does_not() {
    for engine in BOTH {
        let sql = "SELECT CAST(order_id AS TIMESTAMP) AS x FROM batch";
        let pipeline = compiled(vec![with_engine(table("t", "source", Some(sql), WriteSpec::Append), engine)]);
        let error = pipeline.shape("t", &inputs(vec![rows(0, &TWO)]), &context()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        let (_, shaped) =
            one("SELECT TRY_CAST(order_id AS TIMESTAMP) AS x, TRY_CAST(order_id AS INT) AS n FROM batch", engine, &TWO);
        assert_eq!(text(&shaped, &["x", "n"]), ["|", "|"]);
    }
}

#[test]
fn deletes_of_an_upstream_upsert_are_not_rows_of_the_batch() {
    let pipeline = compiled(vec![
        table("silver.orders", "source", Some("SELECT order_id, updated_at FROM batch"), upsert("order_id")),
        table("log.orders", "silver.orders", Some("SELECT order_id, _offset FROM batch"), WriteSpec::Append),
    ]);
    let rows = conform(&[rows(0, &TWO)], &pipeline.schema("silver.orders")).unwrap().remove(0);
    let mut fields: Vec<_> = rows.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(ArrowField::new(DELETE_FLAG, DataType::Boolean, false)));
    let mut columns = rows.columns().to_vec();
    columns.push(Arc::new(BooleanArray::from(vec![true, false])));
    let flagged = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    let shaped = pipeline.shape("log.orders", &inputs(vec![flagged]), &context()).unwrap();
    assert_eq!(text(&shaped, &["order_id", "_offset"]), ["o-2|1"]);
}

#[test]

fn whole_table_stars_dates_and_decimals() {
    let silver = table(
        "silver.orders",
        "source",
        Some("SELECT order_id, amount, updated_at, CAST(updated_at AS DATE) AS day FROM batch"),
        upsert("order_id"),
    );
    let star =
        table("gold.copy", "silver.orders", Some("SELECT silver.orders.* FROM silver.orders"), WriteSpec::Append);
    let none = table("gold.all", "silver.orders", None, refresh("day"));
    for engine in BOTH {
        let pipeline =
            compiled(vec![silver.clone(), with_engine(star.clone(), engine), with_engine(none.clone(), engine)]);
        assert_eq!(types(&pipeline, "gold.copy"), types(&pipeline, "silver.orders"));
        assert_eq!(types(&pipeline, "gold.all"), types(&pipeline, "silver.orders"));
        assert_eq!(pipeline.reads("gold.all").tables["silver.orders"].len(), 7);
        let sql = "SELECT sum(amount * quantity) AS total, sum(CASE WHEN op = 'd' THEN 0 ELSE quantity END) AS kept, \
                   count(*) FILTER (WHERE amount > 5) AS big, max(CAST(updated_at AS DATE)) AS day FROM batch";
        let (pipeline, shaped) = one(sql, engine, &TWO);
        assert!(
            pipeline.schema("t").field(0).data_type().to_string().starts_with("Decimal128(38, 2"),
            "{engine:?} {:?}",
            types(&pipeline, "t")
        );
        assert_eq!(text(&shaped, &["total", "kept", "big", "day"]), ["16.50|2|1|2026-03-17"], "{engine:?}");
        let (_, shaped) =
            one("SELECT order_id FROM batch WHERE CAST(updated_at AS DATE) >= '2026-03-17'", engine, &TWO);
        assert_eq!(text(&shaped, &["order_id"]), ["o-1", "o-2"], "{engine:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn pieces_shape_like_the_whole(
        quantities in prop::collection::vec(-3i32..6, 1..60),
        cut in 0usize..60,
        datafusion in any::<bool>(),
    ) {
        let sql = "SELECT o.order_id, s.city, o.quantity * 2 AS twice, o.updated_at FROM batch o \
                   LEFT JOIN stores s ON o.store_id = s.store_id WHERE o.quantity <> 1";
        let mut t = table("silver.orders", "source", Some(sql), upsert("order_id"));
        t.engine = if datafusion { Engine::DataFusion } else { Engine::Polars };
        t.expect = vec![rule("positive", "twice > 0", Action::Quarantine)];
        let pipeline = compiled(vec![t]);
        let ids: Vec<String> = (0..quantities.len()).map(|i| format!("o-{i}")).collect();
        let data: Vec<Row<'_>> = quantities.iter().zip(&ids)
            .map(|(q, id)| (Some(id.as_str()), if q % 2 == 0 { "s1" } else { "s2" }, 1, *q, 0, "u")).collect();
        let cut = cut.min(data.len());
        let columns = ["order_id", "city", "twice", "_offset"];
        let shape = |batch| pipeline.shape("silver.orders", &inputs(vec![batch]), &context()).unwrap();
        let whole = shape(rows(0, &data));
        let (first, second) = (shape(rows(0, &data[..cut])), shape(rows(cut as i64, &data[cut..])));
        let mut pieces = text(&first, &columns);
        pieces.extend(text(&second, &columns));
        prop_assert_eq!(text(&whole, &columns), pieces);
        prop_assert_eq!(whole.dead.len(), first.dead.len() + second.dead.len());
    }
}
