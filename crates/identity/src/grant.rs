//! Grants: permission for a node to fetch an image, signed by the leader (Ed25519), so that a node that has the image can
//! verify it without asking a manager.

use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

use flota_api::defaults::CLOCK_SKEW;
use flota_api::proto::dispatcher::Grant;
use flota_api::version::Timestamp;

/// The cluster's key that signs grants.
pub struct GrantKey(Ed25519KeyPair);

impl GrantKey {
    /// Generates a key, and returns it as PKCS#8 in DER.
    ///
    /// # Panics
    /// If the kernel provides no random bytes, which it always does after boot.
    pub fn generate() -> Vec<u8> {
        let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
        made.expect("the kernel provides random bytes after boot").as_ref().to_vec()
    }

    /// Reads a key from PKCS#8 in DER. Returns `None` if `der` is no such key.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        Ed25519KeyPair::from_pkcs8(der).ok().map(Self)
    }

    /// Returns the public key that workers verify grants with.
    pub fn public_key(&self) -> Vec<u8> {
        self.0.public_key().as_ref().to_vec()
    }

    /// Makes a grant that lets `node` fetch the image with this digest until `expires`.
    pub fn sign(&self, digest: &str, node: &str, expires: Timestamp) -> Grant {
        let signature = self.0.sign(&message(digest, node, expires.0));
        Grant {
            digest: digest.to_owned(),
            node_id: node.to_owned(),
            expires_at: expires.0,
            signature: signature.as_ref().to_vec().into(),
        }
    }
}

/// Whether `grant` was signed for `node` with the key of `public_key` and has not expired at `now`. The clocks of the
/// leader and of this node may differ by up to [`CLOCK_SKEW`] in either direction.
pub fn verify_grant(grant: &Grant, public_key: &[u8], node: &str, now: Timestamp) -> bool {
    let message = message(&grant.digest, &grant.node_id, grant.expires_at);
    grant.node_id == node
        && now <= Timestamp(grant.expires_at) + CLOCK_SKEW
        && UnparsedPublicKey::new(&ED25519, public_key).verify(&message, &grant.signature).is_ok()
}

fn message(digest: &str, node: &str, expires: u64) -> Vec<u8> {
    // No part can contain a line feed, so different grants have different messages.
    format!("flota image grant\n{digest}\n{node}\n{expires}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_valid_only_for_its_image_node_and_time() {
        let key = GrantKey::from_der(&GrantKey::generate()).expect("just made");
        let grant = key.sign("sha256:a", "n", Timestamp(10));
        let public = key.public_key();
        assert!(verify_grant(&grant, &public, "n", Timestamp(10)));
        assert!(verify_grant(&grant, &public, "n", Timestamp(0)), "the leader's clock is ahead");
        assert!(verify_grant(&grant, &public, "n", Timestamp(10) + CLOCK_SKEW), "the leader's clock is behind");
        assert!(!verify_grant(&grant, &public, "n", Timestamp(11) + CLOCK_SKEW));
        assert!(!verify_grant(&grant, &public, "m", Timestamp(1)));
        let forged = Grant { digest: "sha256:b".into(), ..grant.clone() };
        assert!(!verify_grant(&forged, &public, "n", Timestamp(1)));
        let other = GrantKey::from_der(&GrantKey::generate()).expect("just made").public_key();
        assert!(!verify_grant(&grant, &other, "n", Timestamp(1)));
    }
}
