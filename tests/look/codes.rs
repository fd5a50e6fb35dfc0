//! Every message that tidegate ends with has a code, and every code a page.

use super::golden;
use crate::support::Sandbox;

#[test]
fn the_list_of_codes_only_grows() {
    let sandbox = Sandbox::new("codes");
    let list = sandbox.tidegate(&["explain"]).run().success().stdout;
    golden("codes.txt", &list);
    let json = sandbox.tidegate(&["explain", "--output", "json"]).run().success().json();
    let codes = json["codes"].as_array().expect("a list").len();
    assert_eq!(codes, list.lines().count());
    golden("explain.txt", &sandbox.tidegate(&["explain", "tg0401"]).run().success().stdout);
    sandbox.tidegate(&["explain", "TG9999"]).run().code(&[2]).says("error[TG0002]: there is no code `TG9999`");
}

#[test]
fn problems_of_command_line_file_sql_and_lookup_come_with_their_codes() {
    let sandbox = Sandbox::new("coded");
    sandbox.tidegate(&["staus"]).run().code(&[2]).says("error[TG0002]: unrecognized subcommand");
    // A scheduler that keeps the last line gets one of JSON, wherever it was asked for.
    let asked: [(&[&str], Option<&str>, bool); 6] = [
        (&["--output", "json", "staus"], None, true),
        (&["staus", "--output=json"], None, true),
        (&["run", "--output", "json"], None, true),
        (&["staus"], Some("json"), true),
        (&["staus", "--output", "text"], Some("json"), false),
        (&["staus", "--", "--output", "json"], None, false),
    ];
    for (arguments, variable, is_json) in asked {
        let command = sandbox.tidegate(arguments);
        let command = variable.into_iter().fold(command, |command, value| command.env("TIDEGATE_OUTPUT", value));
        let run = command.run().code(&[2]).says("error[TG0002]: ");
        if !is_json {
            assert_eq!(run.stdout, "", "{}", run.report());
            continue;
        }
        assert_eq!(run.stdout.lines().count(), 1, "{}", run.report());
        let json = run.json();
        assert_eq!((&json["status"], &json["error"]["exit_code"]), (&"failed".into(), &2.into()), "{json}");
        assert!(
            json["error"]["message"].as_str().is_some_and(|text| text.len() > 10 && !text.contains("error")),
            "{json}"
        );
    }
    sandbox.tidegate(&["run", "none.yaml"]).run().code(&[78]).says("error[TG0209]: cannot read the pipeline file");
    sandbox.tidegate(&["init", "."]).run().success();
    let file = "pipelines/orders.yaml";
    let good = std::fs::read_to_string(sandbox.path().join(file)).expect("what init wrote");
    let table =
        "\n  gold.bad:\n    from: bronze.orders\n    write: append\n    sql: |\n      SELECT nothing FROM batch\n";
    let at = good.find("\ntables:").expect("tables") + "\ntables:".len();
    let cases = [
        ("TG0300", format!("{}{table}{}", &good[..at], &good[at..])),
        ("TG0202", format!("{good}\nnonsense: 1\n")),
        ("TG0205", format!("{good}\nname: other\n")),
        ("TG0201", "version: [1\n".to_string()),
        ("TG0304", good.replace("stores.csv", "shops.csv")),
    ];
    for (code, text) in cases {
        sandbox.write(file, &text);
        let run = sandbox.tidegate(&["validate", file, "--output", "json"]).run().code(&[78]);
        assert!(run.stderr.contains(&format!("error[{code}]: ")), "{code}\n{}", run.report());
        assert!(run.json().to_string().contains(&format!("\"code\":\"{code}\"")), "{code}\n{}", run.report());
    }
}

#[test]
fn no_message_of_failure_is_written_by_hand() {
    fn walk(folder: &std::path::Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).expect("src is readable") {
            let path = entry.expect("src is readable").path();
            if path.is_dir() {
                walk(&path, found);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a source file is text");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            found.extend(
                code.lines()
                    .filter(|line| line.contains("\"error: "))
                    .map(|line| format!("{}: {line}", path.display())),
            );
        }
    }
    let mut found = Vec::new();
    walk(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    // Strips the prefix of another library's message.
    found.retain(|line| !line.contains("trim_start_matches"));
    assert!(found.is_empty(), "messages without a code:\n{}", found.join("\n"));
}
