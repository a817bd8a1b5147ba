#!/usr/bin/env bash
# Break the stack and check that its `verify` service fails, for that reason only. Called by `make compose-broken`.
#   tests/compose/broken.sh [NAME ...]        without names: every setup listed here
set -euo pipefail
cd "$(dirname "$0")/../.."

declare -A fails=(
  [no-certificate]="the records name the clients|the model is the one of an in-process run"
  [other-data]="the model is the one of an in-process run"
  [root]="edge-0 is not root"
)
log=$(mktemp)
trap 'rm -f "$log"' EXIT

[ $# -gt 0 ] || set -- "${!fails[@]}"
for name in "$@"; do
  if deploy/compose.sh "tests/compose/$name.yml" >"$log" 2>&1; then
    cat "$log" >&2
    echo "broken: $name passed all checks" >&2
    exit 1
  fi
  found=$(sed -n 's/^FAILED  \([^:]*\):.*/\1/p' "$log" | paste -sd '|')
  if [ "$found" != "${fails[$name]}" ]; then
    cat "$log" >&2
    echo "broken: $name failed '$found', expected '${fails[$name]}'" >&2
    exit 1
  fi
  echo "broken: $name makes the checks fail, as it must: $found"
done
