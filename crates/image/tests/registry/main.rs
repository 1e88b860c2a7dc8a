//! Pulling from registries: as they should be, and as they are. The registry is a small server in the test that
//! misbehaves on purpose.
#![allow(clippy::unwrap_used, reason = "tests say why they fail")]

mod auth;
mod faults;
mod names;
mod server;
mod ways;
