#!/usr/bin/env bash
# Fuzzes what reads other people's bytes: layers, archives, documents, names, logins (fuzz/). All targets at once, from
# seeds that are made here of real layers and documents: shortly in CI, and as long as one likes by hand.
# tests/fuzz.sh [SECONDS [TARGET…]]
. "$(dirname "$0")/lib.sh"
need cargo-fuzz c++ jq
seconds=${1:-15}
[ $# = 0 ] || shift
cd "$ROOT/fuzz"
targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(sed -n '/^\[\[bin\]\]/,/^name/s/^name = "\(.*\)"/\1/p' Cargo.toml)
[ ${#targets[@]} -gt 0 ] || fail 'no targets'
cargo fmt --check
# libFuzzer's instrumentation is in every compiler; only its name is kept for nightly ones.
export RUSTC_BOOTSTRAP=1
cargo fuzz build -s none
work=$(mktemp -d)
trap 'rm -rf "$work" /dev/shm/strata-fuzz-*' EXIT
for target in "${targets[@]}"; do mkdir -p "$work/$target"; done
seed() { # TARGET NAME: of standard input
  if [ -d "$work/$1" ]; then cat >"$work/$1/$2"; else cat >/dev/null; fi
}

# Layers by GNU tar in each of its formats: what every header is for.
tree=$work/tree
mkdir -p "$tree"/{d/sub,empty}
echo data >"$tree/f"; ln "$tree/f" "$tree/d/hard"; ln -s ../f "$tree/d/soft"; ln -s /dev/shm/strata-fuzz-outside "$tree/out"
ln -s .. "$tree/up"; mkfifo "$tree/fifo"; chmod 4755 "$tree/f"; touch -d '1960-01-02 03:04:05.678901' "$tree/d/sub"
setfattr -n user.k -v v "$tree/f" || true
truncate -s 1M "$tree/holes"; echo x | dd of="$tree/holes" bs=1 seek=500000 conv=notrunc status=none
long=$(printf 'n%.0s' $(seq 150)); echo l >"$tree/$long"
echo w >"$tree/.wh.gone"; : >"$tree/d/.wh..wh..opq"
for format in gnu pax ustar v7; do
  for target in apply tar; do
    # The old formats have no room for all of it.
    { tar -C "$tree" --format="$format" -c . 2>/dev/null || :; } | seed "$target" "$format"
    [ "$format" != gnu ] || tar -C "$tree" --format=gnu -S -c holes | seed "$target" sparse-gnu
    [ "$format" != pax ] || {
      for version in 0.0 0.1 1.0; do
        tar -C "$tree" --format=pax -S --sparse-version="$version" -c holes | seed "$target" "sparse-$version"
      done
      tar -C "$tree" --format=pax --xattrs --xattrs-include='*' -c f | seed "$target" xattrs
      # Through symlinks, and over what is there.
      tar -C "$tree" -c out up f --transform='s,^f$,out/f,' | seed "$target" through
      tar -C "$tree" -P -c f d --transform='s,^,../,;s,^../d,/dev/shm/strata-fuzz-outside/d,' | seed "$target" up
      { tar -C "$tree" -c f d | head -c -1024; tar -C "$tree" -c f d --transform='s,^f,d,;s,^d$,f,'; } | seed "$target" twice
    }
  done
done
# Real layers and documents, where there are images.
if [ -d "$CORPUS/oci" ]; then
  for layout in "$CORPUS"/oci/{busybox,edge}; do
    [ -d "$layout" ] || continue
    name=$(basename "$layout")
    for blob in "$layout"/blobs/sha256/*; do
      size=$(stat -c %s "$blob")
      short=$name-$(basename "$blob" | head -c 8)
      if [ "$(head -c 1 "$blob")" = '{' ]; then
        for kind in '\0' '\1' '\2' '\3' '\4'; do { printf "$kind"; cat "$blob"; } | seed documents "$short-${kind#?}"; done
      elif [ "$size" -lt 3000000 ]; then
        for target in apply tar; do
          { zcat "$blob" 2>/dev/null || zstd -dc "$blob" 2>/dev/null || true; } | head -c 65536 | seed "$target" "$short"
        done
      fi
    done
    { printf '\1'; cat "$layout/index.json"; } | seed documents "$name-index"
  done
fi
# Archives of an image with one small layer.
mkdir -p "$work/a/blobs/sha256"
put() { local sum; sum=$(sha256sum | cut -d' ' -f1); echo "$sum"; }
tar -C "$tree" -c f >"$work/a/layer"
layer=$(put <"$work/a/layer")
printf '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$layer" >"$work/a/config"
config=$(put <"$work/a/config")
jq -cn --arg l "sha256:$layer" --arg c "sha256:$config" --argjson n "$(stat -c %s "$work/a/layer")" --argjson m "$(stat -c %s "$work/a/config")" \
  '{schemaVersion:2,config:{mediaType:"application/vnd.oci.image.config.v1+json",digest:$c,size:$m},layers:[{mediaType:"application/vnd.oci.image.layer.v1.tar",digest:$l,size:$n}]}' >"$work/a/manifest"
manifest=$(put <"$work/a/manifest")
for part in layer config manifest; do cp "$work/a/$part" "$work/a/blobs/sha256/${!part}"; done
echo '{"imageLayoutVersion":"1.0.0"}' >"$work/a/oci-layout"
jq -cn --arg d "sha256:$manifest" --argjson n "$(stat -c %s "$work/a/manifest")" \
  '{schemaVersion:2,manifests:[{mediaType:"application/vnd.oci.image.manifest.v1+json",digest:$d,size:$n,annotations:{"org.opencontainers.image.ref.name":"t"}}]}' >"$work/a/index.json"
echo '[{"Config":"config","RepoTags":["a:1"],"Layers":["layer"]}]' >"$work/a/manifest.json"
tar -C "$work/a" -c oci-layout index.json blobs | seed archives oci
tar -C "$work/a" -c manifest.json config layer | seed archives docker
for part in config manifest; do { printf '\2'; cat "$work/a/$part"; } | seed documents "$part"; done
i=0
for name in nginx docker.io/library/nginx:1.27 "127.0.0.1:5000/a/b_c:t@sha256:$layer" "sha256:$layer" .wh.a .wh..wh..opq 'a--b/c__d.e:T_1.2-3'; do
  i=$((i + 1)); printf %s "$name" | seed names "$i"
done
printf %s 'Bearer realm="https://a.example/t",service="s",scope="repository:x:pull,push"' | seed logins bearer
printf %s 'basic realm=x' | seed logins basic
printf '[[registry]]\nprefix = "a.example/team"\nlocation = "b.example"\ninsecure = true\n[[registry.mirror]]\nlocation = "m.example"\n' | seed logins registries
printf '{"auths":{"a.example":{"auth":"dTpw"},"https://index.docker.io/v1/":{"auth":"dTpw","identitytoken":"t"}}}' | seed logins auths

# Names and numbers that headers know.
cat >"$work/words" <<'T'
"GNU.sparse.major=" "GNU.sparse.minor=" "GNU.sparse.name=" "GNU.sparse.realsize=" "GNU.sparse.map=" "SCHILY.xattr." "path=" "linkpath=" "size="
"trusted.overlay.opaque" "user.overlay.redirect" ".wh." ".wh..wh..opq" "../" "/dev/shm/strata-fuzz-outside/" "ustar\x00" "ustar  \x00"
"\"schemaVersion\":2" "\"manifests\":[" "\"layers\":[" "sha256:" "realm=" "[[registry]]" "\"auths\":{"
T
tr ' ' '\n' <"$work/words" | grep -v '^$' | sed 's/^"ustar$/"ustar  \\x00"/;/^\\x00"$/d' >"$work/dictionary"
pids=()
for target in "${targets[@]}"; do
  mkdir -p "$work/found/$target"
  cargo fuzz run -s none "$target" "$work/$target" -- -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
    -max_len=65536 -dict="$work/dictionary" -artifact_prefix="$work/found/$target/" -print_final_stats=1 >"$work/$target.log" 2>&1 &
  pids+=($!)
done
bad=0
for i in "${!targets[@]}"; do
  target=${targets[$i]}
  if wait "${pids[$i]}"; then
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/$target.log")
    covered=$(grep -o 'cov: [0-9]*' "$work/$target.log" | tail -n 1)
    echo "$target: ${runs:-0} runs, ${covered:-cov: 0} from $(find "$work/$target" -type f | wc -l) inputs"
    [ "${runs:-0}" -gt 100 ] || { echo "$target: too few runs to say anything"; bad=1; }
  else
    bad=1
    echo "$target found something:"
    grep -vE '^#[0-9]+' "$work/$target.log" | tail -n 25
    for found in "$work/found/$target"/*; do [ ! -f "$found" ] || { echo "$found:"; head -c 4096 "$found" | base64 -w0; echo; }; done
  fi
done
[ "$bad" = 0 ] || fail 'a target found something: put the input into its crate as a test'
echo "${#targets[@]} targets, $seconds s each"
