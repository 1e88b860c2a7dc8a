//! Images: from a reference, an archive or a program to layers that a root file system is mounted from.
//!
//! ```text
//!  registry (pull.rs) ─┐
//!  archive (archive.rs)├─▶ blobs/sha256/…  (blob_store.rs: verified, then renamed into place)
//!  program (pack.rs) ──┤        │
//!  another node ───────┘        ▼
//!                          manifest.rs ─▶ layers/<digest>/  (unpack.rs: once for each layer)
//! ```
//!
//! Nothing is used before its digest was verified; nothing that an archive says leads out of its layer's folder.
//! Everything blocks: callers run it where blocking is allowed. Knows no cluster words.

mod archive;
mod blob_store;
mod copy;
mod manifest;
mod pack;
mod pull;
mod store;
mod unpack;

pub use archive::import;
pub use blob_store::{BlobError, BlobStore, BlobWriter};
pub use copy::copy_layer;
pub use manifest::{ImageConfig, ManifestError};
pub use pack::pack;
pub use pull::{Credentials, PullError, pull};
pub use store::{Image, ImageError, ImageStore};
pub use unpack::UnpackError;
