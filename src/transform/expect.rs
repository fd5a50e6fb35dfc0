//! Rules over computed rows: what breaks them is counted, left out, set aside, or stops the batch.

use std::cmp::Ordering;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch, UInt64Array};
use arrow::compute::{concat_batches, filter_record_batch, take_record_batch};
use arrow::datatypes::{Int32Type, Int64Type, SchemaRef};

use super::row_json::row_json;
use super::{Coordinates, DeadLetter, Shaped, Stage};
use crate::config::spec::{Action, Expectation};
use crate::error::{Code, Context, Error, ErrorKind, Result};
use crate::source::column;

/// The boolean column that marks deletes; computed for upsert tables, never stored.
pub const DELETE_FLAG: &str = "_tidegate_delete";

/// Name of the column that holds a rule's outcome.
pub fn check_column(index: usize) -> String {
    format!("_tidegate_check_{index}")
}

/// What to do with one table's computed rows.
#[derive(Debug)]
pub struct Rules<'a> {
    /// Table.
    pub table: &'a str,
    /// In file order; their outcomes are the columns [`check_column`].
    pub expectations: &'a [Expectation],
    /// Columns that must not be null.
    pub key: &'a [String],
    /// Columns that must not be empty text: Delta reads an empty partition value back as null.
    pub partition_by: &'a [String],
    /// Groups are replaced whole: a row that is set aside would be set aside again by every batch that touches its group.
    pub refresh: bool,
    /// It is computed after its upstreams were applied.
    pub deferred: bool,
    /// Rows set aside have somewhere to go.
    pub dead_letters: bool,
    /// The computed columns, without outcomes and delete flag: what a dead letter shows.
    pub shown: &'a SchemaRef,
}

/// Applies the rules to one batch of rows, adds to `shaped` everything but the rows, and returns the rows that stay.
pub fn apply(rules: &Rules<'_>, batch: &RecordBatch, shaped: &mut Shaped) -> Result<RecordBatch> {
    let deletes = batch.column_by_name(DELETE_FLAG).map(|flags| flags.as_boolean().clone());
    let is_delete = |row: usize| deletes.as_ref().is_some_and(|flags| flags.is_valid(row) && flags.value(row));
    let mut keep = vec![true; batch.num_rows()];
    let mut aside: Vec<Option<(Stage, &str, String)>> = vec![None; batch.num_rows()];
    for (index, rule) in rules.expectations.iter().enumerate() {
        let outcome = batch.column_by_name(&check_column(index)).map(|outcome| outcome.as_boolean().clone());
        let Some(outcome) = outcome else {
            return Err(Error::failed(format!("rule {} was not computed", rule.name)));
        };
        let mut broken = 0u64;
        let mut first = None;
        for row in 0..batch.num_rows() {
            // A delete names a key; it has no content to check.
            if (outcome.is_valid(row) && outcome.value(row)) || is_delete(row) {
                continue;
            }
            broken += 1;
            first.get_or_insert(row);
            match rule.action {
                Action::Warn | Action::Fail => {}
                Action::Drop => keep[row] = false,
                Action::Quarantine => {
                    keep[row] = false;
                    let error = || (Stage::Expect, rule.name.as_str(), format!("not true: {}", rule.check));
                    aside[row].get_or_insert_with(error);
                }
            }
        }
        *shaped.broken.entry(rule.name.clone()).or_default() += broken;
        if let (Action::Fail, Some(row)) = (rule.action, first) {
            return Err(Error::new(
                ErrorKind::Data,
                format!("{broken} rows of {} break the rule {}", rules.table, rule.name),
            )
            .coded(Code::RuleFailed)
            .with("rule", &rule.name)
            .with("check", &rule.check)
            .with("rows", broken)
            .with("first row", show(rules, batch, row))
            .help(unwritten(rules))
            .help(match rules.refresh {
                true => "fix the data or the check, or say `else: warn`",
                false => "fix the data or the check, or say `else: quarantine`",
            }));
        }
    }
    for name in rules.partition_by {
        let Some(column) = batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>()) else {
            continue;
        };
        for row in 0..batch.num_rows() {
            // A delete is never stored; it must still take away the row that is.
            if !keep[row] || is_delete(row) || column.is_null(row) {
                continue;
            }
            let Some((rule, why)) = unfit_for_a_folder(column.value(row)) else { continue };
            let error = format!("partition column `{name}` {why}");
            if rules.refresh {
                return Err(Error::new(ErrorKind::Data, format!("{error}, in a row for {}", rules.table))
                    .with("row", show(rules, batch, row))
                    .help(unwritten(rules))
                    .help(format!("set such rows aside in the upstream table with an expectation on {name}")));
            }
            keep[row] = false;
            aside[row] = Some((Stage::Key, rule, error));
        }
    }
    for name in rules.key {
        let Some(column) = batch.column_by_name(name).filter(|column| column.null_count() > 0) else {
            continue;
        };
        for row in (0..batch.num_rows()).filter(|row| column.is_null(*row)) {
            if keep[row] {
                keep[row] = false;
                aside[row] = Some((Stage::Key, "null_key", format!("key column {name} is null")));
            }
        }
    }
    for (row, reason) in aside.iter().enumerate() {
        match reason {
            Some((stage, rule, error)) if rules.dead_letters => shaped.dead.push(DeadLetter {
                table: rules.table.to_string(),
                stage: *stage,
                rule: rule.to_string(),
                error: error.clone(),
                coordinates: coordinates(batch, row),
                row_json: Some(show(rules, batch, row)),
            }),
            Some((_, rule, error)) => {
                return Err(Error::new(
                    ErrorKind::Data,
                    format!("a row of {} must be set aside, but dead letters are off", rules.table),
                )
                .with("rule", rule)
                .with("why", error)
                .with("row", show(rules, batch, row))
                .help(unwritten(rules))
                .help("turn `dead_letters` on, or handle such rows in `sql`"));
            }
            None if !keep[row] => shaped.dropped += 1,
            None => {}
        }
    }
    if keep.iter().all(|keep| *keep) {
        return Ok(batch.clone());
    }
    filter_record_batch(batch, &BooleanArray::from(keep)).context(ErrorKind::Failed, "leaving out rows")
}

/// What is true of the lake when computing this table fails.
fn unwritten(rules: &Rules<'_>) -> String {
    match rules.deferred {
        false => "nothing of this batch was written".to_string(),
        true => format!(
            "nothing of this batch was written to {}; tables upstream of it may already carry this batch; it is tried \
             again with the same rows at the next run",
            rules.table
        ),
    }
}

fn show(rules: &Rules<'_>, batch: &RecordBatch, row: usize) -> String {
    let indices: Vec<usize> =
        rules.shown.fields().iter().filter_map(|field| batch.schema_ref().index_of(field.name()).ok()).collect();
    batch.project(&indices).map_or_else(|_| String::from("{}"), |shown| row_json(&shown, row))
}

/// The record a row came from.
pub fn coordinates(batch: &RecordBatch, row: usize) -> Option<Coordinates> {
    let topic = batch.column_by_name(column::TOPIC)?.as_string_opt::<i32>()?;
    let partition = batch.column_by_name(column::PARTITION)?.as_primitive_opt::<Int32Type>()?;
    let offset = batch.column_by_name(column::OFFSET)?.as_primitive_opt::<Int64Type>()?;
    (topic.is_valid(row) && partition.is_valid(row) && offset.is_valid(row)).then(|| Coordinates {
        topic: topic.value(row).to_string(),
        partition: partition.value(row),
        offset: offset.value(row),
    })
}

/// Rows in the order of their records; a join may have moved them. Rows of one record keep their order.
pub fn in_source_order(schema: &SchemaRef, batches: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
    if batches.iter().all(|batch| batch.num_rows() == 0) {
        return Ok(batches);
    }
    let whole = concat_batches(schema, &batches).context(ErrorKind::Failed, "joining batches")?;
    let columns = (
        whole.column_by_name(column::TOPIC).and_then(|c| c.as_string_opt::<i32>()),
        whole.column_by_name(column::PARTITION).and_then(|c| c.as_primitive_opt::<Int32Type>()),
        whole.column_by_name(column::OFFSET).and_then(|c| c.as_primitive_opt::<Int64Type>()),
    );
    let (Some(topic), Some(partition), Some(offset)) = columns else {
        return Ok(batches);
    };
    let compare = |a: usize, b: usize| -> Ordering {
        (topic.value(a), partition.value(a), offset.value(a)).cmp(&(
            topic.value(b),
            partition.value(b),
            offset.value(b),
        ))
    };
    if (1..whole.num_rows()).all(|row| compare(row - 1, row).is_le()) {
        return Ok(batches);
    }
    let mut order: Vec<usize> = (0..whole.num_rows()).collect();
    order.sort_by(|a, b| compare(*a, *b));
    let order: UInt64Array = order.into_iter().map(|row| Some(row as u64)).collect();
    Ok(vec![take_record_batch(&whole, &order).context(ErrorKind::Failed, "restoring the order of rows")?])
}

/// Names of files end at 255 bytes, and a partition value is a folder's name with its column before it.
const MAX_PARTITION_VALUE: usize = 180;

/// Why text cannot be a partition value, with the rule's name. Delta escapes bytes as `%XX` in folder names.
fn unfit_for_a_folder(text: &str) -> Option<(&'static str, &'static str)> {
    if text.is_empty() {
        return Some(("empty_partition", "is empty text, which Delta cannot tell from null"));
    }
    let escaped: usize = text.bytes().map(|byte| if byte.is_ascii_alphanumeric() { 1 } else { 3 }).sum();
    (escaped > MAX_PARTITION_VALUE).then_some(("long_partition", "is too long for the name of a folder"))
}
