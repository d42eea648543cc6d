#!/usr/bin/env bash
# For people: manual pages without a warning and one for each command, completions, and a Debian package that installs,
# runs and goes again on a clean Debian bookworm.
. "$(dirname "$0")/lib.sh"
need cargo-deb mmdebstrap groff jq
[ "$(id -u)" = 0 ] || skip "a clean system to install into needs root"
strata_binary
package=$ROOT/target/package
rm -rf "$package"
mkdir -p "$package"
"$STRATA" man "$package/man"
for command in $("$STRATA" --help | awk '/^Commands:/ {on = 1; next} /^Options:/ {on = 0} on && /^  [a-z]/ {print $1}'); do
  [ "$command" = help ] || [ -s "$package/man/strata-$command.1" ] || fail "strata $command has no manual page"
done
for page in "$package"/man/*.1; do
  groff -K utf8 -man -Tutf8 -ww -z "$page" 2>"$package/warnings"
  [ ! -s "$package/warnings" ] || { head -n 5 "$package/warnings"; fail "$page has warnings"; }
done
"$STRATA" completions bash >"$package/strata.bash"
"$STRATA" completions zsh >"$package/_strata"
"$STRATA" completions fish >"$package/strata.fish"
bash -n "$package/strata.bash"
echo "$(ls "$package/man" | wc -l) manual pages, without a warning"

# In CI of the program that the other tests use; for people: cargo deb -p strata, behind the same steps.
(cd "$ROOT" && cargo deb -q -p strata --no-build --profile dev --strip --output "$package/strata.deb") ||
  fail "no package"
dpkg-deb --info "$package/strata.deb" | grep -E '^ (Package|Version|Depends|Installed)' || fail "no package"
D=$(mktemp -d /var/tmp/strata-test.XXXXXX)
trap 'code=$?; umount -l "$D/tree/dev" "$D/tree/proc" "$D/tree" 2>/dev/null; rm -rf "$D"; exit $code' EXIT
mmdebstrap -q --variant=apt --include=fuse3 bookworm "$D/tree" 2>"$D/err" || { cat "$D/err"; fail "no clean system"; }
# A root is a mount, as on any system.
mount --bind "$D/tree" "$D/tree"
mount -t proc proc "$D/tree/proc"
mount --bind /dev "$D/tree/dev"
cp "$package/strata.deb" "$D/tree/"
# inside COMMAND…: with that system's root as the root, and nothing of this one in sight.
inside() {
  unshare -m --propagation private bash -c 'cd "$0" && mkdir -p .old && pivot_root . .old && umount -l /.old &&
    exec /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "$@"' "$D/tree" "$@"
}
inside dpkg -i /strata.deb >"$D/out" 2>&1 || { cat "$D/out"; fail "it does not install"; }
inside strata --version
inside strata demo >"$D/out" 2>&1 || { tail "$D/out"; fail "the demo does not run"; }
inside /usr/libexec/strata/fuse-overlayfs --version
[ -e "$D/tree/usr/share/man/man1/strata-run.1.gz" ] || fail "no manual page is installed"
inside strata doctor >"$D/out" || { cat "$D/out"; fail "the doctor finds something broken"; }
grep -q '^ok     store: /var/lib/strata' "$D/out" || { cat "$D/out"; fail "the doctor says nothing of the store"; }

# An engine is configured, and that is taken back.
mkdir -p "$D/tree/etc/containerd"
printf 'version = 2 # mine\n' >"$D/tree/etc/containerd/config.toml"
! inside strata install containerd --engine-version 1.7 </dev/null >"$D/out" 2>&1 || fail "it installs unasked"
grep -q '^+ \[proxy_plugins.strata\]' "$D/out" || { cat "$D/out"; fail "it does not show what it would do"; }
[ "$(cat "$D/tree/etc/containerd/config.toml")" = 'version = 2 # mine' ] || fail "something was changed unasked"
inside strata install containerd --engine-version 1.7 --yes >"$D/out" 2>&1 || { cat "$D/out"; fail "no installation"; }
grep -q 'strata-diff' "$D/tree/etc/containerd/config.toml" || fail "containerd was not configured"
[ ! -e "$D/tree/etc/systemd/system/strata-snapshotter.socket" ] || fail "the package has the units already"
inside strata install containerd --engine-version 1.7 --undo --yes >"$D/out" 2>&1 || { cat "$D/out"; fail "no undo"; }
[ "$(cat "$D/tree/etc/containerd/config.toml")" = 'version = 2 # mine' ] || fail "the undo is not exact"
[ "$(ls "$D/tree/etc/containerd")" = config.toml ] || fail "the undo leaves something"

inside dpkg -r strata >"$D/out" 2>&1 || { cat "$D/out"; fail "it can't be removed"; }
[ ! -e "$D/tree/usr/bin/strata" ] || fail "the program is left"
echo "installed on a clean bookworm, ran, configured an engine, and went again"
