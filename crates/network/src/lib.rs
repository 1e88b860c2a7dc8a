//! The network of a machine: namespaces, and what connects them.
//!
//! This crate knows nothing of clusters. It gets addresses, namespaces and keys, and makes the kernel match them. Every
//! function that makes something can be called again: it compares what the kernel has with what is wanted, and changes
//! just the difference. So a process that was killed between any two steps starts again from the beginning, a running
//! network is adopted after a restart, and drift is mended in the same way.

mod addresses;
mod balancer;
mod error;
mod links;
mod mac;
mod namespace;
mod netlink;
mod routes;

pub use balancer::{
    Balancer, BalancerError, MOST_NETWORKS, NamespaceCookie, NetworkKey, Pool, Sockets, VirtualAddress, Wanted,
};
pub use error::{NetworkError, Refusal};
pub use links::Veth;
pub use mac::Mac;
pub use namespace::Namespace;
pub use netlink::Connection;
