//! Ranges that end in a hole, and partitions that fall silent.
//!
//! The mock cluster has no transactions. A hole at the end of a partition is made with two clusters: the one that is
//! asked where partitions end has more records than the one that is read.

use rdkafka::config::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};

use super::*;
use crate::config::spec::{OnDataLoss, StartPosition, TopicSelection};

type Cluster = MockCluster<'static, DefaultProducerContext>;

const TOPICS: [&str; 2] = ["a", "b"];

fn cluster(records: usize) -> (Cluster, KafkaSpec) {
    let cluster = MockCluster::new(1).expect("mock cluster");
    for topic in TOPICS {
        cluster.create_topic(topic, 1, 1).expect("topic");
    }
    let spec = KafkaSpec {
        brokers: cluster.bootstrap_servers(),
        topics: TopicSelection::Names(TOPICS.map(String::from).into()),
        start: StartPosition::Earliest,
        on_data_loss: OnDataLoss::Fail,
        group: "g".into(),
        settings: Default::default(),
    };
    produce(&cluster, records);
    (cluster, spec)
}

fn produce(cluster: &Cluster, records: usize) {
    let mut config = ClientConfig::new();
    let producer: BaseProducer =
        config.set("bootstrap.servers", cluster.bootstrap_servers()).create().expect("producer");
    for topic in TOPICS {
        for _ in 0..records {
            producer.send(BaseRecord::<(), str>::to(topic).payload("v")).expect("sent");
        }
    }
    producer.flush(Duration::from_secs(5)).expect("flushed");
}

fn ranges(from: Offset, until: Offset) -> OffsetRanges {
    OffsetRanges(TOPICS.map(|topic| (Partition::new(topic, 0), Range { from, until })).into())
}

fn count(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

#[test]
fn a_hole_at_the_end_of_a_range_does_not_hang_and_what_follows_is_read() {
    let patience = Duration::from_secs(5);
    let (read, spec) = cluster(10);
    let (asked, asked_spec) = cluster(13);
    let admin = Admin::new(&asked_spec, patience).expect("admin");
    let mut reader = Reader::new(&spec, &ranges(0, 13), patience).expect("reader");
    let started = Instant::now();
    let (done, batches) = reader.read(&admin, &ranges(0, 13), u64::MAX).expect("complete");
    assert_eq!((done, count(&batches)), (ranges(0, 13), 20));
    // Without the end that is announced it would be the whole patience.
    assert!(started.elapsed() < Duration::from_millis(4_500), "{:?}", started.elapsed());
    produce(&asked, 7);
    produce(&read, 10);
    assert!(reader.continues(&ranges(13, 20)));
    let (done, batches) = reader.read(&admin, &ranges(13, 20), u64::MAX).expect("goes on");
    assert_eq!((done, count(&batches)), (ranges(13, 20), 14), "offsets 10 to 12 were holes when they were read");
}

#[test]
fn an_end_that_was_announced_in_one_read_ends_a_range_of_the_next() {
    let patience = Duration::from_secs(5);
    let (_read, spec) = cluster(10);
    let (_asked, asked_spec) = cluster(13);
    let admin = Admin::new(&asked_spec, patience).expect("admin");
    let mut reader = Reader::new(&spec, &ranges(0, 10), patience).expect("reader");
    // One record at a time: somewhere on the way the end is announced, long before the range that needs it.
    let mut at = ranges(0, 10);
    for _ in 0..40 {
        let (done, _) = reader.read(&admin, &at, 1).expect("reads");
        at = OffsetRanges(
            done.0.into_iter().map(|(partition, range)| (partition, Range { from: range.until, until: 10 })).collect(),
        );
    }
    assert!(at.is_empty(), "{at:?}");
    for until in 11..=13 {
        let (done, batches) = reader.read(&admin, &ranges(until - 1, until), u64::MAX).expect("no hang");
        assert_eq!((done, count(&batches)), (ranges(until - 1, until), 0));
    }
}

#[test]
fn an_old_end_of_partition_event_ends_no_range() {
    let patience = Duration::from_secs(5);
    let (cluster, spec) = cluster(10);
    let admin = Admin::new(&spec, patience).expect("admin");
    let mut reader = Reader::new(&spec, &ranges(0, 10), patience).expect("reader");
    for round in 0..5 {
        let range = ranges(round * 10, round * 10 + 10);
        assert_eq!(count(&reader.read(&admin, &range, u64::MAX).expect("reads").1), 20);
        // Time for the event to be queued behind the last record.
        std::thread::sleep(Duration::from_millis(120));
        produce(&cluster, 10);
    }
}

#[test]
fn a_partition_that_falls_silent_is_unavailable_and_named() {
    let patience = Duration::from_secs(2);
    let (_cluster, spec) = cluster(10);
    let admin = Admin::new(&spec, patience).expect("admin");
    let mut reader = Reader::new(&spec, &ranges(0, 11), patience).expect("reader");
    let error = reader.read(&admin, &ranges(0, 11), u64::MAX).expect_err("never ends");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.report().contains("a/0 at 10 of 11"), "{}", error.report());
}

#[test]
fn records_that_expire_while_they_are_read_are_a_loss() {
    let patience = Duration::from_secs(5);
    let (cluster, spec) = cluster(1);
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).create().expect("producer");
    let text = "x".repeat(100_000);
    for _ in 0..100 {
        // The mock keeps 5 MiB a partition and forgets the oldest.
        producer.send(BaseRecord::<(), str>::to("a").payload(&text)).expect("sent");
    }
    producer.flush(Duration::from_secs(5)).expect("flushed");
    let admin = Admin::new(&spec, patience).expect("admin");
    let mut reader = Reader::new(&spec, &ranges(0, 5), patience).expect("reader");
    let error = reader.read(&admin, &ranges(0, 5), u64::MAX).expect_err("expired");
    assert_eq!(error.kind(), ErrorKind::OffsetsLost, "{}", error.report());
    assert!(error.message().contains("records of a/0 have expired"), "{error}");
}
