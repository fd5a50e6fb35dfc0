//! What the tables above one that remembers say of its time.

use crate::config::spec::{From, KeepsSpec, OperatorSpec, PipelineSpec, TableSpec};
use crate::model::window::Micros;
use crate::transform::Transform;
use crate::transform::window::WINDOW_END;

/// What a table's rows have come through.
#[derive(Default)]
pub(super) struct Above {
    /// The joins that they come from and whose time is theirs, and their `within`.
    pub joins: Vec<(String, Micros)>,
    /// All of them are windows, and their time is a window's end. It lies ahead where a window was closed by hand or for want
    /// of rows, and is no broken clock: the rows in it were believed.
    pub is_windows: bool,
}

impl Above {
    pub fn of(spec: &PipelineSpec, transform: &dyn Transform, table: &TableSpec, keeps: &KeepsSpec) -> Above {
        let times = &keeps.watermark.columns;
        let mut above = Above { joins: Vec::new(), is_windows: times.iter().all(|time| time == WINDOW_END) };
        for (from, time) in table.inputs().into_iter().zip(times) {
            let nearest = nearest_that_makes_rows(spec, from);
            above.is_windows &= nearest.is_some_and(TableSpec::has_windows);
            let (From::Table(upstream), Some(nearest)) = (from, nearest) else { continue };
            let Some(KeepsSpec { operator: OperatorSpec::Join(join), watermark, .. }) = &nearest.keeps else {
                continue;
            };
            // Another time may lie anywhere.
            if watermark.columns.first() == Some(time) && transform.pairs_on(upstream, time) {
                above.joins.push((nearest.name.clone(), join.within));
            }
        }
        above
    }
}

/// The first table upstream that makes windows or pairs of what it remembers; deduplication lets rows pass as they are.
fn nearest_that_makes_rows<'a>(spec: &'a PipelineSpec, from: &'a From) -> Option<&'a TableSpec> {
    let mut from = from;
    // As many steps as there are tables: a cycle was refused long ago.
    for _ in &spec.tables {
        let From::Table(name) = from else { return None };
        let table = spec.tables.iter().find(|table| table.name == *name)?;
        let operator = table.keeps.as_ref().map(|keeps| &keeps.operator);
        if operator.is_some_and(|operator| !matches!(operator, OperatorSpec::Dedupe(_))) {
            return Some(table);
        }
        from = &table.from;
    }
    None
}
