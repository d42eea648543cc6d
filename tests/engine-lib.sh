# What the tests of containerd and its clients share: a containerd with Strata as its snapshotter, and a registry, on a
# file system of their own. Source it behind lib.sh, then call engine.

# engine [trixie|forky]: sets up the containerd that is installed (1.6), or that of Debian trixie (1.7) or forky (2.1), which
# take a differ as well; $cri is what its configuration says of CRI, which it has not otherwise. $disk is the file system, and
# its size.
engine() {
  need containerd ctr runc skopeo python3 jq curl mount.fuse3 docker-registry
  differ=${1:-}
  [ -z "$differ" ] || [ -x "$CACHE/$differ/usr/bin/containerd" ] || skip "Debian $differ's containerd is not there (tests/tools.sh extracts it)"
  scratch ${disk:-ext4 8G}
  mkdir "$D/bin"
  if [ -n "$differ" ]; then
    for program in bin/containerd bin/ctr bin/containerd-shim-runc-v2 sbin/dockerd bin/docker; do
      [ ! -e "$CACHE/$differ/usr/$program" ] || ln -s "$CACHE/$differ/usr/$program" "$D/bin/"
    done
    # A newer C library than this machine's goes with forky's runtime, which is needed where mounts are mapped.
    if [ "$differ" = forky ]; then
      need patchelf
      patchelf --set-interpreter "$CACHE/forky/usr/lib64/ld-linux-x86-64.so.2" --set-rpath "$CACHE/forky/usr/lib/x86_64-linux-gnu" \
        --output "$D/bin/runc" "$CACHE/forky/usr/sbin/runc"
    fi
    PATH=$D/bin:$PATH
  fi
  containerd --version
  runc --version | sed -n 1p
  strata_binary
  store=$D/strata
  socket=$D/strata.sock
  address=$D/containerd.sock
  host=127.0.0.1:$((20000 + $$ % 10000))
  export CONTAINERD_ADDRESS=$address CONTAINERD_NAMESPACE=strata-$$
  if [ "$differ" = forky ]; then
    engine_2
    return
  fi
  local disabled='"io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt"'
  [ -n "${cri:-}" ] || disabled="\"io.containerd.grpc.v1.cri\", $disabled"
  cat >"$D/config.toml" <<EOF
version = 2
root = "$D/containerd"
state = "$D/state"
disabled_plugins = [$disabled]
[grpc]
  address = "$address"
[proxy_plugins.strata]
  type = "snapshot"
  address = "$socket"
${cri:-}
EOF
  # containerd 1.6 knows no differ but its own.
  [ -z "$differ" ] || cat >>"$D/config.toml" <<EOF
[proxy_plugins.strata-diff]
  type = "diff"
  address = "$socket"
[plugins."io.containerd.service.v1.diff-service"]
  default = ["strata-diff", "walking"]
EOF
}

# Version 2 is configured as people have it done, by strata install: the transfer service unpacks by Strata as well.
engine_2() {
  mkdir -p "$D/etc-root/etc/containerd"
  local disabled='"io.containerd.snapshotter.v1.devmapper"'
  [ -n "${cri:-}" ] || disabled="\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\", $disabled"
  cat >"$D/etc-root/etc/containerd/config.toml" <<EOF
version = 3
root = "$D/containerd"
state = "$D/state"
disabled_plugins = [$disabled]
[grpc]
  address = "$address"
${cri:-}
EOF
  "$STRATA" install containerd ${cri:+--kubernetes} --prefix "$D/etc-root" --engine-version "$(containerd --version | grep -o '[0-9]*\.[0-9]*\.[0-9]*' | head -n 1)" \
    --address "$socket" --store "$store" --yes >"$D/plan" 2>&1 || { cat "$D/plan"; fail "no configuration for containerd 2"; }
  grep -q 'transfer' "$D/plan" || { cat "$D/plan"; fail "the transfer service is not told of Strata"; }
  cp "$D/etc-root/etc/containerd/config.toml" "$D/config.toml"
}

# says PATTERN COMMAND…: whether its output has it.
says() {
  local pattern=$1 out
  shift
  out=$("$@" 2>"$D/err") && grep -q -- "$pattern" <<<"$out"
}

# snapshotter OPTIONS…: starts it.
snapshotter() {
  rm -f "$socket"
  "$STRATA" snapshotter --root "$store" --address "$socket" --containerd "$address" --metrics "$D/metrics.sock" \
    --log-json --log info,snapshotter=debug "$@" >>"$D/snapshotter.log" 2>&1 &
  snapshotter=$!
  for _ in $(seq 100); do [ -S "$socket" ] && return; sleep 0.1; done
  cat "$D/snapshotter.log"
  fail "the snapshotter does not serve"
}

# metric NAME: its value since the snapshotter started.
metric() {
  curl -sS --unix-socket "$D/metrics.sock" http://localhost/metrics >"$D/metrics"
  awk -v name="$1" '$1 == name {print $2; found = 1} END {if (!found) print 0}' "$D/metrics"
}

start_containerd() {
  containerd --config "$D/config.toml" >"$D/containerd.log" 2>&1 &
  containerd=$!
  for _ in $(seq 100); do timeout 1 ctr version >/dev/null 2>&1 && break; kill -0 "$containerd" && sleep 0.1; done
  timeout 5 ctr version >/dev/null || { tail "$D/containerd.log"; fail "containerd does not answer"; }
  says 'snapshotter.*strata .*ok' ctr plugins ls || { ctr plugins ls; fail "containerd has no plugin strata"; }
}

# start_registry IMAGE…: with images of the corpus, at $host.
start_registry() { serve_registry "$D" "$host" "$@"; }

# looks SNAPSHOTTER IMAGE: how the image looks, mounted.
looks() {
  mkdir -p "$D/mnt"
  ctr images mount --snapshotter "$1" "$2" "$D/mnt" >/dev/null
  whole_tree "$D/mnt"
  ctr images unmount --snapshotter "$1" --rm "$D/mnt" >/dev/null
}

# emptied: waits until containerd has no snapshots here, and the store has nothing left of them.
emptied() {
  local place
  for _ in $(seq 100); do
    ctr content prune references >/dev/null 2>&1 || true
    [ "$(ctr snapshots --snapshotter strata ls | wc -l)" = 1 ] && break
    sleep 0.2
  done
  [ "$(ctr snapshots --snapshotter strata ls | wc -l)" = 1 ] || { ctr snapshots --snapshotter strata ls; fail "snapshots are left"; }
  for _ in $(seq 50); do
    [ -z "$(ls -A "$store/snapshots" "$store/trash" "$store/layers" | grep -v :)" ] && break
    sleep 0.2
  done
  for place in snapshots trash layers staging; do
    [ -z "$(ls -A "$store/$place")" ] || { ls "$store/$place"; fail "something is left in $place"; }
  done
}

also_at_end() {
  [ "$code" = 0 ] || { grep -v '"DEBUG"' "$D/snapshotter.log"; tail -n 5 "$D/containerd.log"; }
  kill "${dockerd:-}" 2>/dev/null && sleep 1
  # What a failure left running, by the runtime's own books.
  local namespace container
  for namespace in ${CONTAINERD_NAMESPACE:-} ${namespaces:-}; do
    for container in $(runc --root "/run/containerd/runc/$namespace" list -q 2>/dev/null); do
      case $(runc --root "/run/containerd/runc/$namespace" state "$container" 2>/dev/null) in
        *"$D"*) runc --root "/run/containerd/runc/$namespace" delete -f "$container" 2>/dev/null ;;
      esac
    done
  done
  case ${CONTAINERD_NAMESPACE:-} in strata-*) rm -rf "/run/containerd/runc/$CONTAINERD_NAMESPACE" ;; esac
  kill "${containerd:-}" "${snapshotter:-}" "${activated:-}" "${registry:-}" 2>/dev/null
  # Shims outlive containerd.
  pkill -f "containerd-shim.*${address:-no containerd was started}" 2>/dev/null
  wait 2>/dev/null
}
