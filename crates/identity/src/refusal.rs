//! Why a certificate was refused, in words for an operator. The TLS library's own words name neither the side nor a remedy.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// The error for a node that joins if the manager's CA is not the one in the token.
pub(crate) const OTHER_CLUSTER: &str = "the join token is of another cluster, or was made before this cluster's CA was replaced: it names another CA than this manager's";

/// Returns why a handshake failed.
pub fn refusal(error: &Error) -> String {
    match error {
        Error::General(text) => text.clone(),
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "the certificate of the other end has expired, by this machine's clock".into()
        }
        Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            "the certificate of the other end is not valid yet: one of the two clocks is wrong".into()
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "the certificate of the other end was not signed by this cluster's CA".into()
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "the other end is not a manager, by its certificate".into(),
        Error::AlertReceived(AlertDescription::CertificateExpired) => {
            "the other end refused this node's certificate: it has expired, or is not valid yet, by the other end's clock".into()
        }
        Error::AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError) => {
            "the other end refused this node's certificate: it was not signed by the CA of the other end's cluster".into()
        }
        Error::AlertReceived(AlertDescription::CertificateRequired) | Error::NoCertificatesPresented => {
            "the connection needs the certificate of a node of this cluster".into()
        }
        other => other.to_string(),
    }
}

/// Replaces the TLS library's words in the error of a handshake by [`refusal`].
pub(crate) fn in_words(error: io::Error) -> io::Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).map(refusal) {
        Some(text) => io::Error::new(error.kind(), Error::General(text)),
        None => error,
    }
}
