//! Records that a position counts on and the source no longer has. Plans and commit records keep them as the audit trail
//! of `on_data_loss: skip`.

use serde::{Deserialize, Serialize};

use super::offset::{Offset, Partition, Range};

/// One class of loss per way in which Kafka forgets; each has its own sentence and its own way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "class", rename_all = "snake_case")]
pub enum Loss {
    /// The oldest record kept is newer than the position.
    Expired {
        /// Where.
        #[serde(flatten)]
        partition: Partition,
        /// The position.
        at: Offset,
        /// The oldest record kept.
        earliest: Offset,
    },
    /// The partition ends before the position, and whether it is the same topic is not known.
    Shrunk {
        /// Where.
        #[serde(flatten)]
        partition: Partition,
        /// The position.
        at: Offset,
        /// Where the partition ends now.
        end: Offset,
    },
    /// The partition ends before the position, and it is the topic that was read: its newest records were cut off.
    Truncated {
        /// Where.
        #[serde(flatten)]
        partition: Partition,
        /// The position.
        at: Offset,
        /// Where the partition ends now.
        end: Offset,
    },
    /// The topic was deleted and one of the same name was made: its offsets are those of other records.
    Recreated {
        /// Where.
        #[serde(flatten)]
        partition: Partition,
        /// The position, in the old topic.
        at: Offset,
        /// Id of the topic that was read.
        was: String,
        /// Id of the topic that is there.
        now: String,
    },
    /// The topic has no such partition any more.
    PartitionGone {
        /// Where.
        #[serde(flatten)]
        partition: Partition,
        /// The position.
        at: Offset,
    },
    /// There is no such topic any more.
    TopicGone {
        /// Where.
        #[serde(flatten)]
        partition: Partition,
        /// The position.
        at: Offset,
    },
}

impl Loss {
    /// Where.
    pub fn partition(&self) -> &Partition {
        match self {
            Loss::Expired { partition, .. }
            | Loss::Shrunk { partition, .. }
            | Loss::Truncated { partition, .. }
            | Loss::Recreated { partition, .. }
            | Loss::PartitionGone { partition, .. }
            | Loss::TopicGone { partition, .. } => partition,
        }
    }

    /// Whether the partition is missing, which brokers that are starting also say for a moment.
    pub fn is_gone(&self) -> bool {
        matches!(self, Loss::PartitionGone { .. } | Loss::TopicGone { .. })
    }

    /// One sentence with the numbers.
    pub fn message(&self) -> String {
        match self {
            Loss::Expired { partition, at, earliest } => format!(
                "{} records of {partition} have expired: the checkpoint stands at {at}, the earliest is {earliest}",
                earliest - at
            ),
            Loss::Shrunk { partition, at, end } => format!(
                "{partition} ends at {end} but the checkpoint stands at {at}: it was deleted and made anew, or truncated"
            ),
            Loss::Truncated { partition, at, end } => format!(
                "{partition} was truncated: it ends at {end} but the checkpoint stands at {at}, in the same topic"
            ),
            Loss::Recreated { partition, at, was, now } => format!(
                "topic {} was deleted and created again: the checkpoint stands at {at} of {partition} in the old one \
                 (id {was}), the one that is there now has id {now}",
                partition.topic
            ),
            Loss::PartitionGone { partition, at } => {
                format!("{partition} no longer exists, the checkpoint stands at {at} in it")
            }
            Loss::TopicGone { partition, at } => {
                format!("topic {} no longer exists, the checkpoint stands at {at} of {partition}", partition.topic)
            }
        }
    }
}

/// What a batch went without, because `on_data_loss: skip` allowed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Why.
    #[serde(flatten)]
    pub loss: Loss,
    /// Offsets that were planned and could not be read when the batch was finished. Absent where the loss was known when
    /// the batch was planned: then the plan's `skipped` says where reading went on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<Range>,
}

impl From<Loss> for Lost {
    fn from(loss: Loss) -> Self {
        Lost { loss, unread: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_survives_being_written_down() {
        let partition = Partition::new("t", 3);
        let at = 5;
        let losses = [
            Loss::Expired { partition: partition.clone(), at, earliest: 7 },
            Loss::Shrunk { partition: partition.clone(), at, end: 2 },
            Loss::Truncated { partition: partition.clone(), at, end: 2 },
            Loss::Recreated { partition: partition.clone(), at, was: "a".into(), now: "b".into() },
            Loss::PartitionGone { partition: partition.clone(), at },
            Loss::TopicGone { partition, at },
        ];
        for loss in losses {
            let lost = Lost { loss, unread: Some(Range { from: 5, until: 9 }) };
            let text = serde_json::to_string(&lost).expect("JSON");
            assert_eq!(serde_json::from_str::<Lost>(&text).expect("the same"), lost, "{text}");
        }
        let lost = Lost::from(Loss::TopicGone { partition: Partition::new("t", 3), at });
        let text = serde_json::to_string(&lost).expect("JSON");
        assert_eq!(text, r#"{"class":"topic_gone","topic":"t","partition":3,"at":5}"#);
    }
}
