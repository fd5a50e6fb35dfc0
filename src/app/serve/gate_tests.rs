use std::time::Duration;

use super::*;
use crate::model::offset::Partition;
use crate::source::memory::{MemorySource, Record};

/// As many records as `rows` in one partition.
fn source(rows: i64) -> BTreeMap<String, Box<dyn Source>> {
    let record = |offset| Record {
        partition: Partition::new("t", 0),
        offset,
        timestamp: None,
        key: None,
        value: Some(b"{}".to_vec()),
        headers: None,
    };
    BTreeMap::from([("source".to_string(), Box::new(MemorySource::new((0..rows).map(record))) as Box<dyn Source>)])
}

fn at(offset: i64) -> Offsets {
    Offsets(BTreeMap::from([(Partition::new("t", 0), offset)]))
}

struct Place {
    gate: Gate,
    source: Box<dyn Source>,
}

impl Place {
    fn new(room: &Room, stop: &watch::Sender<bool>) -> Self {
        let mut gate = Gate::new(room.clone(), stop.subscribe());
        let source = gate.guard(source(10)).remove("source").expect("it was given");
        Place { gate, source }
    }

    async fn bound(&mut self, from: i64, end: i64) -> OffsetRanges {
        let limits = Limits { max_rows: 4, max_bytes: 1 };
        let bounded = self.source.bound(&at(from), &Incarnations::new(), &at(end), limits).await;
        bounded.expect("memory does not fail").ranges
    }
}

fn room(batches: usize) -> Room {
    Room { batches: Arc::new(Semaphore::new(batches)), max_bytes: 1_000_000 }
}

/// Whether it still waits after everything else had its turn.
async fn waits<T>(work: &mut (impl Future<Output = T> + Unpin)) -> bool {
    tokio::time::timeout(Duration::from_millis(20), work).await.is_err()
}

#[tokio::test]
async fn a_batch_waits_until_another_pipelines_run_is_over() {
    let (room, stop) = (room(1), watch::Sender::new(false));
    let (mut first, mut second) = (Place::new(&room, &stop), Place::new(&room, &stop));
    assert_eq!(first.bound(0, 10).await.len(), 4);
    {
        let mut waiting = Box::pin(second.bound(0, 10));
        assert!(waits(&mut waiting).await, "there is room for one");
        assert!(first.gate.leave());
        assert_eq!(waiting.await.len(), 4);
    }
    assert!(second.gate.leave());
    assert!(!second.gate.leave(), "room is given back once");
    assert_eq!(room.batches.available_permits(), 1);
}

#[tokio::test]
async fn the_next_batch_of_a_run_waits_behind_the_others() {
    let (room, stop) = (room(1), watch::Sender::new(false));
    let (mut first, mut second) = (Place::new(&room, &stop), Place::new(&room, &stop));
    first.bound(0, 10).await;
    let mut waiting = Box::pin(second.bound(0, 10));
    assert!(waits(&mut waiting).await);
    let mut next = Box::pin(first.bound(4, 10));
    assert!(waits(&mut next).await, "the second has waited longer");
    assert_eq!(waiting.await.len(), 4);
    assert!(waits(&mut next).await, "and works");
    second.gate.leave();
    assert_eq!(next.await.len(), 4);
}

#[tokio::test]
async fn without_news_nothing_is_waited_for() {
    let (room, stop) = (room(1), watch::Sender::new(false));
    let (mut busy, mut idle) = (Place::new(&room, &stop), Place::new(&room, &stop));
    // Where it stands is not known before it was bounded once; from then on the end alone tells.
    assert!(idle.bound(10, 10).await.is_empty());
    busy.bound(0, 10).await;
    assert_eq!(idle.source.end().await.expect("memory does not fail"), at(10));
    assert!(idle.bound(10, 10).await.is_empty());
    assert!(!idle.gate.leave(), "it never had any room");
}

#[tokio::test]
async fn a_batch_that_is_news_waits_before_it_is_bounded() {
    let (room, stop) = (room(1), watch::Sender::new(false));
    let (mut busy, mut next) = (Place::new(&room, &stop), Place::new(&room, &stop));
    assert_eq!(next.bound(0, 10).await.len(), 4);
    next.gate.leave();
    busy.bound(0, 10).await;
    let mut end = Box::pin(next.source.end());
    assert!(waits(&mut end).await);
    busy.gate.leave();
    assert_eq!(end.await.expect("memory does not fail"), at(10));
}

#[tokio::test]
async fn who_waits_and_is_asked_to_stop_plans_nothing_but_finishes_what_was_begun() {
    let (room, stop) = (room(1), watch::Sender::new(false));
    let (mut busy, mut asked) = (Place::new(&room, &stop), Place::new(&room, &watch::Sender::new(true)));
    let planned = busy.bound(0, 10).await;
    assert!(asked.bound(0, 10).await.is_empty());
    let known = Incarnations::new();
    let mut replay = Box::pin(asked.source.read(&planned, &known));
    assert!(waits(&mut replay).await, "a replay takes room too");
    busy.gate.leave();
    let read = replay.await.expect("memory does not fail");
    assert_eq!(read.batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 4);
}
