//! Sends the listener descriptor of a seccomp filter to the agent (config-linux.md, "Seccomp", `listenerPath`).

use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::MsgFlags;
use serde::Serialize;

use super::launch::Launched;
use crate::error::{Act, StepError};
use crate::oci::{Seccomp, State, VERSION};
use crate::syscall::{files, messages};

/// The message to the agent (config-linux.md, "The Container Process State").
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerProcessState<'a> {
    oci_version: &'a str,
    fds: [&'a str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "str::is_empty")]
    metadata: &'a str,
    state: &'a State,
}

/// Takes the descriptor from the process, which can't send it itself because the filter may forbid that, and sends it.
pub(crate) fn hand_over(
    profile: Option<&Seccomp>,
    launched: &Launched,
    number: RawFd,
    state: &State,
) -> Result<(), StepError> {
    let act = || "hand the seccomp listener over".to_owned();
    let none = || StepError::refuse(act(), "linux.seccomp.listenerPath is not given");
    let path = profile.and_then(|it| it.listener_path.as_ref()).ok_or_else(none)?;
    let listener = files::descriptor_of(launched.process.as_fd(), number).act(act)?;
    let agent = UnixStream::connect(path).act(|| format!("connect with seccomp agent {}", path.display()))?;
    let message = ContainerProcessState {
        oci_version: VERSION,
        fds: ["seccompFd"],
        pid: launched.pid.as_raw(),
        metadata: profile.map_or("", |it| &it.listener_metadata),
        state,
    };
    let text = serde_json::to_vec(&message).map_err(std::io::Error::from).act(act)?;
    messages::send(agent.as_fd(), &text, &[listener.as_fd()], MsgFlags::empty()).act(act).map(drop)
}
