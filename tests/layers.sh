#!/usr/bin/env bash
# Real layers: those of nginx:1 and edge:1, as buildah unpacks them, mounted by Strata. The same tree as the kernel's
# overlayfs shows; in nginx:1 a server that runs, an edit (copy-up), deletions (whiteouts), a package installed; then the
# kernel shows what Strata wrote, the layers are as before, and without the upper layer so is the tree.
. "$(dirname "$0")/lib.sh"
need buildah skopeo curl chroot getcap
images debian:bookworm nginx:1 edge:1
strata_binary
scratch ext4 4G
B() { buildah --root "$D/graph" --runroot "$D/runroot" --storage-driver overlay "$@"; }
mkdir -p "$D"/{m,k}

# layers IMAGE: sets $layers, uppermost first, and mounts the kernel's view at $view.
layers() {
  local container options
  skopeo copy -q "oci:$CORPUS/oci/$1" "containers-storage:[overlay@$D/graph+$D/runroot]localhost/$1"
  container=$(B from -q --pull-never "localhost/$1")
  view=$(B mount "$container")
  options=$(findmnt -no OPTIONS "$view" | tr , '\n' | sed -n 's/^lowerdir=//p')
  layers=$(tr : '\n' <<<"$options" | while read -r layer; do
    case $layer in /*) echo "$layer" ;; *) echo "$D/graph/overlay/$layer" ;; esac
  done | xargs -n 1 readlink -f | paste -sd:)
}
hashes() { tr : '\n' <<<"$layers" | while read -r layer; do whole_tree "$layer"; done | sha256sum; }
mounted() { rm -rf "$D/u" "$D/w"; mkdir "$D/u" "$D/w"; strata mount -o "lowerdir=$layers,upperdir=$D/u,workdir=$D/w" "$D/m"; }
same() { diff "$1" "$2" >"$D/diff" || { head -n 20 "$D/diff"; fail "$3"; }; }

layers nginx:1
echo "nginx:1: $(tr : '\n' <<<"$layers" | wc -l) layers"
before=$(hashes)
whole_tree "$view" >"$D/kernel"
mounted
whole_tree "$D/m" >"$D/first"
same "$D/kernel" "$D/first" 'nginx:1 is not the tree that the kernel shows'

inside() { chroot "$D/m" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"; }
mount -t proc proc "$D/m/proc"
mount -t tmpfs -o mode=755 tmpfs "$D/m/dev"
for device in null:3 zero:5 random:8 urandom:9; do mknod -m 666 "$D/m/dev/${device%:*}" c 1 "${device#*:}"; done
page() { for _ in $(seq 50); do curl -fsS --max-time 10 "http://127.0.0.1:$port/page.html" 2>/dev/null && return; sleep 0.2; done; return 1; }
port=$((20000 + $$ % 20000))
sed -i "s/listen 8080/listen 127.0.0.1:$port/" "$D/m/etc/nginx/conf.d/app.conf"
rm -f "$D/m/etc/nginx/sites-enabled/default"
echo 'from the union' >"$D/m/usr/share/nginx/html/page.html"
sed -i "/^worker_processes/d" "$D/m/etc/nginx/nginx.conf" # the image sets it twice
inside nginx
also_at_end() { inside nginx -s stop 2>/dev/null; }
[ "$(page)" = 'from the union' ] || fail 'nginx does not serve the page'
echo edited >"$D/m/usr/share/nginx/html/page.html"
[ "$(page)" = edited ] || fail 'nginx does not serve the edited page'
sed -i 's/worker_processes.*/worker_processes 2;/' "$D/m/etc/nginx/modules-enabled/00-local.conf" # copy-up, by rename
inside nginx -t -q || inside nginx -t
inside nginx -s reload
[ "$(page)" = edited ] || fail 'nginx does not serve after the reload'
inside nginx -s stop
also_at_end() { :; }
rm -r "$D/m/usr/share/nginx/html/old" "$D/m/srv/becomes-dir"
[ ! -e "$D/m/srv/becomes-dir" ] || fail 'what was deleted is still there'
cp "$CACHE"/deb/hello_*.deb "$D/m/tmp/hello.deb"
inside apt-get -o APT::Sandbox::User=root install -qq -y /tmp/hello.deb >"$D/apt" 2>&1 || { cat "$D/apt"; fail 'apt-get install'; }
[ "$(inside hello)" = 'Hello, world!' ] || fail 'the installed program does not run'
[ "$(inside dpkg-query -W -f '${Status}' hello)" = 'install ok installed' ] || fail 'dpkg does not know the package'
for _ in $(seq 50); do umount "$D/m/dev" "$D/m/proc" 2>/dev/null; mountpoint -q "$D/m/proc" || break; sleep 0.1; done
whole_tree "$D/m" >"$D/changed"
unmount "$D/m"
mount -t overlay overlay -o "redirect_dir=on,lowerdir=$layers,upperdir=$D/u,workdir=$D/w" "$D/k"
whole_tree "$D/k" >"$D/kernel"
umount "$D/k"
same "$D/changed" "$D/kernel" 'the kernel does not show what Strata wrote into nginx:1'
[ "$before" = "$(hashes)" ] || fail 'a layer of nginx:1 changed'
mounted
whole_tree "$D/m" >"$D/again"
unmount "$D/m"
same "$D/first" "$D/again" 'without its upper layer nginx:1 is not as before'
echo "nginx:1: $(wc -l <"$D/changed") paths, $(diff "$D/first" "$D/changed" | grep -c '^[<>]') lines changed, the layers are as before"

layers edge:1
before=$(hashes)
whole_tree "$view" >"$D/kernel"
mounted
whole_tree "$D/m" >"$D/first"
same "$D/kernel" "$D/first" 'edge:1 is not the tree that the kernel shows'
# Everything copied up, by each. (Whether names stay one file differs: the kernel without its index parts them.)
for at in "$D/m" "$view"; do
  find "$at/edge" -print0 | sort -z | xargs -0 chown -h 5:6
  find "$at/edge" -type f -print0 | sort -z | xargs -0 setfattr -n user.copied -v up
done
whole_tree "$D/m" | sed 's/ nl=[0-9]*//' >"$D/first"
whole_tree "$view" | sed 's/ nl=[0-9]*//' >"$D/kernel"
unmount "$D/m"
same "$D/kernel" "$D/first" 'edge:1, copied up, is not the tree that the kernel makes of it'
[ "$before" = "$(hashes)" ] || fail 'a layer of edge:1 changed'
echo "edge:1: $(wc -l <"$D/first") paths equal, before and after their copy-up"
