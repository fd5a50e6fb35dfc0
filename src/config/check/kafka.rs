//! `source.kafka`: topics, start, security, and the librdkafka options that would break the contract.

use std::collections::BTreeMap;
use std::path::Path as FilePath;

use chrono::{DateTime, Utc};

use super::source::join;
use super::{Checker, paths};
use crate::config::raw::{RawDataLoss, RawKafka, RawSecurity};
use crate::config::spec::{KafkaSpec, OnDataLoss, Secret, StartPosition, TopicSelection};
use crate::error::Code;

const PROTOCOLS: [&str; 4] = ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"];
const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// When an option is refused.
enum Unless {
    /// Always.
    Never,
    /// Unless it has this value, which is the one tidegate works with anyway.
    Is(&'static str),
}

/// Options that are not the user's: the name, what is accepted all the same, and why.
const REFUSED: [(&str, Unless, &str); 28] = [
    ("bootstrap.servers", Unless::Never, "use `brokers`"),
    ("metadata.broker.list", Unless::Never, "use `brokers`"),
    ("group.id", Unless::Never, "use `group`"),
    ("group.instance.id", Unless::Never, "partitions are assigned by the plan, not by the group"),
    ("group.protocol", Unless::Never, "partitions are assigned by the plan, not by the group"),
    ("partition.assignment.strategy", Unless::Never, "partitions are assigned by the plan, not by the group"),
    ("security.protocol", Unless::Never, "use `security.protocol`"),
    ("sasl.mechanism", Unless::Never, "use `security.mechanism`"),
    ("sasl.mechanisms", Unless::Never, "use `security.mechanism`"),
    ("sasl.username", Unless::Never, "use `security.username`"),
    ("sasl.password", Unless::Never, "use `security.password`"),
    ("ssl.ca.location", Unless::Never, "use `security.ca`"),
    ("ssl.certificate.location", Unless::Never, "use `security.cert`"),
    ("ssl.key.location", Unless::Never, "use `security.key`"),
    ("ssl.key.password", Unless::Never, "use `security.key_password`"),
    ("enable.auto.commit", Unless::Is("false"), "offsets are committed after the tables, by the checkpoint"),
    ("auto.commit.enable", Unless::Is("false"), "offsets are committed after the tables, by the checkpoint"),
    ("auto.commit.interval.ms", Unless::Never, "offsets are committed after the tables, by the checkpoint"),
    ("enable.auto.offset.store", Unless::Is("false"), "offsets are committed after the tables, by the checkpoint"),
    (
        "auto.offset.reset",
        Unless::Never,
        "a lost offset must stop the run, not move it; use `start` and `on_data_loss`",
    ),
    ("enable.partition.eof", Unless::Is("true"), "the end of a partition is how a planned range is known to be done"),
    ("isolation.level", Unless::Is("read_committed"), "rows of aborted transactions would enter the tables"),
    ("check.crcs", Unless::Is("true"), "damaged records would enter the tables"),
    ("allow.auto.create.topics", Unless::Is("false"), "a mistyped topic would be created, and read as empty"),
    ("topic.blacklist", Unless::Never, "use `pattern`"),
    ("offset.store.method", Unless::Never, "offsets live in the checkpoint"),
    ("plugin.library.paths", Unless::Never, "it loads foreign code into the process"),
    ("enable.sparse.connections", Unless::Is("true"), "it is internal to librdkafka"),
];

impl Checker<'_> {
    pub(super) fn kafka(&mut self, at: &[&str], pipeline: &str, raw: &RawKafka, root: &FilePath) -> Option<KafkaSpec> {
        let brokers: Vec<String> = raw.brokers.to_vec().iter().map(|broker| broker.trim().to_owned()).collect();
        if brokers.is_empty() || brokers.iter().any(String::is_empty) {
            self.refuse(&join(at, &["brokers"]), "`brokers` is empty", "write it like localhost:9092", None);
        }
        let topics = self.topics(at, raw);
        let start = match raw.start.as_deref() {
            None | Some("earliest") => StartPosition::Earliest,
            Some("latest") => StartPosition::Latest,
            Some(time) => match DateTime::parse_from_rfc3339(time) {
                Ok(time) => StartPosition::At(time.with_timezone(&Utc)),
                Err(_) => {
                    let message = format!("`{time}` is not a start");
                    let label = "earliest, latest, or a time like 2026-03-01T00:00:00Z";
                    self.refuse(&join(at, &["start"]), message, label, None);
                    StartPosition::Earliest
                }
            },
        };
        let mut settings = BTreeMap::new();
        if let Some(security) = &raw.security {
            self.security(&join(at, &["security"]), security, root, &mut settings);
        }
        for (name, value) in raw.options.iter().flatten() {
            let path = join(at, &["options", name]);
            let refused = REFUSED.iter().find(|(option, ..)| option.eq_ignore_ascii_case(name));
            match refused {
                Some((_, Unless::Is(accepted), _)) if value.0.eq_ignore_ascii_case(accepted) => {}
                Some((_, _, why)) => {
                    let message = format!("the option `{name}` is not yours to set");
                    self.refuse_key_as(Code::KafkaOption, &path, message, why);
                }
                None if name.is_empty() || name.chars().any(|c| !c.is_ascii_alphanumeric() && !"._-".contains(c)) => {
                    let message = format!("`{name}` is not a librdkafka option");
                    self.refuse_key_as(Code::KafkaOption, &path, message, "");
                }
                None => {
                    settings.insert(name.clone(), Secret::new(value.0.clone()));
                }
            }
        }
        Some(KafkaSpec {
            brokers: brokers.join(","),
            topics: topics?,
            start,
            on_data_loss: match raw.on_data_loss.unwrap_or(RawDataLoss::Fail) {
                RawDataLoss::Fail => OnDataLoss::Fail,
                RawDataLoss::Skip => OnDataLoss::Skip,
            },
            group: raw.group.clone().unwrap_or_else(|| format!("tidegate-{pipeline}")),
            settings,
        })
    }

    fn topics(&mut self, at: &[&str], raw: &RawKafka) -> Option<TopicSelection> {
        match (&raw.topics, &raw.pattern) {
            (Some(topics), None) => {
                let path = join(at, &["topics"]);
                let topics = topics.to_vec();
                if topics.is_empty() {
                    self.refuse(&path, "`topics` is empty", "name at least one", None);
                }
                for (index, topic) in topics.iter().enumerate() {
                    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
                    if topic.is_empty() || topic.len() > 249 || !topic.chars().all(legal) {
                        let help = "use `pattern:` for a regular expression".to_owned();
                        self.refuse(
                            &path,
                            format!("`{topic}` is not a topic name"),
                            "letters, digits, . _ -",
                            Some(help),
                        );
                    }
                    if topics[..index].contains(topic) {
                        self.refuse(&path, format!("the topic `{topic}` is there twice"), "", None);
                    }
                }
                Some(TopicSelection::Names(topics))
            }
            (None, Some(pattern)) => {
                if let Err(error) = regex::Regex::new(pattern) {
                    let why = error.to_string();
                    let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                    self.refuse(&join(at, &["pattern"]), "`pattern` is not a regular expression", &why, None);
                }
                Some(TopicSelection::Pattern(pattern.clone()))
            }
            (Some(_), Some(_)) => {
                let message = "`topics` and `pattern` exclude each other";
                self.refuse(&join(at, &["pattern"]), message, "give one of the two", None);
                None
            }
            (None, None) => {
                let help = "add `topics: [orders.v1]` or `pattern: \"^orders\\\\.\"`".to_owned();
                self.refuse(&join(at, &["topics"]), "`kafka` needs `topics` or `pattern`", "", Some(help));
                None
            }
        }
    }

    fn security(&mut self, at: &[&str], raw: &RawSecurity, root: &FilePath, settings: &mut BTreeMap<String, Secret>) {
        let mut set = |name: &str, value: String| settings.insert(name.to_owned(), Secret::new(value));
        let protocol = raw.protocol.as_ref().map(|protocol| protocol.to_uppercase().replace('-', "_"));
        let mechanism = raw.mechanism.as_ref().map(|mechanism| mechanism.to_uppercase().replace('_', "-"));
        for (name, value) in [
            ("security.protocol", protocol.clone()),
            ("sasl.mechanism", mechanism.clone()),
            ("sasl.username", raw.username.clone()),
            ("sasl.password", raw.password.clone()),
            ("ssl.ca.location", raw.ca.as_deref().map(|path| paths::location(root, path))),
            ("ssl.certificate.location", raw.cert.as_deref().map(|path| paths::location(root, path))),
            ("ssl.key.location", raw.key.as_deref().map(|path| paths::location(root, path))),
            ("ssl.key.password", raw.key_password.clone()),
        ] {
            if let Some(value) = value {
                set(name, value);
            }
        }
        let half_read =
            self.broken.iter().any(|broken| broken.iter().zip(at).filter(|(a, b)| a == b).count() == at.len());
        let known = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        if let Some(protocol) = protocol.as_deref().filter(|protocol| !PROTOCOLS.contains(protocol)) {
            let message = format!("unknown security protocol `{protocol}`");
            return self.unknown(&join(at, &["protocol"]), message, protocol, &known(&PROTOCOLS), "protocols");
        }
        if let Some(mechanism) = mechanism.as_deref().filter(|mechanism| !MECHANISMS.contains(mechanism)) {
            let message = format!("the mechanism `{mechanism}` is not in this build");
            self.unknown(&join(at, &["mechanism"]), message, mechanism, &known(&MECHANISMS), "mechanisms");
        }
        let login = [
            ("mechanism", raw.mechanism.is_some()),
            ("username", raw.username.is_some()),
            ("password", raw.password.is_some()),
        ];
        let sasl = protocol.as_deref().is_some_and(|protocol| protocol.starts_with("SASL"));
        for (key, given) in login.into_iter().filter(|_| !half_read) {
            match (sasl, given) {
                (true, false) => {
                    let message = format!("`{}` needs `{key}`", protocol.as_deref().unwrap_or_default());
                    self.refuse(&join(at, &[key]), message, "", None);
                }
                (false, true) => {
                    let message = format!("`{key}` without a SASL protocol would not be used");
                    self.refuse(&join(at, &[key]), message, "add `protocol: SASL_SSL`", None);
                }
                _ => {}
            }
        }
    }
}
