//! The one table of which callers may call which methods. What a user may do also depends on the role and the prefixes that
//! the store has for it, which the manager looks up for each call (`manager/admission.rs`).

use flota_api::model::{Role, UserRole};

use crate::peer::Peer;

/// Which nodes may call a method, and whether this machine's root may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Callers {
    Local,
    LocalAndManagers,
    Managers,
    Nodes,
    Everyone,
}

/// What a user needs for calling a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserRights {
    /// The lowest role that may.
    pub role: UserRole,
    /// Whether a user may who is limited to prefixes, and then sees and changes only what they allow.
    pub limited: bool,
}

/// For those with this role or a higher one. Limited users may within their prefixes.
const fn from(role: UserRole) -> Option<UserRights> {
    Some(UserRights { role, limited: true })
}

/// For those with this role or a higher one who are not limited, because the method is about the whole cluster.
const fn whole(role: UserRole) -> Option<UserRights> {
    Some(UserRights { role, limited: false })
}

const VIEWER: Option<UserRights> = from(UserRole::Viewer);
const OPERATOR: Option<UserRights> = from(UserRole::Operator);
const ADMIN: Option<UserRights> = whole(UserRole::Admin);

/// A method with the nodes and the users that may call it.
type Row = (&'static str, Callers, Option<UserRights>);

/// The methods of services, each with the nodes and the users that may call it. Nobody may call what is not here.
const TABLE: &[(&str, &[Row])] = &[
    (
        "flota.node.LocalNode",
        &[
            ("Info", Callers::Local, None),
            ("Init", Callers::Local, None),
            ("ForceNewCluster", Callers::Local, None),
            ("Backup", Callers::Local, None),
            ("Restore", Callers::Local, None),
            ("Join", Callers::Local, None),
            ("Unlock", Callers::Local, None),
            ("Leave", Callers::Local, None),
            ("Reconnect", Callers::Local, None),
            ("StopTasks", Callers::Local, None),
            ("ImportImage", Callers::Local, None),
            ("PackImage", Callers::Local, None),
            ("PullImage", Callers::Local, None),
        ],
    ),
    ("flota.control.Control", CONTROL),
    (
        "flota.raft.RaftTransport",
        &[
            ("Append", Callers::Managers, None),
            ("AppendOne", Callers::Managers, None),
            ("Vote", Callers::Managers, None),
            ("PreVote", Callers::Managers, None),
            ("TransferLeader", Callers::Managers, None),
            ("Snapshot", Callers::Managers, None),
            ("Digest", Callers::Managers, None),
            ("ReadIndex", Callers::Managers, None),
        ],
    ),
    (
        "flota.ca.NodeCa",
        &[
            ("IssueCertificate", Callers::Everyone, None),
            // The request shows by a signature who sends it, since the certificate may have expired.
            ("RenewCertificate", Callers::Everyone, None),
            ("ConfirmTrust", Callers::Nodes, None),
            ("JoinRaft", Callers::Managers, None),
            ("LeaveRaft", Callers::Nodes, None),
        ],
    ),
    ("flota.dispatcher.Dispatcher", &[("Session", Callers::Nodes, None)]),
    ("flota.streams.Streams", &[("Data", Callers::Nodes, None)]),
    ("flota.images.ImageStore", &[("GetBlob", Callers::Nodes, None)]),
];

const CONTROL: &[Row] = &[
    // Only admins get the tokens that are in it.
    ("GetCluster", Callers::LocalAndManagers, VIEWER),
    ("RotateJoinToken", Callers::LocalAndManagers, ADMIN),
    ("UpdateCluster", Callers::LocalAndManagers, ADMIN),
    ("Rebalance", Callers::LocalAndManagers, ADMIN),
    ("GetUnlockKey", Callers::LocalAndManagers, ADMIN),
    ("RotateUnlockKey", Callers::LocalAndManagers, ADMIN),
    ("GetCa", Callers::LocalAndManagers, VIEWER),
    ("RotateCa", Callers::LocalAndManagers, ADMIN),
    // Viewers and limited users get names and states.
    ("GetNode", Callers::LocalAndManagers, VIEWER),
    ("ListNodes", Callers::LocalAndManagers, VIEWER),
    ("UpdateNode", Callers::LocalAndManagers, ADMIN),
    ("RemoveNode", Callers::LocalAndManagers, ADMIN),
    ("ChangeRole", Callers::LocalAndManagers, ADMIN),
    ("GetService", Callers::LocalAndManagers, VIEWER),
    ("CreateService", Callers::LocalAndManagers, OPERATOR),
    ("UpdateService", Callers::LocalAndManagers, OPERATOR),
    ("RemoveService", Callers::LocalAndManagers, OPERATOR),
    ("RollbackService", Callers::LocalAndManagers, OPERATOR),
    ("PauseUpdate", Callers::LocalAndManagers, OPERATOR),
    ("RunService", Callers::LocalAndManagers, OPERATOR),
    ("GetServiceHistory", Callers::LocalAndManagers, VIEWER),
    ("ListServices", Callers::LocalAndManagers, VIEWER),
    ("WatchService", Callers::LocalAndManagers, VIEWER),
    ("GetTask", Callers::LocalAndManagers, VIEWER),
    ("ListTasks", Callers::LocalAndManagers, VIEWER),
    ("RemoveTask", Callers::LocalAndManagers, OPERATOR),
    // Only admins get the records of changes.
    ("WatchEvents", Callers::LocalAndManagers, VIEWER),
    ("GetStack", Callers::LocalAndManagers, VIEWER),
    ("DeployStack", Callers::LocalAndManagers, OPERATOR),
    ("ListStacks", Callers::LocalAndManagers, VIEWER),
    ("RemoveStack", Callers::LocalAndManagers, OPERATOR),
    ("GetImage", Callers::LocalAndManagers, whole(UserRole::Viewer)),
    ("ListImages", Callers::LocalAndManagers, whole(UserRole::Viewer)),
    ("NameImage", Callers::LocalAndManagers, ADMIN),
    ("RemoveImage", Callers::LocalAndManagers, ADMIN),
    ("WatchImage", Callers::LocalAndManagers, whole(UserRole::Viewer)),
    ("GetVolume", Callers::LocalAndManagers, VIEWER),
    ("CreateVolume", Callers::LocalAndManagers, OPERATOR),
    ("RemoveVolume", Callers::LocalAndManagers, OPERATOR),
    ("ListVolumes", Callers::LocalAndManagers, VIEWER),
    // Viewers see configs, and no secrets.
    ("GetValue", Callers::LocalAndManagers, VIEWER),
    ("CreateValue", Callers::LocalAndManagers, OPERATOR),
    ("UpdateValue", Callers::LocalAndManagers, OPERATOR),
    ("RemoveValue", Callers::LocalAndManagers, OPERATOR),
    ("ListValues", Callers::LocalAndManagers, VIEWER),
    ("GetRegistry", Callers::LocalAndManagers, whole(UserRole::Operator)),
    ("PutRegistry", Callers::LocalAndManagers, ADMIN),
    ("RemoveRegistry", Callers::LocalAndManagers, ADMIN),
    ("ListRegistries", Callers::LocalAndManagers, whole(UserRole::Operator)),
    ("GetNetwork", Callers::LocalAndManagers, VIEWER),
    ("CreateNetwork", Callers::LocalAndManagers, OPERATOR),
    ("RemoveNetwork", Callers::LocalAndManagers, OPERATOR),
    // It sends probes.
    ("CheckNetwork", Callers::LocalAndManagers, OPERATOR),
    ("ListNetworks", Callers::LocalAndManagers, VIEWER),
    ("CheckForward", Callers::LocalAndManagers, OPERATOR),
    // Viewers may read logs, and open no other stream.
    ("OpenStream", Callers::LocalAndManagers, VIEWER),
    ("CreateUser", Callers::LocalAndManagers, ADMIN),
    // Everyone for themselves, admins for everyone.
    ("RenewUser", Callers::LocalAndManagers, VIEWER),
    ("RemoveUser", Callers::LocalAndManagers, ADMIN),
    ("ListUsers", Callers::LocalAndManagers, ADMIN),
];

fn row(path: &str) -> Option<(Callers, Option<UserRights>)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let (_, methods) = TABLE.iter().find(|(name, _)| *name == service)?;
    methods.iter().find(|(name, ..)| *name == method).map(|(_, callers, users)| (*callers, *users))
}

/// Returns what a user needs for calling the gRPC method at `path`; `None` if no user may.
pub fn user_rights(path: &str) -> Option<UserRights> {
    row(path)?.1
}

/// Whether `peer` may call the gRPC method at `path`; a user, if it has the rights of [`user_rights`].
pub fn may_call(peer: &Peer, path: &str) -> bool {
    let Some((callers, users)) = row(path) else { return false };
    let manager = matches!(peer, Peer::Node { role: Role::Manager, .. });
    match (peer, callers) {
        (Peer::User { .. }, _) => users.is_some(),
        (_, Callers::Everyone) => true,
        (_, Callers::Local) => *peer == Peer::Local,
        (_, Callers::LocalAndManagers) => *peer == Peer::Local || manager,
        (_, Callers::Managers) => manager,
        (_, Callers::Nodes) => matches!(peer, Peer::Node { .. }),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use flota_api::METHODS;

    #[test]
    fn every_method_of_every_service_has_a_row_and_every_row_a_method() {
        let missing: Vec<_> = METHODS.iter().filter(|path| row(path).is_none()).collect();
        assert!(missing.is_empty(), "no row of the table says who may call {missing:?}");
        let rows =
            TABLE.iter().flat_map(|(service, methods)| methods.iter().map(move |it| format!("/{service}/{}", it.0)));
        let rows: Vec<_> = rows.collect();
        assert_eq!(rows.len(), METHODS.len());
        assert!(rows.iter().all(|path| METHODS.contains(&path.as_str())), "{rows:?}");
    }

    #[test]
    fn each_caller_may_call_its_methods_and_no_others() {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let worker = Peer::Node { id: "w".into(), role: Role::Worker, address, key: String::new() };
        let manager = Peer::Node { id: "m".into(), role: Role::Manager, address, key: String::new() };
        let user = Peer::User { name: "ada".into(), key: String::new(), address };
        let anonymous = Peer::Anonymous { address };
        let expected = |path| [&Peer::Local, &manager, &worker, &user, &anonymous].map(|peer| may_call(peer, path));
        assert_eq!(expected("/flota.node.LocalNode/Init"), [true, false, false, false, false]);
        assert_eq!(expected("/flota.control.Control/ListNodes"), [true, true, false, true, false]);
        assert_eq!(expected("/flota.raft.RaftTransport/Vote"), [false, true, false, false, false]);
        assert_eq!(expected("/flota.dispatcher.Dispatcher/Session"), [false, true, true, false, false]);
        assert_eq!(expected("/flota.streams.Streams/Data"), [false, true, true, false, false]);
        assert_eq!(expected("/flota.images.ImageStore/GetBlob"), [false, true, true, false, false]);
        assert_eq!(expected("/flota.ca.NodeCa/IssueCertificate"), [true, true, true, false, true]);
        assert_eq!(expected("/flota.ca.NodeCa/RenewCertificate"), [true, true, true, false, true]);
        assert_eq!(expected("/flota.ca.NodeCa/ConfirmTrust"), [false, true, true, false, false]);
        assert_eq!(expected("/flota.ca.NodeCa/JoinRaft"), [false, true, false, false, false]);
        for unknown in ["/grpc.health.v1.Health/Check", "/flota.control.Control/", "/flota.control.Control/GetClusterX"]
        {
            assert_eq!(expected(unknown), [false; 5], "{unknown}");
        }
    }

    #[test]
    fn a_stolen_worker_may_call_only_what_its_own_work_needs() {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let worker = Peer::Node { id: "w".into(), role: Role::Worker, address, key: String::new() };
        let allowed: Vec<_> = METHODS.iter().filter(|path| may_call(&worker, path)).copied().collect();
        let mut expected = vec![
            // Its own session, the streams that it was asked for there, and blobs that a grant of the leader names.
            "/flota.dispatcher.Dispatcher/Session",
            "/flota.streams.Streams/Data",
            "/flota.images.ImageStore/GetBlob",
            // With a token or its own key; and what it says of itself.
            "/flota.ca.NodeCa/IssueCertificate",
            "/flota.ca.NodeCa/RenewCertificate",
            "/flota.ca.NodeCa/ConfirmTrust",
            "/flota.ca.NodeCa/LeaveRaft",
        ];
        expected.sort_unstable();
        let mut allowed = allowed;
        allowed.sort_unstable();
        assert_eq!(allowed, expected);
    }

    #[test]
    fn viewers_change_nothing_and_operators_nothing_of_the_cluster_itself() {
        let of = |role: UserRole, limited: bool| {
            let may = |rights: UserRights| role >= rights.role && (rights.limited || !limited);
            let paths = METHODS.iter().filter(move |path| user_rights(path).is_some_and(may));
            paths.filter_map(|path| path.rsplit_once('/')).map(|(_, method)| method).collect::<Vec<_>>()
        };
        let reads = ["Get", "List", "Watch", "OpenStream", "RenewUser"];
        let viewer = of(UserRole::Viewer, false);
        assert!(viewer.iter().all(|method| reads.iter().any(|begin| method.starts_with(begin))), "{viewer:?}");
        assert!(!viewer.contains(&"ListUsers") && !viewer.contains(&"ListRegistries"), "{viewer:?}");
        let operator = of(UserRole::Operator, false);
        for method in [
            "UpdateCluster",
            "RotateJoinToken",
            "RotateCa",
            "GetUnlockKey",
            "RotateUnlockKey",
            "UpdateNode",
            "RemoveNode",
            "ChangeRole",
            "CreateUser",
            "RemoveUser",
        ] {
            assert!(!operator.contains(&method), "{method}");
            assert!(of(UserRole::Admin, false).contains(&method), "{method}");
        }
        for method in ["CreateService", "DeployStack", "RemoveVolume", "CreateNetwork", "UpdateValue", "RemoveTask"] {
            assert!(operator.contains(&method) && of(UserRole::Operator, true).contains(&method), "{method}");
        }
        assert!(!of(UserRole::Operator, true).contains(&"ListImages"), "images belong to nobody's prefix");
        let local = METHODS.iter().filter(|path| path.starts_with("/flota.control.") && user_rights(path).is_none());
        assert_eq!(local.count(), 0, "every request of root on a manager is one that an admin may make");
    }
}
