#!/usr/bin/env bash
# run.sh is the tutorial of `make run`: it starts noded and a registry in
# throw-away folders, runs a pod with a web server, and removes all of it. Each
# command is printed before it runs. NODED_RUN_KEEP=1 stops before the removal
# and waits for Enter.
set -euo pipefail
cd "$(dirname "$0")/.."
if ((EUID != 0)); then
  echo "run.sh: run this as root (sudo make run): noded makes namespaces, mounts and networks" >&2
  exit 1
fi
hack/deps.sh

work=$(mktemp -d /tmp/noded-run.XXXXXX)
state=$(mktemp -d /run/noded-run.XXXXXX)
# Names and addresses of this run only, so that it meets no other noded.
number=$((RANDOM % 200 + 20))
bridge=noded-run$number
# Where noded puts pods that name no cgroup, when its root is not the usual one.
cgroup=noded-$(printf %s "$work/root" | sha256sum | cut -c 1-8)
bold='' plain=''
if [[ -t 1 ]]; then
  bold=$'\e[1m' plain=$'\e[0m'
fi

free_port() {
  local port
  while port=$((RANDOM % 20000 + 20000)); do
    ss -Hltn "sport = :$port" | grep -q . || break
  done
  echo "$port"
}
title() { printf '\n%s# %s%s\n' "$bold" "$1" "$plain"; }
# say prints a command, with short names for the long paths.
say() {
  local text='' word
  for word in "$@"; do
    [[ $word != *[[:space:]]* ]] || word="'$word'"
    text+=" $word"
  done
  text=${text//"$PWD/bin/"/}
  printf '%s$%s%s\n' "$bold" "${text//"$work"/\$work}" "$plain"
}
# show prints a command and runs it.
show() {
  say "$@"
  "$@"
}
# ended waits until a process that is not necessarily a child is gone.
ended() {
  local i
  for ((i = 0; i < 100; i++)); do
    kill -0 "$1" 2>/dev/null || return 0
    sleep 0.1 # there is no event for the end of somebody else's child in a shell
  done
  return 1
}
shim_pid() { pgrep -f "^$PWD/bin/noded shim .*$state" || true; }

# mounts lists the mount points in this run's folders.
mounts() { awk -v work="$work/" -v state="$state/" 'index($5, work) == 1 || index($5, state) == 1 { print $5 }' /proc/self/mountinfo; }

cleanup() {
  local status=$?
  trap - EXIT
  set +e
  if [[ $status != 0 && -s $work/noded.log ]]; then
    echo "the tutorial failed; the end of the daemon's log:" >&2
    tail -n 20 "$work/noded.log" >&2
  fi
  [[ ${served:-} ]] && $noded rm -af >/dev/null 2>&1
  for pid in ${daemon:-} ${registry:-} $(shim_pid); do
    kill "$pid" 2>/dev/null
    ended "$pid" || kill -9 "$pid" 2>/dev/null
  done
  # What a failure may have left; nothing of it is there after a full run.
  mounts | sort -r | xargs -r umount -l 2>/dev/null
  find /sys/fs/cgroup -maxdepth 2 -type d -name "$cgroup" -exec rmdir {} + 2>/dev/null
  ip link del "$bridge" 2>/dev/null
  nft delete table inet "$bridge" 2>/dev/null
  rm -rf "$work" "$state"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

PATH=$PWD/bin:$PATH
noded=$PWD/bin/noded
export NODED_LISTEN=unix://$state/noded.sock NODED_LOG_DIR=$work/logs

title "A registry on loopback, and an image in it, made from Debian's static busybox"
port=$(free_port)
printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: 127.0.0.1:%s}\n' "$work/registry" "$port" >"$work/registry.yml"
say docker-registry serve "$work/registry.yml" "&"
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
registry=$!
curl -fs -o /dev/null --retry 100 --retry-connrefused --retry-delay 1 --retry-max-time 20 "http://127.0.0.1:$port/v2/" || {
  cat "$work/registry.log" >&2
  exit 1
}
image=127.0.0.1:$port/demo/web:1
show hack/push-image.sh "$image"

title "noded, in throw-away folders, with the built-in network"
mkdir -p "$work/certs.d/127.0.0.1:$port"
printf 'server = "http://127.0.0.1:%s"\n' "$port" >"$work/certs.d/127.0.0.1:$port/hosts.toml"
cat >"$work/config.toml" <<CONFIG
root = "$work/root"
state = "$state"
[cri]
listen = "unix://$state/noded.sock"
[network]
mode = "builtin"
[network.builtin]
bridge = "$bridge"
subnets = ["10.213.$number.0/24"]
[images]
registry_dirs = ["$work/certs.d"]
CONFIG
show cat "$work/config.toml"
# check's exit status says how it is: 1 is a warning, with which noded works.
show "$noded" check --config "$work/config.toml" || (($? == 1))
say noded serve --config "$work/config.toml" "&"
"$noded" serve --config "$work/config.toml" >"$work/noded.log" 2>&1 &
daemon=$!
for ((i = 0; i < 100; i++)); do
  [[ -S $state/noded.sock ]] && "$noded" ps >/dev/null 2>&1 && break
  kill -0 "$daemon" 2>/dev/null || exit 1
  sleep 0.1 # the daemon tells systemd when it is ready; a shell can only look
done
served=yes
show "$noded" version

title "Pull the image"
show "$noded" pull "$image"
show "$noded" images

title "Run a pod with a web server on a port of the host"
hostport=$(free_port)
show "$noded" run -d --name web -p "$hostport:80" "$image"
show "$noded" ps
show "$noded" pods
show curl -fsS --retry 20 --retry-connrefused --retry-delay 1 --retry-max-time 10 "http://127.0.0.1:$hostport/"
show "$noded" logs web
show "$noded" exec web ps
show "$noded" stats

title "A command in a pod of its own, removed when it ends; its exit status is noded's"
show "$noded" run --rm "$image" sh -c 'echo "hello from $(hostname)"; exit 3' || echo "exit status $?"

if [[ ${NODED_RUN_KEEP:-} ]]; then
  echo "Stopped here. In another terminal: export NODED_LISTEN=$NODED_LISTEN; Enter goes on."
  read -r
fi

title "Remove all of it"
show "$noded" rm -f web
show "$noded" rmi "$image"
show "$noded" ps --all
show "$noded" pods
show "$noded" images

title "Nothing is left"
echo "mounts:                $(mounts | grep -c -v "^$state/ns$" || true)"
echo "namespaces:            $(find "$state/ns" -mindepth 1 2>/dev/null | wc -l)"
echo "records:               $(find "$work/root/pods" "$work/root/containers" "$work/root/images/containers" -mindepth 1 2>/dev/null | wc -l)"
echo "layers:                $(find "$work/root/images/layers" -mindepth 1 -maxdepth 1 2>/dev/null | wc -l)"
echo "container processes:   $(pgrep -c -f '^/bin/httpd -f -v -p 80 -h /www$' || true)"
echo "cgroups of pods:       $(find /sys/fs/cgroup -path "*/$cgroup/*" -type d 2>/dev/null | wc -l)"
echo "pods on the bridge:    $(ip -o link show master "$bridge" | wc -l)"
echo "log files:             $(find "$work/logs" -type f | wc -l)"

title "Stop the daemon, and the shim, which would have kept the containers"
show kill "$daemon"
wait "$daemon" && daemon=
shim=$(shim_pid)
if [[ $shim ]]; then
  show kill "$shim"
  ended "$shim"
fi
show ip link del "$bridge"
show nft delete table inet "$bridge"
[[ -z $(mounts) ]] || show umount "$state/ns"
echo
echo "That was noded. README.md says how to point a kubelet or crictl at it."
