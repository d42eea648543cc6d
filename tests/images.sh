#!/usr/bin/env bash
# The store with its neighbours: images of podman by way of Debian's docker-registry, skopeo and archives, there and back.
# Where the corpus has been built (STRATA_CORPUS, or the cache), nginx:1 and edge:1 are unpacked to what umoci gives, link
# counts aside, which an overlay can't lower.
. "$(dirname "$0")/lib.sh"
need podman skopeo umoci docker-registry curl jq python3
strata_binary
scratch ext4 8G
export STRATA_ROOT=$D/store
export CONTAINERS_STORAGE_CONF=$D/storage.conf
podman_storage "$CONTAINERS_STORAGE_CONF" "$D/graph" "$D/run"
mkdir -p "$D"/root/{etc,d/sub}
also_at_end() { kill "$registry"; }
at=127.0.0.1:5939
serve_registry "$D" "$at"

# An image of two layers.
echo one >"$D/root/etc/one"; echo gone >"$D/root/etc/gone"; ln "$D/root/etc/one" "$D/root/d/link"
ln -s /etc/one "$D/root/d/sub/soft"; chmod 4755 "$D/root/etc/one"
setfattr -n user.k -v v "$D/root/etc/one"
tar -C "$D/root" --xattrs -c . | podman import -q - base >/dev/null
c=$(buildah from base); m=$(buildah mount "$c")
rm "$m/etc/gone"; echo two >"$m/etc/two"; rm -r "$m/d/sub"; mkdir "$m/d/sub"
buildah commit -q "$c" two >/dev/null; buildah rm "$c" >/dev/null
podman push -q --tls-verify=false two "$at/team/two:1"

strata pull "$at/team/two:1" >"$D/id"
strata pull "docker://$at/team/two:1" >/dev/null 2>"$D/err"
grep -q 'is there already' "$D/err" || fail 'a second pull fetched again'
strata check
merged() { # IMAGE: its tree, by the kernel's overlayfs and by Strata
  local layers; layers=$(strata layers --json "$1" | jq -r '[.[].path] | join(":")')
  mkdir -p "$D/m"
  [ "$(tr -cd : <<<"$layers" | wc -c)" = 0 ] || { mount -t overlay overlay -o "lowerdir=$layers" "$D/m"; tree "$D/m" >"$D/by-kernel"; umount "$D/m"; }
  strata mount -o "lowerdir=$layers" "$D/m"; tree "$D/m" >"$D/by-strata"
  python3 "$ROOT/../shared/corpus/tree.py" "$D/m" | sed 's/ nl=[0-9]*//' >"$D/merged" 2>/dev/null || true
  umount "$D/m"
  diff "$D/by-kernel" "$D/by-strata" || fail "$1: the kernel and Strata show other trees"
}
merged "$at/team/two:1"
grep -q etc/two "$D/by-strata" && ! grep -q etc/gone "$D/by-strata" || fail 'the tree is not that of the image'

# To a registry, and back by others.
strata tag "$at/team/two:1" "$at/other/name:2"
strata push "$at/other/name:2" >"$D/pushed"
skopeo inspect --tls-verify=false "docker://$at/other/name:2" | jq -e '.Layers | length == 2' >/dev/null
[ "$(skopeo inspect --raw --tls-verify=false "docker://$at/other/name:2" | sha256sum | cut -d' ' -f1)" = "$(sed 's/sha256://' "$D/pushed")" ] || fail 'the manifest is another'
# As archives, by others.
for format in docker-archive oci-archive; do
  strata save --format "$format" -o "$D/$format.tar" "$at/team/two:1"
  skopeo inspect "$format:$D/$format.tar" >/dev/null
  podman load -q -i "$D/$format.tar" >/dev/null
  STRATA_ROOT=$D/$format strata load -i "$D/$format.tar" >/dev/null
  [ "$(STRATA_ROOT=$D/$format strata images -q)" = "$(cat "$D/id")" ] || fail "$format: another id"
done
# Blobs that the registry has not: the layers are compressed anew.
STRATA_ROOT=$D/docker-archive strata push "$at/team/two:1" "$at/third/new:1" 2>"$D/err"
grep -q '2 layers sent' "$D/err" || fail "push said: $(cat "$D/err")"
STRATA_ROOT=$D/second strata pull "$at/third/new:1" >"$D/id2"
cmp "$D/id" "$D/id2" || fail 'the image has another id after a push'
podman save -q --format oci-archive -o "$D/podman.tar" two
STRATA_ROOT=$D/back strata pull "oci-archive:$D/podman.tar" >/dev/null
skopeo copy -q --src-tls-verify=false "docker://$at/team/two:1" "oci:$D/layout:two"
STRATA_ROOT=$D/back strata pull "oci:$D/layout:two" >/dev/null
STRATA_ROOT=$D/back strata check

# Mistakes are told.
strata pull "$at/team/none:1" 2>"$D/err" && fail 'an image that is not there was pulled'
grep -q 'has no' "$D/err" || fail "said: $(cat "$D/err")"
strata rmi "$at/team/tow:1" 2>"$D/err" && fail 'an image that is not there was removed'
grep -q 'did you mean' "$D/err" || fail "said: $(cat "$D/err")"
strata rmi "$at/team/two:1" "$at/other/name:2"
# What takes long goes on behind.
left() { find "$STRATA_ROOT"/{layers,staging,partial,trash} -mindepth 1; }
for _ in $(seq 300); do [ -n "$(left)" ] || break; sleep 0.1; done
[ "$(strata df --json | jq .layers)" = 0 ] || fail 'layers are left'
[ -z "$(left)" ] || fail "left: $(left)"

corpus=${STRATA_CORPUS:-${XDG_CACHE_HOME:-$HOME/.cache}/strata-ci/corpus}
for image in nginx:1 edge:1; do
  if [ ! -d "$corpus/oci/${image%:*}" ] || [ ! -f "$ROOT/../shared/corpus/tree.py" ]; then
    echo "without $image: the corpus is not built here (shared/corpus/make-corpus.sh)"
    continue
  fi
  strata pull "oci:$corpus/oci/$image" >/dev/null
  merged "localhost/$image"
  umoci unpack --image "$corpus/oci/$image" "$D/umoci" >/dev/null 2>&1
  python3 "$ROOT/../shared/corpus/tree.py" "$D/umoci/rootfs" | sed 's/ nl=[0-9]*//' >"$D/by-umoci"
  diff "$D/by-umoci" "$D/merged" | head -n 10
  cmp "$D/by-umoci" "$D/merged" || fail "$image: other than umoci's tree"
  # Podman's: by way of the registry, since its names for layouts allow no dot at a start.
  skopeo copy -q --dest-tls-verify=false "oci:$corpus/oci/$image" "docker://$at/corpus/$image"
  podman pull -q --tls-verify=false "$at/corpus/$image" >/dev/null
  python3 "$ROOT/../shared/corpus/tree.py" "$(podman image mount "$at/corpus/$image")" | sed 's/ nl=[0-9]*//' >"$D/by-podman"
  podman image umount "$at/corpus/$image" >/dev/null
  # Podman makes 1970 of what is before: that one line is better here.
  for of in by-podman merged; do grep -av '^edge/before-1970 ' "$D/$of" >"$D/$of-after-1970"; done
  diff "$D/by-podman-after-1970" "$D/merged-after-1970" | head -n 10
  cmp "$D/by-podman-after-1970" "$D/merged-after-1970" || fail "$image: other than podman's tree"
  echo "$image: $(wc -l <"$D/merged") lines equal to umoci's and podman's"
  rm -rf "$D/umoci"
done
strata check
