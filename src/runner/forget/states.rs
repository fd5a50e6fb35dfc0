//! What tables remember of a person between batches, beside their rows: counted, let go of, and its old files deleted.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::{and, filter_record_batch, not, or};

use super::super::shaping::Shaping;
use super::super::{Runner, remembered};
use crate::error::{Context, ErrorKind, Result};
use crate::model::batch::{BatchPlan, CommitRecord};
use crate::model::forget::Key;
use crate::transform::Transform;
use crate::transform::forget::{Typed, Values, mask, typed};
use crate::transform::stateful::Stateful;

impl Runner {
    /// How many entries of the key each table remembers after the last batch; `None` = what it remembers has not all of the
    /// key's columns. Writes nothing.
    pub async fn remembered_of(&mut self, key: &Key) -> Result<BTreeMap<String, Option<u64>>> {
        let last = self.observe().await?.commit;
        let spec = self.parts.spec.clone();
        let mut counts = BTreeMap::new();
        for table in &spec.tables {
            let (Some(keeps), Some(mut operator)) = (&table.keeps, self.parts.transform.remembers(&table.name)?) else {
                continue;
            };
            let schema = operator.saved();
            let is_kept = |name: &String| operator.holds(name).iter().any(|c| schema.column_with_name(c).is_some());
            if !key.values.keys().all(is_kept) {
                counts.insert(table.name.clone(), None);
                continue;
            }
            let mut count = 0;
            let receipt = last.as_ref().and_then(|record| record.tables.get(&table.name));
            if let Some(file) = receipt.and_then(|receipt| receipt.state.as_ref()) {
                let meaning = remembered(table, keeps);
                self.parts.states.restore(&table.name, file, &meaning, |rows| operator.load(rows)).await?;
                for rows in &operator.whole()? {
                    count += of(rows, &key.values, &*operator)?.true_count() as u64;
                }
            }
            counts.insert(table.name.clone(), Some(count));
        }
        Ok(counts)
    }

    /// Old files of what tables remember are deleted: they hold what the batch has forgotten. Again after a crash.
    pub(super) async fn tidy_states(&mut self, plan: &BatchPlan, record: &CommitRecord) -> Result<()> {
        let states = plan.forget.iter().flat_map(|what| what.states.keys());
        for table in states.chain(&plan.rebuild) {
            let file = record.tables.get(table).and_then(|receipt| receipt.state.clone());
            // Written whole by this batch: no older file is needed.
            let needed: BTreeSet<String> = file.into_iter().collect();
            self.parts.states.tidy(table, &needed, record.batch).await?;
        }
        Ok(())
    }
}

impl Shaping {
    /// Takes the entries of whoever is forgotten out of what tables remember, where those are not computed again.
    pub(in crate::runner) fn forget_in_states(&mut self, transform: &dyn Transform, plan: &BatchPlan) -> Result<()> {
        let (Some(key), Some(what)) = (&self.forgotten, &plan.forget) else { return Ok(()) };
        for table in what.states.keys() {
            let Some(empty) = transform.remembers(table)? else { continue };
            if self.keeping.is_new(table) {
                continue;
            }
            let (entries, operator) = self.keeping.entries(table)?;
            let mut left = Vec::with_capacity(entries.len());
            for rows in &entries {
                let stays =
                    not(&of(rows, &key.values, operator)?).context(ErrorKind::Failed, "a mask is turned around")?;
                let rows = filter_record_batch(rows, &stays);
                left.push(rows.context(ErrorKind::Failed, "entries of a state could not be picked")?);
            }
            self.keeping.replace(table, empty, &left, plan.batch)?;
        }
        Ok(())
    }
}

/// Which entries have the values of a key, all of them.
fn of(rows: &RecordBatch, values: &Values, operator: &dyn Stateful) -> Result<BooleanArray> {
    let why = "masks could not be joined";
    let all = |is: bool| BooleanArray::from(vec![is; rows.num_rows()]);
    let mut found = all(!values.is_empty());
    for (name, value) in values {
        let mut has = all(false);
        for column in operator.holds(name) {
            if let Typed::Row(row) = typed(&rows.schema(), &Values::from([(column, value.clone())]))? {
                has = or(&has, &mask(rows, &row)?).context(ErrorKind::Failed, why)?;
            }
        }
        found = and(&found, &has).context(ErrorKind::Failed, why)?;
    }
    Ok(found)
}
