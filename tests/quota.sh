#!/usr/bin/env bash
# Limits kept by project quota: a store on XFS with prjquota. The kernel's overlayfs shows such a container, it hears
# ENOSPC exactly at the limit, in bytes and in inodes, and df says so; nobody gets out; snapshots, rollbacks, commits and
# kill -9 leave the limit and what was written; a removal gives all back; without prjquota Strata counts.
. "$(dirname "$0")/lib.sh"
need jq mkfs.xfs xfs_quota
images busybox:1 debian:bookworm
strata_binary
in_machine_with_xfs_quota
scratch xfs 1G prjquota
export STRATA_ROOT=$D/store
also_at_end() { strata ps -aq 2>/dev/null | xargs -r strata rm -f >/dev/null 2>&1; }
strata pull -q "oci:$CORPUS/oci/busybox:1" >/dev/null
base=localhost/busybox:1
is() { [ "$2" = "$3" ] || fail "$1: $2, not $3"; }
of() { strata inspect --format "{{.$2}}" "$1"; }
project() { of "$1" config.project; }
within() { strata exec "$@"; }
limits() { xfs_quota -x -c 'report -pnN -b' -c 'report -pnN -i' "$D" | awk '$1 ~ /^#1[0-9]+$/ && $4 + $3 > 0' | wc -l; }

# Two of them, independent, in bytes and in inodes.
for name in one two; do
  strata create --name $name --network none --size 20m --inodes 200 $base sleep 1000 >/dev/null
  strata start $name >/dev/null
  is "$name is shown by" "$(of $name state.backend)" kernel
  is "$name is limited by" "$(of $name state.limited_by)" 'project quota'
done
is 'limits in bytes and in inodes' "$(limits)" 4
[ "$(project one)" != "$(project two)" ] || fail 'two have one project'
strata info --json | jq -e '.[] | select(.name == "project quota").works' >/dev/null || fail 'info does not know'
# What df shows within: bytes in all, and free ones.
df_of() { within "$1" stat -f -c '%S %b %a' / | awk '{print $1 * $2, $1 * $3}'; }
read -r size free <<<"$(df_of one)"
is 'df shows' "$size" $((20 << 20))
within one dd if=/dev/zero of=/file bs=4k count=10000 2>"$D/said" && fail 'more than the limit was written'
grep -q 'No space left' "$D/said" || fail "the limit says $(cat "$D/said")"
is 'bytes up to the limit' "$(within one stat -c %s /file)" "$free"
is 'room left' "$(df_of one)" "$((20 << 20)) 0"
within two dd if=/dev/zero of=/file bs=1M count=8 status=none || fail 'the other one is full too'
within one rm /file
within one dd if=/dev/zero of=/again bs=1M count=15 status=none || fail 'what was removed is not free'
within one rm /again
left=$(within one stat -f -c %d /)
made=$(within one sh -c 'mkdir /d; i=0; while true >/d/$i; do i=$((i + 1)); done 2>/dev/null; ls /d | wc -l' || :)
is 'files up to the limit' "$made" $((left - 1))
within one sh -c ': >/one-more' 2>"$D/said" && fail 'more inodes than the limit'
grep -q 'No space left' "$D/said" || fail "the limit of inodes says $(cat "$D/said")"
within one rm -r /d

# Root within gets neither past it nor out of it; nor does a file's owner.
free=$(df_of one | cut -d' ' -f2)
within one sh -c "fallocate -l $((free + 4096)) /f" 2>/dev/null && fail 'more than the limit was allocated'
within one rm -f /f
strata rm -f two >/dev/null
strata pull -q "oci:$CORPUS/oci/debian:bookworm" >/dev/null
strata create --name two --network none --size 64m localhost/debian:bookworm sleep 1000 >/dev/null
strata start two >/dev/null
for owner in 0 65534; do
  # lsattr(1) and chattr(1) of the image: FS_IOC_FSSETXATTR, then FS_IOC_SETFLAGS.
  within -u $owner two sh -c 'd=$(mktemp -d); chattr -p 0 $d' 2>/dev/null && fail "user $owner leaves the project"
  within -u $owner two sh -c 'd=$(mktemp -d); chattr -P $d' 2>/dev/null && fail "user $owner does not give the project on"
done
within two sh -c 'd=$(mktemp -d); lsattr -pd $d' | grep -q "^ *$(project two) .*P" || fail 'a directory is outside of the project'
strata rm -f two >/dev/null
# Who could is limited by the union.
for flag in --privileged --cap-add=SYS_ADMIN --security-opt=seccomp=unconfined --backend=fuse; do
  strata create --name free --network none --size 20m $flag $base sleep 1000 >/dev/null
  strata start free >/dev/null
  is "$flag is limited by" "$(of free state.limited_by)" union
  is "$flag: df" "$(df_of free | cut -d' ' -f1)" $((20 << 20))
  strata rm -f free >/dev/null
done

# A snapshot takes what was written along; the limit is of what is written from then on; a rollback frees it.
within one sh -c 'echo kept >/kept; head -c 6m /dev/urandom >/six'
sum=$(within one md5sum /six)
strata stop -t 0 one >/dev/null
strata snapshot one frozen >/dev/null
before=$(project one)
strata start one >/dev/null
is 'limited after a snapshot by' "$(of one state.limited_by)" 'project quota'
is 'the frozen file' "$(within one md5sum /six)" "$sum"
is 'df after a snapshot' "$(df_of one | cut -d' ' -f1)" $((20 << 20))
[ "$(df_of one | cut -d' ' -f2)" -gt $((19 << 20)) ] || fail 'a frozen layer counts'
within one mv /six /moved || fail 'a frozen file does not move'
within one sh -c 'rm /kept; dd if=/dev/zero of=/junk bs=1M count=30' 2>/dev/null && fail 'no limit after a snapshot'
strata snapshot one live >/dev/null
strata diff one | grep -q moved || fail 'diff does not know'
strata stop -t 0 one >/dev/null
strata rollback one frozen >/dev/null
strata start one >/dev/null
is 'the file of before' "$(within one md5sum /six) $(within one cat /kept)" "$sum kept"
is 'limited after a rollback by' "$(of one state.limited_by)" 'project quota'
[ "$(df_of one | cut -d' ' -f2)" -gt $((19 << 20)) ] || fail 'what was rolled back counts'
within one dd if=/dev/zero of=/junk bs=1M count=30 2>/dev/null && fail 'no limit after a rollback'
within one rm /junk

# A commit, a copy into and out of it, and a mount by the union.
strata stop -t 0 one >/dev/null
strata cp "$D/said" one:/said && strata cp one:/said - >/dev/null || fail 'cp'
strata commit one localhost/committed >/dev/null
is 'the image' "$(strata run --rm --network none localhost/committed cat /kept)" kept
mkdir "$D/at"
strata mount one "$D/at" >/dev/null
head -c 1m /dev/zero >"$D/at/by-union"
head -c 30m /dev/zero 2>/dev/null >"$D/at/more" && fail 'a mount has no limit'
rm "$D/at/more"
mv "$D/at/by-union" "$D/at/root/"
strata umount one >/dev/null
strata start one >/dev/null
is 'what was written by the mount' "$(within one stat -c %s /root/by-union)" $((1 << 20))

# kill -9 while it is full: nothing of before is lost, and the limit is there again.
within one sh -c 'echo before >/before; sync'
within one dd if=/dev/zero of=/full bs=64k 2>/dev/null & writer=$!
sleep 0.5
for process in /proc/[0-9]*; do
  [[ $(readlink "$process/exe" 2>/dev/null) == "$STRATA" ]] || continue
  tr '\0' ' ' <"$process/environ" 2>/dev/null | grep -qF "STRATA_ROOT=$STRATA_ROOT" && kill -9 "${process#/proc/}" 2>/dev/null
done || :
wait $writer || :
strata start one >/dev/null
is 'after kill -9' "$(within one cat /before)" before
within one dd if=/dev/zero of=/junk bs=1M count=30 2>/dev/null && fail 'no limit after kill -9'
strata stop -t 0 one >/dev/null

# Killed anywhere while it is made, frozen, taken back or removed.
for after in 0.02 0.06 0.12 0.2 0.3; do
  for step in 'create --name made --size 20m --network none localhost/busybox:1 sleep 1' 'snapshot one frozen2' 'rollback one frozen' 'rm made'; do
    timeout -s KILL "$after" strata $step >/dev/null 2>&1 || :
  done
  strata start one >/dev/null || fail "does not start after kills at $after s"
  is "after kills at $after s limited by" "$(of one state.limited_by)" 'project quota'
  within one dd if=/dev/zero of=/junk bs=1M count=30 2>/dev/null && fail "no limit after kills at $after s"
  is 'the file of before' "$(within one md5sum /six)" "$sum"
  strata stop -t 0 one >/dev/null
  strata rollback one frozen >/dev/null
  strata rm -f made >/dev/null 2>&1 || :
done
strata check >/dev/null || fail 'check'

# The same store without prjquota: said, and counted by the union; a new one too. Back again, the kernel goes on.
remount() {
  for _ in $(seq 100); do umount "$D" 2>/dev/null && break; sleep 0.1; done
  mount -o "loop$1" "$IMAGE" "$D"
}
remount ''
strata start one >/dev/null 2>"/tmp/said.$$"
grep -q 'counted by Strata' "/tmp/said.$$" || fail "nothing is said: $(cat "/tmp/said.$$")"
rm "/tmp/said.$$"
is 'without prjquota shown by' "$(of one state.backend) $(of one state.limited_by)" 'fuse union'
is 'without prjquota df' "$(df_of one | cut -d' ' -f1)" $((20 << 20))
within one dd if=/dev/zero of=/junk bs=1M count=30 2>/dev/null && fail 'no limit without prjquota'
within one sh -c 'rm /junk; echo union >/union; mv /union /moved-by-union' || fail 'the union cannot work in a project'
strata stop -t 0 one >/dev/null
strata run --rm --network none --size 8m --backend kernel $base true 2>/dev/null && fail '--backend kernel without a limit'
remount ,prjquota
strata start one >/dev/null
is 'with prjquota again' "$(of one state.limited_by) $(within one cat /moved-by-union)" 'project quota union'
strata stop -t 0 one >/dev/null

# A removal gives all back, and nothing is left.
strata rm one >/dev/null
strata rmi localhost/committed >/dev/null
# What a loss of power would bring back.
xfs_quota -x -c 'limit -p bhard=1m 1392509000' "$D"
strata gc >/dev/null
for _ in $(seq 50); do [ "$(limits)" = 0 ] && break; sleep 0.1; done
is 'limits that are left' "$(limits)" 0
left=$(xfs_quota -x -c 'report -pnN -i' "$D" | awk '$1 != "#0" && $2 > 0' | wc -l)
is 'projects that have files' "$left" 0
strata check >/dev/null || fail 'check at the end'
echo "limits of project quota hold in bytes, inodes, over snapshots, rollbacks, kills and remounts"
