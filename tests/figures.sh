#!/usr/bin/env bash
# What the images of the shared corpus take in a store, and how long that takes: every image but big:1 on XFS, btrfs and
# ext4, each on a disk of its own. Not a test: its table is in docs/decisions/022-figures.md. As root.
# tests/figures.sh [FILE SYSTEM…]; STRATA is the program (a release build), STRATA_CORPUS the corpus.
. "$(dirname "$0")/lib.sh"
need jq mkfs.xfs mkfs.btrfs mkfs.ext4
corpus=${STRATA_CORPUS:-$CORPUS}
[ -n "${STRATA:-}" ] || { cargo build -q --release --locked -p strata --manifest-path "$ROOT/Cargo.toml"; STRATA=$ROOT/target/release/strata; }
images=()
for layout in "$corpus"/oci/*; do
  while read -r tag; do
    [ "$(basename "$layout"):$tag" = big:1 ] || images+=("oci:$layout:$tag")
  done < <(jq -r '.manifests[].annotations["org.opencontainers.image.ref.name"]' "$layout/index.json")
done
[ ${#images[@]} -gt 0 ] || skip "no corpus in $corpus"
work=$(mktemp -d /var/tmp/strata-figures.XXXXXX)
trap 'mountpoint -q "$work/at" && umount -l "$work/at"; rm -rf "$work"' EXIT
mkdir "$work/at"
used() { sync -f "$work/at"; df -B1 --output=used "$work/at" | tail -n 1; }
mib() { echo $((($1 + 524288) / 1048576)); }
now() { date +%s.%N; }
seconds() { LC_ALL=C awk -v a="$1" -v b="$2" 'BEGIN {printf "%.2f", b - a}'; }
# Warm: what is measured is the work, not this machine's disk.
for image in "${images[@]}"; do layout=${image#oci:}; cat "${layout%:*}"/blobs/sha256/* >/dev/null; done
echo "${#images[@]} images"
echo "| file system | MiB on disk | names | inodes | MiB of recipes and database | pull all, s | check, s | df, s | rmi all, s |"
echo "|-|-|-|-|-|-|-|-|-|"
[ $# -gt 0 ] || set -- xfs btrfs ext4
for type; do
  truncate -s 12G "$work/disk"
  "mkfs.$type" -q "$work/disk"
  mount -o loop "$work/disk" "$work/at"
  export STRATA_ROOT=$work/at/store
  "$STRATA" images >/dev/null
  before=$(used)
  begun=$(now)
  for image in "${images[@]}"; do "$STRATA" pull -q "$image" >/dev/null; done
  sync -f "$work/at"
  pulled=$(seconds "$begun" "$(now)")
  # btrfs gives space back, and counts it, when its transactions end.
  [ "$type" != btrfs ] || { sleep 35; sync -f "$work/at"; }
  size=$(mib $(($(used) - before)))
  names=$(find "$STRATA_ROOT" | wc -l)
  inodes=$(find "$STRATA_ROOT" -printf '%i\n' | sort -u | wc -l)
  own=$(mib "$(find "$STRATA_ROOT" \( -name recipe -o -name 'db.sqlite*' \) -maxdepth 3 -printf '%s\n' | awk '{n += $1} END {print n}')")
  begun=$(now); "$STRATA" check >/dev/null; checked=$(seconds "$begun" "$(now)")
  begun=$(now); "$STRATA" df >/dev/null; counted=$(seconds "$begun" "$(now)")
  mapfile -t all < <("$STRATA" images -q | sort -u)
  begun=$(now); "$STRATA" rmi "${all[@]}" >/dev/null; removed=$(seconds "$begun" "$(now)")
  echo "| $type | $size | $names | $inodes | $own | $pulled | $checked | $counted | $removed |"
  while [ -n "$(ls "$STRATA_ROOT"/{layers,trash} | grep -v :)" ]; do sleep 0.2; done
  [ -z "$(ls "$STRATA_ROOT/layers")" ] || fail 'layers are left'
  sleep 0.3
  umount "$work/at"
  rm "$work/disk"
done
