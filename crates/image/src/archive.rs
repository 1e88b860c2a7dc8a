//! Images in a tar: an OCI layout (OCI image layout specification) or what `docker save` writes. Read in one pass
//! into blobs; nothing of the archive's paths becomes a path here.

use std::collections::HashMap;
use std::io::Read;

use serde::Deserialize;

use crate::manifest::{Descriptor, Manifest};
use crate::store::{Image, ImageError, ImageStore};
use crate::unpack::Guard;

/// Files that are read whole to learn what the archive holds.
const DOCUMENT_BOUND: u64 = 4 << 20;
const ENTRIES: usize = 100_000;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    layers: Vec<String>,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct LayoutIndex {
    manifests: Vec<LayoutEntry>,
}

#[derive(Deserialize)]
struct LayoutEntry {
    digest: String,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

/// Digest and size of the files of an archive, by name.
type Blobs = HashMap<String, (String, u64)>;

fn refuse(why: impl Into<String>) -> ImageError {
    ImageError::Archive(why.into())
}

/// Takes the image of the archive; with the name that the archive gives it, if it gives one. Blobs that no image needs
/// (the archive's own lists, or all of one that is refused) stay until the next [`ImageStore::sweep`].
///
/// # Errors
/// It is no image archive, holds more than one image, or is cut off.
pub fn import(store: &ImageStore, archive: impl Read) -> Result<(Image, Option<String>), ImageError> {
    let mut blobs = Blobs::new();
    let mut tar = tar::Archive::new(Guard::new(archive));
    let cut = |error: std::io::Error| refuse(format!("it is cut off or no tar ({error})"));
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
    // Refused layers are refused now, not when a task is to start.
    store.unpack(&image)?;
    store.record(&image)?;
    Ok((image, name))
}

fn from_layout(store: &ImageStore, index: &[u8]) -> Result<(Image, Option<String>), ImageError> {
    let index: LayoutIndex = serde_json::from_slice(index).map_err(|error| refuse(format!("index.json: {error}")))?;
    let [entry] = index.manifests.as_slice() else {
        return Err(refuse(format!("it holds {} images, and one is taken", index.manifests.len())));
    };
    let names = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
    let name = names.iter().find_map(|name| entry.annotations.get(*name)).cloned();
    Ok((store.image(&entry.digest)?, name))
}

fn from_docker(store: &ImageStore, manifest: &[u8], blobs: &Blobs) -> Result<(Image, Option<String>), ImageError> {
    let images: Vec<DockerImage> =
        serde_json::from_slice(manifest).map_err(|error| refuse(format!("manifest.json: {error}")))?;
    let [image] = images.as_slice() else {
        return Err(refuse(format!("it holds {} images, and one is taken", images.len())));
    };
    let find = |name: &String, media_type: &str| {
        let (digest, size) = blobs.get(name).ok_or_else(|| refuse(format!("`{name}` is missing")))?;
        Ok(Descriptor { media_type: media_type.into(), digest: digest.clone(), size: *size, platform: None })
    };
    let layers = image.layers.iter().map(|name| find(name, "application/vnd.oci.image.layer.v1.tar"));
    let manifest = Manifest {
        schema_version: 2,
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        config: find(&image.config, "application/vnd.oci.image.config.v1+json")?,
        layers: layers.collect::<Result<_, ImageError>>()?,
    };
    let bytes = serde_json::to_vec(&manifest).map_err(|error| refuse(error.to_string()))?;
    let (digest, _) = store.blobs.put(bytes.as_slice(), None)?;
    let name = image.repo_tags.as_ref().and_then(|tags| tags.first()).cloned();
    Ok((store.image(&digest)?, name))
}
