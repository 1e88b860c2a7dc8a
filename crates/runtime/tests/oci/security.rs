//! Attacks by an image, by a container's root or by a caller, each named by the CVE of the runtime that allowed it.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use flota_runtime::ExecSpec;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::census::entries;
use crate::harness::{Bundle, lend, program, read, wait_for};
use crate::supervised::Supervised;

/// A mount of the machine's programs: whatever the runtime is linked with, it runs in the container, too.
fn with_libraries(bundle: &mut Bundle) {
    for name in ["lib", "lib64"] {
        symlink(format!("usr/{name}"), bundle.rootfs().join(name)).unwrap();
    }
    bundle.mount(json!({"destination": "/usr", "source": "/usr", "options": ["rbind", "ro"]}));
}

#[test]
fn cve_2019_5736_the_runtimes_program_can_not_be_overwritten_from_inside() {
    let mut bundle = Bundle::new();
    with_libraries(&mut bundle);
    fs::write(bundle.rootfs().join("bin/evil"), "#!/proc/self/exe\n").unwrap();
    // Opens what a new process runs for reading, waits for its end, and writes to it by all names there are.
    let script = "while :; do for p in /proc/[0-9]*; do
        case $(readlink $p/exe) in '' | */busybox) continue;; esac
        exec 3<$p/exe || continue; touch /tried; kill -9 ${p#/proc/}
        for name in /proc/self/fd/3 $p/exe; do echo evil 2>/dev/null >$name && touch /won; done
        (echo evil >>/proc/self/fd/3) 2>/dev/null && touch /won
        done; done 2>/dev/null";
    bundle.privileged().sh(script).start();
    let before = fs::read(program()).unwrap();
    for args in [&["/proc/self/exe", "init", "--", "sleep", "1000"][..], &["/bin/evil", "events"]] {
        bundle.call(&[&["exec", &bundle.id], args].concat());
    }
    wait_for("the attack was tried", || bundle.rootfs().join("tried").exists().then_some(()));
    bundle.call(&["exec", &bundle.id, "/proc/self/exe", "init", "--", "sleep", "1000"]);
    assert!(!bundle.rootfs().join("won").exists(), "something was written");
    assert!(fs::read(program()).unwrap() == before, "the machine's program is another");
}

#[test]
fn cve_2019_5736_an_image_whose_entry_is_the_runtime_gets_a_copy_that_can_not_be_written() {
    let mut bundle = Bundle::new();
    with_libraries(&mut bundle);
    let before = fs::read(program()).unwrap();
    let attack = "exec 3</proc/1/exe; readlink /proc/1/exe; (echo evil >>/proc/1/exe) && echo won; \
        (echo evil >/proc/self/fd/3) && echo won; true";
    bundle.privileged().args(&["/proc/self/exe", "init", "--", "/bin/sh", "-c", attack]);
    let ran = bundle.run();
    assert!(ran.code == 0 && !ran.out.contains("won") && !ran.out.contains("busybox"), "{ran:?}");
    assert_eq!(ran.err.matches("can't create").count(), 2, "{ran:?}");
    assert!(ran.err.contains("/proc/self/fd/3: Read-only file system"), "{ran:?}");
    assert!(fs::read(program()).unwrap() == before, "the machine's program is another");
}

#[test]
fn cve_2021_30465_a_destination_that_is_swapped_for_a_link_never_leads_outside() {
    let mut bundle = Bundle::new();
    let outside = bundle.dir.join("outside");
    fs::create_dir(&outside).unwrap();
    let (folder, link) = (bundle.rootfs().join("x"), bundle.rootfs().join("z"));
    fs::create_dir(&folder).unwrap();
    symlink(Path::new("/../../../../../../..").join(outside.strip_prefix("/").unwrap()), &link).unwrap();
    bundle.mount(json!({"destination": "/x/y", "type": "tmpfs", "source": "tmpfs", "options": ["size=1236k"]}));
    bundle.mount(json!({"destination": "/x/f", "type": "bind", "source": "/etc/hostname", "options": ["bind"]}));
    bundle.sh("grep -c size=1236k /proc/self/mountinfo").write();
    let done = AtomicBool::new(false);
    let inside = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = renameat2(AT_FDCWD, &folder, AT_FDCWD, &link, RenameFlags::RENAME_EXCHANGE);
            }
        });
        let ran: Vec<_> = (0..100).map(|_| bundle.run()).collect();
        done.store(true, Ordering::Relaxed);
        ran
    });
    assert!(inside.iter().any(|it| it.code == 0), "{:?}", inside[0]);
    for ran in inside.iter().filter(|it| it.code == 0) {
        assert_eq!(ran.out, "1\n", "it was mounted somewhere else");
    }
    assert_eq!(entries(&outside), Vec::<std::path::PathBuf>::new());
    bundle.assert_gone();
}

#[test]
fn cve_2021_30465_a_link_in_the_image_leads_to_a_place_inside() {
    let mut bundle = Bundle::new();
    let outside = bundle.dir.join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, bundle.rootfs().join("x")).unwrap();
    bundle.mount(json!({"destination": "/x/y", "type": "tmpfs", "source": "tmpfs"}));
    let printed = bundle.sh(&format!("grep -c ' {}/y ' /proc/self/mountinfo", outside.display())).output();
    assert_eq!((printed.as_str(), entries(&outside).len()), ("1\n", 0));
}

#[test]
fn cve_2023_27561_proc_and_sys_must_not_be_links() {
    for name in ["proc", "sys"] {
        let mut bundle = Bundle::new();
        fs::create_dir(bundle.rootfs().join("elsewhere")).unwrap();
        symlink("elsewhere", bundle.rootfs().join(name)).unwrap();
        let printed = bundle.sh("echo ran").run().fails(1);
        assert!(printed.contains(&format!("/{name}")) && printed.contains("not a link"), "{printed}");
        bundle.assert_gone();
    }
}

/// A folder in the place of /dev: nothing is made there by the runtime.
fn with_own_dev(bundle: &mut Bundle) -> std::path::PathBuf {
    let dev = bundle.dir.join("dev");
    fs::create_dir_all(dev.join("pts")).unwrap();
    let mounts = bundle.config["mounts"].as_array().unwrap();
    let mounts = mounts.iter().filter(|it| !it["destination"].as_str().unwrap().starts_with("/dev")).cloned();
    let mounts: Vec<Value> = mounts.collect();
    bundle.set("/mounts", mounts.into());
    bundle.mount(json!({"destination": "/dev", "source": dev, "options": ["rbind"]}));
    dev
}

#[test]
fn cve_2025_31133_paths_are_masked_with_the_real_null_device() {
    let mut bundle = Bundle::new();
    let dev = with_own_dev(&mut bundle);
    symlink("/proc/sys/kernel/core_pattern", dev.join("null")).unwrap();
    bundle.sh("stat -c %F:%t:%T /proc/keys; stat -c %F /proc/acpi /sys/firmware; ls /sys/firmware | wc -l");
    let printed = bundle.output();
    assert!(printed.starts_with("character special file:1:3\n"), "{printed}");
    assert!(printed.ends_with("0\n"), "{printed}");
}

#[test]
fn cve_2025_31133_an_image_with_another_null_device_is_refused() {
    for make in [|it: &Path| symlink("/etc", it).unwrap(), |it: &Path| fs::write(it, "").unwrap()] {
        let mut bundle = Bundle::new();
        let mounts = bundle.config["mounts"].as_array().unwrap();
        let mounts: Vec<Value> = mounts.iter().filter(|it| it["destination"] != "/dev").cloned().collect();
        bundle.set("/mounts", mounts.into());
        fs::create_dir(bundle.rootfs().join("dev")).unwrap();
        make(&bundle.rootfs().join("dev/null"));
        let printed = bundle.run().fails(1);
        assert!(printed.contains("/dev/null"), "{printed}");
        bundle.assert_gone();
    }
}

#[test]
fn cve_2025_52565_a_terminal_comes_from_the_terminal_device_only() {
    type Trick = fn(&Path);
    let tricks: [(&str, Trick); 4] = [
        ("a link", |it| symlink("/proc/sys/kernel/core_pattern", it).unwrap()),
        ("a file", |it| fs::write(it, "").unwrap()),
        ("a pipe", |it| nix::unistd::mkfifo(it, nix::sys::stat::Mode::S_IRWXU).unwrap()),
        ("nothing", |_| ()),
    ];
    for (name, trick) in tricks {
        let mut bundle = Bundle::new();
        let dev = with_own_dev(&mut bundle);
        trick(&dev.join("pts/ptmx"));
        let printed = bundle.set("/process/terminal", json!(true)).run().fails(1);
        assert!(printed.contains("/dev/pts/ptmx"), "{name}: {printed}");
        bundle.assert_gone();
    }
}

#[test]
fn cve_2025_52565_a_console_that_is_a_link_leads_nowhere_outside() {
    let mut bundle = Bundle::new();
    let (dev, outside) = (with_own_dev(&mut bundle), bundle.dir.join("outside"));
    fs::create_dir(&outside).unwrap();
    symlink(outside.join("console"), dev.join("console")).unwrap();
    bundle.mount(json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]}));
    bundle.set("/process/terminal", json!(true)).sh("stat -L -c %F:%t:%T /dev/pts/0 /dev/console");
    let ran = bundle.run();
    assert_eq!(entries(&outside), Vec::<std::path::PathBuf>::new(), "{ran:?}");
    assert!(ran.code != 0 || ran.out.matches(":88:0").count() == 2, "{ran:?}");
}

#[test]
fn cve_2025_52881_what_is_written_below_proc_can_not_be_redirected_by_an_image() {
    let mut bundle = Bundle::new();
    let fake = bundle.rootfs().join("proc/sys/net/ipv4");
    fs::create_dir_all(&fake).unwrap();
    fs::write(fake.join("ip_forward"), "untouched").unwrap();
    bundle.set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}));
    assert_eq!(bundle.sh("cat /proc/sys/net/ipv4/ip_forward").output(), "1\n");
    assert_eq!(read(fake.join("ip_forward")), "untouched");
}

#[test]
fn cve_2025_52881_a_proc_that_is_something_else_is_not_written_to() {
    let mut other = Bundle::new();
    other.mount(json!({"destination": "/proc", "type": "tmpfs", "source": "tmpfs"}));
    other.idle().start();
    let mut bundle = Bundle::new();
    let path = format!("/proc/{}/ns/mnt", other.pid());
    bundle.namespace(json!({"type": "mount", "path": path})).set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}));
    let printed = bundle.run().fails(1);
    assert!(printed.contains("/proc is something else") || printed.contains("/proc/sys"), "{printed}");
    bundle.assert_gone();
}

#[test]
fn cve_2024_21626_no_working_folder_leads_out_of_the_container() {
    let mut bundle = Bundle::new();
    fs::write(bundle.dir.join("secret"), "secret").unwrap();
    let outside = File::open(&bundle.dir).unwrap();
    let script = "pwd; cat secret ../secret ../../secret ../../../../../../../../../etc/debian_version";
    let mut entered = 0;
    for number in 0..20 {
        bundle.set("/process/cwd", json!(format!("/proc/self/fd/{number}"))).sh(script);
        let mut command = bundle.make_command("run", &[]);
        lend(&mut command, &outside, 3..=20);
        let ran = bundle.spawn(&mut command).wait();
        assert!(!ran.out.contains("secret") && !ran.out.contains("1"), "{number}: {ran:?}");
        entered += usize::from(ran.err.contains("cat"));
    }
    assert_eq!(entered, 0, "a program was run there");
    bundle.set("/process/cwd", json!("/")).idle().start();
    for number in 3..20 {
        let cwd = format!("/proc/self/fd/{number}");
        let mut command = bundle.command(&["exec", "--cwd", &cwd, &bundle.id, "sh", "-c", script]);
        lend(&mut command, &outside, 3..=20);
        let ran = bundle.spawn(&mut command).wait();
        assert!(ran.code != 0 && ran.out.is_empty(), "{number}: {ran:?}");
    }
}

#[test]
fn cve_2024_21626_no_descriptor_of_the_caller_or_the_runtime_comes_along() {
    let mut bundle = Bundle::new();
    let outside = File::open("/").unwrap();
    bundle.sh("for f in /proc/self/fd/*; do [ -e $f ] && echo ${f##*/}; done; true");
    let mut command = bundle.make_command("run", &[]);
    lend(&mut command, &outside, 3..=30);
    assert_eq!(bundle.spawn(&mut command).wait().ok(), "0\n1\n2\n");
    bundle.set("/process/args/2", json!("exec sleep 1000"));
    bundle.start();
    let mut command = bundle.command(&["exec", &bundle.id, "sh", "-c"]);
    lend(&mut command, &outside, 3..=30);
    command.arg("for f in /proc/self/fd/*; do [ -e $f ] && echo ${f##*/}; done; true");
    assert_eq!(bundle.spawn(&mut command).wait().ok(), "0\n1\n2\n");
}

#[test]
fn cve_2024_21626_no_program_is_found_through_a_descriptor() {
    let mut bundle = Bundle::new();
    fs::copy(bundle.rootfs().join("bin/busybox"), bundle.dir.join("hostname")).unwrap();
    let outside = File::open(&bundle.dir).unwrap();
    let through = |number: i32| format!("/proc/self/fd/{number}");
    fs::write(bundle.rootfs().join("script"), format!("#!{}/hostname\n", through(10))).unwrap();
    fs::set_permissions(bundle.rootfs().join("script"), Permissions::from_mode(0o755)).unwrap();
    let path = format!("PATH={}", (3..60).map(through).collect::<Vec<_>>().join(":"));
    let programs = [format!("{}/hostname", through(10)), "hostname".to_owned(), "/script".to_owned()];
    for program in &programs {
        bundle.set("/process/env", json!([path])).args(&[program]);
        let mut command = bundle.make_command("run", &[]);
        lend(&mut command, &outside, 3..=20);
        let ran = bundle.spawn(&mut command).wait();
        assert!(ran.code != 0 && ran.out.is_empty(), "{program}: {ran:?}");
    }
    bundle.set("/process/env", json!(["PATH=/bin"])).idle().start();
    for program in &programs {
        let mut command = bundle.command(&["exec", "--env", &path, &bundle.id, program]);
        lend(&mut command, &outside, 3..=20);
        let ran = bundle.spawn(&mut command).wait();
        assert!(ran.code != 0 && ran.out.is_empty(), "exec {program}: {ran:?}");
    }
    // One who promises more descriptors than there are lends none of the runtime's.
    let mut command = bundle.command(&["exec", "--preserve-fds", "50", "--env", &path, &bundle.id, "hostname"]);
    lend(&mut command, &File::open("/dev/null").unwrap(), 3..=3);
    assert!(bundle.spawn(&mut command).wait().code != 0);
}

#[test]
fn cve_2024_21626_no_program_is_found_through_a_descriptor_of_a_supervisor() {
    let mut container = Supervised::new("true");
    // In the container's folder, which its supervisor has open, and above it.
    for folder in [&container.dir, &container.bundle.dir] {
        fs::copy(container.bundle.rootfs().join("bin/busybox"), folder.join("hostname")).unwrap();
    }
    let through = |number: i32| format!("/proc/self/fd/{number}:/proc/self/fd/{number}/..");
    let path = format!("PATH={}", (3..60).map(through).collect::<Vec<_>>().join(":"));
    container.bundle.set("/process/env", json!([path])).args(&["hostname"]);
    let error = container.try_start().expect_err("it is not in the image").to_string();
    assert!(error.contains("executable file not found"), "{error}");
    container.bundle.args(&["/bin/sleep", "1000"]);
    let container = container.start();
    for contained in [false, true] {
        let null = || File::options().read(true).write(true).open("/dev/null").unwrap().into();
        let (argv, none) = (vec!["hostname".to_owned()], String::new);
        let exec = ExecSpec { argv, env: Vec::new(), cwd: none(), user: none(), tty: false, contained };
        let error = container.client().exec(&exec, vec![null(), null(), null()]).expect_err("it is not in the image");
        assert!(error.to_string().contains("executable file not found"), "contained: {contained}: {error}");
    }
}

#[test]
fn cve_2022_29162_nothing_is_inheritable_that_the_configuration_does_not_say() {
    let mut bundle = Bundle::new();
    assert!(bundle.sh("grep CapInh /proc/self/status").output().ends_with("\t0000000000000000\n"));
    bundle.idle().start();
    let args = ["exec", "--cap", "CAP_NET_RAW", "--cap", "CAP_SYS_ADMIN", &bundle.id];
    let printed = bundle.call(&[&args[..], &["grep", "-E", "CapInh|CapAmb", "/proc/self/status"]].concat()).ok();
    assert_eq!(printed, "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n");
}

#[test]
fn the_callers_environment_stays_outside() {
    let mut bundle = Bundle::new();
    bundle.sh("env; tr '\\0' '\\n' </proc/1/environ; echo end");
    let ran = bundle.spawn(bundle.make_command("run", &[]).env("SECRET", "of the caller")).wait().ok();
    assert!(ran.contains("PATH=/bin") && ran.ends_with("end\n") && !ran.contains("SECRET"), "{ran}");
    bundle.idle().start();
    let mut command = bundle.command(&["exec", &bundle.id, "env"]);
    let printed = bundle.spawn(command.env("SECRET", "of the caller")).wait().ok();
    assert!(printed.contains("PATH=") && !printed.contains("SECRET"), "{printed}");
}

#[test]
fn cve_2023_25809_control_groups_of_the_machine_can_not_be_written() {
    for options in [["ro"], ["rw"]] {
        let mut bundle = Bundle::new();
        bundle
            .mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options}));
        bundle.set("/linux/maskedPaths", json!([]));
        let script = "find /sys/fs/cgroup -name cgroup.procs | while read -r file; do echo $$ >$file && echo won; done; \
            grep -c ' /sys/fs/cgroup' /proc/self/mountinfo";
        bundle.privileged().sh(script).write();
        let mut command = bundle.command(&["--cgroup-manager", "disabled", "run", "--bundle"]);
        let ran = bundle.spawn(command.arg(bundle.dir.join("bundle")).arg(&bundle.id)).wait();
        let mounts = ran.out.trim().parse::<u32>();
        assert!(ran.code == 0 && mounts.is_ok_and(|it| it > 0), "{options:?}: {ran:?}");
    }
}

#[test]
fn a_container_in_the_processes_of_another_is_deleted_with_all_of_its_own() {
    let (mut other, mut bundle) = (Bundle::new(), Bundle::new());
    other.idle().start();
    bundle.namespace(json!({"type": "pid", "path": format!("/proc/{}/ns/pid", other.pid())}));
    bundle.sh("sleep 1000 & exec sleep 1000").start();
    wait_for("its child runs", || (bundle.census().processes.len() == 2).then_some(()));
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
    assert_eq!(other.state()["status"], json!("running"));
}

#[test]
fn a_container_has_a_session_keyring_of_its_own() {
    let mut bundle = Bundle::new();
    bundle.set("/linux/maskedPaths", json!([])).sh("cat /proc/keys");
    let name = format!("_ses.{}", bundle.id);
    // First: the kernel takes its time to forget a keyring.
    assert!(!bundle.make("run", &["--no-new-keyring"]).ok().contains(&name));
    assert!(bundle.output().contains(&name));
    bundle.idle().start();
    let key = lend_key(&bundle.id);
    let seen = |args: &[&str]| bundle.call(&[args, &[&bundle.id, "cat", "/proc/keys"]].concat()).ok().contains(&key);
    assert!(!seen(&["exec"]), "a further process has the caller's keyring");
    drop(bundle.call(&["delete", "--force", &bundle.id]));
    bundle.make("create", &["--no-new-keyring"]).ok();
    bundle.call(&["start", &bundle.id]).ok();
    assert!(seen(&["exec"]), "as its init has");
}

/// Adds a key to the session keyring of this process that only those can see who have it. Returns a part of its name.
#[expect(unsafe_code, reason = "keys have no safe wrapper")]
fn lend_key(name: &str) -> String {
    let name = format!("lent-{name}");
    let text = std::ffi::CString::new(name.clone()).unwrap();
    // SAFETY: the texts live through the calls (add_key(2), keyctl(2)). -3 is the session keyring, 5 KEYCTL_SETPERM.
    unsafe {
        let key = libc::syscall(libc::SYS_add_key, c"user".as_ptr(), text.as_ptr(), c"x".as_ptr(), 1, -3);
        assert!(key > 0, "{}", std::io::Error::last_os_error());
        assert_eq!(libc::syscall(libc::SYS_keyctl, 5, key, 0x3f00_0000), 0);
    }
    name
}

#[test]
fn the_machines_null_device_does_not_come_along_as_standard_input() {
    use std::os::unix::fs::MetadataExt;
    let mut bundle = Bundle::new();
    let before = fs::metadata("/dev/null").unwrap();
    bundle.privileged().set("/process/user", json!({"uid": 1000, "gid": 1000}));
    bundle.sh("chmod 600 /proc/self/fd/0; stat -c %u /proc/self/fd/0; true").run();
    let after = fs::metadata("/dev/null").unwrap();
    assert_eq!((after.mode(), after.uid()), (before.mode(), before.uid()));
    assert!(after.file_type().is_char_device());
}

#[test]
fn a_container_that_stops_its_exec_helpers_stops_nothing_else() {
    let mut bundle = Bundle::new();
    bundle
        .privileged()
        .sh("while :; do for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p != 1 ] && kill -STOP $p; done; done");
    bundle.start();
    let exec = bundle.spawn(&mut bundle.command(&["exec", &bundle.id, "sleep", "1000"]));
    assert_eq!(bundle.status(), "running", "others are answered");
    bundle.call(&["delete", "-f", &bundle.id]).ok();
    exec.signal(Signal::SIGTERM);
    assert_ne!(exec.wait().code, 0);
    bundle.assert_gone();
}
