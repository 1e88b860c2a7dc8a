//! Interfaces that share a link of this machine (macvlan). They can reach each other and whatever that link leads to,
//! but not this machine itself: the kernel's driver does not pass frames between them and the link above.

use std::os::fd::AsRawFd;

use netlink_packet_route::link::{InfoData, InfoKind, InfoMacVlan, LinkAttribute, MacVlanMode};

use crate::error::NetworkError;
use crate::links::{describe, kind};
use crate::mac::Mac;
use crate::netlink::Connection;
use crate::spec::Attachment;

/// Makes the interface.
pub(crate) fn connect(
    node: &mut Connection,
    parent: &str,
    mtu: Option<u32>,
    outside: &mut Connection,
    attachment: &Attachment,
    mac: Mac,
) -> Result<(), NetworkError> {
    let interface = &attachment.interface;
    let parent = node.existing(parent)?;
    let connected = outside
        .link(interface)?
        .is_some_and(|found| found.kind == Some(InfoKind::MacVlan) && found.peer == Some(parent.index));
    if connected {
        return Ok(());
    }
    outside.remove_link(interface)?;
    let target = attachment.namespace.open()?;
    let mut attributes = vec![
        LinkAttribute::IfName(interface.clone()),
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::Link(parent.index),
        LinkAttribute::NetNsFd(target.as_raw_fd()),
        kind(InfoKind::MacVlan, Some(InfoData::MacVlan(vec![InfoMacVlan::Mode(MacVlanMode::Bridge)]))),
    ];
    attributes.extend(mtu.map(LinkAttribute::Mtu));
    node.add_link(format_args!("connect {interface} to {}", parent.name), describe(0, true, attributes))
}
