#!/usr/bin/env bash
# Two layers of this machine's own files, one union: read through, edit (copy-up), delete (whiteout).
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --quiet --locked --package strata
strata=$PWD/target/debug/strata
dir=$(mktemp -d)
trap 'umount -l "$dir/merged" 2>/dev/null || true; rm -rf "$dir"' EXIT
mkdir -p "$dir"/{base/etc,top/etc,upper,work,merged}
cp /etc/passwd /etc/debian_version "$dir/base/etc/"
echo 'Welcome to the top layer' >"$dir/top/etc/motd"
before=$(cd "$dir" && find base top -type f -exec sha256sum {} + | sort)

"$strata" mount -f -o "lowerdir=$dir/top:$dir/base,upperdir=$dir/upper,workdir=$dir/work" "$dir/merged" &
for _ in $(seq 500); do [ -e "$dir/merged/etc/passwd" ] && break; sleep 0.02; done

echo "merged/etc, from two layers:   $(ls "$dir/merged/etc" | tr '\n' ' ')"
echo 'an edit' >>"$dir/merged/etc/debian_version"
echo "edited; copied up to the upper: $(tr '\n' ' ' <"$dir/upper/etc/debian_version")"
rm "$dir/merged/etc/passwd"
echo "deleted; whiteout in the upper: $(stat -c '%n is a %F %t:%T' "$dir/upper/etc/passwd")"
echo "merged/etc now:                $(ls "$dir/merged/etc" | tr '\n' ' ')"
umount "$dir/merged"
wait
after=$(cd "$dir" && find base top -type f -exec sha256sum {} + | sort)
[ "$before" = "$after" ] || { echo 'a lower layer changed' >&2; exit 1; }
echo 'the lower layers are as they were'
