//! A folder per test and the real binary in it. Whatever goes wrong is shown with the command, the folder's listing, the
//! status and both streams, so that a failure in CI can be understood without running it again.

#![allow(clippy::disallowed_methods, reason = "a test's own files need no durability")]

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Longer than any run of the tests takes on two loaded cores; a run that hangs must not hang the suite.
const DEADLINE: Duration = Duration::from_secs(600);

/// A folder named after the test. Deleted when the test passes; kept and named when it fails, or with `TIDEGATE_KEEP=1`.
pub struct Sandbox {
    dir: Option<TempDir>,
    path: PathBuf,
    runs: AtomicU32,
}

impl Sandbox {
    /// Makes the folder.
    pub fn new(test: &str) -> Self {
        let dir = tempfile::Builder::new().prefix(&format!("tidegate-{test}-")).tempdir().expect("a temporary folder");
        let path = dir.path().canonicalize().expect("it was just made");
        Sandbox { dir: Some(dir), path, runs: AtomicU32::new(0) }
    }

    /// The same in memory, where there is such a place: for tests that make hundreds of them.
    pub fn in_memory(test: &str) -> Self {
        let mut builder = tempfile::Builder::new();
        let prefix = format!("tidegate-{test}-");
        let builder = builder.prefix(&prefix);
        let Ok(dir) = builder.tempdir_in("/dev/shm") else { return Sandbox::new(test) };
        let path = dir.path().canonicalize().expect("it was just made");
        Sandbox { dir: Some(dir), path, runs: AtomicU32::new(0) }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file, with its folders.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(path.parent().expect("inside the sandbox")).expect("folders");
        fs::write(&path, text).expect("a file in the sandbox");
        path
    }

    /// Deletes a file or folder, if it is there.
    pub fn remove(&self, name: &str) {
        let path = self.path.join(name);
        if path.is_dir() {
            fs::remove_dir_all(path).expect("deletable");
        } else if path.exists() {
            fs::remove_file(path).expect("deletable");
        }
    }

    /// The real binary with these arguments, in this folder, and with nothing of ours in its environment.
    pub fn tidegate(&self, arguments: &[&str]) -> Tidegate<'_> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.args(arguments).current_dir(&self.path).env("NO_COLOR", "1");
        for (name, _) in std::env::vars() {
            if name.starts_with("TIDEGATE_") || matches!(name.as_str(), "LAKE" | "CHECKPOINTS" | "KAFKA_BROKERS") {
                command.env_remove(name);
            }
        }
        Tidegate { sandbox: self, command, shown: format!("tidegate {}", arguments.join(" ")), is_unwatched: false }
    }

    /// `tidegate run FILE --trigger available_now --output json`, to its end.
    pub fn drain(&self, file: &str) -> Outcome {
        self.tidegate(&["run", file, "--trigger", "available_now", "--output", "json"]).run()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let wanted = std::thread::panicking() || std::env::var_os("TIDEGATE_KEEP").is_some();
        if let Some(dir) = self.dir.take().filter(|_| wanted) {
            eprintln!("kept {}", dir.keep().display());
        }
    }
}

/// A command that has not started yet.
pub struct Tidegate<'a> {
    sandbox: &'a Sandbox,
    command: Command,
    shown: String,
    is_unwatched: bool,
}

impl Tidegate<'_> {
    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self.shown = format!("{name}={value} {}", self.shown);
        self
    }

    /// Its stderr is a pipe that nobody reads any more.
    pub fn unwatched(mut self) -> Self {
        self.is_unwatched = true;
        self
    }

    /// Starts it and waits for its end.
    pub fn run(self) -> Outcome {
        self.start().finish(DEADLINE).expect("tidegate did not end in time; it was killed")
    }

    /// Starts it.
    pub fn start(mut self) -> Running {
        let number = self.sandbox.runs.fetch_add(1, Ordering::Relaxed);
        let stream = |name: &str| self.sandbox.path.join(format!(".{name}-{number}"));
        let (stdout, stderr) = (stream("stdout"), stream("stderr"));
        let open = |path: &Path| Stdio::from(File::create(path).expect("a file for a stream"));
        let nobody = || Stdio::from(std::io::pipe().expect("a pipe").1);
        let child = self
            .command
            .stdin(Stdio::null())
            .stdout(open(&stdout))
            .stderr(if self.is_unwatched { nobody() } else { open(&stderr) })
            .spawn()
            .unwrap_or_else(|cause| panic!("cannot start {}: {cause}", env!("CARGO_BIN_EXE_tidegate")));
        let started = Instant::now();
        Running { child, shown: self.shown, cwd: self.sandbox.path.clone(), stdout, stderr, started }
    }
}

/// A process under way. Killed when dropped.
pub struct Running {
    child: Child,
    shown: String,
    cwd: PathBuf,
    stdout: PathBuf,
    stderr: PathBuf,
    started: Instant,
}

impl Running {
    /// Waits for its end, `patience` at most; `None` = it was killed with SIGKILL.
    pub fn finish(mut self, patience: Duration) -> Option<Outcome> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                return Some(self.outcome(status));
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for its end, `patience` at most, then kills it with SIGKILL: an outcome in any case.
    pub fn end(mut self, patience: Duration) -> Outcome {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                return self.outcome(status);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // It may have ended by itself meanwhile.
        self.child.kill().ok();
        let status = self.child.wait().expect("our own child");
        self.outcome(status)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it is over.
    pub fn ended(&self) -> bool {
        // `try_wait` needs `&mut`; a zombie that nobody has waited for says so in its state.
        let state = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        state.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
    }

    /// Sends a signal by name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.expect("kill(1)").success(), "no process to send {name} to");
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stdout).unwrap_or_default()).into_owned()
    }

    /// What it has logged so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    fn outcome(&self, status: ExitStatus) -> Outcome {
        let text = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        Outcome {
            status,
            stdout: text(&self.stdout),
            stderr: text(&self.stderr),
            took: self.started.elapsed(),
            shown: self.shown.clone(),
            cwd: self.cwd.clone(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already ended: both are no-ops that fail.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// How it ended and what it said.
pub struct Outcome {
    /// Exit status.
    pub status: ExitStatus,
    /// The result.
    pub stdout: String,
    /// Logs and progress.
    pub stderr: String,
    /// Wall time.
    pub took: Duration,
    shown: String,
    cwd: PathBuf,
}

impl Outcome {
    /// Requires exit code 0.
    #[track_caller]
    pub fn success(self) -> Self {
        self.code(&[0])
    }

    /// Requires one of these exit codes.
    #[track_caller]
    pub fn code(self, codes: &[i32]) -> Self {
        let code = self.status.code();
        assert!(code.is_some_and(|code| codes.contains(&code)), "exit code not among {codes:?}\n{}", self.report());
        self
    }

    /// Requires `text` on stderr.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "stderr does not say {text:?}\n{}", self.report());
        self
    }

    /// The JSON object on the last line of stdout.
    #[track_caller]
    pub fn json(&self) -> Value {
        let last = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last)
            .unwrap_or_else(|cause| panic!("no JSON on the last line: {cause}\n{}", self.report()))
    }

    /// `input_rows` of every batch of the run.
    #[track_caller]
    pub fn batches(&self) -> Vec<u64> {
        let json = self.json();
        let batches = json["batches"].as_array().unwrap_or_else(|| panic!("no `batches`\n{}", self.report()));
        let rows = |batch: &Value| batch["input_rows"].as_u64();
        batches.iter().map(|b| rows(b).unwrap_or_else(|| panic!("no `input_rows` in {b}\n{}", self.report()))).collect()
    }

    /// Everything a person needs to understand a failure.
    pub fn report(&self) -> String {
        let mut listing = String::new();
        list(&self.cwd, 0, &mut listing);
        format!(
            "\ncommand: {}\ncwd:     {}\nstatus:  {} after {:?}\n--- folder\n{listing}--- stdout\n{}\n--- stderr\n{}\n---",
            self.shown,
            self.cwd.display(),
            self.status,
            self.took,
            tail(&self.stdout),
            tail(&self.stderr)
        )
    }
}

fn tail(text: &str) -> &str {
    const KEPT: usize = 20_000;
    let cut = text.len().saturating_sub(KEPT);
    let cut = (cut..=text.len()).find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    &text[cut..]
}

fn list(dir: &Path, depth: usize, listing: &mut String) {
    const SHOWN: usize = 12;
    let mut entries: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries.iter().take(SHOWN) {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let size = fs::metadata(path).map_or(0, |m| m.len());
        let indent = "  ".repeat(depth + 1);
        if path.is_dir() {
            writeln!(listing, "{indent}{name}/").expect("a string");
            list(path, depth + 1, listing);
        } else {
            writeln!(listing, "{indent}{name} {size}").expect("a string");
        }
    }
    if entries.len() > SHOWN {
        writeln!(listing, "{}… {} more", "  ".repeat(depth + 1), entries.len() - SHOWN).expect("a string");
    }
}
