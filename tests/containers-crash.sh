#!/usr/bin/env bash
# kill -9 of every strata process, and a power cut (the shutdown ioctl of ext4, which loses what is not on disk), while
# containers are made, run, frozen, taken back, committed and removed. Whatever was acknowledged is there afterwards,
# what was under way has happened or not, ps tells the truth, check is clean, and every container starts with its data.
. "$(dirname "$0")/lib.sh"
need python3 jq
images busybox:1
strata_binary
scratch ext4 1G
log=$(mktemp)
export STRATA_ROOT=$D/store
also_at_end() {
  rm -f "$log" "$log.err"
  strikes
}
strata pull -q "oci:$CORPUS/oci/busybox:1" >/dev/null
# Each start counts one up, and puts it on disk.
count='n=$(cat /root/n 2>/dev/null || echo 0); echo $((n + 1)) >/root/n; sync'

# Ends every strata process of this store, first the one that the worker waits for, until there is no more.
worker=
strikes() {
  local process found child
  for _ in $(seq 500); do
    found=
    [ -z "$worker" ] || for child in $(cat "/proc/$worker/task/$worker/children" 2>/dev/null); do
      kill -9 "$child" 2>/dev/null && found=1
    done
    for process in /proc/[0-9]*; do
      [[ $(readlink "$process/exe" 2>/dev/null) == "$STRATA" ]] || continue
      tr '\0' ' ' <"$process/environ" 2>/dev/null | grep -qF "STRATA_ROOT=$STRATA_ROOT" || continue
      kill -9 "${process#/proc/}" 2>/dev/null && found=1
    done
    [ -n "$found$(jobs -rp)" ] || return 0
  done
  fail 'a process of strata does not end'
}

power_cut() {
  python3 - "$D" <<'P'
import fcntl, os, struct, sys
# EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH: the journal in memory is lost too.
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack("I", 2))
P
  strikes
  for _ in $(seq 100); do umount "$D" 2>/dev/null && break; sleep 0.1; done
  mount -o loop "$IMAGE" "$D"
}

# does STEP NAME COMMAND…: the step is written down before and, once it is acknowledged, after.
does() {
  echo "begun $1 $2" >>"$log"
  "${@:3}" >/dev/null 2>"$log.err" || return
  echo "done $1 $2" >>"$log"
}

work() {
  local i name backend
  for i in $(seq 100); do
    name=c$round-$i backend=kernel
    [ $((i % 2)) = 0 ] || backend=fuse
    does create "$name" strata create --backend "$backend" --name "$name" localhost/busybox:1 sh -c "$count" || return
    does start "$name" strata start -a "$name" || return
    does snapshot "$name" strata snapshot "$name" frozen || return
    does start "$name" strata start -a "$name" || return
    does rollback "$name" strata rollback "$name" frozen || return
    does commit "$name" strata commit "$name" "localhost/$name" || return
    [ $((i % 3)) != 0 ] || does rm "$name" strata rm "$name" || return
    [ $((i % 3)) != 1 ] || does detached "$name" strata run -d --name "d-$name" localhost/busybox:1 sleep 1000 || return
    [ $((i % 3)) != 1 ] || does live "$name" strata snapshot "d-$name" live || return
  done
}

# allowed NAME: what its count may be, by the log; 'none' for no such container.
allowed() {
  awk -v name="$1" '
    $3 != name { next }
    { last = $1; step = $2 }
    $1 == "begun" { before = now; if (step == "create") now = 0; if (step == "start") now++
                    if (step == "rollback") now = 1; if (step == "rm") now = "none" }
    END { if (step == "create" && last == "begun") print "none 0"
          else print now, (last == "begun" ? before : "") }' "$log"
}

verify() {
  local name value may status
  strata ps -a --json >"$D/ps.json" || fail "round $round: ps"
  strata check >/dev/null || fail "round $round: check"
  [ "$(jq length "$D/ps.json")" = "$(find "$STRATA_ROOT/rw" -mindepth 1 -maxdepth 1 | wc -l)" ] ||
    fail "round $round: a directory without a container, or the reverse"
  ! jq -e 'any(.[]; .status == "running")' "$D/ps.json" >/dev/null || fail "round $round: ps shows what does not run"
  for name in $(awk '{print $3}' "$log" | sort -u); do
    may=" $(allowed "$name") "
    status=$(jq -r --arg n "$name" '.[] | select(.name == $n) | .status' "$D/ps.json")
    if [ -z "$status" ]; then
      [[ $may == *' none '* ]] || fail "round $round: $name is lost"
      continue
    fi
    [[ $may != ' none  ' ]] || fail "round $round: $name is back"
    if grep -qx "done start $name" "$log" && [ "$status" = created ]; then fail "round $round: $name is said never to have run"; fi
    value=0
    strata cp "$name:/root/n" "$D/n" 2>"$log.err" && value=$(cat "$D/n")
    [[ $may == *" $value "* ]] || { grep " $name\$" "$log"; fail "round $round: $name has $value, not one of$may($(cat "$log.err"))"; }
    if grep -qx "done commit $name" "$log"; then
      [ "$(strata run --rm "localhost/$name" cat /root/n)" = 1 ] || fail "round $round: the image of $name is another"
    fi
    strata start -a "$name" || fail "round $round: $name does not start"
    strata cp "$name:/root/n" "$D/n"
    [ "$(cat "$D/n")" = $((value + 1)) ] || fail "round $round: $name did not go on with its data"
  done
  for name in $(jq -r '.[].name | select(startswith("d-"))' "$D/ps.json"); do
    if grep -qx "done live ${name#d-}" "$log"; then
      strata rollback "$name" live >/dev/null || fail "round $round: $name has lost what was frozen while it ran"
    fi
    strata start "$name" >/dev/null || fail "round $round: $name does not start"
  done
  strata ps -aq | xargs -r strata rm -f >/dev/null
  strata images --json | jq -r '.[].names[]? | select(startswith("localhost/c"))' | xargs -r strata rmi >/dev/null
  strata gc >/dev/null
  [ -z "$(ls "$STRATA_ROOT/rw" "$STRATA_ROOT/trash" "$STRATA_ROOT/staging" | grep -v :)" ] || fail "round $round: something is left"
}

round=0
for how in strikes power_cut; do
  for wait in 0.3 0.7 1.1 1.6 2.3 3.1; do
    round=$((round + 1))
    : >"$log"
    work & worker=$!
    sleep "$wait"
    $how
    wait "$worker" || :
    verify
    echo "round $round, $how: $(grep -c ^done "$log") steps acknowledged"
  done
done
