//! `tidegate test`: rows in, rows out, without any service and without a byte on disk.
//!
//! Every test runs through the real runner, transforms and Delta tables, on an object store in memory, and then again
//! with the same input cut row by row: the tables must not depend on where batches end.

mod compare;
mod given;
mod show;
mod suite;
mod trial;
mod value;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::{Value as Json, json};

use self::show::{Case, Paint, Verdict};
use self::suite::Test;
use super::logging::tell;
use super::output::{counted, duration, error_json};
use super::{Failure, Outcome};
use crate::cli::{Global, TestArgs};
use crate::error::{Error, ErrorKind, Result};

/// Outcome of one file.
struct FileOutcome {
    file: String,
    tests: Vec<(Arc<Test>, Verdict, Duration)>,
    /// Why its tests could not run: for people, for programs.
    refused: Option<(String, Json)>,
}

pub(super) async fn test(global: &Global, args: &TestArgs) -> Result<Outcome, Failure> {
    let started = Instant::now();
    let mut outcomes = Vec::new();
    for path in suite::expand(&args.files)? {
        outcomes.push(file(global, &path, args.filter.as_deref()).await);
    }
    let ran: usize = outcomes.iter().map(|outcome| outcome.tests.len()).sum();
    if ran == 0 && outcomes.iter().all(|outcome| outcome.refused.is_none()) {
        return Err(nothing_ran(args).into());
    }
    if let Some(path) = &args.junit {
        write_junit(path, &outcomes).await?;
    }
    Ok(outcome(&outcomes, started.elapsed()))
}

/// Whether the tests of a file could run.
pub(super) async fn check(global: &Global, path: &Path) -> Result<(), Failure> {
    suite::load(global, path, None).await.map(|_| ())
}

/// Runs the tests of a file side by side, one a core.
async fn file(global: &Global, path: &Path, filter: Option<&str>) -> FileOutcome {
    let file = path.display().to_string();
    let tests = match suite::load(global, path, filter).await {
        Ok(tests) => tests,
        Err(failure) => {
            let refused = match failure {
                Failure::Report(report) => (report.render(), report.to_json()),
                Failure::Error(error) => (error.report(), error_json(&error)),
            };
            return FileOutcome { file, tests: Vec::new(), refused: Some(refused) };
        }
    };
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    let trials = tests.into_iter().map(|test| {
        let test = Arc::new(test);
        let running = test.clone();
        let handle = async move {
            let started = Instant::now();
            let verdict = tokio::spawn(async move { trial::run(&running).await }).await;
            (verdict.unwrap_or_else(panicked), started.elapsed())
        };
        async move {
            let (verdict, took) = handle.await;
            (test, verdict, took)
        }
    });
    let tests = futures::stream::iter(trials).buffered(at_once).collect().await;
    FileOutcome { file, tests, refused: None }
}

fn panicked(panic: tokio::task::JoinError) -> Verdict {
    let report = Error::failed("the test panicked; this is a bug in tidegate or one of its libraries").caused_by(panic);
    Verdict {
        faults: vec![show::Fault::Error { cut: trial::Cut::Written, report: report.report() }],
        ..Verdict::default()
    }
}

fn nothing_ran(args: &TestArgs) -> Error {
    let places = args.files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    match &args.filter {
        Some(filter) => Error::new(ErrorKind::Usage, format!("no test in {places} has `{filter}` in its name")),
        None => Error::new(ErrorKind::Usage, format!("there are no tests in {places}"))
            .help("write some under `tests:` in the pipeline file, or in a file *.test.yaml beside it"),
    }
}

fn outcome(files: &[FileOutcome], took: Duration) -> Outcome {
    let paint = Paint::for_stdout();
    let (mut text, mut json_files) = (String::new(), Vec::new());
    let (mut passed, mut failed, mut refused) = (0u64, 0u64, 0u64);
    for file in files {
        let mut tests = Vec::new();
        if !file.tests.is_empty() {
            text.push_str(&format!("{}\n", file.file));
        }
        for (test, verdict, took) in &file.tests {
            let status = if verdict.passed() { "passed" } else { "failed" };
            let mut json = json!({ "name": test.name, "place": test.place, "status": status, "duration_ms": took.as_millis() as u64 });
            if verdict.passed() {
                passed += 1;
                text.push_str(&format!("  {}  {}\n", paint.good("ok  "), test.name));
            } else {
                failed += 1;
                text.push_str(&format!("  {}  {} ({})\n", paint.bad("FAIL"), test.name, test.place));
                text.push_str(&verdict.text(paint));
                json["faults"] = verdict.json()["faults"].take();
                json["dead_letters"] = verdict.json()["dead_letters"].take();
            }
            tests.push(json);
        }
        let mut json = json!({ "file": file.file, "tests": tests });
        if let Some((report, problems)) = &file.refused {
            refused += 1;
            tell(report.trim_end());
            json["problems"] = problems.clone();
        }
        json_files.push(json);
    }
    let mut summary = vec![format!("{passed} passed")];
    if failed > 0 {
        summary.push(paint.bad(&format!("{failed} failed")));
    }
    if refused > 0 {
        summary.push(paint.bad(&format!("{} could not be tested", counted(refused, "file", "files"))));
    }
    text.push_str(&format!("{} in {}\n", summary.join(", "), duration(took.as_millis() as u64)));
    let (status, code) = match (refused, failed) {
        (0, 0) => ("ok", 0),
        (0, _) => ("failed", ErrorKind::Failed.exit_code()),
        _ => ("failed", ErrorKind::Config.exit_code()),
    };
    let json = json!({
        "version": 1,
        "status": status,
        "passed": passed,
        "failed": failed,
        "refused_files": refused,
        "duration_ms": took.as_millis() as u64,
        "files": json_files,
    });
    Outcome { text, json, code }
}

async fn write_junit(path: &Path, files: &[FileOutcome]) -> Result<()> {
    let mut cases = Vec::new();
    for file in files {
        if let Some((report, _)) = &file.refused {
            cases.push(Case { file: &file.file, name: "(the file)", seconds: 0.0, failure: Some(report.clone()) });
        }
        for (test, verdict, took) in &file.tests {
            let failure = (!verdict.passed()).then(|| verdict.text(Paint::none()));
            cases.push(Case { file: &file.file, name: &test.name, seconds: took.as_secs_f64(), failure });
        }
    }
    super::file::write(path, show::junit(&cases)).await
}
