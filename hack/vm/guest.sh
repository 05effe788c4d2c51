#!/usr/bin/env bash
# guest.sh is process 1 of the virtual machine of vm.sh: it makes the usual
# mounts with cgroup v2 alone, runs the tests, and then those in test/systemd
# under a systemd that takes its place. It says their exit status on the console
# and turns the machine off. The repository is at /mnt.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export NODED_TEST_RUNC=/mnt/bin/runc NODED_BIN=/mnt/bin/noded CNI_PATH=/usr/lib/cni

mounts() {
  local fd dir
  mount -t proc proc /proc
  mount -t sysfs sysfs /sys
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  mount -t securityfs securityfs /sys/kernel/security
  mount -t bpf bpf /sys/fs/bpf
  mkdir -p /dev/pts /dev/shm /dev/mqueue
  mount -t devpts -o ptmxmode=666 devpts /dev/pts
  mount -t tmpfs shm /dev/shm
  mount -t mqueue mqueue /dev/mqueue
  for fd in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    ln -s "/proc/self/${fd#*:}" "/dev/${fd%:*}"
  done
  # What tests write is in memory: the host's files are read-only.
  for dir in /tmp /run /var/lib /var/log /var/tmp /root; do
    mount -t tmpfs -o mode=755 tmpfs $dir
  done
  chmod 1777 /tmp /var/tmp /dev/shm
}

# modules lets the kernel load those of vm.sh by itself, as on any machine.
modules() {
  printf '#!/bin/sh\nexec /sbin/modprobe -d /mnt/bin/vm/kernel "$@"\n' >/run/modprobe
  chmod +x /run/modprobe
  echo /run/modprobe >/proc/sys/kernel/modprobe
  /run/modprobe -a overlay bridge veth nf_tables loop
}

# controllers gives the groups below the root all that the kernel has.
controllers() {
  local c
  for c in $(</sys/fs/cgroup/cgroup.controllers); do
    echo "+$c" >/sys/fs/cgroup/cgroup.subtree_control
  done
}

# run_tests runs the lines of vm.sh's list. It prints a line for each test, why
# those left out were, and all that a failed package said.
run_tests() {
  local package binary pattern status=0 begin log=/run/output
  while read -r package binary pattern; do
    begin=$SECONDS
    cd "/mnt/$package"
    "/mnt/bin/vm/tests/$binary" -test.v -test.timeout 15m -test.run "$pattern" 2>&1 </dev/null | tee $log | grep --line-buffered -E '^--- |^panic'
    if ((PIPESTATUS[0] == 0)); then
      grep -B 1 -E '^ *--- SKIP' $log | grep -v -E -e '^--$' -e '^--- '
      echo "ok   $package  $((SECONDS - begin)) s"
    else
      cat $log
      echo "FAIL $package  $((SECONDS - begin)) s"
      status=1
    fi
  done
  return $status
}

# start_systemd ends this script: systemd becomes process 1 and runs it again.
# What a machine of its own would start is left out, but for the journal.
start_systemd() {
  local unit units=/run/systemd/system
  mkdir -p $units
  for unit in /{etc,usr/lib}/systemd/system/*.{wants,requires}/*; do
    [[ $unit == *journald* ]] || ln -sf /dev/null "$units/${unit##*/}"
  done
  cat >$units/vm.target <<UNIT
[Unit]
Requires=vm.service
UNIT
  cat >$units/vm.service <<UNIT
[Unit]
After=basic.target systemd-journald.service
Wants=basic.target systemd-journald.service
[Service]
Type=oneshot
ExecStart=$0 systemd
StandardOutput=tty
StandardError=tty
UNIT
  TERM=dumb exec /lib/systemd/systemd --unit=vm.target --log-target=null
}

finish() {
  echo "vm: exit status $1"
  busybox poweroff -f
}

list=/mnt/bin/vm/tests/list
if [[ ${1-} == systemd ]]; then
  grep '^test/systemd ' $list | run_tests || touch /run/failed
  [[ ! -e /run/failed ]]
  finish $?
fi
mounts
modules
controllers
hostname vm
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
echo "Linux $(uname -r), cgroup v2 with $(</sys/fs/cgroup/cgroup.controllers)"
grep -v '^test/systemd ' $list | run_tests || touch /run/failed
if grep -q '^test/systemd ' $list; then
  start_systemd
fi
[[ ! -e /run/failed ]]
finish $?
