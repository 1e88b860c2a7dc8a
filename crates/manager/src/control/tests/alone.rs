//! The operations of a manager that leads alone, on a store in memory and with a registry that is a fake.

use std::sync::atomic::{AtomicBool, Ordering};

use flota_api::clock::Clock;
use flota_api::object::StoreObject;
use flota_api::version::Timestamp;
use flota_raft_store::{LocalProposer, Proposer, WriteTx};

use super::super::*;
use crate::caller::Who;
use crate::dispatcher::Sessions;
use crate::resolver::tests::FakeRegistry;

pub(super) const OWN_RAFT_ID: u64 = 7;
/// Raft id of a voter that does not answer.
pub(super) const SILENT_RAFT_ID: u64 = 9;

/// A fake consensus of a single manager.
#[derive(Clone)]
pub(in crate::control) struct Alone {
    proposer: LocalProposer,
    leads: Arc<AtomicBool>,
    /// Dropped when this manager stops.
    leading: Arc<watch::Sender<Option<CancellationToken>>>,
}

impl Alone {
    fn check(&self) -> Result<(), ProposeError> {
        if self.leads.load(Ordering::Relaxed) { Ok(()) } else { Err(ProposeError::NotLeader) }
    }
}

impl Consensus for Alone {
    async fn propose(&self, transaction: Transaction) -> Result<(), ProposeError> {
        self.check()?;
        Proposer::propose(&self.proposer, transaction).await.map(drop)
    }

    async fn read_barrier(&self) -> Result<(), ProposeError> {
        self.check()
    }
}

impl Member for Alone {
    fn id(&self) -> u64 {
        OWN_RAFT_ID
    }

    fn leader(&self) -> Option<u64> {
        Some(OWN_RAFT_ID)
    }

    fn age(&self) -> Option<Duration> {
        Some(Duration::from_secs(3))
    }

    async fn freshen(&self) {}

    async fn quorum(&self) -> Quorum {
        Quorum { voters: [OWN_RAFT_ID, 8, SILENT_RAFT_ID].into(), caught_up: [OWN_RAFT_ID, 8].into() }
    }

    async fn gone(&self, _: u64) -> Result<(), ProposeError> {
        Ok(())
    }

    fn members(&self) -> Vec<raft::Member> {
        let voter = |id| raft::Member { id, address: String::new(), votes: true };
        [OWN_RAFT_ID, 8, SILENT_RAFT_ID].map(voter).into()
    }

    async fn hand_over(&self, to: BTreeSet<u64>) {
        assert!(to.contains(&8));
        self.leads.store(false, Ordering::Relaxed);
    }
}

impl Control<Alone> {
    pub(in crate::control) fn alone() -> Self {
        Self::with_registry(Arc::new(FakeRegistry::default()))
    }

    pub(super) fn with_registry(registry: Arc<FakeRegistry>) -> Self {
        let store = Store::default();
        let member = Alone {
            proposer: LocalProposer::new(store.clone()),
            leads: Arc::new(true.into()),
            leading: Arc::new(watch::Sender::new(Some(CancellationToken::new()))),
        };
        let leading = member.leading.subscribe();
        let clock = TermClock::new(Clock::new(|| Timestamp(1_000)));
        let (random, resolver) = (Random::seeded(1), Resolver::new(registry));
        let streams = StreamBroker::new(Sessions::default(), random.clone());
        let (programmed, event_streams) = (Programmed::default(), events::permits());
        let (places, caller) = (OpenStreams::default(), Caller { who: Who::Root("m1".into()), method: "Test".into() });
        Self { store, member, clock, random, resolver, programmed, streams, leading, event_streams, places, caller }
    }

    pub(in crate::control) async fn put(&self, object: impl StoreObject) {
        let mut tx = WriteTx::new(self.store.view(), None);
        tx.create(object);
        self.member.propose(tx.finish()).await.expect("it is new");
    }

    pub(super) async fn replace(&self, object: impl StoreObject) {
        let mut tx = WriteTx::new(self.store.view(), None);
        tx.update(object);
        self.member.propose(tx.finish()).await.expect("nobody else changes it");
    }

    pub(super) fn depose(&self) {
        self.member.leads.store(false, Ordering::Relaxed);
    }
}
