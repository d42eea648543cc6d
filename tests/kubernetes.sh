#!/usr/bin/env bash
# deploy/kubernetes by Debian's kubectl, without a cluster: the DaemonSet is what the API's own types read, with no field that
# they do not have. (What an API server checks beyond that, as names and rights, is not checked: --dry-run=client asks it which
# kinds there are.)
. "$(dirname "$0")/lib.sh"
need jq
kubectl=$CACHE/forky/usr/bin/kubectl
[ -x "$kubectl" ] || skip "Debian forky's kubectl is not there (tests/tools.sh extracts it)"
"$kubectl" version --client -o json | jq -r '"kubectl \(.clientVersion.gitVersion)"'
manifest=${1:-$ROOT/deploy/kubernetes/strata.yaml}
D=$(mktemp -d /var/tmp/strata-test.XXXXXX)
trap 'rm -rf "$D"' EXIT
# As it is written, whatever is in it.
"$kubectl" label --local -f "$manifest" strata.io/test=1 -o json >"$D/written"
[ "$(jq -rs '[.[] | if .kind == "List" then .items[] else . end | .kind] | join(" ")' "$D/written")" = 'Namespace DaemonSet RuntimeClass' ] ||
  { jq -r .kind "$D/written"; fail "the manifest has other objects"; }
jq -s '[.[] | if .kind == "List" then .items[] else . end | select(.kind == "DaemonSet")][0]' "$D/written" >"$D/daemonset"
# As the types have it: a field of another type is an error, one that they do not have is gone.
typed() { "$kubectl" set env --local -f "$1" STRATA_TEST=1 -o json; }
same() {
  jq -ne --slurpfile written "$1" --slurpfile typed "$2" '
    [$written[0] | paths(type != "object" and type != "array") | select(.[0:3] != ["metadata", "labels", "strata.io/test"])] as $all |
    [$all[] | . as $path | select(($written[0] | getpath($path)) != ($typed[0] | getpath($path)))] |
    if . == [] then true else (map(map(tostring) | join(".")) | join(" ") | stderr | false) end' >/dev/null
}
typed "$D/daemonset" >"$D/typed" || fail "kubectl can't read the DaemonSet"
same "$D/daemonset" "$D/typed" || fail "Kubernetes knows no such fields"
# The check itself: a field that is misspelt, and one of another type.
jq '.spec.template.spec.priorityClasName = "x"' "$D/daemonset" >"$D/misspelt"
typed "$D/misspelt" >"$D/typed"
! same "$D/misspelt" "$D/typed" 2>/dev/null || fail "a misspelt field was not found"
jq '.spec.template.spec.hostPID = "yes"' "$D/daemonset" >"$D/mistyped"
! typed "$D/mistyped" >/dev/null 2>&1 || fail "a field of another type was not found"
echo "the manifest is what Kubernetes' types read: $(jq '[paths(type != "object" and type != "array")] | length' "$D/daemonset") fields"
