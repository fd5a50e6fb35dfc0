//! One integration binary; each module says what it proves.

// The import rules of the house.
mod architecture;
mod config;
mod contract;
// Every schedule of crashes, lost replies and two runners, against the production recovery.
mod protocol;
// The sandbox, the broker, the generator and the oracle that the modules below share; its own tests are about itself.
mod support;

// The promise on a real Apache Kafka: whatever the batches, kills, aborted transactions and bad records, the four tables
// equal the oracle's; what cannot be read is said with the right exit code.
mod e2e;

// Refresh tables that follow what changed hold what their SQL makes of the whole table.
mod refresh;

// The commands that only look: status, history, lag, query, graph.
mod look;

// The promise under crashes, power cuts, storage faults and second runners, on the real binary.
#[cfg(feature = "failpoints")]
mod crash;
// `tidegate test`: the examples hold, each of their tests can fail, and what a failure says.
mod pipeline_tests;
