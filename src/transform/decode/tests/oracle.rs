//! Random mixtures of good and bad records against an independent reading through `serde_json::Value`.

use super::*;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn columns() -> Vec<ColumnSpec> {
    let mut columns = every_type();
    columns.retain(|c| ["id", "amount", "int", "double", "flag", "at", "tags", "address"].contains(&c.name.as_str()));
    columns
}

/// What a record ought to become, as `row_json` shows it; `None` = a dead letter.
fn oracle(record: &[u8]) -> Option<Value> {
    let value: Value = serde_json::from_slice(record).ok()?;
    let Value::Object(mut fields) = value else { return None };
    let mut out = Map::new();
    for name in ["id", "amount", "int", "double", "flag", "at", "tags", "address"] {
        let value = fields.remove(name).unwrap_or(Value::Null);
        let value = match (name, value) {
            ("id", Value::Null) => return None,
            (_, Value::Null) => Value::Null,
            ("id", Value::String(s)) => json!(s),
            ("flag", Value::Bool(b)) => json!(b),
            ("double", Value::Number(n)) => json!(n.as_f64()?),
            ("int", Value::Number(n)) => json!(i32::try_from(n.as_i64()?).ok()?),
            ("amount", Value::Number(n)) => whole_amount(n.as_i64()?)?,
            ("amount", Value::String(s)) if !s.contains('.') && s.trim() == s => {
                whole_amount(serde_json::from_str(&s).ok()?)?
            }
            // The strategy writes amounts as text of cents, where this is exact.
            ("amount", Value::String(s)) => {
                let (whole, cents) = s.split_once('.')?;
                let digits = whole.trim_start_matches('-');
                let fits = digits.len() <= 8
                    && cents.len() == 2
                    && digits.parse::<u32>().is_ok()
                    && cents.parse::<u8>().is_ok();
                fits.then(|| json!(s))?
            }
            ("at", Value::String(s)) => {
                let when = chrono::DateTime::parse_from_rfc3339(&s).ok()?.to_utc();
                json!(when.to_rfc3339_opts(chrono::SecondsFormat::Micros, true))
            }
            ("tags", Value::Array(tags)) if tags.iter().all(|t| t.is_string() || t.is_null()) => Value::Array(tags),
            ("address", Value::Object(address)) => {
                let zip = i32::try_from(address.get("zip")?.as_i64()?).ok()?;
                let city = match address.get("city") {
                    None | Some(Value::Null) => Value::Null,
                    Some(Value::String(s)) => json!(s),
                    Some(_) => return None,
                };
                json!({"city": city, "zip": zip})
            }
            _ => return None,
        };
        out.insert(name.into(), value);
    }
    out.insert(
        "_rescued".into(),
        if fields.is_empty() { Value::Null } else { json!(Value::Object(fields).to_string()) },
    );
    // Through text as our rows go: serde_json reads some doubles one bit off.
    serde_json::from_str(&Value::Object(out).to_string()).ok()
}

fn whole_amount(n: i64) -> Option<Value> {
    (n.unsigned_abs() < 100_000_000).then(|| json!(format!("{n}.00")))
}

fn any_scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(json!([1, "x"])),
        Just(json!({"zip": "x"})),
    ]
}

fn good_field(name: &'static str) -> BoxedStrategy<Value> {
    match name {
        "id" => any::<String>().prop_map(Value::from).boxed(),
        "amount" => (any::<bool>(), 0u32..99_999_999, 0u8..100)
            .prop_map(|(minus, w, c)| json!(format!("{}{}.{c:02}", if minus && w > 0 { "-" } else { "" }, w)))
            .boxed(),
        "int" => any::<i32>().prop_map(Value::from).boxed(),
        // Quarters: serde_json, the oracle, reads some longer doubles one bit off (ours are `str::parse`'s).
        "double" => any::<i32>().prop_map(|quarters| json!(f64::from(quarters) / 4.0)).boxed(),
        "flag" => any::<bool>().prop_map(Value::from).boxed(),
        "at" => (-60_000_000_000i64..250_000_000_000, 0u32..1_000_000_000, -720i32..720)
            .prop_filter_map("in range", |(s, n, offset)| {
                let zone = chrono::FixedOffset::east_opt(offset * 60)?;
                Some(json!(DateTime::from_timestamp(s, n)?.with_timezone(&zone).to_rfc3339()))
            })
            .boxed(),
        "tags" => prop::collection::vec(prop::option::of(any::<String>()), 0..4).prop_map(|v| json!(v)).boxed(),
        _ => (any::<i32>(), prop::option::of(any::<String>()))
            .prop_map(|(zip, city)| json!({"city": city, "zip": zip}))
            .boxed(),
    }
}

/// Mostly good records: every field absent, good, or (rarely) anything at all.
fn object() -> impl Strategy<Value = Vec<u8>> {
    let field = |name: &'static str| {
        prop_oneof![2 => Just(None), 20 => good_field(name).prop_map(Some), 1 => any_scalar().prop_map(Some)]
            .prop_map(move |value| (name.to_string(), value))
    };
    let id = prop_oneof![30 => good_field("id"), 1 => any_scalar()].prop_map(|v| ("id".to_string(), Some(v)));
    let known = (
        id,
        field("amount"),
        field("int"),
        field("double"),
        field("flag"),
        field("at"),
        field("tags"),
        field("address"),
    );
    let unknown = prop::option::weighted(0.2, ("[a-z]{6,9}", any::<i64>().prop_map(|n| json!(n))));
    (known, unknown, any::<u64>()).prop_map(|((a, b, c, d, e, f, g, h), unknown, seed)| {
        let mut members: Vec<(String, Value)> =
            [a, b, c, d, e, f, g, h].into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        members.extend(unknown);
        // Any order of fields.
        let turn = seed as usize % members.len().max(1);
        members.rotate_left(turn);
        let members: Vec<String> = members.iter().map(|(n, v)| format!("{}:{v}", json!(n))).collect();
        format!("{{{}}}", members.join(",")).into_bytes()
    })
}

/// A record, and whether the oracle can judge it: a flipped byte may make a number such as `1e2` or a second `"id"` that
/// only one of the two takes; such records are only checked not to vanish and not to disturb their neighbours.
fn record() -> impl Strategy<Value = (Vec<u8>, bool)> {
    let judged = |r: Vec<u8>| (r, true);
    let cut = (object(), any::<prop::sample::Index>()).prop_map(|(r, at)| (r[..at.index(r.len())].to_vec(), true));
    let flipped = (object(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(mut r, at, byte)| {
        let at = at.index(r.len());
        r[at] = byte;
        (r, false)
    });
    let two = (object(), prop::sample::select(vec!["", ",", "\n", "} , {"]), object())
        .prop_map(|(a, between, b)| ([a, between.as_bytes().to_vec(), b].concat(), true));
    let noise = prop::collection::vec(any::<u8>(), 0..20).prop_map(judged);
    prop_oneof![20 => object().prop_map(judged), 1 => cut, 1 => flipped, 1 => two, 1 => noise]
}

proptest! {
    #[test]
    fn good_rows_are_what_the_oracle_says_and_none_vanish(
        values in prop::collection::vec(record(), 0..60), cuts in prop::collection::vec(0usize..60, 0..5),
    ) {
        let spec = spec(columns());
        let all: Vec<Option<&[u8]>> = values.iter().map(|v| Some(v.0.as_slice())).collect();
        let whole = records(0, &all);
        let decoded = decode_records(&spec, std::slice::from_ref(&whole));
        let rows = joined(&spec, &decoded);
        let texts = shown(&spec, &decoded);
        let offsets = rows.column_by_name("_offset").expect("present").clone();
        let offsets = arrow::array::AsArray::as_primitive::<arrow::datatypes::Int64Type>(&offsets).values().to_vec();
        let dead: Vec<i64> = decoded.dead.iter().filter_map(|d| d.coordinates.as_ref()).map(|c| c.offset).collect();

        let mut seen: Vec<i64> = offsets.iter().chain(&dead).copied().collect();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..values.len() as i64).collect::<Vec<_>>());
        prop_assert!(offsets.is_sorted() && dead.is_sorted());

        for (offset, text) in offsets.iter().zip(&texts) {
            let (original, judged) = &values[*offset as usize];
            if *judged {
                let ours: Value = serde_json::from_str(text).expect("JSON");
                prop_assert_eq!(Some(ours), oracle(original), "{}", String::from_utf8_lossy(original));
            }
        }
        for offset in dead {
            let (original, judged) = &values[offset as usize];
            if *judged {
                prop_assert_eq!(None, oracle(original), "{}", String::from_utf8_lossy(original));
            }
        }

        // Split anywhere: the same rows, the same dead letters.
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c % (values.len() + 1)).chain([0, values.len()]).collect();
        cuts.sort_unstable();
        let parts: Vec<RecordBatch> = cuts.windows(2).map(|w| whole.slice(w[0], w[1] - w[0])).collect();
        let split = decode_records(&spec, &parts);
        prop_assert_eq!(joined(&spec, &split), rows);
        let errors = |d: &Decoded| d.dead.iter().map(|d| (d.coordinates.clone(), d.error.clone())).collect::<Vec<_>>();
        prop_assert_eq!(errors(&split), errors(&decoded));
    }
}
