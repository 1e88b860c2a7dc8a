//! Tests of what the store keeps and removes.

use super::*;
use crate::manifest::descriptor;
use crate::pack::pack;

fn store() -> (tempfile::TempDir, ImageStore) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = ImageStore::open(dir.path(), true).expect("a store");
    (dir, store)
}

/// An unpacked image of one program.
fn image(store: &ImageStore, name: &str) -> Image {
    let image = pack(store, name, format!("\x7fELF {name}").as_bytes()).expect("static");
    store.unpack(&image).expect("a good layer");
    image
}

/// A blob that no image needs.
fn stray(store: &ImageStore) -> String {
    store.blobs.put(&b"stray"[..], None).expect("stored").0
}

fn layers(dir: &tempfile::TempDir) -> usize {
    fs_err::read_dir(dir.path().join("layers")).expect("a folder").count()
}

#[test]
fn sweep_removes_what_no_image_needs_and_nothing_else() {
    let (dir, store) = store();
    let (kept, removed, stray) = (image(&store, "kept"), image(&store, "removed"), stray(&store));
    fs_err::create_dir(dir.path().join("layers/older")).expect("a folder");
    store.remove(&removed.digest).expect("removed");
    assert!(store.whole_image(&kept.digest).is_some() && !store.blobs.has(&stray));
    assert!(removed.blobs().iter().all(|blob| !store.blobs.has(blob)));
    assert_eq!(layers(&dir), 1, "the layer of the image that is kept");
}

#[test]
fn index_is_a_part_of_the_image_that_is_known_by_it() {
    let (_dir, store) = store();
    let image = image(&store, "program");
    let size = store.blobs.read(&image.digest, manifest::BOUND).expect("stored").len() as u64;
    let mut entry = descriptor(MediaType::ImageManifest, &image.digest, size);
    entry.set_platform(Some(oci_spec::image::Platform::default()));
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
    let (digest, _) = store.blobs.put(index.as_bytes(), None).expect("stored");
    store.record(&store.image(&digest).expect("complete")).expect("recorded");
    // The manifest is needed by the index alone.
    store.remove(&image.digest).expect("removed");
    assert_eq!(store.missing(&digest).expect("well-formed"), []);
    let [layer] = image.manifest.layers().as_slice() else { panic!("a program has one layer") };
    store.blobs.remove(layer.digest().as_ref()).expect("removed");
    assert_eq!(store.missing(&digest).expect("well-formed"), [(layer.digest().to_string(), layer.size())]);
    store.blobs.remove(&image.digest).expect("removed");
    assert_eq!(store.missing(&digest).expect("well-formed"), [(image.digest.clone(), size)]);
    assert_eq!(store.images().len(), 0);
}

#[test]
fn sweep_that_can_not_tell_what_an_image_needs_removes_nothing() {
    let (dir, store) = store();
    let (whole, damaged, stray) = (image(&store, "whole"), image(&store, "damaged"), stray(&store));
    let manifest = store.blobs.path(&damaged.digest).expect("a digest");
    fs_err::write(&manifest, b"{").expect("written");
    assert!(matches!(store.sweep(), Err(ImageError::Manifest(_))));
    fs_err::remove_file(&manifest).expect("removed");
    assert!(matches!(store.sweep(), Err(ImageError::Blob(BlobError::Missing(_)))));
    assert!(store.blobs.has(&stray) && damaged.blobs()[1..].iter().all(|blob| store.blobs.has(blob)));
    assert_eq!(layers(&dir), 2);
    // It can still be removed, and then it is known again what is needed.
    store.remove(&damaged.digest).expect("removed");
    assert!(!store.blobs.has(&stray) && store.whole_image(&whole.digest).is_some());
    assert_eq!(layers(&dir), 1);
}

#[test]
fn layer_is_unpacked_once_for_the_same_layers_below_it() {
    let (_dir, store) = store();
    let [first, second] = ["first", "second"].map(|name| image(&store, name).manifest.layers()[0].clone());
    let config = format!(r#"{{"architecture":"{}","os":"linux"}}"#, oci_spec::image::Arch::default());
    let (config, size) = store.blobs.put(config.as_bytes(), None).expect("stored");
    let names = |layers: &[&Descriptor]| {
        let config = descriptor(MediaType::ImageConfig, &config, size);
        let layers = layers.iter().map(|it| (*it).clone()).collect();
        let digest = store.put_manifest(config, layers).expect("stored");
        layer_names(&store.image(&digest).expect("complete"))
    };
    let (one, other) = (names(&[&first, &second]), names(&[&first, &second, &second]));
    assert_eq!(one[..], other[..2]);
    assert!(other[1] != other[2], "overlayfs refuses a folder that is named twice");
    assert!(names(&[&second])[0] != one[1], "it lies on nothing");
}

#[test]
fn a_full_disk_is_no_fault_of_the_image_and_a_damaged_layer_is() {
    let full = || io::Error::from_raw_os_error(Errno::ENOSPC as i32);
    let unpack = |source| ImageError::Unpack { digest: "sha256:1".into(), source };
    let kernel = |errno| unpack(UnpackError::Kernel { path: "usr".into(), errno });
    for (error, expected) in [
        (kernel(Errno::EMFILE), true),
        (kernel(Errno::ENAMETOOLONG), false),
        (unpack(UnpackError::Tar(TarError::Read(full()))), true),
        (unpack(UnpackError::Tar(TarError::CutOff)), false),
        (unpack(UnpackError::Bomb(1)), false),
        (ImageError::Blob(BlobError::Io { digest: "sha256:1".into(), source: full() }), true),
        (ImageError::Blob(BlobError::Missing("sha256:1".into())), false),
        (ImageError::Io { act: "make a folder", source: full() }, true),
        (ImageError::Io { act: "make a folder", source: Errno::ENOTDIR.into() }, false),
    ] {
        assert_eq!(error.is_of_machine(), expected, "{error:?}");
    }
}
