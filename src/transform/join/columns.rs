//! The columns of pairs: those of `on` once, then the left side's others, then the right side's.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

/// Columns that saved rows have besides.
pub(super) const OWN: [&str; 4] = ["_side", "_row", "_event_time", "_matched"];

/// What each column of a pair is made from.
#[derive(Debug, Clone)]
pub struct Columns {
    /// Columns of both sides that must be equal.
    pub(super) on: Vec<Field>,
    /// The other columns of the left side.
    pub(super) left: Vec<Field>,
    /// The other columns of the right side, by their names there.
    pub(super) right: Vec<Field>,
    /// Columns of pairs.
    pub(super) pairs: SchemaRef,
    /// What stands before names that both sides have, on the right.
    prefix: String,
}

/// Why two sides cannot be joined: which key of the file, what is wrong, what to do.
pub struct Misfit {
    /// The key under `join`.
    pub key: &'static str,
    /// What is wrong; lowercase, no full stop.
    pub message: String,
    /// What to write instead.
    pub help: String,
}

impl Columns {
    /// Of two sides that both have the columns `on`. Names that both have get `prefix` on the right.
    pub fn of(left: &Schema, right: &Schema, on: &[String], prefix: &str) -> Result<Columns, Vec<Misfit>> {
        let mut misfits = Vec::new();
        let mut matched = Vec::new();
        for name in on {
            let (Ok(ours), Ok(theirs)) = (left.field_with_name(name), right.field_with_name(name)) else { continue };
            matched.push(nullable(ours, name));
            misfits.extend(unfit(name, ours.data_type(), theirs.data_type()));
        }
        let others = |side: &Schema| -> Vec<Field> {
            let fields = side.fields().iter().filter(|field| !on.contains(field.name()));
            fields.map(|field| nullable(field, field.name())).collect()
        };
        let (ours, theirs) = (others(left), others(right));
        let mut pairs: Vec<Field> = matched.iter().chain(&ours).cloned().collect();
        for field in &theirs {
            let name = match left.field_with_name(field.name()) {
                Ok(_) => format!("{prefix}_{}", field.name()),
                Err(_) => field.name().clone(),
            };
            let is_renamed = name != *field.name();
            let has = |fields: &[Field]| fields.iter().any(|field| *field.name() == name);
            if is_renamed && (has(&pairs) || has(&theirs)) {
                misfits.push(Misfit {
                    key: "right",
                    message: format!("both sides have a column `{}`, and `{name}` is taken", field.name()),
                    help: "give one of them another name in the table before".into(),
                });
            }
            pairs.push(nullable(field, &name));
        }
        let is_own = |name: &str| OWN.contains(&name) || [super::GONE, super::FORMAT_COLUMN].contains(&name);
        if let Some((at, field)) = pairs.iter().enumerate().find(|(_, field)| is_own(field.name())) {
            misfits.push(Misfit {
                key: if at < matched.len() + ours.len() { "left" } else { "right" },
                message: format!("what is remembered has a column `{}` of its own", field.name()),
                help: "give the column another name in the table before".into(),
            });
        }
        match misfits.is_empty() {
            true => Ok(Columns {
                on: matched,
                left: ours,
                right: theirs,
                pairs: Arc::new(Schema::new(pairs)),
                prefix: prefix.to_string(),
            }),
            false => Err(misfits),
        }
    }
}

impl Columns {
    /// What the right side's own columns are called in pairs.
    pub(super) fn right_names(&self) -> impl Iterator<Item = &str> {
        self.pairs.fields().iter().skip(self.on.len() + self.left.len()).map(|field| field.name().as_str())
    }

    /// What pairs call a column of the right side once the left side gets, or loses, one of its name.
    pub(super) fn other_name(&self, column: &str, in_pairs: &str) -> String {
        if column == in_pairs { format!("{}_{column}", self.prefix) } else { column.to_string() }
    }

    /// The columns of pairs that are made from the column `name` of either side.
    pub(super) fn made_from(&self, name: &str) -> Vec<String> {
        let matched_and_left = self.on.iter().chain(&self.left).map(|field| (field, field.name()));
        let matched_and_left = matched_and_left.map(|(field, pair)| (field, pair.as_str()));
        let made = matched_and_left.chain(self.right.iter().zip(self.right_names()));
        made.filter(|(field, _)| field.name() == name).map(|(_, pair)| pair.to_string()).collect()
    }
}

/// As the result of a query, a pair does not say which columns are never null.
fn nullable(field: &Field, name: &str) -> Field {
    field.clone().with_name(name).with_nullable(true)
}

fn unfit(name: &str, ours: &DataType, theirs: &DataType) -> Option<Misfit> {
    let (message, help) = if ours != theirs {
        (format!("`{name}` is {ours} on the left and {theirs} on the right"), "cast one of them in the table before")
    } else if ours.is_floating() {
        (format!("`{name}` is {ours}: numbers that are rounded do not match"), "match decimals, integers or text")
    } else if ours.is_nested() {
        (format!("`{name}` is {ours}, which has no equals"), "match one of its parts: take it out in the table before")
    } else {
        return None;
    };
    Some(Misfit { key: "on", message, help: help.into() })
}
