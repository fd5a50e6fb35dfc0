//! Where everything is joined: one module a subcommand, and the composition of a pipeline from its parts.

mod backfill;
mod checkpoint;
mod compose;
mod dlq;
mod explain;
mod file;
mod forget;
mod graph;
mod history;
mod init;
mod lag;
mod logging;
mod maintain;
mod offsets;
mod output;
mod plan;
mod progress;
mod query;
mod rebuild;
mod run;
mod serve;
mod status;
mod test;
mod validate;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::CommandFactory;
use serde_json::{Value, json};

use self::logging::tell;
use crate::cli::{CheckpointCommand, Cli, Command, Global, OffsetsCommand, Output};
use crate::config::report::Report;
use crate::error::{Code, Error, ErrorKind};

/// How a command ended: what goes to stdout, and the exit code.
pub(crate) struct Outcome {
    /// Printed as it is with `--output text`.
    text: String,
    /// Printed on one line with `--output json`.
    json: Value,
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
    if let Err(error) = logging::start(&cli.global) {
        return End::of(Err(error.into())).print(&cli.global);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let error = Error::failed("the async runtime did not start").caused_by(error);
            return End::of(Err(error.into())).print(&cli.global);
        }
    };
    let end = runtime.block_on(async {
        let outcome = dispatch(&cli).await.map_err(|failure| name_file(failure, &cli));
        End::of(outcome).keep(&cli.global).await
    });
    // Not shut down. Detached work (a metadata refresh of librdkafka, say) must not hold up the exit; and a thread that is
    // detached while it ends can crash the process: `pthread_detach` of glibc (2.36 at least) reads from a thread that it
    // has let go of and that may be gone, stack and all.
    std::mem::forget(runtime);
    end.print(&cli.global)
}

/// What the parser of the command line says: help and version on stdout, or what is wrong on stderr.
pub fn misused(said: &clap::Error) -> ExitCode {
    if !said.use_stderr() {
        let _ = said.print();
        return ExitCode::SUCCESS;
    }
    let text = match std::io::stderr().is_terminal() {
        true => said.render().ansi().to_string(),
        false => said.render().to_string(),
    };
    tell(text.replacen("error:", &format!("error[{}]:", Code::Usage), 1).trim_end());
    if wants_json(std::env::args_os().skip(1), std::env::var_os("TIDEGATE_OUTPUT")) {
        let _ = writeln!(std::io::stdout(), "{}", misuse_json(said));
    }
    ExitCode::from(ErrorKind::Usage.exit_code())
}

/// Whether a command line that is not understood asks for JSON: the last word counts, as where it is.
fn wants_json(arguments: impl Iterator<Item = OsString>, variable: Option<OsString>) -> bool {
    let words: Vec<String> = arguments.map(|word| word.to_string_lossy().into_owned()).collect();
    let options =
        words.iter().take_while(|word| *word != "--").enumerate().filter_map(|(at, word)| match word.as_str() {
            "--output" => words.get(at + 1).map(String::as_str),
            word => word.strip_prefix("--output="),
        });
    let asked = options.last().map(str::to_owned).or_else(|| variable.map(|word| word.to_string_lossy().into_owned()));
    asked.is_some_and(|word| word == "json")
}

fn misuse_json(said: &clap::Error) -> Value {
    let text = said.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let message = lines.next().unwrap_or_default().trim_start_matches("error: ");
    let mut error = Error::new(ErrorKind::Usage, message);
    for line in lines {
        error = error.help(line);
    }
    correlated(json!({ "version": 1, "status": "failed", "error": output::error_json(&error) }))
}

async fn dispatch(cli: &Cli) -> Result<Outcome, Failure> {
    let global = &cli.global;
    match &cli.command {
        Command::Init(args) => init::init(global, args).await,
        Command::Validate(args) => validate::validate(global, args).await,
        Command::Plan(args) => plan::plan(global, args).await,
        Command::Run(args) => run::run(global, args).await,
        Command::Backfill(args) => backfill::backfill(global, args).await,
        Command::Rebuild(args) => rebuild::rebuild(global, args).await,
        Command::Serve(args) => serve::serve(global, args).await,
        Command::Test(args) => test::test(global, args).await,
        Command::Status(args) => status::status(global, args).await,
        Command::History(args) => history::history(global, args).await,
        Command::Lag(args) => lag::lag(global, args).await,
        Command::Query(args) => query::query(global, args).await,
        Command::Graph(args) => graph::graph(global, args).await,
        Command::Explain(args) => explain::explain(args),
        Command::Offsets(OffsetsCommand::Show(args)) => offsets::show(global, args).await,
        Command::Offsets(OffsetsCommand::Set(args)) => offsets::set(global, args).await,
        Command::Offsets(OffsetsCommand::Rewind(args)) => offsets::rewind(global, args).await,
        Command::Dlq(command) => dlq::dlq(global, command).await,
        Command::Checkpoint(CheckpointCommand::Show(args)) => checkpoint::show::show(global, args).await,
        Command::Checkpoint(CheckpointCommand::Verify(args)) => checkpoint::verify::verify(global, args).await,
        Command::Checkpoint(CheckpointCommand::Rebuild(args)) => checkpoint::rebuild::rebuild(global, args).await,
        Command::Optimize(args) => maintain::optimize(global, args).await,
        Command::Vacuum(args) => maintain::vacuum(global, args).await,
        Command::Forget(args) => forget::forget(global, args).await,
        Command::Schema => {
            let schema = crate::config::json_schema();
            Ok(Outcome { text: format!("{schema:#}\n"), json: schema, code: 0 })
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "tidegate", &mut script);
            let text = String::from_utf8_lossy(&script).into_owned();
            Ok(Outcome { json: json!({ "script": text }), text, code: 0 })
        }
    }
}

/// Commands to type name the file that was given.
fn name_file(failure: Failure, cli: &Cli) -> Failure {
    let file: &std::path::Path = match &cli.command {
        Command::Plan(args) | Command::Offsets(OffsetsCommand::Show(args)) => &args.file,
        Command::Run(args) => &args.pipeline.file,
        Command::Backfill(args) => &args.pipeline.file,
        Command::Rebuild(args) => &args.pipeline.file,
        Command::Status(args) => match args.files.as_slice() {
            [file] => file,
            _ => return failure,
        },
        Command::History(args) => &args.pipeline.file,
        Command::Graph(args) => &args.pipeline.file,
        Command::Offsets(OffsetsCommand::Set(args)) => &args.pipeline.file,
        Command::Offsets(OffsetsCommand::Rewind(args)) => &args.pipeline.file,
        Command::Checkpoint(CheckpointCommand::Show(args)) => &args.pipeline.file,
        Command::Checkpoint(CheckpointCommand::Verify(args)) => &args.pipeline.file,
        Command::Checkpoint(CheckpointCommand::Rebuild(args)) => &args.pipeline.file,
        Command::Dlq(command) => &command.pipeline().file,
        Command::Forget(args) => &args.pipeline.file,
        Command::Query(args) => match (&args.lake, args.words.first()) {
            (None, Some(file)) => std::path::Path::new(file),
            _ => return failure,
        },
        _ => return failure,
    };
    match failure {
        Failure::Error(error) => Failure::Error(Box::new(error.naming(&output::file_argument(&cli.global, file)))),
        report => report,
    }
}

/// What a process leaves behind.
struct End {
    /// For stderr.
    report: String,
    /// For stdout.
    text: String,
    /// For stdout with `--output json`, and for the file of `--output-file`.
    json: Value,
    code: u8,
}

impl End {
    fn of(outcome: Result<Outcome, Failure>) -> End {
        let (report, error, code) = match outcome {
            Ok(Outcome { text, json, code }) => {
                return End { report: String::new(), text, json: correlated(json), code };
            }
            Err(Failure::Report(report)) => {
                (report.render(), output::report_json(&report), ErrorKind::Config.exit_code())
            }
            Err(Failure::Error(error)) => (error.report(), output::error_json(&error), error.kind().exit_code()),
        };
        let json = json!({ "version": 1, "status": "failed", "error": error });
        End { report, text: String::new(), json: correlated(json), code }
    }

    /// Writes the file that the result is asked for in. When that fails, what was done stays done.
    async fn keep(mut self, global: &Global) -> End {
        let Some(path) = &global.output_file else { return self };
        if let Err(error) = file::write(path, format!("{}\n", self.json)).await {
            let error = error.help("the command itself has ended as its result on stdout says; it can be run again");
            self.report.push_str(&error.report());
            self.code = if self.code == 0 { error.kind().exit_code() } else { self.code };
        }
        self
    }

    /// Logs and errors on stderr first, then the result as the last bytes on stdout.
    fn print(self, global: &Global) -> ExitCode {
        if !self.report.is_empty() {
            tell(self.report.trim_end_matches('\n'));
        }
        // A closed pipe (`| head`) is not an error worth a message.
        let mut stdout = std::io::stdout().lock();
        let _ = match global.output {
            Output::Text if global.quiet => Ok(()),
            Output::Text => stdout.write_all(self.text.as_bytes()),
            Output::Json => writeln!(stdout, "{}", self.json),
        };
        let _ = stdout.flush();
        ExitCode::from(self.code)
    }
}

/// A result, with the Airflow task that asked for it.
fn correlated(mut json: Value) -> Value {
    if let Value::Object(members) = &mut json {
        members.extend(logging::correlation());
    }
    json
}
