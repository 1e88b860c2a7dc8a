//! Transactions: changes together with the conditions under which they apply; and their encoding in the log.

use prost::Message;

use crate::digest::Digest;
use crate::level::{self, NewerLevel};
use flota_api::Malformed;
use flota_api::id::{Id, NodeId, TaskId};
use flota_api::model::{Cluster, TaskStatus};
use flota_api::object::{Kind, Object};
use flota_api::proto::raft as pr;
use flota_api::version::{Timestamp, Version};

/// An object was not as a transaction expected, so nothing of the transaction was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum Conflict {
    /// The object was changed, removed or created meanwhile.
    #[error("{kind} `{id}` has changed meanwhile")]
    Changed {
        /// Word for its kind.
        kind: String,
        /// Its id.
        id: String,
    },
    /// An earlier try of the same request had the other outcome: it was carried out, or refused.
    #[error("an earlier try of the request `{request}` was answered already")]
    Answered {
        /// Id of the request.
        request: String,
    },
    /// Another object of the kind has the name.
    #[error("{kind} `{name}` exists already")]
    NameTaken {
        /// Word for the kind.
        kind: String,
        /// The name.
        name: String,
    },
}

/// An entry of the log can't be applied by this build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// It can't be decoded.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// From it on, the cluster uses a newer feature level.
    #[error(transparent)]
    Newer(#[from] NewerLevel),
}

/// Result of one transaction: the version that it made, or the object that was not as expected.
pub type Outcome = Result<Version, Conflict>;

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Creates an object.
    Create(Object),
    /// Replaces an object. A task keeps its status if that is newer.
    Update(Object),
    /// Removes an object.
    Remove(Kind, Id),
    /// Sets the status of a task as its worker observed it; ignored unless it is newer and the task is on that node.
    Status(TaskId, NodeId, TaskStatus),
}

/// A condition: an object still has this version, or is still absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// Kind of the object.
    pub kind: Kind,
    /// Id of the object.
    pub id: Id,
    /// Version of the object; `None` if there must be no such object.
    pub version: Option<Version>,
}

/// Changes that are applied together or not at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transaction {
    /// Id of the user's request: it is carried out once, and a retry gets the first answer. `None` if no user asked, or
    /// the user gave none.
    pub request_id: Option<String>,
    /// Whether the request is refused: it changes nothing, and no other try of it does, however late it comes.
    pub is_refusal: bool,
    /// Conditions, checked when the transaction is applied.
    pub expectations: Vec<Expectation>,
    /// The changes, applied in this order.
    pub actions: Vec<Action>,
    /// Who asked for it. Applying it then leaves a record of what it has changed.
    pub origin: Option<Origin>,
}

/// Who asked for a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// As in [`Audit::actor`](flota_api::model::Audit::actor).
    pub actor: String,
    /// The RPC.
    pub request: String,
}

/// The content of one Raft entry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    /// Time of the leader's clock, the only time that `apply` uses. If it is behind that of the last entry, the latter
    /// counts.
    pub at: Timestamp,
    /// Transactions, each of which succeeds or fails by itself.
    pub transactions: Vec<Transaction>,
    /// Answers to requests that were carried out at or before this index are dropped.
    pub forget_answers: Option<Version>,
    /// Digest of the leader's tables after the entry with this index, which every manager compares with its own.
    pub check: Option<(Version, Digest)>,
    /// The rules by which it is applied.
    pub rules: Rules,
}

/// The rules by which an entry is applied: those of the build that wrote it, so that managers that applied it before an
/// upgrade have the same tables as those that apply it afterwards. The number is the format of the entry in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rules {
    /// Clocks decide what is newer.
    ByClock = 1,
    /// Indices of entries decide what is newer.
    ByIndex = 2,
    /// The store also notes when a spec was set, when an update began, and when a task was prepared and served first.
    #[default]
    WithProgress = 3,
}

impl Transaction {
    /// Its encoded size in bytes.
    pub fn size(&self) -> usize {
        encode_transaction(self).encoded_len()
    }

    /// A transaction that refuses a user's request.
    pub fn refusal(request_id: &str) -> Self {
        Self { request_id: Some(request_id.to_owned()), is_refusal: true, ..Self::default() }
    }

    /// A transaction that only sets statuses. It has no conditions, because `apply` ignores statuses that are not newer.
    pub fn statuses(statuses: Vec<(TaskId, NodeId, TaskStatus)>) -> Self {
        let actions = statuses.into_iter().map(|(task, node, status)| Action::Status(task, node, status)).collect();
        Self { actions, ..Self::default() }
    }
}

impl Entry {
    /// Every change of its transactions, in order.
    pub fn actions(&self) -> impl Iterator<Item = &Action> {
        self.transactions.iter().flat_map(|it| &it.actions)
    }

    /// Encodes it for the log.
    pub fn encode(&self) -> Vec<u8> {
        let transactions = self.transactions.iter().map(encode_transaction).collect();
        let format = self.rules as u32;
        let check = self.check.map(|(index, digest)| pr::Check { index, digest: digest.to_bytes().to_vec().into() });
        let forget_answers = self.forget_answers.unwrap_or_default();
        pr::Entry { at: self.at.0, transactions, format, forget_answers, check }.encode_to_vec()
    }

    /// Decodes it from the log.
    ///
    /// # Errors
    /// The bytes are damaged, or the entry was written by a newer build.
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        // A newer build may have written what is not known here, together with the level that it needs.
        let entry = Self::decode_any(bytes).map_err(|malformed| {
            let newer = clusters(bytes).find_map(|cluster| level::check(&cluster).err());
            newer.map_or(EntryError::Malformed(malformed), EntryError::Newer)
        })?;
        for action in entry.actions() {
            if let Action::Create(Object::Cluster(cluster)) | Action::Update(Object::Cluster(cluster)) = action {
                level::check(cluster)?;
            }
        }
        Ok(entry)
    }

    fn decode_any(bytes: &[u8]) -> Result<Self, Malformed> {
        let entry = pr::Entry::decode(bytes).map_err(|_| Malformed::new("entry", "is not a protobuf message"))?;
        let known = [Rules::ByClock, Rules::ByIndex, Rules::WithProgress];
        let rules = known.into_iter().find(|rules| *rules as u32 == entry.format);
        let rules = rules.ok_or_else(|| Malformed::new("entry", "has a format that is not known here"))?;
        let transactions = entry.transactions.into_iter().map(decode_transaction).collect::<Result<_, _>>()?;
        let check = entry.check.map(|it| match it.digest.as_ref().try_into() {
            Ok(digest) => Ok((it.index, Digest::from_bytes(digest))),
            Err(_) => Err(Malformed::new("check", "has a digest of a wrong length")),
        });
        // No entry of a transaction has the index zero.
        let forget_answers = Some(entry.forget_answers).filter(|index| *index != 0);
        Ok(Self { at: Timestamp(entry.at), transactions, forget_answers, check: check.transpose()?, rules })
    }
}

/// Returns the cluster objects in an entry that can't be decoded as a whole.
fn clusters(bytes: &[u8]) -> impl Iterator<Item = Cluster> {
    use pr::action::Action as Wire;
    let transactions = pr::Entry::decode(bytes).map(|entry| entry.transactions).unwrap_or_default();
    let actions = transactions.into_iter().flat_map(|it| it.actions);
    actions.filter_map(|action| match action.action? {
        Wire::Create(object) | Wire::Update(object) => match Object::try_from(object).ok()? {
            Object::Cluster(cluster) => Some(Cluster::clone(&cluster)),
            _ => None,
        },
        Wire::Remove(_) | Wire::Status(_) => None,
    })
}

fn encode_transaction(transaction: &Transaction) -> pr::Transaction {
    use pr::action::Action as Wire;
    let action = |action: &Action| {
        let action = match action {
            Action::Create(object) => Wire::Create(object.into()),
            Action::Update(object) => Wire::Update(object.into()),
            Action::Remove(kind, id) => Wire::Remove(pr::Removal { kind: encode_kind(*kind), id: id.to_string() }),
            Action::Status(task, node, status) => Wire::Status(pr::StatusChange {
                task_id: task.clone().into(),
                node_id: node.clone().into(),
                status: Some(status.into()),
            }),
        };
        pr::Action { action: Some(action) }
    };
    let expectation =
        |it: &Expectation| pr::Expectation { kind: encode_kind(it.kind), id: it.id.to_string(), version: it.version };
    pr::Transaction {
        request_id: transaction.request_id.clone().unwrap_or_default(),
        expectations: transaction.expectations.iter().map(expectation).collect(),
        actions: transaction.actions.iter().map(action).collect(),
        is_refusal: transaction.is_refusal,
        origin: transaction
            .origin
            .as_ref()
            .map(|it| pr::Origin { actor: it.actor.clone(), request: it.request.clone() }),
    }
}

fn decode_transaction(wire: pr::Transaction) -> Result<Transaction, Malformed> {
    use pr::action::Action as Wire;
    let action = |action: pr::Action| match action.action {
        Some(Wire::Create(object)) => Ok(Action::Create(object.try_into()?)),
        Some(Wire::Update(object)) => Ok(Action::Update(object.try_into()?)),
        Some(Wire::Remove(it)) => Ok(Action::Remove(decode_kind(it.kind)?, it.id.into())),
        Some(Wire::Status(it)) => Ok(Action::Status(it.task_id.into(), it.node_id.into(), it.status.try_into()?)),
        None => Err(Malformed::new("action", "is missing")),
    };
    let expectation =
        |it: pr::Expectation| Ok(Expectation { kind: decode_kind(it.kind)?, id: it.id.into(), version: it.version });
    Ok(Transaction {
        request_id: Some(wire.request_id).filter(|id| !id.is_empty()),
        is_refusal: wire.is_refusal,
        expectations: wire.expectations.into_iter().map(expectation).collect::<Result<_, Malformed>>()?,
        actions: wire.actions.into_iter().map(action).collect::<Result<_, Malformed>>()?,
        origin: wire.origin.map(|it| Origin { actor: it.actor, request: it.request }),
    })
}

fn encode_kind(kind: Kind) -> i32 {
    (match kind {
        Kind::Cluster => pr::Kind::Cluster,
        Kind::Node => pr::Kind::Node,
        Kind::Service => pr::Kind::Service,
        Kind::Task => pr::Kind::Task,
        Kind::Image => pr::Kind::Image,
        Kind::Stack => pr::Kind::Stack,
        Kind::Registry => pr::Kind::Registry,
        Kind::Network => pr::Kind::Network,
        Kind::Volume => pr::Kind::Volume,
        Kind::StoredSecret => pr::Kind::Secret,
        Kind::StoredConfig => pr::Kind::Config,
        Kind::ValueData => pr::Kind::ValueData,
        Kind::User => pr::Kind::User,
        Kind::Audit => pr::Kind::Audit,
    })
    .into()
}

fn decode_kind(kind: i32) -> Result<Kind, Malformed> {
    Ok(match pr::Kind::try_from(kind) {
        Ok(pr::Kind::Cluster) => Kind::Cluster,
        Ok(pr::Kind::Node) => Kind::Node,
        Ok(pr::Kind::Service) => Kind::Service,
        Ok(pr::Kind::Task) => Kind::Task,
        Ok(pr::Kind::Image) => Kind::Image,
        Ok(pr::Kind::Stack) => Kind::Stack,
        Ok(pr::Kind::Registry) => Kind::Registry,
        Ok(pr::Kind::Network) => Kind::Network,
        Ok(pr::Kind::Volume) => Kind::Volume,
        Ok(pr::Kind::Secret) => Kind::StoredSecret,
        Ok(pr::Kind::Config) => Kind::StoredConfig,
        Ok(pr::Kind::ValueData) => Kind::ValueData,
        Ok(pr::Kind::User) => Kind::User,
        Ok(pr::Kind::Audit) => Kind::Audit,
        Ok(pr::Kind::None) | Err(_) => return Err(Malformed::new("kind", "has an unknown value")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flota_api::FEATURE_LEVEL;
    use flota_api::model::Task;
    use flota_api::object::StoreObject;

    #[test]
    fn an_entry_reads_back_as_it_was_written() {
        let task = Task { id: "t".into(), ..Task::default() }.into_object();
        let transaction = Transaction {
            request_id: Some("r".into()),
            is_refusal: false,
            expectations: vec![Expectation { kind: Kind::Node, id: "n".into(), version: Some(7) }],
            actions: vec![
                Action::Create(task.clone()),
                Action::Update(task),
                Action::Remove(Kind::Stack, "k".into()),
                Action::Status("t".into(), "n".into(), TaskStatus::default()),
            ],
            origin: Some(Origin { actor: "ada".into(), request: "CreateService".into() }),
        };
        let transactions = vec![transaction, Transaction::refusal("s")];
        let entry = Entry {
            at: Timestamp(5),
            transactions,
            forget_answers: Some(9),
            check: Some((7, Digest::from_bytes([3; 16]))),
            rules: Rules::default(),
        };
        for rules in [Rules::ByClock, Rules::ByIndex, Rules::WithProgress] {
            let entry = Entry { rules, ..entry.clone() };
            assert_eq!(Entry::decode(&entry.encode()), Ok(entry));
        }
        let later = pr::Entry { format: Rules::default() as u32 + 1, ..pr::Entry::default() }.encode_to_vec();
        assert!(Entry::decode(&later).is_err(), "of a newer build");
        let raised = |feature_level| {
            let cluster = Cluster { feature_level, ..Cluster::default() }.into_object();
            let transaction = Transaction { actions: vec![Action::Update(cluster)], ..Transaction::default() };
            Entry { transactions: vec![transaction], ..Entry::default() }.encode()
        };
        assert!(Entry::decode(&raised(FEATURE_LEVEL)).is_ok());
        let refused = Entry::decode(&raised(FEATURE_LEVEL + 1)).expect_err("nothing of it may be applied");
        assert!(matches!(refused, EntryError::Newer(_)), "{refused}");
        assert!(Entry::decode(b"\xff\xff\xff").is_err());
    }

    #[test]
    fn an_entry_that_brings_what_is_not_known_names_the_level_that_it_needs() {
        let raised = |feature_level| {
            let cluster = Cluster { feature_level, ..Cluster::default() }.into_object();
            let transaction = Transaction { actions: vec![Action::Update(cluster)], ..Transaction::default() };
            let entry = Entry { transactions: vec![transaction], ..Entry::default() };
            let mut wire = pr::Entry::decode(entry.encode().as_slice()).expect("a message");
            // An object of a kind that this build does not know.
            let object = flota_api::proto::objects::Object { kind: None };
            let unknown = pr::Action { action: Some(pr::action::Action::Create(object)) };
            wire.transactions[0].actions.push(unknown);
            Entry::decode(&wire.encode_to_vec()).expect_err("it can't be applied")
        };
        assert!(matches!(raised(FEATURE_LEVEL + 1), EntryError::Newer(_)));
        assert!(matches!(raised(FEATURE_LEVEL), EntryError::Malformed(_)));
    }
}
