#!/usr/bin/env bash
# Runs all tests and prints the ten slowest. The suites run one after the other, two tests at a time. They wait most of
# the time, so simulated clusters, which only compute, run beside them and get what they leave of the processors.
set -euo pipefail
cd "$(dirname "$0")/.."
export FLOTA_PROGRAMS="$PWD/target/debug"
logs=$(mktemp -d)
simulated=
# The simulation has a process group of its own.
trap '[ -z "$simulated" ] || kill -- "-$simulated" 2>/dev/null || true; rm -rf "$logs"' EXIT
status=0
# Test programs print times only as an unstable option. It is enabled for them alone: cargo would rebuild every dependency.
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="env RUSTC_BOOTSTRAP=1"
run() { cargo test --locked --workspace "$@" --no-fail-fast -- --test-threads=2 -Zunstable-options --report-time 2>&1; }

# All at once, so that nothing is compiled while tests run.
cargo test --locked --workspace --lib --bins --tests --examples --no-run
suites=()
for file in crates/*/tests/*.rs crates/*/tests/*/main.rs tests/tests/*/main.rs; do
  name=$(basename "${file%/main.rs}" .rs)
  [ "$name" = simulation ] || suites+=(--test "$name")
done

# The kernel shares processors between sessions before it looks at priorities (sched(7), autogroup).
idle() { echo 19 >/proc/self/autogroup || true; renice -n 19 $$ >/dev/null; run "$@"; }
export -f run idle
setsid bash -c 'idle --test simulation' >"$logs/simulation" 2>/dev/null &
simulated=$!
run --lib --bins "${suites[@]}" | tee "$logs/others" || status=1
wait "$simulated" || status=1
simulated=
cat "$logs/simulation"

echo; echo "The ten slowest:"
grep -hoE '^test .* <[0-9.]+s>$' "$logs"/* | sed -E 's/^test (.*) \.\.\. .*<([0-9.]+)s>$/\2 s  \1/' | sort -rn | head -10 || true
results=$(grep -h '^test result: ' "$logs"/* || true)
passed=$(grep -oE '[0-9]+ passed' <<<"$results" | awk '{s+=$1} END {print s+0}')
failed=$(grep -oE '[0-9]+ failed' <<<"$results" | awk '{s+=$1} END {print s+0}')
echo "$passed passed, $failed failed"
exit $status
