//! From a pipeline file to the parts of a runner.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;

use super::Failure;
use crate::checkpoint::lock::{self, Lock};
use crate::checkpoint::log::ObjectLog;
use crate::checkpoint::states::States;
use crate::checkpoint::{CheckpointLog, Identity, backfills};
use crate::cli::Global;
use crate::config::document::{SqlField, SqlPlace};
use crate::config::report::Report;
use crate::config::spec::PipelineSpec;
use crate::config::{self, Loaded};
use crate::error::{Code, Error, ErrorKind, Result};
use crate::model::batch::{FORMAT_VERSION, Owner};
use crate::model::inconsistency::Inconsistency;
use crate::runner::clock::{Clock, SystemClock};
use crate::runner::event::Observer;
use crate::runner::{Parts, halted};
use crate::source::{self, Source};
use crate::storage;
use crate::table::{self, Lookup, Maker, Table};
use crate::transform::compile::{self, CompiledPipeline};
use crate::transform::definitions::table_definitions;
use crate::transform::problems::{Field, SqlProblem};

/// A pipeline that has passed every check that needs no source and no table.
pub(super) struct Checked {
    pub spec: PipelineSpec,
    pub compiled: Arc<CompiledPipeline>,
    pub lookups: BTreeMap<String, Box<dyn Lookup>>,
}

/// Loads a file for commands that need neither its SQL nor its lookups.
pub(super) fn load(global: &Global, file: &Path) -> Result<PipelineSpec, Failure> {
    Ok(config::load(file, &config::LoadOptions::from_environment(global.target.clone()))?.spec)
}

/// Loads and checks a file, SQL included; every problem is in one report.
pub(super) async fn check(global: &Global, file: &Path) -> Result<Checked, Failure> {
    let options = config::LoadOptions::from_environment(global.target.clone());
    check_loaded(config::load(file, &options)?).await
}

/// The same for a file that was read before.
pub(super) async fn check_loaded(loaded: Loaded) -> Result<Checked, Failure> {
    let Loaded { spec, document } = loaded;
    let mut lookups: BTreeMap<String, Box<dyn Lookup>> = BTreeMap::new();
    let mut schemas: BTreeMap<String, SchemaRef> = BTreeMap::new();
    let mut report = document.report();
    for (name, lookup) in &spec.lookups {
        let opened = async {
            let mut lookup = table::lookup::open(name, lookup)?;
            let schema = lookup.schema().await?;
            Ok::<_, crate::error::Error>((lookup, schema))
        };
        match opened.await {
            Ok((lookup, schema)) => {
                lookups.insert(name.clone(), lookup);
                schemas.insert(name.clone(), schema);
            }
            // Storage that is away for a moment says nothing about the file: the run may be tried again.
            Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error.into()),
            Err(error) => {
                report.add_at(Code::Lookup, &["lookups", name], error.to_string(), error.help_lines().first().cloned())
            }
        }
    }
    if !report.is_empty() {
        return Err(report.into());
    }
    match compile::compile(&spec, &schemas) {
        Ok(compiled) => Ok(Checked { spec, compiled: Arc::new(compiled), lookups }),
        Err(problems) => {
            for problem in problems {
                add_sql(&mut report, problem);
            }
            Err(report.into())
        }
    }
}

/// Places a problem of the SQL compiler in the file.
pub(super) fn add_sql(report: &mut Report, problem: SqlProblem) {
    let SqlProblem { table, field, line, column, length, message, help } = problem;
    let at = |field| SqlPlace { table: &table, field, line, column, length };
    let below = |path: &[&str]| -> Vec<String> {
        ["tables", &table].into_iter().chain(path.iter().copied()).map(str::to_string).collect()
    };
    let code = match &field {
        Field::Sql => Code::TableSql,
        Field::Expect(_) | Field::DeleteWhen | Field::Measure(_) => Code::TableRule,
        Field::Key | Field::OrderBy | Field::Drop | Field::By | Field::PartitionBy | Field::Inside(_) => {
            Code::TableColumns
        }
        Field::From | Field::Write => Code::TableShape,
    };
    let path = match &field {
        Field::Sql => return report.add_sql(code, at(SqlField::Sql), message, help),
        Field::DeleteWhen => return report.add_sql(code, at(SqlField::DeleteWhen), message, help),
        Field::Expect(name) => return report.add_sql(code, at(SqlField::Expect(name)), message, help),
        Field::Measure(name) => return report.add_sql(code, at(SqlField::Measure(name)), message, help),
        Field::Inside(path) => below(path),
        Field::Key => below(&["write", "upsert", "key"]),
        Field::OrderBy => below(&["write", "upsert", "order_by"]),
        Field::Drop => below(&["write", "upsert", "drop"]),
        Field::By => below(&["write", "refresh", "by"]),
        Field::PartitionBy => below(&["partition_by"]),
        Field::From => below(&["from"]),
        Field::Write => below(&["write"]),
    };
    report.add_at(code, &path.iter().map(String::as_str).collect::<Vec<_>>(), message, help);
}

/// This process, for plans and messages.
#[allow(clippy::disallowed_methods, reason = "identities are made here")]
pub(super) fn owner() -> Owner {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .map(|name| name.trim().to_string())
        .or_else(|| std::env::var("HOSTNAME").ok())
        .unwrap_or_else(|| "unknown".to_string());
    Owner { run_id: uuid::Uuid::new_v4().to_string(), host, pid: std::process::id() }
}

/// A number that nobody can guess, for hashes of short keys.
#[allow(clippy::disallowed_methods, reason = "identities are made here")]
pub(super) fn salt() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// The pipeline's log.
pub(super) fn open_log(spec: &PipelineSpec) -> Result<ObjectLog> {
    let folder = format!("{}/{}", spec.checkpoints.trim_end_matches('/'), spec.name);
    Ok(ObjectLog::new(storage::open(&folder)?))
}

/// The identity in the log, or a new one that is not written yet.
#[allow(clippy::disallowed_methods, reason = "identities are made here")]
pub(super) fn new_identity(spec: &PipelineSpec, owner: &Owner) -> Identity {
    Identity {
        version: FORMAT_VERSION,
        pipeline_id: uuid::Uuid::new_v4().to_string(),
        pipeline: spec.name.clone(),
        created_by: owner.clone(),
    }
}

/// The identity in the log, which must be this pipeline's.
pub(super) async fn known_identity(spec: &PipelineSpec, log: &ObjectLog) -> Result<Option<Identity>> {
    let identity = log.identity().await?;
    if let Some(found) = identity.as_ref().filter(|identity| identity.pipeline != spec.name) {
        let why = Inconsistency::OtherPipeline { found: found.pipeline.clone() };
        return Err(halted(&why, log));
    }
    Ok(identity)
}

/// The identity in the log, made at the first run. A log that lost its identity, or tables that remember a log which is
/// not there, are not a first run: a new identity would only bury what is left.
pub(super) async fn identity(checked: &Checked, log: &ObjectLog, owner: &Owner) -> Result<Identity> {
    identity_over(&checked.spec, table_names(checked), log, owner).await
}

/// The same where the lookups, which only one thread may look at, must stay out of the way.
pub(super) async fn identity_over(
    spec: &PipelineSpec,
    tables: Vec<String>,
    log: &ObjectLog,
    owner: &Owner,
) -> Result<Identity> {
    if let Some(identity) = known_identity(spec, log).await? {
        return Ok(identity);
    }
    let lost = never_ran(spec, tables, log).await;
    // Another runner may have been faster with its own first run.
    if let Some(identity) = known_identity(spec, log).await? {
        return Ok(identity);
    }
    lost?;
    log.create(&new_identity(spec, owner)).await
}

/// A log without identity is that of a pipeline that never ran, unless the log or a table remembers otherwise.
pub(super) async fn check_never_ran(checked: &Checked, log: &ObjectLog) -> Result<()> {
    never_ran(&checked.spec, table_names(checked), log).await
}

async fn never_ran(spec: &PipelineSpec, tables: Vec<String>, log: &ObjectLog) -> Result<()> {
    let head = log.head().await?;
    let lake = storage::open(&spec.lake)?;
    let mut remembers = None;
    for table in tables {
        let maker = table::trace::maker(&lake, &table).await?;
        remembers = remembers.or(maker.is_some_and(|maker| maker.pipeline == spec.name).then_some(table));
    }
    if head.plan.is_some() || head.commit.is_some() {
        return Err(Error::config("the checkpoint holds batches, but its metadata.json is gone")
            .with("checkpoint", log.location())
            .help("nothing was read or written; restore metadata.json from a backup")
            .help("or rebuild it from the tables, which know whose they are: tidegate checkpoint rebuild FILE"));
    }
    match remembers {
        Some(table) => Err(halted(&Inconsistency::CheckpointLost { table }, log)),
        None => Ok(()),
    }
}

/// Names of the pipeline's tables, dead letters included.
pub(super) fn table_names(checked: &Checked) -> Vec<String> {
    let tables = checked.spec.tables.iter().map(|table| table.name.clone());
    tables.chain(checked.spec.dead_letters.iter().map(|dead_letters| dead_letters.table.clone())).collect()
}

/// The lock of a pipeline's log, where there is something on this host to lock.
pub(super) fn lock(spec: &PipelineSpec, log: &ObjectLog, owner: &Owner) -> Result<Option<Lock>> {
    let location = log.location();
    let folder = Path::new(&location);
    folder.is_absolute().then(|| lock::acquire(folder, &spec.name, owner)).transpose()
}

/// The locks of a pipeline's log and of its backfills: no run and no backfill may work meanwhile.
pub(super) fn lock_all(spec: &PipelineSpec, log: &ObjectLog, owner: &Owner) -> Result<(Option<Lock>, Option<Lock>)> {
    let run = lock(spec, log, owner)?;
    let location = log.location();
    let folder = Path::new(&location).join(backfills::FOLDER);
    let taken = format!("a backfill of pipeline `{}` is at work", spec.name);
    let backfill = folder.is_absolute().then(|| lock::acquire_or(&folder, &taken, owner)).transpose()?;
    Ok((run, backfill))
}

/// The tables of the pipeline in graph order, dead letters last.
pub(super) fn open_tables(checked: &Checked, identity: &Identity) -> Result<Vec<Box<dyn Table>>> {
    let lake = storage::open(&checked.spec.lake)?;
    let maker = Maker { pipeline: checked.spec.name.clone(), pipeline_id: identity.pipeline_id.clone() };
    table_definitions(&checked.compiled, &maker)
        .into_iter()
        .map(|definition| table::delta::open(&lake, definition))
        .collect()
}

/// The sources of the pipeline.
pub(super) fn open_sources(spec: &PipelineSpec) -> Result<BTreeMap<String, Box<dyn Source>>> {
    spec.sources.iter().map(|(name, source)| Ok((name.clone(), source::open(name, source)?))).collect()
}

/// A runner's parts.
pub(super) fn parts(
    checked: Checked,
    identity: &Identity,
    owner: Owner,
    log: Box<dyn CheckpointLog>,
    observer: Box<dyn Observer>,
) -> Result<Parts> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    Ok(Parts {
        tables: open_tables(&checked, identity)?,
        sources: open_sources(&checked.spec)?,
        pipeline_id: identity.pipeline_id.clone(),
        owner,
        transform: checked.compiled,
        lookups: checked.lookups,
        log,
        clock,
        observer,
        states: States::new(&storage::open(&checked.spec.lake)?)?,
        spec: checked.spec,
    })
}
