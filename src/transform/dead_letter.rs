//! stub
use super::{BatchContext, DeadLetter};
use crate::error::Result;
use arrow::record_batch::RecordBatch;
/// stub
pub fn rows(_dead: &[DeadLetter], _records: &[RecordBatch], _context: &BatchContext) -> Result<RecordBatch> {
    todo!()
}
