//! Neighbours whose MAC addresses are known beforehand, so that no packet waits for an answer.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};

use crate::addresses::family;
use crate::error::NetworkError;
use crate::mac::Mac;
use crate::netlink::Connection;

impl Connection {
    /// Gives an IP address on a link a MAC address, in a state that does not expire.
    pub(crate) fn set_neighbour(&mut self, link: u32, address: IpAddr, mac: Mac) -> Result<(), NetworkError> {
        let mut wanted = NeighbourMessage::default();
        wanted.header.family = family(address);
        wanted.header.ifindex = link;
        wanted.header.state = NeighbourState::Permanent;
        wanted.attributes =
            vec![NeighbourAttribute::Destination(address.into()), NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
        let mut request = NeighbourMessage::default();
        request.header.family = family(address);
        let found = self.dump("list the neighbours", RouteNetlinkMessage::GetNeighbour(request))?;
        let is_there = found.iter().any(|message| {
            matches!(message, RouteNetlinkMessage::NewNeighbour(found)
                if found.header.ifindex == link
                    && found.header.state == NeighbourState::Permanent
                    && wanted.attributes.iter().all(|attribute| found.attributes.contains(attribute)))
        });
        if is_there {
            return Ok(());
        }
        let act = format_args!("add the neighbour {address}");
        self.change(act, RouteNetlinkMessage::NewNeighbour(wanted), NLM_F_CREATE | NLM_F_REPLACE)
    }
}
