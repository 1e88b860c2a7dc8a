//! A CA that a user gives in PEM: its certificate and key are checked before anything depends on them. Nodes trust exactly
//! this certificate, and no CA above it.

use std::time::{Duration, SystemTime};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certificate::{CertificateError, KeyPair, MANAGER_NAME, roots};
use crate::refusal::refusal;
use crate::root_ca::RootCa;
use flota_api::model::Role;
use flota_api::version::Timestamp;

/// Why a CA that a user gives is refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GivenCaError {
    /// The text of the certificate is not one certificate in PEM.
    #[error("the certificate is not one certificate in PEM: it holds {0}")]
    NotOneCertificate(usize),
    /// The certificate is malformed.
    #[error(transparent)]
    Malformed(#[from] CertificateError),
    /// It is that of a server or user.
    #[error("the certificate is not that of a CA: its basic constraints do not say so")]
    NotCa,
    /// The CA may sign no certificates.
    #[error("the certificate does not allow its key to sign certificates: its key usage lacks `keyCertSign`")]
    MaySignNothing,
    /// Its key is of another kind.
    #[error("the certificate's key is not ECDSA P-256, the only kind that is supported")]
    OtherKind,
    /// It has expired.
    #[error("the certificate expired at {0}")]
    Expired(Timestamp),
    /// It is not valid yet.
    #[error("the certificate is not valid before {0}")]
    NotYetValid(Timestamp),
    /// The key can't be read.
    #[error("the key is not a private key in PEM, as PKCS#8 or SEC 1 without encryption")]
    NotKey,
    /// The key is of another certificate.
    #[error("the key does not belong to the certificate")]
    OtherKey,
    /// What the CA signs is not accepted.
    #[error("what this CA signs would be refused: {0}")]
    Unusable(String),
}

/// Validity of the certificate with which a CA is tried.
const TRIAL: Duration = Duration::from_secs(3_600);

impl RootCa {
    /// Reads a CA from its certificate and its key in PEM, and checks that nodes accept at `now` what it signs.
    ///
    /// # Errors
    /// The certificate or the key can't be the CA of a cluster; the error says why.
    pub fn from_pem(certificate: &str, key: &str, now: SystemTime) -> Result<Self, GivenCaError> {
        let certificates = CertificateDer::pem_slice_iter(certificate.as_bytes()).filter_map(Result::ok);
        let certificates: Vec<CertificateDer<'_>> = certificates.collect();
        let [certificate] = &certificates[..] else {
            return Err(GivenCaError::NotOneCertificate(certificates.len()));
        };
        let point = check(certificate, Timestamp::from_system(now))?;
        let key = match PrivateKeyDer::from_pem_slice(key.as_bytes()) {
            Ok(PrivateKeyDer::Pkcs8(key)) => key.secret_pkcs8_der().to_vec(),
            Ok(PrivateKeyDer::Sec1(key)) => wrap(key.secret_sec1_der()).ok_or(GivenCaError::NotKey)?,
            _ => return Err(GivenCaError::NotKey),
        };
        let parsed = rcgen::KeyPair::try_from(&PrivatePkcs8KeyDer::from(key.as_slice()));
        let parsed = parsed.map_err(|_| GivenCaError::NotKey)?;
        if rcgen::PublicKeyData::der_bytes(&parsed) != point {
            return Err(GivenCaError::OtherKey);
        }
        let ca = Self::from_der(certificate.to_vec(), key);
        ca.try_out(ca.certificate(), &[], now)?;
        Ok(ca)
    }

    /// Makes the certificate that lets those who trust this CA accept what `next` signs: for the key and the subject of
    /// `next`, signed by this CA.
    ///
    /// # Errors
    /// The certificate can't be signed, or a node that trusts this CA does not accept what `next` signs with it.
    pub fn cross_sign(&self, next: &Self, now: SystemTime) -> Result<Vec<u8>, GivenCaError> {
        let cross = self.sign_ca(next, now)?;
        next.try_out(self.certificate(), std::slice::from_ref(&cross), now)?;
        Ok(cross)
    }

    /// Signs a certificate, and checks that a node that trusts `trusted` accepts it from a server and from a client.
    fn try_out(&self, trusted: &[u8], chain: &[Vec<u8>], now: SystemTime) -> Result<(), GivenCaError> {
        let request = KeyPair::generate()?.signing_request()?;
        let signed = self.sign(&request, &"trial".into(), Role::Manager, &"trial".into(), now, TRIAL);
        let signed = CertificateDer::from(signed.map_err(|error| GivenCaError::Unusable(error.to_string()))?);
        let refused = |error: rustls::Error| GivenCaError::Unusable(refusal(&error));
        let unusable = |error: rustls::client::VerifierBuilderError| GivenCaError::Unusable(error.to_string());
        let trusted = std::sync::Arc::new(roots(&[trusted.to_vec()]).map_err(refused)?);
        let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let at = UnixTime::since_unix_epoch(Duration::from_millis(Timestamp::from_system(now).0));
        let provider = std::sync::Arc::new(default_provider());
        let server = WebPkiServerVerifier::builder_with_provider(trusted.clone(), provider.clone()).build();
        let name = ServerName::try_from(MANAGER_NAME).expect("the constant is a valid name");
        server.map_err(unusable)?.verify_server_cert(&signed, &chain, &name, &[], at).map_err(refused)?;
        let client = WebPkiClientVerifier::builder_with_provider(trusted, provider).build();
        client.map_err(unusable)?.verify_client_cert(&signed, &chain, at).map_err(refused)?;
        Ok(())
    }
}

/// Checks that the certificate is that of a CA which can sign for nodes now. Returns its public key: the point on the curve.
fn check(der: &[u8], now: Timestamp) -> Result<Vec<u8>, GivenCaError> {
    let malformed = |why: String| CertificateError::Malformed { what: "the CA's certificate", why };
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| malformed(error.to_string()))?;
    let constraints = certificate.basic_constraints().map_err(|error| malformed(error.to_string()))?;
    if !constraints.is_some_and(|it| it.value.ca) {
        return Err(GivenCaError::NotCa);
    }
    let usage = certificate.key_usage().map_err(|error| malformed(error.to_string()))?;
    if usage.is_some_and(|it| !it.value.key_cert_sign()) {
        return Err(GivenCaError::MaySignNothing);
    }
    let key = certificate.public_key();
    let curve = key.algorithm.parameters.as_ref().and_then(|it| it.as_oid().ok());
    if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || curve != Some(OID_EC_P256) {
        return Err(GivenCaError::OtherKind);
    }
    // The library that signs reads only such a subject.
    if certificate.subject().iter_rdn().any(|it| it.iter().count() != 1) {
        return Err(GivenCaError::Unusable("a part of its subject has several attributes, or none".into()));
    }
    let at = |seconds: i64| Timestamp(u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000));
    let validity = certificate.validity();
    let (from, to) = (at(validity.not_before.timestamp()), at(validity.not_after.timestamp()));
    match now {
        now if now < from => Err(GivenCaError::NotYetValid(from)),
        now if now >= to => Err(GivenCaError::Expired(to)),
        _ => Ok(key.subject_public_key.data.to_vec()),
    }
}

/// Wraps a key on P-256 in the form of SEC 1 (RFC 5915) as PKCS#8 (RFC 5208). Returns `None` if it is too long for one.
fn wrap(key: &[u8]) -> Option<Vec<u8>> {
    // Version 0, and the algorithm: id-ecPublicKey with the curve prime256v1.
    const HEAD: [u8; 24] = [
        0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
        0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
    ];
    let piece = |tag: u8, content: &[u8]| match u8::try_from(content.len()).ok()? {
        short @ 0..=127 => Some([&[tag, short], content].concat()),
        long => Some([&[tag, 0x81, long], content].concat()),
    };
    piece(0x30, &[&HEAD, piece(0x04, key)?.as_slice()].concat())
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyUsagePurpose};

    use super::*;
    use crate::Identity;
    use flota_api::id::ClusterId;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    /// The parameters of a CA that is accepted.
    fn good() -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "ACME internal CA");
        params.distinguished_name.push(DnType::CountryName, "DE");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = ((NOW.to_system() - DAY).into(), (NOW.to_system() + DAY * 365).into());
        params
    }

    fn p256() -> rcgen::KeyPair {
        rcgen::KeyPair::generate().expect("made")
    }

    fn pem(params: &CertificateParams, key: &rcgen::KeyPair) -> String {
        params.self_signed(key).expect("made").pem()
    }

    fn read(certificate: &str, key: &str) -> Result<RootCa, String> {
        RootCa::from_pem(certificate, key, NOW.to_system()).map_err(|error| error.to_string())
    }

    /// Reads a CA that differs from a good one in one point.
    fn with(change: impl FnOnce(&mut CertificateParams)) -> Result<(), String> {
        let (mut params, key) = (good(), p256());
        change(&mut params);
        read(&pem(&params, &key), &key.serialize_pem()).map(drop)
    }

    #[test]
    fn a_ca_of_ones_own_signs_certificates_of_nodes() {
        let key = p256();
        let ca = read(&pem(&good(), &key), &key.serialize_pem()).expect("it is good");
        let (cluster, own) = (ClusterId::from("c"), KeyPair::generate().expect("made"));
        let request = own.signing_request().expect("made");
        let signed = ca.sign(&request, &"n".into(), Role::Worker, &cluster, NOW.to_system(), DAY).expect("signed");
        let identity = Identity::new(signed, own.to_der(), vec![ca.certificate().to_vec()]).expect("a node's");
        assert_eq!(identity.node_id.as_str(), "n");
        assert_eq!(with(|it| it.key_usages.clear()), Ok(()), "without a key usage, everything is allowed");
        let no_path = BasicConstraints::Constrained(0);
        assert_eq!(with(|it| it.is_ca = IsCa::Ca(no_path)), Ok(()), "it signs no CA");
    }

    #[test]
    fn each_flaw_of_a_certificate_is_named() {
        let refused = |change: fn(&mut CertificateParams), why: &str| {
            let error = with(change).expect_err(why);
            assert!(error.contains(why), "{error}");
        };
        refused(|it| it.is_ca = IsCa::NoCa, "not that of a CA");
        refused(|it| it.is_ca = IsCa::ExplicitNoCa, "not that of a CA");
        refused(|it| it.key_usages = vec![KeyUsagePurpose::DigitalSignature], "lacks `keyCertSign`");
        refused(|it| it.not_after = (NOW.to_system() - DAY / 2).into(), "the certificate expired at");
        refused(|it| it.not_before = (NOW.to_system() + DAY).into(), "is not valid before");
        let only_others = |it: &mut CertificateParams| {
            it.name_constraints = Some(rcgen::NameConstraints {
                permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("acme.example".into())],
                excluded_subtrees: Vec::new(),
            });
        };
        refused(only_others, "what this CA signs would be refused");
    }

    #[test]
    fn files_that_do_not_belong_together_or_hold_something_else_are_refused() {
        let (params, key) = (good(), p256());
        let (certificate, own) = (pem(&params, &key), key.serialize_pem());
        let refused = |certificate: &str, key: &str, why: &str| {
            let error = read(certificate, key).map(drop).expect_err(why);
            assert!(error.contains(why), "{error}");
        };
        refused(&certificate, &p256().serialize_pem(), "does not belong to the certificate");
        refused(&certificate, "", "is not a private key in PEM");
        refused(&certificate, &certificate, "is not a private key in PEM");
        refused(&certificate, &own.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"), "without encryption");
        refused("", &own, "it holds 0");
        refused(&own, &own, "it holds 0");
        refused(&format!("{certificate}{certificate}"), &own, "it holds 2");
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("made");
        refused(&pem(&params, &p384), &p384.serialize_pem(), "is not ECDSA P-256");
        let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("made");
        refused(&pem(&params, &ed25519), &ed25519.serialize_pem(), "is not ECDSA P-256");
    }

    #[test]
    fn a_key_as_openssl_writes_it_by_default_is_read() {
        // openssl ecparam -name prime256v1 -genkey -noout; openssl req -x509 -new -key KEY -days 36500 -subj /CN=acme
        let ca = RootCa::from_pem(
            include_str!("given_ca/acme.crt"),
            include_str!("given_ca/acme.key"),
            Timestamp(1_900_000_000_000).to_system(),
        );
        assert_eq!(
            crate::CaCertificate::read(ca.expect("it is good").certificate()).expect("it is").subject,
            "CN=acme"
        );
    }

    #[test]
    fn those_who_trust_a_ca_accept_what_the_one_signs_that_replaces_it() {
        let (now, cluster) = (NOW.to_system(), ClusterId::from("c"));
        let key = p256();
        let given = read(&pem(&good(), &key), &key.serialize_pem()).expect("it is good");
        let [own, next] = [(); 2].map(|()| RootCa::generate(&cluster, now).expect("made"));
        for (former, next) in [(&own, &next), (&own, &given), (&given, &own)] {
            former.cross_sign(next, now).expect("it is accepted");
            let refused = next.try_out(former.certificate(), &[], now).expect_err("nothing leads there").to_string();
            assert!(refused.contains("was not signed by this cluster's CA"), "{refused}");
            // The chain leads only to the one that has signed it.
            let cross = former.cross_sign(next, now).expect("it is accepted");
            let stranger = RootCa::generate(&cluster, now).expect("made");
            next.try_out(stranger.certificate(), &[cross], now).expect_err("another CA");
        }
    }
}
