//! `tidegate dlq replay` and `discard`: what would happen, and with `--yes` the batches that do it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::{Value, json};

use super::super::backfill::typed;
use super::super::output::{aligned, counted, file_argument, grouped, quoted};
use super::super::{Failure, Outcome, compose};
use super::select::Selection;
use super::{open, ran_before, short, table_name, without_values};
use crate::checkpoint::CheckpointLog;
use crate::checkpoint::backfills::Backfills;
use crate::checkpoint::lock::{self, Lock};
use crate::cli::{DlqDiscardArgs, DlqReplayArgs, Global, LetterArgs, PipelineArgs};
use crate::config::spec::{From, PipelineSpec, TableSpec, WriteSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::model::backfill::{BackfillRecord, IntervalHead};
use crate::model::batch::{BatchId, CommitRecord, Owner, Receipt};
use crate::model::letter::{Action, BACKFILLED, Letters, Status};
use crate::runner::Runner;
use crate::runner::event::Event;
use crate::runner::letters::trial::Verdict;
use crate::runner::letters::{BROUGHT, Ids, Outlook, most_letters};
use crate::transform::letter::Letter;
use crate::transform::{Coordinates, Stage};

pub(super) async fn replay(global: &Global, args: &DlqReplayArgs) -> Result<Outcome, Failure> {
    let what = What { pipeline: &args.pipeline, letters: &args.letters, yes: args.yes, reason: None, is_replay: true };
    settle(global, &what).await
}

pub(super) async fn discard(global: &Global, args: &DlqDiscardArgs) -> Result<Outcome, Failure> {
    let reason = args.reason.clone();
    let what = What { pipeline: &args.pipeline, letters: &args.letters, yes: args.yes, reason, is_replay: false };
    settle(global, &what).await
}

struct What<'a> {
    pipeline: &'a PipelineArgs,
    letters: &'a LetterArgs,
    yes: bool,
    reason: Option<String>,
    is_replay: bool,
}

impl What<'_> {
    fn verb(&self) -> &'static str {
        if self.is_replay { "replay" } else { "discard" }
    }
}

async fn settle(global: &Global, what: &What<'_>) -> Result<Outcome, Failure> {
    let checked = compose::check(global, &what.pipeline.file).await?;
    let spec = checked.spec.clone();
    table_name(&spec)?;
    let selection = Selection::new(what.letters, &[Status::Open], &spec)?;
    check_statuses(&selection, what)?;
    let owner = compose::owner();
    let Some((log, identity)) = ran_before(&checked).await? else {
        selection.check_tables(&[])?;
        return Ok(nothing(&spec, what));
    };
    let _lock = if what.yes { compose::lock(&spec, &log, &owner).map_err(between)? } else { None };
    let backfills = Backfills::new(&super::super::backfill::log_folder(&spec)?, &identity.pipeline_id)?;
    // None begins while letters are replayed, and none is under way. Before letters are chosen: those that one settles after
    // that would be taken for open, and their records are in the tables.
    let _turn = if what.yes && what.is_replay { only_one(&spec, &backfills, &owner)? } else { None };
    let derived = if what.is_replay { derived(&spec, backfills.ledger().await?)? } else { Vec::new() };
    let letters = selection.letters(&mut *open(&checked, &identity)?, what.letters.limit).await?;
    if letters.is_empty() {
        return Ok(nothing(&spec, what));
    }
    let next = log.head().await?.plan.map_or(0, |plan| plan.batch + 1);
    let parts = compose::parts(checked, &identity, owner, Box::new(log), Box::new(|_: &Event| {}))?;
    let mut runner = Runner::new(parts);
    if what.yes {
        // Before anything is tried: what a crash left is finished first.
        runner.standing().await?;
    } else {
        runner.observe().await?;
    }
    let mut account = Account { chosen: letters.len() as u64, ..Account::default() };
    let (letters, held): (Vec<Letter>, Vec<Letter>) =
        letters.into_iter().partition(|letter| !derived.iter().any(|record| may_be_there(&spec, record, letter)));
    held.into_iter().for_each(|letter| account.hold(letter));
    for ids in chunks(&letters) {
        let ids = match what.is_replay {
            true => account.add(runner.try_letters(&ids, next).await?),
            false => {
                let (ids, replayed) = runner.open_letters(&ids).await?;
                replayed.into_iter().for_each(|letter| account.leave(letter, BROUGHT));
                ids
            }
        };
        account.due += ids.values().map(Vec::len).sum::<usize>() as u64;
        if what.yes && !ids.is_empty() {
            let action = match what.is_replay {
                true => Action::Replay,
                false => Action::Discard { reason: what.reason.clone() },
            };
            let record = runner.settle_letters(Letters { action, ids }).await.map_err(begun)?;
            account.batches.push(record.batch);
            account.receive(&record);
        }
    }
    Ok(outcome(global, &spec, what, &selection, &account))
}

/// The lock that backfills of this host take.
fn only_one(spec: &PipelineSpec, backfills: &Backfills, owner: &Owner) -> Result<Option<Lock>> {
    let location = backfills.location();
    let folder = Path::new(&location);
    let taken = format!("a backfill of pipeline `{}` is at work, or another replay", spec.name);
    folder.is_absolute().then(|| lock::acquire_or(folder, &taken, owner)).transpose()
}

/// The days that were derived again. Refused while one is not finished: its tables may have the records of letters that it
/// has not marked yet.
fn derived(spec: &PipelineSpec, heads: Vec<IntervalHead>) -> Result<Vec<BackfillRecord>> {
    if let Some(plan) = heads.iter().find_map(IntervalHead::pending) {
        let label = plan.interval.label(spec.timezone);
        let text =
            format!("a backfill of {label} was begun and is not finished: no dead letter can be replayed under it");
        return Err(Error::new(ErrorKind::Busy, text)
            .with("begun by", format!("pid {} on host {}", plan.owner.pid, plan.owner.host))
            .help("nothing was changed; the records of letters may be in its tables already, and it says of which")
            .help(format!("finish it first: tidegate backfill FILE {} --resume", typed(spec.timezone, plan))));
    }
    Ok(heads.into_iter().filter_map(|head| head.record).collect())
}

/// Whether a backfill may have brought the record of a letter into a table that would hold it twice then: it has marked
/// those that are whole, and keeps in mind which tables it wrote in part.
fn may_be_there(spec: &PipelineSpec, record: &BackfillRecord, letter: &Letter) -> bool {
    if record.committed_at < letter.failed_at {
        return false;
    }
    if record.settles {
        return record.unsettled.contains(&letter.table);
    }
    let mut reached = vec![letter.table.as_str()];
    for table in &spec.tables {
        if matches!(&table.from, From::Table(upstream) if reached.contains(&upstream.as_str())) {
            reached.push(&table.name);
        }
    }
    let is_appended = |table: &TableSpec| table.write == WriteSpec::Append && reached.contains(&table.name.as_str());
    letter.batch != BACKFILLED && letter.stage != Stage::Decode.as_str() && spec.tables.iter().any(is_appended)
}

/// Letters that were replayed are in the tables: once is enough.
fn check_statuses(selection: &Selection<'_>, what: &What<'_>) -> Result<()> {
    let settled = match what.is_replay {
        true => &[Status::Replayed][..],
        false => &[Status::Replayed, Status::Discarded],
    };
    match selection.statuses().iter().find(|status| settled.contains(status)) {
        None => Ok(()),
        Some(status) => Err(Error::new(
            ErrorKind::Usage,
            format!("letters that are {} cannot be {}ed", status.as_str(), what.verb()),
        )
        .help("nothing was changed")
        .help("a replayed letter's record is in the tables; to read records again: tidegate offsets rewind FILE")),
    }
}

fn between(error: Error) -> Error {
    error.help("stop the runner, do this, and start it again; between two runs of a schedule nothing has to be stopped")
}

fn begun(error: Error) -> Error {
    error
        .help("a batch that was planned is finished by the next run, exactly once: tidegate run FILE --trigger once")
        .help("letters that were not in it are as they were: type the same command again")
}

/// Letters in batches. The same place in a topic that was made again is another record, and goes into another batch.
fn chunks(letters: &[Letter]) -> Vec<Ids> {
    let mut chunks = Vec::new();
    let mut left: Vec<&Letter> = letters.iter().collect();
    while !left.is_empty() {
        let (mut ids, mut count, mut later) = (Ids::new(), 0, Vec::new());
        let mut places: HashMap<&Coordinates, BatchId> = HashMap::new();
        for letter in left {
            let is_other = |at: &&Coordinates| places.get(at).is_some_and(|batch| *batch != letter.batch);
            if count >= most_letters() || letter.coordinates.as_ref().filter(is_other).is_some() {
                later.push(letter);
                continue;
            }
            count += 1;
            places.extend(letter.coordinates.iter().map(|at| (at, letter.batch)));
            ids.entry(letter.batch).or_default().push(letter.id.clone());
        }
        chunks.push(ids);
        left = later;
    }
    chunks
}

/// What would happen, or did.
#[derive(Default)]
struct Account {
    chosen: u64,
    /// Letters that a batch is about.
    due: u64,
    /// By table.
    passes: BTreeMap<String, u64>,
    /// By table and reason: how many, and the id of one.
    fails: BTreeMap<(String, String), (u64, String)>,
    /// By table and reason.
    cannot: BTreeMap<(String, String), (u64, String)>,
    /// Set aside further down, by table, stage and rule.
    further: BTreeMap<(String, String, String), u64>,
    /// Rows for each table.
    rows: BTreeMap<String, u64>,
    batches: Vec<BatchId>,
    /// What each table did.
    tables: BTreeMap<String, Receipt>,
}

impl Account {
    /// Counts what would become of letters; returns those that a batch can be about.
    fn add(&mut self, outlook: Outlook) -> Ids {
        let mut due = Ids::new();
        for (letter, verdict) in outlook.letters {
            let (reasons, why) = match verdict {
                Verdict::Passes => {
                    *self.passes.entry(letter.table.clone()).or_default() += 1;
                    due.entry(letter.batch).or_default().push(letter.id);
                    continue;
                }
                Verdict::Fails(why) => {
                    due.entry(letter.batch).or_default().push(letter.id.clone());
                    (&mut self.fails, why)
                }
                Verdict::Cannot(why) => (&mut self.cannot, why),
            };
            let why = without_values(&letter.stage, &why);
            reasons.entry((letter.table, why)).or_insert((0, letter.id)).0 += 1;
        }
        for (table, rows) in outlook.rows {
            *self.rows.entry(table).or_default() += rows;
        }
        for further in outlook.further {
            *self.further.entry(further).or_default() += 1;
        }
        due
    }

    /// Counts a letter whose record may be in its table by now.
    fn hold(&mut self, letter: Letter) {
        let why = "days were derived again since for some of the tables that it stands for, and its record may be in them: \
                   derive its day again for all of them, which settles it, or look and `tidegate dlq discard` it";
        self.leave(letter, why);
    }

    fn leave(&mut self, letter: Letter, why: &str) {
        self.cannot.entry((letter.table, why.to_string())).or_insert((0, letter.id)).0 += 1;
    }

    fn receive(&mut self, record: &CommitRecord) {
        for (name, receipt) in &record.tables {
            let total = self.tables.entry(name.clone()).or_default();
            total.delta_version = receipt.delta_version;
            total.inserted += receipt.inserted;
            total.updated += receipt.updated;
            total.deleted += receipt.deleted;
            total.superseded += receipt.superseded;
            total.remembered += receipt.remembered;
        }
    }
}

fn nothing(spec: &PipelineSpec, what: &What<'_>) -> Outcome {
    let text = format!("{}: no such dead letters, nothing to {}\n", spec.name, what.verb());
    let json = json!({ "version": 1, "status": "no_change", "pipeline": spec.name });
    Outcome { text, json, code: 0 }
}

fn outcome(
    global: &Global,
    spec: &PipelineSpec,
    what: &What<'_>,
    selection: &Selection<'_>,
    account: &Account,
) -> Outcome {
    let letters = counted(account.chosen, "dead letter", "dead letters");
    let mut text = format!("{}: {} to {}\n", spec.name, letters, what.verb());
    text.push_str(&verdicts(account, what.yes));
    let reason = what.reason.as_ref().map(|reason| format!(" --reason {}", quoted(reason))).unwrap_or_default();
    let file = file_argument(global, &what.pipeline.file);
    if what.yes && !account.batches.is_empty() {
        let batches: Vec<String> = account.batches.iter().map(i64::to_string).collect();
        let rows: Vec<Vec<String>> = account
            .tables
            .iter()
            .map(|(name, receipt)| {
                let numbers = [receipt.inserted, receipt.updated, receipt.deleted, receipt.superseded];
                let mut row = vec![name.clone(), receipt.delta_version.to_string()];
                row.extend(numbers.iter().map(|&number| grouped(number)));
                row
            })
            .collect();
        text.push_str(&format!("done in batch {}\n", batches.join(", ")));
        text.push_str(&aligned(&["table", "version", "inserted", "updated", "deleted", "superseded"], &rows, 1));
    } else if account.due == 0 {
        text.push_str("nothing was written: there is nothing that a batch could do\n");
    } else {
        let command = format!("tidegate dlq {} {file}{}{reason} --yes", what.verb(), selection.typed());
        text.push_str(&format!("nothing was written; to do it:\n  {command}\n"));
    }
    Outcome { text, json: report(spec, what, account), code: 0 }
}

fn verdicts(account: &Account, done: bool) -> String {
    let pass = if done { "passed" } else { "would pass" };
    let mut text = String::new();
    for (table, count) in &account.passes {
        text.push_str(&format!("  {} of {table} {pass}\n", counted(*count, "letter", "letters")));
    }
    for (table, rows) in &account.rows {
        text.push_str(&format!("    {} for {table}\n", counted(*rows, "row", "rows")));
    }
    for ((table, stage, rule), count) in &account.further {
        let rows = counted(*count, "row", "rows");
        text.push_str(&format!("    {rows} set aside further down: {table}, {stage} {rule}\n"));
    }
    for (verdict, reasons) in [("again fails", &account.fails), ("not possible", &account.cannot)] {
        for ((table, why), (count, example)) in reasons {
            let letters = counted(*count, "letter", "letters");
            text.push_str(&format!("  {verdict}: {letters} of {table}, such as {}: {why}\n", short(example)));
        }
    }
    text
}

fn report(spec: &PipelineSpec, what: &What<'_>, account: &Account) -> Value {
    let sum =
        |reasons: &BTreeMap<(String, String), (u64, String)>| reasons.values().map(|(count, _)| count).sum::<u64>();
    let reasons = |reasons: &BTreeMap<(String, String), (u64, String)>| -> Vec<Value> {
        let reason = |((table, why), (count, example)): (&(String, String), &(u64, String))| json!({ "table": table, "why": why, "letters": count, "example": example });
        reasons.iter().map(reason).collect()
    };
    let further = account
        .further
        .iter()
        .map(|((table, stage, rule), count)| json!({ "table": table, "stage": stage, "rule": rule, "rows": count }));
    let status = match what.yes {
        true if account.batches.is_empty() => "no_change",
        true => "ok",
        false => "dry_run",
    };
    let mut json = json!({
        "version": 1, "status": status, "pipeline": spec.name, "action": what.verb(), "letters": account.chosen,
        "batches": account.batches, "tables": account.tables,
    });
    if what.is_replay {
        json["pass"] = account.passes.values().sum::<u64>().into();
        json["fail_again"] = sum(&account.fails).into();
        json["cannot"] = sum(&account.cannot).into();
        json["passes"] = json!(account.passes);
        json["rows"] = json!(account.rows);
        json["set_aside_further"] = further.collect::<Vec<_>>().into();
        json["fails"] = reasons(&account.fails).into();
        json["cannots"] = reasons(&account.cannot).into();
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(id: &str, batch: BatchId, offset: i64) -> Letter {
        Letter {
            id: id.into(),
            batch,
            table: "source".into(),
            stage: "decode".into(),
            rule: "malformed".into(),
            error: "bad".into(),
            coordinates: Some(Coordinates { topic: "t".into(), partition: 0, offset }),
            failed_at: chrono::DateTime::UNIX_EPOCH,
            status: Status::Open,
            attempts: 0,
            status_batch: None,
            status_at: None,
            note: None,
        }
    }

    #[test]
    fn one_place_stands_for_one_record_in_a_batch() {
        // The topic was made again between batches 1 and 5; a record that two tables set aside is one record.
        let letters = [letter("a", 1, 0), letter("b", 1, 0), letter("a", 5, 0), letter("c", 5, 1)];
        let chunks = chunks(&letters);
        let ids = |ids: &[&str]| ids.iter().map(|id| id.to_string()).collect::<Vec<_>>();
        assert_eq!(chunks, [Ids::from([(1, ids(&["a", "b"])), (5, ids(&["c"]))]), Ids::from([(5, ids(&["a"]))])]);
    }

    #[test]
    fn no_batch_is_about_more_letters_than_a_plan_can_name() {
        let letters: Vec<Letter> =
            (0..2 * most_letters() + 1).map(|n| letter(&n.to_string(), n as i64 % 3, n as i64)).collect();
        let sizes: Vec<usize> = chunks(&letters).iter().map(|ids| ids.values().map(Vec::len).sum()).collect();
        assert_eq!(sizes, [most_letters(), most_letters(), 1]);
    }
}
