//! Who may enter: the cluster's own CA, certificates of nodes, join tokens, and connections that carry them.
//!
//! ```text
//!  join token (CA digest + secret) ─▶ first contact, trusting only that digest ─▶ CSR ─▶ certificate
//!  certificate: common name = node id, unit = role, organisation = cluster id
//!  every connection after it: mutual TLS; a manager's certificate alone is good for `manager.flota`
//! ```
//!
//! A server admits callers without a certificate only so far that they can ask for one; [`may_call`] is the one
//! table of who may call what.

mod certificate;
mod connect;
mod data_key;
mod files;
mod grant;
mod join_token;
mod listener;
mod peer;
mod root_ca;

pub use certificate::{CertificateError, Identity, KeyPair};
pub use connect::{Connect, Connecting, Dialer, Stream};
pub use data_key::sealer;
pub use files::{FileError, load, remove, save};
pub use grant::{GrantKey, verify_grant};
pub use join_token::{JoinToken, JoinTokenError, new_secret};
pub use listener::{Incoming, PeerStream, incoming};
pub use peer::{Peer, may_call};
pub use root_ca::RootCa;

/// SHA-256 in hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
