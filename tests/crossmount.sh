#!/usr/bin/env bash
# One format with the kernel's overlayfs, over real files: what Strata wrote, the kernel shows; what the kernel wrote,
# Strata shows. The lower layers are as before.
. "$(dirname "$0")/lib.sh"
need getfattr setfacl
strata_binary
scratch ext4 3G
mkdir -p "$D"/{l1,l2,l3,u,w,m}
cp -a /etc "$D/l3/"
mkdir -p "$D/l3/usr/share" && cp -a /usr/share/perl5 "$D/l3/usr/share/" 2>/dev/null || cp -a /usr/share/doc "$D/l3/usr/share/"
mkdir -p "$D"/{l2,l1}/etc/apt
echo two >"$D/l2/etc/motd"
echo one >"$D/l1/etc/motd"
setfattr -n trusted.overlay.opaque -v y "$D/l1/etc/apt"
mknod "$D/l2/etc/hostname" c 0 0
# Made by the kernel: a layer with redirects and whiteouts, between those above.
mount -t overlay overlay -o "redirect_dir=on,lowerdir=$D/l3,upperdir=$D/l2,workdir=$D/w" "$D/m"
mv "$D/m/usr/share" "$D/m/usr/shared"
mv "$D/m/etc/default" "$D/m/etc/defaults"
rm -r "$D/m/etc/init.d"
umount "$D/m"
rm -rf "$D/w"; mkdir "$D/w"
layers="$D/l1:$D/l2:$D/l3"
before=$(tree "$D/l1"; tree "$D/l2"; tree "$D/l3")

change() { # in the merged tree at $D/m, with a number
  cd "$D/m"
  echo "$1" >>etc/motd
  find etc -maxdepth 1 -type f -name '*.conf' | head -n 10 | while read -r f; do echo "# $1" >>"$f"; done
  chmod 600 "etc/passwd"; chown 5:6 etc/group
  setfattr -n user.k -v "$1" etc/passwd
  setfacl -m u:7:r etc/group
  mv usr/shared "usr/again$1"
  mkdir -p "etc/apt/new/$1"
  mv etc/defaults "etc/moved$1"
  rm -rf etc/cron.d; mkdir etc/cron.d; echo "$1" >etc/cron.d/x
  ln etc/motd "etc/motd$1"
  ln -s "to$1" "etc/link$1"
  mkfifo "etc/fifo$1"; mknod "etc/null$1" c 1 3
  truncate -s 1M "etc/hole$1"
  cd /
}
look() { tree "$D/m"; (cd "$D/m" && find . -exec getfattr -h -dm '^user|^security|^system' --absolute-names {} + 2>/dev/null | LC_ALL=C sort); }

for first in strata kernel; do
  rm -rf "$D/u" "$D/w"; mkdir "$D/u" "$D/w"
  by_kernel() { mount -t overlay overlay -o "redirect_dir=on,lowerdir=$layers,upperdir=$D/u,workdir=$D/w" "$D/m"; }
  by_strata() { strata mount -o "lowerdir=$layers,upperdir=$D/u,workdir=$D/w" "$D/m"; }
  case $first in strata) second=kernel ;; *) second=strata ;; esac
  "by_$first"; change 1; look >"$D/a"; umount "$D/m"
  "by_$second"; look >"$D/b"
  diff "$D/a" "$D/b" >"$D/diff" || { head -n 20 "$D/diff"; fail "$second does not show what $first wrote"; }
  # And once more the other way, over what the first has written.
  mv "$D/m/usr/again1" "$D/m/usr/shared"; mv "$D/m/etc/moved1" "$D/m/etc/defaults"
  change 2; look >"$D/a"; umount "$D/m"
  "by_$first"; look >"$D/b"; umount "$D/m"
  diff "$D/a" "$D/b" >"$D/diff" || { head -n 20 "$D/diff"; fail "$first does not show what $second wrote"; }
  echo "$first, then $second, then $first: $(wc -l <"$D/a") lines equal"
done
[ "$before" = "$(tree "$D/l1"; tree "$D/l2"; tree "$D/l3")" ] || fail 'a lower layer changed'
