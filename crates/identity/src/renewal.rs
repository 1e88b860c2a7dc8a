//! Renewal of a node's certificate. The request carries the present certificate and the next signing request, signed with
//! the present key. It is valid by itself: the connection needs no certificate, which may have expired, and a follower can
//! forward it unchanged. Whoever sees it learns no key, and repeating it issues a certificate only for the same next key.

use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;

use flota_api::id::{ClusterId, NodeId};
use flota_api::model::NodeCertificate;
use flota_api::proto::ca::RenewCertificateRequest;
use flota_api::version::Timestamp;

use crate::certificate::{CertificateError, Identity, KeyPair, Subject, known_certificate, roots};
use crate::refusal::refusal;

/// What the signature covers begins with this, so that a signature for another purpose is never one for this.
const PURPOSE: &[u8] = b"flota certificate renewal\n";

/// Most certificates between that of a node and a CA. A node presents one.
const CHAIN_BOUND: usize = 4;

/// Why a request for a renewal is refused.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// The present certificate can't be read.
    #[error(transparent)]
    Malformed(#[from] CertificateError),
    /// The present certificate is not one of this cluster.
    #[error("the certificate is refused: {0}")]
    Certificate(String),
    /// It names another cluster.
    #[error("the certificate is of another cluster, {0}")]
    OtherCluster(ClusterId),
    /// The request was not signed with the key of the certificate.
    #[error("the request was not signed with the key of its certificate")]
    Signature,
}

/// A request whose sender has the key of the certificate that it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The node that the certificate names.
    pub node: NodeId,
    /// The certificate, which may have expired.
    pub certificate: NodeCertificate,
}

/// Makes a request for the next certificate of a node, with the key `next`.
///
/// # Errors
/// The present key is malformed, or the library fails to sign.
pub fn renewal_request(present: &Identity, next: &KeyPair) -> Result<RenewCertificateRequest, CertificateError> {
    let (certificate, request) = (&present.certificate, next.signing_request()?);
    let signature = KeyPair::from_der(&present.key)?.sign(&message(certificate, &request))?;
    Ok(RenewCertificateRequest {
        certificate_der: certificate.clone().into(),
        csr_der: request.into(),
        signature: signature.into(),
        chain_der: present.intermediates.iter().map(|der| der.clone().into()).collect(),
    })
}

/// Makes a request for another certificate for the present key.
///
/// # Errors
/// As for [`renewal_request`].
pub fn extension_request(present: &Identity) -> Result<RenewCertificateRequest, CertificateError> {
    renewal_request(present, &KeyPair::from_der(&present.key)?)
}

/// Checks that a request comes from a node of this cluster, by its certificate and key. Whether the certificate has expired,
/// and whether the node still belongs to the cluster, is for the caller to judge. One that is not valid yet at `now` was issued
/// by a clock that was ahead, and is replaced by this.
///
/// # Errors
/// The certificate was not signed by a CA in `trusted`, or the key is another one.
pub fn check_renewal(
    request: &RenewCertificateRequest,
    trusted: &[Vec<u8>],
    cluster: &ClusterId,
    now: Timestamp,
) -> Result<Renewal, RenewalError> {
    let subject = Subject::read(&request.certificate_der)?;
    // It is checked for a moment of its validity: now, if possible.
    let at = now.max(subject.validity.issued_at).min(subject.validity.expires_at);
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_millis(at.0));
    let refused = |error: &rustls::Error| RenewalError::Certificate(refusal(error));
    let roots = roots(trusted).map_err(|error| refused(&error))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), default_provider().into()).build();
    let verifier = verifier.map_err(|error| RenewalError::Certificate(error.to_string()))?;
    let certificate = CertificateDer::from(request.certificate_der.as_ref());
    // They prove themselves by their signatures, as in a handshake, so the sender need not have signed them.
    let chain: Vec<_> =
        request.chain_der.iter().take(CHAIN_BOUND).map(|der| CertificateDer::from(der.as_ref())).collect();
    verifier.verify_client_cert(&certificate, &chain, at).map_err(|error| refused(&error))?;
    if subject.cluster_id != *cluster {
        return Err(RenewalError::OtherCluster(subject.cluster_id));
    }
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &subject.public_key)
        .verify(&message(&request.certificate_der, &request.csr_der), &request.signature)
        .map_err(|_| RenewalError::Signature)?;
    Ok(Renewal { node: subject.node_id, certificate: known_certificate(&request.certificate_der)? })
}

/// The bytes that are signed. The length keeps the end of one part from counting as the beginning of the other.
fn message(certificate: &[u8], request: &[u8]) -> Vec<u8> {
    [PURPOSE, &(certificate.len() as u64).to_be_bytes(), certificate, request].concat()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::RootCa;
    use flota_api::defaults::CLOCK_SKEW;
    use flota_api::model::Role;

    const ISSUED: Timestamp = Timestamp(1_800_000_000_000);
    const LIFE: Duration = Duration::from_secs(3_600);

    struct Lab {
        cluster: ClusterId,
        ca: RootCa,
    }

    impl Lab {
        fn new() -> Self {
            let cluster = ClusterId::from("c");
            let ca = RootCa::generate(&cluster, ISSUED.to_system()).expect("made");
            Self { cluster, ca }
        }

        fn identity_of(&self, cluster: &ClusterId) -> Identity {
            let key = KeyPair::generate().expect("made");
            let request = key.signing_request().expect("made");
            let (node, now) = (NodeId::from("n"), ISSUED.to_system());
            let signed = self.ca.sign(&request, &node, Role::Worker, cluster, now, LIFE).expect("signed");
            Identity::new(signed, key.to_der(), vec![self.ca.certificate().to_vec()]).expect("a node's")
        }

        fn identity(&self) -> Identity {
            self.identity_of(&self.cluster)
        }

        fn check(&self, request: &RenewCertificateRequest, now: Timestamp) -> Result<Renewal, String> {
            let trusted = [self.ca.certificate().to_vec()];
            check_renewal(request, &trusted, &self.cluster, now).map_err(|error| error.to_string())
        }
    }

    fn request(identity: &Identity) -> RenewCertificateRequest {
        renewal_request(identity, &KeyPair::generate().expect("made")).expect("signed")
    }

    #[test]
    fn a_node_shows_by_its_key_who_it_is_also_when_its_certificate_has_expired() {
        let lab = Lab::new();
        let identity = lab.identity();
        let renewal =
            Renewal { node: "n".into(), certificate: identity.known_certificate().expect("it is a certificate") };
        assert_eq!(renewal.certificate.expires_at, ISSUED + LIFE);
        for now in [ISSUED, ISSUED + LIFE * 24 * 300] {
            assert_eq!(lab.check(&request(&identity), now), Ok(renewal.clone()));
        }
        let same = extension_request(&identity).expect("signed");
        assert_eq!(lab.check(&same, ISSUED), Ok(renewal));
    }

    #[test]
    fn a_certificate_of_a_ca_that_another_rotation_has_replaced_renews_by_the_one_that_leads_to_the_former_ca() {
        let ([former, dropped], target) = ([(); 2].map(|()| Lab::new()), Lab::new());
        let cross = former.ca.cross_sign(&dropped.ca, ISSUED.to_system()).expect("it is accepted");
        let trusted = [&target, &former].map(|lab| lab.ca.certificate().to_vec());
        let check = |identity: &Identity, trusted: &[Vec<u8>]| {
            check_renewal(&request(identity), trusted, &dropped.cluster, ISSUED).map_err(|error| error.to_string())
        };
        let alone = dropped.identity();
        let refused = check(&alone, &trusted).expect_err("nothing leads to a CA");
        assert!(refused.contains("was not signed by this cluster's CA"), "{refused}");
        let led = alone.with_intermediates(vec![cross]);
        assert_eq!(check(&led, &trusted).expect("it leads to the former CA").node.as_str(), "n");
        check(&led, &trusted[..1]).expect_err("the rotation has ended");
    }

    #[test]
    fn a_certificate_that_a_clock_issued_which_was_ahead_is_replaced() {
        let lab = Lab::new();
        let request = request(&lab.identity());
        let before = |time: Duration| Timestamp(ISSUED.0 - u64::try_from(time.as_millis()).expect("it is small"));
        lab.check(&request, before(CLOCK_SKEW - Duration::from_secs(60))).expect("it is valid by then");
        lab.check(&request, before(365 * CLOCK_SKEW)).expect("its key is that of the node all the same");
    }

    #[test]
    fn another_key_another_cluster_and_a_signature_of_its_own_are_refused() {
        let (lab, other) = (Lab::new(), Lab::new());
        let identity = lab.identity();
        let refused = |request: &RenewCertificateRequest, why: &str| {
            let error = lab.check(request, ISSUED).expect_err(why);
            assert!(error.contains(why), "{error}");
        };
        refused(&request(&other.identity()), "was not signed by this cluster's CA");
        refused(&request(&lab.identity_of(&"d".into())), "is of another cluster, d");
        // Somebody has seen the certificate and signs for a key of their own.
        let stolen = Identity { key: lab.identity().key, ..identity.clone() };
        refused(&request(&stolen), "not signed with the key of its certificate");
        let good = request(&identity);
        let other_key = RenewCertificateRequest { csr_der: request(&identity).csr_der, ..good.clone() };
        refused(&other_key, "not signed with the key of its certificate");
        let junk = RenewCertificateRequest { certificate_der: vec![1, 2, 3].into(), ..good };
        refused(&junk, "failed to read a certificate");
        let key = rcgen::KeyPair::generate().expect("made");
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "n");
        params.distinguished_name.push(rcgen::DnType::OrganizationalUnitName, "flota-worker");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "c");
        let own = params.self_signed(&key).expect("made");
        let own = Identity { certificate: own.der().to_vec(), key: key.serialize_der(), ..identity };
        refused(&request(&own), "was not signed by this cluster's CA");
    }
}
