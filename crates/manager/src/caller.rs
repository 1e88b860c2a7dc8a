//! Who makes a request of the Control API, and what of the cluster that caller sees and changes. `admission.rs` finds it out
//! for each request; `control/` asks it.

use std::sync::Arc;

use flota_api::LEVEL_OF_USERS;
use flota_api::id::NodeId;
use flota_api::model::{User, UserRole};
use flota_raft_store::{Origin, Tables, Transaction};

/// Who makes a request.
#[derive(Clone, Debug)]
pub(crate) enum Who {
    /// Root on the manager with this hostname, by its local socket.
    Root(String),
    /// A node.
    Node(NodeId),
    /// A user, and the key of the certificate that it has shown.
    User(Arc<User>, String),
    /// Nobody who is known: it may do nothing.
    Nobody,
}

/// The caller of a method.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) who: Who,
    /// The method, such as `CreateService`.
    pub(crate) method: String,
}

impl Caller {
    /// Returns a caller who may do nothing.
    pub(crate) fn nobody() -> Self {
        Self { who: Who::Nobody, method: String::new() }
    }

    /// Returns what people read of who has changed something.
    pub(crate) fn actor(&self) -> String {
        match &self.who {
            Who::Root(hostname) => format!("root@{hostname}"),
            Who::Node(id) => format!("node {id}"),
            Who::User(user, _) => user.name.clone(),
            Who::Nobody => "nobody".to_owned(),
        }
    }

    /// Returns the user, if the caller is one.
    pub(crate) fn user(&self) -> Option<&Arc<User>> {
        match &self.who {
            Who::User(user, _) => Some(user),
            Who::Root(_) | Who::Node(_) | Who::Nobody => None,
        }
    }

    /// Returns the key of the certificate that the caller has shown, if it is a user.
    pub(crate) fn key(&self) -> Option<&str> {
        match &self.who {
            Who::User(_, key) => Some(key),
            Who::Root(_) | Who::Node(_) | Who::Nobody => None,
        }
    }

    /// Whether the caller has this role or a higher one.
    pub(crate) fn is(&self, role: UserRole) -> bool {
        match &self.who {
            Who::Root(_) | Who::Node(_) => true,
            Who::User(user, _) => user.role >= role,
            Who::Nobody => false,
        }
    }

    /// Whether the caller sees and changes only objects with certain names.
    pub(crate) fn is_limited(&self) -> bool {
        match &self.who {
            Who::Root(_) | Who::Node(_) => false,
            Who::User(user, _) => !user.prefixes.is_empty(),
            Who::Nobody => true,
        }
    }

    /// Whether the caller sees the details of nodes.
    pub(crate) fn sees_nodes(&self) -> bool {
        self.is(UserRole::Operator) && !self.is_limited()
    }

    /// Whether the caller sees and may change an object with this name.
    pub(crate) fn sees(&self, name: &str) -> bool {
        match &self.who {
            Who::Root(_) | Who::Node(_) => true,
            Who::User(user, _) => {
                user.prefixes.is_empty() || user.prefixes.iter().any(|it| name.starts_with(it.as_str()))
            }
            Who::Nobody => false,
        }
    }

    /// Returns the prefixes that the caller is limited to, for people.
    pub(crate) fn prefixes(&self) -> String {
        self.user().map(|user| user.prefixes.join(", ")).unwrap_or_default()
    }

    /// Returns the key under which a request of this method is carried out once: its id, which is empty on the wire if the
    /// caller gave none, and the method, so that an id which is used for two methods stands for two requests. The requests of users have keys
    /// that no other caller's have, so nobody gets the answer to another's request.
    pub(crate) fn request_key(&self, method: &str, request_id: &str) -> Option<String> {
        let id = Some(request_id).filter(|id| !id.is_empty())?;
        Some(match &self.who {
            Who::User(user, _) => format!("user {} {method} {id}", user.id),
            Who::Root(_) | Who::Node(_) | Who::Nobody => format!("{method} {id}"),
        })
    }
}

/// Returns the transaction with who asks for it, of which applying it then leaves a record, if every manager knows what that is.
pub(crate) fn signed(view: &Tables, transaction: Transaction, actor: String, request: &str) -> Transaction {
    if view.cluster().is_none_or(|cluster| cluster.feature_level < LEVEL_OF_USERS) {
        return transaction;
    }
    Transaction { origin: Some(Origin { actor, request: request.to_owned() }), ..transaction }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::model::Cluster;
    use flota_api::object::StoreObject;

    fn user(role: UserRole, prefixes: &[&str]) -> Caller {
        let prefixes = prefixes.iter().map(ToString::to_string).collect();
        let user = User { id: "u1".into(), name: "ada".into(), role, prefixes, ..User::default() };
        Caller { who: Who::User(Arc::new(user), "k1".into()), method: "CreateService".into() }
    }

    #[test]
    fn a_limited_user_sees_the_names_that_begin_with_its_prefixes_and_everyone_else_all() {
        let limited = user(UserRole::Operator, &["a-", "shop"]);
        let seen: Vec<_> =
            ["a-web", "shop", "shop_web", "b-web", "a", "", "xa-web"].map(|name| limited.sees(name)).into();
        assert_eq!(seen, [true, true, true, false, false, false, false]);
        assert!(limited.is_limited() && !limited.sees_nodes());
        let whole = user(UserRole::Operator, &[]);
        assert!(!whole.is_limited() && whole.sees("anything") && whole.sees_nodes() && !whole.is(UserRole::Admin));
        assert!(!user(UserRole::Viewer, &[]).sees_nodes());
        let root = Caller { who: Who::Root("m1".into()), method: String::new() };
        assert!(root.sees("anything") && root.is(UserRole::Admin) && !root.is_limited());
        let nobody = Caller::nobody();
        assert!(!nobody.sees("") && !nobody.is(UserRole::Viewer) && nobody.is_limited());
    }

    #[test]
    fn nothing_is_recorded_while_a_manager_may_not_know_records() {
        let origin = |feature_level: u32| {
            let mut view = Tables::default();
            view.put(Cluster { feature_level, ..Cluster::default() }.into_object());
            signed(&view, Transaction::default(), "ada".into(), "CreateService").origin.map(|it| it.actor)
        };
        assert_eq!((origin(LEVEL_OF_USERS - 1), origin(LEVEL_OF_USERS)), (None, Some("ada".into())));
    }

    #[test]
    fn nobody_gets_the_answer_to_the_request_of_another() {
        let of = |caller: &Caller| caller.request_key("create_service", "7");
        let (ada, root) = (user(UserRole::Admin, &[]), Caller { who: Who::Root("m1".into()), method: String::new() });
        let other = User { id: "u2".into(), ..ada.user().expect("a user").as_ref().clone() };
        let again = Caller { who: Who::User(Arc::new(other), "k1".into()), method: String::new() };
        assert_eq!(of(&root).as_deref(), Some("create_service 7"), "as older builds have it");
        let keys = [of(&ada), of(&root), of(&again)];
        assert!(keys[0] != keys[1] && keys[0] != keys[2] && keys[1] != keys[2], "{keys:?}");
        assert_eq!(ada.request_key("create_service", ""), None);
    }
}
