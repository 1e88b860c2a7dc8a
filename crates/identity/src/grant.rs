//! Grants: the leader's word that a node may fetch an image until a time. Signed (Ed25519), so that a node that
//! holds the image can judge it alone.

use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

use flota_api::defaults::CLOCK_SKEW;
use flota_api::proto::dispatcher::Grant;
use flota_api::version::Timestamp;

/// Signs grants.
pub struct GrantKey(Ed25519KeyPair);

impl GrantKey {
    /// A new key, PKCS#8, DER.
    ///
    /// # Panics
    /// Never: the kernel has random bytes once it has booted.
    pub fn generate() -> Vec<u8> {
        let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
        made.expect("the kernel has random bytes once it has booted").as_ref().to_vec()
    }

    /// From what the store holds; `None` where that is no key.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        Ed25519KeyPair::from_pkcs8(der).ok().map(Self)
    }

    /// What workers are given to judge grants with.
    pub fn public_key(&self) -> Vec<u8> {
        self.0.public_key().as_ref().to_vec()
    }

    /// Lets `node` fetch the image with this digest until `expires`.
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

/// Whether `grant` was signed for `node` with the key to `public_key`, and is still good. The leader that dated it and
/// the node that judges it may have clocks that differ by [`CLOCK_SKEW`], whichever is ahead.
pub fn verify_grant(grant: &Grant, public_key: &[u8], node: &str, now: Timestamp) -> bool {
    let message = message(&grant.digest, &grant.node_id, grant.expires_at);
    grant.node_id == node
        && now <= Timestamp(grant.expires_at) + CLOCK_SKEW
        && UnparsedPublicKey::new(&ED25519, public_key).verify(&message, &grant.signature).is_ok()
}

fn message(digest: &str, node: &str, expires: u64) -> Vec<u8> {
    // No part may hold a line end, so no two grants have one message.
    format!("flota image grant\n{digest}\n{node}\n{expires}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_good_for_its_image_node_and_time_alone() {
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
