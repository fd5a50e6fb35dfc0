//! What [`tidegate::source`] promises, asked of every adapter: files, generator, and Kafka (librdkafka's mock cluster).

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::record_batch::RecordBatch;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tidegate::config::spec::{FilesSpec, GenerateSpec, KafkaSpec, OnDataLoss, StartPosition, TopicSelection};
use tidegate::error::ErrorKind;
use tidegate::model::offset::{Incarnations, OffsetRanges, Offsets, Partition, Range};
use tidegate::source::files::FilesSource;
use tidegate::source::generate::GenerateSource;
use tidegate::source::kafka::KafkaSource;
use tidegate::source::{Limits, Source, envelope};

const WIDE: Limits = Limits { max_rows: 1_000_000, max_bytes: 1 << 30 };

/// Opens the same data again, as another process would.
type Reopen<'a> = &'a dyn Fn() -> Box<dyn Source>;

fn rows(batches: &[RecordBatch]) -> Vec<(String, i32, i64, Option<Vec<u8>>)> {
    let mut rows = Vec::new();
    for batch in batches {
        assert_eq!(batch.schema(), envelope());
        let topics = batch.column(0).as_string::<i32>();
        let partitions = batch.column(1).as_primitive::<Int32Type>();
        let offsets = batch.column(2).as_primitive::<Int64Type>();
        let values = batch.column(5).as_binary::<i32>();
        for i in 0..batch.num_rows() {
            let value = values.is_valid(i).then(|| values.value(i).to_vec());
            rows.push((topics.value(i).to_string(), partitions.value(i), offsets.value(i), value));
        }
    }
    rows
}

async fn everything(source: &mut dyn Source) -> (OffsetRanges, Vec<RecordBatch>) {
    let from = source.earliest().await.expect("earliest");
    let end = source.end().await.expect("end");
    let ranges = from.ranges_to(&end);
    let batches = source.read(&ranges, &Incarnations::new()).await.expect("reads").batches;
    (ranges, batches)
}

/// The whole contract; the data must have at least 100 records in at least 2 partitions.
async fn keeps_the_contract(reopen: Reopen<'_>) {
    the_same_ranges_give_the_same_records(reopen).await;
    steps_of_any_size_read_everything_once(reopen).await;
    a_position_after_the_end_or_in_no_partition_is_a_loss(reopen).await;
    bound_without_data_is_empty(reopen).await;
}

async fn the_same_ranges_give_the_same_records(reopen: Reopen<'_>) {
    let (ranges, first) = everything(reopen().as_mut()).await;
    let mut again = reopen();
    assert_eq!(rows(&first), rows(&again.read(&ranges, &Incarnations::new()).await.expect("another process").batches));
    assert_eq!(
        rows(&first),
        rows(&again.read(&ranges, &Incarnations::new()).await.expect("the same process, twice").batches)
    );
    let order: Vec<_> = rows(&first).into_iter().map(|(t, p, o, _)| (t, p, o)).collect();
    assert!(order.windows(2).all(|w| w[0] < w[1]), "topic, partition, offset ascend");
    assert!(order.len() >= 100, "{} rows", order.len());
    for (topic, partition, offset) in order {
        let range = ranges.0[&Partition::new(topic, partition)];
        assert!((range.from..range.until).contains(&offset));
    }
    // A part of a range is that part of the records, whatever was read before it.
    let part = OffsetRanges(ranges.0.iter().map(|(p, r)| (p.clone(), Range { from: 3, until: r.until - 5 })).collect());
    let inside = |row: &(String, i32, i64, Option<Vec<u8>>)| {
        let range = part.0[&Partition::new(row.0.clone(), row.1)];
        (range.from..range.until).contains(&row.2)
    };
    let expected: Vec<_> = rows(&first).into_iter().filter(inside).collect();
    assert_eq!(rows(&again.read(&part, &Incarnations::new()).await.expect("a part").batches), expected);
}

async fn steps_of_any_size_read_everything_once(reopen: Reopen<'_>) {
    let (ranges, whole) = everything(reopen().as_mut()).await;
    let mut whole = rows(&whole);
    whole.sort();
    let limits = [
        WIDE,
        Limits { max_rows: 7, max_bytes: 1 << 30 },
        Limits { max_rows: 1_000_000, max_bytes: 700 },
        Limits { max_rows: 40, max_bytes: 1 },
    ];
    for limits in limits {
        let mut source = reopen();
        let mut at = source.start().await.expect("start");
        let end = source.end().await.expect("end");
        let (mut seen, mut steps) = (Vec::new(), 0);
        while at != end {
            let step = source.bound(&at, &Incarnations::new(), &end, limits).await.expect("bound").ranges;
            assert!(!step.is_empty(), "a step moves: {at:?}");
            assert!(step.len() as u64 <= limits.max_rows + ranges.0.len() as u64);
            if steps == 2 {
                // The process dies after `bound`: another one reads the same ranges, this one goes on.
                let other = rows(&reopen().read(&step, &Incarnations::new()).await.expect("replay").batches);
                let own = rows(&source.read(&step, &Incarnations::new()).await.expect("reads").batches);
                assert_eq!(own, other);
                seen.extend(own);
            } else {
                seen.extend(rows(&source.read(&step, &Incarnations::new()).await.expect("reads").batches));
            }
            at = at.advance(&step).expect("contiguous");
            source.acknowledge(&at).await;
            steps += 1;
        }
        seen.sort();
        assert!(seen == whole, "{limits:?}: {} of {} rows", seen.len(), whole.len());
    }
}

async fn a_position_after_the_end_or_in_no_partition_is_a_loss(reopen: Reopen<'_>) {
    let mut source = reopen();
    let end = source.end().await.expect("end");
    let beyond = Offsets(end.0.iter().map(|(partition, end)| (partition.clone(), end + 1)).collect());
    let error = source.bound(&beyond, &Incarnations::new(), &end, WIDE).await.expect_err("beyond the end");
    assert_eq!(error.kind(), ErrorKind::OffsetsLost, "{error}");
    let mut strange = source.earliest().await.expect("earliest");
    let topic = strange.0.keys().next().expect("a partition").topic.clone();
    strange.0.insert(Partition::new(topic, 99), 5);
    let error = source.bound(&strange, &Incarnations::new(), &end, WIDE).await.expect_err("no such partition");
    assert_eq!(error.kind(), ErrorKind::OffsetsLost, "{error}");
    assert!(!error.help_lines().is_empty());
    let past: OffsetRanges =
        OffsetRanges(end.0.iter().map(|(p, &end)| (p.clone(), Range { from: end - 1, until: end + 1 })).collect());
    let error = reopen().read(&past, &Incarnations::new()).await.expect_err("a range that cannot be read in full");
    assert_eq!(error.kind(), ErrorKind::OffsetsLost, "{error}");
}

async fn bound_without_data_is_empty(reopen: Reopen<'_>) {
    let mut source = reopen();
    let end = source.end().await.expect("end");
    let ranges = source.bound(&end, &Incarnations::new(), &end, WIDE).await.expect("bound").ranges;
    assert!(ranges.is_empty());
    assert!(source.read(&ranges, &Incarnations::new()).await.expect("nothing").batches.is_empty());
}

fn append(folder: &Path, name: &str, text: &str) {
    let mut file = std::fs::File::options().create(true).append(true).open(folder.join(name)).expect("opens");
    file.write_all(text.as_bytes()).expect("writes");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_keep_the_contract() {
    let folder = tempfile::tempdir().expect("folder");
    for (name, lines) in [("a.ndjson", 90), ("b.ndjson", 17), ("c.ndjson", 30)] {
        let text: String =
            (0..lines).map(|i| if i % 10 == 4 { "\n".into() } else { format!("{{\"{name}\":{i}}}\n") }).collect();
        append(folder.path(), name, &text);
    }
    let spec = FilesSpec { path: folder.path().to_path_buf(), pattern: "*.ndjson".into() };
    keeps_the_contract(&|| Box::new(FilesSource::new(spec.clone()))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_generator_keeps_the_contract() {
    let spec = GenerateSpec {
        dataset: "orders".into(),
        rows: Some(203),
        partitions: 3,
        rate: None,
        seed: 7,
        dirty: 0.05,
        late: 0.05,
        duplicates: 0.05,
        out_of_order: 0.05,
    };
    keeps_the_contract(&|| Box::new(GenerateSource::new(spec.clone()).expect("source"))).await;
}

type Cluster = MockCluster<'static, DefaultProducerContext>;

fn cluster(topics: &[(&str, i32)]) -> Cluster {
    let cluster = MockCluster::new(1).expect("mock cluster");
    for (topic, partitions) in topics {
        cluster.create_topic(topic, *partitions, 1).expect("topic");
    }
    cluster
}

fn producer(cluster: &Cluster) -> BaseProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.bootstrap_servers()).set("linger.ms", "1");
    config.create().expect("producer")
}

fn produce(cluster: &Cluster, topic: &str, partition: i32, values: impl Iterator<Item = String>) {
    let producer = producer(cluster);
    for value in values {
        let mut record = BaseRecord::to(topic).partition(partition).key("k").payload(&value);
        while let Err((error, back)) = producer.send(record) {
            assert!(error.to_string().contains("ueue"), "{error}");
            producer.poll(Duration::from_millis(10));
            record = back;
        }
    }
    producer.flush(Duration::from_secs(10)).expect("flushed");
}

fn kafka_spec(cluster: &Cluster, topics: TopicSelection) -> KafkaSpec {
    KafkaSpec {
        brokers: cluster.bootstrap_servers(),
        topics,
        start: StartPosition::Earliest,
        on_data_loss: OnDataLoss::Fail,
        group: "tidegate-test".into(),
        settings: Default::default(),
    }
}

fn names(topics: &[&str]) -> TopicSelection {
    TopicSelection::Names(topics.iter().map(|t| t.to_string()).collect())
}

const PATIENCE: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread")]
async fn kafka_keeps_the_contract() {
    let cluster = cluster(&[("orders", 2), ("payments", 3)]);
    for (topic, partition, records) in [("orders", 0, 60), ("orders", 1, 20), ("payments", 0, 31), ("payments", 2, 25)]
    {
        produce(&cluster, topic, partition, (0..records).map(|i| format!("{topic}-{partition}-{i}")));
    }
    // Partition payments/1 is empty on purpose, but the contract's arithmetic wants records: leave it to one record.
    produce(&cluster, "payments", 1, (0..12).map(|i| format!("payments-1-{i}")));
    let spec = kafka_spec(&cluster, TopicSelection::Pattern("^(orders|pay)".into()));
    keeps_the_contract(&|| Box::new(KafkaSource::new(spec.clone(), PATIENCE))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_keys_headers_tombstones_and_times_arrive() {
    let cluster = cluster(&[("t", 1)]);
    let producer = producer(&cluster);
    let headers = OwnedHeaders::new().insert(Header { key: "trace", value: Some("1") });
    producer
        .send(BaseRecord::<str, str>::to("t").key("a").timestamp(1_772_323_200_123).headers(headers))
        .expect("sent");
    producer.send(BaseRecord::<str, str>::to("t").payload("v")).expect("sent");
    producer.flush(Duration::from_secs(5)).expect("flushed");
    let mut source = KafkaSource::new(kafka_spec(&cluster, names(&["t"])), PATIENCE);
    let (_, batches) = everything(&mut source).await;
    let batch = &batches[0];
    assert!(batch.column(5).is_null(0) && batch.column(4).is_null(1));
    assert!(batch.column(6).is_valid(0) && batch.column(6).is_null(1));
    let times = batch.column(3).as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
    assert_eq!(times.value(0), 1_772_323_200_123_000);
    assert_eq!(source.description(), "kafka[t]");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_arrive_between_batches_are_read_without_a_new_consumer() {
    let cluster = cluster(&[("t", 2)]);
    let mut source = KafkaSource::new(kafka_spec(&cluster, names(&["t"])), PATIENCE);
    let mut at = source.start().await.expect("start");
    for round in 0..5 {
        produce(&cluster, "t", 0, (0..10).map(|i| format!("{round}-{i}")));
        produce(&cluster, "t", 1, (0..3).map(|i| format!("{round}-{i}")));
        let end = source.end().await.expect("end");
        let ranges = source.bound(&at, &Incarnations::new(), &end, WIDE).await.expect("bound").ranges;
        assert_eq!(rows(&source.read(&ranges, &Incarnations::new()).await.expect("reads").batches).len(), 13);
        at = at.advance(&ranges).expect("contiguous");
        assert_eq!(at, end);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_names_the_topics_there_are() {
    let cluster = cluster(&[("orders.v1", 1)]);
    let mut source = KafkaSource::new(kafka_spec(&cluster, names(&["order.v1"])), Duration::from_secs(2));
    let error = source.start().await.expect_err("missing");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.help_lines().iter().any(|line| line.contains("did you mean `orders.v1`")), "{}", error.report());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there_is_unavailable_and_named() {
    let mut spec = kafka_spec(&cluster(&[("t", 1)]), names(&["t"]));
    spec.brokers = "127.0.0.1:1".into();
    let started = std::time::Instant::now();
    let error = KafkaSource::new(spec, Duration::from_secs(2)).end().await.expect_err("nobody there");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().starts_with("no broker answered at 127.0.0.1:1 after 5 tries in "), "{error}");
    assert!(error.report().contains("refused"), "{}", error.report());
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_setting_that_is_refused_is_not_printed() {
    let mut spec = kafka_spec(&cluster(&[("t", 1)]), names(&["t"]));
    spec.settings.insert("session.timeout.ms".into(), tidegate::config::spec::Secret::new("hunter2"));
    let error = KafkaSource::new(spec, PATIENCE).end().await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.report().contains("session.timeout.ms") && !error.report().contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_expired_stop_the_run_or_are_skipped_if_the_user_says_so() {
    let cluster = cluster(&[("t", 1)]);
    // The mock keeps 5 MiB a partition and forgets the oldest.
    let text = "x".repeat(50_000);
    let mut spec = kafka_spec(&cluster, names(&["t"]));
    produce(&cluster, "t", 0, (0..300).map(|_| text.clone()));
    let mut source = KafkaSource::new(spec.clone(), PATIENCE);
    let (earliest, end) = (source.earliest().await.expect("earliest"), source.end().await.expect("end"));
    let first = earliest.0[&Partition::new("t", 0)];
    assert!(first > 0);
    let from = Offsets([(Partition::new("t", 0), 0)].into());
    let error = source.bound(&from, &Incarnations::new(), &end, WIDE).await.expect_err("expired");
    assert_eq!(error.kind(), ErrorKind::OffsetsLost);
    assert!(error.message().starts_with(&format!("{first} records of t/0 have expired")), "{error}");
    assert!(error.report().contains("on_data_loss: skip"));
    let plan = OffsetRanges([(Partition::new("t", 0), Range { from: 0, until: first + 2 })].into());
    assert_eq!(source.read(&plan, &Incarnations::new()).await.expect_err("expired").kind(), ErrorKind::OffsetsLost);
    spec.on_data_loss = OnDataLoss::Skip;
    let mut source = KafkaSource::new(spec, PATIENCE);
    let ranges = source.bound(&from, &Incarnations::new(), &end, WIDE).await.expect("skips").ranges;
    assert_eq!(ranges, earliest.ranges_to(&end));
    assert_eq!(rows(&source.read(&plan, &Incarnations::new()).await.expect("skips").batches).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_comes_back_is_used_again() {
    let cluster = cluster(&[("t", 1)]);
    produce(&cluster, "t", 0, (0..10).map(|i| i.to_string()));
    // Longer than librdkafka waits before it connects again, which is up to two seconds.
    let mut source = KafkaSource::new(kafka_spec(&cluster, names(&["t"])), PATIENCE);
    let end = source.end().await.expect("end");
    cluster.broker_down(1).expect("down");
    let error = source.end().await.expect_err("down");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    cluster.broker_up(1).expect("up");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(source.end().await.expect("up again"), end);
    assert_eq!(everything(&mut source).await.1[0].num_rows(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_offsets_are_in_the_consumer_group_even_if_the_run_ends_at_once() {
    let cluster = cluster(&[("t", 1)]);
    produce(&cluster, "t", 0, (0..10).map(|i| i.to_string()));
    let mut source = KafkaSource::new(kafka_spec(&cluster, names(&["t"])), PATIENCE);
    everything(&mut source).await;
    let started = std::time::Instant::now();
    source.acknowledge(&Offsets([(Partition::new("t", 0), 10)].into())).await;
    drop(source);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", "tidegate-test");
    let consumer: BaseConsumer = config.create().expect("consumer");
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition("t", 0);
    let committed = consumer.committed_offsets(wanted, Duration::from_secs(5)).expect("committed");
    assert_eq!(committed.elements()[0].offset(), Offset::Offset(10));
}

/// `cargo test --release --test it contract::source::speed -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn speed() {
    let cluster = cluster(&[("t", 4)]);
    // The mock keeps 5 MiB a partition.
    for partition in 0..4 {
        produce(&cluster, "t", partition, (0..20_000).map(|i| format!("{{\"id\":{i},\"text\":\"{:0>150}\"}}", i)));
    }
    for _ in 0..3 {
        let started = std::time::Instant::now();
        let mut source = KafkaSource::new(kafka_spec(&cluster, names(&["t"])), PATIENCE);
        let from = source.earliest().await.expect("earliest");
        let end = source.end().await.expect("end");
        let idle = source.bound(&end, &Incarnations::new(), &end, WIDE).await.expect("idle");
        eprintln!("idle questions {:?} {}", started.elapsed(), idle.ranges.is_empty());
        let reading = std::time::Instant::now();
        let ranges = source.bound(&from, &Incarnations::new(), &end, WIDE).await.expect("bound").ranges;
        let read = rows(&source.read(&ranges, &Incarnations::new()).await.expect("read").batches).len();
        eprintln!("{read} rows in {:?}", reading.elapsed());
        let closing = std::time::Instant::now();
        drop(source);
        eprintln!("closed in {:?}", closing.elapsed());
    }
    let started = std::time::Instant::now();
    let mut source = KafkaSource::new(kafka_spec(&cluster, names(&["t"])), PATIENCE);
    let end = source.end().await.expect("end");
    source.bound(&end, &Incarnations::new(), &end, WIDE).await.expect("idle");
    drop(source);
    eprintln!("idle run {:?}", started.elapsed());
    let spec = GenerateSpec {
        dataset: "orders".into(),
        rows: Some(1_000_000),
        partitions: 4,
        rate: None,
        seed: 7,
        dirty: 0.01,
        late: 0.05,
        duplicates: 0.02,
        out_of_order: 0.02,
    };
    let started = std::time::Instant::now();
    let (_, batches) = everything(&mut GenerateSource::new(spec).expect("source")).await;
    eprintln!("generated {} rows in {:?}", batches.iter().map(RecordBatch::num_rows).sum::<usize>(), started.elapsed());
}
