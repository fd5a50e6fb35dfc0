//! What there is of a key: in the tables, in the dead letters, and in the sources.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int32Type, Int64Type};

use super::super::Runner;
use super::super::step::blocking;
use super::coordinates;
use crate::config::spec::WriteSpec;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::model::forget::{Counted, Key, Still};
use crate::model::offset::{Offset, Offsets, Partition};
use crate::source::{Limits, column};
use crate::table::{Held, Removal, Traces};
use crate::transform::forget::{self, Found, Typed, Values};
use crate::transform::{BatchContext, letter};

/// Columns of dead letters in which a key is looked for.
const SEARCHED: [&str; 6] = ["value", "key", "row_json", "headers", "error", "note"];

/// What one table has to do with a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Share {
    /// It has the columns.
    Holds(Held),
    /// It lacks columns: those that it has, and those that it lacks.
    Lacks(Vec<String>, Vec<String>),
    /// A value that none of its rows can have, and why.
    Never(String),
    /// There is no such table yet.
    Absent,
    /// Dead letters: those that have the key, and those that merely contain its values.
    Letters(u64, u64),
}

impl Runner {
    /// What each table has to do with `key`; the tables have been observed. Writes nothing.
    pub async fn shares(&mut self, key: &Key) -> Result<BTreeMap<String, Share>> {
        let names: Vec<String> = self.parts.spec.tables.iter().map(|table| table.name.clone()).collect();
        let mut shares = BTreeMap::new();
        for name in names {
            let share = match self.typed(&name, &key.values).await? {
                None => Share::Absent,
                Some(Typed::Lacks(has, lacks)) => Share::Lacks(has, lacks),
                Some(Typed::Never(why)) => Share::Never(why),
                Some(Typed::Row(rows)) => {
                    let removal = Removal { rows, records: coordinates(&key.records)? };
                    Share::Holds(self.table(&name)?.count_held(&removal).await?)
                }
            };
            shares.insert(name, share);
        }
        if let Some(name) = self.parts.spec.dead_letters.as_ref().map(|dead_letters| dead_letters.table.clone()) {
            let share = match self.table(&name)?.stored().await? {
                None => Share::Absent,
                Some(_) => {
                    let (_, has, contain) = self.letters_of(&key.values, false).await?;
                    Share::Letters(has, contain)
                }
            };
            shares.insert(name, share);
        }
        Ok(shares)
    }

    /// The records that rows of the key came from, as far as tables that only add rows tell.
    pub async fn records_in_tables(&mut self, key: &Key) -> Result<Vec<(Partition, Vec<Offset>)>> {
        let appends = self.parts.spec.tables.iter().filter(|table| table.write == WriteSpec::Append);
        let names: Vec<String> = appends.map(|table| table.name.clone()).collect();
        let columns = [column::TOPIC, column::PARTITION, column::OFFSET].map(str::to_string);
        let mut records: BTreeMap<Partition, BTreeSet<Offset>> = BTreeMap::new();
        for name in names {
            if !self.parts.transform.keeps_coordinates(&name) {
                continue;
            }
            let Some(Typed::Row(row)) = self.typed(&name, &key.values).await? else { continue };
            for rows in self.table(&name)?.read(&columns, Some(&row)).await? {
                for (partition, offset) in places(&rows)? {
                    records.entry(partition).or_default().insert(offset);
                }
            }
        }
        Ok(records.into_iter().map(|(partition, offsets)| (partition, offsets.into_iter().collect())).collect())
    }

    /// Where pairs of a join name the key by columns of the right side, which have other names: those, and how many rows.
    pub async fn named_otherwise(&mut self, key: &Key) -> Result<BTreeMap<String, (Vec<String>, u64)>> {
        let names: Vec<String> = self.parts.spec.tables.iter().map(|table| table.name.clone()).collect();
        let mut found = BTreeMap::new();
        for table in names {
            let Some(operator) = self.parts.transform.remembers(&table)? else { continue };
            let other = |name: &String| operator.holds(name).into_iter().find(|column| column != name);
            let Some(columns) = key.values.keys().map(other).collect::<Option<Vec<String>>>() else { continue };
            let values: Values = columns.iter().cloned().zip(key.values.values().cloned()).collect();
            if let Some(Typed::Row(rows)) = self.typed(&table, &values).await? {
                let held = self.table(&table)?.count_held(&Removal { rows, records: None }).await?;
                found.insert(table, (columns, held.rows));
            }
        }
        Ok(found)
    }

    /// Every column that a table has, but for dead letters.
    pub async fn columns(&mut self) -> Result<BTreeSet<String>> {
        let names: Vec<String> = self.parts.spec.tables.iter().map(|table| table.name.clone()).collect();
        let mut columns = BTreeSet::new();
        for name in names {
            let schema = self.table(&name)?.stored().await?;
            columns.extend(schema.iter().flat_map(|schema| schema.fields()).map(|field| field.name().clone()));
        }
        Ok(columns)
    }

    /// The key as a row of a table; `None` = there is no table.
    pub(super) async fn typed(&mut self, table: &str, values: &Values) -> Result<Option<Typed>> {
        let Some(schema) = self.table(table)?.stored().await? else { return Ok(None) };
        forget::typed(&schema, values).map(Some)
    }

    /// Dead letters of the key, as rows that they are found by; how many have it, and how many merely contain its values.
    /// Those are among the rows only if `containing`.
    pub(super) async fn letters_of(
        &mut self,
        values: &Values,
        containing: bool,
    ) -> Result<(Option<RecordBatch>, u64, u64)> {
        let Some(dead_letters) = self.parts.spec.dead_letters.clone() else { return Ok((None, 0, 0)) };
        let table = self.table(&dead_letters.table)?;
        let day = ["failed_date".to_string()];
        let days = table.groups(&day).await?;
        let (mut has, mut contain, mut ids) = (0, 0, Vec::new());
        // One day at a time: with their bytes, all letters of a table may be more than memory holds.
        for at in 0..days.num_rows() {
            for rows in table.read(&letter::columns(), Some(&days.slice(at, 1))).await? {
                let found = forget::find(&rows, &SEARCHED, values);
                has += found.iter().filter(|found| **found == Found::Has).count() as u64;
                contain += found.iter().filter(|found| **found == Found::Contains).count() as u64;
                let least = if containing { Found::Contains } else { Found::Has };
                let goes: BooleanArray = found.iter().map(|found| Some(*found >= least)).collect();
                let rows =
                    filter_record_batch(&rows, &goes).context(ErrorKind::Failed, "letters could not be picked")?;
                if rows.num_rows() > 0 {
                    ids.push(identities(&rows)?);
                }
            }
        }
        let ids = match ids.first() {
            Some(first) => {
                let schema = first.schema();
                Some(arrow::compute::concat_batches(&schema, &ids).context(ErrorKind::Failed, "ids cannot be joined")?)
            }
            None => None,
        };
        Ok((ids, has, contain))
    }

    /// Records of the key that the sources still hold, by source; sources whose columns cannot tell are not in the answer.
    pub async fn still_in_sources(&mut self, key: &Key) -> Result<BTreeMap<String, Vec<Still>>> {
        let names: Vec<String> = self.parts.sources.keys().cloned().collect();
        let mut all = BTreeMap::new();
        for name in names {
            let found = self.still_in(&name, &key.values).await;
            let found = found.map_err(|error| {
                error.with("source", &name).help("nothing was changed; to leave the sources out: --offline")
            })?;
            all.insert(name, found);
        }
        Ok(all)
    }

    async fn still_in(&mut self, name: &str, values: &Values) -> Result<Vec<Still>> {
        let limits = Limits { max_rows: self.parts.spec.max_rows, max_bytes: self.parts.spec.max_bytes };
        let context = BatchContext {
            pipeline: self.parts.spec.name.clone(),
            batch: 0,
            batch_time: self.parts.clock.now(),
            interval: None,
        };
        let transform = self.parts.transform.clone();
        let Some(source) = self.parts.sources.get_mut(name) else { return Ok(Vec::new()) };
        let topics = source.incarnations().await?;
        let end = source.end().await?;
        let mut at = source.earliest().await?;
        at.0.retain(|partition, _| end.0.contains_key(partition));
        let mut still = BTreeMap::new();
        loop {
            let ranges = source.bound(&at, &topics, &end, limits).await?.ranges;
            if ranges.is_empty() {
                break;
            }
            let records = source.read(&ranges, &topics).await?.batches;
            let (transform, context) = (transform.clone(), context.clone());
            let (source_name, values) = (name.to_string(), values.clone());
            let found = blocking(move || {
                let decoded = transform.decode(&source_name, &records, &context)?;
                let dead = decoded.dead.into_iter().filter_map(|dead| dead.coordinates);
                let dead = dead.map(|at| (Partition::new(at.topic, at.partition), at.offset)).collect();
                records_of(&decoded.rows, &records, &dead, &values)
            });
            for (partition, offset) in found.await? {
                let new = Still { partition: partition.clone(), records: 0, first: offset, last: offset };
                let entry = still.entry(partition).or_insert(new);
                entry.records += 1;
                entry.first = entry.first.min(offset);
                entry.last = entry.last.max(offset);
            }
            let read = ranges.0.iter().map(|(partition, range)| (partition.clone(), range.until));
            at.0.extend(Offsets(read.collect()).0);
        }
        source.rest().await;
        Ok(still.into_values().collect())
    }

    /// Where the logs of these tables name values of the key, or of dead letters that have it.
    pub async fn traces<'a>(
        &mut self,
        tables: impl IntoIterator<Item = &'a String>,
        columns: &[String],
    ) -> Result<BTreeMap<String, Traces>> {
        let dead_letters = self.parts.spec.dead_letters.as_ref().map(|dead_letters| dead_letters.table.clone());
        let mut all = BTreeMap::new();
        for name in tables {
            let columns = match dead_letters.as_ref() == Some(name) {
                true => SEARCHED.map(str::to_string).to_vec(),
                false => columns.to_vec(),
            };
            all.insert(name.clone(), self.table(name)?.traces(&columns).await?);
        }
        Ok(all)
    }
}

/// What the counts of a share are to a plan; `None` = the table is left as it is.
pub fn counted(share: &Share, containing: bool) -> Option<Counted> {
    match share {
        Share::Holds(held) => Some(Counted { rows: held.rows, remembered: held.remembered }),
        Share::Letters(has, contain) => {
            let rows = if containing { has + contain } else { *has };
            Some(Counted { rows, remembered: 0 })
        }
        Share::Lacks(..) | Share::Never(_) | Share::Absent => None,
    }
}

/// What letters are found by.
fn identities(rows: &RecordBatch) -> Result<RecordBatch> {
    let column = |name: &'static str| -> Result<(&str, ArrayRef)> {
        let column = rows.column_by_name(name);
        Ok((name, column.ok_or_else(|| Error::failed(format!("the dead letters have no column {name}")))?.clone()))
    };
    RecordBatch::try_from_iter([column("dlq_id")?, column("batch_id")?]).context(ErrorKind::Failed, "ids are columns")
}

/// Where the records of a key lie: decoded ones by their columns, those that cannot be decoded by their bytes.
fn records_of(
    decoded: &[RecordBatch],
    records: &[RecordBatch],
    dead: &HashSet<(Partition, i64)>,
    values: &Values,
) -> Result<Vec<(Partition, i64)>> {
    let mut found = Vec::new();
    for rows in decoded {
        let Typed::Row(row) = forget::typed(&rows.schema(), values)? else { continue };
        let mask = forget::mask(rows, &row)?;
        let places = places(rows)?;
        found.extend(mask.values().set_indices().map(|at| places[at].clone()));
    }
    if dead.is_empty() {
        return Ok(found);
    }
    for rows in records {
        let has = forget::find(rows, &[column::VALUE, column::KEY], values);
        let both = places(rows)?.into_iter().zip(has);
        found.extend(both.filter(|(at, has)| *has == Found::Has && dead.contains(at)).map(|(at, _)| at));
    }
    Ok(found)
}

/// The coordinates of rows.
fn places(rows: &RecordBatch) -> Result<Vec<(Partition, i64)>> {
    let odd = || Error::failed("records have no coordinates");
    let column = |name: &str| rows.column_by_name(name).ok_or_else(odd);
    let topics = column(column::TOPIC)?.as_string_opt::<i32>().ok_or_else(odd)?;
    let partitions = column(column::PARTITION)?.as_primitive_opt::<Int32Type>().ok_or_else(odd)?;
    let offsets = column(column::OFFSET)?.as_primitive_opt::<Int64Type>().ok_or_else(odd)?;
    let place = |at: usize| (Partition::new(topics.value(at), partitions.value(at)), offsets.value(at));
    Ok((0..rows.num_rows()).map(place).collect())
}
