//! The command line, with the verbs and flags of runc.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// An OCI runtime that creates containers from bundles.
#[derive(Debug, Parser)]
#[command(name = "flota-runtime", version = concat!(env!("CARGO_PKG_VERSION"), "\nspec: ", "1.2.1"), args_override_self = true)]
pub(crate) struct Arguments {
    /// Folder for the state of containers [default: /run/flota-runtime, or a folder in $XDG_RUNTIME_DIR without root]
    #[arg(long)]
    root: Option<PathBuf>,
    /// File for errors and warnings [default: standard error]
    #[arg(long)]
    pub(crate) log: Option<PathBuf>,
    /// Format of the log
    #[arg(long, default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Log debug messages too
    #[arg(long)]
    pub(crate) debug: bool,
    /// Let systemd create control groups; linux.cgroupsPath has the form slice:prefix:name
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// Who creates control groups: this runtime, or systemd as with --systemd-cgroup; `disabled` uses none
    #[arg(long, default_value = "cgroupfs")]
    pub(crate) cgroup_manager: CgroupManager,
    /// Accepted for compatibility with runc and ignored; the runtime detects it
    #[arg(long)]
    rootless: Option<String>,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

impl Arguments {
    pub(crate) fn root(&self) -> PathBuf {
        if let Some(root) = &self.root {
            return root.clone();
        }
        match std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !nix::unistd::geteuid().is_root()) {
            Some(dir) => PathBuf::from(dir).join("flota-runtime"),
            None => PathBuf::from("/run/flota-runtime"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CgroupManager {
    Cgroupfs,
    Systemd,
    Disabled,
}

#[derive(Debug, Subcommand)]
// Only the flags of the given verb are built, which saves time at each start of a container.
#[command(defer = true)]
pub(crate) enum Verb {
    /// Create a container; its program waits for `start`
    Create(Create),
    /// Start the program of a created container
    Start(Id),
    /// Create a container, start it and wait until it ends
    Run(Run),
    /// Print the state of a container
    State(Id),
    /// Send a signal to the first process of a container
    Kill(Kill),
    /// Remove a stopped container
    Delete(Delete),
    /// Run another process in a container
    Exec(Exec),
    /// List the processes of a container
    Ps(Ps),
    /// List containers
    List(List),
    /// Freeze all processes of a container
    Pause(Id),
    /// Thaw the processes of a paused container
    Resume(Id),
    /// Change the limits of a container
    Update(Update),
    /// Print events and resource usage of a container
    Events(Events),
    /// Write an example config.json
    Spec(SpecFile),
    /// Print the features of this runtime as JSON
    Features,
    /// Not supported
    #[command(hide = true)]
    Checkpoint(Rest),
    /// Not supported
    #[command(hide = true)]
    Restore(Rest),
}

#[derive(Debug, Args)]
pub(crate) struct Rest {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Id {
    /// Id of the container
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Folder that contains config.json
    #[arg(long, short, default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// Configuration file to use instead of the bundle's config.json
    #[arg(long, short = 'f')]
    pub(crate) config: Option<PathBuf>,
    /// Unix socket that receives the terminal
    #[arg(long)]
    pub(crate) console_socket: Option<PathBuf>,
    /// File to write the process id to
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// Use chroot instead of pivot_root
    #[arg(long)]
    pub(crate) no_pivot: bool,
    /// Keep the caller's session keyring
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
    /// Number of descriptors, beyond the standard ones, to pass to the program
    #[arg(long, default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// Id of the new container
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) create: Create,
    /// Return when the program has started
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// Keep the container after it has ended
    #[arg(long)]
    pub(crate) keep: bool,
    /// Do not reap orphans of the container
    #[arg(long)]
    pub(crate) no_subreaper: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// Send the signal to all processes
    #[arg(long, short)]
    pub(crate) all: bool,
    /// Id of the container
    pub(crate) id: String,
    /// Name or number of the signal
    #[arg(default_value = "SIGTERM")]
    pub(crate) signal: String,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Kill it if it runs, and succeed if it does not exist
    #[arg(long, short)]
    pub(crate) force: bool,
    /// Id of the container
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Unix socket that receives the terminal
    #[arg(long)]
    pub(crate) console_socket: Option<PathBuf>,
    /// Working directory
    #[arg(long)]
    pub(crate) cwd: Option<PathBuf>,
    /// Environment variable, NAME=value
    #[arg(long, short)]
    pub(crate) env: Vec<String>,
    /// Allocate a terminal
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// User to run as, UID[:GID]
    #[arg(long, short)]
    pub(crate) user: Option<String>,
    /// Number of an additional group
    #[arg(long, short = 'g')]
    pub(crate) additional_gids: Vec<u32>,
    /// File that describes the process as JSON
    #[arg(long, short)]
    pub(crate) process: Option<PathBuf>,
    /// Return when the process has started
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// File to write the process id to
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// SELinux label
    #[arg(long)]
    pub(crate) process_label: Option<String>,
    /// AppArmor profile
    #[arg(long)]
    pub(crate) apparmor: Option<String>,
    /// Forbid the process to gain privileges
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// Capability to add
    #[arg(long, short)]
    pub(crate) cap: Vec<String>,
    /// Existing group below the container's own to run in, [CONTROLLER[,...]:]PATH
    #[arg(long)]
    pub(crate) cgroup: Vec<String>,
    /// Number of descriptors, beyond the standard ones, to pass to the program
    #[arg(long, default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// Run the process even if the container is paused
    #[arg(long)]
    pub(crate) ignore_paused: bool,
    /// Accepted for compatibility with runc and ignored
    #[arg(long, hide = true)]
    pub(crate) no_subreaper: bool,
    /// Id of the container
    pub(crate) id: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Output format
    #[arg(long, short, default_value = "table")]
    pub(crate) format: Format,
    /// Id of the container
    pub(crate) id: String,
    /// Options of ps(1)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Output format
    #[arg(long, short, default_value = "table")]
    pub(crate) format: Format,
    /// Print only ids
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// File with `linux.resources` as JSON; `-` reads standard input
    #[arg(long, short)]
    pub(crate) resources: Option<PathBuf>,
    /// Block I/O weight, 10 to 1000
    #[arg(long)]
    pub(crate) blkio_weight: Option<u16>,
    /// CPU period, in µs
    #[arg(long)]
    pub(crate) cpu_period: Option<u64>,
    /// CPU quota per period, in µs
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<i64>,
    /// CPU time that may be accumulated, in µs
    #[arg(long)]
    pub(crate) cpu_burst: Option<u64>,
    /// CPU weight
    #[arg(long)]
    pub(crate) cpu_share: Option<u64>,
    /// Period of real-time scheduling, in µs
    #[arg(long)]
    pub(crate) cpu_rt_period: Option<u64>,
    /// Real-time CPU quota per period, in µs
    #[arg(long)]
    pub(crate) cpu_rt_runtime: Option<i64>,
    /// CPUs to run on, such as 0-3,7
    #[arg(long)]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes to use, such as 0-3,7
    #[arg(long)]
    pub(crate) cpuset_mems: Option<String>,
    /// 1 to run only when the CPU is idle
    #[arg(long)]
    pub(crate) cpu_idle: Option<i64>,
    /// Memory limit in bytes; -1 for none
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory: Option<String>,
    /// Memory to keep under pressure, in bytes
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory_reservation: Option<String>,
    /// Limit of memory and swap together, in bytes
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<String>,
    /// Ignored, as by current kernels
    #[arg(long)]
    pub(crate) kernel_memory: Option<String>,
    /// Limit of TCP buffers, in bytes
    #[arg(long)]
    pub(crate) kernel_memory_tcp: Option<String>,
    /// Largest number of processes; -1 for no limit
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,
    /// Id of the container
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Print the usage once
    #[arg(long)]
    pub(crate) stats: bool,
    /// Time between two reports of the usage, such as 5s
    #[arg(long, default_value = "5s")]
    pub(crate) interval: String,
    /// Id of the container
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct SpecFile {
    /// Folder to write it to
    #[arg(long, short, default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// Write a configuration for use without root
    #[arg(long)]
    pub(crate) rootless: bool,
}
