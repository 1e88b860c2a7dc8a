//! Terminals, and descriptors that the caller passes on.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use flota_runtime::process::receive_terminal;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use serde_json::json;

use crate::harness::{Bundle, DEADLINE, lend};

/// Reads the output of a terminal until it has shown `text`.
fn read_until(master: &mut File, text: &str) -> String {
    use std::os::fd::AsFd;
    let mut printed = String::new();
    while !printed.contains(text) {
        let mut polled = [PollFd::new(master.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut polled, PollTimeout::try_from(DEADLINE).unwrap()).unwrap();
        let mut buffer = [0; 1024];
        let count = if ready > 0 { master.read(&mut buffer).unwrap_or(0) } else { 0 };
        assert!(count > 0, "waited for `{text}` at the terminal, which showed {printed:?}");
        printed.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    printed
}

/// Calls with a console socket, and takes the terminal that comes.
fn with_console(bundle: &Bundle, verb: &str, rest: &[&str]) -> File {
    let path = bundle.dir.join(format!("console-{verb}"));
    let listener = UnixListener::bind(&path).unwrap();
    let mut command = bundle.command(&[verb, "--console-socket", path.to_str().unwrap()]);
    bundle.spawn(command.args(rest)).wait().ok();
    let (stream, _) = listener.accept().unwrap();
    receive_terminal(&OwnedFd::from(stream)).unwrap().into()
}

fn create_with_console(bundle: &Bundle) -> File {
    bundle.write();
    let folder = bundle.dir.join("bundle");
    let master = with_console(bundle, "create", &["--bundle", folder.to_str().unwrap(), &bundle.id]);
    bundle.call(&["start", &bundle.id]).ok();
    master
}

#[test]
fn a_console_socket_gets_a_terminal_of_the_configured_size() {
    let mut bundle = Bundle::new();
    bundle.set("/process/terminal", json!(true)).set("/process/consoleSize", json!({"height": 33, "width": 77}));
    bundle.sh("tty; stty size; read line; echo got $line; exec sleep 1000");
    let mut master = create_with_console(&bundle);
    let printed = read_until(&mut master, "33 77");
    assert!(printed.contains("/dev/pts/0"), "{printed}");
    master.write_all(b"a line\n").unwrap();
    read_until(&mut master, "got a line");
}

#[test]
fn the_terminal_is_the_console_and_controls_its_session() {
    let mut bundle = Bundle::new();
    bundle.set("/process/terminal", json!(true));
    bundle.sh("stat -c %t:%T /dev/console /dev/pts/0; echo hello >/dev/tty; trap 'echo int' INT; echo ready; read x");
    let mut master = create_with_console(&bundle);
    let printed = read_until(&mut master, "ready");
    assert!(printed.contains("88:0\r\n88:0\r\nhello"), "{printed}");
    master.write_all(b"\x03").unwrap();
    read_until(&mut master, "int");
}

#[test]
fn run_lends_the_callers_terminal() {
    let mut bundle = Bundle::new();
    bundle.set("/process/terminal", json!(true)).sh("stty size; read line; echo got $line; exit 6");
    let size = Winsize { ws_row: 21, ws_col: 43, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None).unwrap();
    let mut command = bundle.make_command("run", &[]);
    let ours = || Stdio::from(pty.slave.try_clone().unwrap());
    let mut child = command.stdin(ours()).stdout(ours()).stderr(ours()).spawn().unwrap();
    let mut master = File::from(pty.master);
    read_until(&mut master, "21 43");
    master.write_all(b"typed\r").unwrap();
    read_until(&mut master, "got typed");
    assert_eq!(child.wait().unwrap().code(), Some(6));
    bundle.assert_gone();
}

#[test]
fn input_that_a_terminal_does_not_take_does_not_hold_up_the_output() {
    let mut bundle = Bundle::new();
    bundle.idle().start();
    // The terminal shows what is typed, so it takes no more while its output is not read.
    let input = bundle.dir.join("input");
    std::fs::write(&input, "0123456789\n".repeat(20_000)).unwrap();
    let mut command = bundle.command(&["exec", "-t", &bundle.id, "head", "-n", "20000"]);
    let ran = bundle.spawn(command.stdin(File::open(&input).unwrap())).wait();
    // What is typed is shown as well, as far as there is room.
    assert!(ran.code == 0 && ran.out.matches("0123456789").count() >= 20_000, "{}", ran.code);
}

#[test]
fn exec_has_a_terminal_of_its_own() {
    let mut bundle = Bundle::new();
    bundle.idle().start();
    let script = "tty; echo done; exec sleep 1000";
    let mut master = with_console(&bundle, "exec", &["--tty", "--detach", &bundle.id, "sh", "-c", script]);
    assert!(read_until(&mut master, "done").contains("/dev/pts/0"));
}

#[test]
fn a_terminal_without_a_socket_and_a_socket_without_a_terminal_are_refused() {
    let mut bundle = Bundle::new();
    bundle.set("/process/terminal", json!(true));
    assert!(bundle.make("create", &[]).fails(1).contains("--console-socket"));
    bundle.set("/process/terminal", json!(false));
    let path = bundle.dir.join("console");
    let _listener = UnixListener::bind(&path).unwrap();
    let printed = bundle.make("create", &["--console-socket", path.to_str().unwrap()]).fails(1);
    assert!(printed.contains("process.terminal"), "{printed}");
    assert!(bundle.make("create", &["--console-socket", "/nobody"]).fails(1).contains("/nobody"));
    bundle.assert_gone();
}

fn lent(bundle: &Bundle) -> File {
    let path = bundle.dir.join("lent");
    std::fs::write(&path, "lent\n").unwrap();
    File::open(path).unwrap()
}

#[test]
fn preserved_descriptors_come_along_and_others_do_not() {
    let mut bundle = Bundle::new();
    let file = lent(&bundle);
    bundle.sh("cat <&3");
    let mut command = bundle.make_command("run", &["--preserve-fds", "1"]);
    lend(&mut command, &file, 3..=3);
    assert_eq!(bundle.spawn(&mut command).wait().ok(), "lent\n");
    let mut command = bundle.make_command("run", &[]);
    lend(&mut command, &file, 3..=3);
    assert_ne!(bundle.spawn(&mut command).wait().code, 0, "without being asked for it is closed");
}

#[test]
fn sockets_of_systemd_come_along_with_their_number() {
    let mut bundle = Bundle::new();
    let file = lent(&bundle);
    bundle.sh("echo $LISTEN_FDS $LISTEN_PID; cat <&3");
    let mut command = bundle.make_command("run", &[]);
    command.env("LISTEN_FDS", "1").env("LISTEN_PID", "77777");
    lend(&mut command, &file, 3..=3);
    assert_eq!(bundle.spawn(&mut command).wait().ok(), "1 1\nlent\n");
}
