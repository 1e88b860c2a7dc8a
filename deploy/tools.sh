#!/usr/bin/env bash
# Installs what a build or a test needs and lacks; says what could not be had.
set -u
missing=()
need() { command -v "$1" >/dev/null 2>&1 || missing+=("$2"); }
need cc gcc
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
need mold mold
need busybox busybox-static
need docker-registry docker-registry
need python3 python3
need strace strace
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >/dev/null 2>&1
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1
  hash -r
fi
lack=""
for program in cc mold busybox docker-registry python3 strace cargo; do
  command -v "$program" >/dev/null 2>&1 || lack="$lack $program"
done
if [ -n "$lack" ]; then
  echo "error: these programs could not be had:$lack" >&2
  exit 1
fi
