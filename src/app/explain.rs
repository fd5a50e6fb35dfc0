//! `tidegate explain`: the page about a code.

use serde_json::{Value, json};

use super::{Failure, Outcome};
use crate::cli::ExplainArgs;
use crate::error::{Code, Error, ErrorKind};

/// Characters of a line for people.
const WIDTH: usize = 100;

pub(super) fn explain(args: &ExplainArgs) -> Result<Outcome, Failure> {
    let Some(text) = &args.code else { return Ok(all()) };
    let code = Code::parse(text).ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("there is no code `{text}`")).help("all codes: tidegate explain")
    })?;
    let page = code.page();
    let text = format!(
        "{code}: {}\n\n{}\n\nWhat to do:\n{}\n\nExample:\n  error[{code}]: {}\n",
        page.title,
        wrapped(page.happened),
        wrapped(page.remedy),
        page.example
    );
    Ok(Outcome { text, json: json!({ "version": 1, "status": "ok", "code": entry(code) }), code: 0 })
}

fn all() -> Outcome {
    let text = Code::ALL.iter().map(|code| format!("{code}  {}\n", code.page().title)).collect();
    let codes: Vec<Value> = Code::ALL.iter().map(|code| entry(*code)).collect();
    Outcome { text, json: json!({ "version": 1, "status": "ok", "codes": codes }), code: 0 }
}

fn entry(code: Code) -> Value {
    let page = code.page();
    json!({
        "code": code.to_string(), "title": page.title, "happened": page.happened, "remedy": page.remedy,
        "example": page.example,
    })
}

/// Lines of at most [`WIDTH`] characters, broken between words.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.len() - 1;
        let taken = lines[line].chars().count();
        match taken > 0 && taken + 1 + word.chars().count() > WIDTH {
            true => lines.push(word.to_string()),
            false if taken == 0 => lines[line].push_str(word),
            false => lines[line].push_str(&format!(" {word}")),
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_broken_between_words_and_keeps_them_all() {
        for code in Code::ALL {
            let text = code.page().remedy;
            let broken = wrapped(text);
            assert!(broken.lines().all(|line| line.chars().count() <= WIDTH), "{broken}");
            assert_eq!(broken.replace('\n', " "), text);
        }
    }
}
