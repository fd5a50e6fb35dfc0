//! What is refused, when the pipeline is compiled or when rows are computed, and what the message says.

use super::*;

#[test]
fn what_delta_cannot_store_is_refused() {
    for (sql, why) in [
        ("SELECT NULL AS a FROM batch", "null in every row"),
        ("SELECT updated_at - _ingested_at AS a FROM batch", "interval"),
    ] {
        let problem = append_problem(sql);
        assert!(problem.message.starts_with("column `a`") && problem.message.contains(why), "{problem:?}");
    }
}

#[test]
fn checks_are_checked() {
    let mut t = table("t", "source", Some("SELECT order_id, quantity FROM batch"), WriteSpec::Append);
    t.expect = vec![
        rule("typo", "quantty > 0", Action::Warn),
        rule("number", "quantity + 1", Action::Warn),
        rule("total", "sum(quantity) > 3", Action::Warn),
        rule("broken", "quantity >", Action::Warn),
    ];
    let found = problems(vec![t]);
    let messages: Vec<String> =
        found.iter().map(|p| format!("{} {}:{} {}", p.field, p.line, p.column, p.message)).collect();
    assert_eq!(messages[0], "expect.typo.check 1:1 unknown column `quantty`");
    assert_eq!(messages[1], "expect.number.check 1:1 must be a condition (true or false), not Int32");
    assert_eq!(messages[2], "expect.total.check 1:1 an aggregate looks at more than one row");
    assert!(messages[3].starts_with("expect.broken.check"), "{}", messages[3]);
}

#[test]
fn wrong_uses_of_write_modes_are_refused() {
    let found = problems(vec![table(
        "t",
        "source",
        Some("SELECT store_id, count(*) AS n FROM batch GROUP BY store_id"),
        upsert("store_id"),
    )]);
    assert!(
        found[0].message.contains("counts a changed row twice") && found[0].help.as_ref().unwrap().contains("refresh")
    );
    let silver = table("silver.orders", "source", None, upsert("order_id"));
    let gold = table(
        "gold.g",
        "silver.orders",
        Some("SELECT store_id, count(*) AS n FROM batch GROUP BY store_id"),
        refresh("store_id"),
    );
    assert!(problems(vec![silver.clone(), gold])[0].message.contains("`batch` holds only this batch's rows"));
    let distinct = table("t", "source", Some("SELECT DISTINCT order_id, updated_at FROM batch"), upsert("order_id"));
    assert!(problems(vec![distinct])[0].help.as_ref().unwrap().contains("_topic, _partition and _offset"));
    let mut wrong = silver;
    wrong.partition_by = vec!["order_dat".into()];
    wrong.write = upsert("ordr_id");
    let found = problems(vec![wrong]);
    assert_eq!(found.iter().map(|p| p.field.clone()).collect::<Vec<_>>(), [Field::Key, Field::PartitionBy]);
    assert!(found[0].help.as_ref().unwrap().starts_with("did you mean `order_id`?"));
}

#[test]
fn type_errors_are_found_without_data() {
    for engine in BOTH {
        for sql in [
            "SELECT upper(quantity + 1) AS x FROM batch WHERE updated_at > quantity",
            "SELECT op AND quantity AS x FROM batch",
        ] {
            let found = problems(vec![with_engine(table("t", "source", Some(sql), WriteSpec::Append), engine)]);
            assert_eq!(found.len(), 1, "{found:?}");
        }
        let sql = "SELECT order_id FROM batch WHERE CAST(updated_at AS DATE) = DATE '2026-03-17' AND amount * 2 > 10 \
                   AND updated_at > :batch_time - INTERVAL '2 days'";
        let (_, shaped) = one(sql, engine, &TWO);
        assert_eq!(text(&shaped, &["order_id"]), ["o-1"], "{engine:?}");
    }
}

fn silver() -> TableSpec {
    let sql = "SELECT order_id, store_id, amount, updated_at FROM batch";
    table("silver.orders", "source", Some(sql), upsert("order_id"))
}

fn gold() -> TableSpec {
    let sql = "SELECT store_id, count(*) AS orders FROM silver.orders GROUP BY store_id";
    table("gold.stores", "silver.orders", Some(sql), refresh("store_id"))
}

/// The only problem of some tables.
fn problem(tables: Vec<TableSpec>) -> SqlProblem {
    let mut found = problems(tables);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

#[test]
fn a_refresh_reads_the_table_that_it_follows() {
    let other = TableSpec { name: "silver.other".into(), ..silver() };
    for engine in BOTH {
        for sql in [
            "SELECT store_id, count(*) AS n FROM silver.other GROUP BY store_id",
            "SELECT store_id, count(*) AS n FROM stores GROUP BY store_id",
        ] {
            let gold = table("gold.stores", "silver.orders", Some(sql), refresh("store_id"));
            let found = problem(vec![silver(), other.clone(), with_engine(gold, engine)]);
            assert_eq!((found.table.as_str(), &found.field), ("gold.stores", &Field::Sql));
            assert!(found.message.contains("`silver.orders`"), "{found:?}");
        }
    }
    compiled(vec![silver(), gold()]);
}

#[test]
fn only_a_refresh_table_is_fed_from_a_refresh_table() {
    for write in [WriteSpec::Append, upsert("store_id")] {
        let found = problem(vec![silver(), gold(), table("log.stores", "gold.stores", None, write)]);
        assert_eq!((found.table.as_str(), &found.field), ("log.stores", &Field::From));
        assert!(found.message.starts_with("from a refresh table only another refresh table can be fed"), "{found:?}");
    }
    compiled(vec![silver(), gold(), table("gold.copy", "gold.stores", None, refresh("store_id"))]);
}

#[test]
fn a_refresh_table_sets_no_rows_aside() {
    let mut gold = gold();
    gold.expect =
        vec![rule("known", "store_id IS NOT NULL", Action::Quarantine), rule("any", "orders > 0", Action::Fail)];
    let found = problem(vec![silver(), gold.clone()]);
    assert_eq!(found.field, Field::Expect("known".into()));
    assert!(found.help.unwrap().starts_with("put the rule on the upstream table"));
    gold.expect[0].action = Action::Drop;
    compiled(vec![silver(), gold]);
}

#[test]
fn groups_are_passed_through_in_their_own_type() {
    let sql = "SELECT CAST(o.updated_at AS DATE) AS updated_at, o.amount FROM silver.orders o";
    let found = problem(vec![silver(), table("gold.days", "silver.orders", Some(sql), refresh("updated_at"))]);
    assert_eq!(found.field, Field::By);
    assert!(found.message.contains("groups would not match"), "{found:?}");
}

#[test]
fn bytes_cannot_name_a_partition() {
    let mut bronze = table("bronze.orders", "source", None, WriteSpec::Append);
    assert_eq!(
        compiled(vec![bronze.clone()]).schema("bronze.orders").field_with_name("_key").unwrap().data_type(),
        &DataType::Binary
    );
    bronze.partition_by = vec!["_key".into()];
    let found = problem(vec![bronze]);
    assert_eq!(found.field, Field::PartitionBy);
    assert!(found.message.contains("Binary"), "{found:?}");
}

#[test]
fn empty_text_in_a_partition_column_is_set_aside_unless_the_row_is_a_delete() {
    let mut silver = silver();
    silver.sql = Some("SELECT order_id, store_id, updated_at, op FROM batch".into());
    silver.partition_by = vec!["store_id".into()];
    silver.write = WriteSpec::Upsert {
        key: vec!["order_id".into()],
        order_by: vec!["updated_at".into()],
        delete_when: Some("op = 'd'".into()),
        drop: vec!["op".into()],
    };
    let batch = [(Some("a"), "s1", 1, 2, 0, "u"), (Some("b"), "", 1, 2, 0, "u"), (Some("c"), "", 1, 2, 0, "d")];
    for engine in BOTH {
        let pipeline = compiled(vec![with_engine(silver.clone(), engine)]);
        let shaped = pipeline.shape("silver.orders", &inputs(vec![rows(0, &batch)]), &context()).unwrap();
        assert_eq!(text(&shaped, &["order_id"]), ["a", "c"]);
        assert_eq!(shaped.dead.len(), 1);
        let dead = &shaped.dead[0];
        assert_eq!((dead.stage, dead.rule.as_str()), (Stage::Key, "empty_partition"));
        assert_eq!(dead.coordinates.as_ref().unwrap().offset, 1);
    }
    let mut spec = spec(vec![silver]);
    spec.dead_letters = None;
    let pipeline = compile(&spec, &lookups()).ok().unwrap();
    let error = pipeline.shape("silver.orders", &inputs(vec![rows(0, &batch)]), &context()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.report().contains("store_id") && error.report().contains("nothing of this batch was written"));
}

#[test]
fn a_refresh_that_fails_does_not_claim_that_nothing_was_written() {
    let fails = |gold: TableSpec, batch: &[Row<'_>]| {
        let pipeline = compiled(vec![silver(), gold]);
        let mut inputs = inputs(vec![]);
        let stored = conform(&[rows(0, batch)], &pipeline.schema("silver.orders")).unwrap();
        inputs.tables.insert("silver.orders".into(), Arc::new(stored));
        let error = pipeline.shape("gold.stores", &inputs, &context()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        let told = error.help_lines().join("\n");
        assert!(told.contains("tables upstream of it may already carry this batch"), "{told}");
        assert!(!told.contains("quarantine"), "{told}");
        error.to_string()
    };
    let partitioned = TableSpec { partition_by: vec!["store_id".into()], ..gold() };
    let error = fails(partitioned, &[(Some("a"), "s1", 1, 2, 0, "u"), (Some("b"), "", 1, 2, 0, "u")]);
    assert!(error.contains("partition column `store_id`"), "{error}");
    let checked = TableSpec { expect: vec![rule("many", "orders > 1", Action::Fail)], ..gold() };
    let error = fails(checked, &TWO);
    assert!(error.contains("break the rule many"), "{error}");
}
