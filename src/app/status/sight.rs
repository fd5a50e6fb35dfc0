//! Everything that `status` says about one pipeline.

use std::path::{Path, PathBuf};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use chrono::{DateTime, NaiveTime, SecondsFormat, Utc};
use futures::TryStreamExt;

use super::super::lag::{Behind, behind};
use super::super::{Failure, compose};
use crate::checkpoint::CheckpointLog;
use crate::checkpoint::lock::{self, Holder};
use crate::cli::Global;
use crate::config::spec::PipelineSpec;
use crate::error::Result;
use crate::model::batch::{BatchId, CommitRecord, ForeignWrite, Owner};
use crate::model::recover::{Decision, recover};
use crate::runner::Runner;
use crate::runner::clock::{Clock, SystemClock};
use crate::runner::event::Event;
use crate::storage::{self, Storage};
use crate::table::delta::query::{At, Queries};
use crate::table::glance::{Glance, glance};

/// Batches whose losses are shown.
const RECENT: usize = 10;

/// Memory for counting dead letters: a stream of one column.
const COUNTING: usize = 256_000_000;

/// One pipeline, seen at one moment.
pub(super) struct Sight {
    pub name: String,
    pub file: PathBuf,
    /// Where its log is.
    pub location: String,
    pub state: State,
    /// Who runs it on this host.
    pub runs: Option<Holder>,
    pub now: DateTime<Utc>,
    /// Newest first.
    pub recent: Vec<CommitRecord>,
    /// By partition, or why nobody knows; `None` = nobody asked.
    pub lag: Option<Result<Vec<Behind>, String>>,
    /// Dead letters since midnight in the pipeline's timezone; `None` = there is no such table.
    pub dead_today: Option<u64>,
    pub tables: Vec<Seen>,
}

/// What the next run would do.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum State {
    NeverRan,
    NoBatch,
    Done { batch: BatchId },
    Pending { batch: BatchId, since: DateTime<Utc>, by: Owner },
    Halted { why: String, help: Vec<String> },
}

/// One table.
pub(super) struct Seen {
    pub name: String,
    pub glance: Option<Glance>,
    pub applied: Option<BatchId>,
    pub foreign: Vec<ForeignWrite>,
}

impl Sight {
    /// The last batch that is done.
    pub fn last(&self) -> Option<&CommitRecord> {
        self.recent.first()
    }
}

/// Looks; `rows` rows of each table, and the source only if it is asked for.
pub(super) async fn sight(global: &Global, file: &Path, rows: usize, ask_source: bool) -> Result<Sight, Failure> {
    let checked = compose::check(global, file).await?;
    let spec = checked.spec.clone();
    let now = SystemClock.now();
    let log = compose::open_log(&spec)?;
    let location = log.location();
    let mut sight = Sight {
        name: spec.name.clone(),
        file: spec.file.clone(),
        runs: Some(Path::new(&location)).filter(|folder| folder.is_absolute()).and_then(lock::holder),
        location,
        state: State::NeverRan,
        now,
        recent: Vec::new(),
        lag: None,
        dead_today: None,
        tables: Vec::new(),
    };
    let Some(identity) = compose::known_identity(&spec, &log).await? else {
        compose::check_never_ran(&checked, &log).await?;
        return Ok(sight);
    };
    sight.recent = log.history(RECENT).await?;
    let parts = compose::parts(checked, &identity, compose::owner(), Box::new(log), Box::new(|_: &Event| {}))?;
    let facts = Runner::new(parts).observe().await?;
    sight.state = match recover(&facts) {
        Decision::Begin => State::NoBatch,
        Decision::Plan { batch } => State::Done { batch: batch - 1 },
        Decision::Replay(plan) => State::Pending { batch: plan.batch, since: plan.batch_time, by: plan.owner },
        Decision::Halt(why) => State::Halted { why: why.to_string(), help: why.help() },
    };
    if ask_source {
        let committed = facts.commit.as_ref().map(|commit| commit.offsets.clone()).unwrap_or_default();
        let log = compose::open_log(&spec)?;
        // The tables are worth a look all the same when the source does not answer.
        sight.lag = Some(behind(&spec, &log, &committed, now).await.map_err(|error| error.to_string()));
    }
    let lake = storage::open(&spec.lake)?;
    for (name, fact) in facts.tables {
        let glance = glance(&lake, &name, rows).await?;
        sight.tables.push(Seen { name, glance, applied: fact.applied, foreign: fact.foreign });
    }
    sight.dead_today = dead_today(&spec, &lake, now).await?;
    Ok(sight)
}

/// Dead letters since midnight.
async fn dead_today(spec: &PipelineSpec, lake: &Storage, now: DateTime<Utc>) -> Result<Option<u64>> {
    let Some(dead_letters) = &spec.dead_letters else { return Ok(None) };
    let queries = Queries::new(COUNTING, Vec::new())?;
    let storage = lake.join(&dead_letters.table.replace('.', "/"))?;
    if queries.add_table(&dead_letters.table, &storage, At::Newest).await?.is_none() {
        return Ok(None);
    }
    let day = now.with_timezone(&spec.timezone).date_naive();
    // Where the clocks skip midnight, the day starts when they have.
    let midnight = day.and_time(NaiveTime::MIN).and_local_timezone(spec.timezone).earliest();
    let midnight = midnight.map_or(now - chrono::TimeDelta::days(1), |midnight| midnight.to_utc());
    let midnight = midnight.to_rfc3339_opts(SecondsFormat::Secs, true);
    let table = dead_letters.table.split('.').map(|part| format!("\"{part}\"")).collect::<Vec<_>>().join(".");
    let sql = format!("SELECT count(*) AS n FROM {table} WHERE failed_at >= TIMESTAMP '{midnight}'");
    let rows: Vec<_> = queries.ask(&sql, None).await?.rows.try_collect().await?;
    let count = rows
        .iter()
        .filter(|batch| batch.num_rows() > 0)
        .map(|batch| batch.column(0).as_primitive::<Int64Type>().value(0));
    Ok(Some(count.sum::<i64>().unsigned_abs()))
}
