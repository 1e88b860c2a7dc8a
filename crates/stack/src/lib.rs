//! Stack files: from the YAML of the Compose specification to service specs. Called by `ctl stack deploy`.
//!
//! `tree.rs` parses the YAML, `fields.rs` reads values out of the tree, `convert.rs` makes specs of them, and `parse.rs`
//! reads sizes and durations. A key or value that is not understood is an error that names its line and key; it is never
//! ignored.

mod convert;
mod fields;
mod load;
pub mod parse;
mod tree;

pub use load::{LoadError, load};
