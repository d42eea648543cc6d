#!/usr/bin/env bash
# What tests/containers.sh does with a real image, without privileges, by a user who may map others: nginx comes from a
# registry, runs as one of them, is edited, compared, committed with its owners, run from the new image, and taken back. By
# overlayfs and by FUSE. The writable layer has a limit, too.
set -euo pipefail
passed=0
is() { # what, wanted, got
  [ "$2" = "$3" ] || { printf '%s: wanted\n%s\ngot\n%s\n' "$1" "$2" "$3" >&2; exit 1; }
  passed=$((passed + 1))
}
page() {
  for _ in $(seq 100); do
    curl --silent --max-time 5 "http://127.0.0.1:8080$1" && return
    sleep 0.1
  done
  "$strata" logs web >&2
}
status() { curl --silent --max-time 5 --output /dev/null --write-out '%{http_code}' "http://127.0.0.1:8080$1"; }
story() { # program, image
  strata=$1
  cd /
  trap '"$strata" rm -f web new >/dev/null 2>&1 || true' EXIT
  for backend in kernel fuse; do
    case=$backend,$(id -u)
    # The image sets its number of workers twice.
    "$strata" run -d --backend $backend --name web "$2" \
      sh -c 'rm /etc/nginx/modules-enabled/00-local.conf; exec nginx -g "daemon off;"' >/dev/null
    is "$case: the image's page" new "$(page /old/new.html)"
    "$strata" exec web sh -c 'echo edited >/usr/share/nginx/html/index.html; rm -r /usr/share/nginx/html/old'
    is "$case: the edit is served" edited "$(page /index.html)"
    is "$case: the deleted is not" 404 "$(status /old/new.html)"
    is "$case: the difference" $'A /usr/share/nginx/html/index.html\nD /usr/share/nginx/html/old' \
      "$("$strata" diff web | grep /html/)"
    is "$case: somebody else in it" 33 "$("$strata" exec -u www-data web id -u)"
    "$strata" stop web >/dev/null
    "$strata" snapshot web before >/dev/null
    "$strata" commit web web:2 >/dev/null
    "$strata" run -d --backend $backend --name new web:2 nginx -g 'daemon off;' >/dev/null
    is "$case: the new image serves the edit" edited "$(page /index.html)"
    is "$case: and not the deleted" 404 "$(status /old/new.html)"
    is "$case: owners are those of the container" 33 "$("$strata" exec new stat -c %u /var/lib/nginx/body)"
    "$strata" rm -f new >/dev/null
    "$strata" start web >/dev/null
    "$strata" exec web sh -c 'echo again >/usr/share/nginx/html/index.html'
    is "$case: edited again" again "$(page /index.html)"
    "$strata" stop web >/dev/null
    "$strata" rollback web before >/dev/null
    "$strata" start web >/dev/null
    is "$case: taken back" edited "$(page /index.html)"
    "$strata" rm -f web >/dev/null
    is "$case: nothing is left" '' "$(ls "$STRATA_ROOT/rw" "$STRATA_ROOT/trash" | grep -v :)"
  done
  # shellcheck disable=SC2016
  is 'a limit without privileges' $'1048576\nNo space left on device\nkept' "$("$strata" run --rm --size 1m "$2" sh -c '
    df -B1 --output=size / | tail -n 1 | tr -d " "; echo kept >/kept
    dd if=/dev/zero of=/full bs=64k count=100 2>&1 | grep -o "No space left on device"; rm /full; cat /kept')"
  is 'another runtime without privileges' 33 "$("$strata" run --rm --runtime crun -u www-data "$2" id -u)"
  "$strata" check >/dev/null
  echo "$passed passed"
}
if [ "${1:-}" = story ]; then
  story "$2" "$3"
  exit
fi
. "$(dirname "$0")/lib.sh"
images nginx:1
[ "$(id -u)" = 0 ] || skip 'a user of its own needs root'
need setpriv unshare newuidmap newgidmap curl crun skopeo docker-registry
strata_binary
dir=$(mktemp -d)
registry_at=127.0.0.1:5948
trap '[ -z "${registry:-}" ] || kill "$registry"; rm -rf "$dir"' EXIT
serve_registry "$dir" "$registry_at" nginx:1
# A user who may map other users, and open /dev/fuse, as a desktop has it; all of it seen here alone.
cp "$(command -v strata)" "$ROOT/tests/own-users.sh" "$dir"
mkdir "$dir/own"
chown 4242:4242 "$dir/own"
chmod -R a+rX "$dir"
echo '4242:300000:65536' >"$dir/ids"
(cat /etc/passwd; echo strata-test:x:4242:4242::/:/bin/sh) >"$dir/passwd"
mknod -m 666 "$dir/fuse" c 10 229
export STRATA_ROOT=$dir/own/store dir registry_at
unshare -m bash -ec '
  for file in /etc/subuid /etc/subgid; do touch $file; mount --bind "$dir/ids" $file; done
  mount --bind "$dir/passwd" /etc/passwd
  mount --bind "$dir/fuse" /dev/fuse
  exec setpriv --reuid 4242 --regid 4242 --clear-groups env HOME="$dir/own" bash "$dir/own-users.sh" story "$dir/strata" "docker://$registry_at/nginx:1"'
