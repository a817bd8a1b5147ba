#!/usr/bin/env bash
# The containers' part of .ci/run: the compose demo, and one broken setup that must not pass.
#   deploy/ci-compose.sh          prints `SKIPPED: compose` and a reason if there is no engine and none can be installed
# As root on Debian it installs an engine if there is none: docker.io. Its data folder is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
  echo "SKIPPED: compose ($1)"
  exit 0
}
have() { command -v "$1" >/dev/null; }
answers() { docker info >/dev/null 2>&1; }
has_compose() { docker compose version >/dev/null 2>&1 || docker-compose version >/dev/null 2>&1; }
get() {
  [ "$(id -u)" = 0 ] && have apt-get || return 1
  DEBIAN_FRONTEND=noninteractive apt-get -qq update >/dev/null 2>&1
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null 2>&1
}

start_engine() {
  state=$(mktemp -d -p /var/tmp)
  dockerd --data-root "$state/data" >"$state/log" 2>&1 &
  engine=$!
  trap stop_engine EXIT
  for _ in $(seq 60); do
    answers && return
    kill -0 "$engine" 2>/dev/null || break
    sleep 0.5
  done
  skip "dockerd does not start: $(tail -1 "$state/log")"
}

stop_engine() {
  kill "$engine" 2>/dev/null && wait "$engine" || true
  rm -rf "$state"
}

# One call also installs docker-compose and debootstrap.
if ! answers; then
  have dockerd || get docker.io docker-compose debootstrap || skip "no Docker engine, and none can be installed"
  answers || start_engine # with systemd, installing it has started it
fi
has_compose || get docker-compose || skip "neither Compose v2 nor docker-compose, and it cannot be installed"
have debootstrap || get debootstrap || true # needed only if no base image can be pulled

make compose-demo
BUILD=0 tests/compose/broken.sh other-data
