//! librdkafka's clients: their settings, what they say when something is wrong, and the questions that need no consumer
//! (which partitions, where they start and end).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset as Raw, TopicPartitionList};
use regex::Regex;

use super::topic_id;
use crate::config::spec::{KafkaSpec, TopicSelection};
use crate::error::{Code, Error, ErrorKind, Result};
use crate::model::offset::{Incarnations, Offset, Offsets, Partition};

/// Tries of one question; the waits between them double, so the first is 1/31 of the patience.
const TRIES: u32 = 5;

/// One record may be this large.
const MAX_RECORD: &str = "104857600";

/// Topics asked for one by one; beyond this, one question for all topics costs less.
const SINGLE_QUESTIONS: usize = 4;

/// Hears what librdkafka says about brokers, to repeat it when patience ends.
#[derive(Default)]
pub struct Ears {
    last: Mutex<Option<String>>,
    refused: Mutex<Option<String>>,
}

fn set(place: &Mutex<Option<String>>, text: String) {
    *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
}

impl Ears {
    /// The last thing that went wrong, with the broker's address in it.
    pub fn last(&self) -> Option<String> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn forgive(&self) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn refused(&self) -> Option<String> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Ears {
    fn log(&self, level: RDKafkaLogLevel, _facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", ?level, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
        if matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::Authentication)) {
            set(&self.refused, reason.to_string());
        }
        // "all brokers are down" follows the reason and says less.
        if !matches!(
            error.rdkafka_error_code(),
            Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::PartitionEOF)
        ) {
            set(&self.last, reason.to_string());
        }
    }
}

impl ConsumerContext for Ears {}

/// A librdkafka consumer that keeps what it hears.
pub type Client = BaseConsumer<Ears>;

/// A client of `spec`; `group` makes it one that can be assigned partitions, with room for `queue_kb` in each.
pub fn connect(spec: &KafkaSpec, group: bool, queue_kb: usize) -> Result<Client> {
    settings(spec, group, queue_kb).create_with_context(Ears::default()).map_err(unusable)
}

/// The settings of every client.
pub fn settings(spec: &KafkaSpec, group: bool, queue_kb: usize) -> ClientConfig {
    let mut config = ClientConfig::new();
    for (key, value) in &spec.settings {
        config.set(key, value.reveal());
    }
    // What the contract rests on comes last and wins over anything the user wrote.
    config
        .set("bootstrap.servers", &spec.brokers)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .set("allow.auto.create.topics", "false")
        .set("check.crcs", "true")
        // A follower may lag behind the end that the leader told us.
        .set("client.rack", "")
        .set_log_level(RDKafkaLogLevel::Warning);
    config.remove("group.id");
    if group {
        config.set("group.id", &spec.group).set("queued.max.messages.kbytes", queue_kb.to_string());
    }
    // What one request brings of a partition comes on top of its queue. A larger record is sent whole all the same.
    let fetch_bytes = (queue_kb.clamp(256, 4096) * 1024).to_string();
    let defaults = [
        ("client.id", "tidegate"),
        ("receive.message.max.bytes", "209715200"),
        ("fetch.max.bytes", MAX_RECORD),
        ("fetch.message.max.bytes", fetch_bytes.as_str()),
        ("fetch.wait.max.ms", "50"),
        ("fetch.queue.backoff.ms", "10"),
        ("queued.min.messages", "100000"),
        ("reconnect.backoff.max.ms", "2000"),
        ("topic.metadata.propagation.max.ms", "1000"),
    ];
    for (key, value) in defaults.into_iter().filter(|(key, _)| !spec.settings.contains_key(*key)) {
        config.set(key, value);
    }
    config
}

fn unusable(error: KafkaError) -> Error {
    match error {
        // The value may be a secret, and librdkafka's own text repeats it.
        KafkaError::ClientConfig(_, _, key, _) => {
            Error::config(format!("librdkafka does not know the setting `{key}`, or refuses its value"))
                .help("its settings are listed in librdkafka's CONFIGURATION.md")
        }
        other => Error::config("the Kafka client could not be made").caused_by(other),
    }
}

/// Clients for questions by brokers and settings, once they are shared; each lives as long as somebody has it.
static SHARED: OnceLock<Mutex<BTreeMap<String, Weak<Client>>>> = OnceLock::new();

/// From now on pipelines of one cluster, with the same settings, ask their questions through one client: each client has
/// threads and connections of its own. Where there is one pipeline there is nothing to share.
pub fn share_questions() {
    SHARED.get_or_init(Mutex::default);
}

fn questioner(spec: &KafkaSpec) -> Result<Arc<Client>> {
    let Some(shared) = SHARED.get() else { return Ok(Arc::new(connect(spec, false, 0)?)) };
    let mut key = spec.brokers.clone();
    for (name, value) in &spec.settings {
        key.push_str(&format!("\n{name}={}", value.reveal()));
    }
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(client) = shared.get(&key).and_then(Weak::upgrade) {
        return Ok(client);
    }
    shared.retain(|_, client| client.strong_count() > 0);
    let client = Arc::new(connect(spec, false, 0)?);
    shared.insert(key, Arc::downgrade(&client));
    Ok(client)
}

/// Whether a topic, by name, is one of those to read.
pub type Selection = Box<dyn Fn(&str) -> bool>;

/// Asks questions about topics and offsets until they are answered or patience ends.
pub struct Admin {
    client: Arc<Client>,
    spec: KafkaSpec,
    patience: Duration,
    /// A broker that has answered before, or [`NOBODY`].
    answering: AtomicI32,
}

/// No broker has this id.
const NOBODY: i32 = -1;

impl Admin {
    /// A client for questions only: it joins no group, so it opens and closes fast.
    pub fn new(spec: &KafkaSpec, patience: Duration) -> Result<Self> {
        let answering = AtomicI32::new(NOBODY);
        Ok(Admin { client: questioner(spec)?, spec: spec.clone(), patience, answering })
    }

    /// Runs `question` until it succeeds; what can only fail again fails at once.
    fn ask<T>(&self, what: &str, question: impl Fn(&Client, Duration) -> KafkaResult<T>) -> Result<T> {
        let started = Instant::now();
        let unit = self.patience / ((1 << TRIES) - 1);
        let mut tries = 0;
        loop {
            let slice = unit * (1 << tries);
            let due = Instant::now() + slice;
            let error = match question(&self.client, slice.max(Duration::from_millis(50))) {
                Ok(answer) => {
                    // Whatever was refused once (a broker that restarted, say) has been granted since.
                    self.client.context().forgive();
                    return Ok(answer);
                }
                Err(error) => error,
            };
            tries += 1;
            self.listen(Duration::ZERO);
            if let Some(error) = self.hopeless(&error) {
                return Err(error);
            }
            if tries == TRIES {
                return Err(unavailable(
                    &self.spec,
                    &format!(
                        "no broker answered at {} after {tries} tries in {:.0?}",
                        self.spec.brokers,
                        started.elapsed()
                    ),
                    self.client.context().last(),
                )
                .with("question", what)
                .caused_by(error));
            }
            tracing::debug!(%error, tries, "{what}: trying again");
            // A question that failed early still waits its turn, hearing what librdkafka reports meanwhile.
            self.listen(due.saturating_duration_since(Instant::now()));
        }
    }

    fn listen(&self, time: Duration) {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if self.client.poll(left.min(Duration::from_millis(50))).is_none() && left.is_zero() {
                return;
            }
        }
    }

    fn hopeless(&self, error: &KafkaError) -> Option<Error> {
        if let Some(reason) = self.client.context().refused() {
            return Some(refused(&self.spec, &reason));
        }
        match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::SaslAuthenticationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::TopicAuthorizationFailed,
            ) => Some(refused(&self.spec, &error.to_string())),
            _ => None,
        }
    }

    /// Whether the spec selects a topic.
    pub fn selects(&self) -> Result<Selection> {
        Ok(match &self.spec.topics {
            TopicSelection::Names(names) => {
                let names: BTreeSet<String> = names.iter().cloned().collect();
                Box::new(move |name| names.contains(name))
            }
            TopicSelection::Pattern(pattern) => {
                let regex = Regex::new(pattern)
                    .map_err(|e| Error::config(format!("`{pattern}` is not a regular expression")).caused_by(e))?;
                Box::new(move |name| !name.starts_with("__") && regex.is_match(name))
            }
        })
    }

    /// Every partition of those topics that the spec selects and that exist.
    pub fn partitions(&self) -> Result<Vec<Partition>> {
        match &self.spec.topics {
            TopicSelection::Pattern(_) => {
                let (all, selects) = (self.topics(None)?, self.selects()?);
                let mine = all.iter().filter(|(name, _)| selects(name));
                Ok(mine.flat_map(|(name, partitions)| each(name, partitions)).collect())
            }
            TopicSelection::Names(names) => {
                let mut known = BTreeMap::new();
                if names.len() > SINGLE_QUESTIONS {
                    known = self.topics(None)?;
                } else {
                    for name in names {
                        known.extend(self.topics(Some(name))?);
                    }
                }
                Ok(names.iter().filter_map(|name| Some(each(name, known.get(name)?))).flatten().collect())
            }
        }
    }

    /// Fails when a selected topic is neither among those `found` nor among those that were `read` before: one that was
    /// read and is gone is a loss, which is judged elsewhere.
    pub fn require(&self, found: &[Partition], read: &Offsets) -> Result<()> {
        let absent = match &self.spec.topics {
            TopicSelection::Names(names) => {
                let is_absent = |name: &&String| !found.iter().chain(read.0.keys()).any(|p| p.topic == **name);
                names.iter().find(is_absent).map(|name| (format!("topic `{name}` does not exist"), name))
            }
            TopicSelection::Pattern(pattern) => {
                let is_empty = found.is_empty() && read.0.is_empty();
                is_empty.then(|| (format!("no topic matches `{pattern}`"), pattern))
            }
        };
        let Some((message, wanted)) = absent else { return Ok(()) };
        Err(missing(&message, wanted, self.topics(None)?.keys()))
    }

    /// Which topics the names stand for now.
    pub fn incarnations(&self, topics: &[String]) -> Result<Incarnations> {
        let Some(first) = topics.first() else { return Ok(Incarnations::new()) };
        self.ask("which topics are there", |client, timeout| {
            // Any broker knows; left to itself the library would insist on the controller, which clients may not reach.
            let mut broker = self.answering.swap(NOBODY, Ordering::Relaxed);
            if broker == NOBODY {
                let metadata = client.fetch_metadata(Some(first), timeout)?;
                broker = metadata.brokers().first().map_or(NOBODY, |broker| broker.id());
            }
            let answer = topic_id::ask(client, topics, broker, timeout)?;
            self.answering.store(broker, Ordering::Relaxed);
            Ok(answer)
        })
    }

    fn topics(&self, only: Option<&str>) -> Result<BTreeMap<String, BTreeSet<i32>>> {
        self.ask("which partitions are there", |client, timeout| {
            let metadata = client.fetch_metadata(only, timeout)?;
            let mut topics = BTreeMap::new();
            for topic in metadata.topics() {
                match topic.error().map(RDKafkaErrorCode::from) {
                    None => {}
                    Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => continue,
                    Some(RDKafkaErrorCode::TopicAuthorizationFailed) if only.is_none() => continue,
                    Some(code) => return Err(KafkaError::MetadataFetch(code)),
                }
                topics.insert(topic.name().to_string(), topic.partitions().iter().map(|p| p.id()).collect());
            }
            Ok(topics)
        })
    }

    /// Whether there is such a partition.
    pub fn exists(&self, partition: &Partition) -> Result<bool> {
        let topics = self.topics(Some(&partition.topic))?;
        Ok(topics.get(&partition.topic).is_some_and(|partitions| partitions.contains(&partition.partition)))
    }

    /// The earliest readable offset of each partition.
    pub fn earliest(&self, partitions: &[Partition]) -> Result<Offsets> {
        self.offsets("where do the partitions start", partitions, Raw::Beginning)
    }

    /// The end of each partition for a reader with `read_committed`: the last stable offset.
    pub fn end(&self, partitions: &[Partition]) -> Result<Offsets> {
        self.offsets("where do the partitions end", partitions, Raw::End)
    }

    /// The first offset of each partition with a timestamp at or after `ms`; the end where there is none.
    pub fn at(&self, partitions: &[Partition], ms: i64) -> Result<Offsets> {
        // The end first: a record that is appended between the two questions lies after it, and is read.
        let end = self.end(partitions)?;
        let mut found = self.offsets("which offsets belong to the time", partitions, Raw::Offset(ms))?;
        for (partition, offset) in &mut found.0 {
            if *offset < 0 {
                *offset = end.0.get(partition).copied().unwrap_or(0);
            }
        }
        Ok(found)
    }

    /// One request per broker for all partitions: `offsetsForTimes` takes -1 and -2 for end and beginning, as the
    /// ListOffsets request underneath does, and honours the isolation level.
    fn offsets(&self, what: &str, partitions: &[Partition], time: Raw) -> Result<Offsets> {
        if partitions.is_empty() {
            return Ok(Offsets::default());
        }
        self.ask(what, |client, timeout| {
            let mut list = TopicPartitionList::with_capacity(partitions.len());
            for partition in partitions {
                list.add_partition_offset(&partition.topic, partition.partition, time)?;
            }
            let answer = client.offsets_for_times(list, timeout)?;
            let mut offsets = Offsets::default();
            for element in answer.elements() {
                element.error()?;
                let offset: Offset = match element.offset() {
                    Raw::Offset(offset) => offset,
                    _ => -1,
                };
                offsets.0.insert(Partition::new(element.topic(), element.partition()), offset);
            }
            Ok(offsets)
        })
    }
}

fn each<'a>(topic: &'a str, partitions: &'a BTreeSet<i32>) -> impl Iterator<Item = Partition> + 'a {
    partitions.iter().map(move |&partition| Partition::new(topic, partition))
}

/// The error when nobody answers; retrying may help.
pub fn unavailable(spec: &KafkaSpec, message: &str, heard: Option<String>) -> Error {
    let mut error = Error::new(ErrorKind::Unavailable, message);
    if let Some(heard) = heard {
        error = error.with("last heard", heard);
    }
    error.help("nothing was lost: the next start goes on where this one stopped").help(format!(
        "check that {} is reachable from here and that `security` is what the broker expects",
        spec.brokers
    ))
}

fn refused(spec: &KafkaSpec, reason: &str) -> Error {
    Error::config(format!("the broker at {} refused this client", spec.brokers))
        .coded(Code::BrokerRefuses)
        .with("reason", reason)
        .help("check user name, password and mechanism under `security`, and the topic's access rules")
}

/// The error when a topic is not there, with what is.
pub fn missing<'a>(message: &str, wanted: &str, all: impl Iterator<Item = &'a String>) -> Error {
    let names: Vec<&String> = all.filter(|name| !name.starts_with("__")).collect();
    let close = names.iter().map(|name| (strsim::jaro_winkler(wanted, name), *name));
    let close = close.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0));
    let mut error = Error::config(message).coded(Code::TopicMissing);
    if let Some((_, name)) = close {
        error = error.help(format!("did you mean `{name}`?"));
    }
    let shown: Vec<&str> = names.iter().take(20).map(|name| name.as_str()).collect();
    error.help(match (shown.len(), names.len()) {
        (0, _) => "the cluster has no topics yet: create it first (tidegate never creates topics)".to_string(),
        (some, all) if some < all => format!("topics there are ({some} of {all}): {}", shown.join(", ")),
        _ => format!("topics there are: {}", shown.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_topic_is_told_with_the_closest_name() {
        let all = ["orders.v1".to_string(), "payments".into(), "__consumer_offsets".into()];
        let error = missing("topic `order.v1` does not exist", "order.v1", all.iter());
        assert_eq!(error.help_lines(), ["did you mean `orders.v1`?", "topics there are: orders.v1, payments"]);
        assert_eq!(error.kind(), ErrorKind::Config);
    }
}
