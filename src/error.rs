//! One error type for the whole program: what happened, what was not done, and what to type.
//!
//! An [`ErrorKind`] says what the operator (or Airflow) does next and maps to one exit code; adding a kind means adding
//! a row to the README's table. Whether a failed write may have landed is a separate question, answered by
//! [`Certainty`], because only "unknown" forces the runner to look again before it does anything else.

use std::fmt;

mod codes;

pub use codes::{Code, Page};

/// What an operator does about a failure. Each kind is one row of the exit-code table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Not classified below: a bug or an environment nobody foresaw. Retry a bounded number of times.
    Failed,
    /// The command line is wrong. Do not retry.
    Usage,
    /// The data broke a rule the user wrote: an `else: fail` expectation, the dead-letter budget. Do not retry.
    Data,
    /// The checkpoint points at offsets the source no longer has, or the topic is another one. Do not retry.
    OffsetsLost,
    /// Broker or storage unreachable after retries. Retry.
    Unavailable,
    /// Another runner owns the pipeline, or commit conflicts were exhausted. Retry later.
    Busy,
    /// YAML, SQL, schema, or a table or checkpoint that does not belong to this pipeline. Do not retry.
    Config,
}

impl ErrorKind {
    /// The process exit code (sysexits where one fits; see README).
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Failed => 1,
            ErrorKind::Usage => 2,
            ErrorKind::Data => 65,
            ErrorKind::OffsetsLost => 66,
            ErrorKind::Unavailable => 69,
            ErrorKind::Busy => 75,
            ErrorKind::Config => 78,
        }
    }

    /// A stable word for JSON output.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::Failed => "failed",
            ErrorKind::Usage => "usage",
            ErrorKind::Data => "data",
            ErrorKind::OffsetsLost => "offsets_lost",
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::Busy => "busy",
            ErrorKind::Config => "config",
        }
    }
}

/// Whether a failed write may have happened all the same (a lost reply, a time-out).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certainty {
    /// Definitely not applied.
    NotApplied,
    /// May have been applied: observe again, never resend.
    Unknown,
}

/// A failure with context. `Display` is one line; [`Error::report`] is what a person reads.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    code: Code,
    message: String,
    context: Vec<(&'static str, String)>,
    help: Vec<String>,
    certainty: Certainty,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failure of `kind`; `message` is lowercase, without a full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error {
            kind,
            code: Code::of_kind(kind),
            message: message.into(),
            context: Vec::new(),
            help: Vec::new(),
            certainty: Certainty::NotApplied,
            source: None,
        }
    }

    /// An unclassified failure.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    /// A configuration failure.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// Gives it a code that says more than its kind.
    pub fn coded(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// Adds a fact (table, batch, path, …) shown under the message.
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.context.push((key, value.to_string()));
        self
    }

    /// Adds a line that says what happens next or what to type.
    pub fn help(mut self, line: impl Into<String>) -> Self {
        self.help.push(line.into());
        self
    }

    /// Attaches the underlying error.
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Marks the failed write as possibly applied.
    pub fn maybe_applied(mut self) -> Self {
        self.certainty = Certainty::Unknown;
        self
    }

    /// Puts the pipeline's file into the commands to type, which layers that do not know it write as `tidegate … FILE`.
    /// `file` is put in as it is: quoted for a shell, with the options that go with it.
    pub fn naming(mut self, file: &str) -> Self {
        for line in self.help.iter_mut().filter(|line| line.contains("tidegate ")) {
            let words: Vec<String> = line.split(' ').map(|word| named(word, file)).collect();
            *line = words.join(" ");
        }
        self
    }

    /// What the operator does next.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The stable name of its class of problems.
    pub fn code(&self) -> Code {
        self.code
    }

    /// Whether the failed write may have landed.
    pub fn certainty(&self) -> Certainty {
        self.certainty
    }

    /// The bare message.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The help lines.
    pub fn help_lines(&self) -> &[String] {
        &self.help
    }

    /// The underlying errors, outermost first, repeated texts removed (many libraries print their source themselves).
    pub fn causes(&self) -> Vec<String> {
        let mut causes: Vec<String> = Vec::new();
        let mut next: Option<&(dyn std::error::Error + 'static)> = self.source.as_deref().map(|e| e as _);
        while let Some(cause) = next {
            let text = cause.to_string();
            if !text.is_empty() && !causes.iter().any(|seen| seen.contains(&text)) {
                causes.push(text);
            }
            next = cause.source();
        }
        causes
    }

    /// The multi-line text for a terminal or a log.
    pub fn report(&self) -> String {
        let mut text = format!("error[{}]: {}\n", self.code, self.message);
        for (key, value) in &self.context {
            text.push_str(&format!("  {key}: {value}\n"));
        }
        for cause in self.causes() {
            text.push_str(&format!("  caused by: {}\n", cause.trim_end().replace('\n', "\n    ")));
        }
        for line in &self.help {
            text.push_str(&format!("  help: {}\n", line.replace('\n', "\n        ")));
        }
        text
    }
}

/// `FILE`, with the punctuation that may follow it.
fn named(word: &str, file: &str) -> String {
    match word.strip_prefix("FILE") {
        Some(rest) if rest.chars().all(|c| !c.is_alphanumeric()) => format!("{file}{rest}"),
        _ => word.to_string(),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for (key, value) in &self.context {
            write!(f, ", {key}: {value}")?;
        }
        for cause in self.causes() {
            write!(f, ": {}", cause.replace('\n', " "))?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

/// Gives a foreign error a kind and a sentence of ours.
pub trait Context<T> {
    /// Wraps the error as `kind` with `message`.
    fn context(self, kind: ErrorKind, message: impl Into<String>) -> Result<T>;
}

impl<T, E> Context<T> for std::result::Result<T, E>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn context(self, kind: ErrorKind, message: impl Into<String>) -> Result<T> {
        self.map_err(|cause| Error::new(kind, message).caused_by(cause))
    }
}
