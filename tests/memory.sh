#!/usr/bin/env bash
# Memory of the daemon while the kernel knows a whole tree, an inode, and once the kernel has forgotten it. FILES sets the
# size of the tree; a million takes minutes.
. "$(dirname "$0")/lib.sh"
need python3 find
FILES=${FILES:-100000}
BYTES=300   # an inode, at most
SLACK=16384 # KiB above the start, at most, when all is forgotten
strata_binary
scratch ext4
mkdir "$D/l"
mount -t tmpfs -o nr_inodes=0,mode=755 tmpfs "$D/l"
python3 - "$D/l" "$FILES" <<'P'
import os, sys
root, files = sys.argv[1], int(sys.argv[2])
for d in range((files + 999) // 1000):
    os.mkdir(f"{root}/d{d}")
    fd = os.open(f"{root}/d{d}", os.O_RDONLY)
    for f in range(1000):
        os.close(os.open(f"file{f}", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
    os.close(fd)
P
union
process=$(daemon "$D/m") || fail 'the daemon is not found'
rss() { awk '/^VmRSS/ {print $2}' "/proc/$process/status"; }
known() { awk '$1 == "fuse_inode" {print $2}' /proc/slabinfo; }

# What is allocated once is not counted: threads, buffers, the allocator's own.
find "$D/m/d0" -printf '%s\n' >"$D/warm"
echo 2 >/proc/sys/vm/drop_caches
start=$(rss) others=$(known)
seen=$(find "$D/m" -printf '%s\n' | wc -l)
peak=$(rss)
now=$(known)
[ "$seen" -gt "$FILES" ] || fail "find saw $seen of $FILES files"
# Where memory is short, the kernel has forgotten some already.
inodes=$((now - others))
[ "$inodes" -gt $((FILES / 2)) ] || fail "the kernel knows $inodes inodes of $FILES"
each=$(((peak - start) * 1024 / inodes))
echo 2 >/proc/sys/vm/drop_caches
for _ in $(seq 50); do
  end=$(rss)
  [ "$end" -gt $((start + SLACK)) ] || break
  sleep 0.2
done
echo "1 passed: $start KiB at the start, $peak KiB with $inodes inodes ($each bytes each), $end KiB when they are forgotten"
[ "$each" -le "$BYTES" ] || fail "$each bytes an inode; $BYTES are allowed"
[ "$end" -le $((start + SLACK)) ] || fail "$end KiB stay of $peak KiB; it began with $start KiB"
unmount "$D/m"
