//! One test, run: the real runner, transforms and Delta tables, in memory, once for every way to cut the input.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, Utc};

use super::compare::align;
use super::show::{Diff, DiffRow, Fault, Verdict};
use super::suite::{Expectation, ExpectedRows, PIPELINE_ID, Test};
use super::value::{same, shown};
use crate::checkpoint::log::ObjectLog;
use crate::checkpoint::states::States;
use crate::checkpoint::{CheckpointLog, Identity};
use crate::error::Result;
use crate::model::batch::{BatchPlan, CommitRecord, FORMAT_VERSION, Owner};
use crate::model::offset::Offsets;
use crate::runner::clock::Clock;
use crate::runner::event::Event;
use crate::runner::{Parts, Runner, Stepped, app_id, meaning, remembering};
use crate::source::Source;
use crate::source::memory::MemorySource;
use crate::storage::{self, Storage};
use crate::table::{self, Change, Lookup, Table, Txn, glance};

/// Where batches end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// As the test says.
    Written,
    /// Everything in one batch.
    Whole,
    /// Every record a batch.
    Rows,
}

impl Cut {
    pub fn describe(self) -> &'static str {
        match self {
            Cut::Written => "as written",
            Cut::Whole => "in one batch",
            Cut::Rows => "row by row",
        }
    }
}

/// Rules of tables that remember which tell of late rows.
const LATE: [&str; 2] = [".late", ".partly_late"];

/// Columns that say which batch wrote a row: the only ones that may depend on the cut.
fn says_batch(column: &str, is_dead_letters: bool) -> bool {
    column == "_batch_id" || (is_dead_letters && (column == "batch_id" || column == "dlq_id"))
}

/// Runs a test every way and compares.
pub(super) async fn run(test: &Test) -> Verdict {
    let mut verdict = Verdict::default();
    let (written, had_late_rows) = match run_cut(test, Cut::Written).await {
        Ok(ran) => ran,
        Err(error) => {
            verdict.faults.push(Fault::Error { cut: Cut::Written, report: error.report() });
            return verdict;
        }
    };
    for expectation in &test.expect {
        let found = written.get(&expectation.table);
        verdict
            .faults
            .extend(judge(expectation, found).map(|diff| Fault::Table { table: expectation.table.clone(), diff }));
    }
    // A table that is wrong as written is repaired first; what other cuts make of it is noise until then.
    let cuts = if verdict.passed() { other_cuts(test) } else { Vec::new() };
    for cut in cuts {
        match run_cut(test, cut).await {
            // Which rows are late does depend on where batches end.
            Ok((tables, has_late_rows)) => {
                let judged = !had_late_rows && !has_late_rows;
                verdict.faults.extend(differences(test, &written, &tables, cut, judged));
            }
            Err(error) => verdict.faults.push(Fault::Error { cut, report: error.report() }),
        }
    }
    if !verdict.faults.is_empty() {
        verdict.set_aside = set_aside(test, &written);
    }
    verdict
}

fn other_cuts(test: &Test) -> Vec<Cut> {
    let sizes: Vec<usize> = test.batches.iter().map(Vec::len).filter(|len| *len > 0).collect();
    let mut cuts = Vec::new();
    if sizes.len() > 1 {
        cuts.push(Cut::Whole);
    }
    if sizes.iter().any(|len| *len > 1) {
        cuts.push(Cut::Rows);
    }
    cuts
}

struct FixedClock(DateTime<Utc>);

impl Clock for FixedClock {
    fn now(&self) -> DateTime<Utc> {
        self.0
    }
}

/// The tables after the input, cut one way, and whether a row came late.
async fn run_cut(test: &Test, cut: Cut) -> Result<(BTreeMap<String, RecordBatch>, bool)> {
    let (lake, log) = (storage::in_memory()?, ObjectLog::new(storage::in_memory()?));
    let owner = Owner { run_id: PIPELINE_ID.to_string(), host: String::new(), pid: 0 };
    let pipeline = test.spec.name.clone();
    let identity =
        Identity { version: FORMAT_VERSION, pipeline_id: PIPELINE_ID.to_string(), pipeline, created_by: owner.clone() };
    log.create(&identity).await?;
    let mut sources: BTreeMap<String, Box<dyn Source>> = BTreeMap::new();
    let mut starts: BTreeMap<String, Offsets> = BTreeMap::new();
    for name in test.spec.sources.keys() {
        let records = test.batches.iter().flatten().filter(|(source, _)| source == name);
        let mut source = MemorySource::new(records.map(|(_, record)| record.clone()));
        starts.insert(name.clone(), source.start().await?);
        sources.insert(name.clone(), Box::new(source));
    }
    let mut tables = open_tables(test, &lake)?;
    if !test.tables.is_empty() {
        give_tables(test, &mut tables, &log, &starts, &owner).await?;
    }
    let lookup = |(name, (schema, rows)): (&String, &super::suite::LookupRows)| -> (String, Box<dyn Lookup>) {
        (name.clone(), table::lookup::of_rows(schema.clone(), rows.clone()))
    };
    let mut runner = Runner::new(Parts {
        spec: test.spec.as_ref().clone(),
        pipeline_id: PIPELINE_ID.to_string(),
        owner,
        sources,
        transform: test.compiled.clone(),
        tables,
        lookups: test.lookups.iter().map(lookup).collect(),
        log: Box::new(log),
        clock: Arc::new(FixedClock(test.now)),
        observer: Box::new(|_: &Event| {}),
        states: States::new(&lake)?,
    });
    // Tables that were given rows make a pipeline that has run, and those that remember join it: they catch up in a batch of
    // their own, which reads nothing. Without one there is nothing to do yet.
    let joining = (!test.tables.is_empty()).then(|| starts.clone());
    let mut has_late_rows = false;
    for ends in joining.into_iter().chain(ends(test, cut, starts)) {
        if let Stepped::Ran(record) = runner.step(&ends).await? {
            let is_late = |(rule, rows): (&String, &u64)| *rows > 0 && LATE.iter().any(|late| rule.ends_with(late));
            has_late_rows |= record.expectations.iter().any(is_late);
        }
    }
    let mut found = BTreeMap::new();
    for definition in &test.definitions {
        if let Some(rows) = glance::contents(&lake, &definition.name).await? {
            found.insert(definition.name.clone(), rows);
        }
    }
    Ok((found, has_late_rows))
}

fn open_tables(test: &Test, lake: &Storage) -> Result<Vec<Box<dyn Table>>> {
    test.definitions.iter().map(|definition| table::delta::open(lake, definition.clone())).collect()
}

/// The end of every batch.
fn ends(test: &Test, cut: Cut, starts: BTreeMap<String, Offsets>) -> Vec<BTreeMap<String, Offsets>> {
    let mut at = starts;
    let mut ends = Vec::new();
    for batch in &test.batches {
        for (source, record) in batch {
            if let Some(offsets) = at.get_mut(source) {
                offsets.0.insert(record.partition.clone(), record.offset + 1);
            }
            if cut == Cut::Rows {
                ends.push(at.clone());
            }
        }
        if cut == Cut::Written {
            ends.push(at.clone());
        }
    }
    if cut == Cut::Whole {
        ends.push(at);
    }
    ends
}

/// Makes the given rows what an earlier batch left behind; tables that are given none join later, as in production.
async fn give_tables(
    test: &Test,
    tables: &mut [Box<dyn Table>],
    log: &ObjectLog,
    starts: &BTreeMap<String, Offsets>,
    owner: &Owner,
) -> Result<()> {
    let mut receipts = BTreeMap::new();
    for table in tables {
        let name = table.definition().name.clone();
        let Some(rows) = test.tables.get(&name) else { continue };
        let txn = Txn { app_id: app_id(PIPELINE_ID, &name), batch: 0, user_metadata: "{}".to_string() };
        receipts.insert(name, table.apply(Change::Rows(rows.clone()), &txn).await?);
    }
    let given = meaning(&test.spec).into_iter().filter(|(table, _)| receipts.contains_key(table));
    let plan = BatchPlan {
        version: FORMAT_VERSION,
        batch: 0,
        pipeline: test.spec.name.clone(),
        batch_time: test.now,
        sources: BTreeMap::new(),
        skipped: BTreeMap::new(),
        moved: BTreeMap::new(),
        letters: None,
        rebuild: Vec::new(),
        since: BTreeMap::new(),
        forget: None,
        incarnations: BTreeMap::new(),
        lost: BTreeMap::new(),
        watermarks: BTreeMap::new(),
        pinned: BTreeMap::new(),
        meaning: given.collect(),
        recipe: "given".to_string(),
        owner: owner.clone(),
    };
    log.plan(&plan).await?;
    let record = CommitRecord {
        version: FORMAT_VERSION,
        batch: 0,
        pipeline: test.spec.name.clone(),
        offsets: starts.clone(),
        incarnations: BTreeMap::new(),
        lost: BTreeMap::new(),
        replayed_from: None,
        finished_by: None,
        next_watermarks: BTreeMap::new(),
        tables: receipts,
        input_rows: 0,
        input_bytes: 0,
        dead_letters: 0,
        expectations: BTreeMap::new(),
        duration_ms: BTreeMap::new(),
        committed_at: test.now,
    };
    log.commit(&record).await
}

/// How a table differs from what is expected; `None` = it does not. A table that was never made has no rows.
fn judge(expectation: &Expectation, found: Option<&RecordBatch>) -> Option<Diff> {
    let actual = found.map_or(0, RecordBatch::num_rows);
    let column = |name: &str| found.and_then(|rows| rows.column_by_name(name));
    let rows = match &expectation.rows {
        ExpectedRows::Count(count) if *count == actual => return None,
        ExpectedRows::Count(count) => {
            let columns = glance_columns(found, &expectation.keys);
            let rows = (0..actual).map(|row| unexpected(found, &columns, row)).collect();
            return Some(Diff { columns, rows, matched: 0, counts: Some((*count, actual)) });
        }
        ExpectedRows::Rows(rows) => rows,
    };
    // Columns in the order in which they are first listed.
    let mut columns: Vec<String> = Vec::new();
    for cell in rows.iter().flatten() {
        if !columns.contains(&cell.column) {
            columns.push(cell.column.clone());
        }
    }
    let cell = |i: usize, c: usize| rows[i].iter().find(|cell| cell.column == columns[c]);
    let listed: Vec<Vec<usize>> =
        (0..rows.len()).map(|i| (0..columns.len()).filter(|&c| cell(i, c).is_some()).collect()).collect();
    let keys: Vec<usize> =
        expectation.keys.iter().filter_map(|key| columns.iter().position(|column| column == key)).collect();
    let keys = if keys.len() == expectation.keys.len() { keys } else { Vec::new() };
    let equal = |i: usize, c: usize, j: usize| match (cell(i, c), column(&columns[c])) {
        (Some(cell), Some(array)) => cell.want.holds(array, j),
        // A column that never came to be is null everywhere.
        (Some(cell), None) => cell.want == super::value::Want::Null,
        (None, _) => true,
    };
    let alignment = align(&listed, actual, &keys, &equal);
    if alignment.is_exact() {
        return None;
    }
    let expected_cells = |i: usize| (0..columns.len()).map(|c| cell(i, c).map(|cell| cell.written.clone())).collect();
    let mut diff = Vec::new();
    for &(i, j) in &alignment.changed {
        let differs = (0..columns.len()).map(|c| !equal(i, c, j)).collect();
        let actual = (0..columns.len()).map(|c| Some(show_cell(column(&columns[c]), j))).collect();
        diff.push(DiffRow::Changed { expected: expected_cells(i), actual, differs });
    }
    diff.extend(alignment.missing.iter().map(|&i| DiffRow::Missing(expected_cells(i))));
    let columns = if columns.is_empty() { glance_columns(found, &expectation.keys) } else { columns };
    diff.extend(alignment.unexpected.iter().map(|&j| unexpected(found, &columns, j)));
    Some(Diff { columns, rows: diff, matched: alignment.matched, counts: None })
}

fn show_cell(column: Option<&ArrayRef>, row: usize) -> String {
    column.map_or_else(|| "null".to_string(), |column| shown(column, row))
}

fn unexpected(found: Option<&RecordBatch>, columns: &[String], row: usize) -> DiffRow {
    let column = |name: &String| found.and_then(|rows| rows.column_by_name(name));
    DiffRow::Unexpected(columns.iter().map(|name| Some(show_cell(column(name), row))).collect())
}

/// Enough columns to recognise a row by.
fn glance_columns(found: Option<&RecordBatch>, keys: &[String]) -> Vec<String> {
    const ENOUGH: usize = 8;
    let Some(found) = found else { return Vec::new() };
    let schema = found.schema();
    let names = schema.fields().iter().map(|field| field.name()).filter(|name| !name.starts_with('_'));
    let others = names.filter(|name| !keys.contains(name)).cloned();
    keys.iter().cloned().chain(others).take(ENOUGH).collect()
}

/// How the tables of another cut differ from those of the test as written.
fn differences(
    test: &Test,
    written: &BTreeMap<String, RecordBatch>,
    other: &BTreeMap<String, RecordBatch>,
    cut: Cut,
    has_no_late_rows: bool,
) -> Vec<Fault> {
    let mut faults = Vec::new();
    let remembering = remembering(&test.spec);
    let depends = |name: &String| {
        remembering.contains(name) || test.spec.dead_letters.as_ref().is_some_and(|dead| dead.table == *name)
    };
    for definition in test.definitions.iter().filter(|table| has_no_late_rows || !depends(&table.name)) {
        let (left, right) = (written.get(&definition.name), other.get(&definition.name));
        let dead_letters = test.spec.dead_letters.as_ref().is_some_and(|dlq| dlq.table == definition.name);
        let mut seen = BTreeSet::new();
        let schemas = [left, right].into_iter().flatten().map(RecordBatch::schema);
        let mut columns: Vec<String> = schemas.flat_map(|s| s.fields().to_vec()).map(|f| f.name().clone()).collect();
        columns.retain(|column| !says_batch(column, dead_letters) && seen.insert(column.clone()));
        let cell =
            |rows: Option<&RecordBatch>, c: usize| rows.and_then(|rows| rows.column_by_name(&columns[c])).cloned();
        let lefts: Vec<Option<ArrayRef>> = (0..columns.len()).map(|c| cell(left, c)).collect();
        let rights: Vec<Option<ArrayRef>> = (0..columns.len()).map(|c| cell(right, c)).collect();
        let equal = |i: usize, c: usize, j: usize| match (&lefts[c], &rights[c]) {
            (Some(left), Some(right)) => same(left, i, right, j),
            (Some(only), None) => only.is_null(i),
            (None, Some(only)) => only.is_null(j),
            (None, None) => true,
        };
        let keys = match &definition.write {
            table::WriteMode::Upsert { key, .. } => key.as_slice(),
            table::WriteMode::Refresh { .. } | table::WriteMode::Append => &[],
        };
        let keys = keys.iter().filter_map(|key| columns.iter().position(|column| column == key)).collect::<Vec<_>>();
        let rows = |side: Option<&RecordBatch>| side.map_or(0, RecordBatch::num_rows);
        let all: Vec<usize> = (0..columns.len()).collect();
        let alignment = align(&vec![all; rows(left)], rows(right), &keys, &equal);
        if alignment.is_exact() {
            continue;
        }
        // Wide tables: the columns that differ and the key, else the first ones.
        let mut shown_columns: Vec<usize> = keys.clone();
        let changed = |c: usize| alignment.changed.iter().any(|&(i, j)| !equal(i, c, j));
        shown_columns.extend((0..columns.len()).filter(|&c| changed(c) && !keys.contains(&c)));
        shown_columns
            .extend((0..columns.len()).filter(|&c| !columns[c].starts_with('_') && !changed(c) && !keys.contains(&c)));
        shown_columns.truncate(8);
        let side = |arrays: &[Option<ArrayRef>], row: usize| -> Vec<Option<String>> {
            shown_columns.iter().map(|&c| Some(show_cell(arrays[c].as_ref(), row))).collect()
        };
        let mut rows = Vec::new();
        for &(i, j) in &alignment.changed {
            let differs = shown_columns.iter().map(|&c| !equal(i, c, j)).collect();
            rows.push(DiffRow::Changed { expected: side(&lefts, i), actual: side(&rights, j), differs });
        }
        rows.extend(alignment.missing.iter().map(|&i| DiffRow::Missing(side(&lefts, i))));
        rows.extend(alignment.unexpected.iter().map(|&j| DiffRow::Unexpected(side(&rights, j))));
        let names = shown_columns.iter().map(|&c| columns[c].clone()).collect();
        let diff = Diff { columns: names, rows, matched: alignment.matched, counts: None };
        faults.push(Fault::Cut { table: definition.name.clone(), cut, diff });
    }
    faults
}

/// The dead letters of a test that failed: a row that is missing may be among them.
fn set_aside(test: &Test, tables: &BTreeMap<String, RecordBatch>) -> Vec<String> {
    let dead = test.spec.dead_letters.as_ref().and_then(|dead_letters| tables.get(&dead_letters.table));
    let Some(dead) = dead else { return Vec::new() };
    let text = |name: &str, row: usize| show_cell(dead.column_by_name(name), row);
    let line = |row: usize| {
        let [table, stage, rule, error, partition, offset, value] =
            ["table", "stage", "rule", "error", "partition", "offset", "value"].map(|name| text(name, row));
        format!("{table}, {stage} {rule}: {error} (partition {partition}, offset {offset}: {value})")
    };
    (0..dead.num_rows()).map(line).collect()
}
