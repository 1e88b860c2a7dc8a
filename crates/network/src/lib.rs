//! The network of a machine: namespaces, and what connects them.
//!
//! This crate knows nothing of clusters. It gets addresses, namespaces and keys, and makes the kernel match them. Every
//! function that makes something can be called again: it compares what the kernel has with what is wanted, and changes
//! just the difference. So a process that was killed between any two steps starts again from the beginning, a running
//! network is adopted after a restart, and drift is mended in the same way.

mod addresses;
mod attachment;
mod balancer;
mod bridge;
pub mod dns;
mod echo;
mod error;
mod gateway;
mod guard;
mod links;
mod local_network;
mod mac;
mod macvlan;
mod mesh;
mod namespace;
mod neighbours;
mod netlink;
mod nftables;
mod routes;
mod socket_thread;
mod spec;
mod stations;
mod tap;
mod tunnel;
mod vxlan;
mod wireguard;

pub use balancer::{
    Balancer, BalancerError, MOST_NETWORKS, NamespaceCookie, NetworkKey, Pool, Sockets, VirtualAddress, Wanted,
};
pub use bridge::BRIDGE;
pub use echo::echo;
pub use error::{NetworkError, Refusal};
pub use gateway::{
    Gateway, GatewayChange, GatewaySettings, HostPort, INTERFACE_PREFIX, Listeners, Protocol, PublishedPort, Sender,
    Target, Uplink, remove_gateway,
};
pub use links::Veth;
pub use local_network::{Audit, LocalNetwork, remove_network, remove_other_networks};
pub use mac::Mac;
pub use mesh::{Mesh, MeshChange, MeshSpec};
pub use namespace::Namespace;
pub use netlink::Connection;
pub use socket_thread::SocketThread;
pub use spec::{Attachment, Driver, LocalNetworkSpec, Remote, Subnet, Underlay};
pub use tap::open_tap;
pub use tunnel::{TunnelKey, Tunnels, TunnelsChange, TunnelsSpec};
pub use wireguard::{PublicKey, SecretKey};
