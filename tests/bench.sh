#!/usr/bin/env bash
# Rows a second from a real Kafka: to bronze alone, and through bronze, silver and gold, beside the floor of only
# consuming the same topic. Each is run RUNS times in turn on new tables; medians of the wall time of the whole process.
#
#   tests/bench.sh [ROWS]        1 000 000 unless said otherwise; RUNS=3
rows=${1:-1000000}
rows=${rows//_/}
. "$(dirname "${BASH_SOURCE[0]}")/measure.sh"
runs=${RUNS:-3}

prepare "$rows"
for run in $(seq "$runs"); do
  for layers in bronze all; do pipeline "$work/$layers-$run" "$layers"; done
  measure "$target/examples/consume_floor" "$broker" orders.v1 >>"$work/floor"
  drain "$work/bronze-$run" >>"$work/bronze"
  drain "$work/all-$run" >>"$work/all"
  echo "run $run of $runs: floor $(tail -n1 "$work/floor"), bronze $(tail -n1 "$work/bronze"), all $(tail -n1 "$work/all") (s, MB)" >&2
done
for run in $(seq 5); do drain "$work/all-1" >>"$work/idle"; done

bytes=$(find "$work/kafka/data" -path '*orders.v1-*' -name '*.log' -printf '%s\n' 2>/dev/null | awk '{s += $1} END {print s + 0}')
floor=$(cut -d' ' -f1 "$work/floor" | median)
line() { # title file
  awk -v title="$1" -v t="$(cut -d' ' -f1 "$work/$2" | median)" -v m="$(cut -d' ' -f2 "$work/$2" | sort -g | tail -n1)" \
    -v rows="$rows" -v bytes="$bytes" -v floor="$floor" \
    'BEGIN {printf "%-28s %8.2f s %10.0f rows/s %7.1f MB/s %8.2fx floor time %6.0f MB peak\n", title, t, rows / t, bytes / t / 1e6, t / floor, m}'
}
echo
echo "$rows orders in 4 partitions, $((bytes / 1000000)) MB in Kafka, median of $runs, $(nproc) cores"
line "consume only (the floor)" floor
line "kafka -> bronze" bronze
line "kafka -> bronze+silver+gold" all
echo "nothing to do                $(cut -d' ' -f1 "$work/idle" | median | awk '{printf "%8.0f", $1 * 1000}') ms, $(cut -d' ' -f2 "$work/idle" | sort -g | tail -n1) MB peak (bounds: 150 ms, 100 MB)"
