//! Reads an image from a tar archive: an OCI image layout, or the output of `docker save`.
//!
//! One pass stores every file of the archive as a blob. The archive's own index then names the blobs of the image. A
//! path in the archive is never used as a path on this machine.

use std::collections::HashMap;
use std::io::Read;

use oci_spec::image::{ImageIndex, MediaType};
use serde::Deserialize;

use crate::manifest::descriptor;
use crate::store::{Image, ImageError, ImageStore};
use crate::unpack::Guard;

/// The largest `index.json` or `manifest.json` that is read.
const DOCUMENT_BOUND: u64 = 4 << 20;
const ENTRIES: usize = 100_000;

/// One image in the `manifest.json` of `docker save`, which no specification describes.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    layers: Vec<String>,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

/// Digest and size of each file of an archive, by name.
type Blobs = HashMap<String, (String, u64)>;

fn refuse(why: impl Into<String>) -> ImageError {
    ImageError::Archive(why.into())
}

/// Stores the image of the archive and unpacks its layers. Returns the image with the name that the archive gives it,
/// if any. Blobs that no image needs (the archive's own lists, or everything in a refused archive) stay until the next
/// [`ImageStore::sweep`].
///
/// # Errors
/// The archive holds no image or more than one, is cut off, or has a layer that can't be unpacked.
pub fn import(store: &ImageStore, archive: impl Read) -> Result<(Image, Option<String>), ImageError> {
    let mut blobs = Blobs::new();
    let mut tar = tar::Archive::new(Guard::new(archive));
    let cut = |error: std::io::Error| refuse(format!("it is cut off or not a tar archive ({error})"));
    for (count, entry) in tar.entries().map_err(cut)?.enumerate() {
        let entry = entry.map_err(cut)?;
        if count > ENTRIES {
            return Err(refuse(format!("it has more than {ENTRIES} entries")));
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let size = entry.size();
        let expected = name.strip_prefix("blobs/sha256/").map(|hex| format!("sha256:{hex}"));
        let mut counted = entry.take(size);
        let (digest, taken) = store.blobs.put(&mut counted, expected.as_deref())?;
        if taken != size {
            return Err(refuse(format!("`{name}` is cut off")));
        }
        blobs.insert(name, (digest, size));
    }
    let document = |name: &str| match blobs.get(name) {
        Some((digest, size)) if *size <= DOCUMENT_BOUND => store.blobs.read(digest, DOCUMENT_BOUND).map(Some),
        _ => Ok(None),
    };
    let result = match (document("index.json")?, document("manifest.json")?) {
        (Some(index), _) => from_layout(store, &index),
        (None, Some(manifest)) => from_docker(store, &manifest, &blobs),
        (None, None) => Err(refuse("it has neither index.json (OCI layout) nor manifest.json (docker-archive)")),
    };
    let (image, name) = result?;
    for blob in image.blobs() {
        if !store.blobs.has(&blob) {
            return Err(refuse(format!("the blob {blob} is missing")));
        }
    }
    // The layers are unpacked now, so that a damaged layer fails the import and not the start of a task.
    store.unpack(&image)?;
    store.record(&image)?;
    Ok((image, name))
}

fn from_layout(store: &ImageStore, index: &[u8]) -> Result<(Image, Option<String>), ImageError> {
    let index: ImageIndex = serde_json::from_slice(index).map_err(|error| refuse(format!("index.json: {error}")))?;
    let [entry] = index.manifests().as_slice() else {
        return Err(refuse(format!("it holds {} images, and one is taken", index.manifests().len())));
    };
    let names = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
    let annotations = entry.annotations().as_ref();
    let name = annotations.and_then(|given| names.iter().find_map(|name| given.get(*name))).cloned();
    Ok((store.image(entry.digest().as_ref())?, name))
}

fn from_docker(store: &ImageStore, manifest: &[u8], blobs: &Blobs) -> Result<(Image, Option<String>), ImageError> {
    let images: Vec<DockerImage> =
        serde_json::from_slice(manifest).map_err(|error| refuse(format!("manifest.json: {error}")))?;
    let [image] = images.as_slice() else {
        return Err(refuse(format!("it holds {} images, and one is taken", images.len())));
    };
    let find = |name: &String, media_type: MediaType| {
        let (digest, size) = blobs.get(name).ok_or_else(|| refuse(format!("`{name}` is missing")))?;
        Ok(descriptor(media_type, digest, *size))
    };
    let layers = image.layers.iter().map(|name| find(name, MediaType::ImageLayer));
    let layers = layers.collect::<Result<Vec<_>, ImageError>>()?;
    let digest = store.put_manifest(find(&image.config, MediaType::ImageConfig)?, layers)?;
    let name = image.repo_tags.as_ref().and_then(|tags| tags.first()).cloned();
    Ok((store.image(&digest)?, name))
}
