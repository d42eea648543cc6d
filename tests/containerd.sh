#!/usr/bin/env bash
# containerd with Strata as its snapshotter: real images unpacked, their trees compared with those of containerd's own
# overlayfs snapshotter, containers run, the snapshotter killed in between, everything removed and nothing left.
. "$(dirname "$0")/lib.sh"
need containerd ctr runc skopeo python3 jq
images busybox:1 nginx:1 many:120
scratch ext4 8G
containerd --version
strata_binary
store=$D/strata
socket=$D/strata.sock
address=$D/containerd.sock
cat >"$D/config.toml" <<EOF
version = 2
root = "$D/containerd"
state = "$D/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt"]
[grpc]
  address = "$address"
[proxy_plugins.strata]
  type = "snapshot"
  address = "$socket"
EOF
# says PATTERN COMMAND…: whether its output has it.
says() {
  local pattern=$1 out
  shift
  out=$("$@" 2>"$D/err") && grep -q -- "$pattern" <<<"$out"
}

snapshotter() {
  "$STRATA" snapshotter --root "$store" --address "$socket" >>"$D/snapshotter.log" 2>&1 &
  snapshotter=$!
  for _ in $(seq 100); do [ -S "$socket" ] && return; sleep 0.1; done
  cat "$D/snapshotter.log"
  fail "the snapshotter does not serve"
}
export CONTAINERD_ADDRESS=$address CONTAINERD_NAMESPACE=strata-$$
also_at_end() {
  # What a failure left running, by the runtime's own books.
  runc --root "/run/containerd/runc/$CONTAINERD_NAMESPACE" delete -f two 2>/dev/null
  rm -rf "/run/containerd/runc/$CONTAINERD_NAMESPACE"
  kill "${containerd:-}" "${snapshotter:-}" 2>/dev/null
  # Shims outlive containerd.
  pkill -f "containerd-shim.*$address" 2>/dev/null
  wait 2>/dev/null
}
snapshotter
containerd --config "$D/config.toml" >"$D/containerd.log" 2>&1 &
containerd=$!
for _ in $(seq 100); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done
ctr version >/dev/null || { tail "$D/containerd.log"; fail "containerd does not answer"; }
says 'snapshotter.*strata .*ok' ctr plugins ls || { ctr plugins ls; fail "containerd has no plugin strata"; }

# looks SNAPSHOTTER IMAGE: how the image looks, mounted.
looks() {
  ctr images mount --snapshotter "$1" "$2" "$D/mnt" >/dev/null
  whole_tree "$D/mnt"
  ctr images unmount --snapshotter "$1" --rm "$D/mnt" >/dev/null
}
mkdir "$D/mnt"
for image in busybox:1 nginx:1 many:120; do
  name=docker.io/library/${image%:*}:${image#*:}
  skopeo -q copy "oci:$CORPUS/oci/$image" "oci-archive:$D/image.tar:$name" 2>/dev/null ||
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

name=docker.io/library/busybox:1
ctr run --snapshotter strata --rm "$name" one echo "hello from a container" >"$D/out" 2>"$D/err" || {
  cat "$D/err"
  fail "a container does not run"
}
grep -q "hello from a container" "$D/out"
echo "ctr run: $(cat "$D/out")"

ctr run --snapshotter strata -d "$name" two sh -c 'echo kept >/kept; sleep 600'
for _ in $(seq 50); do says kept ctr task exec --exec-id look two cat /kept && break; sleep 0.1; done
kill -9 "$snapshotter"
wait "$snapshotter" 2>/dev/null || true
says kept ctr task exec --exec-id again two sh -c 'cat /kept && echo more >/more' || fail "the container was disturbed"
rm -f "$socket"
snapshotter
# containerd waits a little before it calls again where nobody answered.
for _ in $(seq 100); do says two ctr snapshots --snapshotter strata ls && break; sleep 0.2; done
says two ctr snapshots --snapshotter strata ls || { cat "$D/err" "$D/snapshotter.log"; fail "the snapshot is lost"; }
says two ctr snapshots --snapshotter strata usage two || fail "no usage"
says more ctr task exec --exec-id third two cat /more || fail "the container lost what it wrote"
ctr task kill -s SIGKILL two
for _ in $(seq 50); do says 'two.*STOPPED' ctr task ls && break; sleep 0.1; done
ctr task rm two >/dev/null
ctr container rm two
echo "the snapshotter was killed and came back; the container was not disturbed"

ctr images ls -q | xargs -r ctr images rm --sync >/dev/null
for _ in $(seq 100); do
  ctr content prune references >/dev/null 2>&1 || true
  [ "$(ctr snapshots --snapshotter strata ls | wc -l)" = 1 ] && break
  sleep 0.2
done
[ "$(ctr snapshots --snapshotter strata ls | wc -l)" = 1 ] || { ctr snapshots --snapshotter strata ls; fail "snapshots are left"; }
sleep 1
left=$(find "$store/snapshots" "$store/trash" -mindepth 1 -maxdepth 1 | wc -l)
[ "$left" = 0 ] || fail "$left directories are left"
"$STRATA" check --root "$store"
echo "everything was removed, and nothing is left"
