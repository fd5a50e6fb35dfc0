//! `tidegate forget`: a person is taken out of every table. Without `--yes` everything is counted and nothing is done.

mod files;
mod say;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::compose::{self, Checked};
use super::output::file_argument;
use super::{Failure, Outcome};
use crate::checkpoint::backfills::Backfills;
use crate::checkpoint::{CheckpointLog, Identity};
use crate::cli::{ForgetArgs, Global};
use crate::config::spec::{PipelineSpec, SourceSpec, WriteSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::model::batch::{BatchId, FORMAT_VERSION};
use crate::model::forget::{Counted, Forget, Key, Owed, Still};
use crate::runner::event::Event;
use crate::runner::forget::{Share, counted, files_receipt_name, receipt_name};
use crate::runner::{Parts, Runner};
use crate::table::Traces;
use crate::table::maintain::Vacuumed;
use crate::transform::problems::suggest;

/// Everything that is known before anything is done.
struct Account {
    spec: PipelineSpec,
    key: Key,
    /// In graph order, dead letters last.
    shares: Vec<(String, Share)>,
    /// What goes, by table that is touched.
    tables: BTreeMap<String, Counted>,
    /// Tables that are recomputed when another is touched.
    recomputed: BTreeSet<String>,
    /// Entries that tables remember beside their rows and that nobody computes again, by table.
    states: BTreeMap<String, u64>,
    /// Tables that remember something in which the key cannot be told apart.
    dim: Vec<String>,
    /// Pairs of joins that name the key by columns of the right side: those, and how many rows; they stay.
    otherwise: BTreeMap<String, (Vec<String>, u64)>,
    /// Tables that would be computed again if those above them lost rows.
    follows: BTreeSet<String>,
    /// What the sources still hold; `None` = they were not asked.
    sources: Option<BTreeMap<String, Vec<Still>>>,
    /// Sources without a column of the key.
    mute: Vec<String>,
    /// Tables that `--tables` leaves out although they hold rows of the key.
    left_out: BTreeMap<String, u64>,
    /// Where logs name values of the key, by table that is touched.
    traces: BTreeMap<String, Traces>,
    /// Old files that an earlier command was to delete, and did not.
    owed: Vec<Owed>,
    /// Whether a backfill was begun and is not finished.
    is_deriving: bool,
    last: BatchId,
}

impl Account {
    /// Whether no row, no letter, no remembered delete and no entry would go.
    fn is_empty(&self) -> bool {
        self.tables.values().all(Counted::is_nothing) && self.states.values().all(|entries| *entries == 0)
    }

    /// The tables whose old files may hold the person: those that are touched, and those that are recomputed.
    fn changed(&self) -> BTreeSet<&String> {
        self.tables.keys().chain(&self.recomputed).collect()
    }
}

/// What came of it.
#[derive(Default)]
struct Done {
    batch: Option<BatchId>,
    receipt: Value,
    /// Where the receipt lies.
    kept_at: Option<String>,
    vacuumed: Option<BTreeMap<String, Vacuumed>>,
}

pub(super) async fn forget(global: &Global, args: &ForgetArgs) -> Result<Outcome, Failure> {
    let values = values(&args.keys)?;
    let checked = compose::check(global, &args.pipeline.file).await?;
    let spec = checked.spec.clone();
    check_names(&checked, &args.tables)?;
    let owner = compose::owner();
    let log = compose::open_log(&spec)?;
    let Some(identity) = compose::known_identity(&spec, &log).await? else {
        compose::check_never_ran(&checked, &log).await?;
        return Ok(say::never_ran(&spec));
    };
    let between = |error: Error| {
        error.help("stop it, do this, and start it again; between two runs of a schedule nothing has to be stopped")
    };
    // What a run or a backfill has read would come back.
    let _locks = args.yes.then(|| compose::lock_all(&spec, &log, &owner).map_err(between)).transpose()?;
    let location = log.location();
    let parts: Parts = compose::parts(checked, &identity, owner, Box::new(log), Box::new(|_: &Event| {}))?;
    let mut runner = Runner::new(parts);
    let last = runner.standing().await?.last;
    let salt = compose::salt();
    let key = Key { version: FORMAT_VERSION, salt, values, containing: args.containing, records: Vec::new() };
    let mut account = account(&mut runner, spec, key, args, last).await?;
    let log = compose::open_log(&account.spec)?;
    compose::known_identity(&account.spec, &log).await?;
    account.owed = files::unpaid(&log).await?;
    account.is_deriving = is_deriving(&account.spec, &identity).await?;
    if !args.yes {
        return Ok(say::dry_run(global, args, &account));
    }
    if account.is_deriving {
        return Err(say::deriving(&file_argument(global, &args.pipeline.file)).into());
    }
    let mut done = Done::default();
    if !account.is_empty() {
        let what = Forget {
            digest: account.key.digest(),
            columns: account.key.columns(),
            tables: account.tables.clone(),
            states: account.states.clone(),
            sources: account.sources.clone(),
            vacuum: args.vacuum,
        };
        done.batch = Some(runner.forget(&account.key, what).await.map_err(begun)?.batch);
    }
    if let Some(batch) = done.batch {
        let name = receipt_name(batch);
        done.receipt = log.receipt(&name).await?.unwrap_or_default();
        done.kept_at = Some(format!("{location}/receipts/{name}.json"));
    }
    let checked = compose::check(global, &args.pipeline.file).await?;
    let asked = if args.vacuum { account.changed() } else { BTreeSet::new() };
    done.vacuumed = files::delete(&checked, &identity, &log, &asked).await.map_err(after(&done))?;
    if let (Some(vacuumed), None, true) = (&done.vacuumed, done.batch, args.vacuum) {
        log.keep_receipt(&files_receipt_name(account.last), &say::files(&account.spec, None, vacuumed)).await?;
    }
    Ok(say::done(global, args, &account, &done))
}

/// A backfill that was begun has computed rows from what it has read, and needs old files to finish.
async fn is_deriving(spec: &PipelineSpec, identity: &Identity) -> Result<bool> {
    let ledger = Backfills::new(&super::backfill::log_folder(spec)?, &identity.pipeline_id)?.ledger().await?;
    Ok(ledger.iter().any(|head| head.pending().is_some()))
}

/// `COLUMN=VALUE`; values may have equals signs of their own.
fn values(keys: &[String]) -> Result<BTreeMap<String, String>> {
    let mut values = BTreeMap::new();
    for text in keys {
        let Some((column, value)) =
            text.split_once('=').filter(|(column, value)| !column.is_empty() && !value.is_empty())
        else {
            return Err(Error::new(ErrorKind::Usage, format!("--key `{text}` is not a column and a value"))
                .help("write COLUMN=VALUE, such as customer_id=42"));
        };
        if values.insert(column.to_string(), value.to_string()).is_some() {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("--key names `{column}` twice, and no row has two values"),
            )
            .help("forget one after the other"));
        }
    }
    Ok(values)
}

fn check_names(checked: &Checked, names: &[String]) -> Result<()> {
    let known = compose::table_names(checked);
    let Some(unknown) = names.iter().find(|name| !known.contains(name)) else { return Ok(()) };
    let error = Error::new(ErrorKind::Usage, format!("--tables: the pipeline has no table `{unknown}`"));
    Err(match suggest(unknown, known.iter().map(String::as_str), "its tables") {
        Some(help) => error.help(help),
        None => error,
    })
}

async fn account(
    runner: &mut Runner,
    spec: PipelineSpec,
    mut key: Key,
    args: &ForgetArgs,
    last: BatchId,
) -> Result<Account> {
    key.records = runner.records_in_tables(&key).await?;
    let mut shares = runner.shares(&key).await?;
    let all_states = runner.remembered_of(&key).await?;
    let mut dim: Vec<String> =
        all_states.iter().filter(|(_, entries)| entries.is_none()).map(|(name, _)| name.clone()).collect();
    let mut states: BTreeMap<String, u64> =
        all_states.into_iter().filter_map(|(name, entries)| Some((name, entries?))).collect();
    if states.values().all(|entries| *entries == 0) {
        check_columns(runner, &shares, &key).await?;
    }
    let absent: BTreeSet<String> =
        shares.iter().filter(|(_, share)| **share == Share::Absent).map(|(name, _)| name.clone()).collect();
    let is_absent = |name: &String| absent.contains(name);
    let is_asked = |name: &String| args.tables.is_empty() || args.tables.contains(name);
    let order = spec.tables.iter().map(|table| table.name.clone());
    let order = order.chain(spec.dead_letters.iter().map(|dead_letters| dead_letters.table.clone()));
    let is_refresh = |name: &str| {
        spec.tables.iter().any(|table| table.name == name && matches!(table.write, WriteSpec::Refresh { .. }))
    };
    let others = shares.iter().filter(|(name, _)| !is_asked(name) && !is_refresh(name));
    let mut left_out: BTreeMap<String, u64> = others
        .filter_map(|(name, share)| Some((name.clone(), counted(share, key.containing)?.rows)))
        .filter(|(_, rows)| *rows > 0)
        .collect();
    let shares: Vec<(String, Share)> = order
        .filter_map(|name| shares.remove(&name).map(|share| (name, share)))
        .filter(|(name, _)| is_asked(name))
        .collect();
    let goes = shares.iter().filter(|(name, _)| !is_refresh(name));
    let tables: BTreeMap<String, Counted> =
        goes.filter_map(|(name, share)| Some((name.clone(), counted(share, key.containing)?))).collect();
    let recomputed = runner.recomputed(&tables);
    states.retain(|name, _| is_asked(name) && !recomputed.contains(name));
    left_out.retain(|name, _| !recomputed.contains(name));
    let mut otherwise = runner.named_otherwise(&key).await?;
    otherwise.retain(|_, (_, rows)| *rows > 0);
    let some = |name: &String| (name.clone(), Counted { rows: 1, remembered: 0 });
    let follows = runner.recomputed(&tables.keys().map(some).collect());
    dim.retain(|name| is_asked(name) && !follows.contains(name));
    let changed = tables.keys().chain(&recomputed).filter(|name| !is_absent(name));
    let traces = runner.traces(changed, &key.columns()).await?;
    let mute = mute(&spec, &key);
    let sources = match args.offline {
        true => None,
        false => Some(runner.still_in_sources(&key).await?),
    };
    Ok(Account {
        spec,
        key,
        shares,
        tables,
        recomputed,
        states,
        dim,
        otherwise,
        follows,
        sources,
        mute,
        left_out,
        traces,
        owed: Vec::new(),
        is_deriving: false,
        last,
    })
}

/// Sources whose decoded records lack a column of the key.
fn mute(spec: &PipelineSpec, key: &Key) -> Vec<String> {
    let lacks =
        |source: &SourceSpec| key.values.keys().any(|name| !source.columns.iter().any(|column| column.name == *name));
    spec.sources.iter().filter(|(_, source)| lacks(source)).map(|(name, _)| name.clone()).collect()
}

/// A column that no table has is misspelt; a value that no column can have is, too.
async fn check_columns(runner: &mut Runner, shares: &BTreeMap<String, Share>, key: &Key) -> Result<()> {
    let holds = |share: &Share| matches!(share, Share::Holds(_));
    if shares.values().any(holds) {
        return Ok(());
    }
    let nothing = "nothing was read of the sources, nothing was written";
    if let Some(why) = shares.values().find_map(|share| match share {
        Share::Never(why) => Some(why),
        _ => None,
    }) {
        return Err(Error::new(ErrorKind::Usage, format!("--key: no row can have this value: {why}")).help(nothing));
    }
    let known = runner.columns().await?;
    if let Some(column) = key.values.keys().find(|column| !known.contains(*column)) {
        let error = Error::new(ErrorKind::Usage, format!("--key: no table has a column `{column}`")).help(nothing);
        return Err(match suggest(column, known.iter().map(String::as_str), "columns") {
            Some(help) => error.help(help),
            None => error.help("no table was written yet"),
        });
    }
    let columns = key.columns().join(", ");
    Err(Error::new(ErrorKind::Usage, format!("--key: no table has all of the columns {columns}"))
        .help(nothing)
        .help("a row is found by all of them; forget by fewer columns, or by one that every table has"))
}

fn begun(error: Error) -> Error {
    error.help(
        "if its batch was planned, the next run finishes it, and writes the receipt: tidegate run FILE --trigger once",
    )
}

/// The rows are gone already when the files are not.
fn after(done: &Done) -> impl Fn(Error) -> Error {
    let said = match done.batch {
        Some(batch) => format!("the rows are gone from the tables (batch {batch}); old files still hold them"),
        None => "old files still hold the rows".to_string(),
    };
    move |error| error.help(said.clone()).help("the same command again deletes the files")
}
