//! Assembles one manager from its parts, and serves them. The daemon and the simulation start it; no part imports it.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use flota_api::clock::Random;
use flota_api::id::NodeId;
use flota_api::image_ref::ImageRef;
use flota_api::model::RegistryCredentials;
use flota_api::proto::ca::node_ca_server::NodeCaServer;
use flota_api::proto::ca::{RenewCertificateRequest, RenewCertificateResponse};
use flota_api::proto::control::control_server::ControlServer;
use flota_api::proto::dispatcher::dispatcher_server::DispatcherServer;
use flota_api::proto::streams::streams_server::StreamsServer;
use flota_api::reason::Reason;
use flota_identity::{Dialer, Peer};
use flota_raft_store::raft::{Leadership, Member, RaftNode, Threads};
use flota_raft_store::{Store, Tables};

use crate::admission::Admission;
use crate::ca::CaService;
use crate::control::ControlService;
use crate::control_loop::{LoopCounters, LoopStatistics};
use crate::dispatcher::{Dispatcher, DispatcherService};
use crate::forward::{Forward, LeaderChannel};
use crate::leader;
use crate::replica::Replica;
use crate::resolver::{self, DigestLookup, Resolver};
use crate::rights;
use crate::streams::{StreamBroker, StreamsService};
use crate::term_clock::TermClock;

/// Options with which a manager starts.
#[derive(Debug)]
pub struct ManagerOptions {
    /// The tables that `raft` applies entries to.
    pub store: Store,
    /// This manager's part in Raft.
    pub raft: RaftNode,
    /// Opens connections to the other managers.
    pub dialer: Dialer,
    /// The manager's clock. The Raft node must stamp its entries with the same one ([`TermClock::as_clock`]).
    pub clock: TermClock,
    /// The source of new ids and secrets.
    pub random: Random,
    /// How this machine asks registries what names of images stand for.
    pub registries: Arc<dyn DigestLookup>,
    /// Where the leader's control loops plan.
    pub threads: Threads,
}

/// A running manager. Clones are the same manager.
#[derive(Clone, Debug)]
pub struct Manager {
    replica: Replica,
    leader: Arc<LeaderChannel>,
    dispatcher: Dispatcher,
    streams: StreamBroker,
    control: Admission<ControlServer<ControlService>>,
    loops: LoopCounters,
}

impl Manager {
    /// Starts to follow leadership, until `shutdown` is cancelled. Cancels `fatal` if the Raft core stops by itself.
    pub fn start(options: ManagerOptions, shutdown: CancellationToken, fatal: CancellationToken) -> Self {
        let ManagerOptions { store, raft, dialer, clock, random, registries, threads } = options;
        let (sender, leading) = watch::channel(None);
        let replica = Replica { store, raft, clock, random, leading };
        let dispatcher = Dispatcher::start(replica.clone());
        let streams = StreamBroker::new(dispatcher.sessions().clone(), replica.random.clone());
        let loops = LoopCounters::default();
        let counters = loops.clone();
        let parts = leader::Parts { replica: replica.clone(), dispatcher: dispatcher.clone(), threads, counters };
        tokio::spawn(leader::follow(parts, sender, shutdown, fatal));
        let (resolver, programmed) = (Resolver::new(registries), dispatcher.programmed().clone());
        // One for all callers, who share its bounds.
        let control = ControlService::server(&replica, resolver, programmed, streams.clone());
        let control = Admission::new(control, replica.clone());
        Self { replica, leader: Arc::new(LeaderChannel::new(dialer)), dispatcher, streams, control, loops }
    }

    /// Returns the manager's copy of the store.
    pub fn store(&self) -> &Store {
        &self.replica.store
    }

    /// Returns the manager's part in Raft.
    pub fn raft(&self) -> &RaftNode {
        &self.replica.raft
    }

    /// Returns whether this manager leads and has started its work.
    pub fn leads(&self) -> bool {
        self.replica.leads()
    }

    /// Returns the number of workers that have a session with this manager.
    pub fn sessions(&self) -> usize {
        self.dispatcher.sessions().count()
    }

    /// Returns the number of tasks, since this daemon started, that were told to stop although nodes had not confirmed that they
    /// send them no more connections.
    pub fn unconfirmed_stops(&self) -> u64 {
        self.dispatcher.programmed().unconfirmed_stops()
    }

    /// Returns counts of what the control loops have done here.
    pub fn loop_statistics(&self) -> LoopStatistics {
        self.loops.read()
    }

    /// Returns how many drivers of control loops run here: one while this manager leads, else none.
    pub fn running_loops(&self) -> u64 {
        self.loops.running()
    }

    /// Returns the current leadership as Raft knows it.
    pub fn leadership(&self) -> Leadership {
        self.replica.leadership()
    }

    /// Returns the credentials for the registry of this image, if a user has logged in there. They are only for this
    /// machine's own root, who can read the store anyway.
    pub fn credentials(&self, reference: &ImageRef) -> Option<RegistryCredentials> {
        resolver::credentials(reference, &self.replica.store.view())
    }

    /// Returns why this node is refused although its certificate is valid, if it is.
    pub fn bars(&self, node: &NodeId) -> Option<Reason> {
        bars(&self.replica.store.view(), &self.replica.raft.members(), node)
    }

    /// Returns the caller of the method at `path` with the role that the store gives it; `None` if it may do nothing. Callers
    /// that are not nodes are as they were.
    pub fn rightful(&self, peer: &Peer, path: &str) -> Option<Peer> {
        let Peer::Node { id, address, key, .. } = peer else { return Some(peer.clone()) };
        let is_member = |raft_id| self.replica.raft.members().iter().any(|member| member.id == raft_id);
        let role = rights::role_for(&self.replica.store.view(), peer, path, is_member)?;
        Some(Peer::Node { id: id.clone(), role, address: *address, key: key.clone() })
    }

    /// Signs this manager's own request for another certificate with its copy of the store, because no leader can.
    ///
    /// # Errors
    /// The copy is empty, or the leader would refuse the request.
    pub fn renew_without_leader(&self, request: &RenewCertificateRequest) -> Result<RenewCertificateResponse, Status> {
        CaService::renew_without_leader(self.replica.clone(), self.dispatcher.sessions().clone(), request)
    }

    /// Returns the NodeCa service; a follower forwards its requests to the leader.
    pub fn ca(&self) -> Forward<NodeCaServer<CaService>> {
        self.forward(CaService::server(self.replica.clone(), self.dispatcher.sessions().clone()))
    }

    /// Returns the Control service; a follower forwards its requests to the leader.
    pub fn control(&self) -> Forward<Admission<ControlServer<ControlService>>> {
        self.forward(self.control.clone())
    }

    /// Returns the Dispatcher service; a follower names the leader to the worker.
    pub fn dispatcher(&self) -> DispatcherServer<DispatcherService> {
        self.dispatcher.server()
    }

    /// Returns the Streams service, on which workers open the streams that this manager requested.
    pub fn streams(&self) -> StreamsServer<StreamsService> {
        StreamsService::server(self.streams.clone())
    }

    fn forward<S>(&self, service: S) -> Forward<S> {
        Forward::new(service, self.replica.clone(), Arc::clone(&self.leader))
    }
}

/// Returns why a node is refused: the cluster has removed it. While Raft still counts on a manager that leaves, its
/// requests are only denied. If it learned of its removal, it would stop, and of two managers the other one alone could not
/// take it out of Raft's membership.
fn bars(view: &Tables, members: &[Member], node: &NodeId) -> Option<Reason> {
    view.cluster()?.revoked.iter().find(|it| it.node_id == *node)?;
    let raft_id = view.node(node).and_then(|node| node.raft_id);
    let is_counted = raft_id.is_some_and(|id| members.iter().any(|member| member.id == id));
    Some(if is_counted { Reason::Denied } else { Reason::NodeRemoved })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::{Cluster, Node, Revoked};
    use flota_api::object::StoreObject;
    use flota_api::version::Timestamp;

    #[test]
    fn a_manager_that_leaves_is_told_only_when_raft_does_not_count_on_it_any_more() {
        let member = |id| Member { id, address: format!("m{id}:1"), votes: true };
        let node =
            |raft_id| Node { id: format!("m{raft_id}").as_str().into(), raft_id: Some(raft_id), ..Node::default() };
        let revoked = |id: &str| Revoked { node_id: id.into(), until: Timestamp(9) };
        let mut view = Tables::default();
        view.put(Cluster { revoked: vec![revoked("m2"), revoked("gone")], ..Cluster::default() }.into_object());
        [1, 2].into_iter().for_each(|raft_id| view.put(node(raft_id).into_object()));
        let both = [member(1), member(2)];
        assert_eq!(bars(&view, &both, &"m1".into()), None);
        assert_eq!(bars(&view, &both, &"m2".into()), Some(Reason::Denied));
        assert_eq!(bars(&view, &both[..1], &"m2".into()), Some(Reason::NodeRemoved));
        assert_eq!(bars(&view, &both, &"gone".into()), Some(Reason::NodeRemoved));
        assert_eq!(bars(&Tables::default(), &both, &"m2".into()), None, "nothing has arrived here yet");
    }
}
