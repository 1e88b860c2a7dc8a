//! A container of a daemon, with its supervisor.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use flota_runtime::cgroup::{Groups, hierarchies};
use flota_runtime::{
    ContainerClient, ContainerEvents, ExecSpec, ExitStatus, LogReader, Order, Program, RootSource, RunError,
};

use crate::census::entries;
use crate::harness::{Bundle, program, wait_for};

/// A container of a daemon. The bundle is dropped last.
pub(crate) struct Supervised {
    pub(crate) order: Order,
    pub(crate) dir: PathBuf,
    pub(crate) bundle: Bundle,
}

impl Supervised {
    pub(crate) fn new(script: &str) -> Self {
        let mut bundle = Bundle::new();
        bundle.sh(script);
        let dir = bundle.dir.join("supervised");
        std::fs::create_dir(&dir).unwrap();
        let path = bundle.config["linux"]["cgroupsPath"].as_str();
        let order = Order {
            id: bundle.id.clone(),
            root: RootSource::Folder(bundle.rootfs()),
            user: String::new(),
            extra_groups: Vec::new(),
            hostname: "box".into(),
            hosts: "127.0.0.1\tlocalhost\n198.18.0.9\tbox\n".into(),
            resolver: None,
            groups: Groups::new(&hierarchies().unwrap(), path, &bundle.id).unwrap(),
            log: dir.join("log"),
            log_bytes: Some(1 << 20),
            terminal: false,
            runtime: None,
            pinned: Vec::new(),
            ids: None,
            mapped: Vec::new(),
            images: Vec::new(),
            file_systems: Vec::new(),
        };
        Self { order, dir, bundle }
    }

    pub(crate) fn try_start(&self) -> Result<ContainerEvents, RunError> {
        self.start_keeping(&[])
    }

    pub(crate) fn start_keeping(&self, kept: &[OwnedFd]) -> Result<ContainerEvents, RunError> {
        let spec = serde_json::from_value(self.bundle.config.clone()).unwrap();
        flota_runtime::start(&Program::open(program()), &self.dir, &self.order, spec, kept)
    }

    #[track_caller]
    pub(crate) fn start(self) -> Self {
        drop(self.start_watched());
        self
    }

    #[track_caller]
    pub(crate) fn start_watched(&self) -> ContainerEvents {
        self.try_start().unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn client(&self) -> ContainerClient {
        ContainerClient::connect(&self.dir).unwrap()
    }

    pub(crate) fn wait(&self) -> ExitStatus {
        wait_for("exit.json", || ExitStatus::load(&self.dir).unwrap())
    }

    /// Stream and text of all lines so far.
    pub(crate) fn lines(&self) -> Vec<(u32, String)> {
        let mut reader = LogReader::open(&self.order.log);
        let next = || reader.next_line().unwrap();
        std::iter::from_fn(next).map(|it| (it.stream, String::from_utf8_lossy(&it.text).into_owned())).collect()
    }

    pub(crate) fn wait_line(&self, text: &str) {
        wait_for(&format!("`{text}` in the log"), || self.lines().iter().any(|it| it.1.trim() == text).then_some(()));
    }

    /// Runs a script in it. Returns its exit code and its output.
    pub(crate) fn exec(&self, script: &str) -> (i32, String) {
        self.exec_with(script, false)
    }

    /// Runs a script in it, and ends the processes that the script has started with it. Returns its exit code and its
    /// output.
    pub(crate) fn exec_contained(&self, script: &str) -> (i32, String) {
        self.exec_with(script, true)
    }

    fn exec_with(&self, script: &str, contained: bool) -> (i32, String) {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let null = || OwnedFd::from(File::options().read(true).write(true).open("/dev/null").unwrap());
        let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let spec = ExecSpec { argv, env: Vec::new(), cwd: String::new(), user: String::new(), tty: false, contained };
        let process = self.client().exec(&spec, vec![null(), OwnedFd::from(writer), null()]).unwrap();
        let mut printed = String::new();
        reader.read_to_string(&mut printed).unwrap();
        (process.wait(), printed)
    }

    /// All of it is gone but what a daemon reads.
    pub(crate) fn assert_gone(&self) {
        wait_for("the supervisor has ended", || self.bundle.census().processes.is_empty().then_some(()));
        self.bundle.assert_gone();
        assert_eq!(entries(&self.dir.join("runtime")), Vec::<PathBuf>::new());
    }
}
