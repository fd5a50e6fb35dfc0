//! What may bring a forgotten person back, and what never does.

use super::*;

const DERIVED: &str = "silver.orders,silver.customers,gold.stores,gold.customers";

fn backfill(world: &World, more: &[&str]) -> Outcome {
    let all = ["backfill", FILE, "--date", "2026-03-17", "--tables", DERIVED];
    world.sandbox.tidegate(&all.into_iter().chain(more.iter().copied()).collect::<Vec<_>>()).run()
}

#[test]
fn neither_a_backfill_nor_a_replay_of_dead_letters_brings_anybody_back() {
    let mut world = World::new("back");
    world.land(60);
    world.drain().success();
    world.forget_json(&["--key", KEY, "--yes", "--vacuum"]);
    let forgotten = of_person(&world.files, false);
    backfill(&world, &[]).success();
    world.assert_tables(&forgotten);
    // What was set aside because of a field that is now let in.
    world.sandbox.write(FILE, &YAML.replace("schema_drift: fail", "schema_drift: ignore"));
    let letters = world.table("dlq.orders", "SELECT \"offset\" FROM t WHERE stage = 'decode'").len();
    let replay = ["dlq", "replay", FILE, "--yes", "--output", "json"];
    let replayed = world.sandbox.tidegate(&replay).run().success().json();
    assert!(letters > 0 && replayed["pass"].as_u64() > Some(0), "too tame a seed: {replayed}");
    for table in ["bronze.orders", "silver.orders", "silver.customers", "gold.customers"] {
        let sql = format!("SELECT customer FROM t WHERE customer = '{PERSON}'");
        assert_eq!(world.table(table, &sql), Vec::<String>::new(), "{table}");
    }
}

#[test]
fn what_is_said_to_bring_rows_back_does() {
    let mut world = World::new("ways");
    world.land(40);
    world.drain().success();
    let before = world.contents();
    // Out of silver only: bronze is said to be the way back.
    let only = ["--key", KEY, "--tables", "silver.orders,silver.customers", "--offline"];
    let said = world.forget(&only).success().stdout;
    assert!(said.contains("bronze.orders is left out by --tables and keeps"), "{said}");
    assert!(said.contains("a backfill derives rows of other tables from them again"), "{said}");
    world.forget(&[&only[..], &["--yes"]].concat()).success();
    assert_ne!(world.contents()["silver.orders"], before["silver.orders"]);
    backfill(&world, &[]).success();
    assert_eq!(world.contents(), before);
    // And the source, read again.
    world.forget_json(&["--key", KEY, "--yes"]);
    world.assert_tables(of_person(&world.files, false));
    let rewind = ["offsets", "rewind", FILE, "--to", "earliest", "--accept-duplicates", "--yes"];
    world.sandbox.tidegate(&rewind).run().success();
    world.drain().success();
    let names = |table: &str| world.table(table, &format!("SELECT customer FROM t WHERE customer = '{PERSON}'"));
    assert!(!names("bronze.orders").is_empty() && !names("silver.customers").is_empty());
    world.forget_json(&["--key", KEY, "--yes"]);
    assert!(names("bronze.orders").is_empty() && names("silver.customers").is_empty());
}

/// What its runs have touched is looked for in files that the vacuum has deleted: every group is computed then.
#[test]
fn a_backfill_whose_log_is_lost_does_without_files_that_are_gone() {
    let mut world = World::new("gone");
    world.land(40);
    world.drain().success();
    backfill(&world, &[]).success();
    world.forget_json(&["--key", KEY, "--yes", "--vacuum"]);
    world.sandbox.remove("checkpoints/orders/backfills");
    backfill(&world, &[]).success();
    world.assert_tables(of_person(&world.files, false));
}

/// It has read rows, and needs old files to find the groups that it has touched.
#[cfg(feature = "failpoints")]
#[test]
fn a_backfill_that_was_begun_is_finished_first() {
    let mut world = World::new("begun");
    world.land(40);
    world.drain().success();
    let before = world.contents();
    let all = ["backfill", FILE, "--date", "2026-03-17", "--tables", DERIVED];
    let run = world.sandbox.tidegate(&all).env("TIDEGATE_FAIL", "applied@1=kill").run();
    assert_eq!(run.status.code(), None, "{}", run.report());
    let dry = world.forget(&["--key", KEY]).success().stdout;
    assert!(dry.contains("a backfill was begun and is not finished"), "{dry}");
    let refused = world.forget(&["--key", KEY, "--yes", "--vacuum"]).code(&[75]);
    refused.says("nothing was changed").says("tidegate backfill orders.yaml --gaps");
    assert_eq!(world.contents(), before);
    assert_eq!(world.in_bytes("checkpoints"), Vec::<PathBuf>::new(), "a command that is refused keeps no key");
    backfill(&world, &[]).success();
    world.forget_json(&["--key", KEY, "--yes", "--vacuum"]);
    backfill(&world, &[]).success();
    world.assert_tables(of_person(&world.files, false));
}
