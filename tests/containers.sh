#!/usr/bin/env bash
# Containers from real images: nginx:1 comes from a local registry, serves a page over loopback, is edited, told apart,
# committed, run again, frozen and taken back, with each backend; two containers don't see each other; a kill -9 of
# Strata leaves everything as it was; 121 layers run like one; podman and umoci load what was committed, odd files too, and have the tree that the container had.
. "$(dirname "$0")/lib.sh"
need podman skopeo umoci docker-registry curl jq python3
images nginx:1 many:120 busybox:1 edge:1
strata_binary
scratch ext4 8G
export STRATA_ROOT=$D/store
registry_at=127.0.0.1:5947
also_at_end() {
  local id
  for id in $(strata ps -aq 2>/dev/null); do strata rm -f "$id" >/dev/null 2>&1; done
  kill "$registry" 2>/dev/null
}
serve_registry "$D" "$registry_at" nginx:1 many:120 busybox:1 edge:1
for image in nginx:1 many:120 busybox:1 edge:1; do
  strata pull "$registry_at/$image" >/dev/null
done
strata check
nginx=$registry_at/nginx:1 busybox=$registry_at/busybox:1
expect() { [ "$1" = "$2" ] || fail "$3: $1 (not $2)"; }
page() { local _; for _ in $(seq 100); do curl -fsS --max-time 10 "http://127.0.0.1:$port/page.html" 2>/dev/null && return; sleep 0.1; done; return 1; }
# The image sets worker_processes twice, and listens on a port that may be taken.
prepare="sed -i '/^worker_processes/d' /etc/nginx/nginx.conf; sed -i 's/listen 8080/listen 127.0.0.1:PORT/' /etc/nginx/conf.d/app.conf
  rm -f /etc/nginx/sites-enabled/default; echo first >/usr/share/nginx/html/page.html; exec nginx -g 'daemon off;'"

for backend in kernel fuse; do
  port=$((21000 + $$ % 20000)); [ "$backend" = kernel ] || port=$((port + 1))
  strata run -d --backend "$backend" --name "web-$backend" "$nginx" sh -c "${prepare/PORT/$port}" >/dev/null
  expect "$(page)" first "the page by the $backend backend"
  strata ps | grep -q "web-$backend" || fail 'ps does not show the container'
  strata exec "web-$backend" sh -c 'echo second >/usr/share/nginx/html/page.html; rm -r /usr/share/nginx/html/old; rm /srv/state/kept'
  expect "$(page)" second 'the edited page'
  strata diff "web-$backend" >"$D/diff"
  for line in 'A /usr/share/nginx/html/page.html' 'C /etc/nginx/nginx.conf' 'D /usr/share/nginx/html/old' 'D /srv/state/kept'; do
    grep -qx "$line" "$D/diff" || { cat "$D/diff"; fail "diff lacks $line"; }
  done
  strata stop "web-$backend" >/dev/null
  strata commit "web-$backend" "localhost/web-$backend:2" >/dev/null
  strata run -d --backend "$backend" --name "next-$backend" "localhost/web-$backend:2" nginx -g 'daemon off;' >/dev/null
  expect "$(page)" second 'the page of the committed image'
  strata exec "next-$backend" sh -c 'test ! -e /srv/state/kept && test ! -e /usr/share/nginx/html/old'
  strata rm -f "next-$backend" >/dev/null

  # Frozen, spoilt, taken back.
  strata snapshot "web-$backend" good >/dev/null
  strata start "web-$backend" >/dev/null
  expect "$(page)" first 'the page after a start, which writes it'
  strata exec "web-$backend" sh -c 'rm -r /etc/nginx/conf.d; echo third >/usr/share/nginx/html/third'
  strata stop "web-$backend" >/dev/null
  strata rollback "web-$backend" good >/dev/null
  strata diff "web-$backend" >"$D/diff.back"
  ! grep -qE 'third|D /etc/nginx/conf.d$' "$D/diff.back" || fail 'the rollback left something'
  strata rm "web-$backend" >/dev/null

  # kill -9 of what watches the container: what it wrote and synced is there, and it starts again.
  strata run -d --backend "$backend" --name "killed-$backend" "$busybox" sh -c 'echo kept >/root/kept; sync; sleep 1000' >/dev/null
  for _ in $(seq 100); do [ "$(strata exec "killed-$backend" cat /root/kept 2>/dev/null)" = kept ] && break; sleep 0.1; done
  for process in /proc/[0-9]*; do
    [[ $(readlink "$process/exe" 2>/dev/null) == */strata ]] || continue
    tr '\0' ' ' <"$process/environ" 2>/dev/null | grep -qF "STRATA_ROOT=$D/store" && kill -9 "${process#/proc/}" 2>/dev/null
  done
  for _ in $(seq 100); do strata ps | grep -q "killed-$backend" || break; sleep 0.1; done
  ! strata ps | grep -q "killed-$backend" || fail 'ps shows a container that was killed'
  strata start "killed-$backend" >/dev/null
  for _ in $(seq 100); do [ "$(strata exec "killed-$backend" cat /root/kept 2>/dev/null)" = kept ] && break; sleep 0.1; done
  expect "$(strata exec "killed-$backend" cat /root/kept)" kept 'what was written before the kill'
  strata rm -f "killed-$backend" >/dev/null
  echo "$backend: served, edited, committed, taken back, killed and started again"
done

# Two containers of one image.
strata run --name one "$busybox" sh -c 'echo one >/root/x; rm /bin/vi'
strata run --rm "$busybox" sh -c 'test ! -e /root/x && test -e /bin/vi'
strata rm one >/dev/null

# Status, standard streams, many layers.
status=0; strata run --rm "$busybox" sh -c 'exit 7' || status=$?
expect "$status" 7 'the status of the command'
expect "$(echo in | strata run --rm -i "$busybox" cat)" in 'standard input'
expect "$(strata run --rm "$registry_at/many:120" cat /layers/top)" 120 'the top of 121 layers'
expect "$(strata run --rm --backend fuse "$registry_at/many:120" sh -c 'wc -l </layers/log')" 120 'the log of 121 layers'

# Out to podman and to Docker's tools: the tree that the container had.
tree_of() { whole_tree "$1" | sed 's/ nl=[0-9]*//'; }
strata_tree() { # IMAGE
  mkdir -p "$D/m"
  strata mount -o "lowerdir=$(strata layers --json "$1" | jq -r '[.[].path] | join(":")')" "$D/m"
  tree_of "$D/m"
  unmount "$D/m"
}
P() { podman --root "$D/graph" --runroot "$D/runroot" --storage-driver overlay "$@"; }
podman_tree() { # IMAGE
  tree_of "$(P image mount "$1")"
  P image umount "$1" >/dev/null
}
# What is odd about names, links, owners, times and attributes, and changed there; committed, it is what the container had.
odd='cd /edge; rm -r opaque; mkdir opaque; echo new >opaque/new; mv hl1 moved; ln moved "more
  links"; chmod 6711 empty; echo more >>capped; ln -sfn /nowhere dangling; touch -d @100000.25 before-1970; mkdir -p deep/er
  chown 12345:54321 "with space and	tab"; mkfifo -m 600 pipe; rm "new
line"; truncate -s 40M sparse; rm -r /usr/share/doc; mkdir -m 1777 /usr/share/doc; mv /etc/debian_version /srv'
same() { diff "$1" "$2" >"$D/diff" || { head -n 20 "$D/diff"; fail "$3"; }; }
for backend in kernel fuse; do
  strata run --backend "$backend" --name "edge-$backend" "$registry_at/edge:1" sh -ec "$odd"
  strata mount "edge-$backend" >"$D/at"
  tree_of "$(cat "$D/at")" >"$D/had"
  strata umount "edge-$backend" >/dev/null
  strata commit "edge-$backend" "localhost/edge-$backend:2" >/dev/null
  strata_tree "localhost/edge-$backend:2" >"$D/ours"
  same "$D/had" "$D/ours" "the commit has another tree than the container by the $backend backend"
  strata rm "edge-$backend" >/dev/null
done
# The last is unpacked further on.
for image in localhost/{edge,web}-{kernel,fuse}:2; do
  strata_tree "$image" >"$D/ours"
  strata save --format docker-archive -o "$D/saved.tar" "$image"
  P load -q -i "$D/saved.tar" >/dev/null
  podman_tree "$image" >"$D/theirs"
  same "$D/theirs" "$D/ours" "podman has another tree of $image"
  strata save --format oci-archive -o "$D/saved.oci.tar" "$image"
  rm -rf "$D/layout" "$D/bundle"
  skopeo copy -q "oci-archive:$D/saved.oci.tar" "oci:$D/layout:2"
  umoci unpack --image "$D/layout:2" "$D/bundle" >/dev/null 2>&1
  tree_of "$D/bundle/rootfs" >"$D/theirs"
  same "$D/theirs" "$D/ours" "umoci has another tree of $image"
  echo "$image, committed, loaded by podman and by umoci: $(wc -l <"$D/ours") paths equal"
done

# The reverse: a container of podman's, committed by it, and by umoci.
container=$(P create localhost/web-fuse:2 true)
view=$(P mount "$container")
rm -r "$view/usr/share/nginx/html"
mkdir "$view/usr/share/nginx/html"
echo podman >"$view/usr/share/nginx/html/page.html"
ln "$view/usr/share/nginx/html/page.html" "$view/srv/link"
setfattr -n user.told -v by-podman "$view/srv/link"
P umount "$container" >/dev/null
P commit -q "$container" localhost/back:1 >/dev/null
P save -q --format docker-archive -o "$D/back.tar" localhost/back:1
strata load -i "$D/back.tar" >/dev/null
podman_tree localhost/back:1 >"$D/theirs"
strata_tree localhost/back:1 >"$D/ours"
same "$D/theirs" "$D/ours" 'the image of podman has another tree here'
expect "$(strata run --rm localhost/back:1 cat /srv/link)" podman 'a file of the image of podman'
rm -r "$D/bundle/rootfs/etc/nginx/conf.d"
echo umoci >"$D/bundle/rootfs/srv/umoci"
# umoci lists only directories that changed: those on the way to what did are to be among them, for a layer is unpacked
# here without what lies below it, and has a time of its own for a directory that it does not list.
touch "$D/bundle/rootfs/etc"
umoci repack --image "$D/layout:3" "$D/bundle" >/dev/null 2>&1
umoci unpack --image "$D/layout:3" "$D/again" >/dev/null 2>&1
tree_of "$D/again/rootfs" >"$D/theirs"
strata pull -q "oci:$D/layout:3" >/dev/null
strata_tree localhost/layout:3 >"$D/ours"
same "$D/theirs" "$D/ours" 'the image of umoci has another tree here'
echo "committed by podman and by umoci, loaded here: $(wc -l <"$D/ours") paths equal"

# Nothing is left.
strata rmi localhost/{web,edge}-{kernel,fuse}:2 "$registry_at/edge:1" localhost/back:1 localhost/layout:3 "$nginx" "$busybox" "$registry_at/many:120" >/dev/null
strata gc >/dev/null
strata check
expect "$(strata df --json | jq .layers)" 0 'layers that are left'
[ -z "$(strata ps -aq)" ] || fail 'containers are left'
