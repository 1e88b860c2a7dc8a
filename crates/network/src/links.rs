//! Bridges, and veth pairs between them and the namespaces of processes (veth(4)).

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use futures::TryStreamExt;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth};

use crate::namespace::{Namespace, NetworkError};

/// A veth pair: one end is a port of a bridge, the other an interface in a process's namespace.
#[derive(Clone, Debug)]
pub struct Veth {
    /// Name of the end at the bridge.
    pub port: String,
    /// Name of the end in the process's namespace.
    pub interface: String,
    /// Address of the interface.
    pub address: Ipv4Addr,
    /// Length of the address's network prefix, in bits.
    pub prefix: u8,
}

fn netlink(act: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let act = act.into();
    move |source| NetworkError::Netlink { act, source }
}

async fn index(handle: &Handle, name: &str) -> Result<u32, NetworkError> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(Some(link)) => Ok(link.header.index),
        Ok(None) => Err(NetworkError::NoLink(name.to_owned())),
        Err(error) if is_gone(&error) => Err(NetworkError::NoLink(name.to_owned())),
        Err(error) => Err(netlink(format!("find the link {name}"))(error)),
    }
}

/// Whether the kernel has answered that there is no such link. It removes a veth pair by itself when the namespace of
/// one end goes, so a link can be gone at any time.
fn is_gone(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -libc::ENODEV)
}

/// Makes a missing link a success.
fn unless_gone(result: Result<(), NetworkError>) -> Result<(), NetworkError> {
    match result {
        Err(NetworkError::NoLink(_)) => Ok(()),
        Err(NetworkError::Netlink { source, .. }) if is_gone(&source) => Ok(()),
        result => result,
    }
}

/// Adds a bridge and brings it up.
///
/// # Errors
/// The kernel refuses, for example because a link has that name.
pub fn add_bridge(namespace: &Namespace, name: &str) -> Result<(), NetworkError> {
    let name = name.to_owned();
    namespace.run(move |handle| async move {
        let bridge = LinkBridge::new(&name).up().build();
        handle.link().add(bridge).execute().await.map_err(netlink(format!("add the bridge {name}")))
    })
}

/// Adds a veth pair between a bridge of `namespace` and the namespace `process`, and brings both ends up.
///
/// # Errors
/// The kernel refuses.
pub fn add_veth(namespace: &Namespace, bridge: &str, process: &Namespace, veth: &Veth) -> Result<(), NetworkError> {
    let (bridge, target, pair) = (bridge.to_owned(), process.open()?, veth.clone());
    namespace.run(move |handle| async move {
        let Veth { port, interface, .. } = pair;
        // The pair is created here, where the interface's final name may be taken.
        let peer = format!("{port}-peer");
        let act = format!("add the veth pair {port}");
        handle.link().add(LinkVeth::new(&port, &peer).build()).execute().await.map_err(netlink(act))?;
        let bridge = index(&handle, &bridge).await?;
        let attached = LinkUnspec::new_with_index(index(&handle, &port).await?).controller(bridge).up().build();
        handle.link().set(attached).execute().await.map_err(netlink(format!("attach {port} to its bridge")))?;
        let peer = LinkUnspec::new_with_index(index(&handle, &peer).await?);
        let moved = peer.setns_by_fd(target.as_raw_fd()).name(interface).build();
        handle.link().set(moved).execute().await.map_err(netlink("move the veth peer to its namespace"))
    })?;
    let Veth { interface, address, prefix, .. } = veth.clone();
    process.run(move |handle| async move {
        let link = index(&handle, &interface).await?;
        let add = handle.address().add(link, address.into(), prefix);
        add.execute().await.map_err(netlink(format!("add the address of {interface}")))?;
        let up = LinkUnspec::new_with_index(link).up().build();
        handle.link().set(up).execute().await.map_err(netlink(format!("bring {interface} up")))
    })
}

/// Brings a link up.
///
/// # Errors
/// No link has that name, or the kernel refuses.
pub fn bring_up(namespace: &Namespace, name: &str) -> Result<(), NetworkError> {
    let name = name.to_owned();
    namespace.run(move |handle| async move {
        let up = LinkUnspec::new_with_index(index(&handle, &name).await?).up().build();
        handle.link().set(up).execute().await.map_err(netlink(format!("bring {name} up")))
    })
}

/// Brings a link down. Connections over it are not closed: their packets are lost, as if a cable had been pulled. Does
/// nothing if no link has that name.
///
/// # Errors
/// The kernel refuses.
pub fn bring_down(namespace: &Namespace, name: &str) -> Result<(), NetworkError> {
    let name = name.to_owned();
    unless_gone(namespace.run(move |handle| async move {
        let down = LinkUnspec::new_with_index(index(&handle, &name).await?).down().build();
        handle.link().set(down).execute().await.map_err(netlink(format!("bring {name} down")))
    }))
}

/// Moves a port to another bridge of its namespace.
///
/// # Errors
/// The port or the bridge does not exist, or the kernel refuses.
pub fn move_to_bridge(namespace: &Namespace, name: &str, bridge: &str) -> Result<(), NetworkError> {
    let (name, bridge) = (name.to_owned(), bridge.to_owned());
    namespace.run(move |handle| async move {
        let bridge = index(&handle, &bridge).await?;
        let link = LinkUnspec::new_with_index(index(&handle, &name).await?).controller(bridge).build();
        handle.link().set(link).execute().await.map_err(netlink(format!("move {name} to another bridge")))
    })
}

/// Removes a link; of a veth pair both ends. Does nothing if no link has that name.
///
/// # Errors
/// The kernel refuses.
pub fn remove_link(namespace: &Namespace, name: &str) -> Result<(), NetworkError> {
    let name = name.to_owned();
    unless_gone(namespace.run(move |handle| async move {
        let link = index(&handle, &name).await?;
        handle.link().del(link).execute().await.map_err(netlink(format!("remove {name}")))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_the_kernel_has_removed_meanwhile_is_no_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let network = Namespace::make(&folder.path().join("network")).expect("tests run as root");
        // A link that goes between being found and being removed has an index that nothing has.
        let removed = network
            .run(|handle| async move { handle.link().del(4_242).execute().await.map_err(netlink("remove a link")) });
        assert!(matches!(&removed, Err(NetworkError::Netlink { source, .. }) if is_gone(source)), "{removed:?}");
        unless_gone(removed).expect("it is gone");
        remove_link(&network, "none").expect("it is gone");
        bring_down(&network, "none").expect("it is gone");
        assert!(matches!(bring_up(&network, "none"), Err(NetworkError::NoLink(_))), "only a removal may find nothing");
        unless_gone(add_bridge(&network, "lo")).expect_err("any other error stays one");
        Namespace::remove(&folder.path().join("network"));
    }
}
