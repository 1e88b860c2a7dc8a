#!/usr/bin/env bash
# Checks the dependencies with cargo-deny, by deny.toml. The first time, it takes cargo-deny and the dependencies for other
# systems from the registry of crates.
# `deny.sh update CLONE` takes the advisories for our dependencies from a clone of github.com/rustsec/advisory-db.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.20.2
copy=third_party/advisories

if [ "${1:-}" = update ]; then
  rm -rf "$copy/crates"
  for name in $(sed -n 's/^name = "\(.*\)"/\1/p' Cargo.lock | sort -u); do
    [ ! -d "$2/crates/$name" ] || { mkdir -p "$copy/crates"; cp -r "$2/crates/$name" "$copy/crates/"; }
  done
  git -C "$2" log -1 --format='%H %cs' >"$copy/COMMIT"
  exit
fi

deny=target/tools/bin/cargo-deny
[ "$("$deny" --version 2>/dev/null)" = "cargo-deny $version" ] ||
  cargo install --quiet --locked --debug --root target/tools --version "$version" cargo-deny
# What no build here has needed is looked at as well.
cargo fetch --quiet --locked
# cargo-deny finds the database in a folder whose name has a hash of its address, and looks when it was fetched.
database=target/advisories/advisory-db-3157b0e258782691
rm -rf "$database"
mkdir -p "$database/.git"
cp -r "$copy/crates" "$database/"
touch "$database/.git/FETCH_HEAD"
echo "advisories as of $(cut -d" " -f2 "$copy/COMMIT")"
"$deny" --offline check --hide-inclusion-graph --deny unmatched-skip --deny license-not-encountered "$@"
