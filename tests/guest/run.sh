#!/usr/bin/env bash
# The real clusters' tests in a QEMU guest with Debian's kernel, where control groups are v2 alone: `make test-long`.
# Everything is made below target/guest; nothing is installed on this machine but QEMU.
set -euo pipefail
cd "$(dirname "$0")/../.."
export FLOTA_PROGRAMS="$PWD/target/debug"
guest=target/guest
# What needs no more than these programs; the others want a registry, python or strace.
tests="services:: faults::a_ faults::lesson faults::without images::lesson_29 images::where nodes:: --skip damaged"
mkdir -p "$guest"
if ! ls "$guest"/kernel/boot/vmlinuz-* >/dev/null 2>&1; then
  package=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image-/ {print $2; exit}')
  (cd "$guest" && apt-get download -qq "$package")
  dpkg-deb -x "$guest"/linux-image-*.deb "$guest/kernel"
fi
real=$(cargo test --locked -p flota-tests --test real --no-run --message-format=json 2>/dev/null |
  grep -o '"executable":"[^"]*/real-[^"]*"' | tail -1 | cut -d'"' -f4)
root=$guest/root
rm -rf "$root"
mkdir -p "$root"/{bin,programs,modules,proc,sys,dev,run,tmp,var/lib,root,etc}
cp /bin/busybox "$root/bin/busybox"
cp target/debug/{flotad,ctl,flota-runtime,whoami} "$root/programs/"
cp "$real" "$root/programs/real"
cp tests/guest/init "$root/init"
chmod +x "$root/init"
echo "$tests" >"$root/tests"
for module in llc stp bridge veth overlay; do
  find "$guest/kernel/lib/modules" -name "$module.ko" -exec cp {} "$root/modules/" \;
done
for library in $(ldd "$root"/programs/{flotad,ctl,real} | grep -oE '/[^ )]+' | grep -v : | sort -u); do
  mkdir -p "$root/$(dirname "$library")"
  cp -L "$library" "$root/$library"
done
strip -S "$root"/programs/* 2>/dev/null || true
(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null) >"$guest/initramfs"
acceleration=(-cpu max)
[ -w /dev/kvm ] && acceleration=(-enable-kvm -cpu host,arch-capabilities=off)
log=$guest/console.log
timeout 3000 qemu-system-x86_64 "${acceleration[@]}" -m 6144 -smp 2 -nographic -no-reboot -net none \
  -kernel "$(ls "$guest"/kernel/boot/vmlinuz-* | head -1)" -initrd "$guest/initramfs" \
  -append "console=ttyS0 quiet panic=-1 rdinit=/init" </dev/null | tee "$log" | sed 's/\r$//'
grep -q '^GUEST: passed' "$log"
