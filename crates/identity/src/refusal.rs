//! Why a certificate was refused, in words for an operator. The TLS library's own words name neither the side nor a remedy.

use std::fmt;
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

/// A handshake that failed, in words for an operator.
#[derive(Debug)]
struct FailedHandshake(Error);

impl fmt::Display for FailedHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&refusal(&self.0))
    }
}

impl std::error::Error for FailedHandshake {}

/// Replaces the TLS library's words in the error of a handshake by [`refusal`].
pub(crate) fn in_words(error: io::Error) -> io::Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(tls) => io::Error::new(error.kind(), FailedHandshake(tls.clone())),
        None => error,
    }
}

/// Returns whether a connection failed because the CAs of one end's cluster have not signed the certificate of the other
/// end. With TLS 1.3 the end that connects learns only from its first read that it was refused (RFC 8446, appendix E.1.2).
pub fn is_of_another_cluster(error: &io::Error) -> bool {
    let Some(inner) = error.get_ref() else { return false };
    let handshake = || inner.downcast_ref::<FailedHandshake>().map(|it| &it.0);
    matches!(
        inner.downcast_ref::<Error>().or_else(handshake),
        Some(
            Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)
                | Error::AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError)
        )
    )
}
