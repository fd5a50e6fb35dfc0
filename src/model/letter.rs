//! What an operator does with dead letters (`tidegate dlq`), as the plan of the batch that does it says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::batch::BatchId;

/// The batch of letters that a backfill sets aside: its rows come from many batches, and none of them is meant. The original
/// bytes of their records are not kept, since bronze does not have them.
pub const BACKFILLED: BatchId = -1;

/// Which dead letters a batch is about, and what it does with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letters {
    /// What is done.
    pub action: Action,
    /// Their ids, by the batch that set them aside: a record that is read again after a rewind may be set aside again,
    /// under the same id, and that is another letter.
    pub ids: BTreeMap<BatchId, Vec<String>>,
}

/// What is done with dead letters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Their records go through the pipeline again, as it is now.
    Replay,
    /// They are given up.
    Discard {
        /// Why, in the words of whoever did it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}

impl Letters {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ids.values().map(Vec::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What became of a dead letter. Letters from before there was a status have none, and are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Nobody has dealt with it.
    Open,
    /// Its record is in the tables.
    Replayed,
    /// It was given up.
    Discarded,
}

impl Status {
    /// Every status.
    pub const ALL: [Status; 3] = [Status::Open, Status::Replayed, Status::Discarded];

    /// The word stored in the dead-letter table.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Open => "open",
            Status::Replayed => "replayed",
            Status::Discarded => "discarded",
        }
    }

    /// The status that a word stands for; no word is open.
    pub fn read(word: Option<&str>) -> Option<Status> {
        let word = word.unwrap_or(Status::Open.as_str());
        Status::ALL.into_iter().find(|status| status.as_str() == word)
    }
}
