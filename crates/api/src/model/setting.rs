//! Settings of a task's processes and of their surroundings that Docker's users know by the flags of `docker run`: kernel
//! limits of a process, swap, the log, and when an image is looked up again.

use std::num::NonZeroU64;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::state::states;

/// An amount that may be unlimited, which people and JSON write as -1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bound {
    /// At most this.
    At(u64),
    /// No bound. It is larger than every other one.
    Unlimited,
}

impl Bound {
    /// Returns the bound as the wire, JSON and the OCI configuration carry it: -1 is unlimited. One that does not fit is
    /// the largest number.
    pub fn number(self) -> i64 {
        match self {
            Self::At(amount) => i64::try_from(amount).unwrap_or(i64::MAX),
            Self::Unlimited => -1,
        }
    }

    /// Returns the bound that a number stands for; `None` for a negative one other than -1.
    pub fn from_number(number: i64) -> Option<Self> {
        match number {
            -1 => Some(Self::Unlimited),
            number => u64::try_from(number).ok().map(Self::At),
        }
    }
}

impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(self.number())
    }
}

/// Serializes an absent bound as zero.
pub(super) fn bound_or_zero<S: Serializer>(bound: &Option<Bound>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i64(bound.map_or(0, Bound::number))
}

states! {
    /// The resource that a [`Ulimit`] limits (getrlimit(2)). The address space (`as`) is not one of them, as in Docker.
    UlimitName {
        /// Size of a core dump in bytes.
        Core = "core",
        /// CPU time in seconds.
        Cpu = "cpu",
        /// Size of the data segment in bytes.
        Data = "data",
        /// Size of a file that the process writes, in bytes.
        Fsize = "fsize",
        /// Number of file locks; without effect since Linux 2.4.25.
        Locks = "locks",
        /// Memory that the process may lock, in bytes.
        Memlock = "memlock",
        /// Size of POSIX message queues of the user in bytes.
        Msgqueue = "msgqueue",
        /// Ceiling of the nice value, as 20 minus the value.
        Nice = "nice",
        /// Number of open files.
        Nofile = "nofile",
        /// Number of processes of the user.
        Nproc = "nproc",
        /// Size of the resident set; without effect since Linux 2.4.30.
        Rss = "rss",
        /// Ceiling of the real-time priority.
        Rtprio = "rtprio",
        /// CPU time in µs without a blocking system call, under real-time scheduling.
        Rttime = "rttime",
        /// Number of queued signals of the user.
        Sigpending = "sigpending",
        /// Size of the stack in bytes.
        Stack = "stack",
    }
}

impl FromStr for UlimitName {
    type Err = UlimitError;

    fn from_str(text: &str) -> Result<Self, UlimitError> {
        let found = Self::ALL.iter().copied().find(|it| it.as_str() == text);
        found.ok_or_else(|| UlimitError::Name(text.escape_debug().to_string()))
    }
}

/// A limit of each process of a task (getrlimit(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ulimit {
    /// The resource.
    pub name: UlimitName,
    /// The limit that the kernel enforces; a process may raise it up to the hard one.
    pub soft: Bound,
    /// Ceiling of the soft limit.
    pub hard: Bound,
}

/// Why a limit is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UlimitError {
    /// The text does not have the form of a limit.
    #[error("`{0}`: a limit has the form NAME=SOFT[:HARD], in whole numbers or -1 for unlimited")]
    Form(String),
    /// There is no such resource.
    #[error("`{0}` is not a limit: they are {names}", names = names())]
    Name(String),
    /// The soft limit is above the hard one.
    #[error("{0}: the soft limit is above the hard one")]
    Order(UlimitName),
}

fn names() -> String {
    UlimitName::ALL.iter().map(|it| it.as_str()).collect::<Vec<_>>().join(", ")
}

impl Ulimit {
    /// Checks that the soft limit is not above the hard one.
    ///
    /// # Errors
    /// The soft limit is above the hard one.
    pub fn check(&self) -> Result<(), UlimitError> {
        if self.soft > self.hard { Err(UlimitError::Order(self.name)) } else { Ok(()) }
    }
}

impl FromStr for Ulimit {
    type Err = UlimitError;

    /// Parses Docker's `--ulimit` grammar. A limit without a hard one has the same as both.
    fn from_str(text: &str) -> Result<Self, UlimitError> {
        let form = || UlimitError::Form(text.escape_debug().to_string());
        let (name, values) = text.split_once('=').ok_or_else(form)?;
        let name = name.parse()?;
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let bound = |text: &str| text.parse().ok().and_then(Bound::from_number).ok_or_else(form);
        let limit = Self { name, soft: bound(soft)?, hard: bound(hard)? };
        limit.check().map(|()| limit)
    }
}

states! {
    /// What becomes of a task's output.
    LogDriver {
        /// Its node keeps it, for `ctl service logs`.
        JsonFile = "json-file",
        /// It is dropped.
        None = "none",
    }
}

/// How the output of a task is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogSpec {
    /// What becomes of the output.
    pub driver: LogDriver,
    /// Bytes of one of Docker's files; `None` for a log of the default size.
    #[serde(serialize_with = "crate::resources::number_or_zero")]
    pub max_size: Option<NonZeroU64>,
    /// Number of Docker's files; `None` stands for one.
    #[serde(serialize_with = "crate::resources::number_or_zero")]
    pub max_file: Option<NonZeroU64>,
}

impl Default for LogSpec {
    fn default() -> Self {
        Self { driver: LogDriver::JsonFile, max_size: None, max_file: None }
    }
}

impl LogSpec {
    /// Largest size in bytes of the log of a task whose spec gives none.
    pub const DEFAULT_BYTES: u64 = 20 << 20;

    /// Returns the largest size in bytes of all output that is kept; `None` if none is kept.
    pub fn bytes(&self) -> Option<u64> {
        let files = self.max_file.map_or(1, NonZeroU64::get);
        match (self.driver, self.max_size) {
            (LogDriver::None, _) => None,
            (LogDriver::JsonFile, None) => Some(Self::DEFAULT_BYTES),
            (LogDriver::JsonFile, Some(size)) => Some(size.get().saturating_mul(files)),
        }
    }
}

states! {
    /// When the digest of a service's image is resolved.
    PullPolicy {
        /// When the service is created or gets another image.
        Missing = "missing",
        /// Also whenever a user updates the service.
        Always = "always",
    }
}

impl FromStr for PullPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().copied().find(|it| it.as_str() == text);
        found.ok_or_else(|| format!("`{text}` is neither always nor missing"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_docker_does_and_others_refused() {
        let limit = |name, soft, hard| Ok(Ulimit { name, soft, hard });
        use Bound::{At, Unlimited};
        for (text, expected) in [
            ("nofile=1024", limit(UlimitName::Nofile, At(1024), At(1024))),
            ("nofile=1024:2048", limit(UlimitName::Nofile, At(1024), At(2048))),
            ("memlock=-1", limit(UlimitName::Memlock, Unlimited, Unlimited)),
            ("core=0:-1", limit(UlimitName::Core, At(0), Unlimited)),
            ("core=-1:0", Err(UlimitError::Order(UlimitName::Core))),
            ("nofile=2:1", Err(UlimitError::Order(UlimitName::Nofile))),
            ("as=1", Err(UlimitError::Name("as".into()))),
            ("RLIMIT_CPU=1", Err(UlimitError::Name("RLIMIT_CPU".into()))),
            ("nofile", Err(UlimitError::Form("nofile".into()))),
            ("nofile=", Err(UlimitError::Form("nofile=".into()))),
            ("nofile=1:", Err(UlimitError::Form("nofile=1:".into()))),
            ("nofile=-2", Err(UlimitError::Form("nofile=-2".into()))),
            ("nofile=1:2:3", Err(UlimitError::Form("nofile=1:2:3".into()))),
        ] {
            assert_eq!(text.parse::<Ulimit>(), expected, "{text}");
        }
    }

    #[test]
    fn a_log_is_as_large_as_all_of_dockers_files_together() {
        let log = |driver, max_size, max_file| {
            LogSpec { driver, max_size: NonZeroU64::new(max_size), max_file: NonZeroU64::new(max_file) }.bytes()
        };
        assert_eq!(log(LogDriver::JsonFile, 0, 0), Some(LogSpec::DEFAULT_BYTES));
        assert_eq!(log(LogDriver::JsonFile, 1 << 20, 0), Some(1 << 20));
        assert_eq!(log(LogDriver::JsonFile, 1 << 20, 3), Some(3 << 20));
        assert_eq!(log(LogDriver::JsonFile, u64::MAX, 3), Some(u64::MAX));
        assert_eq!(log(LogDriver::None, 0, 0), None);
    }
}
