#!/usr/bin/env bash
# test.sh runs the tests: of the product first, then of every module below
# test/. "unit" in the arguments leaves out what needs root.
set -euo pipefail
cd "$(dirname "$0")/.."

export NODED_TEST_RUNC="$PWD/bin/runc"
export NODED_BIN="$PWD/bin/noded"
# Plugins that Debian installs, and where the daemon's own tests find them.
export CNI_PATH="${CNI_PATH:-/usr/lib/cni}"

if [[ ${1:-} == unit ]]; then
  exec go test -short -timeout 5m ./...
fi
if ((EUID != 0)); then
  echo "test.sh: run this as root (sudo make test): it makes namespaces, mounts and networks" >&2
  exit 1
fi
hack/criu.sh || echo "test.sh: there is no criu, tests of checkpoints are skipped" >&2
# One package at a time: those that use networks or start daemons measure what
# is left on the machine afterwards.
go test -p 1 -count 1 -timeout 20m ./...
for module in test/*/go.mod; do
  [[ -e $module ]] || continue
  echo "+ go test in $(dirname "$module")"
  (cd "$(dirname "$module")" && go test -p 1 -count 1 -timeout 20m ./...)
done
