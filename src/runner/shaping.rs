//! Rows of one batch on their way from the sources to the tables: decoded once, shaped per table, in memory only.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::record_batch::RecordBatch;

use chrono::{DateTime, Utc};

use super::bronze::ReadBack;
use super::keeping::Keeping;
use crate::config::spec::{Action, DeadLetterSpec, From, OperatorSpec, PipelineSpec, TableSpec, WriteSpec};
use crate::error::{Code, Error, ErrorKind, Result};
use crate::model::batch::BatchPlan;
use crate::model::forget::Key;
use crate::transform::{BatchContext, DeadLetter, Inputs, Shaped, Stage, Transform, dead_letter};

/// Rows as the parts of a run share them.
pub(super) type Rows = Arc<Vec<RecordBatch>>;

/// The undecoded records of a batch, by source.
pub(super) type Records = BTreeMap<String, Vec<RecordBatch>>;

/// Everything a batch has computed so far.
pub(super) struct Shaping {
    pub context: BatchContext,
    /// Decoded rows, by source.
    decoded: HashMap<String, Rows>,
    /// Shaped rows, by table.
    shaped: HashMap<String, Rows>,
    /// Rows set aside so far, with their original bytes.
    dead: Vec<RecordBatch>,
    /// Rows read.
    pub input_rows: u64,
    /// Bytes of keys and values read.
    pub input_bytes: u64,
    /// Rows set aside.
    pub dead_letters: u64,
    /// Tables whose rows of the batch are not known, because nobody needs them.
    unknown: BTreeSet<String>,
    /// The batch's dead letters are in their table already.
    is_set_aside: bool,
    /// Rows that broke each rule, as `table.rule`.
    pub expectations: BTreeMap<String, u64>,
    /// Dead letters that the batch deals with.
    pub settled: Option<Settled>,
    /// What tables remember, on loan for the batch.
    pub keeping: Keeping,
    /// The watermarks of the plan, by table.
    pub watermarks: BTreeMap<String, DateTime<Utc>>,
    /// The watermarks after the batch, by table.
    pub next_watermarks: BTreeMap<String, DateTime<Utc>>,
    /// What the batch forgets.
    pub forgotten: Option<Key>,
}

/// Rows of the dead-letter table, as a batch that deals with them leaves them.
pub(super) struct Settled {
    /// What they are found by.
    pub keys: RecordBatch,
    /// The rows.
    pub rows: Vec<RecordBatch>,
}

/// The tables that can only be shaped after others were applied: they read whole tables.
pub(super) fn deferred(spec: &PipelineSpec, transform: &dyn Transform) -> BTreeSet<String> {
    let mut deferred = BTreeSet::new();
    for table in &spec.tables {
        let upstream_is =
            table.inputs().into_iter().any(|from| matches!(from, From::Table(name) if deferred.contains(name)));
        if upstream_is || !transform.reads(&table.name).tables.is_empty() {
            deferred.insert(table.name.clone());
        }
    }
    deferred
}

/// The tables that remember something, and those below them.
pub fn remembering(spec: &PipelineSpec) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for table in &spec.tables {
        let upstream_is =
            table.inputs().into_iter().any(|from| matches!(from, From::Table(name) if found.contains(name)));
        if upstream_is || table.keeps.is_some() {
            found.insert(table.name.clone());
        }
    }
    found
}

/// Whether all dead letters of a batch are known before its first table is applied: then they are committed first, so that
/// a table that carries the batch is proof that they are kept, even if the source forgets the records.
pub(super) fn dead_letters_come_first(spec: &PipelineSpec, transform: &dyn Transform) -> bool {
    let late = deferred(spec, transform);
    !spec.tables.iter().any(|table| late.contains(&table.name) && may_set_aside(table))
}

fn may_set_aside(table: &TableSpec) -> bool {
    // A row without event time.
    table.keeps.is_some()
        || match table.write {
            // Its groups are computed again and again: nothing is ever set aside.
            WriteSpec::Refresh { .. } | WriteSpec::Windows { .. } => false,
            // A null key.
            WriteSpec::Upsert { .. } => true,
            // A rule, or a value that cannot name a folder.
            WriteSpec::Append => {
                table.expect.iter().any(|rule| rule.action == Action::Quarantine) || !table.partition_by.is_empty()
            }
        }
}

impl Shaping {
    /// Nothing computed yet.
    pub fn empty(context: &BatchContext) -> Shaping {
        Shaping {
            context: context.clone(),
            decoded: HashMap::new(),
            shaped: HashMap::new(),
            dead: Vec::new(),
            input_rows: 0,
            input_bytes: 0,
            dead_letters: 0,
            unknown: BTreeSet::new(),
            is_set_aside: false,
            expectations: BTreeMap::new(),
            settled: None,
            keeping: Keeping::default(),
            watermarks: BTreeMap::new(),
            next_watermarks: BTreeMap::new(),
            forgotten: None,
        }
    }

    /// Lends what tables remember to the batch.
    pub fn remembering(mut self, keeping: Keeping, plan: &BatchPlan) -> Shaping {
        self.next_watermarks = keeping.reached();
        self.next_watermarks.extend(plan.watermarks.clone());
        self.keeping = keeping;
        self.watermarks = plan.watermarks.clone();
        self
    }

    /// What dead letters that are replayed were shaped into; no letter has rows for the tables `unreached`.
    pub fn of_letters(
        context: &BatchContext,
        decoded: HashMap<String, Rows>,
        shaped: HashMap<String, Rows>,
        unreached: BTreeSet<String>,
        dead: Vec<RecordBatch>,
        expectations: BTreeMap<String, u64>,
    ) -> Shaping {
        let dead_letters = dead.iter().map(|rows| rows.num_rows() as u64).sum();
        let unknown = unreached;
        Shaping { decoded, shaped, unknown, dead, dead_letters, expectations, ..Shaping::empty(context) }
    }

    /// Decodes every record, then shapes every table that needs nothing but the batch. Nothing has been written when
    /// this returns, so a rule that fails the batch fails it whole.
    pub fn compute(
        spec: &PipelineSpec,
        transform: &dyn Transform,
        plan: &BatchPlan,
        records: Records,
        held: Option<ReadBack>,
        lookups: &HashMap<String, Rows>,
        keeping: Keeping,
    ) -> Result<Shaping> {
        let context = BatchContext::live(plan);
        let mut shaping = Shaping::empty(&context).remembering(keeping, plan);
        let mut dead = Vec::new();
        for (source, batches) in &records {
            shaping.input_rows += batches.iter().map(|b| b.num_rows() as u64).sum::<u64>();
            shaping.input_bytes += batches.iter().map(payload_bytes).sum::<u64>();
            let decoded = transform.decode(source, batches, &shaping.context)?;
            dead.extend(decoded.dead);
            shaping.decoded.insert(source.clone(), Arc::new(decoded.rows));
        }
        let held = held.inspect(|_| shaping.is_set_aside = spec.dead_letters.is_some()).unwrap_or_default();
        shaping.input_rows += held.input_rows;
        shaping.unknown = held.unknown;
        for (table, rows) in &held.tables {
            shaping.shaped.insert(table.clone(), rows.clone());
        }
        let deferred = deferred(spec, transform);
        let is_known =
            |table: &&TableSpec| held.tables.contains_key(&table.name) || shaping.unknown.contains(&table.name);
        let to_shape = |table: &&TableSpec| !deferred.contains(&table.name) && !is_known(table);
        let to_shape: Vec<&TableSpec> = spec.tables.iter().filter(to_shape).collect();
        for table in to_shape {
            let batch = shaping.batch_for(table, transform, lookups, &mut dead)?;
            let inputs = Inputs { batch, tables: HashMap::new(), lookups: lookups.clone() };
            let shaped = transform.shape(&table.name, &inputs, &shaping.context)?;
            dead.extend(shaping.accept(&table.name, shaped));
        }
        if shaping.is_set_aside {
            // As many as they were then; the budget was kept then, too.
            shaping.dead_letters = held.dead_letters;
            return Ok(shaping);
        }
        let of_rows_read = of_rows_read(spec, &dead);
        shaping.set_aside(spec, dead, &records.into_values().flatten().collect::<Vec<_>>())?;
        check_budget(spec.dead_letters.as_ref(), of_rows_read, shaping.input_rows)?;
        Ok(shaping)
    }

    /// Shapes a deferred table; rows that it sets aside join the batch's dead letters.
    pub fn compute_deferred(
        &mut self,
        spec: &PipelineSpec,
        transform: &dyn Transform,
        table: &str,
        inputs: &Inputs,
    ) -> Result<()> {
        if self.unknown.contains(table) {
            return Ok(());
        }
        let mut dead = Vec::new();
        let shaped = match spec.tables.iter().find(|spec| spec.name == table).filter(|spec| spec.keeps.is_some()) {
            None => transform.shape(table, inputs, &self.context)?,
            Some(remembering) => {
                let batch = self.batch_for(remembering, transform, &inputs.lookups, &mut dead)?;
                transform.shape(table, &Inputs { batch, ..inputs.clone() }, &self.context)?
            }
        };
        dead.extend(self.accept(table, shaped));
        match self.is_set_aside {
            true => Ok(()),
            false => self.set_aside(spec, dead, &[]),
        }
    }

    /// Shapes the tables that remember something, and those below them, after dead letters that are replayed.
    pub fn compute_remembering(
        &mut self,
        spec: &PipelineSpec,
        transform: &dyn Transform,
        lookups: &HashMap<String, Rows>,
    ) -> Result<()> {
        let (remembering, deferred) = (remembering(spec), deferred(spec, transform));
        let mut dead = Vec::new();
        for table in spec.tables.iter().filter(|table| remembering.contains(&table.name)) {
            if deferred.contains(&table.name) {
                continue;
            }
            let batch = self.batch_for(table, transform, lookups, &mut dead)?;
            let inputs = Inputs { batch, tables: HashMap::new(), lookups: lookups.clone() };
            let shaped = transform.shape(&table.name, &inputs, &self.context)?;
            dead.extend(self.accept(&table.name, shaped));
            self.unknown.remove(&table.name);
        }
        self.set_aside(spec, dead, &[])
    }

    /// Rows of an upstream that come from elsewhere.
    pub fn give(&mut self, table: &str, rows: Vec<RecordBatch>) {
        self.shaped.insert(table.to_string(), Arc::new(rows));
    }

    /// Shapes a table that is computed again: `inputs` are all its rows.
    pub fn accept_again(
        &mut self,
        spec: &PipelineSpec,
        transform: &dyn Transform,
        table: &str,
        inputs: &Inputs,
        mut dead: Vec<DeadLetter>,
    ) -> Result<()> {
        let shaped = transform.shape(table, inputs, &self.context)?;
        dead.extend(self.accept(table, shaped));
        self.set_aside(spec, dead, &[])
    }

    /// The micro-batch's rows from an upstream.
    pub fn batch_of(&self, from: &From) -> Rows {
        let rows = match from {
            From::Source(name) => self.decoded.get(name),
            From::Table(name) => self.shaped.get(name),
        };
        rows.cloned().unwrap_or_default()
    }

    /// Whether `table` is shaped by now.
    pub fn has(&self, table: &str) -> bool {
        self.shaped.contains_key(table)
    }

    /// The rows to write to `table`.
    pub fn rows_of(&self, table: &str) -> Vec<RecordBatch> {
        self.shaped.get(table).map(|rows| rows.as_ref().clone()).unwrap_or_default()
    }

    /// Lets go of rows that nothing needs any more: those of `table` once it is applied, and those of the sources, unless
    /// a table that is still to be shaped reads them. Rows are the bulk of a run's memory.
    pub fn release(&mut self, applied: &str, still_to_shape: &[&TableSpec]) {
        let needed = |from: From| still_to_shape.iter().any(|table| table.inputs().contains(&&from));
        if !needed(From::Table(applied.to_string())) {
            self.shaped.remove(applied);
        }
        self.decoded.retain(|source, _| needed(From::Source(source.clone())));
    }

    /// Lets go of what was computed for a table, as if it had not been.
    pub fn forget(&mut self, table: &str) {
        self.shaped.remove(table);
        self.expectations.retain(|rule, _| rule.strip_prefix(table).is_none_or(|rest| !rest.starts_with('.')));
    }

    /// Takes all dead-letter rows.
    pub fn take_dead(&mut self) -> Vec<RecordBatch> {
        std::mem::take(&mut self.dead)
    }

    fn accept(&mut self, table: &str, shaped: Shaped) -> Vec<DeadLetter> {
        for (rule, count) in shaped.broken {
            *self.expectations.entry(format!("{table}.{rule}")).or_default() += count;
        }
        self.shaped.insert(table.to_string(), Arc::new(shaped.rows));
        shaped.dead
    }

    fn set_aside(&mut self, spec: &PipelineSpec, dead: Vec<DeadLetter>, records: &[RecordBatch]) -> Result<()> {
        let Some(first) = dead.first() else { return Ok(()) };
        if spec.dead_letters.is_none() {
            let place = first.coordinates.as_ref().map_or(String::new(), |c| {
                format!(" (topic {}, partition {}, offset {})", c.topic, c.partition, c.offset)
            });
            return Err(Error::new(
                ErrorKind::Data,
                format!("{} bad rows, and `dead_letters` is off: {}: {}{place}", dead.len(), first.rule, first.error),
            )
            .coded(Code::NoPlaceAside)
            .help("nothing of this batch was written; it is tried again at the next run")
            .help("turn `dead_letters` on to set bad rows aside and go on"));
        }
        self.dead_letters += dead.len() as u64;
        self.dead.push(dead_letter::rows(&dead, records, &self.context)?);
        Ok(())
    }
}

/// How many letters are about rows that the batch read. What windows and joins emit may have been read long ago: a batch
/// that closes many of them is no sign of a wrong schema, however few rows it reads.
fn of_rows_read(spec: &PipelineSpec, dead: &[DeadLetter]) -> u64 {
    let mut emitting: BTreeSet<&str> = BTreeSet::new();
    let mut below: BTreeSet<&str> = BTreeSet::new();
    for table in &spec.tables {
        let is_emitted = |from: &&From| matches!(from, From::Table(name) if emitting.contains(name.as_str()));
        let is_below = table.inputs().iter().any(is_emitted);
        if is_below {
            below.insert(&table.name);
        }
        // Deduplication only remembers keys: the rows that it lets through are those of the batch.
        let emits = table.keeps.as_ref().is_some_and(|keeps| !matches!(keeps.operator, OperatorSpec::Dedupe(_)));
        if is_below || emits {
            emitting.insert(&table.name);
        }
    }
    // A source may be called what a table is called. What a window or join finds late has just arrived at it.
    let is_read = |letter: &&DeadLetter| match letter.stage {
        Stage::Decode => true,
        Stage::Late => !below.contains(letter.table.as_str()),
        Stage::Expect | Stage::Key => !emitting.contains(letter.table.as_str()),
    };
    dead.iter().filter(is_read).count() as u64
}

/// The dead-letter budget, checked before anything commits: `dead` of the `rows` that were read.
pub(super) fn check_budget(spec: Option<&DeadLetterSpec>, dead: u64, rows: u64) -> Result<()> {
    let Some(limit) = spec.and_then(|spec| spec.fail_above).filter(|_| rows > 0) else { return Ok(()) };
    let share = dead as f64 / rows as f64;
    if dead == 0 || share <= limit {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Data,
        format!(
            "{dead} of {rows} rows ({:.1} %) would be dead letters, above the limit of {:.1} %",
            share * 100.0,
            limit * 100.0
        ),
    )
    .coded(Code::Budget)
    .help("nothing of this batch was written; it is tried again, with the same rows, at the next run")
    .help("fix the schema or the expectations, or raise `dead_letters.fail_above`"))
}

fn payload_bytes(batch: &RecordBatch) -> u64 {
    use crate::source::column;
    use arrow::array::{Array, AsArray};
    [column::KEY, column::VALUE]
        .iter()
        .filter_map(|name| batch.column_by_name(name))
        .filter_map(|array| array.as_binary_opt::<i32>())
        .filter(|array| !array.is_empty())
        .map(|array| (array.value_offsets()[array.len()] - array.value_offsets()[0]) as u64)
        .sum()
}
