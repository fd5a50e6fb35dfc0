//! Refresh tables: the groups that a batch touched are replaced. A group is computed from all of its upstream rows; one that
//! this run has computed before follows what the batch changed instead, where that is exact.
//!
//! Exact means: the table's rows of the group are what the query makes of the upstream's rows before the batch. So it is
//! when this run has written the group and nobody but this run has changed a row of either table since; whatever else may
//! have happened, and after every start, the group is computed from all of its rows again. Nothing of this is stored.

use std::collections::HashMap;

use arrow::record_batch::RecordBatch;
use tracing::{debug, warn};

use super::Runner;
use super::rebuild::distinct;
use super::shaping::{Rows, Shaping};
use super::step::blocking;
use crate::config::spec::TableSpec;
use crate::error::{Error, ErrorKind, Result};
use crate::fail;
use crate::model::batch::{BatchPlan, Receipt};
use crate::table::{Change, Pin, Txn};
use crate::transform::fold::{Following, Keys, follow};
use crate::transform::stateful::conform;

/// How often the groups of a table are computed for one batch: a backfill beside the run commits to it, too.
const RECOMPUTATIONS: usize = 30;

/// Groups that are remembered of one table: some megabytes.
const MOST_GROUPS: usize = 100_000;

/// The table that a refresh table follows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Upstream<'a> {
    pub name: &'a str,
    /// Its version that carries the batch, where this run has committed it.
    pub carrier: Option<i64>,
}

/// What this run knows of a refresh table: the rows of these groups are what the query makes of the upstream's rows.
pub(super) struct Followed {
    /// The version of the upstream that carries this run's last batch.
    upstream: i64,
    /// The version of the table that does.
    table: i64,
    groups: Keys,
}

/// What became of the groups that a batch touched.
struct Told {
    rows: RecordBatch,
    /// To be computed from all of their rows.
    left: RecordBatch,
}

impl Runner {
    /// Replaces the groups that the batch touched. A backfill may work on the same tables: the table is pinned before its
    /// upstream is read, so that the last commit of a group always is the one that has read the newest rows; and where
    /// somebody else was first, everything is read and computed again.
    pub(super) async fn refresh(
        &mut self,
        table: &TableSpec,
        by: &[String],
        upstream: Upstream<'_>,
        plan: &BatchPlan,
        shaping: &mut Shaping,
        lookups: &HashMap<String, Rows>,
    ) -> Result<Receipt> {
        let known = self.position.as_ref().and_then(|position| position.applied.get(&table.name));
        let is_new = known.is_none_or(|fact| fact.applied.is_none());
        let (txn, source) = (self.txn(&table.name, plan)?, self.txn(upstream.name, plan)?);
        let is_rebuilt = plan.rebuild.contains(&table.name);
        let mut followed = self.still_followed(table, upstream).await.filter(|_| !is_rebuilt);
        for attempt in 0..RECOMPUTATIONS {
            let pin = self.table(&table.name)?.pin(&txn.app_id).await?;
            // What others did to any of its groups is in none of those that are remembered.
            if let (Some(known), Some(version)) = (&followed, pin.version)
                && !is_certain(self.table(&table.name)?.is_unchanged(known.table, Some(version)).await)
            {
                followed = None;
            }
            // A table that joins later starts whole, not with the groups that happen to be touched next.
            let groups = match is_new || is_rebuilt {
                true => self.all_groups(table, by, upstream.name).await?,
                false => match self.table(upstream.name)?.touched(by, &source).await {
                    Ok(groups) => groups,
                    // Its log was searched in vain, or a vacuum was faster: every group that there is, or was computed.
                    Err(error) => {
                        warn!(table = table.name, %error, "what the batch touched cannot be read; all groups are computed");
                        self.all_groups(table, by, upstream.name).await?
                    }
                },
            };
            let told = match &followed {
                Some(followed) => self.tell(table, by, upstream, &source, &pin, followed, &groups, shaping).await,
                None => None,
            };
            let left = told.as_ref().map_or(&groups, |told| &told.left);
            if told.is_none() || left.num_rows() > 0 {
                self.shape_deferred(table, Some(left), shaping, lookups).await?;
            }
            let mut rows = shaping.rows_of(&table.name);
            rows.extend(told.map(|told| told.rows));
            let change = Change::Groups { groups: groups.clone(), rows };
            fail::hit(fail::APPLY)?;
            let applied = self.table(&table.name)?.apply_at(change, &txn, &pin).await;
            if let Some(receipt) = applied.map_err(|error| error.with("table", &table.name))? {
                fail::hit(fail::APPLIED)?;
                self.tell_foreign(&table.name, &receipt.foreign);
                debug!(table = table.name, version = receipt.delta_version, "table committed");
                self.follow(table, by, upstream, followed, &groups, &receipt)?;
                return Ok(receipt);
            }
            debug!(table = table.name, attempt, "somebody else was first; the groups are computed again");
            shaping.forget(&table.name);
            followed = None;
        }
        let text = format!("table {} is changed by others faster than its groups can be computed", table.name);
        Err(Error::new(ErrorKind::Busy, text)
            .with("tries", RECOMPUTATIONS)
            .help("tables upstream of it carry this batch; run again when the other writer is done, to finish it"))
    }

    /// The groups of the upstream's rows, and those that the table holds: a backfill may have filled it before its first batch,
    /// and one that upstream has no rows of any more is to go.
    async fn all_groups(&mut self, table: &TableSpec, by: &[String], upstream: &str) -> Result<RecordBatch> {
        let groups = self.table(upstream)?.groups(by).await?;
        if self.table(&table.name)?.stored().await?.is_none() {
            return Ok(groups);
        }
        let stored = self.table(&table.name)?.groups(by).await?;
        let schema = groups.schema();
        let keys = std::iter::once(groups).chain(conform(&[stored], &schema)?).collect();
        distinct(&schema, keys)
    }

    /// What is known of the table, unless somebody has changed rows upstream between the last batch and this one.
    async fn still_followed(&mut self, table: &TableSpec, upstream: Upstream<'_>) -> Option<Followed> {
        let followed = self.followed.remove(&table.name)?;
        let before = upstream.carrier? - 1;
        let above = self.table(upstream.name).ok()?;
        is_certain(above.is_unchanged(followed.upstream, Some(before)).await).then_some(followed)
    }

    /// The rows of touched groups, as far as they can be told from what the batch changed upstream; `None` = of no group.
    #[allow(clippy::too_many_arguments, reason = "one batch's view of two tables, taken apart by the only caller")]
    async fn tell(
        &mut self,
        table: &TableSpec,
        by: &[String],
        upstream: Upstream<'_>,
        source: &Txn,
        pin: &Pin,
        followed: &Followed,
        groups: &RecordBatch,
        shaping: &Shaping,
    ) -> Option<Told> {
        let (known, others) = followed.groups.part(groups).ok()?;
        if known.num_rows() == 0 {
            return None;
        }
        let transform = self.parts.transform.clone();
        let columns = transform.reads(&table.name).tables.get(upstream.name)?;
        let images = self.table(upstream.name).ok()?.images(columns, source)?;
        // A backfill that has changed the upstream by now is seen by whoever reads all rows, and so it is here.
        let above = self.table(upstream.name).ok()?;
        let is_last = is_certain(above.is_unchanged(upstream.carrier?, None).await);
        let here = self.table(&table.name).ok()?;
        if !is_last || !is_certain(here.is_unchanged(followed.table, Some(pin.version?)).await) {
            return None;
        }
        let all: Vec<String> = transform.schema(&table.name).fields().iter().map(|f| f.name().clone()).collect();
        let told = async {
            let stored = here.read_newest(&all, Some(&known)).await?;
            let (context, by) = (shaping.context.clone(), by.to_vec());
            let (name, above) = (table.name.clone(), upstream.name.to_string());
            blocking(move || {
                let following =
                    Following { table: &name, upstream: &above, by: &by, groups: &known, stored: &stored, images };
                let folded = follow(&*transform, following, &context)?;
                let (unsure, certain) = folded.unsure.part(&known)?;
                let left = arrow::compute::concat_batches(&others.schema(), [&others, &unsure])
                    .map_err(|cause| Error::failed("groups could not be joined").caused_by(cause))?;
                debug!(table = name, told = certain.num_rows(), left = left.num_rows(), "groups follow what changed");
                Ok(Told { rows: folded.rows, left })
            })
            .await
        };
        // What all rows of a group have to say about it, an error included, they say when they are read.
        told.await.inspect_err(|error| debug!(table = table.name, %error, "groups are computed from all rows")).ok()
    }

    /// Remembers what the table's groups are by now.
    fn follow(
        &mut self,
        table: &TableSpec,
        by: &[String],
        upstream: Upstream<'_>,
        followed: Option<Followed>,
        groups: &RecordBatch,
        receipt: &Receipt,
    ) -> Result<()> {
        let is_ours = !receipt.already_applied && self.parts.transform.tally(&table.name).is_some();
        let Some(carrier) = upstream.carrier.filter(|_| is_ours && groups.num_rows() <= MOST_GROUPS) else {
            return Ok(());
        };
        let mut known = match followed.map(|followed| followed.groups) {
            Some(known) if known.len() + groups.num_rows() <= MOST_GROUPS => known,
            _ => Keys::new(&groups.schema(), by)?,
        };
        known.add(groups)?;
        let followed = Followed { upstream: carrier, table: receipt.delta_version, groups: known };
        self.followed.insert(table.name.clone(), followed);
        Ok(())
    }
}

/// A log that cannot be read says nothing.
fn is_certain(answer: Result<bool>) -> bool {
    answer.unwrap_or(false)
}
