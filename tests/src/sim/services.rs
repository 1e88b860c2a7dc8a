//! Services as users see them through the Control API, for the checker. Each change has a unique tag.
//!
//! A stale read is treated as a read that was called earlier by the age in its answer: the value must have been current
//! at some time since then.

use super::linearizability::{Model, Operation};

/// Services by name.
#[derive(Clone, Copy, Debug)]
pub enum Services {}

/// An operation on one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Creates the service.
    Create {
        /// Tag of the new service.
        tag: u64,
    },
    /// Changes the service.
    Update {
        /// Tag that belongs to the version in the request; `None` if the request has no version.
        from: Option<u64>,
        /// The new tag.
        tag: u64,
    },
    /// Removes the service.
    Remove,
    /// Reads the tag of the service.
    Read {
        /// Age that the answer states, in milliseconds.
        age: u64,
        /// Number of the manager whose own state was read; `None` for a linearizable read.
        manager: Option<usize>,
    },
}

/// The answer to an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The operation was carried out.
    Done,
    /// A service of that name exists.
    Exists,
    /// No service of that name exists.
    Missing,
    /// The service has another version than the request named.
    Changed,
    /// An earlier try of the operation was refused.
    Refused,
    /// The tag that was read; `None` if there is no service.
    Value(Option<u64>),
}

impl Model for Services {
    type Key = String;
    /// The tag; `None` if there is no service.
    type State = Option<u64>;
    type Op = Op;
    type Answer = Answer;

    fn initial() -> Option<u64> {
        None
    }

    fn step(state: &Option<u64>, op: &Op, answer: Option<&Answer>) -> Option<Option<u64>> {
        if answer == Some(&Answer::Refused) {
            return Some(*state);
        }
        let (next, right) = match (op, state) {
            (Op::Create { tag }, None) => (Some(*tag), Answer::Done),
            (Op::Create { .. }, Some(_)) => (*state, Answer::Exists),
            (Op::Update { .. } | Op::Remove, None) => (None, Answer::Missing),
            (Op::Update { from: Some(from), .. }, Some(tag)) if from != tag => (*state, Answer::Changed),
            (Op::Update { tag, .. }, Some(_)) => (Some(*tag), Answer::Done),
            (Op::Remove, Some(_)) => (None, Answer::Done),
            (Op::Read { .. }, _) => (*state, Answer::Value(*state)),
        };
        answer.is_none_or(|answer| *answer == right).then_some(next)
    }

    fn leaves_state(answer: &Answer) -> bool {
        !matches!(answer, Answer::Done)
    }
}

/// Creates a read of one service. With an age, it may take effect that long before it was called.
pub fn read(client: u64, name: &str, (called, returned): (u64, u64), op: Op, tag: Option<u64>) -> Operation<Services> {
    let age = if let Op::Read { age, .. } = op { age } else { 0 };
    Operation {
        key: name.to_owned(),
        client,
        op,
        answer: Some(Answer::Value(tag)),
        called: called.saturating_sub(age),
        returned,
    }
}
