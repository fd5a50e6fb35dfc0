#!/usr/bin/env bash
# How many tests ran against the real broker, from the ledger that tests/support/broker.rs keeps.
#
#   summary.sh --reset    before the tests
#   summary.sh            after them
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
ledger=${CARGO_TARGET_DIR:-$root/target}/tmp/kafka-tests.txt
if [ "${1:-}" = --reset ]; then rm -f "$ledger"; exit; fi
count() { [ -f "$ledger" ] && grep -c "^$1 " "$ledger" || true; }
ran=$(count ran) skipped=$(count skipped)
version=$(sed -n 's:.*<kafka.version>\(.*\)</kafka.version>.*:\1:p' "$root/tests/kafka/pom.xml")
if [ "${skipped:-0}" -gt 0 ]; then
  echo "kafka: SKIPPED $skipped tests: $(grep -m1 '^skipped ' "$ledger" | cut -d' ' -f3-)"
else
  echo "kafka: ${ran:-0} tests ran against a real broker (Apache Kafka $version)"
fi
