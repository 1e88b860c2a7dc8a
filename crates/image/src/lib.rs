//! Images: turns a reference, an archive or a program into the layers that a root file system is mounted from.
//!
//! ```text
//!  registry (pull.rs, registry.rs) ─┐
//!  archive (archive.rs, tar.rs) ────┼─▶ blobs/sha256/…  (blob_store.rs: verified, then renamed into place)
//!  program (pack.rs) ───────────────┤          │
//!  another node ────────────────────┘          ▼
//!                                        manifest.rs ─▶ layers/…/  (unpack.rs: each once, on top of those below it)
//! ```
//!
//! No content is used before its digest is verified, and no entry of an archive can write outside its layer's folder.
//! A layer is unpacked for the layers below it, as containerd does: a folder that it does not list keeps the attributes
//! that a lower layer gave it, and a whiteout leaves a mark only where it hides something.
//!
//! All functions block (except `pull`, `resolve` and `platforms`, which are async), so callers run them where blocking is
//! allowed. This crate has no notion of clusters.

mod archive;
mod blob_store;
mod copy;
mod folder_copy;
mod healthcheck;
mod manifest;
mod pack;
mod pull;
mod registry;
mod remove;
mod resolve;
mod store;
mod tar;
mod unpack;

pub use archive::import;
pub use blob_store::{BlobError, BlobStore, BlobWriter};
pub use copy::copy_layer;
pub use folder_copy::CopyError;
pub use healthcheck::Healthcheck;
pub use manifest::{ImageConfig, ImagePlatform, ManifestError, machine_variant};
pub use pack::pack;
pub use pull::{PullError, pull};
pub use registry::{Credentials, ImageName, Registries, RegistryOptions, RequestError, SettingsError};
pub use remove::remove_folder;
pub use resolve::{ResolveError, platforms, resolve};
pub use store::{Image, ImageError, ImageStore};
pub use tar::TarError;
pub use unpack::UnpackError;
