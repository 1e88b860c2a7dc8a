//! Stack files (Compose): from YAML to service specs. What is not understood is an error that names file and key,
//! never passed over.

mod convert;
mod load;
pub mod parse;
mod schema;

pub use load::{LoadError, load};
