//! `tidegate query`: SQL over the tables of a pipeline or of a lake, now or as they were. Reads only.

mod rows;
mod state;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use object_store::ObjectStore;
use serde_json::{Value, json};

use super::output::{aligned, grouped};
use super::{Failure, Outcome, compose};
use crate::checkpoint::CheckpointLog;
use crate::checkpoint::log::ObjectLog;
use crate::cli::{Global, Output, QueryArgs, RowFormat};
use crate::config::spec::{LookupSpec, PipelineSpec};
use crate::error::{Code, Error, ErrorKind, Result};
use crate::model::batch::{BatchPlan, CommitRecord};
use crate::storage::{self, Storage};
use crate::table::delta::query::{Answer, At, Queries};
use crate::table::{glance, lookup};
use crate::units;

/// Rows that a table for people shows.
const SHOWN: usize = 100;

/// What can be asked, and as of when.
struct Place {
    lake: Storage,
    /// Tables, and which state of each.
    tables: BTreeMap<String, At>,
    lookups: BTreeMap<String, (LookupSpec, Option<i64>)>,
    /// What tables remember: the table and its file.
    states: BTreeMap<String, (String, String)>,
    pipeline: Option<PathBuf>,
}

pub(super) async fn query(global: &Global, args: &QueryArgs) -> Result<Outcome, Failure> {
    let (file, sql) = words(args)?;
    let place = match (&file, &args.lake) {
        (_, Some(lake)) => of_lake(args, lake).await?,
        (Some(file), None) => of_pipeline(global, args, file).await?,
        (None, None) => return Err(Error::new(ErrorKind::Usage, "a pipeline file or --lake is missing").into()),
    };
    let Some(sql) = sql.filter(|sql| !is_show_tables(sql)) else { return Ok(listing(&place).await?) };
    let memory = units::size(&args.memory).map_err(|why| Error::new(ErrorKind::Usage, format!("--memory {why}")))?;
    let names = place.names().cloned().collect();
    let queries = Queries::new(usize::try_from(memory).unwrap_or(usize::MAX), names)?;
    place.register(global, &queries, &sql).await?;
    let is_table = args.format == RowFormat::Table && global.output == Output::Text;
    // One more than is shown tells whether there are more.
    let limit = if is_table { Some(args.limit.unwrap_or(SHOWN).saturating_add(1)) } else { args.limit };
    let answer = queries.ask(&sql, limit).await?;
    Ok(match (global.output, args.format) {
        (Output::Json, _) => rows::whole(answer).await?,
        (Output::Text, RowFormat::Table) => rows::table(answer, args.limit.unwrap_or(SHOWN)).await?,
        (Output::Text, format) => rows::stream(answer, format).await?,
    })
}

/// The file and the query among the words.
fn words(args: &QueryArgs) -> Result<(Option<PathBuf>, Option<String>)> {
    let missing = |what: &str| {
        Error::new(ErrorKind::Usage, format!("{what} is missing"))
            .help("write: tidegate query pipelines/orders.yaml \"SELECT count(*) FROM silver.orders\"")
            .help("what tables there are: tidegate query pipelines/orders.yaml --tables")
    };
    let mut words = args.words.iter();
    let file = if args.lake.is_none() { words.next().map(PathBuf::from) } else { None };
    let sql = words.next().cloned();
    if words.next().is_some() {
        return Err(Error::new(ErrorKind::Usage, "with --lake there is no pipeline file, only the query"));
    }
    if args.lake.is_none() && file.is_none() {
        return Err(missing("the pipeline file"));
    }
    match (&sql, args.tables) {
        (None, false) => Err(missing("the query")),
        (Some(_), true) => Err(Error::new(ErrorKind::Usage, "--tables lists the tables: it takes no query")),
        _ => Ok((file, sql)),
    }
}

fn is_show_tables(sql: &str) -> bool {
    let words: Vec<String> = sql.trim().trim_end_matches(';').split_whitespace().map(str::to_lowercase).collect();
    words == ["show", "tables"]
}

/// The tables of a pipeline, dead letters included, and its lookups.
async fn of_pipeline(global: &Global, args: &QueryArgs, file: &Path) -> Result<Place, Failure> {
    let spec = compose::load(global, file)?;
    let log = compose::open_log(&spec)?;
    compose::known_identity(&spec, &log).await?;
    let dead_letters = spec.dead_letters.iter().map(|dead_letters| dead_letters.table.clone());
    let names: Vec<String> = spec.tables.iter().map(|table| table.name.clone()).chain(dead_letters).collect();
    let batch = match (&args.at_batch, &args.at) {
        (Some(number), _) => Some(batch(&log, *number).await?),
        (None, Some(time)) => Some(batch_of_time(&log, parse_time(time)?).await?),
        (None, None) => None,
    };
    let mut tables = BTreeMap::new();
    for name in names {
        let at = match &batch {
            None => Some(At::Newest),
            // A table that the batch does not name was not there yet.
            Some((_, record)) => record.tables.get(&name).map(|receipt| At::Version(receipt.delta_version)),
        };
        tables.extend(at.map(|at| (name, at)));
    }
    at_versions(args, &mut tables)?;
    let batch_record = batch.as_ref().map(|(_, record)| record.clone());
    let pinned = batch.and_then(|(plan, _)| plan).map(|plan| plan.pinned).unwrap_or_default();
    let lookups = lookups(&spec, &pinned);
    let record = match batch_record {
        Some(record) => Some(record),
        None => log.head().await?.commit,
    };
    let states = record.map(|record| state::names(&spec, &record)).unwrap_or_default();
    Ok(Place { lake: storage::open(&spec.lake)?, tables, lookups, states, pipeline: Some(file.to_path_buf()) })
}

fn lookups(spec: &PipelineSpec, pinned: &BTreeMap<String, i64>) -> BTreeMap<String, (LookupSpec, Option<i64>)> {
    let lookup = |(name, lookup): (&String, &LookupSpec)| (name.clone(), (lookup.clone(), pinned.get(name).copied()));
    spec.lookups.iter().map(lookup).collect()
}

/// A batch that is done.
async fn batch(log: &ObjectLog, number: i64) -> Result<(Option<BatchPlan>, CommitRecord)> {
    let found = log.batch(number).await?;
    let done = found.and_then(|batch| Some((batch.plan, batch.commit?)));
    done.ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("batch {number} is not done, or the checkpoint does not hold it any more"))
            .coded(Code::NoSuchBatch)
            .help("the batches that are kept: tidegate history FILE --limit 200")
    })
}

/// The newest batch that was done by then.
async fn batch_of_time(log: &ObjectLog, time: DateTime<Utc>) -> Result<(Option<BatchPlan>, CommitRecord)> {
    for found in log.batches(usize::MAX).await? {
        if let Some(commit) = found.commit
            && commit.committed_at <= time
        {
            return Ok((found.plan, commit));
        }
    }
    Err(Error::new(
        ErrorKind::Usage,
        format!("no batch that the checkpoint still holds was done by {}", time.to_rfc3339()),
    )
    .with("checkpoint", log.location())
    .help("the batches that are kept: tidegate history FILE --limit 200")
    .help("single tables as of any time that Delta still knows: tidegate query --lake DIR --at TIME \"SELECT …\""))
}

/// The tables below a folder: `<DIR>/silver/orders` is `silver.orders`.
async fn of_lake(args: &QueryArgs, lake: &str) -> Result<Place, Failure> {
    let at = args.at.as_deref().map(parse_time).transpose()?.map_or(At::Newest, At::Time);
    let location = match lake.contains("://") {
        true => lake.to_string(),
        false => std::path::absolute(lake)
            .map_err(|cause| Error::new(ErrorKind::Usage, format!("--lake `{lake}` is not a folder")).caused_by(cause))?
            .display()
            .to_string(),
    };
    let lake = storage::open(&location)?;
    let failed = |cause: object_store::Error| storage::explain(&cause, "list the lake", &location);
    let mut tables = BTreeMap::new();
    for schema in lake.store.list_with_delimiter(None).await.map_err(failed)?.common_prefixes {
        // `_tidegate` and the like are nobody's tables.
        let Some(layer) = schema.filename().filter(|name| !name.starts_with('_')).map(str::to_string) else { continue };
        for folder in lake.store.list_with_delimiter(Some(&schema)).await.map_err(failed)?.common_prefixes {
            let below = lake.store.list_with_delimiter(Some(&folder)).await.map_err(failed)?;
            let is_table = below.common_prefixes.iter().any(|path| path.filename() == Some("_delta_log"));
            if let Some(name) = folder.filename().filter(|_| is_table) {
                tables.insert(format!("{layer}.{name}"), at);
            }
        }
    }
    at_versions(args, &mut tables)?;
    if tables.is_empty() {
        return Err(Error::new(ErrorKind::Usage, format!("there is no Delta table in {location}"))
            .help("a lake holds its tables two folders deep: <lake>/silver/orders is silver.orders")
            .into());
    }
    Ok(Place { lake, tables, lookups: BTreeMap::new(), states: BTreeMap::new(), pipeline: None })
}

fn at_versions(args: &QueryArgs, tables: &mut BTreeMap<String, At>) -> Result<()> {
    for text in &args.at_version {
        let asked = text.split_once('=').and_then(|(name, version)| Some((name, version.parse::<i64>().ok()?)));
        let (name, version) = asked.filter(|(_, version)| *version >= 0).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("--at-version `{text}` is not TABLE=VERSION"))
                .help("write it like silver.orders=41")
        })?;
        match tables.get_mut(name) {
            Some(at) => *at = At::Version(version),
            None => {
                let names: Vec<&str> = tables.keys().map(String::as_str).collect();
                return Err(Error::new(ErrorKind::Usage, format!("--at-version: there is no table `{name}`"))
                    .help(format!("tables: {}", names.join(", "))));
            }
        }
    }
    Ok(())
}

fn parse_time(text: &str) -> Result<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(text).map(|time| time.to_utc()).map_err(|_| {
        Error::new(ErrorKind::Usage, format!("--at `{text}` is not a time")).help("write it like 2026-03-17T12:00:00Z")
    })
}

impl Place {
    /// Opens the tables that the query may name: reading a log costs time, and most queries name one or two.
    async fn register(&self, global: &Global, queries: &Queries, sql: &str) -> Result<(), Failure> {
        let is_named = |name: &str| sql.contains(name.rsplit('.').next().unwrap_or(name));
        for (name, at) in self.tables.iter().filter(|(name, _)| is_named(name)) {
            queries.add_table(name, &self.lake.join(&name.replace('.', "/"))?, *at).await?;
        }
        for (name, (spec, version)) in self.lookups.iter().filter(|(name, _)| is_named(name)) {
            match spec {
                LookupSpec::Delta(location) => {
                    let at = version.map_or(At::Newest, At::Version);
                    queries.add_table(name, &storage::open(location)?, at).await?;
                }
                LookupSpec::Parquet(_) | LookupSpec::Csv(_) => {
                    let mut lookup = lookup::open(name, spec)?;
                    queries.add_rows(name, lookup.schema().await?, &lookup.load(None).await?)?;
                }
            }
        }
        for (name, (table, file)) in self.states.iter().filter(|(name, _)| is_named(name)) {
            let Some(pipeline) = &self.pipeline else { continue };
            let (schema, rows) = state::entries(global, pipeline, table, file).await?;
            queries.add_rows(name, schema, &rows)?;
        }
        Ok(())
    }

    /// Names that can be asked, whether the query names them or not.
    fn names(&self) -> impl Iterator<Item = &String> {
        self.tables.keys().chain(self.lookups.keys()).chain(self.states.keys())
    }
}

/// What can be asked.
async fn listing(place: &Place) -> Result<Outcome> {
    let (mut rows, mut entries): (Vec<Vec<String>>, Vec<Value>) = (Vec::new(), Vec::new());
    for (name, at) in &place.tables {
        let version = match at {
            At::Version(version) => Some(*version),
            At::Newest | At::Time(_) => None,
        };
        let glance = glance::at(&place.lake, name, version).await?;
        let number = |value: Option<String>| value.unwrap_or_else(|| "-".to_string());
        let (shown, known) = match &glance {
            Some(g) => ([g.version.to_string(), grouped(g.rows), g.columns.join(", ")].map(Some), true),
            None => ([None, None, Some("not written yet".to_string())], false),
        };
        rows.push([Some(name.clone())].into_iter().chain(shown).map(number).collect());
        entries.push(json!({
            "name": name, "kind": "table", "exists": known, "version": glance.as_ref().map(|g| g.version),
            "rows": glance.as_ref().map(|g| g.rows), "columns": glance.as_ref().map(|g| &g.columns),
        }));
    }
    for name in place.lookups.keys() {
        rows.push(vec![name.clone(), "-".into(), "-".into(), "lookup".into()]);
        entries.push(json!({ "name": name, "kind": "lookup" }));
    }
    for name in place.states.keys() {
        rows.push(vec![name.clone(), "-".into(), "-".into(), "what a table remembers".into()]);
        entries.push(json!({ "name": name, "kind": "state" }));
    }
    let mut text = aligned(&["table", "version", "rows", "columns"], &rows, 4);
    if place.names().next().is_none() {
        text = "no tables\n".to_string();
    }
    Ok(Outcome { text, json: json!({ "version": 1, "status": "ok", "tables": entries }), code: 0 })
}

/// Everything of an answer.
async fn collected(answer: Answer) -> Result<Vec<arrow::record_batch::RecordBatch>> {
    answer.rows.try_collect().await
}
