//! Where a table's rows come from, and whether they can be derived again from the bronze table at the root.

use std::collections::BTreeSet;

use crate::config::spec::{From, PipelineSpec, SourceKind, TableSpec, WriteSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::runner::rebuild::obstacle;
use crate::transform::Transform;

/// The way of a table's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    /// The table that keeps the source's rows as they came.
    pub bronze: String,
    /// The source's column that says when.
    pub event_time: String,
    /// From the table after bronze to the table itself.
    pub chain: Vec<String>,
}

/// The tables that keep a source's rows, and are read instead of derived again.
pub fn is_bronze(table: &TableSpec) -> bool {
    matches!(table.from, From::Source(_)) && table.write == WriteSpec::Append && table.keeps.is_none()
}

/// Whether what the table remembers, or a table before it, has a part in its rows: they do not follow from the rows of an
/// interval alone.
pub fn remembers(spec: &PipelineSpec, table: &TableSpec) -> bool {
    table.keeps.is_some()
        || table.inputs().into_iter().any(|from| match from {
            From::Table(name) => find(spec, name).is_some_and(|table| remembers(spec, table)),
            From::Source(_) => false,
        })
}

/// The lineage of a table; the inner error is the reason why it cannot be derived again.
pub fn lineage(
    spec: &PipelineSpec,
    transform: &dyn Transform,
    table: &TableSpec,
) -> std::result::Result<Lineage, String> {
    if remembers(spec, table) {
        return Err(match obstacle(table, transform) {
            None => format!(
                "what it remembers has a part in its rows; the whole table can be computed again: tidegate rebuild FILE \
                 --table {}",
                table.name
            ),
            Some(_) => {
                "what it or a table above it remembers has a part in its rows: they do not follow from the rows of a \
                        day"
                .to_owned()
            }
        });
    }
    let mut chain = vec![table.name.clone()];
    let mut at = table;
    let (bronze, source) = loop {
        match &at.from {
            From::Source(source) => break (at, source),
            From::Table(name) => {
                at = find(spec, name).ok_or_else(|| format!("`{name}` is not a table of the pipeline"))?;
                chain.push(name.clone());
            }
        }
    };
    chain.pop();
    chain.reverse();
    if chain.is_empty() {
        return Err("it reads the source itself; only tables fed by another one are derived again".to_owned());
    }
    let bronze = bronze.name.clone();
    let event_time = kept(spec, transform, &bronze, source)?;
    if table.write == WriteSpec::Append && !transform.passes(&table.name, &event_time) {
        return Err(format!(
            "it appends and does not keep the event time: `{event_time}` must pass through its `sql` unchanged, or the rows \
             of an interval cannot be found in it to be replaced"
        ));
    }
    Ok(Lineage { bronze, event_time, chain })
}

/// The event time of a bronze table that keeps its source's rows; the inner error is the reason why it does not.
fn kept(
    spec: &PipelineSpec,
    transform: &dyn Transform,
    bronze: &str,
    source: &str,
) -> std::result::Result<String, String> {
    if !transform.reads_back(bronze) {
        return Err(format!(
            "{bronze}, where its rows start, does not keep the source's rows: it must append, and keep _batch_id, _topic, \
             _partition and _offset"
        ));
    }
    let Some(event_time) = spec.sources.get(source).and_then(|source| source.event_time.clone()) else {
        return Err(format!("source `{source}` has no `event_time`: nothing says which day a row belongs to"));
    };
    match transform.passes(bronze, &event_time) {
        true => Ok(event_time),
        false => Err(format!("{bronze} does not keep the source's event time `{event_time}` as it came")),
    }
}

/// A table that keeps the rows of a topic: its source, and the source's event time.
pub(super) fn origin(spec: &PipelineSpec, transform: &dyn Transform, bronze: &str) -> Option<(String, String)> {
    let From::Source(source) = &find(spec, bronze).filter(|table| is_bronze(table))?.from else { return None };
    Some((source.clone(), kept(spec, transform, bronze, source).ok()?))
}

/// The tables to derive again from topics that are read again, in graph order: as [`choose`], with the tables that keep the
/// records; named alone, these are restored alone.
pub fn choose_from_topics(spec: &PipelineSpec, transform: &dyn Transform, names: &[String]) -> Result<Vec<String>> {
    let usage = |text: String| Error::new(ErrorKind::Usage, text).help("nothing was read or written");
    let all: Vec<&TableSpec> = spec.tables.iter().filter(|table| is_bronze(table)).collect();
    let is_of_bronze = |name: &String| all.iter().any(|table| table.name == *name);
    let (named, derived): (Vec<String>, Vec<String>) = names.iter().cloned().partition(is_of_bronze);
    let has_more = spec.tables.iter().any(|table| !is_bronze(table) && !remembers(spec, table));
    let derived = match names.is_empty() {
        true if !has_more => Vec::new(),
        false if derived.is_empty() => Vec::new(),
        _ => choose(spec, transform, &derived)?,
    };
    let mut bronze: BTreeSet<String> = named.into_iter().collect();
    if names.is_empty() {
        bronze.extend(all.iter().map(|table| table.name.clone()));
    }
    for name in &derived {
        let lineage = find(spec, name).and_then(|table| lineage(spec, transform, table).ok());
        bronze.extend(lineage.map(|lineage| lineage.bronze));
    }
    for table in &spec.tables {
        let (WriteSpec::Refresh { .. }, From::Table(upstream)) = (&table.write, &table.from) else { continue };
        if bronze.contains(upstream) && !derived.contains(&table.name) {
            return Err(usage(format!("--tables: {} follows the rows of {upstream}: both or neither", table.name)));
        }
    }
    for name in &bronze {
        let Some(From::Source(source)) = find(spec, name).map(|table| &table.from) else { continue };
        let kind = spec.sources.get(source).map(|source| &source.kind);
        let why = match kind {
            Some(SourceKind::Kafka(_)) => kept(spec, transform, name, source).err(),
            Some(SourceKind::Files(_)) => Some(format!("source `{source}` reads files: their lines have no time")),
            _ => Some(format!("source `{source}` generates its records: they have no time")),
        };
        if let Some(why) = why {
            return Err(usage(format!("--source kafka: {name} cannot be read again: {why}"))
                .help("from bronze: leave out --source kafka"));
        }
    }
    let is_wanted = |table: &&TableSpec| bronze.contains(&table.name) || derived.contains(&table.name);
    Ok(spec.tables.iter().filter(is_wanted).map(|table| table.name.clone()).collect())
}

/// The tables to derive again, in graph order: those named, or all that are fed by another one.
pub fn choose(spec: &PipelineSpec, transform: &dyn Transform, names: &[String]) -> Result<Vec<String>> {
    let usage = |text: String| Error::new(ErrorKind::Usage, text).help("nothing was read or written");
    for name in names {
        match find(spec, name) {
            Some(table) if is_bronze(table) => {
                return Err(usage(format!("--tables: {name} is what a backfill reads; it is not derived again")));
            }
            Some(_) => {}
            None if spec.dead_letters.as_ref().is_some_and(|dead| dead.table == *name) => {
                return Err(usage(format!("--tables: {name} needs no mention: dead letters come along by themselves")));
            }
            None => {
                let known = spec.tables.iter().filter(|table| !is_bronze(table)).map(|table| table.name.as_str());
                let help = crate::transform::problems::suggest(name, known, "tables").unwrap_or_default();
                return Err(usage(format!("--tables: the pipeline has no table `{name}`")).help(help));
            }
        }
    }
    let wanted = |table: &&TableSpec| match names.is_empty() {
        true => !is_bronze(table) && !remembers(spec, table),
        false => names.contains(&table.name),
    };
    let chosen: Vec<&TableSpec> = spec.tables.iter().filter(wanted).collect();
    if chosen.is_empty() {
        let left: Vec<&TableSpec> = spec.tables.iter().filter(|table| !is_bronze(table)).collect();
        if left.is_empty() {
            return Err(usage(
                "the pipeline has no table that is fed by another one: there is nothing to derive".to_owned(),
            ));
        }
        let text = "every table that is fed by another one remembers: its rows do not follow from the rows of a day";
        let again = left.iter().filter(|table| obstacle(table, transform).is_none());
        let help =
            again.map(|table| format!("to compute all of it again: tidegate rebuild FILE --table {}", table.name));
        return Err(help.fold(usage(text.to_owned()), Error::help));
    }
    let chosen_names: BTreeSet<&str> = chosen.iter().map(|table| table.name.as_str()).collect();
    // Groups that a row leaves are found where it was changed: later, nobody could tell them.
    for table in spec.tables.iter().filter(|table| !chosen_names.contains(table.name.as_str())) {
        let (WriteSpec::Refresh { .. }, From::Table(upstream)) = (&table.write, &table.from) else { continue };
        if chosen_names.contains(upstream.as_str()) {
            let text = format!("--tables: {} follows the rows of {upstream}: both or neither", table.name);
            let all = join(&chosen_names.iter().copied().chain([table.name.as_str()]).collect());
            return Err(usage(text).help(format!("write --tables {}", all.replace(", ", ","))));
        }
    }
    let mut problems = Vec::new();
    for table in &chosen {
        if let Err(why) = lineage(spec, transform, table) {
            problems.push((table.name.clone(), why));
        } else if let Some(upstream) = refreshes(spec, table).filter(|name| !chosen_names.contains(name)) {
            let why = format!("it follows the groups that change in {upstream}: name {upstream} as well");
            problems.push((table.name.clone(), why));
        }
    }
    if problems.is_empty() {
        return Ok(chosen.into_iter().map(|table| table.name.clone()).collect());
    }
    let broken: BTreeSet<&str> = problems.iter().map(|(name, _)| name.as_str()).collect();
    let others: Vec<&str> = chosen_names.into_iter().filter(|name| !broken.contains(name)).collect();
    let mut error = usage(format!("{} cannot be derived again", join(&broken)));
    for (name, why) in &problems {
        error = error.with("table", format!("{name}: {why}"));
    }
    Err(match others.is_empty() {
        true => error,
        false => error.help(format!("to derive the others: --tables {}", others.join(","))),
    })
}

/// For a refresh table fed by another refresh table, that one.
fn refreshes<'a>(spec: &'a PipelineSpec, table: &'a TableSpec) -> Option<&'a str> {
    let From::Table(upstream) = &table.from else { return None };
    let is_refresh = |table: &TableSpec| matches!(table.write, WriteSpec::Refresh { .. });
    (is_refresh(table) && find(spec, upstream).is_some_and(is_refresh)).then_some(upstream.as_str())
}

fn join(names: &BTreeSet<&str>) -> String {
    names.iter().copied().collect::<Vec<_>>().join(", ")
}

pub(super) fn find<'a>(spec: &'a PipelineSpec, name: &str) -> Option<&'a TableSpec> {
    spec.tables.iter().find(|table| table.name == name)
}
