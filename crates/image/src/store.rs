//! The images of one machine: blobs, unpacked layers, and which image needs which.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::blob_store::{BlobError, BlobStore};
use crate::manifest::{self, Document, ImageConfig, Manifest, ManifestError};
use crate::unpack::{self, UnpackError, Whiteouts};

/// Why an image can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A blob of it.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// What it says of itself.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A layer of it.
    #[error("failed to unpack the layer {digest}")]
    Unpack {
        /// Which one.
        digest: String,
        /// Why.
        #[source]
        source: UnpackError,
    },
    /// The archive that it came in.
    #[error("the archive is refused: {0}")]
    Archive(String),
    /// The machine would not.
    #[error("failed to {act}")]
    Io {
        /// What was done.
        act: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An image whose manifest and config are known.
#[derive(Clone, Debug)]
pub struct Image {
    /// Of the manifest.
    pub digest: String,
    /// Config and layers.
    pub manifest: Manifest,
    /// How it is run.
    pub config: ImageConfig,
}

impl Image {
    /// Every blob of it, the manifest among them.
    pub fn blobs(&self) -> Vec<String> {
        let layers = self.manifest.layers.iter().map(|layer| layer.digest.clone());
        [self.digest.clone(), self.manifest.config.digest.clone()].into_iter().chain(layers).collect()
    }

    /// Bytes of all layers and the config.
    pub fn size(&self) -> u64 {
        self.manifest.layers.iter().map(|it| it.size).sum::<u64>() + self.manifest.config.size
    }
}

/// The images of one machine. Cloned handles share it.
#[derive(Clone, Debug)]
pub struct ImageStore {
    dir: PathBuf,
    whiteouts: Whiteouts,
    /// Blobs.
    pub blobs: BlobStore,
    /// One layer is unpacked once, whoever asks for it first.
    unpacking: Arc<Mutex<HashMap<String, Arc<Mutex<()>>>>>,
}

/// Docker's own bound.
const LAYERS_BOUND: usize = 127;
/// Characters of a layer's digest in its folder's name: 96 bits.
const SHORT_NAME: usize = 24;

/// Where layers are unpacked: apart, for the one kind is no use to the other.
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
    /// In `dir`, which is made where it is missing; half-unpacked layers of an earlier life are removed. `overlay`: layers
    /// will be mounted by overlayfs; else they will be copied ([`crate::copy_layer`]).
    ///
    /// # Errors
    /// The folder can't be made.
    pub fn open(dir: &Path, overlay: bool) -> io::Result<Self> {
        let whiteouts = if overlay { Whiteouts::Overlay } else { Whiteouts::Plain };
        fs_err::create_dir_all(dir.join(layers(whiteouts)))?;
        fs_err::create_dir_all(dir.join("images"))?;
        let partial = dir.join("unpacking");
        if partial.exists() {
            fs_err::remove_dir_all(&partial)?;
        }
        fs_err::create_dir_all(&partial)?;
        let blobs = BlobStore::open(&dir.join("blobs"))?;
        Ok(Self { dir: dir.to_owned(), whiteouts, blobs, unpacking: Arc::default() })
    }

    /// Reads manifest and config of an image whose blobs are here. An index leads to the manifest for this machine.
    ///
    /// # Errors
    /// A blob is missing or malformed.
    pub fn image(&self, digest: &str) -> Result<Image, ImageError> {
        let mut digest = digest.to_owned();
        // An index names manifests; one more level is legal, and none needs more.
        for _ in 0..3 {
            match manifest::parse(&self.blobs.read(&digest, manifest::BOUND)?)? {
                Document::Manifest(manifest) => {
                    let config = self.blobs.read(&manifest.config.digest, manifest::BOUND)?;
                    let config = manifest::parse_config(&config)?;
                    return Ok(Image { digest, manifest, config });
                }
                Document::Other(descriptor) => digest = descriptor.digest,
            }
        }
        Err(ManifestError::Malformed { what: "index", why: "it names an index that names an index".into() }.into())
    }

    /// The blobs that the manifest with this digest names, each with its size.
    ///
    /// # Errors
    /// It is missing or malformed.
    pub fn image_manifest(&self, digest: &str) -> Result<Vec<(String, u64)>, ImageError> {
        let sized = |it: manifest::Descriptor| (it.digest, it.size);
        match manifest::parse(&self.blobs.read(digest, manifest::BOUND)?)? {
            Document::Manifest(manifest) => {
                Ok(std::iter::once(manifest.config).chain(manifest.layers).map(sized).collect())
            }
            Document::Other(descriptor) => Ok(vec![sized(descriptor)]),
        }
    }

    /// The image, if every blob of it is here.
    pub fn whole_image(&self, digest: &str) -> Option<Image> {
        let image = self.image(digest).ok()?;
        image.blobs().iter().all(|blob| self.blobs.has(blob)).then_some(image)
    }

    /// Unpacks what is not unpacked yet; the layers' folders, topmost first.
    ///
    /// # Errors
    /// A layer is missing, damaged, or tries what it must not.
    pub fn unpack(&self, image: &Image) -> Result<Vec<PathBuf>, ImageError> {
        if image.manifest.layers.len() > LAYERS_BOUND {
            let why = format!("it has {} layers; {LAYERS_BOUND} are the most", image.manifest.layers.len());
            return Err(ManifestError::Malformed { what: "manifest", why }.into());
        }
        let mut folders = Vec::new();
        for layer in image.manifest.layers.iter().rev() {
            let folder = self.unpack_layer(&layer.digest)?;
            // Overlayfs takes none twice; hidden below itself it would change nothing.
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
        Ok(folders)
    }

    /// Where a layer is unpacked: a name so short that the names of all layers of an image fit into mount's one page.
    fn layer_folder(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.dir.join(layers(self.whiteouts)).join(hex.get(..SHORT_NAME).unwrap_or(hex))
    }

    fn unpack_layer(&self, digest: &str) -> Result<PathBuf, ImageError> {
        let folder = self.layer_folder(digest);
        if folder.exists() {
            return Ok(folder);
        }
        let layer = {
            let mut unpacking = self.unpacking.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            unpacking.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(unpacking.entry(digest.to_owned()).or_default())
        };
        let _guard = layer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if folder.exists() {
            return Ok(folder);
        }
        let blob = self.blobs.open_blob(digest)?;
        let partial = self.dir.join("unpacking").join(digest.trim_start_matches("sha256:"));
        let io = |source| ImageError::Io { act: "make room for a layer", source };
        if partial.exists() {
            fs_err::remove_dir_all(&partial).map_err(io)?;
        }
        fs_err::create_dir_all(&partial).map_err(io)?;
        if let Err(source) = unpack::unpack(blob, &partial, self.whiteouts) {
            let _ = fs_err::remove_dir_all(&partial);
            return Err(ImageError::Unpack { digest: digest.to_owned(), source });
        }
        // Where the folder is, its files are: a power failure must leave no empty program behind.
        sync_file_system(&partial).map_err(io)?;
        fs_err::rename(&partial, &folder).map_err(io)?;
        sync_file_system(&self.dir).map_err(io)?;
        Ok(folder)
    }

    /// Notes that this image is whole here, so that it is found again.
    ///
    /// # Errors
    /// The machine would not.
    pub fn record(&self, image: &Image) -> Result<(), ImageError> {
        let path = self.dir.join("images").join(image.digest.trim_start_matches("sha256:"));
        fs_err::write(path, b"").map_err(|source| ImageError::Io { act: "note the image", source })
    }

    /// Every image that was noted and is whole.
    pub fn images(&self) -> Vec<Image> {
        let Ok(entries) = fs_err::read_dir(self.dir.join("images")) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter_map(|hex| self.whole_image(&format!("sha256:{hex}"))).collect()
    }

    /// Removes blobs that no image needs: of archives and transfers that came to nothing. Only while none is coming in.
    pub fn sweep(&self) {
        let needed: std::collections::BTreeSet<String> = self.images().iter().flat_map(Image::blobs).collect();
        for blob in self.blobs.all().into_iter().filter(|blob| !needed.contains(blob)) {
            self.blobs.remove(&blob);
            let _ = std::fs::remove_dir_all(self.layer_folder(&blob));
        }
    }

    /// Forgets an image, and removes blobs and layers that no other one needs.
    pub fn remove(&self, digest: &str) {
        let Some(image) = self.whole_image(digest) else { return };
        let _ = std::fs::remove_file(self.dir.join("images").join(image.digest.trim_start_matches("sha256:")));
        let needed: std::collections::BTreeSet<String> = self.images().iter().flat_map(Image::blobs).collect();
        for blob in image.blobs().into_iter().filter(|blob| !needed.contains(blob)) {
            self.blobs.remove(&blob);
            let _ = fs_err::remove_dir_all(self.layer_folder(&blob));
        }
    }
}
