#!/usr/bin/env bash
# The book: every page in its summary, every link leads somewhere, and each command of the tutorial does what it says there,
# without a network: images come from a registry of this machine that stands in for Docker's.
# mdBook itself is not run, since to build it takes minutes: what it would complain of is looked for by docs.py.
. "$(dirname "$0")/lib.sh"
/usr/bin/python3 "$ROOT/tests/docs.py" check "$ROOT"
need docker-registry skopeo curl jq fusermount3
images busybox:1 nginx:1
strata_binary
scratch ext4 4G
at=127.0.0.1:5951
mkdir -p "$D/home"
also_at_end() {
  local id
  for id in $(strata ps -aq 2>/dev/null); do strata rm -f "$id" >/dev/null 2>&1; done
  kill "$registry" 2>/dev/null
}
serve_registry "$D" "$at"
for image in busybox:1 nginx:1; do
  skopeo copy -q --dest-tls-verify=false "oci:$CORPUS/oci/$image" "docker://$at/library/${image%:*}:latest"
done
cat >"$D/registries.conf" <<T
[[registry]]
location = "docker.io"
[[registry.mirror]]
location = "$at"
insecure = true
T
export CONTAINERS_REGISTRIES_CONF=$D/registries.conf STRATA_ROOT=$D/store
export CARGO_HOME=${CARGO_HOME:-$HOME/.cargo} RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup} HOME=$D/home
cd "$ROOT"
/usr/bin/python3 "$ROOT/tests/docs.py" run docs/tutorial.md
