//! The kernel's capabilities: their names, the default set of a task, and the set that results from a spec.
//!
//! The control API refuses unknown names; the scheduler and the worker decide by [`effective`].

use std::collections::BTreeSet;

/// The name that stands for every capability.
pub const ALL: &str = "ALL";

/// In an update, the name that clears the list that the service had so far.
pub const RESET: &str = "RESET";

/// Every capability, by its number (capabilities(7)).
pub const NAMES: [&str; 41] = [
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

/// Capabilities of a task whose spec neither adds nor drops any, as in Docker (moby, `oci/caps/defaults.go`).
pub const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Returns the canonical form of a name: upper case, without `CAP_`.
pub fn normalise(name: &str) -> String {
    let upper = name.trim().to_ascii_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned()
}

/// Returns whether the name is a capability or [`ALL`].
pub fn is_known(name: &str) -> bool {
    name == ALL || NAMES.contains(&name)
}

/// Returns the capabilities of a task whose spec adds and drops these, by Docker's rules (moby, `oci/caps/utils.go`):
/// if `ALL` is added, all but the dropped ones; if `ALL` is dropped, only the added ones; otherwise a capability that
/// is both added and dropped is present. Unknown names are ignored.
pub fn effective(add: &[String], drop: &[String]) -> BTreeSet<&'static str> {
    let has = |list: &[String], name: &str| list.iter().any(|it| it == name);
    let keep = |name: &&'static str| {
        if has(add, ALL) {
            !has(drop, name)
        } else if has(drop, ALL) {
            has(add, name)
        } else {
            has(add, name) || DEFAULT.contains(name) && !has(drop, name)
        }
    };
    NAMES.into_iter().filter(keep).collect()
}

/// Changes the lists of a spec as `docker service update` does: adding a dropped capability removes it from the
/// dropped ones, and the other way round; a capability that is both added and dropped is added; [`RESET`] clears a
/// list. The resulting lists are normalised and sorted.
pub fn amend(add: &mut Vec<String>, drop: &mut Vec<String>, to_add: &[String], to_drop: &[String]) {
    let set = |list: &[String]| list.iter().map(|it| normalise(it)).collect::<BTreeSet<String>>();
    let (mut added, mut dropped) = (set(add), set(drop));
    let (mut to_add, mut to_drop) = (set(to_add), set(to_drop));
    if to_add.remove(RESET) {
        added.clear();
    }
    if to_drop.remove(RESET) {
        dropped.clear();
    }
    for name in &to_add {
        if !dropped.remove(name) {
            added.insert(name.clone());
        }
    }
    for name in to_drop.difference(&to_add) {
        if !added.remove(name) {
            dropped.insert(name.clone());
        }
    }
    let list = |set: BTreeSet<String>| if set.contains(ALL) { vec![ALL.to_owned()] } else { Vec::from_iter(set) };
    (*add, *drop) = (list(added), list(dropped));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn names_are_kept_in_one_spelling() {
        for text in ["net_admin", "CAP_NET_ADMIN", "cap_Net_Admin", " NET_ADMIN "] {
            assert_eq!(normalise(text), "NET_ADMIN", "{text}");
        }
        assert!(is_known("ALL") && is_known("BPF") && !is_known("NET_ADMINS") && !is_known("") && !is_known("CAP_BPF"));
        assert!(DEFAULT.iter().all(|name| NAMES.contains(name)));
        assert_eq!((NAMES[12], NAMES[21], NAMES[40]), ("NET_ADMIN", "SYS_ADMIN", "CHECKPOINT_RESTORE"));
    }

    #[test]
    fn what_a_task_has_is_reckoned_as_in_docker() {
        let count = |add: &str, drop: &str| effective(&list(add), &list(drop)).len();
        assert_eq!(effective(&[], &[]), BTreeSet::from(DEFAULT));
        for (add, drop, expected) in [
            ("NET_ADMIN", "", 15),
            ("CHOWN", "", 14),
            ("", "CHOWN MKNOD", 12),
            ("", "ALL", 0),
            ("CHOWN", "ALL", 1),
            ("ALL", "", 41),
            ("ALL", "SYS_ADMIN", 40),
            ("NET_ADMIN", "NET_ADMIN", 15),
            ("NOT_KNOWN", "", 14),
        ] {
            assert_eq!(count(add, drop), expected, "+{add} -{drop}");
        }
    }

    #[test]
    fn updates_undo_before_they_do() {
        for (add, drop, to_add, to_drop, expected) in [
            ("", "", "net_admin CAP_NET_ADMIN bpf", "chown", ("BPF NET_ADMIN", "CHOWN")),
            ("", "CHOWN", "CHOWN", "", ("", "")),
            ("BPF", "", "", "BPF", ("", "")),
            ("", "", "BPF", "BPF", ("BPF", "")),
            ("BPF SYSLOG", "CHOWN", "RESET KILL", "RESET", ("KILL", "")),
            ("BPF", "", "all", "", ("ALL", "")),
        ] {
            let (mut added, mut dropped) = (list(add), list(drop));
            amend(&mut added, &mut dropped, &list(to_add), &list(to_drop));
            assert_eq!((added.join(" ").as_str(), dropped.join(" ").as_str()), expected, "+{to_add} -{to_drop}");
        }
    }
}
