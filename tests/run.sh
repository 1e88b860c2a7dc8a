#!/usr/bin/env bash
# Runs all tests, two at a time, and prints the ten slowest.
set -euo pipefail
cd "$(dirname "$0")/.."
export FLOTA_PROGRAMS="$PWD/target/debug"
log=$(mktemp); trap 'rm -f "$log"' EXIT
status=0
# Test programs print times only as an unstable option. It is enabled for them alone: cargo would rebuild every dependency.
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="env RUSTC_BOOTSTRAP=1"
run() { cargo test --locked "$@" -- --test-threads=2 -Zunstable-options --report-time 2>&1 | tee -a "$log" || status=1; }
run --workspace --lib --bins --tests --no-fail-fast
echo; echo "The ten slowest:"
grep -oE '^test .* <[0-9.]+s>$' "$log" | sed -E 's/^test (.*) \.\.\. .*<([0-9.]+)s>$/\2 s  \1/' | sort -rn | head -10 || true
results=$(grep '^test result: ' "$log" || true)
passed=$(grep -oE '[0-9]+ passed' <<<"$results" | awk '{s+=$1} END {print s+0}')
failed=$(grep -oE '[0-9]+ failed' <<<"$results" | awk '{s+=$1} END {print s+0}')
echo "$passed passed, $failed failed"
exit $status
