//! Why the balancer can't do something.

use std::io;
use std::net::IpAddr;

use super::tables::MOST_NETWORKS;
use crate::error::NetworkError;

/// Why an operation of the balancer failed.
#[derive(Debug, thiserror::Error)]
pub enum BalancerError {
    /// The kernel refused, or can't do it.
    #[error("failed to {act}")]
    Kernel {
        /// The act that failed, as a phrase.
        act: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel did not load a program: it lacks a feature (Linux 5.18 has all of them), or this process the right.
    #[error("failed to load the program {name} ({explanation})")]
    Program {
        /// Name of the program.
        name: &'static str,
        /// The last line of the kernel's verifier.
        explanation: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The rules of a namespace can't be read or changed.
    #[error(transparent)]
    Rules(#[from] NetworkError),
    /// A namespace is in too many networks.
    #[error("a namespace can't be in {0} networks; at most {MOST_NETWORKS} are possible")]
    TooManyNetworks(usize),
    /// A backend and its virtual address are of different IP versions.
    #[error("the backend {backend} can't serve {address}, which is of the other IP version")]
    IpVersion {
        /// The virtual address.
        address: IpAddr,
        /// The backend.
        backend: IpAddr,
    },
}

pub(super) fn kernel(act: impl Into<String>) -> impl FnOnce(io::Error) -> BalancerError {
    let act = act.into();
    move |source| BalancerError::Kernel { act, source }
}
