//! The harness: real clusters in sandboxes, driven by `ctl` as a user drives it.
//!
//! ```no_run
//! let cluster = flota_tests::Cluster::up(3, 2);
//! cluster.ok("service create --name web --replicas 2 whoami");
//! cluster.kill("w1");
//! cluster.wait("two tasks run off w1", |it| it.running("web").iter().filter(|task| task["node"] != "w1").count() == 2);
//! ```
//!
//! A test arranges, acts, waits for a named condition, and asserts; it never sleeps for a time. A cluster is removed
//! when it is dropped, also by a panic.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests say why they fail")]

mod cluster;
mod control;
pub mod sim;
mod wait;

pub use cluster::{Background, Cluster, Output, programs};
pub use control::{channel, connect};
pub use wait::wait_for;
