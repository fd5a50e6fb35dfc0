//! `tidegate checkpoint`: what the log holds, whether it can be trusted, and how to get it back.

pub(super) mod rebuild;
pub(super) mod show;
pub(super) mod verify;

use std::collections::BTreeMap;

use crate::model::batch::{BatchId, BatchPlan, CommitRecord};
use crate::model::offset::Offsets;

/// One row per partition: source, partition, next offset.
fn positions(offsets: &BTreeMap<String, Offsets>) -> Vec<Vec<String>> {
    let row = |name: &String, (partition, offset): (&crate::model::offset::Partition, &i64)| {
        vec![name.clone(), partition.to_string(), super::output::grouped(*offset)]
    };
    offsets.iter().flat_map(|(name, offsets)| offsets.0.iter().map(move |entry| row(name, entry))).collect()
}

/// What the log says it is at, in words.
fn state(plans: &BTreeMap<BatchId, BatchPlan>, commits: &BTreeMap<BatchId, CommitRecord>) -> String {
    let (planned, done) = (plans.keys().next_back(), commits.keys().next_back());
    match (planned, done) {
        (None, None) => "no batch yet".to_string(),
        (Some(planned), done) if done.is_none_or(|done| planned > done) => {
            format!("batch {planned} was begun and not finished; the next run finishes it")
        }
        (_, Some(done)) => format!("batch {done} is done"),
        (Some(planned), None) => format!("batch {planned} was begun"),
    }
}
