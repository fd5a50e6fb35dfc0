//! What is said before anything is done.

use super::*;

#[test]
fn the_account_says_what_goes_what_stays_and_why() {
    let mut world = World::new("account");
    let line = |id: &str, customer: &str, amount: i64, more: &str| {
        format!(
            r#"{{"id":"{id}","customer":"{customer}","store":"s1","amount":{amount},"at":"2026-03-17T00:00:00Z","op":"u"{more}}}"#
        )
    };
    for text in [
        line("o1", PERSON, 5, ""),
        line("o2", PERSON, -5, ""),
        line("o3", "bob", 5, ""),
        line("o4", PERSON, 5, r#","colour":"red""#),
        line("o5", PERSON, 5, "").replace('}', ""),
    ] {
        world.put("a.ndjson", &text);
    }
    world.drain().success();
    let mut said = String::new();
    let mut say = |arguments: &[&str]| {
        let outcome = world.forget(arguments);
        said.push_str(&format!("$ tidegate forget orders.yaml {}\n", arguments.join(" ")));
        said.push_str(&format!("{}{}[{}]\n\n", outcome.stdout, outcome.stderr, outcome.status.code().unwrap_or(-1)));
    };
    say(&["--key", KEY]);
    say(&["--key", KEY, "--offline", "--containing", "--tables", "silver.orders,dlq.orders"]);
    say(&["--key", KEY, "--key", "store=s1"]);
    say(&["--key", "custmer=ada"]);
    say(&["--key", "amount=many"]);
    say(&["--key", "customer"]);
    say(&["--key", KEY, "--tables", "silver.order"]);
    say(&["--key", "customer=nobody"]);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/forget.txt");
    if std::env::var_os("TIDEGATE_BLESS").is_some() {
        fs::write(&golden, &said).expect("writable");
    }
    let expected = fs::read_to_string(&golden).expect("tests/golden/forget.txt; TIDEGATE_BLESS=1 writes it");
    assert_eq!(said, expected, "\n{said}");
    world.assert_tables(nobody);

    // Only some tables, and what is computed from them.
    world.forget_json(&["--key", KEY, "--tables", "silver.orders", "--yes"]);
    let found = world.contents();
    let all = oracle(&world.files, nobody);
    let without = oracle(&world.files, of_person(&world.files, false));
    for name in ["silver.orders", "gold.stores", "gold.customers"] {
        lake::assert_same(name, &without[name], &found[name]);
    }
    for name in ["bronze.orders", "silver.customers", "dlq.orders"] {
        lake::assert_same(name, &all[name], &found[name]);
    }
    // Other types than text: a number and a time, both of one row.
    world.forget_json(&[
        "--key",
        "amount=5",
        "--key",
        "at=2026-03-17T00:00:00Z",
        "--key",
        "customer=bob",
        "--yes",
        "--offline",
    ]);
    assert_eq!(world.table("bronze.orders", "SELECT id FROM t"), ["o1", "o2"]);
}
