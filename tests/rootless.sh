#!/usr/bin/env bash
# A user without privileges, in a user namespace: mount, copy-up, whiteout, opaque directory, rename of a directory, and
# the same tree after a second mount.
. "$(dirname "$0")/lib.sh"
need setpriv unshare getfattr
strata_binary
scratch ext4
install -m 755 "$STRATA" "$D/strata"
mode=$(stat -c %a /dev/fuse)
also_at_end() { chmod "$mode" /dev/fuse; }
chmod 666 /dev/fuse
mkdir "$D/home"
chown games:games "$D/home"
cat >"$D/script" <<'S'
set -euo pipefail
cd "$1/home"
mkdir -p l/d/sub l/gone u w m
echo a >l/a; echo b >l/d/b; echo s >l/d/sub/s
before=$(find l -type f -exec sha256sum {} +)
"$1/strata" mount -o lowerdir=l,upperdir=u,workdir=w m
echo more >>m/a
rm m/d/b
mv m/d m/moved
mkdir m/d
rmdir m/gone
ln m/a m/second
look() { (cd m && find . -printf '%P %y %m %U %n\n' | sort; cat a second moved/sub/s); }
one=$(look)
umount m
[ "$before" = "$(find l -type f -exec sha256sum {} +)" ]
"$1/strata" mount -o lowerdir=l,upperdir=u,workdir=w m
two=$(look)
umount m
echo "$one"
[ "$one" = "$two" ] || { echo "after a remount: $two"; exit 1; }
getfattr -R -dm 'user.overlay' u | grep -q redirect
S
setpriv --reuid games --regid games --clear-groups unshare -Urm bash "$D/script" "$D" || fail 'rootless in a user namespace'
