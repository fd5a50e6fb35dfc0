//! `tidegate lag`: how far pipelines are behind, by partition, and how long that can last. Reads only; with `--fail-above`
//! a probe for monitors.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::output::{aligned, grouped, headroom, headroom_warning, span};
use super::{Failure, Outcome, compose, validate};
use crate::checkpoint::CheckpointLog;
use crate::checkpoint::log::ObjectLog;
use crate::cli::{Global, LagArgs};
use crate::config::spec::PipelineSpec;
use crate::error::{Error, ErrorKind, Result};
use crate::model::lag::{Lag, Retention, measure, worth_a_warning};
use crate::model::offset::Offsets;
use crate::runner::clock::{Clock, SystemClock};
use crate::source::lag::sight;
use crate::source::{self, Source};
use crate::units;

/// How long a broker is waited for: somebody is looking, or a probe has a time limit of its own.
const PATIENCE: Duration = Duration::from_secs(10);

/// One partition, with the source it belongs to.
pub(super) struct Behind {
    pub source: String,
    pub lag: Lag,
    pub retention: Option<Retention>,
}

/// All partitions of a pipeline.
pub(super) struct Total {
    pub records: i64,
    /// Age of the oldest unread record; `None` = not known.
    pub age: Option<TimeDelta>,
}

impl Total {
    pub fn of(partitions: &[Behind]) -> Total {
        let records = partitions.iter().map(|behind| behind.lag.records).sum();
        let ages: Option<Vec<TimeDelta>> = partitions.iter().map(|behind| behind.lag.age).collect();
        Total { records, age: ages.map(|ages| ages.into_iter().max().unwrap_or_default()) }
    }

    pub fn json(&self) -> Value {
        json!({ "records": self.records, "seconds": self.age.map(|age| age.num_seconds()) })
    }

    /// `2,000 records, the oldest is 5 m 3 s old`.
    pub fn text(&self) -> String {
        match (self.records, self.age) {
            (0, _) => "nothing unread".to_string(),
            (records, Some(age)) => format!("{} records, the oldest is {} old", grouped(records), span(age)),
            (records, None) => format!("{} records", grouped(records)),
        }
    }
}

/// What `--fail-above` says.
enum Limit {
    Age(TimeDelta),
    Records(i64),
}

pub(super) async fn lag(global: &Global, args: &LagArgs) -> Result<Outcome, Failure> {
    let limit = args.fail_above.as_deref().map(parse_limit).transpose()?;
    let warn = args.warn_headroom.as_deref().map(|text| time("--warn-headroom", text)).transpose()?;
    let (mut text, mut pipelines, mut is_above) = (String::new(), Vec::new(), false);
    for file in validate::expand(&args.files)? {
        let spec = compose::load(global, &file)?;
        let log = compose::open_log(&spec)?;
        compose::known_identity(&spec, &log).await?;
        let head = log.head().await?;
        let committed = head.commit.map(|commit| commit.offsets).unwrap_or_default();
        let partitions = behind(&spec, &log, &committed, SystemClock.now()).await?;
        let total = Total::of(&partitions);
        text.push_str(&format!("{}: {}\n", spec.name, total.text()));
        text.push_str(&table(&partitions));
        let warnings: Vec<String> = partitions.iter().filter_map(|behind| warning(behind, warn)).collect();
        warnings.iter().for_each(|warning| text.push_str(&format!("  warning: {warning}\n")));
        let above = limit.as_ref().and_then(|limit| above(&total, limit));
        if let Some(above) = &above {
            text.push_str(&format!("  above the limit: {above}\n"));
        }
        is_above |= above.is_some();
        pipelines.push(json!({
            "pipeline": spec.name, "file": file, "lag": total.json(), "above": above, "warnings": warnings,
            "partitions": partitions.iter().map(partition_json).collect::<Vec<_>>(),
        }));
    }
    let status = if is_above { "above" } else { "ok" };
    let json = json!({ "version": 1, "status": status, "pipelines": pipelines });
    Ok(Outcome { text, json, code: u8::from(is_above) })
}

/// How far a pipeline is behind that has read up to `committed`; a source that was never read counts from where its first
/// run would start.
pub(super) async fn behind(
    spec: &PipelineSpec,
    log: &ObjectLog,
    committed: &BTreeMap<String, Offsets>,
    now: DateTime<Utc>,
) -> Result<Vec<Behind>> {
    let mut partitions = Vec::new();
    for (name, kind) in &spec.sources {
        let mut source = source::open_within(name, kind, PATIENCE)?;
        let at = match committed.get(name) {
            Some(at) => at.clone(),
            None => first(name, log, &mut *source).await?,
        };
        let seen = sight(&mut *source, &at).await?;
        partitions.extend(measure(&seen, now).into_iter().map(|lag| {
            let retention = seen.retention.get(&lag.partition.topic).copied();
            Behind { source: name.clone(), lag, retention }
        }));
    }
    Ok(partitions)
}

async fn first(name: &str, log: &ObjectLog, source: &mut dyn Source) -> Result<Offsets> {
    match log.start(name).await? {
        Some(start) => Ok(start.offsets),
        None => source.start().await,
    }
}

/// What is about to be lost, if anything is.
pub(super) fn warning(behind: &Behind, threshold: Option<TimeDelta>) -> Option<String> {
    let threshold = threshold.unwrap_or_else(|| worth_a_warning(behind.retention.as_ref()));
    behind.lag.headroom.left().filter(|left| *left < threshold).map(|_| headroom_warning(&behind.lag))
}

fn table(partitions: &[Behind]) -> String {
    let number = |value: Option<i64>| value.map_or("-".to_string(), grouped);
    let rows: Vec<Vec<String>> = partitions
        .iter()
        .map(|Behind { source, lag, .. }| {
            let end = if lag.end.is_none() { "gone".to_string() } else { number(lag.end) };
            let age = lag.age.map_or("?".to_string(), span);
            let numbers =
                [number(lag.at), number(lag.earliest), end, grouped(lag.records), age, headroom(&lag.headroom)];
            [source.clone(), lag.partition.to_string()].into_iter().chain(numbers).collect()
        })
        .collect();
    let header = ["source", "partition", "checkpoint", "earliest", "end", "unread", "behind", "falls off in"];
    aligned(&header, &rows, 2)
}

fn partition_json(behind: &Behind) -> Value {
    let Behind { source, lag, retention } = behind;
    json!({
        "source": source, "topic": lag.partition.topic, "partition": lag.partition.partition,
        "checkpoint": lag.at, "earliest": lag.earliest, "end": lag.end, "records": lag.records,
        "seconds": lag.age.map(|age| age.num_seconds()),
        "headroom": headroom(&lag.headroom),
        "headroom_seconds": lag.headroom.left().map(|left| left.num_seconds()),
        "retention_ms": retention.and_then(|retention| retention.age).map(|age| age.num_milliseconds()),
        "retention_bytes": retention.and_then(|retention| retention.bytes),
    })
}

/// Why a total is above the limit. What is not known is not below it.
fn above(total: &Total, limit: &Limit) -> Option<String> {
    match (limit, total.age) {
        (Limit::Records(limit), _) if total.records > *limit => {
            Some(format!("{} unread records, {} are allowed", grouped(total.records), grouped(*limit)))
        }
        (Limit::Records(_), _) => None,
        (Limit::Age(limit), Some(age)) => {
            (age > *limit).then(|| format!("{} behind, {} are allowed", span(age), span(*limit)))
        }
        (Limit::Age(_), None) => Some("how old the unread records are is not known".to_string()),
    }
}

fn parse_limit(text: &str) -> Result<Limit> {
    if let Ok(records) = units::count(text) {
        return Ok(Limit::Records(i64::try_from(records).unwrap_or(i64::MAX)));
    }
    time("--fail-above", text).map(Limit::Age).map_err(|_| {
        Error::new(ErrorKind::Usage, format!("--fail-above `{text}` is neither a time nor a number of records"))
            .help("write a time such as 5m, or a number of records such as 10_000")
    })
}

fn time(flag: &str, text: &str) -> Result<TimeDelta> {
    let refused = |why: String| Error::new(ErrorKind::Usage, format!("{flag} {why}"));
    let time = units::duration(text).map_err(refused)?;
    Ok(TimeDelta::from_std(time).unwrap_or(TimeDelta::MAX))
}
