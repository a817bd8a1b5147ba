#!/usr/bin/env bash
# Make a base image without pulling one: debootstrap unpacks Debian's packages, docker imports them as one layer.
#   deploy/base-image.sh [NAME]        needs root, debootstrap, a running engine; $MIRROR: another Debian mirror
# Called by `make base-image`, and by the compose scripts when an image cannot be pulled.
set -euo pipefail
name=${1:-fednc-base:bookworm}

for tool in debootstrap docker; do
  command -v "$tool" >/dev/null \
    || { echo "base-image: $tool is missing; apt-get install debootstrap docker.io" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "base-image: debootstrap must be run by root" >&2; exit 1; }

work=$(mktemp -d)
# In memory if allowed: dpkg syncs every file, which on a disk takes longer than everything else.
mount -t tmpfs -o mode=0755,size=1g fednc-base "$work" 2>/dev/null && mounted=1 || mounted=
trap '[ -z "$mounted" ] || umount "$work"; rm -rf --one-file-system "$work"' EXIT

debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/root" ${MIRROR:+"$MIRROR"} \
  >"$work/log" 2>&1 || { tail -20 "$work/log" >&2; exit 1; }
(cd "$work/root" && rm -rf var/cache/apt/archives/*.deb var/lib/apt/lists/* usr/share/{doc,man,locale}/*)
tar --numeric-owner -C "$work/root" -c . | docker import --change 'CMD ["python3"]' - "$name" >/dev/null
echo "base-image: $name is ready"
