//! A cluster's certificate authority, for tests that connect nodes over loopback.
#![allow(clippy::disallowed_methods, reason = "the certificates of a test are as good as the machine's clock")]

use std::time::SystemTime;

use flota_api::clock::Clock;
use flota_api::defaults::CERTIFICATE_LIFE;
use flota_api::id::{ClusterId, NodeId};
use flota_api::model::Role;
use flota_identity::{Credentials, Identity, KeyPair, RootCa};

/// Issues identities of one cluster.
pub(crate) struct TestCluster {
    id: ClusterId,
    ca: RootCa,
}

impl TestCluster {
    pub(crate) fn new() -> Self {
        let id = ClusterId::random(&mut rand::rng());
        Self { ca: RootCa::generate(&id, SystemTime::now()).expect("a CA"), id }
    }

    /// Issues the identity of a new node.
    pub(crate) fn identity(&self, role: Role) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let (request, node) = (key.signing_request().expect("a request"), NodeId::random(&mut rand::rng()));
        let certificate =
            self.ca.sign(&request, &node, role, &self.id, SystemTime::now(), CERTIFICATE_LIFE).expect("signed");
        Identity::new(certificate, key.to_der(), vec![self.ca.certificate().to_vec()]).expect("an identity")
    }

    /// Issues the identity of a new node, which uses it.
    pub(crate) fn credentials(&self, role: Role) -> Credentials {
        Credentials::new(self.identity(role), Clock::system()).expect("they belong together")
    }
}
