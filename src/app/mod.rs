//! Where everything is joined: one module a subcommand, and the composition of a pipeline from its parts.

mod checkpoint;
mod compose;
mod init;
mod maintain;
mod offsets;
mod output;
mod plan;
mod progress;
mod run;
mod status;
mod test;
mod validate;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::CommandFactory;
use tracing_subscriber::EnvFilter;

use crate::cli::{CheckpointCommand, Cli, Command, Global, LogFormat, OffsetsCommand, Output};
use crate::config::report::Report;
use crate::error::{Error, ErrorKind, Result};

/// How a command ended: what goes to stdout, and the exit code.
pub(crate) struct Outcome {
    /// Printed as it is with `--output text`.
    text: String,
    /// Printed on one line with `--output json`.
    json: serde_json::Value,
    code: u8,
}

/// A failure: of the configuration, with positions, or of anything else.
pub(crate) enum Failure {
    Report(Box<Report>),
    Error(Box<Error>),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Error(Box::new(error))
    }
}

impl From<Report> for Failure {
    fn from(report: Report) -> Self {
        Failure::Report(Box::new(report))
    }
}

/// Runs a command line to its exit code.
pub fn main(cli: Cli) -> ExitCode {
    if let Err(error) = start_logging(&cli.global) {
        return finish(&cli.global, Err(error.into()));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let error = Error::failed("the async runtime did not start").caused_by(error);
            return finish(&cli.global, Err(error.into()));
        }
    };
    let outcome = runtime.block_on(dispatch(&cli)).map_err(|failure| name_file(failure, &cli));
    // Detached work (a metadata refresh of librdkafka, say) must not hold up the exit.
    runtime.shutdown_background();
    finish(&cli.global, outcome)
}

async fn dispatch(cli: &Cli) -> Result<Outcome, Failure> {
    let global = &cli.global;
    match &cli.command {
        Command::Init(args) => init::init(args).await,
        Command::Validate(args) => validate::validate(global, args).await,
        Command::Plan(args) => plan::plan(global, args).await,
        Command::Run(args) => run::run(global, args).await,
        Command::Test(args) => test::test(global, args).await,
        Command::Status(args) => status::status(global, args).await,
        Command::Offsets(OffsetsCommand::Show(args)) => offsets::show(global, args).await,
        Command::Offsets(OffsetsCommand::Set(args)) => offsets::set(global, args).await,
        Command::Offsets(OffsetsCommand::Rewind(args)) => offsets::rewind(global, args).await,
        Command::Checkpoint(CheckpointCommand::Show(args)) => checkpoint::show::show(global, args).await,
        Command::Checkpoint(CheckpointCommand::Verify(args)) => checkpoint::verify::verify(global, args).await,
        Command::Checkpoint(CheckpointCommand::Rebuild(args)) => checkpoint::rebuild::rebuild(global, args).await,
        Command::Optimize(args) => maintain::optimize(global, args).await,
        Command::Vacuum(args) => maintain::vacuum(global, args).await,
        Command::Schema => {
            let schema = crate::config::json_schema();
            Ok(Outcome { text: format!("{schema:#}\n"), json: schema, code: 0 })
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "tidegate", &mut script);
            let text = String::from_utf8_lossy(&script).into_owned();
            Ok(Outcome { json: serde_json::json!({ "script": text }), text, code: 0 })
        }
    }
}

/// Commands to type name the file that was given.
fn name_file(failure: Failure, cli: &Cli) -> Failure {
    let file = match &cli.command {
        Command::Plan(args) | Command::Offsets(OffsetsCommand::Show(args)) => &args.file,
        Command::Run(args) => &args.pipeline.file,
        Command::Status(args) => &args.pipeline.file,
        Command::Offsets(OffsetsCommand::Set(args)) => &args.pipeline.file,
        Command::Offsets(OffsetsCommand::Rewind(args)) => &args.pipeline.file,
        Command::Checkpoint(CheckpointCommand::Show(args)) => &args.pipeline.file,
        Command::Checkpoint(CheckpointCommand::Verify(args)) => &args.pipeline.file,
        Command::Checkpoint(CheckpointCommand::Rebuild(args)) => &args.pipeline.file,
        _ => return failure,
    };
    match failure {
        Failure::Error(error) => Failure::Error(Box::new(error.naming(&output::file_argument(&cli.global, file)))),
        report => report,
    }
}

fn start_logging(global: &Global) -> Result<()> {
    let filter = EnvFilter::try_new(&global.log).map_err(|error| {
        Error::new(ErrorKind::Usage, format!("--log `{}` is not a filter", global.log))
            .caused_by(error)
            .help("write a level (error, warn, info, debug, trace) or something like `tidegate=debug,warn`")
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match global.log_format {
        LogFormat::Text => subscriber.with_target(false).init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Prints the outcome: logs and errors on stderr first, then the result as the last bytes on stdout.
fn finish(global: &Global, outcome: Result<Outcome, Failure>) -> ExitCode {
    let (text, json, code) = match outcome {
        Ok(outcome) => (outcome.text, outcome.json, outcome.code),
        Err(failure) => {
            let (report, json, code) = match failure {
                Failure::Report(report) => (report.render(), report.to_json(), ErrorKind::Config.exit_code()),
                Failure::Error(error) => (error.report(), output::error_json(&error), error.kind().exit_code()),
            };
            eprint!("{report}");
            (String::new(), serde_json::json!({ "version": 1, "status": "failed", "error": json }), code)
        }
    };
    // A closed pipe (`| head`) is not an error worth a message.
    let mut stdout = std::io::stdout().lock();
    let _ = match global.output {
        Output::Text => stdout.write_all(text.as_bytes()),
        Output::Json => writeln!(stdout, "{json}"),
    };
    let _ = stdout.flush();
    ExitCode::from(code)
}
