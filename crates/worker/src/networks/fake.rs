//! The networks of a simulated node: what the leader describes is programmed at once.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use flota_api::id::TaskId;
use flota_api::model::{NetworkUpdate, NodePort, TunnelKey};
use flota_api::version::Version;

use super::view::View;
use super::{NetworkFacts, NodeNetworks};

/// Networks in memory. Clones share them.
#[derive(Clone, Debug)]
pub struct FakeNetworks {
    view: Arc<Mutex<View>>,
    programmed: watch::Sender<Version>,
    facts: watch::Sender<NetworkFacts>,
}

impl Default for FakeNetworks {
    fn default() -> Self {
        let (programmed, facts) = (watch::channel(Version::default()).0, watch::channel(NetworkFacts::default()).0);
        Self { view: Arc::default(), programmed, facts }
    }
}

impl FakeNetworks {
    /// Returns the tasks to which this node sends connections, in any of its networks.
    pub fn serving(&self) -> BTreeSet<TaskId> {
        let view = self.view.lock().expect("no holder panics");
        let endpoints = view.networks.values().flat_map(|network| network.endpoints.values());
        endpoints.filter(|it| it.serving).map(|it| it.task.clone()).collect()
    }

    /// Lets programs of the node itself listen on exactly these ports.
    pub fn listen(&self, ports: BTreeSet<NodePort>) {
        self.facts.send_modify(|facts| facts.ports = ports);
    }

    /// Makes these the node's keys for encrypted networks, oldest first.
    pub fn set_keys(&self, tunnel_keys: Vec<TunnelKey>) {
        self.facts.send_modify(|facts| facts.tunnel_keys = tunnel_keys);
    }

    /// Returns the version of the last update.
    pub fn version(&self) -> Version {
        *self.programmed.borrow()
    }
}

impl NodeNetworks for FakeNetworks {
    fn update(&self, update: NetworkUpdate) {
        let version = update.version;
        self.view.lock().expect("no holder panics").apply(update);
        self.programmed.send_replace(version);
    }

    fn programmed(&self) -> watch::Receiver<Version> {
        self.programmed.subscribe()
    }

    fn set_managers(&self, _: BTreeSet<IpAddr>) {}

    fn key_known(&self, public: [u8; 32]) {
        self.facts.send_if_modified(|facts| {
            let older = facts.tunnel_keys.iter().position(|it| it.public == public).unwrap_or_default();
            facts.tunnel_keys.drain(..older).count() > 0
        });
    }

    fn facts(&self) -> watch::Receiver<NetworkFacts> {
        self.facts.subscribe()
    }
}
