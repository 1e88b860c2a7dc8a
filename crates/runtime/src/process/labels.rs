//! Labels of the kernel's security modules, if it has them: AppArmor's profile and SELinux's context.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::error::{Act, StepError};
use crate::oci::Process;

/// Files and the labels to write to them. The files are opened while /proc is still the machine's (CVE-2019-16884,
/// CVE-2025-52881).
pub(crate) struct Labels(Vec<(File, String)>);

/// Refuses a label whose security module is absent.
pub(crate) fn check(process: &Process) -> Result<(), StepError> {
    if !process.apparmor_profile.is_empty() && !Path::new("/sys/kernel/security/apparmor").exists() {
        return Err(StepError::refuse("use process.apparmorProfile", "this kernel has no AppArmor"));
    }
    if !process.selinux_label.is_empty() && !Path::new("/sys/fs/selinux/enforce").exists() {
        return Err(StepError::refuse("use process.selinuxLabel", "this kernel has no SELinux"));
    }
    Ok(())
}

impl Labels {
    pub(crate) fn open(process: &Process) -> Result<Self, StepError> {
        let mut labels = Vec::new();
        if !process.apparmor_profile.is_empty() {
            let path = "/proc/self/attr/apparmor/exec";
            let path = if Path::new(path).exists() { path } else { "/proc/self/attr/exec" };
            labels.push((open(path)?, format!("exec {}", process.apparmor_profile)));
        }
        if !process.selinux_label.is_empty() {
            labels.push((open("/proc/self/attr/exec")?, process.selinux_label.clone()));
        }
        Ok(Self(labels))
    }

    /// Returns the open files; there are at most two.
    pub(crate) fn files(&self) -> [Option<BorrowedFd<'_>>; 2] {
        [0, 1].map(|place| self.0.get(place).map(|(file, _)| file.as_fd()))
    }

    /// Writes the labels, which take effect at exec.
    pub(crate) fn apply(self) -> Result<(), StepError> {
        self.0.into_iter().try_for_each(|(mut file, label)| {
            file.write_all(label.as_bytes()).act(|| format!("set the label `{label}`"))
        })
    }
}

fn open(path: &str) -> Result<File, StepError> {
    let file = File::options().write(true).open(path).act(|| format!("open {path}"))?;
    if fstatfs(&file).act(|| format!("look at {path}"))?.filesystem_type() != PROC_SUPER_MAGIC {
        return Err(StepError::refuse(format!("open {path}"), "/proc is something else"));
    }
    Ok(file)
}
