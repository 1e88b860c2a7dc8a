//! Pulling from registries: as they should be, and as they are. The registry is a small server in the test that
//! misbehaves on purpose.

mod auth;
mod faults;
mod server;
mod ways;
