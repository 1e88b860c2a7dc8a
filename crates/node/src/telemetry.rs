//! Logs to standard error, where systemd takes them.
#![expect(clippy::print_stderr, reason = "the last word, when there is no log any more")]

use tracing_subscriber::EnvFilter;

/// Everything of ours at `level`; of libraries, warnings.
pub(crate) fn start(level: &str) {
    let ours = ["flotad", "flota_manager", "flota_worker", "flota_raft_store", "flota_identity", "flota_image"];
    let directives: Vec<String> = ours.iter().map(|name| format!("{name}={level}")).collect();
    // openraft warns of every peer that is away, several times a second.
    let filter = EnvFilter::new(format!("warn,openraft=error,sled=error,{}", directives.join(",")));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

/// Why the daemon ends.
pub(crate) fn say_last(text: &str) {
    eprintln!("{text}");
}
