//! Packet filter rules by netlink: an encoder for the messages and expressions that this crate needs, and tables that are
//! kept as they should be.
//!
//! - `ruleset.rs` describes tables as values, `expression.rs` what rules consist of, `conditions.rs` what they read like.
//! - `messages.rs` turns a difference into a transaction, `socket.rs` sends it, `attributes.rs` encodes both.
//! - `table.rs` keeps the tables of a namespace, and mends them when someone else has changed them.
//! - `connections.rs` ends tracked connections.
//!
//! A transaction takes effect as a whole or not at all: no packet meets a half-changed ruleset. The tables of others are
//! never read or changed. The crate `netlink-packet-netfilter` has no expression for address translation, connections,
//! routes or random numbers, and would save only the loops of the encoder.

pub(crate) mod attributes;
pub(crate) mod conditions;
pub(crate) mod connections;
pub(crate) mod expression;
mod messages;
pub(crate) mod ruleset;
mod socket;
pub(crate) mod table;
