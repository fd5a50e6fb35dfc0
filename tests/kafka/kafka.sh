#!/usr/bin/env bash
# A real single-node Apache Kafka 4 (KRaft) for tests and for trying tidegate. Nothing but this machine is listened on.
#
#   kafka.sh up [--port N] [--dir DIR] [--die-with PID] [--advertise PORT]
#                                                         start it, wait until it answers, print where
#   kafka.sh down | status | wipe  [--port N] [--dir DIR] stop it (data is kept) | is it up? | stop it and delete its data
#   kafka.sh create-topic NAME [PARTITIONS]               4 partitions unless said otherwise
#   kafka.sh topics | produce NAME | consume NAME         list topics | lines from stdin | lines from the beginning
#   kafka.sh tool CLASS ARG…                              any Kafka tool, such as org.apache.kafka.tools.GetOffsetShell
#   kafka.sh fetch                                        download the artifacts only
#
# --die-with PID is for test processes: when PID ends, however it ends, the broker is killed and DIR deleted.
# --advertise PORT tells clients to come to that port instead (with Java only): a proxy's, which leads here.
# Docker is used where an engine answers, else Java 17 or newer with Maven artifacts (pom.xml), which are cached in
# ~/.cache/tidegate. KAFKA_WITH=java or KAFKA_WITH=docker decides otherwise.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${TIDEGATE_CACHE:-$HOME/.cache/tidegate}
version=$(sed -n 's:.*<kafka.version>\(.*\)</kafka.version>.*:\1:p' "$here/pom.xml")
dir=$cache/kafka
port=${KAFKA_PORT:-9092}
die_with=
advertise=

say() { echo "kafka: $*" >&2; }
fail() { say "$*"; exit 1; }

command=${1:-help}
[ $# -gt 0 ] && shift
arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --port) port=$2; shift 2 ;;
    --dir) dir=$2; shift 2 ;;
    --die-with) die_with=$2; shift 2 ;;
    --advertise) advertise=$2; shift 2 ;;
    --) shift; arguments+=("$@"); break ;;
    *) arguments+=("$1"); shift ;;
  esac
done
container=tidegate-kafka-$port

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }
running() { [ -f "$dir/pid" ] && kill -0 "$(cat "$dir/pid")" 2>/dev/null; }

with() { # docker | java
  if [ -n "${KAFKA_WITH:-}" ]; then echo "$KAFKA_WITH"
  elif docker info >/dev/null 2>&1; then echo docker
  else echo java; fi
}

# Jars are kept by the hash of the pom, so that a new version is a new folder and a half-copied one is never used.
jars() {
  local libs
  libs=$cache/kafka-libs/$version-$(cksum <"$here/pom.xml" | cut -d' ' -f1)
  if [ ! -d "$libs" ]; then
    command -v java >/dev/null || fail "no java: install a JRE of version 17 or newer (Debian: openjdk-17-jre-headless), or start a Docker engine"
    command -v mvn >/dev/null || fail "no mvn: install Maven (Debian: maven), or start a Docker engine"
    say "fetching Apache Kafka $version with Maven (once)"
    mkdir -p "$cache/kafka-libs"
    local part=$libs.part.$$
    mvn -q -B -ntp -f "$here/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
      -DoutputDirectory="$part" >&2 || fail "Maven could not fetch Apache Kafka (see above)"
    mv -T "$part" "$libs" 2>/dev/null || rm -rf "$part" # another process was faster
  fi
  echo "$libs"
}

# Short runs: no second-tier compiler, one collector thread.
java_small() { java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xmx256m -Dlog4j2.configurationFile="$here/log4j2.properties" \
  -Dtidegate.kafka.log=/dev/stderr -cp "$(jars)/*" "$@"; }

settings() { # controller port
  cat <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$1
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$1
advertised.listeners=PLAINTEXT://localhost:${advertise:-$port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$dir/data
auto.create.topics.enable=false
num.partitions=4
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
controlled.shutdown.enable=false
message.max.bytes=33554432
log.cleaner.dedupe.buffer.size=8388608
log.cleaner.backoff.ms=500
log.retention.ms=-1
num.network.threads=2
num.io.threads=4
background.threads=2
EOF
}

# The lowest port above ours that nothing listens on.
controller_port() {
  local candidate
  for candidate in $(seq $((port + 1)) $((port + 50))); do
    (exec 3<>"/dev/tcp/127.0.0.1/$candidate") 2>/dev/null || { echo "$candidate"; return; }
  done
  fail "no free port for the controller above $port"
}

up_java() {
  local libs
  libs=$(jars)
  mkdir -p "$dir"
  settings "$(controller_port)" >"$dir/server.properties"
  local log=$dir/server.log
  rm -f "$log"
  local flags=(-Xmx512m -Xms256m -XX:+UseSerialGC -XX:TieredStopAtLevel=4 -Xshare:auto -Djava.awt.headless=true
    -Dlog4j2.configurationFile="$here/log4j2.properties" -Dtidegate.kafka.log="$log")
  if [ ! -f "$dir/data/meta.properties" ]; then
    java -XX:TieredStopAtLevel=1 "${flags[@]:2}" -Xmx128m -cp "$libs/*" kafka.tools.StorageTool format --ignore-formatted \
      -t AAAAAAAAAAAAAAAAAAAAAQ -c "$dir/server.properties" >"$dir/format.log" 2>&1 || { cat "$dir/format.log" >&2; fail "could not format $dir/data"; }
  fi
  setsid nohup java "${flags[@]}" -cp "$libs/*" kafka.Kafka "$dir/server.properties" </dev/null >"$dir/stdout.log" 2>&1 &
  echo $! >"$dir/pid"
  if [ -n "$die_with" ]; then
    # A broker that was stopped while PID lives is going to be started again: its data stays.
    setsid nohup bash -c 'while kill -0 "$1" 2>/dev/null && kill -0 "$2" 2>/dev/null; do sleep 0.5; done
      kill -0 "$1" 2>/dev/null || { kill -9 "$2" 2>/dev/null; rm -rf "$3"; }' watch "$die_with" "$(cat "$dir/pid")" "$dir" </dev/null >/dev/null 2>&1 &
  fi
  local deadline=$((SECONDS + 150))
  until grep -qs 'Kafka Server started' "$log" && answers; do
    running || { tail -n 20 "$dir/stdout.log" "$log" >&2 2>/dev/null || true; fail "the broker ended while starting (logs above, in $dir)"; }
    [ $SECONDS -lt $deadline ] || fail "no answer from the broker within 150 s, see $log"
    sleep 0.1
  done
}

# The official image. Written from its documentation: where this was written there was no Docker engine to try it with.
up_docker() {
  mkdir -p "$dir"
  docker start "$container" >/dev/null 2>&1 || docker run -d --name "$container" -p "127.0.0.1:$port:$port" \
    -e KAFKA_PROCESS_ROLES=broker,controller -e KAFKA_NODE_ID=1 -e KAFKA_CONTROLLER_QUORUM_VOTERS=1@localhost:29093 \
    -e "KAFKA_LISTENERS=PLAINTEXT://:$port,CONTROLLER://:29093" \
    -e "KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://localhost:$port" -e KAFKA_CONTROLLER_LISTENER_NAMES=CONTROLLER \
    -e KAFKA_LISTENER_SECURITY_PROTOCOL_MAP=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT \
    -e KAFKA_AUTO_CREATE_TOPICS_ENABLE=false -e KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR=1 \
    -e KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR=1 -e KAFKA_TRANSACTION_STATE_LOG_MIN_ISR=1 \
    -e KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS=0 -e KAFKA_MESSAGE_MAX_BYTES=33554432 -e KAFKA_LOG_CLEANER_BACKOFF_MS=500 \
    -e KAFKA_HEAP_OPTS=-Xmx512m "apache/kafka:$version" >/dev/null
  if [ -n "$die_with" ]; then
    setsid nohup bash -c 'while kill -0 "$1" 2>/dev/null; do sleep 0.5; done; docker rm -f "$2"; rm -rf "$3"' \
      watch "$die_with" "$container" "$dir" </dev/null >/dev/null 2>&1 &
  fi
  local deadline=$((SECONDS + 150))
  until docker logs "$container" 2>&1 | grep -q 'Kafka Server started'; do
    [ $SECONDS -lt $deadline ] || fail "no answer from the broker within 150 s, see: docker logs $container"
    sleep 0.2
  done
}

stop() {
  if running; then
    local pid
    pid=$(cat "$dir/pid")
    kill "$pid"
    local deadline=$((SECONDS + 10))
    while kill -0 "$pid" 2>/dev/null; do
      if [ $SECONDS -ge $deadline ]; then kill -9 "$pid" 2>/dev/null || true; fi
      sleep 0.1
    done
  elif command -v docker >/dev/null && docker info >/dev/null 2>&1; then
    docker stop -t 5 "$container" >/dev/null 2>&1 || true
  fi
  rm -f "$dir/pid"
}

case $command in
  up)
    if running && answers; then
      :
    elif answers && ! docker ps --format '{{.Names}}' 2>/dev/null | grep -qx "$container"; then
      fail "something else listens on localhost:$port; stop it, or choose a port with KAFKA_PORT=…"
    else
      "up_$(with)"
    fi
    echo "listening on localhost:$port"
    ;;
  down) stop; echo "stopped; the data is kept in $dir (kafka.sh wipe deletes it)" ;;
  wipe) stop; docker rm -f "$container" >/dev/null 2>&1 || true; rm -rf "$dir"; echo "stopped, and $dir deleted" ;;
  status) if answers; then echo "listening on localhost:$port"; else echo "not running"; exit 1; fi ;;
  fetch) jars ;;
  create-topic)
    java_small org.apache.kafka.tools.TopicCommand --bootstrap-server "localhost:$port" --create --if-not-exists \
      --topic "${arguments[0]:?a topic name}" --partitions "${arguments[1]:-4}" --replication-factor 1 ;;
  topics) java_small org.apache.kafka.tools.TopicCommand --bootstrap-server "localhost:$port" --list ;;
  produce) java_small org.apache.kafka.tools.ConsoleProducer --bootstrap-server "localhost:$port" --topic "${arguments[0]:?a topic name}" ;;
  consume)
    java_small org.apache.kafka.tools.consumer.ConsoleConsumer --bootstrap-server "localhost:$port" --from-beginning \
      --timeout-ms 3000 --topic "${arguments[0]:?a topic name}" ;;
  tool) java_small "${arguments[@]}" ;;
  *) sed -n '2,/^set -/{/^set -/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; [ "$command" = help ] ;;
esac
