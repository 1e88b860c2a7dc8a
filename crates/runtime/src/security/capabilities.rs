//! Capabilities (capabilities(7)), set with the kernel's own call, which sets several sets at once.
#![expect(unsafe_code, reason = "capset(2) and prctl(2) have no wrapper that fits")]

use nix::errno::Errno;

use crate::error::{Act, StepError};
use crate::oci::Capabilities;

/// Names by number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Capabilities that Docker gives to a container's root, without `CAP_`.
pub const DEFAULT: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Returns the names of all known capabilities, with `CAP_`.
pub fn names() -> Vec<String> {
    NAMES.iter().map(|name| format!("CAP_{name}")).collect()
}

/// Returns whether the name is known, with or without `CAP_`.
pub fn is_known(name: &str) -> bool {
    number(name).is_some()
}

/// Returns the bits of those names that are known.
fn bits(names: &[String]) -> u64 {
    names.iter().filter_map(|name| number(name)).map(|number| 1 << number).fold(0, std::ops::BitOr::bitor)
}

fn number(name: &str) -> Option<usize> {
    let upper = name.to_ascii_uppercase();
    let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|it| *it == plain)
}

/// Returns the names that are unknown, for which a configuration gets a warning.
pub(crate) fn unknown(capabilities: &Capabilities) -> Vec<String> {
    let Capabilities { bounding, effective, inheritable, permitted, ambient } = capabilities;
    let all = [bounding, effective, inheritable, permitted, ambient].into_iter().flatten();
    let mut unknown: Vec<String> = all.filter(|name| number(name).is_none()).cloned().collect();
    unknown.sort();
    unknown.dedup();
    unknown
}

/// The capability sets as bits.
pub(crate) struct Sets {
    bounding: u64,
    effective: u64,
    inheritable: u64,
    permitted: u64,
    ambient: u64,
}

fn prctl(option: i32, one: u64, other: u64) -> Result<i32, Errno> {
    // SAFETY: the options that are used here take integers and touch no memory.
    Errno::result(unsafe { libc::prctl(option, one, other, 0, 0) })
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`.
const VERSION: u32 = 0x2008_0522;

impl Sets {
    pub(crate) fn new(capabilities: Option<&Capabilities>) -> Self {
        let empty = Capabilities::default();
        let it = capabilities.unwrap_or(&empty);
        let [bounding, effective, inheritable, permitted, ambient] =
            [&it.bounding, &it.effective, &it.inheritable, &it.permitted, &it.ambient].map(|names| bits(names));
        Self { bounding, effective, inheritable, permitted, ambient }
    }

    /// Removes all others from the bounding set, so that no later program can regain them. Needs privileges.
    pub(crate) fn limit(&self) -> Result<(), StepError> {
        for number in (0..64).filter(|number| self.bounding & (1 << number) == 0) {
            match prctl(libc::PR_CAPBSET_DROP, number, 0) {
                Ok(_) => {}
                // This number is above the last capability of the kernel.
                Err(Errno::EINVAL) => return Ok(()),
                // Without the right to remove it, it may have been removed before.
                Err(_) if prctl(libc::PR_CAPBSET_READ, number, 0) == Ok(0) => {}
                Err(error) => {
                    return Err(error).act(|| format!("take capability {number} from the bounding set"));
                }
            }
        }
        Ok(())
    }

    /// Sets the other sets. Capabilities that the process can't have are left out, as the specification requires.
    pub(crate) fn set(&self) -> Result<(), StepError> {
        let had = permitted().act(|| "look at the capabilities".into())?;
        // An effective or ambient capability that is not permitted would make the whole call fail.
        let permitted = self.permitted & had;
        let effective = self.effective & permitted;
        let inheritable = self.inheritable & (had | self.bounding);
        let word =
            |set: u64, high: bool| u32::try_from((if high { set >> 32 } else { set }) & 0xffff_ffff).unwrap_or(0);
        let data = [false, true].map(|high| Data {
            effective: word(effective, high),
            permitted: word(permitted, high),
            inheritable: word(inheritable, high),
        });
        assign(data).act(|| "set the capabilities".into())?;
        prctl(libc::PR_CAP_AMBIENT, 4 /* PR_CAP_AMBIENT_CLEAR_ALL */, 0).act(|| "clear the ambient set".into())?;
        for number in (0..64).filter(|it| self.ambient & permitted & inheritable & (1 << it) != 0) {
            prctl(libc::PR_CAP_AMBIENT, 2 /* PR_CAP_AMBIENT_RAISE */, number)
                .act(|| format!("make capability {number} ambient"))?;
        }
        Ok(())
    }
}

/// Makes all capabilities that this process may have effective.
pub(crate) fn raise_permitted() -> Result<(), Errno> {
    let data = held()?.map(|it| Data { effective: it.permitted, ..it });
    assign(data)
}

fn assign(data: [Data; 2]) -> Result<(), Errno> {
    let header = Header { version: VERSION, pid: 0 };
    // SAFETY: version 3 takes two data structures, and all live through the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

fn held() -> Result<[Data; 2], Errno> {
    let header = Header { version: VERSION, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 fills two data structures, and all live through the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    Ok(data)
}

fn permitted() -> Result<u64, Errno> {
    let data = held()?;
    Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_all_spellings_and_unknown_ones_named() {
        let given = ["CAP_CHOWN", "cap_net_raw", "KILL", "CAP_NONSENSE"].map(str::to_owned).to_vec();
        assert_eq!(bits(&given), 1 | 1 << 13 | 1 << 5);
        let capabilities = Capabilities { bounding: given.clone(), effective: given, ..Capabilities::default() };
        assert_eq!(unknown(&capabilities), ["CAP_NONSENSE"]);
        assert_eq!(number("CAP_CHECKPOINT_RESTORE"), Some(40));
        assert!(DEFAULT.iter().all(|name| number(name).is_some()));
    }
}
