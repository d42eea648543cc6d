#!/usr/bin/env bash
# A directory of many names removed, then stress-ng's file-system stressors with verification, then dbench, on a union. What
# fails on plain ext4 as well does not count.
. "$(dirname "$0")/lib.sh"
need stress-ng dbench
strata_binary
scratch ext4 4G
mkdir -p "$D/l/below/sub" "$D/plain"
for i in $(seq 50); do echo "$i" >"$D/l/below/$i"; done
python3 - "$D/l" <<'P'
import os, sys
for name, count in ("many", 110_000), ("some", 5_000), ("others", 5_000):
    os.mkdir(f"{sys.argv[1]}/{name}")
    fd = os.open(f"{sys.argv[1]}/{name}", os.O_RDONLY)
    for number in range(count):
        os.mknod(f"file{number}", dir_fd=fd)
P
before=$(tree "$D/l")
union
# rm takes 100,000 names at a time, from what the kernel keeps of a listing, and asks us for the rest when those are gone;
# what is remembered of that listing must still be there after others.
for dir in many some others; do
  ls -f "$D/m/$dir" >/dev/null
done
timeout -k 10 300 rm -rf "$D/m/many" || fail 'rm -rf of 110,000 names'
[ "$(ls "$D/m" | tr '\n' ' ')" = 'below others some ' ] || fail "after rm -rf there is $(ls "$D/m")"
stressors=(access chdir chmod chown copy-file dentry dir dirdeep dirmany fallocate fcntl file-ioctl filename flock fpunch
  getdent hdd inotify iomix lease link locka lockf lockofd metamix mknod open rename seek symlink sync-file touch utime
  xattr)
run() { # STRESSOR DIRECTORY
  timeout -k 10 120 stress-ng --"$1" 2 --"$1"-ops "${OPS:-200}" --timeout 2s --verify --no-rand-seed --temp-path "$2" \
    >"$D/log" 2>&1
}
ran=0
for stressor in "${stressors[@]}"; do
  if ! run "$stressor" "$D/m"; then
    cp "$D/log" "$D/union.log"
    run "$stressor" "$D/plain" || { echo "$stressor: fails on plain ext4 too"; continue; }
    cat "$D/union.log"
    fail "stress-ng --$stressor"
  fi
  ran=$((ran + 1))
done
echo "$ran stressors of stress-ng"
loadfile=/usr/share/dbench/client.txt
[ -e "$loadfile" ] || loadfile=$(dpkg -L dbench | grep -m 1 'client.txt')
timeout -k 10 120 dbench -c "$loadfile" -D "$D/m" -t 8 4 >"$D/log" 2>&1 || { tail -n 20 "$D/log"; fail dbench; }
! grep -iE 'fail|error' "$D/log" | grep -v 'barrier semaphore' || fail 'dbench reports errors'
grep Throughput "$D/log" || fail 'dbench did not end'
unmount "$D/m"
[ "$before" = "$(tree "$D/l")" ] || fail 'the lower layer changed'
