//! What a commit does to rows, seen while it is prepared: which groups it touches, and the rows that go and come.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema, SchemaRef};

use super::rows::Distinct;
use super::schema::project;
use crate::error::Result;
use crate::table::Images;

/// More images than this are let go: they stay in memory until the next batch, and nobody reads a group's rows again for
/// want of them but a batch that is about as large as the group.
const MOST_ROWS: u64 = 1_000_000;
const MOST_BYTES: usize = 128 << 20;

/// Looks on.
#[derive(Debug, Clone)]
pub(super) struct Witness {
    sets: Vec<Distinct>,
    images: Option<Kept>,
}

#[derive(Debug, Clone)]
struct Kept {
    columns: SchemaRef,
    images: Images,
    rows: u64,
    bytes: usize,
}

impl Witness {
    /// Sees nothing.
    pub(super) fn blind() -> Witness {
        Witness { sets: Vec::new(), images: None }
    }

    /// Counts the distinct values of each set of `watched` columns, and keeps the `imaged` columns of rows.
    pub(super) fn new(schema: &Schema, watched: &[Vec<String>], imaged: &[String]) -> Result<Witness> {
        let sets = watched.iter().map(|by| Distinct::new(schema, by)).collect::<Result<_>>()?;
        let is_there = !imaged.is_empty() && imaged.iter().all(|name| schema.column_with_name(name).is_some());
        let images = match is_there {
            true => Some(Kept::new(project(schema, imaged, "the table")?)),
            false => None,
        };
        Ok(Witness { sets, images })
    }

    /// One that looks for the same and has seen nothing.
    pub(super) fn emptied(&self) -> Witness {
        let images = self.images.as_ref().map(|kept| Kept::new(kept.columns.clone()));
        Witness { sets: self.sets.iter().map(Distinct::emptied).collect(), images }
    }

    pub(super) fn is_blind(&self) -> bool {
        self.sets.is_empty() && self.images.is_none()
    }

    /// Whether it looks at a column.
    pub(super) fn looks_at(&self, column: &String) -> bool {
        let is_kept = |kept: &Kept| kept.columns.column_with_name(column).is_some();
        self.sets.iter().any(|set| set.columns().any(|name| name == column))
            || self.images.as_ref().is_some_and(is_kept)
    }

    /// These rows go.
    pub(super) fn goes(&mut self, rows: &RecordBatch) -> Result<()> {
        self.sees(rows, |images| &mut images.gone)
    }

    /// These rows come.
    pub(super) fn comes(&mut self, rows: &RecordBatch) -> Result<()> {
        self.sees(rows, |images| &mut images.came)
    }

    fn sees(&mut self, rows: &RecordBatch, side: fn(&mut Images) -> &mut Vec<RecordBatch>) -> Result<()> {
        self.sets.iter_mut().try_for_each(|set| set.add(rows))?;
        // Images are a convenience: rows that cannot be kept are no reason to fail.
        self.images = self.images.take().and_then(|kept| kept.with(rows, side)).filter(Kept::is_small);
        Ok(())
    }

    /// What another one has seen of the same commit.
    pub(super) fn join(&mut self, other: Witness) {
        self.sets.iter_mut().zip(other.sets).for_each(|(all, part)| all.merge(part));
        self.images = match (self.images.take(), other.images) {
            (Some(all), Some(part)) => Some(all.and(part)).filter(Kept::is_small),
            // One that saw too much.
            _ => None,
        };
    }

    pub(super) fn set(&self, by: &[String]) -> Option<&Distinct> {
        self.sets.iter().find(|set| set.is_over(by))
    }

    /// What was kept, only `columns`; `None` = they were not looked at, or there was too much.
    pub(super) fn images(&self, columns: &[String]) -> Option<Images> {
        let kept = self.images.as_ref()?;
        let places = columns.iter().map(|name| kept.columns.index_of(name)).collect::<Result<Vec<_>, _>>().ok()?;
        let pick =
            |rows: &[RecordBatch]| rows.iter().map(|rows| rows.project(&places).ok()).collect::<Option<Vec<_>>>();
        Some(Images { gone: pick(&kept.images.gone)?, came: pick(&kept.images.came)? })
    }
}

impl Kept {
    fn new(columns: SchemaRef) -> Kept {
        Kept { columns, images: Images::default(), rows: 0, bytes: 0 }
    }

    fn with(mut self, rows: &RecordBatch, side: fn(&mut Images) -> &mut Vec<RecordBatch>) -> Option<Kept> {
        if rows.num_rows() == 0 {
            return Some(self);
        }
        let column = |field: &Arc<Field>| rows.column_by_name(field.name()).cloned();
        let columns = self.columns.fields().iter().map(column).collect::<Option<Vec<_>>>()?;
        let kept = RecordBatch::try_new(self.columns.clone(), columns).ok()?;
        self.rows += kept.num_rows() as u64;
        self.bytes += kept.get_array_memory_size();
        side(&mut self.images).push(kept);
        Some(self)
    }

    fn and(mut self, other: Kept) -> Kept {
        self.images.gone.extend(other.images.gone);
        self.images.came.extend(other.images.came);
        Kept { rows: self.rows + other.rows, bytes: self.bytes + other.bytes, ..self }
    }

    fn is_small(&self) -> bool {
        self.rows <= MOST_ROWS && self.bytes <= MOST_BYTES
    }
}
