//! The expressions that rules consist of, and how the kernel wants them (linux/netfilter/nf_tables.h). A packet passes
//! them in order; one that does not match ends the rule.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::attributes::{self, Attributes};

const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const GOTO: i32 = -4;
const FIRST_REGISTER: u32 = 8;
const COUNTER: &str = "counter";
const COUNTER_PACKETS: u16 = 2;

/// A register: a word of 32 bits. Longer values take several in a row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Register(pub(crate) u32);

impl Register {
    /// The first word, where a value is loaded that the next expression looks at.
    pub(crate) const FIRST: Self = Self(0);

    fn number(self) -> u32 {
        FIRST_REGISTER + self.0
    }
}

/// The decision about a packet, at the end of a rule or as the value that a map has for it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Verdict {
    Accept,
    Drop,
    /// Continue in this chain, and with the calling base chain's policy at its end.
    Goto(String),
}

/// The layer of a packet that a payload belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Layer {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// A property of a packet outside of its bytes (`NFT_META_…`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Meta {
    /// The number of the protocol in the link layer, in network byte order.
    LinkProtocol = 1,
    Mark = 3,
    InputName = 6,
    OutputName = 7,
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    Family = 15,
    TransportProtocol = 16,
}

/// A property of the connection that a packet belongs to (`NFT_CT_…`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Conntrack {
    /// Bits of `STATE_…`.
    State = 0,
    /// One byte: 0 in the direction of the packet that opened the connection, 1 in the other.
    Direction = 1,
    /// Bits of `STATUS_…`.
    Status = 2,
    Mark = 3,
}

pub(crate) const STATE_ESTABLISHED: u32 = 1 << 1;
pub(crate) const STATE_RELATED: u32 = 1 << 2;
pub(crate) const STATUS_DESTINATION_TRANSLATED: u32 = 1 << 5;

/// A question to the routing tables about an address of the packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum RouteQuestion {
    /// The type of the destination address, as `RTN_…`.
    DestinationType,
    /// The index of the interface that leads to the source address if it is the one on which the packet has arrived, else
    /// zero.
    SourceInterface,
}

pub(crate) const ROUTE_LOCAL: u32 = 2;

/// An expression.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Expression {
    LoadPayload {
        layer: Layer,
        offset: u32,
        length: u32,
        to: Register,
    },
    StorePayload {
        layer: Layer,
        offset: u32,
        length: u32,
        from: Register,
    },
    LoadMeta {
        key: Meta,
        to: Register,
    },
    StoreMeta {
        key: Meta,
        from: Register,
    },
    LoadConntrack {
        key: Conntrack,
        to: Register,
    },
    StoreConntrack {
        key: Conntrack,
        from: Register,
    },
    LoadRoute {
        route: RouteQuestion,
        to: Register,
    },
    LoadValue {
        value: Vec<u8>,
        to: Register,
    },
    /// A random number below `below`.
    LoadRandom {
        below: u32,
        to: Register,
    },
    /// Keeps the bits of `mask` in the first register.
    Mask {
        mask: Vec<u8>,
    },
    /// Matches if the first register begins with `value`.
    Equal {
        value: Vec<u8>,
    },
    Unequal {
        value: Vec<u8>,
    },
    /// Matches if a set of the table contains the first register.
    InSet {
        set: String,
    },
    NotInSet {
        set: String,
    },
    /// Matches if a map of the table contains the first register, and loads its value.
    LoadFromMap {
        map: String,
        to: Register,
    },
    /// Applies the verdict that a map of the table has for the first register, if it has one.
    VerdictFromMap {
        map: String,
    },
    /// Loads an element of the rule's own list, by its number in the first register.
    LoadFromList {
        to: Register,
    },
    /// Sends the connection to the address in the first registers and to the port in the one that follows.
    SendTo {
        version: IpVersion,
    },
    /// Sends the connection to the address in the first registers, and to the port that the client has named.
    SendToHost {
        version: IpVersion,
    },
    /// Makes the connection's packets come from the address in the first registers.
    SendFrom {
        version: IpVersion,
    },
    Masquerade,
    /// Counts the packets that come here.
    Count,
    ResetTcp,
    Verdict(Verdict),
}

/// A version of IP.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum IpVersion {
    V4,
    V6,
}

impl IpVersion {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Returns the prefix that contains every address.
    pub(crate) fn everything(self) -> IpNet {
        match self {
            Self::V4 => Ipv4Net::default().into(),
            Self::V6 => Ipv6Net::default().into(),
        }
    }

    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    pub(crate) fn family(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    /// The words of an address.
    pub(crate) fn words(self) -> u32 {
        match self {
            Self::V4 => 1,
            Self::V6 => 4,
        }
    }
}

/// Returns how many packets a rule has counted, from its expressions as the kernel lists them.
pub(crate) fn counted(expressions: &[u8]) -> Option<u64> {
    attributes::read(expressions).find_map(|(_, expression)| {
        let name = attributes::find(expression, EXPRESSION_NAME).map(attributes::text)?;
        let data = attributes::find(expression, EXPRESSION_DATA).filter(|_| name == COUNTER)?;
        Some(u64::from_be_bytes(attributes::find(data, COUNTER_PACKETS)?.try_into().ok()?))
    })
}

/// The rule's own list, as an expression refers to it: the name that it gets, and its number in the transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListReference {
    pub(crate) name: &'static str,
    pub(crate) number: u32,
}

impl Expression {
    /// Returns the expression as an element of a list of expressions.
    pub(crate) fn encode(&self, list: ListReference) -> Attributes {
        let (name, data) = self.name_and_data(list);
        let expression = Attributes::new().text(EXPRESSION_NAME, name).nested(EXPRESSION_DATA, &data);
        Attributes::new().nested(LIST_ELEMENT, &expression)
    }

    fn name_and_data(&self, list: ListReference) -> (&'static str, Attributes) {
        let data = Attributes::new();
        let first = Register::FIRST.number();
        match self {
            Self::LoadPayload { layer, offset, length, to } => {
                ("payload", data.number(1, to.number()).number(2, *layer as u32).number(3, *offset).number(4, *length))
            }
            Self::StorePayload { layer, offset, length, from } => {
                let data = data.number(5, from.number()).number(2, *layer as u32).number(3, *offset).number(4, *length);
                ("payload", data)
            }
            Self::LoadMeta { key, to } => ("meta", data.number(2, *key as u32).number(1, to.number())),
            Self::StoreMeta { key, from } => ("meta", data.number(2, *key as u32).number(3, from.number())),
            Self::LoadConntrack { key, to } => ("ct", data.number(2, *key as u32).number(1, to.number())),
            Self::StoreConntrack { key, from } => ("ct", data.number(2, *key as u32).number(4, from.number())),
            Self::LoadRoute { route, to } => {
                let (result, flags) = route.result_and_flags();
                ("fib", data.number(1, to.number()).number(2, result).number(3, flags))
            }
            Self::LoadValue { value, to } => {
                ("immediate", data.number(1, to.number()).nested(2, &Attributes::new().bytes(DATA_VALUE, value)))
            }
            Self::LoadRandom { below, to } => {
                ("numgen", data.number(1, to.number()).number(2, *below).number(3, 1).number(4, 0))
            }
            Self::Mask { mask } => {
                let zero = Attributes::new().bytes(DATA_VALUE, &vec![0; mask.len()]);
                let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
                let data = data.number(1, first).number(2, first).number(3, length);
                ("bitwise", data.nested(4, &Attributes::new().bytes(DATA_VALUE, mask)).nested(5, &zero))
            }
            Self::Equal { value } => ("cmp", compare(0, value)),
            Self::Unequal { value } => ("cmp", compare(1, value)),
            Self::InSet { set } => ("lookup", data.text(1, set).number(2, first)),
            Self::NotInSet { set } => ("lookup", data.text(1, set).number(2, first).number(5, 1)),
            Self::LoadFromMap { map, to } => ("lookup", data.text(1, map).number(2, first).number(3, to.number())),
            Self::VerdictFromMap { map } => ("lookup", data.text(1, map).number(2, first).number(3, 0)),
            Self::LoadFromList { to } => {
                let data = data.text(1, list.name).number(4, list.number);
                ("lookup", data.number(2, first).number(3, to.number()))
            }
            Self::SendTo { version } => {
                let data = data.number(1, 1).number(2, version.family().into());
                ("nat", data.number(3, first).number(5, Register(version.words()).number()))
            }
            Self::SendToHost { version } => {
                ("nat", data.number(1, 1).number(2, version.family().into()).number(3, first))
            }
            Self::SendFrom { version } => {
                ("nat", data.number(1, 0).number(2, version.family().into()).number(3, first))
            }
            Self::Masquerade => ("masq", data),
            Self::Count => (COUNTER, data),
            Self::ResetTcp => ("reject", data.number(1, 1)),
            Self::Verdict(verdict) => ("immediate", data.number(1, 0).nested(2, &verdict.encode())),
        }
    }
}

fn compare(operator: u32, value: &[u8]) -> Attributes {
    let data = Attributes::new().number(1, Register::FIRST.number()).number(2, operator);
    data.nested(3, &Attributes::new().bytes(DATA_VALUE, value))
}

impl Verdict {
    /// Returns the verdict as the kernel wants data.
    pub(crate) fn encode(&self) -> Attributes {
        let verdict = match self {
            Self::Drop => Attributes::new().number(VERDICT_CODE, 0),
            Self::Accept => Attributes::new().number(VERDICT_CODE, 1),
            Self::Goto(chain) => {
                Attributes::new().number(VERDICT_CODE, GOTO.cast_unsigned()).text(VERDICT_CHAIN, chain)
            }
        };
        Attributes::new().nested(DATA_VERDICT, &verdict)
    }
}

impl RouteQuestion {
    /// `NFT_FIB_RESULT_…` and `NFTA_FIB_F_…`.
    fn result_and_flags(self) -> (u32, u32) {
        const SOURCE: u32 = 1;
        const DESTINATION: u32 = 1 << 1;
        const INPUT_INTERFACE: u32 = 1 << 3;
        match self {
            Self::DestinationType => (3, DESTINATION),
            Self::SourceInterface => (1, SOURCE | INPUT_INTERFACE),
        }
    }
}
