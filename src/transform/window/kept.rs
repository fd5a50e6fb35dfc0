//! What one function keeps, for all windows: a column of states, one slot per window.

use arrow::array::ArrayRef;
use arrow::datatypes::Field;

use super::distinct::Distinct;
use super::function::{Function, Kind};
use super::hll::HyperLogLog;
use super::picked::Picked;
use super::quantile::Quantiles;
use super::sketch::Sketches;
use super::sum::{Count, ExactSum, FloatSum};
use crate::error::Result;
use crate::model::window::Micros;

/// Number of a window's state.
pub(super) type Slot = u32;

/// The slot of rows that belong to no window.
pub(super) const NOWHERE: Slot = Slot::MAX;

/// The states of one function.
pub(super) trait Kept: Send + Sync {
    /// Makes room: slots below `slots` exist, new ones are empty.
    fn grow(&mut self, slots: usize);

    /// Empties a slot.
    fn clear(&mut self, slot: Slot);

    /// Works in row after row; row `i` goes to `slots[i]`. Rows arrive in source order.
    fn update(&mut self, slots: &[Slot], values: Option<&ArrayRef>, times: &[Micros]) -> Result<()>;

    /// Adds what `from` holds to `into`. Rows of one time arrived at `into` first.
    fn merge(&mut self, into: Slot, from: Slot) -> Result<()>;

    /// The results of slots.
    fn results(&self, slots: &[Slot]) -> Result<ArrayRef>;

    /// Columns that states are saved in.
    fn saved(&self) -> Vec<Field>;

    /// The states of slots, in columns of [`Kept::saved`].
    fn save(&self, slots: &[Slot]) -> Result<Vec<ArrayRef>>;

    /// Takes in what `save` gave: row `i` goes to `slots[i]`, which is empty; [`NOWHERE`] is left out.
    fn load(&mut self, slots: &[Slot], columns: &[ArrayRef]) -> Result<()>;

    /// Bytes of a slot, without what hangs on it.
    fn width(&self) -> usize;

    /// Bytes that hang on all slots.
    fn heap(&self) -> usize;
}

/// The empty states of a function: the `number`th of its aggregation.
pub(super) fn keep(function: &Function, number: usize) -> Result<Box<dyn Kept>> {
    let field = function.output(number).map_err(super::misfit)?;
    let name = field.name().clone();
    let argument = function.argument_type.clone();
    Ok(match (function.kind, argument) {
        (Kind::CountAll | Kind::Count, _) | (_, None) => Box::new(Count::new(name)),
        (Kind::Sum | Kind::Avg, Some(argument)) if argument.is_floating() => {
            Box::new(FloatSum::new(name, function.kind))
        }
        (Kind::Sum | Kind::Avg, Some(argument)) => Box::new(ExactSum::new(name, function, argument, field)),
        (Kind::Min | Kind::Max | Kind::First | Kind::Last, Some(argument)) => {
            Box::new(Picked::new(name, function.kind, argument))
        }
        (Kind::CountDistinct, Some(argument)) => Box::new(Sketches::<Distinct>::new(name, argument, 0.0)),
        (Kind::ApproxCountDistinct, Some(argument)) => Box::new(Sketches::<HyperLogLog>::new(name, argument, 0.0)),
        (Kind::ApproxQuantile(share), Some(argument)) => Box::new(Sketches::<Quantiles>::new(name, argument, share)),
    })
}
