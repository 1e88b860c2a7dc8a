//! The states of a task: their order, which of them are final, and what the orchestrator may wish for.

macro_rules! states {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),* }
        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            /// As users read it.
            pub fn as_str(self) -> &'static str { match self { $(Self::$variant => $text),* } }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.pad(self.as_str()) }
        }
    };
}
pub(crate) use states;

states! {
    /// What was observed of a task, in order: within one attempt a task only moves down this list.
    TaskState {
        /// Made, without addresses.
        New = "new",
        /// Waits for a node.
        Pending = "pending",
        /// Has a node.
        Assigned = "assigned",
        /// The node has it on disk.
        Accepted = "accepted",
        /// The node fetches and unpacks what it needs.
        Preparing = "preparing",
        /// All is there; between two attempts a task waits here.
        Ready = "ready",
        /// Its container is being made.
        Starting = "starting",
        /// Its program runs.
        Running = "running",
        /// Its program ended by itself, as it should.
        Complete = "complete",
        /// It was told to stop, and did.
        Shutdown = "shutdown",
        /// Its program failed, and the worker has given up.
        Failed = "failed",
        /// It could not be started on this node.
        Rejected = "rejected",
        /// Its node has been gone for so long that nobody waits for it.
        Orphaned = "orphaned",
    }
}

impl TaskState {
    /// Whether the task will never run again. Only then are its reservation and its slot free.
    pub fn is_terminal(self) -> bool {
        self >= Self::Complete
    }
}

states! {
    /// What the orchestrator wants of a task.
    DesiredState {
        /// Prepared, not started.
        Ready = "ready",
        /// Running.
        Running = "running",
        /// Run to its end.
        Complete = "complete",
        /// Stopped.
        Shutdown = "shutdown",
        /// Stopped, then deleted from the store.
        Remove = "remove",
    }
}

impl DesiredState {
    /// Whether the task is to be stopped.
    pub fn is_stopping(self) -> bool {
        self >= Self::Shutdown
    }
}

#[cfg(test)]
mod tests {
    use super::TaskState::*;

    #[test]
    fn exactly_the_five_last_states_are_terminal() {
        let all = [New, Pending, Assigned, Accepted, Preparing, Ready, Starting, Running];
        assert!(all.iter().all(|state| !state.is_terminal()));
        assert!([Complete, Shutdown, Failed, Rejected, Orphaned].iter().all(|state| state.is_terminal()));
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
