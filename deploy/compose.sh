#!/usr/bin/env bash
# Build the images, start the stack, wait for its `verify` service, show its checks, remove everything but the images.
#   deploy/compose.sh [OVERLAY.yml ...]       exit code: that of verify. Called by `make compose-demo` and the like.
#   BUILD=0 deploy/compose.sh ...             uses the existing images
# If the base image cannot be pulled, makes one and builds from wheelhouse/, which it fills first.
set -euo pipefail
cd "$(dirname "$0")/.."
export COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-fednc-demo} FEDNC_TAG=${FEDNC_TAG:-local}
own_base=fednc-base:bookworm
limit_s=${LIMIT_S:-600}

if docker compose version >/dev/null 2>&1; then
  compose=(docker compose)
else
  compose=(docker-compose)
fi
for file in docker-compose.yml "$@"; do compose+=(-f "$file"); done
# Without the buildx plugin the docker command cannot use BuildKit; the classic builder works as well.
docker buildx version >/dev/null 2>&1 || export DOCKER_BUILDKIT=0

have() { docker image inspect "$1" >/dev/null 2>&1; }

choose_base() {
  local wanted=${FEDNC_BASE:-python:3.11-slim-bookworm}
  if have "$wanted" || timeout 120 docker pull --quiet "$wanted" >/dev/null 2>&1; then
    export FEDNC_BASE=$wanted
    return
  fi
  echo "compose: $wanted cannot be pulled; using $own_base and wheelhouse/"
  export FEDNC_BASE=$own_base
  local making=
  if ! have "$own_base"; then deploy/base-image.sh "$own_base" & making=$!; fi
  deploy/wheelhouse.sh
  [ -z "$making" ] || wait "$making"
}

build() {
  for target in server client demo; do
    docker build --quiet -f deploy/Dockerfile --build-arg "BASE=$FEDNC_BASE" --target "$target" \
      -t "fednc-$target:$FEDNC_TAG" . 2>"$log" >/dev/null || { cat "$log" >&2; exit 1; }
  done
}

# shellcheck disable=SC2329 # the trap below calls it
clean_up() {
  "${compose[@]}" down --volumes --remove-orphans --timeout 5 >/dev/null 2>&1 || true
  rm -f "$log"
}

log=$(mktemp)
if [ "${BUILD:-1}" = 1 ]; then
  choose_base
  echo "compose: building on $FEDNC_BASE"
  build
  echo "compose: images are ready after $SECONDS s"
fi
trap clean_up EXIT
# `--exit-code-from` would end the stack when the certificate service does, so: start, then wait.
"${compose[@]}" up -d --no-build >"$log" 2>&1 || { cat "$log" >&2; echo "compose: the stack did not come up" >&2; }
verify=$("${compose[@]}" ps -aq verify)
[ -n "$verify" ] || { "${compose[@]}" logs --no-color --tail=20 >&2; exit 1; }
code=$(timeout "$limit_s" docker wait "$verify") || { echo "compose: no result after $limit_s s" >&2; code=1; }
docker logs "$verify"
echo "compose: verify has ended with $code after $SECONDS s"
[ "$code" = 0 ] || "${compose[@]}" logs --no-color --tail=20 >&2
exit "$code"
