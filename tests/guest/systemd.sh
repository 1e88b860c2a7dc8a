#!/usr/bin/env bash
# The units under Debian's systemd, in a QEMU guest: containers outlive restarts and crashes of flotad, and a machine that
# shuts down stops its tasks first. Part of `make test-long`.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/guest/boot.sh
root=$guest/debian
if [ ! -x "$root/sbin/init" ]; then
  rm -rf "$root"
  debootstrap --variant=minbase --include=systemd,systemd-sysv,busybox-static bookworm "$root" \
    "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >/dev/null
  rm -rf "$root"/usr/share/{doc,man,locale} "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
fi
cp target/debug/{flotad,ctl,flota-runtime,whoami} "$root/usr/bin/"
strip -S "$root"/usr/bin/{flotad,ctl,flota-runtime,whoami} 2>/dev/null || true
cp deploy/systemd/*.service "$root/etc/systemd/system/"
cp tests/guest/systemd-check "$root/usr/bin/systemd-check"
cp tests/guest/systemd-init "$root/init"
chmod +x "$root/usr/bin/systemd-check" "$root/init"
modules "$root/modules" overlay
cat >"$root/etc/systemd/system/check.service" <<'U'
[Unit]
After=flotad.service flota-tasks.service
[Service]
Type=oneshot
ExecStart=/usr/bin/systemd-check
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
U
wants=$root/etc/systemd/system/multi-user.target.wants
mkdir -p "$wants"
for unit in flota-containers flotad flota-tasks check; do
  ln -sf "/etc/systemd/system/$unit.service" "$wants/$unit.service"
done
pack "$root"
boot 900 "$root.cpio" "$(cpu_for "$root.cpio")" "" | tee "$guest/systemd.log"
grep -q '^GUEST: passed' "$guest/systemd.log"
