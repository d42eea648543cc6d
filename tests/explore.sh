#!/usr/bin/env bash
# The browser of layers in a real terminal, by keyboard; the figures that it and --json give are those of the trees that the
# kernel's overlayfs shows. On an image made for it, on a container that runs, and on large images of the corpus.
. "$(dirname "$0")/lib.sh"
need umoci jq
/usr/bin/python3 -c 'import pyte' 2>/dev/null || skip "python3-pyte is not installed (tests/tools.sh installs it)"
images busybox:1 nginx:1 many:120
strata_binary
scratch ext4 4G
export STRATA_ROOT=$D/store
also_at_end() { strata rm -f web >/dev/null 2>&1; }

# Three layers: files, files in their place, marks of each kind.
umoci init --layout "$D/oci"
umoci new --image "$D/oci:three"
umoci unpack --image "$CORPUS/oci/busybox:1" "$D/busybox" >/dev/null
bytes() { head -c "$2" /dev/zero >"$1"; }
one=$D/one two=$D/two three=$D/three
cp -a "$D/busybox/rootfs" "$one"
mkdir -p "$one"/{opaque,deep/er} "$two" "$three/opaque"
bytes "$one/big" 200000; bytes "$one/gone" 3000; bytes "$one/opaque/below" 500; bytes "$one/plain" 10
bytes "$one/deep/er/$(printf 'no\xff\x1b')" 7
bytes "$two/big" 100; bytes "$two/more" 40
bytes "$three/opaque/new" 5; bytes "$three/once" 9; ln "$three/once" "$three/twice"
touch "$three/.wh.gone" "$three/.wh.never" "$three/opaque/.wh..wh..opq"
for layer in one two three; do
  tar -C "$D/$layer" -cf "$D/$layer.tar" .
  umoci raw add-layer --image "$D/oci:three" --history.created_by "RUN ${layer/three/third}" "$D/$layer.tar"
done
strata pull -q "oci:$D/oci:three" >/dev/null
strata pull -q "oci:$CORPUS/oci/nginx:1" >/dev/null
strata pull -q "oci:$CORPUS/oci/many:120" >/dev/null
image=$(strata images --json | jq -r '.[].names[] | select(test("three"))')

expect() { # WHAT GOT WANTED
  [ "$2" = "$3" ] || fail "$1: $2, not $3"
}
strata explore --json "$image" >"$D/figures"
got() { jq -c "$1" "$D/figures"; }
expect 'the third layer adds' "$(got '.layers[2].added')" '{"names":3,"bytes":14}'
expect 'it deletes' "$(got '.layers[2].deleted')" '{"names":1,"bytes":3500}'
expect 'of what is not there' "$(got '.layers[2].deleted_nothing')" 1
expect 'the second hides' "$(got '.layers[1].hides')" '{"names":1,"bytes":200000}'
expect 'the first wastes' "$(got '.layers[0].wasted')" '{"names":3,"bytes":203500}'
expect 'paths that waste' "$(got '[.wasted_paths[] | "\(.path) \(.bytes) \(.shown)"]')" \
  '["/big 200000 true","/gone 3000 false","/opaque/below 500 false"]'
expect 'the history' "$(got '[.layers[].command]')" '["RUN one","RUN two","RUN third"]'

# Without a terminal it says what to do.
strata explore "$image" >"$D/out" 2>"$D/err" </dev/null && fail 'it draws without a terminal'
grep -q -- --json "$D/err" || fail "without a terminal it says: $(cat "$D/err")"
strata explore --json nothing-like-it 2>"$D/err" && fail 'it explores what is not there'
grep -q 'no image "nothing-like-it"' "$D/err" || fail "of nothing it says: $(cat "$D/err")"

# What the kernel shows of the same layers, and what the store counted when they came.
for of in "$image" $(strata images --json | jq -r '.[].names[] | select(test("nginx|many"))'); do
  strata explore --json "$of" >"$D/of"
  mkdir -p "$D/m"
  if [ "$(jq '.layers | length' "$D/of")" -lt 50 ]; then
    mount -t overlay overlay -o "ro,lowerdir=$(strata layers --json "$of" | jq -r '[.[].path] | join(":")')" "$D/m"
  else
    strata mount -o "ro,lowerdir=$(strata layers --json "$of" | jq -r '[.[].path] | join(":")')" "$D/m"
  fi
  names=$(find "$D/m" -mindepth 1 -printf x | wc -c)
  # Names of one file are of one inode, but for those that different layers have: these are other files.
  size=$(find "$D/m" -type f -printf '%i %s\n' | sort -u | awk '{n += $2} END {printf "%d", n}')
  umount "$D/m"
  expect "$of: names shown" "$(jq .shown.names "$D/of")" "$names"
  expect "$of: bytes shown" "$(jq .shown.bytes "$D/of")" "$size"
  expect "$of: bytes of each layer" "$(jq -c '[.layers[].bytes]' "$D/of")" "$(strata layers --json "$of" | jq -c '[.[].bytes] | reverse')"
  expect "$of: bytes are shown or wasted" "$(jq .bytes "$D/of")" "$(jq '.shown.bytes + .wasted' "$D/of")"
done

# A container that runs: its writable layer is one more.
strata run -d --name web "$image" /bin/sh -c 'echo hello >/written; rm /plain; exec sleep 300' >/dev/null
for _ in $(seq 100); do [ -z "$(strata diff web | grep plain)" ] || break; sleep 0.1; done
strata explore --json web >"$D/figures.web"
expect 'what it wrote' "$(jq -c '.layers[3] | [.origin, .added, .deleted]' "$D/figures.web")" \
  '["writable",{"names":1,"bytes":6},{"names":1,"bytes":10}]'
/usr/bin/python3 "$ROOT/tests/explore.py" "$STRATA" "$image" web "$D/figures"
strata exec web /bin/sh -c 'echo more >/more'
strata snapshot web one >/dev/null
strata rm -f web >/dev/null
for large in nginx:1 many:120; do
  name=$(strata images --json | jq -r --arg n "$large" '.[].names[] | select(endswith($n))')
  /usr/bin/python3 "$ROOT/tests/explore.py" large "$STRATA" "$name" "$(strata explore --json "$name" | jq '.shown.names')"
done
strata check
