//! Parts of /proc and /sys that say too much or do too much: hidden, or made read-only. The same lists as Docker's.

use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use crate::error::{Act, StepError};

const HIDDEN: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Called inside the root, on fresh mounts of proc and sysfs: no link of the image's can stand in the way.
pub(super) fn apply() -> Result<(), StepError> {
    for path in HIDDEN.map(Path::new) {
        let Ok(about) = std::fs::symlink_metadata(path) else { continue };
        let result = if about.is_dir() {
            mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_RDONLY, Some("size=0"))
        } else {
            mount(Some("/dev/null"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        };
        result.act(|| format!("hide {}", path.display()))?;
    }
    for path in READ_ONLY.map(Path::new) {
        match mount(Some(path), path, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>) {
            Err(Errno::ENOENT) => continue,
            other => other.act(|| format!("bind {}", path.display()))?,
        }
        let flags = MsFlags::MS_BIND
            | MsFlags::MS_REMOUNT
            | MsFlags::MS_RDONLY
            | MsFlags::MS_NOSUID
            | MsFlags::MS_NODEV
            | MsFlags::MS_NOEXEC;
        mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
            .act(|| format!("make {} read-only", path.display()))?;
    }
    Ok(())
}
