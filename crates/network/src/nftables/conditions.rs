//! The conditions and actions that rules are made of, each as the expressions that it takes.

use std::net::{IpAddr, Ipv6Addr};

use super::expression::{
    Conntrack, Expression, IpVersion, Layer, Meta, ROUTE_LOCAL, Register, RouteQuestion, STATUS_DESTINATION_TRANSLATED,
    Verdict,
};
use super::ruleset::Rule;
use crate::mac::Mac;

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP_6: u8 = 58;

const INTERFACE_NAME: usize = 16;
const FIRST: Register = Register::FIRST;

/// Returns the rule that consists of these parts, in order.
pub(crate) fn rule<const N: usize>(parts: [Vec<Expression>; N]) -> Rule {
    Rule::new(parts.into_iter().flatten())
}

pub(crate) fn verdict(verdict: Verdict) -> Vec<Expression> {
    vec![Expression::Verdict(verdict)]
}

pub(crate) fn masquerade() -> Vec<Expression> {
    vec![Expression::Masquerade]
}

/// Refuses a TCP connection.
pub(crate) fn reset() -> Vec<Expression> {
    vec![Expression::ResetTcp]
}

fn load_meta(key: Meta) -> Expression {
    Expression::LoadMeta { key, to: FIRST }
}

fn load(layer: Layer, offset: u32, length: u32) -> Expression {
    Expression::LoadPayload { layer, offset, length, to: FIRST }
}

fn equal(value: &[u8]) -> Expression {
    Expression::Equal { value: value.to_vec() }
}

/// The packet has arrived on an interface whose name begins like this.
pub(crate) fn from_interfaces(prefix: &str) -> Vec<Expression> {
    vec![load_meta(Meta::InputName), equal(prefix.as_bytes())]
}

/// The packet leaves by an interface whose name begins like this.
pub(crate) fn to_interfaces(prefix: &str) -> Vec<Expression> {
    vec![load_meta(Meta::OutputName), equal(prefix.as_bytes())]
}

/// The packet leaves by an interface whose name begins otherwise.
pub(crate) fn to_others_than(prefix: &str) -> Vec<Expression> {
    vec![load_meta(Meta::OutputName), Expression::Unequal { value: prefix.as_bytes().to_vec() }]
}

pub(crate) fn from_interface(name: &str) -> Vec<Expression> {
    vec![load_meta(Meta::InputName), equal(&interface_name(name))]
}

pub(crate) fn to_interface(name: &str) -> Vec<Expression> {
    vec![load_meta(Meta::OutputName), equal(&interface_name(name))]
}

fn interface_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(INTERFACE_NAME, 0);
    bytes
}

pub(crate) fn version(version: IpVersion) -> Vec<Expression> {
    vec![load_meta(Meta::Family), equal(&[version.family()])]
}

pub(crate) fn protocol(number: u8) -> Vec<Expression> {
    vec![load_meta(Meta::TransportProtocol), equal(&[number])]
}

pub(crate) fn destination_port(port: u16) -> Vec<Expression> {
    vec![load(Layer::Transport, 2, 2), equal(&port.to_be_bytes())]
}

pub(crate) fn destination_port_in(set: &str) -> Vec<Expression> {
    vec![load(Layer::Transport, 2, 2), Expression::InSet { set: set.into() }]
}

/// Applies the verdict that a map has for the packet's protocol and port.
pub(crate) fn verdict_for_protocol_and_port(map: &str) -> Vec<Expression> {
    let port = Expression::LoadPayload { layer: Layer::Transport, offset: 2, length: 2, to: Register(1) };
    vec![load_meta(Meta::TransportProtocol), port, Expression::VerdictFromMap { map: map.into() }]
}

/// Loads the packet's source address, of a version that another condition has made sure of.
pub(crate) fn load_source(version: IpVersion) -> Expression {
    match version {
        IpVersion::V4 => load(Layer::Network, 12, 4),
        IpVersion::V6 => load(Layer::Network, 8, 16),
    }
}

/// Does the same with its destination address.
pub(crate) fn load_destination(version: IpVersion) -> Expression {
    match version {
        IpVersion::V4 => load(Layer::Network, 16, 4),
        IpVersion::V6 => load(Layer::Network, 24, 16),
    }
}

pub(crate) fn destination_in(ip: IpVersion, set: &str) -> Vec<Expression> {
    [version(ip), vec![load_destination(ip), Expression::InSet { set: set.into() }]].concat()
}

/// The frame in a packet of VXLAN does not come from a pair of machine and MAC address in the set. The frame's source
/// follows 8 bytes of UDP, 8 of VXLAN and the frame's destination.
pub(crate) fn frame_within_not_in(ip: IpVersion, set: &str) -> Vec<Expression> {
    let to = Register(ip.words());
    let mac = Expression::LoadPayload { layer: Layer::Transport, offset: 22, length: 6, to };
    [version(ip), vec![load_source(ip), mac, Expression::NotInSet { set: set.into() }]].concat()
}

/// The packet is for 127.0.0.0/8.
pub(crate) fn to_loopback() -> Vec<Expression> {
    [version(IpVersion::V4), vec![load(Layer::Network, 16, 1), equal(&[127])]].concat()
}

/// The packet comes from 127.0.0.0/8 or from ::1.
pub(crate) fn from_loopback(ip: IpVersion) -> Vec<Expression> {
    let is_loopback = match ip {
        IpVersion::V4 => vec![load(Layer::Network, 12, 1), equal(&[127])],
        IpVersion::V6 => vec![load_source(ip), equal(&Ipv6Addr::LOCALHOST.octets())],
    };
    [version(ip), is_loopback].concat()
}

pub(crate) fn from_address(address: IpAddr) -> Vec<Expression> {
    let ip = IpVersion::of(address);
    [version(ip), vec![load_source(ip), equal(&octets(address))]].concat()
}

/// The frame has an IP packet that does not come from this address.
pub(crate) fn frame_not_from(address: IpAddr) -> Vec<Expression> {
    let ip = IpVersion::of(address);
    [frame_version(ip), vec![load_source(ip), Expression::Unequal { value: octets(address) }]].concat()
}

/// The frame has something else than ARP and IP, such as another tag of a VLAN.
pub(crate) fn frame_is_foreign() -> Vec<Expression> {
    let unequal = |value: [u8; 2]| Expression::Unequal { value: value.to_vec() };
    vec![load_meta(Meta::LinkProtocol), unequal([0x08, 0x00]), unequal([0x08, 0x06]), unequal([0x86, 0xdd])]
}

/// The frame has a message of ARP.
pub(crate) fn frame_is_arp() -> Vec<Expression> {
    vec![load_meta(Meta::LinkProtocol), equal(&[0x08, 0x06])]
}

/// The IPv4 address of the sender of such a message (RFC 826).
pub(crate) fn load_arp_sender() -> Expression {
    load(Layer::Network, 14, 4)
}

/// The packet advertises a neighbour (ICMPv6 type 136).
pub(crate) fn advertises_neighbour() -> Vec<Expression> {
    [protocol(ICMP_6), vec![load(Layer::Transport, 0, 1), equal(&[136])]].concat()
}

/// The address of the neighbour (RFC 4861 §4.4).
pub(crate) fn load_neighbour_target() -> Expression {
    load(Layer::Transport, 8, 16)
}

/// Sends the connection's packets as if they came from this address.
pub(crate) fn send_from(address: IpAddr) -> Vec<Expression> {
    let value = Expression::LoadValue { value: octets(address), to: FIRST };
    vec![value, Expression::SendFrom { version: IpVersion::of(address) }]
}

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The frame has a packet of this version.
pub(crate) fn frame_version(ip: IpVersion) -> Vec<Expression> {
    let ether_type: [u8; 2] = match ip {
        IpVersion::V4 => [0x08, 0x00],
        IpVersion::V6 => [0x86, 0xdd],
    };
    vec![load_meta(Meta::LinkProtocol), equal(&ether_type)]
}

/// Sends the frame to the MAC address that a map has for what the last condition or load has left in the first register.
pub(crate) fn redirect_frame(map: &str) -> Vec<Expression> {
    let to = Expression::StorePayload { layer: Layer::Link, offset: 0, length: 6, from: FIRST };
    vec![Expression::LoadFromMap { map: map.into(), to: FIRST }, to]
}

/// The frame is for this MAC address.
pub(crate) fn to_mac(mac: Mac) -> Vec<Expression> {
    vec![load(Layer::Link, 0, 6), equal(&mac.0)]
}

/// Loads the MAC address that the frame comes from.
pub(crate) fn load_source_mac() -> Expression {
    load(Layer::Link, 6, 6)
}

pub(crate) fn load_mark() -> Expression {
    load_meta(Meta::Mark)
}

/// The packet's destination is an address of the host.
pub(crate) fn destination_is_local() -> Vec<Expression> {
    vec![Expression::LoadRoute { route: RouteQuestion::DestinationType, to: FIRST }, equal(&ROUTE_LOCAL.to_ne_bytes())]
}

/// The interface on which the packet has arrived does not lead to its source.
pub(crate) fn source_is_elsewhere() -> Vec<Expression> {
    vec![Expression::LoadRoute { route: RouteQuestion::SourceInterface, to: FIRST }, equal(&[0; 4])]
}

fn has_bits(key: Conntrack, bits: u32) -> Vec<Expression> {
    let load = Expression::LoadConntrack { key, to: FIRST };
    vec![load, Expression::Mask { mask: bits.to_ne_bytes().to_vec() }, Expression::Unequal { value: vec![0; 4] }]
}

/// The connection is in one of these states.
pub(crate) fn state(states: u32) -> Vec<Expression> {
    has_bits(Conntrack::State, states)
}

/// The connection goes to another address than the one that the client has named.
pub(crate) fn is_redirected() -> Vec<Expression> {
    has_bits(Conntrack::Status, STATUS_DESTINATION_TRANSLATED)
}

/// The packet goes in the direction of the one that has opened the connection.
pub(crate) fn is_request() -> Vec<Expression> {
    vec![Expression::LoadConntrack { key: Conntrack::Direction, to: FIRST }, equal(&[0])]
}

/// The packet goes in the other direction.
pub(crate) fn is_reply() -> Vec<Expression> {
    vec![Expression::LoadConntrack { key: Conntrack::Direction, to: FIRST }, equal(&[1])]
}

pub(crate) fn connection_mark(mark: u32) -> Vec<Expression> {
    vec![Expression::LoadConntrack { key: Conntrack::Mark, to: FIRST }, equal(&mark.to_ne_bytes())]
}

pub(crate) fn connection_mark_has(bits: u32) -> Vec<Expression> {
    has_bits(Conntrack::Mark, bits)
}

pub(crate) fn mark_connection(mark: u32) -> Vec<Expression> {
    let value = Expression::LoadValue { value: mark.to_ne_bytes().to_vec(), to: FIRST };
    vec![value, Expression::StoreConntrack { key: Conntrack::Mark, from: FIRST }]
}
