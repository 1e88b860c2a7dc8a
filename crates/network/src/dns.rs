//! The DNS server of a machine for the namespaces that it hosts: names of networks from memory, everything else from the
//! machine's resolvers.
//!
//! [`Directory`] holds the names of networks and is changed by difference. [`DnsServer`] answers on sockets that
//! [`DnsSockets::open`] makes inside a client's namespace. One thread serves all clients: an answer from memory takes
//! microseconds, so threads would only cost memory. `files` makes what a container has in `/etc` to go with it.
//!
//! hickory-proto reads and writes messages. Its server and resolver are not used: they bring zones, recursion and a
//! connection pool, they can't serve sockets of many namespaces from one thread, and the forwarder here is smaller than
//! the code that would adapt them.

mod ask;
mod cache;
mod client;
mod directory;
mod exchange;
mod files;
mod forwarder;
mod message;
mod records;
mod resolvers;
mod server;
mod sockets;
#[cfg(test)]
mod tests;
mod view;

pub use ask::ask;
pub use directory::{Directory, DirectoryError, Entry, Port};
pub use files::{Host, hosts, resolv_conf};
pub use resolvers::ResolvConf;
pub use server::{Client, DnsServer};
pub use sockets::DnsSockets;
