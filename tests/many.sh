#!/usr/bin/env bash
# Ten processes pull, remove, tag, save, collect and check in one store at once for a minute, some of them killed in the
# middle: afterwards every image that is shown is whole, and no byte is left that nothing needs. tests/many.sh [SECONDS]
. "$(dirname "$0")/lib.sh"
need umoci jq
strata_binary
seconds=${1:-60}
scratch xfs 4G
export STRATA_ROOT=$D/store
umoci init --layout "$D/oci"
umoci new --image "$D/oci:0"
mkdir "$D/base"
for i in $(seq 300); do head -c $((i * 37)) /dev/urandom >"$D/base/f$i"; done
umoci insert --image "$D/oci:0" "$D/base" /base
# Four images that share a layer, and files of the others.
for i in 1 2 3 4; do
  umoci tag --image "$D/oci:0" "$i"
  mkdir "$D/own$i"
  cp "$D/base"/f1?? "$D/own$i"
  head -c 3M /dev/urandom >"$D/own$i/own"
  umoci insert --image "$D/oci:$i" "$D/own$i" "/own"
done
strata images >/dev/null
until=$((SECONDS + seconds))
# A process may find that what it wants has gone, is there twice, or is in use: nothing else is allowed to be wrong.
allowed='there is no image|did you mean|^Removed|^Untagged'
worker() { # NUMBER
  RANDOM=$1
  local image name count=0 code
  while [ $SECONDS -lt $until ]; do
    image=$((RANDOM % 4 + 1)) name=localhost/oci:$((RANDOM % 4 + 1)) code=0
    case $((RANDOM % 10)) in
      0 | 1 | 2 | 3) strata pull -q "oci:$D/oci:$image" ;;
      4 | 5) strata rmi "$name" ;;
      6) strata tag "$name" "localhost/other:$1" ;;
      7) strata gc ;;
      8) if [ $((RANDOM % 2)) = 0 ]; then strata check; else rm -f "$D/save-$1.tar"; strata save -o "$D/save-$1.tar" "$name"; fi ;;
      9) timeout -s KILL "0.0$((RANDOM % 9 + 1))" strata pull -q "oci:$D/oci:$image" || [ $? = 137 ] ;;
    esac >"$D/out-$1" 2>&1 || code=$?
    if [ "$code" != 0 ] && ! grep -qE "$allowed" "$D/out-$1"; then
      { echo "process $1, step $count, code $code:"; cat "$D/out-$1"; } >>"$D/wrong"
    fi
    count=$((count + 1))
  done
  echo "$count" >"$D/count-$1"
}
workers=()
for i in $(seq 10); do worker "$i" & workers+=($!); done
wait "${workers[@]}"
[ ! -e "$D/wrong" ] || { head -n 40 "$D/wrong"; fail 'something went wrong while all were at it'; }
strata check || fail 'check complains'
steps=$(cat "$D"/count-* | awk '{n += $1} END {print n}')
[ "$steps" -gt 100 ] || fail "only $steps steps"
# Whole: each image that is shown comes out as it went in.
for name in $(strata images --json | jq -r '.[].names[]? | select(startswith("localhost/oci"))'); do
  diff <(strata history --json "$name" | jq -S .) <(STRATA_ROOT=$D/alone strata pull -q "oci:$D/oci:${name##*:}" >/dev/null && STRATA_ROOT=$D/alone strata history --json "$name" | jq -S .) || fail "$name is another image"
done
strata images --json | jq -r '.[].names[]?' | xargs -r strata rmi >/dev/null
strata gc >/dev/null
left=$(find "$STRATA_ROOT"/{layers,staging,partial,trash,locks,rw} -mindepth 1)
[ -z "$left" ] || fail "left: $left"
echo "$steps steps of ten processes in $seconds s"
