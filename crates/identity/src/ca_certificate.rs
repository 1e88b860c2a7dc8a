//! What the certificate of a CA says, for users who look at it.

use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use crate::certificate::CertificateError;
use crate::sha256_hex;
use flota_api::version::Timestamp;

/// What the certificate of a CA says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaCertificate {
    /// SHA-256 of the certificate in hexadecimal digits, as join tokens have it.
    pub digest: String,
    /// Its subject, as `CN=…, O=…`.
    pub subject: String,
    /// From when on it is valid.
    pub not_before: Timestamp,
    /// When it expires. Nodes look only at the key of a CA, and go on to trust one that has expired.
    pub not_after: Timestamp,
}

impl CaCertificate {
    /// Reads a certificate in DER. Verifies nothing.
    ///
    /// # Errors
    /// The certificate is malformed.
    pub fn read(der: &[u8]) -> Result<Self, CertificateError> {
        let malformed = |why: String| CertificateError::Malformed { what: "the CA's certificate", why };
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| malformed(error.to_string()))?;
        let at = |time: ASN1Time| Timestamp(u64::try_from(time.timestamp()).unwrap_or(0).saturating_mul(1_000));
        let validity = certificate.validity();
        Ok(Self {
            digest: sha256_hex(der),
            subject: certificate.subject().to_string(),
            not_before: at(validity.not_before),
            not_after: at(validity.not_after),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RootCa;
    use flota_api::defaults::{CA_LIFE, CLOCK_SKEW};

    #[test]
    fn a_certificate_is_described() {
        let now = Timestamp(1_800_000_000_000);
        let ca = RootCa::generate(&"c1".into(), now.to_system()).expect("made");
        let read = CaCertificate::read(ca.certificate()).expect("it is whole");
        assert_eq!((read.digest, read.subject.as_str()), (ca.digest(), "CN=flota CA, O=c1"));
        assert_eq!((read.not_before + CLOCK_SKEW, read.not_after), (now, now + CA_LIFE));
        assert!(CaCertificate::read(b"junk").is_err());
    }
}
