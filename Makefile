# tidegate. `make` alone lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help
# The demo's generated source holds this many orders; raise it, and a second `make demo` reads only the new ones.
ROWS ?= 100_000
# Where `make demo` keeps its tables and its checkpoint.
DEMO ?= $(CURDIR)/target/demo
CARGO_FLAGS ?= --release --locked
# Tests run a binary that can be made to die and fail (src/fail.rs); the one that ships cannot.
TEST_FLAGS = $(CARGO_FLAGS) --features failpoints
BIN = $(shell cargo metadata --format-version 1 --no-deps --offline | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/tidegate

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 16

.PHONY: build
build: ## Build the binary (release)
	cargo build $(CARGO_FLAGS)
	@! grep -q TIDEGATE_FAIL $(BIN) || { echo "error: $(BIN) has fail points in it, which are for tests only"; exit 1; }

.PHONY: demo
demo: build ## Run the main job on a generated source, without any service; again: continues
	@LAKE=$(DEMO)/lake CHECKPOINTS=$(DEMO)/checkpoints ROWS=$(ROWS) $(BIN) run pipelines/orders.yaml --progress lines
	@LAKE=$(DEMO)/lake CHECKPOINTS=$(DEMO)/checkpoints ROWS=$(ROWS) $(BIN) status pipelines/orders.yaml --rows 3

.PHONY: demo-clean
demo-clean: ## Forget the demo's tables and checkpoint
	rm -rf $(DEMO)

.PHONY: test
test: ## Run every test, the ones against a real Kafka included where it can be started
	@tests/kafka/summary.sh --reset
	cargo test $(TEST_FLAGS)
	@tests/kafka/summary.sh

.PHONY: crash
crash: ## SIGKILL at every fail point at every hit, crashes in recoveries, storage faults, two runners: everything (long)
	TIDEGATE_CRASH=all cargo test $(TEST_FLAGS) --test it crash:: -- --nocapture --test-threads=1

.PHONY: soak
# How long `make soak` lasts, in minutes.
MIN ?= 10
soak: ## MIN=10 minutes of live traffic, kills, broker restarts, second runners and compaction; then the tables are compared
	TIDEGATE_REQUIRE_KAFKA=1 TIDEGATE_SOAK_MINUTES=$(MIN) cargo test $(TEST_FLAGS) --test it e2e::soak -- --nocapture

.PHONY: lint
lint: ## Formatting and lints
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --all-targets --features failpoints -- -D warnings

.PHONY: fmt
fmt: ## Format the code
	cargo fmt

.PHONY: kafka-up kafka-down
kafka-up: ## Start a real Kafka on localhost:9092 (Docker, else Java 17 and Maven)
	@tests/kafka/kafka.sh up
kafka-down: ## Stop it; its data is kept
	@tests/kafka/kafka.sh down

.PHONY: airflow e2e-full bench memory serve-full dashboard cross-check
airflow: build ## A real Airflow 3 (from PyPI) runs the DAG that `init --with airflow` writes
	TIDEGATE=$(BIN) tests/airflow/run.sh
e2e-full: ## The end-to-end tests at full size: 1,000,000 orders, 30 kills
	TIDEGATE_REQUIRE_KAFKA=1 TIDEGATE_E2E_ROWS=1000000 TIDEGATE_KILLS=30 cargo test $(TEST_FLAGS) --test it e2e:: -- --nocapture --test-threads=1
bench: ## Rows/s to bronze and through all layers, beside only consuming the same topic
	@tests/bench.sh $(BENCH_ROWS)
memory: ## Peak memory while a backlog of 5,000,000 rows is drained
	@tests/memory.sh
serve-full: ## Fifty pipelines in one process for five minutes, over files and over Kafka, and a crontab's minute
	TIDEGATE_REQUIRE_KAFKA=1 TIDEGATE_SERVE_SECONDS=300 cargo test $(TEST_FLAGS) --test it e2e::serve -- --nocapture --test-threads=1
dashboard: ## 10,000 events a second into sliding windows for five minutes, from a real Kafka: how old a row is when it can be seen
	TIDEGATE_REQUIRE_KAFKA=1 TIDEGATE_DASHBOARD_SECONDS=300 TIDEGATE_DASHBOARD_RATE=10000 cargo test $(TEST_FLAGS) --test it e2e::dashboard -- --nocapture
cross-check: ## Python deltalake and Spark read the tables of LAKE (default: the demo's) and must agree
	@tests/cross_check/run.sh $(or $(LAKE),$(DEMO)/lake)
