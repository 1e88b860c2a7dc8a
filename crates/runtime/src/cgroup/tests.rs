//! Tests with the real hierarchies of this machine, below a group named for this process. They need root. Everything
//! is removed even when a test fails.

mod devices;
mod life;
mod limits;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;

/// Groups for one test.
struct Real {
    groups: Groups,
    name: String,
}

/// Selects hierarchies of this machine.
#[derive(Clone, Copy, PartialEq)]
enum Which {
    All,
    V1,
    V2,
}

impl Real {
    fn new(name: &str, which: Which) -> Self {
        let mut found = hierarchies().expect("/proc can be read");
        found.retain(|it| which == Which::All || it.v2 == (which == Which::V2));
        assert!(!found.is_empty(), "this machine lacks what this test is about");
        let name = format!("flota-test-{}-{name}", std::process::id());
        let groups = Groups::new(&found, Some(&format!("/{name}/box")), "unused").expect("a good path");
        let real = Self { groups, name };
        assert_eq!(real.folders(), 0, "nothing is there before");
        real
    }

    fn create(name: &str, which: Which, resources: &Resources) -> Self {
        let mut real = Self::new(name, which);
        real.groups.create(resources).expect("this machine can do that");
        real
    }

    /// Returns the number of this test's groups in all hierarchies.
    fn folders(&self) -> usize {
        fn count(path: PathBuf) -> usize {
            let own = usize::from(path.exists());
            own + folder::below(&path).map(count).sum::<usize>()
        }
        hierarchies().expect("/proc can be read").iter().map(|it| count(it.point.join(&self.name))).sum()
    }

    fn folder(&self, controller: &str) -> &Folder {
        self.groups.folders().iter().find(|it| it.has(controller)).expect("this machine has the controller")
    }

    fn text(&self, controller: &str, file: &str) -> String {
        self.folder(controller).read(file).expect("the kernel has the file").trim().to_owned()
    }

    /// Starts a shell script in these groups.
    fn run(&self, script: &str) -> Process {
        Process::start(script, |pid| self.groups.join(pid).expect("the groups are there"))
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.groups.sweep();
        // This finds groups that a failed test has not recorded.
        for folder in self.groups.folders() {
            let _ = std::fs::remove_dir(folder.path.parent().unwrap_or(&folder.path));
        }
    }
}

/// Keeps hugetlb delegated from the root as long as it is held; one test at a time can hold it.
struct Hugetlb {
    file: PathBuf,
    _one: std::sync::MutexGuard<'static, ()>,
}

impl Hugetlb {
    fn hold() -> Self {
        static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let v2 = hierarchies().expect("/proc can be read").into_iter().find(|it| it.v2).expect("it is hybrid");
        Self { file: v2.root.join("cgroup.subtree_control"), _one: one }
    }
}

impl Drop for Hugetlb {
    fn drop(&mut self) {
        let _ = folder::write(&self.file, "-hugetlb");
    }
}

/// A process that is killed when this is dropped.
struct Process {
    child: std::process::Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Process {
    /// Starts a script. The shell first waits for a line, so that it is in its groups before the script runs.
    fn start(script: &str, join: impl FnOnce(i32)) -> Self {
        let script = format!("read line; {script}");
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("there is a shell");
        join(i32::try_from(child.id()).expect("a process id"));
        child.stdin.take().expect("piped").write_all(b"go\n").expect("it reads");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, output }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id")
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it writes");
        line.trim().to_owned()
    }

    /// Returns the signal that ended the process.
    fn signal(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("it has ended", || {
            status = self.child.try_wait().expect("our child");
            status.is_some()
        });
        status.and_then(|status| std::os::unix::process::ExitStatusExt::signal(&status))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // A failed test may leave the process frozen: its groups are removed later, which thaws it.
        let mut patience = folder::Patience::new(Duration::from_millis(500));
        while self.child.try_wait().is_ok_and(|ended| ended.is_none()) && patience.wait() {}
    }
}

/// Waits until a condition holds.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let mut patience = folder::Patience::new(Duration::from_secs(10));
    while !is_so() {
        assert!(patience.wait(), "not in ten seconds: {what}");
    }
}
