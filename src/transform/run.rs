//! Running a compiled pipeline on one batch.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};

use super::compile::{CompiledPipeline, CompiledTable};
use super::decode::added;
use super::engine::{self, Job, NamedRows};
use super::expect::{self, DELETE_FLAG, Rules, in_source_order};
use super::rewrite::{InputKind, Moment, at_moment};
use super::stateful::Stateful;
use super::tally::Tally;
use super::{BatchContext, Coordinates, Decoded, Inputs, Reads, Shaped, Transform};
use crate::arrow_bridge::conform;
use crate::config::spec::WriteSpec;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::source::column;

impl Transform for CompiledPipeline {
    fn decode(&self, source: &str, records: &[RecordBatch], context: &BatchContext) -> Result<Decoded> {
        let decoder = self.decoders.get(source);
        decoder.ok_or_else(|| Error::failed(format!("there is no source {source}")))?.decode(records, context)
    }

    fn reads_back(&self, table: &str) -> bool {
        self.tables.get(table).is_some_and(CompiledTable::reads_back)
    }

    fn keeps_coordinates(&self, table: &str) -> bool {
        self.tables.get(table).is_some_and(CompiledTable::keeps_coordinates)
    }

    fn passes(&self, table: &str, column: &str) -> bool {
        self.tables.get(table).is_some_and(|table| table.passed.contains(column))
    }

    fn pairs_on(&self, table: &str, column: &str) -> bool {
        self.tables.get(table).is_some_and(|table| table.paired.contains(column))
    }

    fn remembers(&self, table: &str) -> Result<Option<Box<dyn Stateful>>> {
        let keeps = self.tables.get(table).and_then(|table| table.keeps.as_ref());
        keeps.map(|keeps| keeps.operator(self.spec.timezone)).transpose()
    }

    fn arrivals(&self, table: &str, input: usize, inputs: &Inputs, context: &BatchContext) -> Result<Vec<RecordBatch>> {
        let keeps = self.tables.get(table).and_then(|table| table.keeps.as_ref());
        let keeps = keeps.ok_or_else(|| Error::failed(format!("table {table} remembers nothing")))?;
        let moment = Moment::of(context, self.spec.timezone);
        keeps.arrivals(input, inputs, &moment, self.spec.timezone).map_err(|error| error.with("table", table))
    }

    fn timezone(&self) -> chrono_tz::Tz {
        self.spec.timezone
    }

    fn reads(&self, table: &str) -> &Reads {
        self.tables.get(table).map_or(&self.nothing, |table| &table.reads)
    }

    fn tally(&self, table: &str) -> Option<&Tally> {
        self.tables.get(table)?.upkeep.as_ref()?.as_ref().ok()
    }

    fn shape(&self, table: &str, inputs: &Inputs, context: &BatchContext) -> Result<Shaped> {
        let compiled =
            self.tables.get(table).ok_or_else(|| Error::failed(format!("there is no table {table} to compute")))?;
        let moment = Moment::of(context, self.spec.timezone);
        compiled.shape(inputs, &moment, self.dead_letters.is_some()).map_err(|error| error.with("table", table))
    }

    fn origins(&self, table: &str, inputs: &Inputs, context: &BatchContext) -> Result<Option<Vec<Coordinates>>> {
        let Some(compiled) = self.tables.get(table) else { return Ok(None) };
        let mut origins = Vec::new();
        for batch in compiled.compute(inputs, &Moment::of(context, self.spec.timezone))? {
            for row in 0..batch.num_rows() {
                let Some(origin) = expect::coordinates(&batch, row) else { return Ok(None) };
                origins.push(origin);
            }
        }
        Ok(Some(origins))
    }

    fn schema(&self, table: &str) -> SchemaRef {
        match (self.tables.get(table), &self.dead_letters) {
            (Some(compiled), _) => compiled.stored.clone(),
            (None, Some((name, schema))) if name == table => schema.clone(),
            _ => Arc::new(arrow::datatypes::Schema::empty()),
        }
    }
}

impl CompiledTable {
    fn shape(&self, inputs: &Inputs, moment: &Moment, dead_letters: bool) -> Result<Shaped> {
        if self.passes_through() {
            let rows = live(&inputs.batch)?.iter().map(|batch| widen(batch, &self.output)).collect::<Result<_>>()?;
            return Ok(Shaped { rows, ..Shaped::default() });
        }
        let rows = self.compute(inputs, moment)?;
        let mut shaped = Shaped::default();
        for rule in self.expectations() {
            shaped.broken.insert(rule.name.clone(), 0);
        }
        let rules = Rules {
            table: &self.spec.name,
            expectations: self.expectations(),
            key: self.key(),
            partition_by: &self.spec.partition_by,
            refresh: self.is_refresh(),
            deferred: self.deferred,
            dead_letters,
            shown: &self.computed,
        };
        for batch in rows {
            let kept = expect::apply(&rules, &batch, &mut shaped)?;
            shaped.rows.push(kept);
        }
        shaped.rows = conform(&shaped.rows, &self.output)?;
        shaped.rows.retain(|batch| batch.num_rows() > 0);
        Ok(shaped)
    }

    /// The rows of the query, with the outcomes of the rules beside them, none applied yet.
    pub(super) fn compute(&self, inputs: &Inputs, moment: &Moment) -> Result<Vec<RecordBatch>> {
        let Some(query) = &self.query else { return conform(&live(&inputs.batch)?, &self.computed) };
        let query = at_moment(query, moment);
        let checks = self.checks.as_ref().map(|(sql, schema)| (at_moment(sql, moment), schema));
        let job = Job {
            inputs: self.gather(inputs)?,
            query: &query,
            computed: &self.computed,
            checks: checks.as_ref().map(|(sql, schema)| (sql.as_str(), *schema)),
        };
        let rows = engine::run(self.spec.engine, job)?;
        match (self.restore_order, &self.checks) {
            (false, _) => Ok(rows),
            (true, Some((_, schema))) => in_source_order(schema, rows),
            (true, None) => in_source_order(&self.computed, rows),
        }
    }

    fn reads_back(&self) -> bool {
        let is_stored = |name: &str, data_type: DataType| {
            self.stored.field_with_name(name).is_ok_and(|field| *field.data_type() == data_type)
        };
        // Rows that waited came in another batch than the one that wrote them.
        self.spec.write == WriteSpec::Append
            && self.lineage
            && (self.spec.sql.is_none() || self.restore_order)
            && is_stored(added::BATCH_ID, DataType::Int64)
            && is_stored(column::TOPIC, DataType::Utf8)
            && is_stored(column::PARTITION, DataType::Int32)
            && is_stored(column::OFFSET, DataType::Int64)
    }

    fn keeps_coordinates(&self) -> bool {
        let names = [column::TOPIC, column::PARTITION, column::OFFSET];
        self.lineage && names.iter().all(|name| self.stored.column_with_name(name).is_some())
    }

    /// Neither a query nor a rule stands between the upstream's rows and the table.
    fn passes_through(&self) -> bool {
        self.query.is_none() && self.checks.is_none() && self.expectations().is_empty() && self.key().is_empty()
    }

    fn gather(&self, inputs: &Inputs) -> Result<Vec<NamedRows>> {
        let mut gathered = Vec::with_capacity(self.inputs.len());
        for input in &self.inputs {
            let missing = || Error::failed(format!("the rows of {} were not read", input.name));
            let rows = match input.kind {
                InputKind::Batch => conform(&live(&inputs.batch)?, &input.schema)?,
                InputKind::Table => conform(inputs.tables.get(&input.name).ok_or_else(missing)?, &input.schema)?,
                InputKind::Lookup => conform(inputs.lookups.get(&input.name).ok_or_else(missing)?, &input.schema)?,
            };
            gathered.push(NamedRows { name: input.name.clone(), schema: input.schema.clone(), rows });
        }
        Ok(gathered)
    }
}

/// The columns of `schema`, then whatever else the rows have: `schema_drift: evolve` adds columns as they come.
fn widen(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let known = conform(std::slice::from_ref(batch), schema)?;
    let Some(known) = known.into_iter().next() else { return Ok(batch.clone()) };
    let mut fields: Vec<FieldRef> = known.schema().fields().iter().cloned().collect();
    let mut columns = known.columns().to_vec();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if schema.field_with_name(field.name()).is_err() && field.name() != DELETE_FLAG {
            fields.push(field.clone());
            columns.push(column.clone());
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).context(ErrorKind::Failed, "keeping new columns")
}

/// The rows that exist: an upstream upsert's deletes are not rows of the batch.
pub(super) fn live(batch: &[RecordBatch]) -> Result<Vec<RecordBatch>> {
    let mut rows = Vec::with_capacity(batch.len());
    for batch in batch {
        let flags = batch.column_by_name(DELETE_FLAG).and_then(|flags| flags.as_boolean_opt());
        match flags.filter(|flags| flags.true_count() > 0) {
            Some(flags) => {
                let keep: BooleanArray =
                    (0..flags.len()).map(|row| Some(!(flags.is_valid(row) && flags.value(row)))).collect();
                rows.push(filter_record_batch(batch, &keep).context(ErrorKind::Failed, "leaving out deletes")?);
            }
            None => rows.push(batch.clone()),
        }
    }
    Ok(rows)
}
