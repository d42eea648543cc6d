#!/usr/bin/env bash
# Makes in DIRECTORY a kernel of Debian's and an initial file system, which runs a script over the files of the machine
# that emulates it: for what the kernel of this machine lacks. tests/kernel.sh DIRECTORY
set -euo pipefail
out=$1 tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mmdebstrap -q --variant=extract --include=linux-image-amd64 trixie "$tree/debian"
mkdir -p "$out" "$tree"/root/{bin,proc,sys,dev,modules,host,change,whole}
cp "$(command -v busybox)" "$tree/root/bin/busybox"
version=$(ls "$tree/debian/usr/lib/modules")
depmod -b "$tree/debian/usr" "$version"
for module in 9p 9pnet_virtio virtio_pci overlay xfs loop; do
  modprobe -d "$tree/debian/usr" -S "$version" --show-depends "$module"
done | awk '$1 == "insmod" && !seen[$2]++ {print $2}' | while read -r file; do
  name=$(basename "${file%.xz}")
  if [[ $file == *.xz ]]; then xz -dc "$file"; else cat "$file"; fi >"$tree/root/modules/$name"
  echo "$name" >>"$tree/root/modules/order"
done
cat >"$tree/root/init" <<'T'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod "/modules/$module"; done
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose host /host
mount -t tmpfs change /change
mkdir /change/upper /change/work
mount -t overlay -o lowerdir=/host,upperdir=/change/upper,workdir=/change/work whole /whole
cd /whole
mount -t proc proc proc
mount -t sysfs sys sys
mount -t cgroup2 groups sys/fs/cgroup
mount -t devtmpfs dev dev
mkdir -p dev/pts dev/shm
mount -t devpts pts dev/pts
mount -t tmpfs shm dev/shm
mount -t tmpfs run run
mount -t tmpfs -o size=3g tmp var/tmp
ip link set lo up
script=$(sed 's/.*strata=//; s/ .*//' /proc/cmdline)
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb
cd /
exec /bin/switch_root /whole /bin/bash -c "
  cd /
  bash '$script'
  echo the script has ended with \$?
  sync
  echo b >/proc/sysrq-trigger"
T
chmod +x "$tree/root/init"
(cd "$tree/root" && find . | cpio -o -H newc --quiet | gzip -1) >"$out/initrd.new"
cp "$tree/debian/boot/vmlinuz-$version" "$out/vmlinuz"
mv "$out/initrd.new" "$out/initrd"
