//! The commands that only look say what is there: known lakes and topics, and their numbers.
//!
//! Texts are held against `tests/golden/look/`, times and sizes masked; `TIDEGATE_BLESS=1` writes them anew, to be read
//! before they are committed.

mod codes;
mod kafka;
mod lake;

use regex::Regex;

/// Holds `text` against a golden file.
#[track_caller]
fn golden(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/look").join(name);
    if std::env::var_os("TIDEGATE_BLESS").is_some() {
        #[allow(clippy::disallowed_methods, reason = "a test writes its own golden files, on request")]
        std::fs::create_dir_all(path.parent().expect("a folder"))
            .and_then(|()| std::fs::write(&path, text))
            .expect("the golden file");
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == text,
        "{name} differs\n--- expected\n{expected}\n--- found\n{text}\n--- TIDEGATE_BLESS=1 writes it"
    );
}

/// Without what differs from run to run: times, durations, sizes, processes, the sandbox's path. Runs of spaces become two,
/// because a masked number is as wide as it is.
fn masked(text: &str, sandbox: &crate::support::Sandbox) -> String {
    let masks = [
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
        (r"pid \d+ on host \S+", "pid PID on host HOST"),
        (r"\b\d+ (d|h|m)( \d+ (h|m|s))?( ago| old|\b)", "AGO"),
        (r"\b\d+(\.\d)? (ms|s)( ago)?\b", "SPAN"),
        (r"[\d,]+ bytes", "BYTES bytes"),
        (r"(?m)^(  (?:bronze|silver|gold|dlq)\.\S+ .*?)[\d,]+$", "${1}N"),
        (r" {2,}", "  "),
    ];
    let text = text.replace(&sandbox.path().display().to_string(), "SANDBOX");
    masks.iter().fold(text, |text, (pattern, mask)| {
        Regex::new(pattern).expect("a pattern").replace_all(&text, *mask).into_owned()
    })
}
