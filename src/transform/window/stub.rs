//! Stands in until the engine lands.
use super::function::Function;
use crate::error::Result;
use crate::model::window::{Emit, EventTime, Late, Micros, Window};
use crate::transform::stateful::{Size, Stateful, Step};
use arrow::array::RecordBatch;
use arrow::datatypes::{FieldRef, SchemaRef};
#[derive(Debug, Clone)]
pub struct Aggregation {
    pub by: Vec<FieldRef>,
    pub window: Option<Window>,
    pub functions: Vec<Function>,
    pub emit: Emit,
    pub late: Late,
}
pub struct Windows;
impl Windows {
    pub fn new(_: Aggregation) -> Result<Windows> {
        unimplemented!()
    }
}
impl Stateful for Windows {
    fn step(&mut self, _: &[Vec<RecordBatch>], _: &EventTime) -> Result<Step> {
        unimplemented!()
    }
    fn changes(&mut self) -> Result<Vec<RecordBatch>> {
        unimplemented!()
    }
    fn whole(&mut self) -> Result<Vec<RecordBatch>> {
        unimplemented!()
    }
    fn load(&mut self, _: &[RecordBatch]) -> Result<()> {
        unimplemented!()
    }
    fn saved(&self) -> SchemaRef {
        unimplemented!()
    }
    fn output(&self) -> SchemaRef {
        unimplemented!()
    }
    fn replaces(&self) -> Vec<String> {
        unimplemented!()
    }
    fn due(&self) -> Option<(Micros, Micros)> {
        unimplemented!()
    }
    fn size(&self) -> Size {
        unimplemented!()
    }
}
