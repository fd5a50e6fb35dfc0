//! What the tables of a compiled pipeline look like to storage.

use super::Transform as _;
use super::compile::CompiledPipeline;
use super::expect::DELETE_FLAG;
use crate::config::spec::{From, WriteSpec};
use crate::table::{Maker, TableDefinition, WriteMode};

/// A definition for each table, in graph order, dead letters last. Names were checked when the pipeline was compiled.
pub fn table_definitions(compiled: &CompiledPipeline, maker: &Maker) -> Vec<TableDefinition> {
    let mut definitions = Vec::new();
    for table in &compiled.spec.tables {
        let Some(schema) = compiled.tables.get(&table.name).map(|compiled| compiled.stored.clone()) else {
            continue;
        };
        let write = match &table.write {
            WriteSpec::Append => WriteMode::Append,
            WriteSpec::Upsert { key, order_by, delete_when, .. } => WriteMode::Upsert {
                key: key.clone(),
                order_by: order_by.clone(),
                delete_flag: delete_when.as_ref().map(|_| DELETE_FLAG.to_string()),
            },
            WriteSpec::Refresh { by } | WriteSpec::Windows { by } => WriteMode::Refresh { by: by.clone() },
        };
        let mut watched: Vec<Vec<String>> = Vec::new();
        let mut imaged: Vec<String> = Vec::new();
        for downstream in &compiled.spec.tables {
            if let (WriteSpec::Refresh { by }, From::Table(name)) = (&downstream.write, &downstream.from)
                && *name == table.name
                && !watched.contains(by)
            {
                watched.push(by.clone());
            }
            if matches!(&downstream.from, From::Table(name) if *name == table.name)
                && compiled.tally(&downstream.name).is_some()
                && let Some(columns) = compiled.reads(&downstream.name).tables.get(&table.name)
            {
                imaged.extend(columns.iter().filter(|column| !imaged.contains(column)).cloned().collect::<Vec<_>>());
            }
        }
        definitions.push(TableDefinition {
            name: table.name.clone(),
            schema,
            partition_by: table.partition_by.clone(),
            write,
            watched,
            imaged,
            maker: maker.clone(),
        });
    }
    if let Some((name, schema)) = &compiled.dead_letters {
        definitions.push(TableDefinition {
            name: name.clone(),
            schema: schema.clone(),
            partition_by: Vec::new(),
            write: WriteMode::Append,
            watched: Vec::new(),
            imaged: Vec::new(),
            maker: maker.clone(),
        });
    }
    definitions
}
