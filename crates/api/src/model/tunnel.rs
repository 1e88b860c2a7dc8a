//! The keys by which nodes encrypt the packets of networks.

use serde::{Serialize, Serializer};

/// A public key of WireGuard. The node that has made it keeps the secret one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelKey {
    /// The key.
    #[serde(serialize_with = "hexadecimal")]
    pub public: [u8; 32],
    /// The UDP port on which the node receives packets for it.
    pub port: u16,
}

fn hexadecimal<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}
