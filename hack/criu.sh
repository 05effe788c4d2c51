#!/usr/bin/env bash
# criu.sh builds bin/criu, pinned: Debian's own is too old for new kernels (see
# docs/checkpoint.md). Only tests of checkpoints need it.
set -euo pipefail
cd "$(dirname "$0")/.."

version=4.2.1
sha256=29ec0ee09e296479fe7048c80980e8ef1d0684d0b0204c2b101dfea19f6725b9
# Debian's copy of the release; the pool drops it when a newer one comes.
source=https://deb.debian.org/debian/pool/main/c/criu/criu_$version.orig.tar.xz

[[ -x bin/criu && $(bin/criu --version) == *"$version"* ]] && exit 0
hack/deps.sh make xz-utils protobuf-c-compiler protobuf-compiler libprotobuf-c-dev libnl-3-dev libnl-route-3-dev libnet1-dev libcap-dev libbsd-dev uuid-dev

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
curl -fsSL -o "$work/criu.tar.xz" "$source"
sha256sum --quiet -c - <<<"$sha256  $work/criu.tar.xz"
tar -C "$work" -xf "$work/criu.tar.xz"
make -C "$work/criu-$version" -j"$(nproc)" NO_AMDGPU=1 criu/criu >"$work/log" 2>&1 || {
  tail -20 "$work/log" >&2
  exit 1
}
mkdir -p bin
install "$work/criu-$version/criu/criu" bin/criu
