//! Conversion of what the store knows of certificates.

use crate::model::NodeCertificate;
use crate::proto::objects as po;
use crate::version::Timestamp;

impl From<&NodeCertificate> for po::NodeCertificate {
    fn from(it: &NodeCertificate) -> Self {
        Self { key: it.key.clone(), expires_at: it.expires_at.0 }
    }
}

impl From<po::NodeCertificate> for NodeCertificate {
    fn from(it: po::NodeCertificate) -> Self {
        Self { key: it.key, expires_at: Timestamp(it.expires_at) }
    }
}
