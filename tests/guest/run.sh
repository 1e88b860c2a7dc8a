#!/usr/bin/env bash
# The runtime's tests and the real clusters' in a QEMU guest with Debian's kernel, where control groups are v2 alone:
# `make test-long`.
# With the word `kernel`, only the tests of what this machine's kernel lacks: WireGuard for encrypted networks, AppArmor, and
# NFS.
# Everything is made below target/guest; nothing is installed on this machine but QEMU.
set -euo pipefail
cd "$(dirname "$0")/../.."
export FLOTA_PROGRAMS="$PWD/target/debug"
. tests/guest/boot.sh
# What needs no more than these programs (the others want a registry, python or strace) and no speed: an emulated guest
# is slow.
tests="services:: faults::a_ faults::without images::an_image_lies images::where nodes:: --skip damaged --skip what_is_large"
# Other runtimes and the corpus are not in the guest, and its kernel does not map the ids of a tmpfs (before 6.3).
oci="--skip other_runtimes --skip fuzz_corpus --skip id_mapped --skip own_ids"
[ "${1:-}" != kernel ] || oci=
binary() { # PACKAGE TEST
  cargo test --locked -p "$1" --test "$2" --no-run --message-format=json 2>/dev/null |
    grep -o "\"executable\":\"[^\"]*/$2-[^\"]*\"" | tail -1 | cut -d'"' -f4
}
root=$guest/root
rm -rf "$root"
mkdir -p "$root"/{bin,programs,proc,sys,dev,run,tmp,var/lib,root,etc}
cp /bin/busybox "$root/bin/busybox"
cp target/debug/{flotad,ctl,flota-runtime,whoami} "$root/programs/"
cp "$(binary flota-tests real)" "$root/programs/real"
[ -z "$oci" ] || cp "$(binary flota-runtime oci)" "$root/programs/oci"
cp "$(binary flota-network tunnel)" "$root/programs/tunnel"
cp tests/guest/init "$root/init"
if [ ! -e "$guest/apparmor" ]; then
  (cd "$guest" && apt-get download -qq apparmor && dpkg-deb -x apparmor_*.deb apparmor)
fi
cp "$guest/apparmor/sbin/apparmor_parser" deploy/apparmor/flota-default "$root/programs/"
# The programs of a server of NFS, whose rest is in the kernel, and their libraries.
if [ ! -e "$guest/nfs" ]; then
  rm -rf "$guest/nfs.new" && mkdir "$guest/nfs.new"
  (cd "$guest/nfs.new" && apt-get download -qq nfs-kernel-server nfs-common keyutils libevent-core-2.1-7 libtirpc3 \
    libnfsidmap1 libwrap0 libgssapi-krb5-2 libkrb5-3 libk5crypto3 libkrb5support0 libcom-err2 libkeyutils1 libnsl2 libsqlite3-0 &&
    for package in *.deb; do dpkg-deb -x "$package" .; done)
  mv "$guest/nfs.new" "$guest/nfs"
fi
cp "$guest"/nfs/usr/sbin/{rpc.nfsd,rpc.mountd,exportfs} "$root/programs/"
mkdir -p "$root/lib/x86_64-linux-gnu"
cp -L "$guest"/nfs/{usr/,}lib/x86_64-linux-gnu/*.so.* "$root/lib/x86_64-linux-gnu/"
chmod +x "$root/init"
echo "$tests" >"$root/tests"
printf %s "$oci" >"$root/oci-tests"
loadable "$root" lib crypto arch/x86/crypto fs/{overlayfs,nfs,nfsd,nfs_common,lockd,fscache,netfs} \
  drivers/net/{wireguard,vxlan,veth.ko} net/{802,bridge,core,dns_resolver,ipv4,ipv6,llc,netfilter,sunrpc}
own="$PWD/$root/lib/x86_64-linux-gnu"
for library in $(LD_LIBRARY_PATH="$own" ldd "$root"/programs/* 2>/dev/null | grep -oE '/[^ )]+' | grep -v -e : -e "^$own" | sort -u); do
  mkdir -p "$root/$(dirname "$library")"
  cp -L "$library" "$root/$library"
done
strip -S "$root"/programs/* 2>/dev/null || true
pack "$root"
boot 3000 "$root.cpio" "$(cpu_for "$root.cpio")" "" | tee "$guest/console.log"
grep -q '^GUEST: passed' "$guest/console.log"
