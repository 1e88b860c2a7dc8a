//! A whole cluster in one process: real managers and agents over networks, disks, clocks and machines that are
//! simulated, driven and judged from one seed.
//!
//! ```text
//!  one OS thread per seed, one current_thread runtime, paused time
//!      cluster     managers and workers as processes that crash and start again
//!      network     byte streams between them; raft_network: Raft's messages
//!      schedule    what goes wrong, and when      changes    managers that come and go
//!      user        what is asked of the cluster        focus      whether only a part of both takes place
//!      invariants, *_invariants, availability   what must hold all the time
//!      violation   which promise was broken
//!        linearizability   what the user must have seen
//!      script      tests that drive it by hand    scale             a large one, for what it costs
//! ```
//!
//! docs/testing.md says how to write a test with it, and how to replay a seed.

pub mod availability;
mod changes;
pub mod child;
pub mod clock;
pub mod cluster;
pub mod crash_loop;
mod cron_invariants;
mod drains;
pub mod entries;
pub mod focus;
mod health_invariants;
pub mod host;
pub mod invariants;
mod job_invariants;
mod leader_invariants;
pub mod linearizability;
pub mod log;
pub mod loops;
pub mod manual;
mod membership;
mod membership_invariants;
pub mod network;
mod network_invariants;
mod node_ca;
mod process;
pub mod raft_network;
pub mod registry;
mod rollout_invariants;
pub mod run;
pub mod scale;
mod scale_invariants;
pub mod schedule;
pub mod script;
pub mod services;
mod steady_invariants;
pub mod system;
mod task_invariants;
pub mod time;
pub mod user;
pub mod violation;
mod volume_invariants;
mod wire;
pub mod world;
