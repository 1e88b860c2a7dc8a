//! The networks of a simulated node: what the leader describes is programmed at once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use flota_api::id::TaskId;
use flota_api::model::{NetworkUpdate, NodePort};
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
        self.facts.send_replace(NetworkFacts { ports, ..NetworkFacts::default() });
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

    fn facts(&self) -> watch::Receiver<NetworkFacts> {
        self.facts.subscribe()
    }
}
