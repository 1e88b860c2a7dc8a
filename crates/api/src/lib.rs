//! The types that all of Flota shares: identifiers, task states, domain objects and wire messages.
//!
//! There are two layers of types. `proto` holds the messages that are sent and stored: every field is optional, and
//! every enum is an integer. `model` holds the domain types, which can't represent invalid values. `convert`
//! translates between them and is the only place that validates what comes from outside.
//!
//! This crate does no I/O, has no async code and imports no other crate of Flota.

pub mod capability;
pub mod clock;
pub mod clock_offset;
mod codec;
pub mod constraint;
mod convert;
pub mod defaults;
pub mod event;
pub mod id;
pub mod image_ref;
pub mod model;
pub mod naming;
pub mod object;
pub mod reason;
pub mod resources;
pub mod schedule;
pub mod seal;
pub mod signal;
pub mod state;
pub mod template;
pub mod text;
pub mod validate;
pub mod version;
mod violation;

pub use convert::Malformed;
pub use violation::Violation;

/// The generated wire types, one module for each file in `proto/`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines, reason = "generated code")]
pub mod proto {
    macro_rules! include_packages {
        ($($name:ident)*) => { $(pub mod $name { include!(concat!(env!("OUT_DIR"), "/flota.", stringify!($name), ".rs")); })* };
    }
    include_packages!(types specs objects raft control streams dispatcher ca images node errors);
}

/// Every method of every service in `proto/`, as `/flota.control.Control/GetNode`.
pub const METHODS: &[&str] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// Version of this build, as `ctl version` and `node ls` print it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The newest feature level that this build supports. A manager applies nothing above the level in use.
pub const FEATURE_LEVEL: u32 = 9;

/// The feature level from which on the store has users, and records of who has changed what.
pub const LEVEL_OF_USERS: u32 = 5;

/// The feature level from which on managers can be locked, and the keys of grants and of data on disks are replaced with the
/// CA.
pub const LEVEL_OF_KEYS: u32 = 6;

/// The feature level from which on tasks can have user and group ids of their own.
pub const LEVEL_OF_USER_NAMESPACES: u32 = 7;

/// The feature level from which on a tmpfs can have an owner, and programs that can be executed.
pub const LEVEL_OF_TMPFS_OWNERS: u32 = 8;

/// The feature level from which on volumes can be file systems that are mounted.
pub const LEVEL_OF_FILE_SYSTEMS: u32 = 9;

/// The feature level from which on a cluster says how long an expired certificate can be renewed.
pub const LEVEL_OF_RENEWAL_GRACE: u32 = 9;
