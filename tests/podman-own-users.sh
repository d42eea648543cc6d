#!/usr/bin/env bash
# podman and buildah of a user without privileges who may map others, configured by `strata install podman`: run with
# --userns=keep-id, write, diff, commit, build.
set -euo pipefail
story() { # program, image
  strata=$1
  cd /
  "$strata" install podman --yes 2>/dev/null >"$HOME/shown"
  grep -q '^+ mount_program' "$HOME/shown" || { cat "$HOME/shown"; exit 1; }
  run=(podman --cgroup-manager=cgroupfs run --cgroups=disabled --network=host --runtime=crun --security-opt=seccomp=unconfined
    --ulimit=nofile=1024:1024 --ulimit=nproc=1024:1024)
  podman pull -q --tls-verify=false "$2" >/dev/null
  [ "$("${run[@]}" --rm "$2" id -u)" = 0 ] || { echo "not root in the container"; exit 1; }
  [ "$("${run[@]}" --userns=keep-id --rm "$2" id -u)" = 4243 ] || { echo "keep-id does not keep the id"; exit 1; }
  mkdir "$HOME/shared"
  "${run[@]}" --userns=keep-id --name kept -v "$HOME/shared:/shared" "$2" sh -c 'echo mine >/shared/file && echo in >/tmp/in && stat -c %u /etc/passwd /tmp/in >/tmp/owners'
  [ "$(stat -c %u "$HOME/shared/file")" = 4243 ] || { echo "a file that was shared is somebody else's"; exit 1; }
  podman diff kept >"$HOME/diff"
  grep -qx 'A /tmp/in' "$HOME/diff" || { cat "$HOME/diff"; exit 1; }
  podman commit -q kept committed >/dev/null
  [ "$("${run[@]}" --userns=keep-id --rm committed cat /tmp/owners | tr '\n' ' ')" = "0 4243 " ] || { echo "owners are not kept"; exit 1; }
  podman info --format '{{index .Store.GraphOptions "overlay.mount_program"}}' >"$HOME/program"
  grep -q strata "$HOME/program" || { cat "$HOME/program"; exit 1; }
  printf 'FROM committed\nUSER 0\nRUN echo built >/built\n' >"$HOME/Containerfile"
  buildah build -q --isolation=chroot --network=host -t built -f "$HOME/Containerfile" "$HOME/shared" >/dev/null
  [ "$("${run[@]}" --rm built cat /built)" = built ] || { echo "the build is lost"; exit 1; }
  podman rm -fa >/dev/null
  podman rmi -fa >/dev/null
  "$strata" install podman --undo --yes >/dev/null 2>&1
  [ ! -e "$HOME/.config/containers/storage.conf" ] || { echo "the undo leaves a configuration"; exit 1; }
  podman --version
  buildah --version
  echo "run, keep-id, diff, commit, build by a user of its own"
}
if [ "${1:-}" = story ]; then
  story "$2" "$3"
  exit
fi
# crun refuses a machine with cgroup versions 1 and 2 side by side: in a mount namespace, version 2 is hidden.
if [ -z "${STRATA_HIDDEN:-}" ] && mountpoint -q /sys/fs/cgroup/unified; then
  STRATA_HIDDEN=1 exec unshare -m bash -c 'umount /sys/fs/cgroup/unified && exec bash "$0"' "$0"
fi
. "$(dirname "$0")/lib.sh"
images busybox:1
[ "$(id -u)" = 0 ] || skip 'a user of its own needs root'
need setpriv unshare newuidmap newgidmap curl crun skopeo docker-registry podman buildah
strata_binary
dir=$(mktemp -d /var/tmp/strata-test.XXXXXX)
registry_at=127.0.0.1:5949
trap 'code=$?; [ -z "${registry:-}" ] || kill "$registry"; pkill -U 4243 || true; sleep 0.5; rm -rf "$dir"; exit $code' EXIT
serve_registry "$dir" "$registry_at" busybox:1
cp "$(command -v strata)" "$0" "$dir"
mkdir -p "$dir/own/run"
chown -R 4243:4243 "$dir/own"
chmod 700 "$dir/own/run"
chmod 755 "$dir"
echo '4243:400000:65536' >"$dir/ids"
(cat /etc/passwd; echo "strata-test:x:4243:4243::$dir/own:/bin/sh") >"$dir/passwd"
(cat /etc/group; echo "strata-test:x:4243:") >"$dir/group"
mknod -m 666 "$dir/fuse" c 10 229
export dir registry_at
unshare -m bash -ec '
  for file in /etc/subuid /etc/subgid; do touch $file; mount --bind "$dir/ids" $file; done
  mount --bind "$dir/passwd" /etc/passwd
  mount --bind "$dir/group" /etc/group
  mount --bind "$dir/fuse" /dev/fuse
  exec setpriv --reuid 4243 --regid 4243 --clear-groups env -i PATH="$PATH" HOME="$dir/own" XDG_RUNTIME_DIR="$dir/own/run" USER=strata-test bash "$dir/podman-own-users.sh" story "$dir/strata" "$registry_at/busybox:1"'
