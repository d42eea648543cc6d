#!/usr/bin/env bash
# fsx (a crate): random reads, writes, cuts, holes and mappings, with every read compared; the file in the upper layer,
# and again one that was in a lower layer before.
. "$(dirname "$0")/lib.sh"
need fsx
strata_binary
scratch ext4
mkdir -p "$D/l"
# Zeros that are written, not holes: what fsx takes a block device to hold.
dd if=/dev/zero of="$D/l/lower" bs=64k count=16 status=none
before=$(tree "$D/l")
union
cat >"$D/upper.toml" <<'T'
flen = 1048576
[weights]
truncate = 2
invalidate = 1
close_open = 2
punch_hole = 2
copy_file_range = 2
T
cat >"$D/lower.toml" <<'T'
flen = 1048576
blockmode = true
[weights]
close_open = 0
truncate = 0
posix_fallocate = 0
invalidate = 1
T
for seed in 1 2 3; do
  fsx -q -S "$seed" -N 10000 -f "$D/upper.toml" -P "$D" "$D/m/upper$seed" || fail "upper, seed $seed"
  echo "upper, seed $seed: 10000 operations"
  fsx -q -S "$seed" -N 10000 -f "$D/lower.toml" -P "$D" "$D/m/lower" || fail "lower, seed $seed"
  echo "lower, seed $seed: 10000 operations"
  unmount "$D/m"
  # The lower file again, not copied up.
  rm "$D/u/lower"
  [ "$before" = "$(tree "$D/l")" ] || fail 'the lower layer changed'
  union
done
