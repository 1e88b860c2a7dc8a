//! The networks of users: one that some services share, and others that come and go. They are not part of the history
//! that is checked; the invariants of networks judge what becomes of them.

use rand::Rng;

use flota_api::proto::control::{CreateNetworkRequest, RemoveRequest};
use flota_api::proto::specs::{NetworkSpec, SubnetSpec};

use super::Client;

/// The network that services share.
pub(super) const SHARED: &str = "the-net";
/// It is small, so that addresses are given again soon.
const SUBNET: &str = "10.9.0.0/26";
/// Networks that users create and remove, without services in them.
const FREE: [&str; 3] = ["the-front", "the-middle", "the-back"];

impl Client {
    /// Creates the network that services share. A service is refused before its network exists.
    pub(super) async fn create_shared_network(&mut self) {
        let subnets = vec![SubnetSpec { prefix: SUBNET.into(), ..SubnetSpec::default() }];
        self.create_network(NetworkSpec { name: SHARED.into(), subnets, ..NetworkSpec::default() }).await;
    }

    async fn create_network(&mut self, spec: NetworkSpec) {
        let tag = self.history.tag();
        let request = CreateNetworkRequest { request_id: self.request_id(tag), spec: Some(spec) };
        let done = self.request(|mut client| {
            let request = request.clone();
            async move { client.create_network(request).await.map(drop) }
        });
        let done = done.await;
        tracing::info!(client = self.number, ?request, ?done, "a network was asked for");
    }

    /// Creates or removes one of the networks that no service uses.
    pub(super) async fn change_networks(&mut self) {
        let name = FREE[self.rng.random_range(0..FREE.len())];
        if self.rng.random_bool(0.5) {
            return self.create_network(NetworkSpec { name: name.into(), ..NetworkSpec::default() }).await;
        }
        let tag = self.history.tag();
        let request = RemoveRequest { request_id: self.request_id(tag), name: name.to_owned(), ..Default::default() };
        let done = self.request(|mut client| {
            let request = request.clone();
            async move { client.remove_network(request).await.map(drop) }
        });
        let done = done.await;
        tracing::info!(client = self.number, name, ?done, "a network was to be removed");
    }
}
