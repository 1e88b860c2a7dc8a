//! The test harness: real clusters in sandboxes, controlled by `ctl` as a user does, and simulated clusters ([`sim`]).
//!
//! ```no_run
//! let cluster = flota_tests::Cluster::up(3, 2);
//! cluster.ok("service create --name web --replicas 2 whoami");
//! cluster.kill("w1");
//! cluster.wait("two tasks run off w1", |it| it.running("web").iter().filter(|task| task["node"] != "w1").count() == 2);
//! ```
//!
//! A test arranges, acts, waits for a named condition, and asserts; it never sleeps. A cluster is removed when it is
//! dropped, also after a panic.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a panic or a printed line is how a test reports")]

mod cluster;
mod control;
pub mod sim;
mod wait;

pub use cluster::{Background, Cluster, Output, programs};
pub use control::{channel, connect};
pub use wait::wait_for;
