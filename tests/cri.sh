#!/usr/bin/env bash
# tests/cri.sh [trixie|forky]: the calls that kubelet makes, to containerd with Strata as the snapshotter of its CRI: a pod whose
# container runs, is looked at and goes; images that the command line has are not fetched layer by layer again. Under
# containerd 2 also a pod whose users are others of the machine.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/engine-lib.sh"
images busybox:1 nginx:1 pause:1
/usr/bin/python3 -c 'import grpc' 2>/dev/null || skip "python3-grpcio is not installed (tests/tools.sh installs it)"
host=127.0.0.1:$((20000 + $$ % 10000))
if [ "${1:-}" = forky ]; then
  # The rest is what strata install --kubernetes writes.
  cri=$(cat <<EOF
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "$host/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["@D@/cni"]
    conf_dir = "@D@/cni"
    use_internal_loopback = true
EOF
)
else
  cri=$(cat <<EOF
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$host/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "strata"
    disable_snapshot_annotations = false
EOF
)
fi
engine "$@"
sed -i "s,@D@,$D," "$D/config.toml"
# A pod with users of its own needs a network of its own: here one that leads nowhere.
mkdir "$D/cni"
echo '{"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "nowhere"}]}' >"$D/cni/10-nowhere.conflist"
cat >"$D/cni/nowhere" <<'EOF'
#!/bin/sh
case $CNI_COMMAND in
  ADD)
    nsenter --net="$CNI_NETNS" ip link add "$CNI_IFNAME" type dummy
    echo '{"cniVersion": "0.4.0", "interfaces": [{"name": "'"$CNI_IFNAME"'", "sandbox": "'"$CNI_NETNS"'"}],
      "ips": [{"version": "4", "address": "192.0.2.2/24", "interface": 0}]}' ;;
  VERSION) echo '{"cniVersion": "0.4.0", "supportedVersions": ["0.4.0"]}' ;;
esac
EOF
chmod 755 "$D/cni/nowhere"
namespaces=k8s.io
CONTAINERD_NAMESPACE=k8s.io
snapshotter --content "$D/containerd/io.containerd.content.v1.content"
start_containerd
# call METHOD FIELDS [FILTER]: the answer, or what jq's filter takes of it.
call() {
  /usr/bin/python3 "$ROOT/tests/cri.py" "$address" "$1" "$2" >"$D/answer" || fail "$1"
  jq -r "${3:-.}" "$D/answer"
}
call Version '{}' '"CRI of \(.["2"][0]) \(.["3"][0])"'

# As systemd starts it: with the socket open already, which stays when it ends; and gRPC's health protocol.
cat >"$D/activate.py" <<'EOF'
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
EOF
cat >"$D/health.py" <<'EOF'
import sys, grpc
with grpc.insecure_channel("unix:" + sys.argv[1]) as channel:
    check = channel.unary_unary("/grpc.health.v1.Health/Check", lambda name: b"\n" + bytes([len(name)]) + name, lambda answer: answer)
    print(check(b"containerd.services.diff.v1.Diff", timeout=20).hex())
    try:
        check(b"other", timeout=20)
    except grpc.RpcError as error:
        print(error.code().name)
EOF
/usr/bin/python3 "$D/activate.py" "$D/activated.sock" "$STRATA" snapshotter --root "$store" >"$D/activated.log" 2>&1 &
activated=$!
for _ in $(seq 100); do [ -S "$D/activated.sock" ] && break; sleep 0.1; done
/usr/bin/python3 "$D/health.py" "$D/activated.sock" >"$D/out" || { cat "$D/activated.log"; fail "no health by an inherited socket"; }
[ "$(tr '\n' ' ' <"$D/out")" = "0801 NOT_FOUND " ] || { cat "$D/out"; fail "it is not healthy"; }
kill "$activated"
wait "$activated" || { cat "$D/activated.log"; fail "it does not end when it is told to"; }
[ -S "$D/activated.sock" ] || fail "systemd's socket was removed"
echo "started by its socket, healthy"

start_registry busybox:1 nginx:1 pause:1
# What the command line has pulled, kubelet's pull finds.
"$STRATA" pull -q --root "$store" "oci:$CORPUS/oci/nginx:1" >/dev/null
nginx=$(call PullImage "{\"1\": {\"1\": \"$host/nginx:1\"}}" '.["1"][0]')
[ "$(metric strata_layers_known_total)" = 4 ] || { cat "$D/metrics"; fail "the store's layers are not known to kubelet's pull"; }
[ "$(metric 'strata_call_seconds_count{call="commit"}')" = 0 ] || fail "a layer was unpacked all the same"
# (ctr of 1.6 can't mount an image whose layers containerd has not as blobs: its uppermost snapshot is viewed.)
ctr snapshots --snapshotter strata ls | awk 'NR > 1 {is[$1]; if ($3 != "") below[$2]} END {for (k in is) if (!(k in below)) print k}' >"$D/top"
[ "$(wc -l <"$D/top")" = 1 ] || fail "not one image"
mkdir -p "$D/mnt"
ctr snapshots --snapshotter strata view --target "$D/mnt" look "$(cat "$D/top")" >"$D/mount"
bash "$D/mount"
whole_tree "$D/mnt" >"$D/ours"
umount "$D/mnt"
# A collection of containerd's may have taken it already.
ctr snapshots --snapshotter strata rm look 2>/dev/null || true
# In another namespace, since this one has no blobs of layers that were there.
there() { CONTAINERD_NAMESPACE=strata-$$ "$@"; }
there ctr images pull --plain-http --snapshotter overlayfs "$host/nginx:1" >/dev/null
there looks overlayfs "$host/nginx:1" >"$D/theirs"
there ctr images rm --sync "$host/nginx:1" >/dev/null
diff "$D/theirs" "$D/ours" >"$D/diff" || { head "$D/diff"; fail "the trees differ"; }
call PullImage "{\"1\": {\"1\": \"$host/busybox:1\"}}" >/dev/null
# (containerd 1.6 has no differ but its own.)
[ -z "$differ" ] || [ "$(metric strata_layers_unpacked_total)" = 1 ] || { cat "$D/metrics"; fail "kubelet's pull is not unpacked by the store"; }
call ListImages '{}' '.["1"] | length' >"$D/count"
[ "$(cat "$D/count")" = 2 ] || fail "not two images"
echo "images: $(cat "$D/count"), $(wc -l <"$D/ours") lines the same as under overlayfs"

# A pod in the network of the machine, whose root of control groups is its own.
pod="{\"1\": {\"1\": \"pod\", \"2\": \"uid-$$\", \"3\": \"default\"}, \"3\": \"$D\",
  \"8\": {\"2\": {\"1\": {\"1\": 2, \"2\": 1, \"3\": 1}}}}"
sandbox=$(call RunPodSandbox "{\"1\": $pod}" '.["1"][0]')
container=$(call CreateContainer "{\"1\": \"$sandbox\", \"3\": $pod, \"2\": {\"1\": {\"1\": \"web\"}, \"2\": {\"1\": \"$host/busybox:1\"},
  \"3\": [\"sh\", \"-c\", \"echo kept >/kept; dd if=/dev/zero of=/data bs=64k count=16; sleep 600\"], \"11\": \"log\",
  \"15\": {\"2\": {\"3\": {\"1\": 2, \"2\": 1, \"3\": 1}}}}}" '.["1"][0]')
call StartContainer "{\"1\": \"$container\"}" >/dev/null
for _ in $(seq 50); do
  /usr/bin/python3 "$ROOT/tests/cri.py" "$address" ExecSync "{\"1\": \"$container\", \"2\": [\"cat\", \"/kept\", \"/data\"], \"3\": 10}" >"$D/answer" || true
  grep -q kept "$D/answer" && break
  sleep 0.1
done
[ "$(call ExecSync "{\"1\": \"$container\", \"2\": [\"cat\", \"/kept\"], \"3\": 10}" '.["1"][0]')" = kept ] || fail "no exec"
# The snapshotter is killed while the pod runs.
kill -9 "$snapshotter"
wait "$snapshotter" 2>/dev/null || true
[ "$(call ExecSync "{\"1\": \"$container\", \"2\": [\"cat\", \"/kept\"], \"3\": 10}" '.["1"][0]')" = kept ] || fail "the pod was disturbed"
snapshotter --content "$D/containerd/io.containerd.content.v1.content"
used=
for _ in $(seq 40); do
  # Statistics are gathered every ten seconds.
  used=$(call ContainerStats "{\"1\": \"$container\"}" '.["1"][0]["4"][0]["3"][0]["1"][0] // 0')
  [ "$used" -gt 1000000 ] && break
  sleep 1
done
[ "$used" -gt 1000000 ] || { cat "$D/answer"; fail "the writable layer has no size: $used"; }
call ImageFsInfo '{}' '.["1"][0]["3"][0]["1"][0] // 0' >"$D/fs"
[ "$(cat "$D/fs")" -gt 100000 ] || fail "images take no place"
echo "a pod ran: its writable layer has $used bytes, the images have $(cat "$D/fs")"
call StopContainer "{\"1\": \"$container\", \"2\": 0}" >/dev/null
call RemoveContainer "{\"1\": \"$container\"}" >/dev/null
call StopPodSandbox "{\"1\": \"$sandbox\"}" >/dev/null
call RemovePodSandbox "{\"1\": \"$sandbox\"}" >/dev/null

if [ "${1:-}" = forky ]; then
  # Root of the pod is 100000:200000 of the machine: the layers are mapped as they are mounted, and none is copied.
  options="{\"1\": 0, \"2\": 1, \"3\": 0, \"5\": {\"1\": 0, \"2\": {\"1\": 100000, \"2\": 0, \"3\": 65536}, \"3\": {\"1\": 200000, \"2\": 0, \"3\": 65536}}}"
  pod="{\"1\": {\"1\": \"mapped\", \"2\": \"mapped-$$\", \"3\": \"default\"}, \"3\": \"$D\", \"8\": {\"2\": {\"1\": $options}}}"
  sandbox=$(call RunPodSandbox "{\"1\": $pod}" '.["1"][0]')
  container=$(call CreateContainer "{\"1\": \"$sandbox\", \"3\": $pod, \"2\": {\"1\": {\"1\": \"web\"}, \"2\": {\"1\": \"$host/nginx:1\"},
    \"3\": [\"sh\", \"-c\", \"echo new >/new; chown 33:34 /new; echo more >>/etc/passwd; rm /etc/shadow; sleep 600\"], \"11\": \"mapped.log\",
    \"15\": {\"2\": {\"3\": $options}}}}" '.["1"][0]')
  call StartContainer "{\"1\": \"$container\"}" >/dev/null
  inside() { call ExecSync "{\"1\": \"$container\", \"2\": [\"sh\", \"-c\", \"$1\"], \"3\": 10}" '.["1"][0] // empty' | sed '/^$/d'; }
  for _ in $(seq 50); do [ "$(inside '[ -e /etc/shadow ] || echo done')" != done ] || break; sleep 0.1; done
  inside 'cat /proc/self/uid_map /proc/self/gid_map' | awk '{print $1, $2, $3}' | tr '\n' ' ' >"$D/maps"
  [ "$(cat "$D/maps")" = '0 100000 65536 0 200000 65536 ' ] || { cat "$D/maps"; fail "the pod has no users of its own"; }
  [ "$(inside 'stat -c %u:%g /bin/sh /etc/passwd /new /' | tr '\n' ' ')" = '0:0 0:0 33:34 0:0 ' ] || { cat "$D/answer"; fail "the owners in the pod are wrong"; }
  inside 'find /bin/ /etc /home /opt /root /srv /usr /var -xdev -uid 65534' >"$D/nobodys"
  [ ! -s "$D/nobodys" ] || { head "$D/nobodys"; fail "files of the image are nobody's in the pod"; }
  upper=$(find "$store"/snapshots/*/fs -maxdepth 1 -name new)
  upper=${upper%/new}
  [ "$(stat -c %u:%g "$upper/new" "$upper/etc/passwd" "$upper" | tr '\n' ' ')" = '100033:200034 100000:200000 100000:200000 ' ] ||
    { stat -c "%n %u:%g" "$upper/new" "$upper/etc/passwd" "$upper"; fail "what the pod wrote is not the machine's users'"; }
  [ "$(find "$store"/layers/*/fs -uid +99999 | wc -l)" = 0 ] || fail "files of a layer were given away"
  [ "$(find "$store"/snapshots/*/fs -name nginx | wc -l)" = 0 ] || fail "the image was copied"
  call StopContainer "{\"1\": \"$container\", \"2\": 0}" >/dev/null
  call RemoveContainer "{\"1\": \"$container\"}" >/dev/null
  call StopPodSandbox "{\"1\": \"$sandbox\"}" >/dev/null
  call RemovePodSandbox "{\"1\": \"$sandbox\"}" >/dev/null
  echo "a pod whose root is another user of the machine, over mapped layers"
fi
for image in nginx busybox pause; do call RemoveImage "{\"1\": {\"1\": \"$host/$image:1\"}}" >/dev/null; done
"$STRATA" rmi --root "$store" "$("$STRATA" images --root "$store" --json | jq -r '.[0].id')" >/dev/null
ctr images ls -q | xargs -r ctr images rm --sync >/dev/null
emptied
echo "everything was removed, and nothing is left"
