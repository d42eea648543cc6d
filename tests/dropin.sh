#!/usr/bin/env bash
# podman and buildah (Debian's), with Strata as their mount program under the name fuse-overlayfs: run, change, diff,
# commit, build.
# crun refuses a machine with cgroup versions 1 and 2 side by side: in a mount namespace, version 2 is hidden.
if [ -z "${STRATA_HIDDEN:-}" ] && mountpoint -q /sys/fs/cgroup/unified; then
  STRATA_HIDDEN=1 exec unshare -m bash -c 'umount /sys/fs/cgroup/unified && exec bash "$0"' "$0"
fi
. "$(dirname "$0")/lib.sh"
need podman buildah crun jq
strata_binary
scratch ext4 3G
mkdir -p "$D/bin" "$D/root"
ln -s "$STRATA" "$D/bin/fuse-overlayfs"
export CONTAINERS_STORAGE_CONF=$D/storage.conf
podman_storage "$CONTAINERS_STORAGE_CONF" "$D/graph" "$D/run" "$D/bin/fuse-overlayfs"
# A small root of this machine's own programs.
for program in sh cat ls mkdir mv rm ln touch stat; do
  path=$(readlink -f "$(command -v "$program")")
  { echo "$path"; ldd "$path" | grep -o '/[^ ]*'; } | while read -r file; do
    mkdir -p "$D/root$(dirname "$file")"
    cp -L "$file" "$D/root$file"
  done
  mkdir -p "$D/root/bin"
  [ -e "$D/root/bin/$program" ] || ln -s "$path" "$D/root/bin/$program"
done
mkdir -p "$D/root"/{etc,tmp,proc,sys,dev,lower/sub}
echo lower >"$D/root/lower/file"
echo sub >"$D/root/lower/sub/file"
tar -C "$D/root" -c . | podman import -q - base >/dev/null
podman --version
buildah --version
run=(podman run --cgroups=disabled --network=host --runtime=crun --security-opt=seccomp=unconfined --ulimit=nofile=4096:4096 --ulimit=nproc=1024:1024)
# (A name that is no prefix of an image ID: podman would take it for one.)
out=$("${run[@]}" --name one-changed base sh -c 'cat /lower/file; echo changed >/lower/file; rm -r /lower/sub; mkdir /lower/sub; mv /lower /moved; cat /moved/file; ls /moved/sub')
[ "$out" = $'lower\nchanged' ] || fail "run printed: $out"
podman diff one-changed | sort >"$D/diff"
grep -qx 'D /lower' "$D/diff" && grep -qx 'A /moved/file' "$D/diff" || fail "diff printed: $(cat "$D/diff")"
podman commit -q one-changed second >/dev/null
out=$("${run[@]}" --rm second sh -c 'cat /moved/file; ls / /moved/sub')
[[ $out == changed* && $out != *lower* ]] || fail "the committed image printed: $out"
mount | grep -q "$D.*fuse.strata" && fail 'a mount is left'
cat >"$D/Containerfile" <<'T'
FROM base
RUN echo built >/built && rm /lower/file
RUN ln /built /linked && mkdir /lower/new
T
buildah build -q --isolation chroot --layers -t third -f "$D/Containerfile" "$D" >/dev/null
out=$("${run[@]}" --rm third sh -c 'cat /built /linked; ls /lower')
[ "$out" = $'built\nbuilt\nnew\nsub' ] || fail "the built image printed: $out"
podman rm -f one-changed >/dev/null
podman rmi -af >/dev/null
