#!/usr/bin/env bash
# vm.sh runs root tests on cgroup v2: in a virtual machine with Debian's own
# kernel, whose root is this machine's, read-only. Nothing is installed or
# changed here outside bin/vm.
#
#   hack/vm.sh                     what hack/vm/tests lists
#   hack/vm.sh PACKAGE [PATTERN]   one package: hack/vm.sh test/e2e 'TestStats|TestStop'
#
# The exit status is the tests'. NODED_VM_LIMIT bounds all of it, in seconds.
set -euo pipefail
cd "$(dirname "$0")/.."
limit=${NODED_VM_LIMIT:-900}
vm=bin/vm kernel=bin/vm/kernel

if [[ $(dpkg --print-architecture) != amd64 ]]; then
  echo "vm.sh: the virtual machine is made for amd64" >&2
  exit 1
fi

kernel_package() { apt-cache depends linux-image-amd64 2>/dev/null | awk '$1 == "Depends:" { print $2; exit }'; }

# fetch_kernel unpacks what is needed of Debian's kernel. Installing the package
# would change what this machine boots.
fetch_kernel() {
  local package deb
  package=$(kernel_package)
  if [[ ! $package ]]; then
    apt-get update -q
    package=$(kernel_package)
  fi
  [[ $package && -e $kernel/$package ]] && return
  echo "+ apt-get download $package"
  rm -rf "$kernel" && mkdir -p "$kernel"
  (cd "$kernel" && apt-get download -q "${package:?is not known to apt}")
  deb=$(echo "$kernel"/*.deb)
  dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$kernel" --wildcards './boot/vmlinuz-*' './lib/modules/*/modules.*' \
    './lib/modules/*/kernel/'{arch,crypto,fs,lib,net}/'*' './lib/modules/*/kernel/drivers/'{block,net,virtio}/'*'
  depmod -b "$kernel" "$(basename "$kernel"/lib/modules/*)" 2>/dev/null # it misses those left out
  rm "$deb"
  touch "$kernel/$package"
}

# make_initramfs makes what the kernel starts first: busybox, and the modules
# that reach this machine's files.
make_initramfs() {
  local version module i=10
  version=$(basename "$kernel"/lib/modules/*)
  rm -rf $vm/initramfs && mkdir -p $vm/initramfs/{bin,modules,proc,sys,dev,root}
  cp /bin/busybox $vm/initramfs/bin/
  cp hack/vm/boot.sh $vm/initramfs/init
  for module in $(for m in virtio_pci 9pnet_virtio 9p; do
    modprobe -d "$kernel" -S "$version" -D $m
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }'); do
    cp "$module" "$vm/initramfs/modules/$((i++))-$(basename "$module")"
  done
  (cd $vm/initramfs && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >$vm/initramfs.gz
}

# build_tests compiles the test programs here, where it is quick, and writes
# down for guest.sh which to run in which folder.
build_tests() {
  local package pattern binary
  rm -rf $vm/tests && mkdir -p $vm/tests
  while read -r package pattern; do
    [[ $package && $package != \#* ]] || continue
    binary=$(tr / - <<<"$package").test
    (cd "$package" && go test -c -o "$OLDPWD/$vm/tests/$binary" .)
    printf '%s %s %s\n' "$package" "$binary" "${pattern:-.}" >>$vm/tests/list
  done
}

# boot runs the machine to its end. Without KVM each instruction is translated;
# the options leave out what only costs time there, such as clocks that are read
# by input and output.
boot() {
  local options="console=ttyS0 quiet panic=-1 oops=panic mitigations=off init_on_alloc=0 audit=0 nokaslr nowatchdog no_timer_check"
  options+=" clocksource=tsc tsc=reliable rcupdate.rcu_expedited=1 transparent_hugepage=always"
  timeout -k 10 "$limit" qemu-system-x86_64 -M pc,hpet=off -accel kvm -accel tcg,thread=multi -smp 2 -m 3072 -nodefaults -display none -no-reboot \
    -kernel "$kernel"/boot/vmlinuz-* -initrd $vm/initramfs.gz -serial stdio \
    -append "$options" \
    -virtfs local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap \
    -virtfs "local,path=$PWD,mount_tag=repository,security_model=none,readonly=on,multidevs=remap" </dev/null
}

main() {
  local status
  mkdir -p $vm
  fetch_kernel
  make_initramfs
  if (($#)); then echo "$*"; else cat hack/vm/tests; fi | build_tests
  echo "+ boot $(basename "$kernel"/boot/vmlinuz-*), at most $limit s"
  boot 2>&1 | tee $vm/console.log | sed -u 's/\r$//' || true
  status=$(sed -n 's/^vm: exit status \([0-9]*\)\r*$/\1/p' $vm/console.log | tail -n 1)
  if [[ ! $status ]]; then
    echo "vm.sh: the machine broke or did not come to its end within $limit s; above is its console, also in $vm/console.log" >&2
    exit 1
  fi
  exit "$status"
}

main "$@"
