//! The identity of a user, who connects to managers with a certificate of its own. It is only that of a client: no node
//! takes a user for a node, and no user can be connected to.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::certificate::{CertificateError, Names, USER_UNIT, Validity, roots};
use crate::credentials::{client_builder, client_config};
use crate::sha256_hex;
use flota_api::clock::Clock;
use flota_api::id::ClusterId;

/// How long the certificate of a user is valid if nobody says so.
pub const USER_LIFE: Duration = Duration::from_secs(365 * 86_400);

/// A user's certificate and key, and the CAs that it trusts.
#[derive(Clone)]
pub struct UserIdentity {
    /// Name of the user (common name of the certificate).
    pub name: String,
    /// Id of the cluster (organisation of the certificate).
    pub cluster_id: ClusterId,
    /// When the certificate was issued and when it expires.
    pub validity: Validity,
    key_digest: String,
    certificate: Vec<u8>,
    key: Vec<u8>,
    /// Certificates of its CA that other CAs have signed.
    intermediates: Vec<Vec<u8>>,
    trusted: Vec<Vec<u8>>,
}

impl std::fmt::Debug for UserIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UserIdentity({} of {})", self.name, self.cluster_id)
    }
}

impl UserIdentity {
    /// Makes an identity from a certificate, its private key (PKCS#8), the certificates that lead from its CA to others, and
    /// those of the trusted CAs, all DER. Does not verify that they belong together.
    ///
    /// # Errors
    /// The certificate is malformed, or is not that of a user.
    pub fn new(
        certificate: Vec<u8>,
        key: Vec<u8>,
        intermediates: Vec<Vec<u8>>,
        trusted: Vec<Vec<u8>>,
    ) -> Result<Self, CertificateError> {
        let Names { common: name, unit, cluster_id, validity, public_key } = Names::read(&certificate)?;
        if unit != USER_UNIT {
            return Err(CertificateError::Missing("user"));
        }
        let key_digest = sha256_hex(&public_key);
        Ok(Self { name, cluster_id, validity, key_digest, certificate, key, intermediates, trusted })
    }

    /// Returns the digest by which the store knows the certificate.
    pub fn key_digest(&self) -> &str {
        &self.key_digest
    }

    /// Returns the TLS settings of a connection to a manager.
    pub(crate) fn client(&self, clock: &Clock) -> Result<Arc<ClientConfig>, rustls::Error> {
        let chain = [&self.certificate].into_iter().chain(&self.intermediates);
        let chain: Vec<CertificateDer<'static>> = chain.map(|der| der.clone().into()).collect();
        let builder = client_builder(clock).with_root_certificates(roots(&self.trusted)?);
        let config = builder.with_client_auth_cert(chain, PrivatePkcs8KeyDer::from(self.key.clone()).into())?;
        Ok(client_config(config))
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::crypto::ring::default_provider;
    use rustls::pki_types::{ServerName, UnixTime};

    use super::*;
    use crate::certificate::{MANAGER_NAME, NODE_NAME, RAFT_NAME};
    use crate::{Identity, KeyPair, RootCa, check_renewal, extension_request};
    use flota_api::model::Role;
    use flota_api::version::Timestamp;

    #[test]
    fn the_certificate_of_a_user_is_never_that_of_a_node_nor_a_nodes_that_of_a_user() {
        let (cluster, now) = (ClusterId::from("c"), SystemTime::now());
        let ca = RootCa::generate(&cluster, now).expect("made");
        let key = KeyPair::generate().expect("made");
        let (request, trusted) = (key.signing_request().expect("made"), vec![ca.certificate().to_vec()]);
        let user = ca.sign_user(&request, "n", &cluster, now, now + USER_LIFE).expect("signed");
        let node = ca.sign(&request, &"n".into(), Role::Manager, &cluster, now, USER_LIFE).expect("signed");
        assert!(Identity::new(user.clone(), key.to_der(), trusted.clone()).is_err());
        assert!(UserIdentity::new(node.clone(), key.to_der(), Vec::new(), trusted.clone()).is_err());
        // Nobody who connects takes it for a node.
        let own = roots(&trusted).expect("a CA");
        let verifier = WebPkiServerVerifier::builder_with_provider(own.into(), default_provider().into()).build();
        let verifier = verifier.expect("made");
        for name in [NODE_NAME, MANAGER_NAME, RAFT_NAME] {
            let name = ServerName::try_from(name).expect("a name");
            let is_accepted = |der: &Vec<u8>| {
                verifier.verify_server_cert(&der.clone().into(), &[], &name, &[], UnixTime::now()).is_ok()
            };
            assert_eq!((is_accepted(&node), is_accepted(&user)), (true, false), "{name:?}");
        }
        // Nor does it renew that of a node.
        let present = Identity::new(node, key.to_der(), trusted.clone()).expect("a node's");
        let mut renewal = extension_request(&present).expect("signed");
        let at = Timestamp(
            u64::try_from(now.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis()).expect("small"),
        );
        check_renewal(&renewal, &trusted, &cluster, at).expect("a node renews");
        renewal.certificate_der = user.into();
        check_renewal(&renewal, &trusted, &cluster, at).expect_err("a user does not");
    }

    #[test]
    fn the_ca_alone_decides_how_long_and_for_whom_a_certificate_is_valid() {
        let (cluster, now) = (ClusterId::from("c"), SystemTime::now());
        let ca = RootCa::generate(&cluster, now).expect("made");
        let key = KeyPair::generate().expect("made");
        let request = key.signing_request().expect("made");
        let signed = ca.sign_user(&request, "ada", &cluster, now, now + Duration::from_secs(60)).expect("signed");
        let user =
            UserIdentity::new(signed, key.to_der(), Vec::new(), vec![ca.certificate().to_vec()]).expect("a user's");
        assert_eq!((user.name.as_str(), user.cluster_id.as_str()), ("ada", "c"));
        assert!(user.validity.life() <= Duration::from_secs(61), "{:?}", user.validity);
        assert!(ca.sign_user(b"junk", "ada", &cluster, now, now + USER_LIFE).is_err());
    }
}
