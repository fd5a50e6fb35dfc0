//! What `tidegate init --with …` writes, used as its readers use it: commands are taken out of the files and run.
//!
//! Airflow itself runs the DAG in `tests/airflow/run.sh` (`make airflow`).

use std::process::Command;

use crate::support::Sandbox;

/// A project with every kind of file.
fn project(test: &str) -> Sandbox {
    let sandbox = Sandbox::new(test);
    let with = ["init", "shop", "--name", "shop", "--with", "airflow,cron,systemd,kubernetes"];
    sandbox.tidegate(&with).run().success();
    sandbox
}

fn read(sandbox: &Sandbox, path: &str) -> String {
    std::fs::read_to_string(sandbox.path().join("shop/deploy").join(path)).expect(path)
}

/// Runs a command line as cron and systemd would: an environment of almost nothing, from the root folder.
fn shell(line: &str) -> std::process::Output {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", line]).current_dir("/").env_clear().env("PATH", "/usr/bin:/bin").env("ROWS", "500");
    shell.output().expect("a shell")
}

fn line_with<'a>(text: &'a str, start: &str) -> &'a str {
    let found = text.lines().find_map(|line| line.strip_prefix(start));
    found.unwrap_or_else(|| panic!("no line that starts with {start:?} in\n{text}"))
}

#[test]
fn nothing_is_left_to_fill_in() {
    let sandbox = project("init-filled");
    let mut files = 0;
    for folder in ["airflow", "cron", "systemd", "kubernetes"] {
        for entry in std::fs::read_dir(sandbox.path().join("shop/deploy").join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            let text = std::fs::read_to_string(&path).expect("text");
            let left = text.lines().find(|line| line.contains('@') && !line.contains("you@example.com"));
            assert_eq!(left, None, "{}", path.display());
            files += 1;
        }
    }
    assert_eq!(files, 7);
}

#[test]
fn the_line_for_cron_runs_the_pipeline_and_says_nothing_unless_something_is_wrong() {
    let sandbox = project("init-cron");
    let crontab = read(&sandbox, "cron/shop.crontab");
    let command = line_with(&crontab, "*/15 * * * * ");
    for round in ["new rows", "nothing new"] {
        let output = shell(command);
        assert!(output.status.success(), "{round}: {output:?}");
        assert_eq!((&output.stdout[..], &output.stderr[..]), (&b""[..], &b""[..]), "{round}");
    }
    assert!(sandbox.path().join("shop/lake/gold/daily_revenue/_delta_log").is_dir());
    sandbox.write("shop/pipelines/shop.yaml", "version: 1\nname: shop\nlakes: x\n");
    let output = shell(command);
    let mail = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78));
    assert!(mail.contains("unknown key `lakes`") && mail.contains("did you mean `lake`?"), "{mail}");
}

#[test]
fn the_units_for_systemd_start_the_pipeline_and_are_valid() {
    let sandbox = project("init-systemd");
    let unit = read(&sandbox, "systemd/tidegate-shop.service");
    let output = shell(line_with(&unit, "ExecStart="));
    assert!(output.status.success(), "{output:?}");
    assert!(sandbox.path().join("shop/lake/silver/orders/_delta_log").is_dir());
    let continuous = read(&sandbox, "systemd/tidegate-shop-continuous.service");
    assert_eq!(line_with(&continuous, "RestartPreventExitStatus="), "2 65 66 78");
    assert!(line_with(&continuous, "ExecStart=").ends_with("pipelines/shop.yaml --trigger 10s --progress none"));

    let folder = sandbox.path().join("shop/deploy/systemd");
    let units = ["tidegate-shop.service", "tidegate-shop.timer", "tidegate-shop-continuous.service"];
    match Command::new("systemd-analyze").arg("verify").args(units.map(|unit| folder.join(unit))).output() {
        Ok(verdict) => {
            let said = String::from_utf8_lossy(&verdict.stderr).into_owned();
            let about_us: Vec<_> = said.lines().filter(|line| line.contains("tidegate-shop")).collect();
            assert!(about_us.is_empty(), "{said}");
        }
        Err(_) => println!("systemd-analyze is not installed: the units were only read"),
    }
}

#[test]
fn the_objects_for_kubernetes_hold_the_pipeline_and_never_repeat_what_cannot_help() {
    let sandbox = project("init-kubernetes");
    let text = read(&sandbox, "kubernetes/shop.yaml");
    let objects = yaml(&text);
    let kinds: Vec<&str> = objects.iter().filter_map(|object| object["kind"].as_str()).collect();
    assert_eq!(kinds, ["ConfigMap", "PersistentVolumeClaim", "CronJob"]);

    // The ConfigMap, mounted as the pod's volume says, is the project.
    let pod = &objects[2]["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    let items = pod["volumes"][0]["configMap"]["items"].as_array().expect("items");
    for item in items {
        let (key, path) = (item["key"].as_str().expect("a key"), item["path"].as_str().expect("a path"));
        let original = sandbox.path().join("shop/pipelines").join(path);
        let original = std::fs::read_to_string(&original).expect("the file");
        assert_eq!(objects[0]["data"][key].as_str().map(str::trim_end), Some(original.trim_end()), "{path}");
        sandbox.write(&format!("mounted/pipelines/{path}"), objects[0]["data"][key].as_str().expect("text"));
    }
    assert_eq!(items.len(), 2, "the pipeline and its lookup");
    let arguments: Vec<&str> =
        pod["containers"][0]["args"].as_array().expect("args").iter().filter_map(|a| a.as_str()).collect();
    let file = sandbox.path().join("mounted").join(arguments[1]);
    let mut arguments = arguments.clone();
    arguments[1] = file.to_str().expect("a path");
    let ran = sandbox.tidegate(&arguments).env("ROWS", "500").env("LAKE", "data/lake").run().success();
    assert_eq!(ran.batches(), [500]);

    let job = &objects[2]["spec"]["jobTemplate"]["spec"];
    let rules = job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"].to_string();
    assert_eq!(rules, "[2,65,66,78]");
    assert_eq!(
        (pod["restartPolicy"].as_str(), objects[2]["spec"]["concurrencyPolicy"].as_str()),
        (Some("Never"), Some("Forbid"))
    );
    let continuous = yaml(&read(&sandbox, "kubernetes/shop-continuous.yaml"));
    assert_eq!(continuous[0]["spec"]["strategy"]["type"], "Recreate");
    assert_eq!(continuous[0]["spec"]["template"]["spec"]["volumes"], pod["volumes"]);
}

#[test]
fn files_for_a_scheduler_join_a_project_and_keep_what_is_there() {
    let sandbox = Sandbox::new("init-joins");
    sandbox.tidegate(&["init", "shop", "--name", "mine"]).run().success();
    sandbox.write("shop/deploy/cron/mine.crontab", "as it was");
    let again = sandbox.tidegate(&["init", "shop", "--with", "cron,systemd", "--output", "json"]).run().success();
    let written = again.json()["written"].to_string();
    assert!(
        written.contains("tidegate-mine.timer") && !written.contains("crontab") && !written.contains("yaml"),
        "{written}"
    );
    assert_eq!(read(&sandbox, "cron/mine.crontab"), "as it was");
    sandbox.tidegate(&["init", "shop", "--name", "other", "--with", "cron"]).run().code(&[2]).says("there are: mine");
    sandbox.write("shop/pipelines/second.yaml", "version: 1");
    let unclear = sandbox.tidegate(&["init", "shop", "--with", "cron"]).run().code(&[2]);
    assert!(unclear.stderr.contains("--name mine or --name second"), "{}", unclear.stderr);
}

#[test]
fn airflow_is_named_in_every_log_line_and_in_the_result_and_nothing_else_is() {
    let sandbox = project("init-airflow-ids");
    let arguments = ["run", "shop/pipelines/shop.yaml", "--output", "json", "--log-format", "json", "--log", "debug"];
    let ran = sandbox
        .tidegate(&arguments)
        .env("ROWS", "200")
        .env("AIRFLOW_CTX_DAG_ID", "shop \"quoted\"")
        .env("AIRFLOW_CTX_TRY_NUMBER", "2")
        .env("AIRFLOW_CTX_DAG_OWNER", "somebody")
        .run()
        .success();
    let result = ran.json();
    assert_eq!(
        (result["airflow_dag_id"].as_str(), result["airflow_try"].as_str()),
        (Some("shop \"quoted\""), Some("2"))
    );
    let lines: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with('{')).collect();
    assert!(lines.len() > 10, "{}", ran.stderr);
    for line in lines {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(
            (line["airflow_dag_id"].as_str(), line["airflow_try"].as_str()),
            (Some("shop \"quoted\""), Some("2")),
            "{line}"
        );
    }
    assert!(!ran.stdout.contains("somebody") && !ran.stderr.contains("somebody"));
}

#[test]
fn the_result_is_the_last_line_of_both_streams_and_in_the_file_asked_for() {
    let sandbox = project("init-last-line");
    let run = format!(
        "{} run {} --output json --output-file result.json --progress lines 2>&1",
        env!("CARGO_BIN_EXE_tidegate"),
        sandbox.path().join("shop/pipelines/shop.yaml").display()
    );
    let folder = sandbox.path().join("elsewhere");
    std::fs::create_dir(&folder).expect("a folder");
    let output =
        Command::new("/bin/sh").args(["-c", &run]).current_dir(&folder).env("ROWS", "200").output().expect("a shell");
    let both = String::from_utf8(output.stdout).expect("text");
    let last = both.lines().last().expect("a line");
    let result: serde_json::Value = serde_json::from_str(last).expect("the result");
    assert_eq!(result["status"], "ok", "{both}");
    assert!(both.ends_with(&format!("{last}\n")));
    let kept = std::fs::read_to_string(folder.join("result.json")).expect("the file");
    assert_eq!(kept, format!("{last}\n"));
    let names: Vec<_> =
        std::fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(names, ["result.json"], "nothing else is written where it was started");

    // A file that cannot be written is told, and what was done stays done.
    let arguments = ["run", "shop/pipelines/shop.yaml", "--output", "json", "--output-file", "/proc/x/y"];
    let nowhere = sandbox.tidegate(&arguments).env("ROWS", "200").run();
    assert_ne!(nowhere.status.code(), Some(0));
    assert_eq!(nowhere.json()["status"], "no_data");
    assert!(nowhere.stderr.contains("/proc/x/y"), "{}", nowhere.stderr);
}

/// Every document of a YAML stream, by another parser than tidegate's own reading of YAML.
fn yaml(text: &str) -> Vec<serde_json::Value> {
    let documents = text.split("\n---\n");
    documents.map(|document| serde_saphyr::from_str(document).expect("YAML")).collect()
}
