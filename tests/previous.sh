#!/usr/bin/env bash
# Builds the programs of the landing before this one, for the test of an upgrade: their folder is printed. The file
# `previous-landing` names its commit; it is changed when a landing changes what managers, workers or disks say to each other.
set -euo pipefail
cd "$(dirname "$0")/.."
commit=$(cat tests/previous-landing)
folder=$PWD/target/previous
if [ "$(cat "$folder/commit" 2>/dev/null)" != "$commit" ]; then
  git cat-file -e "$commit^{commit}" 2>/dev/null || {
    echo "the commit $commit of the landing before is not in this clone; fetch the whole history" >&2
    exit 1
  }
  git worktree remove --force "$folder/source" 2>/dev/null || rm -rf "$folder/source"
  git worktree prune
  git worktree add --quiet --detach "$folder/source" "$commit"
  CARGO_TARGET_DIR=$folder/build make --no-print-directory -C "$folder/source" dev >&2
  mkdir -p "$folder/programs"
  for program in flotad ctl flota-runtime whoami; do
    install -m 755 "$folder/build/debug/$program" "$folder/programs/"
  done
  git worktree remove --force "$folder/source"
  rm -rf "$folder/build"
  echo "$commit" >"$folder/commit"
fi
echo "$folder/programs"
