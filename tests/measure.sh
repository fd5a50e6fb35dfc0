# Sourced by bench.sh and memory.sh: a broker of their own, a topic full of orders, and a stopwatch.
# shellcheck shell=bash
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}/release
work=$(mktemp -d "${TMPDIR:-/tmp}/tidegate-measure-XXXXXX")
port=${KAFKA_PORT:-19392}
broker=localhost:$port

finish() {
  "$root/tests/kafka/kafka.sh" wipe --port "$port" --dir "$work/kafka" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap finish EXIT

prepare() { # rows
  cargo build --release --quiet --manifest-path "$root/Cargo.toml" --bins --examples
  "$root/tests/kafka/kafka.sh" up --port "$port" --dir "$work/kafka" --die-with $$ >&2
  "$target/examples/produce_orders" "$broker" orders.v1 "$1" "${TIDEGATE_SEED:-1}" >&2
}

# A pipeline in a folder of its own: `all` three layers or `bronze` alone.
pipeline() { # folder layers
  mkdir -p "$1/ref"
  local store
  { echo store_id,city; for store in $(seq -w 0 22); do echo "s-$store,city $store"; done; } >"$1/ref/stores.csv"
  sed "s/BROKERS/$broker/; s/TOPIC/orders.v1/; /^#BATCH/d" "$root/tests/support/orders.yaml" >"$1/orders.yaml"
  if [ "$2" = bronze ]; then
    sed -i '/^  silver\.orders:/,/^dead_letters/{/^dead_letters/!d}; /^lookups:/,/^$/d' "$1/orders.yaml"
  fi
}

# Runs a command; prints its wall seconds and peak resident megabytes.
measure() {
  python3 -c '
import os, sys, time
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
started = time.monotonic()
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ,
                        file_actions=[(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)])
_, status, usage = os.wait4(child, 0)
took = time.monotonic() - started
if status:
    text = open(sys.argv[1], errors="replace").read()[-4000:]
    sys.exit(f"{sys.argv[2:]} ended with {os.waitstatus_to_exitcode(status)}:\n{text}")
print(f"{took:.3f} {usage.ru_maxrss / 1024:.0f}")
' "$work/log" "$@"
}

drain() { # folder
  measure "$target/tidegate" run "$1/orders.yaml" --trigger available_now --output json
}

median() { sort -g | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }
