//! The retail medallion of the contract as a pipeline file, the one whose tables the oracle knows.

use super::broker::Record;
use super::orders::{Event, stores_csv};
use super::sandbox::Sandbox;

/// The pipeline file in a sandbox.
pub const FILE: &str = "orders.yaml";

/// What differs from test to test.
pub struct Pipeline<'a> {
    /// `bootstrap.servers`.
    pub brokers: &'a str,
    /// Topic.
    pub topic: &'a str,
    /// `batch.max_rows`; `None` = the default settings.
    pub max_rows: Option<u64>,
}

impl Pipeline<'_> {
    /// Writes the pipeline and its lookup into the sandbox.
    pub fn write(&self, sandbox: &Sandbox) {
        sandbox.write("ref/stores.csv", &stores_csv());
        sandbox.write(FILE, &self.yaml());
    }

    /// The file's text.
    pub fn yaml(&self) -> String {
        let batch =
            self.max_rows.map_or(String::new(), |rows| format!("batch: {{max_rows: {rows}, max_bytes: 2GB}}\n"));
        include_str!("orders.yaml")
            .replace("BROKERS", self.brokers)
            .replace("TOPIC", self.topic)
            .replace("#BATCH\n", &batch)
    }
}

impl From<Event> for Record {
    fn from(event: Event) -> Self {
        Record { partition: event.partition, key: Some(event.key), value: event.value, timestamp: event.timestamp }
    }
}
