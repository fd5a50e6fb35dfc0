//! Reads ranges of assigned partitions, exactly.
//!
//! Each partition has its own queue in librdkafka, so what is fetched ahead of one partition waits there while another
//! one is read, and an end-of-partition event (which does not name its topic) can only belong to the queue's partition.
//!
//! When is a range done? At a record at or after its end, at the last record before its end, or when the partition was
//! seen to end at or after it: behind the last visible record there may be control records, aborted transactions or
//! compacted offsets, for which nothing is ever delivered. An end-of-partition event may be an old one that waited in
//! the queue, so it is confirmed: ask where the partition ends, seek to the position (which throws away what waits) and
//! believe the next event.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::record_batch::RecordBatch;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message};
use rdkafka::topic_partition_list::{Offset as Raw, TopicPartitionList};

use super::client::{Admin, Client, Ears, connect, unavailable};
use super::peek;
use crate::config::spec::KafkaSpec;
use crate::error::{Code, Error, ErrorKind, Result};
use crate::model::loss::Loss;
use crate::model::offset::{Offset, OffsetRanges, Offsets, Partition, Range};
use crate::source::loss;
use crate::source::rows::{Headers, Rows};

/// Payload in librdkafka's queues over all partitions: enough to fetch on while a batch is worked on. Small records cost
/// about as much again in bookkeeping.
const QUEUE_KB: usize = 24_576;

/// Records taken from one partition before the next has its turn.
const TURN: usize = 2_000;

/// Sleep when no queue has anything.
const NAP: Duration = Duration::from_millis(2);

/// Silence after an end-of-partition event before it is looked into: usually it is old, and records follow it.
const SILENCE: Duration = Duration::from_millis(20);

/// How long to wait before asking again whether a partition has ended.
const RECHECK: Duration = Duration::from_millis(500);

/// A consumer with assigned partitions.
pub struct Reader {
    slots: BTreeMap<Partition, Slot>,
    client: Arc<Client>,
    spec: KafkaSpec,
    patience: Duration,
}

struct Slot {
    queue: PartitionQueue<Ears>,
    place: Place,
}

/// Where reading a partition stands.
struct Place {
    /// The next offset that has not been delivered.
    position: Offset,
    /// A record that was received and did not fit into the batch: the first of the next one.
    held: Option<Held>,
    /// The end was announced, and no record came after that. It is announced once only, so this outlives a read.
    is_at_end: bool,
    /// Nothing visible lies between the position and here: the partition was seen to end at or after it.
    exhausted: Offset,
}

struct Held {
    offset: Offset,
    timestamp: Option<i64>,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Option<Vec<(String, Option<Vec<u8>>)>>,
}

/// What is known about the end of a partition while a range is read.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// Nothing.
    Unknown,
    /// An event arrived, perhaps an old one; unless a record follows, look into it at this time.
    Suspected(Instant),
    /// The partition ends here, at or after the range's end: the next event is to be believed.
    Confirming(Offset),
}

/// One range on its way.
struct Job {
    range: Range,
    rows: Rows,
    end: End,
}

/// How much a read may take, and has taken.
struct Budget {
    bytes_left: u64,
    rows: u64,
    is_spent: bool,
}

impl Budget {
    /// Takes a record of `bytes`, unless it does not fit; the first one always does.
    fn take(&mut self, bytes: u64) -> bool {
        if self.rows > 0 && bytes > self.bytes_left {
            self.is_spent = true;
            return false;
        }
        self.rows += 1;
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
        true
    }
}

impl Reader {
    /// A consumer that stands at the start of each of `ranges`. Nothing is ever re-assigned: records of an old
    /// assignment could still wait in a queue and be taken for the new one's.
    pub fn new(spec: &KafkaSpec, ranges: &OffsetRanges, patience: Duration) -> Result<Self> {
        let failed = |cause: KafkaError| Error::failed("the Kafka consumer could not be assigned").caused_by(cause);
        let queue_kb = (QUEUE_KB / ranges.0.len().max(1)).max(256);
        let client = Arc::new(connect(spec, true, queue_kb)?);
        let mut slots = BTreeMap::new();
        let mut list = TopicPartitionList::with_capacity(ranges.0.len());
        for (partition, range) in &ranges.0 {
            let (topic, number) = (&partition.topic, partition.partition);
            // Split before the assignment: afterwards the first records could already be in the common queue.
            let queue = client
                .split_partition_queue(topic, number)
                .ok_or_else(|| Error::failed(format!("librdkafka has no queue for {partition}")))?;
            list.add_partition_offset(topic, number, Raw::Offset(range.from)).map_err(failed)?;
            slots.insert(
                partition.clone(),
                Slot {
                    queue,
                    place: Place { position: range.from, held: None, is_at_end: false, exhausted: range.from },
                },
            );
        }
        client.assign(&list).map_err(failed)?;
        Ok(Reader { slots, client, spec: spec.clone(), patience })
    }

    /// Whether each range that has anything starts where its partition stands: then what was fetched ahead is of use.
    pub fn continues(&self, ranges: &OffsetRanges) -> bool {
        let mut wanted = ranges.0.iter().filter(|(_, range)| !range.is_empty());
        wanted.all(|(partition, range)| self.slots.get(partition).is_some_and(|s| s.place.position == range.from))
    }

    /// Reads `ranges` until they are complete or `max_bytes` are taken. Returns what was read, exactly.
    pub fn read(
        &mut self,
        admin: &Admin,
        ranges: &OffsetRanges,
        max_bytes: u64,
    ) -> Result<(OffsetRanges, Vec<RecordBatch>)> {
        let mut jobs: BTreeMap<Partition, Job> = BTreeMap::new();
        for (partition, &range) in ranges.0.iter().filter(|(_, range)| !range.is_empty()) {
            let is_at_end = self.slots.get(partition).is_some_and(|slot| slot.place.is_at_end);
            let end = if is_at_end { End::Suspected(Instant::now()) } else { End::Unknown };
            jobs.insert(partition.clone(), Job { range, rows: Rows::new(partition.clone()), end });
        }
        let mut budget = Budget { bytes_left: max_bytes.max(1), rows: 0, is_spent: false };
        self.take_held(&mut jobs, &mut budget)?;
        let mut heard = Instant::now();
        while !budget.is_spent && jobs.iter().any(|(partition, job)| self.position(partition) < job.range.until) {
            if self.turn(admin, &mut jobs, &mut budget)? {
                heard = Instant::now();
            } else if heard.elapsed() > self.patience {
                return Err(self.stalled(&jobs));
            }
        }
        let mut done = ranges.clone();
        let mut batches = Vec::new();
        for (partition, job) in jobs {
            let until = self.position(&partition).clamp(job.range.from, job.range.until);
            done.0.insert(partition, Range { from: job.range.from, until });
            batches.extend(job.rows.finish()?);
        }
        Ok((done, batches))
    }

    /// Copies offsets to the consumer group; the answer is not awaited, closing the consumer waits
    /// for what is under way.
    pub fn commit(&self, offsets: &Offsets) -> Result<()> {
        peek::commit_with(&self.client, offsets, CommitMode::Async)
    }

    fn position(&self, partition: &Partition) -> Offset {
        self.slots.get(partition).map_or(Offset::MAX, |slot| slot.place.position)
    }

    fn take_held(&mut self, jobs: &mut BTreeMap<Partition, Job>, budget: &mut Budget) -> Result<()> {
        for (partition, job) in jobs {
            let Some(Slot { place, .. }) = self.slots.get_mut(partition) else { continue };
            if place.held.is_none() && place.exhausted >= job.range.until {
                place.position = job.range.until;
            }
            let Some(held) = place.held.take() else { continue };
            let bytes = held.key.as_ref().map_or(0, Vec::len) + held.value.as_ref().map_or(0, Vec::len);
            if held.offset >= job.range.until {
                place.position = job.range.until;
                place.held = Some(held);
            } else if !budget.is_spent && budget.take(bytes as u64) {
                let headers: Option<Headers<'_>> = held
                    .headers
                    .as_ref()
                    .map(|headers| headers.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect());
                job.rows.push(held.offset, held.timestamp, held.key.as_deref(), held.value.as_deref(), headers)?;
                place.position = held.offset + 1;
            } else {
                place.held = Some(held);
            }
        }
        Ok(())
    }

    /// Gives each unfinished partition its turn; whether anything arrived.
    fn turn(&mut self, admin: &Admin, jobs: &mut BTreeMap<Partition, Job>, budget: &mut Budget) -> Result<bool> {
        let mut progressed = false;
        for (partition, job) in jobs.iter_mut() {
            let Some(Slot { queue, place }) = self.slots.get_mut(partition) else { continue };
            if place.position >= job.range.until {
                continue;
            }
            let mut is_quiet = false;
            for _ in 0..TURN {
                match queue.poll(Duration::ZERO) {
                    None => {
                        is_quiet = true;
                        break;
                    }
                    Some(Ok(message)) => {
                        progressed = true;
                        place.is_at_end = false;
                        if let End::Suspected(_) = job.end {
                            job.end = End::Unknown;
                        }
                        deliver(place, job, budget, &message)?;
                    }
                    Some(Err(KafkaError::PartitionEOF(_))) => {
                        progressed = true;
                        place.is_at_end = true;
                        match job.end {
                            // Behind the last visible record there is nothing up to the end of the range; what the
                            // queue brings next lies after it.
                            End::Confirming(end) => {
                                place.exhausted = end;
                                place.position = job.range.until;
                            }
                            _ => job.end = End::Suspected(Instant::now() + SILENCE),
                        }
                    }
                    Some(Err(error)) => return_if_final(&self.spec, &error, admin, partition, place.position)?,
                }
                if budget.is_spent || place.position >= job.range.until {
                    break;
                }
            }
            if budget.is_spent {
                break;
            }
            if let End::Suspected(at) = job.end
                && is_quiet
                && at <= Instant::now()
            {
                confirm(&self.client, admin, partition, place, job)?;
            }
        }
        // Errors of brokers and answers to commits come through the common queue.
        let nap = if progressed { Duration::ZERO } else { NAP };
        match self.client.poll(nap) {
            None | Some(Err(KafkaError::PartitionEOF(_))) => {}
            Some(Err(error)) => {
                tracing::debug!(target: "librdkafka", %error, "consumer");
                if let KafkaError::MessageConsumptionFatal(_) = error {
                    return Err(Error::failed("the Kafka consumer gave up").caused_by(error));
                }
            }
            Some(Ok(message)) => {
                // Cannot happen while every partition has its queue; delivering it late would change the order.
                let at = format!("{}/{} at {}", message.topic(), message.partition(), message.offset());
                return Err(Error::failed(format!("a record of {at} arrived outside its partition's queue")));
            }
        }
        Ok(progressed)
    }

    fn stalled(&self, jobs: &BTreeMap<Partition, Job>) -> Error {
        let waiting = jobs.iter().filter(|(partition, job)| self.position(partition) < job.range.until);
        let waiting: Vec<String> =
            waiting.map(|(p, job)| format!("{p} at {} of {}", self.position(p), job.range.until)).collect();
        let shown = waiting.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        let message = format!("{} sent nothing for {:.0?}", self.spec.brokers, self.patience);
        unavailable(&self.spec, &message, self.client.context().last())
            .with("waiting for", format!("{shown} ({} partitions)", waiting.len()))
    }
}

fn deliver(place: &mut Place, job: &mut Job, budget: &mut Budget, message: &BorrowedMessage<'_>) -> Result<()> {
    let offset = message.offset();
    if offset < place.position {
        return Ok(());
    }
    let (key, value) = (message.key(), message.payload());
    let bytes = key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
    let is_beyond = offset >= job.range.until;
    if is_beyond || !budget.take(bytes as u64) {
        // Offsets between here and the record are holes, so the range may end at the record.
        place.position = if is_beyond { job.range.until } else { offset };
        place.held = Some(Held {
            offset,
            timestamp: micros(message),
            key: key.map(<[u8]>::to_vec),
            value: value.map(<[u8]>::to_vec),
            headers: headers(message).map(|headers| {
                headers.into_iter().map(|(key, value)| (key.to_string(), value.map(<[u8]>::to_vec))).collect()
            }),
        });
        return Ok(());
    }
    let timestamp = micros(message);
    job.rows.push(offset, timestamp, key, value, headers(message))?;
    place.position = offset + 1;
    Ok(())
}

/// A producer may write any number as its time; what does not fit microseconds is no time.
fn micros(message: &BorrowedMessage<'_>) -> Option<i64> {
    message.timestamp().to_millis().and_then(|ms| ms.checked_mul(1000))
}

/// The client library panics on a header name that is not UTF-8; one such record must not stop a pipeline.
fn headers<'a>(message: &'a BorrowedMessage<'_>) -> Option<Headers<'a>> {
    let headers = message.headers()?;
    let read = || (0..headers.count()).map(|i| headers.get(i)).map(|h| (h.key, h.value)).collect();
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(headers) => Some(headers),
        Err(_) => {
            let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
            tracing::warn!("a header name of {topic}/{partition} at {offset} is not UTF-8: its headers are left out");
            None
        }
    }
}

/// Makes sure that the next end-of-partition event tells the truth: see the module's text.
fn confirm(client: &Client, admin: &Admin, partition: &Partition, place: &Place, job: &mut Job) -> Result<()> {
    let end = admin.end(std::slice::from_ref(partition))?;
    if let Some(&end) = end.0.get(partition).filter(|&&end| end >= job.range.until) {
        client
            .seek(&partition.topic, partition.partition, Raw::Offset(place.position), Duration::ZERO)
            .map_err(|cause| Error::failed(format!("{partition} could not be read again")).caused_by(cause))?;
        job.end = End::Confirming(end);
    } else {
        job.end = End::Suspected(Instant::now() + RECHECK);
    }
    Ok(())
}

/// Errors of one partition that waiting does not cure.
fn return_if_final(
    spec: &KafkaSpec,
    error: &KafkaError,
    admin: &Admin,
    partition: &Partition,
    at: Offset,
) -> Result<()> {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
            let one = std::slice::from_ref(partition);
            let earliest = admin.earliest(one)?.0.get(partition).copied().unwrap_or(0);
            let partition = partition.clone();
            let lost = if at < earliest {
                Loss::Expired { partition, at, earliest }
            } else {
                let end = admin.end(one)?.0.get(&partition).copied().unwrap_or(0);
                Loss::Shrunk { partition, at, end }
            };
            Err(loss::error(&lost).caused_by(error.clone()))
        }
        Some(
            RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition,
        ) => {
            // Brokers that restart, or have not heard of a change, say so too. Reading goes on when it comes back.
            if admin.exists(partition)? {
                return Ok(());
            }
            Err(loss::error(&Loss::PartitionGone { partition: partition.clone(), at }).caused_by(error.clone()))
        }
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
            Err(Error::config(format!("this client may not read {partition}"))
                .coded(Code::BrokerRefuses)
                .caused_by(error.clone())
                .help(format!("grant read access to topic and group `{}`", spec.group)))
        }
        _ if matches!(error, KafkaError::MessageConsumptionFatal(_)) => {
            Err(Error::new(ErrorKind::Failed, "the Kafka consumer gave up").caused_by(error.clone()))
        }
        _ => {
            tracing::debug!(target: "librdkafka", %error, %partition, "waiting for the partition");
            Ok(())
        }
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
