//! What each table commit says about its batch, in `userMetadata`: enough to rebuild a lost checkpoint from the tables.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::batch::{BatchId, BatchPlan};
use super::forget::Forget;
use super::letter::Letters;
use super::offset::{Incarnations, OffsetRanges, Offsets, Partition};
use super::window::Micros;

/// The note of one table commit. Empty parts are left out: it is written at every commit of every table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Note {
    /// Pipeline name.
    pub pipeline: String,
    /// Identity of the checkpoint log.
    pub pipeline_id: String,
    /// The batch.
    pub batch: BatchId,
    /// The plan's clock.
    pub batch_time: DateTime<Utc>,
    /// What the batch reads, by source name.
    pub sources: BTreeMap<String, OffsetRanges>,
    /// Positions of partitions that the batch does not name, by source name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub elsewhere: BTreeMap<String, Offsets>,
    /// As in the plan.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub skipped: BTreeMap<String, OffsetRanges>,
    /// As in the plan.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub moved: BTreeMap<String, OffsetRanges>,
    /// As in the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub letters: Option<Letters>,
    /// As in the plan: a hash of the key, never the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forget: Option<Forget>,
    /// As in the plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rebuild: Vec<String>,
    /// As in the plan.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub since: BTreeMap<String, Micros>,
    /// As in the plan.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub incarnations: BTreeMap<String, Incarnations>,
    /// As in the plan.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub watermarks: BTreeMap<String, DateTime<Utc>>,
    /// As in the plan.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pinned: BTreeMap<String, i64>,
    /// As in the plan; empty in commits of a tidegate that did not note it yet.
    #[serde(default)]
    pub recipe: String,
    /// Digest of what gives this table's rows their meaning; `None` for dead letters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meaning: Option<String>,
    /// The version that this table's memory of deletes has reached, -1 while there is none. `None` = the table has none, or
    /// a tidegate wrote this that did not note it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<i64>,
    /// The file that holds what the table remembers after the batch, where it remembers something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Every table that the batch is applied to, dead letters included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Wrapped {
    tidegate: Note,
}

impl Note {
    /// The note of `plan` for the table called `table`, as one compact JSON object. `position` is where the pipeline stood
    /// before the batch, `tables` are the tables that the batch is applied to.
    pub fn write(
        plan: &BatchPlan,
        pipeline_id: &str,
        table: &str,
        position: &BTreeMap<String, Offsets>,
        tables: Vec<String>,
    ) -> serde_json::Result<String> {
        let note = Note {
            pipeline: plan.pipeline.clone(),
            pipeline_id: pipeline_id.to_string(),
            batch: plan.batch,
            batch_time: plan.batch_time,
            sources: plan.sources.clone(),
            elsewhere: elsewhere(plan, position),
            skipped: plan.skipped.clone(),
            moved: plan.moved.clone(),
            letters: plan.letters.clone(),
            rebuild: plan.rebuild.clone(),
            since: plan.since.clone(),
            forget: plan.forget.clone(),
            incarnations: plan.incarnations.clone(),
            watermarks: plan.watermarks.clone(),
            pinned: plan.pinned.clone(),
            recipe: plan.recipe.clone(),
            meaning: plan.meaning.get(table).map(|meaning| digest(meaning)),
            memory: None,
            state: None,
            tables,
        };
        serde_json::to_string(&Wrapped { tidegate: note })
    }

    /// Reads a note; `None` = not one of tidegate's.
    pub fn read(text: &str) -> Option<Note> {
        serde_json::from_str::<Wrapped>(text).ok().map(|wrapped| wrapped.tidegate)
    }

    /// The same note, which also tells how far the memory of deletes has come: it is known only when the commit is made.
    /// What is not a note stays as it is.
    pub fn with_memory(text: &str, memory: i64) -> String {
        let with = |note| Wrapped { tidegate: Note { memory: Some(memory), ..note } };
        Note::read(text).and_then(|note| serde_json::to_string(&with(note)).ok()).unwrap_or_else(|| text.to_string())
    }

    /// The same note, which also names the table's state.
    pub fn with_state(text: &str, state: &str) -> String {
        let with = |note| Wrapped { tidegate: Note { state: Some(state.to_string()), ..note } };
        Note::read(text).and_then(|note| serde_json::to_string(&with(note)).ok()).unwrap_or_else(|| text.to_string())
    }

    /// The position before the batch.
    pub fn before(&self) -> BTreeMap<String, Offsets> {
        let mut before = self.elsewhere.clone();
        for (name, ranges) in &self.sources {
            let position = before.entry(name.clone()).or_default();
            position.0.extend(ranges.0.iter().map(|(partition, range)| (partition.clone(), range.from)));
        }
        for (name, ranges) in self.skipped.iter().chain(&self.moved) {
            let position = before.entry(name.clone()).or_default();
            position.0.extend(ranges.0.iter().map(|(partition, range)| (partition.clone(), range.from)));
        }
        before
    }

    /// The position after the batch.
    pub fn after(&self) -> BTreeMap<String, Offsets> {
        let mut after = self.before();
        for (name, ranges) in self.skipped.iter().chain(&self.moved) {
            let position = after.entry(name.clone()).or_default();
            position.0.extend(ranges.0.iter().map(|(partition, range)| (partition.clone(), range.until)));
        }
        for (name, ranges) in &self.sources {
            let position = after.entry(name.clone()).or_default();
            position
                .0
                .extend(ranges.0.iter().map(|(partition, range)| (partition.clone(), range.until.max(range.from))));
        }
        after
    }
}

/// Positions that the plan does not name.
fn elsewhere(plan: &BatchPlan, position: &BTreeMap<String, Offsets>) -> BTreeMap<String, Offsets> {
    let mut elsewhere = BTreeMap::new();
    for (name, offsets) in position {
        let read = plan.sources.get(name);
        let is_elsewhere = |partition: &Partition| read.is_none_or(|read| !read.0.contains_key(partition));
        let rest = offsets.0.iter().filter(|(p, _)| is_elsewhere(p) && !plan.drops(name, p));
        let rest: BTreeMap<_, _> = rest.map(|(partition, &offset)| (partition.clone(), offset)).collect();
        // A source without a single partition has a position too: an empty one.
        if !rest.is_empty() || read.is_none() {
            elsewhere.insert(name.clone(), Offsets(rest));
        }
    }
    elsewhere
}

/// Short, and long enough that no two meanings share it.
pub fn digest(meaning: &str) -> String {
    Sha256::digest(meaning).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::batch::{FORMAT_VERSION, Owner};
    use crate::model::letter::Action;
    use crate::model::offset::{Partition, Range};

    fn ranges(entries: &[(&str, i64, i64)]) -> OffsetRanges {
        let range = |&(topic, from, until): &(&str, i64, i64)| (Partition::new(topic, 0), Range { from, until });
        OffsetRanges(entries.iter().map(range).collect())
    }

    fn offsets(entries: &[(&str, i64)]) -> Offsets {
        Offsets(entries.iter().map(|&(topic, at)| (Partition::new(topic, 0), at)).collect())
    }

    fn write(plan: &BatchPlan, table: &str, position: &BTreeMap<String, Offsets>, tables: Vec<String>) -> String {
        Note::write(plan, "id", table, position, tables).expect("a plan is JSON")
    }

    #[test]
    fn a_note_tells_the_position_before_and_after_its_batch() {
        let source = |ranges: OffsetRanges| BTreeMap::from([("source".to_string(), ranges)]);
        let plan = BatchPlan {
            version: FORMAT_VERSION,
            batch: 7,
            pipeline: "orders".into(),
            batch_time: DateTime::UNIX_EPOCH,
            sources: source(ranges(&[("a", 5, 9), ("b", 20, 20)])),
            skipped: source(ranges(&[("b", 12, 20)])),
            moved: BTreeMap::new(),
            letters: None,
            rebuild: Vec::new(),
            since: BTreeMap::new(),
            forget: None,
            lost: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            watermarks: BTreeMap::new(),
            pinned: BTreeMap::new(),
            meaning: BTreeMap::from([("silver".to_string(), "upsert".to_string())]),
            recipe: "recipe".into(),
            owner: Owner { run_id: "r".into(), host: "h".into(), pid: 1 },
        };
        let position = BTreeMap::from([
            ("source".to_string(), offsets(&[("a", 5), ("b", 12), ("gone", 3)])),
            ("retired".to_string(), offsets(&[("x", 1)])),
        ]);
        let note = Note::read(&write(&plan, "silver", &position, vec!["silver".into()])).expect("a note");
        assert_eq!(note.before(), position);
        assert_eq!(note.after()["source"], offsets(&[("a", 9), ("b", 20), ("gone", 3)]));
        assert_eq!(note.after()["retired"], offsets(&[("x", 1)]));
        assert_eq!((note.meaning.clone(), note.memory), (Some(digest("upsert")), None));
        let text = write(&plan, "silver", &position, vec!["silver".into()]);
        assert!(!text.contains("letters"), "most batches are about none: {text}");
        assert!(!text.contains("memory"), "notes of older commits look like this: {text}");
        assert_eq!(Note::read(&Note::with_memory(&text, 4)), Some(Note { memory: Some(4), ..note.clone() }));
        assert_eq!(Note::with_memory("{\"batch\":3}", 4), "{\"batch\":3}");

        let back = BatchPlan {
            sources: source(ranges(&[("a", 2, 2)])),
            skipped: BTreeMap::new(),
            moved: source(ranges(&[("a", 9, 2)])),
            ..plan
        };
        let position = BTreeMap::from([("source".to_string(), offsets(&[("a", 9), ("b", 20)]))]);
        let note = Note::read(&write(&back, "dlq", &position, Vec::new())).expect("a note");
        assert_eq!((note.before(), note.meaning.clone()), (position.clone(), None));
        assert_eq!(note.after()["source"], offsets(&[("a", 2), ("b", 20)]));

        let ids = BTreeMap::from([(3, vec!["a".to_string(), "b".to_string()]), (10, vec!["a".to_string()])]);
        for action in [Action::Replay, Action::Discard { reason: Some("no use".into()) }] {
            let letters = Some(Letters { action, ids: ids.clone() });
            let plan = BatchPlan { sources: BTreeMap::new(), moved: BTreeMap::new(), letters, ..back.clone() };
            let note = Note::read(&write(&plan, "dlq", &position, Vec::new())).expect("a note");
            assert_eq!((note.letters.clone(), note.after()), (plan.letters, position.clone()));
        }
        assert_eq!(Note::read("{\"other\": 1}"), None);
    }
}
