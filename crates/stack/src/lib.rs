//! Stack files: from the YAML of the Compose specification to service specs. Called by `ctl stack deploy`.
//!
//! `schema.rs` lists the keys that are understood, `convert.rs` turns a service into a spec, `parse.rs` reads sizes and
//! durations. A key or value that is not understood is an error that names its place; it is never ignored.

mod convert;
mod load;
pub mod parse;
mod schema;

pub use load::{LoadError, load};
