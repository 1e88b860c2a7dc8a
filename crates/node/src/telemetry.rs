//! Logs to standard error, where systemd collects them.
#![expect(clippy::print_stderr, reason = "the log may not have started, or has ended")]

use tracing_subscriber::EnvFilter;

/// Starts logging: Flota's crates at `level`, libraries at warning.
pub(crate) fn start(level: &str) {
    let ours = ["flotad", "flota_manager", "flota_worker", "flota_raft_store", "flota_identity", "flota_image"];
    let directives: Vec<String> = ours.iter().map(|name| format!("{name}={level}")).collect();
    // openraft warns several times a second about each peer that does not answer.
    let filter = EnvFilter::new(format!("warn,openraft=error,sled=error,{}", directives.join(",")));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

/// Prints why the daemon ends.
pub(crate) fn print_final(text: &str) {
    eprintln!("{text}");
}
