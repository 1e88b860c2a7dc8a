//! Conversion of what the store knows of certificates, and the `Debug` of a CA that a user gives.

use std::fmt;

use crate::model::{CaRotation, NodeCertificate, Secret};
use crate::proto::objects as po;
use crate::proto::types::GivenCa;
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

impl From<&CaRotation> for po::CaRotation {
    fn from(it: &CaRotation) -> Self {
        Self {
            begun_at: it.begun_at.0,
            former_certificate: it.former_certificate.clone().into(),
            former_key: it.former_key.0.clone().into(),
            cross_certificate: it.cross_certificate.clone().into(),
            next_grant_key: it.next_grant_key.0.clone().into(),
        }
    }
}

impl From<po::CaRotation> for CaRotation {
    fn from(it: po::CaRotation) -> Self {
        Self {
            begun_at: Timestamp(it.begun_at),
            former_certificate: it.former_certificate.into(),
            former_key: Secret(it.former_key.into()),
            cross_certificate: it.cross_certificate.into(),
            next_grant_key: Secret(it.next_grant_key.into()),
        }
    }
}

impl fmt::Debug for GivenCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GivenCa([redacted])")
    }
}
