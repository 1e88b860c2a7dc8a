//! The errors of this crate.

use std::fmt;
use std::io;

use nix::errno::Errno;

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// An I/O error.
    #[error("failed to {act}")]
    Io {
        /// The act that failed, as a phrase.
        act: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a netlink request.
    #[error("failed to {act}")]
    Refused {
        /// The act that failed, as a phrase.
        act: String,
        /// The kernel's answer.
        #[source]
        source: Refusal,
    },
    /// No link has this name.
    #[error("there is no link `{0}`")]
    NoLink(String),
    /// An address that is in none of the network's subnets.
    #[error("the address {0} is in none of the network's subnets")]
    ForeignAddress(std::net::IpAddr),
    /// A network or an interface without an address.
    #[error("{0} has no address")]
    NoAddress(String),
    /// No link has the address that packets of an overlay should come from.
    #[error("no link of this machine has the address {0}")]
    NoUnderlay(std::net::IpAddr),
}

impl NetworkError {
    /// Returns whether the kernel lacks what was asked of it, so that it refuses every time.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.refusal(), Some(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT))
    }

    /// Returns the kernel's error code, if the kernel refused a netlink request.
    pub(crate) fn refusal(&self) -> Option<Errno> {
        match self {
            Self::Refused { source, .. } => Some(source.code),
            _ => None,
        }
    }
}

/// The kernel's answer to a netlink request that it refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The error code.
    pub code: Errno,
    /// The kernel's explanation, if it gave one (`NLMSGERR_ATTR_MSG`).
    pub explanation: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.explanation {
            Some(explanation) => write!(f, "{}: {explanation}", self.code.desc()),
            None => f.write_str(self.code.desc()),
        }
    }
}

impl std::error::Error for Refusal {}

pub(crate) fn io(act: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let act = act.into();
    move |source| NetworkError::Io { act, source }
}
