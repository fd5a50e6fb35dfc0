//! A real Apache Kafka, started once per test process on a port and in a folder of its own, and what tests do to it.
//!
//! Where none can be started, tests that need it say so and pass, unless `CI=true` or `TIDEGATE_REQUIRE_KAFKA=1`. Every
//! test that ran or was skipped is written down in the target folder, for `tests/kafka/summary.sh`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use futures::executor::block_on;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

use super::oracle::Stored;

/// One record as produced.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Record {
    /// Partition.
    pub partition: i32,
    /// Key bytes.
    pub key: Option<Vec<u8>>,
    /// Value bytes; `None` = tombstone.
    pub value: Option<Vec<u8>>,
    /// Milliseconds since the epoch.
    pub timestamp: i64,
}

impl Record {
    /// A record without a key, in partition 0.
    pub fn of(value: impl Into<Vec<u8>>) -> Self {
        Record { partition: 0, key: None, value: Some(value.into()), timestamp: 1_772_323_200_000 }
    }
}

/// The broker of this test process.
pub struct Broker {
    /// `localhost:PORT`.
    pub address: String,
}

/// The broker for the test called `test`, or `None` where there cannot be one: then the test returns.
pub fn broker(test: &str) -> Option<&'static Broker> {
    static BROKER: OnceLock<Result<Broker, String>> = OnceLock::new();
    let broker = BROKER.get_or_init(start);
    match broker {
        Ok(broker) => {
            note(&format!("ran {test}"));
            Some(broker)
        }
        Err(why) => {
            let flag = |name: &str, value: &str| std::env::var(name).is_ok_and(|v| v == value);
            let required = flag("CI", "true") || flag("TIDEGATE_REQUIRE_KAFKA", "1");
            assert!(!required, "kafka: cannot be started, and here it must be: {why}");
            note(&format!("skipped {test} {}", why.lines().last().unwrap_or_default()));
            static SAID: OnceLock<()> = OnceLock::new();
            // Not `eprintln!`: the test runner would swallow it when the test passes.
            SAID.get_or_init(|| {
                writeln!(std::io::stderr(), "kafka: SKIPPED all tests that need it: {why}").unwrap_or(())
            });
            None
        }
    }
}

/// One line in the ledger that `tests/kafka/summary.sh` counts.
fn note(line: &str) {
    static LEDGER: OnceLock<Mutex<PathBuf>> = OnceLock::new();
    let ledger = LEDGER.get_or_init(|| Mutex::new(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("kafka-tests.txt")));
    let path = ledger.lock().expect("no test panics while it writes a line");
    let mut file = OpenOptions::new().create(true).append(true).open(&*path).expect("the target folder is ours");
    writeln!(file, "{line}").expect("the target folder is ours");
}

fn start() -> Result<Broker, String> {
    let process = std::process::id();
    let port = free_port(0);
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("kafka-{process}"));
    script("up", port, &dir, None)?;
    Ok(Broker { address: format!("localhost:{port}") })
}

/// Runs `kafka.sh`.
fn script(command: &str, port: u16, dir: &Path, advertise: Option<u16>) -> Result<(), String> {
    fs::create_dir_all(dir).map_err(|cause| format!("{}: {cause}", dir.display()))?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kafka/kafka.sh");
    let process = std::process::id().to_string();
    let mut line = Command::new(script);
    line.args([command, "--port", &port.to_string(), "--die-with", &process, "--dir"]).arg(dir);
    if let Some(port) = advertise {
        line.args(["--advertise", &port.to_string()]);
    }
    let output = line.output().map_err(|cause| format!("{script}: {cause}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_string()),
    }
}

/// Below the range that the system gives to outgoing connections, so that it stays free until the broker has it. Each
/// `place` has twenty of its own, so that two tests never take the same one.
pub fn free_port(place: u16) -> u16 {
    let first = 20_000 + u16::try_from(std::process::id() % 500).expect("small") * 20 + place * 20;
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (first..first + 200).find(free).expect("200 ports in a row are not all taken")
}

/// A broker that one test has to itself, to stop and to start again. Its data goes with it.
pub struct OwnBroker {
    /// What tests do to any broker.
    pub broker: Broker,
    port: u16,
    dir: PathBuf,
    advertise: Option<u16>,
}

impl OwnBroker {
    /// Starts one; `None` where there cannot be one. `advertise` is the port of a proxy that clients are to use.
    pub fn start(test: &str, port: u16, advertise: Option<u16>) -> Option<Self> {
        // The shared one says whether there can be any.
        broker(test)?;
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("kafka-{}-{test}", std::process::id()));
        script("up", port, &dir, advertise).unwrap_or_else(|why| panic!("no broker for {test}: {why}"));
        let address = format!("localhost:{}", advertise.unwrap_or(port));
        Some(OwnBroker { broker: Broker { address }, port, dir, advertise })
    }

    /// Stops it as SIGTERM does; its data stays.
    pub fn down(&self) {
        script("down", self.port, &self.dir, None).expect("a broker can be stopped");
    }

    /// Kills it with SIGKILL; what it acknowledged is in the page cache, which outlives a process.
    pub fn kill(&self) {
        let pid = fs::read_to_string(self.dir.join("pid")).expect("the broker runs");
        let status = Command::new("kill").args(["-KILL", pid.trim()]).status().expect("kill(1)");
        assert!(status.success(), "no broker with pid {pid}");
        let deadline = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
            assert!(Instant::now() < deadline, "the broker survived SIGKILL");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts it again.
    pub fn up(&self) {
        script("up", self.port, &self.dir, self.advertise).expect("a broker can be started again");
    }

    /// Deletes the records of one partition from its disk, as a disk does; the broker must be down.
    pub fn lose(&self, topic: &str, partition: i32) {
        fs::remove_dir_all(self.dir.join(format!("data/{topic}-{partition}"))).expect("the partition's folder");
    }
}

impl Drop for OwnBroker {
    fn drop(&mut self) {
        script("wipe", self.port, &self.dir, None).ok();
    }
}

/// Counts what the broker refused, and how far it has taken what it was sent.
struct Deliveries {
    failed: AtomicU64,
    ends: Mutex<BTreeMap<i32, i64>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();
    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        if let Ok(message) = result {
            let mut ends = self.ends.lock().expect("nothing panics while it holds this");
            let end = ends.entry(message.partition()).or_default();
            *end = (*end).max(message.offset() + 1);
        }
        if let Err((error, _)) = result {
            // Records of an aborted transaction that were still in the queue are purged: that is what was asked for.
            let purged = [RDKafkaErrorCode::PurgeQueue, RDKafkaErrorCode::PurgeInflight].map(Some);
            if !purged.contains(&error.rdkafka_error_code()) {
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(120);

impl Broker {
    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.address);
        config
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.config().create().expect("an admin client")
    }

    /// Creates a topic with these settings.
    pub fn create_topic(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let topic = settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
        let outcome =
            block_on(self.admin().create_topics([&topic], &AdminOptions::new().operation_timeout(Some(PATIENCE))));
        for created in outcome.expect("the broker answers") {
            created.expect("the topic is new");
        }
        self.await_leaders(name, partitions);
    }

    /// Gives a topic more partitions.
    pub fn add_partitions(&self, name: &str, partitions: i32) {
        let more = NewPartitions::new(name, partitions as usize);
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        for added in block_on(self.admin().create_partitions([&more], &options)).expect("the broker answers") {
            added.expect("more than before");
        }
        self.await_leaders(name, partitions);
    }

    /// Leaders are elected after a topic is made.
    pub fn await_leaders(&self, name: &str, partitions: i32) {
        let deadline = Instant::now() + PATIENCE;
        let consumer: BaseConsumer = self.config().create().expect("a consumer");
        let led = || {
            let metadata = consumer.fetch_metadata(Some(name), Duration::from_secs(10)).ok()?;
            let topic = metadata.topics().first()?;
            Some(topic.partitions().len() == partitions as usize && topic.partitions().iter().all(|p| p.leader() >= 0))
        };
        while led() != Some(true) {
            assert!(Instant::now() < deadline, "no leaders for topic {name}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Deletes a topic.
    pub fn delete_topic(&self, name: &str) {
        let outcome =
            block_on(self.admin().delete_topics(&[name], &AdminOptions::new().operation_timeout(Some(PATIENCE))));
        for deleted in outcome.expect("the broker answers") {
            deleted.expect("the topic exists");
        }
        // Whoever makes it anew must not be shown the leaders of the old one.
        let deadline = Instant::now() + PATIENCE;
        let consumer: BaseConsumer = self.config().create().expect("a consumer");
        let is_gone = || {
            let metadata = consumer.fetch_metadata(Some(name), Duration::from_secs(10)).ok();
            metadata.is_some_and(|all| all.topics().iter().all(|topic| topic.error().is_some()))
        };
        while !is_gone() {
            assert!(Instant::now() < deadline, "topic {name} is still there");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Makes everything before `offset` unreadable, as retention would.
    pub fn expire(&self, topic: &str, partition: i32, offset: i64) {
        let mut before = TopicPartitionList::new();
        before.add_partition_offset(topic, partition, Offset::Offset(offset)).expect("a valid offset");
        let outcome =
            block_on(self.admin().delete_records(&before, &AdminOptions::new().operation_timeout(Some(PATIENCE))));
        outcome.expect("the broker answers");
    }

    /// Asks something small and waits for the answer, over a connection of its own.
    pub fn question(&self) -> impl Fn() + Send + use<> {
        let consumer: BaseConsumer = self.config().create().expect("a consumer");
        move || drop(consumer.fetch_metadata(None, PATIENCE))
    }

    /// First and next offset of a partition.
    pub fn watermarks(&self, topic: &str, partition: i32) -> (i64, i64) {
        let consumer: BaseConsumer = self.config().create().expect("a consumer");
        consumer.fetch_watermarks(topic, partition, PATIENCE).expect("the broker answers")
    }

    /// Produces records in order and waits until the broker has them all.
    pub fn produce(&self, topic: &str, records: impl IntoIterator<Item = Record>) {
        self.producer(None).send(topic, records).done();
    }

    /// A producer of transactions.
    pub fn transactions(&self, id: &str) -> Producer {
        let producer = self.producer(Some(id));
        producer.inner.init_transactions(PATIENCE).expect("the transaction coordinator answers");
        producer
    }

    /// Waits until the last transaction of this id is over for readers too: its end is answered before the partitions have
    /// the markers, and the coordinator lets nobody else have the id before they do.
    pub fn settle(&self, id: &str) {
        drop(self.transactions(id));
    }

    /// Everything that a reader of committed records finds in a topic of so many partitions, each in its order.
    pub fn read_back(&self, topic: &str, partitions: i32) -> Vec<Stored> {
        let mut config = self.config();
        config.set("group.id", "read-back").set("isolation.level", "read_committed");
        let consumer: BaseConsumer = config.set("enable.partition.eof", "true").create().expect("a consumer");
        let mut from = TopicPartitionList::new();
        for partition in 0..partitions {
            from.add_partition_offset(topic, partition, Offset::Beginning).expect("a valid offset");
        }
        consumer.assign(&from).expect("a valid assignment");
        let (mut stored, mut open): (Vec<Stored>, BTreeSet<i32>) = (Vec::new(), (0..partitions).collect());
        while !open.is_empty() {
            match consumer.poll(PATIENCE).expect("the broker answers in time") {
                Ok(message) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    let record = Record {
                        partition,
                        key: message.key().map(<[u8]>::to_vec),
                        value: message.payload().map(<[u8]>::to_vec),
                        timestamp: message.timestamp().to_millis().expect("every record has one"),
                    };
                    stored.push(Stored { partition, offset, record });
                }
                Err(KafkaError::PartitionEOF(partition)) => drop(open.remove(&partition)),
                Err(error) => panic!("cannot read {topic} back: {error}"),
            }
        }
        stored
    }

    /// A producer that outlives restarts of the broker: nothing is lost, doubled or reordered within a partition.
    pub fn stream(&self) -> Producer {
        self.producer(None)
    }

    /// A producer, of transactions if it has an id.
    pub fn producer(&self, transactional_id: Option<&str>) -> Producer {
        let mut config = self.config();
        config.set("enable.idempotence", "true").set("linger.ms", "20").set("batch.size", "1000000");
        config.set("queue.buffering.max.messages", "200000").set("message.max.bytes", "33554432");
        if let Some(id) = transactional_id {
            config.set("transactional.id", id);
        }
        let context = Deliveries { failed: AtomicU64::new(0), ends: Mutex::default() };
        Producer { inner: config.create_with_context(context).expect("a producer") }
    }
}

/// Sends records in order.
pub struct Producer {
    inner: ThreadedProducer<Deliveries>,
}

impl Producer {
    /// Queues records.
    pub fn send(&self, topic: &str, records: impl IntoIterator<Item = Record>) -> &Self {
        let deadline = Instant::now() + 10 * PATIENCE;
        for record in records {
            let mut next = BaseRecord::<[u8], [u8]>::to(topic).partition(record.partition).timestamp(record.timestamp);
            next.key = record.key.as_deref();
            next.payload = record.value.as_deref();
            while let Err((error, refused)) = self.inner.send(next) {
                let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
                assert!(error == full && Instant::now() < deadline, "cannot produce to {topic}: {error}");
                std::thread::sleep(Duration::from_millis(5));
                next = refused;
            }
        }
        self
    }

    /// The offset after the last record that the broker is known to have taken, by partition.
    pub fn ends(&self) -> BTreeMap<i32, i64> {
        self.inner.context().ends.lock().expect("nothing panics while it holds this").clone()
    }

    /// Sends a whole transaction up to its end, which is left to the caller. After a failure this producer is of no more
    /// use: a new one of the same id settles what it left.
    pub fn try_send(&self, topic: &str, records: impl IntoIterator<Item = Record>) -> Result<(), KafkaError> {
        self.inner.begin_transaction()?;
        for record in records {
            let mut next = BaseRecord::<[u8], [u8]>::to(topic).partition(record.partition).timestamp(record.timestamp);
            next.key = record.key.as_deref();
            next.payload = record.value.as_deref();
            self.inner.send(next).map_err(|(error, _)| error)?;
        }
        self.inner.flush(PATIENCE)
    }

    /// Commits; an error leaves open whether it was done.
    pub fn try_commit(&self) -> Result<(), KafkaError> {
        self.inner.commit_transaction(PATIENCE)
    }

    /// Aborts; an error means that somebody else will.
    pub fn try_abort(&self) -> Result<(), KafkaError> {
        self.inner.abort_transaction(PATIENCE)
    }

    /// Waits until the broker has everything.
    pub fn done(&self) {
        self.inner.flush(10 * PATIENCE).expect("the broker takes what was sent");
        let failed = self.inner.context().failed.load(Ordering::Relaxed);
        assert_eq!(failed, 0, "records that the broker refused");
    }

    /// Starts a transaction.
    pub fn begin(&self) {
        self.inner.begin_transaction().expect("no transaction is open");
    }

    /// Commits the transaction that is open.
    pub fn finish(&self) {
        self.inner.commit_transaction(PATIENCE).expect("the broker commits");
    }

    /// Aborts the transaction that is open.
    pub fn give_up(&self) {
        self.inner.abort_transaction(PATIENCE).expect("the broker aborts");
    }

    /// Starts a transaction, sends, and commits.
    pub fn commit(&self, topic: &str, records: impl IntoIterator<Item = Record>) {
        self.begin();
        self.send(topic, records).done();
        self.finish();
    }

    /// Starts a transaction, sends until the broker has it all, and aborts.
    pub fn abort(&self, topic: &str, records: impl IntoIterator<Item = Record>) {
        self.begin();
        self.send(topic, records).done();
        self.inner.abort_transaction(PATIENCE).expect("the broker aborts");
    }
}
