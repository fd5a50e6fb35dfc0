//! Live traffic on a topic whose broker comes and goes: orders at a pace, transactions that commit, abort or end unknown.
//!
//! What the topic holds is read back with a consumer of its own, because nobody can know whether a commit without a reply
//! was done. All else is known, and the topic is held to it: every other record exactly once, in the order it was sent.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;

use super::broker::{Broker, Producer, Record};
use super::oracle::Stored;
use super::orders::Orders;

/// Keys of records in transactions begin with it; the pipeline makes nothing of keys.
const MARK: &str = "transaction-";

/// Time between two handfuls of records.
const BEAT: Duration = Duration::from_millis(50);

/// Tells threads to end.
#[derive(Default)]
pub struct Stop {
    is_set: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// From now on every wait ends at once.
    pub fn set(&self) {
        *self.is_set.lock().expect("nothing panics while it holds this") = true;
        self.changed.notify_all();
    }

    /// Waits, at most so long; true = it is time to end.
    pub fn within(&self, patience: Duration) -> bool {
        let is_set = self.is_set.lock().expect("nothing panics while it holds this");
        let waited = self.changed.wait_timeout_while(is_set, patience, |is_set| !*is_set);
        *waited.expect("nothing panics while it holds this").0
    }
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// The broker said so.
    Committed,
    /// Its commit was never asked for.
    Aborted,
    /// Its commit was asked for and nobody answered.
    Unknown,
}

/// A transaction as it was sent.
pub struct Transaction {
    records: Vec<Record>,
    end: End,
}

/// Sends `rate` orders a second until told to stop, and then waits until the broker has them all.
pub fn stream(producer: &Producer, topic: &str, mut orders: Orders, rate: u64, stop: &Stop) -> Vec<Record> {
    let mut sent: Vec<Record> = Vec::new();
    let started = Instant::now();
    while !stop.within(BEAT) {
        let due = (started.elapsed().as_secs_f64() * rate as f64) as usize;
        let next: Vec<Record> = orders.by_ref().take(due.saturating_sub(sent.len())).map(Record::from).collect();
        producer.send(topic, next.iter().cloned());
        sent.extend(next);
    }
    producer.done();
    sent
}

/// A transaction every few seconds until told to stop, four in ten of them aborted. None is left open.
pub fn transactions(
    broker: &Broker,
    topic: &str,
    mut orders: Orders,
    random: &mut ChaCha8Rng,
    stop: &Stop,
) -> Vec<Transaction> {
    let mut sent: Vec<Transaction> = Vec::new();
    let mut producer = broker.transactions("traffic");
    while !stop.within(Duration::from_millis(random.random_range(500..6_000))) {
        let key = format!("{MARK}{}", sent.len()).into_bytes();
        let marked = |event| Record { key: Some(key.clone()), ..Record::from(event) };
        let records: Vec<Record> = orders.by_ref().take(random.random_range(1..400)).map(marked).collect();
        let is_to_commit = random.random_bool(0.6);
        let begun = producer.try_send(topic, records.iter().cloned());
        let (end, is_well) = match (begun, is_to_commit) {
            (Err(_), _) => (End::Aborted, false),
            (Ok(()), false) => (End::Aborted, producer.try_abort().is_ok()),
            (Ok(()), true) => match producer.try_commit() {
                Ok(()) => (End::Committed, true),
                Err(_) => (End::Unknown, false),
            },
        };
        sent.push(Transaction { records, end });
        if !is_well {
            drop(producer);
            producer = broker.transactions("traffic");
        }
    }
    sent
}

/// Requires `found` to be what was sent; returns how many transactions ended how, and how many of the unknown are there.
#[track_caller]
pub fn assert_as_sent(
    plain: &[Record],
    transactions: &[Transaction],
    found: &[Stored],
    may_repeat: bool,
) -> (BTreeMap<End, u64>, u64) {
    let mut in_topic: BTreeMap<(Option<usize>, i32), Vec<&Record>> = BTreeMap::new();
    for stored in found {
        in_topic.entry((number(&stored.record), stored.partition)).or_default().push(&stored.record);
    }
    let mut take = |number: Option<usize>, sent: &[Record]| {
        let mut by_partition: BTreeMap<i32, Vec<&Record>> = BTreeMap::new();
        for record in sent {
            by_partition.entry(record.partition).or_default().push(record);
        }
        let mut counts = (0, 0);
        for (partition, sent) in by_partition {
            let found = in_topic.remove(&(number, partition)).unwrap_or_default();
            // A broker that was killed may forget how far an idempotent producer had come, and take its records again. What
            // the topic holds is the truth; that it holds all that was sent, and nothing else, is what is asked of it.
            if number.is_none() && may_repeat {
                let known: HashSet<&Record> = sent.iter().copied().collect();
                let there: HashSet<&Record> = found.iter().copied().collect();
                assert!(known == there, "partition {partition}: the topic does not hold what was sent");
                continue;
            }
            let first = sent.iter().zip(&found).position(|(sent, found)| sent != found);
            assert!(
                found.is_empty() || (first.is_none() && sent.len() == found.len()),
                "partition {partition}, transaction {number:?}: {} records sent, {} in the topic, first difference {first:?}",
                sent.len(),
                found.len()
            );
            counts = (counts.0 + sent.len(), counts.1 + found.len());
        }
        counts
    };
    let (sent, kept) = take(None, plain);
    assert_eq!(sent, kept, "records that the broker confirmed are not in the topic");
    let (mut ends, mut unknown_kept) = (BTreeMap::new(), 0);
    for (number, transaction) in transactions.iter().enumerate() {
        let (sent, kept) = take(Some(number), &transaction.records);
        let is_right = match transaction.end {
            End::Committed => sent == kept,
            End::Aborted => kept == 0,
            End::Unknown => sent == kept || kept == 0,
        };
        assert!(is_right, "transaction {number} ended {:?}: {kept} of {sent} records in the topic", transaction.end);
        *ends.entry(transaction.end).or_default() += 1;
        unknown_kept += u64::from(transaction.end == End::Unknown && kept > 0);
    }
    assert!(in_topic.is_empty(), "records in the topic that nobody sent: {:?}", in_topic.keys());
    (ends, unknown_kept)
}

/// Which transaction a record belongs to.
fn number(record: &Record) -> Option<usize> {
    let key = std::str::from_utf8(record.key.as_deref()?).ok()?;
    key.strip_prefix(MARK)?.parse().ok()
}

#[test]
fn a_record_that_is_missing_doubled_or_moved_is_seen() {
    let record = |n: usize| Record::of(format!("{n}"));
    let marked = |n: usize| Record { key: Some(format!("{MARK}0").into_bytes()), ..record(n) };
    let topic = |records: &[Record]| -> Vec<Stored> { super::oracle::stored(records.to_vec()) };
    let plain = [record(1), record(2)];
    let transaction = |end| [Transaction { records: vec![marked(3), marked(4)], end }];
    let all = topic(&[record(1), marked(3), record(2), marked(4)]);
    assert_as_sent(&plain, &transaction(End::Committed), &all, false);
    assert_eq!(assert_as_sent(&plain, &transaction(End::Unknown), &all, false).1, 1);
    assert_eq!(assert_as_sent(&plain, &transaction(End::Unknown), &topic(&plain), false).1, 0);
    let refused = |end: End, found: Vec<Stored>| {
        let check = || assert_as_sent(&plain, &transaction(end), &found, false);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err());
    };
    refused(End::Aborted, all);
    refused(End::Committed, topic(&plain));
    refused(End::Unknown, topic(&[record(1), record(2), marked(3)]));
    refused(End::Aborted, topic(&[record(1)]));
    refused(End::Aborted, topic(&[record(2), record(1)]));
    refused(End::Aborted, topic(&[record(1), record(2), record(2)]));
    refused(End::Aborted, topic(&[record(1), record(2), record(5)]));
}
