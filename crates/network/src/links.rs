//! Links: what the kernel has, and the requests that make, change and remove it. The kinds of links that a network is made
//! of have files of their own; `ctl sandbox` uses the public functions here.

use std::os::fd::AsRawFd;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use nix::errno::Errno;

use crate::error::NetworkError;
use crate::mac::Mac;
use crate::namespace::Namespace;
use crate::netlink::Connection;

/// A link as the kernel has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) up: bool,
    pub(crate) mac: Option<Mac>,
    pub(crate) mtu: u32,
    /// The bridge that the link is a port of.
    pub(crate) controller: Option<u32>,
    /// The link at the other end, or below: an index in that link's namespace.
    pub(crate) peer: Option<u32>,
    pub(crate) kind: Option<InfoKind>,
    pub(crate) data: Option<InfoData>,
    /// The settings of the link as a port of a bridge.
    pub(crate) port: Vec<InfoBridgePort>,
}

/// A veth pair: one end is a port of a bridge, the other an interface in another namespace.
#[derive(Clone, Debug)]
pub struct Veth {
    /// Name of the end at the bridge.
    pub port: String,
    /// Name of the end in the other namespace.
    pub interface: String,
    /// Address of the interface, with the length of its network prefix.
    pub address: IpNet,
}

/// Describes a link. A link without an index is found, or made, by its name.
pub(crate) fn describe(index: u32, up: bool, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    if up {
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
    }
    link.attributes = attributes;
    link
}

/// Describes the kind of a link.
pub(crate) fn kind(kind: InfoKind, data: Option<InfoData>) -> LinkAttribute {
    let kind = std::iter::once(LinkInfo::Kind(kind));
    LinkAttribute::LinkInfo(kind.chain(data.map(LinkInfo::Data)).collect())
}

/// Describes a veth pair by its other end.
pub(crate) fn veth(peer: LinkMessage) -> LinkAttribute {
    kind(InfoKind::Veth, Some(InfoData::Veth(InfoVeth::Peer(peer))))
}

impl Connection {
    /// Adds a bridge and brings it up.
    ///
    /// # Errors
    /// The kernel refuses, for example because a link has that name.
    pub fn add_bridge(&mut self, name: &str) -> Result<(), NetworkError> {
        let attributes = vec![LinkAttribute::IfName(name.to_owned()), kind(InfoKind::Bridge, None)];
        self.add_link(format_args!("add the bridge {name}"), describe(0, true, attributes))
    }

    /// Adds a veth pair between a bridge of this namespace and another namespace, and brings both ends up. The MAC address
    /// of the interface is made from its address, because neighbours remember it.
    ///
    /// # Errors
    /// The bridge does not exist, the other namespace can't be opened, or the kernel refuses the pair.
    pub fn add_veth(&mut self, bridge: &str, other: &Namespace, pair: &Veth) -> Result<(), NetworkError> {
        let target = other.open()?;
        let mut inside =
            vec![LinkAttribute::IfName(pair.interface.clone()), LinkAttribute::NetNsFd(target.as_raw_fd())];
        inside.extend(Mac::of(&[pair.address.addr()]).map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        let port = vec![
            LinkAttribute::IfName(pair.port.clone()),
            LinkAttribute::Controller(self.existing(bridge)?.index),
            // The kernel brings neither end up before both are there (ENOTCONN).
            veth(describe(0, false, inside)),
        ];
        self.add_link(format_args!("add the veth pair {}", pair.port), describe(0, true, port))?;
        let mut inside = Self::open(other)?;
        let index = inside.existing(&pair.interface)?.index;
        inside.set_addresses(index, &[pair.address])?;
        inside.bring_up(&pair.interface)
    }

    /// Brings a link up.
    ///
    /// # Errors
    /// No link has that name, or the kernel refuses.
    pub fn bring_up(&mut self, name: &str) -> Result<(), NetworkError> {
        let index = self.existing(name)?.index;
        self.set_link(format_args!("bring {name} up"), describe(index, true, Vec::new()))
    }

    /// Brings a link down. Connections over it are not closed: their packets are lost, as if a cable had been pulled.
    /// Does nothing if no link has that name.
    ///
    /// # Errors
    /// The kernel refuses to bring the link down.
    pub fn bring_down(&mut self, name: &str) -> Result<(), NetworkError> {
        let Some(link) = self.link(name)? else { return Ok(()) };
        let mut down = describe(link.index, false, Vec::new());
        down.header.change_mask = LinkFlags::Up;
        let act = format_args!("bring {name} down");
        self.change_unless(Errno::ENODEV, act, RouteNetlinkMessage::SetLink(down), 0)
    }

    /// Sets the MTU of a link.
    ///
    /// # Errors
    /// No link has that name, or the kernel refuses.
    pub fn set_mtu(&mut self, name: &str, mtu: u32) -> Result<(), NetworkError> {
        let index = self.existing(name)?.index;
        self.set_link(format_args!("set the MTU of {name}"), describe(index, false, vec![LinkAttribute::Mtu(mtu)]))
    }

    /// Moves a port to another bridge of its namespace.
    ///
    /// # Errors
    /// The port or the bridge does not exist, or the kernel refuses.
    pub fn move_to_bridge(&mut self, name: &str, bridge: &str) -> Result<(), NetworkError> {
        let controller = LinkAttribute::Controller(self.existing(bridge)?.index);
        let index = self.existing(name)?.index;
        self.set_link(format_args!("move {name} to the bridge {bridge}"), describe(index, false, vec![controller]))
    }

    /// Returns the name of the bridge that a link is a port of, or `None` if there is no such link or it belongs to
    /// no bridge.
    ///
    /// # Errors
    /// The kernel refuses to describe the link or its bridge.
    pub fn bridge_of(&mut self, name: &str) -> Result<Option<String>, NetworkError> {
        let Some(bridge) = self.link(name)?.and_then(|port| port.controller) else { return Ok(None) };
        Ok(self.link_at(bridge)?.map(|bridge| bridge.name))
    }

    /// Removes a link; of a veth pair both ends. Does nothing if no link has that name. The kernel removes a pair by
    /// itself when the namespace of one end goes, so that a link can be gone at any time.
    ///
    /// # Errors
    /// The kernel refuses to remove the link.
    pub fn remove_link(&mut self, name: &str) -> Result<(), NetworkError> {
        let Some(link) = self.link(name)? else { return Ok(()) };
        let message = RouteNetlinkMessage::DelLink(describe(link.index, false, Vec::new()));
        self.change_unless(Errno::ENODEV, format_args!("remove {name}"), message, 0)
    }

    pub(crate) fn add_link(&mut self, act: impl std::fmt::Display, link: LinkMessage) -> Result<(), NetworkError> {
        self.change(act, RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
    }

    pub(crate) fn set_link(&mut self, act: impl std::fmt::Display, link: LinkMessage) -> Result<(), NetworkError> {
        self.change(act, RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Sets the settings of a port of a bridge.
    pub(crate) fn set_port(&mut self, port: &Link, settings: &[InfoBridgePort]) -> Result<(), NetworkError> {
        let missing: Vec<_> = settings.iter().filter(|setting| !port.port.contains(setting)).cloned().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let info =
            vec![LinkInfo::PortKind(InfoPortKind::Bridge), LinkInfo::PortData(InfoPortData::BridgePort(missing))];
        // Settings of a port are taken by the message that makes links, without the flag that would make one.
        let message = describe(port.index, false, vec![LinkAttribute::LinkInfo(info)]);
        self.change(format_args!("set up the port {}", port.name), RouteNetlinkMessage::NewLink(message), 0)
    }

    /// Returns the link of that name, or `None` if there is none.
    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>, NetworkError> {
        self.find(describe(0, false, vec![LinkAttribute::IfName(name.to_owned())]))
    }

    /// Returns the link of that index, or `None` if there is none.
    pub(crate) fn link_at(&mut self, index: u32) -> Result<Option<Link>, NetworkError> {
        self.find(describe(index, false, Vec::new()))
    }

    /// Returns the link of that name.
    pub(crate) fn existing(&mut self, name: &str) -> Result<Link, NetworkError> {
        self.link(name)?.ok_or_else(|| NetworkError::NoLink(name.to_owned()))
    }

    /// Returns every link of the namespace.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, NetworkError> {
        let found = self.dump("list the links", RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(found.into_iter().filter_map(parse).collect())
    }

    fn find(&mut self, link: LinkMessage) -> Result<Option<Link>, NetworkError> {
        Ok(self.get("find a link", RouteNetlinkMessage::GetLink(link))?.and_then(parse))
    }
}

fn parse(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let up = message.header.flags.contains(LinkFlags::Up);
    let mut link = Link { index: message.header.index, up, ..Link::default() };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::Link(index) => link.peer = Some(index),
            LinkAttribute::LinkInfo(info) => {
                for info in info {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind),
                        LinkInfo::Data(data) => link.data = Some(data),
                        LinkInfo::PortData(InfoPortData::BridgePort(settings)) => link.port = settings,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_the_kernel_has_removed_meanwhile_is_no_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("network");
        let mut network = Connection::open(&Namespace::make(&path).expect("tests run as root")).expect("a connection");
        // A link that goes between being found and being removed has an index that nothing has.
        let gone = || RouteNetlinkMessage::DelLink(describe(4_242, false, Vec::new()));
        let removed = network.change("remove a link", gone(), 0).expect_err("no link has this index");
        assert_eq!(removed.refusal(), Some(Errno::ENODEV));
        network.change_unless(Errno::ENODEV, "remove a link", gone(), 0).expect("it is gone");
        network.remove_link("none").expect("it is gone");
        network.bring_down("none").expect("it is gone");
        assert!(matches!(network.bring_up("none"), Err(NetworkError::NoLink(_))), "only a removal may find nothing");
        network.add_bridge("lo").expect_err("any other error stays one");
        Namespace::remove(&path).expect("removed");
    }
}
