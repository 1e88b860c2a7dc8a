//! The states of a task: their order, which of them are final, and the desired states that the orchestrator sets.

macro_rules! states {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),* }
        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            /// Returns the text that users read.
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
    /// The observed state of a task. Within one attempt a task only moves down this list.
    TaskState {
        /// Created. No task has this state: a task begins as `pending`.
        New = "new",
        /// It waits for its addresses in networks, then for a node.
        Pending = "pending",
        /// It has a node.
        Assigned = "assigned",
        /// Its node has stored it on disk.
        Accepted = "accepted",
        /// Its node fetches and unpacks the image, and makes its interfaces in its networks.
        Preparing = "preparing",
        /// Everything is prepared. A task also waits here between two attempts.
        Ready = "ready",
        /// Its container is being created.
        Starting = "starting",
        /// Its program runs.
        Running = "running",
        /// Its program ended by itself with success.
        Complete = "complete",
        /// It was asked to stop and has stopped.
        Shutdown = "shutdown",
        /// Its program failed and the worker does not start it again.
        Failed = "failed",
        /// It could not be started on this node.
        Rejected = "rejected",
        /// Its node has been down for so long that its result is no longer expected.
        Orphaned = "orphaned",
    }
}

impl TaskState {
    /// Returns whether the task will never run again. Only then are its reservation and its slot free.
    pub fn is_terminal(self) -> bool {
        self >= Self::Complete
    }
}

states! {
    /// The state that the orchestrator wants for a task.
    DesiredState {
        /// Prepared but not started.
        Ready = "ready",
        /// Running.
        Running = "running",
        /// Run until its program ends.
        Complete = "complete",
        /// Stopped.
        Shutdown = "shutdown",
        /// Stopped, then deleted from the store.
        Remove = "remove",
    }
}

impl DesiredState {
    /// Returns whether the task is to be stopped.
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
