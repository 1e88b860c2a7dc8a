//! What the command line takes: runc's verbs and flags, where it has them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// An OCI runtime: containers from bundles.
#[derive(Debug, Parser)]
#[command(name = "flota-runtime", version = concat!(env!("CARGO_PKG_VERSION"), "\nspec: ", "1.2.1"), args_override_self = true)]
pub(crate) struct Arguments {
    /// Where the states of containers are kept [default: /run/flota-runtime, or below $XDG_RUNTIME_DIR for a user]
    #[arg(long)]
    root: Option<PathBuf>,
    /// File for errors and warnings [default: standard error]
    #[arg(long)]
    pub(crate) log: Option<PathBuf>,
    /// Of that file
    #[arg(long, default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Say what is done as well
    #[arg(long)]
    pub(crate) debug: bool,
    /// Taken with a warning: control groups are made by this runtime itself
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// As crun has it: `cgroupfs`, or `disabled` for no control groups at all
    #[arg(long, default_value = "cgroupfs")]
    pub(crate) cgroup_manager: CgroupManager,
    /// Taken for runc's sake: it shows by itself
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
// Only what the verb at hand takes is built: a start of a container is to cost little.
#[command(defer = true)]
pub(crate) enum Verb {
    /// Make a container; its program waits for `start`
    Create(Create),
    /// Let a created container's program run
    Start(Id),
    /// Make a container, start it and wait for its end
    Run(Run),
    /// Print the state of a container
    State(Id),
    /// Send a container's first process a signal
    Kill(Kill),
    /// Remove a container that has stopped
    Delete(Delete),
    /// Run a further process in a container
    Exec(Exec),
    /// List the processes of a container
    Ps(Ps),
    /// List containers
    List(List),
    /// Stop a container's processes where they are
    Pause(Id),
    /// Let a paused container's processes go on
    Resume(Id),
    /// Change the limits of a container
    Update(Update),
    /// Print what happens to a container, and how much it uses
    Events(Events),
    /// Write a config.json to begin with
    Spec(SpecFile),
    /// Print what this runtime can do
    Features,
    /// Left out
    #[command(hide = true)]
    Checkpoint(Rest),
    /// Left out
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
    /// The container
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Folder with config.json
    #[arg(long, short, default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// Another file than config.json
    #[arg(long, short = 'f')]
    pub(crate) config: Option<PathBuf>,
    /// Unix socket that gets the terminal
    #[arg(long)]
    pub(crate) console_socket: Option<PathBuf>,
    /// File that gets the process id
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// chroot instead of pivot_root
    #[arg(long)]
    pub(crate) no_pivot: bool,
    /// Leave the caller's session keyring
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
    /// Descriptors beyond the standard ones that the program gets
    #[arg(long, default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// Name of the container
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) create: Create,
    /// Return when the program runs
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// Leave the container when it has ended
    #[arg(long)]
    pub(crate) keep: bool,
    /// Leave orphans of the container to others
    #[arg(long)]
    pub(crate) no_subreaper: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// All of its processes
    #[arg(long, short)]
    pub(crate) all: bool,
    /// The container
    pub(crate) id: String,
    /// Name or number
    #[arg(default_value = "SIGTERM")]
    pub(crate) signal: String,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Kill it first if it runs, and be content if it is not there
    #[arg(long, short)]
    pub(crate) force: bool,
    /// The container
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Unix socket that gets the terminal
    #[arg(long)]
    pub(crate) console_socket: Option<PathBuf>,
    /// Working directory
    #[arg(long)]
    pub(crate) cwd: Option<PathBuf>,
    /// NAME=value
    #[arg(long, short)]
    pub(crate) env: Vec<String>,
    /// At a terminal
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// UID[:GID]
    #[arg(long, short)]
    pub(crate) user: Option<String>,
    /// Further groups, by number
    #[arg(long, short = 'g')]
    pub(crate) additional_gids: Vec<u32>,
    /// File with the whole process as JSON
    #[arg(long, short)]
    pub(crate) process: Option<PathBuf>,
    /// Return when the process runs
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// File that gets the process id
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// SELinux label
    #[arg(long)]
    pub(crate) process_label: Option<String>,
    /// AppArmor profile
    #[arg(long)]
    pub(crate) apparmor: Option<String>,
    /// No new privileges
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// A capability more
    #[arg(long, short)]
    pub(crate) cap: Vec<String>,
    /// Descriptors beyond the standard ones that the program gets
    #[arg(long, default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// Also into a paused container
    #[arg(long)]
    pub(crate) ignore_paused: bool,
    /// Taken for runc's sake
    #[arg(long, hide = true)]
    pub(crate) no_subreaper: bool,
    /// The container
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
    /// How
    #[arg(long, short, default_value = "table")]
    pub(crate) format: Format,
    /// The container
    pub(crate) id: String,
    /// Options of ps(1)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// How
    #[arg(long, short, default_value = "table")]
    pub(crate) format: Format,
    /// Ids only
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// File with `linux.resources` as JSON; `-`: standard input
    #[arg(long, short)]
    pub(crate) resources: Option<PathBuf>,
    /// 10 to 1000
    #[arg(long)]
    pub(crate) blkio_weight: Option<u16>,
    /// µs
    #[arg(long)]
    pub(crate) cpu_period: Option<u64>,
    /// µs in a period
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<i64>,
    /// µs that may be saved up
    #[arg(long)]
    pub(crate) cpu_burst: Option<u64>,
    /// Weight
    #[arg(long)]
    pub(crate) cpu_share: Option<u64>,
    /// µs
    #[arg(long)]
    pub(crate) cpu_rt_period: Option<u64>,
    /// µs
    #[arg(long)]
    pub(crate) cpu_rt_runtime: Option<i64>,
    /// 0-3,7
    #[arg(long)]
    pub(crate) cpuset_cpus: Option<String>,
    /// 0-3,7
    #[arg(long)]
    pub(crate) cpuset_mems: Option<String>,
    /// 1: only when nothing else runs
    #[arg(long)]
    pub(crate) cpu_idle: Option<i64>,
    /// Bytes; -1: without a limit
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory: Option<String>,
    /// Bytes
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory_reservation: Option<String>,
    /// Bytes, memory and swap together
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<String>,
    /// Ignored, as by newer kernels
    #[arg(long)]
    pub(crate) kernel_memory: Option<String>,
    /// Bytes
    #[arg(long)]
    pub(crate) kernel_memory_tcp: Option<String>,
    /// -1: without a limit
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,
    /// The container
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// What it uses, once
    #[arg(long)]
    pub(crate) stats: bool,
    /// Between two prints of what it uses, such as 5s
    #[arg(long, default_value = "5s")]
    pub(crate) interval: String,
    /// The container
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct SpecFile {
    /// Folder that gets it
    #[arg(long, short, default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// For a user without rights
    #[arg(long)]
    pub(crate) rootless: bool,
}
