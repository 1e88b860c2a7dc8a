//! The images of one machine: their blobs, their unpacked layers, and which image needs which.
//!
//! A layer is unpacked beside its final place and renamed, so a layer folder that exists is complete. Images share
//! blobs and layers; a blob is removed with the last image that needs it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::error::Error;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use oci_spec::image::{Descriptor, ImageManifest, ImageManifestBuilder, MediaType, SCHEMA_VERSION};
use sha2::{Digest, Sha256};

use crate::blob_store::{BlobError, BlobStore};
use crate::folder_copy::{CopyError, copy_folder};
use crate::healthcheck::{self, Healthcheck};
use crate::manifest::{self, Document, ImageConfig, ImagePlatform, ManifestError, NamedPlatforms};
use crate::remove::remove_folder;
use crate::tar::TarError;
use crate::unpack::{self, UnpackError, Whiteouts};

/// Why an image can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A blob is missing, damaged or can't be stored.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The manifest, index or config is refused.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A layer can't be unpacked.
    #[error("failed to unpack the layer {digest}")]
    Unpack {
        /// Digest of the layer.
        digest: String,
        /// The cause.
        #[source]
        source: UnpackError,
    },
    /// The archive or program that the image is built from is refused.
    #[error("the archive is refused: {0}")]
    Archive(String),
    /// The archive is malformed or can't be read.
    #[error("the archive is refused")]
    Tar(#[from] TarError),
    /// An I/O error.
    #[error("failed to {act}")]
    Io {
        /// The act that failed, as a phrase in the imperative.
        act: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    /// Whether the machine is the cause and not the image: it lacks room, memory or descriptors, or a device fails. The
    /// same may succeed later.
    pub fn is_of_machine(&self) -> bool {
        let is_lack = |errno: i32| {
            let lacks = [Errno::ENOSPC, Errno::EDQUOT, Errno::ENOMEM, Errno::EMFILE, Errno::ENFILE, Errno::EAGAIN];
            lacks.into_iter().chain([Errno::EIO, Errno::EROFS]).any(|lack| lack as i32 == errno)
        };
        if let Self::Unpack { source: UnpackError::Kernel { errno, .. }, .. } = self {
            return is_lack(*errno as i32);
        }
        let causes = std::iter::successors(Error::source(self), |error| (*error).source());
        let errors = causes.filter_map(|error| error.downcast_ref::<io::Error>()?.raw_os_error());
        errors.into_iter().any(is_lack)
    }
}

/// An image with its manifest and config.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest by which the image is known: that of its manifest, or of an index that leads to it.
    pub digest: String,
    /// Digests of the indexes that lead to the manifest, the outermost first, and of the manifest.
    documents: Vec<String>,
    /// Descriptors of the config and the layers.
    pub manifest: ImageManifest,
    /// The image's config: how to run its program.
    pub config: ImageConfig,
    /// How the health of its program is checked.
    pub healthcheck: Healthcheck,
}

impl Image {
    /// Returns the digests of all blobs of the image, its documents first.
    pub fn blobs(&self) -> Vec<String> {
        self.documents.iter().cloned().chain(parts(&self.manifest).map(|it| it.digest().to_string())).collect()
    }

    /// Returns the same image, known by the digest of its manifest.
    pub(crate) fn without_indexes(mut self) -> Self {
        let documents = self.documents.split_off(self.documents.len() - 1);
        Self { digest: documents[0].clone(), documents, ..self }
    }

    /// Returns the stored (compressed) size of the config and all layers in bytes.
    pub fn size(&self) -> u64 {
        parts(&self.manifest).map(Descriptor::size).sum()
    }
}

/// Returns the descriptors of the config and the layers.
pub(crate) fn parts(manifest: &ImageManifest) -> impl Iterator<Item = &Descriptor> {
    std::iter::once(manifest.config()).chain(manifest.layers())
}

/// The images of one machine. Clones use the same store.
#[derive(Clone, Debug)]
pub struct ImageStore {
    dir: PathBuf,
    whiteouts: Whiteouts,
    /// The blobs of all images.
    pub blobs: BlobStore,
    /// A lock for each layer that is being unpacked, so that no layer is unpacked twice at once.
    unpacking: Arc<Mutex<HashMap<PathBuf, Arc<Mutex<()>>>>>,
}

/// Largest number of documents that lead to an image's config. An index of indexes is legal, and no image needs more.
pub(crate) const LEVELS: usize = 3;

/// Number of characters of the name of a layer's folder (96 bits).
const SHORT_NAME: usize = 24;

/// Returns the name of the folder for layers with this form of whiteouts. The two forms are not interchangeable.
fn layers(whiteouts: Whiteouts) -> &'static str {
    match whiteouts {
        Whiteouts::Overlay => "layers",
        Whiteouts::Plain => "plain-layers",
    }
}

fn sync_file_system(path: &Path) -> io::Result<()> {
    Ok(nix::unistd::syncfs(fs_err::File::open(path)?)?)
}

impl ImageStore {
    /// Opens the store in `dir` and creates its missing folders. Removes layers that an earlier process left
    /// half-unpacked. With `overlay`, layers are unpacked in the form that overlayfs mounts, else in the form that
    /// [`crate::copy_layer`] copies.
    ///
    /// # Errors
    /// The folders can't be created or cleaned.
    pub fn open(dir: &Path, overlay: bool) -> io::Result<Self> {
        let whiteouts = if overlay { Whiteouts::Overlay } else { Whiteouts::Plain };
        fs_err::create_dir_all(dir.join(layers(whiteouts)))?;
        fs_err::create_dir_all(dir.join("images"))?;
        // Files of images may be set-user-id or devices, so other users of this machine must not reach them.
        fs_err::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
        let partial = dir.join("unpacking");
        remove_folder(&partial)?;
        fs_err::create_dir(&partial)?;
        let blobs = BlobStore::open(&dir.join("blobs"))?;
        Ok(Self { dir: dir.to_owned(), whiteouts, blobs, unpacking: Arc::default() })
    }

    /// Reads the manifest and config of an image whose blobs are stored. The digest may be that of an index, which
    /// names the manifest for this machine.
    ///
    /// # Errors
    /// A blob is missing or malformed, or the index has no manifest for this machine.
    pub fn image(&self, digest: &str) -> Result<Image, ImageError> {
        let mut documents = vec![digest.to_owned()];
        for _ in 0..LEVELS {
            let document = &documents[documents.len() - 1];
            match manifest::parse(&self.blobs.read(document, manifest::BOUND)?)? {
                Document::Manifest(manifest) => {
                    let config = self.blobs.read(manifest.config().digest().as_ref(), manifest::BOUND)?;
                    let healthcheck = healthcheck::parse(&config)?;
                    let config = manifest::parse_config(&config)?;
                    return Ok(Image {
                        digest: digest.to_owned(),
                        documents,
                        manifest: *manifest,
                        config,
                        healthcheck,
                    });
                }
                Document::Index(fitting) => documents.push(self.chosen(&fitting).digest().to_string()),
            }
        }
        Err(too_deep())
    }

    /// Returns the best of the manifests that fit this machine, among those that the store holds: an archive of one
    /// platform may have the index of all.
    fn chosen<'a>(&self, fitting: &'a [Descriptor]) -> &'a Descriptor {
        let held = fitting.iter().find(|it| self.blobs.has(it.digest().as_ref()));
        held.unwrap_or(&fitting[0])
    }

    /// Stores a manifest of these parts and returns its digest.
    pub(crate) fn put_manifest(&self, config: Descriptor, layers: Vec<Descriptor>) -> Result<String, ImageError> {
        let manifest = ImageManifestBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageManifest)
            .config(config)
            .layers(layers)
            .build()
            .expect("every required field is set");
        let bytes = serde_json::to_vec(&manifest).expect("the types of oci-spec have a JSON form");
        Ok(self.blobs.put(bytes.as_slice(), None)?.0)
    }

    /// Returns digest and largest size of the blobs that are missing to the image, as far as the documents say that are
    /// here. Once those are stored, the answer names the next ones; it is empty if the image is whole.
    ///
    /// # Errors
    /// A document is malformed.
    pub fn missing(&self, digest: &str) -> Result<Vec<(String, u64)>, ImageError> {
        let sized = |it: &Descriptor| (it.digest().to_string(), it.size());
        let mut document = (digest.to_owned(), manifest::BOUND);
        for _ in 0..LEVELS {
            if !self.blobs.has(&document.0) {
                return Ok(vec![document]);
            }
            match manifest::parse(&self.blobs.read(&document.0, manifest::BOUND)?)? {
                Document::Manifest(manifest) => {
                    return Ok(parts(&manifest).map(sized).filter(|(digest, _)| !self.blobs.has(digest)).collect());
                }
                Document::Index(fitting) => document = sized(self.chosen(&fitting)),
            }
        }
        Err(too_deep())
    }

    /// Returns the image if all its blobs are stored.
    pub fn whole_image(&self, digest: &str) -> Option<Image> {
        let image = self.image(digest).ok()?;
        image.blobs().iter().all(|blob| self.blobs.has(blob)).then_some(image)
    }

    /// Returns the platforms that the image is made for, by its index if it has one; none if it does not say.
    ///
    /// # Errors
    /// A blob is missing or malformed.
    pub fn platforms(&self, image: &Image) -> Result<Vec<ImagePlatform>, ImageError> {
        match manifest::platforms(&self.blobs.read(&image.digest, manifest::BOUND)?)? {
            NamedPlatforms::Index(named) => Ok(named),
            NamedPlatforms::Config(digest) => {
                let config = self.blobs.read(&digest, manifest::BOUND)?;
                Ok(manifest::config_platform(&config)?.into_iter().collect())
            }
        }
    }

    /// Unpacks the layers that are not unpacked yet. Returns the folders of all layers, topmost first.
    ///
    /// # Errors
    /// A layer is missing, damaged, or has an entry that is refused ([`UnpackError`]).
    pub fn unpack(&self, image: &Image) -> Result<Vec<PathBuf>, ImageError> {
        let mut folders = VecDeque::new();
        for (layer, name) in image.manifest.layers().iter().zip(layer_names(image)) {
            let folder = self.dir.join(layers(self.whiteouts)).join(name);
            self.unpack_layer(layer.digest().as_ref(), &folder, folders.make_contiguous())?;
            // Overlayfs merges the roots of all layers, also below one that hides everything below it.
            if self.whiteouts == Whiteouts::Overlay && unpack::is_opaque(&folder).map_err(unreadable)? {
                folders.clear();
            }
            folders.push_front(folder);
        }
        Ok(folders.into())
    }

    /// Unpacks a layer on top of the layers in `lower`, the topmost first.
    fn unpack_layer(&self, digest: &str, folder: &Path, lower: &[PathBuf]) -> Result<(), ImageError> {
        if folder.exists() {
            return Ok(());
        }
        let layer = {
            let mut unpacking = self.unpacking.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            unpacking.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(unpacking.entry(folder.to_owned()).or_default())
        };
        let _guard = layer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if folder.exists() {
            return Ok(());
        }
        let blob = self.blobs.open_blob(digest)?;
        let partial = self.dir.join("unpacking").join(folder.file_name().unwrap_or_default());
        let io = |source| ImageError::Io { act: "make room for a layer", source };
        remove_folder(&partial).map_err(io)?;
        fs_err::create_dir_all(&partial).map_err(io)?;
        if let Err(source) = unpack::unpack(blob, &partial, lower, self.whiteouts) {
            if let Err(error) = remove_folder(&partial) {
                tracing::warn!(path = %partial.display(), %error, "failed to remove a layer that was not completed");
            }
            return Err(ImageError::Unpack { digest: digest.to_owned(), source });
        }
        // The files are synced before the rename, because a power failure must not leave a folder with empty files.
        sync_file_system(&partial).map_err(io)?;
        fs_err::rename(&partial, folder).map_err(io)?;
        sync_file_system(&self.dir).map_err(io)
    }

    /// Copies the content of the folder that an image has at `path`, and the folder's attributes, to the empty folder `to`.
    /// `layers` are those that [`ImageStore::unpack`] has returned for the image. Copies nothing if the image has nothing at
    /// the path.
    ///
    /// # Errors
    /// The image has a file there, or an I/O error; what was already copied stays.
    pub fn copy_folder(&self, layers: &[PathBuf], path: &Path, to: &Path) -> Result<(), CopyError> {
        copy_folder(layers, self.whiteouts, path, to)
    }

    /// Records that this image is complete, so that [`ImageStore::images`] lists it.
    ///
    /// # Errors
    /// An I/O error.
    pub fn record(&self, image: &Image) -> Result<(), ImageError> {
        fs_err::write(self.record_path(&image.digest), b"")
            .map_err(|source| ImageError::Io { act: "record the image", source })
    }

    /// Returns all images that are recorded and complete.
    pub fn images(&self) -> Vec<Image> {
        let recorded = self.recorded().unwrap_or_default();
        recorded.iter().filter_map(|digest| self.whole_image(digest)).collect()
    }

    fn recorded(&self) -> io::Result<Vec<String>> {
        let entries = fs_err::read_dir(self.dir.join("images"))?;
        entries.map(|entry| Ok(format!("sha256:{}", entry?.file_name().to_string_lossy()))).collect()
    }

    /// Removes the blobs and layers that no recorded image needs, such as those of failed imports and transfers. Must
    /// not run during an import or a transfer, because it also removes the blobs that have already arrived.
    ///
    /// # Errors
    /// It is unknown what a recorded image needs, and nothing was removed; or a blob or layer could not be removed, and
    /// the others were.
    pub fn sweep(&self) -> Result<(), ImageError> {
        let (mut blobs, mut names) = (BTreeSet::new(), BTreeSet::new());
        for digest in self.recorded().map_err(unreadable)? {
            let image = self.image(&digest)?;
            names.extend(layer_names(&image));
            blobs.extend(image.blobs());
        }
        let act = |source| ImageError::Io { act: "remove what no image needs", source };
        let mut result = Ok(());
        for blob in self.blobs.all().map_err(unreadable)?.iter().filter(|blob| !blobs.contains(*blob)) {
            result = result.and(self.blobs.remove(blob).map_err(act));
        }
        for entry in fs_err::read_dir(self.dir.join(layers(self.whiteouts))).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            if !entry.file_name().to_str().is_some_and(|name| names.contains(name)) {
                result = result.and(remove_folder(&entry.path()).map_err(act));
            }
        }
        result
    }

    /// Removes an image with the blobs and layers that no other image needs. Must not run during an import or a
    /// transfer, like [`ImageStore::sweep`].
    ///
    /// # Errors
    /// The image's record can't be removed, or [`ImageStore::sweep`] fails.
    pub fn remove(&self, digest: &str) -> Result<(), ImageError> {
        self.forget(digest)?;
        self.sweep()
    }

    /// Removes the record of an image.
    fn forget(&self, digest: &str) -> Result<(), ImageError> {
        match fs_err::remove_file(self.record_path(digest)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(ImageError::Io { act: "remove the image", source })
            }
            _ => Ok(()),
        }
    }

    fn record_path(&self, digest: &str) -> PathBuf {
        self.dir.join("images").join(digest.trim_start_matches("sha256:"))
    }
}

fn too_deep() -> ImageError {
    ManifestError::Malformed { what: "index", why: "it names an index that names an index".into() }.into()
}

/// Returns the names of the folders of an image's layers, the lowest first. A name depends on all layers below, because
/// what is unpacked does, too. It is short enough that the names of all layers of an image fit into the page of options
/// that mount(2) accepts.
fn layer_names(image: &Image) -> Vec<String> {
    let mut chain = Sha256::new();
    let names = image.manifest.layers().iter().map(|layer| {
        chain.update(layer.digest().as_ref());
        let hex: String = chain.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        hex[..SHORT_NAME].to_owned()
    });
    names.collect()
}

fn unreadable(source: io::Error) -> ImageError {
    ImageError::Io { act: "find out what the images need", source }
}

#[cfg(test)]
mod tests;
