//! Reads an image from a tar archive: an OCI image layout, or the output of `docker save`. The archive may be compressed.
//!
//! One pass stores every file of the archive as a blob. The archive's own index then names the blobs of the image. A
//! path in the archive is never used as a path on this machine.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io::{BufReader, Read, Write};
use std::path::{Component, Path};

use oci_spec::image::{Descriptor, MediaType};
use serde::Deserialize;

use crate::manifest::{self, descriptor, is_image};
use crate::store::{Image, ImageError, ImageStore};
use crate::tar::{EntryType, TarReader, decompressed};

/// The largest `index.json` or `manifest.json` that is read.
const DOCUMENT_BOUND: u64 = 4 << 20;
const ENTRIES: usize = 100_000;
/// Largest number of links that lead from one to the next.
const LINKS: usize = 8;
/// Annotation with the name of an image, as Docker, BuildKit and containerd write it.
const NAME: &str = "io.containerd.image.name";
/// Annotation with a tag, or with a whole name.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// One image in the `manifest.json` of `docker save`, which no specification describes.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    layers: Option<Vec<String>>,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

/// The entries of an archive, by cleaned path.
#[derive(Default)]
struct Files {
    /// Digest and size of each file.
    blobs: HashMap<String, (String, u64)>,
    /// The targets of links; versions of Docker write a layer that occurs twice as a link.
    links: HashMap<String, String>,
}

impl Files {
    fn get(&self, name: &str) -> Option<&(String, u64)> {
        let mut name = clean(Path::new(""), OsStr::new(name));
        for _ in 0..LINKS {
            match self.links.get(&name) {
                Some(target) => name.clone_from(target),
                None => return self.blobs.get(&name),
            }
        }
        None
    }

    /// Reads a document, if the archive has it and it is not too large.
    fn document(&self, store: &ImageStore, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
        match self.get(name) {
            Some((digest, size)) if *size <= DOCUMENT_BOUND => Ok(Some(store.blobs.read(digest, DOCUMENT_BOUND)?)),
            _ => Ok(None),
        }
    }
}

fn refuse(why: impl Into<String>) -> ImageError {
    ImageError::Archive(why.into())
}

/// Stores the image of the archive and unpacks its layers. Returns the image with the names that the archive gives it.
/// A tag alone, which is all that some tools write, is not a name. Blobs that no image needs (the archive's own lists, or
/// everything in a refused archive) stay until the next [`ImageStore::sweep`].
///
/// # Errors
/// The archive holds no image for this machine or several, is cut off, or has a layer that can't be unpacked.
pub fn import(store: &ImageStore, archive: impl Read) -> Result<(Image, Vec<String>), ImageError> {
    let files = store_files(store, archive)?;
    let (digest, names) = match (files.document(store, "index.json")?, files.document(store, "manifest.json")?) {
        (Some(index), _) => from_layout(store, &index)?,
        (None, Some(manifest)) => from_docker(store, &manifest, &files)?,
        (None, None) => {
            return Err(refuse("it has neither index.json (OCI layout) nor manifest.json (docker-archive)"));
        }
    };
    let image = store.image(&digest)?.without_indexes();
    for blob in image.blobs() {
        if !store.blobs.has(&blob) {
            return Err(refuse(format!("the blob {blob} is missing")));
        }
    }
    // The layers are unpacked now, so that a damaged layer fails the import and not the start of a task.
    store.unpack(&image)?;
    store.record(&image)?;
    Ok((image, names.into_iter().collect()))
}

/// Stores every file of the archive as a blob.
fn store_files(store: &ImageStore, archive: impl Read) -> Result<Files, ImageError> {
    let mut files = Files::default();
    let mut tar = TarReader::new(decompressed(BufReader::new(archive))?);
    let mut buffer = vec![0; 64 << 10];
    let mut count = 0;
    while let Some(entry) = tar.next()? {
        count += 1;
        if count > ENTRIES {
            return Err(refuse(format!("it has more than {ENTRIES} entries")));
        }
        let name = clean(Path::new(""), &entry.path);
        match entry.kind {
            EntryType::Regular if entry.regions.is_some() => {
                return Err(refuse(format!("`{name}` is a sparse file")));
            }
            EntryType::Regular => {
                let io = |source| ImageError::Io { act: "store a file of the archive", source };
                let mut writer = store.blobs.writer().map_err(io)?;
                loop {
                    match tar.read(&mut buffer)? {
                        0 => break,
                        count => writer.write_all(&buffer[..count]).map_err(io)?,
                    }
                }
                let expected = name.strip_prefix("blobs/sha256/").map(|hex| format!("sha256:{hex}"));
                files.blobs.insert(name, writer.finish(expected.as_deref())?);
            }
            EntryType::Symlink => {
                let target = clean(Path::new(&name).parent().unwrap_or(Path::new("")), &entry.link);
                files.links.insert(name, target);
            }
            EntryType::Link => {
                files.links.insert(name, clean(Path::new(""), &entry.link));
            }
            _ => {}
        }
    }
    Ok(files)
}

/// Returns the path relative to the archive's root, without `.` and `..`. A relative path begins at `from`.
fn clean(from: &Path, path: &OsStr) -> String {
    let mut clean = Vec::new();
    for part in from.join(path).components() {
        match part {
            Component::Normal(part) => clean.push(part.to_string_lossy().into_owned()),
            Component::ParentDir => drop(clean.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    clean.join("/")
}

/// Returns the digest of the image (or of an index that leads to it) and its names.
fn from_layout(store: &ImageStore, index: &[u8]) -> Result<(String, BTreeSet<String>), ImageError> {
    let entries: Vec<Descriptor> = manifest::parse_index(index)?.into_iter().filter(is_image).collect();
    let mut images: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in &entries {
        images.entry(entry.digest().to_string()).or_default().extend(name_of(entry));
    }
    let names: BTreeSet<String> = images.values().flatten().cloned().collect();
    if images.len() == 1 {
        return Ok((entries[0].digest().to_string(), names));
    }
    // Some tools write the images of all platforms without an index of their own.
    let same_names = images.values().all(|it| *it == names);
    if images.len() > 1 && same_names && entries.iter().all(|it| it.platform().is_some()) {
        return Ok((store.blobs.put(index, None)?.0, names));
    }
    Err(several(images.len(), &names))
}

fn several(count: usize, names: &BTreeSet<String>) -> ImageError {
    let names = names.iter().cloned().collect::<Vec<_>>().join(", ");
    refuse(match count {
        0 => "it holds no image".to_owned(),
        _ => format!("it holds {count} images ({names}), and one is taken at a time"),
    })
}

/// Returns the name that an index gives to an image. A tag alone is none.
fn name_of(entry: &Descriptor) -> Option<String> {
    let annotations = entry.annotations().as_ref()?;
    let whole = annotations.get(REF_NAME).filter(|it| it.contains(['/', ':']));
    annotations.get(NAME).or(whole).cloned()
}

/// Like [`from_layout`], for `docker save`.
fn from_docker(store: &ImageStore, manifest: &[u8], files: &Files) -> Result<(String, BTreeSet<String>), ImageError> {
    let images: Vec<DockerImage> =
        serde_json::from_slice(manifest).map_err(|error| refuse(format!("manifest.json: {error}")))?;
    let names = images.iter().filter_map(|it| it.repo_tags.as_ref()).flatten().cloned().collect();
    let [image] = images.as_slice() else { return Err(several(images.len(), &names)) };
    let find = |name: &String, media_type: MediaType| {
        let (digest, size) = files.get(name).ok_or_else(|| refuse(format!("`{name}` is missing")))?;
        Ok(descriptor(media_type, digest, *size))
    };
    let layers = image.layers.iter().flatten().map(|name| find(name, MediaType::ImageLayer));
    let layers = layers.collect::<Result<Vec<_>, ImageError>>()?;
    let digest = store.put_manifest(find(&image.config, MediaType::ImageConfig)?, layers)?;
    Ok((digest, names))
}

#[cfg(test)]
mod tests;
