//! The contents of tables: chains of rules, and sets and maps of elements. These are values: `table.rs` compares them with
//! the kernel and sends what is different.

use std::collections::BTreeMap;

use super::attributes::Attributes;
use super::expression::{Expression, IpVersion, ListReference, Verdict};

/// The family of a table, in the order in which they are written.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// Frames of one interface.
    Netdev = 5,
}

/// The tables of one name in a namespace.
pub(crate) type Ruleset = BTreeMap<Family, Table>;

/// A table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Table {
    pub(crate) chains: BTreeMap<String, Chain>,
    pub(crate) sets: BTreeMap<String, Set>,
}

/// A chain of rules, which packets enter at a hook or by a verdict.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Chain {
    pub(crate) hook: Option<ChainHook>,
    pub(crate) rules: Vec<Rule>,
}

/// The place where packets enter a base chain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ChainHook {
    pub(crate) kind: HookKind,
    pub(crate) point: Point,
    /// Chains at one point see a packet in ascending order.
    pub(crate) priority: i32,
}

/// The kind of a base chain, which decides what its rules may do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum HookKind {
    Filter,
    /// Sees only the first packet of each connection.
    Nat,
}

/// A point on the way of a packet through the kernel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Point {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    /// Frames arrive on an interface.
    Ingress(String),
    /// Frames leave by an interface.
    Egress(String),
}

/// A rule.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Rule {
    pub(crate) expressions: Vec<Expression>,
    /// The values, of this kind, from which `Expression::LoadFromList` takes one.
    pub(crate) list: Option<(Kind, Vec<Vec<u8>>)>,
}

impl Rule {
    pub(crate) fn new(expressions: impl IntoIterator<Item = Expression>) -> Self {
        Self { expressions: expressions.into_iter().collect(), list: None }
    }

    pub(crate) fn encode(&self, list: ListReference) -> Attributes {
        self.expressions.iter().fold(Attributes::new(), |all, expression| all.and(&expression.encode(list)))
    }
}

/// A set, or with `data` a map.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Set {
    pub(crate) key: Kind,
    pub(crate) data: Option<Kind>,
    pub(crate) elements: BTreeMap<Vec<u8>, Data>,
}

impl Set {
    pub(crate) fn new(key: Kind) -> Self {
        Self { key, data: None, elements: BTreeMap::new() }
    }

    pub(crate) fn map(key: Kind, data: Kind) -> Self {
        Self { key, data: Some(data), elements: BTreeMap::new() }
    }
}

/// The value of an element.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Data {
    /// Nothing: it is in a set.
    Absent,
    Value(Vec<u8>),
    Verdict(Verdict),
}

/// The type of a key or a value. The kernel looks only at the length; the `nft` program reads the code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Kind {
    pub(crate) code: u32,
    pub(crate) length: u32,
}

impl Kind {
    pub(crate) const NUMBER: Self = Self { code: 4, length: 4 };
    pub(crate) const MAC: Self = Self { code: 9, length: 6 };
    pub(crate) const PORT: Self = Self { code: 13, length: 2 };
    pub(crate) const MARK: Self = Self { code: 19, length: 4 };
    pub(crate) const VERDICT: Self = Self { code: 0xffff_ff00, length: 16 };
    /// A protocol and a port, each in a word of its own.
    pub(crate) const PROTOCOL_AND_PORT: Self = Self { code: (12 << 6) | 13, length: 8 };

    pub(crate) fn address(version: IpVersion) -> Self {
        match version {
            IpVersion::V4 => Self { code: 7, length: 4 },
            IpVersion::V6 => Self { code: 8, length: 16 },
        }
    }

    /// An address and a MAC address, which has two words of its own.
    pub(crate) fn address_and_mac(version: IpVersion) -> Self {
        let address = Self::address(version);
        Self { code: (address.code << 6) | Self::MAC.code, length: address.length + 8 }
    }

    /// An address and a port, which has a word of its own.
    pub(crate) fn address_and_port(version: IpVersion) -> Self {
        let address = Self::address(version);
        Self { code: (address.code << 6) | Self::PORT.code, length: address.length + 4 }
    }
}

/// A change of a ruleset.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Change {
    /// Puts a chain in the place of the one of this name, or removes it.
    Chain { family: Family, name: String, chain: Option<Chain> },
    /// Puts an element in the place of the one with this key, or removes it.
    Element { family: Family, set: String, key: Vec<u8>, data: Option<Data> },
}

impl Change {
    /// Makes the change. Does nothing if its table or its set does not exist.
    pub(crate) fn apply(self, ruleset: &mut Ruleset) {
        match self {
            Self::Chain { family, name, chain } => {
                let Some(table) = ruleset.get_mut(&family) else { return };
                match chain {
                    Some(chain) => table.chains.insert(name, chain),
                    None => table.chains.remove(&name),
                };
            }
            Self::Element { family, set, key, data } => {
                let set = ruleset.get_mut(&family).and_then(|table| table.sets.get_mut(&set));
                let Some(set) = set else { return };
                match data {
                    Some(data) => set.elements.insert(key, data),
                    None => set.elements.remove(&key),
                };
            }
        }
    }
}
