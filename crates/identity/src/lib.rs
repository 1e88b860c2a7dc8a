//! Identity of nodes: the cluster's root CA, certificates, join tokens, and connections that use them.
//!
//! ```text
//!  join token (CA digest + secret) ─▶ first connection, trusts that CA only ─▶ signing request ─▶ certificate
//!  certificate: common name = node id, unit = role, organisation = cluster id
//!  every later connection: mutual TLS; only a manager's certificate is valid for `manager.flota`
//! ```
//!
//! A user has a certificate of its own ([`UserIdentity`]), which makes nobody a node.
//!
//! A caller without a certificate can do nothing but request one. A node renews its own before it expires
//! ([`renewal_request`]), and everything that connects or listens uses the new one from then on ([`Credentials`]).
//! [`may_call`] is the one table that says which caller may call which method. [`forward`] carries a user's TCP
//! connection over a stream of such a connection.

mod ca_certificate;
mod certificate;
mod connect;
mod credentials;
mod files;
pub mod forward;
mod given_ca;
mod grant;
mod join_token;
mod key_bytes;
mod key_file;
mod listener;
mod peer;
mod refusal;
mod renewal;
mod rights;
mod root_ca;
mod sources;
mod unlock_key;
mod user;
mod vault;

pub use ca_certificate::CaCertificate;
pub use certificate::{CertificateError, Identity, KeyPair, Validity, known_certificate, trust_digest};
pub use connect::{CONNECTION_WINDOW, Connect, Connecting, Dialer, STREAM_WINDOW, Stream};
pub use credentials::{Credentials, Settings};
pub use files::{FileError, is_present, load, remove, save};
pub use given_ca::GivenCaError;
pub use grant::{GrantKey, verify_grant};
pub use join_token::{JoinToken, JoinTokenError, new_secret};
pub use key_file::KeyFile;
pub use listener::{Incoming, PeerStream, incoming};
pub use peer::{CertifiedRole, Peer};
pub use refusal::{is_of_another_cluster, refusal};
pub use renewal::{Renewal, RenewalError, check_renewal, extension_request, renewal_request};
pub use rights::{UserRights, may_call, user_rights};
pub use root_ca::RootCa;
pub use sources::Sources;
pub use unlock_key::{MalformedUnlockKey, UnlockKey};
pub use user::{USER_LIFE, UserIdentity};
pub use vault::{KeyVault, UnlockError};

/// Returns the SHA-256 of `bytes` in lower-case hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
