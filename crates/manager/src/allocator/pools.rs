//! Subnets: how one is divided, and which one of a pool is free.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use rand::Rng;

use flota_api::defaults::LONGEST_PREFIX;
use flota_api::model::{AddressPool, Subnet, SubnetSpec};
use flota_raft_store::Tables;
use flota_raft_store::store::{Runs, address_of, number_of, numbers_of};

/// Adds the pools of the address families for which a user has named none: `10.0.0.0/8`, and a unique local IPv6 prefix
/// (RFC 4193) that is drawn once.
pub(super) fn add_default_pools(pools: &mut Vec<AddressPool>, rng: &mut impl Rng) {
    let has = |pools: &[AddressPool], is_ipv6| pools.iter().any(|it| it.prefix.addr().is_ipv6() == is_ipv6);
    if !has(pools, false) {
        let prefix = "10.0.0.0/8".parse().expect("it is a prefix");
        pools.push(AddressPool { prefix, subnet_length: 24, last: None });
    }
    if !has(pools, true) {
        pools.push(ula_pool(rng));
    }
}

/// Returns the pools of a new cluster from the prefixes that a user names. `subnet_length` is that of IPv4 subnets.
///
/// # Errors
/// A prefix can't be used; the text says why.
pub(crate) fn asked_pools(prefixes: &[IpNet], subnet_length: u8) -> Result<Vec<AddressPool>, String> {
    let mut pools: Vec<AddressPool> = Vec::new();
    for prefix in prefixes {
        let length = if prefix.addr().is_ipv6() { 64 } else { subnet_length };
        let longest = LONGEST_PREFIX[usize::from(prefix.addr().is_ipv6())];
        if *prefix != prefix.trunc() {
            return Err(format!("{prefix} has bits behind its prefix; the pool is {}", prefix.trunc()));
        }
        if !(prefix.prefix_len()..=longest).contains(&length) {
            return Err(format!("{prefix} can't be divided into subnets of /{length}"));
        }
        if let Some(other) = pools.iter().find(|it| it.prefix.contains(prefix) || prefix.contains(&it.prefix)) {
            return Err(format!("{prefix} overlaps with {}", other.prefix));
        }
        pools.push(AddressPool { prefix: *prefix, subnet_length: length, last: None });
    }
    Ok(pools)
}

/// Returns a pool with a new unique local IPv6 prefix of 48 bits.
fn ula_pool(rng: &mut impl Rng) -> AddressPool {
    let bits = 0xfd << 120 | u128::from(rng.random::<u64>() & 0xff_ffff_ffff) << 80;
    let prefix = Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), 48).into();
    AddressPool { prefix, subnet_length: 64, last: None }
}

/// Divides a subnet that a user asks for. The spec must be valid.
pub(crate) fn subnet_of(spec: &SubnetSpec) -> Subnet {
    divide(spec.prefix, spec.gateway, spec.range.unwrap_or(spec.prefix))
}

/// Divides a subnet: virtual IPs come from the last quarter of `range`. The gateway is the first address if none is
/// given.
fn divide(prefix: IpNet, gateway: Option<IpAddr>, range: IpNet) -> Subnet {
    let gateway = gateway.unwrap_or_else(|| address_of(number_of(prefix.network()) + 1));
    let quarters = range.subnets((range.prefix_len() + 2).min(range.max_prefix_len()));
    let virtual_range = quarters.ok().and_then(Iterator::last).unwrap_or(range);
    Subnet { prefix, gateway, virtual_range }
}

/// The subnets that a plan takes from the pools of the cluster.
pub(super) struct Pools<'a> {
    view: &'a Tables,
    pools: Vec<AddressPool>,
    taken: Runs,
    is_changed: bool,
}

impl<'a> Pools<'a> {
    pub(super) fn new(view: &'a Tables) -> Self {
        let pools = view.cluster().map(|cluster| cluster.address_pools.clone()).unwrap_or_default();
        Self { view, pools, taken: view.taken_subnets().clone(), is_changed: false }
    }

    /// Takes a subnet that meets neither that of a network nor the route of a node; `None` if there is none left.
    pub(super) fn take(&mut self, is_ipv6: bool) -> Option<Subnet> {
        let pools = self.pools.iter_mut().filter(|pool| matches!(pool.prefix, IpNet::V6(_)) == is_ipv6);
        let found = pools.filter_map(|pool| Some((next_free(pool, &self.taken, self.view)?, pool))).next();
        let (prefix, pool) = found?;
        pool.last = Some(prefix);
        let (first, last) = numbers_of(&prefix);
        self.taken.insert(first, last);
        self.is_changed = true;
        Some(divide(prefix, None, prefix))
    }

    /// The pools, if something was taken from them.
    pub(super) fn changed(self) -> Option<Vec<AddressPool>> {
        self.is_changed.then_some(self.pools)
    }
}

/// Returns the first free subnet behind the one that the pool gave last, or else from its beginning.
fn next_free(pool: &AddressPool, taken: &Runs, view: &Tables) -> Option<IpNet> {
    let (first, last) = numbers_of(&pool.prefix);
    let size = 1 << (pool.prefix.max_prefix_len() - pool.subnet_length);
    let begin = pool.last.map_or(Some(first), |given| numbers_of(&given).1.checked_add(1));
    let begin = begin.filter(|begin| (first..=last).contains(begin)).unwrap_or(first);
    let found = free_block(begin, last, size, taken, view).or_else(|| free_block(first, last, size, taken, view));
    IpNet::new(address_of(found?), pool.subnet_length).ok()
}

/// Returns the beginning of the first free block of `size` numbers, a power of two, from `first` to `last`.
fn free_block(first: u128, last: u128, size: u128, taken: &Runs, view: &Tables) -> Option<u128> {
    let mut begin = first;
    loop {
        let end = begin.checked_add(size - 1).filter(|end| *end <= last)?;
        let routed = || view.routes().map(numbers_of).filter(|(from, to)| *from <= end && *to >= begin);
        match taken.last_met(begin, end).or_else(|| routed().map(|(_, to)| to).max()) {
            None => return Some(begin),
            // The beginnings of blocks are multiples of their size.
            Some(met) => begin = (met / size + 1).checked_mul(size)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{Cluster, Node, NodeDescription};
    use flota_api::object::StoreObject;
    use rand::SeedableRng;

    fn prefix(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn view(pool: &str, subnet_length: u8, routes: &[&str]) -> Tables {
        let pool = AddressPool { prefix: prefix(pool), subnet_length, last: None };
        let description =
            NodeDescription { routes: routes.iter().map(|it| prefix(it)).collect(), ..NodeDescription::default() };
        let mut view = Tables::default();
        view.put(Cluster { address_pools: vec![pool], ..Cluster::default() }.into_object());
        view.put(Node { description, ..Node::default() }.into_object());
        view
    }

    fn taken(view: &Tables, is_ipv6: bool) -> Vec<String> {
        let mut pools = Pools::new(view);
        std::iter::from_fn(|| pools.take(is_ipv6)).map(|subnet| subnet.prefix.to_string()).collect()
    }

    #[test]
    fn a_pool_gives_each_subnet_once_and_none_that_meets_a_route_of_a_node() {
        assert_eq!(
            taken(&view("10.0.0.0/22", 24, &[]), false),
            ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24"]
        );
        assert_eq!(taken(&view("10.0.0.0/22", 24, &["10.0.1.7/32", "10.0.2.0/23"]), false), ["10.0.0.0/24"]);
        assert!(taken(&view("10.0.0.0/22", 24, &["10.0.0.0/8"]), false).is_empty());
        assert!(taken(&view("10.0.0.0/22", 24, &[]), true).is_empty(), "it has no IPv6 addresses");
        assert_eq!(taken(&view("fd00::/63", 64, &[]), true), ["fd00::/64", "fd00:0:0:1::/64"]);
    }

    #[test]
    fn a_subnet_that_was_given_back_is_given_again_only_after_the_others() {
        let mut view = view("10.0.0.0/23", 24, &[]);
        let mut pool = view.cluster().expect("it is there").address_pools[0].clone();
        pool.last = Some(prefix("10.0.0.0/24"));
        view.put(Cluster { address_pools: vec![pool], ..Cluster::default() }.into_object());
        assert_eq!(taken(&view, false), ["10.0.1.0/24", "10.0.0.0/24"]);
    }

    #[test]
    fn virtual_ips_come_from_the_last_quarter_of_what_may_be_given() {
        let divided = |subnet: &str, range: Option<&str>| {
            let range = range.map(prefix);
            let spec = SubnetSpec { prefix: prefix(subnet), gateway: None, range, auxiliary: Default::default() };
            let subnet = subnet_of(&spec);
            (subnet.gateway.to_string(), subnet.virtual_range.to_string())
        };
        let pair = |gateway: &str, range: &str| (gateway.to_owned(), range.to_owned());
        assert_eq!(divided("10.0.1.0/24", None), pair("10.0.1.1", "10.0.1.192/26"));
        assert_eq!(divided("10.0.0.0/16", Some("10.0.4.0/24")), pair("10.0.0.1", "10.0.4.192/26"));
        assert_eq!(divided("10.0.0.8/29", None), pair("10.0.0.9", "10.0.0.14/31"));
        assert_eq!(
            divided("fd00::/64", None),
            pair("fd00::1", "fd00:0:0:0:c000::/66".parse::<IpNet>().expect("a prefix").to_string().as_str())
        );
    }

    #[test]
    fn a_pool_that_cannot_be_divided_is_refused_and_a_family_without_one_gets_the_default() {
        let asked =
            |prefixes: &[&str], length| asked_pools(&prefixes.iter().map(|it| prefix(it)).collect::<Vec<_>>(), length);
        let mut pools = asked(&["10.20.0.0/16"], 26).expect("a good pool");
        assert_eq!(pools[0].subnet_length, 26);
        add_default_pools(&mut pools, &mut rand::rngs::StdRng::seed_from_u64(1));
        assert_eq!((pools.len(), pools[1].prefix.addr().is_ipv6()), (2, true));
        for (prefixes, length, expected) in [
            (&["10.20.0.1/16"][..], 24, "10.20.0.1/16 has bits behind its prefix; the pool is 10.20.0.0/16"),
            (&["10.20.0.0/25"], 24, "10.20.0.0/25 can't be divided into subnets of /24"),
            (&["10.20.0.0/16"], 30, "10.20.0.0/16 can't be divided into subnets of /30"),
            (&["10.0.0.0/8", "10.20.0.0/16"], 24, "10.20.0.0/16 overlaps with 10.0.0.0/8"),
        ] {
            assert_eq!(asked(prefixes, length), Err(expected.to_owned()));
        }
    }

    #[test]
    fn the_ipv6_prefix_of_a_cluster_is_local_and_drawn() {
        let drawn = |seed| ula_pool(&mut rand::rngs::StdRng::seed_from_u64(seed)).prefix;
        assert!(prefix("fd00::/8").contains(&drawn(1)));
        assert_ne!(drawn(1), drawn(2));
        assert_eq!(drawn(1).trunc(), drawn(1));
    }
}
