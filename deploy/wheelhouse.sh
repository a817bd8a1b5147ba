#!/usr/bin/env bash
# Fill wheelhouse/ with every wheel that the images need, so that they can be built without a network.
#   deploy/wheelhouse.sh          called by `make wheelhouse`, and by the compose scripts when nothing can be pulled
# pip uses this machine's configuration: index, cache, PIP_FIND_LINKS. LOCK, TORCH and TORCH_INDEX mean the same as in
# deploy/Dockerfile.
set -euo pipefail
cd "$(dirname "$0")/.."
lock=${LOCK:-deploy/lock.txt}
torch=${TORCH:-torch==2.13.0}
index=${TORCH_INDEX-https://download.pytorch.org/whl/cpu}
python=${PYTHON_VERSION:-3.11} # of the base image
machine=$(uname -m)

wanted=$(printf '%s %s %s %s\n' "$torch" "$index" "$python" "$machine"; cat "$lock")
if [ -f wheelhouse/.made-of ] && [ "$wanted" = "$(cat wheelhouse/.made-of)" ]; then
  echo "wheelhouse: up to date"
  exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip="${PYTHON:-python3} -m pip"
$pip --version >/dev/null 2>&1 || { python3 -m venv "$work/venv"; pip="$work/venv/bin/python -m pip"; }
# For the image's Python, not this machine's. -qq: a mirror that lacks a package prints a warning, which is not an error.
download="$pip download -qq --dest $work/wheels --only-binary=:all: --python-version $python --implementation cp"
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux_2_12 manylinux_2_5 \
  manylinux1 linux; do download+=" --platform ${tag}_$machine"; done

echo "wheelhouse: downloading"
$download --no-deps --require-hashes -r "$lock"
if [ -z "$index" ]; then
  $download "$torch" # for CUDA, with the packages that it requires
else
  # A wheel on this disk first, then PyTorch's own index. Never the default index: its PyTorch pulls gigabytes of CUDA.
  $download --no-index --no-deps "$torch" 2>/dev/null || $download --no-deps --index-url "$index" "$torch"
fi
rm -rf wheelhouse
mkdir wheelhouse
mv "$work"/wheels/*.whl wheelhouse/
printf '%s\n' "$wanted" >wheelhouse/.made-of
echo "wheelhouse: $(find wheelhouse -name '*.whl' | wc -l) wheels, $(du -sm wheelhouse | cut -f1) MiB"
