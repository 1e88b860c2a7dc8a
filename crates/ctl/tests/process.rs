//! `ctl` as a process: what it ends with where no manager answers.
#![allow(clippy::unwrap_used, reason = "tests say why they fail")]

use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn ctl(socket: &std::path::Path, words: &[&str]) -> Command {
    // Ctrl-C may be ignored where the tests run, for example in the background of a script.
    let mut command = Command::new("env");
    command.arg("--default-signal=INT").arg(env!("CARGO_BIN_EXE_ctl"));
    command.arg("--host").arg(format!("unix://{}", socket.display())).args(words).env_remove("FLOTA_HOST");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

#[test]
fn ctrl_c_ends_a_request_that_is_not_answered() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("hangs.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let child = ctl(&socket, &["service", "scale", "web=3"]).spawn().unwrap();
    let _connection = listener.accept().unwrap();
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(Signal::SIGINT as i32), "not by itself, after its bound: {output:?}");
}

#[test]
fn no_daemon_is_exit_code_5_and_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let output = ctl(&folder.path().join("none.sock"), &["node", "ls"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(5), "{stderr}");
    assert!(
        stderr.starts_with("error: failed to connect to") && stderr.contains("hint: is flotad running?"),
        "{stderr}"
    );
}
