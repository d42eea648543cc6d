# What the test scripts share. Source it: . "$(dirname "$0")/lib.sh"
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/strata-ci
CORPUS=$CACHE/corpus
export PATH=$CACHE/tools/bin:$PATH
export RUST_BACKTRACE=0

# skip WHY: says so and ends the section; where everything is required it fails.
skip() {
  echo "SKIPPED: $*"
  [ "${STRATA_REQUIRE:-}" != all ] || exit 1
  exit 0
}

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

need() {
  local tool
  for tool; do command -v "$tool" >/dev/null || skip "$tool is not installed (tests/tools.sh installs it)"; done
}

# images NAME:TAG…: those that tests/tools.sh has made, in $CORPUS/oci.
images() {
  local image
  for image; do
    jq -e --arg t "${image#*:}" 'any(.manifests[]; .annotations["org.opencontainers.image.ref.name"] == $t)' \
      "$CORPUS/oci/${image%:*}/index.json" >/dev/null 2>&1 || skip "the image $image is not there (tests/tools.sh makes it)"
  done
}

# scratch [FILE SYSTEM [SIZE [OPTIONS]]]: a directory on a file system of its own, in $D; gone when the script ends.
scratch() {
  local type=${1:-ext4} size=${2:-2G} options=loop${3:+,$3}
  [ "$(id -u)" = 0 ] || skip "a loop device needs root"
  IMAGE=$(mktemp /var/tmp/strata-test.XXXXXX)
  D=$(mktemp -d /var/tmp/strata-test.XXXXXX)
  trap clean EXIT
  truncate -s "$size" "$IMAGE"
  "mkfs.$type" -q "$IMAGE"
  mount -o "$options" "$IMAGE" "$D"
  chmod 755 "$D"
}

# What a script puts here runs before its mounts go.
also_at_end() { :; }

clean() {
  local code=$? at
  set +e
  also_at_end
  # The innermost mount first.
  for at in $(findmnt -rno TARGET | grep "^$D/" | tac); do umount -l "$at"; done
  for _ in 1 2 3 4 5; do umount "$D" 2>/dev/null && break; sleep 1; done
  mountpoint -q "$D" && umount -l "$D"
  rm -rf "$IMAGE"
  rmdir "$D" 2>/dev/null
  exit "$code"
}

# unmount DIRECTORY: waits while something still uses it, and for the daemon to end.
unmount() {
  local i
  for i in $(seq 100); do
    umount "$1" 2>/dev/null && break
    mountpoint -q "$1" || break
    sleep 0.1
  done
  ! mountpoint -q "$1" || fail "$1 stays in use"
  # The upper layer is locked as long as the daemon lives.
  for i in $(seq 100); do daemon "$1" >/dev/null || return 0; sleep 0.05; done
  fail "the daemon of $1 does not end"
}

# daemon DIRECTORY: the process that serves the mount there. One that has ended and was not waited for yet counts as gone.
daemon() {
  local process
  for process in /proc/[0-9]*; do
    { grep -qza 'mount' "$process/cmdline" && tr '\0' '\n' <"$process/cmdline" | grep -qxF -- "$1"; } 2>/dev/null || continue
    [[ $(sed 's/.*) //' "$process/stat" 2>/dev/null) == [ZX]* ]] && continue
    [[ $(readlink "$process/exe" 2>/dev/null) == */strata ]] || continue
    echo "${process#/proc/}"
    return
  done
  return 1
}

# What registries say of requests; in place of it: {level: info}.
registry_log='{level: error, accesslog: {disabled: true}}'

# serve_registry DIRECTORY ADDRESS [IMAGE…]: Debian's registry, with its files in the directory and these images of the
# corpus. Its process is $registry, which is the caller's to end.
serve_registry() {
  local dir=$1 at=$2 image
  shift 2
  mkdir -p "$dir/registry"
  cat >"$dir/registry.yml" <<T
version: 0.1
storage: {filesystem: {rootdirectory: $dir/registry}, delete: {enabled: true}}
http: {addr: $at}
log: $registry_log
T
  docker-registry serve "$dir/registry.yml" >"$dir/registry.log" 2>&1 &
  registry=$!
  for _ in $(seq 100); do curl -sf "http://$at/v2/" >/dev/null && break; sleep 0.1; done
  for image; do
    skopeo copy -q --dest-tls-verify=false "oci:$CORPUS/oci/$image" "docker://$at/$image"
  done
}

# union OPTIONS…: mounts $D/m over the lower layers $D/l, with upper $D/u and work $D/w.
union() {
  mkdir -p "$D"/{l,u,w,m}
  "$STRATA" mount -o "lowerdir=$D/l,upperdir=$D/u,workdir=$D/w${1:+,$1}" "$D/m"
}

# The program under test; a file named strata on the PATH, as mount(8) looks for it on a remount.
strata_binary() {
  [ -n "${STRATA:-}" ] || { cargo build -q --locked -p strata --manifest-path "$ROOT/Cargo.toml" && STRATA=$ROOT/target/debug/strata; }
  export STRATA
  PATH=$(dirname "$STRATA"):$PATH
}

# tree DIRECTORY: a line a path, to be compared.
tree() {
  (cd "$1" && find . -mindepth 1 -printf '%P\t%y\t%m\t%U:%G\t%s\t%l\n' | awk -F'\t' -v OFS='\t' '$2=="d"{$5=""}1' | LC_ALL=C sort)
  (cd "$1" && find . -type f -exec sha256sum {} + | LC_ALL=C sort -k2)
}

# whole_tree DIRECTORY: the same with times, links, devices and attributes, as the shared corpus compares trees.
whole_tree() { python3 "$ROOT/../shared/corpus/tree.py" "$1"; }

# podman_storage FILE GRAPH RUN [PROGRAM]: writes into FILE that podman has its overlay storage in the directories GRAPH and
# RUN, mounted by PROGRAM.
podman_storage() {
  printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\nrunroot = "%s"\n' "$2" "$3" >"$1"
  [ -z "${4:-}" ] || printf '[storage.options.overlay]\nmount_program = "%s"\n' "$4" >>"$1"
}

# in_machine_with_xfs_quota: goes on where this kernel keeps limits of projects on XFS; otherwise the script runs in a
# machine whose kernel does: Debian's, emulated by QEMU, with this machine's files, which it only reads.
in_machine_with_xfs_quota() {
  local probe=/var/tmp/strata-probe.$$ kept= kernel=$CACHE/kernel
  [ "$(id -u)" = 0 ] || skip "a loop device needs root"
  mkdir "$probe"
  truncate -s 400M "$probe.image"
  mkfs.xfs -q "$probe.image"
  if mount -o loop,prjquota "$probe.image" "$probe" 2>/dev/null; then kept=1; umount "$probe"; fi
  rm -r "$probe" "$probe.image"
  [ -z "$kept" ] || return 0
  [ -z "${STRATA_IN_MACHINE:-}" ] || fail "the machine's kernel has no quota of XFS"
  command -v qemu-system-x86_64 >/dev/null && [ -e "$kernel/initrd" ] ||
    skip "this kernel has no quota of XFS, and there is no other (tests/tools.sh makes one)"
  echo "export STRATA_IN_MACHINE=1 STRATA='$STRATA' HOME='$HOME' STRATA_REQUIRE='${STRATA_REQUIRE:-}'; exec bash '$(realpath "$0")'" \
    >"$kernel/command.$$"
  qemu-system-x86_64 -accel tcg,thread=multi -cpu Nehalem -smp 2 -m 4096 -display none -serial stdio -monitor none -no-reboot \
    -kernel "$kernel/vmlinuz" -initrd "$kernel/initrd" -append "console=ttyS0 quiet panic=-1 strata=$kernel/command.$$" \
    -virtfs "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap" </dev/null >"$kernel/said.$$" 2>&1
  cat "$kernel/said.$$"
  grep -qx $'the script has ended with 0\r*' "$kernel/said.$$" || { rm "$kernel"/*.$$; exit 1; }
  rm "$kernel"/*.$$
  exit 0
}
