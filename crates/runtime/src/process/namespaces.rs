//! The namespaces that are created or joined, and their order.

use std::fs::File;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

use crate::error::{Act, StepError};
use crate::oci::{Linux, NamespaceKind};

/// `CLONE_NEWTIME`, which is not a flag of clone3(2) because its bit belongs to the exit signal.
const NEW_TIME: i32 = 0x80;

impl NamespaceKind {
    /// Returns the flag `CLONE_NEW…`.
    pub(crate) fn flag(self) -> i32 {
        match self {
            Self::Pid => libc::CLONE_NEWPID,
            Self::Network => libc::CLONE_NEWNET,
            Self::Mount => libc::CLONE_NEWNS,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::User => libc::CLONE_NEWUSER,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::Time => NEW_TIME,
        }
    }

    /// Returns the name below /proc/PID/ns (namespaces(7)).
    pub(crate) fn file(self) -> &'static str {
        match self {
            Self::Pid => "pid",
            Self::Network => "net",
            Self::Mount => "mnt",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::User => "user",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        }
    }
}

/// All kinds, with the mount namespace last, because the runtime's own paths are gone after it.
pub(crate) const ALL: [NamespaceKind; 8] = [
    NamespaceKind::User,
    NamespaceKind::Ipc,
    NamespaceKind::Uts,
    NamespaceKind::Network,
    NamespaceKind::Pid,
    NamespaceKind::Cgroup,
    NamespaceKind::Time,
    NamespaceKind::Mount,
];

/// The namespaces of a new process.
#[derive(Default)]
pub(crate) struct Namespaces {
    /// Namespaces to join, in this order.
    pub(crate) join: Vec<(NamespaceKind, OwnedFd)>,
    /// Namespaces to create.
    new: Vec<NamespaceKind>,
    /// A process to join, with the flags of the joined namespaces.
    of: Option<(OwnedFd, i32)>,
}

impl Namespaces {
    /// Returns the namespaces of a configuration.
    pub(crate) fn of(linux: &Linux) -> Result<Self, StepError> {
        let mut result = Self::default();
        for kind in ALL {
            let Some(namespace) = linux.namespaces.iter().find(|it| it.kind == kind) else { continue };
            if namespace.is_new() {
                result.new.push(kind);
                continue;
            }
            let path = namespace.path.display();
            let file = File::open(&namespace.path).act(|| format!("open the {} namespace `{path}`", kind.file()))?;
            check_kind(&file, kind).act(|| format!("join `{path}` as a {} namespace", kind.file()))?;
            result.join.push((kind, file.into()));
        }
        Ok(result)
    }

    /// Returns the namespaces of a running process, by a descriptor of it (setns(2)). `own_user` tells whether its
    /// user namespace may differ from this process's.
    pub(crate) fn of_process(pid: i32, process: OwnedFd, own_user: bool) -> Result<Self, StepError> {
        let link = |whose: &str, kind: NamespaceKind| std::fs::read_link(format!("/proc/{whose}/ns/{}", kind.file()));
        let same =
            |kind| -> Result<bool, StepError> {
                match link(&pid.to_string(), kind) {
                    // The kernel does not have this kind.
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(true),
                    other => Ok(other.act(|| format!("look at the namespaces of {pid}"))?
                        == link("self", kind).unwrap_or_default()),
                }
            };
        let mut flags = 0;
        if !own_user || same(NamespaceKind::User)? {
            // Joining the namespace in which a process already is has no effect, and it is cheaper than a check.
            flags = ALL.into_iter().filter(|kind| *kind != NamespaceKind::User).fold(0, |all, kind| all | kind.flag());
        } else {
            for kind in ALL {
                // In the container's user namespace there are no rights to namespaces of the machine, and none are
                // needed.
                flags |= if same(kind)? { 0 } else { kind.flag() };
            }
        }
        Ok(Self { of: Some((process, flags)), ..Self::default() })
    }

    /// Returns whether this kind is created.
    pub(crate) fn makes(&self, kind: NamespaceKind) -> bool {
        self.new.contains(&kind)
    }

    /// Returns whether a configuration names a namespace of this kind to join.
    pub(crate) fn joins(&self, kind: NamespaceKind) -> bool {
        self.join.iter().any(|(it, _)| *it == kind)
    }

    /// Returns whether an intermediate process is needed: one that creates what belongs to a joined user namespace
    /// (for an unprivileged user, also one that joins it), or that configures a time namespace before it has
    /// processes.
    pub(crate) fn need_a_step(&self) -> bool {
        let joins_user = self.joins_user();
        let rights = nix::unistd::geteuid().is_root();
        self.makes(NamespaceKind::Time) || (joins_user && (!self.new.is_empty() || !rights))
    }

    /// Returns whether a user namespace is joined.
    pub(crate) fn joins_user(&self) -> bool {
        let all = self.of.as_ref().is_some_and(|(_, flags)| flags & libc::CLONE_NEWUSER != 0);
        all || self.join.iter().any(|(kind, _)| *kind == NamespaceKind::User)
    }

    /// Returns the PID namespace to join, which takes effect for a process's children only (setns(2)).
    pub(crate) fn joined_pids(&self) -> Option<&OwnedFd> {
        if let Some((process, flags)) = &self.of {
            return Some(process).filter(|_| flags & libc::CLONE_NEWPID != 0);
        }
        self.join.iter().find(|(kind, _)| *kind == NamespaceKind::Pid).map(|(_, fd)| fd)
    }

    /// Returns the flags for clone3. The cgroup namespace is created later, when the process is in its cgroup.
    pub(crate) fn flags(&self) -> u64 {
        let made = self.new.iter().filter(|it| !matches!(it, NamespaceKind::Cgroup | NamespaceKind::Time));
        made.map(|it| u64::try_from(it.flag()).expect("positive flags")).fold(0, std::ops::BitOr::bitor)
    }

    /// Enters the namespaces to join, except the PID namespace. One of the machine can only be entered before the
    /// container's user namespace, and one of the container only after it.
    pub(crate) fn enter(&self) -> Result<(), StepError> {
        if let Some((process, flags)) = &self.of {
            let join = |flags| setns(process, CloneFlags::from_bits_retain(flags & !libc::CLONE_NEWPID));
            // The kernel may lack time namespaces. One call joins all namespaces or none.
            let joined =
                join(*flags).or_else(|error| if error == Errno::EINVAL { join(flags & !NEW_TIME) } else { Err(error) });
            return joined.act(|| "join the container's namespaces".into());
        }
        let act = |kind: NamespaceKind| move || format!("join the {} namespace", kind.file());
        let has_user = self.join.iter().any(|(kind, _)| *kind == NamespaceKind::User);
        let mut later = Vec::new();
        let apart = [NamespaceKind::User, NamespaceKind::Pid];
        for (kind, fd) in self.join.iter().filter(|(kind, _)| !apart.contains(kind)) {
            match setns(fd, CloneFlags::from_bits_retain(kind.flag())) {
                Err(Errno::EPERM) if has_user => later.push((kind, fd)),
                other => other.act(act(*kind))?,
            }
        }
        if let Some((kind, fd)) = self.join.iter().find(|(kind, _)| *kind == NamespaceKind::User) {
            setns(fd, CloneFlags::CLONE_NEWUSER).act(act(*kind))?;
        }
        later
            .into_iter()
            .try_for_each(|(kind, fd)| setns(fd, CloneFlags::from_bits_retain(kind.flag())).act(act(*kind)))
    }
}

/// Checks that a file is a namespace of this kind, because setns would otherwise join what it really is.
#[expect(unsafe_code, reason = "ioctl_ns(2) has no wrapper")]
fn check_kind(file: &File, kind: NamespaceKind) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    /// `NS_GET_NSTYPE` (ioctl_nsfs(2)).
    const GET_TYPE: libc::Ioctl = 0xb703;
    // SAFETY: the call takes no argument.
    let found = Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), GET_TYPE) }).map_err(|_| Errno::EINVAL)?;
    if found == kind.flag() { Ok(()) } else { Err(Errno::EINVAL) }
}
