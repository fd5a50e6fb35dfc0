//! The dead-letter table's schema.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

/// Columns of the dead-letter table.
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("_dead_letter_id", DataType::Utf8, false)]))
}
