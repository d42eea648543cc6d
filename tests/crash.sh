#!/usr/bin/env bash
# kill -9 of the daemon, and in further rounds a power cut of the file system below, while files are copied up, made,
# renamed and removed: the upper layer mounts again, each file is old or new and nothing between, and what was synced
# before is there.
. "$(dirname "$0")/lib.sh"
need xfs_io python3
strata_binary
scratch ext4
mkdir -p "$D/l"
for i in $(seq 100); do head -c $((i * 20000 + 17)) /dev/urandom >"$D/l/f$i"; done
# Small ones, whose copies are synced later and together: 1 to 60 KiB, some with a hole.
for i in $(seq 300); do head -c $((i * 200 + 17)) /dev/urandom >"$D/l/s$i"; [ $((i % 11)) != 0 ] || truncate -s 90000 "$D/l/s$i"; done
# Every tenth file has a second name, and so has the one before it, whose first name is removed later on.
for i in $(seq 10 10 100); do ln "$D/l/f$i" "$D/l/g$i"; ln "$D/l/f$((i - 1))" "$D/l/g$((i - 1))"; done
before=$(tree "$D/l")

# Changes files until the mount is gone, noting each change that was acknowledged.
work() {
  cd "$D/m" || return
  for i in $(seq 100); do
    echo "one $round" | dd of="f$i" oflag=append conv=notrunc,fsync status=none || return
    echo "changed $i" >&3
    { echo "made $round" | dd of="n$i" conv=fsync status=none && mv "n$i" "made$i" && sync .; } || return
    echo "made $i" >&3
    for n in $i $((i + 100)) $((i + 200)); do
      echo "late $round" >>"s$n" || return
      if [ $((n % 7)) = 0 ]; then truncate -s 9 "s$n" || return; fi
    done
    if [ $((i % 9)) = 0 ]; then { sync && echo "all to $i" >&3; } || return; fi
    if [ $((i % 5)) = 0 ]; then { rm "f$((i - 1))" && sync .; } || return; echo "removed $((i - 1))" >&3; fi
  done
}

# Nothing that is not on the disk survives it, nor does the journal's end.
power_cut() {
  xfs_io -x -c shutdown "$D"
  wait "$worker" || :
  umount -l "$D/m"
  for _ in $(seq 100); do daemon "$D/m" >/dev/null || break; sleep 0.05; done
  for _ in $(seq 50); do umount "$D" 2>/dev/null && break; sleep 0.1; done
  # A mount namespace that any program has made meanwhile has a copy of the mount, which would come back as it is.
  for _ in $(seq 600); do [ -n "$(losetup -j "$IMAGE")" ] || break; sleep 0.1; done
  mount -o loop "$IMAGE" "$D"
}

log=$IMAGE.log # not on the disk that is cut off
also_at_end() { rm -f "$log"; }
for round in $(seq 20); do
  rm -rf "$D/u" "$D/w"
  union
  sync -f "$D"
  process=$(daemon "$D/m") || fail 'the daemon is not found'
  (work) 3>"$log" 2>/dev/null &
  worker=$!
  sleep "$(awk -v r="$round" 'BEGIN {print 0.03 * r * r % 1.3}')"
  if [ "$round" -gt 12 ]; then
    power_cut
  else
    kill -9 "$process"
    wait "$worker" || :
    umount -l "$D/m"
    for _ in $(seq 100); do daemon "$D/m" >/dev/null || break; sleep 0.05; done
  fi
  union
  for i in $(seq 100); do
    removed=$(grep -cx "removed $i" "$log" || :)
    changed=$(grep -cx "changed $i" "$log" || :)
    made=$(grep -cx "made $i" "$log" || :)
    if [ -e "$D/m/f$i" ]; then
      [ "$removed" = 0 ] || fail "round $round: f$i is back"
      if ! cmp -s "$D/l/f$i" "$D/m/f$i"; then
        cmp -s <(cat "$D/l/f$i"; echo "one $round") "$D/m/f$i" || fail "round $round: f$i is neither old nor new"
      else
        [ "$changed" = 0 ] || fail "round $round: what was synced to f$i is lost"
      fi
    else
      # Its removal may have been done and not acknowledged, as the last thing.
      [ "$removed" = 1 ] || grep -qx "made $((i + 1))" "$log" || fail "round $round: f$i is gone"
    fi
    if [ -e "$D/l/g$i" ]; then
      links=$(stat -c %h "$D/m/g$i")
      if [ -e "$D/m/f$i" ]; then
        cmp -s "$D/m/f$i" "$D/m/g$i" || fail "round $round: f$i and g$i are two files"
        [ "$links" = 2 ] || fail "round $round: g$i has $links links"
      else
        cmp -s <(cat "$D/l/f$i"; echo "one $round") "$D/m/g$i" || fail "round $round: what was synced to f$i is lost in g$i"
        [ "$links" = 1 ] || fail "round $round: g$i has $links links, and f$i is gone"
      fi
    fi
    [ "$made" = 0 ] || [ "$(cat "$D/m/made$i")" = "made $round" ] || fail "round $round: made$i is lost"
  done
  python3 - "$D" "$round" "$(sed -n 's/^all to //p' "$log" | tail -n 1)" <<'P' || fail "round $round"
import sys
base, late, synced = sys.argv[1], f"late {sys.argv[2]}\n".encode(), int(sys.argv[3] or 0)
for i in range(1, 301):
    old, now = (open(f"{base}/{layer}/s{i}", "rb").read() for layer in "lm")
    new = old[:9] if i % 7 == 0 else old + late
    if now != new:
        if (i - 1) % 100 < synced: sys.exit(f"what was synced to s{i} is lost")
        if now not in (old, old + late): sys.exit(f"s{i} is neither old nor new: {len(now)} bytes of {len(old)}")
P
  unmount "$D/m"
  left=$(find "$D/w/work" -mindepth 1 | wc -l)
  [ "$left" = 0 ] || fail "round $round: $left things are left in the work directory"
  echo "round $round: cut off after $(wc -l <"$log") acknowledged changes"
  [ "$before" = "$(tree "$D/l")" ] || fail 'the lower layer changed'
done
