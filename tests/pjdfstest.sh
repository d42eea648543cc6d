#!/usr/bin/env bash
# pjdfstest (a crate) on a union whose layers are on ext4: no failure that plain ext4 has not, but for the character
# device 0:0, which is a whiteout and can't be made.
. "$(dirname "$0")/lib.sh"
need pjdfstest
strata_binary
scratch ext4
mkdir -p "$D/plain"
cat >"$D/config.toml" <<'T'
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [ ["nobody", "nogroup"], ["games", "games"] ]
T
union
chmod 755 "$D" "$D/m"
run() { (cd "$D" && timeout 600 pjdfstest -c "$D/config.toml" -p "$1") >"$2" 2>&1 || true; }
failed() { awk '/ FAILED$/ {print $1}' "$1" | grep -v '::char$' | LC_ALL=C sort; }
run "$D/plain" "$D/plain.log"
run "$D/m" "$D/union.log"
tail -n 2 "$D/union.log"
grep -q '^Summary: ' "$D/plain.log" || fail 'pjdfstest did not end on plain ext4'
grep -q '^Summary: ' "$D/union.log" || fail 'pjdfstest did not end on the union'
[ "$(grep -c ' ok$' "$D/union.log")" -gt 300 ] || fail 'pjdfstest ran fewer than 300 tests'
worse=$(comm -13 <(failed "$D/plain.log") <(failed "$D/union.log"))
[ -z "$worse" ] || fail "on the union and not on plain ext4: $worse"
