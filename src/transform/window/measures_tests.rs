//! Measures taken apart, put together again by both engines, and refused.

use std::sync::Arc;

use arrow::array::{AsArray, Float64Array, Int64Array};
use arrow::datatypes::{DataType, Field, Float64Type, Schema};
use arrow::record_batch::RecordBatch;

use super::*;
use crate::config::spec::Engine;
use crate::transform::engine::{Job, NamedRows, run};

fn one(sql: &str) -> Measures {
    let measures = [("m".to_string(), sql.to_string())];
    parse(&measures, &["store", "window_start"]).unwrap_or_else(|problems| panic!("{sql}: {problems:?}"))
}

#[test]
fn aggregates_are_taken_out_and_what_is_above_them_stays() {
    for (sql, arguments, functions, result) in [
        ("count(*)", &[][..], &[(Kind::CountAll, None)][..], "_agg0"),
        ("COUNT(1)", &[], &[(Kind::CountAll, None)], "_agg0"),
        ("count(x)", &["x"], &[(Kind::Count, Some(0))], "_agg0"),
        ("count(DISTINCT x)", &["x"], &[(Kind::CountDistinct, Some(0))], "_agg0"),
        ("approx_distinct(x)", &["x"], &[(Kind::ApproxCountDistinct, Some(0))], "_agg0"),
        ("round(avg(x), 2)", &["x"], &[(Kind::Avg, Some(0))], "round(_agg0, 2)"),
        ("max(x) - min(x)", &["x"], &[(Kind::Max, Some(0)), (Kind::Min, Some(0))], "_agg0 - _agg1"),
        ("sum(x) + sum(x)", &["x"], &[(Kind::Sum, Some(0))], "_agg0 + _agg0"),
        ("approx_quantile(a.b, 0.95)", &["a.b"], &[(Kind::ApproxQuantile(0.95), Some(0))], "_agg0"),
        ("concat(store, '/', last(x))", &["x"], &[(Kind::Last, Some(0))], "concat(store, '/', _agg0)"),
        ("count(*) filter (where x > 1)", &["CASE WHEN x > 1 THEN 1 END"], &[(Kind::Count, Some(0))], "_agg0"),
        ("sum(y) filter (where x)", &["CASE WHEN x THEN y END"], &[(Kind::Sum, Some(0))], "_agg0"),
        (
            "sum(case when x = 'c' then 1 else 0 end) * 1.0 / count(*)",
            &["CASE WHEN x = 'c' THEN 1 ELSE 0 END"],
            &[(Kind::Sum, Some(0)), (Kind::CountAll, None)],
            "CAST(_agg0 * 1.0 AS DOUBLE) / NULLIF(CAST(_agg1 AS DOUBLE), 0)",
        ),
        ("first(x / 2)", &["CAST(x AS DOUBLE) / NULLIF(CAST(2 AS DOUBLE), 0)"], &[(Kind::First, Some(0))], "_agg0"),
    ] {
        let measures = one(sql);
        assert_eq!(measures.arguments, arguments, "{sql}");
        let found: Vec<_> = measures.functions.iter().map(|function| (function.kind, function.argument)).collect();
        assert_eq!(found, functions, "{sql}");
        assert_eq!(measures.results, [("m".to_string(), result.to_string())], "{sql}");
    }
}

#[test]
fn measures_share_arguments_and_functions() {
    let measures = [("a", "sum(x)"), ("b", "avg(x)"), ("c", "sum(x) / count(*)")]
        .map(|(name, sql)| (name.to_string(), sql.to_string()));
    let parsed = parse(&measures, &[]).unwrap();
    assert_eq!(parsed.arguments, ["x"]);
    let names: Vec<_> = parsed.functions.iter().map(|function| (function.kind, function.measure.as_str())).collect();
    assert_eq!(names, [(Kind::Sum, "a"), (Kind::Avg, "b"), (Kind::CountAll, "c")]);
}

#[test]
fn what_cannot_be_a_measure_is_refused_where_it_stands() {
    for (sql, column, message, help) in [
        ("cuont(*)", 1, "no aggregate of windows is called `cuont`", "did you mean `count`?"),
        ("1 + smu(x)", 5, "no aggregate of windows is called `smu`", "did you mean `sum`?"),
        ("median(x)", 1, "no aggregate of windows is called `median`", "there are: count, sum"),
        ("sum(max(x))", 5, "an aggregate inside of `sum`", "combine them outside"),
        ("sum(x) filter (where count(*) > 1)", 22, "an aggregate inside of `sum`", "combine them outside"),
        ("sum(x) / y", 10, "`y` differs from row to row", "such as last(y)"),
        ("sum(x) || stor", 11, "`stor` differs from row to row", "did you mean `store`?"),
        ("store", 1, "a measure must aggregate", "such as count(*)"),
        ("1 + 2", 1, "a measure must aggregate", "such as count(*)"),
        ("sum(distinct x)", 1, "`sum` does not take DISTINCT", "count(distinct x)"),
        ("count(distinct x, y)", 1, "count(distinct …) takes one value", "concat"),
        ("count(distinct *)", 1, "`count` does not take these arguments", "count(distinct x)"),
        ("sum(*)", 1, "`sum` does not take these arguments", "sum(x)"),
        ("sum(x, y)", 1, "`sum` does not take these arguments", "sum(x)"),
        ("approx_quantile(x)", 1, "`approx_quantile` does not take these arguments", "0.95"),
        ("approx_quantile(x, 95)", 20, "which quantile must be a number from 0 to 1", "median"),
        ("approx_quantile(x, y)", 20, "which quantile must be a number from 0 to 1", "median"),
        ("last(x ORDER BY y)", 1, "`last` takes no such clause", "event time"),
        ("first(x) RESPECT NULLS", 1, "aggregates of windows skip nulls", "leave"),
        ("sum(x) OVER ()", 1, "OVER has no place in a measure", "leave OVER out"),
        ("sum(x) + (SELECT 1)", 11, "a measure cannot read other tables", "join"),
        ("sum(x) x", 8, "syntax error", ""),
    ] {
        let problems = parse(&[("m".to_string(), sql.to_string())], &["store"]).expect_err(sql);
        let [problem] = problems.as_slice() else { panic!("{sql}: {problems:?}") };
        assert!(problem.finding.message.contains(message), "{sql}: {problem:?}");
        assert!(problem.finding.help.as_deref().unwrap_or_default().contains(help), "{sql}: {problem:?}");
        assert_eq!((problem.finding.place.line, problem.finding.place.column), (1, column), "{sql}: {problem:?}");
    }
}

#[test]
fn every_measure_with_a_problem_is_named() {
    let measures = [("a", "sum(x)"), ("b", "y"), ("c", "cuont(*)")].map(|(n, s)| (n.to_string(), s.to_string()));
    let problems = parse(&measures, &[]).expect_err("two problems");
    assert_eq!(problems.iter().map(|problem| problem.measure.as_str()).collect::<Vec<_>>(), ["b", "c"]);
}

#[test]
fn a_quotient_is_a_double_and_null_over_nothing_in_both_engines() {
    let schema = Arc::new(Schema::new(vec![
        Field::new("_agg0", DataType::Int64, true),
        Field::new("_agg1", DataType::Int64, true),
    ]));
    let columns = |a: Vec<Option<i64>>| Arc::new(Int64Array::from(a)) as _;
    let rows = RecordBatch::try_new(
        schema.clone(),
        vec![columns(vec![Some(1), Some(7), Some(3), None]), columns(vec![Some(2), Some(2), Some(0), Some(2)])],
    )
    .unwrap();
    let result = one("sum(x) / count(x)").results.remove(0).1;
    let computed = Arc::new(Schema::new(vec![Field::new("m", DataType::Float64, true)]));
    for engine in [Engine::Polars, Engine::DataFusion] {
        let inputs = vec![NamedRows { name: "w".into(), schema: schema.clone(), rows: vec![rows.clone()] }];
        let query = format!("SELECT {result} AS m FROM w");
        let found = run(engine, Job { inputs, query: &query, computed: &computed, checks: None }).unwrap();
        let found = arrow::compute::concat_batches(&computed, &found).unwrap();
        let expected = Float64Array::from(vec![Some(0.5), Some(3.5), None, None]);
        assert_eq!(found.column(0).as_primitive::<Float64Type>(), &expected, "{engine:?}: {query}");
    }
}
