//! The address at which other nodes reach this one, and what becomes of it when the machine gets another.
//!
//! A node has the address with which it came, its home, for as long as the machine has it. Without it, the node takes the one
//! from which the machine reaches a manager, and it returns to its home when the machine has that again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Context, anyhow, bail};

use crate::state_dir::StateDir;

/// The file with the present address.
const ADDRESS: &str = "address";
/// The file with the address with which the node came. A node of an older build has none.
const HOME: &str = "address-home";
/// The file that exists if a user has given an address that this machine does not have, such as that of a router in front.
const IS_GIVEN: &str = "address-is-given";
/// Addresses that every machine reaches by its default route (RFC 5737, RFC 3849). Nothing is sent to them.
const ELSEWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
/// How the names of interfaces begin that are of this machine alone: Flota's own, and those of other container engines.
const INTERNAL: [&str; 7] = ["flota", "docker", "virbr", "cni", "podman", "lxcbr", "veth"];

/// Returns the address of a node that is new: the given one, else the one it listens at, else the machine's only address.
///
/// # Errors
/// The given address is none, or the machine has no address that others reach, or several.
pub(crate) fn own_address(advertise: &str, listen: SocketAddr) -> anyhow::Result<String> {
    if !advertise.is_empty() {
        let port = listen.port();
        let parsed = advertise
            .parse::<SocketAddr>()
            .or_else(|_| advertise.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port)));
        return parsed.map(|it| it.to_string()).map_err(|_| anyhow!("`{advertise}` is not IP or IP:PORT"));
    }
    if !listen.ip().is_unspecified() {
        return Ok(listen.to_string());
    }
    let all = addresses().context("failed to list this machine's addresses")?;
    let (v4, v6): (Vec<_>, Vec<_>) = all.into_iter().filter(|it| hears(listen, *it)).partition(IpAddr::is_ipv4);
    match if v4.is_empty() { v6 } else { v4 }.as_slice() {
        [] if listen.is_ipv4() => {
            bail!(
                "this machine has no IPv4 address for other nodes; with IPv6 alone, set `listen = \"[::]:{}\"`",
                listen.port()
            )
        }
        [] => bail!("this machine has only loopback addresses; name the one for other nodes with --advertise-addr"),
        [one] => Ok(SocketAddr::new(*one, listen.port()).to_string()),
        many => {
            let list: Vec<String> = many.iter().map(ToString::to_string).collect();
            bail!(
                "this machine has several addresses ({}); name the one for other nodes with --advertise-addr",
                list.join(", ")
            )
        }
    }
}

/// Records the address with which the node comes.
///
/// # Errors
/// The data folder can't be written.
pub(crate) fn record(state: &StateDir, address: &str) -> anyhow::Result<()> {
    if !is_here(address, &addresses().unwrap_or_default()) {
        state.write(IS_GIVEN, "yes")?;
    }
    state.write(HOME, address)?;
    state.write(ADDRESS, address)
}

/// Returns the address of a node after a restart, which is the former one if no other can be told.
///
/// # Errors
/// The former address is not recorded.
pub(crate) fn address_again(state: &StateDir, listen: SocketAddr) -> anyhow::Result<String> {
    let Some(before) = state.read(ADDRESS) else {
        bail!("failed to read the node's address: the file `{ADDRESS}` in the data folder is missing")
    };
    let only = || match addresses().unwrap_or_default().as_slice() {
        [one] if hears(listen, *one) => Some(SocketAddr::new(*one, listen.port()).to_string()),
        _ => None,
    };
    Ok(present_address(state, listen).or_else(only).unwrap_or_else(|| {
        tracing::warn!(address = before, "this machine does not have the node's address, and no other can be told");
        before
    }))
}

/// Returns the address at which others reach this node now; `None` if none can be told.
pub(crate) fn present_address(state: &StateDir, listen: SocketAddr) -> Option<String> {
    let before = state.read(ADDRESS)?;
    let here = addresses().unwrap_or_default();
    if state.read(IS_GIVEN).is_some() {
        return Some(before);
    }
    let home = state.read(HOME).filter(|home| is_here(home, &here));
    if home.is_some() || is_here(&before, &here) {
        return home.or(Some(before));
    }
    // Nodes are identified by certificate, so the address may change. Each session announces it.
    followed(&before, &here, listen, &state.known_managers(), source_towards)
}

/// Returns the address that takes the place of one that the machine has lost; `None` if none can be told. `source` returns the
/// address from which this machine sends to a target.
fn followed(
    before: &str,
    here: &[IpAddr],
    listen: SocketAddr,
    managers: &[String],
    source: impl Fn(SocketAddr) -> Option<IpAddr>,
) -> Option<String> {
    if !listen.ip().is_unspecified() {
        return Some(listen.to_string());
    }
    let port = before.parse::<SocketAddr>().map_or(listen.port(), |it| it.port());
    let others = managers.iter().filter(|it| *it != before).filter_map(|it| it.parse().ok());
    let mut targets = others.chain(ELSEWHERE.map(|it| SocketAddr::new(it, port)));
    let from = targets.find_map(|target| source(target).filter(|it| here.contains(it) && hears(listen, *it)));
    Some(SocketAddr::new(from?, port).to_string())
}

/// Whether a daemon that listens there hears those who connect to the address. At `[::]` it hears both versions.
fn hears(listen: SocketAddr, address: IpAddr) -> bool {
    listen.is_ipv6() || address.is_ipv4()
}

/// Returns the address from which this machine sends to the target. The kernel chooses it when a socket is connected, and
/// nothing is sent (udp(7)).
fn source_towards(target: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(target).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Whether the machine has the address. With an empty list, it is taken for one that has no other.
fn is_here(address: &str, here: &[IpAddr]) -> bool {
    let has = |it: SocketAddr| it.ip().is_loopback() || here.contains(&it.ip()) || here.is_empty();
    address.parse::<SocketAddr>().is_ok_and(has)
}

/// Whether an interface of this name is of this machine alone. A network of Docker is a bridge with twelve digits of its id;
/// one with another name, such as `br-lan`, may lead to other machines.
fn is_internal(name: &str) -> bool {
    let is_of_docker = |id: &str| id.len() == 12 && id.bytes().all(|it| it.is_ascii_hexdigit());
    INTERNAL.iter().any(|it| name.starts_with(it)) || name.strip_prefix("br-").is_some_and(is_of_docker)
}

/// Returns this machine's addresses at which others may reach it: not those of loopback, of single links, and of interfaces
/// of this machine alone.
fn addresses() -> Result<Vec<IpAddr>, nix::Error> {
    let all = nix::ifaddrs::getifaddrs()?.filter(|it| !is_internal(&it.interface_name)).filter_map(|it| {
        let address = it.address?;
        let v4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip())))
    });
    let is_of_link = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    Ok(all.filter(|ip| !ip.is_loopback() && !is_of_link(ip)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_node_follows_its_machine_to_the_address_from_which_it_reaches_a_manager() {
        let anywhere: SocketAddr = "0.0.0.0:2377".parse().expect("an address");
        let (here, managers) = ([ip("198.18.0.7"), ip("198.18.9.7")], ["198.18.0.1:2377", "198.18.9.1:2377"]);
        let managers = managers.map(str::to_owned);
        let next = |source: &dyn Fn(SocketAddr) -> Option<IpAddr>, here: &[IpAddr]| {
            followed("198.18.0.1:2377", here, anywhere, &managers, source)
        };
        let by_route = |target: SocketAddr| (target.ip() == ip("198.18.9.1")).then(|| ip("198.18.9.7"));
        assert_eq!(next(&by_route, &here).as_deref(), Some("198.18.9.7:2377"), "its own former address is no target");
        let by_default = |target: SocketAddr| (target.ip() == ELSEWHERE[0]).then(|| ip("198.18.0.7"));
        assert_eq!(next(&by_default, &here).as_deref(), Some("198.18.0.7:2377"));
        let loops = |_: SocketAddr| Some(ip("127.0.0.1"));
        assert_eq!(next(&loops, &here), None, "others do not reach it there");
        assert_eq!(next(&|_| None, &here[..1]), None, "it may be of this machine alone");
        let v6 = [ip("2001:db8::7")];
        let by_v6 = |target: SocketAddr| target.is_ipv6().then(|| ip("2001:db8::7"));
        assert_eq!(next(&by_v6, &v6), None, "nobody listens there");
        let both = "[::]:2377".parse().expect("an address");
        let there = followed("198.18.0.1:2377", &v6, both, &managers, by_v6);
        assert_eq!(there.as_deref(), Some("[2001:db8::7]:2377"));
        let listens = "198.18.0.9:99".parse().expect("an address");
        let fixed = followed("198.18.0.1:2377", &here, listens, &managers, by_route);
        assert_eq!(fixed.as_deref(), Some("198.18.0.9:99"));
    }

    #[test]
    fn an_address_from_elsewhere_is_kept_and_one_of_the_machine_is_not_when_it_is_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = StateDir::open(folder.path()).expect("it is empty");
        let listen = "0.0.0.0:2377".parse().expect("an address");
        record(&state, "127.0.0.1:2377").expect("it is written");
        assert_eq!(address_again(&state, listen).expect("it is recorded"), "127.0.0.1:2377");
        // If this machine has no address at all, every address counts as its own.
        if !addresses().expect("they are listed").is_empty() {
            record(&state, "203.0.113.9:2377").expect("it is written");
            assert_eq!(address_again(&state, listen).expect("it is recorded"), "203.0.113.9:2377", "of a router");
        }
        state.forget_cluster().expect("it is removed");
        assert!(address_again(&state, listen).is_err());
        assert!(state.read(IS_GIVEN).is_none() && state.read(HOME).is_none());
    }

    #[test]
    fn a_node_returns_to_the_address_with_which_it_came() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = StateDir::open(folder.path()).expect("it is empty");
        record(&state, "127.0.0.1:2377").expect("it is written");
        state.write(ADDRESS, "127.0.0.2:2377").expect("it is written");
        let listen = "0.0.0.0:2377".parse().expect("an address");
        assert_eq!(present_address(&state, listen).as_deref(), Some("127.0.0.1:2377"));
    }

    #[test]
    fn only_interfaces_of_container_engines_are_of_the_machine_alone() {
        let names = ["flota-up", "docker0", "br-0a1b2c3d4e5f", "virbr0", "cni0", "veth12", "lxcbr0"];
        assert!(names.iter().all(|it| is_internal(it)));
        let names = ["eth0", "enp3s0", "br0", "br-lan", "br-0a1b2c3d4e5g", "bond0", "wlan0"];
        assert!(!names.iter().any(|it| is_internal(it)));
    }

    #[test]
    fn an_address_is_here_whatever_its_version() {
        let here = [ip("198.18.0.7"), ip("fd00::7")];
        assert!(is_here("198.18.0.7:1", &here) && is_here("[fd00::7]:1", &here) && is_here("127.0.0.1:1", &here));
        assert!(!is_here("198.18.0.8:1", &here) && !is_here("no address", &here));
    }
}
