//! `tidegate dlq`: looking at dead letters, replaying them, giving them up. Without `--yes` everything is said and nothing
//! is done.

mod ls;
mod select;
mod settle;
mod show;

use serde_json::{Value, json};

use super::compose::{self, Checked};
use super::{Failure, Outcome};
use crate::checkpoint::Identity;
use crate::checkpoint::log::ObjectLog;
use crate::cli::{DlqCommand, Global};
use crate::config::spec::PipelineSpec;
use crate::error::{Error, ErrorKind, Result};
use crate::table::Table;
use crate::transform::Stage;
use crate::transform::letter::Letter;

pub(super) async fn dlq(global: &Global, command: &DlqCommand) -> Result<Outcome, Failure> {
    match command {
        DlqCommand::Ls(args) => ls::ls(global, args).await,
        DlqCommand::Show(args) => show::show(global, args).await,
        DlqCommand::Replay(args) => settle::replay(global, args).await,
        DlqCommand::Discard(args) => settle::discard(global, args).await,
    }
}

/// Name of the dead-letter table.
fn table_name(spec: &PipelineSpec) -> Result<String> {
    let name = spec.dead_letters.as_ref().map(|dead_letters| dead_letters.table.clone());
    name.ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("the pipeline `{}` sets no rows aside", spec.name))
            .help("its file says `dead_letters: off`: a bad row fails its batch")
    })
}

/// The log and its identity; `None` = the pipeline never ran.
async fn ran_before(checked: &Checked) -> Result<Option<(ObjectLog, Identity)>> {
    let log = compose::open_log(&checked.spec)?;
    let identity = compose::known_identity(&checked.spec, &log).await?;
    if identity.is_none() {
        compose::check_never_ran(checked, &log).await?;
    }
    Ok(identity.map(|identity| (log, identity)))
}

/// The dead-letter table.
fn open(checked: &Checked, identity: &Identity) -> Result<Box<dyn Table>> {
    let name = table_name(&checked.spec)?;
    let mut tables = compose::open_tables(checked, identity)?.into_iter();
    tables.find(|table| table.definition().name == name).ok_or_else(|| Error::failed(format!("no table {name}")))
}

/// As much of an id as people read and type.
fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// An error without the values that it quotes: what a column of numbers does to a thousand records is one cause.
fn without_values(stage: &str, error: &str) -> String {
    if stage != Stage::Decode.as_str() {
        return error.to_string();
    }
    let parts = error.split('`').enumerate().map(|(number, part)| if number % 2 == 1 { "…" } else { part });
    parts.collect::<Vec<_>>().join("`")
}

fn time(at: chrono::DateTime<chrono::Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

/// A letter in a result, without its record.
fn letter_json(letter: &Letter) -> Value {
    json!({
        "id": letter.id, "batch": letter.batch, "table": letter.table, "stage": letter.stage, "rule": letter.rule,
        "error": letter.error,
        "topic": letter.coordinates.as_ref().map(|at| &at.topic),
        "partition": letter.coordinates.as_ref().map(|at| at.partition),
        "offset": letter.coordinates.as_ref().map(|at| at.offset),
        "failed_at": letter.failed_at, "status": letter.status.as_str(), "attempts": letter.attempts,
        "status_batch": letter.status_batch, "status_at": letter.status_at, "note": letter.note,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_of_one_cause_are_one_group_whatever_their_values() {
        let found = without_values("decode", "at: expected timestamp, found `17` (a number)");
        assert_eq!(found, "at: expected timestamp, found `…` (a number)");
        assert_eq!(without_values("decode", "cut off `in the middle"), "cut off `…");
        assert_eq!(without_values("expect", "not true: `a b` > 1"), "not true: `a b` > 1");
    }
}
