//! Mount options as in config.md, "Linux mount options", sorted by the call that applies them.

use crate::syscall::mounts::{
    ATIME, Change, NOATIME, NODEV, NODIRATIME, NOEXEC, NOSUID, NOSYMFOLLOW, RDONLY, STRICTATIME,
};

/// The options of one mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Changes of the mount itself.
    pub(crate) own: Change,
    /// Changes of the mount and all mounts below it.
    pub(crate) below: Change,
    /// Whether this is a bind mount, and whether it includes the mounts below its source.
    pub(crate) bind: Option<Recursive>,
    /// Whether only the options of an existing mount change.
    pub(crate) remount: bool,
    /// Propagation types `MS_…`, applied last and in order, and whether they apply to all mounts below.
    pub(crate) propagation: Vec<(u64, bool)>,
    /// Whether ids are mapped, and whether in the mounts below, too.
    pub(crate) idmap: Option<Recursive>,
    /// Whether a tmpfs begins with a copy of the image's folder.
    pub(crate) copy_up: bool,
    /// Flags of the file system.
    pub(crate) flags: Vec<&'static str>,
    /// Options that the file system itself interprets.
    pub(crate) data: Vec<String>,
}

/// Whether an operation includes all mounts below.
pub(crate) type Recursive = bool;

impl Options {
    /// Sorts the options. Unknown ones are passed to the file system.
    pub(crate) fn parse(options: &[String]) -> Self {
        let mut result = Self::default();
        for option in options {
            result.take(option);
        }
        result
    }

    fn take(&mut self, option: &str) {
        if let Some(flags) = propagation(option) {
            self.propagation.push((flags, option.starts_with('r')));
            return;
        }
        if let Some((set, clear)) = attribute(option) {
            apply(&mut self.own, set, clear);
            return;
        }
        if let Some((set, clear)) = option.strip_prefix('r').and_then(attribute) {
            apply(&mut self.below, set, clear);
            return;
        }
        match option {
            "defaults" | "async" | "loud" | "nomand" | "noiversion" | "nolazytime" | "silent" => {}
            "bind" => self.bind = self.bind.or(Some(false)),
            "rbind" => self.bind = Some(true),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.idmap = self.idmap.or(Some(false)),
            "ridmap" => self.idmap = Some(true),
            "sync" => self.flags.push("sync"),
            "dirsync" => self.flags.push("dirsync"),
            "lazytime" => self.flags.push("lazytime"),
            "mand" => self.flags.push("mand"),
            "iversion" => self.flags.push("iversion"),
            other => self.data.push(other.to_owned()),
        }
    }

    /// Returns the attributes of a newly mounted file system.
    pub(crate) fn fresh(&self) -> u64 {
        (self.own.set | self.below.set) & !self.data_only()
    }

    fn data_only(&self) -> u64 {
        // An option that is cleared after it was set is cleared. For access times, `clear` always contains all bits.
        (self.own.clear | self.below.clear) & !(self.own.set | self.below.set)
    }
}

fn apply(change: &mut Change, set: u64, clear: u64) {
    // The later option of a pair wins.
    change.set = (change.set & !clear) | set;
    change.clear = (change.clear & !set) | clear;
    if clear & ATIME != 0 {
        change.clear |= ATIME;
    }
}

fn propagation(option: &str) -> Option<u64> {
    Some(match option {
        "shared" | "rshared" => libc::MS_SHARED,
        "slave" | "rslave" => libc::MS_SLAVE,
        "private" | "rprivate" => libc::MS_PRIVATE,
        "unbindable" | "runbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    })
}

/// Returns the attributes that an option sets and clears.
fn attribute(option: &str) -> Option<(u64, u64)> {
    let on = |bit| (bit, 0);
    let off = |bit| (0, bit);
    Some(match option {
        "ro" => on(RDONLY),
        "rw" => off(RDONLY),
        "nosuid" => on(NOSUID),
        "suid" => off(NOSUID),
        "nodev" => on(NODEV),
        "dev" => off(NODEV),
        "noexec" => on(NOEXEC),
        "exec" => off(NOEXEC),
        "nodiratime" => on(NODIRATIME),
        "diratime" => off(NODIRATIME),
        "nosymfollow" => on(NOSYMFOLLOW),
        "symfollow" => off(NOSYMFOLLOW),
        "noatime" => (NOATIME, ATIME),
        "strictatime" => (STRICTATIME, ATIME),
        // This is the kernel's default (MOUNT_ATTR_RELATIME is 0).
        "relatime" | "atime" | "nostrictatime" => (0, ATIME),
        "norelatime" => (0, ATIME),
        _ => return None,
    })
}

/// Returns the names of all options, for `features`.
pub(crate) fn known() -> Vec<&'static str> {
    let own = [
        "ro",
        "rw",
        "nosuid",
        "suid",
        "nodev",
        "dev",
        "noexec",
        "exec",
        "nodiratime",
        "diratime",
        "nosymfollow",
        "symfollow",
        "noatime",
        "strictatime",
        "relatime",
        "atime",
        "nostrictatime",
        "norelatime",
    ];
    let below = [
        "rro",
        "rrw",
        "rnosuid",
        "rsuid",
        "rnodev",
        "rdev",
        "rnoexec",
        "rexec",
        "rnodiratime",
        "rdiratime",
        "rnosymfollow",
        "rsymfollow",
        "rnoatime",
        "rstrictatime",
        "rrelatime",
        "ratime",
        "rnostrictatime",
        "rnorelatime",
    ];
    let others = [
        "async",
        "bind",
        "defaults",
        "dirsync",
        "idmap",
        "iversion",
        "lazytime",
        "loud",
        "mand",
        "noiversion",
        "nolazytime",
        "nomand",
        "private",
        "rbind",
        "remount",
        "ridmap",
        "rprivate",
        "rshared",
        "rslave",
        "runbindable",
        "shared",
        "silent",
        "slave",
        "sync",
        "tmpcopyup",
        "unbindable",
    ];
    let mut all: Vec<_> = own.into_iter().chain(below).chain(others).collect();
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Options {
        Options::parse(&text.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_go_to_what_carries_them_out() {
        let it = parse("nosuid,noexec,size=64k,mode=755,strictatime");
        assert_eq!(it.data, ["size=64k", "mode=755"]);
        let expected = NOSUID | NOEXEC | STRICTATIME;
        assert_eq!(it.fresh(), expected);
        let it = parse("rbind,rro,rw,rslave,shared");
        assert_eq!((it.bind, it.below.set, it.own.clear), (Some(true), RDONLY, RDONLY));
        assert_eq!(it.propagation, [(libc::MS_SLAVE, true), (libc::MS_SHARED, false)]);
        assert_eq!(parse("ridmap,tmpcopyup").idmap, Some(true));
    }

    #[test]
    fn the_later_of_two_that_exclude_each_other_wins() {
        assert_eq!(parse("ro,rw").own, Change { set: 0, clear: RDONLY, propagation: 0 });
        assert_eq!(parse("rw,ro").own, Change { set: RDONLY, clear: 0, propagation: 0 });
        assert_eq!(parse("noatime,relatime").own, Change { set: 0, clear: ATIME, propagation: 0 });
        let it = parse("relatime,noatime").own;
        assert_eq!((it.set, it.clear & ATIME), (NOATIME, ATIME));
    }

    /// All options of config.md, "Linux mount options".
    const SPECIFIED: &str = "async atime bind defaults dev diratime dirsync exec idmap iversion lazytime loud mand \
        noatime nodev nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private \
        ratime rbind rdev rdiratime relatime remount rexec ridmap rnoatime rnodev rnodiratime rnoexec rnorelatime \
        rnostrictatime rnosuid rnosymfollow ro rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow \
        runbindable rw shared silent slave strictatime suid symfollow sync tmpcopyup unbindable";

    #[test]
    fn exactly_the_specified_options_are_announced() {
        assert_eq!(known(), SPECIFIED.split_whitespace().collect::<Vec<_>>());
    }

    #[test]
    fn exactly_the_specified_options_are_kept_from_the_file_system() {
        for option in SPECIFIED.split_whitespace() {
            assert_eq!(parse(option).data, Vec::<String>::new(), "{option}");
        }
        for option in ["rbindx", "rsync", "rsize=1", "size=64k", "RO", ""] {
            assert_eq!(parse(option).data, [option], "{option}");
        }
    }
}
