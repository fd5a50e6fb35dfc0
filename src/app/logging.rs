//! Logs on stderr, and who called: Airflow tells every task's process, and logs and results pass it on.

use std::fmt::{self, Display};
use std::io::{IsTerminal, Write as _};

use serde_json::{Map, Value};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::cli::{Global, LogFormat};
use crate::error::{Error, ErrorKind, Result};

/// What Airflow says of itself in the environment of a task (`airflow.sdk` `context_to_airflow_vars`), and our names for it.
/// Nothing else of the environment is passed on.
const AIRFLOW: [(&str, &str); 5] = [
    ("AIRFLOW_CTX_DAG_ID", "airflow_dag_id"),
    ("AIRFLOW_CTX_TASK_ID", "airflow_task_id"),
    ("AIRFLOW_CTX_DAG_RUN_ID", "airflow_run_id"),
    ("AIRFLOW_CTX_LOGICAL_DATE", "airflow_logical_date"),
    ("AIRFLOW_CTX_TRY_NUMBER", "airflow_try"),
];

/// Which Airflow task runs this process; empty outside of Airflow.
pub(super) fn correlation() -> Map<String, Value> {
    correlate(|variable| std::env::var(variable).ok())
}

fn correlate(variable: impl Fn(&str) -> Option<String>) -> Map<String, Value> {
    let known = |(name, field): &(&str, &str)| {
        let value = variable(name).filter(|value| !value.is_empty())?;
        Some((field.to_string(), Value::String(value)))
    };
    AIRFLOW.iter().filter_map(known).collect()
}

/// A line on stderr for whoever watches. Nobody may be left (Ctrl-C ends a `tee` behind it, too): the work goes on.
pub(super) fn tell(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Starts the logs of this process.
pub(super) fn start(global: &Global) -> Result<()> {
    let filter = EnvFilter::try_new(&global.log).map_err(|error| {
        Error::new(ErrorKind::Usage, format!("--log `{}` is not a filter", global.log))
            .caused_by(error)
            .help("write a level (error, warn, info, debug, trace) or something like `tidegate=debug,warn`")
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        // It would say with `eprintln!`, which panics, that nothing can be said.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    match global.log_format {
        LogFormat::Text => subscriber.with_target(false).init(),
        LogFormat::Json => {
            let lines = Format::default().json().flatten_event(true);
            subscriber.fmt_fields(JsonFields::new()).event_format(Correlated::new(lines, &correlation())).init();
        }
    }
    Ok(())
}

/// JSON lines that begin with who called. A span would not do: work on other threads is outside of it.
struct Correlated {
    lines: Format<Json>,
    /// `"airflow_dag_id":"orders",…,` or nothing.
    members: String,
}

impl Correlated {
    fn new(lines: Format<Json>, correlation: &Map<String, Value>) -> Correlated {
        let member = |(name, value): (&String, &Value)| format!("{}:{value},", Value::String(name.clone()));
        Correlated { lines, members: correlation.iter().map(member).collect() }
    }
}

impl<S, N> FormatEvent<S, N> for Correlated
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.lines.format_event(context, Writer::new(&mut line), event)?;
        match line.strip_prefix('{') {
            Some(members) => write!(out, "{{{}{members}", self.members),
            None => out.write_str(&line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_airflow_says_of_the_task_is_passed_on() {
        let environment = |name: &str| match name {
            "AIRFLOW_CTX_DAG_ID" => Some("orders".to_string()),
            "AIRFLOW_CTX_TRY_NUMBER" => Some("2".to_string()),
            "AIRFLOW_CTX_TASK_ID" => Some(String::new()),
            "AIRFLOW_CTX_DAG_EMAIL" | "PATH" => Some("private".to_string()),
            _ => None,
        };
        let expected = serde_json::json!({ "airflow_dag_id": "orders", "airflow_try": "2" });
        assert_eq!(Value::Object(correlate(environment)), expected);
        assert!(correlate(|_| None).is_empty());
    }
}
