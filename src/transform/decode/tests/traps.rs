//! Each way in which a record can be bad, alone among good neighbours.

use super::*;
use arrow::array::{Array, AsArray};
use arrow::datatypes::{Date32Type, Int64Type};

/// Decodes `bad` between two good records: the neighbours must come out as if it were not there.
fn among_good(spec: &SourceSpec, bad: &[u8]) -> (String, String) {
    let (before, after) = (r#"{"id":"before","tags":["x"]}"#, r#"{"id":"after","address":{"zip":1}}"#);
    let batch = records(0, &[Some(before.as_bytes()), Some(bad), Some(after.as_bytes())]);
    let decoded = decode_records(spec, &[batch]);
    let alone = decode(spec, &[before, after]);
    assert_eq!(shown(spec, &decoded), shown(spec, &alone), "neighbours of {}", String::from_utf8_lossy(bad));
    assert_eq!(decoded.dead.len(), 1, "{}", String::from_utf8_lossy(bad));
    let dead = &decoded.dead[0];
    assert_eq!(dead.coordinates.as_ref().map(|c| (c.topic.as_str(), c.partition, c.offset)), Some(("t", 0, 1)));
    assert_eq!((dead.stage, dead.table.as_str()), (crate::transform::Stage::Decode, "source"));
    assert!(dead.error.chars().count() < 260 && !dead.error.contains('\n'), "{}", dead.error);
    (dead.rule.clone(), dead.error.clone())
}

#[test]
fn a_bad_record_costs_one_dead_letter_and_never_a_neighbour() {
    let deep = format!("{{\"id\":\"a\",\"x\":{}{}}}", "[".repeat(100), "]".repeat(100));
    let very_deep = "[".repeat(1_000_000);
    let deep_object = "{\"x\":".repeat(1_000_000);
    let cases: Vec<(&[u8], &str)> = vec![
        (b"not json", "malformed"),
        (b"{\"id\":\"a\"", "malformed"),
        (b"{\"id\":\"a", "malformed"),
        (b"{\"id\":\"a\",}", "malformed"),
        (b"{id:1}", "malformed"),
        (b"{\"id\":\"a\" \"b\":1}", "malformed"),
        (b"{\"id\":\"\\ud800\"}", "malformed"),
        (b"{\"id\":\"a\nb\"}", "malformed"),
        (b"{\"id\":\"a\",\"double\":NaN}", "malformed"),
        (b"{\"id\":\"a\",\"double\":-Infinity}", "malformed"),
        (b"{\"id\":\"a\",\"int\":01}", "malformed"),
        (b"} , {", "malformed"),
        (b"\x00\x00\x00\x00\x01{\"id\":\"a\"}", "malformed"),
        ("\u{feff}{\"id\":\"a\"}".as_bytes(), "malformed"),
        (b"{\"id\":\"a\"},{\"id\":\"b\"}", "trailing_data"),
        (b"{\"id\":\"a\"}\n{\"id\":\"b\"}", "trailing_data"),
        (b"{\"id\":\"a\"} } , {", "trailing_data"),
        (b"1,2", "not_an_object"),
        (b"[{\"id\":\"a\"}]", "not_an_object"),
        (b"\"text\"", "not_an_object"),
        (b"null", "not_an_object"),
        (b"", "empty"),
        (b" \n\t ", "empty"),
        (b"{\"id\":\"\xff\"}", "invalid_utf8"),
        (b"{\"id\":\"\xed\xa0\x80\"}", "invalid_utf8"),
        (deep.as_bytes(), "too_deep"),
        (very_deep.as_bytes(), "too_deep"),
        (deep_object.as_bytes(), "too_deep"),
        (b"{}", "missing_required"),
        (b"{\"id\":null}", "missing_required"),
        (b"{\"id\":\"a\",\"address\":{\"city\":\"x\"}}", "missing_required"),
        (b"{\"id\":\"a\",\"items\":[{\"zip\":1},{\"zip\":null}]}", "missing_required"),
        (b"{\"id\":\"a\",\"id\":\"b\"}", "duplicate_field"),
        (b"{\"id\":\"a\",\"int\":null,\"int\":1}", "duplicate_field"),
        (b"{\"id\":\"a\",\"address\":{\"zip\":1,\"zip\":2}}", "duplicate_field"),
        (b"{\"id\":\"a\",\"address\":{\"city\":\"x\",\"zip\":1},\"tags\":[\"t\"],\"int\":\"late\"}", "type_mismatch"),
    ];
    let spec = spec(every_type());
    for (bad, rule) in cases {
        let (found, error) = among_good(&spec, bad);
        assert_eq!(found, rule, "{error}");
    }
}

#[test]
fn a_value_that_does_not_fit_is_never_null_and_never_changed() {
    let spec = spec(every_type());
    let cases = [
        ("id", "1", "type_mismatch"),
        ("id", "true", "type_mismatch"),
        ("id", "{}", "type_mismatch"),
        ("id", "[\"a\"]", "type_mismatch"),
        ("amount", "12.345", "out_of_range"),
        ("amount", "100000000", "out_of_range"),
        ("amount", "1e400000000000000000000", "out_of_range"),
        ("amount", "\"seven\"", "type_mismatch"),
        ("amount", "\" 7\"", "type_mismatch"),
        ("amount", "true", "type_mismatch"),
        ("tiny", "128", "out_of_range"),
        ("tiny", "-129", "out_of_range"),
        ("small", "32768", "out_of_range"),
        ("int", "2147483648", "out_of_range"),
        ("int", "3.5", "out_of_range"),
        ("int", "\"3\"", "type_mismatch"),
        ("long", "9223372036854775808", "out_of_range"),
        ("long", "99999999999999999999999999999999999999999999", "out_of_range"),
        ("long", "false", "type_mismatch"),
        ("float", "1e39", "out_of_range"),
        ("double", "1e309", "out_of_range"),
        ("double", "\"1.0\"", "type_mismatch"),
        ("double", "\"NaN\"", "type_mismatch"),
        ("flag", "1", "type_mismatch"),
        ("flag", "\"true\"", "type_mismatch"),
        ("day", "\"2026-02-30\"", "out_of_range"),
        ("day", "\"17.03.2026\"", "type_mismatch"),
        ("day", "20000", "type_mismatch"),
        ("day", "\"2026-03-17T00:00:00Z\"", "type_mismatch"),
        ("at", "\"2026-03-17\"", "type_mismatch"),
        ("at", "\"2026-03-17T12:00:00\"", "type_mismatch"),
        ("at", "1773748800", "type_mismatch"),
        ("epoch", "1773748800000000000", "out_of_range"),
        ("raw", "\"not base64!\"", "type_mismatch"),
        ("address", "\"x\"", "type_mismatch"),
        ("address", "[]", "type_mismatch"),
        ("tags", "{}", "type_mismatch"),
        ("tags", "[1]", "type_mismatch"),
    ];
    for (field, value, rule) in cases {
        let others = if field == "id" { "" } else { "\"id\":\"a\"," };
        let (found, error) = among_good(&spec, format!("{{{others}\"{field}\":{value}}}").as_bytes());
        assert_eq!(found, rule, "{field}: {value}: {error}");
        assert!(error.starts_with(field), "{error}");
    }
}

#[test]
fn an_error_names_field_type_and_value_and_is_short() {
    let spec = spec(every_type());
    let (_, error) = among_good(&spec, br#"{"id":"a","amount":12.345}"#);
    assert_eq!(error, "amount: `12.345` is out of range for decimal(10,2): has more decimals than the column");
    let (_, error) = among_good(&spec, br#"{"id":"a","items":[{"zip":1},{"zip":"x"}]}"#);
    assert_eq!(error, "items[1].zip: expected int, found `\"x\"` (a text)");
    let (_, error) = among_good(&spec, format!(r#"{{"id":"a","int":"{}"}}"#, "secret".repeat(1000)).as_bytes());
    assert!(error.len() < 160, "{error}");
}

#[test]
fn good_values_are_exact() {
    let spec = spec(every_type());
    let decoded = decode(
        &spec,
        &[
            r#"{"id":"ä\u00e9\n","amount":12.30,"tiny":-128,"small":3.0,"int":1e3,"long":-9223372036854775808,"float":0.1,
               "double":1e-400,"flag":true,"day":"2024-02-29","at":"2026-03-17T14:00:00.123456789+02:00",
               "epoch":1773748800000.5,"raw":"//79","address":{"zip":7},"tags":["a",null],"items":[null,{"city":"c","zip":1}]}"#,
            r#" {"amount":"7.00","id":"" , "epoch":"1969-12-31T23:59:59.9999999Z"} "#,
            r#"{"id":"e","amount":-1e2,"tags":[],"address":null,"epoch":-0.5}"#,
        ],
    );
    assert_eq!(rules(&decoded), []);
    assert_eq!(
        shown(&spec, &decoded),
        [
            r#"{"id":"äé\n","amount":"12.30","tiny":-128,"small":3,"int":1000,"long":-9223372036854775808,"float":0.1,"double":0.0,"flag":true,"day":"2024-02-29","at":"2026-03-17T12:00:00.123456Z","epoch":"2026-03-17T12:00:00.000500Z","raw":"//79","address":{"city":null,"zip":7},"tags":["a",null],"items":[null,{"city":"c","zip":1}],"_rescued":null}"#,
            r#"{"id":"","amount":"7.00","tiny":null,"small":null,"int":null,"long":null,"float":null,"double":null,"flag":null,"day":null,"at":null,"epoch":"1969-12-31T23:59:59.999999Z","raw":null,"address":null,"tags":null,"items":null,"_rescued":null}"#,
            r#"{"id":"e","amount":"-100.00","tiny":null,"small":null,"int":null,"long":null,"float":null,"double":null,"flag":null,"day":null,"at":null,"epoch":"1969-12-31T23:59:59.999500Z","raw":null,"address":null,"tags":[],"items":null,"_rescued":null}"#,
        ]
    );
}

#[test]
fn large_records_pass_until_the_limit() {
    let spec = spec(vec![column("id", DataType::Utf8)]);
    let fits = format!("{{\"id\":\"{}\"}}", "x".repeat(MAX_VALUE_BYTES - 9));
    let above = format!("{{\"id\":\"{}\"}}", "x".repeat(20 << 20));
    let decoded = decode(&spec, &[&fits, &above, "{\"id\":\"a\"}"]);
    assert_eq!(rules(&decoded), [(1, "too_large")]);
    assert_eq!(joined(&spec, &decoded).num_rows(), 2);
}

#[test]
fn unknown_fields_are_rescued_in_their_exact_text() {
    let spec = spec(every_type());
    let record = r#"{"new":1.50e0 ,"id":"a","o":{ "x" : [1, 2]},"address":{"zip":1,"zip\"4":"\u0041"},"items":[{"zip":1,"n":null}]}"#;
    let rows = joined(&spec, &decode(&spec, &[record]));
    let rescued = rows.column_by_name("_rescued").expect("present").as_string::<i32>();
    let expected = r#"{"new":1.50e0,"o":{ "x" : [1, 2]},"address.zip\"4":"\u0041","items[0].n":null}"#;
    assert_eq!(rescued.value(0), expected);
}

#[test]
fn unknown_fields_can_be_added_refused_or_left_out() {
    let mut spec = spec(vec![column("id", DataType::Utf8)]);
    let values = [r#"{"id":"a","z":"t\n","b":{"x": 1}}"#, r#"{"id":"b","c":null,"a":1.0}"#, r#"{"id":"c"}"#];

    spec.schema_drift = SchemaDrift::Evolve;
    let decoded = decode(&spec, &values);
    assert_eq!(
        shown(&spec, &decoded),
        [
            r#"{"id":"a","a":null,"b":"{\"x\": 1}","z":"t\n"}"#,
            r#"{"id":"b","a":"1.0","b":null,"z":null}"#,
            r#"{"id":"c","a":null,"b":null,"z":null}"#
        ]
    );
    let schema = decoded.rows[0].schema();
    assert_eq!(&schema.fields()[..row_schema(&spec).fields().len()], &row_schema(&spec).fields()[..]);
    let refused =
        [r#"{"id":"a","ID":1}"#, r#"{"id":"a","_offset":1}"#, r#"{"id":"a","a b":1}"#, r#"{"id":"a","x":1,"x":2}"#];
    let found = decode(&spec, &refused);
    assert_eq!(
        rules(&found),
        [(0, "unknown_field"), (1, "unknown_field"), (2, "unknown_field"), (3, "duplicate_field")]
    );

    spec.schema_drift = SchemaDrift::Fail;
    assert_eq!(rules(&decode(&spec, &values)), [(0, "unknown_field"), (1, "unknown_field")]);

    spec.schema_drift = SchemaDrift::Ignore;
    assert_eq!(shown(&spec, &decode(&spec, &values)), [r#"{"id":"a"}"#, r#"{"id":"b"}"#, r#"{"id":"c"}"#]);
    assert_eq!(rules(&decode(&spec, &[r#"{"id":"a","x":[1,}"#])), [(0, "malformed")]);
}

#[test]
fn payloads_with_data_in_their_field_names_stop_the_batch() {
    let mut spec = spec(vec![column("id", DataType::Utf8)]);
    spec.schema_drift = SchemaDrift::Evolve;
    let values: Vec<String> = (0..300).map(|i| format!("{{\"f{i}\":1}}")).collect();
    let values: Vec<_> = values.iter().map(|v| Some(v.as_bytes())).collect();
    let decoder = Decoder::new("source", &spec, chrono_tz::UTC).expect("decodable");
    let error = decoder.decode(&[records(0, &values)], &context()).expect_err("too many");
    assert_eq!(error.kind(), ErrorKind::Data);
}

#[test]
fn tombstones_are_set_aside_or_become_rows() {
    let mut columns = every_type();
    columns.retain(|c| ["id", "at", "amount"].contains(&c.name.as_str()));
    let mut spec = spec(columns);
    spec.event_time = Some("at".into());
    let batch = records(5, &[None, Some(b"{\"id\":\"x\"}"), None]);
    assert_eq!(rules(&decode_records(&spec, std::slice::from_ref(&batch))), [(5, "tombstone"), (7, "tombstone")]);

    spec.tombstones = Tombstones::Row { key: "id".into() };
    let decoded = decode_records(&spec, std::slice::from_ref(&batch));
    assert_eq!(
        shown(&spec, &decoded),
        [
            r#"{"id":"k5","amount":null,"at":"1970-01-01T00:00:01.000000Z","_rescued":null}"#,
            r#"{"id":"x","amount":null,"at":null,"_rescued":null}"#,
            r#"{"id":"k7","amount":null,"at":"1970-01-01T00:00:01.000000Z","_rescued":null}"#,
        ]
    );
    let rows = joined(&spec, &decoded);
    let flags = rows.column_by_name("_tombstone").expect("present").as_boolean();
    assert_eq!(flags.iter().collect::<Vec<_>>(), [Some(true), Some(false), Some(true)]);

    spec.columns[1].nullable = false;
    assert_eq!(rules(&decode_records(&spec, std::slice::from_ref(&batch)))[0], (5, "missing_required"));
    spec.columns[1].nullable = true;
    spec.tombstones = Tombstones::Row { key: "amount".into() };
    spec.columns[0].nullable = true;
    assert_eq!(rules(&decode_records(&spec, &[batch])), [(5, "type_mismatch"), (7, "type_mismatch")]);
}

#[test]
fn metadata_follows_the_good_rows() {
    let spec = spec(vec![column("id", DataType::Utf8)]);
    let batch = records(40, &[Some(b"x"), Some(b"{}"), Some(b"x"), Some(b"{}")]);
    let rows = joined(&spec, &decode_records(&spec, &[batch]));
    assert_eq!(rows.schema(), row_schema(&spec));
    let by_name = |name: &str| rows.column_by_name(name).expect("present").clone();
    assert_eq!(by_name("_offset").as_primitive::<Int64Type>().values(), &[41, 43]);
    assert_eq!(by_name("_key").as_binary::<i32>().value(1), b"k43");
    assert_eq!(by_name("_headers").null_count(), 2);
    assert_eq!(by_name("_batch_id").as_primitive::<Int64Type>().values(), &[7, 7]);
    // 23:30 UTC is the next day in Berlin.
    assert_eq!(by_name("_ingest_date").as_primitive::<Date32Type>().value(0), 20530);
}

#[test]
fn raw_values_pass_as_they_are() {
    let mut spec = spec(Vec::new());
    spec.format = Format::Raw;
    let batch = records(0, &[Some(b"\xff"), None, Some(b"")]);
    let decoded = decode_records(&spec, &[batch]);
    assert_eq!(rules(&decoded), [(1, "tombstone")]);
    let rows = joined(&spec, &decoded);
    assert_eq!(rows.schema(), row_schema(&spec));
    assert_eq!(rows.column(0).as_binary::<i32>().iter().collect::<Vec<_>>(), [Some(b"\xff".as_slice()), Some(b"")]);
}

#[test]
fn csv_lines() {
    let mut columns = every_type();
    columns.retain(|c| ["id", "amount", "int", "flag", "epoch", "tags"].contains(&c.name.as_str()));
    let mut spec = spec(columns);
    spec.format = Format::Csv;
    let good = [
        "a,12.30,3,true,1773748800000,\"[\"\"x\"\"]\"",
        "\"a \"\"b\"\"\nc,d\",,,,2026-03-17T12:00:00Z,\r\n",
        "\"\",,,,,",
    ];
    let decoded = decode(&spec, &good);
    assert_eq!(rules(&decoded), []);
    assert_eq!(
        shown(&spec, &decoded),
        [
            r#"{"id":"a","amount":"12.30","int":3,"flag":true,"epoch":"2026-03-17T12:00:00.000000Z","tags":["x"]}"#,
            r#"{"id":"a \"b\"\nc,d","amount":null,"int":null,"flag":null,"epoch":"2026-03-17T12:00:00.000000Z","tags":null}"#,
            r#"{"id":"","amount":null,"int":null,"flag":null,"epoch":null,"tags":null}"#,
        ]
    );
    let bad = [
        ("a,1,2,true,", "field_count"),
        ("a,1,2,true,,,", "field_count"),
        (",1,2,true,,", "missing_required"),
        ("a,x,2,true,,", "type_mismatch"),
        ("a,1, 2,true,,", "type_mismatch"),
        ("a,1,2,yes,,", "type_mismatch"),
        ("a,1,\"\",true,,", "type_mismatch"),
        ("a,1,99999999999,true,,", "out_of_range"),
        ("\"a,1,2,true,,", "malformed"),
        ("\"a\"b,1,2,true,,", "malformed"),
        ("a\"b,1,2,true,,", "malformed"),
        ("a,,,,,\nb,,,,,", "trailing_data"),
        ("", "empty"),
    ];
    for (line, rule) in bad {
        let decoded = decode(&spec, &["x,,,,,", line, "y,,,,,"]);
        assert_eq!(rules(&decoded), [(1, rule)], "{line}");
        assert_eq!(joined(&spec, &decoded).num_rows(), 2, "{line}");
    }
}

#[test]
fn types_that_cannot_be_decoded_are_refused_at_once() {
    let spec = spec(vec![column("x", DataType::UInt64)]);
    assert_eq!(Decoder::new("source", &spec, chrono_tz::UTC).expect_err("refused").kind(), ErrorKind::Config);
}
