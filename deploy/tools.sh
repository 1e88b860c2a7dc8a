#!/usr/bin/env bash
# Installs the programs that a build needs; with `test`, `guest` or `bench` also those that these need. Fails with the
# names of the programs that could not be installed.
set -u
missing=()
programs="cargo"
need() { programs="$programs $1"; command -v "$1" >/dev/null 2>&1 || missing+=("$2"); }
need_seccomp() { [ -e /usr/include/seccomp.h ] || missing+=(libseccomp-dev); }
need cc gcc
need mold mold
# gcc only recommends this package, but nothing can be linked without it.
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
case "${1:-build}" in
  test)
    for program in python3 strace curl docker-registry podman conmon crun runc dbus-daemon; do need "$program" "$program"; done
    need busybox busybox-static
    need nft nftables
    need nginx nginx-light
    need redis-server redis-server
    # Its programs are not in PATH.
    [ -d /usr/lib/postgresql ] || missing+=(postgresql)
    need_seccomp
    ;;
  guest)
    need umoci umoci
    for program in containerd skopeo podman buildah; do need "$program" "$program"; done
    need busybox busybox-static
    need qemu-system-x86_64 qemu-system-x86
    need debootstrap debootstrap
    ;;
  bench)
    need python3 python3
    need busybox busybox-static
    need etcd etcd-server
    need openssl openssl
    need crun crun
    need runc runc
    need iperf3 iperf3
    need wrk wrk
    need ip iproute2
    need nft nftables
    need_seccomp
    ;;
esac
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing: ${missing[*]}"
  # Installing docker-registry and etcd must not start them as services (invoke-rc.d(8)): tests start their own.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ] && printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"; then
    trap 'rm -f "$policy"' EXIT
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >/dev/null 2>&1
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1
  hash -r
fi
lack=""
for program in $programs; do
  command -v "$program" >/dev/null 2>&1 || lack="$lack $program"
done
if [ -n "$lack" ]; then
  echo "error: failed to install:$lack" >&2
  exit 1
fi
