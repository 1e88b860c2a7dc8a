//! Runs the processes of a simulation in turn, for a few milliseconds of virtual time each.
//!
//! Each process has a runtime of its own with a paused clock, which advances by itself while the process is idle. A
//! message takes longer than a quantum, so it never arrives in the past, whichever process runs first. A crash drops
//! the runtime with everything that runs in it. A paused process does not run, and its clock jumps when it continues,
//! as after SIGSTOP and SIGCONT.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use super::host::Host;
use super::log::{Capture, Log};
use super::network::Network;
use super::{system, time};

/// Length of one run of a process, in milliseconds. The shortest delay of a message is longer.
pub const QUANTUM: u64 = 2;

struct Process {
    runtime: Runtime,
    is_paused: bool,
}

impl Process {
    /// Runs the process until `to`, within the precision of its clock.
    fn run(&self, host: Host, to: u64, log: &Log) {
        log.set_host(Some(host));
        self.runtime.block_on(async {
            let behind = to.saturating_sub(time::now());
            if behind > QUANTUM {
                // The process was paused: everything that became due meanwhile is due now.
                tokio::time::advance(Duration::from_millis(behind - QUANTUM)).await;
            }
            time::sleep_until(to).await;
            assert!(time::now() <= to + 1, "a process ran ahead: {} instead of {to}", time::now());
        });
        log.set_host(None);
    }
}

/// The processes and the current time.
pub struct World {
    now: u64,
    processes: BTreeMap<Host, Process>,
    /// CPU time of all processes that have run on a host.
    cpu: BTreeMap<Host, Duration>,
    /// Network between the processes.
    pub network: Network,
    /// Log of the whole simulation.
    pub log: Log,
    _capture: tracing::subscriber::DefaultGuard,
}

impl World {
    /// Creates a world without processes at time 0. It needs a new thread of its own.
    pub fn new(seed: u64) -> Self {
        system::seed_this_thread(seed);
        time::begin();
        let log = Log::default();
        let capture = tracing::subscriber::set_default(Capture(log.clone()));
        Self {
            now: 0,
            processes: BTreeMap::new(),
            cpu: BTreeMap::new(),
            network: Network::new(seed),
            log,
            _capture: capture,
        }
    }

    /// Current time in milliseconds.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Starts a process on a host that does not run one.
    ///
    /// # Panics
    /// The host runs a process already.
    pub fn start(&mut self, host: Host, main: impl Future<Output = ()> + Send + 'static) {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime without I/O needs nothing of the system");
        runtime.spawn(main);
        let before = self.processes.insert(host, Process { runtime, is_paused: false });
        assert!(before.is_none(), "{host} runs already");
    }

    /// Whether a process runs on this host, or is paused.
    pub fn is_up(&self, host: Host) -> bool {
        self.processes.contains_key(&host)
    }

    /// Whether the process on this host is paused.
    pub fn is_paused(&self, host: Host) -> bool {
        self.processes.get(&host).is_some_and(|process| process.is_paused)
    }

    /// CPU time that the processes on this host have taken so far.
    pub fn cpu(&self, host: Host) -> Duration {
        self.cpu.get(&host).copied().unwrap_or_default()
    }

    /// Ends the process at once. With `machine`, the host does not reset its connections either.
    pub fn crash(&mut self, host: Host, machine: bool) {
        self.network.crash(host, machine);
        self.log.set_host(Some(host));
        drop(self.processes.remove(&host));
        self.log.set_host(None);
    }

    /// Pauses or continues the process, without notifying it.
    pub fn pause(&mut self, host: Host, paused: bool) {
        if let Some(process) = self.processes.get_mut(&host) {
            process.is_paused = paused;
        }
    }

    /// Runs each process for one quantum.
    pub fn step(&mut self) {
        self.now += QUANTUM;
        for (host, process) in &self.processes {
            if !process.is_paused {
                let before = system::thread_cpu();
                process.run(*host, self.now, &self.log);
                *self.cpu.entry(*host).or_default() += system::thread_cpu().saturating_sub(before);
            }
        }
        system::set_time(self.now);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let hosts: Vec<Host> = self.processes.keys().copied().collect();
        hosts.into_iter().for_each(|host| self.crash(host, true));
    }
}
