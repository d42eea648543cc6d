#!/usr/bin/env bash
# Installs what the tests need on Debian, as root, and builds the images that they run on. What is there already is left
# as it is.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/strata-ci
tools=$cache/tools
export DEBIAN_FRONTEND=noninteractive
packages=(acl attr buildah busybox-static containerd cpio crun curl dbench docker-registry e2fsprogs fuse-overlayfs fuse3 g++ groff-base jq
  kmod libcap2-bin mergerfs mmdebstrap openssl patchelf podman python3 python3-grpcio python3-pyte qemu-system-x86 runc skopeo stress-ng
  uidmap umoci unionfs-fuse util-linux xfsprogs)

# again COMMAND…: three times, since mirrors fail at times.
again() {
  local try
  for try in 1 2 3; do
    "$@" && return
    echo "attempt $try failed: $*" >&2
    sleep $((try * 10))
  done
  return 1
}

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  again apt-get update -q
  again apt-get install -qy --no-install-recommends "${missing[@]}"
fi

# Third-party file-system tests, what builds fuzz targets, and what makes the package.
for crate in pjdfstest@0.2.2 fsx@0.3.2 cargo-fuzz@0.13.2 cargo-deb@3.8.0; do
  [ -x "$tools/bin/${crate%@*}" ] || again cargo install -q --locked --root "$tools" "$crate"
done

# The next Debian's containerd and dockerd, which run on this one.
if [ ! -x "$cache/trixie/usr/sbin/dockerd" ]; then
  rm -rf "$cache/trixie"
  again mmdebstrap -q --variant=extract --include=containerd,docker.io,docker-cli trixie "$cache/trixie"
fi

# A kernel with quota of XFS, where this one has none.
if [ ! -e "$cache/kernel/initrd" ]; then
  again bash "$root/tests/kernel.sh" "$cache/kernel"
fi

# containerd 2.x and kubectl of the one after that. What it lists may be older than it says it is valid.
if [ ! -x "$cache/forky/usr/bin/containerd" ] || [ ! -x "$cache/forky/usr/bin/kubectl" ]; then
  rm -rf "$cache/forky"
  again mmdebstrap -q --variant=extract --aptopt='Acquire::Check-Valid-Until "false"' --include=containerd,kubernetes-client forky "$cache/forky"
fi

# The newest fuse-overlayfs, with the libraries that it needs: strata-bench --fuse-overlayfs measures it too.
if [ ! -x "$cache/peers/usr/bin/fuse-overlayfs" ]; then
  rm -rf "$cache/peers"
  again mmdebstrap -q --variant=extract --aptopt='Acquire::Check-Valid-Until "false"' --include=fuse-overlayfs forky "$cache/peers"
fi

# A package to install inside an image.
mkdir -p "$cache/deb"
if ! compgen -G "$cache/deb/hello_*.deb" >/dev/null; then
  (cd "$cache/deb" && { apt-get download -q hello || { again apt-get update -q && again apt-get download -q hello; }; })
fi

# Real images, made from Debian packages by the script of the shared corpus, where it is.
make=$root/../shared/corpus/make-corpus.sh
[ -e "$make" ] || { echo "no corpus script beside the checkout: no images are made"; exit 0; }
have() { # NAME:TAG
  jq -e --arg t "${1#*:}" 'any(.manifests[]; .annotations["org.opencontainers.image.ref.name"] == $t)' \
    "$cache/corpus/oci/${1%:*}/index.json" >/dev/null 2>&1
}
for image in debian:bookworm busybox:1 nginx:1 edge:1 many:120 pause:1 postgres:15; do
  have "$image" || again env OUT="$cache/corpus" bash "$make" "$image"
done
