//! Images: turns a reference, an archive or a program into the layers that a root file system is mounted from.
//!
//! ```text
//!  registry (pull.rs) ─┐
//!  archive (archive.rs)├─▶ blobs/sha256/…  (blob_store.rs: verified, then renamed into place)
//!  program (pack.rs) ──┤        │
//!  another node ───────┘        ▼
//!                          manifest.rs ─▶ layers/<digest>/  (unpack.rs: once for each layer)
//! ```
//!
//! No content is used before its digest is verified, and no entry of an archive can write outside its layer's folder.
//! All functions block (except `pull`, which is async), so callers run them where blocking is allowed. This crate has
//! no notion of clusters.

mod archive;
mod blob_store;
mod copy;
mod manifest;
mod pack;
mod pull;
mod remove;
mod store;
mod unpack;

pub use archive::import;
pub use blob_store::{BlobError, BlobStore, BlobWriter};
pub use copy::copy_layer;
pub use manifest::{ImageConfig, ManifestError};
pub use pack::pack;
pub use pull::{Credentials, PullError, pull};
pub use remove::remove_folder;
pub use store::{Image, ImageError, ImageStore};
pub use unpack::UnpackError;
