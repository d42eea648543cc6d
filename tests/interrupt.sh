#!/usr/bin/env bash
# Ctrl-C in the middle of pull, push, load, save and commit: one line, code 130, nothing left in the store, and the second
# pull goes on where the first stopped. A push of a long blob is sent in pieces, and mounted where the registry has it.
. "$(dirname "$0")/lib.sh"
need docker-registry umoci curl jq python3
strata_binary
scratch ext4 4G
export STRATA_ROOT=$D/store
at=127.0.0.1:5947 far=127.0.0.1:5948
registry_log='{level: info}'
serve_registry "$D" "$at"
# 4 MiB a second.
python3 "$ROOT/tests/slow.py" 5948 5947 4194304 "$D/slow.log" &
slow=$!
also_at_end() { kill "$registry" "$slow"; }
for _ in $(seq 100); do curl -sf "http://$far/v2/" >/dev/null && break; sleep 0.1; done

# An image with a layer of 40 MiB that does not shrink, and one of 5,000 files.
umoci init --layout "$D/oci"
umoci new --image "$D/oci:big"
head -c 40M /dev/urandom >"$D/random"
umoci insert --image "$D/oci:big" "$D/random" /random
mkdir "$D/many"
(cd "$D/many" && for i in $(seq 5000); do echo "$i" >"f$i"; done)
umoci insert --image "$D/oci:big" "$D/many" /many
blob=$(find "$D/oci/blobs" -type f -size +30M | xargs -n 1 basename)
size=$(stat -c %s "$D/oci/blobs/sha256/$blob")
strata pull -q "oci:$D/oci:big" >/dev/null

# Sent: in pieces, since layers are compressed anew.
strata push localhost/oci:big "$at/team/big:1" >/dev/null 2>&1
pieces=$(grep -c '"PATCH /v2/team/big/blobs/uploads/.* 202' "$D/registry.log" || :)
[ "$pieces" -ge 3 ] || fail "the layer of 40 MiB was sent in $pieces pieces"
strata rmi localhost/oci:big >/dev/null
strata pull -q "$at/team/big:1" >"$D/id"
# Mounted: nothing is sent.
strata tag "$at/team/big:1" "$at/other/big:2" >/dev/null
strata push "$at/other/big:2" 2>"$D/err" >/dev/null
grep -q '^0 layers sent' "$D/err" || fail "push to another repository: $(cat "$D/err")"
[ "$(grep -c '"POST /v2/other/big/blobs/uploads/?mount=sha256.*from=team.*" 201' "$D/registry.log")" -ge 2 ] || fail 'the registry mounted nothing'
[ "$(grep -c '"PATCH /v2/other/big/' "$D/registry.log")" = 0 ] || fail 'a layer was sent all the same'
[ "$(STRATA_ROOT=$D/copy strata pull -q "$at/other/big:2")" = "$(cat "$D/id")" ] || fail 'another image came back'

# interrupted SECONDS COMMAND…: ends it after so long, as a terminal would; true where it was not through before.
interrupted() {
  local after=$1 code=0
  shift
  env --default-signal=INT "$@" <&0 >"$D/out" 2>"$D/err" &
  local process=$!
  sleep "$after"
  kill -INT "$process" 2>/dev/null || :
  wait "$process" || code=$?
  # It had not begun when the signal came.
  [ "$code" != 130 ] || [ -s "$D/err" ] || return 1
  # Nobody opens the store before this: what is here is what the process left.
  local left; left=$(find "$STRATA_ROOT"/{staging,locks,trash,layers} -mindepth 1 -maxdepth 1 | LC_ALL=C sort)
  [ "$left" = "$layers" ] || [ "$code" = 0 ] || fail "$* left: $left"
  [ "$code" != 0 ] || return 1
  [ "$code" = 130 ] || fail "$* ended with $code: $(cat "$D/err")"
  # Beside the lines of layers that were through before.
  [[ $(grep -v ' done$' "$D/err") == 'strata: interrupted: '* && $(grep -vc ' done$' "$D/err") == 1 ]] || fail "$* said: $(cat "$D/err")"
}
settled() { layers=$(find "$STRATA_ROOT/layers" -mindepth 1 -maxdepth 1 | LC_ALL=C sort); }

# Pull, through the slow way.
export STRATA_ROOT=$D/fresh
strata images >/dev/null
settled
interrupted 4 strata pull "$far/team/big:1" || fail 'the pull was through before it was interrupted'
came=$(stat -c %s "$STRATA_ROOT/partial/$blob"* 2>/dev/null || find "$STRATA_ROOT/partial" -type f -printf '%s\n' | sort -n | tail -n 1)
[ "${came:-0}" -gt 4000000 ] || fail "of the blob ${came:-0} bytes came"
[ "$came" -lt "$size" ] || fail 'the blob came whole'
strata check >/dev/null || fail 'check complains after an interrupted pull'
strata gc >/dev/null
[ "$(strata images -q)" = '' ] || fail 'an image is shown that is not whole'
: >"$D/slow.log"
[ "$(strata pull -q "$far/team/big:1")" = "$(cat "$D/id")" ] || fail 'the second pull gives another image'
sleep 0.5
fetched=$(awk '{n += $2} END {print n}' "$D/slow.log")
[ "$fetched" -lt $((size - came + 3000000)) ] || fail "the second pull fetched $fetched bytes where $((size - came)) were left"
echo "pull: $came of $size bytes came before Ctrl-C, $fetched after"
[ -z "$(ls "$STRATA_ROOT/partial")" ] || fail 'a download is left'
strata check >/dev/null

# Push, through the slow way.
settled
strata tag "$far/team/big:1" "$far/third/big:3" >/dev/null
STRATA_ROOT=$D/second
strata pull -q "oci:$D/oci:big" >/dev/null
settled
interrupted 3 strata push localhost/oci:big "$far/fourth/big:1" || fail 'the push was through before it was interrupted'
strata check >/dev/null

# Load, save and commit, at whatever they are doing: each ends in its own time or with nothing left.
stopped=0
strata save --format oci-archive -o "$D/big.tar" localhost/oci:big
for after in 0.05 0.1 0.2 0.3 0.5; do
  ! interrupted "$after" strata save -o "$D/half.tar" localhost/oci:big || { stopped=$((stopped + 1)); [ ! -e "$D/half.tar" ] || fail 'half an archive is left'; }
  rm -f "$D/half.tar"
done
[ "$stopped" -gt 0 ] || fail 'no save was interrupted'
export STRATA_ROOT=$D/loaded
strata images >/dev/null
settled
stopped=0
for after in 0.05 0.1 0.2 0.3 0.5; do
  if interrupted "$after" strata load -i "$D/big.tar"; then
    stopped=$((stopped + 1))
  else
    strata images -q | xargs -r strata rmi >/dev/null
  fi
done
[ "$stopped" -gt 0 ] || fail 'no load was interrupted'
mkfifo "$D/pipe"
(head -c 1M "$D/big.tar"; sleep 5) >"$D/pipe" &
writer=$!
interrupted 1 strata load <"$D/pipe" || fail 'a load of a pipe that does not end was through'
kill "$writer" 2>/dev/null || :
strata check >/dev/null
export STRATA_ROOT=$D/second
strata create --name one localhost/oci:big /none >/dev/null
upper=$(find "$STRATA_ROOT/rw" -maxdepth 2 -name upper)
head -c 200M /dev/zero >"$upper/zeros"
settled
stopped=0
for after in 0.05 0.1 0.2 0.3; do
  if interrupted "$after" strata commit one localhost/committed:1; then stopped=$((stopped + 1)); fi
  settled
done
[ "$stopped" -gt 0 ] || fail 'no commit was interrupted'
strata check >/dev/null
echo "interrupted: nothing left"
