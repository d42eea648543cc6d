#!/usr/bin/env bash
# kill -9 of the snapshotter while containerd pulls and while it removes, again and again: containerd goes on when it is
# back, the image is whole, and nothing is left on either side.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/engine-lib.sh"
images nginx:1 many:120
engine trixie
restart() { snapshotter --content "$D/containerd/io.containerd.content.v1.content"; }
restart
start_containerd
start_registry nginx:1 many:120
# killed AFTER COMMAND…: runs it and kills the snapshotter so many seconds later; then it is started anew. Whether the
# command could do without it meanwhile is all the same.
killed() {
  local after=$1 work
  shift
  timeout 60 "$@" >"$D/out" 2>&1 &
  work=$!
  sleep "$after"
  kill -9 "$snapshotter"
  wait "$snapshotter" 2>/dev/null || true
  restart
  wait "$work" 2>/dev/null && echo "  after $after s: done all the same" || echo "  after $after s: $(tail -n 1 "$D/out" | cut -c1-150)"
}
# pull IMAGE: as often as containerd needs to call again.
pull() {
  local try
  for try in $(seq 20); do
    ctr images pull --plain-http --snapshotter strata "$host/$1" >"$D/out" 2>&1 && return
    sleep 0.5
  done
  tail -n 3 "$D/out"
  fail "$1 can't be pulled after the kills"
}
for image in many:120 nginx:1; do
  echo "$image, killed while it is pulled:"
  for after in 0.3 0.8; do
    killed $after ctr images pull --plain-http --snapshotter strata "$host/$image"
    ctr images rm --sync "$host/$image" >/dev/null 2>&1 || true
  done
  pull "$image"
  ctr images pull --plain-http --snapshotter overlayfs "$host/$image" >/dev/null
  looks strata "$host/$image" >"$D/ours"
  looks overlayfs "$host/$image" >"$D/theirs"
  diff "$D/theirs" "$D/ours" >"$D/diff" || { head "$D/diff"; fail "$image: the trees differ"; }
  "$STRATA" check --root "$store" >"$D/out" || { cat "$D/out"; fail "damaged layers"; }
  echo "$image: $(wc -l <"$D/ours") lines, the same as under overlayfs; $(cat "$D/out")"
done
echo "killed while images are removed:"
for image in nginx:1 many:120; do killed 0.05 ctr images rm --sync "$host/$image"; done
# Where it could not remove a snapshot, containerd tries again once it has another to remove.
pull nginx:1
ctr images ls -q | xargs -r ctr images rm --sync >/dev/null
emptied
echo "everything was removed, and nothing is left"
