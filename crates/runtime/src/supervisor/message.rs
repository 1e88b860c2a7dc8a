//! The messages between daemon, launcher and supervisor, with one type for each direction. A launcher sends none.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::order::ExecSpec;
use crate::error::RunError;
use crate::state::ExitStatus;

/// A message from a daemon to its launcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToLauncher {
    /// Fork a supervisor for this folder. The first descriptor of the message is the supervisor's end of a connection,
    /// where it sends [`FromSupervisor::Started`] or [`FromSupervisor::Failed`] and then, as after
    /// [`ToSupervisor::Watch`], its events. The supervisor keeps the others open until its container has ended.
    Supervise(PathBuf),
}

/// A message from a client to a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToSupervisor {
    /// Send this connection the container's events from now on. Not answered.
    Watch,
    /// Send this signal to the container's init. Not answered.
    Kill(i32),
    /// Start this process with the attached descriptors. Answered with `Started` or `Failed`; later
    /// [`FromSupervisor::ExecExited`] follows. The process is killed when the connection ends.
    Exec(ExecSpec),
    /// Copy the output from now on to the first attached descriptor, and write the data from the second one, if there
    /// is one, to the container's terminal. Answered with `Started` or `Failed`.
    Attach,
    /// Set the size of the container's terminal. Not answered.
    Resize {
        /// Number of lines.
        rows: u16,
        /// Number of columns.
        columns: u16,
    },
    /// Send copies of the descriptors that the supervisor keeps. Answered with [`FromSupervisor::Kept`].
    Kept,
}

/// A message from a supervisor to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromSupervisor {
    /// Answer: the program runs, or the output is copied.
    Started,
    /// Answer: the request failed for this reason.
    Failed(RunError),
    /// Answer: copies of the kept descriptors, in the order in which they were given, are attached.
    Kept,
    /// The process of this connection ended with this exit code.
    ExecExited(i32),
    /// An event of the container. Only sent to connections that watch it.
    Event(ContainerEvent),
}

/// An event of a running container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerEvent {
    /// Memory ran out, and the kernel kills one of its processes.
    OutOfMemory,
    /// It has ended. This is always the last event.
    Exited(ExitStatus),
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use serde::de::DeserializeOwned;

    use super::*;
    use crate::state::OomVictim;

    fn means<M: Serialize + DeserializeOwned + PartialEq + Debug>(message: &M, landed: &str) {
        assert_eq!(serde_json::to_string(message).expect("it is plain data"), landed);
        assert_eq!(&serde_json::from_str::<M>(landed).expect(landed), message);
    }

    /// A supervisor is of the build that started its container. A later field therefore needs a default, and is left out of
    /// the text while it has that.
    #[test]
    fn supervisors_of_earlier_builds_and_daemons_understand_each_other() {
        means(&ToSupervisor::Watch, r#""Watch""#);
        means(&ToSupervisor::Kill(15), r#"{"Kill":15}"#);
        means(&ToSupervisor::Attach, r#""Attach""#);
        means(&ToSupervisor::Resize { rows: 24, columns: 80 }, r#"{"Resize":{"rows":24,"columns":80}}"#);
        means(&ToSupervisor::Kept, r#""Kept""#);
        let exec = ExecSpec {
            argv: vec!["sh".into()],
            env: vec!["A=b".into()],
            cwd: "/".into(),
            user: "7:8".into(),
            tty: true,
            contained: false,
        };
        means(
            &ToSupervisor::Exec(exec),
            r#"{"Exec":{"argv":["sh"],"env":["A=b"],"cwd":"/","user":"7:8","tty":true,"contained":false}}"#,
        );
        means(&FromSupervisor::Started, r#""Started""#);
        let error = RunError { text: "no such file".into(), code: Some(127) };
        means(&FromSupervisor::Failed(error), r#"{"Failed":{"text":"no such file","code":127}}"#);
        means(&FromSupervisor::Kept, r#""Kept""#);
        means(&FromSupervisor::ExecExited(42), r#"{"ExecExited":42}"#);
        means(&FromSupervisor::Event(ContainerEvent::OutOfMemory), r#"{"Event":"OutOfMemory"}"#);
        let status = ExitStatus { code: 137, out_of_memory: Some(OomVictim::Init), at: 5 };
        means(
            &FromSupervisor::Event(ContainerEvent::Exited(status)),
            r#"{"Event":{"Exited":{"code":137,"out_of_memory":"Init","at":5}}}"#,
        );
    }
}
