# For the guests' scripts: a kernel below target/guest, and how to boot an initramfs with it.
guest=target/guest
mkdir -p "$guest"
if ! ls "$guest"/kernel/boot/vmlinuz-* >/dev/null 2>&1; then
  package=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image-/ {print $2; exit}')
  (cd "$guest" && apt-get download -qq "$package")
  dpkg-deb -x "$guest"/linux-image-*.deb "$guest/kernel"
fi

modules() { # FOLDER NAME...
  local to=$1 name; shift
  mkdir -p "$to"
  for name in "$@"; do
    find "$guest/kernel/lib/modules" -name "$name.ko" -exec cp {} "$to/" \;
  done
}

loadable() { # ROOT PATH...: files and folders of modules, with a list of what each needs, so that the kernel loads them itself
  local root=$1 version; shift
  version=$(basename "$guest"/kernel/lib/modules/*)
  mkdir -p "$root/lib/modules/$version"
  root=$(realpath "$root")
  (cd "$guest/kernel/lib/modules/$version" && cp -r --parents modules.builtin modules.order "${@/#/kernel/}" "$root/lib/modules/$version/")
  busybox depmod -b "$root" "$version"
}

pack() { # FOLDER: its initramfs
  (cd "$1" && find . | busybox cpio -o -H newc 2>/dev/null) >"$1.cpio"
}

boot() { # SECONDS INITRAMFS CPU-OPTIONS KERNEL-ARGUMENTS
  timeout -k 5 "$1" qemu-system-x86_64 $3 -m 6144 -smp 2 -nographic -no-reboot -net none \
    -kernel "$(ls "$guest"/kernel/boot/vmlinuz-* | head -1)" -initrd "$2" \
    -append "console=ttyS0 quiet panic=-1 rdinit=/init $4" </dev/null 2>&1 | sed -u 's/\r$//'
}

cpu_for() { # INITRAMFS: options for a CPU that boots it
  # KVM may be there and not work (nested, or without rights): a guest that boots with it says so.
  if [ -w /dev/kvm ] && boot 20 "$1" "-enable-kvm -cpu host" probe 2>/dev/null | grep -q "GUEST: boots"; then
    echo "-enable-kvm -cpu host"
  else
    echo "no KVM that works: the guest is emulated, and takes its time" >&2
    echo "-cpu max"
  fi
}
