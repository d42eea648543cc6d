#!/usr/bin/env bash
# What the images of the shared corpus take under containerd: every image but big:1, pulled by kubelet's call into an empty
# containerd 1.7 on an XFS of its own, by the built-in snapshotter and by Strata's, with the blobs kept and with
# discard_unpacked_layers. Not a test: its table is in docs/decisions/022-figures.md. As root.
# tests/engine-figures.sh; STRATA is the program, STRATA_CORPUS the corpus.
. "$(dirname "$0")/lib.sh"
CORPUS=${STRATA_CORPUS:-$CORPUS}

mib() { echo $((($1 + 524288) / 1048576)); }
used() { sync -f "$D"; df -B1 --output=used "$D" | tail -n 1; }
# What a directory has of the disk; what shares extents is counted as often as it is there.
held() { mib "$(du -s -B1 "$@" 2>/dev/null | awk '{n += $1} END {print n + 0}')"; }

# one SNAPSHOTTER DISCARD HOST IMAGE…: pulls them all, and prints a line of the table.
one() {
  local by=$1 discard=$2 from=$3 before image
  shift 3
  . "$ROOT/tests/engine-lib.sh"
  cri="[plugins.\"io.containerd.grpc.v1.cri\".containerd]
  snapshotter = \"$by\"
  disable_snapshot_annotations = false
  discard_unpacked_layers = $discard"
  disk='xfs 12G'
  engine trixie >&2
  CONTAINERD_NAMESPACE=k8s.io
  snapshotter --content "$D/containerd/io.containerd.content.v1.content"
  start_containerd
  before=$(used)
  for image; do
    /usr/bin/python3 "$ROOT/tests/cri.py" "$address" PullImage "{\"1\": {\"1\": \"$from/$image\"}}" >/dev/null || fail "$image"
  done
  # A lease that ends has containerd collect what nothing refers to any more.
  ctr leases create --id collect >/dev/null
  ctr leases rm --sync collect >/dev/null
  [ "$by" != strata ] || [ "$(metric strata_layers_unpacked_total)" -gt 100 ] || fail "the layers are not unpacked by the store"
  echo "| $by | $discard | $(mib $(($(used) - before))) | $(held "$D/containerd/io.containerd.content.v1.content") |" \
    "$(held "$D/containerd/io.containerd.snapshotter.v1.overlayfs" "$store") | $(find "$D/containerd" "$store" | wc -l) |"
}

if [ "${1:-}" = one ]; then
  shift
  one "$@"
  exit
fi
need docker-registry skopeo jq mkfs.xfs
images=()
for layout in "$CORPUS"/oci/*; do
  while read -r tag; do
    [ "$(basename "$layout"):$tag" = big:1 ] || images+=("$(basename "$layout"):$tag")
  done < <(jq -r '.manifests[].annotations["org.opencontainers.image.ref.name"]' "$layout/index.json")
done
[ ${#images[@]} -gt 0 ] || skip "no corpus in $CORPUS"
strata_binary
work=$(mktemp -d /var/tmp/strata-figures.XXXXXX)
trap 'kill "${registry:-}"; rm -rf "$work"' EXIT
host=127.0.0.1:$((20000 + $$ % 10000))
serve_registry "$work" "$host"
for image in "${images[@]}"; do
  skopeo copy -q --preserve-digests --dest-tls-verify=false "oci:$CORPUS/oci/$image" "docker://$host/$image"
done
echo "${#images[@]} images"
echo "| snapshotter | discard_unpacked_layers | MiB on disk | blobs | snapshots | names |"
echo "|-|-|-|-|-|-|"
for discard in false true; do
  for by in overlayfs strata; do
    bash "$0" one "$by" "$discard" "$host" "${images[@]}"
  done
done
