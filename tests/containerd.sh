#!/usr/bin/env bash
# tests/containerd.sh [trixie|forky]: the containerd that is installed, or that of Debian trixie or forky, which take a differ
# as well; that of forky (2.x) pulls and unpacks by its transfer service.
# containerd with Strata as its snapshotter: real images unpacked, their trees compared with those of containerd's own
# overlayfs snapshotter, containers run, the snapshotter killed in between, everything removed and nothing left. What one
# of containerd and the command line has brought, the other has; the union is there for snapshots that ask for it.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/engine-lib.sh"
images busybox:1 nginx:1 many:120
engine "$@"
# The blobs come over gRPC, since they are not where containerd's content is by default.
snapshotter --content "$D/nowhere"
start_containerd
for image in busybox:1 nginx:1 many:120; do
  name=docker.io/library/${image%:*}:${image#*:}
  rm -f "$D/image.tar"
  skopeo copy "oci:$CORPUS/oci/$image" "oci-archive:$D/image.tar:$name" >/dev/null
  for plugin in strata overlayfs; do
    ctr images import --snapshotter "$plugin" "$D/image.tar" >/dev/null
  done
  looks strata "$name" >"$D/ours"
  looks overlayfs "$name" >"$D/theirs"
  [ -s "$D/ours" ] || fail "$image: an empty tree"
  diff "$D/theirs" "$D/ours" >"$D/diff" || { head "$D/diff"; fail "$image: the trees differ"; }
  echo "$image: $(wc -l <"$D/ours") lines, the same under both snapshotters"
done

if [ -n "$differ" ]; then
  [ "$(metric strata_layers_unpacked_total)" -gt 100 ] || { cat "$D/metrics"; fail "the layers are not unpacked by the store"; }
  "$STRATA" check --root "$store" >"$D/out" || { cat "$D/out"; fail "layers from containerd are damaged"; }
  cat "$D/out"
  # The command line has what containerd unpacked: a pull fetches only documents, even of a layout without layers.
  mkdir "$D/bare"
  cp -r "$CORPUS/oci/nginx" "$D/bare/"
  jq -r --arg t 1 '.manifests[] | select(.annotations["org.opencontainers.image.ref.name"] == $t).digest' \
    "$D/bare/nginx/index.json" | sed s/sha256:// >"$D/manifest"
  jq -r '.layers[].digest' "$D/bare/nginx/blobs/sha256/$(cat "$D/manifest")" | sed s/sha256:// |
    while read -r blob; do rm "$D/bare/nginx/blobs/sha256/$blob"; done
  "$STRATA" pull --root "$store" "oci:$D/bare/nginx:1" >/dev/null || fail "the command line does not have containerd's layers"
else
  "$STRATA" pull --root "$store" "oci:$CORPUS/oci/nginx:1" >/dev/null
fi
# And the reverse: for another namespace, from an image of the command line, nothing is unpacked.
unpacked=$(metric strata_layers_unpacked_total)
start_registry nginx:1
other=$host/nginx:1
ctr images rm --sync docker.io/library/nginx:1 >/dev/null
known=$(metric strata_layers_known_total)
there() { CONTAINERD_NAMESPACE=$CONTAINERD_NAMESPACE-other "$@"; }
there ctr images pull --plain-http --snapshotter strata "$other" >/dev/null
[ "$(metric strata_layers_unpacked_total)" = "$unpacked" ] || fail "layers that the store has were unpacked again"
# (ctr of 1.6 does not ask whether layers are there; kubelet's calls do: tests/cri.sh.)
[ -z "$differ" ] || [ "$(metric strata_layers_known_total)" -gt "$known" ] || fail "the command line's layers are not known"
there ctr images pull --plain-http --snapshotter overlayfs "$other" >/dev/null
there looks strata "$other" >"$D/ours"
there looks overlayfs "$other" >"$D/theirs"
diff "$D/theirs" "$D/ours" >"$D/diff" || { head "$D/diff"; fail "a known chain: the trees differ"; }
there ctr images rm --sync "$other" >/dev/null
"$STRATA" rmi --root "$store" "$("$STRATA" images --root "$store" --json | jq -r '.[0].id')" >/dev/null
echo "what one has unpacked, the other has"

name=docker.io/library/busybox:1
ctr run --snapshotter strata --rm "$name" one echo "hello from a container" >"$D/out" 2>"$D/err" || {
  cat "$D/err"
  fail "a container does not run"
}
grep -q "hello from a container" "$D/out"
echo "ctr run: $(cat "$D/out")"

# Users of a container are others of the machine: from 2.0 on the layers are mapped as they are mounted, and none is copied.
if [ -n "$differ" ]; then
  ctr run --snapshotter strata --remap-labels --uidmap 0:100000:65536 --gidmap 0:200000:65536 -d "$name" mapped \
    sh -c 'echo new >/new; echo more >>/etc/passwd; sleep 600' || fail "no container with users of its own"
  for _ in $(seq 100); do says more ctr task exec --exec-id "look-$RANDOM" mapped grep more /etc/passwd && break; sleep 0.1; done
  ctr task exec --exec-id owners mapped stat -c '%u:%g %n' /bin/busybox /etc/passwd /new >"$D/out" || fail "no owners"
  [ "$(cut -d' ' -f1 "$D/out" | tr '\n' ' ')" = '0:0 0:0 0:0 ' ] || { cat "$D/out"; fail "the layers are not mapped"; }
  upper=$(find "$store"/snapshots/*/fs -maxdepth 1 -name new)
  [ "$(stat -c %u:%g "$upper" "${upper%/new}/etc/passwd" | tr '\n' ' ')" = '100000:200000 100000:200000 ' ] || fail "what is written is not the machine's users'"
  [ "$(find "$store"/layers/*/fs -uid 100000 | wc -l)" = 0 ] || fail "files of a layer were given away"
  # (1.7 can't mount what is mapped, and copies the image.)
  [ "$differ" = trixie ] || [ "$(find "$store"/snapshots/*/fs -name busybox | wc -l)" = 0 ] || fail "the image was copied"
  ctr snapshots --snapshotter strata diff --keep mapped >"$D/diff.tar.gz" || fail "no diff of mapped layers"
  tar -tzf "$D/diff.tar.gz" >"$D/names"
  grep -qx new "$D/names" || { cat "$D/names"; fail "the diff of mapped layers lacks what was written"; }
  ctr task kill -s SIGKILL mapped
  for _ in $(seq 50); do says 'mapped.*STOPPED' ctr task ls && break; sleep 0.1; done
  ctr task rm mapped >/dev/null 2>&1
  ctr container rm mapped
  echo "a container whose root is another user, over mapped layers"
fi

# By label, the union: its size limit is exact, and its server is nobody's but the mount's.
ctr run --snapshotter strata --snapshotter-label containerd.io/snapshot/strata.io/size=8M -d "$name" small \
  sh -c 'dd if=/dev/zero of=/big bs=1M count=20; code=$?; rm /big; echo $code >/code; sleep 600' || fail "no container with a size"
for _ in $(seq 100); do says 1 ctr task exec --exec-id look-$RANDOM small cat /code && break; sleep 0.1; done
says 1 ctr task exec --exec-id code small cat /code || { cat "$D/out" "$D/err"; fail "20 MiB fit into 8"; }
[ "$(metric 'strata_mounts_total{by="union"}')" -gt 0 ] || fail "no union"
# Its server's counters are the snapshotter's, also of one that starts later; its usage is what it counts itself.
says '' ctr task exec --exec-id copy small sh -c 'echo more >>/etc/passwd' || fail "the container writes nothing"
counted() {
  [ "$(metric strata_limit_hits_total)" -gt 0 ] && [ "$(metric strata_copy_ups_total)" -ge 2 ] &&
    [ "$(metric strata_copy_up_bytes_total)" -gt 0 ] && [ "$(metric strata_unions)" = 1 ]
}
counted || { grep -E 'copy_up|limit|unions' "$D/metrics"; fail "the union's copy-ups and its limit are not counted"; }
says '8.0 KiB' ctr snapshots --snapshotter strata usage small || { cat "$D/err"; ctr snapshots --snapshotter strata usage small; fail "the usage is not the union's own"; }

ctr run --snapshotter strata -d "$name" two sh -c 'echo kept >/kept; sleep 600'
for _ in $(seq 50); do says kept ctr task exec --exec-id look two cat /kept && break; sleep 0.1; done
kill -9 "$snapshotter"
wait "$snapshotter" 2>/dev/null || true
says kept ctr task exec --exec-id again two sh -c 'cat /kept && echo more >/more' || fail "the container was disturbed"
says '' ctr task exec --exec-id write small sh -c 'echo on >/on' || fail "the union ended with the snapshotter"
snapshotter --content "$D/containerd/io.containerd.content.v1.content"
# containerd waits a little before it calls again where nobody answered.
for _ in $(seq 100); do says two ctr snapshots --snapshotter strata ls && break; sleep 0.2; done
says two ctr snapshots --snapshotter strata ls || { cat "$D/err" "$D/snapshotter.log"; fail "the snapshot is lost"; }
says two ctr snapshots --snapshotter strata usage two || fail "no usage"
for _ in $(seq 50); do counted && break; sleep 0.1; done
counted || { grep -E 'copy_up|limit|unions' "$D/metrics"; fail "the new snapshotter does not count the union that is there"; }
says more ctr task exec --exec-id third two cat /more || fail "the container lost what it wrote"
# What changed, as a blob of containerd's.
pairs=two:kept
# containerd's own differ mounts the layers once more, which the union refuses while they are in use.
[ -z "$differ" ] || pairs="two:kept small:on"
for pair in $pairs; do
  ctr snapshots --snapshotter strata diff --keep "${pair%:*}" >"$D/diff.tar.gz" || fail "no diff of ${pair%:*}"
  tar -tzf "$D/diff.tar.gz" >"$D/names"
  grep -qx "${pair#*:}" "$D/names" || { cat "$D/names"; fail "the diff of ${pair%:*} lacks ${pair#*:}"; }
done
[ -z "$differ" ] || [ "$(metric 'strata_call_seconds_count{call="diff"}')" = 2 ] || fail "the diffs were not made here"
echo "a container with a size limit; diffs: $(wc -l <"$D/names") names"
ctr task kill -s SIGKILL small
for _ in $(seq 50); do says 'small.*STOPPED' ctr task ls && break; sleep 0.1; done
ctr task rm small >/dev/null
ctr container rm small
ctr task kill -s SIGKILL two
for _ in $(seq 50); do says 'two.*STOPPED' ctr task ls && break; sleep 0.1; done
ctr task rm two >/dev/null
ctr container rm two
echo "the snapshotter was killed and came back; the container was not disturbed"

ctr images ls -q | xargs -r ctr images rm --sync >/dev/null
emptied
"$STRATA" check --root "$store"
echo "everything was removed, and nothing is left"
