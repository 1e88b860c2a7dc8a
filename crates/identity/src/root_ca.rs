//! The cluster's root CA. The first manager creates it, or a user gives it, the store keeps it, and the leader signs with it.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use x509_parser::der_parser::asn1_rs::Tag;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certificate::{CertificateError, MANAGER_NAME, NODE_NAME, RAFT_NAME, UNITS, USER_UNIT};
use crate::sha256_hex;
use flota_api::defaults::{CA_LIFE, CLOCK_SKEW};
use flota_api::id::{ClusterId, NodeId};
use flota_api::model::Role;

/// A CA certificate with its key.
pub struct RootCa {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

fn make(what: &'static str) -> impl Fn(rcgen::Error) -> CertificateError {
    move |error| CertificateError::Make { what, why: error.to_string() }
}

impl RootCa {
    /// Creates a CA for this cluster, valid from `now` on.
    ///
    /// # Errors
    /// The library fails to generate the key or the certificate.
    pub fn generate(cluster: &ClusterId, now: SystemTime) -> Result<Self, CertificateError> {
        let key = rcgen::KeyPair::generate().map_err(make("the CA's key"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "flota CA");
        params.distinguished_name.push(DnType::OrganizationName, cluster.as_str());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = (now + CA_LIFE).into();
        let certificate = params.self_signed(&key).map_err(make("the CA"))?;
        Ok(Self { certificate: certificate.der().to_vec(), key: key.serialize_der() })
    }

    /// Makes a CA from its certificate (DER) and key (PKCS#8, DER).
    pub fn from_der(certificate: Vec<u8>, key: Vec<u8>) -> Self {
        Self { certificate, key }
    }

    /// Returns the certificate in DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Returns the key as PKCS#8 in DER.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Returns the digest that join tokens contain.
    pub fn digest(&self) -> String {
        sha256_hex(&self.certificate)
    }

    /// Signs a request (PKCS#10, DER) and returns the certificate in DER. Only the public key of the request is used; names,
    /// role and usage come from the arguments. The certificate is valid for `life` from `now` on, and also for
    /// [`CLOCK_SKEW`] before, because the clock of whoever checks it may be behind.
    ///
    /// # Errors
    /// The request is malformed, or its own signature is wrong.
    pub fn sign(
        &self,
        request: &[u8],
        node: &NodeId,
        role: Role,
        cluster: &ClusterId,
        now: SystemTime,
        life: Duration,
    ) -> Result<Vec<u8>, CertificateError> {
        let manager = |name| (role == Role::Manager).then_some(name);
        let names = [Some(NODE_NAME), manager(MANAGER_NAME), manager(RAFT_NAME)];
        let names: Vec<String> = names.into_iter().flatten().map(str::to_owned).collect();
        let mut params = CertificateParams::new(names).map_err(make("a certificate"))?;
        let unit = UNITS.iter().find(|(known, _)| *known == role).map_or("", |(_, unit)| unit);
        params.distinguished_name = distinguished_name(node.as_str(), unit, cluster);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = (now + life).into();
        self.issue(request, params)
    }

    /// Signs the request of a user, as [`Self::sign`] does for a node. The certificate is only that of a client, and valid
    /// for no name, so nobody takes its holder for a node.
    ///
    /// # Errors
    /// The request is malformed, or its own signature is wrong.
    pub fn sign_user(
        &self,
        request: &[u8],
        name: &str,
        cluster: &ClusterId,
        now: SystemTime,
        expires_at: SystemTime,
    ) -> Result<Vec<u8>, CertificateError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(name, USER_UNIT, cluster);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = expires_at.into();
        self.issue(request, params)
    }

    fn issue(&self, request: &[u8], mut params: CertificateParams) -> Result<Vec<u8>, CertificateError> {
        let malformed =
            |error: rcgen::Error| CertificateError::Malformed { what: "the request", why: error.to_string() };
        let request = CertificateSigningRequestDer::from(request.to_vec());
        let mut request = rcgen::CertificateSigningRequestParams::from_der(&request).map_err(malformed)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        request.params = params;
        let signed = request.signed_by(&self.issuer()?).map_err(make("a certificate"))?;
        Ok(signed.der().to_vec())
    }

    /// Signs a certificate for the key and the subject of another CA, which signs only certificates of nodes with it.
    pub(crate) fn sign_ca(&self, other: &Self, now: SystemTime) -> Result<Vec<u8>, CertificateError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&other.certificate)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = (now + CA_LIFE).into();
        let signed = params.signed_by(&other.key_pair()?, &self.issuer()?).map_err(make("a CA's certificate"))?;
        Ok(signed.der().to_vec())
    }

    fn key_pair(&self) -> Result<rcgen::KeyPair, CertificateError> {
        rcgen::KeyPair::try_from(&PrivatePkcs8KeyDer::from(self.key.clone())).map_err(make("the CA's key"))
    }

    fn issuer(&self) -> Result<Issuer<'static, rcgen::KeyPair>, CertificateError> {
        let certificate = CertificateDer::from(self.certificate.clone());
        Issuer::from_ca_cert_der(&certificate, self.key_pair()?).map_err(make("the CA"))
    }
}

fn distinguished_name(common: &str, unit: &str, cluster: &ClusterId) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name.push(DnType::OrganizationalUnitName, unit);
    name.push(DnType::OrganizationName, cluster.as_str());
    name
}

/// Returns the subject of a certificate in DER, as the library that signs takes it. What it can't express is left out, and
/// then the certificate for this subject is of no use.
fn subject(der: &[u8]) -> Result<DistinguishedName, CertificateError> {
    let malformed = |why: String| CertificateError::Malformed { what: "the CA's certificate", why };
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| malformed(error.to_string()))?;
    let mut name = DistinguishedName::new();
    for attribute in certificate.subject().iter_attributes() {
        let Some(oid) = attribute.attr_type().iter() else { continue };
        let text = attribute.as_str().map_err(|error| malformed(error.to_string()))?;
        let value = match attribute.attr_value().tag() {
            Tag::PrintableString => text.try_into().map(DnValue::PrintableString),
            Tag::Ia5String => text.try_into().map(DnValue::Ia5String),
            _ => Ok(DnValue::Utf8String(text.to_owned())),
        };
        name.push(DnType::from_oid(&oid.collect::<Vec<_>>()), value.map_err(make("the subject of a CA"))?);
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::crypto::ring::default_provider;
    use rustls::pki_types::{ServerName, UnixTime};

    use super::*;
    use crate::{Identity, KeyPair};
    use flota_api::defaults::CERTIFICATE_LIFE;

    #[test]
    fn the_ca_alone_decides_what_a_certificate_says() {
        let cluster = ClusterId::from("c");
        let now = SystemTime::now();
        let ca = RootCa::generate(&cluster, now).expect("made");
        // The request asks for another name and the role of a manager.
        let key = rcgen::KeyPair::generate().expect("made");
        let mut wanted = CertificateParams::new(vec![MANAGER_NAME.to_owned()]).expect("a legal name");
        wanted.distinguished_name.push(DnType::CommonName, "somebody else");
        wanted.distinguished_name.push(DnType::OrganizationalUnitName, "flota-manager");
        let request = wanted.serialize_request(&key).expect("made");
        let signed =
            ca.sign(request.der(), &"n".into(), Role::Worker, &cluster, now, CERTIFICATE_LIFE).expect("signed");
        let identity = Identity::new(signed, key.serialize_der(), vec![ca.certificate().to_vec()]).expect("a node's");
        assert_eq!((identity.node_id.as_str(), identity.role), ("n", Role::Worker));
        assert!(ca.sign(b"junk", &"n".into(), Role::Worker, &cluster, now, CERTIFICATE_LIFE).is_err());
        let own = KeyPair::generate().and_then(|key| key.signing_request()).expect("made");
        assert!(ca.sign(&own, &"n".into(), Role::Manager, &cluster, now, CERTIFICATE_LIFE).is_ok());
    }

    #[test]
    fn certificate_of_a_leader_whose_clock_is_a_day_ahead_is_valid() {
        let cluster = ClusterId::from("c");
        let key = KeyPair::generate().expect("made");
        let request = key.signing_request().expect("made");
        let leader = SystemTime::now();
        let ca = RootCa::generate(&cluster, leader).expect("made");
        let signed = ca.sign(&request, &"n".into(), Role::Worker, &cluster, leader, CERTIFICATE_LIFE).expect("signed");
        let identity = Identity::new(signed, key.to_der(), vec![ca.certificate().to_vec()]).expect("a node's");
        let roots = Arc::new(identity.roots().expect("a CA"));
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, default_provider().into()).build();
        let (verifier, name) = (verifier.expect("made"), ServerName::try_from(NODE_NAME).expect("a name"));
        let is_valid = |at: SystemTime| {
            let at = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970"));
            verifier.verify_server_cert(&identity.chain()[0], &[], &name, &[], at).is_ok()
        };
        let minute = Duration::from_secs(60);
        assert!(is_valid(leader - CLOCK_SKEW + minute), "the clock of the one that verifies is behind");
        assert!(!is_valid(leader - CLOCK_SKEW - minute));
        assert!(is_valid(leader + CERTIFICATE_LIFE - minute));
        assert!(!is_valid(leader + CERTIFICATE_LIFE + minute));
    }
}
