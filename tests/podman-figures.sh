#!/usr/bin/env bash
# What podman takes with a container of ml:1, by Strata and by fuse-overlayfs as its mount program, in turn: started,
# compared with its image, committed. Not a test: its table is in docs/decisions/022-figures.md. As root.
# tests/podman-figures.sh [ROUNDS]; STRATA is the program (a release build).
# crun refuses a machine with cgroup versions 1 and 2 side by side: in a mount namespace, version 2 is hidden.
if [ -z "${STRATA_HIDDEN:-}" ] && mountpoint -q /sys/fs/cgroup/unified; then
  STRATA_HIDDEN=1 exec unshare -m bash -c 'umount /sys/fs/cgroup/unified && exec bash "$0" "$@"' "$0" "$@"
fi
. "$(dirname "$0")/lib.sh"
need podman crun skopeo jq fuse-overlayfs
images ml:1
[ -n "${STRATA:-}" ] || { cargo build -q --release --locked -p strata --manifest-path "$ROOT/Cargo.toml"; STRATA=$ROOT/target/release/strata; }
scratch xfs 10G
mkdir "$D/bin"
ln -s "$STRATA" "$D/bin/fuse-overlayfs"
skopeo copy -q "oci:$CORPUS/oci/ml:1" "oci-archive:$D/ml.tar:localhost/ml:latest"
programs=("strata $D/bin/fuse-overlayfs" "fuse-overlayfs $(command -v fuse-overlayfs)")
for program in "${programs[@]}"; do
  read -r name path <<<"$program"
  podman_storage "$D/$name.conf" "$D/$name" "$D/$name-run" "$path"
  CONTAINERS_STORAGE_CONF=$D/$name.conf podman load -q -i "$D/ml.tar" >/dev/null
done
run=(podman run --cgroups=disabled --network=host --runtime=crun --security-opt=seccomp=unconfined --ulimit=nofile=4096:4096 --ulimit=nproc=1024:1024)
# timed COMMAND…: runs it and writes its seconds into the file of the step.
timed() {
  local begun
  begun=$(date +%s.%N)
  "$@" >"$D/out" || fail "$*"
  LC_ALL=C awk -v a="$begun" -v b="$(date +%s.%N)" 'BEGIN {printf "%.2f\n", b - a}' >>"$D/seconds/$name-$step"
}
mkdir "$D/seconds"
podman --version
for round in $(seq "${1:-3}"); do
  # Another one first each time.
  [ $((round % 2)) = 1 ] && order=("${programs[@]}") || order=("${programs[1]}" "${programs[0]}")
  for program in "${order[@]}"; do
    read -r name path <<<"$program"
    export CONTAINERS_STORAGE_CONF=$D/$name.conf
    step=rm; timed "${run[@]}" --rm localhost/ml true
    step=run; timed "${run[@]}" --name "one-$round" localhost/ml sh -c 'echo new >/new; echo more >>/etc/passwd; rm /etc/shadow'
    step=diff; timed podman diff "one-$round"
    sort "$D/out" >"$D/$name.diff"
    step=commit; timed podman commit -q "one-$round" "localhost/two-$round"
    podman rm -f "one-$round" >/dev/null
    podman rmi -f "localhost/two-$round" >/dev/null
  done
  diff "$D/strata.diff" "$D/fuse-overlayfs.diff" || fail "they do not show the same changes"
done
median() { sort -n "$D/seconds/$1" | sed -n "$((($(wc -l <"$D/seconds/$1") + 1) / 2))p"; }
echo "| seconds, median (all) | Strata | fuse-overlayfs | times as fast |"
echo "| --- | --: | --: | --: |"
for pair in rm:'`run --rm ml:1 true`' run:'`run`, three changes' diff:'`diff`' commit:'`commit`'; do
  step=${pair%%:*}
  line="| ${pair#*:} |"
  for name in strata fuse-overlayfs; do line+=" $(median "$name-$step") ($(tr '\n' ' ' <"$D/seconds/$name-$step" | sed 's/ $//')) |"; done
  echo "$line $(LC_ALL=C awk -v a="$(median "strata-$step")" -v b="$(median "fuse-overlayfs-$step")" 'BEGIN {printf "%.1f", b / a}') |"
done
