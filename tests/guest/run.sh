#!/usr/bin/env bash
# The real clusters' tests in a QEMU guest with Debian's kernel, where control groups are v2 alone: `make test-long`.
# Everything is made below target/guest; nothing is installed on this machine but QEMU.
set -euo pipefail
cd "$(dirname "$0")/../.."
export FLOTA_PROGRAMS="$PWD/target/debug"
guest=target/guest
# What needs no more than these programs (the others want a registry, python or strace) and no speed: an emulated guest
# is slow.
tests="services:: faults::a_ faults::lesson faults::without images::lesson_29 images::where nodes:: --skip damaged --skip lesson_30"
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
boot() { # SECONDS CPU-OPTIONS KERNEL-ARGUMENTS
  timeout -k 5 "$1" qemu-system-x86_64 $2 -m 4096 -smp 2 -nographic -no-reboot -net none \
    -kernel "$(ls "$guest"/kernel/boot/vmlinuz-* | head -1)" -initrd "$guest/initramfs" \
    -append "console=ttyS0 quiet panic=-1 rdinit=/init $3" </dev/null 2>&1 | sed 's/\r$//'
}
cpu="-cpu max"
# KVM may be there and not work (nested, or without rights): a guest that boots with it says so.
if [ -w /dev/kvm ] && boot 20 "-enable-kvm -cpu host" probe | grep -q "GUEST: boots"; then
  cpu="-enable-kvm -cpu host"
else
  echo "no KVM that works: the guest is emulated, and takes its time"
fi
boot 3000 "$cpu" "" | tee "$guest/console.log"
grep -q '^GUEST: passed' "$guest/console.log"
