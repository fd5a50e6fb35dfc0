//! Looks at a topic from beside the reader: when a record was written, how long the topic keeps it, and what the consumer
//! group is told. Nothing here decides what is read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta};
use futures::executor::block_on;
use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier};
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset as Raw, TopicPartitionList};

use super::client::{Client, Ears, connect, settings};
use crate::config::spec::KafkaSpec;
use crate::error::{Error, Result};
use crate::model::lag::{Retention, Times};
use crate::model::offset::Offsets;

/// Room for what is fetched of one partition: one record is wanted.
const QUEUE_KB: usize = 64;

/// Sleep when nothing has come yet.
const NAP: Duration = Duration::from_millis(2);

/// When the first record at or after each offset was written, as far as brokers say so within `patience`.
pub fn times(spec: &KafkaSpec, at: &Offsets, patience: Duration) -> Result<Times> {
    let failed = |cause: KafkaError| Error::failed("the Kafka consumer could not be assigned").caused_by(cause);
    let client = Arc::new(connect(spec, true, QUEUE_KB)?);
    // An end-of-partition event does not name its topic: each partition has its own queue.
    let mut open = BTreeMap::new();
    for partition in at.0.keys() {
        if let Some(queue) = client.split_partition_queue(&partition.topic, partition.partition) {
            open.insert(partition.clone(), queue);
        }
    }
    client.assign(&list(at)?).map_err(failed)?;
    let (mut times, deadline) = (Times::new(), Instant::now() + patience);
    while !open.is_empty() && Instant::now() < deadline {
        open.retain(|partition, queue| match queue.poll(Duration::ZERO) {
            None => true,
            Some(Ok(message)) => {
                // A record without a time tells nothing.
                if let Some(written) = message.timestamp().to_millis().and_then(DateTime::from_timestamp_millis) {
                    times.insert(partition.clone(), Some(written));
                }
                false
            }
            Some(Err(KafkaError::PartitionEOF(_))) => {
                times.insert(partition.clone(), None);
                false
            }
            // Brokers that are busy are waited for; an offset that is gone is told by others.
            Some(Err(error)) => {
                tracing::debug!(target: "librdkafka", %error, %partition, "when was the record written?");
                !matches!(error.rdkafka_error_code(), Some(Code::OffsetOutOfRange | Code::AutoOffsetReset))
            }
        });
        if !open.is_empty() {
            client.poll(NAP);
        }
    }
    Ok(times)
}

/// How long topics keep records. Not every client may ask: then nothing is known.
pub fn retention(spec: &KafkaSpec, topics: &BTreeSet<String>, patience: Duration) -> BTreeMap<String, Retention> {
    let config = settings(spec, false, QUEUE_KB);
    let asked = config.create_with_context::<_, AdminClient<Ears>>(Ears::default()).and_then(|client| {
        let topics: Vec<ResourceSpecifier<'_>> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let options = AdminOptions::new().request_timeout(Some(patience.min(Duration::from_secs(5))));
        block_on(client.describe_configs(&topics, &options))
    });
    let described = asked.unwrap_or_else(|error| {
        tracing::debug!(target: "librdkafka", %error, "how long are records kept?");
        Vec::new()
    });
    described.into_iter().filter_map(|resource| of_topic(&resource.ok()?)).collect()
}

fn of_topic(resource: &ConfigResource) -> Option<(String, Retention)> {
    let OwnedResourceSpecifier::Topic(topic) = &resource.specifier else { return None };
    let text = |name: &str| resource.get(name).and_then(|entry| entry.value.clone());
    let number = |name: &str| text(name).and_then(|text| text.parse::<i64>().ok()).filter(|number| *number >= 0);
    let deletes = text("cleanup.policy").is_none_or(|policy| policy.contains("delete"));
    let age = number("retention.ms").map(TimeDelta::milliseconds);
    Some((topic.clone(), Retention { deletes, age, bytes: number("retention.bytes").map(i64::unsigned_abs) }))
}

/// Copies offsets to the consumer group with a client made for it, and waits for the answer.
pub fn commit(spec: &KafkaSpec, offsets: &Offsets) -> Result<()> {
    commit_with(&connect(spec, true, QUEUE_KB)?, offsets, CommitMode::Sync)
}

/// Copies offsets to the consumer group.
pub fn commit_with(client: &Client, offsets: &Offsets, mode: CommitMode) -> Result<()> {
    let refused = |cause: KafkaError| Error::failed("the consumer group does not take offsets").caused_by(cause);
    client.commit(&list(offsets)?, mode).map_err(refused)
}

fn list(offsets: &Offsets) -> Result<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(offsets.0.len());
    for (partition, &offset) in &offsets.0 {
        let added = list.add_partition_offset(&partition.topic, partition.partition, Raw::Offset(offset));
        added.map_err(|cause| Error::failed(format!("{offset} is no offset of {partition}")).caused_by(cause))?;
    }
    Ok(list)
}
