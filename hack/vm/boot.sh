#!/bin/busybox sh
# boot.sh is process 1 in the initramfs of vm.sh: it mounts the host's files,
# read-only, and goes on with guest.sh there.
busybox() { /bin/busybox "$@"; }
busybox mount -t devtmpfs dev /dev
for module in /modules/*; do
  busybox insmod "$module"
done
options=trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose
busybox mount -t 9p -o $options root /root
busybox mount -t 9p -o $options repository /root/mnt
busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /mnt/hack/vm/guest.sh
