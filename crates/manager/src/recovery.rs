//! Begins a cluster anew from the tables of one manager, or from those of a backup: services, tasks, networks, volumes and
//! workers stay, one manager leads alone, and the epoch rises. The daemon calls this between stopping a manager and starting
//! it on the changed tables; nothing here is replicated.
//!
//! The other managers are made nodes that have left. They may be alive, and may even be a majority of the old cluster, so
//! the new one is told apart from it by what the old one can't have:
//! - an epoch above every epoch that a worker can know, so that a worker that has followed the new cluster never goes back;
//! - a Raft id that was never given, so that no message of the old cluster is meant for this manager;
//! - revoked certificates of the old managers: the new cluster answers them only that they were removed.

use std::sync::Arc;

use flota_api::defaults::CERTIFICATE_LIFE;
use flota_api::id::{ClusterId, NodeId};
use flota_api::model::{Image, Node, NodeCertificate, NodeDescription, Role, StoredConfig, StoredSecret};
use flota_api::state::TaskState;
use flota_api::version::{Timestamp, Version};
use flota_api::{FEATURE_LEVEL, VERSION};
use flota_raft_store::{Conflict, Entry, Store, Tables, Transaction, WriteTx};

use crate::{caller, departure};

/// Why a cluster can't begin anew from these tables.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The tables are those of a manager that has not received anything yet.
    #[error("there is no cluster in the tables")]
    NoCluster,
    /// The cluster has removed the manager before.
    #[error("this node is not a manager in its own tables: the cluster has removed it")]
    NotAManager,
    /// The tables contradict themselves.
    #[error("failed to change the tables: {0}")]
    Conflict(#[from] Conflict),
}

/// The manager with which the cluster begins anew.
#[derive(Clone, Copy, Debug)]
pub enum OnlyManager<'a> {
    /// A manager of the cluster as it was.
    Member {
        /// Its node.
        id: &'a NodeId,
        /// `host:port` at which the other nodes reach it.
        address: &'a str,
    },
    /// A node that is new.
    New {
        /// The id in its certificate.
        id: &'a NodeId,
        /// `host:port` at which the other nodes reach it.
        address: &'a str,
        /// The machine's host name.
        hostname: &'a str,
        /// Its certificate, which the cluster's CA has issued.
        certificate: &'a NodeCertificate,
    },
}

/// What the cluster has become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBeginning {
    /// Its id, which stays the same.
    pub cluster_id: ClusterId,
    /// Its epoch.
    pub epoch: u64,
    /// The Raft id of its only manager.
    pub raft_id: u64,
}

/// Changes the tables in `store`, whose log ends at `end`, to those of the new beginning. `now` is the wall clock's time.
///
/// # Errors
/// There is no cluster in the tables, or the manager is not one of its managers. The tables may be changed in part.
pub fn begin_anew(
    store: &Store,
    end: Version,
    only: OnlyManager<'_>,
    now: Timestamp,
) -> Result<NewBeginning, RecoveryError> {
    let view = store.view();
    let mut cluster = view.cluster().ok_or(RecoveryError::NoCluster)?.as_ref().clone();
    // The seconds since 1970 are above the epoch of every beginning that these tables do not know of: that of the cluster
    // after a backup was made, and that of another manager with which somebody begins at the same time.
    cluster.epoch = (cluster.epoch + 1).max(now.0 / 1_000);
    // The same holds for Raft ids.
    let raft_id = cluster.next_raft_id.max(cluster.epoch);
    cluster.next_raft_id = raft_id + 1;
    let beginning = NewBeginning { cluster_id: cluster.id.clone(), epoch: cluster.epoch, raft_id };
    let mut tx = WriteTx::new(view.clone(), None);
    tx.update(cluster);
    let own = match only {
        OnlyManager::Member { id, address } => {
            let node = view.node(id).filter(|node| node.role == Role::Manager).ok_or(RecoveryError::NotAManager)?;
            tx.update(Node { raft_id: Some(raft_id), address: address.to_owned(), ..node.as_ref().clone() });
            id
        }
        OnlyManager::New { id, address, hostname, certificate } => {
            tx.create(Node {
                id: id.clone(),
                role: Role::Manager,
                raft_id: Some(raft_id),
                address: address.to_owned(),
                description: NodeDescription {
                    hostname: hostname.to_owned(),
                    program_version: VERSION.to_owned(),
                    feature_level: FEATURE_LEVEL,
                    ..NodeDescription::default()
                },
                state_since: now,
                certificates: vec![certificate.clone()],
                ..Node::default()
            });
            id
        }
    };
    let mut index = end.max(view.version);
    let mut apply = |transaction: Transaction| {
        index += 1;
        let entry = Entry { at: now, transactions: vec![transaction], ..Entry::default() };
        store.apply(index, entry).into_iter().collect::<Result<Vec<_>, _>>().map(drop)
    };
    let (actor, request) = match only {
        OnlyManager::Member { id, .. } => {
            (view.node(id).map(|node| node.description.hostname.clone()), "ForceNewCluster")
        }
        OnlyManager::New { hostname, .. } => (Some(hostname.to_owned()), "RestoreCluster"),
    };
    apply(caller::signed(&view, tx.finish(), format!("root@{}", actor.unwrap_or_default()), request))?;
    // The tables may be older than the last renewals of the nodes that stay.
    let stays = |node: &&Arc<Node>| node.id == *own || node.role == Role::Worker && !node.has_left();
    for node in view.nodes().filter(stays) {
        let view = store.view();
        let life = view.cluster().map_or(CERTIFICATE_LIFE, |cluster| cluster.certificate_life());
        let Some(mut node) = view.node(&node.id).map(|node| node.as_ref().clone()) else { continue };
        node.certificates.retain(|it| !it.is_unknown());
        node.certificates.insert(0, NodeCertificate::unknown(now + life));
        let mut tx = WriteTx::new(view, None);
        tx.update(node);
        apply(tx.finish())?;
    }
    for node in other_managers(&view, own) {
        let view = store.view();
        let mut tx = WriteTx::new(view.clone(), None);
        departure::depart(&mut tx, &view, node, now, now.max(view.time));
        apply(tx.finish())?;
    }
    Ok(beginning)
}

fn other_managers<'a>(view: &'a Tables, own: &'a NodeId) -> impl Iterator<Item = &'a Node> {
    view.nodes().map(AsRef::as_ref).filter(move |node| node.role == Role::Manager && node.id != *own)
}

/// What a cluster that begins anew keeps and loses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoverySurvey {
    /// Number of services.
    pub services: usize,
    /// Number of tasks that have not ended.
    pub tasks: usize,
    /// Number of networks.
    pub networks: usize,
    /// Number of volumes.
    pub volumes: usize,
    /// Number of secrets.
    pub secrets: usize,
    /// Number of configs.
    pub configs: usize,
    /// Number of images that a node holds.
    pub images: usize,
    /// Number of workers.
    pub workers: usize,
    /// Managers that are not part of the cluster any more.
    pub lost_managers: Vec<LostManager>,
    /// Names of images that no node holds any more; the digest of one without a name.
    pub lost_images: Vec<String>,
}

/// A manager that a cluster loses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LostManager {
    /// Its host name.
    pub name: String,
    /// `host:port`.
    pub address: String,
    /// Number of tasks that had not ended there.
    pub tasks: usize,
    /// Names of the volumes that have data there.
    pub volumes: Vec<String>,
}

/// Returns what a cluster that begins anew from these tables, with the manager `own`, keeps and loses.
pub fn survey(view: &Tables, own: &NodeId) -> RecoverySurvey {
    let has_ended = |state: TaskState| state.is_terminal();
    let lost = |node: &Node| LostManager {
        name: node.description.hostname.clone(),
        address: node.address.clone(),
        tasks: view.tasks_of_node(&node.id).filter(|task| !has_ended(task.status.state)).count(),
        volumes: view
            .volumes()
            .filter(|volume| volume.places.iter().any(|place| place.node_id == node.id))
            .map(|volume| volume.spec.name.clone())
            .collect(),
    };
    let stays =
        |id: &NodeId| id == own || view.node(id).is_some_and(|node| node.role == Role::Worker && !node.has_left());
    let (held, unheld): (Vec<_>, Vec<_>) = view.images().partition(|image| image.confirmed().any(stays));
    let name = |image: &Image| image.references.first().cloned().unwrap_or_else(|| image.digest.clone());
    RecoverySurvey {
        services: view.services().count(),
        tasks: view.tasks().filter(|task| !has_ended(task.status.state)).count(),
        networks: view.networks().count(),
        volumes: view.volumes().filter(|volume| !volume.is_removed).count(),
        secrets: view.all::<StoredSecret>().count(),
        configs: view.all::<StoredConfig>().count(),
        images: held.len(),
        workers: view.nodes().filter(|node| node.role == Role::Worker && !node.has_left()).count(),
        lost_managers: other_managers(view, own).map(lost).collect(),
        lost_images: unheld.into_iter().map(|image| name(image)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::LEVEL_OF_USERS;
    use flota_api::model::{
        Audit, Cluster, ImageHolder, NodeState, Service, Task, TaskStatus, Volume, VolumePlace, VolumeSpec,
    };
    use flota_api::object::StoreObject;

    const NOW: Timestamp = Timestamp(2_000_000);

    fn node(id: &str, role: Role, raft_id: Option<u64>) -> Node {
        let mut node = Node { id: id.into(), role, raft_id, state: NodeState::Ready, ..Node::default() };
        node.description.hostname = id.to_owned();
        node.address = format!("{id}:1");
        node
    }

    /// A cluster of three managers and a worker, whose tables are those after the entry 40.
    fn store(epoch: u64, next_raft_id: u64) -> Store {
        let store = Store::default();
        let mut tx = WriteTx::new(store.view(), None);
        let feature_level = LEVEL_OF_USERS;
        tx.create(Cluster { id: "c".into(), epoch, next_raft_id, feature_level, ..Cluster::default() });
        for number in 1..=3 {
            tx.create(node(&format!("m{number}"), Role::Manager, Some(number)));
        }
        tx.create(node("w1", Role::Worker, None));
        tx.create(Service { id: "s".into(), spec_version: 1, ..Service::default() });
        for (id, node, state) in
            [("t1", "m2", TaskState::Running), ("t2", "m2", TaskState::Failed), ("t3", "w1", TaskState::Running)]
        {
            let status = TaskStatus { state, ..TaskStatus::default() };
            let (service_id, node_id) = ("s".into(), Some(node.into()));
            tx.create(Task { id: id.into(), service_id, spec_version: 1, node_id, status, ..Task::default() });
        }
        let place = |node: &str| VolumePlace { slot: None, node_id: node.into() };
        let spec = VolumeSpec { name: "data".into(), ..VolumeSpec::default() };
        tx.create(Volume { id: "v".into(), spec, places: vec![place("m3"), place("w1")], ..Volume::default() });
        for (name, holder) in [("held", "w1"), ("lost", "m3")] {
            let holders = vec![ImageHolder { node_id: holder.into(), confirmed: true }];
            let (references, digest) = ([name.to_owned()].into(), format!("sha256:{name}"));
            tx.create(Image { id: name.into(), references, digest, holders, ..Image::default() });
        }
        store.apply(40, Entry { at: Timestamp(1_000_000), transactions: vec![tx.finish()], ..Entry::default() })[0]
            .as_ref()
            .expect("there is nothing to conflict with");
        store
    }

    fn member(id: &NodeId) -> OnlyManager<'_> {
        OnlyManager::Member { id, address: "m1:2" }
    }

    #[test]
    fn one_manager_stays_and_everything_but_the_others_with_it() {
        let store = store(1, 4);
        let before = store.view();
        let begun = begin_anew(&store, 50, member(&"m1".into()), NOW).expect("it is a manager");
        assert_eq!(begun, NewBeginning { cluster_id: "c".into(), epoch: 2_000, raft_id: 2_000 });
        let after = store.view();
        assert_eq!(after.version, 55, "behind the end of the log");
        let cluster = after.cluster().expect("it is there");
        assert_eq!((cluster.epoch, cluster.next_raft_id), (2_000, 2_001));
        let own = after.node("m1").expect("it stays");
        assert_eq!((own.role, own.raft_id, own.address.as_str()), (Role::Manager, Some(2_000), "m1:2"));
        for id in ["m2", "m3"] {
            assert!(after.node(id).expect("its object stays").has_left(), "{id}");
            assert!(cluster.revoked.iter().any(|it| it.node_id.as_str() == id), "{id}");
        }
        let [worker, known] = [&after, &before].map(|view| Node::clone(view.node("w1").expect("it stays")));
        let any = NodeCertificate::unknown(NOW + CERTIFICATE_LIFE);
        assert_eq!(worker.certificates, [any], "it may have renewed since");
        assert_eq!(Node { certificates: Vec::new(), meta: known.meta.clone(), ..worker }, known);
        let rest = |view: &Tables| (view.services().count(), view.tasks().count(), view.volumes().count());
        assert_eq!(rest(&after), rest(&before));
    }

    #[test]
    fn the_epoch_and_the_raft_id_are_above_all_that_were_before() {
        // Another beginning that these tables do not know of was up to 1,999 seconds after 1970.
        for (epoch, next, expected) in [(1, 4, (2_000, 2_000)), (5_000, 4, (5_001, 5_001)), (1, 9_000, (2_000, 9_000))]
        {
            let begun = begin_anew(&store(epoch, next), 40, member(&"m1".into()), NOW).expect("it is a manager");
            assert_eq!((begun.epoch, begun.raft_id), expected);
        }
    }

    #[test]
    fn a_new_node_leads_a_cluster_from_a_backup() {
        let store = store(1, 4);
        let id = "new".into();
        let certificate = NodeCertificate::default();
        let only = OnlyManager::New { id: &id, address: "n:1", hostname: "n", certificate: &certificate };
        let begun = begin_anew(&store, 0, only, NOW).expect("there is a cluster");
        let view = store.view();
        let managers: Vec<_> = view.nodes().filter(|node| node.role == Role::Manager).collect();
        assert_eq!(managers.len(), 1);
        assert_eq!((managers[0].id.as_str(), managers[0].raft_id), ("new", Some(begun.raft_id)));
        assert_eq!(managers[0].certificates, [certificate], "it may renew");
        assert_eq!(view.nodes().filter(|node| node.has_left()).count(), 3);
        let audit = view.all::<Audit>().next().expect("users can see later who did it");
        assert_eq!((audit.actor.as_str(), audit.request.as_str()), ("root@n", "RestoreCluster"));
    }

    #[test]
    fn a_node_that_is_no_manager_and_tables_without_a_cluster_are_refused() {
        let refused = begin_anew(&store(1, 4), 40, member(&"w1".into()), NOW);
        assert!(matches!(refused, Err(RecoveryError::NotAManager)), "{refused:?}");
        let refused = begin_anew(&Store::default(), 40, member(&"m1".into()), NOW);
        assert!(matches!(refused, Err(RecoveryError::NoCluster)), "{refused:?}");
    }

    #[test]
    fn a_survey_names_what_is_lost_with_the_other_managers() {
        let mut store = Tables::clone(&store(1, 4).view());
        store.put(node("gone", Role::Worker, None).into_object());
        let lost = |name: &str, tasks, volumes: &[&str]| LostManager {
            name: name.into(),
            address: format!("{name}:1"),
            tasks,
            volumes: volumes.iter().map(ToString::to_string).collect(),
        };
        let expected = RecoverySurvey {
            services: 1,
            tasks: 2,
            volumes: 1,
            images: 1,
            workers: 2,
            lost_managers: vec![lost("m2", 1, &[]), lost("m3", 0, &["data"])],
            lost_images: vec!["lost".into()],
            ..RecoverySurvey::default()
        };
        assert_eq!(survey(&store, &"m1".into()), expected);
        let all = survey(&store, &"new".into());
        assert_eq!(all.lost_managers.len(), 3, "a backup brings back none of its managers");
    }
}
