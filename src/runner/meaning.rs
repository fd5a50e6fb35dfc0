//! What a change of the pipeline file would do to rows and states that are stored: the words of their meaning, and a hash of
//! everything else that turns records into rows.

use std::collections::BTreeMap;

use crate::config::spec::{From, KeepsSpec, OperatorSpec, PipelineSpec, TableSpec, WatermarkSpec, WriteSpec};
use crate::model::window::{Emit, Length};

/// What gives each table's stored rows their meaning, readable, because the message that refuses a change shows it.
pub fn meaning(spec: &PipelineSpec) -> BTreeMap<String, String> {
    let describe = |table: &TableSpec| {
        let from = match &table.from {
            From::Source(name) => format!("source {name}"),
            From::Table(name) => name.clone(),
        };
        let write = match &table.write {
            WriteSpec::Append => "append".to_string(),
            WriteSpec::Upsert { key, order_by, delete_when, .. } => {
                let delete = delete_when.as_ref().map(|d| format!(" delete_when={d}")).unwrap_or_default();
                format!("upsert key={} order_by={}{delete}", key.join(","), order_by.join(","))
            }
            // Groups that no batch touches keep what the old query made of them: another query is another table.
            WriteSpec::Refresh { by } => {
                let sql: Vec<&str> = table.sql.iter().flat_map(|sql| sql.split_whitespace()).collect();
                format!("refresh by={} sql={}", by.join(","), sql.join(" "))
            }
            WriteSpec::Windows { .. } => "windows".to_string(),
        };
        let keeps = table.keeps.as_ref().map(|keeps| format!(" {}", remembered(table, keeps))).unwrap_or_default();
        (table.name.clone(), format!("from {from}: {write}{keeps}"))
    };
    spec.tables.iter().map(describe).collect()
}

/// What gives the entries of a table's state their meaning. What is late may change at any time: it judges rows to come.
pub fn remembered(table: &TableSpec, keeps: &KeepsSpec) -> String {
    let one_line = |sql: &str| sql.split_whitespace().collect::<Vec<_>>().join(" ");
    let time = keeps.watermark.columns.join(",");
    match &keeps.operator {
        OperatorSpec::Aggregate(aggregate) => {
            let measures: Vec<String> =
                aggregate.measures.iter().map(|(name, sql)| format!("{name}={}", one_line(sql))).collect();
            let window = match aggregate.window {
                None => "none".to_string(),
                Some(window) => format!("{window} of {time}"),
            };
            let sql = table.sql.as_deref().map(|sql| format!(" sql={}", one_line(sql))).unwrap_or_default();
            let emit = match aggregate.emit {
                Emit::Update => "update",
                Emit::Final => "final",
                Emit::Complete => "complete",
            };
            format!(
                "aggregate window={window} by={} measures={} emit={emit}{sql}",
                aggregate.by.join(","),
                measures.join("; ")
            )
        }
        OperatorSpec::Dedupe(dedupe) => {
            format!("dedupe key={} within={} of {time}", dedupe.key.join(","), Length(dedupe.within))
        }
        OperatorSpec::Join(join) => {
            let right = match &join.right {
                From::Source(name) => format!("source {name}"),
                From::Table(name) => name.clone(),
            };
            let kind = if join.outer { "left" } else { "inner" };
            let on = join.on.join(",");
            format!("join {kind} right={right} on={on} within={} of {time}", Length(join.within))
        }
    }
}

/// Hash of everything that turns the rows of a batch into tables. Written out by hand: how the types print must not
/// decide whether a batch may be finished.
pub fn recipe(spec: &PipelineSpec) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    let mut add = |part: &str| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    };
    for (name, source) in &spec.sources {
        add(name);
        add(&format!("{:?} {:?} {:?}", source.format, source.schema_drift, source.tombstones));
        for column in &source.columns {
            add(&format!("{} {} {} {:?}", column.name, column.data_type, column.nullable, column.unit));
        }
    }
    for table in &spec.tables {
        add(&table.name);
        add(table.sql.as_deref().unwrap_or_default());
        add(&format!("{:?} {:?}", table.engine, table.write));
        if let Some(keeps) = &table.keeps {
            add(&remembered(table, keeps));
            let watermark = &keeps.watermark;
            add(&format!("{:?} {} {}", watermark.late, watermark.delay, watermark.max_ahead));
            // Plans of a release that did not say it stay what they are, with the usual one.
            if watermark.idle != WatermarkSpec::IDLE {
                add(&format!("idle {}", watermark.idle));
            }
        }
        for rule in &table.expect {
            add(&format!("{} {:?}", rule.name, rule.action));
            add(&rule.check);
        }
    }
    add(spec.dead_letters.as_ref().map_or("", |dead_letters| dead_letters.table.as_str()));
    add(spec.timezone.name());
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
