//! `tidegate status`: where pipelines stand, one in detail or many in a table. Reads only.

mod show;
mod sight;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, Outcome, validate};
use crate::cli::{Global, Output, StatusArgs};
use crate::error::{Error, ErrorKind, Result};
use crate::units;

/// Pipelines looked at side by side.
const AT_ONCE: usize = 8;

pub(super) async fn status(global: &Global, args: &StatusArgs) -> Result<Outcome, Failure> {
    let files = validate::expand(&args.files)?;
    match &args.watch {
        None => look(global, args, &files).await,
        Some(interval) => watch(global, args, &files, interval).await,
    }
}

async fn look(global: &Global, args: &StatusArgs, files: &[PathBuf]) -> Result<Outcome, Failure> {
    // A folder of one pipeline gets the detail too.
    if let [file] = files {
        let sight = sight::sight(global, file, args.rows, !args.offline).await?;
        let (text, mut json) = (show::detail(&sight), show::json(&sight));
        if let Value::Object(fields) = &mut json {
            fields.insert("version".to_string(), json!(1));
            fields.insert("status".to_string(), json!("ok"));
        }
        return Ok(Outcome { text, json, code: 0 });
    }
    let looks = files.iter().map(|file| async move {
        // One that cannot be looked at must not hide the others.
        let sight = sight::sight(global, file, 0, !args.offline).await;
        (file.clone(), sight.map_err(|failure| show::unreadable(&failure)))
    });
    // Side by side: brokers that do not answer are waited for once.
    let seen: Vec<show::Entry> = futures::stream::iter(looks).buffered(AT_ONCE).collect().await;
    let json = json!({ "version": 1, "status": "ok", "pipelines": show::all_json(&seen) });
    Ok(Outcome { text: show::overview(&seen), json, code: 0 })
}

/// Looks again and again until a signal asks to stop.
async fn watch(global: &Global, args: &StatusArgs, files: &[PathBuf], interval: &str) -> Result<Outcome, Failure> {
    let interval = units::duration(interval).map_err(|why| Error::new(ErrorKind::Usage, format!("--watch {why}")))?;
    let install =
        |kind| signal(kind).map_err(|error| Error::failed("a signal handler could not be installed").caused_by(error));
    let (mut interrupt, mut terminate) = (install(SignalKind::interrupt())?, install(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        failure = show_for_ever(global, args, files, interval) => return Err(failure),
    }
    // Looks that are under way end with the process.
    std::process::exit(0)
}

/// Ends with the first failure only.
async fn show_for_ever(global: &Global, args: &StatusArgs, files: &[PathBuf], interval: Duration) -> Failure {
    loop {
        let outcome = match look(global, args, files).await {
            Ok(outcome) => outcome,
            Err(failure) => return failure,
        };
        let text = match (global.output, std::io::stdout().is_terminal()) {
            (Output::Json, _) => format!("{}\n", outcome.json),
            (Output::Text, true) => format!("\x1b[H\x1b[2J{}", outcome.text),
            (Output::Text, false) => format!("{}\n", outcome.text),
        };
        let mut stdout = std::io::stdout();
        if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
            // Nobody reads any more.
            std::process::exit(0);
        }
        tokio::time::sleep(interval).await;
    }
}
