//! The floor of a benchmark: consumes a topic from its beginning to its end with the same client library as tidegate, and
//! does nothing with it.
//!
//! ```text
//! consume_floor BROKERS TOPIC
//! ```

use std::process::ExitCode;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [brokers, topic] = &arguments[..] else {
        eprintln!("usage: consume_floor BROKERS TOPIC");
        return ExitCode::from(2);
    };
    match run(brokers, topic) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("consume_floor: {cause}");
            ExitCode::FAILURE
        }
    }
}

fn run(brokers: &str, topic: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "tidegate-floor").set("enable.auto.commit", "false");
    config.set("enable.partition.eof", "true").set("queued.min.messages", "100000").set("check.crcs", "true");
    config.set("fetch.queue.backoff.ms", "10");
    let consumer: BaseConsumer = config.create()?;
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
    let partitions: Vec<i32> = metadata.topics().iter().flat_map(|t| t.partitions()).map(|p| p.id()).collect();
    let mut assignment = TopicPartitionList::new();
    for partition in &partitions {
        assignment.add_partition_offset(topic, *partition, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    let started = Instant::now();
    let (mut rows, mut bytes, mut ended) = (0_u64, 0, 0);
    while ended < partitions.len() {
        match consumer.poll(PATIENCE) {
            Some(Ok(message)) => {
                rows += 1;
                bytes += message.key().map_or(0, <[u8]>::len) + message.payload().map_or(0, <[u8]>::len);
            }
            Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
            Some(Err(cause)) => return Err(cause.into()),
            None => return Err("the broker went silent".into()),
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{rows} records, {} MB from {topic} in {seconds:.2} s", bytes / 1_000_000);
    Ok(())
}
