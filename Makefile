# tidegate. `make` alone lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help
# The demo's generated source holds this many orders; raise it, and a second `make demo` reads only the new ones.
ROWS ?= 100_000
# Where `make demo` keeps its tables and its checkpoint.
DEMO ?= $(CURDIR)/target/demo
CARGO_FLAGS ?= --release --locked
BIN = $(shell cargo metadata --format-version 1 --no-deps --offline | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/tidegate

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

.PHONY: build
build: ## Build the binary (release)
	cargo build $(CARGO_FLAGS)

.PHONY: demo
demo: build ## Run the main job on a generated source, without any service; again: continues
	@LAKE=$(DEMO)/lake CHECKPOINTS=$(DEMO)/checkpoints ROWS=$(ROWS) $(BIN) run pipelines/orders.yaml --progress lines
	@LAKE=$(DEMO)/lake CHECKPOINTS=$(DEMO)/checkpoints ROWS=$(ROWS) $(BIN) status pipelines/orders.yaml --rows 3

.PHONY: demo-clean
demo-clean: ## Forget the demo's tables and checkpoint
	rm -rf $(DEMO)

.PHONY: test
test: ## Run every test, the ones against a real Kafka included where it can be started
	@rm -f $${CARGO_TARGET_DIR:-target}/kafka-tests.log
	cargo test $(CARGO_FLAGS)
	@tests/kafka/summary.sh

.PHONY: lint
lint: ## Formatting and lints
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

.PHONY: fmt
fmt: ## Format the code
	cargo fmt
