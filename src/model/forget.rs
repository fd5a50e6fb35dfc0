//! What an operator wants forgotten (`tidegate forget`): the part that a plan says for ever, and the key itself, which is
//! kept beside the plan only until the batch is done.
//!
//! Objects of the log never change, and Delta keeps what commits say of themselves: neither may hold the key of a person
//! who was forgotten. They hold a hash of it, salted with a number that nobody knows any more once the key is deleted, but
//! whoever has the receipt.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::batch::BatchId;
use super::offset::{Offset, Partition};

/// What is forgotten: every row whose columns have these values, all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// On-disk format.
    pub version: u32,
    /// Random, so that the hash of a short key cannot be looked up.
    pub salt: String,
    /// Column → value, as it was typed.
    pub values: BTreeMap<String, String>,
    /// Dead letters whose bytes merely contain the values go, too.
    pub containing: bool,
    /// The key's records, as bronze has them: deletes that are remembered by other columns are found by them. Looked up
    /// before the plan, because bronze may be the first to lose its rows.
    #[serde(default)]
    pub records: Vec<(Partition, Vec<Offset>)>,
}

impl Key {
    /// Salted SHA-256 in hexadecimal: of the salt, then of each column and value, each with its length in front.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let mut add = |part: &str| {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        };
        add(&self.salt);
        for (column, value) in &self.values {
            add(column);
            add(value);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The columns.
    pub fn columns(&self) -> Vec<String> {
        self.values.keys().cloned().collect()
    }
}

/// What the plan of the batch that forgets says, and each table's commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forget {
    /// [`Key::digest`]; also the name of the object that holds the key until the batch is done.
    pub digest: String,
    /// The key's columns.
    pub columns: Vec<String>,
    /// What each table is to lose, counted before the batch was planned. Other tables lose nothing, but for what follows
    /// from these.
    pub tables: BTreeMap<String, Counted>,
    /// Entries that tables remember beside their rows: how many go, counted before the batch was planned.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub states: BTreeMap<String, u64>,
    /// What the sources still hold, by source; absent = they were not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<BTreeMap<String, Vec<Still>>>,
    /// The old files are to be deleted at once, too: if a crash comes in between, it is still owed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub vacuum: bool,
}

/// Tables whose old files are to be deleted because of what a batch forgot; in the log until they are. It says nothing of
/// the key, which is gone by then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owed {
    /// On-disk format.
    pub version: u32,
    /// The batch that forgot.
    pub batch: BatchId,
    /// The tables.
    pub tables: Vec<String>,
}

/// Rows that go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Of the table.
    pub rows: u64,
    /// Of its memory of deletes.
    #[serde(default)]
    pub remembered: u64,
}

impl Counted {
    /// Whether nothing goes.
    pub fn is_nothing(&self) -> bool {
        self.rows + self.remembered == 0
    }
}

/// Records of the key that one partition of a source still holds: reading them again brings the rows back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Still {
    /// Where.
    pub partition: Partition,
    /// How many.
    pub records: u64,
    /// The first one.
    pub first: Offset,
    /// The last one.
    pub last: Offset,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(salt: &str, values: &[(&str, &str)]) -> Key {
        let values = values.iter().map(|(column, value)| (column.to_string(), value.to_string())).collect();
        Key { version: 2, salt: salt.into(), values, containing: false, records: Vec::new() }
    }

    #[test]
    fn a_digest_depends_on_salt_columns_and_values_and_on_where_they_end() {
        let digests: std::collections::BTreeSet<String> = [
            key("s", &[("id", "42")]),
            key("t", &[("id", "42")]),
            key("s", &[("id", "43")]),
            key("s", &[("id4", "2")]),
            key("s", &[("id", "4"), ("x", "2")]),
        ]
        .iter()
        .map(Key::digest)
        .collect();
        assert_eq!(digests.len(), 5);
        // By hand: printf '\0\0\0\0\0\0\0\x01s\0\0\0\0\0\0\0\x02id\0\0\0\0\0\0\0\x0242' | sha256sum
        assert_eq!(
            key("s", &[("id", "42")]).digest(),
            "913b2e13e13a0e7fafc7df20d4c8008ff38dcad5a2fd411287deed479e467ded"
        );
    }
}
