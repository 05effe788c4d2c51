#!/usr/bin/env bash
# deps.sh installs the Debian packages that building and testing need, and does
# nothing where they are all there. Arguments are further packages.
set -euo pipefail

packages=(
  gcc libc6-dev pkg-config libseccomp-dev # runc with seccomp needs cgo
  git curl jq ca-certificates
  busybox-static docker-registry containernetworking-plugins # what tests and the tutorial run
  iproute2 iptables nftables procps util-linux
  qemu-system-x86 kmod systemd # the machine of make test-vm; its kernel is not installed, see vm.sh
  "$@"
)

missing=()
for p in "${packages[@]}"; do
  [[ $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null) == installed ]] || missing+=("$p")
done
((${#missing[@]})) || exit 0

echo "+ apt-get install ${missing[*]}"
if ((EUID != 0)); then
  echo "deps.sh: these Debian packages are missing: ${missing[*]}; run this as root" >&2
  exit 1
fi
# Debian's packages start services (docker-registry) where something can start
# them; nobody asked for that here.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q --no-install-recommends "${missing[@]}"
