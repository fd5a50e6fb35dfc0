#!/usr/bin/env bash
# A real Airflow 3 runs what `tidegate init --with airflow` writes (`make airflow`): success, nothing to read, a wrong file,
# a broker that is away, three days again. Prints what users see; fails when a task ends otherwise than it must.
#
# Airflow comes from PyPI into ~/.cache/tidegate (about 400 MB, once) and keeps its state in a temporary folder. Python 3.10
# or newer. TIDEGATE names the binary.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
version=3.3.2
cache=${TIDEGATE_CACHE:-$HOME/.cache/tidegate}
venv=$cache/airflow-$version
export TIDEGATE=${TIDEGATE:?the path of the binary, such as target/release/tidegate}
TIDEGATE=$(realpath "$TIDEGATE")

if [ ! -e "$venv/complete" ]; then
  echo "airflow: installing Apache Airflow $version into $venv (once)" >&2
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet "apache-airflow==$version"
  touch "$venv/complete"
fi

work=$(mktemp -d -t tidegate-airflow-XXXXXX)
trap 'rm -rf "$work"' EXIT
export AIRFLOW_HOME=$work/airflow AIRFLOW__CORE__LOAD_EXAMPLES=False AIRFLOW__CORE__DAGS_FOLDER=$work/dags
export AIRFLOW__LOGGING__LOGGING_LEVEL=INFO ROWS=80000
"$TIDEGATE" init "$work/shop" --name shop --with airflow --quiet
project=$work/shop
pipeline=$project/pipelines/shop.yaml
mkdir -p "$AIRFLOW__CORE__DAGS_FOLDER"
# As it was written, but for the patience: `dags test` waits between two tries.
sed -e 's/"retries": 3/"retries": 1/' -e 's/timedelta(minutes=1)/timedelta(seconds=1)/' "$project/deploy/airflow/shop.py" \
  >"$AIRFLOW__CORE__DAGS_FOLDER/shop.py"
"$venv/bin/airflow" db migrate >"$work/migrate.log" 2>&1 || { cat "$work/migrate.log"; exit 1; }

failures=0
# try NAME EXPECTED_STATES DAG [DATE]: EXPECTED_STATES as the task goes through them, such as "up_for_retry failed".
try() {
  local name=$1 expected=$2 log states
  shift 2
  log=$work/$(echo "$name" | tr ' ' '-').log
  "$venv/bin/airflow" dags test "$@" >"$log" 2>&1 || true
  states=$(sed -n 's/.*Task instance state updated.*new_state=\([a-z_]*\).*/\1/p' "$log" | tr '\n' ' ' | sed 's/ $//')
  echo "== $name: airflow dags test $* -> $states"
  # What tidegate printed, and what Airflow made of it.
  sed -n 's/.*\] \(.*\) *\[airflow.task.hooks.airflow.providers.standard.hooks.subprocess.SubprocessHook\].*/   \1/p' "$log" |
    sed "s/^Running command: .*'exec [^ ]* \\(.*\\)'\\] *$/\$ tidegate \\1/" |
    grep -v 'Tmp dir root\|Output:\|^ *$' | cut -c1-200
  sed -n 's/.*Skipping task\. .*reason=\(.*\)/   skipped: \1/p; s/^\(Airflow[A-Za-z]*Exception\|Airflow[A-Za-z]*\): \(.*\)/   \1: \2/p' "$log" | sort -u
  if [ "$states" != "$expected" ]; then
    echo "   WRONG: expected $expected; the log:"
    tail -60 "$log"
    failures=$((failures + 1))
  fi
}

try "new rows" "success" shop
try "no data" "skipped" shop
cp "$pipeline" "$work/good.yaml"
sed -i 's/^lake:/lakes:/' "$pipeline"
try "a wrong file" "failed" shop
cp "$work/good.yaml" "$pipeline"
cp "$here/../../pipelines/orders-kafka.yaml" "$work/shop/pipelines/shop.yaml"
LAKE=$work/other/lake CHECKPOINTS=$work/other/checkpoints KAFKA_BROKERS=127.0.0.1:1 \
  try "a broker that is away" "up_for_retry failed" shop
cp "$work/good.yaml" "$pipeline"
for day in 2026-03-01 2026-03-02 2026-03-03; do
  try "day $day again" "success" shop_day "$day"
done

[ "$failures" = 0 ] || { echo "airflow: $failures wrong"; exit 1; }
echo "airflow: Apache Airflow $version, 7 runs, every task ended as it must"
