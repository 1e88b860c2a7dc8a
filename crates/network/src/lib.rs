//! Network namespaces and the links between them, by netlink. It has what a sandbox needs: a namespace that a file keeps
//! alive, bridges in it, and veth pairs from the bridges to the namespaces of processes. Called by `ctl sandbox`.
//!
//! Each call runs on a thread of its own that enters the namespace, so the caller's thread never changes namespaces.

pub mod dns;
mod links;
mod namespace;

pub use links::{Veth, add_bridge, add_veth, bring_down, bring_up, move_to_bridge, remove_link};
pub use namespace::{Namespace, NetworkError};
