//! Fills a topic with the orders of the end-to-end tests, for benchmarks and for trying tidegate.
//!
//! ```text
//! produce_orders BROKERS TOPIC ROWS [SEED]
//! ```

use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};

#[path = "../tests/support/orders.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod orders;

const PARTITIONS: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        [brokers, topic, rows] => run(brokers, topic, rows, "1"),
        [brokers, topic, rows, seed] => run(brokers, topic, rows, seed),
        _ => {
            eprintln!("usage: produce_orders BROKERS TOPIC ROWS [SEED]");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("produce_orders: {cause}");
            ExitCode::FAILURE
        }
    }
}

fn run(brokers: &str, topic: &str, rows: &str, seed: &str) -> Result<(), Box<dyn std::error::Error>> {
    let rows: u64 = rows.replace('_', "").parse()?;
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    let admin: AdminClient<DefaultClientContext> = config.create()?;
    let new = NewTopic::new(topic, i32::try_from(PARTITIONS)?, TopicReplication::Fixed(1));
    for created in block_on(admin.create_topics([&new], &AdminOptions::new().operation_timeout(Some(PATIENCE))))? {
        match created {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => return Err(format!("cannot create {name}: {code}").into()),
        }
    }
    config.set("enable.idempotence", "true").set("linger.ms", "20").set("batch.size", "1000000");
    config.set("queue.buffering.max.messages", "200000");
    let producer: ThreadedProducer<DefaultProducerContext> = config.create()?;
    let started = Instant::now();
    let mut bytes = 0;
    for event in orders::Orders::new(seed.parse()?, rows, PARTITIONS).take(usize::try_from(rows)?) {
        bytes += event.key.len() + event.value.as_ref().map_or(0, Vec::len);
        let mut next = BaseRecord::<[u8], [u8]>::to(topic).partition(event.partition).timestamp(event.timestamp);
        next.key = Some(&event.key);
        next.payload = event.value.as_deref();
        while let Err((error, refused)) = producer.send(next) {
            if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                return Err(error.into());
            }
            std::thread::sleep(Duration::from_millis(5));
            next = refused;
        }
    }
    producer.flush(10 * PATIENCE)?;
    println!("{rows} records, {} MB to {topic} in {:.1} s", bytes / 1_000_000, started.elapsed().as_secs_f64());
    Ok(())
}
