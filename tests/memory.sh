#!/usr/bin/env bash
# Peak resident memory while a large backlog is drained with default settings; fails from 1 GB up.
#
#   tests/memory.sh [ROWS]       5 000 000 unless said otherwise; LIMIT_MB=1000
rows=${1:-5000000}
rows=${rows//_/}
. "$(dirname "${BASH_SOURCE[0]}")/measure.sh"
limit=${LIMIT_MB:-1000}

prepare "$rows"
pipeline "$work/all" all
read -r seconds peak <<<"$(drain "$work/all")"
batches=$(find "$work/all/checkpoints/orders" -path '*commits*' -type f | wc -l)
echo "$rows orders drained in $batches batches, $seconds s, peak resident memory $peak MB (limit $limit MB)"
if [ "$peak" -lt "$limit" ]; then echo "1 passed, 0 failed"; else echo "0 passed, 1 failed"; exit 1; fi
