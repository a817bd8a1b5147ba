#!/usr/bin/env bash
# Rewrite deploy/lock.txt (with the extra `demo`) and deploy/lock-base.txt (without) from the versions in the environment
# of $PYTHON.
#   make lock          needs the index; run it after a change of the dependencies in pyproject.toml
# Exact versions with the hashes of all their files. PyTorch itself is left out: deploy/Dockerfile names its version,
# because its CPU build comes from another index.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
links=${TORCH_LINKS:-${PIP_FIND_LINKS:-https://download.pytorch.org/whl/cpu/torch/}}

installed=$(mktemp)
trap 'rm -f "$installed"' EXIT
"$python" -m pip freeze --exclude-editable >"$installed"
compile() {
  "$python" -m uv pip compile pyproject.toml --quiet --python-version 3.11 --generate-hashes --no-header --no-annotate \
    --constraints "$installed" --find-links "$links" --no-emit-package torch --no-emit-index-url --no-emit-find-links "$@"
}
compile --extra demo >deploy/lock.txt
compile >deploy/lock-base.txt
