#!/usr/bin/env bash
# Other readers' opinion: Python `deltalake` and Spark with delta-spark open every table under LAKE and must agree on
# version, count, and every column's nulls and sum.
#
#   tests/cross_check/run.sh LAKE
#
# Needs python3 with venv, Java 17 and Maven. What it installs goes to ~/.cache/tidegate.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lake=${1:?usage: tests/cross_check/run.sh LAKE}
cache=${TIDEGATE_CACHE:-$HOME/.cache/tidegate}

stamp=$(cat "$here/requirements.txt" "$here/pom.xml" | cksum | cut -d' ' -f1)
venv=$cache/venv-$stamp jars=$cache/delta-jars-$stamp
if [ ! -f "$venv/complete" ]; then
  echo "cross-check: installing deltalake and pyspark into $venv (once)" >&2
  python3 -m venv --clear "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  touch "$venv/complete"
fi
if [ ! -d "$jars" ]; then
  mvn -q -B -ntp -f "$here/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$jars.part" >&2
  mv -T "$jars.part" "$jars"
fi

answers=$(mktemp -d)
trap 'rm -rf "$answers"' EXIT
"$venv/bin/python" "$here/check.py" deltalake "$lake" >"$answers/deltalake.json"
DELTA_JARS=$(printf '%s,' "$jars"/*.jar) SPARK_LOCAL_IP=127.0.0.1 \
  "$venv/bin/python" "$here/check.py" spark "$lake" >"$answers/spark.json" 2>"$answers/spark.log" ||
  { tail -n 40 "$answers/spark.log" >&2; exit 1; }
"$venv/bin/python" "$here/check.py" compare "$answers/deltalake.json" "$answers/spark.json"
