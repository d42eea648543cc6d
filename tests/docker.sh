#!/usr/bin/env bash
# Docker with the containerd image store, and Strata as its snapshotter: pull, run, build, commit, what it all takes, and
# prune.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/engine-lib.sh"
images busybox:1 nginx:1
engine trixie
snapshotter --content "$D/containerd/io.containerd.content.v1.content"
start_containerd
start_registry busybox:1 nginx:1
namespaces=moby
"$STRATA" install docker --prefix "$D/etc-root" --engine-version 26.1 --address "$socket" --store "$store" --yes >"$D/plan" 2>&1 ||
  { cat "$D/plan"; fail "no configuration for Docker"; }
jq '. + {"userland-proxy": false, "iptables": false, "ip6tables": false, "bridge": "none", "hosts": ["unix://'"$D"'/docker.sock"], "data-root": "'"$D"'/docker",
  "exec-root": "'"$D"'/docker-run", "pidfile": "'"$D"'/docker.pid", "containerd": "'"$address"'", "insecure-registries": ["'"$host"'"]}' \
  "$D/etc-root/etc/docker/daemon.json" >"$D/daemon.json"
export DOCKER_HOST=unix://$D/docker.sock DOCKER_CONFIG=$D/docker-config
dockerd --version
dockerd --config-file "$D/daemon.json" >"$D/dockerd.log" 2>&1 &
dockerd=$!
for _ in $(seq 100); do docker version >/dev/null 2>&1 && break; kill -0 "$dockerd" && sleep 0.2; done
docker version >/dev/null || { tail "$D/dockerd.log"; fail "dockerd does not answer"; }
docker info 2>/dev/null | grep -A1 'Storage Driver' >"$D/info"
grep -q 'Storage Driver: strata' "$D/info" || { cat "$D/info"; fail "Docker does not use Strata"; }

docker pull -q "$host/nginx:1" >/dev/null
docker pull -q "$host/busybox:1" >/dev/null
[ "$(metric strata_layers_unpacked_total)" = 5 ] || { cat "$D/metrics"; fail "Docker's layers were not unpacked by the store"; }
says hello docker run --rm --network host "$host/busybox:1" echo hello || { cat "$D/err"; fail "a container does not run"; }
docker create --name tree "$host/nginx:1" >/dev/null
docker export tree | tar -t >"$D/names"
[ "$(wc -l <"$D/names")" -gt 1000 ] || fail "the exported tree is too small"
docker rm tree >/dev/null

mkdir "$D/context"
echo added >"$D/context/file"
cat >"$D/context/Dockerfile" <<EOF
FROM $host/busybox:1
COPY file /file
RUN echo ran >/ran && rm -r /tmp
EOF
DOCKER_BUILDKIT=0 docker build --network host -q -t built "$D/context" >"$D/out" 2>"$D/err" || { cat "$D/err"; tail -n 5 "$D/dockerd.log"; fail "no build"; }
[ "$(docker run --rm --network host built cat /file /ran | tr '\n' ' ')" = "added ran " ] || fail "the built image lacks what was built"
docker run --name changed --network host built sh -c 'echo more >/more; rm /file'
docker diff changed >"$D/out"
grep -qx 'A /more' "$D/out" || { cat "$D/out"; fail "no diff"; }
diffs=$(metric 'strata_call_seconds_count{call="diff"}')
docker commit changed committed >/dev/null
[ "$(metric 'strata_call_seconds_count{call="diff"}')" -gt "$diffs" ] || fail "the commit was not made by Strata"
says more docker run --rm --network host committed cat /more || { cat "$D/err"; fail "the committed image lacks what was committed"; }
! docker run --rm --network host committed cat /file 2>/dev/null || fail "what was removed is in the committed image"
docker rm changed >/dev/null
docker system df >"$D/out"
cat "$D/out"
docker system prune -af >/dev/null
CONTAINERD_NAMESPACE=moby
emptied
echo "pulled, run, built, committed, pruned; nothing is left"
