//! How a program starts supervised containers: `supervise PROGRAM DIR CONFIG`, with the program `flota-runtime`, a folder
//! for the containers' own, and a `config.json` with an absolute `root.path` and a `linux.cgroupsPath`.
//!
//! Starts one for each line that it reads, and prints the seconds that took and the supervisor's process id. At the end
//! of its input it kills them all, and waits until they have ended. `make bench` measures with it.
#![expect(clippy::print_stdout, reason = "an example")]

use std::error::Error;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use flota_runtime::cgroup::{self, Groups};
use flota_runtime::oci::Spec;
use flota_runtime::{ContainerEvents, ContainerState, Order, Program, RootSource};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [program, dir, config] = &words[..] else { return Err("usage: supervise PROGRAM DIR CONFIG".into()) };
    let mut started = Vec::new();
    // As a daemon does once, for all that it will start.
    let path = Spec::load(config)?.linux.and_then(|it| it.cgroups_path).unwrap_or_default();
    cgroup::prepare(&cgroup::hierarchies()?, Path::new(path.trim_start_matches('/')))?;
    let result = start_each(&Program::open(program.clone()), dir, &Spec::load(config)?, &mut started);
    for container in started {
        end(&container)?;
    }
    result
}

fn start_each(
    program: &Program,
    dir: &Path,
    spec: &Spec,
    started: &mut Vec<ContainerEvents>,
) -> Result<(), Box<dyn Error>> {
    for (number, line) in std::io::stdin().lines().enumerate() {
        line?;
        let (id, dir) = (format!("box{number}"), dir.join(number.to_string()));
        let spec = named(spec, &id);
        let begun = Instant::now();
        let order = order(&id, &dir, &spec)?;
        started.push(flota_runtime::start(program, &dir, &order, spec, &[])?);
        let took = begun.elapsed();
        let state = ContainerState::load(&dir)?.ok_or("it has no state")?;
        println!("{} {}", took.as_secs_f64(), state.supervisor);
    }
    Ok(())
}

/// Returns the specification with control groups of its own, below those that are configured.
fn named(spec: &Spec, id: &str) -> Spec {
    let mut spec = spec.clone();
    let linux = spec.linux.get_or_insert_default();
    linux.cgroups_path = Some(format!("{}/{id}", linux.cgroups_path.as_deref().unwrap_or_default()));
    spec
}

fn order(id: &str, dir: &Path, spec: &Spec) -> Result<Order, Box<dyn Error>> {
    let path = spec.linux.as_ref().and_then(|it| it.cgroups_path.as_deref());
    Ok(Order {
        id: id.to_owned(),
        root: RootSource::Folder(spec.root.as_ref().ok_or("root.path is missing")?.path.clone()),
        user: String::new(),
        extra_groups: Vec::new(),
        hostname: id.to_owned(),
        hosts: "127.0.0.1\tlocalhost\n".into(),
        resolver: None,
        groups: Groups::new(&cgroup::hierarchies()?, path, id)?,
        log: dir.join("log"),
        log_bytes: Some(1 << 20),
        terminal: false,
        runtime: None,
        pinned: Vec::new(),
        ids: None,
        mapped: Vec::new(),
        images: Vec::new(),
        file_systems: Vec::new(),
    })
}

fn end(container: &ContainerEvents) -> Result<(), Box<dyn Error>> {
    container.kill(9)?;
    loop {
        match container.next_event() {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(container.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
