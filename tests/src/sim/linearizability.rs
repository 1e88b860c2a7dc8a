//! Decides whether the operations of a history could have happened one after the other, each between its call and its
//! return. The algorithm is porcupine's, which is that of Wing and Gong with Lowe's memoization, applied to each key.
//!
//! An operation without an answer may take effect at any time after its call, or never.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Debug, Display};
use std::hash::Hash;

/// Sequential behaviour of the checked system.
pub trait Model {
    /// Keys are independent of each other.
    type Key: Ord + Clone + Display;
    /// State of one key.
    type State: Clone + Eq + Hash;
    /// An operation.
    type Op: Debug;
    /// The answer to an operation.
    type Answer: Debug;

    /// The state of a key before any operation.
    fn initial() -> Self::State;

    /// The state after `op`; `None` if `answer` is wrong in `state`. Without an answer, `op` is possible in every
    /// state.
    fn step(state: &Self::State, op: &Self::Op, answer: Option<&Self::Answer>) -> Option<Self::State>;

    /// Whether an operation with this answer leaves every state as it is.
    fn leaves_state(answer: &Self::Answer) -> bool;
}

/// One operation of a history. Times are of one clock, in any unit.
pub struct Operation<M: Model> {
    /// Key that it applies to.
    pub key: M::Key,
    /// Number of the client, for reports.
    pub client: u64,
    /// The operation itself.
    pub op: M::Op,
    /// The answer; `None` if the outcome is unknown.
    pub answer: Option<M::Answer>,
    /// Time of the call.
    pub called: u64,
    /// Time of the answer; ignored if there is none.
    pub returned: u64,
}

impl<M: Model> Debug for Operation<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:>8}, ", self.called)?;
        match &self.answer {
            Some(answer) => write!(f, "{:>8}] client {}: {:?} -> {answer:?}", self.returned, self.client, self.op),
            None => write!(f, "        ] client {}: {:?} -> no answer", self.client, self.op),
        }
    }
}

/// Why a history is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// No order of the operations explains the answers.
    #[error("the history of `{key}` is not linearizable: no order explains {stuck}\n{history}")]
    Impossible {
        /// Key of the history.
        key: String,
        /// The operation that no order reaches.
        stuck: String,
        /// All operations of the key, by the time of their call.
        history: String,
    },
    /// The history has too many concurrent operations to be decided.
    #[error("the history of `{key}` is undecided after {STEPS} steps")]
    Undecided {
        /// Key of the history.
        key: String,
    },
}

/// Largest number of steps for the history of one key.
const STEPS: usize = 5_000_000;

/// Checks a whole history.
///
/// # Errors
/// The first key whose history is not linearizable.
pub fn check<M: Model>(history: &[Operation<M>]) -> Result<(), Violation> {
    let mut keys: BTreeMap<&M::Key, Vec<&Operation<M>>> = BTreeMap::new();
    for operation in history {
        keys.entry(&operation.key).or_default().push(operation);
    }
    keys.into_iter().try_for_each(|(key, mut operations)| {
        operations.sort_by_key(|it| it.called);
        check_key(key, &operations)
    })
}

fn check_key<M: Model>(key: &M::Key, operations: &[&Operation<M>]) -> Result<(), Violation> {
    match Search::new(operations).run() {
        Found::Order => Ok(()),
        Found::TooMuch => Err(Violation::Undecided { key: key.to_string() }),
        Found::Nothing { stuck } => Err(Violation::Impossible {
            key: key.to_string(),
            stuck: format!("{:?}", operations[stuck]),
            history: operations.iter().map(|it| format!("  {it:?}\n")).collect(),
        }),
    }
}

enum Found {
    Order,
    Nothing { stuck: usize },
    TooMuch,
}

/// A call or a return in the list of operations that are not linearized yet.
#[derive(Clone, Copy)]
struct Event {
    operation: usize,
    /// For a call: the position of its return, if it has one.
    returns: Option<usize>,
    is_call: bool,
    before: usize,
    after: usize,
}

/// The head of the list; events begin at 1.
const HEAD: usize = 0;
/// Marks the end of the list.
const END: usize = usize::MAX;

/// Bitmap of the linearized operations.
type Chosen = Vec<u64>;

struct Search<'a, M: Model> {
    operations: &'a [&'a Operation<M>],
    events: Vec<Event>,
    state: M::State,
    chosen: Chosen,
    /// Number of answered operations that are not linearized yet.
    left: usize,
    /// The calls that were linearized so far, each with the state before it.
    path: Vec<(usize, M::State)>,
    seen: HashSet<(Chosen, M::State)>,
    /// Length of the longest path, and the operation that ended it.
    furthest: (usize, usize),
}

impl<'a, M: Model> Search<'a, M> {
    fn new(operations: &'a [&'a Operation<M>]) -> Self {
        // Calls come before returns of the same time, because such operations count as concurrent.
        let mut order: Vec<(u64, bool, usize)> = Vec::new();
        for (index, it) in operations.iter().enumerate() {
            order.push((it.called, false, index));
            if it.answer.is_some() {
                order.push((it.returned.max(it.called), true, index));
            }
        }
        order.sort_unstable();
        let mut returns = vec![None; operations.len()];
        for (position, (_, is_return, operation)) in order.iter().enumerate() {
            if *is_return {
                returns[*operation] = Some(position + 1);
            }
        }
        let head = Event { operation: 0, returns: None, is_call: false, before: END, after: END };
        let mut events = vec![head];
        for (position, (_, is_return, operation)) in order.iter().enumerate() {
            let returns = returns[*operation].filter(|_| !is_return);
            events.push(Event { operation: *operation, returns, is_call: !is_return, before: position, after: END });
            events[position].after = position + 1;
        }
        Self {
            operations,
            events,
            state: M::initial(),
            chosen: vec![0; operations.len().div_ceil(64)],
            left: operations.iter().filter(|it| it.answer.is_some()).count(),
            path: Vec::new(),
            seen: HashSet::new(),
            furthest: (0, 0),
        }
    }

    /// At each point, calls with an answer are tried first. Calls without one are possible nearly everywhere; with twenty
    /// of them, trying them first does not end in reasonable time.
    fn run(mut self) -> Found {
        let (mut at, mut answered) = (self.events[HEAD].after, true);
        for _ in 0..STEPS {
            if self.left == 0 {
                return Found::Order;
            }
            (at, answered) = match self.events.get(at).copied() {
                Some(event) if event.is_call => {
                    let is_turn = event.returns.is_some() == answered;
                    if is_turn && self.choose(at) { (self.events[HEAD].after, true) } else { (event.after, answered) }
                }
                _ if answered => (self.events[HEAD].after, false),
                dead_end => {
                    // This return belongs to a call that is not linearized, so the path is wrong.
                    if let Some(event) = dead_end.filter(|_| self.path.len() >= self.furthest.0) {
                        self.furthest = (self.path.len(), event.operation);
                    }
                    match self.undo() {
                        Some(call) => (self.events[call].after, self.events[call].returns.is_some()),
                        None => return Found::Nothing { stuck: self.furthest.1 },
                    }
                }
            };
        }
        Found::TooMuch
    }

    /// Linearizes the call at `at` next, if the model allows it and the resulting state is new.
    fn choose(&mut self, at: usize) -> bool {
        let Event { operation, returns, .. } = self.events[at];
        let it = self.operations[operation];
        let Some(state) = M::step(&self.state, &it.op, it.answer.as_ref()) else { return false };
        self.chosen[operation / 64] |= 1 << (operation % 64);
        if !self.seen.insert((self.chosen.clone(), state.clone())) {
            self.chosen[operation / 64] &= !(1 << (operation % 64));
            return false;
        }
        self.path.push((at, std::mem::replace(&mut self.state, state)));
        self.unlink(at);
        if let Some(returns) = returns {
            self.unlink(returns);
            self.left -= 1;
        }
        true
    }

    /// Undoes the last choice to which there is an alternative, with those after it, and returns its call. There is none
    /// to an operation that leaves the state as it is: if an order exists in which it comes later, it can also come now.
    fn undo(&mut self) -> Option<usize> {
        loop {
            let (call, before) = self.path.pop()?;
            let Event { operation, returns, .. } = self.events[call];
            self.state = before;
            self.chosen[operation / 64] &= !(1 << (operation % 64));
            // Link in the reverse order of unlinking.
            if let Some(returns) = returns {
                self.link(returns);
                self.left += 1;
            }
            self.link(call);
            if !self.operations[operation].answer.as_ref().is_some_and(M::leaves_state) {
                return Some(call);
            }
        }
    }

    fn unlink(&mut self, at: usize) {
        let Event { before, after, .. } = self.events[at];
        self.events[before].after = after;
        if after != END {
            self.events[after].before = before;
        }
    }

    fn link(&mut self, at: usize) {
        let Event { before, after, .. } = self.events[at];
        self.events[before].after = at;
        if after != END {
            self.events[after].before = at;
        }
    }
}
