//! What the tables above one that remembers say of its time.

use crate::config::spec::{From, KeepsSpec, OperatorSpec, PipelineSpec, TableSpec};
use crate::model::window::Micros;
use crate::transform::window::WINDOW_END;

/// What a table's rows have come through.
#[derive(Default)]
pub(super) struct Above {
    /// The joins that they come from, and their `within`.
    pub joins: Vec<(String, Micros)>,
    /// All of them are windows, and their time is a window's end. It lies ahead where a window was closed by hand or for want
    /// of rows, and is no broken clock: the rows in it were believed.
    pub is_windows: bool,
}

impl Above {
    pub fn of(spec: &PipelineSpec, table: &TableSpec, keeps: &KeepsSpec) -> Above {
        let mut above =
            Above { joins: Vec::new(), is_windows: keeps.watermark.columns.iter().all(|n| n == WINDOW_END) };
        for from in table.inputs() {
            let nearest = nearest_that_remembers(spec, from);
            above.is_windows &= nearest.is_some_and(TableSpec::has_windows);
            let operator = nearest.and_then(|table| Some((table, &table.keeps.as_ref()?.operator)));
            if let Some((table, OperatorSpec::Join(join))) = operator {
                above.joins.push((table.name.clone(), join.within));
            }
        }
        above
    }
}

/// The first table upstream that remembers something between batches.
fn nearest_that_remembers<'a>(spec: &'a PipelineSpec, from: &'a From) -> Option<&'a TableSpec> {
    let mut from = from;
    // As many steps as there are tables: a cycle was refused long ago.
    for _ in &spec.tables {
        let From::Table(name) = from else { return None };
        let table = spec.tables.iter().find(|table| table.name == *name)?;
        if table.keeps.is_some() {
            return Some(table);
        }
        from = &table.from;
    }
    None
}
