//! Network namespaces and the links between them, by netlink. So far what a sandbox needs: a namespace that is held
//! by a file, bridges in it, and cables from them to processes. Overlay networks come with their own issue.
//!
//! Each call works in a thread of its own that enters the namespace: the caller's thread never changes its.

mod links;
mod namespace;

pub use links::{Cable, make_bridge, plug, set_bridge, set_up, unplug};
pub use namespace::{Namespace, NetworkError};
