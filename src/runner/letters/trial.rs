//! What the pipeline makes of dead letters now: which of them pass, what they become, why the others fail again.
//!
//! A letter of a source (its record could not be decoded) enters where its record did: every table below the source may get
//! rows of it, for none has any. A letter of a table enters at that table: tables upstream and beside it have its record
//! already, so that theirs is computed only as far as it is needed, and written nowhere.
//!
//! A letter passes when its record gets past the place where it was set aside; then its rows go on from there, and whatever
//! sets them aside further down makes a letter of its own, as for any record. A letter that fails again brings no row
//! anywhere: what it fails with is found out first, then everything is shaped again without it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;

use super::super::shaping::{Rows, deferred, remembering};
use crate::config::spec::{From, PipelineSpec, TableSpec, WriteSpec};
use crate::error::{Context, ErrorKind, Result};
use crate::model::letter::BACKFILLED;
use crate::transform::expect::{coordinates, in_source_order};
use crate::transform::letter::{self, Letter};
use crate::transform::{BatchContext, Coordinates, DeadLetter, Inputs, Stage, Transform};

/// What becomes of one letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its record is taken.
    Passes,
    /// Its record is set aside again.
    Fails(String),
    /// Its record cannot be fed again without breaking the promise, or is not known.
    Cannot(String),
}

/// The outcome for some letters.
#[derive(Default)]
pub struct Trial {
    /// In the order of the letters.
    pub verdicts: Vec<Verdict>,
    /// Rows that go to each table, except those that are shaped when others are applied.
    pub shaped: HashMap<String, Rows>,
    /// Rows of letters that can be decoded now, by source.
    pub decoded: HashMap<String, Rows>,
    /// Tables that no letter reaches.
    pub unreached: BTreeSet<String>,
    /// What is set aside further down.
    pub dead: Vec<DeadLetter>,
    /// The records that the letters were made of.
    pub records: Vec<RecordBatch>,
    /// Rows that broke each rule, as `table.rule`.
    pub expectations: BTreeMap<String, u64>,
}

/// Where the record of a letter enters.
enum Entry {
    Source(String),
    Table { name: String, source: String },
}

/// The pipeline, and what a batch may know.
pub struct Bench<'a> {
    /// Its tables.
    pub spec: &'a PipelineSpec,
    /// Its SQL.
    pub transform: &'a dyn Transform,
    /// The batch.
    pub context: &'a BatchContext,
    /// Lookups, by name.
    pub lookups: &'a HashMap<String, Rows>,
}

type Places = HashSet<Coordinates>;

/// The records that enter at one source or table, by place.
#[derive(Default)]
struct Entering {
    /// By source.
    decode: BTreeMap<String, Places>,
    /// By table.
    tables: BTreeMap<String, Places>,
}

/// Why records fail at the place where they enter.
type Failed = HashMap<(String, Coordinates), Verdict>;

impl Bench<'_> {
    /// Tries `letters`, which are the rows `rows` of the dead-letter table.
    pub fn run(&self, letters: &[Letter], rows: &[RecordBatch]) -> Result<Trial> {
        let mut trial = Trial::default();
        let kept: Vec<bool> =
            rows.iter().flat_map(|batch| (0..batch.num_rows()).map(|row| letter::keeps_record(batch, row))).collect();
        let entries: Vec<Result<Entry, String>> =
            letters.iter().zip(kept).map(|(letter, is_kept)| self.entry(letter, is_kept)).collect();
        let mut entering = Entering::default();
        let mut by_source: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        for (number, (letter, entry)) in letters.iter().zip(&entries).enumerate() {
            let (Ok(entry), Some(at)) = (entry, &letter.coordinates) else { continue };
            let (places, source) = match entry {
                Entry::Source(source) => (entering.decode.entry(source.clone()), source),
                Entry::Table { name, source } => (entering.tables.entry(name.clone()), source),
            };
            places.or_default().insert(at.clone());
            by_source.entry(source.clone()).or_default().insert(number);
        }
        let mut failed = Failed::new();
        let mut decoded: HashMap<String, Vec<RecordBatch>> = HashMap::new();
        for (source, numbers) in &by_source {
            let records = letter::records(rows, |row| numbers.contains(&row))?;
            let outcome = self.transform.decode(source, &records, self.context)?;
            for dead in &outcome.dead {
                let Some(at) = &dead.coordinates else { continue };
                for place in self.below(source).chain([source.as_str()]) {
                    failed.insert((place.to_string(), at.clone()), Verdict::Fails(reason(dead)));
                }
            }
            decoded.insert(source.clone(), outcome.rows);
            trial.records.extend(records);
        }
        entering.leave(&failed);
        loop {
            let found = self.shape(&entering, &decoded, &mut trial)?;
            if found.is_empty() {
                break;
            }
            entering.leave(&found);
            failed.extend(found);
        }
        for (source, places) in &entering.decode {
            let rows = decoded.get(source).map(Vec::as_slice).unwrap_or_default();
            trial.decoded.insert(source.clone(), Arc::new(only(rows, places)?));
        }
        let verdict = |(letter, entry): (&Letter, Result<Entry, String>)| {
            let place = match entry {
                Err(why) => return Verdict::Cannot(why),
                Ok(Entry::Source(name) | Entry::Table { name, .. }) => name,
            };
            let found = letter.coordinates.clone().and_then(|at| failed.get(&(place, at)).cloned());
            found.unwrap_or(Verdict::Passes)
        };
        trial.verdicts = letters.iter().zip(entries).map(verdict).collect();
        Ok(trial)
    }

    /// Where the record of a letter enters, or why it cannot.
    fn entry(&self, letter: &Letter, is_kept: bool) -> Result<Entry, String> {
        let Letter { table, .. } = letter;
        if letter.batch == BACKFILLED && letter.stage != Stage::Decode.as_str() {
            return Err(
                "a backfill set it aside, from rows whose original bytes are not kept: mend the file, and derive \
                        its day again (tidegate backfill FILE --date D)"
                    .to_string(),
            );
        }
        if letter.coordinates.is_none() {
            return Err(format!("the SQL of {table} makes rows of many records: there is no single one to replay"));
        }
        if letter.stage == Stage::Decode.as_str() {
            return match self.spec.sources.contains_key(table) {
                true if is_kept => Ok(Entry::Source(table.clone())),
                true => Err("its record was not kept".to_string()),
                false => Err(format!("the pipeline no longer has the source {table}")),
            };
        }
        if !self.spec.tables.iter().any(|known| known.name == *table) {
            return Err(format!("the pipeline no longer has the table {table}"));
        }
        if remembering(self.spec).contains(table) {
            return Err(format!(
                "what {table} remembers had a part in it: late rows stay late; after a change of `watermark` or of rows upstream, \
                 tidegate rebuild FILE --table {table} computes it again"
            ));
        }
        if deferred(self.spec, self.transform).contains(table) || !is_kept {
            return Err(format!("{table} reads whole tables: the records of its letters are not kept"));
        }
        let source = self.path(table).map(|(source, _)| source);
        let source = source.ok_or_else(|| format!("{table} has no source"))?;
        Ok(Entry::Table { name: table.clone(), source: source.clone() })
    }

    /// The source that a table comes from, and the tables between, from the source down.
    fn path(&self, table: &str) -> Option<(&String, Vec<&TableSpec>)> {
        let mut between = Vec::new();
        let mut at = self.spec.tables.iter().find(|known| known.name == table)?;
        loop {
            match &at.from {
                From::Source(source) => {
                    between.reverse();
                    return Some((source, between));
                }
                From::Table(upstream) => at = self.spec.tables.iter().find(|known| known.name == *upstream)?,
            }
            // A cycle was refused long ago.
            between.push(at);
        }
    }

    /// The tables below a source or table.
    fn below(&self, name: &str) -> impl Iterator<Item = &str> {
        let mut below: Vec<&str> = Vec::new();
        for table in &self.spec.tables {
            let (From::Source(from) | From::Table(from)) = &table.from;
            if from == name || below.contains(&from.as_str()) {
                below.push(&table.name);
            }
        }
        below.into_iter()
    }

    /// Shapes every table that a letter reaches; returns what fails where it enters.
    fn shape(
        &self,
        entering: &Entering,
        decoded: &HashMap<String, Vec<RecordBatch>>,
        trial: &mut Trial,
    ) -> Result<Failed> {
        let deferred = deferred(self.spec, self.transform);
        // What they remember takes part once, when the batch is done.
        let remembering = remembering(self.spec);
        let nobody = Places::new();
        let mut failed = Failed::new();
        (trial.shaped, trial.dead, trial.expectations) = (HashMap::new(), Vec::new(), BTreeMap::new());
        trial.unreached = BTreeSet::new();
        for table in &self.spec.tables {
            let entered = entering.tables.get(&table.name).unwrap_or(&nobody);
            let from_above = match &table.from {
                From::Source(source) => entering.decode.contains_key(source),
                From::Table(upstream) => !trial.unreached.contains(upstream),
            };
            if !from_above && entered.is_empty() {
                // Groups of a refresh table are those that were touched, whoever did.
                if !matches!(table.write, WriteSpec::Refresh { .. }) {
                    trial.unreached.insert(table.name.clone());
                }
                continue;
            }
            if deferred.contains(&table.name) || remembering.contains(&table.name) {
                continue;
            }
            let mut batch = match &table.from {
                From::Source(source) => {
                    let rows = decoded.get(source).map(Vec::as_slice).unwrap_or_default();
                    only(rows, entering.decode.get(source).unwrap_or(&nobody))?
                }
                From::Table(upstream) => trial.shaped.get(upstream).map(|rows| rows.to_vec()).unwrap_or_default(),
            };
            if !entered.is_empty() {
                let own = self.arriving(table, entered, decoded, &mut failed)?;
                failed.extend(self.doubled(table, &own)?);
                batch.extend(own);
            }
            let shaped = self.transform.shape(&table.name, &self.inputs(ordered(batch)?), self.context)?;
            for (rule, count) in shaped.broken {
                *trial.expectations.entry(format!("{}.{rule}", table.name)).or_default() += count;
            }
            for dead in shaped.dead {
                match dead.coordinates.as_ref().filter(|at| entered.contains(*at)) {
                    Some(at) => {
                        failed.insert((table.name.clone(), at.clone()), Verdict::Fails(reason(&dead)));
                    }
                    None => trial.dead.push(dead),
                }
            }
            trial.shaped.insert(table.name.clone(), Arc::new(shaped.rows));
        }
        Ok(failed)
    }

    /// The rows that the records `entered` are when they reach `table`, through the tables upstream.
    fn arriving(
        &self,
        table: &TableSpec,
        entered: &Places,
        decoded: &HashMap<String, Vec<RecordBatch>>,
        failed: &mut Failed,
    ) -> Result<Vec<RecordBatch>> {
        let Some((source, between)) = self.path(&table.name) else { return Ok(Vec::new()) };
        let mut rows = only(decoded.get(source).map(Vec::as_slice).unwrap_or_default(), entered)?;
        for upstream in between {
            let shaped = self.transform.shape(&upstream.name, &self.inputs(rows), self.context)?;
            for dead in shaped.dead {
                // Rows that no longer say where they come from could be any of them.
                let at = dead.coordinates.iter();
                let all = entered.iter().filter(|_| dead.coordinates.is_none());
                for at in at.chain(all) {
                    failed.insert((table.name.clone(), at.clone()), Verdict::Fails(reason(&dead)));
                }
            }
            rows = shaped.rows;
        }
        Ok(rows)
    }

    /// Records of which `table` makes several rows: those that were not set aside are in the tables that only add rows.
    fn doubled(&self, table: &TableSpec, rows: &[RecordBatch]) -> Result<Failed> {
        let is_append =
            |name: &str| self.spec.tables.iter().any(|table| table.name == name && table.write == WriteSpec::Append);
        let Some(append) =
            [table.name.as_str()].into_iter().chain(self.below(&table.name)).find(|name| is_append(name))
        else {
            return Ok(Failed::new());
        };
        let origins = self.transform.origins(&table.name, &self.inputs(rows.to_vec()), self.context)?;
        let mut rows_of: HashMap<Coordinates, u64> = HashMap::new();
        for origin in origins.into_iter().flatten() {
            *rows_of.entry(origin).or_default() += 1;
        }
        let several = rows_of.into_iter().filter(|(_, rows)| *rows > 1);
        let verdict = |(at, rows): (Coordinates, u64)| {
            let why = format!(
                "its record makes {rows} rows of {}; those that were not set aside are there, and {append} would have \
                 them twice",
                table.name
            );
            ((table.name.clone(), at), Verdict::Cannot(why))
        };
        Ok(several.map(verdict).collect())
    }

    fn inputs(&self, batch: Vec<RecordBatch>) -> Inputs {
        Inputs { batch: Arc::new(batch), tables: HashMap::new(), lookups: self.lookups.clone() }
    }
}

impl Entering {
    /// Takes out what failed.
    fn leave(&mut self, failed: &Failed) {
        for (name, places) in self.decode.iter_mut().chain(&mut self.tables) {
            places.retain(|at| !failed.contains_key(&(name.clone(), at.clone())));
        }
        self.decode.retain(|_, places| !places.is_empty());
        self.tables.retain(|_, places| !places.is_empty());
    }
}

fn reason(dead: &DeadLetter) -> String {
    format!("{} {} in {}: {}", dead.stage.as_str(), dead.rule, dead.table, dead.error)
}

/// The rows of these records.
fn only(rows: &[RecordBatch], places: &Places) -> Result<Vec<RecordBatch>> {
    let mut kept = Vec::new();
    for batch in rows {
        let is_kept = |row| coordinates(batch, row).is_some_and(|at| places.contains(&at));
        let mask: BooleanArray = (0..batch.num_rows()).map(|row| Some(is_kept(row))).collect();
        let batch = filter_record_batch(batch, &mask).context(ErrorKind::Failed, "rows could not be picked")?;
        if batch.num_rows() > 0 {
            kept.push(batch);
        }
    }
    Ok(kept)
}

/// In the order of the records, where all rows have the same columns.
fn ordered(rows: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
    match rows.first().map(RecordBatch::schema) {
        Some(schema) if rows.iter().all(|batch| batch.schema() == schema) => in_source_order(&schema, rows),
        _ => Ok(rows),
    }
}
