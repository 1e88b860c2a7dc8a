//! The words that all of Flota shares: identifiers, task states, domain objects, and the wire.
//!
//! Two layers of types, on purpose. `proto` is what travels and what is stored: every field optional, every
//! enum an integer. `model` is what the program thinks in: values in which nonsense cannot be written.
//! `convert` stands between them, and is the only place that judges what came from outside.
//!
//! No I/O, no async, nothing of ours imported.

pub mod capability;
pub mod clock;
pub mod constraint;
mod convert;
pub mod defaults;
pub mod id;
pub mod image_ref;
pub mod model;
pub mod naming;
pub mod object;
pub mod reason;
pub mod resources;
pub mod seal;
pub mod state;
pub mod version;

pub use convert::Malformed;

/// The generated wire types, one module for each file in `proto/`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines, reason = "generated code")]
pub mod proto {
    macro_rules! include_packages {
        ($($name:ident)*) => { $(pub mod $name { include!(concat!(env!("OUT_DIR"), "/flota.", stringify!($name), ".rs")); })* };
    }
    include_packages!(types specs objects raft control streams dispatcher ca images node errors);
}

/// What this build calls itself, as `ctl version` and `node ls` print it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The newest feature level that this build speaks (a manager applies nothing above the level in use).
pub const FEATURE_LEVEL: u32 = 1;
