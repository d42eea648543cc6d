#!/usr/bin/env bash
# postgres:15 with a limit on its writable layer, which its data reaches under load: it is told that there is no space,
# exactly at the limit, and afterwards every acknowledged transaction is there and every sum is right.
. "$(dirname "$0")/lib.sh"
images postgres:15
strata_binary
scratch ext4 4G
export STRATA_ROOT=$D/store
also_at_end() { strata rm -f pg >/dev/null 2>&1; }
strata pull -q "oci:$CORPUS/oci/postgres:15" >/dev/null
limit=$((220 << 20))
data=/var/lib/postgresql/data
# Each start takes the ballast away: that is the room for going on after the limit.
strata create --name pg --network none --size "$limit" -u postgres localhost/postgres:15 sh -ec "
  [ -e $data/PG_VERSION ] || initdb -D $data >/dev/null
  rm -f /var/lib/postgresql/ballast
  exec postgres -D $data -c shared_buffers=16MB -c max_wal_size=48MB -c min_wal_size=32MB" >/dev/null
within() { strata exec -u postgres pg "$@"; }
sql() { within psql -qAtX -v ON_ERROR_STOP=1 -c "$1" postgres; }
up() {
  local _
  for _ in $(seq 300); do sql 'SELECT 1' >/dev/null 2>&1 && return; sleep 0.1; done
  strata logs pg | tail -n 20
  fail 'postgres does not answer'
}
strata start pg >/dev/null
up
[ "$(strata inspect pg | jq -r .state.backend)" = fuse ] || fail 'a limit, and not by FUSE'
[ "$(within df -B1 --output=size / | tail -n 1 | tr -d ' ')" = "$limit" ] || fail 'df shows another size'
within pgbench -q -i -s 1 postgres >/dev/null 2>&1
sql 'CREATE TABLE kept (chunk int, n int, text text)'
within dd if=/dev/urandom of=/var/lib/postgresql/ballast bs=1M count=60 status=none

# Load from two clients, and rows in chunks, each acknowledged, until there is no space.
within pgbench -n -c 2 -T 600 postgres >"$D/pgbench.log" 2>&1 &
load=$!
acknowledged=0
while [ $acknowledged -lt 4000 ]; do
  chunk=$((acknowledged + 1))
  sql "INSERT INTO kept SELECT $chunk, g, repeat(md5(($chunk * 1000 + g)::text), 40) FROM generate_series(1, 200) g" \
    2>"$D/error" || break
  acknowledged=$chunk
done
[ $acknowledged -lt 4000 ] || fail 'the limit was not reached'
within dd if=/dev/zero of=/var/lib/postgresql/more bs=64k count=4000 2>"$D/dd" && fail 'more than the limit was written'
grep -q 'No space left' "$D/error" "$D/dd" || { cat "$D/error" "$D/dd"; fail 'the limit has another error'; }
used=$(find "$STRATA_ROOT"/rw/*/upper -type f -printf '%b\n' | awk '{s += $1 * 512} END {print s}')
[ "$used" -le $((limit + (1 << 20))) ] || fail "$used bytes are in the writable layer, whose limit is $limit"
within rm -f /var/lib/postgresql/more || :
strata stop pg >/dev/null
wait $load || :

strata start pg >/dev/null
up
[ "$(sql "SELECT count(*) FROM kept WHERE chunk <= $acknowledged")" = $((acknowledged * 200)) ] || fail 'acknowledged rows are lost'
[ "$(sql 'SELECT count(*) FROM kept WHERE text <> repeat(md5((chunk * 1000 + n)::text), 40)')" = 0 ] || fail 'rows are damaged'
[ "$(sql 'SELECT count(*) FROM (SELECT chunk FROM kept GROUP BY chunk HAVING count(*) <> 200) part')" = 0 ] || fail 'a chunk is there in part'
sums=$(sql "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)
  AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(delta) FROM pgbench_history)
  AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta) FROM pgbench_history)")
[ "$sums" = t ] || fail 'the sums of pgbench differ'
transactions=$(sql 'SELECT count(*) FROM pgbench_history')
[ "$transactions" -gt 0 ] || fail 'there was no load'
sql "INSERT INTO kept VALUES (0, 0, 'goes on')"
strata stop pg >/dev/null
strata rm pg >/dev/null
[ -z "$(ls "$STRATA_ROOT/rw")" ] || fail 'something is left'
strata check >/dev/null
echo "no space after $acknowledged chunks and beside $transactions transactions; all of them are there"
