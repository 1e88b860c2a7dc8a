//! Logs to standard error, where systemd collects them.
#![expect(clippy::print_stderr, reason = "the log may not have started, or has ended")]

use tracing_subscriber::EnvFilter;

/// Starts logging: Flota's crates at `level`, libraries at warning.
pub(crate) fn start(level: &str) {
    let filter = EnvFilter::new(filter(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

fn filter(level: &str) -> String {
    let ours = ["flotad", "flota_manager", "flota_worker", "flota_raft_store", "flota_identity", "flota_image"];
    let directives: Vec<String> = ours.iter().map(|name| format!("{name}={level}")).collect();
    // openraft warns several times a second about each peer that does not answer. Its API and its heartbeats log as an
    // error, and return to us, that the core has stopped, which it does at every stop; why it stopped, the core logs.
    let openraft = "openraft=error,openraft::raft=off,openraft::core::heartbeat=off";
    format!("warn,{openraft},sled=error,{}", directives.join(","))
}

/// Prints why the daemon ends.
pub(crate) fn print_final(text: &str) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no holder panics").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_ordinary_stop_of_raft_is_no_error_and_a_broken_core_is() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(filter("info")));
        let subscriber = subscriber.with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(target: "openraft::raft::raft_inner", "failed to send RaftMsg to RaftCore");
            tracing::error!(target: "openraft::raft::stream_append", "RaftCore stopped");
            tracing::error!(target: "openraft::core::heartbeat::worker", "failed to send");
            tracing::error!(target: "openraft::core::raft_core", "the disk failed");
            tracing::info!(target: "flota_manager::leader", "this manager leads");
        });
        let text = String::from_utf8(lines.0.lock().expect("no holder panics").clone()).expect("it is text");
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("the disk failed") && text.contains("this manager leads"), "{text}");
    }
}
