//! Bridges and the cables between them and processes.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use futures::TryStreamExt;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth};

use crate::namespace::{Namespace, NetworkError};

/// A cable: one end in a bridge, the other a process's network card.
#[derive(Clone, Debug)]
pub struct Cable {
    /// Name of the bridge's end.
    pub port: String,
    /// Name of the process's end, in its namespace.
    pub card: String,
    /// Address of the process's end.
    pub address: Ipv4Addr,
    /// Bits of the network.
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
        _ => Err(NetworkError::NoLink(name.to_owned())),
    }
}

/// Makes a bridge, up.
///
/// # Errors
/// The kernel refuses, or there is one of that name.
pub fn make_bridge(namespace: &Namespace, name: &str) -> Result<(), NetworkError> {
    let name = name.to_owned();
    namespace.run(move |handle| async move {
        let bridge = LinkBridge::new(&name).up().build();
        handle.link().add(bridge).execute().await.map_err(netlink(format!("make the bridge {name}")))
    })
}

/// Puts a cable between a bridge and the network namespace of a process.
///
/// # Errors
/// The kernel refuses.
pub fn plug(namespace: &Namespace, bridge: &str, process: &Namespace, cable: &Cable) -> Result<(), NetworkError> {
    let (bridge, there, ends) = (bridge.to_owned(), process.open()?, cable.clone());
    namespace.run(move |handle| async move {
        let Cable { port, card, .. } = ends;
        // Its first name must be free here; the card gets its own over there.
        let far = format!("{port}-far");
        let act = format!("make the cable {port}");
        handle.link().add(LinkVeth::new(&port, &far).build()).execute().await.map_err(netlink(act))?;
        let bridge = index(&handle, &bridge).await?;
        let near = LinkUnspec::new_with_index(index(&handle, &port).await?).controller(bridge).up().build();
        handle.link().set(near).execute().await.map_err(netlink("put the cable into the bridge"))?;
        let moved =
            LinkUnspec::new_with_index(index(&handle, &far).await?).setns_by_fd(there.as_raw_fd()).name(card).build();
        handle.link().set(moved).execute().await.map_err(netlink("give the cable to the process"))
    })?;
    let cable = cable.clone();
    process.run(move |handle| async move {
        let card = index(&handle, &cable.card).await?;
        let address = handle.address().add(card, cable.address.into(), cable.prefix);
        address.execute().await.map_err(netlink(format!("give {} its address", cable.card)))?;
        let up = LinkUnspec::new_with_index(card).up().build();
        handle.link().set(up).execute().await.map_err(netlink(format!("take {} up", cable.card)))
    })
}

/// Takes a link up or down, silently: no packet says so.
///
/// # Errors
/// There is no such link.
pub fn set_up(namespace: &Namespace, name: &str, up: bool) -> Result<(), NetworkError> {
    let name = name.to_owned();
    namespace.run(move |handle| async move {
        let link = LinkUnspec::new_with_index(index(&handle, &name).await?);
        let link = if up { link.up() } else { link.down() };
        handle.link().set(link.build()).execute().await.map_err(netlink(format!("switch {name}")))
    })
}

/// Moves a cable's end to another bridge.
///
/// # Errors
/// There is no such link.
pub fn set_bridge(namespace: &Namespace, name: &str, bridge: &str) -> Result<(), NetworkError> {
    let (name, bridge) = (name.to_owned(), bridge.to_owned());
    namespace.run(move |handle| async move {
        let bridge = index(&handle, &bridge).await?;
        let link = LinkUnspec::new_with_index(index(&handle, &name).await?).controller(bridge).build();
        handle.link().set(link).execute().await.map_err(netlink(format!("move {name}")))
    })
}

/// Takes a cable away, both ends of it. Does nothing where there is none.
///
/// # Errors
/// The kernel refuses.
pub fn unplug(namespace: &Namespace, name: &str) -> Result<(), NetworkError> {
    let name = name.to_owned();
    namespace.run(move |handle| async move {
        match index(&handle, &name).await {
            Ok(link) => handle.link().del(link).execute().await.map_err(netlink(format!("remove the cable {name}"))),
            Err(_) => Ok(()),
        }
    })
}
