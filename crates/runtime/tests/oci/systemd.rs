//! `--systemd-cgroup` against a bus and a manager of the test, and against a real bus without systemd.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use flota_runtime::cgroup::hierarchies;
use serde_json::json;

use crate::harness::{Bundle, read, wait_for};
use crate::running::Ran;

/// The calls of the manager: the method, and its arguments as text.
type Calls = Arc<Mutex<Vec<(String, String)>>>;

/// A message of the D-Bus wire format.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, it: usize) {
        self.align(4);
        self.0.extend(u32::try_from(it).unwrap().to_ne_bytes());
    }

    fn text(&mut self, it: &str) {
        self.number(it.len());
        self.0.extend(it.bytes().chain([0]));
    }

    /// A message with these header fields (code, type, value) and a body.
    fn whole(kind: u8, fields: &[(u8, char, &str)], body: &Self) -> Vec<u8> {
        let mut header = Self::default();
        for (code, kind, value) in fields {
            header.align(8);
            header.0.extend([*code, 1, *kind as u8, 0]);
            match kind {
                'u' => header.number(value.parse().unwrap()),
                'g' => header.0.extend([&[u8::try_from(value.len()).unwrap()], value.as_bytes(), &[0]].concat()),
                _ => header.text(value),
            }
        }
        let mut message = Self(vec![if cfg!(target_endian = "little") { b'l' } else { b'B' }, kind, 0, 1]);
        [body.0.len(), 1, header.0.len()].iter().for_each(|it| message.number(*it));
        message.0.extend(&header.0);
        message.align(8);
        message.0.extend(&body.0);
        message.0
    }
}

/// Takes part in one connection as the bus and as systemd.
fn serve(stream: UnixStream, slice: &Path, calls: &Calls) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while !line.ends_with("BEGIN\r\n") {
        stream.read_line(&mut line)?;
        if line.ends_with("\r\n") && !line.ends_with("BEGIN\r\n") {
            stream.get_mut().write_all(b"OK 0123456789abcdef\r\n")?;
        }
    }
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header)?;
        let number = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap()) as usize;
        let (body, serial, fields) = (number(4), number(8).to_string(), number(12).next_multiple_of(8));
        let mut rest = vec![0; fields + body];
        stream.read_exact(&mut rest)?;
        let names = String::from_utf8_lossy(&rest[..fields]).into_owned();
        let known = ["StartTransientUnit", "SetUnitProperties", "AddMatch", "Hello"];
        let member = known.into_iter().find(|it| names.contains(it)).unwrap_or("unknown");
        let body = &rest[fields..];
        calls.lock().unwrap().push((member.to_owned(), String::from_utf8_lossy(body).into_owned()));
        if member != "StartTransientUnit" {
            stream.get_mut().write_all(&Message::whole(2, &[(5, 'u', &serial)], &Message::default()))?;
            continue;
        }
        let unit = start_unit(slice, body);
        let (mut started, mut removed) = (Message::default(), Message::default());
        started.text("/job/7");
        removed.number(7);
        ["/job/7", &unit, "done"].iter().for_each(|it| removed.text(it));
        let reply = Message::whole(2, &[(5, 'u', &serial), (8, 'g', "o")], &started);
        let fields = [(1, 'o', "/org/freedesktop/systemd1"), (3, 's', "JobRemoved"), (8, 'g', "uoss")];
        stream.get_mut().write_all(&[reply, Message::whole(4, &fields, &removed)].concat())?;
    }
}

/// Puts the process into the groups that systemd makes: its own hierarchy, and the unified one. Returns the unit's name.
fn start_unit(slice: &Path, body: &[u8]) -> String {
    let number = |at: usize| u32::from_ne_bytes(body[at..at + 4].try_into().unwrap());
    let unit = String::from_utf8(body[4..4 + number(0) as usize].to_vec()).unwrap();
    let name = b"PIDs\0\x02au\0";
    let pids = body.windows(name.len()).position(|it| it == name).unwrap() + name.len();
    let pid = number(pids.next_multiple_of(4) + 4);
    for hierarchy in hierarchies().unwrap().into_iter().filter(|it| it.v2 || it.controllers.is_empty()) {
        let group = hierarchy.point.join(slice).join(&unit);
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("cgroup.procs"), pid.to_string()).unwrap();
    }
    unit
}

/// A container in a slice of its own.
fn container() -> (Bundle, PathBuf) {
    let mut bundle = Bundle::new();
    let slice = format!("{}.slice", bundle.id);
    bundle.set("/linux/cgroupsPath", json!(format!("{slice}:box:{}", bundle.id)));
    bundle.set("/linux/resources/memory", json!({"limit": 64 << 20})).idle().write();
    (bundle, slice.into())
}

fn call(bundle: &Bundle, socket: &Path, args: &[&str]) -> Ran {
    let mut command = bundle.command(&["--systemd-cgroup"]);
    command.args(args).env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", socket.display()));
    bundle.spawn(&mut command).wait()
}

fn create(bundle: &Bundle, socket: &Path) -> Ran {
    let folder = bundle.dir.join("bundle");
    call(bundle, socket, &["create", "--bundle", folder.to_str().unwrap(), &bundle.id])
}

#[test]
fn container_is_in_the_scope_that_systemd_starts_for_it_in_every_hierarchy() {
    let (bundle, slice) = container();
    let socket = bundle.dir.join("bus");
    let (listener, calls) = (UnixListener::bind(&socket).unwrap(), Calls::default());
    let (seen, folder) = (Arc::clone(&calls), slice.clone());
    std::thread::spawn(move || {
        // A connection ends with its client.
        listener.incoming().for_each(|stream| drop(serve(stream.unwrap(), &folder, &seen)));
    });
    create(&bundle, &socket).ok();
    let place = format!("/{}/box-{}.scope", slice.display(), bundle.id);
    let groups = read(format!("/proc/{}/cgroup", bundle.pid()));
    assert!(groups.lines().all(|it| it.ends_with(&place)), "{groups}");
    call(&bundle, &socket, &["update", "--pids-limit", "7", &bundle.id]).ok();
    call(&bundle, &socket, &["delete", "--force", &bundle.id]).ok();
    // systemd removes a slice that has become empty.
    for hierarchy in hierarchies().unwrap() {
        let _ = fs::remove_dir(hierarchy.point.join(&slice));
    }
    bundle.assert_gone();
    let calls = calls.lock().unwrap();
    let of = |member: &str| &calls.iter().find(|it| it.0 == member).unwrap().1;
    let started = of("StartTransientUnit");
    for part in [&place[place.rfind('/').unwrap() + 1..], "Delegate", "Slice", slice.to_str().unwrap(), "Memory"] {
        assert!(started.contains(part), "{part}: {started:?}");
    }
    assert!(of("AddMatch").contains("member='JobRemoved'") && of("SetUnitProperties").contains("TasksMax"));
}

#[test]
fn machine_without_systemd_is_named_in_the_error_and_nothing_is_left() {
    let (bundle, _) = container();
    let printed = create(&bundle, Path::new("/nowhere/bus")).fails(1);
    assert!(printed.contains("with systemd, as --systemd-cgroup says: /nowhere/bus: No such file"), "{printed}");
    bundle.assert_gone();
}

#[test]
fn path_is_no_scope_without_systemd_and_a_scope_is_no_path_with_it() {
    let (mut bundle, _) = container();
    assert!(bundle.make("create", &[]).fails(1).contains("which needs --systemd-cgroup"));
    bundle.set("/linux/cgroupsPath", json!(format!("/{}", bundle.id))).write();
    let printed = create(&bundle, Path::new("/nowhere/bus")).fails(1);
    assert!(printed.contains("it has not the form slice:prefix:name"), "{printed}");
    bundle.assert_gone();
}

/// A bus of Debian's dbus.
struct Daemon(Child);

impl Daemon {
    fn start(dir: &Path, socket: &Path) -> Self {
        let config = dir.join("bus.conf");
        let allowed = ["user='*'", "send_destination='*'", "receive_type='method_return'", "receive_type='error'"];
        let policy: String = allowed.iter().map(|it| format!("<allow {it}/>")).collect();
        let text = format!(
            "<busconfig><type>system</type><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy \
             context='default'>{policy}</policy></busconfig>",
            socket.display()
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("dbus-daemon");
        command.arg("--nofork").arg(format!("--config-file={}", config.display())).stderr(Stdio::null());
        let daemon = Self(command.spawn().expect("dbus-daemon is installed"));
        wait_for("the bus", || UnixStream::connect(socket).ok());
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn bus_without_systemd_takes_every_message_and_reports_an_unknown_service() {
    let (bundle, _) = container();
    let socket = bundle.dir.join("bus");
    let _daemon = Daemon::start(&bundle.dir, &socket);
    // A message with an error in it would end the connection.
    let printed = create(&bundle, &socket).fails(1);
    assert!(printed.contains("org.freedesktop.DBus.Error.ServiceUnknown"), "{printed}");
}
